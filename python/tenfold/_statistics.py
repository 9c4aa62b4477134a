"""Intervals and adjustments that several systems share."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


def bootstrap_mean(values: NDArray[np.float64], *, draws: int = 4000, seed: int = 0) -> tuple[float, float]:
    """95 % percentile interval of the mean of one number per test example, by resampling the examples.

    Where the number is an average over training seeds, the interval speaks of the choice of examples only;
    the spread between seeds is reported beside it.
    """
    count = len(values)
    if count < 1:
        raise ValueError("values: expected at least one number, got none")
    resamples = _resamples if draws * count <= 1 << 23 else _resamples.__wrapped__  # 64 MiB at most are kept
    low, high = np.percentile(resamples(count, draws, seed) @ values / count, [2.5, 97.5])
    return float(low), float(high)


@lru_cache(maxsize=1)
def _resamples(count: int, draws: int, seed: int) -> NDArray[np.float64]:
    """[draws, count]: how often each example is in each resample. Drawing takes nearly all of the time of an
    interval, and a report asks for hundreds of them over the same examples."""
    weights = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=draws)
    return weights.astype(np.float64)


def holm(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """Holm's adjusted p-values over the last axis; NaN stays NaN and is not counted, as in R's p.adjust."""
    data = np.asarray(p, dtype=np.float64)
    order = np.argsort(data, axis=-1, kind="stable")  # NaN last
    ordered = np.take_along_axis(data, order, axis=-1)
    number = (~np.isnan(data)).sum(axis=-1, keepdims=True)
    steps = ordered * np.maximum(number - np.arange(data.shape[-1]), 1)
    steps = np.where(np.isnan(ordered), -np.inf, steps)
    adjusted = np.minimum(np.maximum.accumulate(steps, axis=-1), 1.0)
    result = np.empty_like(data)
    np.put_along_axis(result, order, np.where(np.isnan(ordered), np.nan, adjusted), axis=-1)
    return result
