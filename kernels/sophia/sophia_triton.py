# mypy: allow-untyped-defs, allow-untyped-calls
"""The Sophia passes in Triton: the values of sophia_reference.py, one launch for each combination of dtypes.

Every operation is one that rounds once and nothing is fused (see zo_triton_tiles.py). Through the interpreter
all results therefore have the reference's bits, stochastic rounding and 8-bit codes included; only the sum of
u^2 is taken in another order. Statistics go to a row per tile, and PyTorch adds the rows up.

Triton's interpreter (TRITON_INTERPRET=1 before this module is imported) runs the kernels on CPU tensors.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from tenfold.kernels.zo import zo_native
from tenfold.kernels.zo.zo_triton_tiles import (
    INTERPRETED,
    _divide,
    _load,
    _nearest,
    _rounded,
    _store,
    _widened,
)
from torch import Tensor

from .sophia_reference import Rounding, State, StepArgs
from .sophia_triton_tiles import (
    _COMPENSATION,
    _EXP_AVG,
    _EXP_AVG_SCALE,
    _FOR_EXP_AVG,
    _FOR_HESSIAN,
    _FOR_PARAM,
    _GRAD,
    _HESSIAN,
    _HESSIAN_SCALE,
    _MASTER,
    _PARAM,
    _TILE,
    _WARPS,
    _bits_of,
    _differ,
    _finite,
    _load_codes,
    _load_state,
    _number,
    _place,
    _store_codes,
    _store_state,
    _stored,
    aligned,
    launch,
    number_table,
)

__all__ = ["INTERPRETED", "ahead_of_time", "dequantize", "hessian_", "quantize", "step_"]

# The numbers of a step, and of a refresh.
_BETA1, _REST1, _BETA2, _REST2, _DENOM_SCALE, _EPS, _RATE, _DECAY, _SHRINK = (
    tl.constexpr(i) for i in range(9)
)
_KEEP, _WEIGHT = tl.constexpr(0), tl.constexpr(1)
_MAX, _ADD, _SIGN = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
_STATS = tl.constexpr(6)

# -- kernels ---------------------------------------------------------------------------------------


@triton.jit
def _clipped(m, h, numbers, DTYPE: tl.constexpr, DENOM: tl.constexpr):
    """clip(m / d, -1, 1); comparisons are written so that NaN passes."""
    if DENOM == _SIGN:
        return tl.where(m > 0.0, 1.0, tl.where(m < 0.0, -1.0, m))
    else:
        scaled = h * _number(numbers, _DENOM_SCALE, DTYPE)
        eps = _number(numbers, _EPS, DTYPE)
        if DENOM == _ADD:
            d = tl.where(scaled < 0.0, 0.0, scaled) + eps
        else:
            d = tl.where(scaled < eps, eps, scaled)
        r = _divide(m, d)
        low = tl.where(r < -1.0, -1.0, r)
        return tl.where(low > 1.0, 1.0, low)


@triton.jit
def _store_sums(
    partials, m, h, u, live, finite, changed, inside, numbers, DTYPE: tl.constexpr, DENOM: tl.constexpr
):
    """The six statistics of a tile, to its row."""
    to = partials + tl.program_id(0).to(tl.int64) * _STATS
    live = live & inside
    if DENOM == _SIGN:
        wins = tl.zeros([], tl.int32)
    else:
        wins = tl.sum((live & (tl.abs(m) < h * _number(numbers, _DENOM_SCALE, DTYPE))).to(tl.int32))
    kept = tl.where(live, u, 0.0).to(tl.float64)
    tl.store(to, wins.to(tl.float64))
    tl.store(to + 1, tl.sum((live & (m != 0.0)).to(tl.int32)).to(tl.float64))
    tl.store(to + 2, tl.sum(kept * kept))
    tl.store(to + 3, tl.sum((inside & (finite == 0)).to(tl.int32)).to(tl.float64))
    tl.store(to + 4, tl.sum((inside & changed).to(tl.int32)).to(tl.float64))
    tl.store(to + 5, tl.sum(inside.to(tl.int32)).to(tl.float64))


@triton.jit(do_not_specialize=["rows"])
def _step_kernel(
    table,
    rows,
    numbers,
    inv_scale,
    found_inf,
    partials,
    STEPS: tl.constexpr,
    TILE: tl.constexpr,
    DTYPE: tl.constexpr,
    GRAD: tl.constexpr,
    STATE: tl.constexpr,
    DENOM: tl.constexpr,
    SQUARE: tl.constexpr,
    MAXIMIZE: tl.constexpr,
    SKIP: tl.constexpr,
    STOCHASTIC: tl.constexpr,
    MASTER: tl.constexpr,
    KAHAN: tl.constexpr,
    SCALED: tl.constexpr,
    GUARDED: tl.constexpr,
    STATS: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """One step on a tile; see sophia_reference.step_."""
    if GUARDED:  # noqa: SIM102
        if tl.load(found_inf) != 0.0:
            return
    row, first, stream, n = _place(table, rows, STEPS, TILE)
    m_at, m_scales = tl.load(row + _EXP_AVG), tl.load(row + _EXP_AVG_SCALE)
    h_at, h_scales = tl.load(row + _HESSIAN), tl.load(row + _HESSIAN_SCALE)
    old = _stored(tl.load(row + _PARAM), first, n, TILE, DTYPE, ALIGNED)
    if MASTER:
        theta = _load(tl.load(row + _MASTER), first, n, TILE, "fp32", ALIGNED)
    else:
        theta = _widened(old, DTYPE)
    g = _load(tl.load(row + _GRAD), first, n, TILE, GRAD, ALIGNED).to(theta.dtype)
    if SCALED:
        g = g * tl.load(inv_scale).to(theta.dtype)
    if MAXIMIZE:
        g = -g
    finite = _finite(g)
    live = finite if SKIP else finite | (finite == 0)
    m = _load_state(m_at, m_scales, first, n, TILE, STATE, False, ALIGNED).to(theta.dtype)
    if DENOM == _SIGN:
        h = m
    else:
        h = _load_state(h_at, h_scales, first, n, TILE, STATE, True, ALIGNED).to(theta.dtype)
    if SQUARE:
        squared = tl.fma(g * _number(numbers, _REST2, DTYPE), g, h * _number(numbers, _BETA2, DTYPE))
        h = tl.where(live, squared, h)
        _store_state(h_at, h_scales, first, n, h, numbers, stream, TILE, STATE, True, ALIGNED)
    mean = tl.fma(g, _number(numbers, _REST1, DTYPE), m * _number(numbers, _BETA1, DTYPE))
    m = tl.where(live, mean, m)
    u = _clipped(m, h, numbers, DTYPE, DENOM)
    _store_state(m_at, m_scales, first, n, m, numbers, stream, TILE, STATE, False, ALIGNED)
    rate = _number(numbers, _RATE, DTYPE)
    if KAHAN:
        c_at = tl.load(row + _COMPENSATION)
        rest = _stored(c_at, first, n, TILE, DTYPE, ALIGNED)
        delta = tl.fma(u, rate, theta * _number(numbers, _SHRINK, DTYPE)) + _widened(rest, DTYPE)
        new = _nearest(theta + delta, DTYPE)
        lost = _nearest(delta - (_widened(new, DTYPE) - theta), DTYPE)
        _store(c_at, first, n, tl.where(live, lost, rest), TILE, DTYPE, ALIGNED)
    else:
        value = tl.fma(u, rate, theta * _number(numbers, _DECAY, DTYPE))
        r16 = 0
        if STOCHASTIC:
            r16 = _bits_of(numbers, stream, first, _FOR_PARAM, TILE)
        new = _rounded(value, r16, DTYPE, STOCHASTIC)
        if MASTER:
            _store(tl.load(row + _MASTER), first, n, tl.where(live, value, theta), TILE, "fp32", ALIGNED)
    new = tl.where(live, new, old)
    _store(tl.load(row + _PARAM), first, n, new, TILE, DTYPE, ALIGNED)
    if STATS:
        inside = first + tl.arange(0, TILE) < n
        _store_sums(partials, m, h, u, live, finite, _differ(new, old), inside, numbers, DTYPE, DENOM)


@triton.jit(do_not_specialize=["rows"])
def _hessian_kernel(
    table,
    rows,
    numbers,
    inv_scale,
    found_inf,
    STEPS: tl.constexpr,
    TILE: tl.constexpr,
    DTYPE: tl.constexpr,
    GRAD: tl.constexpr,
    STATE: tl.constexpr,
    PROBED: tl.constexpr,
    SCALED: tl.constexpr,
    GUARDED: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """h = fma(weight * g, other, keep * h); the probe stands in the column of the weights."""
    if GUARDED:  # noqa: SIM102
        if tl.load(found_inf) != 0.0:
            return
    row, first, stream, n = _place(table, rows, STEPS, TILE)
    h_at, h_scales = tl.load(row + _HESSIAN), tl.load(row + _HESSIAN_SCALE)
    h = _load_state(h_at, h_scales, first, n, TILE, STATE, True, ALIGNED)
    g = _load(tl.load(row + _GRAD), first, n, TILE, GRAD, ALIGNED).to(h.dtype)
    if SCALED:
        g = g * tl.load(inv_scale).to(h.dtype)
    other = g
    if PROBED:
        other = _load(tl.load(row + _PARAM), first, n, TILE, GRAD, ALIGNED).to(h.dtype)
    kept = h * _number(numbers, _KEEP, DTYPE)
    h = tl.fma(g * _number(numbers, _WEIGHT, DTYPE), other, kept)
    _store_state(h_at, h_scales, first, n, h, numbers, stream, TILE, STATE, True, ALIGNED)


@triton.jit(do_not_specialize=["rows"])
def _code_kernel(
    table,
    rows,
    numbers,
    STEPS: tl.constexpr,
    TILE: tl.constexpr,
    HESSIAN: tl.constexpr,
    ENCODE: tl.constexpr,
    NEAREST: tl.constexpr,
):
    """Between float32 values, in the column of the weights, and 8-bit codes."""
    row, first, stream, n = _place(table, rows, STEPS, TILE)
    values = tl.load(row + _PARAM)
    COLUMN: tl.constexpr = _HESSIAN if HESSIAN else _EXP_AVG
    SCALES: tl.constexpr = _HESSIAN_SCALE if HESSIAN else _EXP_AVG_SCALE
    codes, scales = tl.load(row + COLUMN), tl.load(row + SCALES)
    if ENCODE:
        value = _load(values, first, n, TILE, "fp32", False)
        r16 = 0
        if not NEAREST:
            PURPOSE: tl.constexpr = _FOR_HESSIAN if HESSIAN else _FOR_EXP_AVG
            r16 = _bits_of(numbers, stream, first, PURPOSE, TILE)
        _store_codes(codes, scales, first, n, value, r16, TILE, HESSIAN, NEAREST)
    else:
        value = _load_codes(codes, scales, first, n, TILE, HESSIAN)
        _store(values, first, n, value, TILE, "fp32", False)


# -- the reference's signatures --------------------------------------------------------------------

_DTYPES = {
    torch.float32: "fp32", torch.float64: "fp64", torch.bfloat16: "bf16", torch.float16: "fp16",
    torch.uint8: "u8",
}  # fmt: skip
_HALF = ("bf16", "fp16")


def _filled(members: Sequence[int], tensors: Sequence[Tensor]) -> list[int]:
    return [i for i in members if tensors[i].numel()]


@torch.no_grad()
def step_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    state: State,
    streams: Sequence[int],
    a: StepArgs,
    rounding: Rounding,
    inv_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    stats: Tensor | None = None,
) -> None:
    """See sophia_reference.step_."""
    beta2 = 0.0 if a.hessian_beta2 is None else a.hessian_beta2
    values = a.beta1, 1 - a.beta1, beta2, 1 - beta2, a.denom_scale, a.eps, -a.lr, a.decay, a.shrink
    denom = _SIGN if not state.hessians else _ADD if a.add else _MAX
    columns: dict[str, Sequence[Tensor]] = {
        "param": params,
        "grad": grads,
        "exp_avg": state.exp_avgs,
        "hessian": state.hessians,
        "exp_avg_scale": state.exp_avg_scales,
        "hessian_scale": state.hessian_scales,
        "master": state.masters,
        "compensation": state.compensations,
    }
    numbers = None
    for (dtype, grad, kept), found in zo_native._by_dtypes(params, grads, state.exp_avgs).items():
        members = _filled(found, params)
        if not members:
            continue
        device = params[members[0]].device
        if numbers is None:
            numbers = number_table(rounding.seed, rounding.step, values, device)
        partials = numbers
        if stats is not None:  # zeros: a step that found_inf stops writes none
            tiles = sum(-(-params[i].numel() // _TILE) for i in members)
            partials = torch.zeros((tiles, 6), dtype=torch.float64, device=device)
        launch(
            _step_kernel,
            columns,
            members,
            streams,
            numbers,
            numbers if inv_scale is None else inv_scale,
            numbers if found_inf is None else found_inf,
            partials,
            DTYPE=_DTYPES[dtype],
            GRAD=_DTYPES[grad],
            STATE=_DTYPES[kept],
            DENOM=denom.value,
            SQUARE=a.hessian_beta2 is not None,
            MAXIMIZE=a.maximize,
            SKIP=a.skip,
            STOCHASTIC=rounding.kind == "stochastic" and _DTYPES[dtype] in _HALF,
            MASTER=len(state.masters) > 0,
            KAHAN=len(state.compensations) > 0,
            SCALED=inv_scale is not None,
            GUARDED=found_inf is not None,
            STATS=stats is not None,
            ALIGNED=aligned(columns, members),
        )
        if stats is not None:
            stats += partials.sum(0)


@torch.no_grad()
def hessian_(
    hessians: Sequence[Tensor],
    grads: Sequence[Tensor],
    probes: Sequence[Tensor],
    hessian_scales: Sequence[Tensor],
    streams: Sequence[int],
    keep: float,
    weight: float,
    rounding: Rounding,
    inv_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
) -> None:
    """See sophia_reference.hessian_."""
    columns: dict[str, Sequence[Tensor]] = {"hessian": hessians, "grad": grads, "param": probes}
    columns["hessian_scale"] = hessian_scales
    for (kept, grad), found in zo_native._by_dtypes(hessians, grads).items():
        members = _filled(found, hessians)
        if not members:
            continue
        numbers = number_table(rounding.seed, rounding.step, (keep, weight), hessians[members[0]].device)
        launch(
            _hessian_kernel,
            columns,
            members,
            streams,
            numbers,
            numbers if inv_scale is None else inv_scale,
            numbers if found_inf is None else found_inf,
            DTYPE="fp64" if kept == torch.float64 else "fp32",
            GRAD=_DTYPES[grad],
            STATE=_DTYPES[kept],
            PROBED=len(probes) > 0,
            SCALED=inv_scale is not None,
            GUARDED=found_inf is not None,
            ALIGNED=aligned(columns, members),
        )


def _code(
    values: Tensor,
    codes: Tensor,
    scales: Tensor,
    hessian: bool,
    rounding: Rounding | None,
    stream: int,
    **how: bool,
) -> None:
    if not codes.numel():
        return
    name = "hessian" if hessian else "exp_avg"
    at = Rounding() if rounding is None else rounding
    columns: dict[str, Sequence[Tensor]] = {"param": [values], name: [codes], f"{name}_scale": [scales]}
    numbers = number_table(at.seed, at.step, (), codes.device)
    launch(_code_kernel, columns, [0], [stream], numbers, HESSIAN=hessian, NEAREST=rounding is None, **how)


def quantize(
    x: Tensor, codes: Tensor, scales: Tensor, hessian: bool, rounding: Rounding | None, stream: int
) -> None:
    """See sophia_reference.quantize."""
    _code(x, codes, scales, hessian, rounding, stream, ENCODE=True)


def dequantize(codes: Tensor, scales: Tensor, out: Tensor, hessian: bool) -> None:
    """See sophia_reference.dequantize."""
    _code(out, codes, scales, hessian, None, 0, ENCODE=False)


# -- ahead of time ---------------------------------------------------------------------------------

Compiled = tuple[str, Any, dict[str, str], dict[str, Any], dict[str, Any]]


def _compiled(name: str, kernel: Any, **constants: Any) -> Compiled:
    constants = {"STEPS": 8, "TILE": _TILE, **constants}
    pointers = {"table": "*i64", "numbers": "*i64", "partials": "*fp64"}
    pointers |= {"inv_scale": "*fp32", "found_inf": "*fp32"}
    kinds = {"rows": "i32", **pointers, **dict.fromkeys(constants, "constexpr")}
    signature = {p: kinds[p] for p in inspect.signature(kernel.fn).parameters}
    return name, kernel, signature, constants, {"num_warps": _WARPS, "enable_fp_fusion": False}


def ahead_of_time() -> list[Compiled]:
    """(name, kernel, signature, constants, options) of the kernels to compile where there is no GPU."""
    plain = {"MAXIMIZE": False, "SKIP": False, "STOCHASTIC": False, "MASTER": False, "KAHAN": False}
    plain |= {"SQUARE": False, "STATS": False, "ALIGNED": True, "SCALED": True, "GUARDED": True}
    cases = []
    for dtype, grad, state in (
        ("fp32", "fp32", "fp32"),
        ("fp64", "fp64", "fp64"),
        ("bf16", "bf16", "fp32"),
        ("bf16", "fp32", "bf16"),
        ("fp16", "fp16", "u8"),
        ("fp32", "fp32", "u8"),
    ):
        formats = {"DTYPE": dtype, "GRAD": grad, "STATE": state}
        end = f"{dtype}.{grad}.{state}"
        for denom, code in (("max", 0), ("add", 1), ("sign", 2)):
            options = {**plain, **formats, "DENOM": code}
            cases.append(_compiled(f"step.{denom}.{end}", _step_kernel, **options))
        everything = {
            **plain,
            **formats,
            "DENOM": 1,
            "SQUARE": True,
            "SKIP": True,
            "STATS": True,
            "MAXIMIZE": True,
        }
        cases.append(_compiled(f"step.legacy.stats.{end}", _step_kernel, **everything))
        if dtype in _HALF:
            extras = {"sr": {"STOCHASTIC": True}, "kahan": {"KAHAN": True}, "master": {"MASTER": True}}
            for name, extra in extras.items():
                cases.append(_compiled(f"step.{name}.{end}", _step_kernel, **everything | extra))
    shared = {"SCALED": True, "GUARDED": True, "ALIGNED": True}
    for state, grad in (
        ("fp32", "fp32"),
        ("fp64", "fp64"),
        ("fp32", "bf16"),
        ("bf16", "fp16"),
        ("u8", "fp32"),
    ):
        dtype = "fp64" if state == "fp64" else "fp32"
        formats = {"DTYPE": dtype, "GRAD": grad, "STATE": state}
        for probed in (False, True):
            name = f"hessian.{'probe' if probed else 'square'}.{grad}.{state}"
            cases.append(_compiled(name, _hessian_kernel, **formats, **shared, PROBED=probed))
    for hessian in (False, True):
        kind = "hessian" if hessian else "exp_avg"
        cases += [
            _compiled(f"encode.{kind}", _code_kernel, HESSIAN=hessian, ENCODE=True, NEAREST=False),
            _compiled(f"decode.{kind}", _code_kernel, HESSIAN=hessian, ENCODE=False, NEAREST=True),
        ]
    return cases
