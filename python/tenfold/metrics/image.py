"""Quality of received pictures: PSNR, SSIM, MS-SSIM; of signals: NMSE and PAPR. All with gradients.

`psnr`, `ssim` and `ms_ssim` are those of `tenfold.ops`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tenfold import _arrays, _checks
from tenfold.metrics._base import base
from tenfold.ops.quality import SSIM_VARIANTS, ms_ssim, psnr, ssim

__all__ = [
    "SSIM_VARIANTS",
    "MultiScaleStructuralSimilarityIndexMeasure",
    "PeakSignalNoiseRatio",
    "StructuralSimilarityIndexMeasure",
    "ms_ssim",
    "nmse",
    "papr",
    "psnr",
    "ssim",
]


def nmse(received: Any, wanted: Any, dims: int = 1, *, db: bool = False) -> Any:
    """Squared error over the wanted signal's energy, along the last `dims` axes; complex or real.

    Raises:
        TypeError, ValueError: shapes differ or `dims` is out of range.
    """
    kind = _arrays.kind_of(received)
    x, y = (_signal(n, v) for n, v in (("received", received), ("wanted", wanted)))
    if x.shape != y.shape:
        _checks.fail(ValueError, "received", f"the shape of wanted, {tuple(y.shape)}", tuple(x.shape))
    axes = tuple(range(-_checks.integer("dims", dims, 1, x.ndim), 0))
    ratio = (x - y).abs().square().sum(axes) / y.abs().square().sum(axes)
    return kind(10 * torch.log10(ratio) if db else ratio)


def papr(signal: Any, *, oversampling: int = 4, db: bool = True) -> Any:
    """Peak over mean power of the OFDM symbol in time, whose K subcarriers are along the last axis.

    Args:
        signal: complex [..., K].
        oversampling: the peak is looked for at this many times K points.

    Raises:
        TypeError, ValueError: an argument of the wrong kind or out of range.
    """
    kind = _arrays.kind_of(signal)
    x = _signal("signal", signal)
    many = _checks.integer("oversampling", oversampling, 1, 64) * x.shape[-1]
    power = torch.fft.ifft(x, n=many).abs().square()
    ratio = power.amax(-1) / power.mean(-1)
    return kind(10 * torch.log10(ratio) if db else ratio)


class _Averaged(base()):  # type: ignore[misc]
    """Mean of one number per picture, over batches and processes."""

    values: Any
    full_state_update = False
    higher_is_better = True

    def __init__(self, data_range: float = 1.0, **options: Any) -> None:
        super().__init__(**options)
        self.data_range = _checks.real("data_range", data_range, at_least=1e-30, below=1e30)
        self.add_state("values", [], dist_reduce_fx="cat")

    def _score(self, preds: Any, target: Any) -> Tensor:
        """One number per picture [B]; each metric's own."""
        raise NotImplementedError

    def update(self, preds: Any, target: Any) -> None:
        """Take a batch [B, C, H, W] in."""
        self.values = [*self.values, torch.as_tensor(self._score(preds, target))]

    def compute(self) -> Tensor:
        """The mean over all pictures so far, of all processes."""
        return self._value(gather=True)

    def _value(self, gather: bool) -> Tensor:
        rows = self._gathered("values", gather) if hasattr(self, "_gathered") else self.values
        rows = rows if isinstance(rows, (list, tuple)) else [rows]
        if not rows:
            _checks.fail(RuntimeError, "compute", "a call of update before", "none")
        return torch.cat(list(rows)).mean()


class PeakSignalNoiseRatio(_Averaged):
    """`psnr` over batches: the mean of decibels over pictures.

    TorchMetrics' class of this name takes the decibels of the mean error by default; with
    `reduction="elementwise_mean", dim=(1, 2, 3)` it is this one.
    """

    def _score(self, preds: Any, target: Any) -> Tensor:
        found: Tensor = psnr(preds, target, self.data_range, "none")
        return found


class StructuralSimilarityIndexMeasure(_Averaged):
    """`ssim` over batches; `variant` as there."""

    def __init__(self, data_range: float = 1.0, *, variant: str = "gaussian", **options: Any) -> None:
        super().__init__(data_range, **options)
        self.variant = _checks.choice("variant", variant, SSIM_VARIANTS)

    def _score(self, preds: Any, target: Any) -> Tensor:
        found: Tensor = ssim(preds, target, self.data_range, "none", variant=self.variant)
        return found


class MultiScaleStructuralSimilarityIndexMeasure(_Averaged):
    """`ms_ssim` over batches."""

    def _score(self, preds: Any, target: Any) -> Tensor:
        found: Tensor = ms_ssim(preds, target, self.data_range, "none")
        return found


def _signal(name: str, value: Any) -> Tensor:
    kinds = (torch.complex64, torch.complex128, torch.float32, torch.float64)
    found = _checks.tensor(name, _arrays.as_tensor(name, value, write=False), kinds)
    if found.ndim < 1:
        _checks.fail(ValueError, name, "shape [..., K]", tuple(found.shape))
    return found
