"""What runs on CUDA, behind the signatures of erase_reference.py."""

from __future__ import annotations

from collections.abc import Sequence

from tenfold.kernels.zo import zo_cuda
from torch import Tensor

from .erase_native import adam_, saliency_
from .erase_select import Selected, bits_by_threshold_, select_by_digits

__all__ = ["adam_", "saliency_", "select", "topk_bits_"]


def select(tensors: Sequence[Tensor], rank: int) -> Selected:
    """See erase_reference.select."""
    return select_by_digits(zo_cuda, tensors, rank)


def topk_bits_(
    out: Sequence[Tensor], tensors: Sequence[Tensor], found: Selected, ties: int, largest: bool
) -> None:
    """See erase_reference.topk_bits_."""
    bits_by_threshold_(zo_cuda, out, tensors, found, ties, largest)
