"""Kernel mean discrepancies between samples: how far two sets of points are from one distribution.

    k(a, b) = sum_u exp(-``|a - b|^2`` / (base * factor_u))

The kernel matrix is never in memory: it is made in tiles, and the gradient with it, so that memory grows with
the number of points.  Sums are float64; points are centred by their joint mean first, so that features far
from the origin lose nothing.  Widths are constants for the gradient, as in the code of the papers.

Gretton et al., "A kernel two-sample test" (JMLR 2012); Long et al., DAN (arXiv 1502.02791); Kang et al., CAN
(arXiv 1901.00976); Zhu et al., "Deep subdomain adaptation network" (LMMD).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tenfold import _arrays, _checks

from .mmd_dispatch import _backend, _batched, _float, _value, _watched
from .mmd_small import small_mmd, usual

ESTIMATORS = ("biased", "unbiased", "linear", "pairs")
BANDWIDTHS = ("mean", "median", "tllib")
MAX_KERNELS = 64
FLOOR = 1e-5


# ---- checks ----------------------------------------------------------------------------------------------


def _points(name: str, value: Any) -> Tensor:
    points = _checks.tensor(name, _arrays.as_tensor(name, value, write=False))
    if points.ndim not in (2, 3):
        _checks.fail(ValueError, name, "shape [N, d] or [B, N, d]", tuple(points.shape))
    if points.shape[-2] == 0 or points.shape[-1] == 0:
        _checks.fail(ValueError, name, "at least one point of at least one dimension", tuple(points.shape))
    return points


def _samples(names: tuple[str, str], x: Any, y: Any) -> tuple[Tensor, Tensor, bool]:
    """Both as [B, N, d], and whether they came without a batch."""
    a, b = _alike(names, x, y)
    return (a[None], b[None], True) if a.ndim == 2 else (a, b, False)


def _alike(names: tuple[str, str], x: Any, y: Any) -> tuple[Tensor, Tensor]:
    """Both as tensors [N, d] and [M, d], or [B, N, d] and [B, M, d]."""
    a, b = _points(names[0], x), _points(names[1], y)
    if a.device != b.device:
        _checks.fail(TypeError, names[1], f"the device of {names[0]} ({a.device})", b.device)
    if a.dtype != b.dtype:
        _checks.fail(TypeError, names[1], f"the dtype of {names[0]} ({a.dtype})", b.dtype)
    if a.ndim != b.ndim or a.shape[-1] != b.shape[-1] or a.shape[:-2] != b.shape[:-2]:
        expected = f"shape {[*a.shape[:-2], 'M', a.shape[-1]]} as {names[0]} has it"
        _checks.fail(ValueError, names[1], expected, tuple(b.shape))
    return a, b


def factors_of(kernels: int, mul: float, middle: int | None = None) -> list[float]:
    """mul^(u - kernels // 2) for u = 0 .. kernels - 1: the widths as multiples of the base."""
    kernels = _checks.integer("kernels", kernels, 1, MAX_KERNELS)
    mul = _checks.real("mul", mul, positive=True)
    middle = kernels // 2 if middle is None else middle
    try:
        factors = [mul ** (u - middle) for u in range(kernels)]
    except OverflowError:
        factors = [math.inf]
    if not 0.0 < min(factors) <= max(factors) < math.inf:
        expected = f"a number whose powers from {-middle} to {kernels - 1 - middle} are finite and > 0"
        _checks.fail(ValueError, "mul", expected, mul)
    return factors


def _ascending(factors: Sequence[float]) -> list[float]:
    return sorted(factors)


def _given_factors(factors: Any) -> list[float]:
    given = _checks.sequence("factors", factors, "numbers > 0")
    if not 1 <= len(given) <= MAX_KERNELS:
        _checks.fail(ValueError, "factors", f"1 to {MAX_KERNELS} of them", len(given))
    return [_checks.real(f"factors[{u}]", f, positive=True) for u, f in enumerate(given)]


def widths_of(kernels: int, mul: float, factors: Any, bandwidth: Any) -> list[float]:
    """The widths as multiples of the base, ascending, as the arguments of `mmd` say."""
    if factors is not None:
        return _ascending(_given_factors(factors))
    if isinstance(bandwidth, str) and bandwidth == "tllib":
        return _ascending([2.0 * f for f in factors_of(kernels, mul, 3)])
    return _ascending(factors_of(kernels, mul))


def _traced(value: Tensor) -> bool:
    """Whether no number can be read from it now: under torch.compile, a transform of torch.func, or meta."""
    compiling = torch.compiler.is_compiling()
    return compiling or value.is_meta or torch._C._functorch.peek_interpreter_stack() is not None


def _given_base(bandwidth: Any, like: Tensor, name: str = "bandwidth") -> Tensor:
    if isinstance(bandwidth, Tensor):
        base = _checks.tensor(name, bandwidth).detach().to(like.device, torch.float64)
    else:
        value = _checks.real(name, bandwidth, positive=True)
        base = torch.tensor(value, dtype=torch.float64, device=like.device)
    if base.ndim > 1 or (base.ndim == 1 and base.shape[0] != like.shape[0]):
        expected = f"a number or one for each of {like.shape[0]} problems"
        _checks.fail(ValueError, name, expected, f"shape {tuple(base.shape)}")
    if not _traced(base) and bool((base <= 0).any()):  # NaN goes on, to a value of NaN
        _checks.fail(ValueError, name, "widths > 0", float(base.min()))
    return base.expand(like.shape[0])


def median_distance(x: Any) -> Any:
    """The median of ``|x_i - x_j|^2`` over all ordered pairs (i == j among them), the lower one of two.

    Exact to the rounding of the distances and without a list of pairs: three passes count float patterns.

    Args:
        x: [N, d] or [B, N, d], float32, float64, bfloat16 or float16.

    Returns:
        A float64 scalar, or [B].

    Raises:
        TypeError, ValueError: another dtype, shape, or no points.
    """
    points = _points("x", x)
    single = points.ndim == 2
    points = (points[None] if single else points).detach()
    found = _backend("mmd", points.device).median_distance(points)
    finite = torch.isfinite(points).flatten(1).all(1)
    found = torch.where(finite, found, float("nan"))
    return _arrays.kind_of(x)(found[0] if single else found)


def _base(bandwidth: Any, x: Tensor, y: Tensor, floor: float) -> Tensor | None:
    if not isinstance(bandwidth, str):
        return _given_base(bandwidth, x)
    _checks.choice("bandwidth", bandwidth, BANDWIDTHS)
    if bandwidth == "mean":
        return None
    if bandwidth == "median":
        return median_distance(x.detach()).clamp_min(floor)
    from tenfold.kernels.mmd.mmd_reference import centred, mean_distance

    n = x.shape[1] + y.shape[1]  # TLlib's mean is over all n^2 pairs
    return (mean_distance(centred(x.detach(), y.detach())) * ((n - 1) / n)).clamp_min(floor)


def _weights(weights: Any, x: Tensor, y: Tensor) -> Tensor | None:
    if weights is None:
        return None
    parts = []
    for name, given, like, sign in (
        ("weights[0]", *_pair("weights", weights, 0), x, 1.0),
        ("weights[1]", *_pair("weights", weights, 1), y, -1.0),
    ):
        w = _checks.tensor(name, _arrays.as_tensor(name, given, write=False)).detach()
        if w.shape not in ((like.shape[1],), like.shape[:2]):
            _checks.fail(
                ValueError, name, f"shape {(like.shape[1],)} or {tuple(like.shape[:2])}", tuple(w.shape)
            )
        if w.device != like.device:
            _checks.fail(TypeError, name, f"the device of its points ({like.device})", w.device)
        total = w.sum(-1)
        if bool((w < 0).any()) or not bool(((total > 0) & (total < math.inf)).all()):
            _checks.fail(ValueError, name, "weights >= 0 with a positive, finite sum", "others")
        w = w.to(_float(x))
        parts.append((sign * w / w.sum(-1, keepdim=True)).expand(like.shape[:2]))
    return torch.cat(parts, 1)[..., None]


def _pair(name: str, value: Any, index: int) -> tuple[Any]:
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        _checks.fail(TypeError, name, "a pair (weights of x, weights of y)", _checks.describe(value))
    return (value[index],)


# ---- the public functions --------------------------------------------------------------------------------


def mmd_with_base(
    x: Any,
    y: Any,
    *,
    kernels: int = 5,
    mul: float = 2.0,
    bandwidth: Any = "mean",
    estimator: str = "biased",
    weights: Any = None,
    factors: Sequence[float] | None = None,
    floor: float = FLOOR,
) -> tuple[Any, Any]:
    """As `mmd`, and the base of the widths, float64: a warning light for features that shrink to a point."""
    found = _small(x, y, kernels, mul, bandwidth, estimator, weights, factors, floor)
    if found is not None:
        return found[0], torch.tensor(found[1], dtype=torch.float64)
    a, b = _alike(("x", "y"), x, y)
    _checks.choice("estimator", estimator, ESTIMATORS)
    floor = _checks.real("floor", floor, positive=True)
    if estimator == "unbiased" and min(a.shape[-2], b.shape[-2]) < 2:
        expected = "at least two points on both sides for the unbiased estimator"
        _checks.fail(ValueError, "x" if a.shape[-2] < 2 else "y", expected, "one")
    if weights is not None and estimator != "biased":
        _checks.fail(ValueError, "weights", "estimator='biased' with weights", repr(estimator))
    widths = widths_of(kernels, mul, factors, bandwidth)
    mean = isinstance(bandwidth, str) and bandwidth == "mean"
    base = None if mean else _base(bandwidth, _batched(a), _batched(b), floor)
    if estimator in LINEAR:
        value, base = _linear(_batched(a), _batched(b), widths, base, floor, estimator)
        if a.ndim == 2:
            value, base = value[0], base[0]
    else:
        v = None if weights is None else _weights(weights, _batched(a), _batched(b))
        options = (widths, floor, estimator == "unbiased", False, _watched(a, b))
        value, base = _value(a, b, v, base, options)
    to = _arrays.kind_of(x)
    return to(value), to(base)


def mmd(
    x: Any,
    y: Any,
    *,
    kernels: int = 5,
    mul: float = 2.0,
    bandwidth: Any = "mean",
    estimator: str = "biased",
    weights: Any = None,
    factors: Sequence[float] | None = None,
    floor: float = FLOOR,
) -> Any:
    """Squared maximum mean discrepancy with a sum of Gaussian kernels (MK-MMD), batched.

    k(a, b) = sum_u exp(-``|a - b|^2`` / (base * mul^(u - kernels // 2))), u = 0 .. kernels - 1.

    Args:
        x: [N, d] or [B, N, d]: float32, float64, bfloat16 or float16 (arithmetic in float32, sums float64).
        y: [M, d] or [B, M, d], same dtype and device. N and M may differ.
        kernels: how many widths, 1 to 64.
        mul: the ratio from one width to the next, > 0.
        bandwidth: the base. "mean": mean of ``|z_i - z_j|^2`` over i != j of the pooled points (DAN, DSAN,
            MS-MDA); "median": exact median over x alone, zeros included (pytorch-adapt); "tllib": widths
            2 * mul^(u - 3) times the mean over all pairs (Transfer-Learning-Library); or a number, or [B].
            A constant for the gradient.
        estimator: "biased" (V-statistic, >= 0), "unbiased" (U-statistic, may be negative), or, O(N) and for
            N == M, "linear": each point with the next one in a ring (MS-MDA, TLlib), or "pairs": points
            2i and 2i + 1, a last odd one left out (Gretton et al.; pytorch-adapt).
        weights: a pair of weights >= 0, [N] or [B, N] and [M] or [B, M], normalised to sum 1; biased only.
        factors: 1 to 64 widths as multiples of the base, in place of kernels and mul.
        floor: the least base, so that equal points give 0 and not 0/0. A base given as a number is as given.

    Float32 distances are off by about 1e-7 of the largest ``|z - mean z|^2``. With a base far below that (two
    tight clusters a thousand of their own widths apart, and a "median" or a number), give float64.

    Returns:
        A scalar, or [B]; float32 (float64 for float64 input). Differentiable once in x and y; memory O((N +
        M) d) at any size, the gradient made in the forward pass and scaled in backward.

    Raises:
        TypeError: another dtype, or x and y differ in dtype or device.
        ValueError: another shape, no points, one point for "unbiased" or "pairs", N != M for "linear" or
            "pairs", an unknown name, a number out of range.
    """
    found = _small(x, y, kernels, mul, bandwidth, estimator, weights, factors, floor)
    if found is not None:
        return found[0]
    return mmd_with_base(
        x,
        y,
        kernels=kernels,
        mul=mul,
        bandwidth=bandwidth,
        estimator=estimator,
        weights=weights,
        factors=factors,
        floor=floor,
    )[0]


def _small(
    x: Any,
    y: Any,
    kernels: int,
    mul: float,
    bandwidth: Any,
    estimator: str,
    weights: Any,
    factors: Any,
    floor: float,
) -> tuple[Tensor, float] | None:
    """Value and base by the short path, or None where the call is none of its kind."""
    if (
        torch.compiler.is_compiling()
        or not isinstance(bandwidth, str)
        or bandwidth != "mean"
        or weights is not None
        or not isinstance(estimator, str)
        or estimator not in SMALL
        or not usual(x, y)
        or (estimator == "unbiased" and min(len(x), len(y)) < 2)
    ):
        return None
    floor = _checks.real("floor", floor, positive=True)
    return small_mmd(x, y, widths_of(kernels, mul, factors, "mean"), floor, estimator == "unbiased")


LINEAR = ("linear", "pairs")
SMALL = ("biased", "unbiased")


def partners(points: Tensor, estimator: str) -> tuple[Tensor, Tensor]:
    """Each point [B, N, d] that a linear-time estimate takes, and its partner."""
    if estimator == "linear":
        return points, points.roll(-1, 1)
    even = points.shape[1] // 2 * 2
    return points[:, 0:even:2], points[:, 1:even:2]


def check_linear(x: Tensor, y: Tensor, estimator: str) -> None:
    if x.shape[1] != y.shape[1]:
        expected = f"{x.shape[1]} points, as many as x, for the {estimator} estimator"
        _checks.fail(ValueError, "y", expected, y.shape[1])
    if estimator == "pairs" and x.shape[1] < 2:
        _checks.fail(ValueError, "x", "at least two points for the pairs estimator", "one")


def near_kernels(x: Tensor, y: Tensor, widths: Tensor, estimator: str) -> Tensor:
    """[4, B, pairs]: k of x with x, y with y, x with y, y with x; widths [B, K]; autograd follows."""
    (x, next_x), (y, next_y) = partners(x, estimator), partners(y, estimator)
    near = torch.stack((x - next_x, y - next_y, x - next_y, next_x - y)).square().sum(-1)
    near = near + (near - near).detach()  # infinity becomes NaN, as in the sums over all pairs
    return torch.exp(-near[..., None] / widths[:, None, :]).sum(-1)


def _linear(
    x: Tensor, y: Tensor, factors: Sequence[float], base: Tensor | None, floor: float, estimator: str
) -> tuple[Tensor, Tensor]:
    """Gretton's linear-time estimate, over neighbours in a ring or over pairs without a common point."""
    from tenfold.kernels.mmd.mmd_reference import centred, mean_distance

    check_linear(x, y, estimator)
    dtype = _float(x, y)
    if base is None:
        base = mean_distance(centred(x.detach(), y.detach())).clamp_min(floor)
    widths = base[:, None] * torch.tensor(factors, dtype=torch.float64, device=x.device)
    k = near_kernels(x.to(dtype), y.to(dtype), widths.to(dtype), estimator)
    return (k[0] + k[1] - k[2] - k[3]).mean(-1), base


def linear_mmd(x: Any, y: Any) -> Any:
    """``|mean x - mean y|^2``, the squared MMD of the linear kernel (DDC, Tzeng et al., arXiv 1412.3474).

    Args:
        x, y: [N, d] and [M, d], or [B, N, d] and [B, M, d], floating, same dtype and device.

    Returns:
        A scalar, or [B]; differentiable any number of times.

    Raises:
        TypeError, ValueError: as `mmd`.
    """
    a, b, single = _samples(("x", "y"), x, y)
    dtype = _float(a, b)
    value = (a.to(dtype).mean(1) - b.to(dtype).mean(1)).square().sum(-1)
    return _arrays.kind_of(x)(value[0] if single else value)


def weighted_mmd(
    z: Any, v: Any, base: Any, *, kernels: int = 5, mul: float = 2.0, floor: float = FLOOR
) -> Any:
    """sum_ij (sum_c v_ic v_jc) k(z_i, z_j): a quadratic form of the kernel, of which MMD and LMMD are cases.

    Args:
        z: [n, d] or [B, n, d]: float32, float64, bfloat16 or float16.
        v: [n] or [n, C], or [B, n, C]; a constant for the gradient.
        base: the base of the widths, a number or [B] (see `mmd`), or "mean".
        kernels, mul, floor: as `mmd`.

    Returns:
        A scalar, or [B]. Differentiable once in z.

    Raises:
        TypeError, ValueError: as `mmd`; v of another shape.
    """
    points = _points("z", z)
    single = points.ndim == 2
    points = _batched(points)
    w = _checks.tensor("v", _arrays.as_tensor("v", v, write=False)).detach().to(points.device)
    w = w[:, None] if w.ndim == 1 else w
    w = w[None] if w.ndim == 2 else w
    if (
        w.ndim != 3
        or w.shape[1] != points.shape[1]
        or w.shape[0] not in (1, points.shape[0])
        or not w.shape[2]
    ):
        n = points.shape[1]
        _checks.fail(ValueError, "v", f"shape [{n}], [{n}, C] or [B, {n}, C]", tuple(v.shape))
    floor = _checks.real("floor", floor, positive=True)
    factors = _ascending(factors_of(kernels, mul))
    if isinstance(base, str):
        given = None
        _checks.choice("base", base, ("mean",))
    else:
        given = _given_base(base, points, "base")
    empty = points[:, :0]
    value, _ = _value(points, empty, w, given, (factors, floor, False, False, _watched(points)))
    return _arrays.kind_of(z)(value[0] if single else value)


def coral(x: Any, y: Any) -> Any:
    """``|cov x - cov y|_F^2`` / (4 d^2) with covariances over the samples (Sun and Saenko, arXiv 1607.01719).

    Args:
        x, y: [N, d] and [M, d], or [B, N, d] and [B, M, d]; at least two points on both sides.

    Returns:
        A scalar, or [B]; differentiable any number of times.

    Raises:
        TypeError, ValueError: as `mmd`; a single point.
    """
    a, b, single = _samples(("x", "y"), x, y)
    for name, points in (("x", a), ("y", b)):
        if points.shape[1] < 2:
            _checks.fail(ValueError, name, "at least two points for a covariance", "one")
    dtype = _float(a, b)

    @torch.autocast(a.device.type, enabled=False)  # products of bfloat16 keep three digits
    def covariance(points: Tensor) -> Tensor:
        z = points.to(dtype) - points.to(dtype).mean(1, keepdim=True)
        return z.transpose(1, 2) @ z / (points.shape[1] - 1)

    value = (covariance(a) - covariance(b)).square().sum((1, 2)) / (4.0 * a.shape[2] ** 2)
    return _arrays.kind_of(x)(value[0] if single else value)
