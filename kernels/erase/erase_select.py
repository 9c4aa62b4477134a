"""The k-th magnitude over a list of tensors, and one bit for each weight beyond it.

Both are made of the counting passes of the family `zo` (counts of 11 bits of |x| at a time, counts and bits
of |x| <= threshold), which every backend has; the CPU has a faster way to the threshold (erase_native.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Selected(NamedTuple):
    """The rank-th smallest magnitude, how many are below it and how many equal it.

    If any value is NaN or infinite, `nonfinite` counts them and the rest says nothing.
    """

    threshold: float
    below: int
    equal: int
    nonfinite: int = 0


def at_most(threshold: float, tensors: Sequence[Tensor], *, strictly: bool) -> list[float]:
    """For each tensor the largest number of its math type that is <= threshold, or < threshold; -1 if none.

    A threshold that comes from a float64 tensor lies between two float32, and must not be rounded up.
    """
    single, double = torch.tensor(threshold, dtype=torch.float32), threshold
    low = -torch.ones(())
    if float(single) > threshold or (strictly and float(single) == threshold):
        single = torch.nextafter(single, low)
    if strictly:
        double = math.nextafter(threshold, -1.0)
    pick = {torch.float64: double if double >= 0 else -1.0}
    fallback = float(single) if float(single) >= 0 else -1.0
    return [pick.get(t.dtype, fallback) for t in tensors]


def _count(kernels: Any, tensors: Sequence[Tensor], bounds: Sequence[float]) -> int:
    """How many elements are within the bounds; a bound of -1 has none."""
    some = [i for i, bound in enumerate(bounds) if bound >= 0 and tensors[i].numel()]
    if not some:
        return 0
    return sum(kernels.count_within([tensors[i] for i in some], [bounds[i] for i in some]))


def select_by_digits(kernels: Any, tensors: Sequence[Tensor], rank: int) -> Selected:
    """By passes over all digits, then two that count."""
    tensors = [t for t in tensors if t.numel()]
    total = sum(t.numel() for t in tensors)
    largest = [torch.finfo(torch.float64 if t.dtype == torch.float64 else torch.float32).max for t in tensors]
    nonfinite = total - _count(kernels, tensors, largest)
    if nonfinite:
        return Selected(math.nan, 0, 0, nonfinite)
    threshold = kernels.quantile_abs(tensors, rank)
    below = _count(kernels, tensors, at_most(threshold, tensors, strictly=True))
    return Selected(
        threshold, below, _count(kernels, tensors, at_most(threshold, tensors, strictly=False)) - below
    )


def bits_by_threshold_(
    kernels: Any,
    out: Sequence[Tensor],
    tensors: Sequence[Tensor],
    found: Selected,
    ties: int,
    largest: bool,
) -> None:
    """Bits of what lies beyond the threshold, and of the first `ties` of the elements that equal it."""
    wanted = ties == found.equal  # all ties, or none at first
    strictly = largest == wanted  # >= t is the rest of < t; <= t is itself; > t is the rest of <= t
    _within_(kernels, out, tensors, at_most(found.threshold, tensors, strictly=strictly))
    if largest:
        for bits, tensor in zip(out, tensors, strict=True):
            _invert_(bits, tensor.numel())
    if not wanted and ties:
        upper, lower = (at_most(found.threshold, tensors, strictly=kind) for kind in (False, True))
        bounds = dict(zip(map(id, tensors), zip(upper, lower, strict=True), strict=True))

        def equals_(bits: Tensor, tensor: Tensor) -> None:
            most, less = bounds[id(tensor)]
            under = torch.empty_like(bits)
            _within_(kernels, [bits], [tensor], [most])
            _within_(kernels, [under], [tensor], [less])
            bits.bitwise_xor_(under)

        add_ties_(equals_, out, tensors, ties)


def _within_(kernels: Any, out: Sequence[Tensor], tensors: Sequence[Tensor], bounds: Sequence[float]) -> None:
    for bits, bound in zip(out, bounds, strict=True):
        if bound < 0:
            bits.zero_()
    some = [i for i, bound in enumerate(bounds) if bound >= 0]
    if some:
        kernels.magnitude_bits_([out[i] for i in some], [tensors[i] for i in some], [bounds[i] for i in some])


def _invert_(bits: Tensor, numel: int) -> None:
    torch.bitwise_not(bits, out=bits)
    if numel % 8:
        bits[-1] &= (1 << numel % 8) - 1


def add_ties_(
    equals_: Callable[[Tensor, Tensor], None], out: Sequence[Tensor], tensors: Sequence[Tensor], ties: int
) -> None:
    """Sets the bits of the first `ties` elements that equal the threshold, tensor after tensor.

    equals_(bits, tensor) fills bits with where a tensor's elements equal it.
    """
    for bits, tensor in zip(out, tensors, strict=True):
        if not ties or not tensor.numel():
            continue
        equal = torch.empty_like(bits)
        equals_(equal, tensor)
        counts = _POPULATION.to(bits.device)[equal.int()]
        there = int(counts.sum())
        if there > ties:
            _only_first_(equal, counts, ties)
        bits |= equal
        ties -= min(ties, there)


def _only_first_(bits: Tensor, counts: Tensor, wanted: int) -> None:
    """Leaves the first `wanted` of the bits, of which byte b has counts[b], more than `wanted` in all."""
    ends = counts.cumsum(0)
    last = int(torch.searchsorted(ends, wanted))  # the byte in which they run out
    bits[last + 1 :] = 0
    left, byte, kept = wanted - int(ends[last] - counts[last]), int(bits[last]), 0
    for j in range(8):
        if byte >> j & 1 and left:
            kept, left = kept | 1 << j, left - 1
    bits[last] = kept


_POPULATION = torch.tensor([value.bit_count() for value in range(256)], dtype=torch.uint8)
