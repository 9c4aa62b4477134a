"""Sums and order statistics over lists of tensors in plain PyTorch, the oracle of the native kernels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import zo_reference as ref
from .zo_mask import MaskArgs, masked

TILE = 2048  # elements per partial sum, as in zo_cpu.cpp
_DIGIT = 16


def pairwise_sum(values: Sequence[float]) -> float:
    """Halves of the list summed as kernels/core/reduce.hpp does: a binary counter carries."""
    partial: list[float] = []
    for i, value in enumerate(values):
        while i & 1:
            value = partial.pop() + value
            i >>= 1
        partial.append(value)
    total = 0.0
    while partial:
        total = partial.pop() + total
    return total


def _tile_sums(z: Tensor) -> list[float]:
    """Sums of squares of tiles of z: eight interleaved float64 sums each, joined as a tree."""
    tiles = -(-z.numel() // TILE)
    padded = torch.zeros(tiles * TILE, dtype=torch.float64, device=z.device)
    padded[: z.numel()] = z.to(torch.float64).square()
    partial = torch.zeros(tiles, 8, dtype=torch.float64, device=z.device)
    for row in padded.view(tiles, TILE // 8, 8).unbind(1):
        partial = partial + row
    while partial.shape[1] > 1:
        partial = partial[:, 0::2] + partial[:, 1::2]
    joined: list[float] = partial[:, 0].tolist()
    return joined


def square_sums(
    numels: Sequence[int],
    streams: Sequence[int],
    seed: int,
    query: int,
    dist: str,
    device: torch.device | str = "cpu",
    mask: MaskArgs | None = None,
    params: Sequence[Tensor] = (),
) -> list[float]:
    """Sum of z^2 over each tensor, float64, z = 0 where masked; `params` are what a magnitude mask looks at.

    Tiles of 2,048 elements, each as piece_sum of reduce.hpp, joined by pairwise_sum.
    """
    out = []
    for t, (numel, stream) in enumerate(zip(numels, streams, strict=True)):
        sums: list[float] = []
        weights = iter(ref._pieces((params[t],))) if params else None
        at = 0
        held = torch.empty(0)  # drawn, not yet a whole tile
        while at < numel:
            if weights is None:
                x = torch.zeros(min(ref.CHUNK, numel - at), device=device)
            else:
                x = next(weights)[1][0].reshape(-1).to(ref._compute_dtype(params[t]))
            z = ref._DISTRIBUTIONS[dist](seed, stream, query, at, x.numel(), x.device)
            if mask is not None:
                z = torch.where(masked(mask, t, x, stream, at), 0.0, z)
            at += x.numel()
            z = torch.cat((held.to(z.device), z))
            whole = z.numel() if at == numel else z.numel() // TILE * TILE
            sums += _tile_sums(z[:whole])
            held = z[whole:]
        out.append(pairwise_sum(sums))
    return out


def _keys(x: Tensor) -> Tensor:
    """|x| as float64 bits: an integer order that puts NaN last."""
    return x.reshape(-1).to(torch.float64).abs().view(torch.int64)


@torch.no_grad()
def quantile_abs(params: Sequence[Tensor], rank: int) -> float:
    """The rank-th smallest |theta| of all tensors together, rank from 1: radix select, 16 bits at a time."""
    prefix = 0
    for shift in range(48, -1, -_DIGIT):
        counts = torch.zeros(1 << _DIGIT, dtype=torch.int64)
        for param in params:
            for _, (piece,) in ref._pieces((param,)):
                keys = _keys(piece)
                keys = keys[keys >> (shift + _DIGIT) == prefix] if shift < 48 else keys
                digits = (keys >> shift) & ((1 << _DIGIT) - 1)
                counts += torch.bincount(digits, minlength=1 << _DIGIT).cpu()
        below = counts.cumsum(0)
        digit = int(torch.searchsorted(below, torch.tensor(rank)).item())
        rank -= int(below[digit] - counts[digit])
        prefix = prefix << _DIGIT | digit
    return torch.tensor(prefix, dtype=torch.int64).view(torch.float64).item()


@torch.no_grad()
def count_within(params: Sequence[Tensor], thresholds: Sequence[float]) -> list[int]:
    """Elements with |theta| <= threshold (in the type of the math), per tensor."""
    out = []
    for t, param in enumerate(params):
        mask = MaskArgs("magnitude", 0, 0, thresholds, [])
        n = 0
        for first, (piece,) in ref._pieces((param,)):
            x = piece.reshape(-1).to(ref._compute_dtype(param))
            n += int((~masked(mask, t, x, 0, first)).sum().item())
        out.append(n)
    return out


@torch.no_grad()
def magnitude_bits_(out: Sequence[Tensor], params: Sequence[Tensor], thresholds: Sequence[float]) -> None:
    """Bit i%8 of byte i/8 of out[t] = |element i of params[t]| <= thresholds[t]; spare bits are 0."""
    mask = MaskArgs("magnitude", 0, 0, thresholds, [])
    for t, (bits, param) in enumerate(zip(out, params, strict=True)):
        bits.zero_()
        for first, (piece,) in ref._pieces((param,)):
            x = piece.reshape(-1).to(ref._compute_dtype(param))
            inside = ~masked(mask, t, x, 0, first)
            index = torch.arange(first, first + x.numel(), device=x.device)
            start, stop = first // 8, (first + x.numel() + 7) // 8
            part = torch.zeros(stop - start, dtype=torch.int64, device=x.device)
            part.index_add_(0, index // 8 - start, inside.to(torch.int64) << (index % 8))
            bits[start:stop] += part.to(torch.uint8)
