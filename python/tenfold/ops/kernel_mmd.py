"""Squared MMD with one named kernel: polynomial, as KID has it, and Gaussian, as CMMD has it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tenfold import _arrays, _checks
from tenfold.kernels.moments import poly_reference as reference
from tenfold.kernels.moments.poly_reference import Poly

from .mmd import mmd
from .moments import _features

__all__ = ["mmd2_poly", "mmd2_rbf"]

_LIBRARY = torch.library.Library("tenfold", "FRAGMENT")
_KERNEL = "int degree, float gamma, float coef, bool biased"
_LIBRARY.define(f"mmd2_poly(Tensor x, Tensor y, {_KERNEL}) -> Tensor")
_LIBRARY.define(f"mmd2_poly_backward(Tensor grad, Tensor x, Tensor y, {_KERNEL}) -> (Tensor, Tensor)")


def mmd2_poly(
    x: Any,
    y: Any,
    *,
    degree: int = 3,
    gamma: float | None = None,
    coef: float = 1.0,
    biased: bool = False,
) -> Any:
    """Squared maximum mean discrepancy with k(a, b) = (gamma a.b + coef)^degree.

    The defaults are KID's kernel and estimator (Binkowski et al., arXiv 1801.01401). The kernel matrix is
    made in tiles; memory is that of one tile of 512 rows.

    Args:
        x, y: [N, d] and [M, d], float32 or float64, the same dtype and device. Inner products are made in
            this dtype, everything after them in float64.
        degree: 1 to 16.
        gamma: None for 1 / d.
        coef: any finite number.
        biased: keep the pairs of a point with itself (V-statistic).

    Returns:
        A float64 scalar, differentiable once in x and y.

    Raises:
        TypeError: no tensor or array.
        ValueError: another shape or dtype, NaN or infinity, a number out of range, or one point without
            `biased`.
    """
    a, b = _pair(x, y, 1 if biased else 2)
    degree = _checks.integer("degree", degree, 1, 16)
    gamma = 1.0 / a.shape[1] if gamma is None else _checks.real("gamma", gamma, positive=True)
    coef = _checks.real("coef", coef)
    value = torch.ops.tenfold.mmd2_poly(a, b, degree, gamma, coef, bool(biased))
    return _arrays.kind_of(x)(value)


def mmd2_rbf(x: Any, y: Any, *, sigma: float | Sequence[float], biased: bool = True) -> Any:
    """Squared maximum mean discrepancy with k(a, b) = sum over sigma of exp(-``|a - b|^2`` / (2 sigma^2)).

    By the kernels of `mmd`; memory grows with N + M. The default estimator is that of CMMD.

    Args:
        x, y: [N, d] and [M, d], float32 or float64, the same dtype and device.
        sigma: a number in [1e-18, 1e18), or up to 64 of them.
        biased: keep the pairs of a point with itself.

    Returns:
        A scalar of the points' dtype, differentiable once in x and y.

    Raises:
        TypeError, ValueError: as for `mmd2_poly`.
    """
    a, b = _pair(x, y, 1 if biased else 2)
    many = sigma if isinstance(sigma, Sequence) and not isinstance(sigma, str) else [sigma]
    # Within these the squares fit float32, in which points may be.
    widths = [2.0 * _checks.real("sigma", s, at_least=1e-18, below=1e18) ** 2 for s in many]
    estimator = "biased" if biased else "unbiased"
    value = mmd(a, b, factors=widths, bandwidth=1.0, estimator=estimator)
    return _arrays.kind_of(x)(value)


def _pair(x: Any, y: Any, least: int) -> tuple[Tensor, Tensor]:
    """Both as tensors that still have their gradients."""
    a, b = (_arrays.as_tensor(name, value, write=False) for name, value in (("x", x), ("y", y)))
    for name, points in (("x", a), ("y", b)):
        if not torch.compiler.is_compiling():
            _features(name, points, least)
        if points.dtype not in (torch.float32, torch.float64):
            _checks.fail(ValueError, name, "dtype float32 or float64", points.dtype)
    if a.shape[1] != b.shape[1]:
        _checks.fail(ValueError, "y", f"{a.shape[1]} dimensions, as x has", b.shape[1])
    if a.dtype != b.dtype or a.device != b.device:
        _checks.fail(ValueError, "y", f"{a.dtype} on {a.device}, as x is", f"{b.dtype} on {b.device}")
    return a, b


def _value(x: Tensor, y: Tensor, degree: int, gamma: float, coef: float, biased: bool) -> Tensor:
    return reference.mmd2(x, y, Poly(degree, gamma, coef), biased)


def _backward(
    grad: Tensor, x: Tensor, y: Tensor, degree: int, gamma: float, coef: float, biased: bool
) -> tuple[Tensor, Tensor]:
    dx, dy = reference.gradients(x, y, Poly(degree, gamma, coef), biased)
    return dx.mul_(grad), dy.mul_(grad)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, y, *ctx.kernel = inputs
    ctx.save_for_backward(x, y)


def _gradient(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    return (*torch.ops.tenfold.mmd2_poly_backward(grad, *ctx.saved_tensors, *ctx.kernel), *[None] * 4)


def _only_once(ctx: Any, *_: Any) -> Any:
    raise RuntimeError("mmd2_poly: expected to be differentiated once, got a second derivative")


for _device in ("CPU", "CUDA"):
    _LIBRARY.impl("mmd2_poly", _value, _device)
    _LIBRARY.impl("mmd2_poly_backward", _backward, _device)
torch.library.register_fake(
    "tenfold::mmd2_poly", lambda x, y, *rest: x.new_empty((), dtype=torch.float64), lib=_LIBRARY
)
torch.library.register_fake(
    "tenfold::mmd2_poly_backward",
    lambda grad, x, y, *rest: (torch.empty_like(x), torch.empty_like(y)),
    lib=_LIBRARY,
)
torch.library.register_autograd("tenfold::mmd2_poly", _gradient, setup_context=_setup, lib=_LIBRARY)
torch.library.register_autograd("tenfold::mmd2_poly_backward", _only_once, lib=_LIBRARY)
