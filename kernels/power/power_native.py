"""The compiled kernels of power allocation behind the ops' signatures; CPU tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from tenfold import _native
from tenfold._native import DTYPE_CODES

from . import power_rounded

View = tuple[int, int, int, int]
NOTHING: View = (0, 0, 0, 0)


def _view(value: Tensor | None, axes: str) -> View:
    """(address, stride of rows, of users, of carriers); `axes` names those there are: "rnk", "rk", ..."""
    if value is None:
        return NOTHING
    strides = dict(zip(axes, value.stride(), strict=True))
    return value.data_ptr(), strides["r"], strides.get("n", 0), strides.get("k", 0)


def _shape(like: Tensor, dtype: torch.dtype) -> tuple[int, int, int, int]:
    """(rows, users, carriers, code) of [R, N, K] or [R, K]."""
    users = like.shape[1] if like.ndim == 3 else 1
    return like.shape[0], users, like.shape[-1], DTYPE_CODES[dtype]


def _results(gains: Tensor) -> tuple[Tensor, ...]:
    rows, users, _ = gains.shape
    real = gains.real.dtype
    row = torch.empty(rows, dtype=real)
    return (
        torch.empty(gains.shape, dtype=gains.dtype),
        row,
        torch.empty(rows, users, dtype=real),
        torch.empty_like(row),
        torch.empty(rows, dtype=torch.int32),
    )


def joint(
    gains: Tensor,
    symbols: Tensor,
    power: Tensor,
    noise: Tensor,
    statistics: Tensor | None,
    tolerance: float,
    most: int,
) -> tuple[Tensor, ...]:
    """See power_reference.joint."""
    if not gains.numel():
        return power_rounded.joint(gains, symbols, power, noise, statistics, tolerance, most)
    gains, symbols = gains.resolve_conj(), symbols.resolve_conj()
    out = _results(gains)
    _native.cpu.power_joint(
        _shape(gains, gains.real.dtype), _view(gains, "rnk"), _view(symbols, "rk"), _view(power, "rn"),
        _view(noise, "r"), _view(statistics, "rk"), tolerance, most, [t.data_ptr() for t in out],
        torch.get_num_threads(),
    )  # fmt: skip
    return out


def separable(
    gains: Tensor,
    power: Tensor,
    noise: Tensor,
    wanted: Tensor,
    weights: Tensor | None,
    tolerance: float,
    most: int,
) -> tuple[Tensor, ...]:
    """See power_reference.separable."""
    if not gains.numel():
        return power_rounded.separable(gains, power, noise, wanted, weights, tolerance, most)
    gains = gains.resolve_conj()
    out = _results(gains)
    _native.cpu.power_separable(
        _shape(gains, gains.real.dtype), _view(gains, "rnk"), _view(power, "rn"), _view(noise, "r"),
        _view(wanted, "rn"), _view(weights, "rnk"), tolerance, most, [t.data_ptr() for t in out],
        torch.get_num_threads(),
    )  # fmt: skip
    return out


def water_filling(x: Tensor, mass: Tensor, inverse: bool) -> tuple[Tensor, ...]:
    """See power_rounded.water_filling."""
    if not x.numel():
        return power_rounded.water_filling(x, mass, inverse)
    p, theta = torch.empty(x.shape, dtype=x.dtype), torch.empty(len(x), dtype=x.dtype)
    _native.cpu.power_water(
        _shape(x, x.dtype), _view(x, "rk"), _view(mass, "r"), inverse, p.data_ptr(),
        theta.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return p, theta


def mse_water_filling(gains: Tensor, weights: Tensor, power: Tensor) -> tuple[Tensor, ...]:
    """See power_reference.mse_water_filling."""
    if not gains.numel():
        return power_rounded.mse_water_filling(gains, weights, power)
    p, level = torch.empty(gains.shape, dtype=gains.dtype), torch.empty(len(gains), dtype=gains.dtype)
    _native.cpu.power_mse_water(
        _shape(gains, gains.dtype), _view(gains, "rk"), _view(weights, "rk"),
        _view(power, "r"), p.data_ptr(), level.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return p, level


def power_normalize(x: Tensor, power: Tensor, mean: bool) -> Tensor:
    """See power_reference.normalize."""
    if not x.numel():
        return power_rounded.power_normalize(x, power, mean)
    x = x.resolve_conj()
    y = torch.empty(x.shape, dtype=x.dtype)
    real = x.real.dtype if x.is_complex() else x.dtype
    _native.cpu.power_normalize(
        _shape(x, real), _view(x, "rk"), _view(power, "r"), x.is_complex(), mean,
        y.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return y
