# mypy: allow-untyped-defs, allow-untyped-calls
"""The row kernels in Triton: one program per row, 2048 entries at a time; elementwise passes one per block.

Sums of a block are float32, rows are joined in float64.  The label draw is rows_reference.sample to the bit:
its exponential is made of operations that round once each and are not fused, its sums are of integers.

Triton's interpreter (TRITON_INTERPRET=1 before this module is imported) runs the kernels on CPU tensors.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import rows_reference
from .rows_reference import BLOCK, KINDS, RowStats

INTERPRETED = bool(triton.knobs.runtime.interpret) if hasattr(triton, "knobs") else False

_NO_LOGIT = tl.constexpr(-3.402823466e38)  # finite: no inf - inf in a block of -inf
_NOWHERE = tl.constexpr(2**31 - 1)
_BLOCK = tl.constexpr(BLOCK)


@triton.jit
def _exponents(z, softcap, inverse_temperature, CAPPED: tl.constexpr, TEMPERED: tl.constexpr):
    """x = cap(z) / temperature; tanh by its odd polynomial near zero (Cephes, Moshier), by exp elsewhere."""
    x = z.to(tl.float32)
    if CAPPED:
        x = x / softcap
        size = tl.abs(x)
        e = tl.exp(-2.0 * size)
        outer = (1.0 - e) / (1.0 + e)
        q = x * x
        p = -5.70498872745e-3 * q + 2.06390887954e-2
        p = p * q - 5.37397155531e-2
        p = p * q + 1.33314422036e-1
        p = p * q - 3.33332819422e-1
        inner = (p * q) * x + x
        x = softcap * tl.where(size < 0.625, inner, tl.where(x < 0.0, -outer, outer))
    if TEMPERED:
        x = x * inverse_temperature
    return x


@triton.jit
def _row(base, r, inner, outer_stride, inner_stride):
    group = r // inner
    return base + group.to(tl.int64) * outer_stride + (r - group * inner).to(tl.int64) * inner_stride


@triton.jit
def _lowest_index(found, v):
    return tl.min(tl.where(found, v, _NOWHERE), axis=0)


@triton.jit
def _forward(
    logits,
    targets,
    logp,
    lse,
    argmax,
    mean_logit,
    mean_logp,
    mean_logp2,
    inner,
    outer_stride,
    inner_stride,
    vocabulary,
    softcap,
    inverse_temperature,
    CAPPED: tl.constexpr,
    TEMPERED: tl.constexpr,
    STATS: tl.constexpr,
    WITHOUT_TARGET: tl.constexpr,
):
    """RowStats; WITHOUT_TARGET: log p, the log-sum-exp of the other entries and the loss of CE-U."""
    r = tl.program_id(0)
    target = tl.load(targets + r)
    row = _row(logits, r, inner, outer_stride, inner_stride)
    top = _NO_LOGIT + tl.zeros([], tl.float32)
    s = tl.zeros([], tl.float64)
    a = tl.zeros([], tl.float64)
    b = tl.zeros([], tl.float64)
    total = tl.zeros([], tl.float64)
    picked = tl.zeros([], tl.float32)
    largest = _NOWHERE + tl.zeros([], tl.int32)
    nan = _NOWHERE + tl.zeros([], tl.int32)
    end = vocabulary
    if target < 0:
        end = 0
    for first in range(0, end, _BLOCK):
        v = first + tl.arange(0, _BLOCK)
        inside = v < vocabulary
        z = tl.load(row + v, mask=inside, other=float("-inf"))
        x = _exponents(z, softcap, inverse_temperature, CAPPED, TEMPERED)
        x = tl.where(inside, x, float("-inf"))
        picked += tl.sum(tl.where(v == target, x, 0.0), axis=0)
        if WITHOUT_TARGET:
            x = tl.where(v == target, float("-inf"), x)
        here = tl.maximum(tl.max(tl.where(x == x, x, _NO_LOGIT), axis=0), _NO_LOGIT)
        d = x - here
        e = tl.where(d < -87.0, 0.0, tl.exp(d))
        s_here = tl.sum(e, axis=0).to(tl.float64)
        higher = tl.maximum(top, here)
        before = top.to(tl.float64) - higher.to(tl.float64)
        after = here.to(tl.float64) - higher.to(tl.float64)
        if STATS:
            finite = tl.where(d < -128.0, -128.0, d)
            a_here = tl.sum(e * finite, axis=0).to(tl.float64)
            b_here = tl.sum(e * finite * finite, axis=0).to(tl.float64)
            b = tl.exp(before) * (b + before * (2.0 * a + before * s))
            b += tl.exp(after) * (b_here + after * (2.0 * a_here + after * s_here))
            a = tl.exp(before) * (a + before * s) + tl.exp(after) * (a_here + after * s_here)
            total += tl.sum(tl.where(inside, x, 0.0), axis=0).to(tl.float64)
            largest = tl.where(here > top, _lowest_index(x == here, v), largest)
            nan = tl.minimum(nan, _lowest_index((x != x) & inside, v))
        s = s * tl.exp(before) + s_here * tl.exp(after)
        top = higher
    if target < 0:
        s += 1.0
        top = top * 0.0
    log_s = tl.log(s)
    found = top.to(tl.float64) + log_s
    x_target = picked.to(tl.float64)
    if WITHOUT_TARGET:
        high = tl.maximum(x_target, found)
        low = tl.minimum(x_target, found)
        whole = high + tl.log(1.0 + tl.exp(low - high))
        whole = tl.where(x_target + found == x_target + found, whole, x_target + found)
        tl.store(logp + r, tl.where(target < 0, 0.0, x_target - whole))
        tl.store(lse + r, found)
        tl.store(mean_logp + r, tl.where(target < 0, 0.0, (whole - top.to(tl.float64)) - a / s))
    else:
        tl.store(logp + r, x_target - found)
        tl.store(lse + r, found)
        if STATS:
            index = tl.where(nan < _NOWHERE, nan, tl.where(largest < _NOWHERE, largest, 0))
            tl.store(argmax + r, tl.where(target < 0, 0, index).to(tl.int64))
            tl.store(mean_logit + r, total / vocabulary)
            tl.store(mean_logp + r, a / s - log_s)
            tl.store(mean_logp2 + r, b / s - 2.0 * log_s * (a / s) + log_s * log_s)


@triton.jit
def _softmax(
    out,
    logits,
    targets,
    lse,
    coef,
    at_target,
    out_inner,
    out_outer_stride,
    out_inner_stride,
    inner,
    outer_stride,
    inner_stride,
    vocabulary,
    softcap,
    inverse_temperature,
    CAPPED: tl.constexpr,
    TEMPERED: tl.constexpr,
):
    r = tl.program_id(0)
    v = tl.program_id(1) * _BLOCK + tl.arange(0, _BLOCK)
    inside = v < vocabulary
    target = tl.load(targets + r)
    whole = tl.load(lse + r)
    high = whole.to(tl.float32)
    low = (whole - high.to(tl.float64)).to(tl.float32)
    z = tl.load(_row(logits, r, inner, outer_stride, inner_stride) + v, mask=inside, other=0.0)
    x = _exponents(z, softcap, inverse_temperature, CAPPED, TEMPERED)
    d = (x - high) - low
    value = tl.load(coef + r).to(tl.float32) * tl.where(d < -87.0, 0.0, tl.exp(d))
    value = tl.where(v == target, tl.load(at_target + r).to(tl.float32), value)
    if CAPPED:
        t = x / (softcap * inverse_temperature)
        value = value * (1.0 - t * t)
    if TEMPERED:
        value = value * inverse_temperature
    value = tl.where(target < 0, 0.0, value)
    to = _row(out, r, out_inner, out_outer_stride, out_inner_stride) + v
    tl.store(to, value.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _weights(x, top):
    """rows_reference.block_weights: every operation rounds once (enable_fp_fusion is off)."""
    d = x - top
    t = d * 1.44269504 + 12582912.0
    k = t - 12582912.0
    r = (d - k * 0.693359375) - k * -2.12194440e-4
    p = r * 1.9875691500e-4 + 1.3981999507e-3
    p = p * r + 8.3334519073e-3
    p = p * r + 4.1665795894e-2
    p = p * r + 1.6666665459e-1
    p = p * r + 5.0000001201e-1
    p = ((p * r) * r + r) + 1.0
    power = ((t.to(tl.int32, bitcast=True) << 23) + 0x3F800000).to(tl.float32, bitcast=True)
    e = tl.where(d < -87.0, 0.0, p * power)
    return (tl.where(e == e, e, 0.0) * 1073741824.0 + 0.5).to(tl.int64), d


@triton.jit
def _count(
    logits,
    tops,
    counts,
    inner,
    outer_stride,
    inner_stride,
    vocabulary,
    inverse_temperature,
    TEMPERED: tl.constexpr,
):
    """Of one block of one row: the largest entry (NaN if there is NaN or +inf) and the sum of weights."""
    r = tl.program_id(0)
    block = tl.program_id(1)
    v = block * _BLOCK + tl.arange(0, _BLOCK)
    row = _row(logits, r, inner, outer_stride, inner_stride)
    z = tl.load(row + v, mask=v < vocabulary, other=float("-inf"))
    x = _exponents(z, 1.0, inverse_temperature, False, TEMPERED)
    top = tl.maximum(tl.max(tl.where(x == x, x, _NO_LOGIT), axis=0), _NO_LOGIT)
    w, d = _weights(x, top)
    bad = tl.max((d != d).to(tl.int32), axis=0)
    at = r * tl.num_programs(1) + block
    tl.store(tops + at, tl.where(bad > 0, float("nan"), top))
    tl.store(counts + at, tl.sum(w, axis=0))


@triton.jit
def _pick(
    logits,
    blocks,
    tops,
    scales,
    left,
    tokens,
    x_token,
    inner,
    outer_stride,
    inner_stride,
    vocabulary,
    inverse_temperature,
    TEMPERED: tl.constexpr,
):
    """The first entry of the chosen block whose running sum passes what is left of the threshold."""
    r = tl.program_id(0)
    v = tl.load(blocks + r).to(tl.int32) * _BLOCK + tl.arange(0, _BLOCK)
    row = _row(logits, r, inner, outer_stride, inner_stride)
    z = tl.load(row + v, mask=v < vocabulary, other=float("-inf"))
    x = _exponents(z, 1.0, inverse_temperature, False, TEMPERED)
    w, _ = _weights(x, tl.load(tops + r))
    reached = tl.cumsum(w, axis=0).to(tl.float64) * tl.load(scales + r)
    hit = tl.min(tl.where(reached > tl.load(left + r), v, _NOWHERE), axis=0)
    last = tl.max(tl.where(w > 0, v, 0), axis=0)
    token = tl.where(hit < _NOWHERE, hit, last)
    tl.store(tokens + r, token.to(tl.int64))
    tl.store(x_token + r, tl.sum(tl.where(v == token, x, 0.0), axis=0))


@triton.jit
def _divergence(
    out,
    logits,
    ref_logits,
    targets,
    loss,
    lse,
    ref_lse,
    grad,
    stride,
    ref_stride,
    out_stride,
    vocabulary,
    beta,
    KIND: tl.constexpr,
    BACKWARD: tl.constexpr,
):
    r = tl.program_id(0)
    target = tl.load(targets + r)
    row = logits + r.to(tl.int64) * stride
    ref = ref_logits + r.to(tl.int64) * ref_stride
    if BACKWARD:
        v = tl.program_id(1) * _BLOCK + tl.arange(0, _BLOCK)
        inside = v < vocabulary
        x = tl.load(row + v, mask=inside, other=0.0)
        y = tl.load(ref + v, mask=inside, other=0.0) - tl.where(v == target, beta, 0.0)
        p_whole = tl.load(lse + r)
        q_whole = tl.load(ref_lse + r)
        p_high = p_whole.to(tl.float32)
        q_high = q_whole.to(tl.float32)
        log_p = (x - p_high) - (p_whole - p_high.to(tl.float64)).to(tl.float32)
        log_q = (y - q_high) - (q_whole - q_high.to(tl.float64)).to(tl.float32)
        p = tl.where(log_p < -87.0, 0.0, tl.exp(log_p))
        if KIND == 1:
            slope = tl.where(p == 0.0, 0.0, p * ((log_p - log_q) - tl.load(loss + r).to(tl.float32)))
        else:
            slope = p - tl.where(log_q < -87.0, 0.0, tl.exp(log_q))
        value = tl.where(target < 0, 0.0, slope * tl.load(grad + r).to(tl.float32))
        tl.store(out + r.to(tl.int64) * out_stride + v, value, mask=inside)
    else:
        p_top = _NO_LOGIT + tl.zeros([], tl.float32)
        q_top = _NO_LOGIT + tl.zeros([], tl.float32)
        p_sum = tl.zeros([], tl.float64)
        q_sum = tl.zeros([], tl.float64)
        gap = tl.zeros([], tl.float64)
        end = vocabulary
        if target < 0:
            end = 0
        for first in range(0, end, _BLOCK):
            v = first + tl.arange(0, _BLOCK)
            inside = v < vocabulary
            x = tl.load(row + v, mask=inside, other=float("-inf"))
            y = tl.load(ref + v, mask=inside, other=float("-inf")) - tl.where(v == target, beta, 0.0)
            p_here = tl.maximum(tl.max(tl.where(x == x, x, _NO_LOGIT), axis=0), _NO_LOGIT)
            q_here = tl.maximum(tl.max(tl.where(y == y, y, _NO_LOGIT), axis=0), _NO_LOGIT)
            p = tl.where(x - p_here < -87.0, 0.0, tl.exp(x - p_here))
            q = tl.where(y - q_here < -87.0, 0.0, tl.exp(y - q_here))
            p_new = tl.maximum(p_top, p_here)
            q_new = tl.maximum(q_top, q_here)
            p_old = tl.exp(p_top.to(tl.float64) - p_new.to(tl.float64))
            q_old = tl.exp(q_top.to(tl.float64) - q_new.to(tl.float64))
            p_scale = tl.exp(p_here.to(tl.float64) - p_new.to(tl.float64))
            q_scale = tl.exp(q_here.to(tl.float64) - q_new.to(tl.float64))
            if KIND == 0:
                added = tl.sum(tl.where(q == 0.0, 0.0, q * (y - x)), axis=0)
            elif KIND == 1:
                added = tl.sum(tl.where(p == 0.0, 0.0, p * (x - y)), axis=0)
            else:
                added = tl.sum(tl.where(q == 0.0, 0.0, q * -x), axis=0)
            if KIND == 1:
                gap = gap * p_old + added.to(tl.float64) * p_scale
            else:
                gap = gap * q_old + added.to(tl.float64) * q_scale
            p_sum = p_sum * p_old + tl.sum(p, axis=0).to(tl.float64) * p_scale
            q_sum = q_sum * q_old + tl.sum(q, axis=0).to(tl.float64) * q_scale
            p_top = p_new
            q_top = q_new
        if target < 0:
            p_sum += 1.0
            q_sum += 1.0
            p_top = p_top * 0.0
            q_top = q_top * 0.0
        p_lse = p_top.to(tl.float64) + tl.log(p_sum)
        q_lse = q_top.to(tl.float64) + tl.log(q_sum)
        if KIND == 0:
            value = gap / q_sum + (p_lse - q_lse)
        elif KIND == 1:
            value = gap / p_sum + (q_lse - p_lse)
        else:
            value = gap / q_sum + p_lse
        tl.store(loss + r, value)
        tl.store(lse + r, p_lse)
        tl.store(ref_lse + r, q_lse)


# ---- the reference's signatures --------------------------------------------------------------------------


def _strides(rows: Tensor) -> tuple[int, int, int]:
    """Rows per group, stride of groups, stride of rows of [R, V] or [B, T, V]."""
    if rows.ndim == 2:
        return max(1, rows.shape[0]), 0, rows.stride(0)
    return max(1, rows.shape[1]), rows.stride(0), rows.stride(1)


def _readable(logits: Tensor) -> Tensor:
    """NumPy has no bfloat16: the interpreter gets float32. A vocabulary with a step is copied."""
    if INTERPRETED and logits.dtype == torch.bfloat16:
        logits = logits.float()
    return logits if logits.stride(-1) == 1 or logits.shape[-1] == 1 else logits.contiguous()


def _count_rows(logits: Tensor) -> int:
    return logits.shape[:-1].numel()


def _doubles(like: Tensor, count: int) -> list[Tensor]:
    rows = _count_rows(like)
    return [torch.empty(rows, dtype=torch.float64, device=like.device) for _ in range(count)]


def _options(softcap: float | None, inverse_temperature: float) -> dict[str, Any]:
    capped, tempered = softcap is not None, inverse_temperature != 1.0
    return {
        "softcap": 1.0 if softcap is None else softcap,
        "inverse_temperature": inverse_temperature,
        "CAPPED": capped,
        "TEMPERED": tempered,
    }


def forward(
    logits: Tensor,
    targets: Tensor,
    softcap: float | None = None,
    inverse_temperature: float = 1.0,
    stats: bool = True,
) -> RowStats:
    """See rows_reference.forward."""
    if logits.dtype == torch.float64:
        return rows_reference.forward(logits, targets, softcap, inverse_temperature, stats)
    logits = _readable(logits)
    logp, lse = _doubles(logits, 2)
    argmax = torch.empty(_count_rows(logits) if stats else 0, dtype=torch.int64, device=logits.device)
    means = _doubles(logits, 3) if stats else [logp.new_empty(0) for _ in range(3)]
    written = (logp, lse, argmax if stats else logp, *(means if stats else [logp] * 3))
    if logp.numel():
        _forward[(logp.numel(),)](
            logits,
            targets.contiguous(),
            *written,
            *_strides(logits),
            logits.shape[-1],
            STATS=stats,
            WITHOUT_TARGET=False,
            num_warps=8,
            **_options(softcap, inverse_temperature),
        )
    return RowStats(logp, lse, argmax, *means)


def softmax_(
    out: Tensor,
    logits: Tensor,
    targets: Tensor,
    lse: Tensor,
    coef: Tensor,
    at_target: Tensor,
    softcap: float | None = None,
    inverse_temperature: float = 1.0,
) -> None:
    """See rows_reference.softmax_."""
    if logits.dtype == torch.float64:
        rows_reference.softmax_(out, logits, targets, lse, coef, at_target, softcap, inverse_temperature)
        return
    to, logits = out, _readable(logits)
    if INTERPRETED and out.dtype == torch.bfloat16:
        to = torch.empty_like(out, dtype=torch.float32)
    rows, blocks = _count_rows(logits), triton.cdiv(logits.shape[-1], BLOCK)
    if rows:
        per_row = (targets.contiguous(), *(t.to(torch.float64).contiguous() for t in (lse, coef, at_target)))
        _softmax[(rows, blocks)](
            to,
            logits,
            *per_row,
            *_strides(to),
            *_strides(logits),
            logits.shape[-1],
            num_warps=8,
            **_options(softcap, inverse_temperature),
        )
    if to is not out:
        out.copy_(to)


def sample(
    logits: Tensor, uniforms: Tensor, inverse_temperature: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    """See rows_reference.sample."""
    rows = _count_rows(logits)
    if logits.dtype == torch.float64 or rows == 0:
        return rows_reference.sample(logits, uniforms, inverse_temperature)
    logits = _readable(logits)
    device, blocks = logits.device, triton.cdiv(logits.shape[-1], BLOCK)
    options = _options(None, inverse_temperature)
    options = {name: options[name] for name in ("inverse_temperature", "TEMPERED")}
    # Nothing is fused: the weights must have the bits that they have everywhere else.
    options |= {"num_warps": 8, "enable_fp_fusion": False}
    tops = torch.empty((rows, blocks), device=device)
    counts = torch.empty((rows, blocks), dtype=torch.int64, device=device)
    where = (*_strides(logits), logits.shape[-1])
    _count[(rows, blocks)](logits, tops, counts, *where, **options)
    draw = rows_reference.choose_block(tops.T, counts.T, uniforms)
    tokens = torch.empty(rows, dtype=torch.int64, device=device)
    x = torch.empty(rows, device=device)
    chosen = (t.contiguous() for t in (draw.block, draw.top, draw.scale, draw.left))
    _pick[(rows,)](logits, *chosen, tokens, x, *where, **options)
    return rows_reference.drawn(draw, tokens, x, uniforms)


def ceu(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """See rows_reference.ceu."""
    if logits.dtype == torch.float64:
        return rows_reference.ceu(logits, targets)
    logits = _readable(logits)
    loss, rest, logp = _doubles(logits, 3)
    if loss.numel():
        _forward[(loss.numel(),)](
            logits,
            targets.contiguous(),
            logp,
            rest,
            targets,
            loss,
            loss,
            loss,
            *_strides(logits),
            logits.shape[-1],
            STATS=True,
            WITHOUT_TARGET=True,
            num_warps=8,
            **_options(None, 1.0),
        )
    return loss, rest, logp


def divergence(
    logits: Tensor, ref_logits: Tensor, targets: Tensor, beta: float, kind: str
) -> tuple[Tensor, Tensor, Tensor]:
    """See rows_reference.divergence."""
    if torch.float64 in (logits.dtype, ref_logits.dtype):
        return rows_reference.divergence(logits, ref_logits, targets, beta, kind)
    loss, lse, ref_lse = _doubles(logits, 3)
    _run_divergence(False, logits, logits, ref_logits, targets, beta, kind, loss, lse, ref_lse, loss)
    return loss, lse, ref_lse


def divergence_(
    out: Tensor,
    logits: Tensor,
    ref_logits: Tensor,
    targets: Tensor,
    beta: float,
    kind: str,
    loss: Tensor,
    lse: Tensor,
    ref_lse: Tensor,
    grad: Tensor,
) -> None:
    """See rows_reference.divergence_."""
    if torch.float64 in (out.dtype, logits.dtype, ref_logits.dtype):
        rows_reference.divergence_(out, logits, ref_logits, targets, beta, kind, loss, lse, ref_lse, grad)
        return
    rows = (t.to(torch.float64).contiguous() for t in (loss, lse, ref_lse, grad))
    _run_divergence(True, out, logits, ref_logits, targets, beta, kind, *rows)


def _run_divergence(
    backward: bool,
    out: Tensor,
    logits: Tensor,
    ref_logits: Tensor,
    targets: Tensor,
    beta: float,
    kind: str,
    *rows: Tensor,
) -> None:
    count, size = logits.shape
    grid = (count, triton.cdiv(size, BLOCK)) if backward else (count,)
    if count == 0:
        return
    strides = (logits.stride(0), ref_logits.stride(0), out.stride(0))
    _divergence[grid](
        out,
        logits,
        ref_logits,
        targets.contiguous(),
        *rows,
        *strides,
        size,
        beta,
        KIND=KINDS.index(kind),
        BACKWARD=backward,
        num_warps=8,
    )


Compiled = tuple[str, Any, dict[str, str], dict[str, Any], dict[str, Any]]

_POINTERS = {"targets": "*i64", "argmax": "*i64", "tokens": "*i64", "blocks": "*i64", "counts": "*i64"}
_POINTERS |= {"tops": "*fp32", "x_token": "*fp32"}
_REALS = {"softcap": "fp32", "inverse_temperature": "fp32", "beta": "fp32"}
_DOUBLES = (
    "logp", "lse", "ref_lse", "mean_logit", "mean_logp", "mean_logp2", "coef", "at_target", "scales", "left",
    "loss", "grad",
)  # fmt: skip


def _compiled(name: str, kernel: Any, dtype: str, *, fused: bool = True, **constants: Any) -> Compiled:
    """Pointers by their names, the others of `dtype`; numbers that are no pointers are counts and strides."""
    kinds = _POINTERS | _REALS | dict.fromkeys(_DOUBLES, "*fp64")
    kinds |= dict.fromkeys(("logits", "ref_logits", "out"), f"*{dtype}")
    kinds |= dict.fromkeys(constants, "constexpr")
    signature = {p: kinds.get(p, "i32") for p in inspect.signature(kernel.fn).parameters}
    options = {"num_warps": 8} | ({} if fused else {"enable_fp_fusion": False})
    return f"{name}.{dtype}", kernel, signature, constants, options


def ahead_of_time() -> list[Compiled]:
    """(name, kernel, signature, constants, options) of the kernels to compile where there is no GPU."""
    plain, every = {"CAPPED": False, "TEMPERED": False}, {"CAPPED": True, "TEMPERED": True}
    cases = []
    for dtype in ("fp32", "bf16", "fp16"):
        row = {"STATS": True, "WITHOUT_TARGET": False}
        cases += [
            _compiled("rows.forward", _forward, dtype, **plain, STATS=False, WITHOUT_TARGET=False),
            _compiled("rows.forward.stats", _forward, dtype, **plain, **row),
            _compiled("rows.forward.stats.capped", _forward, dtype, **every, **row),
            _compiled("rows.ceu", _forward, dtype, **plain, STATS=True, WITHOUT_TARGET=True),
            _compiled("rows.softmax", _softmax, dtype, **plain),
            _compiled("rows.softmax.capped", _softmax, dtype, **every),
            _compiled("rows.count", _count, dtype, fused=False, TEMPERED=True),
            _compiled("rows.pick", _pick, dtype, fused=False, TEMPERED=True),
        ]
        cases += [
            _compiled(
                f"rows.divergence.{kind}{'.backward' * backward}",
                _divergence,
                dtype,
                KIND=KINDS.index(kind),
                BACKWARD=backward,
            )
            for kind in KINDS
            for backward in (False, True)
        ]
    return cases
