"""Rankings worked out by hand, challengeR's examples (arXiv 1910.05121), and what must not matter."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from tenfold.segmentation.ranking import (
    Ranking,
    Scheme,
    aggregate_then_rank,
    consensus,
    rank_by,
    rank_then_aggregate,
    rank_values,
    segrap_ranking,
    test_then_rank,
)
from tenfold.segmentation.scores import ScoreTable

METHODS: tuple[Callable[..., Ranking], ...] = (
    segrap_ranking, aggregate_then_rank, rank_then_aggregate, test_then_rank,
)  # fmt: skip


def one_column(scores: dict[str, list[float | None]], metric: str = "dsc", **more: Any) -> ScoreTable:
    return ScoreTable.from_records(
        [
            {"team": team, "case": f"C{c + 1}", "metric": metric, "value": value}
            for team, values in scores.items() for c, value in enumerate(values)
        ],
        **more,
    )  # fmt: skip


def many(values: np.ndarray, metrics: tuple[str, ...] = ("dsc", "nsd"), **more: Any) -> ScoreTable:
    """`values` [teams, cases, organs, metrics]."""
    return ScoreTable.from_records(
        [
            {"team": f"T{t}", "case": f"C{c}", "organ": f"O{o}", "metric": name, "value": values[t, c, o, m]}
            for t, c, o in np.ndindex(values.shape[:3]) for m, name in enumerate(metrics)
        ],
        **more,
    )  # fmt: skip


def ranks(ranking: Ranking) -> dict[str, float]:
    return dict(zip(ranking.teams, ranking.rank.tolist(), strict=True))


# --- ranks of numbers


@pytest.mark.parametrize(
    ("values", "smallest", "average"),
    [
        ([0.9, 0.8, 0.7], [1, 2, 3], [1, 2, 3]),
        ([0.8, 0.9, 0.8, 0.7], [2, 1, 2, 4], [2.5, 1, 2.5, 4]),
        ([0.5, 0.5, 0.5], [1, 1, 1], [2, 2, 2]),
        ([np.nan, 0.5, np.nan, 0.4], [3, 1, 3, 2], [3.5, 1, 3.5, 2]),
        ([0.1 + 0.2, 0.3], [1, 1], [1.5, 1.5]),  # differ in the last bit
        ([7.0], [1], [1]),
    ],
)
def test_ranks(values: list[float], smallest: list[float], average: list[float]) -> None:
    assert rank_values(np.array(values)).tolist() == smallest
    assert rank_values(np.array(values), ties="average").tolist() == average
    turned = rank_values(-np.array(values), larger_better=False)
    assert turned.tolist() == smallest


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=12))
def test_ranks_are_scipys(values: list[int]) -> None:
    stats = pytest.importorskip("scipy.stats", reason="SciPy is the oracle and is not installed")
    for ties in ("min", "average"):
        assert_allclose(
            rank_values(np.array(values, float), ties=ties), stats.rankdata(-np.array(values), ties)
        )


# --- the challenge's scheme


def test_segrap_by_hand() -> None:
    # two organs, two metrics, two cases; means over cases in the comments
    values = np.array(
        [
            # organ 0: dsc, nsd   organ 1: dsc, nsd
            [[[0.9, 0.8], [0.5, 0.7]], [[0.7, 0.6], [0.7, 0.9]]],  # T0: .8 .7 | .6 .8
            [[[0.8, 0.9], [0.6, 0.6]], [[0.6, 0.7], [0.8, 0.6]]],  # T1: .7 .8 | .7 .6
            [[[0.7, 0.7], [0.6, 0.5]], [[0.7, 0.5], [0.8, 0.5]]],  # T2: .7 .6 | .7 .5
        ]
    )
    found = segrap_ranking(many(values))
    assert [tuple(c) for c in found.columns] == [
        ("", "O0", "dsc"), ("", "O0", "nsd"), ("", "O1", "dsc"), ("", "O1", "nsd")
    ]  # fmt: skip
    assert found.column_ranks.tolist() == [[1, 2, 3, 1], [2, 1, 1, 2], [2, 3, 1, 3]]
    assert_allclose(found.column_scores[0], [0.8, 0.7, 0.6, 0.8])
    assert_allclose(found.score, [7 / 4 / 3, 6 / 4 / 3, 9 / 4 / 3])
    assert ranks(found) == {"T0": 2, "T1": 1, "T2": 3}
    assert found.winners == ("T1",)
    assert [found.teams[i] for i in found.order] == ["T1", "T0", "T2"]
    shared = segrap_ranking(many(values), ties="average")
    assert shared.column_ranks.tolist() == [[1, 2, 3, 1], [2.5, 1, 1.5, 2], [2.5, 3, 1.5, 3]]
    assert_allclose(shared.score, [7 / 12, 7 / 12, 10 / 12])
    assert ranks(shared) == {"T0": 1.5, "T1": 1.5, "T2": 3}


def test_cohorts_count_alike_whatever_their_size() -> None:
    # cohort a has three cases, b one: T0 is better on the mean over cases, T1 on the mean over cohorts
    scores = {"T0": [0.9, 0.9, 0.9, 0.2], "T1": [0.8, 0.8, 0.8, 0.4]}
    plain = segrap_ranking(one_column(scores))
    assert ranks(plain) == {"T0": 1, "T1": 2}
    cohorts = {"C1": "a", "C2": "a", "C3": "a", "C4": "b"}
    averaged = segrap_ranking(one_column(scores, cohorts=cohorts))
    assert_allclose(averaged.column_scores[:, 0], [0.55, 0.6])
    assert ranks(averaged) == {"T0": 2, "T1": 1}


def test_a_missing_result_is_scored_as_the_challenge_does() -> None:
    scores = {"T0": [0.9, None, 0.9], "T1": [0.7, 0.7, 0.7]}
    with pytest.raises(
        ValueError, match=r"scores: expected a finite number everywhere.*team 'T0', case 'C2'"
    ):
        segrap_ranking(one_column(scores))
    assert ranks(segrap_ranking(one_column(scores), na=0)) == {"T0": 2, "T1": 1}
    assert ranks(segrap_ranking(one_column(scores), na="drop")) == {"T0": 1, "T1": 2}
    assert ranks(segrap_ranking(one_column(scores), na=np.min)) == {"T0": 1, "T1": 2}  # .9 .7 .9


def test_an_infinite_distance_is_missing_too() -> None:
    scores: dict[str, list[float | None]] = {"T0": [1.0, float("inf")], "T1": [2.0, 3.0]}
    table = one_column(scores, "hd95_dm")
    assert table.smaller == {"hd95_dm"}
    with pytest.raises(ValueError, match="none for team 'T0', case 'C2'"):
        aggregate_then_rank(table)
    found = aggregate_then_rank(table, na=100)
    assert found.column_scores[:, 0].tolist() == [50.5, 2.5]
    assert ranks(found) == {"T0": 2, "T1": 1}
    assert ranks(rank_then_aggregate(table)) == {"T0": 1, "T1": 1}  # one case each


def test_statistical_ranking_makes_equals_of_what_tests_do_not_part() -> None:
    random = np.random.default_rng(0)
    base = random.uniform(0.7, 0.8, 30)
    noise = random.normal(0, 0.01, 30)
    table = one_column(
        {"T0": list(base + 0.05), "T1": list(base + 0.05 + noise - noise.mean() - 1e-4), "T2": list(base)}
    )
    assert ranks(segrap_ranking(table)) == {"T0": 1, "T1": 2, "T2": 3}
    found = segrap_ranking(table, statistical=True)
    assert ranks(found) == {"T0": 1, "T1": 1, "T2": 3}
    assert found.column_scores[:, 0].tolist() == [0, 0, 2]  # teams that are significantly better


# --- challengeR's own tests: values, expected score and rank

SMALL, LARGE = "asd", "dsc"
EQUAL_DIFFERENCES: dict[str, list[float | None]] = {"A1": [0.2] * 4, "A2": [1.0] * 4}


@pytest.mark.parametrize(
    ("metric", "scores", "aggregate", "expected_scores", "expected"),
    [
        (SMALL, {"A1": [0.6], "A2": [0.8]}, "mean", [0.6, 0.8], [1, 2]),
        (SMALL, {"A2": [0.8], "A1": [0.6]}, "mean", [0.8, 0.6], [2, 1]),
        (LARGE, {"A1": [0.6], "A2": [0.8]}, "mean", [0.6, 0.8], [2, 1]),
        (SMALL, {"A1": [0.6], "A2": [0.6]}, "mean", [0.6, 0.6], [1, 1]),
        (SMALL, {"A1": [0.6, 0.4], "A2": [0.8, 1.0]}, "mean", [0.5, 0.9], [1, 2]),
        (SMALL, {"A1": [0.6, 0.4], "A2": [0.8, 1.0]}, "median", [0.5, 0.9], [1, 2]),
        (SMALL, {"A1": [0.6]}, "mean", [0.6], [1]),
    ],
)
def test_aggregate_then_rank_as_challenger(
    metric: str, scores: dict[str, list[float | None]], aggregate: str, expected_scores: list[float],
    expected: list[float],
) -> None:  # fmt: skip
    found = aggregate_then_rank(one_column(scores, metric), aggregate)
    assert_allclose(found.column_scores[:, 0], expected_scores)
    assert found.rank.tolist() == expected


@pytest.mark.parametrize(
    ("metric", "scores", "expected_means", "expected"),
    [
        (SMALL, {"A1": [0.6], "A2": [0.8]}, [1, 2], [1, 2]),
        (LARGE, {"A1": [0.6], "A2": [0.8]}, [2, 1], [2, 1]),
        (SMALL, {"A1": [0.6], "A2": [0.6]}, [1, 1], [1, 1]),
        (SMALL, {"A1": [0.6, 0.4], "A2": [0.8, 1.0]}, [1, 2], [1, 2]),
        (LARGE, {"A1": [None], "A2": [0.8]}, [2, 1], [2, 1]),  # missing: the worst rank
    ],
)
def test_rank_then_aggregate_as_challenger(
    metric: str, scores: dict[str, list[float | None]], expected_means: list[float], expected: list[float]
) -> None:
    for aggregate in ("mean", "median"):
        found = rank_then_aggregate(one_column(scores, metric), aggregate)
        assert found.column_scores[:, 0].tolist() == expected_means
        assert found.rank.tolist() == expected


@pytest.mark.parametrize(
    ("metric", "scores", "na", "wins", "expected"),
    [
        (SMALL, {"A1": [0.6], "A2": [0.8]}, "error", [0, 0], [1, 1]),
        (SMALL, EQUAL_DIFFERENCES, "error", [1, 0], [1, 2]),
        (LARGE, EQUAL_DIFFERENCES, "error", [0, 1], [2, 1]),
        (SMALL, EQUAL_DIFFERENCES, 0, [1, 0], [1, 2]),
        (SMALL, {"A1": [0.6, 0.6], "A2": [0.8, 0.8]}, "error", [0, 0], [1, 1]),
        (SMALL, {"A1": [None, 0.2, 0.2, 0.2], "A2": [1.0] * 4}, 100.0, [0, 0], [1, 1]),
        (SMALL, {"A1": [None, 0.2, 0.2, 0.2], "A2": [1.0] * 4}, lambda present: 0.0, [1, 0], [1, 2]),
        (SMALL, {"A1": [None, 0.2, 0.2, 0.2], "A2": [1.0] * 4}, "drop", [0, 0], [1, 1]),
    ],
)
def test_test_then_rank_as_challenger(
    metric: str, scores: dict[str, list[float | None]], na: Any, wins: list[float], expected: list[float]
) -> None:
    found = test_then_rank(one_column(scores, metric), na=na)
    assert found.column_scores[:, 0].tolist() == wins
    assert found.rank.tolist() == expected


def test_challengers_worst_case_ties_all() -> None:
    """Five algorithms get the same five values in every one of the 120 orders: nothing can part them."""
    strip = np.linspace(0.8, 1, 5)
    orders = np.array(list(itertools.permutations(strip)))  # [cases, teams]
    table = one_column({f"A{t + 1}": orders[:, t].tolist() for t in range(5)})
    for method in METHODS:
        assert method(table).rank.tolist() == [1] * 5
    assert_allclose(rank_then_aggregate(table).column_scores[:, 0], 3)


def test_challengers_ideal_case_parts_all() -> None:
    """Algorithm k draws from an interval above that of k + 1: every method finds the same order."""
    random = np.random.default_rng(4)
    table = one_column(
        {f"A{k + 1}": random.uniform(0.9 - k / 10, 0.99 - k / 10, 50).tolist() for k in range(5)}
    )
    for method in METHODS:
        assert method(table).rank.tolist() == [1, 2, 3, 4, 5]
    assert test_then_rank(table).column_scores[:, 0].tolist() == [1, 0.75, 0.5, 0.25, 0]


def test_pairs_without_a_p_are_reported() -> None:
    found = test_then_rank(one_column({"A": [0.5, 0.6], "B": [0.5, 0.6], "C": [0.1, 0.2]}))
    assert found.untested == 2
    assert found.rank.tolist() == [1, 1, 1]


# --- aggregation


def test_quantiles_and_functions() -> None:
    scores: dict[str, list[float | None]] = {"A": [0.1, 0.9, 0.9, 0.9], "B": [0.5, 0.6, 0.6, 0.6]}
    assert ranks(aggregate_then_rank(one_column(scores), "median")) == {"A": 1, "B": 2}
    assert ranks(aggregate_then_rank(one_column(scores), 0.0)) == {"A": 2, "B": 1}
    assert ranks(aggregate_then_rank(one_column(scores), np.max)) == {"A": 1, "B": 2}
    assert aggregate_then_rank(one_column(scores), 0.05).column_scores[0, 0] == pytest.approx(
        np.quantile([0.1, 0.9, 0.9, 0.9], 0.05)
    )


def test_consensus_by_mean_rank() -> None:
    first = aggregate_then_rank(one_column({"A": [0.9], "B": [0.8], "C": [0.7]}))
    second = aggregate_then_rank(one_column({"C": [0.9], "A": [0.8], "B": [0.7]}))  # another order of teams
    found = consensus([first, second])
    assert found.teams == ("A", "B", "C")
    assert found.score.tolist() == [1.5, 2.5, 2]
    assert ranks(found) == {"A": 1, "C": 2, "B": 3}
    assert ranks(consensus([first, second], weights=[0, 1])) == {"C": 1, "A": 2, "B": 3}
    other = aggregate_then_rank(one_column({"A": [0.9], "D": [0.8]}))
    with pytest.raises(ValueError, match=re.escape("rankings[1]: expected the teams ['A', 'B', 'C']")):
        consensus([first, other])


# --- what must not matter

QUARTERS = st.integers(0, 64).map(lambda k: k / 64)


def tables(teams: int = 4, cases: int = 6, organs: int = 2) -> st.SearchStrategy[np.ndarray]:
    size = teams * cases * organs * 2
    return st.lists(QUARTERS, min_size=size, max_size=size).map(
        lambda v: np.array(v).reshape(teams, cases, organs, 2)
    )


@settings(max_examples=30, deadline=None)
@given(tables(), st.integers(-8, 8))
def test_a_constant_added_to_all_changes_nothing(values: np.ndarray, eighths: int) -> None:
    for method in METHODS:
        moved = method(many(values + eighths / 8))
        assert moved.column_ranks.tolist() == method(many(values)).column_ranks.tolist()


@settings(max_examples=30, deadline=None)
@given(tables(), st.randoms(use_true_random=False))
def test_order_of_teams_cases_and_organs_does_not_matter(values: np.ndarray, random: Any) -> None:
    order = [random.sample(range(n), n) for n in values.shape[:3]]
    mixed = values[np.ix_(*order)]
    for method in METHODS:
        for ties in ("min", "average"):
            plain, other = method(many(values), ties=ties), method(many(mixed[..., :]), ties=ties)
            assert other.rank.tolist() == plain.rank[order[0]].tolist()
            assert_allclose(other.score, plain.score[order[0]], rtol=1e-12)


@settings(max_examples=30, deadline=None)
@given(tables(), st.integers(0, 3))
def test_a_team_that_gains_everywhere_loses_no_rank(values: np.ndarray, team: int) -> None:
    better = values.copy()
    better[team] += 1 / 8
    for method in (segrap_ranking, aggregate_then_rank, rank_then_aggregate):
        before, after = method(many(values)), method(many(better))
        assert (after.column_ranks[team] <= before.column_ranks[team]).all()
        assert after.score[team] <= before.score[team] + 1e-12


@settings(max_examples=30, deadline=None)
@given(tables())
def test_ranks_are_ranks(values: np.ndarray) -> None:
    for method in METHODS:
        lowest, shared = method(many(values)), method(many(values), ties="average")
        assert lowest.rank.min() == 1
        assert_allclose(shared.column_ranks.sum(axis=0), 10)  # 1 + 2 + 3 + 4, however they tie
        assert ((lowest.column_ranks >= 1) & (lowest.column_ranks <= 4)).all()


def test_smaller_better_is_larger_better_turned() -> None:
    values = np.random.default_rng(5).random((4, 9, 1, 1))
    for method in METHODS:
        up = method(many(values, ("dsc",)))
        down = method(many(-values, ("hd95_dm",)))
        assert up.rank.tolist() == down.rank.tolist()


# --- refusals


def test_refusals() -> None:
    table = one_column({"A": [0.5], "B": [0.6]})
    for arguments, message in (
        ({"ties": "max"}, "ties: expected one of 'min', 'average', got 'max'"),
        ({"na": "na.rm"}, "na: expected 'error', 'drop', 'worst', a number or a function, got 'na.rm'"),
        ({"na": "worst"}, "na: expected 'error', 'drop', a number or a function for aggregate-then-rank"),
        ({"aggregate": "meanx"}, "aggregate: expected one of 'mean', 'median', got 'meanx'"),
        (
            {"aggregate": 1.5},
            "aggregate: expected 'mean', 'median', a quantile in [0, 1] or a function, got 1.5",
        ),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            aggregate_then_rank(table, **arguments)
    with pytest.raises(TypeError, match="na: expected"):
        aggregate_then_rank(table, na=None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="method: expected one of"):
        rank_by(table, Scheme("elo"))
    with pytest.raises(ValueError, match="table: expected two teams or more for a test, got 1"):
        test_then_rank(one_column({"A": [0.5]}))
    with pytest.raises(TypeError, match="table: expected a ScoreTable, got list"):
        segrap_ranking([])  # type: ignore[arg-type]
    two_tasks = ScoreTable.from_records(
        {"case": "c", "task": task, "metric": "dsc", "value": 1.0} for task in ("oar", "gtv")
    )
    with pytest.raises(ValueError, match=r"table: expected one task .* got \['oar', 'gtv'\]"):
        segrap_ranking(two_tasks)
    assert segrap_ranking(two_tasks.select(task="gtv")).rank.tolist() == [1]
