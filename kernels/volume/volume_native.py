"""The compiled volume kernels behind plain Python signatures; CPU tensors only."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tenfold import _native
from tenfold._native import DTYPE_CODES

from . import volume_reference

Size = tuple[int, int, int]


def resample_argmax(logits: Tensor, size: Size, align_corners: bool, dtype: torch.dtype) -> Tensor:
    """See volume_reference.resample_argmax; float64 logits go through it."""
    if logits.dtype == torch.float64:
        return volume_reference.resample_argmax(logits, size, align_corners, dtype)
    if logits.stride(-1) != 1:
        logits = logits.contiguous()
    labels = torch.empty(size, dtype=dtype)
    classes, *shape = logits.shape
    head = (logits.data_ptr(), DTYPE_CODES[logits.dtype], classes, shape, logits.stride()[:3], size)
    threads = torch.get_num_threads()
    _native.cpu.resample_argmax(*head, align_corners, labels.data_ptr(), labels.itemsize, threads)
    return labels


def components(volume: Tensor, connectivity: int, multilabel: bool, labels: Tensor | None) -> Tensor:
    """Components in the order of their first voxel, int64 [N, 8]: value, voxels, lo z, y, x, hi z, y, x.

    Their numbers go into labels.
    """
    address = 0 if labels is None else labels.data_ptr()
    found: bytes = _native.cpu.components(*_head(volume), connectivity, multilabel, address)
    if not found:
        return torch.empty(0, 8, dtype=torch.int64)
    return torch.frombuffer(bytearray(found), dtype=torch.int64).reshape(-1, 8)


def keep_largest_(
    volume: Tensor,
    connectivity: int,
    multilabel: bool,
    classes: Sequence[int] | None,
    largest_only: bool,
    min_size: int,
) -> int:
    """Clears what is not kept in the volume itself; returns how many components that were."""
    chosen = list(classes or ())
    cleared: int = _native.cpu.keep_largest(
        *_head(volume), connectivity, multilabel, chosen, classes is None, largest_only, min_size
    )
    return cleared


def fill_holes_(volume: Tensor, classes: Sequence[int] | None) -> int:
    """Fills holes in the volume itself; returns how many voxels that were."""
    filled: int = _native.cpu.fill_holes(*_head(volume), list(classes or ()), classes is None)
    return filled


def _head(volume: Tensor) -> tuple[int, int, Size]:
    z, y, x = volume.shape
    return volume.data_ptr(), volume.itemsize, (z, y, x)
