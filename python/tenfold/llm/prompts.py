"""Prompts as token rows: template, one-token answers, left padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tenfold.llm.data import Example


@dataclass(frozen=True)
class Encoded:
    """Tokenised examples: one list of token ids per example, and the labels (int64, shape [N])."""

    rows: list[list[int]]
    labels: Tensor

    def __len__(self) -> int:
        return len(self.rows)


def check_template(template: str) -> str:
    """The template, once it is known to hold ``{text}`` exactly once.

    Raises:
        ValueError: it does not.
    """
    if template.count("{text}") != 1:
        raise ValueError(f"template: expected '{{text}}' exactly once, got {template!r}")
    return template


def option_ids(tokenizer: Any, verbalizers: Sequence[str]) -> Tensor:
    """Token id of each answer word (int64, shape [C]).

    Raises:
        ValueError: fewer than two words, a word of several tokens, or two words with the same token.
    """
    if len(verbalizers) < 2:
        raise ValueError(f"verbalizers: expected at least two answer words, got {list(verbalizers)}")
    ids = []
    for word in verbalizers:
        tokens = tokenizer(word, add_special_tokens=False).input_ids
        if len(tokens) != 1:
            pieces = tokenizer.convert_ids_to_tokens(tokens)
            raise ValueError(
                f"verbalizers: expected words of one token each, got {word!r} = {len(tokens)} {pieces}"
            )
        ids += tokens
    if len(set(ids)) != len(ids):
        raise ValueError(f"verbalizers: expected different tokens, got {list(verbalizers)} = {ids}")
    return torch.tensor(ids)


def encode(examples: Sequence[Example], tokenizer: Any, template: str, max_length: int) -> Encoded:
    """Prompts of the examples, each cut on its left to ``max_length`` tokens (the answer's place is at the
    end).
    Blanks at the end of a prompt are left out: they belong to the answer word's token.

    Raises:
        ValueError: a bad template.
    """
    check_template(template)
    prompts = [template.replace("{text}", example.text).rstrip(" ") for example in examples]
    rows = [ids[-max_length:] for ids in tokenizer(prompts).input_ids] if prompts else []
    return Encoded(rows, torch.tensor([example.label for example in examples], dtype=torch.int64))


def pad_left(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """``(ids, mask)``, both int64 [B, T] with T the longest row; the mask is 0 on the padding at the left."""
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), pad_id, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, width - len(row) :] = torch.tensor(row, dtype=torch.int64)
        mask[i, width - len(row) :] = 1
    return ids, mask
