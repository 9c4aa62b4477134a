"""Weights and coresets that come from files: of `tenfold select`, of other runs, of published code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tenfold import _checks
from tenfold._npy import read_npy
from tenfold.selection.result import Selection, checked_indices, checked_weights
from tenfold.selection.reweight.config import CwermConfig

__all__ = ["given_coreset", "given_weights"]


def given_weights(config: CwermConfig, count: int) -> NDArray[np.float32]:
    """The weights of --given_weights, one for each of `count` rows."""
    path = Path(config.given_weights)
    if path.suffix == ".npy":
        try:
            found = read_npy(path)
        except (ValueError, OSError) as error:
            raise ValueError(f"given_weights: expected an array in {path}, got {error}") from error
        return checked_weights("given_weights", found, count)
    chosen = Selection.load(path)
    if chosen.weights is None or len(chosen) != count:
        _checks.fail(ValueError, "given_weights", f"weights of {count} rows", repr(chosen))
    return chosen.sample_weight(count)


def given_coreset(
    config: CwermConfig, count: int, rows: NDArray[np.int64]
) -> tuple[NDArray[np.int64], list[str]]:
    """The coreset of --coreset as positions among the training rows of a problem, ascending, and notes.

    Args:
        count: rows of the data set, which the file numbers.
        rows: which of them are the problem's training rows (a long tail and trusted rows leave some out).
    """
    wanted = np.sort(checked_indices("coreset", Selection.load(config.coreset).indices, count))
    if not len(wanted):
        _checks.fail(ValueError, "coreset", f"at least one row in {config.coreset}", "none")
    position = np.full(count, -1, np.int64)
    position[rows] = np.arange(len(rows))
    found = position[wanted]
    left = int((found < 0).sum())
    if left == len(wanted):
        _checks.fail(ValueError, "coreset", "rows that are trained on", f"none of {len(wanted)}")
    notes = [f"{left} rows of the given coreset are no training rows of this problem"] if left else []
    return found[found >= 0], notes
