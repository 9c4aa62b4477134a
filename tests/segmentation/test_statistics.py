"""Wilcoxon, Holm and Kendall against SciPy, against numbers worked out by hand, and on resamples."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from tenfold.segmentation.scores import ScoreTable
from tenfold.segmentation.statistics import (
    holm,
    kendall_tau,
    lowest_p,
    pairwise_p,
    significance,
    wilcoxon_greater,
    within_reach,
)

A = np.array([0.91, 0.88, 0.93, 0.90, 0.85, 0.95, 0.89, 0.92])
B = np.array([0.90, 0.86, 0.93, 0.91, 0.80, 0.94, 0.86, 0.88])

# Few distinct values make zeros and tied sizes common; sums of binary fractions tie exactly.
GRID = st.integers(-6, 6).map(lambda k: k / 8)


def by_hand(differences: list[float]) -> float:
    """The test written out: ranks of sizes, one by one."""
    d = [x for x in differences if x != 0]
    n = len(d)
    sizes = sorted(abs(x) for x in d)
    rank = {s: sum(i + 1 for i, x in enumerate(sizes) if x == s) / sizes.count(s) for s in sizes}
    positive = sum(rank[abs(x)] for x in d if x > 0)
    ties = sum(sizes.count(s) ** 3 - sizes.count(s) for s in set(sizes))
    variance = n * (n + 1) * (2 * n + 1) / 24 - ties / 48
    z = (positive - n * (n + 1) / 4 - 0.5) / math.sqrt(variance)
    return 0.5 * math.erfc(z / math.sqrt(2))


def test_wilcoxon_of_the_example() -> None:
    assert wilcoxon_greater(A - B) == pytest.approx(0.025121459564688958, rel=1e-14)
    assert wilcoxon_greater(B - A) == pytest.approx(0.9833373161307347, rel=1e-14)


def test_four_equal_differences() -> None:
    # W+ = 10, mean 5, variance 4*5*9/24 - (4^3 - 4)/48 = 6.25: z = 4.5 / 2.5
    assert wilcoxon_greater(np.full(4, 0.8)) == pytest.approx(0.5 * math.erfc(1.8 / math.sqrt(2)), rel=1e-15)


def test_no_difference_has_no_p() -> None:
    assert np.isnan(wilcoxon_greater(np.zeros(5)))
    assert np.isnan(wilcoxon_greater(np.full(5, np.nan)))
    assert np.isnan(wilcoxon_greater(np.zeros(0)))


@settings(max_examples=200, deadline=None)
@given(st.lists(GRID, min_size=1, max_size=25).filter(any))
def test_wilcoxon_is_the_one_written_out(differences: list[float]) -> None:
    assert wilcoxon_greater(np.array(differences)) == pytest.approx(by_hand(differences), rel=1e-12)


def test_wilcoxon_is_scipys() -> None:
    stats = pytest.importorskip("scipy.stats", reason="SciPy is the oracle and is not installed")
    random = np.random.default_rng(1)
    for _ in range(60):
        n = int(random.integers(5, 80))
        a, b = random.random((2, n)).round(int(random.integers(1, 5)))
        for alternative, differences in (("greater", a - b), ("less", b - a)):
            oracle = stats.wilcoxon(
                a, b, alternative=alternative, method="asymptotic", correction=True, zero_method="wilcox"
            )
            assert wilcoxon_greater(differences) == pytest.approx(oracle.pvalue, rel=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.lists(GRID, min_size=3, max_size=12), st.integers(0, 2**32 - 1))
def test_drawn_cases_count_as_often_as_they_were_drawn(differences: list[float], seed: int) -> None:
    d = np.array(differences)
    counts = np.random.default_rng(seed).multinomial(len(d), np.full(len(d), 1 / len(d)), 5).astype(float)
    found = wilcoxon_greater(d, counts)
    for p, row in zip(found, counts, strict=True):
        alone = wilcoxon_greater(np.repeat(d, row.astype(int)))
        assert_allclose(p, alone, rtol=1e-12)


def test_incomplete_pairs_are_left_out() -> None:
    d = A - B
    with_gap = np.append(d, np.nan)
    assert wilcoxon_greater(with_gap) == wilcoxon_greater(d)


def test_pairs_of_teams() -> None:
    scores = np.stack([A, B, A])
    p = pairwise_p(scores)
    assert p[0, 1] == pytest.approx(0.025121459564688958, rel=1e-14)
    assert p[1, 0] == pytest.approx(0.9833373161307347, rel=1e-14)
    assert np.isnan(p[[0, 1, 2, 0, 2], [0, 1, 2, 2, 0]]).all()


def test_wilcoxon_refuses() -> None:
    with pytest.raises(ValueError, match=r"differences: expected finite numbers or NaN, got an infinite one"):
        wilcoxon_greater(np.array([1.0, np.inf]))
    with pytest.raises(ValueError, match=r"counts: expected shape \(samples, 3\), got \(2, 2\)"):
        wilcoxon_greater(np.ones(3), np.ones((2, 2)))


def test_holm_by_hand() -> None:
    # ordered .01 .02 .03 .04 -> times 4 3 2 1 = .04 .06 .06 .04, made non-decreasing
    assert_allclose(holm(np.array([0.03, 0.01, 0.04, 0.02])), [0.06, 0.04, 0.06, 0.06])
    assert_allclose(holm(np.array([0.5, 0.9])), [1.0, 1.0])


def test_holm_leaves_out_what_has_no_p() -> None:
    found = holm(np.array([0.01, np.nan, 0.04]))
    assert_allclose(found, [0.02, np.nan, 0.04])


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_is_between_p_and_bonferroni(p: list[float]) -> None:
    found = holm(np.array(p))
    assert (found >= np.array(p)).all()
    assert (found <= np.minimum(1, len(p) * np.array(p)) + 1e-15).all()
    assert (np.diff(found[np.argsort(p, kind="stable")]) >= 0).all()


def test_kendall_by_hand() -> None:
    assert kendall_tau(np.array([1, 2, 3, 4]), np.array([1, 2, 3, 4])) == 1
    assert kendall_tau(np.array([1, 2, 3, 4]), np.array([4, 3, 2, 1])) == -1
    # 1-2-3 against 1-3-2: two pairs agree, one does not
    assert kendall_tau(np.array([1, 2, 3]), np.array([1, 3, 2])) == pytest.approx(1 / 3)
    # one tie on the right: 2 concordant of sqrt(3 * 2)
    assert kendall_tau(np.array([1, 2, 3]), np.array([1, 2, 2])) == pytest.approx(2 / math.sqrt(6))
    assert np.isnan(kendall_tau(np.array([1, 2, 3]), np.array([1, 1, 1])))


def test_kendall_is_scipys() -> None:
    stats = pytest.importorskip("scipy.stats", reason="SciPy is the oracle and is not installed")
    random = np.random.default_rng(2)
    x = random.integers(1, 6, 9)
    ys = random.integers(1, 6, (40, 9))
    assert_allclose(kendall_tau(x, ys), [stats.kendalltau(x, y).statistic for y in ys], rtol=1e-12)


def three_teams() -> ScoreTable:
    random = np.random.default_rng(3)
    good = random.uniform(0.7, 0.9, (20, 2))
    rows = {"good": good, "same": good, "bad": good - random.uniform(0.0, 0.1, (20, 2))}
    return ScoreTable.from_records(
        {"team": team, "case": f"c{c}", "organ": f"o{o}", "metric": "dsc", "value": values[c, o]}
        for team, values in rows.items() for c in range(20) for o in range(2)
    )  # fmt: skip


def test_significance_of_teams() -> None:
    found = significance(three_teams(), "dsc")
    assert found.cases == 20
    assert found.better.tolist() == [[False, False, True], [False, False, True], [False, False, False]]
    assert found.untested == 2  # good and same, both ways
    # of six ordered pairs four have a p; the two smallest are equal and take factors 4 and 3
    assert found.adjusted[0, 2] == pytest.approx(4 * found.p[0, 2])
    pooled = significance(three_teams(), "dsc", pooled=True, adjust="none")
    assert pooled.p[0, 2] < found.p[0, 2]
    assert (pooled.p == pooled.adjusted)[~np.isnan(pooled.p)].all()


def test_significance_refuses() -> None:
    with pytest.raises(ValueError, match=r"metrics: expected names among \['dsc'\], got 'nsd'"):
        significance(three_teams(), "nsd")
    with pytest.raises(ValueError, match=r"adjust: expected one of 'none', 'holm', got 'bh'"):
        significance(three_teams(), "dsc", adjust="bh")
    with pytest.raises(ValueError, match=r"alpha: expected a finite number > 0 < 1"):
        significance(three_teams(), "dsc", alpha=1.5)


def test_the_smallest_p_of_so_many_cases() -> None:
    rng = np.random.default_rng(0)
    for cases in (1, 3, 6, 10):
        least = lowest_p(cases)
        assert (
            np.nan_to_num(pairwise_p(rng.integers(0, 4, (20, cases)).astype(float)), nan=1) >= least
        ).all()
    assert lowest_p(6) < 0.05 < lowest_p(3)
    assert within_reach(2, 6, 0.05)
    assert not within_reach(8, 6, 0.05)
    assert within_reach(8, 20, 0.05)
