# mypy: allow-untyped-defs, allow-untyped-calls
"""Similarity of pictures in Triton: sums along rows, then down columns, of a few planes at a time.

Triton has no shared memory to keep sums along rows in, so they lie in memory between two kernels; backward,
so do the fields. At most FIELD_PIXELS pixels are treated at a time, at least a plane. (As products of tiles
with band matrices, which would need no such room, the kernels spilled thousands of bytes.) Each program
writes its own sum, and sums are added in float64, so that the result does not depend on the order of
programs. Tiles of all planes are one axis of the grid, since the others end at 65535.

float64 pictures go through the PyTorch reference. The interpreter (TRITON_INTERPRET=1 before this module is
imported) runs the kernels on CPU tensors.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import quality_reference
from .quality_reference import Options, math_dtype, pooled

_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # it pays for programs, not for their size
ROWS, COLUMNS = (64, 256) if _INTERPRETED else (16, 64)
BLOCK = 1024
FIELD_PIXELS = 2**22
"""Pixels whose sums lie in memory at a time, four numbers each."""
WARPS = 8

Pair = tuple[Tensor | None, Tensor | None]


@triton.jit
def _weight(k, TAPS: tl.constexpr, CENTER: tl.constexpr):
    """Along one axis, [1, 1]; CENTER is the weight in the middle."""
    from_center = tl.zeros([1, 1], tl.float32) + (k - TAPS // 2)
    return CENTER * tl.exp(-from_center * from_center / 4.5) if TAPS == 11 else CENTER


@triton.jit
def _place(tile, height, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Rows [ROWS, 1] and columns [1, COLUMNS] of a tile, and which of them there are."""
    wide = tl.cdiv(width, COLUMNS)
    row = tile // wide * ROWS + tl.arange(0, ROWS)[:, None]
    column = tile % wide * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    return row, column, (row < height) & (column < width)


@triton.jit
def _middle(image, height, width, sr, sc, scale):
    """A pixel of the plane, about which moments are taken: even, bright pictures keep their variance."""
    return tl.load(image + (height // 2).to(tl.int64) * sr + (width // 2) * sc).to(tl.float32) * scale


@triton.jit
def _along_kernel(
    x,
    y,
    sums,
    first,
    apart,
    tiles,
    channels,
    height,
    width,
    xb,
    xk,
    xr,
    xc,
    yb,
    yk,
    yr,
    yc,
    scale,
    TAPS: tl.constexpr,
    CENTER: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Sums along rows [4, planes, height, windows] of x, y, both squares and the product."""
    here = (tl.program_id(0) // tiles).to(tl.int64)
    plane = first + here
    x += plane // channels * xb + plane % channels * xk
    y += plane // channels * yb + plane % channels * yk
    across = width - TAPS + 1
    row, column, real = _place(tl.program_id(0) % tiles, height, across, ROWS, COLUMNS)
    shift_x = _middle(x, height, width, xr, xc, scale)
    shift_y = _middle(y, height, width, yr, yc, scale)
    of_x = tl.zeros([ROWS, COLUMNS], tl.float32)
    of_y = tl.zeros([ROWS, COLUMNS], tl.float32)
    both = tl.zeros([ROWS, COLUMNS], tl.float32)
    product = tl.zeros([ROWS, COLUMNS], tl.float32)
    for k in range(TAPS):
        w = _weight(k, TAPS, CENTER)
        r = row.to(tl.int64)
        c = (column + k).to(tl.int64)
        p = tl.load(x + r * xr + c * xc, mask=real, other=0).to(tl.float32) * scale - shift_x
        q = tl.load(y + r * yr + c * yc, mask=real, other=0).to(tl.float32) * scale - shift_y
        of_x += w * p
        of_y += w * q
        both += w * (p * p + q * q)
        product += w * (p * q)
    at = sums + (here * height + row) * across + column
    tl.store(at, of_x, mask=real)
    tl.store(at + apart, of_y, mask=real)
    tl.store(at + 2 * apart, both, mask=real)
    tl.store(at + 3 * apart, product, mask=real)


@triton.jit
def _windows_kernel(
    x,
    y,
    sums,
    grad,
    out,
    first,
    apart,
    fields_apart,
    tiles,
    channels,
    height,
    width,
    xb,
    xk,
    xr,
    xc,
    yb,
    yk,
    yr,
    yc,
    scale,
    c1,
    c2,
    unbiased,
    TAPS: tl.constexpr,
    CENTER: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CONTRAST: tl.constexpr,
    BACKWARD: tl.constexpr,
):
    """Moments from the sums, then this tile's part of the result; or fields [4, planes, windows]: of the
    product, squares, means of x and y. Names are those of quality_reference.py."""
    here = (tl.program_id(0) // tiles).to(tl.int64)
    plane = first + here
    x += plane // channels * xb + plane % channels * xk
    y += plane // channels * yb + plane % channels * yk
    across = width - TAPS + 1
    down = height - TAPS + 1
    row, column, real = _place(tl.program_id(0) % tiles, down, across, ROWS, COLUMNS)
    mx = tl.zeros([ROWS, COLUMNS], tl.float32)
    my = tl.zeros([ROWS, COLUMNS], tl.float32)
    both = tl.zeros([ROWS, COLUMNS], tl.float32)
    product = tl.zeros([ROWS, COLUMNS], tl.float32)
    for k in range(TAPS):
        w = _weight(k, TAPS, CENTER)
        at = sums + (here * height + row + k) * across + column
        mx += w * tl.load(at, mask=real, other=0)
        my += w * tl.load(at + apart, mask=real, other=0)
        both += w * tl.load(at + 2 * apart, mask=real, other=0)
        product += w * tl.load(at + 3 * apart, mask=real, other=0)
    mean_x = mx + _middle(x, height, width, xr, xc, scale)
    mean_y = my + _middle(y, height, width, yr, yc, scale)
    above_l = 2 * (mean_x * mean_y) + c1
    below_l = mean_x * mean_x + mean_y * mean_y + c1
    above_c = unbiased * (2 * (product - mx * my)) + c2
    below_c = unbiased * (both - (mx * mx + my * my)) + c2
    if BACKWARD:
        slope = tl.load(grad + plane)
        contrast = above_c / below_c
        of_contrast = unbiased * slope / below_c
        luminance = above_l / below_l
        if not CONTRAST:
            of_contrast = of_contrast * luminance
        of_luminance = 0.0 if CONTRAST else slope * contrast / below_l
        of_x = of_luminance * (mean_y - luminance * mean_x) + of_contrast * (contrast * mx - my)
        of_y = of_luminance * (mean_x - luminance * mean_y) + of_contrast * (contrast * my - mx)
        at = out + (here * down + row) * across + column
        tl.store(at, of_contrast, mask=real)
        tl.store(at + fields_apart, -contrast * of_contrast, mask=real)
        tl.store(at + 2 * fields_apart, of_x, mask=real)
        tl.store(at + 3 * fields_apart, of_y, mask=real)
    else:
        value = above_c / below_c if CONTRAST else (above_l * above_c) / (below_l * below_c)
        total = tl.sum(tl.sum(tl.where(real, value, 0.0), 1), 0)
        tl.store(out + first * tiles + tl.program_id(0), total)


@triton.jit
def _spread_kernel(
    fields,
    sums,
    fields_apart,
    apart,
    tiles,
    height,
    width,
    TAPS: tl.constexpr,
    CENTER: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """The fields laid back along rows: [4, planes, windows down, width]."""
    here = (tl.program_id(0) // tiles).to(tl.int64)
    across = width - TAPS + 1
    down = height - TAPS + 1
    row, column, real = _place(tl.program_id(0) % tiles, down, width, ROWS, COLUMNS)
    for field in range(4):
        found = tl.zeros([ROWS, COLUMNS], tl.float32)
        from_ = fields + field * fields_apart + (here * down + row) * across
        for k in range(TAPS):
            c = column - k
            there = real & (c >= 0) & (c < across)
            value = tl.load(from_ + c, mask=there, other=0)
            found += _weight(k, TAPS, CENTER) * value
        tl.store(sums + field * apart + (here * down + row) * width + column, found, mask=real)


@triton.jit
def _add_pooled(found, pooled, row, column, height, width, plane, real):
    """A quarter of the gradient of the mean of 2 x 2 pixels."""
    half = (width + 1) // 2
    at = plane * ((height + 1) // 2) * half
    at += ((row + height % 2) // 2).to(tl.int64) * half + (column + width % 2) // 2
    return found + 0.25 * tl.load(pooled + at, mask=real, other=0).to(tl.float32)


@triton.jit
def _pixels_kernel(
    x,
    y,
    sums,
    px,
    py,
    dx,
    dy,
    first,
    apart,
    tiles,
    channels,
    height,
    width,
    xb,
    xk,
    xr,
    xc,
    yb,
    yk,
    yr,
    yc,
    ub,
    uk,
    ur,
    uc,
    vb,
    vk,
    vr,
    vc,
    scale,
    TAPS: tl.constexpr,
    CENTER: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    FOR_X: tl.constexpr,
    FOR_Y: tl.constexpr,
    POOLED_X: tl.constexpr,
    POOLED_Y: tl.constexpr,
):
    """What `_spread_kernel` wrote, laid back down columns, and the gradient of each pixel from it."""
    here = (tl.program_id(0) // tiles).to(tl.int64)
    plane = first + here
    b = plane // channels
    k = plane % channels
    down = height - TAPS + 1
    row, column, real = _place(tl.program_id(0) % tiles, height, width, ROWS, COLUMNS)
    of_product = tl.zeros([ROWS, COLUMNS], tl.float32)
    of_squares = tl.zeros([ROWS, COLUMNS], tl.float32)
    of_x = tl.zeros([ROWS, COLUMNS], tl.float32)
    of_y = tl.zeros([ROWS, COLUMNS], tl.float32)
    for n in range(TAPS):
        r = row - n
        there = real & (r >= 0) & (r < down)
        w = _weight(n, TAPS, CENTER)
        at = sums + (here * down + r) * width + column
        of_product += w * tl.load(at, mask=there, other=0)
        of_squares += w * tl.load(at + apart, mask=there, other=0)
        of_x += w * tl.load(at + 2 * apart, mask=there, other=0)
        of_y += w * tl.load(at + 3 * apart, mask=there, other=0)
    r = row.to(tl.int64)
    c = column.to(tl.int64)
    x += b * xb + k * xk
    y += b * yb + k * yk
    p = tl.load(x + r * xr + c * xc, mask=real, other=0).to(tl.float32) * scale
    p -= _middle(x, height, width, xr, xc, scale)
    q = tl.load(y + r * yr + c * yc, mask=real, other=0).to(tl.float32) * scale
    q -= _middle(y, height, width, yr, yc, scale)
    if FOR_X:
        found = scale * (of_x + q * of_product + p * of_squares)
        if POOLED_X:
            found = _add_pooled(found, px, row, column, height, width, plane, real)
        tl.store(dx + b * ub + k * uk + r * ur + c * uc, found.to(dx.dtype.element_ty), mask=real)
    if FOR_Y:
        found = scale * (of_y + p * of_product + q * of_squares)
        if POOLED_Y:
            found = _add_pooled(found, py, row, column, height, width, plane, real)
        tl.store(dy + b * vb + k * vk + r * vr + c * vc, found.to(dy.dtype.element_ty), mask=real)


@triton.jit
def _gaps(x, y, b, n, real, channels, height, width, xb, xk, xr, xc, yb, yk, yr, yc):
    column = n % width
    row = n // width % height
    k = n // width // height
    p = tl.load(x + b * xb + k * xk + row * xr + column * xc, mask=real, other=0).to(tl.float32)
    q = tl.load(y + b * yb + k * yk + row * yr + column * yc, mask=real, other=0).to(tl.float32)
    return p - q, k, row, column


@triton.jit
def _error_kernel(
    x, y, partial, tiles, channels, height, width, xb, xk, xr, xc, yb, yk, yr, yc, BLOCK: tl.constexpr
):
    b = (tl.program_id(0) // tiles).to(tl.int64)
    n = (tl.program_id(0) % tiles).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    real = n < channels * height * width
    gap, _, _, _ = _gaps(x, y, b, n, real, channels, height, width, xb, xk, xr, xc, yb, yk, yr, yc)
    tl.store(partial + tl.program_id(0), tl.sum(gap * gap, 0))


@triton.jit
def _error_backward_kernel(
    x,
    y,
    slopes,
    dx,
    dy,
    tiles,
    channels,
    height,
    width,
    xb,
    xk,
    xr,
    xc,
    yb,
    yk,
    yr,
    yc,
    ub,
    uk,
    ur,
    uc,
    vb,
    vk,
    vr,
    vc,
    FOR_X: tl.constexpr,
    FOR_Y: tl.constexpr,
    BLOCK: tl.constexpr,
):
    b = (tl.program_id(0) // tiles).to(tl.int64)
    n = (tl.program_id(0) % tiles).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    real = n < channels * height * width
    gap, k, row, column = _gaps(x, y, b, n, real, channels, height, width, xb, xk, xr, xc, yb, yk, yr, yc)
    found = tl.where(gap == 0, 0.0, tl.load(slopes + b) * gap)
    if FOR_X:
        at = b * ub + k * uk + row * ur + column * uc
        tl.store(dx + at, found.to(dx.dtype.element_ty), mask=real)
    if FOR_Y:
        at = b * vb + k * vk + row * vr + column * vc
        tl.store(dy + at, (-found).to(dy.dtype.element_ty), mask=real)


def similarity(x: Tensor, y: Tensor, options: Options, pool: bool) -> tuple[Tensor, Tensor, Tensor]:
    """See quality_reference.similarity."""
    if math_dtype(x, y) == torch.float64 or not len(x):
        return quality_reference.similarity(x, y, options, pool)
    batch, channels, height, width = x.shape
    down, across = height - len(options.taps) + 1, width - len(options.taps) + 1
    partial = torch.empty(batch, channels, _tiles(down, across), dtype=torch.float32, device=x.device)
    for first, planes, sums in _chunks(x):
        _moments(x, y, options, first, planes, sums)
        _from_moments(x, y, options, first, planes, sums, None, partial)
    means = partial.double().sum(2) / (down * across)
    px, py = (pooled(v.float()) if pool else x.new_empty(0, dtype=torch.float32) for v in (x, y))
    return means, px, py


def similarity_backward(
    grad: Tensor, x: Tensor, y: Tensor, halved: Pair, options: Options, out: Pair
) -> None:
    """See quality_reference.similarity_backward."""
    if math_dtype(x, y) == torch.float64 or not len(x):
        return quality_reference.similarity_backward(grad, x, y, halved, options, out)
    channels, height, width = x.shape[1:]
    down, across = height - len(options.taps) + 1, width - len(options.taps) + 1
    slopes = (2 * grad / (down * across)).float()
    more = [None if v is None else v.contiguous() for v in halved]
    for first, planes, sums in _chunks(x):
        _moments(x, y, options, first, planes, sums)
        fields = torch.empty(4 * planes * down * across, dtype=torch.float32, device=x.device)
        _from_moments(x, y, options, first, planes, sums, slopes, fields)
        tiles = _tiles(down, width)
        sizes = (planes * down * across, planes * down * width, tiles, height, width)
        _spread_kernel[(tiles * planes,)](fields, sums, *sizes, **_constants(options), num_warps=WARPS)
        tiles = _tiles(height, width)
        _pixels_kernel[(tiles * planes,)](
            x,
            y,
            sums,
            *(slopes if v is None else v for v in more),
            *(slopes if v is None else v for v in out),
            first,
            planes * down * width,
            tiles,
            channels,
            height,
            width,
            *x.stride(),
            *y.stride(),
            *_strides(out),
            options.scale,
            **_constants(options),
            FOR_X=out[0] is not None,
            FOR_Y=out[1] is not None,
            POOLED_X=more[0] is not None,
            POOLED_Y=more[1] is not None,
            num_warps=WARPS,
        )
    return None


def _chunks(x: Tensor) -> Iterator[tuple[int, int, Tensor]]:
    """(first plane, how many, room for four sums of their pixels)."""
    planes, pixels = len(x) * x.shape[1], x.shape[2] * x.shape[3]
    most = min(planes, max(1, FIELD_PIXELS // pixels))
    room = torch.empty(4 * most * pixels, dtype=torch.float32, device=x.device)
    for first in range(0, planes, most):
        yield first, min(most, planes - first), room


def _moments(x: Tensor, y: Tensor, options: Options, first: int, planes: int, sums: Tensor) -> None:
    channels, height, width = x.shape[1:]
    tiles = _tiles(height, width - len(options.taps) + 1)
    apart = planes * height * (width - len(options.taps) + 1)
    sizes = (first, apart, tiles, channels, height, width, *x.stride(), *y.stride(), options.scale)
    _along_kernel[(tiles * planes,)](x, y, sums, *sizes, **_constants(options), num_warps=WARPS)


def _from_moments(
    x: Tensor,
    y: Tensor,
    options: Options,
    first: int,
    planes: int,
    sums: Tensor,
    slopes: Tensor | None,
    out: Tensor,
) -> None:
    """Parts of the result into `out`, or, with slopes, fields."""
    channels, height, width = x.shape[1:]
    down, across = height - len(options.taps) + 1, width - len(options.taps) + 1
    tiles = _tiles(down, across)
    _windows_kernel[(tiles * planes,)](
        x,
        y,
        sums,
        out if slopes is None else slopes,
        out,
        first,
        planes * height * across,
        planes * down * across,
        tiles,
        channels,
        height,
        width,
        *x.stride(),
        *y.stride(),
        options.scale,
        options.c1,
        options.c2,
        options.unbiased,
        **_constants(options),
        CONTRAST=options.contrast,
        BACKWARD=slopes is not None,
        num_warps=WARPS,
    )


def squared_error(x: Tensor, y: Tensor) -> Tensor:
    """See quality_reference.squared_error."""
    if math_dtype(x, y) == torch.float64 or not len(x):
        return quality_reference.squared_error(x, y)
    pixels = x[0].numel()
    blocks = triton.cdiv(pixels, BLOCK)
    partial = torch.empty(len(x), blocks, dtype=torch.float32, device=x.device)
    sizes = x.shape[1:]
    _error_kernel[(blocks * len(x),)](x, y, partial, blocks, *sizes, *x.stride(), *y.stride(), BLOCK=BLOCK)
    return partial.double().sum(1) / pixels


def squared_error_backward(grad: Tensor, x: Tensor, y: Tensor, out: Pair) -> None:
    """See quality_reference.squared_error_backward."""
    if math_dtype(x, y) == torch.float64 or not len(x):
        return quality_reference.squared_error_backward(grad, x, y, out)
    pixels = x[0].numel()
    slopes = (2 * grad / pixels).float()
    blocks = triton.cdiv(pixels, BLOCK)
    _error_backward_kernel[(blocks * len(x),)](
        x,
        y,
        slopes,
        *(slopes if v is None else v for v in out),
        blocks,
        *x.shape[1:],
        *x.stride(),
        *y.stride(),
        *_strides(out),
        FOR_X=out[0] is not None,
        FOR_Y=out[1] is not None,
        BLOCK=BLOCK,
    )
    return None


def _strides(out: Pair) -> list[int]:
    return [s for v in out for s in ((0, 0, 0, 0) if v is None else v.stride())]


def _constants(options: Options) -> dict[str, Any]:
    taps = options.taps
    return {"TAPS": len(taps), "CENTER": taps[len(taps) // 2], "ROWS": ROWS, "COLUMNS": COLUMNS}


def _tiles(height: int, width: int) -> int:
    return -(-height // ROWS) * -(-width // COLUMNS)


def ahead_of_time() -> list[tuple[str, Any, dict[str, str], dict[str, Any], dict[str, Any]]]:
    """(name, kernel, signature, constants, options) of the kernels to compile where there is no GPU."""
    sizes = dict.fromkeys(("tiles", "channels", "height", "width"), "i32")
    ins = dict.fromkeys((f"{image}{axis}" for image in "xy" for axis in "bkrc"), "i32")
    outs = dict.fromkeys((f"{image}{axis}" for image in "uv" for axis in "bkrc"), "i32")
    numbers = dict.fromkeys(("c1", "c2", "unbiased"), "fp32")
    part = {"first": "i32", "apart": "i32"}
    cases: list[tuple[str, Any, dict[str, str], dict[str, Any], dict[str, Any]]] = []

    def add(name: str, kernel: Any, signature: dict[str, str], constants: dict[str, Any]) -> None:
        order = [argument for argument in kernel.arg_names if argument in signature | constants]
        full = signature | dict.fromkeys(constants, "constexpr")
        cases.append((name, kernel, {n: full[n] for n in order}, constants, {"num_warps": WARPS}))

    for dtype, window, contrast, both in (
        ("fp32", "gaussian", False, False),
        ("fp32", "gaussian", True, True),
        ("bf16", "gaussian", False, False),
        ("fp16", "uniform", False, True),
        ("u8", "gaussian", False, False),
    ):
        constants = _constants(Options(window, 0.0, 0.0, 1.0))
        name = f"{window}.{dtype}{'.contrast' if contrast else ''}"
        head = {"x": f"*{dtype}", "y": f"*{dtype}", "sums": "*fp32"} | sizes | ins | part | {"scale": "fp32"}
        add(f"similarity_along.{name}", _along_kernel, head, constants)
        windows = head | numbers | {"fields_apart": "i32"} | {"grad": "*fp32", "out": "*fp32"}
        for backward in (False, True):
            more = constants | {"CONTRAST": contrast, "BACKWARD": backward}
            label = f"similarity_{'fields' if backward else 'windows'}.{name}"
            add(label, _windows_kernel, windows, more)
        if dtype == "u8":
            continue
        more = constants | {"FOR_X": True, "FOR_Y": both, "POOLED_X": contrast, "POOLED_Y": contrast}
        to = {"px": "*fp32", "py": "*fp32", "dx": f"*{dtype}", "dy": f"*{dtype}"} | outs
        add(f"similarity_pixels.{name}", _pixels_kernel, head | to, more)
    flat = {"fields": "*fp32", "sums": "*fp32"}
    flat |= dict.fromkeys(("fields_apart", "apart", "tiles", "height", "width"), "i32")
    add("similarity_spread", _spread_kernel, flat, _constants(Options("gaussian", 0.0, 0.0, 1.0)))
    for dtype in ("fp32", "bf16"):
        head = {"x": f"*{dtype}", "y": f"*{dtype}"} | sizes | ins
        add(f"squared_error.{dtype}", _error_kernel, head | {"partial": "*fp32"}, {"BLOCK": BLOCK})
        to = {"slopes": "*fp32", "dx": f"*{dtype}", "dy": f"*{dtype}"} | outs
        both_ways = {"FOR_X": True, "FOR_Y": True, "BLOCK": BLOCK}
        add(f"squared_error_backward.{dtype}", _error_backward_kernel, head | to, both_ways)
    return cases
