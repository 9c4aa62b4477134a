"""The joint maximum mean discrepancy: kernels of several layers multiplied (JAN, arXiv 1605.06636)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tenfold import _arrays, _checks

from .mmd import (
    ESTIMATORS,
    FLOOR,
    LINEAR,
    _alike,
    _base,
    check_linear,
    near_kernels,
    widths_of,
)
from .mmd_dispatch import _Once, _watched


class _Joint(torch.autograd.Function):
    """Value and gradients in one walk over strips of rows; the kernel matrix is never whole."""

    @staticmethod
    def forward(ctx: Any, unbiased: bool, widths: list[list[float]], n: int, *layers: Tensor) -> Tensor:
        value, gradients = _walk(unbiased, widths, n, [layer.detach() for layer in layers])
        ctx.save_for_backward(*gradients, *layers)
        return value

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        count = len(ctx.saved_tensors) // 2
        gradients, layers = ctx.saved_tensors[:count], ctx.saved_tensors[count:]
        scaled = [(grad.to(g.dtype) * g).to(layer.dtype) for g, layer in zip(gradients, layers, strict=True)]
        if torch.is_grad_enabled():
            scaled = [_Once.apply(g, *layers) for g in scaled]
        return (None, None, None, *scaled)


def _walk(
    unbiased: bool, widths: list[list[float]], n: int, layers: list[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    from tenfold.kernels.mmd.mmd_reference import STRIP, centred, kernel, math_dtype, squared_distances

    points = [centred(layer[None, :n], layer[None, n:])[0] for layer in layers]
    total, m = len(points[0]), len(points[0]) - n
    dtype, device = math_dtype(*layers), layers[0].device
    v = torch.full((total,), -1.0 / m, dtype=dtype, device=device)
    v[:n] = 1.0 / n
    side = torch.arange(total, device=device) >= n
    larger = torch.full_like(v, m / max(m - 1, 1))
    larger[:n] = n / max(n - 1, 1)
    value = torch.zeros((), dtype=torch.float64, device=device)
    gradients = [torch.zeros_like(z) for z in points]
    rows = max(1, STRIP // total)
    for first in range(0, total, rows):
        strip = slice(first, min(first + rows, total))
        inner = torch.arange(strip.start, strip.stop, device=device)
        weight = v[strip, None] * v
        if unbiased:
            weight = torch.where(side[strip, None] == side, weight * larger, weight)
            weight[inner - first, inner] = 0.0
        kernels, slopes = [], []
        for z, w in zip(points, widths, strict=True):
            d = squared_distances(z[strip], z)
            d[inner - first, inner] = 0.0
            k, slope = kernel(d, w)
            kernels.append(k)
            slopes.append(slope)
        product = torch.stack(kernels).prod(0)
        value += (weight * product).double().sum()
        for layer, (z, slope) in enumerate(zip(points, slopes, strict=True)):
            others = [k for other, k in enumerate(kernels) if other != layer]
            g = weight * slope
            for k in others:
                g = g * k
            gradients[layer][strip] = -4.0 * (g.sum(1, keepdim=True) * z[strip] - g @ z)
    return value.to(dtype), gradients


def _per_layer(name: str, value: Any, layers: int) -> Sequence[Any]:
    """One value for all layers, or a list with one for each."""
    if isinstance(value, (list, tuple)):
        _checks.length(name, value, layers, "the layers")
        return value
    return [value] * layers


def joint_mmd(
    xs: Sequence[Any],
    ys: Sequence[Any],
    *,
    kernels: int | Sequence[int] = 5,
    mul: float | Sequence[float] = 2.0,
    bandwidth: Any = "mean",
    estimator: str = "biased",
    factors: Sequence[Sequence[float]] | None = None,
    floor: float = FLOOR,
) -> Any:
    """Joint MMD of several layers: the MMD under the product of the layers' kernels (JAN, arXiv 1605.06636).

    k(a, b) = prod_l sum_u exp(-``|a_l - b_l|^2`` / (base_l factor_lu)): unlike a sum over the layers it
    sees how they depend on each other, say features and predicted classes.

    Args:
        xs: a list of [N, d_l], one for each layer, of one dtype and device.
        ys: a list of [M, d_l].
        kernels, mul, bandwidth: as `mmd`, one for all layers or a list with one for each.
        estimator: as `mmd`.
        factors: a list of widths for each layer, as multiples of its base, in place of kernels and mul.
        floor: as `mmd`.

    Returns:
        A scalar. Differentiable once ("linear" and "pairs": any number of times); memory O(N + M) at any
        size. PyTorch on every device, in strips of rows.

    Raises:
        TypeError, ValueError: as `mmd`; xs and ys of another number of layers, or layers of another number
            of points.
    """
    first, second = _checks.sequence("xs", xs, "tensors"), _checks.sequence("ys", ys, "tensors")
    if not first:
        _checks.fail(ValueError, "xs", "at least one layer", "none")
    _checks.length("ys", second, len(first), "xs")
    _checks.choice("estimator", estimator, ESTIMATORS)
    floor = _checks.real("floor", floor, positive=True)
    count = len(first)
    if factors is not None:
        _checks.length("factors", _checks.sequence("factors", factors, "lists of widths"), count, "xs")
    layers: list[tuple[Tensor, Tensor]] = []
    for i, (x, y) in enumerate(zip(first, second, strict=True)):
        a, b = _alike((f"xs[{i}]", f"ys[{i}]"), x, y)
        if a.ndim != 2:
            _checks.fail(ValueError, f"xs[{i}]", "shape [N, d]", tuple(a.shape))
        if layers and (len(a), len(b)) != (len(layers[0][0]), len(layers[0][1])):
            expected = f"{len(layers[0][0])} and {len(layers[0][1])} points as in layer 0"
            _checks.fail(ValueError, f"xs[{i}]", expected, f"{len(a)} and {len(b)}")
        if layers and (a.dtype != layers[0][0].dtype or a.device != layers[0][0].device):
            expected = f"the dtype and device of xs[0] ({layers[0][0].dtype}, {layers[0][0].device})"
            _checks.fail(TypeError, f"xs[{i}]", expected, f"{a.dtype}, {a.device}")
        layers.append((a, b))
    n, m = len(layers[0][0]), len(layers[0][1])
    if estimator == "unbiased" and min(n, m) < 2:
        expected = "at least two points on both sides for the unbiased estimator"
        _checks.fail(ValueError, "xs[0]" if n < 2 else "ys[0]", expected, "one")
    if estimator in LINEAR:
        check_linear(layers[0][0][None], layers[0][1][None], estimator)

    bands = _per_layer("bandwidth", bandwidth, count)
    options = zip(_per_layer("kernels", kernels, count), _per_layer("mul", mul, count), bands, strict=True)
    widths = []
    for i, (k, ratio, band) in enumerate(options):
        multiples = widths_of(k, ratio, None if factors is None else factors[i], band)
        widths.append(_layer_base(band, *layers[i], floor) * torch.tensor(multiples, dtype=torch.float64))
    if estimator in LINEAR:
        value = _linear(layers, widths, estimator)
    else:
        listed = [w.tolist() for w in widths]
        whole = [torch.cat(layer) for layer in layers]
        if _watched(*whole):
            value = _Joint.apply(estimator == "unbiased", listed, n, *whole)
        else:
            value = _walk(estimator == "unbiased", listed, n, whole)[0]
    return _arrays.kind_of(first[0])(value)


def _layer_base(bandwidth: Any, x: Tensor, y: Tensor, floor: float) -> Tensor:
    """float64 scalar on the CPU: the walk takes the widths as numbers."""
    from tenfold.kernels.mmd.mmd_reference import centred, mean_distance

    if isinstance(bandwidth, str) and bandwidth == "mean":
        return mean_distance(centred(x.detach()[None], y.detach()[None]))[0].clamp_min(floor).cpu()
    base = _base(bandwidth, x[None], y[None], floor)
    assert base is not None
    return base[0].cpu()


def _linear(layers: list[tuple[Tensor, Tensor]], widths: list[Tensor], estimator: str) -> Tensor:
    product: Tensor | None = None
    for (x, y), w in zip(layers, widths, strict=True):
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        k = near_kernels(x.to(dtype)[None], y.to(dtype)[None], w.to(x.device, dtype)[None], estimator)
        product = k if product is None else product * k
    assert product is not None
    return (product[0] + product[1] - product[2] - product[3]).mean()
