"""Overlap counts: everything that Dice, Jaccard, precision, recall and volumes are made of, in one pass.

The joint histogram of two label volumes is counted along runs of equal pairs, so that a volume costs little
more than reading it once; structures that overlap are packed into bits and counted by words.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tenfold import _arrays, _checks
from tenfold._backend import OPS, chosen_backend

from . import _volumes

MAX_LABELS = 4096

OPS |= dict.fromkeys(
    ("overlap_counts", "label_lut", "pack_bits", "unpack_bits", "multihot_counts", "lut_counts"),
    ("cpu", "reference"),
)

_LIBRARY = torch.library.Library("tenfold", "FRAGMENT")
_LIBRARY.define(
    "overlap_counts(Tensor target, Tensor pred, SymInt num_labels, int[] flip_target, int[] flip_pred, "
    "bool boxes, int threads) -> (Tensor, Tensor, Tensor)"
)


def _kernels(op: str, device: torch.device) -> Any:
    """The module that implements `op` for the chosen backend; they share their signatures."""
    if chosen_backend(op, device.type) == "reference":
        from tenfold.kernels.overlap import overlap_reference as module
    else:
        from tenfold.kernels.overlap import overlap_native as module
    return module


def _overlap_counts(
    target: Tensor,
    pred: Tensor,
    num_labels: int,
    flip_target: list[int],
    flip_pred: list[int],
    boxes: bool,
    threads: int,
) -> tuple[Tensor, Tensor, Tensor]:
    found: tuple[Tensor, Tensor, Tensor] = _kernels("overlap_counts", target.device).counts(
        target, pred, num_labels, flip_target, flip_pred, boxes, threads
    )
    return found


def _overlap_counts_fake(
    target: Tensor, pred: Tensor, num_labels: int, flip_target: Any, flip_pred: Any, boxes: bool, threads: int
) -> tuple[Tensor, Tensor, Tensor]:
    rows = num_labels if boxes else 0
    boxes_of = [target.new_empty((rows, 2 * target.ndim), dtype=torch.int64) for _ in range(2)]
    return target.new_empty((num_labels, num_labels), dtype=torch.int64), *boxes_of


for _device in ("CPU", "CUDA"):
    _LIBRARY.impl("overlap_counts", _overlap_counts, _device)
torch.library.register_fake("tenfold::overlap_counts", _overlap_counts_fake, lib=_LIBRARY)


def overlap_counts(
    target: Any, pred: Any, num_labels: int, *, boxes: bool = False, num_threads: int | None = None
) -> Any:
    """The joint histogram of two label volumes, and on request the box around each label.

    Args:
        target, pred: tensors (or NumPy or CuPy arrays) of one shape: uint8, int8, uint16, int16, uint32,
            int32, int64 or bool, also of different dtypes; any strides, read-only and reversed arrays
            included, without a copy. Floating-point arrays of whole numbers are converted.
        num_labels: K, 1 to 4096; labels are 0 .. K - 1.
        boxes: also return boxes.
        num_threads: default `torch.get_num_threads()`. Results do not depend on it.

    Returns:
        counts, int64 [K, K]: voxels with the row's label in `target` and the column's in `pred`. |A| of label
        l is `counts[l].sum()`, |B| `counts[:, l].sum()`, |A and B| `counts[l, l]`. With `boxes` the triple
        (counts, box_target, box_pred), int64 [K, 2 * ndim]: first indices of every axis, then last indices
        plus one; all 0 for a label that is absent. Of the kind that `target` is.

    Raises:
        TypeError: an argument of the wrong kind or dtype.
        ValueError: shapes or devices that differ, a label outside [0, K) (with its value and first place),
            a value that is no whole number.
    """
    a, b = _volumes.pair(target, pred, range(1, 9))
    num_labels = _checks.integer("num_labels", num_labels, 1, MAX_LABELS)
    back = _arrays.kind_of(target)
    counts, box_target, box_pred = torch.ops.tenfold.overlap_counts(
        a.data, b.data, num_labels, a.flips, b.flips, boxes, _volumes.threads(num_threads)
    )
    return (back(counts), back(box_target), back(box_pred)) if boxes else back(counts)
