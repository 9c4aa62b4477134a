"""Tiny members of the benchmark's model families, and a small tokenizer trained on the text at hand.

RoBERTa (masked), OPT, LLaMA, Vicuna (LLaMA with chat weights: the same modules) and Mistral (grouped
queries), with random weights: what the tests and the embedded tables run on. :func:`pretrained` makes a small
language model out of one, by back-propagation on plain text, in well under a minute.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tenfold.llm import models

__all__ = ["FAMILIES", "make_model", "make_tokenizer", "pretrained"]

FAMILIES = ("roberta", "opt", "llama", "vicuna", "mistral")
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")  # RoBERTa's order: padding is 1


def make_model(
    family: str,
    *,
    width: int = 64,
    layers: int = 2,
    heads: int = 4,
    vocabulary: int = 512,
    positions: int = 512,
    seed: int = 0,
    device: str = "cpu",
) -> Any:
    """A small model of a family with random weights (float32, evaluation mode, no gradients).

    Args:
        width: hidden size, a multiple of ``heads``; the inner size of the MLPs is four times as large (LLaMA
            and Mistral: three times).
        device: ``"meta"`` for shapes without memory.

    Raises:
        ValueError: an unknown family, or sizes that do not fit.
    """
    if family not in FAMILIES:
        raise ValueError(f"family: expected one of {', '.join(FAMILIES)}, got {family!r}")
    if width % heads:
        raise ValueError(f"width: expected a multiple of heads={heads}, got {width}")
    common = {
        "vocab_size": vocabulary, "hidden_size": width, "num_hidden_layers": layers,
        "num_attention_heads": heads, "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    config, make = _build(family, common, width, heads, positions)
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.manual_seed(seed)
        model = make(config)
    return model.eval().requires_grad_(False)


def _build(family: str, common: dict[str, Any], width: int, heads: int, positions: int) -> tuple[Any, Any]:
    import transformers as tf

    own: dict[str, Any]
    if family == "roberta":
        own = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "type_vocab_size": 1}
        own |= {"intermediate_size": 4 * width, "max_position_embeddings": positions + 2}
        own["initializer_range"] = width**-0.5  # the usual 0.02 suits width 768; narrower, its blocks (norm
        # behind each) pass on nearly nothing, and a short training never leaves the words' frequencies
        return tf.RobertaConfig(**common, **own), tf.RobertaForMaskedLM
    if family == "opt":
        own = {"ffn_dim": 4 * width, "word_embed_proj_dim": width, "dropout": 0.0}
        return tf.OPTConfig(**common, **own, max_position_embeddings=positions), tf.OPTForCausalLM
    own = {"intermediate_size": 3 * width, "max_position_embeddings": positions, "tie_word_embeddings": True}
    if family == "mistral":
        own |= {"num_key_value_heads": max(1, heads // 4), "sliding_window": None}
        return tf.MistralConfig(**common, **own), tf.MistralForCausalLM
    return tf.LlamaConfig(**common, **own, num_key_value_heads=heads), tf.LlamaForCausalLM


def make_tokenizer(texts: Sequence[str], vocabulary: int = 512, whole: Sequence[str] = ()) -> Any:
    """A byte-level BPE tokenizer trained on ``texts``, padding on the left; the same texts give the same.

    Args:
        vocabulary: at least 300 (256 bytes and the special tokens).
        whole: words, with their leading blank where they have one, that must be one token each. They are put
            into the training text often enough to be merged.

    Raises:
        ValueError: too small a vocabulary, no text, or a word that did not become one token.
    """
    if vocabulary < 300:
        raise ValueError(f"vocabulary: expected at least 300, got {vocabulary}")
    if not texts:
        raise ValueError("texts: expected at least one, got none")
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE(unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    mask = AddedToken("<mask>", lstrip=True, special=True)  # takes the blank before it, as RoBERTa's does
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[*SPECIAL[:-1], mask], show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )  # fmt: skip
    weight = max(1, sum(map(len, texts)) // 40)
    inner.train_from_iterator([*texts, *(word * weight for word in whole)], trainer)
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", pad_token="<pad>", eos_token="</s>", unk_token="<unk>",
        mask_token=mask, padding_side="left",
    )  # fmt: skip
    for word in whole:
        if len(tokenizer(word, add_special_tokens=False).input_ids) != 1:
            raise ValueError(f"whole: expected words that become one token in {vocabulary}, got {word!r}")
    return tokenizer


def pretrained(
    family: str,
    texts: Sequence[str],
    tokenizer: Any,
    folder: Path,
    *,
    width: int = 64,
    layers: int = 2,
    steps: int = 600,
    batch_size: int = 64,
    lr: float = 3e-3,
    emphasis: float = 0.0,
    emphasis_at: int = -1,
    share: float = 0.25,
    max_seconds: float | None = None,
    seed: int = 0,
) -> Path:
    """Train a small model on plain text by back-propagation and save it (with its tokenizer) in ``folder``.

    The loss is taken at a share of the tokens, drawn anew in each step: causal families predict them from
    what stands before, RoBERTa has them masked. AdamW, one cycle with a short warm-up. A folder that holds a
    model already is returned as it is.

    Args:
        emphasis: weight of the mean loss at one token of each text, which is always among those predicted.
        emphasis_at: its place, from the end: -1 for the last token.
        share: of the other tokens that are predicted.
        max_seconds: stop there (the weights then depend on the machine); None for all ``steps``.

    Returns:
        ``folder``, which ``transformers`` loads.
    """
    if (folder / "config.json").exists():
        return folder
    rows = [ids[:96] for ids in tokenizer(list(texts)).input_ids if len(ids) > 3]
    model = make_model(family, width=width, layers=layers, vocabulary=len(tokenizer), seed=seed)
    model.requires_grad_(True)
    adam = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.01)
    generator = torch.Generator().manual_seed(seed)
    started = time.monotonic()
    batches = _length_batches(rows, batch_size, generator)
    for step in range(steps):
        for group in adam.param_groups:
            group["lr"] = lr * min((step + 1) / 50, 0.5 * (1 + math.cos(math.pi * step / steps)) + 0.02)
        loss = _language_loss(model, next(batches), tokenizer, emphasis, generator, emphasis_at, share)
        adam.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
        if max_seconds is not None and time.monotonic() - started > max_seconds:
            break
    tokenizer.save_pretrained(folder)
    with models._no_stderr():
        model.requires_grad_(False).save_pretrained(folder)
    return folder


def _length_batches(
    rows: Sequence[list[int]], size: int, generator: torch.Generator
) -> Iterator[list[list[int]]]:
    """Batches of rows of like length, in a fresh random order each epoch."""
    order = sorted(range(len(rows)), key=lambda i: (len(rows[i]), i))
    size = min(size, len(rows))
    whole = [order[i : i + size] for i in range(0, len(order) - size + 1, size)]
    while True:
        for k in torch.randperm(len(whole), generator=generator).tolist():
            yield [rows[i] for i in whole[k]]


def _language_loss(
    model: Any,
    rows: list[list[int]],
    tokenizer: Any,
    emphasis: float,
    generator: torch.Generator,
    at: int,
    share: float,
) -> Tensor:
    """Mean negative log-likelihood of the drawn tokens, plus ``emphasis`` times that at place ``at``."""
    from tenfold.llm.schemes import is_masked

    masked = is_masked(model)
    width = max(map(len, rows))
    ids = torch.tensor([row + [tokenizer.pad_token_id] * (width - len(row)) for row in rows])
    lengths = torch.tensor([len(row) for row in rows])
    mask = (torch.arange(width) < lengths[:, None]).long()
    drawn = (torch.rand(ids.shape, generator=generator) < share) & (mask == 1)
    drawn[:, 0] = False  # the begin token
    last = torch.zeros_like(drawn)
    last[torch.arange(len(rows)), lengths + at] = True
    drawn = drawn | last
    given = ids.masked_fill(drawn, tokenizer.mask_token_id) if masked else ids
    hidden = _hidden(model, given, mask)
    losses = F.cross_entropy(_at(model, hidden, drawn, masked), ids[drawn], reduction="none")
    return losses.mean() + emphasis * losses[last[drawn]].mean()


def _hidden(model: Any, ids: Tensor, mask: Tensor) -> Tensor:
    from tenfold.llm.schemes import Adapted

    return Adapted(model, "ft", {}).hidden(ids, mask)


def _at(model: Any, hidden: Tensor, drawn: Tensor, masked: bool) -> Tensor:
    """Logits of the drawn tokens: at their own place in a masked model, one place earlier in a causal one."""
    states = hidden[drawn] if masked else hidden[:, :-1][drawn[:, 1:]]
    logits: Tensor = model.get_output_embeddings()(states)
    return logits
