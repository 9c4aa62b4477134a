"""The compiled distance kernels behind the signatures of distance_reference.py; CPU tensors, not float64."""

from __future__ import annotations

import torch
from torch import Tensor

from tenfold import _native
from tenfold._native import DTYPE_CODES

from . import distance_reference
from .distance_reference import Cover
from .shards import NotFinite, Shards, count

Head = tuple[list[int], list[int], int, int]


def _head(shards: Shards) -> Head:
    return (
        [s.data_ptr() for s in shards],
        [s.shape[0] for s in shards],
        shards[0].shape[1],
        DTYPE_CODES[shards[0].dtype],
    )


def _wide(shards: Shards) -> bool:
    return shards[0].dtype == torch.float64


def first_bad_row(shards: Shards) -> int:
    """See distance_reference.first_bad_row."""
    if _wide(shards):
        return distance_reference.first_bad_row(shards)
    row: int = _native.cpu.first_bad_row(_head(shards), torch.get_num_threads())
    return row


def mean(shards: Shards, cosine: bool) -> Tensor:
    """See distance_reference.mean."""
    if _wide(shards):
        return distance_reference.mean(shards, cosine)
    out = torch.empty(shards[0].shape[1], dtype=torch.float64)
    _native.cpu.row_mean(_head(shards), cosine, out.data_ptr(), torch.get_num_threads())
    return out


def farthest_from(shards: Shards, point: Tensor, cosine: bool) -> int:
    """See distance_reference.farthest_from."""
    if _wide(shards):
        return distance_reference.farthest_from(shards, point, cosine)
    row: int = _native.cpu.farthest_from(_head(shards), point.data_ptr(), cosine, torch.get_num_threads())
    return row


def assign(
    shards: Shards,
    centers: Tensor,
    k: int,
    rows: Tensor | None,
    cosine: bool,
    reduced: bool = False,
    check: bool = False,
) -> tuple[Tensor, Tensor]:
    """See distance_reference.assign."""
    if _wide(shards):
        return distance_reference.assign(shards, centers, k, rows, cosine, reduced, check)
    n = count(shards) if rows is None else len(rows)
    index = torch.empty((n, k), dtype=torch.int32)
    nearest = torch.empty((n, k), dtype=torch.float32)
    centers = centers.contiguous()
    numbers = None if rows is None else rows.contiguous()
    bad = _native.cpu.nn_assign(
        _head(shards),
        0 if numbers is None else numbers.data_ptr(),
        n,
        centers.data_ptr(),
        len(centers),
        k,
        cosine,
        reduced,
        index.data_ptr(),
        nearest.data_ptr(),
        torch.get_num_threads(),
    )
    if check and bad >= 0:
        raise NotFinite(bad)
    return index, nearest


def lloyd(shards: Shards, centers: Tensor, state: list[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See distance_reference.lloyd."""
    if _wide(shards):
        return distance_reference.lloyd(shards, centers, state)
    n = count(shards)
    labels = torch.empty(n, dtype=torch.int32)
    distances = torch.empty(n, dtype=torch.float32)
    sums = torch.empty(centers.shape, dtype=torch.float64)
    counts = torch.empty(len(centers), dtype=torch.int64)
    centers = centers.contiguous()
    _native.cpu.kmeans_pass(
        _head(shards),
        centers.data_ptr(),
        len(centers),
        labels.data_ptr(),
        distances.data_ptr(),
        sums.data_ptr(),
        counts.data_ptr(),
        torch.get_num_threads(),
    )
    return labels, distances, sums, counts


def cover(shards: Shards, candidates: Tensor, distance: Tensor, cosine: bool) -> Tensor:
    """See distance_reference.cover."""
    if _wide(shards):
        return distance_reference.cover(shards, candidates, distance, cosine)
    out = torch.empty((len(candidates), len(distance)), dtype=torch.float32)
    _native.cpu.cover(
        _head(shards),
        candidates.tolist(),
        distance.data_ptr(),
        cosine,
        out.data_ptr(),
        torch.get_num_threads(),
    )
    return out


def kcenter(
    shards: Shards,
    k: int,
    start: Tensor,
    picks: Tensor,
    cosine: bool,
    lookahead: int,
    prune: bool,
    check: bool = False,
) -> Cover:
    """See distance_reference.kcenter."""
    if _wide(shards):
        return distance_reference.kcenter(shards, k, start, picks, cosine, lookahead, prune, check)
    n = count(shards)
    picked = torch.empty(k, dtype=torch.int64)
    radius = torch.empty(k, dtype=torch.float32)
    distance = torch.empty(n, dtype=torch.float32)
    owner = torch.empty(n, dtype=torch.int32)
    if check and k + len(start) == 0:  # no pass reads the rows
        distance_reference.require_finite(shards)
    bad = _native.cpu.kcenter(
        _head(shards),
        k,
        start.tolist(),
        int(picks[0]) if len(picks) else -1,
        cosine,
        lookahead,
        prune,
        picked.data_ptr(),
        radius.data_ptr(),
        distance.data_ptr(),
        owner.data_ptr(),
        torch.get_num_threads(),
    )
    if check and bad >= 0:
        raise NotFinite(bad)
    return Cover(picked, radius, distance, owner)
