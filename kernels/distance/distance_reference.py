"""Distances between rows in plain PyTorch: the definitions, and the fallback where no native backend exists.

A squared distance is summed from differences in float64 and rounded to float32 once (float64 data: kept). All
that is chosen (nearest, farthest, accepted) is chosen by these rounded values, of equals the one with the
smaller number. Backends may find candidates any way they like, but must give these values: choices are then
the same on every backend, whatever the number of threads.

With `cosine`, rows are divided by their length first (a row of zeros stays), so that a squared distance is
2 - 2 cos.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .shards import NotFinite, Shards, blocks, count, take

PIECE = 1 << 22
"""Differences [rows, centres, d] held at a time."""
ROWS = 4096


class Cover(NamedTuple):
    """What k-center finds: rows picked [k]; the covering radius squared after each [k]; squared distance to
    the nearest centre [N] and the row number of that centre [N]."""

    picked: Tensor
    radius: Tensor
    distance: Tensor
    owner: Tensor


def first_bad_row(shards: Shards) -> int:
    """The first row with a value that is not finite, or -1."""
    for first, rows in blocks(shards, ROWS):
        bad = (~torch.isfinite(rows).all(1)).nonzero()
        if len(bad):
            return first + int(bad[0, 0])
    return -1


def require_finite(shards: Shards) -> None:
    """Raises NotFinite."""
    row = first_bad_row(shards)
    if row >= 0:
        raise NotFinite(row)


def mean(shards: Shards, cosine: bool) -> Tensor:
    """Of all rows, float64 [d]."""
    total = torch.zeros(shards[0].shape[1], dtype=torch.float64, device=shards[0].device)
    for _, rows in blocks(shards, ROWS):
        total += scaled(rows, cosine).sum(0)
    return total / max(count(shards), 1)


def scaled(rows: Tensor, cosine: bool) -> Tensor:
    """float64; of length 1 with `cosine`."""
    rows = rows.double()
    if not cosine:
        return rows
    length = rows.square().sum(1, keepdim=True).sqrt()
    return rows * torch.where(length > 0, 1.0 / length, 0.0)


def distances(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """Squared distances [n, m] of float64 rows, rounded to `dtype`."""
    out = a.new_empty((len(a), len(b)), dtype=dtype)
    step = max(1, PIECE // max(1, b.numel()))
    for at in range(0, len(a), step):
        out[at : at + step] = (a[at : at + step, None] - b[None]).square().sum(2)
    return out


def result_dtype(shards: Shards) -> torch.dtype:
    """What distances are rounded to."""
    return torch.float64 if shards[0].dtype == torch.float64 else torch.float32


def assign(
    shards: Shards,
    centers: Tensor,
    k: int,
    rows: Tensor | None,
    cosine: bool,
    reduced: bool = False,
    check: bool = False,
) -> tuple[Tensor, Tensor]:
    """The k nearest of `centers` [M, d] for each of `rows` (None: all): (int32, squared distances) [n, k].

    Fewer than k centres leave -1 and infinity. `reduced` is how candidates may be found, which is no matter
    here. With `check`, a row that is not finite raises NotFinite.
    """
    if check:
        require_finite(shards)
    device, dtype = shards[0].device, result_dtype(shards)
    n, found = count(shards) if rows is None else len(rows), min(k, len(centers))
    index = torch.full((n, k), -1, dtype=torch.int32, device=device)
    nearest = torch.full((n, k), torch.inf, dtype=dtype, device=device)
    targets = scaled(centers, cosine)
    if rows is not None:
        pieces: Iterator[tuple[int, Tensor]] = (
            (at, take(shards, rows[at : at + ROWS])) for at in range(0, n, ROWS)
        )
    else:
        pieces = blocks(shards, ROWS)
    for first, piece in pieces:
        d = distances(scaled(piece, cosine), targets, dtype)
        near, which = d.sort(dim=1, stable=True)
        index[first : first + len(piece), :found] = which[:, :found].to(torch.int32)
        nearest[first : first + len(piece), :found] = near[:, :found]
    return index, nearest


def lloyd(shards: Shards, centers: Tensor, state: list[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(labels int32 [N], squared distances [N], sums float64 [K, d], counts int64 [K]) for these centres.

    `state` is what a backend remembers from one call to the next of a run; the reference remembers nothing.
    """
    labels, nearest = assign(shards, centers, 1, None, False)
    return labels[:, 0], nearest[:, 0], *accumulate(shards, labels[:, 0], len(centers))


def accumulate(shards: Shards, labels: Tensor, clusters: int) -> tuple[Tensor, Tensor]:
    """Sums float64 [K, d] and counts int64 [K] of the rows of each cluster."""
    sums = torch.zeros((clusters, shards[0].shape[1]), dtype=torch.float64, device=shards[0].device)
    for first, rows in blocks(shards, ROWS):
        sums.index_add_(0, labels[first : first + len(rows)].long(), rows.double())
    return sums, torch.bincount(labels.long(), minlength=clusters)


def cover(shards: Shards, candidates: Tensor, distance: Tensor, cosine: bool) -> Tensor:
    """[L, N]: squared distance to each candidate row where it is below `distance` [N], else `distance`."""
    targets = scaled(take(shards, candidates), cosine)
    out = distance.repeat(len(candidates), 1)
    for first, rows in blocks(shards, ROWS):
        here = out[:, first : first + len(rows)]
        torch.minimum(here, distances(targets, scaled(rows, cosine), out.dtype), out=here)
    return out


def farthest_from(shards: Shards, point: Tensor, cosine: bool) -> int:
    """The row farthest from `point` float64 [d], which is taken as it is."""
    best, at = -1.0, -1
    for first, rows in blocks(shards, ROWS):
        d = distances(scaled(rows, cosine), point[None], result_dtype(shards))[:, 0]
        top = int(torch.argmax((d == d.max()).int()))
        if float(d[top]) > best:
            best, at = float(d[top]), first + top
    return at


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
    """Greedy k-center: each pick is the row farthest from all centres so far.

    `start` int64: rows that are centres already; `picks` int64: the first of the k picks. The other options
    are ways to be faster, which are no matter here. With `check`, a row that is not finite raises NotFinite.
    """
    if check:
        require_finite(shards)
    n, device = count(shards), shards[0].device
    distance = torch.full((n,), torch.inf, dtype=result_dtype(shards), device=device)
    owner = torch.full((n,), -1, dtype=torch.int32, device=device)
    open_rows = torch.ones(n, dtype=torch.bool, device=device)

    def add(row: int) -> None:
        nearer = cover(shards, torch.tensor([row]), distance, cosine)[0]
        owner[nearer < distance] = row
        distance.copy_(nearer)
        open_rows[row] = False

    for row in start.tolist():
        add(row)
    picked = picks.tolist()[:k]
    radius = []
    for t in range(k):
        if t >= len(picked):
            left = torch.where(open_rows, distance, -1.0)
            picked.append(int(torch.argmax((left == left.max()).int())))
        add(picked[t])
        radius.append(distance.max())
    chosen = torch.tensor(picked, dtype=torch.int64, device=device)
    return Cover(chosen, torch.stack(radius) if radius else distance[:0], distance, owner)
