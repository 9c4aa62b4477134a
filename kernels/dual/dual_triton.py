# mypy: allow-untyped-defs, allow-untyped-calls
"""Perturbed layers in Triton: a product that makes its tiles of z as it goes, and the fills of the composite.

The fused kernel reads a tile of W once, makes the tile of z that belongs to it in registers, and multiplies
both copies of a pair with W + c z ("fold") or with z and W one after the other into the same accumulators
("split"): nothing but the result is written.  Every program makes the z of its columns anew, so the fused
kernel is for few rows of x, where a plain layer is bound by reading W; with many rows a block of W is
perturbed once and multiplied by the library's product (linear.py).  How the bits of z are kept is said in
zo_triton.py.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from tenfold.kernels.distance.distance_device import tf32_allowed
from tenfold.kernels.zo.zo_triton import _storage
from tenfold.kernels.zo.zo_triton_tiles import (
    _DTYPES,
    _INTERPRET,
    _bfloat16_bits,
    _bfloat16_value,
    _box_muller,
    _gaussian,
    _nearest,
    _on,
    _philox,
    _rademacher,
    _round_z,
)
from torch import Tensor

from . import linear as blocks

_GAUSSIAN = tl.constexpr(0)
_RADEMACHER = tl.constexpr(1)
_GAUSSIAN16 = tl.constexpr(7)
DISTS = {"gaussian": 0, "rademacher": 1, "gauss16": 7}

# -- z at any elements -----------------------------------------------------------------------------


@triton.jit
def _words_at(block, stream, tag, seed):
    """The four words of any blocks, one per element of the int64 tensor `block`."""
    low = block.to(tl.uint32)
    high = (block >> 32).to(tl.uint32)
    return _philox(low, high, stream, tag, seed.to(tl.uint32), (seed >> 32).to(tl.uint32))


@triton.jit
def _word(w0, w1, w2, w3, place):
    return tl.where(place == 0, w0, tl.where(place == 1, w1, tl.where(place == 2, w2, w3)))


@triton.jit
def _z_at(element, stream, query, seed, DIST: tl.constexpr):
    """z of any elements, each from a block of its own: for the few, or the rarely asked for."""
    if DIST == _RADEMACHER:
        w0, w1, w2, w3 = _words_at(element >> 7, stream, query | (_RADEMACHER << 24), seed)
        word = _word(w0, w1, w2, w3, ((element & 127) >> 5).to(tl.int32))
        bit = (word >> (element & 31).to(tl.uint32)) & 1
        return (0x3F800000 | ((bit ^ 1) << 31)).to(tl.uint32).to(tl.float32, bitcast=True)
    elif DIST == _GAUSSIAN16:
        w0, w1, w2, w3 = _words_at(element >> 3, stream, query | (_GAUSSIAN16 << 24), seed)
        word = _word(w0, w1, w2, w3, ((element & 7) >> 1).to(tl.int32))
        a, b = _box_muller((word << 16) | 0x8000, word & 0xFFFF0000)
        return tl.where((element & 1) == 0, a, b)
    else:
        w0, w1, w2, w3 = _words_at(element >> 2, stream, query, seed)
        place = (element & 3).to(tl.int32)
        a, b = _box_muller(tl.where(place < 2, w0, w2), tl.where(place < 2, w1, w3))
        return tl.where((place & 1) == 0, a, b)


@triton.jit
def _z_tile(
    row,
    first,
    k,
    stream,
    query,
    seed,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DIST: tl.constexpr,
    Z_ROUND: tl.constexpr,
):
    """z of rows x columns first .. first+COLUMNS-1, float32; k and first are multiples of 4."""
    if DIST == _GAUSSIAN:
        block = (row[:, None] * k + first) // 4 + tl.arange(0, COLUMNS // 4)[None, :]
        w0, w1, w2, w3 = _words_at(block, stream, query, seed)
        z0, z1 = _box_muller(w0, w1)
        z2, z3 = _box_muller(w2, w3)
        z = tl.reshape(tl.join(tl.join(z0, z2), tl.join(z1, z3)), [ROWS, COLUMNS])
    else:
        element = row[:, None] * k + first + tl.arange(0, COLUMNS)[None, :]
        z = _z_at(element, stream, query, seed, DIST)
    return _round_z(z, Z_ROUND)


# -- the fused product -----------------------------------------------------------------------------


@triton.jit
def _value(x, DTYPE: tl.constexpr):
    """A loaded element in float32."""
    if DTYPE == "bf16":
        return _bfloat16_value(x)
    else:
        return x.to(tl.float32)


@triton.jit
def _loaded(x, DTYPE: tl.constexpr):
    """A loaded element as an operand of a product. The interpreter multiplies 16-bit floats as float32."""
    if _INTERPRET:
        return _value(x, DTYPE)
    elif DTYPE == "bf16":
        return x.to(tl.bfloat16, bitcast=True)
    else:
        return x


@triton.jit
def _operand(value, DTYPE: tl.constexpr):
    """float32 values as an operand of a product, rounded to the dtype of the weights."""
    if DTYPE == "bf16":
        bits = _bfloat16_bits(value)
        return _loaded(bits, DTYPE)
    elif DTYPE == "fp16":
        return _loaded(value.to(tl.float16), DTYPE)
    else:
        return value


@triton.jit
def _number(bits):
    """A coefficient from the bits of its float64."""
    return bits.to(tl.int64).to(tl.float64, bitcast=True)


@triton.jit
def _moved(w, z, c):
    return tl.fma(z, tl.zeros(z.shape, dtype=tl.float32) + c, w)


@triton.jit
def _store_out(out, row, column, m, n, value, OUT: tl.constexpr):
    mask = (row[:, None] < m) & (column[None, :] < n)
    tl.store(out + row[:, None] * n + column[None, :], _nearest(value, OUT), mask=mask)


@triton.jit
def _shifted(
    acc,
    bias,
    column,
    n,
    coef,
    bias_stream,
    query,
    seed,
    DTYPE: tl.constexpr,
    DIST: tl.constexpr,
    Z_ROUND: tl.constexpr,
    FOLD: tl.constexpr,
    MOVED: tl.constexpr,
):
    """acc + b + c z_b"""
    b = _value(tl.load(bias + column, mask=column < n, other=0), DTYPE)
    if MOVED:
        z = _round_z(_z_at(column.to(tl.int64), bias_stream, query, seed, DIST), Z_ROUND)
        b = _moved(b, z, coef)
        if FOLD and DTYPE == "bf16":
            b = _bfloat16_value(_bfloat16_bits(b))
        elif FOLD and DTYPE == "fp16":
            b = b.to(tl.float16).to(tl.float32)
    return acc + b[None, :]


@triton.jit(do_not_specialize=["seed", "stream", "bias_stream", "query", "c0", "c1"])
def _linear_kernel(
    x0,
    x1,
    w,
    bias,
    y0,
    y1,
    seed: tl.uint64,
    stream: tl.uint32,
    bias_stream: tl.uint32,
    query: tl.uint32,
    c0: tl.int64,
    c1: tl.int64,
    m,
    n,
    k,
    row_stride,
    column_stride,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    DTYPE: tl.constexpr,
    OUT: tl.constexpr,
    DIST: tl.constexpr,
    Z_ROUND: tl.constexpr,
    FOLD: tl.constexpr,
    PAIR: tl.constexpr,
    MOVED: tl.constexpr,
    BIAS: tl.constexpr,
    BIAS_MOVED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """y_p = x_p (W + c_p z)^T + b + c_p z_b for one copy, or for a PAIR that shares its z."""
    seed = seed.to(tl.uint64)
    stream = stream.to(tl.uint32)
    query = query.to(tl.uint32)
    c0 = _number(c0).to(tl.float32)
    c1 = _number(c1).to(tl.float32)
    row = tl.program_id(0) * BM + tl.arange(0, BM)
    column = tl.program_id(1).to(tl.int64) * BN + tl.arange(0, BN)
    inner = tl.arange(0, BK)
    acc0 = tl.zeros([BM, BN], dtype=tl.float32)
    acc1 = tl.zeros([BM, BN], dtype=tl.float32)
    if MOVED and not FOLD:  # c (x z^T) first: the accumulators are scaled once, and z is rounded unscaled
        for first in range(0, k, BK):
            inside = (first + inner) < k
            z = tl.trans(
                _operand(_z_tile(column, first, k, stream, query, seed, BN, BK, DIST, Z_ROUND), DTYPE)
            )
            at = row[:, None] * k + (first + inner)[None, :]
            mask = (row[:, None] < m) & inside[None, :]
            acc0 = tl.dot(
                _loaded(tl.load(x0 + at, mask=mask, other=0), DTYPE), z, acc0, input_precision=PRECISION
            )
            if PAIR:
                acc1 = tl.dot(
                    _loaded(tl.load(x1 + at, mask=mask, other=0), DTYPE), z, acc1, input_precision=PRECISION
                )
        acc0 = acc0 * c0
        acc1 = acc1 * c1
    for first in range(0, k, BK):
        inside = (first + inner) < k
        place = column[:, None] * row_stride + (first + inner).to(tl.int64)[None, :] * column_stride
        raw = tl.load(w + place, mask=(column[:, None] < n) & inside[None, :], other=0)
        if MOVED and FOLD:
            value = _value(raw, DTYPE)
            z = _z_tile(column, first, k, stream, query, seed, BN, BK, DIST, Z_ROUND)
            right0 = _operand(_moved(value, z, c0), DTYPE)
            right1 = _operand(_moved(value, z, c1), DTYPE) if PAIR else right0
        else:
            right0 = _loaded(raw, DTYPE)
            right1 = right0
        at = row[:, None] * k + (first + inner)[None, :]
        mask = (row[:, None] < m) & inside[None, :]
        left = _loaded(tl.load(x0 + at, mask=mask, other=0), DTYPE)
        acc0 = tl.dot(left, tl.trans(right0), acc0, input_precision=PRECISION)
        if PAIR:
            left = _loaded(tl.load(x1 + at, mask=mask, other=0), DTYPE)
            acc1 = tl.dot(left, tl.trans(right1), acc1, input_precision=PRECISION)
    if BIAS:
        bias_stream = bias_stream.to(tl.uint32)
        acc0 = _shifted(
            acc0, bias, column, n, c0, bias_stream, query, seed, DTYPE, DIST, Z_ROUND, FOLD, BIAS_MOVED
        )
        if PAIR:
            acc1 = _shifted(
                acc1, bias, column, n, c1, bias_stream, query, seed, DTYPE, DIST, Z_ROUND, FOLD, BIAS_MOVED
            )
    _store_out(y0, row, column, m, n, acc0, OUT)
    if PAIR:
        _store_out(y1, row, column, m, n, acc1, OUT)


# -- fills -----------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["seed", "stream", "query", "coef", "start", "skip", "n"])
def _fill_kernel(
    w,
    out,
    seed: tl.uint64,
    stream: tl.uint32,
    query: tl.uint32,
    coef: tl.int64,
    start: tl.int64,
    skip: tl.int64,
    n: tl.int64,
    k,
    row_stride,
    column_stride,
    TILE: tl.constexpr,
    DTYPE: tl.constexpr,
    OUT: tl.constexpr,
    DIST: tl.constexpr,
    Z_ROUND: tl.constexpr,
):
    """out[i] = round(fma(c, z, W)) for elements start+skip .. start+skip+n-1; start is a multiple of TILE."""
    at = tl.program_id(0).to(tl.int64) * TILE
    first = start.to(tl.int64) + at
    key = seed.to(tl.uint64)
    stream = stream.to(tl.uint32)
    query = query.to(tl.uint32)
    element = first + tl.arange(0, TILE)
    if DIST == _GAUSSIAN:
        z = _gaussian(first, TILE, stream, query, key)
    elif DIST == _RADEMACHER:
        z = _rademacher(first, TILE, stream, query, key)
    else:
        z = _z_at(element, stream, query, key, DIST)
    offset = at + tl.arange(0, TILE) - skip
    mask = (offset >= 0) & (offset < n)
    row = element // k
    raw = tl.load(w + row * row_stride + (element - row * k) * column_stride, mask=mask, other=0)
    _write_moved(out + offset, raw, _round_z(z, Z_ROUND), _number(coef), mask, DTYPE, OUT)


@triton.jit
def _write_moved(to, raw, z, coef, mask, DTYPE: tl.constexpr, OUT: tl.constexpr):
    if DTYPE == "fp64":
        value = tl.fma(z.to(tl.float64), tl.zeros(z.shape, dtype=tl.float64) + coef, raw)
    else:
        value = _moved(_value(raw, DTYPE), z, coef.to(tl.float32))
    tl.store(to, _nearest(value, OUT), mask=mask)


@triton.jit(do_not_specialize=["seed", "stream", "query", "coef"])
def _embed_kernel(
    w,
    ids,
    out,
    seed: tl.uint64,
    stream: tl.uint32,
    query: tl.uint32,
    coef: tl.int64,
    k,
    row_stride,
    column_stride,
    TILE: tl.constexpr,
    DTYPE: tl.constexpr,
    DIST: tl.constexpr,
    Z_ROUND: tl.constexpr,
):
    """out[t] = round(fma(c, z[ids[t]], W[ids[t]]))"""
    token = tl.program_id(0).to(tl.int64)
    row = tl.load(ids + token)
    column = tl.program_id(1).to(tl.int64) * TILE + tl.arange(0, TILE)
    mask = column < k
    z = _z_at(row * k + column, stream.to(tl.uint32), query.to(tl.uint32), seed.to(tl.uint64), DIST)
    raw = tl.load(w + row * row_stride + column * column_stride, mask=mask, other=0)
    _write_moved(out + token * k + column, raw, _round_z(z, Z_ROUND), _number(coef), mask, DTYPE, DTYPE)


# -- launching -------------------------------------------------------------------------------------

TILE = 1024


def _bits(coef: float) -> int:
    """A coefficient as the bits of a float64: the kernel rounds it once to the type of the math."""
    value: int = struct.unpack("<q", struct.pack("<d", coef))[0]
    return value


def _rounds(z_round: torch.dtype | None) -> str:
    return "none" if z_round is None else _DTYPES[z_round]


def fill(
    weight: Tensor,
    row: int,
    outs: Sequence[Tensor],
    coefs: Sequence[float],
    seed: int,
    stream: int,
    query: int,
    dist: str,
    z_round: torch.dtype | None,
) -> None:
    """See dual_reference.fill; one launch per output."""
    k, n = weight.shape[1], outs[0].numel()
    if n == 0:
        return
    skip = row * k % TILE
    with _on(weight.device):
        for out, coef in zip(outs, coefs, strict=True):
            _fill_kernel[(triton.cdiv(skip + n, TILE),)](
                _storage(weight),
                _storage(out),
                seed,
                stream,
                query,
                _bits(coef),
                row * k - skip,
                skip,
                n,
                k,
                *weight.stride(),
                TILE=TILE,
                DTYPE=_DTYPES[weight.dtype],
                OUT=_DTYPES[out.dtype],
                DIST=DISTS[dist],
                Z_ROUND=_rounds(z_round),
                num_warps=4,
                enable_fp_fusion=False,
            )


def embed(
    weight: Tensor,
    ids: Sequence[Tensor],
    outs: Sequence[Tensor],
    coefs: Sequence[float],
    seed: int,
    stream: int,
    query: int,
    dist: str,
    z_round: torch.dtype | None,
) -> None:
    """See dual_reference.embed; one launch per output."""
    k = weight.shape[1]
    tile = min(512, max(16, triton.next_power_of_2(k)))
    with _on(weight.device):
        for index, out, coef in zip(ids, outs, coefs, strict=True):
            _embed_kernel[(index.numel(), triton.cdiv(k, tile))](
                _storage(weight),
                index,
                _storage(out),
                seed,
                stream,
                query,
                _bits(coef),
                k,
                *weight.stride(),
                TILE=tile,
                DTYPE=_DTYPES[weight.dtype],
                DIST=DISTS[dist],
                Z_ROUND=_rounds(z_round),
                num_warps=4,
                enable_fp_fusion=False,
            )


def _tiles(m: int) -> tuple[int, int, int, int]:
    """Rows, columns and depth of a program's tile, and its warps."""
    return (16, 32, 32, 4) if m <= 16 else (64, 32, 32, 8)


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    seed: int,
    stream: int | None,
    bias_stream: int | None,
    queries: Sequence[int],
    coefs: Sequence[float],
    dist: str,
    fold: bool,
    z_round: torch.dtype | None,
    out_dtype: torch.dtype,
) -> Tensor:
    """See linear.linear: the fused kernel where it serves, blocks of rows elsewhere."""
    if not blocks.few_rows(x, weight):
        return blocks.linear(
            fill, x, weight, bias, seed, stream, bias_stream, queries, coefs, dist, fold, z_round, out_dtype
        )
    n, k = weight.shape
    flat = x.reshape(x.shape[0], -1, k).contiguous()
    m = flat.shape[1]
    out = torch.empty(x.shape[0], m, n, dtype=out_dtype, device=x.device)
    if out.numel() == 0:
        return out.view(*x.shape[:-1], n)
    bm, bn, bk, warps = _tiles(m)
    shift = weight if bias is None else bias.contiguous()
    exact = not (x.is_cuda and tf32_allowed())
    with _on(x.device):
        for query, members in blocks._groups(queries, coefs, stream is not None or bias_stream is not None):
            moved = query >= 0
            for at in range(0, len(members), 2):
                first, last = members[at], members[min(at + 1, len(members) - 1)]
                _linear_kernel[(triton.cdiv(m, bm), triton.cdiv(n, bn))](
                    _storage(flat[first]),
                    _storage(flat[last]),
                    _storage(weight),
                    _storage(shift),
                    _storage(out[first]),
                    _storage(out[last]),
                    seed,
                    stream or 0,
                    bias_stream or 0,
                    max(query, 0),
                    _bits(coefs[first]),
                    _bits(coefs[last]),
                    m,
                    n,
                    k,
                    *weight.stride(),
                    BM=bm,
                    BN=bn,
                    BK=bk,
                    DTYPE=_DTYPES[weight.dtype],
                    OUT=_DTYPES[out_dtype],
                    DIST=DISTS[dist],
                    Z_ROUND=_rounds(z_round),
                    FOLD=fold,
                    PAIR=last != first,
                    MOVED=moved and stream is not None,
                    BIAS=bias is not None,
                    BIAS_MOVED=moved and bias_stream is not None,
                    PRECISION="ieee" if exact else "tf32",
                    num_warps=warps,
                    enable_fp_fusion=False,
                )
    return out.view(*x.shape[:-1], n)


def ahead_of_time() -> list[tuple[str, Any, dict[str, str], dict[str, Any], dict[str, Any]]]:
    """(name, kernel, signature, constants, options) of the kernels to compile where there is no GPU."""
    options = {"num_warps": 4, "enable_fp_fusion": False}
    pointers = {"fp32": "*fp32", "bf16": "*u16", "fp16": "*fp16", "fp64": "*fp64"}
    key = {"seed": "u64", "stream": "u32", "query": "u32"}
    cases: list[tuple[str, Any, dict[str, str], dict[str, Any], dict[str, Any]]] = []
    for dtype, fold, dist, rows in (
        ("fp32", False, "gaussian", 16),
        ("fp32", True, "gaussian", 16),
        ("bf16", True, "gaussian", 64),
        ("bf16", False, "gaussian", 64),
        ("bf16", False, "rademacher", 64),
        ("fp16", False, "gaussian", 16),
    ):
        bm, bn, bk, warps = _tiles(rows)
        constants: dict[str, Any] = {"BM": bm, "BN": bn, "BK": bk, "DTYPE": dtype, "OUT": dtype}
        constants |= {"DIST": DISTS[dist], "Z_ROUND": "none", "FOLD": fold, "PAIR": True, "MOVED": True}
        constants |= {"BIAS": True, "BIAS_MOVED": True, "PRECISION": "ieee"}
        signature = dict.fromkeys(("x0", "x1", "w", "bias", "y0", "y1"), pointers[dtype])
        signature |= {"seed": "u64", "stream": "u32", "bias_stream": "u32", "query": "u32"}
        signature |= {"c0": "i64", "c1": "i64"}
        signature |= dict.fromkeys(("m", "n", "k", "row_stride", "column_stride"), "i32")
        signature |= dict.fromkeys(constants, "constexpr")
        name = f"linear.{dist}.{dtype}.{'fold' if fold else 'split'}.{rows}_rows"
        cases.append((name, _linear_kernel, signature, constants, options | {"num_warps": warps}))
    for dtype, to in (("fp32", "fp32"), ("bf16", "bf16"), ("bf16", "fp32"), ("fp64", "fp64")):
        constants = {"TILE": TILE, "DTYPE": dtype, "OUT": to, "DIST": 0, "Z_ROUND": "none"}
        signature = {"w": pointers[dtype], "out": pointers[to], **key, "coef": "i64", "start": "i64"}
        signature |= {"skip": "i64", "n": "i64", "k": "i32", "row_stride": "i32", "column_stride": "i32"}
        signature |= dict.fromkeys(constants, "constexpr")
        cases.append((f"fill.{dtype}.{to}", _fill_kernel, signature, constants, options))
    for dtype in ("fp32", "bf16"):
        constants = {"TILE": 512, "DTYPE": dtype, "DIST": 0, "Z_ROUND": "none"}
        signature = {"w": pointers[dtype], "ids": "*i64", "out": pointers[dtype], **key, "coef": "i64"}
        signature |= {"k": "i32", "row_stride": "i32", "column_stride": "i32"}
        signature |= dict.fromkeys(constants, "constexpr")
        cases.append((f"embed.{dtype}", _embed_kernel, signature, constants, options))
    return cases
