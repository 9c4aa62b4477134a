"""Selection by score and spread together: coverage-centric coresets, messages between neighbours."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from tenfold import _checks
from tenfold.ops import nn_assign, stratified_budget
from tenfold.selection.base import Picked, Selector
from tenfold.selection.budgets import budget_size
from tenfold.selection.geometry import distributions, to_array, whole
from tenfold.selection.inputs import Inputs
from tenfold.selection.result import checked_indices
from tenfold.selection.scores import ScoreSelector

__all__ = ["CCS", "D2", "Cal"]


@dataclass(eq=False, kw_only=True)
class CCS(Selector):
    """Coverage-centric coreset: the hardest rows are dropped, the others drawn evenly over the scores.

    Zheng et al. (arXiv 2210.15809). Reads `scores`, or `dynamics` for the area under the margin. Scores are
    cut into strata of equal width; from the smallest stratum on, each gives an equal share of what is left,
    or all it has; rows of a stratum are drawn uniformly.

    Attributes:
        beta: share of the rows that are dropped as too hard, in [0, 1).
        strata: how many.
        hard: which end of the scores is hard: "small" (area under the margin) or "large" (EL2N, forgetting).
    """

    beta: float = 0.1
    strata: int = 50
    hard: str = "small"

    method: ClassVar[str] = "ccs"
    needs: ClassVar[tuple[str, ...]] = ()

    def _prepare(self, inputs: Inputs) -> Inputs:
        if inputs.scores is not None:
            return inputs
        if inputs.dynamics is None:
            _checks.fail(ValueError, "scores", "scores, or dynamics for the area under the margin", None)
        if self.hard != "small":
            _checks.fail(ValueError, "hard", "'small' for the area under the margin", repr(self.hard))
        return replace(inputs, scores=inputs.dynamics.scores("aum"))

    def _pick(self, inputs: Inputs, k: int, seed: int) -> Picked:
        assert inputs.scores is not None
        kept = self._without_hardest(inputs.scores)
        if k > len(kept):
            want = f"at most {len(kept)}, the rows that beta={self.beta} leaves"
            _checks.fail(ValueError, "budget", want, k)
        stratum = strata_of(inputs.scores[kept], _checks.integer("strata", self.strata, 1, 2**31))
        sizes = np.bincount(stratum, minlength=self.strata)
        budgets = to_array(stratified_budget(sizes, k))
        draw = np.random.default_rng(seed)
        shuffled = draw.permutation(len(kept))
        ordered = shuffled[np.argsort(stratum[shuffled], kind="stable")]
        starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        parts = [ordered[start : start + b] for start, b in zip(starts, budgets, strict=True)]
        info = {"dropped": inputs.n - len(kept), "strata": sizes.tolist(), "budgets": budgets.tolist()}
        return Picked(kept[np.concatenate(parts)].astype(np.int64), scores=inputs.scores, info=info)

    def _without_hardest(self, scores: NDArray[np.float64]) -> NDArray[np.int64]:
        beta = _checks.real("beta", self.beta, at_least=0.0, below=1.0)
        hard = _checks.choice("hard", self.hard, ("small", "large"))
        infinite = np.flatnonzero(~np.isfinite(scores))
        if len(infinite):
            got = f"{scores[infinite[0]]} for row {infinite[0]}"
            _checks.fail(ValueError, "scores", "finite scores (strata have a width)", got)
        dropped = budget_size(beta, len(scores)) if beta else 0
        order = np.argsort(scores if hard == "small" else -scores, kind="stable")
        return np.sort(order[dropped:]).astype(np.int64)


def strata_of(scores: NDArray[np.float64], strata: int) -> NDArray[np.int64]:
    """The stratum of each score, of equal widths over [min, 1.0001 max].

    The published code takes 1.0001 max as the end, which lies below the maximum where that is negative; here
    the end is above it whatever its sign.
    """
    if not len(scores):
        return np.zeros(0, np.int64)
    low, high = float(scores.min()), float(scores.max())
    step = (high + 1e-4 * abs(high) - low) / strata
    if step <= 0:
        return np.zeros(len(scores), np.int64)
    return np.clip(np.floor((scores - low) / step), 0, strata - 1).astype(np.int64)


@dataclass(eq=False, kw_only=True)
class D2(Selector):
    """Difficulty and diversity by messages between neighbours. Reads X and `scores`, large for hard.

    Maharana et al., "D2 pruning" (arXiv 2310.07931): each row starts with its score and what its neighbours
    send it, rho_i = s_i + sum_j exp(-d_ij) s_j; the largest rho is picked, and its neighbours lose
    exp(-gamma d) rho. `gains_` is rho of each pick when it was picked.

    Attributes:
        neighbors: k of the graph, 1 to 31; a row is not its own neighbour.
        gamma: how far a pick pushes its neighbours away.
    """

    neighbors: int = 5
    gamma: float = 0.1

    method: ClassVar[str] = "d2"
    needs: ClassVar[tuple[str, ...]] = ("X", "scores")

    def _pick(self, inputs: Inputs, k: int, seed: int) -> Picked:
        gamma = _checks.real("gamma", self.gamma, at_least=0.0)
        assert inputs.scores is not None
        if inputs.n < 2:
            return Picked(np.arange(k, dtype=np.int64), gains=inputs.scores[:k], scores=inputs.scores)
        near, squared = neighbours(inputs.X, self.neighbors)
        distance = np.sqrt(squared)
        s = inputs.scores
        rho = s + (np.exp(-distance) * s[near]).sum(1)
        push = np.exp(-gamma * distance)
        taken = np.zeros(inputs.n, bool)
        picks, gains = np.empty(k, np.int64), np.empty(k)
        for t in range(k):
            j = int(np.argmax(np.where(taken, -np.inf, rho)))
            picks[t], gains[t] = j, rho[j]
            taken[j] = True
            rho[near[j]] -= push[j] * gains[t]
        return Picked(picks, gains=gains, scores=s)


def neighbours(X: Any, k: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The k nearest other rows of each row, and squared distances, int64 and float64 [N, min(k, N - 1)].

    Of rows equally near the smaller row number comes first; a duplicate of a row is a neighbour, itself is
    not.
    """
    k = _checks.integer("neighbors", k, 1, 31)
    rows = whole(X)
    found = nn_assign(rows, rows, min(k + 1, len(rows)))
    index, distance = to_array(found.indices).astype(np.int64), to_array(found.distances_squared)
    others = index != np.arange(len(index))[:, None]
    absent = others.all(1)  # more than k duplicates of smaller numbers came first: the last one gives way
    others[absent, -1] = False
    shape = (len(index), index.shape[1] - 1)
    return index[others].reshape(shape), distance[others].reshape(shape).astype(np.float64)


@dataclass(eq=False, kw_only=True)
class Cal(ScoreSelector):
    """Contrastive: rows whose prediction differs most from those of their neighbours. Reads X and logits.

    Margatina et al. (arXiv 2109.03764): the score is the mean of KL(p_j || p_i) over the nearest neighbours
    j of i, large for rows to keep.

    Attributes:
        neighbors: how many, 1 to 31.
        labelled: rows whose neighbourhood counts (the labelled pool of active learning), which are not picked
            themselves; by default all rows are neighbours of each other.
    """

    neighbors: int = 10
    labelled: list[int] | None = None

    method: ClassVar[str] = "cal"
    needs: ClassVar[tuple[str, ...]] = ("X", "logits")
    can_shard: ClassVar[bool] = False

    def _prepare(self, inputs: Inputs) -> Inputs:
        if self.labelled is None:
            return inputs
        if self.balanced:
            _checks.fail(ValueError, "labelled", "None with balanced", self.labelled)
        pool = checked_indices("labelled", self.labelled, inputs.n)
        if not len(pool):
            _checks.fail(ValueError, "labelled", "at least one row", "none")
        X = whole(inputs.X)
        centers = X[torch.from_numpy(pool).to(X.device)] if isinstance(X, torch.Tensor) else X[pool]
        k = min(_checks.integer("neighbors", self.neighbors, 1, 32), len(pool))
        near = pool[to_array(nn_assign(X, centers, k).indices).astype(np.int64)]
        return replace(inputs, scores=divergence_from(inputs.logits, near))

    def _pick(self, inputs: Inputs, k: int, seed: int) -> Picked:
        scores = inputs.scores
        if self.labelled is None:
            near = neighbours(inputs.X, self.neighbors)[0] if inputs.n > 1 else np.zeros((inputs.n, 0), int)
            scores = divergence_from(inputs.logits, near)
            return super()._pick(replace(inputs, scores=scores), k, seed)
        assert scores is not None
        free = np.setdiff1d(np.arange(inputs.n), self.labelled)
        if k > len(free):
            _checks.fail(ValueError, "budget", f"at most the {len(free)} rows outside the pool", k)
        picked = super()._pick(replace(inputs.take(free), scores=scores[free]), k, seed)
        return Picked(free[picked.indices].astype(np.int64), scores=scores)


def divergence_from(logits: list[Any], near: NDArray[np.int64]) -> NDArray[np.float64]:
    """The mean over neighbours j of KL(p_j || p_i), nats, 0 without neighbours."""
    p, log_p, own = distributions(logits)
    out = torch.zeros(len(p), dtype=torch.float64, device=p.device)
    if near.shape[1] == 0:
        return to_array(out)
    at = torch.from_numpy(near).to(p.device)
    step = max(1, 2**22 // max(1, near.shape[1] * p.shape[1]))
    for start in range(0, len(p), step):
        j = at[start : start + step]
        cross = torch.einsum("bkc,bc->bk", p[j], log_p[start : start + step])
        out[start : start + step] = (own[j] - cross).clamp_min(0).mean(1)
    return to_array(out)
