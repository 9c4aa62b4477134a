"""The compiled kernels of power allocation behind the ops' signatures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tenfold import _native
from tenfold._native import DTYPE_CODES

from . import power_rounded

View = tuple[int, int, int, int]
NOTHING: View = (0, 0, 0, 0)
ROOM_BYTES, ROOM_BLOCKS = 2**28, 528
"""On CUDA, of the memory that rows too long for a block's own are solved in: at most this."""


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
    real, device = gains.real.dtype, gains.device
    row = torch.empty(rows, dtype=real, device=device)
    return (
        torch.empty(gains.shape, dtype=gains.dtype, device=device),
        row,
        torch.empty(rows, users, dtype=real, device=device),
        torch.empty_like(row),
        torch.empty(rows, dtype=torch.int32, device=device),
    )


def _on_cuda(tensor: Tensor) -> bool:
    return tensor.is_cuda


def _stream(tensor: Tensor) -> int:
    return int(torch.cuda.current_stream(tensor.device).cuda_stream)


def _door(tensor: Tensor) -> tuple[Any, int]:
    """The module whose kernels serve the tensor, and what its calls end with: the stream, or threads."""
    if _on_cuda(tensor):
        assert _native.cuda is not None
        return _native.cuda, _stream(tensor)
    return _native.cpu, torch.get_num_threads()


def _solve(gains: Tensor, room: Callable[[Any], int], call: str, *arguments: Any) -> tuple[Tensor, ...]:
    """One of the allocations; room(module): doubles of memory per block that long rows need on CUDA."""
    out = _results(gains)
    module, last = _door(gains)
    head = (_shape(gains, gains.real.dtype), *arguments, tuple(t.data_ptr() for t in out))
    if not _on_cuda(gains):
        getattr(module, call)(*head, last)
        return out
    each = room(module)
    blocks = min(len(gains), ROOM_BLOCKS, max(1, ROOM_BYTES // (8 * each))) if each else 0
    memory = torch.empty(blocks * each, dtype=torch.float64, device=gains.device)
    getattr(module, call)(*head, (memory.data_ptr() if each else 0, blocks, each), last)
    return out


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
    views = (
        _view(gains, "rnk"),
        _view(symbols, "rk"),
        _view(power, "rn"),
        _view(noise, "r"),
        _view(statistics, "rk"),
    )
    sizes = gains.shape[1:]
    return _solve(gains, lambda m: m.power_joint_room(*sizes), "power_joint", views, tolerance, most)


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
    views = (
        _view(gains, "rnk"),
        _view(power, "rn"),
        _view(noise, "r"),
        _view(wanted, "rn"),
        _view(weights, "rnk"),
    )
    sizes = (*gains.shape[1:], weights is not None)
    return _solve(gains, lambda m: m.power_separable_room(*sizes), "power_separable", views, tolerance, most)


def water_filling(x: Tensor, mass: Tensor, inverse: bool) -> tuple[Tensor, ...]:
    """See power_rounded.water_filling."""
    if not x.numel():
        return power_rounded.water_filling(x, mass, inverse)
    p = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    theta = torch.empty(len(x), dtype=x.dtype, device=x.device)
    module, last = _door(x)
    views = (_view(x, "rk"), _view(mass, "r"))
    module.power_water(_shape(x, x.dtype), *views, inverse, p.data_ptr(), theta.data_ptr(), last)
    return p, theta


def mse_water_filling(gains: Tensor, weights: Tensor, power: Tensor) -> tuple[Tensor, ...]:
    """See power_reference.mse_water_filling."""
    if not gains.numel():
        return power_rounded.mse_water_filling(gains, weights, power)
    p = torch.empty(gains.shape, dtype=gains.dtype, device=gains.device)
    level = torch.empty(len(gains), dtype=gains.dtype, device=gains.device)
    module, last = _door(gains)
    views = (_view(gains, "rk"), _view(weights, "rk"), _view(power, "r"))
    module.power_mse_water(_shape(gains, gains.dtype), *views, p.data_ptr(), level.data_ptr(), last)
    return p, level


def power_normalize(x: Tensor, power: Tensor, mean: bool) -> Tensor:
    """See power_reference.normalize."""
    if not x.numel():
        return power_rounded.power_normalize(x, power, mean)
    x = x.resolve_conj()
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    module, last = _door(x)
    kind = (x.is_complex(), mean)
    shape = _shape(x, x.real.dtype if x.is_complex() else x.dtype)
    module.power_normalize(shape, _view(x, "rk"), _view(power, "r"), *kind, y.data_ptr(), last)
    return y
