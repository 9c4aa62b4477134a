"""k-means around a backend's passes: Lloyd's iteration (IEEE Trans. Inf. Theory 28, 1982), k-means++ seeding.

`backend` is a module with the functions of distance_reference.py.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from tenfold.kernels.zo.zo_reference import words
from torch import Tensor

from .shards import Shards, blocks, count, take

CANDIDATES = 16
"""Rows drawn at a time by k-means++."""


class Found(NamedTuple):
    """centers [K, d]; labels int32 [N]; distances squared [N]; counts int64 [K]; updates; moved clusters."""

    centers: Tensor
    labels: Tensor
    distances: Tensor
    counts: Tensor
    updates: int
    moved: int


def lloyd(backend: Any, shards: Shards, centers: Tensor, iterations: int, tol: float) -> Found:
    """At most `iterations` updates of `centers`; labels belong to the centres that are returned.

    Ends early when no label changes, or when the centres' squared movement is at most tol * the mean variance
    of a feature.
    """
    bound = tol * _mean_variance(backend, shards) if tol > 0 else -1.0
    state: list[Tensor] = []
    labels = None
    updates = moved = 0
    while True:
        before = labels
        labels, distances, sums, counts = backend.lloyd(shards, centers, state)
        if bool(torch.isinf(distances).any()):
            raise ValueError(f"x: expected squared distances that {distances.dtype} holds, got infinity")
        settled = before is not None and torch.equal(labels, before)
        if updates >= iterations or settled:
            return Found(centers, labels, distances, counts, updates, moved)
        moved += _fill_empty(shards, labels, distances, sums, counts)
        new = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], centers.double())
        new = new.to(centers.dtype)
        updates += 1
        step = float((new.double() - centers.double()).square().sum())
        centers = new
        if step <= bound:
            iterations = updates


def _mean_variance(backend: Any, shards: Shards) -> float:
    middle = backend.mean(shards, False)
    total = sum(float((rows.double() - middle).square().sum()) for _, rows in blocks(shards, 4096))
    return total / max(1, count(shards) * shards[0].shape[1])


def _fill_empty(shards: Shards, labels: Tensor, distances: Tensor, sums: Tensor, counts: Tensor) -> int:
    """Moves every empty cluster to the row that is farthest from its centre, in place; returns how many.

    Such a row leaves its cluster, which must keep another row; rows on their centre are left where they are.
    """
    empty = (counts == 0).nonzero()[:, 0].tolist()
    if not empty:
        return 0
    order = torch.sort(distances, descending=True, stable=True).indices.tolist()
    moved = 0
    for row in order:
        if moved == len(empty) or not float(distances[row]) > 0:
            break
        old = int(labels[row])
        if counts[old] < 2:
            continue
        value = take(shards, torch.tensor([row]))[0].double()
        sums[old] -= value
        counts[old] -= 1
        sums[empty[moved]] = value
        counts[empty[moved]] = 1
        moved += 1
    return moved


def plusplus(backend: Any, shards: Shards, clusters: int, seed: int) -> Tensor:
    """Rows int64 [clusters]: each drawn with probability proportional to its squared distance to those before
    (Arthur and Vassilvitskii, SODA 2007).

    Several rows are drawn at a time from the distances as they stand, and each is accepted with probability
    distance now / distance then, which makes the draw exact: one pass over the data serves all of them. Draw
    t uses the words of Philox block t. When all distances are 0, rows are taken in their order.
    """
    n, device = count(shards), shards[0].device
    picked = [int(uniform(seed, 0)[0] * n)]
    dtype = torch.float64 if shards[0].dtype == torch.float64 else torch.float32
    distance = torch.full((n,), torch.inf, dtype=dtype, device=device)
    distance = backend.cover(shards, torch.tensor(picked), distance, False)[0]
    draw = 1
    while len(picked) < clusters:
        reached = distance.double().cumsum(0)
        total = float(reached[-1]) if n else 0.0
        if total == float("inf"):  # no draw would ever be accepted
            raise ValueError(f"x: expected squared distances that {dtype} holds, got infinity")
        if not total > 0:
            taken = set(picked)
            picked += [row for row in range(n) if row not in taken][: clusters - len(picked)]
            break
        rows = min(CANDIDATES, clusters - len(picked))
        chances = [uniform(seed, draw + i) for i in range(rows)]
        draw += rows
        targets = torch.tensor([c[0] * total for c in chances], dtype=torch.float64, device=device)
        candidates = torch.searchsorted(reached, targets, right=True).clamp(max=n - 1)
        then = distance[candidates].tolist()
        nearer = backend.cover(shards, candidates.cpu(), distance, False)
        for i, row in enumerate(candidates.tolist()):
            now = float(distance[row])
            if now > 0 and chances[i][1] * then[i] < now:
                picked.append(row)
                distance = torch.minimum(distance, nearer[i])
    return torch.tensor(picked, dtype=torch.int64, device=device)


def uniform(seed: int, draw: int) -> tuple[float, float]:
    """Two numbers of [0, 1) with 53 bits from Philox block `draw` of purpose "uniform"."""
    a, b, c, d = (int(word) for word in words(seed, 0, 0, "uniform", draw, 1)[0])
    return ((a << 32 | b) >> 11) * 2.0**-53, ((c << 32 | d) >> 11) * 2.0**-53
