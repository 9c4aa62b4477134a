# mypy: allow-untyped-defs, allow-untyped-calls
"""Projection on the simplex, Adam before it, sampling and sign steps in Triton.

Projection: a program has a row, which stays in the caches for its few passes; the threshold rises by Newton's
method as in simplex_cpu.cpp, with sums in float64, until the number of those above it does not change. The
nearest token is a matrix product and its largest entries: PyTorch's, as in the reference. The interpreter
(TRITON_INTERPRET=1 before this module is imported) runs the kernels on CPU tensors.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from tenfold.kernels.erase.erase_triton import _rounded, _value
from tenfold.kernels.zo.zo_triton import _storage
from tenfold.kernels.zo.zo_triton_tiles import INTERPRETED, _on
from torch import Tensor

from . import attack_reference

BLOCK = 4096
WARPS = 16
TILE = 4096 if INTERPRETED else 1024
"""Of the passes over all elements."""


@triton.jit
def _above(row, columns, theta, BLOCK: tl.constexpr):
    """Of the numbers above theta: the sum of x - theta, and how many."""
    total = tl.zeros([BLOCK], tl.float64)
    count = tl.zeros([BLOCK], tl.int32)
    for first in range(0, columns, BLOCK):
        at = first + tl.arange(0, BLOCK)
        x = tl.load(row + at, mask=at < columns, other=float("-inf")).to(tl.float64)
        inside = x > theta
        total += tl.where(inside, x - theta, 0.0)
        count += inside.to(tl.int32)
    return tl.sum(total, 0), tl.sum(count, 0)


@triton.jit
def _project_kernel(p, out, radius, columns, BLOCK: tl.constexpr):
    row = p + tl.program_id(0).to(tl.int64) * columns
    to = out + tl.program_id(0).to(tl.int64) * columns
    most = tl.full([BLOCK], float("-inf"), tl.float64)
    wrong = tl.zeros([BLOCK], tl.int32)
    for first in range(0, columns, BLOCK):
        at = first + tl.arange(0, BLOCK)
        x = tl.load(row + at, mask=at < columns, other=float("-inf")).to(tl.float64)
        wrong = tl.where(x < float("inf"), wrong, 1)  # infinite or not a number
        most = tl.where(x > most, x, most)
    top = tl.max(most, 0)
    good = (tl.sum(wrong, 0) == 0) & (top > float("-inf"))
    size = tl.load(radius)
    theta = tl.where(good, top - size, 0.0)
    # As simplex_threshold of attack.hpp: the limit only rises. Where it would not, it is known to rounding.
    before, step, rises = 0, 0, good
    total, count = _above(row, columns, theta, BLOCK)
    while rises & (count != before) & (count > 0) & (step < 200):
        higher = theta + (total - size) / count
        rises = higher > theta
        theta = tl.where(rises, higher, theta)
        before = count
        step += 1
        total, count = _above(row, columns, theta, BLOCK)
    for first in range(0, columns, BLOCK):
        at = first + tl.arange(0, BLOCK)
        x = tl.load(row + at, mask=at < columns, other=float("-inf")).to(tl.float64)
        y = tl.where(good, tl.where(x > theta, x - theta, 0.0), float("nan"))
        tl.store(to + at, y.to(out.dtype.element_ty), mask=at < columns)


def simplex_project(p: Tensor, radius: float) -> Tensor:
    """See attack_reference.simplex_project."""
    out = torch.empty_like(p)
    if len(p):
        # A float argument would reach the kernel in float32.
        size = torch.full((1,), radius, dtype=torch.float64, device=p.device)
        with _on(p.device):
            _project_kernel[(len(p),)](p, out, size, p.shape[1], BLOCK, num_warps=WARPS)
    return out


@triton.jit
def _adam_kernel(
    p, m, v, product, banned, decay, keep1, take1, keep2, take2, spread, eps, rate, columns,
    BANNED: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Names as in AdamNumbers of attack.hpp."""
    tiles = tl.cdiv(columns, TILE)
    column = tl.program_id(0) % tiles * TILE + tl.arange(0, TILE)
    real = column < columns
    at = (tl.program_id(0) // tiles).to(tl.int64) * columns + column
    g = tl.load(product + at, mask=real, other=0.0)
    g = tl.where(g < -1.0, -1.0, tl.where(g > 1.0, 1.0, g))
    before = tl.load(p + at, mask=real, other=0.0)
    g = g + decay * before
    first = keep1 * tl.load(m + at, mask=real, other=0.0) + take1 * g
    second = keep2 * tl.load(v + at, mask=real, other=0.0) + take2 * (g * g)
    stepped = before - rate * tl.div_rn(first, tl.sqrt_rn(second) * spread + eps)
    if BANNED:
        stepped = tl.where(tl.load(banned + column, mask=real, other=0) != 0, float("-inf"), stepped)
    tl.store(p + at, stepped, mask=real)
    tl.store(m + at, first, mask=real)
    tl.store(v + at, second, mask=real)


def ste_adam_simplex_(
    p: Tensor,
    m: Tensor,
    v: Tensor,
    grad_embeds: Tensor,
    table: Tensor,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    step: int,
    banned: Tensor | None,
) -> None:
    """See attack_reference.ste_adam_simplex_."""
    if not len(p):
        return
    product = attack_reference.times_transposed(grad_embeds, table)
    spread, rate = 1 / math.sqrt(1 - beta2**step), lr / (1 - beta1**step)
    numbers = (weight_decay, beta1, 1 - beta1, beta2, 1 - beta2, spread, eps, rate)
    words = p if banned is None else banned.view(torch.uint8)
    with _on(p.device):
        _adam_kernel[(len(p) * triton.cdiv(p.shape[1], TILE),)](
            p, m, v, product, words, *map(float, numbers), p.shape[1], BANNED=banned is not None, TILE=TILE,
            enable_fp_fusion=False,
        )  # fmt: skip
        size = torch.ones(1, dtype=torch.float64, device=p.device)
        _project_kernel[(len(p),)](p, p, size, p.shape[1], BLOCK, num_warps=WARPS)


@triton.jit
def _sample_kernel(p, u, out, columns, BLOCK: tl.constexpr):
    """Sums of tiles in order, then the first number above 0 with which the sum passes the point."""
    row = p + tl.program_id(0).to(tl.int64) * columns
    total = tl.zeros([], tl.float64)
    for first in range(0, columns, BLOCK):
        at = first + tl.arange(0, BLOCK)
        total += tl.sum(tl.load(row + at, mask=at < columns, other=0).to(tl.float64), 0)
    good = (total > 0) & (total < float("inf"))
    point = tl.load(u + tl.program_id(0)) * total
    before = tl.zeros([], tl.float64)
    found, last = columns, -1
    for first in range(0, columns, BLOCK):
        at = first + tl.arange(0, BLOCK)
        x = tl.load(row + at, mask=at < columns, other=0).to(tl.float64)
        passed = (x > 0) & (before + tl.cumsum(x, 0) > point)
        found = tl.minimum(found, tl.min(tl.where(passed, at, columns), 0))
        last = tl.maximum(last, tl.max(tl.where(x > 0, at, -1), 0))
        before += tl.sum(x, 0)
    # Rounding may let the sum be reached, not passed.
    tl.store(out + tl.program_id(0), tl.where(good, tl.minimum(found, last), -1).to(tl.int64))


def sample_rows(p: Tensor, u: Tensor) -> Tensor:
    """See attack_reference.sample_rows."""
    out = torch.empty(len(p), dtype=torch.int64, device=p.device)
    if len(p):
        with _on(p.device):
            _sample_kernel[(len(p),)](p, u, out, p.shape[1], BLOCK, num_warps=WARPS)
    return out


@triton.jit
def _far(delta, grad, origin, lr, at, real, ORIGIN: tl.constexpr):
    """(distance from the centre after the step, the centre)."""
    centre = tl.zeros(at.shape, tl.float32)
    if ORIGIN:
        centre = _value(tl.load(origin + at, mask=real, other=0))
    g = _value(tl.load(grad + at, mask=real, other=0))
    sign = tl.where(g > 0, 1.0, tl.where(g < 0, -1.0, g))
    return _value(tl.load(delta + at, mask=real, other=0)) - lr * sign - centre, centre


@triton.jit
def _linf_kernel(delta, grad, origin, lr, eps, size, ORIGIN: tl.constexpr, TILE: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    real = at < size
    far, centre = _far(delta, grad, origin, lr, at, real, ORIGIN)
    far = tl.where(far > eps, eps, tl.where(far < -eps, -eps, far))
    tl.store(delta + at, _rounded(centre + far, delta), mask=real)


@triton.jit
def _l2_kernel(delta, grad, origin, lr, eps, size, ORIGIN: tl.constexpr, TILE: tl.constexpr):
    """A program has a row, which it reads twice."""
    row = tl.program_id(0).to(tl.int64) * size
    total = tl.zeros([TILE], tl.float64)
    for first in range(0, size, TILE):
        within = first + tl.arange(0, TILE)
        far, _ = _far(delta, grad, origin, lr, row + within, within < size, ORIGIN)
        wide = tl.where(within < size, far, 0.0).to(tl.float64)
        total += wide * wide
    length, radius = tl.sqrt(tl.sum(total, 0)), tl.load(eps)
    factor = tl.where(length > radius, radius / length, 1.0).to(tl.float32)
    for first in range(0, size, TILE):
        within = first + tl.arange(0, TILE)
        far, centre = _far(delta, grad, origin, lr, row + within, within < size, ORIGIN)
        tl.store(delta + row + within, _rounded(centre + far * factor, delta), mask=within < size)


def sign_step_(
    delta: Tensor, grad: Tensor, lr: float, eps: float | None, norm: str, origin: Tensor | None
) -> None:
    """See attack_reference.sign_step_."""
    if delta.dtype == torch.float64 or not delta.numel():
        attack_reference.sign_step_(delta, grad, lr, eps, norm, origin)
        return
    given = [_storage(x) for x in (delta, grad, delta if origin is None else origin)]
    constants: dict[str, Any] = {"ORIGIN": origin is not None, "TILE": TILE, "enable_fp_fusion": False}
    with _on(delta.device):
        if norm == "l2" and eps is not None:
            radius = torch.full((1,), eps, dtype=torch.float64, device=delta.device)
            _l2_kernel[(len(delta),)](*given, float(lr), radius, delta[0].numel(), **constants)
            return
        size = delta.numel()
        limit = math.inf if eps is None else float(eps)
        _linf_kernel[(triton.cdiv(size, TILE),)](*given, float(lr), limit, size, **constants)


def ahead_of_time() -> list[tuple[str, Any, dict[str, str], dict[str, Any], dict[str, Any]]]:
    """What nox -s cuda_compile compiles without a GPU: (name, kernel, signature, constants, options)."""
    found: list[tuple[str, Any, dict[str, str], dict[str, Any], dict[str, Any]]] = []
    for kind in ("fp32", "fp64"):
        given = {
            "p": f"*{kind}",
            "out": f"*{kind}",
            "radius": "*fp64",
            "columns": "i32",
            "BLOCK": "constexpr",
        }
        found.append((f"simplex.{kind}", _project_kernel, given, {"BLOCK": BLOCK}, {"num_warps": WARPS}))
        given = {"p": f"*{kind}", "u": "*fp64", "out": "*i64", "columns": "i32", "BLOCK": "constexpr"}
        found.append((f"sample.{kind}", _sample_kernel, given, {"BLOCK": BLOCK}, {"num_warps": WARPS}))
    exact: dict[str, Any] = {"enable_fp_fusion": False}
    given = dict.fromkeys(("p", "m", "v", "product"), "*fp32") | {"banned": "*u8"}
    numbers = ("decay", "keep1", "take1", "keep2", "take2", "spread", "eps", "rate")
    given |= (
        dict.fromkeys(numbers, "fp32") | {"columns": "i32"} | dict.fromkeys(("BANNED", "TILE"), "constexpr")
    )
    found.append(("adam", _adam_kernel, given, {"BANNED": True, "TILE": TILE}, exact))
    for name, kind in (("fp32", "*fp32"), ("bf16", "*u16"), ("fp16", "*fp16")):
        for op, kernel, radius in (("linf", _linf_kernel, "fp32"), ("l2", _l2_kernel, "*fp64")):
            given = dict.fromkeys(("delta", "grad", "origin"), kind) | {"lr": "fp32", "eps": radius}
            given |= {"size": "i32", "ORIGIN": "constexpr", "TILE": "constexpr"}
            found.append((f"sign_{op}.{name}", kernel, given, {"ORIGIN": True, "TILE": TILE}, exact))
    return found
