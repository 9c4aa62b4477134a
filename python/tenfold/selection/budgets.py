"""How many rows: a count or a share, of all rows or of each class."""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tenfold import _checks

__all__ = ["budget_size", "class_budgets"]


def budget_size(budget: Any, n: int, name: str = "budget") -> int:
    """A budget as a number of rows: an integer is one already, a float is a share of `n`.

    A share r keeps floor(r n + 1/2) rows. Python's `round` would keep 2 of 5 at one half and 4 of 7: it
    rounds halves to even numbers.

    Raises:
        TypeError: neither an integer nor a float.
        ValueError: a count outside 0 .. n, or a share outside (0, 1].
    """
    if isinstance(budget, (float, np.floating)):
        share = float(budget)
        if not 0.0 < share <= 1.0:
            _checks.fail(ValueError, name, "a share in (0, 1]", share)
        return min(n, math.floor(share * n + 0.5))
    if isinstance(budget, bool):
        _checks.fail(TypeError, name, "an integer or a share in (0, 1]", budget)
    try:
        count = operator.index(budget)
    except TypeError:
        _checks.fail(TypeError, name, "an integer or a share in (0, 1]", _checks.describe(budget))
    if not 0 <= count <= n:
        _checks.fail(ValueError, name, f"at least 0 and at most the {n} rows", count)
    return count


def class_budgets(counts: Any, budget: int, how: str = "proportional") -> NDArray[np.int64]:
    """Rows of each class that together make `budget`.

    "proportional": class c has its share budget * n_c / N, rounded down; what is left goes to the largest
    remainders, the smaller class first (the method of largest remainders, in integers).
    "equal": the same for each class; what a small class cannot fill is shared by the larger ones.

    Raises:
        ValueError: "equal" where a class has no members; a budget above the number of rows.
    """
    sizes = np.asarray(counts, np.int64)
    total = int(sizes.sum())
    budget = _checks.integer("budget", budget, 0, total)
    if _checks.choice("balanced", how, ("proportional", "equal")) == "equal":
        empty = np.flatnonzero(sizes == 0)
        if budget and len(empty):
            _checks.fail(ValueError, "balanced", "members of every class", f"none of class {empty[0]}")
        return _water_fill(sizes, budget)
    if total == 0:
        return np.zeros_like(sizes)
    shares = [budget * int(size) for size in sizes]  # Python's integers: no overflow
    kept = np.array([share // total for share in shares], np.int64)
    order = sorted(range(len(sizes)), key=lambda c: (-(shares[c] % total), c))
    kept[order[: budget - int(kept.sum())]] += 1
    return kept


def _water_fill(sizes: NDArray[np.int64], budget: int) -> NDArray[np.int64]:
    from tenfold.ops import stratified_budget

    filled: NDArray[np.int64] = np.asarray(stratified_budget(sizes, budget))
    return filled
