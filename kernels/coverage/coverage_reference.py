"""Coverage by greedy choice in plain PyTorch: the oracle, and the fallback where no native backend exists.

    f(S) = scale * sum_i w_i (max(floor, max_{j in S} v_ij) - floor)

Facility location (Nemhauser, Wolsey and Fisher 1978) with v the similarity of row i and candidate j.  What a
kind adds is only v and floor: squared distances are covered as v = -|x_i - x_j|^2 above floor = -max |.|^2.
All arithmetic is float64 and nothing is N x N: similarities are made for BATCH candidates at a time.

Lazy greedy is Minoux 1978; stochastic greedy Mirzasoleiman et al., "Lazier than lazy greedy" (arXiv
1409.7938); log-determinants by the incremental Cholesky of Chen et al. (arXiv 1709.05135); herding Welling
2009 and iCaRL (arXiv 1611.07725).
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from torch import Tensor

from .closed_forms import dyadic_shift, mean_of, unit
from .problem import BATCH, COSINES, DISTANCES, Cover, Pool, Similarity, Wanted, scale_of, tolist

SPANNED = 1e-12


class AnyValues(Protocol):
    """v_ij of some candidates against all rows, [n, M], and what f is made of: scale, floor."""

    similarity: Similarity
    rows: int
    batch: int
    floor: float
    scale: float

    def __call__(self, which: Tensor) -> Tensor:
        """float64."""

    def similarity_of(self, value: Tensor) -> Tensor:
        """What users call the similarity: 0.5 + 0.5 cos for "cosine01", c - distance for distances."""


class AnyState(Protocol):
    """What is covered, and the gain of candidates over it."""

    batches: tuple[int, int]
    first: list[float] | None
    owner: Tensor

    def gains(self, which: list[int]) -> list[float]:
        """Of candidates, over what is covered now."""

    def take(self, j: int) -> None:
        """Candidate j covers what it covers better."""

    def objective(self) -> float:
        """f of what was taken."""


# ---- similarities ----------------------------------------------------------------------------------------


def prepared(points: Tensor, kind: str) -> Tensor:
    """float64 points as the kind compares them: of unit length for cosines (zero rows stay), else shifted."""
    if kind == "inner":
        return points.double()
    if kind in COSINES:
        return unit(points.double())
    return points.double() - dyadic_shift(points)


class Values:
    """AnyValues in float64."""

    batch = BATCH

    def __init__(self, similarity: Similarity) -> None:
        self.similarity = similarity
        self.rows = similarity.rows
        self.floor = 0.0
        self.scale = 1.0
        if similarity.points is None:
            return
        self.scale = scale_of(similarity.kind)
        self.z = prepared(similarity.points, similarity.kind)
        self.norms = self.z.square().sum(1)
        if similarity.kind == "cosine01":
            self.floor = -1.0
        elif similarity.kind in DISTANCES:
            self.floor = -(self.largest() if similarity.bound is None else similarity.bound)

    def largest(self) -> float:
        """The largest distance of two points (squared for "sqeuclidean")."""
        top = 0.0
        for first in range(0, self.rows, BATCH):
            block = torch.arange(first, min(first + BATCH, self.rows), device=self.z.device)
            top = max(top, -float(self(block).min()))
        return top

    def __call__(self, which: Tensor) -> Tensor:
        s = self.similarity
        if s.dense is not None:
            return s.dense[which].double()
        if s.sparse is not None:
            out = torch.zeros(len(which), self.rows, dtype=torch.float64, device=s.device)
            indptr, indices, values = s.sparse
            for row, j in enumerate(which.tolist()):
                at = slice(int(indptr[j]), int(indptr[j + 1]))
                out[row, indices[at]] = values[at].double()
            return out
        dot = _products(self.z[which], self.z)
        if s.kind in ("inner", "cosine01"):
            return dot
        if s.kind == "cosine2":
            return dot.square()
        square = (self.norms[which, None] + self.norms[None] - 2.0 * dot).clamp_min(0.0)
        square[torch.arange(len(which), device=square.device), which] = 0.0
        if s.kind == "rbf":
            return torch.exp(-s.gamma * square)
        return -square if s.kind == "sqeuclidean" else -square.sqrt()

    def similarity_of(self, value: Tensor) -> Tensor:
        """What users call the similarity: 0.5 + 0.5 cos for "cosine01", c - distance for distances."""
        return self.scale * (value - self.floor)


_COLUMNS = 64
"""Width up to which products are summed column by column."""


def _products(a: Tensor, b: Tensor) -> Tensor:
    """a b^T. Of few columns the sums are made in one order, so that equal rows have equal bits and ties stay
    ties: a BLAS promises neither."""
    if a.shape[1] > _COLUMNS:
        return a @ b.T
    out = torch.zeros(len(a), len(b), dtype=a.dtype, device=a.device)
    for column in range(a.shape[1]):
        out += a[:, column, None] * b[None, :, column]
    return out


# ---- facility location -----------------------------------------------------------------------------------


class State:
    """An AnyState in float64."""

    batches = (BATCH, BATCH)  # stale candidates brought up to date at a time: at first, and at most
    first: list[float] | None = None  # upper bounds of the gains of an empty cover

    def __init__(self, values: Values, wanted: Wanted) -> None:
        self.values = values
        device = values.similarity.device
        self.current = torch.full((values.rows,), values.floor, dtype=torch.float64, device=device)
        self.owner = torch.zeros(values.rows, dtype=torch.int64, device=device)
        self.weights = wanted.weights
        self.taken = 0

    def gains(self, which: list[int]) -> list[float]:
        out: list[float] = []
        for first in range(0, len(which), BATCH):
            block = torch.tensor(which[first : first + BATCH], device=self.current.device)
            better = (self.values(block) - self.current).clamp_min(0.0)
            total = better.sum(1) if self.weights is None else better @ self.weights
            out += (self.values.scale * total).tolist()
        return out

    def take(self, j: int) -> None:
        value = self.values(torch.tensor([j], device=self.current.device))[0]
        self.owner[value > self.current] = self.taken
        self.current = torch.maximum(self.current, value)
        self.taken += 1

    def objective(self) -> float:
        total = self.current - self.values.floor
        return self.values.scale * float(total.sum() if self.weights is None else total @ self.weights)


class _Costs:
    """Gains per cost, and what still fits into the budget."""

    def __init__(self, wanted: Wanted) -> None:
        self.costs = None if wanted.costs is None else wanted.costs.tolist()
        self.left = wanted.budget

    def ratio(self, gain: float, j: int) -> float:
        return gain if self.costs is None else gain / self.costs[j]

    def fits(self, j: int) -> bool:
        return self.costs is None or self.costs[j] <= self.left

    def pay(self, j: int) -> None:
        if self.costs is not None:
            self.left -= self.costs[j]


def fl_greedy(similarity: Similarity, wanted: Wanted) -> Cover:
    """Greedy facility location; see `tenfold.ops.fl_greedy`."""
    return greedy(State(Values(similarity), wanted), similarity.candidates, wanted)


def greedy(state: AnyState, candidates: int, wanted: Wanted) -> Cover:
    """The picks of any state."""
    for j in wanted.initial:
        state.take(j)
    picks: list[int] = []
    gains: list[float] = []
    for j, gain in _picks(state, candidates, wanted):
        picks.append(j)
        gains.append(gain)
    return Cover(
        torch.tensor(picks, dtype=torch.int64),
        torch.tensor(gains, dtype=torch.float64),
        state.owner.long().cpu(),
        state.objective(),
    )


def _picks(state: AnyState, candidates: int, wanted: Wanted) -> Iterator[tuple[int, float]]:
    """The picks in order; each is taken before the next is looked for."""
    costs = _Costs(wanted)
    free = sorted(set(range(candidates)) - set(wanted.initial))
    if wanted.optimizer == "lazy":
        bounds = dict.fromkeys(free, math.inf)
        for _ in range(wanted.k):
            found = _lazily(state, costs, bounds, list(bounds))
            if found is None:
                return
            del bounds[found[0]]
            yield found
        return
    pool, words = Pool(free), tolist(wanted.words)
    bounds = dict.fromkeys(free, math.inf)
    for step in range(wanted.k):
        if wanted.optimizer == "naive":
            sample = pool.members
        else:
            pool.members = [j for j in pool.members if costs.fits(j)]
            sample = pool.draw(words[step])
        if wanted.optimizer == "lazier":
            found = _lazily(state, costs, bounds, list(sample))
        else:
            found = _eagerly(state, costs, [j for j in sample if costs.fits(j)])
        if found is None:
            return
        pool.remove(found[0])
        yield found


def _accept(state: AnyState, costs: _Costs, j: int, gain: float) -> tuple[int, float]:
    state.take(j)
    costs.pay(j)
    return j, gain


def _eagerly(state: AnyState, costs: _Costs, sample: list[int]) -> tuple[int, float] | None:
    if not sample:
        return None
    gains = state.gains(sample)
    best = min(range(len(sample)), key=lambda p: (-costs.ratio(gains[p], sample[p]), sample[p]))
    return _accept(state, costs, sample[best], gains[best])


def _lazily(
    state: AnyState, costs: _Costs, bounds: dict[int, float], sample: list[int]
) -> tuple[int, float] | None:
    """The best of the sample; `bounds` are gains at earlier steps, which gains never exceed."""
    heap = [(-costs.ratio(bounds[j], j), j) for j in sample if costs.fits(j)]
    heapq.heapify(heap)
    fresh: set[int] = set()
    most = state.batches[0]
    while heap:
        if heap[0][1] in fresh:
            j = heap[0][1]
            return _accept(state, costs, j, bounds[j])
        stale: list[int] = []
        while heap and len(stale) < most and heap[0][1] not in fresh:
            stale.append(heapq.heappop(heap)[1])
        for j, gain in zip(stale, state.gains(stale), strict=True):
            bounds[j] = gain
            fresh.add(j)
            heapq.heappush(heap, (-costs.ratio(gain, j), j))
        most = min(2 * most, state.batches[1])
    return None


# ---- graph cut, log-determinant, herding -----------------------------------------------------------------


def graphcut_greedy(
    similarity: Similarity, k: int, lam: float, initial: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """Indices and gains: lam sum_i s_ij - 2 sum_{i in S} s_ij - s_jj, largest first."""
    values = Values(similarity)
    sums, own = brute_sums(values)
    return graph_cut(values, lam * sums - own, k, initial)


def brute_sums(values: AnyValues) -> tuple[Tensor, Tensor]:
    """(sum_i s_ij, s_jj), float64 [N] each."""
    sums, own = [], []
    n, device = values.similarity.candidates, values.similarity.device
    for first in range(0, n, values.batch):
        block = torch.arange(first, min(first + values.batch, n), device=device)
        s = values.similarity_of(values(block))
        sums.append(s.sum(1))
        own.append(s[torch.arange(len(block), device=device), block])
    return torch.cat(sums), torch.cat(own)


def graph_cut(values: AnyValues, gain: Tensor, k: int, initial: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """The picks of any values, from the gains float64 [N] of an empty subset."""

    def take(j: int) -> None:
        gain.sub_(2.0 * values.similarity_of(values(torch.tensor([j], device=gain.device)))[0])

    return _greedily(gain, k, initial, take)


def _greedily(
    gain: Tensor, k: int, initial: tuple[int, ...], take: Callable[[int], None]
) -> tuple[Tensor, Tensor]:
    """Largest of `gain` first (of equals the smallest index); take(j) brings it up to date."""
    free = torch.ones(len(gain), dtype=torch.bool, device=gain.device)
    for j in initial:
        free[j] = False
        take(j)
    picks = torch.empty(k, dtype=torch.int64)
    gains = torch.empty(k, dtype=torch.float64)
    for step in range(k):
        masked = torch.where(free, gain, -math.inf)
        j = int(torch.nonzero(masked == masked.max())[0])
        picks[step], gains[step] = j, gain[j]
        free[j] = False
        if step + 1 < k:
            take(j)
    return picks, gains


def logdet_greedy(
    similarity: Similarity, k: int, ridge: float, initial: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """Indices and gains log(s_jj - s_jS S_SS^-1 s_Sj), largest first; S + ridge I in place of S.

    A candidate that lies in the span of the picks gains -inf; among those the smallest index is taken.
    """
    values = Values(similarity)
    return log_determinant(values, brute_sums(values)[1] + ridge, k, initial, SPANNED)


def log_determinant(
    values: AnyValues, left: Tensor, k: int, initial: tuple[int, ...], spanned: float
) -> tuple[Tensor, Tensor]:
    """The picks of any values, from the diagonal float64 [N]; `spanned` of its largest entry counts as 0."""
    least = spanned * float(left.max())
    left = torch.where(left > least, left, 0.0)
    rows = torch.empty(k + len(initial), len(left), dtype=torch.float64, device=left.device)  # of the factor
    made = 0

    def take(j: int) -> None:
        nonlocal made
        if left[j] == 0:
            return
        row = values.similarity_of(values(torch.tensor([j], device=left.device)))[0].double()
        row = (row - rows[:made, j] @ rows[:made]) / left[j].sqrt()
        rows[made] = row
        made += 1
        left.sub_(row.square())
        left[left <= least] = 0.0

    picks, remaining = _greedily(left, k, initial, take)
    return picks, remaining.log()


def herding(points: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Indices, and after each the distance between the mean of the points and the mean of the picks."""
    return herd(points, prepared(points, "sqeuclidean"), k)


def herd(points: Tensor, z: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """As herding; z are the shifted points in the type of the products."""
    mean = z.mean(0, dtype=torch.float64)
    norms = z.square().sum(1)
    sums = torch.zeros_like(mean)
    free = torch.ones(len(z), dtype=torch.bool, device=z.device)
    picks = torch.empty(k, dtype=torch.int64)
    for step in range(k):
        missing = ((step + 1) * mean - sums).to(z.dtype)
        away = torch.where(free, norms - 2.0 * (z @ missing), math.inf)
        j = int(torch.nonzero(away == away.min())[0])
        free[j] = False
        sums += z[j]
        picks[step] = j
    return picks, herding_errors(points, mean_of(points), picks)


def herding_errors(points: Tensor, mean: Tensor, picks: Tensor) -> Tensor:
    """float64 [k]: after each pick, the distance between the mean of the points and the mean of the picks."""
    steps = torch.arange(1, len(picks) + 1, dtype=torch.float64, device=points.device)[:, None]
    so_far = (points[picks.to(points.device)].double() - mean).cumsum(0)
    return (so_far / steps).square().sum(1).sqrt().cpu()


# ---- the nearest neighbours of every row -------------------------------------------------------------------


def nearest(similarity: Similarity, neighbors: int) -> tuple[Tensor, Tensor, Tensor]:
    """Every row's most similar candidates: row, candidate, similarity, [N * neighbors] each."""
    values = Values(similarity)
    return nearest_of(values, values.similarity_of, similarity.rows, neighbors, similarity.device)


def nearest_of(
    values: Callable[[Tensor], Tensor],
    similarity_of: Callable[[Tensor], Tensor],
    rows: int,
    neighbors: int,
    device: torch.device,
    size: int = BATCH,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `nearest`, of values(block) [n, M]; of equal ones the smallest candidates."""
    parts = []
    for first in range(0, rows, size):
        block = torch.arange(first, min(first + size, rows), device=device)
        s = values(block)
        least = s.topk(neighbors, dim=1).values[:, -1:]
        above = s > least
        missing = neighbors - above.sum(1, keepdim=True)
        equal = s == least
        kept = above | (equal & (equal.cumsum(1) <= missing))
        at = torch.nonzero(kept)
        parts.append((block[at[:, 0]], at[:, 1], similarity_of(s[kept])))
    row, column, value = (torch.cat(p) for p in zip(*parts, strict=True))
    return row, column, value
