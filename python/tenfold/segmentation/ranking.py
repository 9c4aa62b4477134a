"""Rankings of teams: the challenge's own scheme, and the three families that challengeR compares.

Sources: the evaluation page of SegRap2023 and SegRap2025 (arXiv 2312.09576), and Wiesenfarth et al.,
"Methods and open-source toolkit for analyzing and visualizing challenge results" (arXiv 1910.05121).

Each scheme is one function of the cases drawn, `counts` [samples, cases]: one row of ones is the ranking
itself, a thousand rows of draws its bootstrap.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tenfold._checks import choice, fail, real
from tenfold.segmentation.scores import Column, Missing, ScoreTable, filled
from tenfold.segmentation.statistics import adjusted_p, pairwise_p

__all__ = [
    "Aggregate",
    "Ranking",
    "Scheme",
    "aggregate_then_rank",
    "consensus",
    "rank_by",
    "rank_then_aggregate",
    "rank_values",
    "segrap_ranking",
    "test_then_rank",
]

Aggregate: TypeAlias = "str | float | Callable[..., Any]"
"""How the values of the cases become one: "mean", "median", a quantile in [0, 1], or a NumPy-style reduction
`f(values, axis=...)`."""

METHODS = ("segrap", "aggregate-then-rank", "rank-then-aggregate", "test-then-rank")
TIES = ("min", "average")

SAME = 1e-12
"""Two scores are tied if they differ by no more than this part of the largest one: less is rounding."""


@dataclass(frozen=True)
class Scheme:
    """How a ranking is made; `rank_by` checks it."""

    method: str = "segrap"
    """One of `METHODS`."""
    aggregate: Aggregate = "mean"
    ties: str = "min"
    """"min" (competition ranks: 1, 1, 3) or "average" (1.5, 1.5, 3)."""
    na: Missing = "error"
    alpha: float = 0.05
    adjust: str = "none"
    statistical: bool = False
    """segrap only: teams between which there is no significant difference are equal."""

    @property
    def title(self) -> str:
        """In words: "mean, then rank"."""
        how = self.aggregate if isinstance(self.aggregate, str) else (
            getattr(self.aggregate, "__name__", "function") if callable(self.aggregate)
            else f"{100 * self.aggregate:g} % quantile"
        )  # fmt: skip
        return {
            "segrap": "SegRap, statistical" if self.statistical else "SegRap",
            "aggregate-then-rank": f"{how}, then rank",
            "rank-then-aggregate": f"rank, then {how}",
            "test-then-rank": "test, then rank",
        }[self.method]


@dataclass(frozen=True)
class Ranking:
    """A ranking of teams over the columns of a table."""

    teams: tuple[str, ...]
    rank: NDArray[np.float64]
    """[teams], 1 is best."""
    score: NDArray[np.float64]
    """[teams]: what `rank` ranks, the smaller the better. The mean over columns of `column_ranks`; segrap
    divides it by the number of teams."""
    columns: tuple[Column, ...]
    column_scores: NDArray[np.float64]
    """[teams, columns]: the aggregate in the metric's own units, the mean rank of rank-then-aggregate, or the
    share of significant wins of test-then-rank."""
    column_ranks: NDArray[np.float64]
    """[teams, columns]."""
    scheme: Scheme
    table: ScoreTable | None = None
    """What was ranked; None for a consensus."""
    untested: int = 0
    """Ordered pairs of teams, over all columns, that had no p-value and counted as not significant."""

    @property
    def order(self) -> NDArray[np.int64]:
        """Indices of the teams, best first; ties by score, then by name."""

        def key(i: int) -> tuple[float, float, str]:
            return self.rank[i], self.score[i], self.teams[i]

        return np.array(sorted(range(len(self.teams)), key=key))

    @property
    def winners(self) -> tuple[str, ...]:
        return tuple(self.teams[i] for i in self.order if self.rank[i] == self.rank.min())


def rank_values(
    scores: NDArray[np.float64], *, larger_better: bool = True, ties: str = "min"
) -> NDArray[np.float64]:
    """Ranks over the last axis, 1 is best; NaN comes after every number, tied with other NaN.

    Scores that differ by rounding alone (`SAME`) are tied, so that the order of the cases in a sum decides
    nothing.
    """
    choice("ties", ties, TIES)
    data = np.asarray(scores, dtype=np.float64)
    if np.isinf(data).any():
        fail(ValueError, "scores", "finite numbers or NaN", "an infinite one")
    last = np.isnan(data)
    size = np.abs(np.where(last, 0.0, data)).max(axis=-1, keepdims=True, initial=0.0)
    value = np.where(last, -np.inf, data if larger_better else -data)
    better = np.zeros(data.shape)
    equal = np.zeros(data.shape)
    for i in range(data.shape[-1]):  # teams are few, samples and columns many
        with np.errstate(invalid="ignore"):
            gap = value[..., i : i + 1] - value
        above = gap > SAME * size
        better += above
        if ties == "average":
            equal += ~above & ~(gap < -SAME * size)
    return better + 1 + (np.maximum(equal - 1, 0) / 2 if ties == "average" else 0)


def segrap_ranking(
    table: ScoreTable,
    *,
    ties: str = "min",
    na: Missing = "error",
    statistical: bool = False,
    alpha: float = 0.05,
) -> Ranking:
    """The challenge's ranking of one task.

    The mean over cases of each organ and metric ranks the teams; the ranks are averaged over organs and
    metrics and divided by the number of teams; the smallest wins. Where the table names cohorts
    (SegRap2025), cases are averaged within each cohort, then over cohorts. How ties are ranked is not
    published: "min", or "average".

    `statistical` is the challenge's "equal teams if no significant difference" as we read it: on each organ
    and metric, a team's rank is one more than the number of teams that are significantly better (one-sided
    Wilcoxon signed-rank test, p <= `alpha`).

    The challenge scores a missing result 0: na=0. ValueError for several tasks: rank each by itself.
    """
    return rank_by(table, Scheme("segrap", "mean", ties, na, alpha, "none", statistical))


def aggregate_then_rank(
    table: ScoreTable, aggregate: Aggregate = "mean", *, ties: str = "min", na: Missing = "error"
) -> Ranking:
    """Aggregate the cases of each column, rank the teams; over several columns, rank the mean ranks."""
    return rank_by(table, Scheme("aggregate-then-rank", aggregate, ties, na))


def rank_then_aggregate(
    table: ScoreTable, aggregate: Aggregate = "mean", *, ties: str = "min", na: Missing = "worst"
) -> Ranking:
    """Rank the teams within each case, aggregate the ranks, rank again. A missing score ranks worst."""
    return rank_by(table, Scheme("rank-then-aggregate", aggregate, ties, na))


def test_then_rank(
    table: ScoreTable,
    *,
    alpha: float = 0.05,  # noqa: PT028 (it is no test)
    adjust: str = "none",  # noqa: PT028
    ties: str = "min",  # noqa: PT028
    na: Missing = "error",  # noqa: PT028
) -> Ranking:
    """Count for each team the share of other teams that it is significantly better than; rank by the share.

    Every ordered pair is compared by a one-sided paired Wilcoxon signed-rank test (`wilcoxon_greater`), p
    adjusted over the pairs of a column ("none" or "holm"). With na="drop" a pair is compared on the cases
    both have. ValueError for a single team.
    """
    return rank_by(table, Scheme("test-then-rank", "mean", ties, na, alpha, adjust))


# The name is the field's; without this pytest takes it for a test.
test_then_rank.__test__ = False  # type: ignore[attr-defined]


def rank_by(table: ScoreTable, scheme: Scheme) -> Ranking:
    """The ranking that `scheme` describes. TypeError or ValueError for what does not fit."""
    check(table, scheme)
    scores, untested = column_scores(table, scheme, np.ones((1, len(table.cases))))
    ranks = column_ranks(table, scheme, scores)
    score, rank = joined(ranks, scheme)
    measured = scheme.method in ("segrap", "aggregate-then-rank") and not scheme.statistical
    sign = _signs(table) if measured else 1.0
    return Ranking(
        table.teams, rank[0], score[0], table.columns, scores[0].T * sign, ranks[0].T, scheme, table, untested
    )


def consensus(
    rankings: Sequence[Ranking], *, weights: Sequence[float] | None = None, ties: str = "min"
) -> Ranking:
    """One ranking from several of the same teams, by the (weighted) mean of their ranks."""
    if not rankings:
        fail(ValueError, "rankings", "at least one", "none")
    choice("ties", ties, TIES)
    teams = rankings[0].teams
    for k, ranking in enumerate(rankings):
        if set(ranking.teams) != set(teams):
            fail(ValueError, f"rankings[{k}]", f"the teams {sorted(teams)}", sorted(ranking.teams))
    share = np.ones(len(rankings)) if weights is None else np.asarray(weights, dtype=np.float64)
    if share.shape != (len(rankings),) or not (share >= 0).all() or not share.sum() > 0:
        fail(ValueError, "weights", f"{len(rankings)} numbers >= 0 with a positive sum", weights)
    ranks = np.array([[r.rank[r.teams.index(team)] for r in rankings] for team in teams])
    score = ranks @ share / share.sum()
    columns = tuple(Column("", r.scheme.title, f"ranking {k + 1}") for k, r in enumerate(rankings))
    return Ranking(
        teams, rank_values(score, larger_better=False, ties=ties), score, columns, ranks, ranks,
        replace(rankings[0].scheme, ties=ties),
    )  # fmt: skip


def check(table: ScoreTable, scheme: Scheme) -> None:
    """Refuse what cannot be ranked."""
    if not isinstance(table, ScoreTable):
        fail(TypeError, "table", "a ScoreTable", type(table).__name__)
    choice("method", scheme.method, METHODS)
    choice("ties", scheme.ties, TIES)
    choice("adjust", scheme.adjust, ("none", "holm"))
    real("alpha", scheme.alpha, positive=True, below=1.0)
    _reduction(scheme.aggregate)
    if len(table.tasks) > 1 and scheme.method == "segrap":
        fail(ValueError, "table", "one task (`select(task=...)`)", list(table.tasks))
    if len(table.teams) < 2 and (scheme.method == "test-then-rank" or scheme.statistical):
        fail(ValueError, "table", "two teams or more for a test", len(table.teams))
    if scheme.na == "worst" and scheme.method != "rank-then-aggregate":
        fail(ValueError, "na", f"'error', 'drop', a number or a function for {scheme.method}", "'worst'")


def column_scores(
    table: ScoreTable, scheme: Scheme, counts: NDArray[np.float64]
) -> tuple[NDArray[np.float64], int]:
    """[samples, columns, teams], and the number of pairs without a p-value in the first sample.

    Larger is better, but for the mean ranks of rank-then-aggregate and the ranks of the statistical scheme.
    """
    values = filled(table, scheme.na)
    if scheme.method == "rank-then-aggregate":
        within = rank_values(values.transpose(2, 1, 0), ties=scheme.ties)  # [columns, cases, teams]
        if scheme.na == "drop":
            within = np.where(np.isnan(values.transpose(2, 1, 0)), np.nan, within)
        return _aggregated(within.transpose(2, 1, 0), scheme.aggregate, counts, None), 0
    if scheme.method == "test-then-rank" or scheme.statistical:
        wins, losses, untested = _tested(values, scheme, counts)
        return (losses if scheme.statistical else wins), untested
    cohorts = table.cohorts if scheme.method == "segrap" else None
    return _aggregated(values, scheme.aggregate, counts, cohorts), 0


def column_ranks(table: ScoreTable, scheme: Scheme, scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """[samples, columns, teams] from the scores of `column_scores`."""
    smaller = scheme.method == "rank-then-aggregate" or scheme.statistical
    return rank_values(scores, larger_better=not smaller, ties=scheme.ties)


def joined(ranks: NDArray[np.float64], scheme: Scheme) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Score and final rank [samples, teams] from the ranks of the columns."""
    score = ranks.mean(axis=1)
    rank = rank_values(score, larger_better=False, ties=scheme.ties)
    return (score / ranks.shape[-1] if scheme.method == "segrap" else score), rank


def _signs(table: ScoreTable) -> NDArray[np.float64]:
    return np.array([-1.0 if column.metric in table.smaller else 1.0 for column in table.columns])


def _reduction(aggregate: Aggregate) -> Callable[..., Any]:
    """The function of (values, axis) that ignores NaN; ValueError or TypeError for anything else."""
    if callable(aggregate):
        return aggregate
    if isinstance(aggregate, str):
        choice("aggregate", aggregate, ("mean", "median"))
        return np.nanmean if aggregate == "mean" else np.nanmedian
    share = real("aggregate", aggregate, at_least=0.0)
    if share > 1:
        fail(ValueError, "aggregate", "'mean', 'median', a quantile in [0, 1] or a function", aggregate)
    return lambda values, axis: np.nanquantile(values, share, axis=axis)


def _aggregated(
    values: NDArray[np.float64],
    aggregate: Aggregate,
    counts: NDArray[np.float64],
    cohorts: tuple[str, ...] | None,
) -> NDArray[np.float64]:
    """`values` [teams, cases, columns] -> [samples, columns, teams]; of cohorts, the mean of their means."""
    if aggregate == "mean":
        parts = [
            _means(values[:, mine], counts[:, mine])
            for mine in ([slice(None)] if cohorts is None else _members(cohorts))
        ]
        if len(parts) == 1:
            return parts[0]
        stack = np.stack(parts)
        known = ~np.isnan(stack)
        total = np.where(known, stack, 0.0).sum(axis=0)
        return np.where(known.any(axis=0), total / np.maximum(known.sum(axis=0), 1), np.nan)
    reduce = _reduction(aggregate)
    result = np.empty((len(counts), values.shape[2], values.shape[0]))
    for s, row in enumerate(counts):
        drawn = values if (row == 1).all() else np.repeat(values, row.astype(int), axis=1)
        result[s] = _without_warning(reduce, drawn).T
    return result


def _without_warning(reduce: Callable[..., Any], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Over cases; NaN, which ranks last, for a team that has none."""
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(All-NaN|Mean of empty)", RuntimeWarning)
        return np.asarray(reduce(values, axis=1), dtype=np.float64)


def _members(cohorts: tuple[str, ...]) -> list[Any]:
    names = np.array(cohorts)
    return [np.flatnonzero(names == name) for name in dict.fromkeys(cohorts)]


def _means(values: NDArray[np.float64], counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Means of all resamples as one matrix product: draws times scores, over draws."""
    teams, cases, columns = values.shape
    table = values.transpose(1, 2, 0).reshape(cases, columns * teams)
    gaps = np.isnan(table)
    if gaps.any():
        number = counts @ (~gaps).astype(np.float64)
        total = counts @ np.where(gaps, 0.0, table)
        means = np.where(number > 0, total / np.maximum(number, 1), np.nan)
    else:
        means = counts @ table / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    return means.reshape(len(counts), columns, teams)


def _tested(
    values: NDArray[np.float64], scheme: Scheme, counts: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], int]:
    """Share of wins and number of losses, each [samples, columns, teams], and pairs without a p at first."""
    teams, _, columns = values.shape
    wins = np.empty((len(counts), columns, teams))
    losses = np.empty_like(wins)
    untested = 0
    for k in range(columns):
        p = pairwise_p(values[:, :, k], counts)
        better = adjusted_p(p, scheme.adjust) <= scheme.alpha  # NaN: no
        wins[:, k] = better.sum(axis=2) / (teams - 1)
        losses[:, k] = better.sum(axis=1)
        untested += int(np.isnan(p[0]).sum()) - teams
    return wins, losses, untested
