"""Selection of weights, masked Adam and attention columns in plain PyTorch: the definitions and the fallback.

Arithmetic is float32, or float64 where a tensor is; every operation below is rounded once and none is
contracted, so that the compiled passes have the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from tenfold.kernels.zo import zo_select_reference
from tenfold.kernels.zo.zo_reference import _sqrt
from torch import Tensor

from .erase_select import Selected, bits_by_threshold_, select_by_digits

MODES = ("signed", "abs", "product")
ROWS = 1024
"""Rows of the attention matrix that are made at a time."""


class AdamArgs(NamedTuple):
    """Scalars of a step: keep = 1 - lr wd; new1, new2 = 1 - beta; inverse = 1 / sqrt(1 - beta2^step); rate =
    lr / (1 - beta1^step)."""

    keep: float
    new1: float
    beta2: float
    new2: float
    inverse: float
    eps: float
    rate: float


def math_dtype(*tensors: Tensor) -> torch.dtype:
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


# ---- selection -------------------------------------------------------------------------------------------


def select(tensors: Sequence[Tensor], rank: int) -> Selected:
    """The rank-th smallest |x| of all tensors together, rank from 1."""
    return select_by_digits(zo_select_reference, tensors, rank)


def topk_bits_(
    out: Sequence[Tensor], tensors: Sequence[Tensor], found: Selected, ties: int, largest: bool
) -> None:
    """Bit i % 8 of byte i // 8 of out[t] is set where |x_i| is beyond the threshold, and for the first `ties`
    of those that equal it."""
    bits_by_threshold_(zo_select_reference, out, tensors, found, ties, largest)


# ---- sums and steps --------------------------------------------------------------------------------------


@torch.no_grad()
def saliency_(acc: Sequence[Tensor], grads: Sequence[Tensor], weights: Sequence[Tensor], mode: str) -> None:
    """acc += g, |g| or |g w|; `weights` are read for "product" only."""
    for i, (total, grad) in enumerate(zip(acc, grads, strict=True)):
        step = grad.to(total.dtype)
        if mode == "product":
            step = step * weights[i].to(total.dtype)
        total.add_(step if mode == "signed" else step.abs())


def unpacked(bits: Tensor, like: Tensor) -> Tensor:
    """bool, of the shape of `like`."""
    spread = bits[:, None] >> torch.arange(8, dtype=torch.uint8, device=bits.device) & 1
    return spread.flatten()[: like.numel()].view(like.shape).bool()


@torch.no_grad()
def adam_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    masks: Sequence[Tensor],
    a: AdamArgs,
) -> None:
    """One step where a bit is set: m += (g - m) new1; v = v beta2 + g g new2; p = p keep - rate (m / (sqrt(v)
    inverse + eps)). All else keeps every bit."""
    for param, grad, mean, square, bits in zip(params, grads, exp_avgs, exp_avg_sqs, masks, strict=True):
        wide = math_dtype(param)
        p, g, m, v = (t.to(wide) for t in (param, grad, mean, square))
        m = m + (g - m) * a.new1
        v = v * a.beta2 + g * g * a.new2
        p = p * a.keep - (m / (_sqrt(v) * a.inverse + a.eps)) * a.rate
        live = unpacked(bits, param)
        for old, new in ((param, p), (mean, m), (square, v)):
            old.copy_(torch.where(live, new.to(old.dtype), old))


# ---- attention -------------------------------------------------------------------------------------------


def column_norm(q: Tensor, k: Tensor, mask: Tensor, scale: float) -> Tensor:
    """Sum of P_ij^2 over all rows and the columns j in the mask, P = softmax(scale q k^T); float64."""
    total = torch.zeros((), dtype=torch.float64, device=q.device)
    for b, head, rows in _tiles(q):
        p = _probabilities(q, k, b, head, rows, scale)
        total += (p * mask[b]).square().sum(dtype=torch.float64)
    return total


def column_norm_backward(
    grad: Tensor, q: Tensor, k: Tensor, mask: Tensor, scale: float, dq: Tensor | None, dk: Tensor | None
) -> None:
    """Writes the gradients: with f_i = sum_j in mask P_ij^2, dS_ij = 2 P_ij (P_ij [j in mask] - f_i)."""
    wide = math_dtype(q, k)
    sums = torch.zeros(k.shape, dtype=wide, device=k.device) if dk is not None else None
    for b, head, rows in _tiles(q):
        p = _probabilities(q, k, b, head, rows, scale)
        chosen = p * mask[b]
        ds = 2 * scale * grad.to(wide) * p * (chosen - chosen.square().sum(1, keepdim=True))
        if dq is not None:
            dq[b, head, rows] = (ds @ k[b, head].to(wide)).to(dq.dtype)
        if sums is not None:
            sums[b, head] += ds.T @ q[b, head, rows].to(wide)
    if dk is not None and sums is not None:
        dk.copy_(sums)


def _tiles(q: Tensor) -> list[tuple[int, int, slice]]:
    batch, heads, count, _ = q.shape
    return [
        (b, h, slice(i, i + ROWS)) for b in range(batch) for h in range(heads) for i in range(0, count, ROWS)
    ]


def _probabilities(q: Tensor, k: Tensor, b: int, head: int, rows: slice, scale: float) -> Tensor:
    wide = math_dtype(q, k)
    return (q[b, head, rows].to(wide) @ k[b, head].to(wide).T * scale).softmax(1)
