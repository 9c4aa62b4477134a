"""Intervals for accuracies on a held-out set."""

from __future__ import annotations

import math

from tenfold._statistics import bootstrap_mean

__all__ = ["bootstrap_mean", "wilson"]

Z95 = 1.959963984540054


def wilson(correct: int, total: int) -> tuple[float, float]:
    """95 % interval of a proportion (Wilson, 1927)."""
    if total < 1 or not 0 <= correct <= total:
        raise ValueError(f"correct: expected 0 to total >= 1, got {correct} of {total}")
    share, square = correct / total, Z95 * Z95
    centre = (share + square / (2 * total)) / (1 + square / total)
    half = Z95 * math.sqrt(share * (1 - share) / total + square / (4 * total * total)) / (1 + square / total)
    return max(0.0, centre - half), min(1.0, centre + half)
