"""Surface metrics on a GPU, behind the signatures of surface_reference.py.

Counts, boxes and the distance transform are kernels of this library; what lies between (codes, sums,
percentiles) is PyTorch on the device, organ by organ inside the box around both masks. The nearest element
comes from the indices of the transform, and its distance is computed again in float64 in the order of the
definition, so that ties with a tolerance are decided as on the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tenfold.kernels.overlap import overlap_cuda
from tenfold.kernels.overlap.overlap_reference import unflipped
from tenfold.kernels.surface import surface_reference
from tenfold.kernels.surface.area_table import area_table
from torch import Tensor

MOST_ROW = 65536  # bits that a row has in shared memory (edt_cuda.hpp)


def edt(
    features: Tensor, spacing: Sequence[float], squared: bool, wide: bool, index: bool, threads: int
) -> tuple[Tensor, Tensor]:
    """See surface_reference.edt."""
    del threads
    kernels, stream = overlap_cuda.module(features.device)
    if features.shape[-1] > MOST_ROW:
        longest = f"a last axis of at most {MOST_ROW} voxels on a GPU"
        raise ValueError(f"features: expected {longest}, got {features.shape[-1]}")
    features = features.contiguous()
    out = features.new_empty(features.shape, dtype=torch.float64 if wide else torch.float32)
    work = torch.empty_like(out)
    shape = (features.shape[0], 3, *features.shape[1:]) if index else (0,)
    where = features.new_empty(shape, dtype=torch.int32)
    work_where = torch.empty_like(where)
    kernels.edt(
        features.data_ptr(), features.shape[0], list(features.shape[1:]), list(spacing), wide, squared,
        out.data_ptr(), where.data_ptr() if index else 0, work.data_ptr(),
        work_where.data_ptr() if index else 0, stream,
    )  # fmt: skip
    return out, where


def nearest(points: Tensor, others: Tensor, spacing: Sequence[float]) -> Tensor:
    """float64 [n]: distance from each point to the nearest of the others; inf where there are none."""
    if len(points) == 0 or len(others) == 0:
        return torch.full((len(points),), torch.inf, dtype=torch.float64, device=points.device)
    ndim = points.shape[1]
    low = torch.minimum(points.amin(0), others.amin(0))
    sizes = (torch.maximum(points.amax(0), others.amax(0)) - low + 1).tolist()
    grid = torch.zeros(sizes, dtype=torch.bool, device=points.device)
    grid[tuple((others - low).T)] = True
    three = grid.reshape(1, *[1] * (3 - ndim), *sizes)
    steps = [1.0] * (3 - ndim) + list(spacing)
    where = edt(three, steps, True, True, True, 0)[1][0, 3 - ndim :].reshape(ndim, *sizes)
    at = tuple((points - low).T)
    square = torch.zeros(len(points), dtype=torch.float64, device=points.device)
    for axis, s in enumerate(spacing):
        square += ((at[axis] - where[axis][at]).double() * s) ** 2
    return square.sqrt()


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
    """See surface_reference.metrics."""
    num_labels = max(organ_labels, default=0) + 2
    joint, *boxes = overlap_cuda.counts(
        target, pred, num_labels, flip_target, flip_pred, True, threads, clamp=True
    )
    corners = torch.stack(boxes).cpu()
    target, pred = unflipped(target, flip_target), unflipped(pred, flip_pred)
    organs = len(organ_starts) - 1
    per_organ = len(tolerances) // organs if organs else 0
    areas = torch.tensor(area_table(spacing), dtype=torch.float64, device=target.device)
    rows = []
    for o in range(organs):
        labels = list(organ_labels[organ_starts[o] : organ_starts[o + 1]])
        part = _box(corners[:, labels], target.ndim)
        masks = [surface_reference.organ_mask(volume[part], labels) for volume in (target, pred)]
        chosen = torch.tensor(labels, device=target.device)
        own = joint[chosen]
        voxels = torch.stack((own.sum(), joint[:, chosen].sum(), own[:, chosen].sum()))
        limits = tolerances[o * per_organ : (o + 1) * per_organ]
        rows.append((voxels, *_organ(masks, areas, spacing, limits, percentiles, edge)))
    if not rows:
        empty = surface_reference.metrics(
            target[..., :0], pred[..., :0], [], [0], spacing, [], percentiles, edge, [], [], 0
        )
        return empty
    return tuple(torch.stack(column).to(target.device) for column in zip(*rows, strict=True))


def _box(corners: Tensor, ndim: int) -> tuple[slice, ...]:
    """Slices around all labels of [2, labels, 2 * ndim]; nothing where all are absent."""
    rows = corners.reshape(-1, 2 * ndim)
    rows = rows[rows[:, ndim] > 0]
    if len(rows) == 0:
        return (slice(0, 0),) * ndim
    low, high = rows[:, :ndim].amin(0).tolist(), rows[:, ndim:].amax(0).tolist()
    return tuple(slice(a, b) for a, b in zip(low, high, strict=True))


def _organ(
    masks: Sequence[Tensor],
    areas: Tensor,
    spacing: Sequence[float],
    tolerances: Sequence[float],
    percentiles: Sequence[float],
    edge: bool,
) -> tuple[Tensor, ...]:
    """elements [2], area [2], within [2, T], distance_sum [2], hd [2, P], hd_pooled [P]."""
    surfaces = [surface_reference.elements(mask, areas, edge) for mask in masks]
    gaps = [nearest(surfaces[side][0], surfaces[1 - side][0], spacing) for side in range(2)]
    weights = [weight for _, weight in surfaces]
    pairs = list(zip(gaps, weights, strict=True))
    within = [[w[d <= t].sum() for t in tolerances] for d, w in pairs]
    hd = [[surface_reference.percentile(d, w, q, edge) for q in percentiles] for d, w in pairs]
    both = torch.cat(gaps), torch.cat(weights)
    wide = torch.float64
    return (
        torch.tensor([len(d) for d in gaps]),
        torch.tensor([float(w.sum()) for w in weights], dtype=wide),
        torch.tensor([[float(x) for x in row] for row in within], dtype=wide).reshape(2, len(tolerances)),
        torch.tensor([float((d * w).sum()) if len(d) else 0.0 for d, w in pairs], dtype=wide),
        torch.tensor(hd, dtype=wide).reshape(2, len(percentiles)),
        torch.tensor([surface_reference.percentile(*both, q, edge) for q in percentiles], dtype=wide),
    )


def surfels(
    mask: Tensor, spacing: Sequence[float], edge: bool, flips: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """See surface_reference.surfels: the same, on the device."""
    return surface_reference.surfels(mask, spacing, edge, flips)
