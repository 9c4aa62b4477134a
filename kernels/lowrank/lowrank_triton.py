# mypy: allow-untyped-defs, allow-untyped-calls
"""Low-rank passes in Triton: the same values as lowrank_reference.py, one launch per matrix.

A program takes a tile of rows by columns of one matrix.  For each rank index it makes the entries of U for
its rows (four normals come from a block and one is kept: a row of U serves a whole row of the tile, so this
is cheap beside the multiply-adds) and adds their product with a row of V, which is passed transposed.
How the bits are kept is said in zo_triton.py.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from tenfold.kernels.zo.zo_triton import _storage
from tenfold.kernels.zo.zo_triton_tiles import (
    _DTYPES,
    _bfloat16_value,
    _box_muller,
    _coefficient,
    _nearest,
    _on,
    _philox,
    _rounded,
    _upload,
)
from torch import Tensor

_ROUNDING = tl.constexpr(4)
PURPOSES = {"u": 5, "v": 6}


@triton.jit
def _word(w0, w1, w2, w3, place):
    return tl.where(place == 0, w0, tl.where(place == 1, w1, tl.where(place == 2, w2, w3)))


@triton.jit
def _words_at(block, stream, tag, seed):
    """The four words of any blocks, one per element of the int64 tensor `block`."""
    low = block.to(tl.uint32)
    high = (block >> 32).to(tl.uint32)
    return _philox(low, high, stream, tag, seed.to(tl.uint32), (seed >> 32).to(tl.uint32))


@triton.jit
def _normal_at(element, stream, tag, seed):
    """Normal number `element` of a sequence, for any int64 tensor of elements."""
    w0, w1, w2, w3 = _words_at(element >> 2, stream, tag, seed)
    place = (element & 3).to(tl.int32)
    z0, z1 = _box_muller(tl.where(place < 2, w0, w2), tl.where(place < 2, w1, w3))
    return tl.where((place & 1) == 0, z0, z1)


@triton.jit
def _rounding_bits_at(element, stream, query, seed):
    w0, w1, w2, w3 = _words_at(element >> 3, stream, query | (_ROUNDING << 24), seed)
    word = _word(w0, w1, w2, w3, ((element & 7) >> 1).to(tl.int32))
    return tl.where((element & 1) == 0, word & 0xFFFF, word >> 16)


@triton.jit
def _value(x, DTYPE: tl.constexpr):
    """A loaded element in the type of the math."""
    if DTYPE == "bf16":
        return _bfloat16_value(x)
    elif DTYPE == "fp16":
        return x.to(tl.float32)
    else:
        return x


@triton.jit(do_not_specialize=["n_terms", "stream", "rank"])
def _lowrank_kernel(
    target,
    source,
    vt,
    u,
    terms,
    n_terms,
    stream: tl.uint32,
    rank,
    rows,
    columns,
    row_stride,
    column_stride,
    source_row_stride,
    source_column_stride,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DTYPE: tl.constexpr,
    EXPLICIT: tl.constexpr,
    STOCHASTIC: tl.constexpr,
):
    """W = round(decay*source + sum_k coef_k U_k V^T)"""
    stream = stream.to(tl.uint32)
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    inside_rows = row < rows
    inside_columns = column < columns
    mask = inside_rows[:, None] & inside_columns[None, :]
    from_ = source + row[:, None] * source_row_stride + column[None, :] * source_column_stride
    acc = _value(tl.load(from_, mask=mask, other=0), DTYPE)
    acc = acc * _coefficient(terms, DTYPE)
    for k in range(1, n_terms + 1):
        line = terms + k * 3
        seed = tl.load(line).to(tl.uint64, bitcast=True)
        tag = tl.load(line + 2).to(tl.uint32) | (5 << 24)
        coef = _coefficient(line, DTYPE)
        s = tl.zeros([ROWS, COLUMNS], dtype=acc.dtype)
        right_at = vt + column
        for j in range(rank):
            element = row * rank + j
            if EXPLICIT:
                left = tl.load(u + element, mask=inside_rows, other=0.0)
            else:
                left = _normal_at(element, stream, tag, seed)
            right = tl.load(right_at, mask=inside_columns, other=0.0)
            right_at += columns
            a, b = tl.broadcast(left.to(acc.dtype)[:, None], right.to(acc.dtype)[None, :])
            s = tl.fma(a, b, s)
        acc = tl.fma(s, tl.zeros([ROWS, COLUMNS], dtype=acc.dtype) + coef, acc)
    if STOCHASTIC:
        element = row[:, None] * columns + column[None, :]
        rounding_seed = tl.load(terms).to(tl.uint64, bitcast=True)
        r16 = _rounding_bits_at(element, stream, tl.load(terms + 2).to(tl.uint32), rounding_seed)
    else:
        r16 = 0
    to = target + row[:, None] * row_stride + column[None, :] * column_stride
    tl.store(to, _rounded(acc, r16, DTYPE, STOCHASTIC), mask=mask)


@triton.jit(do_not_specialize=["n_terms", "stream"])
def _factor_kernel(
    out,
    terms,
    n_terms,
    stream: tl.uint32,
    n,
    TILE: tl.constexpr,
    DTYPE: tl.constexpr,
    PURPOSE: tl.constexpr,
    SUM: tl.constexpr,
):
    """A factor's elements, or sum_k coef_k of several."""
    element = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    acc = tl.zeros([TILE], dtype=tl.float32)
    for k in range(1, n_terms + 1):
        line = terms + k * 3
        tag = tl.load(line + 2).to(tl.uint32) | (PURPOSE << 24)
        seed = tl.load(line).to(tl.uint64, bitcast=True)
        z = _normal_at(element, stream.to(tl.uint32), tag, seed)
        if SUM:
            acc = tl.fma(z, tl.zeros([TILE], dtype=tl.float32) + _coefficient(line, "fp32"), acc)
        else:
            acc = z
    tl.store(out + element, _nearest(acc, DTYPE), mask=element < n)


# -- launching -------------------------------------------------------------------------------------

ROWS, TILE = 8, 512
COLUMNS = {False: 64, True: 128}  # by whether U is given: none of the kernels spills registers with these


def _terms_table(
    seeds: Sequence[int],
    queries: Sequence[int],
    coefs: Sequence[float],
    decay: float,
    rounding_seed: int,
    rounding_query: int,
    device: torch.device,
) -> Tensor:
    """As zo_triton.terms_table: rows of seed, float64 coefficient, query; the first is not a term."""
    data = bytearray(struct.pack("<QdQ", rounding_seed, decay, rounding_query))
    for seed, query, coef in zip(seeds, queries, coefs, strict=True):
        data += struct.pack("<QdQ", seed, coef, query)
    return _upload(data, device)


@torch.no_grad()
def lowrank_(
    params: Sequence[Tensor],
    sources: Sequence[Tensor] | None,
    vs: Sequence[Tensor],
    us: Sequence[Tensor] | None,
    streams: Sequence[int],
    seeds: Sequence[int],
    queries: Sequence[int],
    coefs: Sequence[float],
    decay: float = 1.0,
    stochastic: bool = False,
    rounding_seed: int = 0,
    rounding_query: int = 0,
) -> None:
    """See lowrank_reference.lowrank_."""
    if not any(p.numel() for p in params):
        return
    device = params[0].device
    with _on(device):
        terms = _terms_table(seeds, queries, coefs, decay, rounding_seed, rounding_query, device)
        for i, param in enumerate(params):
            if param.numel() == 0:
                continue
            source = param if sources is None else sources[i]
            vt = vs[i].t().contiguous()
            u = vt if us is None else us[i].contiguous()
            dtype = _DTYPES[param.dtype]
            m, n = param.shape
            width = COLUMNS[us is not None]
            _lowrank_kernel[(triton.cdiv(m, ROWS), triton.cdiv(n, width))](
                _storage(param),
                _storage(source),
                vt,
                u,
                terms,
                len(seeds),
                streams[i],
                vt.shape[0],
                m,
                n,
                *param.stride(),
                *source.stride(),
                ROWS=ROWS,
                COLUMNS=width,
                DTYPE=dtype,
                EXPLICIT=us is not None,
                STOCHASTIC=stochastic and dtype in ("bf16", "fp16"),
                num_warps=4,
                enable_fp_fusion=False,
            )


def _draw(out: Tensor, terms: Tensor, count: int, stream: int, side: str, total: bool) -> None:
    if out.numel() == 0:
        return
    with _on(out.device):
        _factor_kernel[(triton.cdiv(out.numel(), TILE),)](
            _storage(out),
            terms,
            count,
            stream,
            out.numel(),
            TILE=TILE,
            DTYPE=_DTYPES[out.dtype],
            PURPOSE=PURPOSES[side],
            SUM=total,
            num_warps=4,
            enable_fp_fusion=False,
        )


def factor_(out: Tensor, seed: int, stream: int, query: int, side: str) -> None:
    """See lowrank_reference.factor_."""
    _draw(out, _terms_table([seed], [query], [1.0], 1.0, 0, 0, out.device), 1, stream, side, False)


def project_(
    out: Tensor, seeds: Sequence[int], queries: Sequence[int], coefs: Sequence[float], stream: int, side: str
) -> None:
    """See lowrank_reference.project_."""
    _draw(out, _terms_table(seeds, queries, coefs, 1.0, 0, 0, out.device), len(seeds), stream, side, True)


def ahead_of_time() -> list[tuple[str, Any, dict[str, str], dict[str, Any], dict[str, Any]]]:
    """(name, kernel, signature, constants, options) of the kernels to compile where there is no GPU."""
    options = {"num_warps": 4, "enable_fp_fusion": False}
    pointers = {"fp32": "*fp32", "bf16": "*u16", "fp16": "*fp16", "fp64": "*fp64"}
    cases: list[tuple[str, Any, dict[str, str], dict[str, Any], dict[str, Any]]] = []
    for dtype, explicit, stochastic in (
        ("fp32", False, False),
        ("fp32", True, False),
        ("bf16", False, False),
        ("bf16", False, True),
        ("fp16", False, True),
        ("fp64", False, False),
    ):
        constants = {"ROWS": ROWS, "COLUMNS": COLUMNS[explicit], "DTYPE": dtype}
        constants |= {"EXPLICIT": explicit, "STOCHASTIC": stochastic}
        signature = {"target": pointers[dtype], "source": pointers[dtype], "vt": "*fp32", "u": "*fp32"}
        signature |= {"terms": "*i64", "n_terms": "i32", "stream": "u32", "rank": "i32"}
        sizes = (
            "rows",
            "columns",
            "row_stride",
            "column_stride",
            "source_row_stride",
            "source_column_stride",
        )
        signature |= dict.fromkeys(sizes, "i32") | dict.fromkeys(constants, "constexpr")
        name = f"lowrank.{dtype}{'.explicit' if explicit else ''}{'.sr' if stochastic else ''}"
        cases.append((name, _lowrank_kernel, signature, constants, options))
    for total in (False, True):
        constants = {"TILE": TILE, "DTYPE": "fp32", "PURPOSE": 5, "SUM": total}
        signature = {"out": "*fp32", "terms": "*i64", "n_terms": "i32", "stream": "u32", "n": "i32"}
        signature |= dict.fromkeys(constants, "constexpr")
        cases.append((f"factor.{'sum' if total else 'one'}", _factor_kernel, signature, constants, options))
    return cases
