"""Quality of received pictures: PSNR, SSIM and MS-SSIM, with gradients, from pictures read once each way.

SSIM is not one number: libraries differ in window, border and size. `variant` says whose is met:

  "gaussian"      Wang et al. 2004: 11 taps, sigma 1.5, windows inside the picture (scikit-image with
                  gaussian_weights=True, use_sample_covariance=False; pytorch-msssim; piq without
                  downsampling)
  "uniform"       7x7 windows of equal weight, sample covariance (scikit-image's default)
  "torchmetrics"  as "gaussian" with a picture that is mirrored at its border
  "piq"           as "gaussian", after averaging down to a shorter side of about 256 pixels (piq's default)
"""

from __future__ import annotations

from math import frexp
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from tenfold import _arrays, _checks
from tenfold._backend import OPS, chosen_backend

OPS |= {
    "image_similarity": ("cpu", "cuda", "triton", "reference"),
    "image_squared_error": ("cpu", "cuda", "triton", "reference"),
}

SSIM_VARIANTS = ("gaussian", "uniform", "torchmetrics", "piq")
REDUCTIONS = ("mean", "none", "sum")
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Exponents of MS-SSIM's five scales (Wang, Simoncelli and Bovik 2003)."""

_SMALLEST = (11 - 1) * 2**4 + 1
_LEAST = 1e-6  # contrast terms below this count as this: a power of a negative number is NaN
_NATIVE = (*_checks.FLOAT_DTYPES, torch.uint8)
_KINDS = (*_NATIVE, torch.int16, torch.int32, torch.int64)

_LIBRARY = torch.library.Library("tenfold", "FRAGMENT")
_OPTIONS = "str window, float c1, float c2, float scale, bool contrast"
_LIBRARY.define(
    f"image_similarity(Tensor x, Tensor y, {_OPTIONS}, bool pool) -> (Tensor means, Tensor px, Tensor py)"
)
_LIBRARY.define(
    "image_similarity_backward(Tensor grad, Tensor? grad_px, Tensor? grad_py, Tensor x, Tensor y, "
    f"{_OPTIONS}, bool for_x, bool for_y) -> (Tensor, Tensor)"
)
_LIBRARY.define("image_squared_error(Tensor x, Tensor y) -> Tensor")
_LIBRARY.define(
    "image_squared_error_backward(Tensor grad, Tensor x, Tensor y, bool for_x, bool for_y) "
    "-> (Tensor, Tensor)"
)


def psnr(preds: Any, target: Any, data_range: float = 1.0, reduction: str = "mean") -> Any:
    """Peak signal-to-noise ratio 10 log10(data_range^2 / MSE) in dB, per picture.

    The mean is one of decibels over pictures, not the decibels of the mean error. Equal pictures have inf
    and, there being nothing to improve, a gradient of zero. Differentiable once.

    Args:
        preds, target: [B, C, H, W], or [C, H, W] for one picture; any floating or integer dtype, any strides.
        data_range: largest minus smallest possible value, in [1e-30, 1e30).
        reduction: "mean" or "sum" over pictures, or "none", [B].

    Raises:
        TypeError, ValueError: shapes differ, or an argument is out of range.
        RuntimeError: a forced backend that cannot run, or a second derivative.
    """
    x, y, kind = _pair(preds, target)
    span = _span(data_range)
    _checks.choice("reduction", reduction, REDUCTIONS)
    error = torch.ops.tenfold.image_squared_error(x, y)
    return kind(_reduced(10 * torch.log10(span**2 / error), reduction).to(_wide(x, y)))


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

    Moments are made in tiles that stay in the cache; beside the result, and in the backward pass the
    gradient, nothing of the size of a picture is made ("torchmetrics" and "piq" make a mirrored or smaller
    copy first). Arithmetic is float32, float64 for float64 pictures, and means are taken in float64; the
    result does not depend on the number of threads. Differentiable once.

    Args:
        preds, target, data_range, reduction: as for `psnr`.
        variant: whose windows and borders: "gaussian" (Wang et al.; scikit-image with gaussian_weights=True,
            use_sample_covariance=False; pytorch-msssim), "uniform" (scikit-image's default), "torchmetrics"
            or "piq".
        k1, k2: the constants are (k1 data_range)^2 and (k2 data_range)^2.

    Raises:
        TypeError, ValueError: as for `psnr`, or a picture smaller than a window.
        RuntimeError: as for `psnr`.
    """
    x, y, kind = _pair(preds, target)
    _checks.choice("variant", variant, SSIM_VARIANTS)
    _checks.choice("reduction", reduction, REDUCTIONS)
    constants = _constants(data_range, k1, k2)
    wide = _wide(x, y)
    if variant == "piq":
        factor = max(1, round(min(x.shape[-2:]) / 256))
        if factor > 1:
            x, y = (torch.nn.functional.avg_pool2d(v.to(wide), factor) for v in (x, y))
    taps = 7 if variant == "uniform" else 11
    if min(x.shape[-2:]) < taps:
        _checks.fail(ValueError, "preds", f"pictures of at least {taps} x {taps} pixels", tuple(x.shape))
    if variant == "torchmetrics":
        x, y = (torch.nn.functional.pad(v.to(wide), (5, 5, 5, 5), mode="reflect") for v in (x, y))
    window = "uniform" if variant == "uniform" else "gaussian"
    means, _, _ = torch.ops.tenfold.image_similarity(x, y, window, *constants, False, False)
    return kind(_reduced(means.mean(1), reduction).to(wide))


def ms_ssim(preds: Any, target: Any, data_range: float = 1.0, reduction: str = "mean") -> Any:
    """Multi-scale structural similarity over five halvings (Wang, Simoncelli and Bovik 2003), per picture.

    Means of the contrast term that are not positive, as of pictures that run against each other, count as
    1e-6: finite, and with finite gradients. The pass over a scale makes the next one, a quarter of its size.

    Args:
        preds, target, data_range, reduction: as for `psnr`.

    Raises:
        TypeError, ValueError: as for `psnr`, or a side below 161 pixels, for which five scales do not exist.
        RuntimeError: as for `psnr`.
    """
    x, y, kind = _pair(preds, target)
    _checks.choice("reduction", reduction, REDUCTIONS)
    constants = _constants(data_range, 0.01, 0.03)
    if min(x.shape[-2:]) < _SMALLEST:
        expected = f"pictures of at least {_SMALLEST} x {_SMALLEST} pixels (five scales)"
        _checks.fail(ValueError, "preds", expected, tuple(x.shape))
    wide = _wide(x, y)
    value = None
    for scale, weight in enumerate(SCALE_WEIGHTS):
        last = scale == len(SCALE_WEIGHTS) - 1
        means, x, y = torch.ops.tenfold.image_similarity(x, y, "gaussian", *constants, not last, not last)
        part = means.clamp_min(_LEAST) ** weight
        value = part if value is None else value * part
    assert value is not None
    return kind(_reduced(value.mean(1), reduction).to(wide))


# ---- checks ----------------------------------------------------------------------------------------------


def _pair(preds: Any, target: Any) -> tuple[Tensor, Tensor, Any]:
    kind = _arrays.kind_of(preds)
    x, y = (_picture(n, v) for n, v in (("preds", preds), ("target", target)))
    if x.shape != y.shape:
        _checks.fail(ValueError, "preds", f"the shape of target, {tuple(y.shape)}", tuple(x.shape))
    if x.device != y.device:
        _checks.fail(ValueError, "preds", f"a tensor on {y.device}", x.device)
    return x, y, kind


def _picture(name: str, value: Any) -> Tensor:
    found = _checks.tensor(name, _arrays.as_tensor(name, value, write=False), _KINDS)
    if found.ndim not in (3, 4) or 0 in found.shape[-3:]:
        _checks.fail(ValueError, name, "shape [B, C, H, W] or [C, H, W]", tuple(found.shape))
    if found.dtype not in _NATIVE:
        found = found.float()
    return found[None] if found.ndim == 3 else found


def _wide(x: Tensor, y: Tensor) -> torch.dtype:
    return torch.float64 if torch.float64 in (x.dtype, y.dtype) else torch.float32


def _span(data_range: Any) -> float:
    return _checks.real("data_range", data_range, at_least=1e-30, below=1e30)


def _constants(data_range: Any, k1: Any, k2: Any) -> tuple[float, float, float]:
    """c1, c2, and the power of two that brings data_range into [1/2, 1): float32 then holds its squares."""
    span = _span(data_range)
    k1, k2 = (_checks.real(name, k, at_least=0.0, below=1e6) for name, k in (("k1", k1), ("k2", k2)))
    scale = 2.0 ** -frexp(span)[1]
    return (k1 * span * scale) ** 2, (k2 * span * scale) ** 2, scale


def _reduced(values: Tensor, reduction: str) -> Tensor:
    return values if reduction == "none" else getattr(values, reduction)()


# ---- kernels ---------------------------------------------------------------------------------------------


def _kernels(op: str, device: torch.device) -> ModuleType:
    backend = chosen_backend(op, device.type)
    if backend == "reference":
        from tenfold.kernels.quality import quality_reference as module
    elif backend == "triton":
        from tenfold.kernels.quality import quality_triton as module
    else:
        from tenfold.kernels.quality import quality_native as module
    return module


def _similarity(
    x: Tensor, y: Tensor, window: str, c1: float, c2: float, scale: float, contrast: bool, pool: bool
) -> tuple[Tensor, Tensor, Tensor]:
    from tenfold.kernels.quality.quality_reference import Options

    options = Options(window, c1, c2, scale, contrast)
    means, px, py = _kernels("image_similarity", x.device).similarity(x, y, options, pool)
    return means, px, py


def _similarity_backward(
    grad: Tensor,
    grad_px: Tensor | None,
    grad_py: Tensor | None,
    x: Tensor,
    y: Tensor,
    window: str,
    c1: float,
    c2: float,
    scale: float,
    contrast: bool,
    for_x: bool,
    for_y: bool,
) -> tuple[Tensor, Tensor]:
    from tenfold.kernels.quality.quality_reference import Options

    dx, dy = _gradient_like(x, for_x), _gradient_like(y, for_y)
    _kernels("image_similarity", x.device).similarity_backward(
        grad.double().contiguous(),
        x,
        y,
        (grad_px if for_x else None, grad_py if for_y else None),
        Options(window, c1, c2, scale, contrast),
        (dx if for_x else None, dy if for_y else None),
    )
    return dx, dy


def _squared_error(x: Tensor, y: Tensor) -> Tensor:
    found: Tensor = _kernels("image_squared_error", x.device).squared_error(x, y)
    return found


def _squared_error_backward(
    grad: Tensor, x: Tensor, y: Tensor, for_x: bool, for_y: bool
) -> tuple[Tensor, Tensor]:
    dx, dy = _gradient_like(x, for_x), _gradient_like(y, for_y)
    out = (dx if for_x else None, dy if for_y else None)
    _kernels("image_squared_error", x.device).squared_error_backward(grad.double().contiguous(), x, y, out)
    return dx, dy


def _gradient_like(x: Tensor, wanted: bool) -> Tensor:
    return torch.empty_like(x) if wanted else x.new_empty(0)


def _fake_similarity(x: Tensor, y: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    batch, channels, height, width = x.shape
    shape = (batch, channels, (height + 1) // 2, (width + 1) // 2) if rest[-1] else (0,)
    means = x.new_empty((batch, channels), dtype=torch.float64)
    return means, x.new_empty(shape, dtype=_wide(x, y)), x.new_empty(shape, dtype=_wide(x, y))


def _fake_gradients(x: Tensor, y: Tensor, for_x: bool, for_y: bool) -> tuple[Tensor, Tensor]:
    return _gradient_like(x, for_x), _gradient_like(y, for_y)


def _setup_similarity(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, y, *ctx.options, ctx.pooled = inputs
    ctx.save_for_backward(x, y)


def _setup_squared_error(ctx: Any, inputs: tuple[Tensor, Tensor], output: Any) -> None:
    ctx.save_for_backward(*inputs)


def _similarity_gradient(ctx: Any, grad: Tensor, grad_px: Tensor, grad_py: Tensor) -> tuple[Any, ...]:
    x, y = ctx.saved_tensors
    needs = ctx.needs_input_grad[:2]
    pooled = (grad_px, grad_py) if ctx.pooled else (None, None)
    found = torch.ops.tenfold.image_similarity_backward(grad, *pooled, x, y, *ctx.options, *needs)
    return (*_wanted(found, needs), *[None] * 6)


def _squared_error_gradient(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, y = ctx.saved_tensors
    needs = ctx.needs_input_grad[:2]
    return _wanted(torch.ops.tenfold.image_squared_error_backward(grad, x, y, *needs), needs)


def _wanted(found: Any, needs: Any) -> tuple[Tensor | None, ...]:
    return tuple(gradient if need else None for gradient, need in zip(found, needs, strict=True))


def _only_once(ctx: Any, *_: Any) -> Any:
    raise RuntimeError("ssim: expected to be differentiated once, got a second derivative")


for _device in ("CPU", "CUDA"):
    _LIBRARY.impl("image_similarity", _similarity, _device)
    _LIBRARY.impl("image_similarity_backward", _similarity_backward, _device)
    _LIBRARY.impl("image_squared_error", _squared_error, _device)
    _LIBRARY.impl("image_squared_error_backward", _squared_error_backward, _device)
torch.library.register_fake("tenfold::image_similarity", _fake_similarity, lib=_LIBRARY)
torch.library.register_fake(
    "tenfold::image_similarity_backward",
    lambda grad, gx, gy, x, y, *rest: _fake_gradients(x, y, *rest[-2:]),
    lib=_LIBRARY,
)
torch.library.register_fake(
    "tenfold::image_squared_error",
    lambda x, y: x.new_empty(x.shape[:1], dtype=torch.float64),
    lib=_LIBRARY,
)
torch.library.register_fake(
    "tenfold::image_squared_error_backward",
    lambda grad, x, y, for_x, for_y: _fake_gradients(x, y, for_x, for_y),
    lib=_LIBRARY,
)
torch.library.register_autograd(
    "tenfold::image_similarity", _similarity_gradient, setup_context=_setup_similarity, lib=_LIBRARY
)
torch.library.register_autograd(
    "tenfold::image_squared_error", _squared_error_gradient, setup_context=_setup_squared_error, lib=_LIBRARY
)
for _name in ("image_similarity_backward", "image_squared_error_backward"):
    torch.library.register_autograd(f"tenfold::{_name}", _only_once, lib=_LIBRARY)
