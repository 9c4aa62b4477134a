# mypy: allow-untyped-defs, allow-untyped-calls
"""What the Sophia kernels in Triton are made of: their tables, rounding bits, and states in each format.

A row of the tensor table holds the number of elements, the stream, the tiles before it, and the addresses of
`COLUMNS` (0: not there); another table holds the numbers of a call, so that a launch takes two pointers and a
captured CUDA graph reads both when it runs.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from tenfold.kernels.zo.zo_triton_tiles import (
    _STEPS,
    _blocks,
    _in_order,
    _load,
    _on,
    _pointer,
    _rounded,
    _store,
    _upload,
)
from torch import Tensor

_BYTE_BLOCK = tl.constexpr(256)
_ONE_BITS = tl.constexpr(0x3F800000)
_NAN_CODE = tl.constexpr(0x80)

_TILE, _WARPS = 1024, 4  # of a program; whole blocks of 8-bit states

COLUMNS = (
    "param", "grad", "exp_avg", "hessian", "exp_avg_scale", "hessian_scale", "master", "compensation",
)  # fmt: skip
_ROW = tl.constexpr(3 + len(COLUMNS))
_PARAM, _GRAD, _EXP_AVG, _HESSIAN, _EXP_AVG_SCALE, _HESSIAN_SCALE, _MASTER, _COMPENSATION = (
    tl.constexpr(3 + i) for i in range(len(COLUMNS))
)
# The table of numbers: seed and step, then float64 ones in the order in which the pass reads them.
_SEED, _STEP = tl.constexpr(0), tl.constexpr(1)
# Purposes of rounding bits, as in zo_reference.PURPOSES.
_FOR_PARAM, _FOR_EXP_AVG, _FOR_HESSIAN = tl.constexpr(8), tl.constexpr(9), tl.constexpr(10)

# -- tiles -----------------------------------------------------------------------------------------


@triton.jit
def _place(table, rows, STEPS: tl.constexpr, TILE: tl.constexpr):
    """Of this program: its tensor's row, its first element there, the stream and the number of elements."""
    tile = tl.program_id(0).to(tl.int64)
    low = 0
    high = rows
    for _ in tl.static_range(STEPS):
        middle = (low + high) // 2
        before = tl.load(table + middle * _ROW + 2) <= tile
        low = tl.where(before, middle, low)
        high = tl.where(before, high, middle)
    row = table + low * _ROW
    return row, (tile - tl.load(row + 2)) * TILE, tl.load(row + 1).to(tl.uint32), tl.load(row)


@triton.jit
def _stored(address, first, n, TILE: tl.constexpr, DTYPE: tl.constexpr, ALIGNED: tl.constexpr):
    """Elements as they are stored."""
    at = first + tl.arange(0, TILE)
    pointer = _pointer(address, DTYPE, ALIGNED) + at
    if first + TILE <= n:
        x = tl.load(pointer)
    else:
        x = tl.load(pointer, mask=at < n, other=0)
    return x


@triton.jit
def _bits_of(numbers, stream, first, PURPOSE: tl.constexpr, TILE: tl.constexpr):
    """The 16 rounding bits of each element: halves of words, even elements the low ones."""
    seed = tl.load(numbers + _SEED).to(tl.uint64, bitcast=True)
    step = tl.load(numbers + _STEP).to(tl.uint32)
    w0, w1, w2, w3 = _blocks(first >> 3, TILE // 8, stream, step | (PURPOSE << 24), seed)
    words = _in_order(w0, w1, w2, w3, TILE // 8)
    return tl.reshape(tl.join(words & 0xFFFF, words >> 16), [TILE])


@triton.jit
def _finite(x):
    return tl.abs(x) < float("inf")


@triton.jit
def _differ(a, b):
    if a.dtype == tl.float64:
        return a.to(tl.int64, bitcast=True) != b.to(tl.int64, bitcast=True)
    elif a.dtype == tl.float32:
        return a.to(tl.int32, bitcast=True) != b.to(tl.int32, bitcast=True)
    else:
        return a.to(tl.uint16, bitcast=True) != b.to(tl.uint16, bitcast=True)


# -- 8 bits: sophia8_reference.py ------------------------------------------------------------------


@triton.jit
def _level(ratio_bits, shift, SHIFT: tl.constexpr, TOP: tl.constexpr):
    """Codes are 3 * 2^SHIFT apart in the bits of the ratio, below those of 1.0."""
    return TOP - ((_ONE_BITS - ratio_bits + shift) >> SHIFT) // 3


@triton.jit
def _value(level, SHIFT: tl.constexpr, TOP: tl.constexpr):
    bits = tl.where(level == 0, 0, _ONE_BITS - ((TOP - level) * 3 << SHIFT))
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def _load_codes(address, scales, first, n, TILE: tl.constexpr, HESSIAN: tl.constexpr):
    at = first + tl.arange(0, TILE)
    codes = tl.load(address.to(tl.pointer_type(tl.uint8)) + at, mask=at < n, other=0).to(tl.int32)
    block = first // _BYTE_BLOCK + tl.arange(0, TILE // _BYTE_BLOCK)
    scale = tl.load(scales.to(tl.pointer_type(tl.float32)) + block, mask=block * _BYTE_BLOCK < n, other=0.0)
    code = tl.reshape(codes, [TILE // _BYTE_BLOCK, _BYTE_BLOCK])
    if HESSIAN:
        root = _value(code, 18, 255) * scale[:, None]
        value = root * root
    else:
        size = _value(code & 0x7F, 19, 127) * scale[:, None]
        bits = size.to(tl.int32, bitcast=True) | ((code & 0x80) << 24)
        value = tl.where(code == _NAN_CODE, float("nan"), bits.to(tl.float32, bitcast=True))
    return tl.reshape(value, [TILE])


@triton.jit
def _encoded_exp_avg(m, shift):
    """(codes, the scale of each block), of blocks by rows."""
    bits = m.to(tl.int32, bitcast=True)
    size = bits & 0x7FFFFFFF
    scale = tl.max(tl.where(size < 0x7F800000, size, 0), axis=1).to(tl.float32, bitcast=True)
    divisor = tl.where(scale > 0.0, scale, 1.0)  # of a block of zeros nothing is kept
    at = tl.div_rn(tl.abs(m), tl.broadcast_to(divisor[:, None], m.shape)).to(tl.int32, bitcast=True)
    at = tl.where(at > _ONE_BITS, _ONE_BITS, at)
    level = _level(at, shift, 19, 127)
    code = tl.where(level > 0, level | ((bits >> 24) & 0x80), 0)
    code = tl.where(scale[:, None] > 0.0, code, 0)
    return tl.where(size > 0x7F800000, _NAN_CODE, code), scale


@triton.jit
def _encoded_hessian(h, shift):
    positive = tl.where(h > 0.0, h, 0.0)
    bits = positive.to(tl.int32, bitcast=True)
    scale = tl.sqrt_rn(tl.max(tl.where(bits < 0x7F800000, bits, 0), axis=1).to(tl.float32, bitcast=True))
    divisor = tl.where(scale > 0.0, scale, 1.0)
    ratio = tl.div_rn(tl.sqrt_rn(positive), tl.broadcast_to(divisor[:, None], h.shape))
    at = ratio.to(tl.int32, bitcast=True)
    level = _level(tl.where(at > _ONE_BITS, _ONE_BITS, at), shift, 18, 255)
    code = tl.where(positive > 0.0, tl.where(level < 1, 1, level), 0)
    infinite = (h != h) | (bits == 0x7F800000)  # NaN counts as infinite
    return tl.where(infinite, 255, code), scale


@triton.jit
def _store_codes(
    address, scales, first, n, value, r16, TILE: tl.constexpr, HESSIAN: tl.constexpr, NEAREST: tl.constexpr
):
    at = first + tl.arange(0, TILE)
    x = tl.reshape(tl.where(at < n, value, 0.0), [TILE // _BYTE_BLOCK, _BYTE_BLOCK])
    SHIFT: tl.constexpr = 18 if HESSIAN else 19
    if NEAREST:
        shift = 3 << (SHIFT - 1)
    else:
        shift = tl.reshape(r16.to(tl.int32), [TILE // _BYTE_BLOCK, _BYTE_BLOCK]) * (3 << (SHIFT - 16))
    if HESSIAN:
        codes, scale = _encoded_hessian(x, shift)
    else:
        codes, scale = _encoded_exp_avg(x, shift)
    block = first // _BYTE_BLOCK + tl.arange(0, TILE // _BYTE_BLOCK)
    tl.store(scales.to(tl.pointer_type(tl.float32)) + block, scale, mask=block * _BYTE_BLOCK < n)
    stored = tl.reshape(codes, [TILE]).to(tl.uint8)
    tl.store(address.to(tl.pointer_type(tl.uint8)) + at, stored, mask=at < n)


# -- states ----------------------------------------------------------------------------------------


@triton.jit
def _load_state(
    address,
    scales,
    first,
    n,
    TILE: tl.constexpr,
    STATE: tl.constexpr,
    HESSIAN: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    if STATE == "u8":
        return _load_codes(address, scales, first, n, TILE, HESSIAN)
    else:
        return _load(address, first, n, TILE, STATE, ALIGNED)


@triton.jit
def _store_state(
    address,
    scales,
    first,
    n,
    value,
    numbers,
    stream,
    TILE: tl.constexpr,
    STATE: tl.constexpr,
    HESSIAN: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """States in few bits are rounded stochastically."""
    PURPOSE: tl.constexpr = _FOR_HESSIAN if HESSIAN else _FOR_EXP_AVG
    if STATE == "u8":
        r16 = _bits_of(numbers, stream, first, PURPOSE, TILE)
        _store_codes(address, scales, first, n, value, r16, TILE, HESSIAN, False)
    elif STATE == "bf16":
        r16 = _bits_of(numbers, stream, first, PURPOSE, TILE)
        _store(address, first, n, _rounded(value, r16, STATE, True), TILE, STATE, ALIGNED)
    else:
        _store(address, first, n, value, TILE, STATE, ALIGNED)


@triton.jit
def _number(numbers, k: tl.constexpr, DTYPE: tl.constexpr):
    """A number of the call, rounded once to the type of the math."""
    value = tl.load(numbers + 2 + k).to(tl.float64, bitcast=True)
    if DTYPE == "fp64":
        return value
    else:
        return value.to(tl.float32)


# -- tables and launches ---------------------------------------------------------------------------


_tables: OrderedDict[tuple[object, ...], Tensor] = OrderedDict()  # in use, the last used at the end
_TABLES_KEPT = 64
_captured: list[Tensor] = []  # that captured CUDA graphs read: kept for good


def tensor_table(
    columns: dict[str, list[int]],
    sizes: Sequence[int],
    streams: Sequence[int],
    tile: int,
    device: torch.device,
) -> tuple[Tensor, int]:
    """The table of tensors, given by the addresses of their columns, and the number of tiles."""
    tiles = [-(-n // tile) for n in sizes]
    key = (device, tile, tuple(sizes), tuple(streams), *((c, tuple(a)) for c, a in columns.items()))
    table = _tables.pop(key, None)
    if table is None:
        data, before = bytearray(), 0
        for i, (n, stream) in enumerate(zip(sizes, streams, strict=True)):
            addresses = [columns[c][i] if c in columns else 0 for c in COLUMNS]
            data += struct.pack(f"<{3 + len(COLUMNS)}Q", n, stream & 0xFFFFFFFF, before, *addresses)
            before += tiles[i]
        table = _upload(data, device)
    _tables[key] = table
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        _captured.append(table)
    while len(_tables) > _TABLES_KEPT:
        _tables.popitem(last=False)
    return table, sum(tiles)


def number_table(seed: int, step: int, values: Sequence[float], device: torch.device) -> Tensor:
    """int64: seed, step, and the bits of float64 numbers."""
    return _upload(bytearray(struct.pack(f"<QQ{len(values)}d", seed, step, *values)), device)


def launch(
    kernel: Any,
    columns: dict[str, Sequence[Tensor]],
    members: Sequence[int],
    streams: Sequence[int],
    numbers: Tensor,
    *arguments: object,
    **constants: object,
) -> None:
    """One launch over `members` of lists of contiguous tensors, none of them empty."""
    columns = {name: [column[i] for i in members] for name, column in columns.items() if len(column)}
    first = next(iter(columns.values()))
    device = first[0].device
    addresses = {name: [t.data_ptr() for t in column] for name, column in columns.items()}
    with _on(device):
        table, tiles = tensor_table(
            addresses, [t.numel() for t in first], [streams[i] for i in members], _TILE, device
        )
        kernel[(tiles,)](
            table,
            len(members),
            numbers,
            *arguments,
            STEPS=next(s for s in _STEPS if len(members) <= 1 << s),
            TILE=_TILE,
            num_warps=_WARPS,
            enable_fp_fusion=False,
            **constants,
        )


def aligned(columns: dict[str, Sequence[Tensor]], members: Sequence[int]) -> bool:
    """Whether all that is read with its dtype's vectors starts at a multiple of 16 bytes."""
    return all(column[i].data_ptr() % 16 == 0 for column in columns.values() if len(column) for i in members)
