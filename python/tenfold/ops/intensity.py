"""Exact statistics of integer intensities over many images, in a histogram instead of lists of voxels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tenfold import _arrays, _checks

_LOW, _HIGH = -(2**15), 2**16 - 1
DTYPES = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


class IntensityHistogram:
    """Counts of the values -32768 .. 65535; percentiles, mean and deviation come out exact.

    .. code-block:: python

        histogram = IntensityHistogram()
        for ct, foreground in cases:
            histogram.update(ct, foreground)
        low, high = histogram.percentiles([0.5, 99.5])
    """

    def __init__(self) -> None:
        self.counts = torch.zeros(_HIGH - _LOW + 1, dtype=torch.int64)

    def update(self, values: Any, mask: Any = None) -> IntensityHistogram:
        """Counts the values of an image, or of the voxels where mask is not zero.

        Args:
            values: integers in [-32768, 65535] of any shape.
            mask: of the same shape; None: all.

        Raises:
            TypeError, ValueError: wrong kinds, shapes or values.
        """
        values = _checks.tensor("values", _arrays.as_tensor("values", values, write=False), DTYPES)
        if mask is not None:
            mask = _arrays.as_tensor("mask", mask, write=False)
            if mask.shape != values.shape:
                _checks.fail(ValueError, "mask", f"shape {tuple(values.shape)} of values", tuple(mask.shape))
            values = values[mask != 0]
        if values.numel() == 0:
            return self
        low, high = (int(v) for v in values.aminmax())
        if low < _LOW or high > _HIGH:
            _checks.fail(ValueError, "values", f"integers in [{_LOW}, {_HIGH}]", f"{low} .. {high}")
        found = torch.bincount(values.reshape(-1).to(torch.int64) - low).cpu()
        self.counts[low - _LOW : high - _LOW + 1] += found
        return self

    def __len__(self) -> int:
        return int(self.counts.sum())

    def percentiles(self, q: Sequence[float]) -> list[float]:
        """Percentiles with linear interpolation, as numpy.percentile of all values at once.

        Raises:
            ValueError: q outside [0, 100], or nothing was counted.
        """
        total = self._total()
        ends = self.counts.cumsum(0)
        found = []
        for percent in q:
            p = _checks.real("q", percent, at_least=0.0)
            if p > 100:
                _checks.fail(ValueError, "q", "numbers in [0, 100]", p)
            at = (total - 1) * p / 100
            first = int(at)
            low, high = (self._value(ends, min(i, total - 1)) for i in (first, first + 1))
            found.append(low + (high - low) * (at - first))
        return found

    def statistics(self) -> dict[str, float]:
        """mean, std, median, min, max, percentile_00_5, percentile_99_5: what nnU-Net normalises CT with."""
        total = self._total()
        values = torch.arange(_LOW, _HIGH + 1, dtype=torch.float64)
        mean = float((self.counts * values).sum() / total)
        variance = float((self.counts * (values - mean) ** 2).sum() / total)
        low, median, high = self.percentiles([0.5, 50.0, 99.5])
        present = self.counts.nonzero()[:, 0] + _LOW
        return {
            "mean": mean,
            "std": variance**0.5,
            "median": median,
            "min": float(present[0]),
            "max": float(present[-1]),
            "percentile_00_5": low,
            "percentile_99_5": high,
        }

    def _total(self) -> int:
        total = len(self)
        if total == 0:
            _checks.fail(ValueError, "histogram", "at least one value", "none")
        return total

    @staticmethod
    def _value(ends: Tensor, rank: int) -> int:
        return int(torch.searchsorted(ends, rank, right=True)) + _LOW
