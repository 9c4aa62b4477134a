# mypy: allow-untyped-defs, allow-untyped-calls
"""Zeroth-order passes in Triton: the same values as zo_reference.py, one kernel launch per call and dtype.

The chain and drawing stand here, passes with state in zo_triton_state.py, those that count in
zo_triton_select.py, and what they share, with the account of how the bits are kept, in zo_triton_tiles.py.

Triton's interpreter (TRITON_INTERPRET=1 before this module is imported) runs the kernels on CPU tensors.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .zo_mask import MaskArgs
from .zo_reference import PURPOSES
from .zo_triton_select import (
    DIGIT_BITS,
    PIECES,
    _bits_kernel,
    _count_kernel,
    _histogram_kernel,
    _sums_kernel,
    count_within,
    magnitude_bits_,
    quantile_abs,
    square_sums,
)
from .zo_triton_state import (
    _adam_kernel,
    _hizoo_perturb_kernel,
    _hizoo_update_kernel,
    _momentum_kernel,
    _replay_kernel,
    _sign_kernel,
    adam_,
    hizoo_perturb_,
    hizoo_update_,
    momentum_,
    replay_,
    sign_,
)
from .zo_triton_tiles import (
    _DISTS,
    _DTYPES,
    _MIXED,
    INTERPRETED,
    _add_terms,
    _bits_for,
    _blocks,
    _by_dtype,
    _coefficient,
    _draw,
    _in_order,
    _launch_pass,
    _load,
    _mask_column,
    _mask_kind,
    _moves,
    _nearest,
    _on,
    _one_dist,
    _place,
    _rounded,
    _rounding_bits,
    _stochastic_bfloat16,
    _stochastic_float16,
    _store,
    terms_table,
    tile_of,
)

__all__ = [
    "INTERPRETED",
    "adam_",
    "ahead_of_time",
    "chain_",
    "chain_table_",
    "count_within",
    "hizoo_perturb_",
    "hizoo_update_",
    "magnitude_bits_",
    "momentum_",
    "quantile_abs",
    "replay_",
    "sample",
    "sample_",
    "sign_",
    "square_sums",
    "stochastic_round",
    "terms_table",
    "tile_of",
    "words",
    "words_",
]

# -- kernels ---------------------------------------------------------------------------------------


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
    MASK: tl.constexpr,
):
    """theta = round(decay*source + sum_k coef_k z_k)"""
    row, first, stream, n = _place(table, rows, STEPS, TILE)
    acc = _load(tl.load(row + 4), first, n, TILE, DTYPE, ALIGNED)
    moves = _moves(row, terms, n_terms, first, stream, n, acc, TILE, MASK)
    acc = acc * _coefficient(terms, DTYPE)
    acc = _add_terms(acc, first, stream, terms, n_terms, moves, TILE, DTYPE, DIST, Z_ROUND, MASK)
    r16 = _bits_for(terms, first, stream, TILE, STOCHASTIC)
    _store(tl.load(row + 3), first, n, _rounded(acc, r16, DTYPE, STOCHASTIC), TILE, DTYPE, ALIGNED)


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
    z = _draw(first, TILE, stream, query, key, DIST, DIST)
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
    n_terms = terms.shape[0] - 1
    for group in _by_dtype([params, params if sources is None else sources], streams):
        _launch_pass(
            _chain_kernel, group, (0,), terms, n_terms, dist=code, z_round=z_round, stochastic=stochastic
        )


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
    mask: MaskArgs | None = None,
) -> None:
    """theta = round(decay*source + sum_k coef_k z_k) in place; see zo_reference.chain_."""
    groups = _by_dtype([params, params if sources is None else sources], streams, _mask_column(mask))
    if not groups:
        return
    device = groups[0].columns[0][0].device
    terms = terms_table(seeds, queries, coefs, dists, decay, rounding_seed, rounding_query, device, mask)
    for group in groups:
        _launch_pass(
            _chain_kernel,
            group,
            (0,),
            terms,
            len(seeds),
            dist=_one_dist(dists),
            z_round=z_round,
            stochastic=stochastic,
            mask=_mask_kind(mask),
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


def _in_order_of(kernel: Any, signature: dict[str, str]) -> dict[str, str]:
    return {name: signature[name] for name in inspect.signature(kernel.fn).parameters}


def _pass_case(
    name: str,
    kernel: Any,
    dtype: str,
    dist: int,
    z_round: str = "none",
    stochastic: bool = False,
    mask: str = "none",
    scalars: bool = False,
    **extra: Any,
) -> tuple[str, Any, dict[str, str], dict[str, Any], dict[str, Any]]:
    tile, warps = tile_of(dist, dtype)
    constants = {"STEPS": 8, "TILE": tile, "DTYPE": dtype, **extra}
    constants |= {"DIST": dist, "Z_ROUND": z_round, "STOCHASTIC": stochastic, "ALIGNED": True, "MASK": mask}
    signature = {"table": "*i64", "rows": "i32", "terms": "*i64"}
    signature |= {"passes": "*i64", "n_passes": "i32"} if kernel is _replay_kernel else {"n_terms": "i32"}
    signature |= {"scalars": "*fp64"} if scalars else {}
    signature = _in_order_of(kernel, signature | dict.fromkeys(constants, "constexpr"))
    return name, kernel, signature, constants, {"num_warps": warps, "enable_fp_fusion": False}


def _counting_case(
    name: str, kernel: Any, dtype: str, arguments: dict[str, str], **extra: Any
) -> tuple[str, Any, dict[str, str], dict[str, Any], dict[str, Any]]:
    tile, warps = tile_of(0, dtype)
    constants = {"STEPS": 8, "DTYPE": dtype, **extra}
    constants |= {} if kernel is _sums_kernel else {"TILE": tile, "ALIGNED": True}
    signature = {"table": "*i64", "rows": "i32", **arguments} | dict.fromkeys(constants, "constexpr")
    signature = _in_order_of(kernel, signature)
    warps = 4 if kernel is _sums_kernel else warps
    return name, kernel, signature, constants, {"num_warps": warps, "enable_fp_fusion": False}


def _drawing_case(
    name: str, kernel: Any, signature: dict[str, str], tile: int, **constants: Any
) -> tuple[str, Any, dict[str, str], dict[str, Any], dict[str, Any]]:
    constants = {"TILE": tile, **constants}
    signature = signature | dict.fromkeys(constants, "constexpr")
    return name, kernel, signature, constants, {"num_warps": 4, "enable_fp_fusion": False}


def _state_cases(
    dtype: str, state: str
) -> list[tuple[str, Any, dict[str, str], dict[str, Any], dict[str, Any]]]:
    """The passes with state on weights of `dtype`; the Hessian of HiZOO is in the type of the math."""
    stochastic = dtype in ("bf16", "fp16")
    end = f"{dtype}.{state}" + (".sr" if stochastic else "")
    wide = "fp64" if dtype == "fp64" else "fp32"
    common: dict[str, Any] = {"stochastic": stochastic, "scalars": True}
    momentum: dict[str, Any] = {"STATE": state, "FIRST": False, "NESTEROV": True}
    return [
        _pass_case(f"adam.{end}", _adam_kernel, dtype, 0, **common, STATE=state, RADAZO=False),
        _pass_case(
            f"radazo.{end}", _adam_kernel, dtype, 0, mask="random", **common, STATE=state, RADAZO=True
        ),
        _pass_case(f"momentum.{end}", _momentum_kernel, dtype, 0, **common, **momentum),
        _pass_case(
            f"momentum.magnitude.{end}", _momentum_kernel, dtype, 7, mask="magnitude", **common, **momentum
        ),
        _pass_case(f"sign.{end}", _sign_kernel, dtype, 1, **common),
        _pass_case(f"hizoo_perturb.{end}", _hizoo_perturb_kernel, dtype, 0, "none", stochastic, STATE=wide),
        _pass_case(f"hizoo_update.{end}", _hizoo_update_kernel, dtype, 0, **common, STATE=wide, RESTORE=True),
        _pass_case(f"replay.{end}", _replay_kernel, dtype, 0, "none", stochastic),
        _pass_case(f"replay.mixed.random.{end}", _replay_kernel, dtype, _MIXED, "none", stochastic, "random"),
    ]


def _counting_cases(dtype: str) -> list[tuple[str, Any, dict[str, str], dict[str, Any], dict[str, Any]]]:
    digits = {"bins": "*i64", "prefix": "i64", "shift": "i32"}
    numbers = {"seed": "u64", "query": "u32", "mask_seed": "u64", "mask_query": "u32"}
    binning = {"WIDE": dtype == "fp64", "BINS": 1 << DIGIT_BITS, "DIGIT_BITS": DIGIT_BITS}
    return [
        _counting_case(f"histogram.{dtype}", _histogram_kernel, dtype, digits, **binning),
        _counting_case(f"count.{dtype}", _count_kernel, dtype, {"counts": "*i64"}),
        _counting_case(f"bits.{dtype}", _bits_kernel, dtype, {}),
        *(
            _counting_case(
                f"sums.{dist}.{mask}.{dtype}",
                _sums_kernel,
                dtype,
                numbers,
                COUNT=PIECES,
                DIST=code,
                MASK=mask,
            )
            for (dist, code), mask in zip(
                _DISTS.items(), ("none", "random", "magnitude", "bits"), strict=True
            )
        ),
    ]


def ahead_of_time() -> list[tuple[str, Any, dict[str, str], dict[str, Any], dict[str, Any]]]:
    """(name, kernel, signature, constants, options) of the kernels to compile where there is no GPU."""
    cases = [
        _pass_case(f"chain.{dist}.{dtype}", _chain_kernel, dtype, code)
        for dist, code in (("gaussian", 0), ("rademacher", 1), ("mixed", _MIXED))
        for dtype in ("fp32", "bf16", "fp16", "fp64")
    ]
    cases += [
        _pass_case(f"chain.gaussian.{dtype}.sr", _chain_kernel, dtype, 0, dtype, True)
        for dtype in ("bf16", "fp16")
    ]
    cases += [
        _pass_case(f"chain.{dist}.{mask}.{dtype}", _chain_kernel, dtype, _DISTS[dist], mask=mask)
        for dist in ("gaussian", "gauss16")
        for mask in ("random", "magnitude", "bits")
        for dtype in ("fp32", "bf16")
    ]
    cases += [_pass_case(f"chain.gauss16.{dtype}", _chain_kernel, dtype, 7) for dtype in ("fp32", "bf16")]
    for dtype, state in (("fp32", "fp32"), ("fp64", "fp64"), ("bf16", "fp32"), ("fp16", "bf16")):
        cases += _state_cases(dtype, state)
    for dtype in ("fp32", "bf16", "fp64"):
        cases += _counting_cases(dtype)
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
