"""Surface elements, their distances and what is made of them, in plain PyTorch: the oracle and the fallback.

Two definitions of a surface are in use, and their numbers differ:

  area  DeepMind's. Elements ("surfels") lie on lattice points between voxels; each has an area that depends
        on which of its 8 neighbours are set (area_table.py), and every sum is weighted with it.
  edge  MONAI's default and medpy's. Elements are mask voxels with a 6-neighbour (4 in 2-D) outside the mask,
        where outside the volume is outside the mask; each counts 1.

A distance is sqrt(((da s0)^2 + (db s1)^2) + (dc s2)^2) in float64, to the nearest element of the other
surface. Everything here compares all pairs: exact, and slow on large surfaces.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from tenfold.kernels.overlap.overlap_reference import refuse_outside, unflipped
from tenfold.kernels.surface.area_table import area_table
from torch import Tensor

PAIRS = 1 << 22  # distances held at once
TIE = 1e-12  # a cumulative share this close below a percentile reaches it: equal areas sum to equal shares


def codes(mask: Tensor) -> Tensor:
    """uint8 codes of all lattice points, [D0 + 1, ...]: bit 7 - (4 i + 2 j + k) for voxel (a-1+i, ...).

    In 2-D bit 3 - (2 j + k), twice (area_table.py).
    """
    padded = torch.nn.functional.pad(mask.to(torch.uint8), (1, 1) * mask.ndim)
    sizes = [n + 1 for n in mask.shape]
    out = torch.zeros(sizes, dtype=torch.uint8, device=mask.device)
    for corner in range(1 << mask.ndim):
        at = [corner >> (mask.ndim - 1 - axis) & 1 for axis in range(mask.ndim)]
        part = padded[tuple(slice(a, a + n) for a, n in zip(at, sizes, strict=True))]
        out |= part << ((1 << mask.ndim) - 1 - corner)
    return out if mask.ndim == 3 else out * 17


def edges(mask: Tensor) -> Tensor:
    """The mask voxels with a neighbour along an axis that is not in the mask."""
    padded = torch.nn.functional.pad(mask, (1, 1) * mask.ndim)
    inside = mask.clone()
    for axis in range(mask.ndim):
        for shift in (0, 2):
            part = padded
            for other in range(mask.ndim):
                part = part.narrow(other, shift if other == axis else 1, mask.shape[other])
            inside &= part
    return mask & ~inside


def elements(mask: Tensor, areas: Tensor, edge: bool) -> tuple[Tensor, Tensor]:
    """Coordinates int64 [n, ndim] of the surface's elements in row-major order, and weights float64 [n]."""
    if edge:
        at = edges(mask).nonzero()
        return at, torch.ones(len(at), dtype=torch.float64, device=mask.device)
    code = codes(mask)
    at = ((code != 0) & (code != 255)).nonzero()
    return at, areas[code[tuple(at.T)].long()]


def nearest(points: Tensor, others: Tensor, spacing: Sequence[float]) -> Tensor:
    """float64 [n]: distance from each point to the nearest of the others; inf where there are none."""
    out = torch.full((len(points),), math.inf, dtype=torch.float64, device=points.device)
    if len(others) == 0:
        return out
    step = max(1, PAIRS // len(others))
    for start in range(0, len(points), step):
        gaps = (points[start : start + step, None, :] - others[None]).double()
        square = torch.zeros(gaps.shape[:2], dtype=torch.float64, device=points.device)
        for axis, s in enumerate(spacing):
            square += (gaps[..., axis] * s) ** 2
        out[start : start + step] = square.amin(1).sqrt()
    return out


def percentile(distances: Tensor, weights: Tensor, q: float, edge: bool) -> float:
    """The distance below which q percent of the surface lie; inf without a surface.

    area: the first distance, in order, at which the cumulative area reaches q percent of the whole.
    edge: linear interpolation between order statistics, as NumPy's and PyTorch's quantiles.
    """
    if len(distances) == 0:
        return math.inf
    order = distances.argsort()
    distances, weights = distances[order], weights[order]
    if not edge:
        reached = weights.cumsum(0) >= q / 100 * weights.sum() * (1 - TIE)
        return float(distances[int(reached.to(torch.uint8).argmax()) if bool(reached.any()) else -1])
    position = q / 100 * (len(distances) - 1)
    low, high = math.floor(position), math.ceil(position)
    below, above = float(distances[low]), float(distances[high])
    return below if below == above else below + (above - below) * (position - low)


def organ_mask(volume: Tensor, labels: Iterable[int]) -> Tensor:
    """Where the volume has one of the labels."""
    wide = volume.long()
    mask = torch.zeros(volume.shape, dtype=torch.bool, device=volume.device)
    for label in labels:
        mask |= wide == label
    return mask


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
    """voxels [O, 3], elements [O, 2], area [O, 2], within [O, 2, T], distance_sum [O, 2], hd [O, 2, P],
    hd_pooled [O, P]; organ o has the labels organ_labels[organ_starts[o] : organ_starts[o + 1]] and the
    tolerances[o * T : (o + 1) * T]."""
    del threads
    target, pred = unflipped(target, flip_target), unflipped(pred, flip_pred)
    refuse_outside("target", target, 2**63 - 1)
    refuse_outside("pred", pred, 2**63 - 1)
    organs = len(organ_starts) - 1
    per_organ = len(tolerances) // organs if organs else 0
    areas = torch.tensor(area_table(spacing), dtype=torch.float64, device=target.device)
    counts = torch.zeros(organs, 3, dtype=torch.int64)
    number = torch.zeros(organs, 2, dtype=torch.int64)
    area, distance_sum = (torch.zeros(organs, 2, dtype=torch.float64) for _ in range(2))
    within = torch.zeros(organs, 2, per_organ, dtype=torch.float64)
    hd = torch.full((organs, 2, len(percentiles)), math.inf, dtype=torch.float64)
    pooled = torch.full((organs, len(percentiles)), math.inf, dtype=torch.float64)
    for o in range(organs):
        labels = organ_labels[organ_starts[o] : organ_starts[o + 1]]
        masks = [organ_mask(volume, labels) for volume in (target, pred)]
        counts[o] = torch.tensor([int(m.sum()) for m in (*masks, masks[0] & masks[1])])
        surfaces = [elements(mask, areas, edge) for mask in masks]
        gaps = [nearest(surfaces[side][0], surfaces[1 - side][0], spacing) for side in range(2)]
        for side in range(2):
            weights, d = surfaces[side][1], gaps[side]
            number[o, side] = len(d)
            area[o, side] = weights.sum()
            distance_sum[o, side] = (weights * d).sum()
            for t in range(per_organ):
                within[o, side, t] = weights[d <= tolerances[o * per_organ + t]].sum()
            for p, q in enumerate(percentiles):
                hd[o, side, p] = percentile(d, weights, q, edge)
        both = torch.cat(gaps), torch.cat([s[1] for s in surfaces])
        for p, q in enumerate(percentiles):
            pooled[o, p] = percentile(*both, q, edge)
    outs = (counts, number, area, within, distance_sum, hd, pooled)
    return tuple(out.to(target.device) for out in outs)


def surfels(
    mask: Tensor, spacing: Sequence[float], edge: bool, flips: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Coordinates int64 [n, ndim], codes uint8 [n], areas float64 [n], row-major."""
    mask = unflipped(mask, flips)
    areas = torch.tensor(area_table(spacing), dtype=torch.float64, device=mask.device)
    at, weights = elements(mask, areas, edge)
    if edge:
        return at, torch.zeros(len(at), dtype=torch.uint8, device=mask.device), weights
    return at, codes(mask)[tuple(at.T)], weights


def edt(
    features: Tensor, spacing: Sequence[float], squared: bool, wide: bool, index: bool, threads: int
) -> tuple[Tensor, Tensor]:
    """Distance [B, n0, n1, n2] of each voxel to the nearest non-zero one of its volume, and, with `index`,
    where that is: int32 [B, 3, n0, n1, n2], -1 where there is none. One axis after the other, each the
    minimum over all pairs of places along it."""
    del threads
    dtype = torch.float64 if wide else torch.float32
    out = torch.where(features != 0, 0.0, math.inf).to(dtype)
    places: list[Tensor] = []
    for axis in (2, 1, 0):
        n = out.shape[axis + 1]
        at = torch.arange(n, device=out.device)
        steps = ((at[:, None] - at).double() * spacing[axis]).square().to(dtype)  # [q, v]
        lines = out.movedim(axis + 1, -1)
        flat = lines.reshape(lines.numel() // max(n, 1), n)
        best = torch.empty_like(flat)
        which = torch.empty(flat.shape, dtype=torch.int64, device=out.device)
        for start in range(0, len(flat), max(1, PAIRS // max(1, n * n))):
            part = slice(start, start + max(1, PAIRS // max(1, n * n)))
            best[part], which[part] = (flat[part, None, :] + steps).min(2)
        out = best.reshape(lines.shape).movedim(-1, axis + 1)
        if index:
            came = which.reshape(lines.shape).movedim(-1, axis + 1)
            places = [came, *(place.gather(axis + 1, came) for place in places)]
    none = torch.empty(0, dtype=torch.int32, device=out.device)
    where = torch.stack(places, 1).to(torch.int32) if index else none
    if index:
        where = torch.where(out[:, None].isinf(), -1, where)
    return (out if squared else out.sqrt()).contiguous(), where
