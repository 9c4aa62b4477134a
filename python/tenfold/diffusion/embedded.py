"""What the embedded models share: words as tokens, a small text encoder, a checked file of weights."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tenfold.assets import sha256_of
from tenfold.diffusion.encode import flat
from tenfold.runs.files import read_json, read_safetensors

__all__ = ["END", "START", "UNKNOWN", "WeightsFile", "word_text_encoder", "word_tokenizer"]

START, END, UNKNOWN = "<|startoftext|>", "<|endoftext|>", "<|unknown|>"


def word_tokenizer(words: Sequence[str], context: int) -> Any:
    """A new tokenizer of whole words, that pads with the end token and reads any other word as "unknown".

    Args:
        words: in the order of their ids, `UNKNOWN`, `START` and `END` among them.
        context: tokens of a prompt.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    ids = {word: i for i, word in enumerate(words)}
    inner = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    inner.normalizer = normalizers.Lowercase()
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}", special_tokens=[(START, ids[START]), (END, ids[END])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token=START,
        eos_token=END,
        pad_token=END,
        unk_token=UNKNOWN,
        model_max_length=context,
        clean_up_tokenization_spaces=False,
    )


def word_text_encoder(words: Any, *, width: int, layers: int) -> Any:
    """CLIP's text model, untrained, for a `word_tokenizer`.

    Token embeddings start as N(0, 0.5) and positions as N(0, 0.1): words are told apart from the start.
    """
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=words.model_max_length,
        projection_dim=width,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    made = CLIPTextModel(config)
    torch.nn.init.normal_(flat(made).embeddings.token_embedding.weight, 0, 0.5)
    torch.nn.init.normal_(flat(made).embeddings.position_embedding.weight, 0, 0.1)
    return made


class WeightsFile(NamedTuple):
    """Weights as safetensors, and beside them what is known of where they come from."""

    file: str
    about: str

    def write(self, folder: Path, state: dict[str, Tensor], about: dict[str, Any]) -> None:
        """Write weights and provenance; `about` gets the file's SHA-256."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        aside = folder / f"{self.file}.tmp"
        save_file({name: tensor.detach().contiguous().cpu() for name, tensor in state.items()}, aside)
        aside.chmod(0o644)
        known = {**about, "file": self.file, "sha256": sha256_of(aside), "bytes": aside.stat().st_size}
        text = folder / f"{self.about}.tmp"
        text.write_text(json.dumps(known, indent=1) + "\n")
        os.replace(aside, folder / self.file)
        os.replace(text, folder / self.about)

    def read(self, folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Weights and provenance.

        Raises:
            FileNotFoundError: a file is missing. RuntimeError: the weights are not those of the provenance.
        """
        for name in (self.file, self.about):
            if not (folder / name).is_file():
                raise FileNotFoundError(f"folder: expected {name} in {folder}, got nothing")
        about = read_json(folder / self.about)
        digest = sha256_of(folder / self.file)
        if digest != about["sha256"]:
            raise RuntimeError(f"{folder / self.file}: expected SHA-256 {about['sha256']}, got {digest}")
        return read_safetensors(folder / self.file)[0], about
