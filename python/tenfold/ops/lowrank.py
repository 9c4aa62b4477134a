"""Low-rank zeroth-order passes: matrices moved along U V^T, with U never stored.

For a matrix W [m, n] the direction is Z = U V^T, where U [m, r] is regenerated from its counter row by row
and V [n, r] is small, kept by the caller and the same for many steps. The change of a step has rank r at
most, and so have sums of steps that share V.

Methods: LOZO and LOZO-M, Chen et al., "Enhancing zeroth-order fine-tuning for language models with low-rank
structures" (arXiv 2410.07698); the projected queries of ZO-Muon (arXiv 2602.17155), with the fixed factor
given as `us`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tenfold import _arrays, _checks
from tenfold._backend import OPS, chosen_backend

from .zo import (
    MAX_TERMS,
    ROUNDINGS,
    _like,
    _match,
    _pairs,
    _params,
    _register,
    _signed,
    _single,
    _streams,
    _unsigned,
    _whole,
    _writes_only,
    _written,
)

MAX_RANK = 256
SIDES = ("u", "v")

OPS |= dict.fromkeys(("zo_lowrank_", "lowrank_factor", "zo_lowrank_project"), ("cpu", "reference"))


class LowRankTerm(NamedTuple):
    """One summand `coef * U(seed, query) V^T`: seed in [0, 2^64), query in [0, 2^24), coef finite."""

    seed: int
    query: int
    coef: float


# ---- the dispatcher's side --------------------------------------------------------------------------------

_LIBRARY = torch.library.Library("tenfold", "FRAGMENT")
_TERMS = "SymInt[] seeds, SymInt[] queries, float[] coefs"
for _schema in (
    "zo_lowrank_(Tensor(a!)[] params, Tensor[] sources, Tensor[] vs, Tensor[] us, SymInt[] streams, "
    f"{_TERMS}, float decay, bool stochastic, SymInt rounding_seed, SymInt rounding_query) -> ()",
    "lowrank_factor_(Tensor(a!) out, SymInt seed, SymInt stream, SymInt query, str side) -> ()",
    f"zo_lowrank_project_(Tensor(a!) out, {_TERMS}, SymInt stream, str side) -> ()",
):
    _LIBRARY.define(_schema)


def _kernels(op: str, device: torch.device) -> Any:
    """The module that implements `op` for the chosen backend; all share their signatures."""
    backend = chosen_backend(op, device.type)
    if backend == "reference":
        from tenfold.kernels.lowrank import lowrank_reference as module
    elif backend == "triton":
        from tenfold.kernels.lowrank import lowrank_triton as module
    else:
        from tenfold.kernels.lowrank import lowrank_native as module
    return module


def _zo_lowrank_(
    params: list[Tensor],
    sources: list[Tensor],
    vs: list[Tensor],
    us: list[Tensor],
    streams: list[int],
    seeds: list[int],
    queries: list[int],
    coefs: list[float],
    decay: float,
    stochastic: bool,
    rounding_seed: int,
    rounding_query: int,
) -> None:
    _pairs("streams", streams, params)
    _matrices(params)
    _factors("vs", vs, params, 1)
    if us:
        _factors("us", us, params, 0, vs)
        _one_term(seeds)
    if sources:
        _match("sources", sources, params)
        _checks.separate("sources", sources, params)
    _checks.memory(params=params)
    _apart("vs", vs, params)
    _apart("us", us, params)
    _kernels("zo_lowrank_", params[0].device).lowrank_(
        params,
        sources or None,
        vs,
        us or None,
        streams,
        [_unsigned(s) for s in seeds],
        queries,
        coefs,
        decay,
        stochastic,
        _unsigned(rounding_seed),
        rounding_query,
    )
    _written(params)


def _lowrank_factor_(out: Tensor, seed: int, stream: int, query: int, side: str) -> None:
    _whole("out", out, _checks.FLOAT_DTYPES)
    _checks.choice("side", side, SIDES)
    _kernels("lowrank_factor", out.device).factor_(out, _unsigned(seed), stream, query, side)
    _written([out])


def _zo_lowrank_project_(
    out: Tensor, seeds: list[int], queries: list[int], coefs: list[float], stream: int, side: str
) -> None:
    _whole("out", out, (torch.float32,))
    _checks.choice("side", side, SIDES)
    unsigned = [_unsigned(s) for s in seeds]
    _kernels("zo_lowrank_project", out.device).project_(out, unsigned, queries, coefs, stream, side)
    _written([out])


_register("zo_lowrank_", _zo_lowrank_, _writes_only)
_register("lowrank_factor_", _lowrank_factor_, _writes_only)
_register("zo_lowrank_project_", _zo_lowrank_project_, _writes_only)


# ---- the public side --------------------------------------------------------------------------------------


def lowrank_factor(
    seed: int,
    stream: int,
    query: int,
    rows: int,
    rank: int,
    *,
    side: str = "u",
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """A factor [rows, rank] of independent standard normals, the same bits on every backend.

    Element (i, j) is normal number i * rank + j of the sequence (seed, stream, query) with a purpose of its
    own: factors are independent of the directions of `zo_chain_`, and U of V.

    Args:
        seed, stream, query: integers in [0, 2^64), [0, 2^32), [0, 2^24).
        rows: >= 0. rank: 1 to 256.
        side: "u", the factor that `zo_lowrank_` regenerates for each query, or "v", the one that is kept.
        dtype: float32, float64, bfloat16 or float16; values are float32, rounded to nearest even where dtype
            is narrower.

    Raises:
        TypeError, ValueError: an argument of the wrong kind or out of range.
    """
    rows = _checks.integer("rows", rows, 0, 2**40)
    rank = _checks.integer("rank", rank, 1, MAX_RANK)
    side = _checks.choice("side", side, SIDES)
    seed, stream, query = (
        _checks.seed("seed", seed),
        _checks.stream("stream", stream),
        _checks.query("query", query),
    )
    out = torch.empty((rows, rank), dtype=_checks.dtype("dtype", dtype), device=device)
    if rows:
        torch.ops.tenfold.lowrank_factor_(out, _signed(seed), stream, query, side)
    return out


def zo_lowrank_project(
    terms: Sequence[LowRankTerm],
    stream: int,
    rows: int,
    rank: int,
    *,
    side: str = "u",
    device: torch.device | str = "cpu",
) -> Tensor:
    """sum_k coef_k U_k as a float32 tensor [rows, rank], with each U_k regenerated.

    What a step found, in the space of the factors: with coef_k the projected gradients it is the estimate
    that LOZO-M keeps a momentum of and that ZO-Muon orthogonalises. One fma per term from 0, in order.

    Args:
        terms: 1 to 64 `LowRankTerm(seed, query, coef)`.
        stream, rows, rank, side: as `lowrank_factor`.

    Raises:
        TypeError, ValueError: an argument of the wrong kind or out of range.
    """
    checked = _terms(terms)
    for k, term in enumerate(checked):
        _checks.fits(f"terms[{k}].coef", term.coef, True)
    rows = _checks.integer("rows", rows, 0, 2**40)
    rank = _checks.integer("rank", rank, 1, MAX_RANK)
    side = _checks.choice("side", side, SIDES)
    stream = _checks.stream("stream", stream)
    out = torch.empty((rows, rank), device=device)
    if rows:
        torch.ops.tenfold.zo_lowrank_project_(out, *_columns(checked), stream, side)
    return out


def zo_lowrank_(
    params: Sequence[Tensor],
    vs: Sequence[Tensor],
    streams: Sequence[int],
    terms: Sequence[LowRankTerm],
    *,
    us: Sequence[Tensor] | None = None,
    decay: float = 1.0,
    out_rounding: str = "rne",
    rounding_seed: int | None = None,
    sources: Sequence[Tensor] | None = None,
) -> None:
    """W = round(decay * W + sum_k coef_k * U_k V^T) for every matrix, in place, in one pass.

    U_k is `lowrank_factor(seed_k, stream, query_k, m, r)`, made again row by row: nothing but V is stored,
    and each weight is read and written once. Per element the math is float32 (float64 for float64 matrices):
    s = sum over the rank, one fma each from 0 in order; acc = fma(coef_k, s, acc) in the order of the terms;
    one rounding at the end.

    The entries of Z = U V^T have variance r: scale eps (or V) where a unit variance is wanted.

    Args:
        params: matrices [m, n] of any strides, float32, bfloat16, float16 or float64 (mixed as you like), on
            one device; NumPy and CuPy arrays are taken as they are. Empty lists and matrices are fine.
        vs: one float32 factor [n, r] per matrix, 1 <= r <= 256.
        streams: one integer in [0, 2^32) per matrix.
        terms: 1 to 64 `LowRankTerm(seed, query, coef)`.
        us: explicit float32 factors [m, r] in place of regenerated ones, e.g. a momentum or an orthonormal
            basis. `terms` then holds exactly one term; its seed and query are used for rounding only.
        decay: factor on W, for decoupled weight decay; finite.
        out_rounding: "rne" or "sr", as `zo_chain_`. The rounding bits are those of the row-major element.
        rounding_seed: seed of the rounding bits, default: the first term's. Their query is the first term's.
        sources: read W from these instead (same shapes, dtypes, device) and write `params`.

    Raises:
        TypeError: an argument of the wrong kind, or a dtype or layout that has no kernel.
        ValueError: a value out of range, a shape that does not fit, tensors that share or overlap memory
            (named).
        RuntimeError: a leaf that requires grad while gradients are enabled, or a forced backend that cannot
            run.
        Nothing is written when an error is raised.
    """
    params = _params("params", params)
    _matrices(params)
    right = _factor_list("vs", vs, params, 1)
    left = [] if us is None else _factor_list("us", us, params, 0, right)
    sources = [] if sources is None else _like("sources", sources, params, write=False)
    checked = _terms(terms)
    if us is not None:
        _one_term(checked)
    streams = _streams(streams, params)
    single = _single(params)
    decay = _checks.fits("decay", _checks.real("decay", decay), single)
    for k, term in enumerate(checked):
        _checks.fits(f"terms[{k}].coef", term.coef, single)
    stochastic = _checks.choice("out_rounding", out_rounding, ROUNDINGS) == "sr"
    rounding = checked[0].seed if rounding_seed is None else _checks.seed("rounding_seed", rounding_seed)
    if params:
        torch.ops.tenfold.zo_lowrank_(
            params,
            sources,
            right,
            left,
            streams,
            *_columns(checked),
            decay,
            stochastic,
            _signed(rounding),
            checked[0].query,
        )


# ---- checks -----------------------------------------------------------------------------------------------


def _matrices(params: Sequence[Tensor]) -> None:
    for i, p in enumerate(params):
        if p.ndim != 2:
            _checks.fail(ValueError, f"params[{i}]", "a matrix [m, n]", f"shape {tuple(p.shape)}")


def _factor_list(
    name: str, values: Sequence[Any], params: list[Tensor], side: int, like: Sequence[Tensor] = ()
) -> list[Tensor]:
    out = [
        _checks.tensor(
            f"{name}[{i}]", _arrays.as_tensor(f"{name}[{i}]", value, write=False), (torch.float32,)
        )
        for i, value in enumerate(_checks.sequence(name, values, "matrices"))
    ]
    _factors(name, out, params, side, like)
    return out


def _factors(
    name: str, tensors: Sequence[Tensor], params: Sequence[Tensor], side: int, like: Sequence[Tensor] = ()
) -> None:
    """Each factor is [m, r] (side 0) or [n, r] (side 1) for its matrix [m, n], of the rank of `like`."""
    _checks.length(name, tensors, len(params), "params")
    for i, (t, param) in enumerate(zip(tensors, params, strict=True)):
        _checks.dtype(f"{name}[{i}].dtype", t.dtype, (torch.float32,))
        high = like[i].shape[1] if like else MAX_RANK
        low = high if like else 1
        if t.ndim != 2 or t.shape[0] != param.shape[side] or not low <= t.shape[1] <= high:
            rank = str(low) if low == high else f"r with 1 <= r <= {MAX_RANK}"
            _checks.fail(ValueError, f"{name}[{i}]", f"shape [{param.shape[side]}, {rank}]", tuple(t.shape))
        if t.device != param.device:
            _checks.fail(ValueError, f"{name}[{i}]", f"device {param.device} as params[{i}]", t.device)


def _one_term(terms: Sequence[Any]) -> None:
    if len(terms) != 1:
        _checks.fail(ValueError, "terms", "exactly one term when `us` is given", len(terms))


def _apart(name: str, factors: Sequence[Tensor], params: Sequence[Tensor]) -> None:
    """No factor lies in memory that is written; the params are apart from one another already."""
    written = sorted((*_checks._span(p), i) for i, p in enumerate(params) if p.numel())
    for k, t in enumerate(factors):
        start, end = _checks._span(t)
        at = bisect_left(written, (end,)) - 1
        if t.numel() and at >= 0 and written[at][1] > start:
            got = f"memory shared with params[{written[at][2]}]"
            _checks.fail(ValueError, f"{name}[{k}]", "memory of its own", got)


def _terms(terms: Sequence[LowRankTerm]) -> list[LowRankTerm]:
    terms = _checks.sequence("terms", terms, "LowRankTerm(seed, query, coef)")
    if not 1 <= len(terms) <= MAX_TERMS:
        _checks.fail(ValueError, "terms", f"1 to {MAX_TERMS} terms", len(terms))
    return [_term(f"terms[{k}]", t) for k, t in enumerate(terms)]


def _term(name: str, value: LowRankTerm) -> LowRankTerm:
    if not isinstance(value, tuple) or len(value) != 3:
        _checks.fail(TypeError, name, "a LowRankTerm(seed, query, coef)", _checks.describe(value))
    term = LowRankTerm(*value)
    return LowRankTerm(
        _checks.seed(f"{name}.seed", term.seed),
        _checks.query(f"{name}.query", term.query),
        _checks.real(f"{name}.coef", term.coef),
    )


def _columns(terms: list[LowRankTerm]) -> tuple[list[int], list[int], list[float]]:
    return [_signed(t.seed) for t in terms], [t.query for t in terms], [t.coef for t in terms]
