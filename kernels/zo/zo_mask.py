"""Which elements a pass leaves alone: masks as they reach the kernels, and what they mean in PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

KINDS = ("random", "magnitude", "bits")


class MaskArgs(NamedTuple):
    """A mask over a list of tensors.

    kind "random":    element i is masked iff word i%4 of block i/4 of (seed, stream of the tensor, query),
                      purpose 3, is below word_threshold(values[t]); values are the shares that are masked.
    kind "magnitude": masked iff not (|x| <= values[t]), x the weight as read, both in the type of the math.
    kind "bits":      masked iff bit i%8 of byte i/8 of bits[t] is 0.
    """

    kind: str
    seed: int
    query: int
    values: Sequence[float]
    bits: Sequence[Tensor]


def word_threshold(ratio: float) -> int:
    """The share as a bound on 32-bit words, in [0, 2^32]: words below it are masked."""
    return round(ratio * 2.0**32)


def masked(mask: MaskArgs, t: int, x: Tensor, stream: int, first: int, start: int = 0) -> Tensor:
    """Boolean [n], true where elements from first on of tensor t (x, in the compute dtype) are masked.

    start: the element of its stream that the tensor begins with; `first` counts as the stream does.
    """
    from .zo_reference import words

    n = x.numel()
    if mask.kind == "magnitude":
        return ~(x.abs() <= torch.tensor(mask.values[t], dtype=torch.float64).to(x.dtype).item())
    if mask.kind == "bits":
        index = torch.arange(first - start, first - start + n, device=x.device)
        return (mask.bits[t].reshape(-1)[index // 8].to(torch.int64) >> (index % 8)) & 1 == 0
    start, stop = first // 4, (first + n + 3) // 4
    drawn = words(mask.seed, stream, mask.query, "mask", start, stop - start, x.device).reshape(-1)
    return drawn[first - 4 * start :][:n] < word_threshold(mask.values[t])
