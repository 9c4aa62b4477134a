"""Paired comparisons and adjusted p values."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tenfold.eeg.statistics import compare, holm, interval


def test_a_clear_difference() -> None:
    rng = np.random.default_rng(0)
    b = rng.uniform(0.5, 0.8, 15)
    a = b + rng.uniform(0.02, 0.2, 15)
    found = compare(a, b)
    assert found.difference == pytest.approx(float((a - b).mean()))
    assert 0 < found.low < found.difference < found.high
    assert (found.wins, found.ties, found.targets) == (15, 0, 15)
    assert found.p == pytest.approx(2 / 2**15)  # exact: all 15 signs alike


def test_no_difference() -> None:
    a = np.full(6, 0.7)
    found = compare(a, a.copy())
    assert (found.difference, found.wins, found.ties, found.p) == (0.0, 0, 6, 1.0)
    assert math.isnan(compare(a[:1], a[:1] - 0.1).p)


def test_the_interval_covers_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    samples = rng.normal(0.3, 0.1, (300, 20))
    hits = [low <= 0.3 <= high for low, high in (interval(s, draws=1000) for s in samples)]
    assert 0.88 < np.mean(hits) < 0.98


def test_holm() -> None:
    found = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005, "e": math.nan})
    assert found["d"] == pytest.approx(0.02)
    assert found["a"] == pytest.approx(0.03)
    assert found["c"] == pytest.approx(0.06)
    assert found["b"] == pytest.approx(0.06)  # never less than one before it
    assert math.isnan(found["e"])


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match=r"b: expected one value per target"):
        compare(np.zeros(3), np.zeros(4))
    with pytest.raises(ValueError, match=r"values: expected at least one"):
        interval(np.zeros(0))
