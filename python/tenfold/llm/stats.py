"""Intervals for accuracies on a held-out set."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Z95 = 1.959963984540054


def wilson(correct: int, total: int) -> tuple[float, float]:
    """95 % interval of a proportion (Wilson, 1927)."""
    if total < 1 or not 0 <= correct <= total:
        raise ValueError(f"correct: expected 0 to total >= 1, got {correct} of {total}")
    share, square = correct / total, Z95 * Z95
    centre = (share + square / (2 * total)) / (1 + square / total)
    half = Z95 * math.sqrt(share * (1 - share) / total + square / (4 * total * total)) / (1 + square / total)
    return max(0.0, centre - half), min(1.0, centre + half)


def bootstrap_mean(values: NDArray[np.float64], *, draws: int = 4000, seed: int = 0) -> tuple[float, float]:
    """95 % percentile interval of the mean of one number per test example, by resampling the examples.

    Where the number is an average over training seeds, the interval speaks of the choice of examples only;
    the spread between seeds is reported beside it.
    """
    count = len(values)
    if count < 1:
        raise ValueError("values: expected at least one number, got none")
    weights = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=draws)
    low, high = np.percentile(weights @ values / count, [2.5, 97.5])
    return float(low), float(high)
