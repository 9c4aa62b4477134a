"""Tests and coefficients behind the rankings: Wilcoxon's signed-rank test, Holm's adjustment, Kendall's tau.

All of them work on many resamples of the cases at once. A resample is a row of `counts`: how often each
case was drawn. Its differences are those of the full data, so they are sorted once and only the counts
change.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from tenfold._checks import choice, fail, real
from tenfold._statistics import holm
from tenfold.segmentation.scores import Missing, ScoreTable, filled, mean_of_finite

__all__ = [
    "Significance", "holm", "kendall_tau", "lowest_p", "pairwise_p", "significance", "wilcoxon_greater",
    "within_reach",
]  # fmt: skip


def wilcoxon_greater(
    differences: NDArray[np.float64], counts: NDArray[np.float64] | None = None
) -> NDArray[np.float64]:
    """One-sided p of Wilcoxon's signed-rank test that differences lie above zero.

    `differences` is [..., cases], paired scores subtracted, NaN where a pair is incomplete; `counts`
    [samples, cases] repeats cases (default: each once, and no axis of samples in the result). Returns
    [samples, ...]. As R's wilcox.test(x, y, paired=TRUE, alternative="greater", exact=FALSE), which
    challengeR (arXiv 1910.05121) calls: zeros are dropped, tied ranks averaged in the mean and in the
    variance, and the normal approximation is corrected for continuity by one half. NaN where no difference
    is left.
    """
    data = np.asarray(differences, dtype=np.float64)
    if data.ndim == 0:
        fail(ValueError, "differences", "at least one axis, of cases", "a number")
    if np.isinf(data).any():
        fail(ValueError, "differences", "finite numbers or NaN", "an infinite one")
    times = np.ones((1, data.shape[-1])) if counts is None else np.asarray(counts, dtype=np.float64)
    if times.ndim != 2 or times.shape[1] != data.shape[-1]:
        fail(ValueError, "counts", f"shape (samples, {data.shape[-1]})", times.shape)
    above, deviation = _signed_ranks(data.reshape(math.prod(data.shape[:-1]), data.shape[-1]), times)
    p = _upper_tail(above, deviation).reshape(len(times), *data.shape[:-1])
    return p[0] if counts is None else p


def _upper_tail(above: NDArray[np.float64], deviation: NDArray[np.float64]) -> NDArray[np.float64]:
    """P of a rank sum at least so far above its mean, corrected by one half; NaN without a deviation."""
    with np.errstate(invalid="ignore", divide="ignore"):
        z = np.where(deviation > 0, (above - 0.5) / deviation, np.nan)
    return 0.5 * torch.special.erfc(torch.from_numpy(z / math.sqrt(2))).numpy()


def _signed_ranks(
    differences: NDArray[np.float64], counts: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """[samples, pairs]: the positive ranks less their mean under the null, and the standard deviation."""
    above = np.empty((len(differences), len(counts)))
    deviation = np.empty_like(above)
    times = np.ascontiguousarray(counts.T)  # one pass over all samples per case
    for k, row in enumerate(differences):
        above[k], deviation[k] = _signed_rank(row, times)
    return above.T, deviation.T


def _signed_rank(
    differences: NDArray[np.float64], times: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """[samples] of one pair of teams; `times` is [cases, samples]."""
    used = np.flatnonzero(~np.isnan(differences) & (differences != 0))
    if not len(used):
        return np.zeros(times.shape[1]), np.zeros(times.shape[1])
    used = used[np.argsort(np.abs(differences[used]), kind="stable")]
    size = np.abs(differences[used])
    positive = (differences[used] > 0).astype(np.float64)[:, None]
    group = times[used]
    wins = group * positive
    starts = np.flatnonzero(np.append(True, size[1:] != size[:-1]))
    if len(starts) < len(size):  # equal sizes share the mean of their ranks
        group = np.add.reduceat(group, starts, axis=0)
        wins = np.add.reduceat(wins, starts, axis=0)
    up_to = np.cumsum(group, axis=0)
    n = up_to[-1]
    rank = up_to - (group - 1) / 2
    variance = n * (n + 1) * (2 * n + 1) / 24 - (group * (group * group - 1)).sum(axis=0) / 48
    above = np.einsum("cs,cs->s", wins, rank) - n * (n + 1) / 4
    return above, np.sqrt(variance)


def pairwise_p(scores: NDArray[np.float64], counts: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
    """[samples, teams, teams], without `counts` [teams, teams]: p that the row's team beats the column's.

    `scores` is [teams, cases], larger better, NaN where missing; a pair is compared on the cases that both
    have. The diagonal is NaN.
    """
    teams = len(scores)
    times = np.ones((1, scores.shape[1])) if counts is None else counts
    p = np.full((len(times), teams, teams), np.nan)
    i, j = np.triu_indices(teams, 1)
    above, deviation = _signed_ranks(scores[i] - scores[j], times)
    p[:, i, j] = _upper_tail(above, deviation)
    p[:, j, i] = _upper_tail(-above, deviation)
    return p[0] if counts is None else p


def lowest_p(cases: int) -> float:
    """The smallest p that `cases` pairs can give: all differ by the same, in one direction."""
    return float(pairwise_p(np.stack([np.ones(cases), np.zeros(cases)]))[0, 1])


def within_reach(teams: int, cases: int, alpha: float) -> bool:
    """Whether Holm's adjustment over all ordered pairs of `teams` leaves any p at or below `alpha`."""
    return teams < 2 or lowest_p(cases) * teams * (teams - 1) <= alpha


def adjusted_p(p: NDArray[np.float64], adjust: str) -> NDArray[np.float64]:
    """`p` [..., teams, teams] adjusted over all ordered pairs of teams: "none" or "holm"."""
    choice("adjust", adjust, ("none", "holm"))
    if adjust == "none":
        return p
    return holm(p.reshape(*p.shape[:-2], -1)).reshape(p.shape)


def kendall_tau(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Kendall's tau-b over the last axis, broadcast over the others; NaN where one side is all ties."""
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if x.shape[-1] != y.shape[-1]:
        fail(ValueError, "y", f"{x.shape[-1]} entries on the last axis", y.shape[-1])
    i, j = np.triu_indices(x.shape[-1], 1)
    a, b = np.sign(x[..., i] - x[..., j]), np.sign(y[..., i] - y[..., j])
    free = (a * a).sum(axis=-1) * (b * b).sum(axis=-1)
    return np.where(free > 0, (a * b).sum(axis=-1) / np.sqrt(np.maximum(free, 1)), np.nan)


@dataclass(frozen=True)
class Significance:
    """Every ordered pair of teams tested on one metric."""

    metric: str
    teams: tuple[str, ...]
    p: NDArray[np.float64]
    """[teams, teams]: p that the row's team is better than the column's; NaN on the diagonal."""
    adjusted: NDArray[np.float64]
    """The same, adjusted over all ordered pairs."""
    alpha: float
    adjust: str
    cases: int

    @property
    def better(self) -> NDArray[np.bool_]:
        """[teams, teams]: the row's team is significantly better; NaN counts as no."""
        return self.adjusted <= self.alpha

    @property
    def untested(self) -> int:
        """Ordered pairs without a p: no case in which the two differ."""
        return int(np.isnan(self.p).sum()) - len(self.teams)


def significance(
    table: ScoreTable,
    metric: str,
    *,
    alpha: float = 0.05,
    adjust: str = "holm",
    na: Missing = "error",
    pooled: bool = False,
) -> Significance:
    """Test every ordered pair of teams on `metric`: who is better than whom.

    The sample of a team is one number per case, the mean over organs, since organs of one patient are no
    independent observations; `pooled` takes every organ of every case as one instead. `adjust` is "holm"
    (over all n(n-1) ordered pairs) or "none". Wilcoxon's signed-rank test as in `wilcoxon_greater`.
    """
    real("alpha", alpha, positive=True, below=1.0)
    part = table.select(metrics=metric)
    scores = filled(part, na)
    scores = scores.reshape(len(part.teams), -1) if pooled else mean_of_finite(scores, axis=2)
    p = pairwise_p(scores)
    return Significance(metric, part.teams, p, adjusted_p(p, adjust), alpha, adjust, len(part.cases))
