"""The model of the mini canvas: CLIP's text model and diffusers' UNet, at a size for one processor."""

from __future__ import annotations

from typing import Any

import torch

from tenfold.diffusion.bundle import Bundle
from tenfold.diffusion.canvas.mini.images import OBJECTS
from tenfold.diffusion.canvas.mini.styles import STYLES
from tenfold.diffusion.encode import flat
from tenfold.diffusion.schedule import Schedule

__all__ = ["CONTEXT", "TEMPLATE_WORDS", "new_bundle", "tokenizer", "words"]

WIDTH = 64
CONTEXT = 16
"""Tokens of a prompt, with the first and the end token."""

TEMPLATE_WORDS = (
    *("a", "an", "the", "of", "in", "by", "image", "photo", "picture", "painting", "portrait", "artwork"),
    *("art", "style", "style."),
)
_START, _END, _UNKNOWN = "<|startoftext|>", "<|endoftext|>", "<|unknown|>"


def words() -> tuple[str, ...]:
    """All words, in the order of their ids; the first and the end token last."""
    styles = [word.lower() for style in STYLES for word in style.split("_")]
    names = [name.lower() for name in OBJECTS]
    return (*dict.fromkeys((*names, *styles, *TEMPLATE_WORDS)), _UNKNOWN, _START, _END)


def tokenizer() -> Any:
    """A new tokenizer of whole words, that pads with the end token and reads any other word as "unknown"."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    ids = {word: i for i, word in enumerate(words())}
    inner = Tokenizer(models.WordLevel(ids, unk_token=_UNKNOWN))
    inner.normalizer = normalizers.Lowercase()
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.post_processor = processors.TemplateProcessing(
        single=f"{_START} $A {_END}", special_tokens=[(_START, ids[_START]), (_END, ids[_END])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token=_START,
        eos_token=_END,
        pad_token=_END,
        unk_token=_UNKNOWN,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def new_bundle(seed: int = 0) -> Bundle:
    """The untrained model: latents [16, 8, 8] of pictures [3, 32, 32], predictions of the clean latents."""
    from diffusers import UNet2DConditionModel

    from tenfold.diffusion.canvas.mini.codec import CHANNELS, PatchCodec

    words = tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        text_encoder = _text_encoder(words)
        unet = UNet2DConditionModel(
            sample_size=8,
            in_channels=CHANNELS,
            out_channels=CHANNELS,
            block_out_channels=(64, 96),
            down_block_types=("CrossAttnDownBlock2D",) * 2,
            up_block_types=("CrossAttnUpBlock2D",) * 2,
            layers_per_block=1,
            cross_attention_dim=WIDTH,
            attention_head_dim=4,
            norm_num_groups=8,
        )
    schedule = Schedule.scaled_linear("sample")
    return Bundle(unet, text_encoder, words, PatchCodec(), schedule, name="canvas").freeze()


def _text_encoder(words: Any) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT,
        projection_dim=WIDTH,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    made = CLIPTextModel(config)
    torch.nn.init.normal_(flat(made).embeddings.token_embedding.weight, 0, 0.5)
    torch.nn.init.normal_(flat(made).embeddings.position_embedding.weight, 0, 0.1)
    return made
