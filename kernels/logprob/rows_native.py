"""The row kernels behind the signatures of rows_reference.py, a few rows at a time: memory is bounded."""

from __future__ import annotations

import torch
from torch import Tensor

from . import rows_reference
from .rows_reference import RowStats, row_blocks

ROWS = 32
"""Rows that PyTorch works on at a time."""


def forward(
    logits: Tensor,
    targets: Tensor,
    softcap: float | None = None,
    inverse_temperature: float = 1.0,
    stats: bool = True,
) -> RowStats:
    found = [
        rows_reference.forward(z, targets[part], softcap, inverse_temperature, stats)
        for part, z in row_blocks(logits, ROWS)
    ]
    found = found or [rows_reference.forward(logits, targets, softcap, inverse_temperature, stats)]
    return RowStats(*(torch.cat(column) for column in zip(*found, strict=True)))


def softmax_(
    out: Tensor,
    logits: Tensor,
    targets: Tensor,
    lse: Tensor,
    coef: Tensor,
    at_target: Tensor,
    softcap: float | None = None,
    inverse_temperature: float = 1.0,
) -> None:
    for (p, z), (_, to) in zip(row_blocks(logits, ROWS), row_blocks(out, ROWS), strict=True):
        per_row = (targets[p], lse[p], coef[p], at_target[p])
        rows_reference.softmax_(to, z, *per_row, softcap, inverse_temperature)


def sample(
    logits: Tensor, uniforms: Tensor, inverse_temperature: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    found = [
        rows_reference.sample(z, uniforms[part], inverse_temperature) for part, z in row_blocks(logits, ROWS)
    ]
    found = found or [rows_reference.sample(logits, uniforms, inverse_temperature)]
    return tuple(torch.cat(column) for column in zip(*found, strict=True))  # type: ignore[return-value]


def ceu(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    found = [rows_reference.ceu(z, targets[part]) for part, z in row_blocks(logits, ROWS)]
    found = found or [rows_reference.ceu(logits, targets)]
    return tuple(torch.cat(column) for column in zip(*found, strict=True))  # type: ignore[return-value]


def divergence(
    logits: Tensor, ref_logits: Tensor, targets: Tensor, beta: float, kind: str
) -> tuple[Tensor, Tensor, Tensor]:
    found = [
        rows_reference.divergence(z, ref_logits[part], targets[part], beta, kind)
        for part, z in row_blocks(logits, ROWS)
    ]
    found = found or [rows_reference.divergence(logits, ref_logits, targets, beta, kind)]
    return tuple(torch.cat(column) for column in zip(*found, strict=True))  # type: ignore[return-value]


def divergence_(
    out: Tensor,
    logits: Tensor,
    ref_logits: Tensor,
    targets: Tensor,
    beta: float,
    kind: str,
    loss: Tensor,
    lse: Tensor,
    ref_lse: Tensor,
    grad: Tensor,
) -> None:
    per_row = (loss, lse, ref_lse, grad)
    for part, z in row_blocks(logits, ROWS):
        rest = (value[part] for value in per_row)
        rows_reference.divergence_(out[part], z, ref_logits[part], targets[part], beta, kind, *rest)
