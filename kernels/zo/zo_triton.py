# mypy: allow-untyped-defs, allow-untyped-calls
"""Zeroth-order passes in Triton: the same values as zo_reference.py, one kernel launch per call and dtype.

How the bits are kept: every fused multiply-add is written as tl.fma, the square root and the division are the
IEEE ones, and each launch forbids the compiler to contract or reorder anything else (enable_fp_fusion=False).
Philox, Box-Muller and the passes are those of zo_reference.py, where the papers are cited.

A list of tensors travels as one int64 table in device memory, one row per tensor; a program finds its tensor
by binary search.  The terms travel as a second table of the same kind, so that a captured CUDA graph can be
replayed with other seeds and coefficients by writing into that table (`terms_table`, `chain_table_`).

Triton's interpreter (TRITON_INTERPRET=1 before this module is imported) runs the kernels on CPU tensors.
"""

from __future__ import annotations

import contextlib
import math
import os
import struct
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .zo_reference import PURPOSES

INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"

_INTERPRET = tl.constexpr(INTERPRETED)
_LN2 = tl.constexpr(float.fromhex("0x1.62e430p-1"))
_QUARTER_TURN = tl.constexpr(float.fromhex("0x1.921fb6p-30"))
_TO_UNIT = tl.constexpr(2.0**-32)
_HALF_CELL = tl.constexpr(2.0**-33)

_GAUSSIAN = tl.constexpr(0)
_RADEMACHER = tl.constexpr(1)
_UNIFORM = tl.constexpr(2)
_ROUNDING = tl.constexpr(4)

# -- generator -------------------------------------------------------------------------------------


@triton.jit
def _philox(c0, c1, c2, c3, k0, k1):
    """Ten Philox4x32 rounds on uint32 words; counter words may be scalars."""
    for _ in tl.static_range(10):
        high0 = tl.umulhi(c0, 0xD2511F53)
        high1 = tl.umulhi(c2, 0xCD9E8D57)
        low0 = c0 * 0xD2511F53
        low1 = c2 * 0xCD9E8D57
        c0 = high1 ^ c1 ^ k0
        c1 = low1
        c2 = high0 ^ c3 ^ k1
        c3 = low0
        k0 = k0 + 0x9E3779B9
        k1 = k1 + 0xBB67AE85
    return c0, c1, c2, c3


@triton.jit
def _blocks(first_block, COUNT: tl.constexpr, stream, tag, seed):
    """COUNT blocks from first_block, a multiple of COUNT: only the low word of the counter moves."""
    low = first_block.to(tl.uint32) + tl.arange(0, COUNT).to(tl.uint32)
    high = (first_block >> 32).to(tl.uint32)
    return _philox(low, high, stream, tag, seed.to(tl.uint32), (seed >> 32).to(tl.uint32))


@triton.jit
def _in_order(a, b, c, d, COUNT: tl.constexpr):
    """Four vectors to one of 4*COUNT: a[0] b[0] c[0] d[0] a[1] ..."""
    return tl.reshape(tl.join(tl.join(a, c), tl.join(b, d)), [4 * COUNT])


@triton.jit
def _unit(word):
    return tl.fma(word.to(tl.float32), _TO_UNIT, _HALF_CELL)


@triton.jit
def _radius(word):
    """sqrt(-2 ln u)"""
    i = _unit(word).to(tl.int32, bitcast=True)
    e = (i - 0x3F3504F3) >> 23
    f = (i - (e << 23)).to(tl.float32, bitcast=True) - 1.0
    s = f * f
    p = tl.fma(f, 7.0376836292e-2, -1.1514610310e-1)
    p = tl.fma(p, f, 1.1676998740e-1)
    p = tl.fma(p, f, -1.2420140846e-1)
    p = tl.fma(p, f, 1.4249322787e-1)
    p = tl.fma(p, f, -1.6668057665e-1)
    p = tl.fma(p, f, 2.0000714765e-1)
    p = tl.fma(p, f, -2.4999993993e-1)
    p = tl.fma(p, f, 3.3333331174e-1)
    y = (s * f) * p
    y = tl.fma(s, -0.5, y)
    y = f + y
    y = tl.fma(e.to(tl.float32), _LN2, y)
    return tl.sqrt_rn(y * -2.0)


@triton.jit
def _flip_sign(x, bits):
    return (x.to(tl.uint32, bitcast=True) ^ bits).to(tl.float32, bitcast=True)


@triton.jit
def _box_muller(word0, word1):
    r = _radius(word0)
    quarter = (word1 + 0x20000000) >> 30
    a = (word1 - (quarter << 30)).to(tl.int32, bitcast=True).to(tl.float32) * _QUARTER_TURN
    t = a * a
    sp = tl.fma(t, -1.9515295891e-4, 8.3321608736e-3)
    sp = tl.fma(sp, t, -1.6666654611e-1)
    sine = tl.fma(sp * t, a, a)
    cp = tl.fma(t, 2.443315711809948e-5, -1.388731625493765e-3)
    cp = tl.fma(cp, t, 4.166664568298827e-2)
    cosine = tl.fma(cp * t, t, tl.fma(t, -0.5, 1.0))
    odd = (quarter & 1) != 0
    s = tl.where(odd, cosine, sine)
    c = tl.where(odd, sine, cosine)
    return r * _flip_sign(c, ((quarter + 1) & 2) << 30), r * _flip_sign(s, (quarter & 2) << 30)


@triton.jit
def _gaussian(first, TILE: tl.constexpr, stream, query, seed):
    w0, w1, w2, w3 = _blocks(first >> 2, TILE // 4, stream, query, seed)
    z0, z1 = _box_muller(w0, w1)
    z2, z3 = _box_muller(w2, w3)
    return _in_order(z0, z1, z2, z3, TILE // 4)


@triton.jit
def _rademacher(first, TILE: tl.constexpr, stream, query, seed):
    w0, w1, w2, w3 = _blocks(first >> 7, TILE // 128, stream, query | (_RADEMACHER << 24), seed)
    words = _in_order(w0, w1, w2, w3, TILE // 128)
    bit = (words[:, None] >> tl.arange(0, 32).to(tl.uint32)[None, :]) & 1
    one = 0x3F800000 | ((bit ^ 1) << 31)  # the bits of +1 or -1
    return tl.reshape(one.to(tl.uint32).to(tl.float32, bitcast=True), [TILE])


@triton.jit
def _uniform(first, TILE: tl.constexpr, stream, query, seed):
    w0, w1, w2, w3 = _blocks(first >> 2, TILE // 4, stream, query | (_UNIFORM << 24), seed)
    return _in_order(_unit(w0), _unit(w1), _unit(w2), _unit(w3), TILE // 4)


@triton.jit
def _rounding_bits(first, TILE: tl.constexpr, stream, query, seed):
    """The 16 random bits of each element."""
    w0, w1, w2, w3 = _blocks(first >> 3, TILE // 8, stream, query | (_ROUNDING << 24), seed)
    words = _in_order(w0, w1, w2, w3, TILE // 8)
    return tl.reshape(tl.join(words & 0xFFFF, words >> 16), [TILE])


# -- dtypes ----------------------------------------------------------------------------------------
# bfloat16 is loaded and stored as 16-bit integers.  Widening is a shift either way; narrowing uses the
# hardware's conversion when compiled, and integer arithmetic in the interpreter, which truncates instead.


@triton.jit
def _bfloat16_bits(x):
    """float32 to the bits of the nearest bfloat16, ties to even."""
    if _INTERPRET:
        i = x.to(tl.uint32, bitcast=True)
        rounded = (i + 0x7FFF + ((i >> 16) & 1)) >> 16
        quiet = (i >> 16) | 0x40
        return tl.where((i & 0x7FFFFFFF) > 0x7F800000, quiet, rounded).to(tl.uint16)
    else:
        return x.to(tl.bfloat16).to(tl.uint16, bitcast=True)


@triton.jit
def _bfloat16_value(bits):
    return (bits.to(tl.uint32) << 16).to(tl.float32, bitcast=True)


@triton.jit
def _stochastic_bfloat16(x, r16):
    i = x.to(tl.uint32, bitcast=True)
    magnitude = i & 0x7FFFFFFF
    kept = (magnitude + r16) >> 16
    kept = tl.where(kept > 0x7F7F, 0x7F7F, kept) | ((i >> 16) & 0x8000)
    return tl.where(magnitude >= 0x7F800000, _bfloat16_bits(x), kept.to(tl.uint16))


@triton.jit
def _stochastic_float16(x, r16):
    """The bits of float16; see round_sr in zo_reference.py for the rule below 2^-14."""
    i = x.to(tl.uint32, bitcast=True)
    magnitude = i & 0x7FFFFFFF
    normal = ((magnitude + (r16 >> 3)) >> 13) - 0x1C000
    exponent = magnitude >> 23
    hidden = tl.where(exponent == 0, 0, 0x800000).to(tl.uint32)
    significand = ((magnitude & 0x7FFFFF) | hidden).to(tl.uint64)
    places = 126 - tl.where(exponent == 0, 1, exponent).to(tl.int32)
    places = tl.where(places < 14, 14, tl.where(places > 40, 40, places)).to(tl.uint64)
    noise = (r16.to(tl.uint64) << 24) >> (40 - places)  # r16 scaled to `places` bits
    subnormal = ((significand + noise) >> places).to(tl.uint32)
    kept = tl.where(magnitude >= 0x38800000, normal, subnormal)
    kept = tl.where(kept > 0x7BFF, 0x7BFF, kept) | ((i >> 16) & 0x8000)
    copied = x.to(tl.float16).to(tl.uint16, bitcast=True)
    return tl.where(magnitude >= 0x7F800000, copied, kept.to(tl.uint16))


@triton.jit
def _round_z(z, Z_ROUND: tl.constexpr):
    """z as an implementation draws it that keeps it in the dtype of the weights."""
    if Z_ROUND == "bf16":
        return _bfloat16_value(_bfloat16_bits(z))
    elif Z_ROUND == "fp16":
        return z.to(tl.float16).to(tl.float32)
    else:
        return z


@triton.jit
def _pointer(address, DTYPE: tl.constexpr, ALIGNED: tl.constexpr):
    if DTYPE == "bf16":
        pointer = address.to(tl.pointer_type(tl.uint16))
    elif DTYPE == "fp16":
        pointer = address.to(tl.pointer_type(tl.float16))
    elif DTYPE == "fp64":
        pointer = address.to(tl.pointer_type(tl.float64))
    else:
        pointer = address.to(tl.pointer_type(tl.float32))
    return tl.multiple_of(pointer, 16) if ALIGNED else pointer


@triton.jit
def _load(address, first, n, TILE: tl.constexpr, DTYPE: tl.constexpr, ALIGNED: tl.constexpr):
    """Elements first .. first+TILE-1 of a tensor of n, in the type the math is done in."""
    at = first + tl.arange(0, TILE)
    pointer = _pointer(address, DTYPE, ALIGNED) + at
    if first + TILE <= n:  # without a mask the loads are 16 bytes wide
        x = tl.load(pointer)
    else:
        x = tl.load(pointer, mask=at < n)
    if DTYPE == "bf16":
        return _bfloat16_value(x)
    elif DTYPE == "fp16":
        return x.to(tl.float32)
    else:
        return x


@triton.jit
def _nearest(value, DTYPE: tl.constexpr):
    """What is stored for a value of the math, rounded to nearest even."""
    if DTYPE == "bf16":
        return _bfloat16_bits(value)
    elif DTYPE == "fp16":
        return value.to(tl.float16)
    elif DTYPE == "fp64":
        return value.to(tl.float64)
    else:
        return value


@triton.jit
def _rounded(value, r16, DTYPE: tl.constexpr, STOCHASTIC: tl.constexpr):
    if STOCHASTIC and DTYPE == "bf16":
        return _stochastic_bfloat16(value, r16)
    elif STOCHASTIC and DTYPE == "fp16":
        return _stochastic_float16(value, r16).to(tl.float16, bitcast=True)
    else:
        return _nearest(value, DTYPE)


@triton.jit
def _store(address, first, n, stored, TILE: tl.constexpr, DTYPE: tl.constexpr, ALIGNED: tl.constexpr):
    at = first + tl.arange(0, TILE)
    pointer = _pointer(address, DTYPE, ALIGNED) + at
    if first + TILE <= n:
        tl.store(pointer, stored)
    else:
        tl.store(pointer, stored, mask=at < n)


# -- passes ----------------------------------------------------------------------------------------
# A row of a tensor table: numel, stream, tiles before it, address of theta, then two more addresses.
# A row of a terms table: seed, coefficient (bits of a float64), query | dist << 32.  Its first row is not a
# term: rounding seed, decay, rounding query.

_ROW = tl.constexpr(6)


@triton.jit
def _find_row(table, rows, tile, STEPS: tl.constexpr):
    """The last row whose first tile is not after `tile`."""
    low = 0
    high = rows
    for _ in tl.static_range(STEPS):
        middle = (low + high) // 2
        before = tl.load(table + middle * _ROW + 2) <= tile
        low = tl.where(before, middle, low)
        high = tl.where(before, high, middle)
    return table + low * _ROW


@triton.jit
def _coefficient(row, DTYPE: tl.constexpr):
    value = tl.load(row + 1).to(tl.float64, bitcast=True)
    if DTYPE == "fp64":
        return value
    else:
        return value.to(tl.float32)


@triton.jit
def _term(z, coef, acc, Z_ROUND: tl.constexpr):
    return tl.fma(_round_z(z, Z_ROUND).to(acc.dtype), coef, acc)


@triton.jit
def _add_terms(
    acc,
    first,
    stream,
    terms,
    n_terms,
    TILE: tl.constexpr,
    DTYPE: tl.constexpr,
    DIST: tl.constexpr,
    Z_ROUND: tl.constexpr,
):
    """acc + sum_k coef_k z_k for the tile of elements from `first`, one fma per term, in their order."""
    for k in range(1, n_terms + 1):
        row = terms + k * 3
        seed = tl.load(row).to(tl.uint64, bitcast=True)
        coef = _coefficient(row, DTYPE)
        packed = tl.load(row + 2)
        query = packed.to(tl.uint32)
        if DIST == _GAUSSIAN:
            acc = _term(_gaussian(first, TILE, stream, query, seed), coef, acc, Z_ROUND)
        elif DIST == _RADEMACHER:
            acc = _term(_rademacher(first, TILE, stream, query, seed), coef, acc, Z_ROUND)
        elif DIST == _UNIFORM:
            acc = _term(_uniform(first, TILE, stream, query, seed), coef, acc, Z_ROUND)
        else:
            dist = (packed >> 32).to(tl.int32)
            if dist == _GAUSSIAN:
                acc = _term(_gaussian(first, TILE, stream, query, seed), coef, acc, Z_ROUND)
            elif dist == _RADEMACHER:
                acc = _term(_rademacher(first, TILE, stream, query, seed), coef, acc, Z_ROUND)
            else:
                acc = _term(_uniform(first, TILE, stream, query, seed), coef, acc, Z_ROUND)
    return acc


@triton.jit
def _bits_for(terms, first, stream, TILE: tl.constexpr, STOCHASTIC: tl.constexpr):
    if STOCHASTIC:
        seed = tl.load(terms).to(tl.uint64, bitcast=True)
        return _rounding_bits(first, TILE, stream, tl.load(terms + 2).to(tl.uint32), seed)
    else:
        return 0


@triton.jit(do_not_specialize=["rows"])
def _chain_kernel(
    table,
    rows,
    terms,
    n_terms,
    STEPS: tl.constexpr,
    TILE: tl.constexpr,
    DTYPE: tl.constexpr,
    DIST: tl.constexpr,
    Z_ROUND: tl.constexpr,
    STOCHASTIC: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """theta = round(decay*source + sum_k coef_k z_k)"""
    tile = tl.program_id(0).to(tl.int64)
    row = _find_row(table, rows, tile, STEPS)
    first = (tile - tl.load(row + 2)) * TILE
    stream = tl.load(row + 1).to(tl.uint32)
    n = tl.load(row)
    acc = _load(tl.load(row + 4), first, n, TILE, DTYPE, ALIGNED) * _coefficient(terms, DTYPE)
    acc = _add_terms(acc, first, stream, terms, n_terms, TILE, DTYPE, DIST, Z_ROUND)
    r16 = _bits_for(terms, first, stream, TILE, STOCHASTIC)
    _store(tl.load(row + 3), first, n, _rounded(acc, r16, DTYPE, STOCHASTIC), TILE, DTYPE, ALIGNED)


@triton.jit
def _sqrt(x):
    if x.dtype == tl.float64:
        return tl.sqrt(x)
    else:
        return tl.sqrt_rn(x)


@triton.jit
def _divide(a, b):
    if a.dtype == tl.float64:
        return a / b
    else:
        return tl.div_rn(a, b)


@triton.jit
def _scalar(scalars, k: tl.constexpr, DTYPE: tl.constexpr):
    value = tl.load(scalars + k)
    if DTYPE == "fp64":
        return value
    else:
        return value.to(tl.float32)


@triton.jit(do_not_specialize=["rows"])
def _adam_kernel(
    table,
    rows,
    terms,
    n_terms,
    scalars,
    STEPS: tl.constexpr,
    TILE: tl.constexpr,
    DTYPE: tl.constexpr,
    STATE: tl.constexpr,
    DIST: tl.constexpr,
    Z_ROUND: tl.constexpr,
    STOCHASTIC: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """One Adam step on g = sum_k coef_k z_k.

    scalars: beta1, beta2, 1-beta1, 1-beta2, 1/sqrt(1-beta2^step), eps, -lr/(1-beta1^step)
    """
    tile = tl.program_id(0).to(tl.int64)
    row = _find_row(table, rows, tile, STEPS)
    first = (tile - tl.load(row + 2)) * TILE
    stream = tl.load(row + 1).to(tl.uint32)
    n = tl.load(row)
    theta = _load(tl.load(row + 3), first, n, TILE, DTYPE, ALIGNED)
    zero = tl.full([TILE], 0.0, theta.dtype)
    g = _add_terms(zero, first, stream, terms, n_terms, TILE, DTYPE, DIST, Z_ROUND)
    m = _load(tl.load(row + 4), first, n, TILE, STATE, ALIGNED).to(theta.dtype)
    v = _load(tl.load(row + 5), first, n, TILE, STATE, ALIGNED).to(theta.dtype)
    m = tl.fma(m, _scalar(scalars, 0, DTYPE), g * _scalar(scalars, 2, DTYPE))
    v = tl.fma(v, _scalar(scalars, 1, DTYPE), (g * _scalar(scalars, 3, DTYPE)) * g)
    denominator = tl.fma(_sqrt(v), _scalar(scalars, 4, DTYPE), _scalar(scalars, 5, DTYPE))
    decayed = theta * _coefficient(terms, DTYPE)
    theta = tl.fma(_divide(m, denominator), _scalar(scalars, 6, DTYPE), decayed)
    r16 = _bits_for(terms, first, stream, TILE, STOCHASTIC)
    _store(tl.load(row + 4), first, n, _nearest(m, STATE), TILE, STATE, ALIGNED)
    _store(tl.load(row + 5), first, n, _nearest(v, STATE), TILE, STATE, ALIGNED)
    _store(tl.load(row + 3), first, n, _rounded(theta, r16, DTYPE, STOCHASTIC), TILE, DTYPE, ALIGNED)


@triton.jit(do_not_specialize=["seed", "stream", "query", "start", "skip", "n"])
def _sample_kernel(
    out,
    seed: tl.uint64,
    stream: tl.uint32,
    query: tl.uint32,
    start: tl.int64,
    skip: tl.int64,
    n: tl.int64,
    TILE: tl.constexpr,
    DTYPE: tl.constexpr,
    DIST: tl.constexpr,
):
    """Elements start+skip .. start+skip+n-1, start a multiple of TILE, skip < TILE."""
    at = tl.program_id(0).to(tl.int64) * TILE
    first = start.to(tl.int64) + at
    key = seed.to(tl.uint64)
    stream = stream.to(tl.uint32)
    query = query.to(tl.uint32)
    if DIST == _GAUSSIAN:
        z = _gaussian(first, TILE, stream, query, key)
    elif DIST == _RADEMACHER:
        z = _rademacher(first, TILE, stream, query, key)
    else:
        z = _uniform(first, TILE, stream, query, key)
    offset = at + tl.arange(0, TILE) - skip
    mask = (offset >= 0) & (offset < n)
    tl.store(out + offset, _nearest(z, DTYPE), mask=mask)


@triton.jit(do_not_specialize=["seed", "stream", "tag", "start", "skip", "blocks"])
def _words_kernel(
    out,
    seed: tl.uint64,
    stream: tl.uint32,
    tag: tl.uint32,
    start: tl.int64,
    skip: tl.int64,
    blocks: tl.int64,
    TILE: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * TILE
    first = start.to(tl.int64) + at
    w0, w1, w2, w3 = _blocks(first, TILE, stream.to(tl.uint32), tag.to(tl.uint32), seed.to(tl.uint64))
    words = _in_order(w0, w1, w2, w3, TILE)
    offset = 4 * (at - skip) + tl.arange(0, 4 * TILE)
    tl.store(out + offset, words.to(tl.int64), mask=(offset >= 0) & (offset < 4 * blocks.to(tl.int64)))


@triton.jit(do_not_specialize=["seed", "stream", "query", "start", "skip", "n"])
def _round_kernel(
    x,
    out,
    seed: tl.uint64,
    stream: tl.uint32,
    query: tl.uint32,
    start: tl.int64,
    skip: tl.int64,
    n: tl.int64,
    TILE: tl.constexpr,
    DTYPE: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * TILE
    key = seed.to(tl.uint64)
    r16 = _rounding_bits(start.to(tl.int64) + at, TILE, stream.to(tl.uint32), query.to(tl.uint32), key)
    offset = at + tl.arange(0, TILE) - skip
    mask = (offset >= 0) & (offset < n)
    value = tl.load(x + offset, mask=mask)
    if DTYPE == "bf16":
        tl.store(out + offset, _stochastic_bfloat16(value, r16), mask=mask)
    else:
        tl.store(out + offset, _stochastic_float16(value, r16), mask=mask)


# -- launching -------------------------------------------------------------------------------------

_DTYPES = {torch.float32: "fp32", torch.float64: "fp64", torch.bfloat16: "bf16", torch.float16: "fp16"}
_DISTS = {"gaussian": 0, "rademacher": 1, "uniform": 2}
_STEPS = (0, 4, 8, 12, 16, 24)  # depths of the binary search that are compiled
_MIXED = -1  # the terms differ in distribution: the kernel reads it from their table

_tables: OrderedDict[tuple, Tensor] = OrderedDict()  # tensor tables in use, the last used at the end
_TABLES_KEPT = 64
_captured: list[Tensor] = []  # tables that captured CUDA graphs read: kept for good


def tile_of(dist: int, dtype: str) -> tuple[int, int]:
    """Elements per program and warps. One Philox block makes 128 signs, so Rademacher tiles are larger."""
    if dist == 1:
        return 4096, 4
    return (2048, 8) if dtype in ("bf16", "fp16") else (1024, 4)


def _on(device: torch.device) -> contextlib.AbstractContextManager[object]:
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def _upload(data: bytearray, device: torch.device) -> Tensor:
    """int64 words to the device without waiting for it."""
    host = torch.frombuffer(data, dtype=torch.int64)
    if device.type != "cuda":
        return host
    if torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "tables cannot be uploaded while a CUDA graph is captured: use chain_table_, with contiguous "
            "tensors, and call it once on the same tensors before the capture"
        )
    return host.pin_memory().to(device, non_blocking=True)


def terms_table(
    seeds: Sequence[int],
    queries: Sequence[int],
    coefs: Sequence[float],
    dists: Sequence[str],
    decay: float = 1.0,
    rounding_seed: int = 0,
    rounding_query: int = 0,
    device: torch.device | str = "cuda",
) -> Tensor:
    """The terms of a pass as an int64 tensor [1 + k, 3] on `device`, for `chain_table_`.

    Row 0 is (rounding seed, bits of the float64 decay, rounding query); row k is (seed, bits of the float64
    coefficient, query | dist << 32) with dist 0 Gaussian, 1 Rademacher, 2 uniform.
    """
    data = bytearray(struct.pack("<QdII", rounding_seed, decay, rounding_query, 0))
    for seed, query, coef, dist in zip(seeds, queries, coefs, dists, strict=True):
        data += struct.pack("<QdII", seed, coef, query, _DISTS[dist])
    return _upload(data, torch.device(device)).view(-1, 3)


def _tensor_table(
    columns: Sequence[Sequence[Tensor]], streams: Sequence[int], tile: int
) -> tuple[Tensor, int]:
    """The table of tensors columns[0] with those that go with them, and the number of tiles."""
    device = columns[0][0].device
    addresses = tuple(tuple(t.data_ptr() for t in column) for column in columns)
    sizes = tuple(t.numel() for t in columns[0])
    tiles = sum(-(-n // tile) for n in sizes)
    key = (device, tile, addresses, sizes, tuple(streams))
    table = _tables.pop(key, None)
    if table is None:
        data = bytearray()
        before = 0
        for i, (n, stream) in enumerate(zip(sizes, streams, strict=True)):
            places = [column[i] for column in addresses]
            data += struct.pack("<6Q", n, stream, before, *places, *(0,) * (3 - len(places)))
            before += -(-n // tile)
        table = _upload(data, device)
    _tables[key] = table
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        _captured.append(table)
    while len(_tables) > _TABLES_KEPT:
        _tables.popitem(last=False)
    return table, tiles


def _by_dtype(
    columns: Sequence[Sequence[Tensor]], streams: Sequence[int]
) -> list[tuple[list[list[Tensor]], list[int]]]:
    """Non-empty tensors grouped by the dtypes of their row, in order of appearance."""
    groups: dict[tuple[torch.dtype, ...], tuple[list[list[Tensor]], list[int]]] = {}
    for row in zip(*columns, streams, strict=True):
        tensors, stream = row[:-1], row[-1]
        if tensors[0].numel() == 0:
            continue
        held = groups.setdefault(tuple(t.dtype for t in tensors), ([[] for _ in columns], []))
        for column, tensor in zip(held[0], tensors, strict=True):
            column.append(tensor)
        held[1].append(stream & 0xFFFFFFFF)
    return list(groups.values())


def _launch(
    kernel: Any,
    columns: Sequence[Sequence[Tensor]],
    streams: Sequence[int],
    written: int,
    terms: Tensor,
    dist: int,
    z_round: torch.dtype | None,
    stochastic: bool,
    **extra: object,
) -> None:
    """One launch over tensors of one dtype; the first `written` columns are written.

    Tensors that are not contiguous are worked on as contiguous copies and copied back.
    """
    dense = [[t.contiguous() for t in column] for column in columns]
    device = dense[0][0].device
    dtype = _DTYPES[dense[0][0].dtype]
    tile, warps = tile_of(dist, dtype)
    with _on(device):
        table, tiles = _tensor_table(dense, streams, tile)
        rows = len(streams)
        kernel[(tiles,)](
            table,
            rows,
            terms,
            terms.shape[0] - 1,
            STEPS=next(s for s in _STEPS if rows <= 1 << s),
            TILE=tile,
            DTYPE=dtype,
            DIST=dist,
            Z_ROUND="none" if z_round is None else _DTYPES[z_round],
            STOCHASTIC=stochastic and dtype in ("bf16", "fp16"),
            ALIGNED=all(t.data_ptr() % 16 == 0 for column in dense for t in column),
            num_warps=warps,
            enable_fp_fusion=False,
            **extra,
        )
        for column, copies in zip(columns[:written], dense[:written], strict=True):
            for tensor, copy in zip(column, copies, strict=True):
                if copy is not tensor:
                    tensor.copy_(copy)


def _one_dist(dists: Sequence[str]) -> int:
    return _DISTS[dists[0]] if len(set(dists)) == 1 else _MIXED


@torch.no_grad()
def chain_table_(
    params: Sequence[Tensor],
    sources: Sequence[Tensor] | None,
    streams: Sequence[int],
    terms: Tensor,
    dist: str | None = None,
    z_round: torch.dtype | None = None,
    stochastic: bool = False,
) -> None:
    """chain_ with the terms in device memory (`terms_table`), read when the kernel runs.

    For CUDA graphs: capture once, then write other seeds and coefficients into `terms` before a replay.
    `dist` names the distribution that all terms share; None reads it from the table.
    """
    code = _MIXED if dist is None else _DISTS[dist]
    for columns, group in _by_dtype([params, params if sources is None else sources], streams):
        _launch(_chain_kernel, columns, group, 1, terms, code, z_round, stochastic)


@torch.no_grad()
def chain_(
    params: Sequence[Tensor],
    sources: Sequence[Tensor] | None,
    streams: Sequence[int],
    seeds: Sequence[int],
    queries: Sequence[int],
    coefs: Sequence[float],
    dists: Sequence[str],
    decay: float = 1.0,
    z_round: torch.dtype | None = None,
    stochastic: bool = False,
    rounding_seed: int = 0,
    rounding_query: int = 0,
) -> None:
    """theta = round(decay*source + sum_k coef_k z_k) in place; see zo_reference.chain_."""
    groups = _by_dtype([params, params if sources is None else sources], streams)
    if not groups:
        return
    device = groups[0][0][0][0].device
    terms = terms_table(seeds, queries, coefs, dists, decay, rounding_seed, rounding_query, device)
    for columns, group in groups:
        _launch(_chain_kernel, columns, group, 1, terms, _one_dist(dists), z_round, stochastic)


@torch.no_grad()
def adam_(
    params: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    streams: Sequence[int],
    seeds: Sequence[int],
    queries: Sequence[int],
    coefs: Sequence[float],
    dists: Sequence[str],
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    step: int,
    decay: float = 1.0,
    z_round: torch.dtype | None = None,
    stochastic: bool = False,
    rounding_seed: int = 0,
    rounding_query: int = 0,
) -> None:
    """Adam on g = sum_k coef_k z_k in place; see zo_reference.adam_. A tensor's two states have one dtype."""
    groups = _by_dtype([params, exp_avgs, exp_avg_sqs], streams)
    if not groups:
        return
    device = groups[0][0][0][0].device
    terms = terms_table(seeds, queries, coefs, dists, decay, rounding_seed, rounding_query, device)
    values = (
        beta1,
        beta2,
        1 - beta1,
        1 - beta2,
        1 / math.sqrt(1 - beta2**step),
        eps,
        -lr / (1 - beta1**step),
    )
    scalars = _upload(bytearray(struct.pack("<7d", *values)), device).view(torch.float64)
    for columns, group in groups:
        state = _DTYPES[columns[1][0].dtype]
        _launch(
            _adam_kernel,
            columns,
            group,
            3,
            terms,
            _one_dist(dists),
            z_round,
            stochastic,
            scalars=scalars,
            STATE=state,
        )


def _storage(out: Tensor) -> Tensor:
    return out.view(torch.uint16) if out.dtype == torch.bfloat16 else out


def _span(first: int, n: int, tile: int) -> tuple[int, int, tuple[int]]:
    """Start of the tile that holds `first`, elements to skip in it, and the grid that covers n more."""
    skip = first % tile
    return first - skip, skip, (-(-(skip + n) // tile),)


def sample_(out: Tensor, seed: int, stream: int, query: int, first: int, dist: str) -> None:
    """Fill contiguous `out` [n] with elements [first, first+n) of a direction, rounded to its dtype."""
    if out.numel() == 0:
        return
    tile, warps = tile_of(_DISTS[dist], "fp32")
    start, skip, grid = _span(first, out.numel(), tile)
    with _on(out.device):
        _sample_kernel[grid](
            _storage(out),
            seed,
            stream,
            query,
            start,
            skip,
            out.numel(),
            TILE=tile,
            DTYPE=_DTYPES[out.dtype],
            DIST=_DISTS[dist],
            num_warps=warps,
            enable_fp_fusion=False,
        )


def words_(out: Tensor, seed: int, stream: int, query: int, purpose: int | str, first_block: int) -> None:
    """Fill contiguous int64 `out` [blocks, 4] with raw words, each in [0, 2^32)."""
    if out.numel() == 0:
        return
    code = PURPOSES[purpose] if isinstance(purpose, str) else purpose
    tile = 256
    start, skip, grid = _span(first_block, out.shape[0], tile)
    with _on(out.device):
        _words_kernel[grid](
            out, seed, stream, (code << 24) | query, start, skip, out.shape[0], TILE=tile, num_warps=4
        )


def stochastic_round(x: Tensor, dtype: torch.dtype, seed: int, stream: int, query: int, first: int) -> Tensor:
    """float32 `x` rounded stochastically to bfloat16 or float16 by the bits of elements first, first+1, ...;
    other dtypes: a plain cast. Same shape as `x`, contiguous."""
    if dtype not in (torch.bfloat16, torch.float16):
        return x.to(dtype)
    x = x.to(torch.float32).contiguous()
    out = torch.empty_like(x, dtype=dtype)
    tile = 2048
    start, skip, grid = _span(first, x.numel(), tile)
    if x.numel():
        with _on(x.device):
            _round_kernel[grid](
                x,
                out.view(torch.uint16),
                seed,
                stream,
                query,
                start,
                skip,
                x.numel(),
                TILE=tile,
                DTYPE=_DTYPES[dtype],
                num_warps=4,
                enable_fp_fusion=False,
            )
    return out


def sample(
    seed: int,
    stream: int,
    query: int,
    first: int,
    n: int,
    dist: str = "gaussian",
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cuda",
) -> Tensor:
    """Elements [first, first+n) of direction (seed, stream, query), float32 values rounded to `dtype`."""
    out = torch.empty(n, dtype=dtype, device=device)
    sample_(out, seed, stream, query, first, dist)
    return out


def words(
    seed: int,
    stream: int,
    query: int,
    purpose: int | str,
    first_block: int,
    blocks: int,
    device: torch.device | str = "cuda",
) -> Tensor:
    """Raw words, int64 [blocks, 4], each in [0, 2^32)."""
    out = torch.empty(blocks, 4, dtype=torch.int64, device=device)
    words_(out, seed, stream, query, purpose, first_block)
    return out


def _pass_case(
    name: str,
    kernel: Any,
    dtype: str,
    dist: int,
    z_round: str = "none",
    stochastic: bool = False,
    **extra: Any,
) -> tuple[str, Any, dict[str, str], dict[str, Any], dict[str, Any]]:
    tile, warps = tile_of(dist, dtype)
    constants = {"STEPS": 8, "TILE": tile, "DTYPE": dtype, **extra}
    constants |= {"DIST": dist, "Z_ROUND": z_round, "STOCHASTIC": stochastic, "ALIGNED": True}
    signature = {"table": "*i64", "rows": "i32", "terms": "*i64", "n_terms": "i32"}
    signature |= {"scalars": "*fp64"} if extra else {}
    signature |= dict.fromkeys(constants, "constexpr")
    return name, kernel, signature, constants, {"num_warps": warps, "enable_fp_fusion": False}


def _drawing_case(
    name: str, kernel: Any, signature: dict[str, str], tile: int, **constants: Any
) -> tuple[str, Any, dict[str, str], dict[str, Any], dict[str, Any]]:
    constants = {"TILE": tile, **constants}
    signature = signature | dict.fromkeys(constants, "constexpr")
    return name, kernel, signature, constants, {"num_warps": 4, "enable_fp_fusion": False}


def ahead_of_time() -> list[tuple[str, Any, dict[str, str], dict[str, Any], dict[str, Any]]]:
    """(name, kernel, signature, constants, options) of the kernels to compile where there is no GPU."""
    cases = [
        _pass_case(f"chain.{dist}.{dtype}", _chain_kernel, dtype, code)
        for dist, code in (("gaussian", 0), ("rademacher", 1), ("mixed", _MIXED))
        for dtype in ("fp32", "bf16", "fp16", "fp64")
    ]
    for dtype in ("bf16", "fp16"):
        cases.append(_pass_case(f"chain.gaussian.{dtype}.sr", _chain_kernel, dtype, 0, dtype, True))
        cases.append(
            _pass_case(f"adam.gaussian.{dtype}.sr", _adam_kernel, dtype, 0, "none", True, STATE="fp32")
        )
    for dtype, state in (("fp32", "fp32"), ("fp64", "fp64")):
        cases.append(_pass_case(f"adam.gaussian.{dtype}", _adam_kernel, dtype, 0, STATE=state))
    place = {"start": "i64", "skip": "i64"}
    for dist, code in _DISTS.items():
        signature = {"out": "*fp32", "seed": "u64", "stream": "u32", "query": "u32", **place, "n": "i64"}
        tile, _ = tile_of(code, "fp32")
        cases.append(
            _drawing_case(f"sample.{dist}.fp32", _sample_kernel, signature, tile, DTYPE="fp32", DIST=code)
        )
    signature = {"out": "*i64", "seed": "u64", "stream": "u32", "tag": "u32", **place, "blocks": "i64"}
    cases.append(_drawing_case("words", _words_kernel, signature, 256))
    for dtype in ("bf16", "fp16"):
        signature = {"x": "*fp32", "out": "*u16", "seed": "u64", "stream": "u32", "query": "u32", **place}
        signature |= {"n": "i64"}
        cases.append(_drawing_case(f"stochastic_round.{dtype}", _round_kernel, signature, 2048, DTYPE=dtype))
    return cases
