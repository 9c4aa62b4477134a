# mypy: allow-untyped-defs, allow-untyped-calls
"""Water-filling, its mean-squared-error form and normalisation in Triton, and what power_triton.py shares.

A program has whole rows in a tile. Rows of more than MOST_CARRIERS go through the PyTorch reference with a
PerformanceWarning.
"""

from __future__ import annotations

import os
import warnings
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from tenfold._backend import PerformanceWarning

from . import power_rounded

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # it pays for programs, not for their size
MOST_CARRIERS = 16384
WARPS = 4
_MSE_TILE = 128
"""Values of a tile of the mean-squared-error form."""
Listed = tuple[str, Any, dict[str, str], dict[str, Any], dict[str, Any]]
"""(name, kernel, signature, constants, options) of a kernel to compile where there is no GPU."""


@triton.jit
def _inverse(x):
    return tl.where(x == 0, 0.0, 1 / tl.where(x == 0, 1.0, x))


@triton.jit
def _any(x):
    return tl.max(x.to(tl.int32), axis=0) > 0


@triton.jit
def _water_kernel(
    x, masses, out, thetas, xr, xk, mr, count_rows, carriers,
    INVERSE: tl.constexpr, R: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    k = tl.arange(0, B)
    rows = row < count_rows
    there = rows[:, None] & (k < carriers)[None, :]
    at = x + row[:, None] * xr + k.to(tl.int64)[None, :] * xk
    v = tl.load(at, mask=there, other=0.0 if INVERSE else float("-inf"))
    mass = tl.load(masses + row * mr, mask=rows, other=1.0)
    if INVERSE:
        y = tl.where(v > 0, 1 / tl.where(v > 0, v, 1.0), float("inf"))
    else:
        y = -v
    low = tl.min(tl.where(v == v, y, float("inf")), axis=1)
    strange = tl.max((v != v).to(tl.int32), axis=1) > 0
    unknown = strange | (low == float("-inf")) | ((mass >= 0) == 0)
    known = (unknown == 0) & (low < float("inf"))
    above = tl.where(known[:, None], y - tl.where(known, low, 0.0)[:, None], 0.0)
    level = tl.where(known, mass, 0.0)
    count = tl.full([R], B + 1, tl.float32).to(level.dtype)
    left = known
    while _any(left):
        inside = above <= level[:, None]
        found = tl.sum(tl.where(inside, 1.0, 0.0).to(level.dtype), axis=1)
        sum = tl.sum(tl.where(inside, above, 0.0), axis=1)
        left = left & (found < count)
        count = tl.where(left, found, count)
        level = tl.where(left, (mass + sum) / tl.where(left, found, 1.0), level)
    nothing = tl.where(unknown, float("nan"), 0.0)
    p = tl.where(known[:, None], tl.maximum(level[:, None] - above, 0.0), nothing[:, None])
    theta = tl.where(known, -(level + low), tl.where(unknown, float("nan"), float("-inf")))
    tl.store(out + row[:, None] * carriers + k[None, :], p, mask=there)
    tl.store(thetas + row, theta, mask=rows)


@triton.jit
def _mse_kernel(
    gains, weights, power, out, levels, gr, gk, wr, wk, pr, count_rows, carriers,
    R: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    k = tl.arange(0, B)
    rows = row < count_rows
    there = rows[:, None] & (k < carriers)[None, :]
    at = k.to(tl.int64)[None, :]
    gain = tl.load(gains + row[:, None] * gr + at * gk, mask=there, other=0.0).to(tl.float64)
    weight = tl.load(weights + row[:, None] * wr + at * wk, mask=there, other=0.0).to(tl.float64)
    total = tl.load(power + row * pr, mask=rows, other=1.0).to(tl.float64)
    product = gain * weight
    root = tl.where(product > 0, tl.sqrt(tl.where(product > 0, product, 1.0)), 0.0)
    inverse = _inverse(gain)
    poison = tl.where((total >= 0) & (total < float("inf")), 0.0, float("nan"))
    poison += tl.sum(product * 0 + inverse * 0, axis=1)
    top = tl.max(product, axis=1)
    level = tl.full([R], float("inf"), tl.float64)
    inside = product > 0
    count = tl.sum(inside.to(tl.float64), axis=1)
    clearly = 1 - (carriers + 8) * tl.full([R], 2.220446049250313e-16, tl.float64)
    left = count > 0
    while _any(left):  # the two searches of power_reference.py
        sum = tl.sum(tl.where(inside, root * inverse, 0.0), axis=1)
        below = total + tl.sum(tl.where(inside, inverse, 0.0), axis=1)
        level = tl.where(left, sum / tl.where(left, below, 1.0), level)
        stay = inside & ((root > (clearly * level)[:, None]) | (product == top[:, None]))
        found = tl.sum(stay.to(tl.float64), axis=1)
        left = left & (found != count)
        inside = tl.where(left[:, None], stay, inside)
        count = tl.where(left, found, count)
    alive = count > 0
    left = alive
    ahead = tl.zeros([R, B], tl.float64)
    rise = tl.zeros([R], tl.float64)
    while _any(left):
        weakest = tl.min(tl.where(inside, product, float("inf")), axis=1)
        weakest = tl.where(alive, weakest, 1.0)
        start = tl.sqrt(weakest)
        ahead = tl.where(inside, (product - weakest[:, None]) / (root + start[:, None]), 0.0)
        sum = tl.sum(tl.where(inside, root * inverse, 0.0), axis=1)
        below = tl.where(alive, total + tl.sum(tl.where(inside, inverse, 0.0), axis=1), 1.0)
        level = tl.where(alive, sum / below, level)
        rise = tl.where(alive, (start * total - tl.sum(ahead * inverse, axis=1)) / below, 0.0)
        stay = inside & ((ahead > -(clearly * rise)[:, None]) | (product == top[:, None]))
        found = tl.sum(stay.to(tl.float64), axis=1)
        left = left & (rise < 0) & (found != count)
        inside = tl.where(left[:, None], stay, inside)
        count = tl.where(left, found, count)
    p = tl.where(inside, tl.maximum((ahead + rise[:, None]) / level[:, None] * inverse, 0.0), 0.0)
    tl.store(out + row[:, None] * carriers + k[None, :], p + poison[:, None], mask=there)
    tl.store(levels + row, level + poison, mask=rows)


@triton.jit
def _normalize_kernel(
    x, power, out, xr, xk, pr, count_rows, carriers, factor,
    PARTS: tl.constexpr, R: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """x [rows, carriers * PARTS] in `out`; in x the parts of a number lie side by side."""
    row = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    i = tl.arange(0, B)
    rows = row < count_rows
    there = rows[:, None] & (i < carriers * PARTS)[None, :]
    at = (i // PARTS).to(tl.int64) * xk + i % PARTS
    v = tl.load(x + row[:, None] * xr + at[None, :], mask=there, other=0.0).to(tl.float64)
    total = tl.load(power + row * pr, mask=rows, other=1.0).to(tl.float64)
    size = tl.abs(v)
    most = tl.max(tl.where(size == size, size, 0.0), axis=1) + tl.sum(v * 0.0, axis=1)
    scale = tl.where(most == 0, 0.0, 1 / tl.where(most == 0, 1.0, most))
    v = v * scale[:, None]
    length = tl.sqrt(tl.sum(v * v, axis=1))
    by = tl.where(length == 0, 0.0, tl.sqrt(total * factor) / tl.where(length == 0, 1.0, length))
    tl.store(out + row[:, None] * (carriers * PARTS) + i[None, :], v * by[:, None], mask=there)


# ---- behind the ops' signatures --------------------------------------------------------------------------


def slow(what: str) -> None:
    warnings.warn(
        f"power allocation: the slow PyTorch reference runs, Triton's kernels take {what}",
        PerformanceWarning,
        stacklevel=3,
    )


def _row_tile(carriers: int, values: int) -> tuple[int, int]:
    """(rows, values) of a tile of whole rows."""
    b = triton.next_power_of_2(carriers)
    return max(1, min(64, (2**20 if INTERPRETED else values) // b)), b


def real(value: Tensor) -> Tensor:
    return torch.view_as_real(value.resolve_conj())


def water_filling(x: Tensor, mass: Tensor, inverse: bool) -> tuple[Tensor, ...]:
    """See power_rounded.water_filling."""
    rows, carriers = x.shape
    if carriers > MOST_CARRIERS:
        slow(f"at most {MOST_CARRIERS} carriers")
    if not x.numel() or carriers > MOST_CARRIERS:
        return power_rounded.water_filling(x, mass, inverse)
    p = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    theta = torch.empty(rows, dtype=x.dtype, device=x.device)
    r, b = _row_tile(carriers, 4096 // x.element_size())
    _water_kernel[(triton.cdiv(rows, r),)](
        x, mass, p, theta, *x.stride(), mass.stride(0), rows, carriers, INVERSE=inverse, R=r, B=b,
        num_warps=WARPS if b <= 4096 else 16,
    )  # fmt: skip
    return p, theta


def _mse_warps(values: int) -> int:
    """So many that no value of a row leaves the registers."""
    return WARPS if values <= 256 else 8 if values <= 1024 else 16


def mse_water_filling(gains: Tensor, weights: Tensor, power: Tensor) -> tuple[Tensor, ...]:
    """See power_reference.mse_water_filling."""
    rows, carriers = gains.shape
    if carriers > MOST_CARRIERS:
        slow(f"at most {MOST_CARRIERS} carriers")
    if not gains.numel() or carriers > MOST_CARRIERS:
        return power_rounded.mse_water_filling(gains, weights, power)
    p = torch.empty(gains.shape, dtype=gains.dtype, device=gains.device)
    level = torch.empty(rows, dtype=gains.dtype, device=gains.device)
    r, b = _row_tile(carriers, _MSE_TILE)
    _mse_kernel[(triton.cdiv(rows, r),)](
        gains, weights, power, p, level, *gains.stride(), *weights.stride(), power.stride(0),
        rows, carriers, R=r, B=b, num_warps=_mse_warps(b),
    )  # fmt: skip
    return p, level


def power_normalize(x: Tensor, power: Tensor, mean: bool) -> Tensor:
    """See power_reference.normalize."""
    rows, carriers = x.shape
    if carriers > MOST_CARRIERS:
        slow(f"at most {MOST_CARRIERS} carriers")
    if not x.numel() or carriers > MOST_CARRIERS:
        return power_rounded.power_normalize(x, power, mean)
    parts = 2 if x.is_complex() else 1
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    v, to = (real(x), torch.view_as_real(y)) if x.is_complex() else (x, y)
    r, b = _row_tile(carriers * parts, 1024)
    _normalize_kernel[(triton.cdiv(rows, r),)](
        v, power, to, *v.stride()[:2], power.stride(0), rows, carriers, float(carriers if mean else 1),
        PARTS=parts, R=r, B=b, num_warps=WARPS if b <= 2048 else 16,
    )  # fmt: skip
    return y


# ---- compiled where there is no GPU ----------------------------------------------------------------------


def listed(name: str, kernel: Any, types: dict[str, str], constants: dict[str, Any], warps: int) -> Listed:
    """Arguments that `types` leaves out are whole numbers."""
    types = {n: types.get(n, "constexpr" if n in constants else "i32") for n in kernel.arg_names}
    return name, kernel, types, constants, {"num_warps": warps}


def pointers(names: str, dtype: str) -> dict[str, str]:
    return dict.fromkeys(names.split(), f"*{dtype}")


def water_cases() -> list[Listed]:
    """The kernels of this file."""
    cases: list[Listed] = []

    def add(
        name: str, kernel: Any, types: dict[str, str], constants: dict[str, Any], warps: int = WARPS
    ) -> None:
        cases.append(listed(name, kernel, types, constants, warps))

    for dtype, carriers in (("fp32", 64), ("fp32", 1024), ("fp64", 64)):
        r, b = _row_tile(carriers, 1024 if dtype == "fp32" else 512)
        types = pointers("x masses out thetas", dtype)
        for inverse in (True, False):
            name = f"water.{carriers}.{dtype}{'.inverse' if inverse else ''}"
            add(name, _water_kernel, types, {"INVERSE": inverse, "R": r, "B": b})
        r, b = _row_tile(carriers, _MSE_TILE)
        types = pointers("gains weights power out levels", dtype)
        add(f"mse_water.{carriers}.{dtype}", _mse_kernel, types, {"R": r, "B": b}, _mse_warps(b))
        r, b = _row_tile(carriers, 1024)
        types = pointers("x power out", dtype) | {"factor": "fp32"}
        for parts in (1, 2):
            constants = {"PARTS": parts, "R": r, "B": b}
            name = f"normalize.{carriers}.{dtype}{'.complex' if parts == 2 else ''}"
            add(name, _normalize_kernel, types, constants)
    return cases
