"""Quality of received pictures: PSNR, SSIM, MS-SSIM; of signals: NMSE and PAPR. All with gradients.

SSIM is not one number: libraries differ in window, border and size. `variant` says whose is met:

  "gaussian"      Wang et al. 2004: 11 taps, sigma 1.5, windows inside the picture (scikit-image with
                  gaussian_weights=True, use_sample_covariance=False; pytorch-msssim; piq without
                  downsampling)
  "uniform"       7x7 windows of equal weight, sample covariance (scikit-image's default)
  "torchmetrics"  as "gaussian" with a picture that is mirrored at its border
  "piq"           as "gaussian", after averaging down to a shorter side of about 256 pixels (piq's default)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tenfold import _arrays, _checks
from tenfold.metrics._base import base

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

SSIM_VARIANTS = ("gaussian", "uniform", "torchmetrics", "piq")
REDUCTIONS = ("mean", "none", "sum")
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Exponents of MS-SSIM's five scales (Wang, Simoncelli and Bovik 2003)."""

_SMALLEST = (11 - 1) * 2**4 + 1
_LEAST = 1e-6  # contrast terms below this count as this: a power of a negative number is NaN


def psnr(preds: Any, target: Any, data_range: float = 1.0, reduction: str = "mean") -> Any:
    """Peak signal-to-noise ratio 10 log10(data_range^2 / MSE) in dB, per picture.

    The mean is one of decibels over pictures, not the decibels of the mean error. Equal pictures have inf.

    Args:
        preds, target: [B, C, H, W], or [C, H, W] for one picture; any floating or integer dtype.
        data_range: largest minus smallest possible value.
        reduction: "mean" or "sum" over pictures, or "none", [B].

    Raises:
        TypeError, ValueError: shapes differ, or an argument is out of range.
    """
    x, y, kind = _pair(preds, target)
    span = _checks.real("data_range", data_range, positive=True)
    error = (x - y).square().mean((1, 2, 3))
    return kind(_reduced(10 * torch.log10(span**2 / error), reduction))


def ssim(
    preds: Any,
    target: Any,
    data_range: float = 1.0,
    reduction: str = "mean",
    *,
    variant: str = "gaussian",
    k1: float = 0.01,
    k2: float = 0.03,
) -> Any:
    """Structural similarity (Wang, Bovik, Sheikh and Simoncelli 2004), mean over channels, per picture.

    Args:
        preds, target, data_range, reduction: as for `psnr`.
        variant: whose windows and borders, see the module.

    Raises:
        TypeError, ValueError: as for `psnr`, or a picture smaller than a window.
    """
    x, y, kind = _pair(preds, target)
    _checks.choice("variant", variant, SSIM_VARIANTS)
    span = _checks.real("data_range", data_range, positive=True)
    if variant == "piq":
        factor = max(1, round(min(x.shape[-2:]) / 256))
        x, y = (torch.nn.functional.avg_pool2d(v, factor) for v in (x, y))
    taps = 7 if variant == "uniform" else 11
    if min(x.shape[-2:]) < taps:
        _checks.fail(ValueError, "preds", f"pictures of at least {taps} x {taps} pixels", tuple(x.shape))
    if variant == "torchmetrics":
        x, y = (torch.nn.functional.pad(v, (5, 5, 5, 5), mode="reflect") for v in (x, y))
    whole, _ = _similarity(x, y, _window(variant, x), span, (k1, k2), sample=variant == "uniform")
    return kind(_reduced(whole.mean((1, 2, 3)), reduction))


def ms_ssim(preds: Any, target: Any, data_range: float = 1.0, reduction: str = "mean") -> Any:
    """Multi-scale structural similarity over five halvings (Wang, Simoncelli and Bovik 2003), per picture.

    Means of the contrast term that are not positive, as of pictures that run against each other, count as
    1e-6: finite, and with finite gradients.

    Args:
        preds, target, data_range, reduction: as for `psnr`.

    Raises:
        TypeError, ValueError: as for `psnr`, or a side below 161 pixels, for which five scales do not exist.
    """
    x, y, kind = _pair(preds, target)
    span = _checks.real("data_range", data_range, positive=True)
    if min(x.shape[-2:]) < _SMALLEST:
        expected = f"pictures of at least {_SMALLEST} x {_SMALLEST} pixels (five scales)"
        _checks.fail(ValueError, "preds", expected, tuple(x.shape))
    value = torch.ones((), dtype=x.dtype, device=x.device)
    for scale, weight in enumerate(SCALE_WEIGHTS):
        whole, contrast = _similarity(x, y, _window("gaussian", x), span, (0.01, 0.03), sample=False)
        last = scale == len(SCALE_WEIGHTS) - 1
        value = value * (whole if last else contrast).mean((2, 3)).clamp_min(_LEAST) ** weight
        if not last:
            odd = [size % 2 for size in x.shape[-2:]]
            x, y = (torch.nn.functional.avg_pool2d(v, 2, padding=odd) for v in (x, y))
    return kind(_reduced(value.mean(1), reduction))


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
        self.data_range = _checks.real("data_range", data_range, positive=True)
        self.add_state("values", [], dist_reduce_fx="cat")

    def _score(self, preds: Any, target: Any) -> Tensor:
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


def _pair(preds: Any, target: Any) -> tuple[Tensor, Tensor, Any]:
    kind = _arrays.kind_of(preds)
    x, y = (_picture(n, v) for n, v in (("preds", preds), ("target", target)))
    if x.shape != y.shape:
        _checks.fail(ValueError, "preds", f"the shape of target, {tuple(y.shape)}", tuple(x.shape))
    if x.device != y.device:
        _checks.fail(ValueError, "preds", f"a tensor on {y.device}", x.device)
    wide = torch.promote_types(x.dtype, y.dtype)
    return x.to(wide), y.to(wide), kind


_KINDS = (
    torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.uint8, torch.int16, torch.int32,
    torch.int64,
)  # fmt: skip


def _picture(name: str, value: Any) -> Tensor:
    found = _checks.tensor(name, _arrays.as_tensor(name, value, write=False), _KINDS)
    if found.ndim not in (3, 4) or 0 in found.shape[-3:]:
        _checks.fail(ValueError, name, "shape [B, C, H, W] or [C, H, W]", tuple(found.shape))
    wide = found if found.dtype == torch.float64 else found.float()
    return wide[None] if wide.ndim == 3 else wide


def _signal(name: str, value: Any) -> Tensor:
    kinds = (torch.complex64, torch.complex128, torch.float32, torch.float64)
    found = _checks.tensor(name, _arrays.as_tensor(name, value, write=False), kinds)
    if found.ndim < 1:
        _checks.fail(ValueError, name, "shape [..., K]", tuple(found.shape))
    return found


def _reduced(values: Tensor, reduction: str) -> Tensor:
    _checks.choice("reduction", reduction, REDUCTIONS)
    return values if reduction == "none" else getattr(values, reduction)()


def _window(variant: str, like: Tensor) -> Tensor:
    """Taps along one axis; weights sum to one."""
    if variant == "uniform":
        return torch.full((7,), 1 / 7, dtype=like.dtype, device=like.device)
    at = torch.arange(-5, 6, dtype=torch.float64)
    taps = torch.exp(-at.square() / (2 * 1.5**2))
    return (taps / taps.sum()).to(like.device, like.dtype)


def _smoothed(x: Tensor, taps: Tensor) -> Tensor:
    """Weighted means of all windows inside the picture, one axis after the other."""
    channels = x.shape[1]
    down = taps.view(1, 1, -1, 1).expand(channels, 1, -1, 1)
    along = taps.view(1, 1, 1, -1).expand(channels, 1, 1, -1)
    x = torch.nn.functional.conv2d(x, down, groups=channels)
    return torch.nn.functional.conv2d(x, along, groups=channels)


def _similarity(
    x: Tensor, y: Tensor, taps: Tensor, span: float, k: tuple[float, float], *, sample: bool
) -> tuple[Tensor, Tensor]:
    """Similarity and its contrast part, per window."""
    c1, c2 = (k[0] * span) ** 2, (k[1] * span) ** 2
    mx, my = _smoothed(x, taps), _smoothed(y, taps)
    count = len(taps) ** 2
    unbiased = count / (count - 1) if sample else 1.0
    vx = unbiased * (_smoothed(x * x, taps) - mx * mx)
    vy = unbiased * (_smoothed(y * y, taps) - my * my)
    vxy = unbiased * (_smoothed(x * y, taps) - mx * my)
    contrast = (2 * vxy + c2) / (vx + vy + c2)
    return (2 * mx * my + c1) / (mx * mx + my * my + c1) * contrast, contrast
