"""Statistics of methods over targets: means, intervals, paired tests.

The unit is the target subject: seeds and sessions of a subject are averaged first, for they are not
independent. Folds of leave-one-subject-out share most of their sources; intervals over targets therefore
speak of other targets with sources like these, no more.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Comparison", "compare", "holm", "interval"]


@dataclass(frozen=True)
class Comparison:
    """Method a against method b, paired over targets.

    Attributes:
        difference: mean of a - b.
        low, high: 95 % bootstrap interval of it.
        wins, ties, targets: targets on which a is better, equal, all.
        p: two-sided Wilcoxon signed-rank; NaN with fewer than two targets, 1 where nothing differs.
    """

    difference: float
    low: float
    high: float
    wins: int
    ties: int
    targets: int
    p: float


def interval(values: NDArray[np.float64], *, draws: int = 10_000, seed: int = 0) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean of one value per target (n >= 1)."""
    count = len(values)
    if not count:
        raise ValueError("values: expected at least one number, got none")
    weights = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=draws)
    low, high = np.percentile(weights @ values / count, [2.5, 97.5])
    return float(low), float(high)


def compare(a: NDArray[np.float64], b: NDArray[np.float64]) -> Comparison:
    """Paired comparison; a and b hold one value per target, in the same order."""
    if a.shape != b.shape or a.ndim != 1 or not len(a):
        raise ValueError(f"b: expected one value per target as in a {a.shape}, got {b.shape}")
    d = np.round(a - b, 12)
    low, high = interval(d)
    return Comparison(
        float(d.mean()), low, high, int((d > 0).sum()), int((d == 0).sum()), len(d), _wilcoxon(d)
    )


def _wilcoxon(d: NDArray[np.float64]) -> float:
    if len(d) < 2:
        return float("nan")
    if not d.any():
        return 1.0
    from scipy.stats import wilcoxon

    return float(wilcoxon(d, zero_method="wilcox", method="auto").pvalue)


def holm(p: dict[str, float]) -> dict[str, float]:
    """p values adjusted for their number (Holm 1979); NaN stays NaN."""
    known = sorted((value, name) for name, value in p.items() if value == value)
    adjusted, worst = dict(p), 0.0
    for rank, (value, name) in enumerate(known):
        worst = max(worst, min(1.0, (len(known) - rank) * value))
        adjusted[name] = worst
    return adjusted
