"""Selection over the processes of torch.distributed, each with its part of the rows.

Rows are numbered through in the order of the ranks. Every function is called by all processes of the group,
with the same options, and gives the same result as one process with all rows; what belongs to single rows
(distances, owners, labels) is of the rows of this process. No process ever holds the rows of another, but
for the few that a round of k-center looks at, and for class medians a few columns at a time.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from tenfold import _checks
from tenfold import ops as _ops
from tenfold.kernels.distance import distance_reference as _distance
from tenfold.kernels.distance.kmeans import uniform
from tenfold.kernels.scores.scores_reference import own_distances
from tenfold.ops import ClassMedians, KCenter, Votes
from tenfold.ops._shards import features
from tenfold.ops.distance import kernels
from tenfold.selection.base import Picked, Selector, joined
from tenfold.selection.budgets import budget_size
from tenfold.selection.inputs import Inputs, as_labels, as_rows, chunks, num_rows, take, to_tensor, width
from tenfold.selection.ranks import Alone, Ranks, cover, require_finite, top, top_rows
from tenfold.selection.result import Selection
from tenfold.selection.sharded_kmeans import kmeans

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
    require_finite(ranks, shards)
    start, first = _start(ranks, shards, init, cosine, seed)
    k = _checks.integer("k", k, 0, ranks.total - len(start))
    state = _State(ranks.n, shards[0].device)
    if start:
        rows = np.array(start)
        state.take_in(ranks, rows, cover(ranks, shards, rows, state.distance, cosine)[0])
    picks: list[int] = []
    radius: list[float] = []
    with _progress(k, verbose) as advance:
        while len(picks) < k:
            if first is None:
                wanted = min(lookahead + 1, ranks.total - len(start) - len(picks))
                rows, values = top(ranks, torch.where(state.free, state.distance, -1.0), wanted)
            else:
                rows, values, first = np.array([first]), torch.full((1,), torch.inf), None
            candidates = rows[:lookahead]
            bound = (float(values[lookahead]), int(rows[lookahead])) if len(rows) > lookahead else (-1.0, 0)
            nearer, between = cover(ranks, shards, candidates, state.distance, cosine)
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
        """After centres at the global `rows`; `nearer` [L, N] as `cover` gives it."""
        device = self.distance.device
        if len(self.distance):
            near, which = nearer.min(0)  # of equals the first centre
            closer = near < self.distance
            numbers = torch.from_numpy(rows).to(device, torch.int32)
            self.owner[closer] = numbers[which[closer]]
            torch.minimum(self.distance, near, out=self.distance)
        self.free[torch.from_numpy(ranks.mine(rows)[1]).to(device)] = False


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
        best = float(torch.where(open_, now, -1.0).max())
        equal = [i for i in range(len(now)) if bool(open_[i]) and float(now[i]) == best]
        i = min(equal, key=lambda at: candidates[at])
        if taken and (best, -int(candidates[i])) < (bound[0], -bound[1]):
            break
        taken.append((i, best))
        open_[i] = False
        now = torch.minimum(now, between[i])
    return taken


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
    require_finite(ranks, X)
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
