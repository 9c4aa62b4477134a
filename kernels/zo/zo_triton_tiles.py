# mypy: allow-untyped-defs, allow-untyped-calls
"""What the Triton kernels of this family share: generator, dtypes, masks, tables, launches.

How the bits are kept: every fused multiply-add is written as tl.fma, the square root and the division are the
IEEE ones, and each launch forbids the compiler to contract or reorder anything else (enable_fp_fusion=False).
Philox, Box-Muller and the passes are those of zo_reference.py, where the papers are cited.

A list of tensors travels as one int64 table in device memory, one row per tensor; a program finds its tensor
by binary search.  The terms travel as a second table of the same kind, so that a captured CUDA graph can be
replayed with other seeds and coefficients by writing into that table (`terms_table`, `chain_table_`).
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .zo_mask import MaskArgs, word_threshold

INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"

_INTERPRET = tl.constexpr(INTERPRETED)
_LN2 = tl.constexpr(float.fromhex("0x1.62e430p-1"))
_QUARTER_TURN = tl.constexpr(float.fromhex("0x1.921fb6p-30"))
_TO_UNIT = tl.constexpr(2.0**-32)
_HALF_CELL = tl.constexpr(2.0**-33)

_GAUSSIAN = tl.constexpr(0)
_RADEMACHER = tl.constexpr(1)
_UNIFORM = tl.constexpr(2)
_MASK = tl.constexpr(3)
_ROUNDING = tl.constexpr(4)
_GAUSS16 = tl.constexpr(7)

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
def _gauss16(first, TILE: tl.constexpr, stream, query, seed):
    w0, w1, w2, w3 = _blocks(first >> 3, TILE // 8, stream, query | (_GAUSS16 << 24), seed)
    words = _in_order(w0, w1, w2, w3, TILE // 8)
    even, odd = _box_muller((words << 16) | 0x8000, words & 0xFFFF0000)
    return tl.reshape(tl.join(even, odd), [TILE])


@triton.jit
def _draw(first, TILE: tl.constexpr, stream, query, seed, dist, DIST: tl.constexpr):
    """A tile of z. DIST is its distribution, or _MIXED and `dist` says which when the kernel runs."""
    if DIST == _GAUSSIAN:
        z = _gaussian(first, TILE, stream, query, seed)
    elif DIST == _RADEMACHER:
        z = _rademacher(first, TILE, stream, query, seed)
    elif DIST == _UNIFORM:
        z = _uniform(first, TILE, stream, query, seed)
    elif DIST == _GAUSS16:
        z = _gauss16(first, TILE, stream, query, seed)
    else:
        if dist == _GAUSSIAN:
            z = _gaussian(first, TILE, stream, query, seed)
        elif dist == _RADEMACHER:
            z = _rademacher(first, TILE, stream, query, seed)
        elif dist == _UNIFORM:
            z = _uniform(first, TILE, stream, query, seed)
        else:
            z = _gauss16(first, TILE, stream, query, seed)
    return z


@triton.jit
def _words_of_mask(first, TILE: tl.constexpr, stream, query, seed):
    w0, w1, w2, w3 = _blocks(first >> 2, TILE // 4, stream, query | (_MASK << 24), seed)
    return _in_order(w0, w1, w2, w3, TILE // 4)


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
def _widened(stored, DTYPE: tl.constexpr):
    """A stored value in the type the math is done in."""
    if DTYPE == "bf16":
        return _bfloat16_value(stored)
    elif DTYPE == "fp16":
        return stored.to(tl.float32)
    else:
        return stored


@triton.jit
def _load(address, first, n, TILE: tl.constexpr, DTYPE: tl.constexpr, ALIGNED: tl.constexpr):
    """Elements first .. first+TILE-1 of a tensor of n, in the type the math is done in."""
    at = first + tl.arange(0, TILE)
    pointer = _pointer(address, DTYPE, ALIGNED) + at
    if first + TILE <= n:  # without a mask the loads are 16 bytes wide
        x = tl.load(pointer)
    else:
        x = tl.load(pointer, mask=at < n)
    return _widened(x, DTYPE)


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
# A row of a tensor table: numel, stream, tiles before it, address of theta, two more addresses, mask word.
# A row of a terms table: seed, coefficient (bits of a float64), query | dist << 32.  Its first row is not a
# term: rounding seed, decay, rounding query.  With a random mask one more row follows the terms: mask seed,
# 0, mask query.
# The mask word: words of the generator below it hold an element (random), the bits of the float64 threshold
# (magnitude), or the address of the bytes (bits).

_ROW = tl.constexpr(7)


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
def _place(table, rows, STEPS: tl.constexpr, TILE: tl.constexpr):
    """Of this program: its tensor's row, its first element there, the stream and the number of elements."""
    tile = tl.program_id(0).to(tl.int64)
    row = _find_row(table, rows, tile, STEPS)
    return row, (tile - tl.load(row + 2)) * TILE, tl.load(row + 1).to(tl.uint32), tl.load(row)


@triton.jit
def _coefficient(row, DTYPE: tl.constexpr):
    value = tl.load(row + 1).to(tl.float64, bitcast=True)
    if DTYPE == "fp64":
        return value
    else:
        return value.to(tl.float32)


@triton.jit
def _moves(row, terms, n_terms, first, stream, n, x, TILE: tl.constexpr, MASK: tl.constexpr):
    """Whether each element of a tile moves; x holds the weights (MASK "magnitude")."""
    if MASK == "random":
        at = terms + (n_terms + 1) * 3
        seed = tl.load(at).to(tl.uint64, bitcast=True)
        words = _words_of_mask(first, TILE, stream, tl.load(at + 2).to(tl.uint32), seed)
        return words.to(tl.int64) >= tl.load(row + 6)
    elif MASK == "magnitude":
        return tl.abs(x) <= tl.load(row + 6).to(tl.float64, bitcast=True).to(x.dtype)
    elif MASK == "bits":
        at = first + tl.arange(0, TILE)
        pointer = tl.load(row + 6).to(tl.pointer_type(tl.uint8)) + (at >> 3)
        byte = tl.load(pointer, mask=at < n, other=0).to(tl.int32)
        return ((byte >> (at & 7).to(tl.int32)) & 1) != 0
    else:
        return True


@triton.jit
def _where(moves, moved, held, MASK: tl.constexpr):
    if MASK == "none":
        return moved
    else:
        return tl.where(moves, moved, held)


@triton.jit
def _z_of(term, first, stream, TILE: tl.constexpr, DIST: tl.constexpr, Z_ROUND: tl.constexpr):
    """A tile of z for a row of a terms table."""
    seed = tl.load(term).to(tl.uint64, bitcast=True)
    packed = tl.load(term + 2)
    z = _draw(first, TILE, stream, packed.to(tl.uint32), seed, (packed >> 32).to(tl.int32), DIST)
    return _round_z(z, Z_ROUND)


@triton.jit
def _add_terms(
    acc,
    first,
    stream,
    terms,
    n_terms,
    moves,
    TILE: tl.constexpr,
    DTYPE: tl.constexpr,
    DIST: tl.constexpr,
    Z_ROUND: tl.constexpr,
    MASK: tl.constexpr,
):
    """acc + sum_k coef_k z_k for the tile of elements from `first`, one fma per term, in their order."""
    for k in range(1, n_terms + 1):
        term = terms + k * 3
        coef = _coefficient(term, DTYPE)
        z = _z_of(term, first, stream, TILE, DIST, Z_ROUND).to(acc.dtype)
        acc = _where(moves, tl.fma(z, coef, acc), acc, MASK)
    return acc


@triton.jit
def _bits_for(terms, first, stream, TILE: tl.constexpr, STOCHASTIC: tl.constexpr):
    if STOCHASTIC:
        seed = tl.load(terms).to(tl.uint64, bitcast=True)
        return _rounding_bits(first, TILE, stream, tl.load(terms + 2).to(tl.uint32), seed)
    else:
        return 0


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


# -- launching -------------------------------------------------------------------------------------

_DTYPES = {torch.float32: "fp32", torch.float64: "fp64", torch.bfloat16: "bf16", torch.float16: "fp16"}
_DISTS = {"gaussian": 0, "rademacher": 1, "uniform": 2, "gauss16": 7}
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
    mask: MaskArgs | None = None,
) -> Tensor:
    """The terms of a pass as an int64 tensor [1 + k, 3] on `device`, for `chain_table_`.

    Row 0 is (rounding seed, bits of the float64 decay, rounding query); row k is (seed, bits of the float64
    coefficient, query | dist << 32) with dist 0 Gaussian, 1 Rademacher, 2 uniform, 7 gauss16.
    A random mask adds a row (mask seed, 0, mask query).
    """
    data = bytearray(struct.pack("<QdII", rounding_seed, decay, rounding_query, 0))
    for seed, query, coef, dist in zip(seeds, queries, coefs, dists, strict=True):
        data += struct.pack("<QdII", seed, coef, query, _DISTS[dist])
    if mask is not None and mask.kind == "random":
        data += struct.pack("<QdII", mask.seed, 0.0, mask.query, 0)
    return _upload(data, torch.device(device)).view(-1, 3)


class Group(NamedTuple):
    """Tensors of one dtype, their states and the like beside them, in order."""

    columns: list[list[Tensor]]
    streams: list[int]
    words: list[int]


def _tensor_table(group: Group, tile: int) -> tuple[Tensor, int]:
    """The table of the group's tensors, and the number of tiles."""
    columns, streams, words = group
    device = columns[0][0].device
    addresses = tuple(tuple(t.data_ptr() for t in column) for column in columns)
    sizes = tuple(t.numel() for t in columns[0])
    tiles = sum(-(-n // tile) for n in sizes)
    key = (device, tile, addresses, sizes, tuple(streams), tuple(words))
    table = _tables.pop(key, None)
    if table is None:
        data = bytearray()
        before = 0
        for i, (n, stream, word) in enumerate(zip(sizes, streams, words, strict=True)):
            places = [column[i] for column in addresses]
            data += struct.pack("<7Q", n, stream, before, *places, *(0,) * (3 - len(places)), word)
            before += -(-n // tile)
        table = _upload(data, device)
    _tables[key] = table
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        _captured.append(table)
    while len(_tables) > _TABLES_KEPT:
        _tables.popitem(last=False)
    return table, tiles


def _by_dtype(
    columns: Sequence[Sequence[Tensor]], streams: Sequence[int], words: Sequence[int] = ()
) -> list[Group]:
    """Non-empty tensors grouped by the dtypes of their row, in order of appearance."""
    groups: dict[tuple[torch.dtype, ...], Group] = {}
    for *tensors, stream, word in zip(*columns, streams, words or [0] * len(streams), strict=True):
        if tensors[0].numel() == 0:
            continue
        held = groups.setdefault(tuple(t.dtype for t in tensors), Group([[] for _ in columns], [], []))
        for column, tensor in zip(held.columns, tensors, strict=True):
            column.append(tensor)
        held.streams.append(stream & 0xFFFFFFFF)
        held.words.append(word)
    return list(groups.values())


def _launch(
    kernel: Any,
    group: Group,
    written: Sequence[int],
    *arguments: object,
    dist: int = 0,
    **constants: object,
) -> None:
    """One launch over a group; the columns `written` are written.

    Tensors that are not contiguous are worked on as contiguous copies and copied back.
    """
    dense = Group([[t.contiguous() for t in column] for column in group.columns], group.streams, group.words)
    device = dense.columns[0][0].device
    dtype = _DTYPES[dense.columns[0][0].dtype]
    tile, warps = tile_of(dist, dtype)
    with _on(device):
        table, tiles = _tensor_table(dense, tile)
        rows = len(dense.streams)
        kernel[(tiles,)](
            table,
            rows,
            *arguments,
            STEPS=next(s for s in _STEPS if rows <= 1 << s),
            TILE=tile,
            DTYPE=dtype,
            ALIGNED=all(t.data_ptr() % 16 == 0 for column in dense.columns for t in column),
            num_warps=warps,
            enable_fp_fusion=False,
            **constants,
        )
        for c in written:
            for tensor, copy in zip(group.columns[c], dense.columns[c], strict=True):
                if copy is not tensor:
                    tensor.copy_(copy)


def _launch_pass(
    kernel: Any,
    group: Group,
    written: Sequence[int],
    terms: Tensor,
    n_terms: int,
    *arguments: object,
    dist: int,
    z_round: torch.dtype | None,
    stochastic: bool,
    mask: str = "none",
    **constants: object,
) -> None:
    """A launch of a kernel that draws directions and rounds weights."""
    _launch(
        kernel,
        group,
        written,
        terms,
        n_terms,
        *arguments,
        dist=dist,
        DIST=dist,
        Z_ROUND="none" if z_round is None else _DTYPES[z_round],
        STOCHASTIC=stochastic and group.columns[0][0].dtype in (torch.bfloat16, torch.float16),
        MASK=mask,
        **constants,
    )


def _mask_kind(mask: MaskArgs | None) -> str:
    return "none" if mask is None else mask.kind


def _float_words(values: Sequence[float]) -> list[int]:
    """The bits of float64 values."""
    return list(struct.unpack(f"<{len(values)}Q", struct.pack(f"<{len(values)}d", *values)))


def _mask_column(mask: MaskArgs | None) -> list[int]:
    """The mask words of a list of tensors, empty without a mask."""
    if mask is None:
        return []
    if mask.kind == "bits":
        return [bits.data_ptr() for bits in mask.bits]
    if mask.kind == "magnitude":
        return _float_words(mask.values)
    return [word_threshold(ratio) for ratio in mask.values]


def _one_dist(dists: Sequence[str]) -> int:
    return _DISTS[dists[0]] if len(set(dists)) == 1 else _MIXED
