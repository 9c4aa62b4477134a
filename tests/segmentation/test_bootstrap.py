"""Resampled rankings against rankings of the resampled table, and how fast they are."""

from __future__ import annotations

import time

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from tenfold.segmentation.bootstrap import (
    bootstrap_ranking,
    compare_methods,
    draw,
    leave_one_out,
)
from tenfold.segmentation.ranking import Scheme, consensus, rank_by, segrap_ranking
from tenfold.segmentation.scores import Column, ScoreTable

SCHEMES = (
    Scheme("segrap"),
    Scheme("segrap", ties="average", na=0.0),
    Scheme("segrap", statistical=True, na=0.0),
    Scheme("aggregate-then-rank", "median", na="drop"),
    Scheme("aggregate-then-rank", 0.25, na=0.0),
    Scheme("rank-then-aggregate", na="worst"),
    Scheme("rank-then-aggregate", "median", "average", "worst"),
    Scheme("test-then-rank", na="drop"),
)


def table(values: np.ndarray, cohorts: tuple[str, ...] | None = None) -> ScoreTable:
    """`values` [teams, cases, columns]."""
    teams, cases, columns = values.shape
    return ScoreTable(
        tuple(f"T{t}" for t in range(teams)), tuple(f"C{c}" for c in range(cases)),
        tuple(Column("", f"O{k // 2}", ("dsc", "nsd")[k % 2]) for k in range(columns)),
        values, np.ones(values.shape, bool), cohorts=cohorts,
    )  # fmt: skip


def scores(teams: int, cases: int, columns: int, seed: int = 0, gaps: float = 0.0) -> np.ndarray:
    random = np.random.default_rng(seed)
    values = (
        0.7 + 0.01 * np.arange(teams)[:, None, None] + random.normal(0, 0.05, (teams, cases, columns))
    ).round(4)
    values[random.random(values.shape) < gaps] = np.nan
    return values


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda s: f"{s.title}, {s.ties}")
def test_a_resample_is_the_ranking_of_the_drawn_cases(scheme: Scheme) -> None:
    data = table(scores(5, 9, 4, gaps=0.05 if scheme.na != "error" else 0.0))
    found = bootstrap_ranking(rank_by(data, scheme), 12, seed=3)
    counts = draw(data, scheme, 12, 3)
    for s in range(12):
        drawn = table(np.repeat(data.values, counts[s].astype(int), axis=1))
        alone = rank_by(drawn, scheme)
        assert_array_equal(found.ranks[s], alone.rank)
        assert_array_equal(found.column_ranks[s], alone.column_ranks.T)


def test_cohorts_keep_their_sizes() -> None:
    cohorts = ("a",) * 6 + ("b",) * 2
    data = table(scores(3, 8, 2), cohorts)
    counts = draw(data, Scheme("segrap"), 50, 0)
    assert (counts[:, :6].sum(axis=1) == 6).all()
    assert (counts[:, 6:].sum(axis=1) == 2).all()
    assert (draw(data, Scheme("aggregate-then-rank"), 50, 0)[:, 6:].sum(axis=1) != 2).any()
    found = bootstrap_ranking(rank_by(data, Scheme("segrap")), 5, seed=1)
    row = draw(data, Scheme("segrap"), 5, 1)[0].astype(int)
    drawn = table(np.repeat(data.values, row, axis=1), tuple(np.repeat(cohorts, row).tolist()))
    assert_array_equal(found.ranks[0], segrap_ranking(drawn).rank)


def test_summaries_by_hand() -> None:
    data = table(scores(3, 12, 2))
    found = bootstrap_ranking(segrap_ranking(data), 400, seed=0)
    assert found.samples == 400
    assert_allclose(found.frequencies.sum(axis=1), 1)
    for t in range(3):
        for k, level in enumerate(found.levels):
            assert found.frequencies[t, k] == np.mean([r[t] == level for r in found.ranks])
        assert found.winner[t] == np.mean([r[t] == min(r) for r in found.ranks])
        assert_allclose(found.interval()[t], np.percentile(found.ranks[:, t], [2.5, 97.5]))
        assert found.median[t] == np.median(found.ranks[:, t])
    same = (found.ranks == found.ranking.rank).all(axis=1)
    assert (found.tau[same] == 1).all()
    assert same.any()
    assert not same.all()
    all_tied = (found.ranks == 1).all(axis=1)
    assert_array_equal(np.isnan(found.tau), all_tied)
    assert (found.tau[~same & ~all_tied] < 1).all()
    assert found.column_tau.shape == (400, 2)


def test_the_same_seed_gives_the_same_samples() -> None:
    ranking = segrap_ranking(table(scores(4, 10, 2)))
    assert_array_equal(
        bootstrap_ranking(ranking, 30, seed=5).ranks, bootstrap_ranking(ranking, 30, seed=5).ranks
    )
    assert (
        bootstrap_ranking(ranking, 30, seed=5).ranks != bootstrap_ranking(ranking, 30, seed=6).ranks
    ).any()


def test_a_clear_winner_always_wins() -> None:
    values = scores(4, 10, 4)
    values[2] = 0.99
    found = bootstrap_ranking(segrap_ranking(table(values)), 100)
    assert found.winner.tolist() == [0, 0, 1, 0]
    assert found.interval()[2].tolist() == [1, 1]


def test_leave_one_out_by_hand() -> None:
    # T0 wins on organ 0 alone, T1 on organs 1 and 2
    values = np.array([[[0.9, 0.9, 0.5, 0.5, 0.5, 0.5]], [[0.6, 0.6, 0.6, 0.6, 0.6, 0.6]]])
    ranking = segrap_ranking(table(values))
    assert ranking.rank.tolist() == [2, 1]
    found = leave_one_out(ranking)
    assert found.names == ("O0", "O1", "O2")
    assert found.ranks.tolist() == [[2, 1], [1, 1], [1, 1]]
    assert found.range.tolist() == [[1, 2], [1, 1]]
    assert found.tau[0] == 1
    assert np.isnan(found.tau[1:]).all()
    metric = leave_one_out(ranking, "metric")
    assert metric.ranks.tolist() == [[2, 1], [2, 1]]


def test_methods_side_by_side() -> None:
    found = compare_methods(table(scores(3, 10, 2)))
    assert [r.scheme.title for r in found] == [
        "mean, then rank", "median, then rank", "rank, then mean", "rank, then median", "test, then rank"
    ]  # fmt: skip
    assert len(compare_methods(table(scores(1, 10, 2)))) == 4


def test_refusals() -> None:
    with pytest.raises(ValueError, match="ranking: expected two cases or more to draw from, got 1"):
        bootstrap_ranking(segrap_ranking(table(scores(3, 1, 2))))
    ranking = segrap_ranking(table(scores(3, 4, 2)))
    with pytest.raises(ValueError, match="ranking: expected two organs or more, got 1"):
        leave_one_out(ranking)
    with pytest.raises(ValueError, match="by: expected one of 'organ', 'metric', 'case', got 'team'"):
        leave_one_out(ranking, "team")
    with pytest.raises(ValueError, match=r"samples: expected an integer in \[1, 10000000\], got 0"):
        bootstrap_ranking(ranking, 0)
    with pytest.raises(ValueError, match="ranking: expected one of a table, got a consensus of rankings"):
        bootstrap_ranking(consensus([ranking]))
    with pytest.raises(ValueError, match="level: expected a share in"):
        bootstrap_ranking(ranking, 2).interval(1.0)


def test_a_whole_challenge_is_resampled_within_two_seconds() -> None:
    """1000 resamples of 12 teams, 60 cases, 90 columns; processor time of one process."""
    ranking = segrap_ranking(table(scores(12, 60, 90)))
    began = time.process_time()
    found = bootstrap_ranking(ranking, 1000)
    assert time.process_time() - began < 2
    assert found.ranks.shape == (1000, 12)
