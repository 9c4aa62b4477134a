# mypy: allow-untyped-defs, allow-untyped-calls
"""Passes in Triton that read and count: sums of a direction, histograms of magnitudes, counts, bits."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .zo_mask import MaskArgs
from .zo_sums import pairwise_sum
from .zo_triton_tiles import (
    _DISTS,
    _DTYPES,
    _GAUSS16,
    _GAUSSIAN,
    _MASK,
    _RADEMACHER,
    _STEPS,
    _UNIFORM,
    _box_muller,
    _by_dtype,
    _float_words,
    _in_order,
    _launch,
    _load,
    _mask_column,
    _mask_kind,
    _on,
    _philox,
    _place,
    _pointer,
    _unit,
    _upload,
    _widened,
)

PIECE = 2048  # elements in one sum, as in zo_cpu.cpp
PIECES = 32  # sums of one program
_PIECE = tl.constexpr(PIECE)

# -- kernels ---------------------------------------------------------------------------------------


@triton.jit
def _blocks_at(block, stream, tag, seed):
    """The blocks of a vector of int64 numbers."""
    low = block.to(tl.uint32)
    high = (block >> 32).to(tl.uint32)
    return _philox(low, high, stream, tag, seed.to(tl.uint32), (seed >> 32).to(tl.uint32))


@triton.jit
def _words_of_eight(first, COUNT: tl.constexpr, stream, tag, seed):
    """The two blocks of four words from each of COUNT first elements, multiples of 8."""
    block = tl.reshape((first >> 2)[:, None] + tl.arange(0, 2)[None, :], [2 * COUNT])
    w0, w1, w2, w3 = _blocks_at(block, stream, tag, seed)
    return w0, w1, w2, w3


@triton.jit
def _eight(first, COUNT: tl.constexpr, stream, query, seed, DIST: tl.constexpr):
    """z of elements first .. first+7, [COUNT, 8]; the firsts are multiples of 8."""
    if DIST == _GAUSSIAN:
        w0, w1, w2, w3 = _words_of_eight(first, COUNT, stream, query, seed)
        z0, z1 = _box_muller(w0, w1)
        z2, z3 = _box_muller(w2, w3)
        z = _in_order(z0, z1, z2, z3, 2 * COUNT)
    elif DIST == _UNIFORM:
        w0, w1, w2, w3 = _words_of_eight(first, COUNT, stream, query | (_UNIFORM << 24), seed)
        z = _in_order(_unit(w0), _unit(w1), _unit(w2), _unit(w3), 2 * COUNT)
    elif DIST == _RADEMACHER:
        w0, w1, w2, w3 = _blocks_at(first >> 7, stream, query | (_RADEMACHER << 24), seed)
        at = ((first >> 5) & 3).to(tl.int32)
        word = tl.where(at == 0, w0, tl.where(at == 1, w1, tl.where(at == 2, w2, w3)))
        place = (first & 31).to(tl.uint32)[:, None] + tl.arange(0, 8).to(tl.uint32)[None, :]
        one = 0x3F800000 | ((((word[:, None] >> place) & 1) ^ 1) << 31)
        z = tl.reshape(one.to(tl.uint32).to(tl.float32, bitcast=True), [8 * COUNT])
    else:
        w0, w1, w2, w3 = _blocks_at(first >> 3, stream, query | (_GAUSS16 << 24), seed)
        words = _in_order(w0, w1, w2, w3, COUNT)
        even, odd = _box_muller((words << 16) | 0x8000, words & 0xFFFF0000)
        z = tl.reshape(tl.join(even, odd), [8 * COUNT])
    return tl.reshape(z, [COUNT, 8])


@triton.jit
def _eight_move(
    row,
    first,
    n,
    stream,
    mask_query,
    mask_seed,
    COUNT: tl.constexpr,
    DTYPE: tl.constexpr,
    MASK: tl.constexpr,
):
    """Which of the same elements exist and move: [COUNT, 8]"""
    at = first[:, None] + tl.arange(0, 8)[None, :]
    exist = at < n
    if MASK == "random":
        w0, w1, w2, w3 = _words_of_eight(first, COUNT, stream, mask_query | (_MASK << 24), mask_seed)
        words = tl.reshape(_in_order(w0, w1, w2, w3, 2 * COUNT), [COUNT, 8])
        moves = words.to(tl.int64) >= tl.load(row + 6)
    elif MASK == "magnitude":
        x = tl.load(_pointer(tl.load(row + 4), DTYPE, False) + at, mask=exist, other=0)
        x = _widened(x, DTYPE)
        moves = tl.abs(x) <= tl.load(row + 6).to(tl.float64, bitcast=True).to(x.dtype)
    elif MASK == "bits":
        byte = tl.load(tl.load(row + 6).to(tl.pointer_type(tl.uint8)) + (first >> 3), mask=first < n, other=0)
        moves = ((byte.to(tl.int32)[:, None] >> tl.arange(0, 8)[None, :]) & 1) != 0
    else:
        moves = exist
    return exist & moves


@triton.jit(do_not_specialize=["rows", "seed", "query", "mask_seed", "mask_query"])
def _sums_kernel(
    table,
    rows,
    seed: tl.uint64,
    query: tl.uint32,
    mask_seed: tl.uint64,
    mask_query: tl.uint32,
    STEPS: tl.constexpr,
    COUNT: tl.constexpr,
    DTYPE: tl.constexpr,
    DIST: tl.constexpr,
    MASK: tl.constexpr,
):
    """Sums of squares of COUNT pieces of a direction, each in the order of piece_sum (reduce.hpp)."""
    row, start, stream, n = _place(table, rows, STEPS, COUNT * _PIECE)
    first = start + tl.arange(0, COUNT).to(tl.int64) * _PIECE
    key, tag = seed.to(tl.uint64), query.to(tl.uint32)
    mask_key, mask_tag = mask_seed.to(tl.uint64), mask_query.to(tl.uint32)
    partial = tl.full([COUNT, 8], 0.0, tl.float64)
    for step in range(0, _PIECE, 8):
        z = _eight(first + step, COUNT, stream, tag, key, DIST).to(tl.float64)
        moves = _eight_move(row, first + step, n, stream, mask_tag, mask_key, COUNT, DTYPE, MASK)
        partial += tl.where(moves, z * z, 0.0)
    # ((p0 + p1) + (p2 + p3)) + ((p4 + p5) + (p6 + p7))
    even, odd = tl.split(tl.reshape(partial, [COUNT, 4, 2]))
    even, odd = tl.split(tl.reshape(even + odd, [COUNT, 2, 2]))
    even, odd = tl.split(even + odd)
    out = tl.load(row + 3).to(tl.pointer_type(tl.float64))
    tl.store(out + (first // _PIECE), even + odd, mask=first < n)


@triton.jit(do_not_specialize=["rows", "prefix", "shift"])
def _histogram_kernel(
    table,
    rows,
    bins,
    prefix: tl.int64,
    shift: tl.int32,
    STEPS: tl.constexpr,
    TILE: tl.constexpr,
    DTYPE: tl.constexpr,
    ALIGNED: tl.constexpr,
    WIDE: tl.constexpr,
    BINS: tl.constexpr,
    DIGIT_BITS: tl.constexpr,
):
    """Counts, for magnitudes whose leading bits are `prefix`, the digit that starts at bit `shift`."""
    row, first, _, n = _place(table, rows, STEPS, TILE)
    x = _load(tl.load(row + 3), first, n, TILE, DTYPE, ALIGNED)
    if WIDE:
        key = x.to(tl.float64).to(tl.int64, bitcast=True) & 0x7FFFFFFFFFFFFFFF
    else:
        key = (x.to(tl.int32, bitcast=True) & 0x7FFFFFFF).to(tl.int64)
    key = key >> shift
    counted = ((key >> DIGIT_BITS) == prefix) & (first + tl.arange(0, TILE) < n)
    digit = tl.where(counted, (key & (BINS - 1)).to(tl.int32), 0)
    counts = tl.histogram(digit, BINS)
    left_out = TILE - tl.sum(counted.to(tl.int32), axis=0)
    at = tl.arange(0, BINS)
    counts = tl.where(at == 0, counts - left_out, counts)
    tl.atomic_add(bins + at, counts.to(tl.int64), mask=counts != 0, sem="relaxed")


@triton.jit
def _small(row, first, n, TILE: tl.constexpr, DTYPE: tl.constexpr, ALIGNED: tl.constexpr):
    """Whether each element exists and its magnitude is at most the tensor's threshold."""
    x = _load(tl.load(row + 3), first, n, TILE, DTYPE, ALIGNED)
    below = tl.abs(x).to(tl.float64) <= tl.load(row + 6).to(tl.float64, bitcast=True)
    return below & (first + tl.arange(0, TILE) < n)


@triton.jit(do_not_specialize=["rows"])
def _count_kernel(
    table,
    rows,
    counts,
    STEPS: tl.constexpr,
    TILE: tl.constexpr,
    DTYPE: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """counts[stream of the row] += its elements within the threshold"""
    row, first, index, n = _place(table, rows, STEPS, TILE)
    small = _small(row, first, n, TILE, DTYPE, ALIGNED)
    tl.atomic_add(counts + index, tl.sum(small.to(tl.int32), axis=0).to(tl.int64), sem="relaxed")


@triton.jit(do_not_specialize=["rows"])
def _bits_kernel(
    table,
    rows,
    STEPS: tl.constexpr,
    TILE: tl.constexpr,
    DTYPE: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """Bit i % 8 of byte i // 8 of the second address: whether element i is within the threshold."""
    row, first, _, n = _place(table, rows, STEPS, TILE)
    small = _small(row, first, n, TILE, DTYPE, ALIGNED)
    ones = tl.reshape(small.to(tl.int32), [TILE // 8, 8]) << tl.arange(0, 8)[None, :]
    at = (first >> 3) + tl.arange(0, TILE // 8)
    out = tl.load(row + 4).to(tl.pointer_type(tl.uint8)) + at
    tl.store(out, tl.sum(ones, axis=1).to(tl.uint8), mask=at * 8 < n)


# -- calls -----------------------------------------------------------------------------------------

DIGIT_BITS = 11


def square_sums(
    numels: Sequence[int],
    streams: Sequence[int],
    seed: int,
    query: int,
    dist: str,
    device: torch.device | str = "cpu",
    mask: MaskArgs | None = None,
    params: Sequence[Tensor] = (),
) -> list[float]:
    """See zo_select_reference.square_sums."""
    device = torch.device(device)
    sums = [torch.empty(-(-n // PIECE), dtype=torch.float64, device=device) for n in numels]
    words = _mask_column(mask) or [0] * len(numels)
    magnitude = mask is not None and mask.kind == "magnitude"
    looked_at = [p.contiguous() for p in params] if magnitude else []
    dtypes = [p.dtype if magnitude else torch.float32 for p in params] or [torch.float32] * len(numels)
    for dtype in dict.fromkeys(dtypes):
        data, rows, programs = bytearray(), 0, 0
        for t, (n, stream) in enumerate(zip(numels, streams, strict=True)):
            if n and dtypes[t] == dtype:
                weights = looked_at[t].data_ptr() if magnitude else 0
                data += struct.pack("<7Q", n, stream, programs, sums[t].data_ptr(), weights, 0, words[t])
                rows, programs = rows + 1, programs - (-n // (PIECE * PIECES))
        if rows:
            with _on(device):
                _sums_kernel[(programs,)](
                    _upload(data, device),
                    rows,
                    seed,
                    query,
                    0 if mask is None else mask.seed,
                    0 if mask is None else mask.query,
                    STEPS=next(s for s in _STEPS if rows <= 1 << s),
                    COUNT=PIECES,
                    DTYPE=_DTYPES[dtype],
                    DIST=_DISTS[dist],
                    MASK=_mask_kind(mask),
                    num_warps=4,
                    enable_fp_fusion=False,
                )
    return [pairwise_sum(s.cpu()) for s in sums]


def quantile_abs(params: Sequence[Tensor], rank: int) -> float:
    """See zo_select_reference.quantile_abs."""
    groups = _by_dtype([params], [0] * len(params))
    wide = any(group.columns[0][0].dtype == torch.float64 for group in groups)
    bins = torch.zeros(1 << DIGIT_BITS, dtype=torch.int64, device=groups[0].columns[0][0].device)
    prefix = 0
    for shift in range(55 if wide else 22, -1, -DIGIT_BITS):
        bins.zero_()
        for group in groups:
            _launch(
                _histogram_kernel,
                group,
                (),
                bins,
                prefix,
                shift,
                WIDE=wide,
                BINS=1 << DIGIT_BITS,
                DIGIT_BITS=DIGIT_BITS,
            )
        below = bins.cumsum(0).cpu()
        digit = int(torch.searchsorted(below, torch.tensor(rank)).item())
        rank -= int(below[digit - 1]) if digit else 0
        prefix = prefix << DIGIT_BITS | digit
    return struct.unpack("<d" if wide else "<f", struct.pack("<Q" if wide else "<I", prefix))[0]


def count_within(params: Sequence[Tensor], thresholds: Sequence[float]) -> list[int]:
    """See zo_select_reference.count_within."""
    if not params:
        return []
    counts = torch.zeros(len(params), dtype=torch.int64, device=params[0].device)
    for group in _by_dtype([params], range(len(params)), _float_words(thresholds)):
        _launch(_count_kernel, group, (), counts)
    return counts.tolist()


def magnitude_bits_(out: Sequence[Tensor], params: Sequence[Tensor], thresholds: Sequence[float]) -> None:
    """See zo_select_reference.magnitude_bits_."""
    for group in _by_dtype([params, out], [0] * len(params), _float_words(thresholds)):
        _launch(_bits_kernel, group, (1,))
