"""k-means over the processes of torch.distributed: see tenfold.selection.sharded."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tenfold import _checks
from tenfold.kernels.distance.kmeans import CANDIDATES, uniform
from tenfold.kernels.distance.shards import blocks
from tenfold.ops import KMeans
from tenfold.ops._shards import features
from tenfold.ops.distance import kernels
from tenfold.selection.inputs import as_rows, num_rows, to_tensor, width
from tenfold.selection.ranks import Alone, Ranks, cover, require_finite, top

__all__ = ["kmeans"]


class _Assigned(NamedTuple):
    labels: Tensor
    distances: Tensor
    sums: Tensor
    counts: Tensor


def kmeans(
    x: Any,
    num_clusters: int,
    *,
    iterations: int = 25,
    init: Any = "k-means++",
    tol: float = 0.0,
    seed: int = 0,
    group: Any = None,
) -> KMeans:
    """`tenfold.ops.kmeans` over the rows of all processes.

    Returns:
        KMeans; labels of the rows of this process, everything else of all.

    Raises:
        As `tenfold.ops.kmeans`.
    """
    shards = features("x", as_rows("x", x)).shards
    ranks = Ranks(num_rows(shards), group)
    clusters = _checks.integer("num_clusters", num_clusters, 1, ranks.total)
    _checks.integer("iterations", iterations, 0, 2**31 - 1)
    tol = _checks.real("tol", tol, at_least=0.0)
    require_finite(ranks, shards)
    if isinstance(init, str):
        _checks.choice("init", init, ("k-means++",))
        centers = ranks.fetch(shards, _plusplus(ranks, shards, clusters, _checks.seed("seed", seed)))
    else:
        centers = to_tensor(as_rows("init", init)).float().cpu()
        if centers.shape != (clusters, width(shards)):
            _checks.fail(ValueError, "init", f"shape {[clusters, width(shards)]}", list(centers.shape))
    bound = tol * _mean_variance(ranks, shards) if tol > 0 else -1.0
    before, updates, moved = None, 0, 0
    memory: list[Tensor] = []
    while True:
        found = _assign(ranks, shards, centers, memory)
        changed = torch.ones((), dtype=torch.int64)
        if before is not None:
            changed = ranks.sum((found.labels != before).sum())
        before = found.labels
        if updates >= iterations or not int(changed):
            break
        moved += _fill_empty(ranks, shards, found)
        new = torch.where(
            found.counts[:, None] > 0, found.sums / found.counts.clamp(min=1)[:, None], centers.double()
        )
        step = float((new.float().double() - centers.double()).square().sum())
        centers, updates = new.float(), updates + 1
        if step <= bound:
            iterations = updates
    inertia = float(ranks.sum(found.distances.double().sum()))
    return KMeans(centers, found.labels, inertia, found.counts, updates, moved)


def _assign(ranks: Alone, shards: list[Tensor], centers: Tensor, memory: list[Tensor]) -> _Assigned:
    device = shards[0].device
    labels, near, sums, counts = kernels("kmeans", device).lloyd(shards, centers.to(device), memory)
    return _Assigned(labels.cpu(), near.cpu(), ranks.sum(sums.cpu()), ranks.sum(counts.cpu()))


def _fill_empty(ranks: Alone, shards: list[Tensor], found: _Assigned) -> int:
    """Moves empty clusters to the rows farthest from their centres, as `tenfold.ops.kmeans` does."""
    empty = (found.counts == 0).nonzero()[:, 0].tolist()
    if not empty:
        return 0
    # A cluster gives up rows until one is left, so that each can be passed over once.
    rows, distances = top(ranks, found.distances, min(ranks.total, len(empty) + len(found.counts)))
    labels = ranks.fetch(found.labels, rows).tolist()
    values = ranks.fetch(shards, rows).double()
    moved = 0
    for i, old in enumerate(labels):
        if moved == len(empty) or not float(distances[i]) > 0:
            break
        if found.counts[old] < 2:
            continue
        found.sums[old] -= values[i]
        found.counts[old] -= 1
        found.sums[empty[moved]] = values[i]
        found.counts[empty[moved]] = 1
        moved += 1
    return moved


def _mean_variance(ranks: Alone, shards: list[Tensor]) -> float:
    device = shards[0].device
    own = kernels("kmeans", device).mean(shards, False).cpu() * ranks.n
    mean = (ranks.sum(own) / ranks.total).to(device)
    total = sum(float((rows.double() - mean).square().sum()) for _, rows in blocks(shards, 4096))
    return float(ranks.sum(torch.tensor(total, dtype=torch.float64))) / (ranks.total * width(shards))


def _plusplus(ranks: Alone, shards: list[Tensor], clusters: int, seed: int) -> NDArray[np.int64]:
    """Rows drawn as `tenfold.ops.kmeans` draws them: see kernels/distance/kmeans.py for the why."""
    n = ranks.total
    picked = [int(uniform(seed, 0)[0] * n)]
    distance = torch.full((ranks.n,), torch.inf, device=shards[0].device)
    distance = cover(ranks, shards, np.array(picked), distance, False)[0][0]
    draw = 1
    while len(picked) < clusters:
        own = distance.double().cumsum(0).cpu()
        totals = ranks.cat(own[-1:] if len(own) else torch.zeros(1, dtype=torch.float64))
        total = float(totals.sum())
        if not total > 0:
            taken = set(picked)
            picked += [row for row in range(n) if row not in taken][: clusters - len(picked)]
            break
        reached = own + float(totals[: ranks.rank].sum())
        count = min(CANDIDATES, clusters - len(picked))
        chances = [uniform(seed, draw + i) for i in range(count)]
        draw += count
        targets = torch.tensor([c[0] * total for c in chances], dtype=torch.float64)
        at = torch.searchsorted(reached, targets, right=True)
        candidates = ranks.least(torch.where(at < ranks.n, at + ranks.offset, n)).clamp(max=n - 1).numpy()
        now = ranks.fetch(distance, candidates)
        nearer, between = cover(ranks, shards, candidates, distance, False)
        then = now.tolist()
        for i, row in enumerate(candidates.tolist()):
            if now[i] > 0 and chances[i][1] * then[i] < float(now[i]):
                picked.append(row)
                distance = torch.minimum(distance, nearer[i])
                now = torch.minimum(now, between[i])
    return np.array(picked, np.int64)
