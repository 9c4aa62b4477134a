"""Statistics of methods over targets: means, intervals, paired tests.

The unit is the target subject: seeds and sessions of a subject are averaged first, for they are not
independent. Folds of leave-one-subject-out share most of their sources; intervals over targets therefore
speak of other targets with sources like these, no more.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tenfold._statistics import bootstrap_mean
from tenfold._statistics import holm as adjusted_by_holm

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
    return bootstrap_mean(values, draws=draws, seed=seed)


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
    adjusted = adjusted_by_holm(np.array(list(p.values()), dtype=np.float64))
    return dict(zip(p, adjusted.tolist(), strict=True))
