"""Selection by where rows lie: k-center, k-means, herding, moderate coresets, diversity of predictions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from tenfold import _checks
from tenfold.ops import (
    class_median_distance,
    herding,
    kcenter_greedy,
    kmeans,
    moderate_select,
    nn_assign,
)
from tenfold.selection.base import Picked, Selector
from tenfold.selection.inputs import Inputs, whole_tensor
from tenfold.selection.scores import ScoreSelector

__all__ = ["SSP", "ContextualDiversity", "Herding", "KCenterGreedy", "KMeansCoreset", "Moderate", "Random"]


@dataclass(eq=False, kw_only=True)
class Random(Selector):
    """Rows drawn without replacement: the baseline. Reads no values, only how many rows there are."""

    method: ClassVar[str] = "random"
    needs: ClassVar[tuple[str, ...]] = ()

    def _pick(self, inputs: Inputs, k: int, seed: int) -> Picked:
        draw = np.random.default_rng(seed)
        return Picked(draw.permutation(inputs.n)[:k].astype(np.int64))


@dataclass(eq=False, kw_only=True)
class KCenterGreedy(Selector):
    """Each pick is the row farthest from all picks before it. Reads X.

    Gonzalez (1985); as a coreset: Sener and Savarese (arXiv 1708.00489). The largest distance of a row to
    its nearest pick is at most twice the best possible. `gains_` is that radius after each pick, `scores_`
    each row's distance to its nearest pick at the end. The first row is part of the result.

    Attributes:
        init: "farthest_from_mean", "random", a row number, or a list of rows that are covered already and not
            picked again.
        metric: "l2", or "cosine" for sqrt(2 - 2 cos).
        lookahead: rows measured in one pass over X; no matter for the result.
        weighted: weights are the numbers of rows nearest to each pick.
    """

    init: int | str | list[int] = "farthest_from_mean"
    metric: str = "l2"
    lookahead: int = 32
    weighted: bool = False

    method: ClassVar[str] = "kcenter"
    can_shard: ClassVar[bool] = True

    def _pick(self, inputs: Inputs, k: int, seed: int) -> Picked:
        if self.verbose:
            from tenfold.selection.ranks import Alone

            return self._pick_sharded(Alone(inputs.n), inputs, k, seed)
        return self._found(kcenter_greedy(inputs.X, k, **self._options(seed)))

    def _pick_sharded(self, ranks: Any, inputs: Inputs, k: int, seed: int) -> Picked:
        from tenfold.selection.sharded import kcenter_rounds

        found = kcenter_rounds(ranks, inputs.X, k, verbose=self.verbose, **self._options(seed))
        if not self.weighted:
            return self._found(found)
        counts = owner_counts(to_array(found.indices), to_array(found.owner))
        return self._found(found, ranks.sum(torch.from_numpy(counts)).numpy())

    def _options(self, seed: int) -> dict[str, Any]:
        return {"init": self.init, "metric": self.metric, "lookahead": self.lookahead, "seed": seed}

    def _found(self, found: Any, counts: NDArray[np.float32] | None = None) -> Picked:
        indices, radius, distance, owner = map(to_array, found)
        if self.weighted and counts is None:
            counts = owner_counts(indices, owner)
        weights = counts if counts is not None and counts.any() else None  # `init` may own every row
        return Picked(indices, weights, radius.astype(np.float64), distance)

    def _pick_balanced(self, inputs: Inputs, k: int) -> Picked:
        if not isinstance(self.init, str):
            want = "'farthest_from_mean' or 'random' with balanced (row numbers are of the whole set)"
            _checks.fail(ValueError, "init", want, self.init)
        return super()._pick_balanced(inputs, k)


def owner_counts(indices: NDArray[np.int64], owner: NDArray[Any]) -> NDArray[np.float32]:
    """How many rows each pick owns; rows of centres that were there before belong to none."""
    position = {int(row): i for i, row in enumerate(indices)}
    counts = np.zeros(len(indices), np.float32)
    for row, times in zip(*np.unique(owner, return_counts=True), strict=True):
        if int(row) in position:
            counts[position[int(row)]] = times
    return counts


def to_array(value: Any) -> NDArray[Any]:
    """A result of an op as a NumPy array, whatever kind it was given."""
    return value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)


@dataclass(eq=False, kw_only=True)
class KMeansCoreset(Selector):
    """The row nearest to each of k centres of k-means, in the order of the centres. Reads X.

    A row that is nearest to several centres is picked once, and the next centre takes its next nearest.

    Attributes:
        iterations: of Lloyd's algorithm, at most.
        weighted: weights are the sizes of the clusters.
    """

    iterations: int = 25
    weighted: bool = False

    method: ClassVar[str] = "kmeans"

    def _pick(self, inputs: Inputs, k: int, seed: int) -> Picked:
        if k == 0:
            return Picked(np.zeros(0, np.int64))
        found = kmeans(inputs.X, k, iterations=self.iterations, seed=seed)
        centers, counts = to_array(found.centers), to_array(found.counts)
        picks = distinct_nearest(inputs.X, found.centers, to_array(found.labels))
        weights = counts.astype(np.float32) if self.weighted else None
        return Picked(picks, weights, info={"inertia": found.inertia, "clusters": len(centers)})


def distinct_nearest(X: Any, centers: Any, labels: NDArray[Any]) -> NDArray[np.int64]:
    """For each centre the nearest row of its cluster that no other has; of equals the smaller row number.

    Every row belongs to one cluster, so no two can want the same one. An empty cluster (more clusters than
    different rows) takes the smallest row that is left.
    """
    distances = to_array(nn_assign(X, centers, 1, check=False).distances_squared)[:, 0]
    order = np.lexsort((np.arange(len(labels)), distances, labels))
    present, first = np.unique(labels[order], return_index=True)
    picks = np.full(len(centers), -1, np.int64)
    picks[present] = order[first]
    taken = set(picks.tolist())
    left = (row for row in range(len(labels)) if row not in taken)
    for c in np.flatnonzero(picks < 0):
        picks[c] = next(left)
    return picks


@dataclass(eq=False, kw_only=True)
class SSP(ScoreSelector):
    """Distance to the nearest centre of k-means, without labels: far rows are hard, near ones easy. Reads X.

    "Self-supervised prototypes" of Sorscher et al., "Beyond neural scaling laws" (arXiv 2206.14486): keep
    the hard samples where data abound, the easy ones where they are few.

    Attributes:
        num_clusters: K; by default the number of classes where y is given, else min(2000, N / 50), at least
            1.
        iterations: of Lloyd's algorithm, at most.
    """

    num_clusters: int | None = None
    iterations: int = 25

    method: ClassVar[str] = "ssp"
    needs: ClassVar[tuple[str, ...]] = ("X",)

    def _prepare(self, inputs: Inputs) -> Inputs:
        clusters = self._clusters(inputs.n, inputs.y)
        if inputs.n == 0 and not self.sharded:
            return replace(inputs, scores=np.zeros(0))
        if self.sharded:
            from tenfold.selection import sharded

            centers = sharded.kmeans(inputs.X, clusters, iterations=self.iterations, seed=self.seed).centers
        else:
            centers = kmeans(inputs.X, clusters, iterations=self.iterations, seed=self.seed).centers
        nearest = nn_assign(inputs.X, centers, 1, check=False).distances_squared
        return replace(inputs, scores=np.sqrt(to_array(nearest)[:, 0].astype(np.float64)))

    def _clusters(self, n: int, y: NDArray[np.int64] | None) -> int:
        if self.sharded and self.num_clusters is None:
            _checks.fail(ValueError, "num_clusters", "a number (with sharded)", None)
        if self.num_clusters is not None:
            most = 2**31 if self.sharded else max(n, 1)
            return _checks.integer("num_clusters", self.num_clusters, 1, most)
        return len(np.unique(y)) if y is not None and n else max(1, min(2000, n // 50))


@dataclass(eq=False, kw_only=True)
class Herding(Selector):
    """Picks whose mean stays nearest to the mean of all rows. Reads X.

    Step t takes the row z that makes ||t mean - (sum of picks + z)|| smallest (Welling, ICML 2009; iCaRL,
    arXiv 1611.07725). `gains_` is the distance of the two means after each pick.
    """

    method: ClassVar[str] = "herding"

    def _pick(self, inputs: Inputs, k: int, seed: int) -> Picked:
        found = herding(whole(inputs.X), k)
        return Picked(to_array(found.indices), gains=to_array(found.errors).astype(np.float64))


def whole(X: Any) -> Any:
    """All rows as one array in memory: what methods need that compare every pair."""
    if isinstance(X, list):
        joined = torch.cat(X) if isinstance(X[0], torch.Tensor) else np.concatenate(X)
        return joined
    return np.array(X) if isinstance(X, np.ndarray) and not X.flags.writeable else X


@dataclass(eq=False, kw_only=True)
class Moderate(Selector):
    """Rows whose distance to their class's median is in the middle. Reads X, and y if given.

    Xia et al., "Moderate coreset" (ICLR 2023): distances to the component-wise median of the class, of which
    a window around the middle is kept. `scores_` are the distances.

    balanced=False keeps one window over all rows. balanced=True keeps min(k // C, n_c) rows of each class, as
    CW-ERM does (fewer than k in all if k is no multiple of C); with k < C it keeps the window over all rows.
    balanced="proportional" and "equal" share out exactly k rows.

    Attributes:
        rounding: "exact", or "reference" for the windows of the published code, which rounds halves to even
            and wraps around where a class is smaller than its share (it may keep fewer rows, or none).
    """

    rounding: str = "exact"

    method: ClassVar[str] = "moderate"
    can_shard: ClassVar[bool] = True

    def _prepare(self, inputs: Inputs) -> Inputs:
        y = np.zeros(inputs.n, np.int64) if inputs.y is None else inputs.y
        if self.sharded:
            from tenfold.selection import sharded

            found = sharded.class_median_distance(inputs.X, y)
        else:
            X = whole(inputs.X) if isinstance(inputs.X, list) else inputs.X
            on = torch.from_numpy(y).to(X.device) if isinstance(X, torch.Tensor) else y
            found = class_median_distance(X, on, int(y.max(initial=0)) + 1)
        return replace(inputs, scores=to_array(found.distances).astype(np.float64))

    def _pick(self, inputs: Inputs, k: int, seed: int) -> Picked:
        assert inputs.scores is not None
        picks = to_array(moderate_select(inputs.scores, None, k, rounding=self.rounding))
        return Picked(picks, scores=inputs.scores)

    def _pick_balanced(self, inputs: Inputs, k: int) -> Picked:
        if self.balanced is not True:
            return super()._pick_balanced(inputs, k)
        picks = to_array(moderate_select(inputs.scores, inputs.y, k, rounding=self.rounding))
        return Picked(picks, scores=inputs.scores)

    def _pick_sharded(self, ranks: Any, inputs: Inputs, k: int, seed: int) -> Picked:
        every = ranks.cat(torch.from_numpy(np.asarray(inputs.scores))).numpy()
        picks = to_array(moderate_select(every, None, k, rounding=self.rounding))
        return Picked(picks, scores=inputs.scores)

    def _quotas(self, counts: NDArray[np.int64], k: int) -> NDArray[np.int64]:
        if self.balanced is not True:
            return super()._quotas(counts, k)
        return np.minimum(k // max(1, int((counts > 0).sum())), counts)


@dataclass(eq=False, kw_only=True)
class ContextualDiversity(Selector):
    """k-center greedy between predicted distributions, in symmetric KL divergence. Reads logits.

    Agarwal et al., "Contextual diversity for active learning" (arXiv 2008.05723): d(p, q) is the mean of
    KL(p, q) and KL(q, p). `gains_` is the largest divergence of a row from its nearest pick before each
    pick; for the first one its divergence from the mean distribution.

    Attributes:
        init: "farthest_from_mean", "random" or a row number.
    """

    init: int | str = "farthest_from_mean"

    method: ClassVar[str] = "contextual_diversity"
    needs: ClassVar[tuple[str, ...]] = ("logits",)

    def _pick(self, inputs: Inputs, k: int, seed: int) -> Picked:
        p, log_p, own = distributions(inputs.logits)
        if k == 0:
            return Picked(np.zeros(0, np.int64), gains=np.zeros(0))
        distance = _divergence(p, log_p, own, p.mean(0), p.mean(0).log()) if len(p) else own
        first = self._first(distance, seed)
        indices, gains = [first], [float(distance[first])]
        distance = _divergence(p, log_p, own, p[first], log_p[first])
        taken = torch.zeros(len(p), dtype=torch.bool, device=p.device)
        taken[first] = True
        for _ in range(1, k):
            j = int(distance.masked_fill(taken, -1.0).argmax())
            indices.append(j)
            gains.append(float(distance[j]))
            taken[j] = True
            distance = torch.minimum(distance, _divergence(p, log_p, own, p[j], log_p[j]))
        return Picked(np.array(indices, np.int64), gains=np.array(gains))

    def _first(self, distance: torch.Tensor, seed: int) -> int:
        if isinstance(self.init, str):
            if _checks.choice("init", self.init, ("farthest_from_mean", "random")) == "random":
                return int(np.random.default_rng(seed).integers(len(distance)))
            return int(distance.argmax())
        return _checks.integer("init", self.init, 0, len(distance) - 1)


def distributions(logits: list[Any]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Probabilities (the mean over runs), their logarithms and sum p ln p of each row, in float64.

    The symmetric divergence of near distributions is a difference of large numbers in float32.
    """
    rows = [torch.log_softmax(whole_tensor(run).double(), 1) for run in logits]
    log_p = rows[0] if len(rows) == 1 else torch.logsumexp(torch.stack(rows), 0) - np.log(len(rows))
    if not bool(torch.isfinite(log_p).all()):
        row = int((~torch.isfinite(log_p).all(1)).to(torch.uint8).argmax())
        _checks.fail(ValueError, "logits", "finite values", f"others in row {row}")
    p = log_p.exp()
    return p, log_p, (p * log_p).sum(1)


def _divergence(
    p: torch.Tensor, log_p: torch.Tensor, own: torch.Tensor, q: torch.Tensor, log_q: torch.Tensor
) -> torch.Tensor:
    """(KL(p_i, q) + KL(q, p_i)) / 2 of every row: own_i + q . ln q - p_i . ln q - q . ln p_i, halved."""
    return ((own + q @ log_q - p @ log_q - log_p @ q) / 2).clamp_min_(0)
