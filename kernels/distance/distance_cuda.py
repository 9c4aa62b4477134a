"""The CUDA distance kernels behind the signatures of distance_reference.py."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from tenfold import _native
from tenfold._native import DTYPE_CODES

from . import distance_device
from .distance_device import Launches, Meeting, farthest_from, first_bad_row
from .distance_reference import Cover, mean
from .shards import Shards

__all__ = ["assign", "cover", "farthest_from", "first_bad_row", "kcenter", "lloyd", "mean"]


def module(device: torch.device) -> tuple[ModuleType, int]:
    """The compiled module and the handle of the current stream."""
    assert _native.cuda is not None
    return _native.cuda, torch.cuda.current_stream(device).cuda_stream


def _rows(m: Meeting) -> tuple[int, ...]:
    n, d = m.x.shape
    scales = (0, 0)
    if m.scale is not None and m.columns.scale is not None:
        scales = (m.scale.data_ptr(), m.columns.scale.data_ptr())
    return (
        m.x.data_ptr(),
        n,
        d,
        DTYPE_CODES[m.x.dtype],
        m.products.data_ptr(),
        m.row_norms.data_ptr(),
        m.errors.data_ptr(),
        m.columns.raw.data_ptr(),
        m.columns.norms.data_ptr(),
        m.products.shape[1],
        *scales,
    )


def _look(m: Meeting, k: int, index: Tensor, nearest: Tensor) -> None:
    native, stream = module(m.x.device)
    native.distance_look(_rows(m), k, index.data_ptr(), nearest.data_ptr(), stream)


def _cover(m: Meeting, numbers: Tensor, distance: Tensor, owner: Tensor, out: Tensor | None) -> None:
    native, stream = module(m.x.device)
    numbers = numbers.to(m.x.device)
    pitch = 0 if out is None else out.stride(0)
    address = 0 if out is None else out.data_ptr()
    native.distance_cover(
        _rows(m), numbers.data_ptr(), distance.data_ptr(), owner.data_ptr(), address, pitch, stream
    )


def _pool(rows: Tensor, scale: Tensor | None, between: Tensor) -> None:
    native, stream = module(rows.device)
    code = DTYPE_CODES[rows.dtype]
    address = 0 if scale is None else scale.data_ptr()
    native.distance_pool(rows.data_ptr(), *rows.shape, code, address, between.data_ptr(), stream)


def _choose(
    between: Tensor,
    distance: Tensor,
    rows: Tensor,
    complete: bool,
    chosen: Tensor,
    value: Tensor,
    found: Tensor,
) -> None:
    native, stream = module(rows.device)
    native.distance_choose(
        between.data_ptr(),
        distance.data_ptr(),
        rows.data_ptr(),
        len(rows),
        len(chosen),
        complete,
        chosen.data_ptr(),
        value.data_ptr(),
        found.data_ptr(),
        stream,
    )


def _sums(x: Tensor, order: Tensor, starts: Tensor, sums: Tensor) -> None:
    native, stream = module(x.device)
    code = DTYPE_CODES[x.dtype]
    clusters, width = sums.shape
    for first in range(0, clusters, 65535):
        some = min(65535, clusters - first)
        addresses = (order.data_ptr(), starts[first:].data_ptr(), sums[first:].data_ptr())
        native.distance_sums(x.data_ptr(), width, some, code, *addresses, stream)


LAUNCHES = Launches(_look, _cover, _pool, _choose, _sums)


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
    return distance_device.assign(LAUNCHES, shards, centers, k, rows, cosine, reduced, check)


def lloyd(shards: Shards, centers: Tensor, state: list[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See distance_reference.lloyd."""
    return distance_device.lloyd(LAUNCHES, shards, centers)


def cover(shards: Shards, candidates: Tensor, distance: Tensor, cosine: bool) -> Tensor:
    """See distance_reference.cover."""
    return distance_device.cover(LAUNCHES, shards, candidates, distance, cosine)


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
    """See distance_reference.kcenter. Nothing is pruned: a device multiplies faster than it gathers."""
    return distance_device.kcenter(LAUNCHES, shards, k, start, picks, cosine, lookahead, check)
