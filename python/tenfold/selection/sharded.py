"""Selection over the processes of torch.distributed, each with its part of the rows.

Rows are numbered through in the order of the ranks. Every function is called by all processes of the group,
with the same options, and gives the same result as one process with all rows; what belongs to single rows
(distances, owners, labels) is of the rows of this process. No process ever holds the rows of another, but
for the few that a round of k-center looks at, and for class medians a few columns at a time.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from tenfold import _checks
from tenfold import ops as _ops
from tenfold.kernels.distance import distance_reference as _distance
from tenfold.kernels.distance.kmeans import CANDIDATES, uniform
from tenfold.kernels.distance.shards import blocks
from tenfold.kernels.scores.scores_reference import own_distances
from tenfold.ops import ClassMedians, KCenter, KMeans, Votes, topk_stable
from tenfold.ops._shards import features
from tenfold.ops.distance import kernels
from tenfold.selection.base import Picked, Selector, joined
from tenfold.selection.budgets import budget_size
from tenfold.selection.inputs import Inputs, as_labels, as_rows, chunks, num_rows, take, to_tensor, width
from tenfold.selection.result import Selection

__all__ = [
    "class_median_distance",
    "class_vote",
    "kcenter_greedy",
    "kmeans",
    "select_sharded",
    "topk",
]

MEDIAN_BYTES = 64 * 2**20
"""Columns of all processes that one of them holds at a time."""


class Alone:
    """One process with all rows: what the others have is nothing."""

    rank, world, offset = 0, 1, 0

    def __init__(self, n: int) -> None:
        self.n = self.total = n

    def sum(self, value: Tensor) -> Tensor:
        return value

    def least(self, value: Tensor) -> Tensor:
        return value

    def cat(self, value: Tensor) -> Tensor:
        return value

    def mine(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        """Which of the global `rows` are of this process, and their local numbers."""
        own = (rows >= self.offset) & (rows < self.offset + self.n)
        return own, rows[own] - self.offset

    def fetch(self, values: Any, rows: NDArray[np.int64]) -> Tensor:
        """Entries of `values` (each process has those of its own rows) at global `rows`, for all."""
        own, local = self.mine(rows)
        if values is None:
            _checks.fail(ValueError, "values", "one for each row", None)
        found = to_tensor(take(values, local) if not isinstance(values, Tensor) else values[local])
        out = torch.zeros((len(rows), *found.shape[1:]), dtype=_wide(found.dtype))
        out[torch.from_numpy(own)] = found.cpu().to(out.dtype)
        return self.sum(out)


def _wide(dtype: torch.dtype) -> torch.dtype:
    """A dtype that any backend can add."""
    if dtype.is_floating_point:
        return torch.float64 if dtype == torch.float64 else torch.float32
    return torch.int64


class Ranks(Alone):
    """The processes of a group, each with `n` rows."""

    def __init__(self, n: int, group: Any = None) -> None:
        if not (dist.is_available() and dist.is_initialized()):
            want = "an initialised torch.distributed (init_process_group)"
            _checks.fail(RuntimeError, "sharded", want, "none")
        self.group = group
        self.rank, self.world = dist.get_rank(group), dist.get_world_size(group)
        nccl = "nccl" in str(dist.get_backend(group))
        self.device = torch.device("cuda", torch.cuda.current_device()) if nccl else torch.device("cpu")
        self.sizes = [0] * self.world
        self.sizes = self._gather_sizes(n)
        super().__init__(n)
        self.total, self.offset = sum(self.sizes), sum(self.sizes[: self.rank])

    def _gather_sizes(self, n: int) -> list[int]:
        mine = torch.zeros(self.world, dtype=torch.int64)
        mine[self.rank] = n
        return [int(size) for size in self.sum(mine)]

    def sum(self, value: Tensor) -> Tensor:
        """The sum over processes, on the CPU."""
        moved = value.to(self.device, copy=True)
        dist.all_reduce(moved, group=self.group)
        return moved.cpu()

    def least(self, value: Tensor) -> Tensor:
        """The smallest over processes, on the CPU."""
        moved = value.to(self.device, copy=True)
        dist.all_reduce(moved, dist.ReduceOp.MIN, group=self.group)
        return moved.cpu()

    def cat(self, value: Tensor) -> Tensor:
        """The values of all processes behind each other, in the order of the ranks, on the CPU."""
        sizes = self._gather_sizes(len(value))
        padded = torch.zeros((max(sizes), *value.shape[1:]), dtype=value.dtype, device=self.device)
        padded[: len(value)] = value.to(self.device)
        every = [torch.empty_like(padded) for _ in range(self.world)]
        dist.all_gather(every, padded, group=self.group)
        return torch.cat([part[:size] for part, size in zip(every, sizes, strict=True)]).cpu()


# ---- selectors ---------------------------------------------------------------------------------------------


def select_sharded(selector: Selector, inputs: Inputs, budget: int | float) -> Selection:
    """What `selector.select` does where the rows are spread over processes."""
    if not selector.can_shard:
        want = f"False ({selector.method} needs all rows in one process)"
        _checks.fail(ValueError, "sharded", want, True)
    ranks = Ranks(inputs.n)
    k = budget_size(budget, ranks.total)
    quotas = None
    if selector.balanced:
        assert inputs.y is not None
        classes = -int(ranks.least(torch.tensor(-int(inputs.y.max(initial=-1)) - 1)))
        counts = ranks.sum(torch.from_numpy(np.bincount(inputs.y, minlength=classes))).numpy()
        quotas = selector._quotas(counts, k)
    if quotas is None or (k and not quotas.any()):
        picked = selector._pick_sharded(ranks, inputs, k, selector.seed)
        return selector._result(picked, ranks.total)
    from tenfold.selection.base import class_seed

    parts = []
    for c in np.flatnonzero(quotas):
        rows = np.flatnonzero(inputs.y == c)
        own = Ranks(len(rows))
        seed = class_seed(selector.seed, int(c))
        picked = selector._pick_sharded(own, inputs.take(rows), int(quotas[c]), seed)
        picked.indices = own.fetch(torch.from_numpy(rows + ranks.offset), picked.indices).numpy()
        parts.append((rows, picked))
    merged = joined_sharded(parts, inputs.n, [int(c) for c in np.flatnonzero(quotas)])
    return selector._result(merged, ranks.total)


def joined_sharded(parts: list[tuple[NDArray[np.int64], Picked]], n: int, classes: list[int]) -> Picked:
    """As `joined`, where picks are global row numbers already and scores those of this process."""
    local = [
        (rows, Picked(np.zeros(0, np.int64), scores=picked.scores, info=picked.info))
        for rows, picked in parts
    ]
    out = joined(local, n, classes)
    every = np.arange(max((int(p.indices.max(initial=-1)) for _, p in parts), default=-1) + 1)
    both = joined([(every, Picked(p.indices, p.weights, p.gains, info=p.info)) for _, p in parts], 0, classes)
    both.scores = out.scores
    return both


# ---- rows with the largest scores --------------------------------------------------------------------------


def topk(scores: Any, k: int, largest: bool = True, group: Any = None) -> NDArray[np.int64]:
    """The k largest (or smallest) of all processes' scores as global row numbers, best first.

    Of equal scores the smaller row number comes first. Each process sends at most k of its own.

    Raises:
        ValueError: k is larger than the number of all rows; a score is NaN.
    """
    values = np.asarray(scores, np.float64)
    ranks = Ranks(len(values), group)
    return top_rows(ranks, values, _checks.integer("k", k, 0, ranks.total), largest)


def top_rows(ranks: Alone, scores: NDArray[Any], k: int, largest: bool) -> NDArray[np.int64]:
    rows, _ = _top(ranks, torch.from_numpy(np.ascontiguousarray(scores)), k, largest)
    return rows


def _top(ranks: Alone, scores: Tensor, k: int, largest: bool = True) -> tuple[NDArray[np.int64], Tensor]:
    """(global rows, scores) of the k best of all processes."""
    local = topk_stable(scores, min(k, len(scores)), largest=largest)
    rows, values = ranks.cat(local.cpu() + ranks.offset), ranks.cat(scores[local].cpu())
    order = np.lexsort((rows.numpy(), -values.numpy() if largest else values.numpy()))[:k]
    return rows.numpy()[order], values[torch.from_numpy(order)]


# ---- k-center ----------------------------------------------------------------------------------------------


def kcenter_greedy(
    x: Any,
    k: int,
    *,
    init: Any = "farthest_from_mean",
    metric: str = "l2",
    lookahead: int = 32,
    seed: int = 0,
    verbose: bool = False,
    group: Any = None,
) -> KCenter:
    """`tenfold.ops.kcenter_greedy` over the rows of all processes.

    Each round all processes look at the `lookahead` (1 to 64) rows that are farthest at its start, and take
    picks
    from them as long as no other row can be farther: one exchange of a few rows for many picks.

    Returns:
        KCenter; indices and radius of all, min_distance and owner of the rows of this process. Owners are
        global row numbers.

    Raises:
        As `tenfold.ops.kcenter_greedy`.
    """
    rows = as_rows("x", x)
    ranks = Ranks(num_rows(rows), group)
    return kcenter_rounds(
        ranks, rows, k, init=init, metric=metric, lookahead=lookahead, seed=seed, verbose=verbose
    )


def kcenter_rounds(
    ranks: Alone,
    X: Any,
    k: int,
    *,
    init: Any,
    metric: str,
    lookahead: int,
    seed: int,
    verbose: bool = False,
) -> KCenter:
    """The rounds of `kcenter_greedy`, with progress where asked for."""
    cosine = _checks.choice("metric", metric, ("l2", "cosine")) == "cosine"
    lookahead = _checks.integer("lookahead", lookahead, 1, 64)
    shards = features("x", X).shards
    _require_finite(ranks, shards)
    start, first = _start(ranks, shards, init, cosine, seed)
    k = _checks.integer("k", k, 0, ranks.total - len(start))
    state = _State(ranks.n, shards[0].device)
    if start:
        rows = np.array(start)
        state.take_in(ranks, rows, _cover(ranks, shards, rows, state.distance, cosine)[0])
    picks: list[int] = []
    radius: list[float] = []
    with _progress(k, verbose) as advance:
        while len(picks) < k:
            if first is None:
                wanted = min(lookahead + 1, ranks.total - len(start) - len(picks))
                rows, values = _top(ranks, torch.where(state.free, state.distance, -1.0), wanted)
            else:
                rows, values, first = np.array([first]), torch.full((1,), torch.inf), None
            candidates = rows[:lookahead]
            bound = (float(values[lookahead]), int(rows[lookahead])) if len(rows) > lookahead else (-1.0, 0)
            nearer, between = _cover(ranks, shards, candidates, state.distance, cosine)
            taken = _accept(candidates, values[:lookahead], between, bound, k - len(picks))
            radius += [float(values[0])] if picks else []
            radius += [at for _, at in taken[1:]]
            chosen = [i for i, _ in taken]
            state.take_in(ranks, candidates[chosen], nearer[chosen])
            picks += candidates[chosen].tolist()
            advance(len(taken))
    if k:
        radius.append(-float(ranks.least(_minus_max(state.distance))))
    indices = torch.tensor(picks, dtype=torch.int64)
    return KCenter(indices, torch.tensor(radius).sqrt(), state.distance.sqrt(), state.owner)


class _State:
    """Squared distance to the nearest centre, that centre's row number, and whether a row may be picked."""

    def __init__(self, n: int, device: torch.device) -> None:
        self.distance = torch.full((n,), torch.inf, device=device)
        self.owner = torch.full((n,), -1, dtype=torch.int32, device=device)
        self.free = torch.ones(n, dtype=torch.bool, device=device)

    def take_in(self, ranks: Alone, rows: NDArray[np.int64], nearer: Tensor) -> None:
        """After centres at the global `rows`; `nearer` [L, N] as `_cover` gives it."""
        device = self.distance.device
        if len(self.distance):
            near, which = nearer.min(0)  # of equals the first centre
            closer = near < self.distance
            numbers = torch.from_numpy(rows).to(device, torch.int32)
            self.owner[closer] = numbers[which[closer]]
            torch.minimum(self.distance, near, out=self.distance)
        self.free[torch.from_numpy(ranks.mine(rows)[1]).to(device)] = False


def _cover(
    ranks: Alone, shards: list[Tensor], rows: NDArray[np.int64], distance: Tensor, cosine: bool
) -> tuple[Tensor, Tensor]:
    """Squared distances to L global rows: [L, N] where below `distance`, else that; [L, L] between them.

    The rows come from other processes, and stand as one more shard behind the own ones.
    """
    guests = ranks.fetch(shards, rows).to(shards[0].device, shards[0].dtype)
    n, count = len(distance), len(rows)
    padded = torch.cat([distance, distance.new_full((count,), torch.inf)])
    module = kernels("kcenter_greedy", shards[0].device)
    found = module.cover([*shards, guests], torch.arange(n, n + count), padded, cosine)
    return found[:, :n], found[:, n:].cpu()


def _minus_max(distance: Tensor) -> Tensor:
    return -distance.max() if len(distance) else torch.zeros(())


def _accept(
    candidates: NDArray[np.int64], values: Tensor, between: Tensor, bound: tuple[float, int], most: int
) -> list[tuple[int, float]]:
    """(candidate, its squared distance when it is picked) for as long as no other row can be farther.

    Distances only shrink, so the rows outside stay below `bound`: the largest of them, and its row number.
    """
    now, open_ = values.clone(), torch.ones(len(values), dtype=torch.bool)
    taken: list[tuple[int, float]] = []
    while len(taken) < most and bool(open_.any()):
        top = float(torch.where(open_, now, -1.0).max())
        equal = [i for i in range(len(now)) if bool(open_[i]) and float(now[i]) == top]
        i = min(equal, key=lambda at: candidates[at])
        if taken and (top, -int(candidates[i])) < (bound[0], -bound[1]):
            break
        taken.append((i, top))
        open_[i] = False
        now = torch.minimum(now, between[i])
    return taken


def _require_finite(ranks: Alone, shards: list[Tensor]) -> None:
    row = kernels("nn_assign", shards[0].device).first_bad_row(shards)
    bad = ranks.total if row < 0 else ranks.offset + row
    first = int(ranks.least(torch.tensor(bad)))
    if first < ranks.total:
        _checks.fail(ValueError, "x", "finite values", f"others in row {first}")


def _start(
    ranks: Alone, shards: list[Tensor], init: Any, cosine: bool, seed: int
) -> tuple[list[int], int | None]:
    """(rows that are centres already, the first pick or None for the farthest row)."""
    seed = _checks.seed("seed", seed)
    if isinstance(init, str):
        _checks.choice("init", init, ("farthest_from_mean", "random"))
        if ranks.total == 0:
            return [], None
        if init == "random":
            return [], int(uniform(seed, 0)[0] * ranks.total)
        return [], _farthest_from_mean(ranks, shards, cosine)
    if hasattr(init, "__len__"):
        from tenfold.selection.result import checked_indices

        return checked_indices("init", init, ranks.total).tolist(), None
    return [], _checks.integer("init", init, 0, ranks.total - 1)


def _farthest_from_mean(ranks: Alone, shards: list[Tensor], cosine: bool) -> int:
    module = kernels("kcenter_greedy", shards[0].device)
    mean = ranks.sum(module.mean(shards, cosine).cpu() * ranks.n) / ranks.total
    far, row = -1.0, 0
    if ranks.n:
        point = mean.to(shards[0].device)
        row = module.farthest_from(shards, point, cosine)
        own = _distance.scaled(take(shards, np.array([row])), cosine)
        far = float(_distance.distances(own, point[None], torch.float32))
    best = -float(ranks.least(torch.tensor(-far, dtype=torch.float64)))
    mine = ranks.offset + row if far == best else ranks.total
    return int(ranks.least(torch.tensor(mine)))


def _progress(total: int, verbose: bool) -> Any:
    from contextlib import contextmanager

    @contextmanager
    def quiet() -> Any:
        yield lambda n: None

    @contextmanager
    def shown() -> Any:
        from tenfold.runs.progress import Progress

        with Progress(total, "k-center") as progress:
            yield progress.advance

    return shown() if verbose else quiet()


# ---- k-means -----------------------------------------------------------------------------------------------


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
    _require_finite(ranks, shards)
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
    rows, distances = _top(ranks, found.distances, min(ranks.total, len(empty) + len(found.counts)))
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
    distance = _cover(ranks, shards, np.array(picked), distance, False)[0][0]
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
        nearer, between = _cover(ranks, shards, candidates, distance, False)
        then = now.tolist()
        for i, row in enumerate(candidates.tolist()):
            if now[i] > 0 and chances[i][1] * then[i] < float(now[i]):
                picked.append(row)
                distance = torch.minimum(distance, nearer[i])
                now = torch.minimum(now, between[i])
    return np.array(picked, np.int64)


# ---- classes -----------------------------------------------------------------------------------------------


def class_vote(
    logits: Any,
    num_classes: int,
    *,
    target_labels: Any = None,
    num_target_classes: int | None = None,
    group: Any = None,
) -> Votes:
    """`tenfold.ops.class_vote` over the rows of all processes: the counts of all."""
    ranks = Ranks(num_rows(logits), group)
    if target_labels is not None and num_target_classes is None:
        largest = int(np.max(np.asarray(target_labels), initial=-1))
        num_target_classes = -int(ranks.least(torch.tensor(-largest - 1)))
    found = _ops.class_vote(
        logits, num_classes, target_labels=target_labels, num_target_classes=num_target_classes
    )
    matrix = None if found.matrix is None else ranks.sum(torch.as_tensor(found.matrix))
    return Votes(ranks.sum(torch.as_tensor(found.histogram)), matrix)


def class_median_distance(
    x: Any, labels: Any, num_classes: int | None = None, *, group: Any = None
) -> ClassMedians:
    """`tenfold.ops.class_median_distance` over the rows of all processes.

    A median needs all values of a column. Each process makes the medians of some columns, of which it
    receives a few at a time from all others (64 MiB), so that no process holds the whole set.

    Returns:
        ClassMedians; medians [C, d] of all, distances of the rows of this process.

    Raises:
        As `tenfold.ops.class_median_distance`.
    """
    X = features("x", as_rows("x", x)).shards
    y = as_labels("labels", labels, num_rows(X))
    ranks = Ranks(num_rows(X), group)
    _require_finite(ranks, X)
    if num_classes is None:
        num_classes = -int(ranks.least(torch.tensor(-int(y.max(initial=-1)) - 1)))
    num_classes = _checks.integer("num_classes", num_classes, 1, 2**31 - 1)
    every = ranks.cat(torch.from_numpy(y))
    step = max(1, MEDIAN_BYTES // max(1, 4 * ranks.total))
    medians = torch.zeros((num_classes, width(X)))
    for block, at in enumerate(range(0, width(X), step)):
        columns = _gathered_columns(ranks, X, slice(at, at + step), block % ranks.world)
        if columns is not None:
            found = _ops.class_median_distance(columns, every, num_classes, check=False)
            medians[:, at : at + step] = found.medians
    medians = ranks.sum(medians)
    parts = [
        own_distances(to_tensor(piece).cpu(), torch.from_numpy(y[start : start + len(piece)]), medians)
        for start, piece in chunks(X)
    ]
    return ClassMedians(medians, torch.cat(parts) if parts else torch.zeros(0))


def _gathered_columns(ranks: Ranks, X: list[Tensor], columns: slice, owner: int) -> Tensor | None:
    """Some columns of all rows, float32, on the process `owner`; None on the others."""
    own = torch.cat([to_tensor(p).float().cpu() for p in (s[:, columns] for s in X)])
    padded = torch.zeros((max(ranks.sizes), own.shape[1]), device=ranks.device)
    padded[: ranks.n] = own.to(ranks.device)
    every = [torch.empty_like(padded) for _ in range(ranks.world)] if ranks.rank == owner else None
    target = owner if ranks.group is None else dist.get_global_rank(ranks.group, owner)
    dist.gather(padded, every, dst=target, group=ranks.group)
    if every is None:
        return None
    return torch.cat([part[:size] for part, size in zip(every, ranks.sizes, strict=True)]).cpu()
