"""The Sophia passes in plain PyTorch: the oracle of the native kernels, and the fallback.

Sophia is the clipped second-order optimizer of Liu et al., arXiv 2305.14342. Every line says where it rounds.
Scalars are made in float64 and each rounded once to the compute dtype: float32 for float32, bfloat16 and
float16 weights, float64 for float64 ones. Memory is bounded: tensors are worked through in pieces.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from tenfold.kernels.zo import zo_reference as ref
from torch import Tensor

from . import sophia8_reference as eight
from .sophia8_reference import BLOCK

CHUNK = 1 << 16  # elements in one piece, a multiple of BLOCK and of the elements in a block of rounding bits


@dataclass(frozen=True)
class Rounding:
    """How results are stored: kind "nearest", "stochastic" or "kahan" for weights; the key and counter of all
    rounding bits, of which the purposes "sophia", "sophia_exp_avg" and "sophia_hessian" have their own."""

    kind: str = "nearest"
    seed: int = 0
    step: int = 0

    def bits(self, purpose: str, stream: int, first: int, n: int, device: torch.device) -> Tensor:
        """The 16 random bits of elements [first, first + n), int64: element i in half i % 2 of word i / 2."""
        x, skip = ref._word_range(self.seed, stream, self.step, purpose, first, n, 8, device)
        return torch.stack((x & 0xFFFF, x >> 16), dim=2).reshape(-1)[skip : skip + n]


@dataclass(frozen=True)
class StepArgs:
    """The numbers of a step. decay: 1 - lr * weight_decay, shrink: -lr * weight_decay (for Kahan);
    hessian_beta2: None, or the decay rate with which h follows the squared gradient in the same pass."""

    lr: float
    beta1: float
    denom_scale: float
    decay: float
    shrink: float
    eps: float
    add: bool
    maximize: bool
    skip: bool
    hessian_beta2: float | None = None


@dataclass(frozen=True)
class State:
    """Lists beside the weights; an empty one is not there. All of one shape per position, contiguous."""

    exp_avgs: Sequence[Tensor]
    hessians: Sequence[Tensor] = ()
    exp_avg_scales: Sequence[Tensor] = ()
    hessian_scales: Sequence[Tensor] = ()
    masters: Sequence[Tensor] = ()
    compensations: Sequence[Tensor] = ()


def _pieces(n: int) -> Iterator[slice]:
    for at in range(0, n, CHUNK):
        yield slice(at, min(at + CHUNK, n))


def _blocks(piece: slice) -> slice:
    return slice(piece.start // BLOCK, eight.blocks_of(piece.stop))


def _load(codes: Tensor, scales: Tensor | None, piece: slice, dtype: torch.dtype, hessian: bool) -> Tensor:
    if scales is None:
        return codes.view(-1)[piece].to(dtype)
    decode = eight.decode_hessian if hessian else eight.decode_exp_avg
    return decode(codes.view(-1)[piece], scales[_blocks(piece)])


def _save(
    codes: Tensor,
    scales: Tensor | None,
    piece: slice,
    value: Tensor,
    hessian: bool,
    rounding: Rounding,
    stream: int,
) -> None:
    """States in bfloat16 or 8 bits are rounded stochastically: an average in few bits would stop to move."""
    target = codes.view(-1)[piece]
    if codes.dtype == value.dtype:
        target.copy_(value)
        return
    purpose = "sophia_hessian" if hessian else "sophia_exp_avg"
    r16 = rounding.bits(purpose, stream, piece.start, value.numel(), value.device)
    if scales is None:
        target.copy_(ref.round_sr(value, codes.dtype, r16))
        return
    encode = eight.encode_hessian if hessian else eight.encode_exp_avg
    new, scale = encode(value, r16)
    target.copy_(new)
    scales[_blocks(piece)] = scale


def _at(tensors: Sequence[Tensor], i: int) -> Tensor | None:
    return tensors[i] if len(tensors) else None


def _scaled(g: Tensor, inv_scale: Tensor | None, negate: bool, dtype: torch.dtype) -> Tensor:
    g = g.to(dtype)
    if inv_scale is not None:
        g = g * inv_scale.to(dtype)
    return -g if negate else g


def _update(m: Tensor, h: Tensor | None, a: StepArgs, dtype: torch.dtype) -> Tensor:
    """u in [-1, 1], or NaN where m or h is. u = sign(m) without h."""
    if h is None:
        return torch.where(m > 0, 1.0, torch.where(m < 0, -1.0, m))
    scaled, eps = h * ref._scalar(a.denom_scale, dtype), ref._scalar(a.eps, dtype)
    if a.add:
        d = torch.where(scaled < 0, 0.0, scaled) + eps
    else:
        d = torch.where(scaled < eps, eps, scaled)
    r = m / d
    return torch.where(r > 1, 1.0, torch.where(r < -1, -1.0, r))


_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def _differ(a: Tensor, b: Tensor) -> Tensor:
    """Where the bits of two tensors of one dtype differ."""
    kind = _BITS[a.element_size()]
    return a.view(kind) != b.view(kind)


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
    """One step on contiguous tensors, in place. Per element:

    g = grad * inv_scale, sign flipped to maximize
    h = fma((1-b2)*g, g, b2*h)            with hessian_beta2 = b2 only
    m = fma(1-beta1, g, beta1*m)
    d = max(denom_scale*h, 0) + eps       "add"; max(denom_scale*h, eps) otherwise
    u = clip(m/d, -1, 1)
    theta = fma(-lr, u, decay*theta)      rounded to its dtype last

    Kahan:
    delta = fma(-lr, u, shrink*theta) + c, new = round(theta + delta), c = round(delta - (new - theta)).
    """
    if found_inf is not None and bool(found_inf != 0):
        return
    for i, (param, grad, stream) in enumerate(zip(params, grads, streams, strict=True)):
        counts = _step_one(i, param, grad, stream, state, a, rounding, inv_scale)
        if stats is not None:
            stats += counts.to(stats.device)


def _step_one(
    i: int,
    param: Tensor,
    grad: Tensor,
    stream: int,
    state: State,
    a: StepArgs,
    rounding: Rounding,
    inv_scale: Tensor | None,
) -> Tensor:
    dtype = ref._compute_dtype(param)
    exp_avg, hessian = state.exp_avgs[i], _at(state.hessians, i)
    m_scales, h_scales = _at(state.exp_avg_scales, i), _at(state.hessian_scales, i)
    master, compensation = _at(state.masters, i), _at(state.compensations, i)
    beta1, rest = ref._scalar(a.beta1, dtype), ref._scalar(1 - a.beta1, dtype)
    rate, decay = ref._scalar(-a.lr, dtype), ref._scalar(a.decay, dtype)
    counts = torch.zeros(6, dtype=torch.float64, device=param.device)
    for piece in _pieces(param.numel()):
        p_at = param.view(-1)[piece]
        kept_p = p_at.clone()
        g = _scaled(grad.view(-1)[piece], inv_scale, a.maximize, dtype)
        before_m = _load(exp_avg, m_scales, piece, dtype, False)
        finite = torch.isfinite(g)
        live = finite if a.skip else torch.ones_like(finite)
        before_h = h = None if hessian is None else _load(hessian, h_scales, piece, dtype, True)
        if a.hessian_beta2 is not None and before_h is not None:
            b2, rest2 = ref._scalar(a.hessian_beta2, dtype), ref._scalar(1 - a.hessian_beta2, dtype)
            h = ref._fma(rest2 * g, g, b2 * before_h, dtype)
            h = torch.where(live, h, before_h)
        m = torch.where(live, ref._fma(rest, g, beta1 * before_m, dtype), before_m)
        u = _update(m, h, a, dtype)
        if hessian is not None and h is not None and a.hessian_beta2 is not None:
            _save(hessian, h_scales, piece, h, True, rounding, stream)
        _save(exp_avg, m_scales, piece, m, False, rounding, stream)

        theta = kept_p.to(dtype) if master is None else master.view(-1)[piece].clone()
        if compensation is not None:
            c_at = compensation.view(-1)[piece]
            delta = ref._fma(rate, u, ref._scalar(a.shrink, dtype) * theta, dtype) + c_at.to(dtype)
            new = (theta + delta).to(param.dtype)
            residue = (delta - (new.to(dtype) - theta)).to(param.dtype)
            c_at.copy_(torch.where(live, residue, c_at))
        else:
            value = ref._fma(rate, u, decay * theta, dtype)
            new = value
            if rounding.kind == "stochastic" and param.dtype in (torch.bfloat16, torch.float16):
                r16 = rounding.bits("sophia", stream, piece.start, value.numel(), value.device)
                new = ref.round_sr(value, param.dtype, r16)
            new = new.to(param.dtype)
            if master is not None:
                master.view(-1)[piece] = torch.where(live, value, theta)
        p_at.copy_(torch.where(live, new, kept_p))

        win = torch.zeros_like(live) if h is None else m.abs() < h * ref._scalar(a.denom_scale, dtype)
        sums = [
            (win & live).sum(),
            ((m != 0) & live).sum(),
            torch.where(live, u, 0.0).double().square().sum(),
        ]
        sums += [(~finite).sum(), _differ(kept_p, p_at).sum(), torch.tensor(g.numel())]
        counts += torch.stack([s.double().to(counts.device) for s in sums])
    return counts


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
    """h = fma(weight*g, other, keep*h), other = g (squares) or the probe; g = grad * inv_scale."""
    if found_inf is not None and bool(found_inf != 0):
        return
    for i, (hessian, grad, stream) in enumerate(zip(hessians, grads, streams, strict=True)):
        scales, probe = _at(hessian_scales, i), _at(probes, i)
        dtype = torch.float64 if hessian.dtype == torch.float64 else torch.float32
        k, w = ref._scalar(keep, dtype), ref._scalar(weight, dtype)
        for piece in _pieces(hessian.numel()):
            g = _scaled(grad.view(-1)[piece], inv_scale, False, dtype)
            other = g if probe is None else probe.view(-1)[piece].to(dtype)
            h = ref._fma(w * g, other, k * _load(hessian, scales, piece, dtype, True), dtype)
            _save(hessian, scales, piece, h, True, rounding, stream)


@torch.no_grad()
def quantize(
    x: Tensor, codes: Tensor, scales: Tensor, hessian: bool, rounding: Rounding | None, stream: int
) -> None:
    """Contiguous float32 `x` into codes of its shape and scales [blocks]; to nearest without `rounding`."""
    encode = eight.encode_hessian if hessian else eight.encode_exp_avg
    purpose = "sophia_hessian" if hessian else "sophia_exp_avg"
    for piece in _pieces(x.numel()):
        value = x.view(-1)[piece]
        bits = (
            None if rounding is None else rounding.bits(purpose, stream, piece.start, value.numel(), x.device)
        )
        codes.view(-1)[piece], scales[_blocks(piece)] = encode(value, bits)


@torch.no_grad()
def dequantize(codes: Tensor, scales: Tensor, out: Tensor, hessian: bool) -> None:
    """Codes and scales into contiguous float32 `out` of their shape."""
    for piece in _pieces(codes.numel()):
        out.view(-1)[piece] = _load(codes, scales, piece, torch.float32, hessian)
