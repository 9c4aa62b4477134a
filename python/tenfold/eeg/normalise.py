"""Scaling of features before adaptation.

Which rows the statistics come from decides what a result means. All forms but `source` use the target's own
unlabelled rows: they are transductive, for a target that is known as a whole before the first prediction.
`source` takes its statistics from the sources alone: inductive, usable on the target's first row.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from tenfold import _checks
from tenfold.eeg.protocols import Fold

__all__ = ["NORMALISATIONS", "is_transductive", "normalise", "normalise_fold"]

NORMALISATIONS = ("zscore", "minmax", "sample", "global", "source", "none")
"""`minmax`, `sample`, `global` and `none` are the four of MS-MDA (arXiv 2107.07740), whose code calls the
first one `ele`."""


def is_transductive(kind: str) -> bool:
    """Whether the statistics of the target's own rows are used."""
    return _checks.choice("kind", kind, NORMALISATIONS) in ("zscore", "minmax", "global")


def normalise(x: Tensor, kind: str) -> Tensor:
    """Rows of one domain, scaled by their own statistics.

    Args:
        x: float32 or float64 [n, d], one domain's rows.
        kind: ``"zscore"``, every column to mean 0 and (population) standard deviation 1; ``"minmax"``, every
            column to [0, 1]; ``"sample"``, every row to [0, 1]; ``"global"``, all values together to [0, 1];
            ``"none"``, as they are.

    Returns:
        A tensor of x's shape and dtype. What is constant up to rounding (column, row, all of x) becomes 0.

    Raises:
        ValueError: another kind, no rows, or not two dimensions. ``"source"`` needs :func:`normalise_fold`.
    """
    _checks.choice("kind", kind, [name for name in NORMALISATIONS if name != "source"])
    _check_rows(x)
    if kind == "none":
        return x
    if kind == "zscore":
        return _standardise(x, *_moments(x))
    dims = {"minmax": (0,), "sample": (1,), "global": (0, 1)}[kind]
    low, high = x.amin(dims, keepdim=True), x.amax(dims, keepdim=True)
    return _divide(x - low, _spread(high - low, torch.maximum(high.abs(), low.abs())))


def normalise_fold(fold: Fold, kind: str) -> Fold:
    """A fold with all its domains scaled: each by itself, or all by the pooled sources for ``"source"``.

    ``"source"`` is a z-score with mean and standard deviation of all source rows together; the target's rows
    have no part in it.
    """
    _checks.choice("kind", kind, NORMALISATIONS)
    if kind != "source":
        scaled = [replace(d, x=normalise(d.x, kind)) for d in (*fold.sources, fold.target)]
    else:
        mean, deviation = _moments(torch.cat([d.x for d in fold.sources]))
        scaled = [replace(d, x=_standardise(d.x, mean, deviation)) for d in (*fold.sources, fold.target)]
    return replace(fold, sources=tuple(scaled[:-1]), target=scaled[-1])


def _check_rows(x: Tensor) -> None:
    _checks.tensor("x", x, (torch.float32, torch.float64))
    if x.ndim != 2 or not x.numel():
        _checks.fail(ValueError, "x", "[n, d] with n, d >= 1", f"shape {tuple(x.shape)}")


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and population standard deviation per column, float64."""
    wide = x.double()
    mean = wide.mean(0)
    deviation = (wide - mean).square().mean(0).sqrt()
    return mean, _spread(deviation, wide.abs().amax(0), x.dtype)


def _spread(spread: Tensor, size: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """`spread`, or 0 where values of that size differ by their rounding alone."""
    return torch.where(spread <= torch.finfo(dtype or spread.dtype).eps * size, 0.0, spread)


def _standardise(x: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    return _divide(x.double() - mean, deviation).to(x.dtype)


def _divide(value: Tensor, by: Tensor) -> Tensor:
    """value / by, and 0 where `by` is 0."""
    return torch.where(by == 0, 0.0, value / torch.where(by == 0, 1.0, by))
