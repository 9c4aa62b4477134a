"""Two-sample Kolmogorov-Smirnov test, area under the ROC curve, harmonic mean."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["KSResult", "auc", "harmonic_mean", "ks_2samp"]

EXACT_LIMIT = 10_000


class KSResult(NamedTuple):
    """Largest distance of the two empirical distributions, its two-sided p-value, and log10 of that."""

    statistic: float
    pvalue: float
    log10_pvalue: float


def ks_2samp(first: Sequence[float] | Any, second: Sequence[float] | Any) -> KSResult:
    """Two-sided Kolmogorov-Smirnov test that two samples come from one continuous distribution.

    Up to 10,000 values per sample the p-value is exact: the share of all ways of merging the two samples that
    reach the distance, by a recursion that only adds positive numbers, so that 1e-200 is right to its last
    digits; where it underflows, ``log10_pvalue`` still has it. Beyond, Kolmogorov's limit is used.

    Raises:
        ValueError: an empty sample, or one with a NaN.
    """
    a, b = _sample("first", first), _sample("second", second)
    every = np.concatenate((a, b))
    below_a = np.searchsorted(a, every, side="right")
    below_b = np.searchsorted(b, every, side="right")
    # in units of 1 / lcm, exactly
    m, n = len(a), len(b)
    unit = math.gcd(m, n)
    steps = int(np.abs(below_a * (n // unit) - below_b * (m // unit)).max())
    distance = steps / (m // unit * n)
    if steps == 0:
        return KSResult(0.0, 1.0, 0.0)
    if max(m, n) > EXACT_LIMIT:
        return _limit(distance, m * n / (m + n))
    p = _share_outside(m, n, steps)
    logarithm = math.log10(p) if p > 1e-290 else _log_share_outside(m, n, steps) / math.log(10)
    return KSResult(distance, p, logarithm)


def _sample(name: str, values: Any) -> NDArray[np.float64]:
    found = np.sort(np.asarray(values, dtype=np.float64).ravel())
    if not len(found) or np.isnan(found).any():
        raise ValueError(f"{name}: expected numbers, got {'a NaN' if len(found) else 'an empty sample'}")
    return found


def _diagonals(m: int, n: int, steps: int) -> Any:
    """For each s = i + j: the i that there are, and which of their lattice points lie outside."""
    unit = math.gcd(m, n)
    for s in range(1, m + n + 1):
        i = np.arange(max(0, s - n), min(m, s) + 1)
        yield s, i, np.abs(i * (n // unit) - (s - i) * (m // unit)) >= steps


def _share_outside(m: int, n: int, steps: int) -> float:
    """Share of the lattice paths from (0, 0) to (m, n) that touch a point (i, j) with |i/m - j/n| >= D.

    Of the paths to (i, j), i in i + j come from (i - 1, j) (Hodges, 1958).
    """
    share = np.zeros(m + 2)  # at place i + 1
    for s, i, outside in _diagonals(m, n, steps):
        new = np.zeros_like(share)
        new[i + 1] = np.where(outside, 1.0, (i * share[i] + (s - i) * share[i + 1]) / s)
        share = new
    return float(min(1.0, share[m + 1]))


def _log_share_outside(m: int, n: int, steps: int) -> float:
    """Natural logarithm of the same."""
    share = np.full(m + 2, -np.inf)
    with np.errstate(divide="ignore"):
        for s, i, outside in _diagonals(m, n, steps):
            new = np.full_like(share, -np.inf)
            joined = np.logaddexp(np.log(i) + share[i], np.log(s - i) + share[i + 1]) - math.log(s)
            new[i + 1] = np.where(outside, 0.0, joined)
            share = new
    return float(min(0.0, share[m + 1]))


def _limit(distance: float, size: float) -> KSResult:
    """2 sum (-1)^(k-1) exp(-2 k^2 size distance^2)."""
    x = 2 * size * distance * distance
    terms = [2 * (-1) ** (k - 1) * math.exp(-k * k * x) for k in range(1, 101)]
    p = min(1.0, max(0.0, math.fsum(terms))) if x > 0.02 else 1.0
    return KSResult(distance, p, math.log10(p) if p > 0 else (math.log(2) - x) / math.log(10))


def auc(positive: Sequence[float] | Any, negative: Sequence[float] | Any) -> float:
    """Probability that a positive's score is above a negative's, ties counted half.

    Raises:
        ValueError: an empty sample, or one with a NaN.
    """
    p, q = _sample("positive", positive), _sample("negative", negative)
    below, upto = np.searchsorted(q, p, side="left"), np.searchsorted(q, p, side="right")
    return float((below + upto).sum() / (2 * len(p) * len(q)))


def harmonic_mean(values: Sequence[float]) -> float:
    """Harmonic mean of numbers >= 0; 0 where one is 0.

    Raises:
        ValueError: no numbers, or a negative one.
    """
    if not values or min(values) < 0:
        raise ValueError(f"values: expected numbers >= 0, got {list(values)}")
    return 0.0 if min(values) == 0 else len(values) / math.fsum(1 / value for value in values)
