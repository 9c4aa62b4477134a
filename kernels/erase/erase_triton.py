"""What runs in Triton, behind the signatures of erase_reference.py."""

from __future__ import annotations

from collections.abc import Sequence

from tenfold.kernels.zo import zo_triton
from torch import Tensor

from .erase_select import Selected, bits_by_threshold_, select_by_digits


def select(tensors: Sequence[Tensor], rank: int) -> Selected:
    """See erase_reference.select."""
    return select_by_digits(zo_triton, tensors, rank)


def topk_bits_(
    out: Sequence[Tensor], tensors: Sequence[Tensor], found: Selected, ties: int, largest: bool
) -> None:
    """See erase_reference.topk_bits_."""
    bits_by_threshold_(zo_triton, out, tensors, found, ties, largest)
