# mypy: allow-untyped-defs, allow-untyped-calls
"""Passes in Triton that keep a state beside the weights, and the replay of many passes at once."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .zo_mask import MaskArgs, word_threshold
from .zo_triton_tiles import (
    _DTYPES,
    _add_terms,
    _bits_for,
    _by_dtype,
    _coefficient,
    _divide,
    _launch,
    _launch_pass,
    _load,
    _mask_column,
    _mask_kind,
    _moves,
    _nearest,
    _one_dist,
    _place,
    _rounded,
    _rounding_bits,
    _scalar,
    _sqrt,
    _store,
    _upload,
    _where,
    _widened,
    _words_of_mask,
    _z_of,
    terms_table,
)

# -- kernels ---------------------------------------------------------------------------------------


@triton.jit
def _gradient(
    theta,
    row,
    first,
    stream,
    n,
    terms,
    n_terms,
    TILE: tl.constexpr,
    DTYPE: tl.constexpr,
    DIST: tl.constexpr,
    Z_ROUND: tl.constexpr,
    MASK: tl.constexpr,
):
    """g = sum_k coef_k z_k"""
    moves = _moves(row, terms, n_terms, first, stream, n, theta, TILE, MASK)
    zero = tl.full([TILE], 0.0, theta.dtype)
    return _add_terms(zero, first, stream, terms, n_terms, moves, TILE, DTYPE, DIST, Z_ROUND, MASK)


@triton.jit
def _store_state(
    address,
    first,
    n,
    state,
    terms,
    stream,
    FLIP: tl.constexpr,
    TILE: tl.constexpr,
    STATE: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """A state of Adam or momentum: in bfloat16 rounded by chance, with bits of its own query."""
    if STATE == "bf16":
        seed = tl.load(terms).to(tl.uint64, bitcast=True)
        r16 = _rounding_bits(first, TILE, stream, tl.load(terms + 2).to(tl.uint32) ^ FLIP, seed)
        stored = _rounded(state, r16, STATE, True)
    else:
        stored = _nearest(state, STATE)
    _store(address, first, n, stored, TILE, STATE, ALIGNED)


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
    MASK: tl.constexpr,
    RADAZO: tl.constexpr,
):
    """One step of Adam, or of R-AdaZO, on g = sum_k coef_k z_k.

    scalars: beta1, beta2, 1-beta1, 1-beta2, 1/sqrt(1-beta2^step), eps, -lr/(1-beta1^step)
    """
    row, first, stream, n = _place(table, rows, STEPS, TILE)
    theta = _load(tl.load(row + 3), first, n, TILE, DTYPE, ALIGNED)
    g = _gradient(theta, row, first, stream, n, terms, n_terms, TILE, DTYPE, DIST, Z_ROUND, MASK)
    m = _load(tl.load(row + 4), first, n, TILE, STATE, ALIGNED).to(theta.dtype)
    v = _load(tl.load(row + 5), first, n, TILE, STATE, ALIGNED).to(theta.dtype)
    m = tl.fma(m, _scalar(scalars, 0, DTYPE), g * _scalar(scalars, 2, DTYPE))
    if RADAZO:
        v = tl.fma(v, _scalar(scalars, 1, DTYPE), (m * _scalar(scalars, 3, DTYPE)) * m)
    else:
        v = tl.fma(v, _scalar(scalars, 1, DTYPE), (g * _scalar(scalars, 3, DTYPE)) * g)
    denominator = tl.fma(_sqrt(v), _scalar(scalars, 4, DTYPE), _scalar(scalars, 5, DTYPE))
    decayed = theta * _coefficient(terms, DTYPE)
    theta = tl.fma(_divide(m, denominator), _scalar(scalars, 6, DTYPE), decayed)
    r16 = _bits_for(terms, first, stream, TILE, STOCHASTIC)
    _store_state(tl.load(row + 4), first, n, m, terms, stream, 0x800000, TILE, STATE, ALIGNED)
    _store_state(tl.load(row + 5), first, n, v, terms, stream, 0x400000, TILE, STATE, ALIGNED)
    _store(tl.load(row + 3), first, n, _rounded(theta, r16, DTYPE, STOCHASTIC), TILE, DTYPE, ALIGNED)


@triton.jit(do_not_specialize=["rows"])
def _momentum_kernel(
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
    MASK: tl.constexpr,
    FIRST: tl.constexpr,
    NESTEROV: tl.constexpr,
):
    """One step of SGD with momentum. scalars: momentum, 1-dampening, -lr"""
    row, first, stream, n = _place(table, rows, STEPS, TILE)
    theta = _load(tl.load(row + 3), first, n, TILE, DTYPE, ALIGNED)
    g = _gradient(theta, row, first, stream, n, terms, n_terms, TILE, DTYPE, DIST, Z_ROUND, MASK)
    if FIRST:
        m = g
    else:
        m = _load(tl.load(row + 4), first, n, TILE, STATE, ALIGNED).to(theta.dtype)
        m = tl.fma(m, _scalar(scalars, 0, DTYPE), g * _scalar(scalars, 1, DTYPE))
    if NESTEROV:
        step = tl.fma(m, _scalar(scalars, 0, DTYPE), g)
    else:
        step = m
    theta = tl.fma(step, _scalar(scalars, 2, DTYPE), theta * _coefficient(terms, DTYPE))
    r16 = _bits_for(terms, first, stream, TILE, STOCHASTIC)
    _store_state(tl.load(row + 4), first, n, m, terms, stream, 0x800000, TILE, STATE, ALIGNED)
    _store(tl.load(row + 3), first, n, _rounded(theta, r16, DTYPE, STOCHASTIC), TILE, DTYPE, ALIGNED)


@triton.jit(do_not_specialize=["rows"])
def _sign_kernel(
    table,
    rows,
    terms,
    n_terms,
    scalars,
    STEPS: tl.constexpr,
    TILE: tl.constexpr,
    DTYPE: tl.constexpr,
    DIST: tl.constexpr,
    Z_ROUND: tl.constexpr,
    STOCHASTIC: tl.constexpr,
    ALIGNED: tl.constexpr,
    MASK: tl.constexpr,
):
    """A step of -lr times the sign of g. scalars: -lr"""
    row, first, stream, n = _place(table, rows, STEPS, TILE)
    theta = _load(tl.load(row + 3), first, n, TILE, DTYPE, ALIGNED)
    g = _gradient(theta, row, first, stream, n, terms, n_terms, TILE, DTYPE, DIST, Z_ROUND, MASK)
    sign = tl.where(g > 0, 1.0, tl.where(g < 0, -1.0, 0.0)).to(theta.dtype)
    theta = tl.fma(sign, _scalar(scalars, 0, DTYPE), theta * _coefficient(terms, DTYPE))
    r16 = _bits_for(terms, first, stream, TILE, STOCHASTIC)
    _store(tl.load(row + 3), first, n, _rounded(theta, r16, DTYPE, STOCHASTIC), TILE, DTYPE, ALIGNED)


@triton.jit(do_not_specialize=["rows"])
def _hizoo_perturb_kernel(
    table,
    rows,
    terms,
    n_terms,
    STEPS: tl.constexpr,
    TILE: tl.constexpr,
    DTYPE: tl.constexpr,
    STATE: tl.constexpr,
    DIST: tl.constexpr,
    Z_ROUND: tl.constexpr,
    STOCHASTIC: tl.constexpr,
    ALIGNED: tl.constexpr,
    MASK: tl.constexpr,
):
    """theta = round(source + c z / sqrt(h)), c the coefficient of the one term"""
    row, first, stream, n = _place(table, rows, STEPS, TILE)
    theta = _load(tl.load(row + 4), first, n, TILE, DTYPE, ALIGNED)
    moves = _moves(row, terms, n_terms, first, stream, n, theta, TILE, MASK)
    z = _z_of(terms + 3, first, stream, TILE, DIST, Z_ROUND).to(theta.dtype)
    h = _load(tl.load(row + 5), first, n, TILE, STATE, ALIGNED)
    moved = tl.fma(_divide(z, _sqrt(h)), _coefficient(terms + 3, DTYPE), theta)
    theta = _where(moves, moved, theta, MASK)
    r16 = _bits_for(terms, first, stream, TILE, STOCHASTIC)
    _store(tl.load(row + 3), first, n, _rounded(theta, r16, DTYPE, STOCHASTIC), TILE, DTYPE, ALIGNED)


@triton.jit(do_not_specialize=["rows"])
def _hizoo_update_kernel(
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
    MASK: tl.constexpr,
    RESTORE: tl.constexpr,
):
    """scalars: a, 1-a, -lr, restore, then the curvature of each term"""
    row, first, stream, n = _place(table, rows, STEPS, TILE)
    theta = _load(tl.load(row + 3), first, n, TILE, DTYPE, ALIGNED)
    moves = _moves(row, terms, n_terms, first, stream, n, theta, TILE, MASK)
    h = _load(tl.load(row + 4), first, n, TILE, STATE, ALIGNED)
    g = tl.full([TILE], 0.0, theta.dtype)
    t = tl.full([TILE], 0.0, theta.dtype)
    for k in range(1, n_terms + 1):
        z = _z_of(terms + k * 3, first, stream, TILE, DIST, Z_ROUND).to(theta.dtype)
        if RESTORE:
            theta = _where(
                moves, tl.fma(_divide(z, _sqrt(h)), _scalar(scalars, 3, DTYPE), theta), theta, MASK
            )
        curvature = tl.load(scalars + 3 + k).to(theta.dtype)
        t = tl.fma(z * z, curvature, t)
        g = tl.fma(z, _coefficient(terms + k * 3, DTYPE), g)
    h = _where(moves, tl.fma(h * t, _scalar(scalars, 0, DTYPE), h * _scalar(scalars, 1, DTYPE)), h, MASK)
    decayed = theta * _coefficient(terms, DTYPE)
    theta = _where(moves, tl.fma(_divide(g, _sqrt(h)), _scalar(scalars, 2, DTYPE), decayed), decayed, MASK)
    r16 = _bits_for(terms, first, stream, TILE, STOCHASTIC)
    _store(tl.load(row + 4), first, n, _nearest(h, STATE), TILE, STATE, ALIGNED)
    _store(tl.load(row + 3), first, n, _rounded(theta, r16, DTYPE, STOCHASTIC), TILE, DTYPE, ALIGNED)


# A row of a table of passes: decay (bits of a float64), rounding seed, rounding query, mask seed, mask query,
# whether there is a mask, first term, terms.
_PASS = tl.constexpr(8)


@triton.jit(do_not_specialize=["rows", "n_passes"])
def _replay_kernel(
    table,
    rows,
    terms,
    passes,
    n_passes,
    STEPS: tl.constexpr,
    TILE: tl.constexpr,
    DTYPE: tl.constexpr,
    DIST: tl.constexpr,
    Z_ROUND: tl.constexpr,
    STOCHASTIC: tl.constexpr,
    ALIGNED: tl.constexpr,
    MASK: tl.constexpr,
):
    """One chain after the other on a tile that is read and written once."""
    row, first, stream, n = _place(table, rows, STEPS, TILE)
    acc = _load(tl.load(row + 3), first, n, TILE, DTYPE, ALIGNED)
    for p in range(n_passes):
        at = passes + p * _PASS
        moves = True
        if MASK != "none":
            words = _words_of_mask(
                first,
                TILE,
                stream,
                tl.load(at + 4).to(tl.uint32),
                tl.load(at + 3).to(tl.uint64, bitcast=True),
            )
            moves = (words.to(tl.int64) >= tl.load(row + 6)) | (tl.load(at + 5) == 0)
        decay = tl.load(at).to(tl.float64, bitcast=True)
        acc = acc * decay.to(acc.dtype)
        one = terms + tl.load(at + 6) * 3
        acc = _add_terms(
            acc, first, stream, one, tl.load(at + 7).to(tl.int32), moves, TILE, DTYPE, DIST, Z_ROUND, MASK
        )
        r16 = 0
        if STOCHASTIC:
            seed = tl.load(at + 1).to(tl.uint64, bitcast=True)
            r16 = _rounding_bits(first, TILE, stream, tl.load(at + 2).to(tl.uint32), seed)
        acc = _widened(_rounded(acc, r16, DTYPE, STOCHASTIC), DTYPE)
    _store(tl.load(row + 3), first, n, _nearest(acc, DTYPE), TILE, DTYPE, ALIGNED)


# -- passes ----------------------------------------------------------------------------------------


def _numbers(values: Sequence[float], device: torch.device) -> Tensor:
    return _upload(bytearray(struct.pack(f"<{len(values)}d", *values)), device).view(torch.float64)


def _run(
    kernel: Any,
    columns: Sequence[Sequence[Tensor]],
    written: Sequence[int],
    streams: Sequence[int],
    terms: tuple[Sequence[int], Sequence[int], Sequence[float], Sequence[str]],
    decay: float,
    z_round: torch.dtype | None,
    stochastic: bool,
    rounding: tuple[int, int],
    mask: MaskArgs | None,
    scalars: Sequence[float] = (),
    **constants: object,
) -> None:
    """A launch for each dtype of weights; the last column that is not theirs gives STATE its dtype."""
    groups = _by_dtype(columns, streams, _mask_column(mask))
    if not groups:
        return
    device = groups[0].columns[0][0].device
    table = terms_table(*terms, decay, *rounding, device, mask)
    arguments = [_numbers(scalars, device)] if scalars else []
    for group in groups:
        state = {"STATE": _DTYPES[group.columns[-1][0].dtype]} if len(columns) > 1 else {}
        _launch_pass(
            kernel,
            group,
            written,
            table,
            len(terms[0]),
            *arguments,
            dist=_one_dist(terms[3]),
            z_round=z_round,
            stochastic=stochastic,
            mask=_mask_kind(mask),
            **state,
            **constants,
        )


@torch.no_grad()
def momentum_(
    params: Sequence[Tensor],
    momentum_buffers: Sequence[Tensor],
    streams: Sequence[int],
    seeds: Sequence[int],
    queries: Sequence[int],
    coefs: Sequence[float],
    dists: Sequence[str],
    lr: float,
    momentum: float,
    dampening: float,
    nesterov: bool,
    first_step: bool,
    decay: float = 1.0,
    z_round: torch.dtype | None = None,
    stochastic: bool = False,
    rounding_seed: int = 0,
    rounding_query: int = 0,
    mask: MaskArgs | None = None,
) -> None:
    """See zo_state_reference.momentum_."""
    terms = seeds, queries, coefs, dists
    rounding = rounding_seed, rounding_query
    columns = params, momentum_buffers
    scalars = momentum, 1 - dampening, -lr
    options = {"FIRST": first_step, "NESTEROV": nesterov}
    _run(
        _momentum_kernel,
        columns,
        (0, 1),
        streams,
        terms,
        decay,
        z_round,
        stochastic,
        rounding,
        mask,
        scalars,
        **options,
    )


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
    variant: str = "adam",
    mask: MaskArgs | None = None,
) -> None:
    """See zo_state_reference.adam_. A tensor's two states have one dtype."""
    terms = seeds, queries, coefs, dists
    rounding = rounding_seed, rounding_query
    columns = params, exp_avgs, exp_avg_sqs
    scalars = (
        beta1,
        beta2,
        1 - beta1,
        1 - beta2,
        1 / math.sqrt(1 - beta2**step),
        eps,
        -lr / (1 - beta1**step),
    )
    radazo = variant == "radazo"
    _run(
        _adam_kernel,
        columns,
        (0, 1, 2),
        streams,
        terms,
        decay,
        z_round,
        stochastic,
        rounding,
        mask,
        scalars,
        RADAZO=radazo,
    )


@torch.no_grad()
def sign_(
    params: Sequence[Tensor],
    streams: Sequence[int],
    seeds: Sequence[int],
    queries: Sequence[int],
    coefs: Sequence[float],
    dists: Sequence[str],
    lr: float,
    decay: float = 1.0,
    z_round: torch.dtype | None = None,
    stochastic: bool = False,
    rounding_seed: int = 0,
    rounding_query: int = 0,
    mask: MaskArgs | None = None,
) -> None:
    """See zo_state_reference.sign_."""
    terms = seeds, queries, coefs, dists
    rounding = rounding_seed, rounding_query
    _run(_sign_kernel, [params], (0,), streams, terms, decay, z_round, stochastic, rounding, mask, (-lr,))


@torch.no_grad()
def hizoo_perturb_(
    params: Sequence[Tensor],
    sources: Sequence[Tensor] | None,
    hessians: Sequence[Tensor],
    streams: Sequence[int],
    seed: int,
    query: int,
    c: float,
    dist: str,
    z_round: torch.dtype | None = None,
    stochastic: bool = False,
    rounding_seed: int = 0,
    rounding_query: int = 0,
    mask: MaskArgs | None = None,
) -> None:
    """See zo_state_reference.hizoo_perturb_."""
    columns = params, params if sources is None else sources, hessians
    terms = [seed], [query], [c], [dist]
    rounding = rounding_seed, rounding_query
    _run(_hizoo_perturb_kernel, columns, (0,), streams, terms, 1.0, z_round, stochastic, rounding, mask)


@torch.no_grad()
def hizoo_update_(
    params: Sequence[Tensor],
    hessians: Sequence[Tensor],
    streams: Sequence[int],
    seeds: Sequence[int],
    queries: Sequence[int],
    coefs: Sequence[float],
    dists: Sequence[str],
    curvatures: Sequence[float],
    lr: float,
    smoothing: float,
    restore: float = 0.0,
    decay: float = 1.0,
    z_round: torch.dtype | None = None,
    stochastic: bool = False,
    rounding_seed: int = 0,
    rounding_query: int = 0,
    mask: MaskArgs | None = None,
) -> None:
    """See zo_state_reference.hizoo_update_."""
    terms = seeds, queries, coefs, dists
    rounding = rounding_seed, rounding_query
    columns = params, hessians
    scalars = smoothing, 1 - smoothing, -lr, restore, *curvatures
    back = restore != 0.0
    _run(
        _hizoo_update_kernel,
        columns,
        (0, 1),
        streams,
        terms,
        decay,
        z_round,
        stochastic,
        rounding,
        mask,
        scalars,
        RESTORE=back,
    )


def _runs_of_one_mask(ratios: Sequence[tuple[float, ...]]) -> Iterator[tuple[int, int]]:
    """Ranges of passes whose masks, where they have one, have the same ratios: (start, end)."""
    start = 0
    held: tuple[float, ...] | None = None
    for p, row in enumerate(ratios):
        masked = bool(row) and row[0] >= 0
        if masked and held is not None and row != held:
            yield start, p
            start, held = p, None
        if masked:
            held = row
    if ratios:
        yield start, len(ratios)


@torch.no_grad()
def replay_(
    params: Sequence[Tensor],
    streams: Sequence[int],
    seeds: Sequence[int],
    queries: Sequence[int],
    coefs: Sequence[float],
    dists: Sequence[str],
    sizes: Sequence[int],
    decays: Sequence[float],
    rounding_seeds: Sequence[int],
    rounding_queries: Sequence[int],
    mask_seeds: Sequence[int],
    mask_queries: Sequence[int],
    mask_ratios: Sequence[float],
    z_round: torch.dtype | None = None,
    stochastic: bool = False,
) -> None:
    """See zo_state_reference.replay_; one launch for each dtype and run of passes with one mask's ratios."""
    count = len(params)
    ratios = [tuple(mask_ratios[p * count : (p + 1) * count]) for p in range(len(sizes))]
    ends = list(accumulate(sizes))
    filled = [tensor for tensor in params if tensor.numel()]
    if not filled:
        return
    device = filled[0].device
    terms = terms_table(seeds, queries, coefs, dists, device=device)
    for start, stop in _runs_of_one_mask(ratios):
        here = range(start, stop)
        masked = [bool(ratios[p]) and ratios[p][0] >= 0 for p in here]
        data = b"".join(
            struct.pack(
                "<dQQQQQQQ",
                decays[p],
                rounding_seeds[p],
                rounding_queries[p],
                mask_seeds[p] if held else 0,
                mask_queries[p] if held else 0,
                held,
                ends[p] - sizes[p],
                sizes[p],
            )
            for p, held in zip(here, masked, strict=True)
        )
        passes = _upload(bytearray(data), device)
        shares = next((ratios[p] for p, held in zip(here, masked, strict=True) if held), ())
        for group in _by_dtype([params], streams, [word_threshold(share) for share in shares]):
            dtype = group.columns[0][0].dtype
            dist = _one_dist(dists)
            _launch(
                _replay_kernel,
                group,
                (0,),
                terms,
                passes,
                len(here),
                dist=dist,
                DIST=dist,
                Z_ROUND="none" if z_round is None else _DTYPES[z_round],
                STOCHASTIC=stochastic and dtype in (torch.bfloat16, torch.float16),
                MASK="random" if shares else "none",
            )
