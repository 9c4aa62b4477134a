"""The compiled surface kernels behind the signatures of surface_reference.py: tensors to raw pointers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tenfold.kernels.overlap import overlap_native
from tenfold.kernels.surface.area_table import area_table
from torch import Tensor

from tenfold import _native


def metrics(
    target: Tensor,
    pred: Tensor,
    organ_labels: Sequence[int],
    organ_starts: Sequence[int],
    spacing: Sequence[float],
    tolerances: Sequence[float],
    percentiles: Sequence[float],
    edge: bool,
    flip_target: Sequence[int],
    flip_pred: Sequence[int],
    threads: int,
) -> tuple[Tensor, ...]:
    """See surface_reference.metrics. One pass for counts and boxes; then organ by organ."""
    num_labels = max(organ_labels, default=0) + 2  # and one for whatever no organ has
    joint, box_target, box_pred = overlap_native.counts(
        target, pred, num_labels, flip_target, flip_pred, True, threads, clamp=True
    )
    organs, p = len(organ_starts) - 1, len(percentiles)
    t = len(tolerances) // organs if organs else 0
    whole = [torch.zeros(organs, n, dtype=torch.int64) for n in (3, 2)]
    shapes = ((organs, 2), (organs, 2, t), (organs, 2), (organs, 2, p), (organs, p))
    outs = [*whole, *(torch.zeros(shape, dtype=torch.float64) for shape in shapes)]
    _native.cpu.surface_metrics(
        overlap_native.labels(target, flip_target), overlap_native.labels(pred, flip_pred), num_labels,
        joint.data_ptr(), box_target.data_ptr(), box_pred.data_ptr(), list(organ_labels), list(organ_starts),
        _three(spacing), area_table(spacing), list(tolerances), list(percentiles), edge,
        [out.data_ptr() for out in outs], overlap_native.pool(threads),
    )  # fmt: skip
    return tuple(outs)


def _three(spacing: Sequence[float]) -> list[float]:
    """A picture has a third axis of one voxel, before its own."""
    return [1.0] * (3 - len(spacing)) + list(spacing)


def surfels(
    mask: Tensor, spacing: Sequence[float], edge: bool, flips: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """See surface_reference.surfels."""
    view = overlap_native.labels(mask, flips)
    box = overlap_native.counts(mask, mask, 2, flips, flips, True, 1)[1][1].tolist()
    areas = area_table(spacing)
    n = _native.cpu.surfels(view, box, areas, edge, 0, 0, 0)
    at = torch.empty(n, mask.ndim, dtype=torch.int64)
    codes, area = torch.empty(n, dtype=torch.uint8), torch.empty(n, dtype=torch.float64)
    _native.cpu.surfels(view, box, areas, edge, at.data_ptr(), codes.data_ptr(), area.data_ptr())
    return at, codes, area


def edt(
    features: Tensor, spacing: Sequence[float], squared: bool, wide: bool, index: bool, threads: int
) -> tuple[Tensor, Tensor]:
    """See surface_reference.edt."""
    features = features.contiguous()
    out = torch.empty(features.shape, dtype=torch.float64 if wide else torch.float32)
    shape = (features.shape[0], 3, *features.shape[1:]) if index else (0,)
    where = torch.empty(shape, dtype=torch.int32)
    _native.cpu.edt(
        features.data_ptr(), features.shape[0], list(features.shape[1:]), list(spacing), wide, squared,
        out.data_ptr(), where.data_ptr() if index else 0, overlap_native.pool(threads),
    )  # fmt: skip
    return out, where
