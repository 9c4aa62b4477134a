# mypy: allow-untyped-defs, allow-untyped-calls
"""The superposition channel in Triton: samples of one row, gains and noise from the counter in registers.

A block of the generator has two samples; where a row has an even number of carriers, a lane makes both. The
bits are those of the reference: the launch forbids the compiler to fuse, and square roots are taken outside.
The interpreter (TRITON_INTERPRET=1 before this module is imported) runs the kernels on CPU tensors.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..zo.zo_reference import _sqrt
from ..zo.zo_triton_tiles import _box_muller, _on, _philox
from . import channel_device
from .channel_reference import Draw, Given
from .channel_reference import wanted as _wanted

LANES, WARPS = 256, 4
_FADING = tl.constexpr(0)
_NOISE = tl.constexpr(1)


@triton.jit
def _normals(sample, stream, tag, seed, EACH: tl.constexpr):
    """Real and imaginary parts of a sample and, where EACH is 2 and `sample` even, of the next one."""
    block = sample >> 1
    low, high = block.to(tl.uint32), (block >> 32).to(tl.uint32)
    fixed = tl.zeros_like(low)
    w0, w1, w2, w3 = _philox(
        low, high, fixed + stream, fixed + tag, seed.to(tl.uint32), (seed >> 32).to(tl.uint32)
    )
    a, b = _box_muller(w0, w1)
    c, d = _box_muller(w2, w3)
    if EACH == 1:
        second = (sample & 1) != 0
        a, b = tl.where(second, c, a), tl.where(second, d, b)
    return a, b, c, d


@triton.jit
def _sample(base, at, real):
    """Both parts of a complex number."""
    return tl.load(base + 2 * at, mask=real, other=0), tl.load(base + 2 * at + 1, mask=real, other=0)


@triton.jit
def _store(base, at, re, im, real):
    tl.store(base + 2 * at, re, mask=real)
    tl.store(base + 2 * at + 1, im, mask=real)


@triton.jit
def _place(rows, carriers, LANES: tl.constexpr, EACH: tl.constexpr):
    """Row and first carrier of each lane, and which lanes there are."""
    i = tl.program_id(0).to(tl.int64) * LANES + tl.arange(0, LANES)
    wide = carriers // EACH
    return i // wide, i % wide * EACH, i < rows * wide


@triton.jit
def _gains(
    g, row, n, k, real, mean, scale, users, carriers, gr, gn, gk, mr, mn, sr, sn, first, block, seed, tag,
    EACH: tl.constexpr, DRAWN: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """Gains of user n: both parts of one carrier and, where EACH is 2, of the next."""
    if DRAWN:
        index = ((row + first) // block * users + n) * carriers + k
        a, b, c, d = _normals(index, _FADING, tag, seed, EACH)
        size = tl.load(scale + row * sr + n * sn, mask=real, other=0)
        middle = tl.load(mean + row * mr + n * mn, mask=real, other=0)
        return (
            a.to(DTYPE) * size + middle, b.to(DTYPE) * size, c.to(DTYPE) * size + middle, d.to(DTYPE) * size
        )  # fmt: skip
    else:
        at = row * gr + n * gn + k * gk
        a, b = _sample(g, at, real)
        c, d = a, b
        if EACH == 2:
            c, d = _sample(g, at + gk, real)
        return a, b, c, d


@triton.jit(do_not_specialize=["seed", "tag", "first", "block"])
def _channel_kernel(
    u, g, mean, scale, size, alpha, out, rows, users, carriers, ur, un, uk, gr, gn, gk, mr, mn, sr, sn, ar,
    first: tl.int64, block: tl.int64, seed: tl.uint64, tag: tl.uint32,
    LANES: tl.constexpr, EACH: tl.constexpr, DRAWN: tl.constexpr, SCALED: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    row, k, real = _place(rows, carriers, LANES, EACH)
    first, block, seed, tag = first.to(tl.int64), block.to(tl.int64), seed.to(tl.uint64), tag.to(tl.uint32)
    re0 = tl.zeros([LANES], DTYPE)
    im0 = tl.zeros([LANES], DTYPE)
    re1 = tl.zeros([LANES], DTYPE)
    im1 = tl.zeros([LANES], DTYPE)
    for n in range(users):
        a, b, c, d = _gains(
            g, row, n, k, real, mean, scale, users, carriers, gr, gn, gk, mr, mn, sr, sn, first, block, seed,
            tag, EACH, DRAWN, DTYPE,
        )  # fmt: skip
        at = row * ur + n * un + k * uk
        x, y = _sample(u, at, real)
        re0 += a * x - b * y
        im0 += a * y + b * x
        if EACH == 2:
            x, y = _sample(u, at + uk, real)
            re1 += c * x - d * y
            im1 += c * y + d * x
    here = row * carriers + k
    a, b, c, d = _normals(first * carriers + here, _NOISE, tag, seed, EACH)
    s = tl.load(size + row, mask=real, other=0)
    re0 += a.to(DTYPE) * s
    im0 += b.to(DTYPE) * s
    re1 += c.to(DTYPE) * s
    im1 += d.to(DTYPE) * s
    if SCALED:
        by = tl.load(alpha + row * ar, mask=real, other=0)
        re0 *= by
        im0 *= by
        re1 *= by
        im1 *= by
    _store(out, here, re0, im0, real)
    if EACH == 2:
        _store(out, here + 1, re1, im1, real)


@triton.jit(do_not_specialize=["seed", "tag", "first", "block"])
def _gains_kernel(
    mean, scale, out, rows, users, carriers, mr, mn, sr, sn,
    first: tl.int64, block: tl.int64, seed: tl.uint64, tag: tl.uint32,
    LANES: tl.constexpr, EACH: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    row, k, real = _place(rows, carriers, LANES, EACH)
    first, block, seed, tag = first.to(tl.int64), block.to(tl.int64), seed.to(tl.uint64), tag.to(tl.uint32)
    for n in range(users):
        a, b, c, d = _gains(
            out, row, n, k, real, mean, scale, users, carriers, 0, 0, 0, mr, mn, sr, sn, first, block, seed,
            tag, EACH, True, DTYPE,
        )  # fmt: skip
        at = (row * users + n) * carriers + k
        _store(out, at, a, b, real)
        if EACH == 2:
            _store(out, at + 1, c, d, real)


def _common(given: Given, draw: Draw) -> tuple[tuple[int, ...], dict[str, Any]]:
    """(programs,) and what every launch is given by name."""
    rows, _, carriers = given.transmit.shape
    each = 2 - carriers % 2
    numbers = {"first": draw.first, "block": draw.block, "seed": draw.seed % 2**64, "tag": draw.offset}
    double = given.transmit.dtype == torch.complex128
    constants = {"LANES": LANES, "EACH": each, "DTYPE": tl.float64 if double else tl.float32}
    options = {"num_warps": WARPS, "enable_fp_fusion": False}
    return (triton.cdiv(rows * (carriers // each), LANES),), numbers | constants | options


def superpose(given: Given, draw: Draw, y: Tensor) -> None:
    """See channel_device.Kernels."""
    grid, named = _common(given, draw)
    u, g, alpha = given.transmit, given.gains, given.alpha
    size = _sqrt(given.noise * 0.5)
    with _on(u.device):
        _channel_kernel[grid](
            torch.view_as_real(u),
            torch.view_as_real(u if g is None else g),
            given.mean,
            given.scale,
            size,
            size if alpha is None else alpha,
            torch.view_as_real(y),
            *u.shape,
            *u.stride(),
            *((0, 0, 0) if g is None else g.stride()),
            *given.mean.stride(),
            *given.scale.stride(),
            0 if alpha is None else alpha.stride(0),
            DRAWN=g is None,
            SCALED=alpha is not None,
            **named,
        )


def gains(given: Given, draw: Draw) -> Tensor:
    """See channel_device.Kernels."""
    if given.gains is not None:
        return given.gains
    u = given.transmit
    g = torch.empty_like(u, memory_format=torch.contiguous_format)
    if g.numel():
        grid, named = _common(given, draw)
        with _on(u.device):
            _gains_kernel[grid](
                given.mean, given.scale, torch.view_as_real(g), *u.shape, *given.mean.stride(),
                *given.scale.stride(), **named,
            )  # fmt: skip
    return g


def wanted(given: Given) -> Tensor:
    """See channel_device.Kernels."""
    return _wanted(given)


def channel(given: Given, draw: Draw, allocate: int) -> tuple[Tensor, Tensor, Tensor]:
    """See channel_reference.channel."""
    return channel_device.channel(sys.modules[__name__], given, draw, allocate)


def ahead_of_time() -> list[tuple[str, Any, dict[str, str], dict[str, Any], dict[str, Any]]]:
    """(name, kernel, signature, constants, options) of the kernels to compile where there is no GPU."""
    cases: list[tuple[str, Any, dict[str, str], dict[str, Any], dict[str, Any]]] = []
    sizes = dict.fromkeys(("rows", "users", "carriers"), "i32")
    strides = dict.fromkeys(("ur", "un", "uk", "gr", "gn", "gk", "mr", "mn", "sr", "sn", "ar"), "i32")
    numbers = {"first": "i64", "block": "i64", "seed": "u64", "tag": "u32"}

    def add(name: str, kernel: Any, pointers: tuple[str, ...], dtype: str, constants: dict[str, Any]) -> None:
        full = dict.fromkeys(pointers, f"*{dtype}") | sizes | strides | numbers
        full |= dict.fromkeys(constants, "constexpr")
        order = {name: full[name] for name in kernel.arg_names}
        options = {"num_warps": WARPS, "enable_fp_fusion": False}
        cases.append((name, kernel, order, constants, options))

    for dtype, kind in (("fp32", tl.float32), ("fp64", tl.float64)):
        for each in (1, 2):
            constants = {"LANES": LANES, "EACH": each, "DTYPE": kind}
            add(f"gains.{dtype}.{each}", _gains_kernel, ("mean", "scale", "out"), dtype, constants)
            pointers = ("u", "g", "mean", "scale", "size", "alpha", "out")
            for drawn in (False, True):
                more = constants | {"DRAWN": drawn, "SCALED": not drawn}
                name = f"channel.{dtype}.{each}{'.drawn' if drawn else ''}"
                add(name, _channel_kernel, pointers, dtype, more)
    return cases
