"""Intervals by resampling: what they are made of, and that keeping the resamples changes nothing."""

from __future__ import annotations

import numpy as np
import pytest

from tenfold import _statistics
from tenfold._statistics import bootstrap_mean


def test_an_interval_is_that_of_resampled_means() -> None:
    values = np.random.default_rng(3).random(40)
    low, high = bootstrap_mean(values, draws=500, seed=7)
    counts = np.random.default_rng(7).multinomial(40, np.full(40, 1 / 40), size=500)
    means = [np.repeat(values, row).mean() for row in counts]
    np.testing.assert_allclose((low, high), np.percentile(means, [2.5, 97.5]), rtol=1e-12)
    assert low < values.mean() < high
    with pytest.raises(ValueError, match="values: expected at least one number"):
        bootstrap_mean(np.empty(0))


def test_many_examples_are_not_kept() -> None:
    kept = _statistics._resamples
    kept.cache_clear()
    small = np.arange(5.0)
    first = bootstrap_mean(small, draws=50)
    assert bootstrap_mean(small, draws=50) == first
    assert (kept.cache_info().hits, kept.cache_info().currsize) == (1, 1)
    draws = (1 << 23) // 2000 + 1
    bootstrap_mean(np.arange(2000.0), draws=draws)
    assert kept.cache_info().misses == 1
    assert bootstrap_mean(small, draws=50) == first
