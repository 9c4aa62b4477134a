# mypy: allow-untyped-defs, allow-untyped-calls
"""Kernel discrepancies in Triton: a program owns a block of points and meets all others in turn.

Unlike the CPU kernel it makes every tile twice, once for either block: no two programs write one place, the
sums have one order, and nothing waits.  Points are centred and widths made by PyTorch on the device, so no
value travels to the host.  Dimensions are passed in chunks; with several, a program also owns one chunk of
the gradient and makes the inner products anew.

Products are IEEE float32 (no TF32): |a|^2 + |b|^2 - 2ab cancels.  A value per column of v is a matrix product
with the kernel matrix, and goes strip by strip through the device's own (mmd_reference).

Triton's interpreter (TRITON_INTERPRET=1 before this module is imported) runs the kernels on CPU tensors.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from . import mmd_device, mmd_reference
from .mmd_device import TILE, ContrastPass, PairPass
from .mmd_reference import CLAMP, Contrast, Pairs

ROWS, COLUMNS, CHUNK = TILE, 32, 32
WARPS = 8  # with 4, or larger tiles, registers spill
CLASS_COLUMNS = 16
_LOW, _HIGH = tl.constexpr(CLAMP[0]), tl.constexpr(CLAMP[1])


@triton.jit
def _kernel(d, inverse, stride, KERNELS: tl.constexpr, DOUBLING: tl.constexpr, CLAMPED: tl.constexpr):
    """(k(d), -k'(d)); `inverse` holds 1 / width from the narrowest, for the tile or one per row."""
    total = tl.zeros_like(d)
    slope = tl.zeros_like(d)
    if DOUBLING:
        widest = tl.load(inverse + (KERNELS - 1) * stride)
        p = tl.exp(-d * widest)
        for u in tl.static_range(KERNELS):
            total += p
            slope += p * tl.load(inverse + (KERNELS - 1 - u) * stride)
            p = p * p
    else:
        for u in tl.static_range(KERNELS):
            each = tl.load(inverse + u * stride)
            t = d * each
            if CLAMPED:
                e = tl.exp(-tl.where(t < _LOW, _LOW, tl.where(t > _HIGH, _HIGH, t)))
                slope += tl.where((t < _LOW) | (t > _HIGH), 0.0, e) * each
            else:
                e = tl.exp(-t)
                slope += e * each
            total += e
    return total, slope


@triton.jit
def _distances(z, rows, columns, points, dim, SAME_POINT_ZERO: tl.constexpr, CHUNK: tl.constexpr):
    """|z_i - z_j|^2, never negative, exactly 0 for i == j."""
    inner = tl.zeros([rows.shape[0], columns.shape[0]], tl.float32)
    left = tl.zeros([rows.shape[0]], tl.float32)
    right = tl.zeros([columns.shape[0]], tl.float32)
    for first in range(0, dim, CHUNK):
        k = first + tl.arange(0, CHUNK)
        a = tl.load(
            z + rows[:, None] * dim + k[None, :],
            mask=(rows < points)[:, None] & (k < dim)[None, :],
            other=0.0,
        )
        b = tl.load(
            z + columns[:, None] * dim + k[None, :],
            mask=(columns < points)[:, None] & (k < dim)[None, :],
            other=0.0,
        )
        inner += tl.dot(a, tl.trans(b), input_precision="ieee")
        left += tl.sum(a * a, axis=1)
        right += tl.sum(b * b, axis=1)
    d = left[:, None] + right[None, :] - 2.0 * inner
    d = tl.where(d < 0.0, 0.0, d)  # keeps NaN
    return tl.where((rows[:, None] == columns[None, :]) & SAME_POINT_ZERO, 0.0, d)


@triton.jit
def _chunk(z, points, rows, dim, first, CHUNK: tl.constexpr):
    k = first + tl.arange(0, CHUNK)
    inside = (rows < points)[:, None] & (k < dim)[None, :]
    return tl.load(z + rows[:, None] * dim + k[None, :], mask=inside, other=0.0)


@triton.jit
def _pairs(
    z,
    v,
    inverse,
    partial,
    gradient,
    points,
    sources,
    dim,
    weights,
    v_set,
    within_x,
    within_y,
    KERNELS: tl.constexpr,
    DOUBLING: tl.constexpr,
    UNBIASED: tl.constexpr,
    GRADIENT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHUNK: tl.constexpr,
    WEIGHTS: tl.constexpr,
):
    problem = tl.program_id(1).to(tl.int64)
    z += problem * points * dim
    v += problem * v_set
    inverse += problem * KERNELS
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    own = tl.program_id(2) * CHUNK
    value = tl.zeros([ROWS], tl.float64)
    pull = tl.zeros([ROWS], tl.float32)
    moved = tl.zeros([ROWS, CHUNK], tl.float32)
    for start in range(0, points, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        d = _distances(z, rows, columns, points, dim, True, CHUNK)
        total, slope = _kernel(d, inverse, 1, KERNELS, DOUBLING, False)
        w = tl.zeros([ROWS, COLUMNS], tl.float32)
        for first in range(0, weights, WEIGHTS):
            c = first + tl.arange(0, WEIGHTS)
            a = tl.load(
                v + rows[:, None] * weights + c[None, :],
                mask=(rows < points)[:, None] & (c < weights)[None, :],
                other=0.0,
            )
            b = tl.load(
                v + columns[:, None] * weights + c[None, :],
                mask=(columns < points)[:, None] & (c < weights)[None, :],
                other=0.0,
            )
            if WEIGHTS == 1:
                w += a * tl.trans(b)
            else:
                w += tl.dot(a, tl.trans(b), input_precision="ieee")
        if UNBIASED:
            left = (rows < sources)[:, None]
            right = (columns < sources)[None, :]
            w = tl.where(left & right, w * within_x, tl.where(left | right, w, w * within_y))
            w = tl.where(rows[:, None] == columns[None, :], 0.0, w)
        value += tl.sum(w * total, axis=1).to(tl.float64)
        if GRADIENT:
            g = w * slope
            pull += tl.sum(g, axis=1)
            moved += tl.dot(g, _chunk(z, points, columns, dim, own, CHUNK), input_precision="ieee")
    if GRADIENT:
        k = own + tl.arange(0, CHUNK)
        here = _chunk(z, points, rows, dim, own, CHUNK)
        place = problem * points * dim + rows[:, None] * dim + k[None, :]
        inside = (rows < points)[:, None] & (k < dim)[None, :]
        tl.store(gradient + place, -4.0 * (pull[:, None] * here - moved), mask=inside)
    if tl.program_id(2) == 0:
        sums = tl.sum(tl.where(rows < points, value, 0.0), axis=0)
        tl.store(partial + problem * tl.num_programs(0) + tl.program_id(0), sums)


def _launch_pairs(p: PairPass) -> None:
    batch, points, dim = p.z.shape
    chunks = triton.cdiv(dim, CHUNK) if p.options.gradient else 1
    columns = p.v.shape[2]
    _pairs[(triton.cdiv(points, ROWS), batch, chunks)](
        p.z,
        p.v,
        p.inverse,
        p.partial,
        p.gradient,
        points,
        p.sources,
        dim,
        columns,
        0 if p.v.shape[0] == 1 else points * columns,
        *p.within,
        KERNELS=len(p.options.factors),
        DOUBLING=p.doubling,
        UNBIASED=p.options.unbiased,
        GRADIENT=p.options.gradient,
        ROWS=ROWS,
        COLUMNS=COLUMNS,
        CHUNK=CHUNK,
        WEIGHTS=1 if columns == 1 else 16,
        num_warps=WARPS,
    )


def pairs(x: Tensor, y: Tensor, v: Tensor | None, base: Tensor | None, o: Pairs) -> tuple[Tensor, ...]:
    """See mmd_reference.pairs."""
    return mmd_device.pairs(_launch_pairs, x, y, v, base, o)


@triton.jit
def _contrast(
    z,
    labels,
    inverse,
    weights,
    kernel_sums,
    gradient,
    points,
    sources,
    dim,
    classes,
    KERNELS: tl.constexpr,
    DOUBLING: tl.constexpr,
    CLAMPED: tl.constexpr,
    GRADIENT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """For each point and each class of the other side: the kernel sums over its own class and over that one.

    A point of class a meets, for class b of the other side, its own class with weight `own` and that class
    with weight `other`, both at the width of the pair.
    """
    problem = tl.program_id(1).to(tl.int64)
    z += problem * points * dim
    labels += problem * points
    inverse += problem * classes * classes * KERNELS
    weights += problem * classes * classes * 4
    kernel_sums += problem * points * classes * 2
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    chunk = tl.program_id(2) * CHUNK
    y = tl.load(labels + rows, mask=rows < points, other=-1)
    source = rows < sources
    known = y >= 0
    intra = tl.zeros([ROWS, CHUNK], tl.float32)
    inter = tl.zeros([ROWS, CHUNK], tl.float32)
    pull_intra = tl.zeros([ROWS], tl.float32)
    pull_inter = tl.zeros([ROWS], tl.float32)
    for start in range(0, points, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        yc = tl.load(labels + columns, mask=columns < points, other=-1)
        same_side = source[:, None] == (columns < sources)[None, :]
        d = _distances(z, rows, columns, points, dim, True, CHUNK)
        g_intra = tl.zeros([ROWS, COLUMNS], tl.float32)
        g_inter = tl.zeros([ROWS, COLUMNS], tl.float32)
        valid = known[:, None] & (yc >= 0)[None, :] & (columns < points)[None, :]
        own = same_side & (y[:, None] == yc[None, :]) & valid
        for b in range(classes):
            pair = tl.where(source, y * classes + b, b * classes + y)
            pair = tl.where(known, pair, 0)
            other = (same_side == 0) & (yc == b)[None, :] & valid
            at = inverse + pair * KERNELS
            total, slope = _kernel(d, at[:, None], 1, KERNELS, DOUBLING, CLAMPED)
            side = tl.where(source, 0, 1)
            w_own = tl.load(weights + pair * 4 + side)
            w_other = tl.load(weights + pair * 4 + 2)
            place = kernel_sums + (rows * classes + b) * 2
            stored = rows < points
            first = tl.sum(tl.where(own, total, 0.0), axis=1).to(tl.float64)
            second = tl.sum(tl.where(other, total, 0.0), axis=1).to(tl.float64)
            if tl.program_id(2) == 0:
                tl.store(place, tl.load(place, mask=stored, other=0.0) + first, mask=stored)
                tl.store(place + 1, tl.load(place + 1, mask=stored, other=0.0) + second, mask=stored)
            if GRADIENT:
                g = (tl.where(own, w_own[:, None], 0.0) + tl.where(other, w_other[:, None], 0.0)) * slope
                kind = (y == b)[:, None]
                g_intra += tl.where(kind, g, 0.0)
                g_inter += tl.where(kind, 0.0, g)
        if GRADIENT:
            there = _chunk(z, points, columns, dim, chunk, CHUNK)
            pull_intra += tl.sum(g_intra, axis=1)
            pull_inter += tl.sum(g_inter, axis=1)
            intra += tl.dot(g_intra, there, input_precision="ieee")
            inter += tl.dot(g_inter, there, input_precision="ieee")
    if GRADIENT:
        k = chunk + tl.arange(0, CHUNK)
        here = _chunk(z, points, rows, dim, chunk, CHUNK)
        place = problem * points * dim + rows[:, None] * dim + k[None, :]
        inside = (rows < points)[:, None] & (k < dim)[None, :]
        tl.store(gradient + place, -4.0 * (pull_intra[:, None] * here - intra), mask=inside)
        place += tl.num_programs(1).to(tl.int64) * points * dim
        tl.store(gradient + place, -4.0 * (pull_inter[:, None] * here - inter), mask=inside)


def _launch_contrast(p: ContrastPass) -> None:
    batch, points, dim = p.z.shape
    chunks = triton.cdiv(dim, CHUNK) if p.options.gradient else 1
    _contrast[(triton.cdiv(points, ROWS), batch, chunks)](
        p.z,
        p.labels,
        p.inverse,
        p.weights,
        p.sums,
        p.gradient,
        points,
        p.sources,
        dim,
        p.options.classes,
        KERNELS=len(p.options.factors),
        DOUBLING=p.doubling,
        CLAMPED=p.options.clamp,
        GRADIENT=p.options.gradient,
        ROWS=ROWS,
        COLUMNS=CLASS_COLUMNS,
        CHUNK=CHUNK,
        num_warps=WARPS,
    )


def contrast(s: Tensor, ys: Tensor, t: Tensor, yt: Tensor, o: Contrast) -> tuple[Tensor, ...]:
    """See mmd_reference.contrast."""
    return mmd_device.contrast(_launch_contrast, s, ys, t, yt, o)


median_distance = mmd_reference.median_distance


def ahead_of_time() -> list[tuple[str, Any, dict[str, str], dict[str, Any], dict[str, Any]]]:
    """(name, kernel, signature, constants, options) of the kernels to compile where there is no GPU."""
    tile = {"ROWS": ROWS, "COLUMNS": COLUMNS, "CHUNK": CHUNK}
    cases: list[tuple[str, Any, dict[str, str], dict[str, Any], dict[str, Any]]] = []
    for name, doubling, unbiased, gradient, columns in (
        ("biased", True, False, True, 1),
        ("unbiased", False, True, True, 1),
        ("value", True, False, False, 1),
        ("columns", True, False, True, 16),
    ):
        constants = {"KERNELS": 5, "DOUBLING": doubling, "UNBIASED": unbiased, "GRADIENT": gradient}
        constants |= {**tile, "WEIGHTS": columns}
        signature = {"z": "*fp32", "v": "*fp32", "inverse": "*fp32", "partial": "*fp64", "gradient": "*fp32"}
        signature |= dict.fromkeys(("points", "sources", "dim", "weights", "v_set"), "i32")
        signature |= {"within_x": "fp32", "within_y": "fp32"} | dict.fromkeys(constants, "constexpr")
        cases.append((f"pairs.{name}", _pairs, signature, constants, {"num_warps": WARPS}))
    for name, doubling, clamped in (("doubling", True, False), ("clamped", False, True)):
        constants = {"KERNELS": 5, "DOUBLING": doubling, "CLAMPED": clamped, "GRADIENT": True, **tile}
        constants["COLUMNS"] = CLASS_COLUMNS
        signature = {"z": "*fp32", "labels": "*i64", "inverse": "*fp32", "weights": "*fp32"}
        signature |= {"kernel_sums": "*fp64", "gradient": "*fp32"}
        signature |= dict.fromkeys(("points", "sources", "dim", "classes"), "i32")
        signature |= dict.fromkeys(constants, "constexpr")
        cases.append((f"contrast.{name}", _contrast, signature, constants, {"num_warps": WARPS}))
    return cases
