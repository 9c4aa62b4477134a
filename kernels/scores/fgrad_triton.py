# mypy: allow-untyped-defs, allow-untyped-calls
"""Columns of inner products of factored gradients in Triton; the rest of the pursuit is fgrad_reference.py's.

A program makes ROWS rows; products and sums are float64.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import fgrad_reference

ROWS, BLOCK, WARPS = 16, 64, 4


@triton.jit
def _dots(factor, pick, rows, width, stride, n, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Inner products of ROWS rows of a factor with the row `pick`."""
    total = tl.zeros([ROWS], tl.float64)
    for first in range(0, width, BLOCK):
        v = first + tl.arange(0, BLOCK)
        inside = v < width
        with_row = tl.load(factor + pick * stride + v, mask=inside, other=0.0).to(tl.float64)
        x = tl.load(
            factor + rows[:, None] * stride + v[None, :],
            mask=(rows < n)[:, None] & inside[None, :],
            other=0.0,
        ).to(tl.float64)
        total += tl.sum(x * with_row[None, :], axis=1)
    return total


@triton.jit
def _column_kernel(
    errors, hidden, picks, out, n, classes, width, e_stride, h_stride, bias,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    pick = tl.load(picks)
    e = _dots(errors, pick, rows, classes, e_stride, n, ROWS, BLOCK)
    h = _dots(hidden, pick, rows, width, h_stride, n, ROWS, BLOCK)
    tl.store(out + rows, e * (h + bias), mask=rows < n)


def _rows(x: Tensor) -> Tensor:
    return x if x.stride(1) == 1 or x.shape[1] <= 1 else x.contiguous()


def column(e: Tensor, h: Tensor, pick: Tensor, bias: bool) -> Tensor:
    """See fgrad_reference.column."""
    out = torch.empty(e.shape[0], dtype=torch.float64, device=e.device)
    errors, hidden = _rows(e), _rows(h)
    grid = (triton.cdiv(e.shape[0], ROWS),)
    _column_kernel[grid](
        errors, hidden, pick, out, e.shape[0], e.shape[1], h.shape[1], errors.stride(0), hidden.stride(0),
        float(bias), ROWS, BLOCK, num_warps=WARPS,
    )  # fmt: skip
    return out


def omp(
    e: Tensor, h: Tensor, target: Tensor | None, k: int, lam: float, bias: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See fgrad_reference.omp."""
    return fgrad_reference.omp(_rows(e), _rows(h), target, k, lam, bias, column)


def ahead_of_time() -> list[tuple]:
    """(name, kernel, signature, constants, options) for benchmarks/cuda_compile.py."""
    signature = {"errors": "*fp32", "hidden": "*fp32", "picks": "*i64", "out": "*fp64"}
    signature |= {"n": "i64", "classes": "i32", "width": "i32", "e_stride": "i64", "h_stride": "i64"}
    signature |= {"bias": "fp32", "ROWS": "constexpr", "BLOCK": "constexpr"}
    return [("column", _column_kernel, signature, {"ROWS": ROWS, "BLOCK": BLOCK}, {"num_warps": WARPS})]
