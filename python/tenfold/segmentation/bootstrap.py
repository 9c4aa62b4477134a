"""How sure a ranking is: cases drawn again (bootstrap); organs, metrics or cases left out one at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from tenfold._checks import choice, fail, integer
from tenfold._checks import seed as check_seed
from tenfold.segmentation.ranking import Ranking, Scheme, column_ranks, column_scores, joined, rank_by
from tenfold.segmentation.scores import Missing, ScoreTable
from tenfold.segmentation.statistics import kendall_tau

__all__ = ["Bootstrap", "LeftOut", "bootstrap_ranking", "compare_methods", "leave_one_out"]

Floats: TypeAlias = "NDArray[np.float64]"

_CELLS = 40_000_000  # numbers of a block of resamples, 320 MB


@dataclass(frozen=True)
class Bootstrap:
    """A ranking made again on resampled cases."""

    ranking: Ranking
    """The one of the full data."""
    ranks: Floats
    """[samples, teams]."""
    column_ranks: NDArray[np.float32]
    """[samples, columns, teams]."""
    tau: Floats
    """[samples]: Kendall's tau-b between the ranking of the full data and that of the resample; NaN if
    either is all ties."""

    @property
    def samples(self) -> int:
        return len(self.ranks)

    @property
    def levels(self) -> Floats:
        """The ranks that occurred, in order: 1, 2, ... or, with ties averaged, halves as well."""
        return np.unique(self.ranks)

    @property
    def frequencies(self) -> Floats:
        """[teams, levels]: the share of resamples in which a team had each rank. Rows sum to 1."""
        return (self.ranks[:, :, None] == self.levels).mean(axis=0)

    @property
    def winner(self) -> Floats:
        """[teams]: the share of resamples in which a team was first, alone or with others."""
        return (self.ranks == self.ranks.min(axis=1, keepdims=True)).mean(axis=0)

    @property
    def median(self) -> Floats:
        """[teams]: the median rank."""
        return np.median(self.ranks, axis=0)

    def interval(self, level: float = 0.95) -> Floats:
        """[teams, 2]: the percentile interval of the rank."""
        if not 0 < level < 1:
            fail(ValueError, "level", "a share in (0, 1)", level)
        return np.quantile(self.ranks, [(1 - level) / 2, (1 + level) / 2], axis=0).T

    @property
    def column_tau(self) -> Floats:
        """[samples, columns]: Kendall's tau-b of each column's own ranking."""
        return kendall_tau(self.ranking.column_ranks.T[None], self.column_ranks.astype(np.float64))


def bootstrap_ranking(ranking: Ranking, samples: int = 1000, *, seed: int = 0) -> Bootstrap:
    """Draw the cases again with replacement, `samples` times, and make the whole ranking anew each time.

    Where the ranking averages over cohorts, cases are drawn within each. Missing scores are treated as in the
    ranking. The same seed gives the same resamples. ValueError for a consensus and for fewer than two cases.
    """
    integer("samples", samples, 1, 10**7)
    check_seed("seed", seed)
    table, scheme = _source(ranking)
    if len(table.cases) < 2:
        fail(ValueError, "ranking", "two cases or more to draw from", len(table.cases))
    counts = draw(table, scheme, samples, seed)
    cells = len(table.teams) * len(table.columns)
    block = max(1, _CELLS // max(1, 4 * cells))
    finals, columns = [], []
    for start in range(0, samples, block):
        drawn = counts[start : start + block]
        ranks = column_ranks(table, scheme, column_scores(table, scheme, drawn)[0])
        finals.append(joined(ranks, scheme)[1])
        columns.append(ranks.astype(np.float32))
    final = np.concatenate(finals)
    return Bootstrap(ranking, final, np.concatenate(columns), kendall_tau(ranking.rank[None], final))


def draw(table: ScoreTable, scheme: Scheme, samples: int, seed: int) -> Floats:
    """[samples, cases]: how often each case is drawn."""
    random = np.random.default_rng(seed)
    names = table.cohorts if scheme.method == "segrap" else None
    names = names or ("",) * len(table.cases)
    counts = np.empty((samples, len(table.cases)))
    for name in dict.fromkeys(names):
        mine = np.flatnonzero(np.array(names) == name)
        counts[:, mine] = random.multinomial(len(mine), np.full(len(mine), 1 / len(mine)), samples)
    return counts


@dataclass(frozen=True)
class LeftOut:
    """A ranking made again without one organ (or metric, or case) at a time."""

    ranking: Ranking
    by: str
    names: tuple[str, ...]
    """What was left out."""
    ranks: Floats
    """[names, teams]."""
    tau: Floats
    """[names]: Kendall's tau-b with the full ranking."""

    @property
    def range(self) -> Floats:
        """[teams, 2]: the best and the worst rank."""
        return np.stack([self.ranks.min(axis=0), self.ranks.max(axis=0)], axis=1)


def leave_one_out(ranking: Ranking, by: str = "organ") -> LeftOut:
    """Make the ranking again without each "organ", "metric" or "case" in turn; ValueError if there is one."""
    choice("by", by, ("organ", "metric", "case"))
    table, scheme = _source(ranking)
    names = {"organ": table.organs, "metric": table.metrics, "case": table.cases}[by]
    if len(names) < 2:
        fail(ValueError, "ranking", f"two {by}s or more", len(names))
    ranks = []
    for name in names:
        rest = [other for other in names if other != name]
        part = (
            table.select(organs=rest) if by == "organ"
            else table.select(metrics=rest) if by == "metric" else table.select(cases=rest)
        )  # fmt: skip
        ranks.append(rank_by(part, scheme).rank)
    found = np.stack(ranks)
    return LeftOut(ranking, by, names, found, kendall_tau(ranking.rank[None], found))


def compare_methods(table: ScoreTable, *, na: Missing = "error", ties: str = "min") -> list[Ranking]:
    """The five rankings challengeR sets side by side: mean and median before and after ranking, tests."""
    rows = [
        Scheme("aggregate-then-rank", "mean", ties, na),
        Scheme("aggregate-then-rank", "median", ties, na),
        Scheme("rank-then-aggregate", "mean", ties, na),
        Scheme("rank-then-aggregate", "median", ties, na),
    ]
    if len(table.teams) > 1:
        rows.append(Scheme("test-then-rank", "mean", ties, na))
    return [rank_by(table, scheme) for scheme in rows]


def _source(ranking: Ranking) -> tuple[ScoreTable, Scheme]:
    if ranking.table is None:
        fail(ValueError, "ranking", "one of a table", "a consensus of rankings")
    return ranking.table, ranking.scheme
