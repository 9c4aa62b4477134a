# mypy: allow-untyped-defs, allow-untyped-calls
"""Projection on the simplex in Triton: a program has a row, which stays in the caches for its few passes.

The threshold rises by Newton's method as in simplex_cpu.cpp, with sums in float64, until the number of those
above it does not change. The interpreter (TRITON_INTERPRET=1 before this module is imported) runs the kernel
on CPU tensors.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from tenfold.kernels.zo.zo_triton_tiles import _on
from torch import Tensor

BLOCK = 4096
WARPS = 16


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
    before = 0
    total, count = _above(row, columns, theta, BLOCK)
    while (count != before) & good & (count > 0):
        theta += (total - size) / count
        before = count
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
    return found
