"""The dispatcher's side of tenfold.ops.logprob_fused: ops whose forward pass leaves gradients behind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tenfold._backend import OPS

from ._rows import (
    _HEAD,
    _LIBRARY,
    _STATS,
    _TARGETS,
    _index_error,
    _only_once,
    _present,
    _row_targets,
    _rows,
    _stats_fake,
    _without_autocast,
)

OPS |= dict.fromkeys(("linear_loss",), ("cpu", "cuda", "triton", "reference"))

KINDS = ("weights", "npo", "simnpo", "power")

_LIBRARY.define(f"linear_logprob_slopes({_HEAD}, {_TARGETS}) -> {_STATS[:-1]}, Tensor slopes)")
_LIBRARY.define(
    f"linear_loss({_HEAD}, Tensor targets, Tensor? weights, Tensor? segments, Tensor? reference, "
    "SymInt num_segments, str kind, float factor, float beta, float delta, float? softcap, int ignore_index, "
    "bool[] needs) -> (Tensor loss, Tensor logp, Tensor by_hidden, Tensor by_weight, Tensor by_bias)"
)


_LIBRARY.define("first_derivative(Tensor gradient, Tensor of) -> Tensor")


# ---- log p with its slope --------------------------------------------------------------------------------


def _linear_logprob_slopes(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    softcap: float | None,
    ignore_index: int,
    stats: bool,
) -> tuple[Tensor, ...]:
    from tenfold.kernels.logprob import rows_fused

    chosen = _row_targets(targets, weight.shape[0], ignore_index)
    rows = _rows("linear_logprob", hidden.device)
    return tuple(rows_fused.forward_with_slopes(rows, hidden, weight, bias, chosen, softcap, stats))


def _wide(*tensors: Tensor | None) -> torch.dtype:
    from tenfold.kernels.logprob.logprob_reference import math_dtype

    return math_dtype(*tensors)


def _slopes_fake(h: Tensor, w: Tensor, b: Tensor | None, targets: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    return (*_stats_fake(targets, rest[-1]), h.new_empty(h.shape, dtype=_wide(h, w, b)))


def _slopes_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.dtype = inputs[0].dtype
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(output[-1], inputs[0])


def _slopes_grad(ctx: Any, grad: Tensor, *_: Any) -> tuple[Any, ...]:
    slopes, hidden = ctx.saved_tensors
    if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
        raise RuntimeError("linear_logprob_slopes: expected a head without gradient, got one that needs it")
    gradient = (grad[:, None].to(slopes.dtype) * slopes).to(ctx.dtype)
    return (_final(gradient, hidden), *[None] * 6)


def _final(gradient: Tensor, of: Tensor) -> Tensor:
    """A gradient that says so when it is differentiated once more (`create_graph`): it knows no slope."""
    if not torch.is_grad_enabled():
        return gradient
    final: Tensor = torch.ops.tenfold.first_derivative(gradient, of)
    return final


# ---- losses ----------------------------------------------------------------------------------------------


def _of_sequences(
    kind: str, nll: Tensor, count: Tensor, reference: Tensor | None, beta: float, delta: float
) -> tuple[Tensor, Tensor]:
    """(loss [B], its derivative by nll [B]) of NPO (arXiv 2404.05868) and SimNPO (arXiv 2410.07163)."""
    if kind == "npo":
        x = beta * (nll if reference is None else nll - reference)
        scale = torch.ones_like(nll)
    else:
        scale = 1.0 / count.double().clamp(min=1)
        x = beta * (nll * scale - delta)
    return F.logsigmoid(x) * (-2.0 / beta), -2.0 * torch.sigmoid(-x) * scale


def _powers(logp: Tensor, beta: float, delta: float) -> Tensor:
    """p^beta (1 - p)^delta."""
    return (beta * logp).exp() * (-torch.expm1(logp)).pow(delta)


def _times(weights: Tensor, logp: Tensor) -> Tensor:
    """sum weights log p, where a weight of 0 silences even log 0."""
    return torch.where(weights == 0, 0.0, weights * logp).sum()


def _checked_segments(segments: Tensor, num_segments: int) -> Tensor:
    """Segments of the rows that count: in range, and ascending, so that a sequence lies in one piece."""
    bad = (segments < -1) | (segments >= num_segments)
    if bad.any():
        expected = f"segments in [0, {num_segments}), or -1 for a row with a weight of its own"
        _index_error("segments", segments[bad], expected)
    falls = (segments[1:] < segments[:-1]).nonzero()[:, 0]
    if falls.numel():
        i = int(falls[0])
        pair = f"{int(segments[i])} before {int(segments[i + 1])}"
        raise ValueError(f"segments: expected ascending order, got {pair}")
    return segments


def _linear_loss(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    weights: Tensor | None,
    segments: Tensor | None,
    reference: Tensor | None,
    num_segments: int,
    kind: str,
    factor: float,
    beta: float,
    delta: float,
    softcap: float | None,
    ignore_index: int,
    needs: list[bool],
) -> tuple[Tensor, ...]:
    from tenfold.kernels.logprob import rows_fused, rows_linear

    chosen = _row_targets(targets, weight.shape[0], ignore_index)
    keep = rows_linear.kept(chosen)
    own = torch.zeros(keep.shape, dtype=torch.float64, device=hidden.device)
    if weights is not None:
        own = weights[keep].double()
    member = torch.full_like(keep, -1) if segments is None else segments[keep]
    member = _checked_segments(member, num_segments)
    ref = None if reference is None else reference.double()
    free, counted = int((member < 0).sum()), torch.bincount(member[member >= 0], minlength=num_segments)
    lengths = [1] * free + ([1] * int(counted.sum()) if kind == "power" else counted.tolist())

    def sums(piece: slice, logp: Tensor) -> Tensor:
        inside = member[piece] >= 0
        nll = torch.zeros(num_segments, dtype=torch.float64, device=logp.device)
        return nll.index_add_(0, member[piece][inside], logp[inside], alpha=-1.0)

    def weigh(piece: slice, logp: Tensor) -> Tensor:
        out, inside = own[piece].clone(), member[piece] >= 0
        if kind == "power":
            out[inside] = factor * _powers(logp[inside], beta, delta)
        elif num_segments:
            _, slope = _of_sequences(kind, sums(piece, logp), counted, ref, beta, delta)
            out[inside] = -factor * slope[member[piece][inside]]
        return out

    rows = _rows("linear_loss", hidden.device)
    head = (hidden, weight, bias, chosen, softcap, lengths, weigh, needs)
    logp, gradients = rows_fused.loss_gradients(rows, *head)
    found, everything = logp[keep], slice(0, keep.numel())
    loss = _times(own[member < 0], found[member < 0])
    if kind == "power":
        inside = found[member >= 0]
        loss = loss + factor * _times(_powers(inside, beta, delta), inside)
    elif num_segments:
        each, _ = _of_sequences(kind, sums(everything, found), counted, ref, beta, delta)
        loss = loss + factor * each.sum()
    return (loss, logp, *_present(hidden, gradients))


def _loss_fake(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    operands, needs = (hidden, weight, bias), rest[-1]
    asked = zip(operands, needs, strict=True)
    gradients = [t.new_empty(t.shape) if t is not None and need else hidden.new_empty(0) for t, need in asked]
    loss, logp = (targets.new_empty(shape, dtype=torch.float64) for shape in ((), targets.shape))
    return loss, logp, *gradients


def _loss_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.mark_non_differentiable(*output[1:])
    ctx.have = list(inputs[-1])
    ctx.save_for_backward(*output[2:], *inputs[:3])


def _scaled(gradient: Tensor, by: Tensor) -> Tensor:
    """In place where nobody is tracing: a second [V, D] tensor would cost as much as all the chunks."""
    if type(gradient) is Tensor and type(by) is Tensor:
        return gradient.mul_(by.to(gradient.dtype))
    return gradient * by.to(gradient.dtype)


def _loss_grad(ctx: Any, grad: Tensor, *_: Any) -> tuple[Any, ...]:
    if getattr(ctx, "taken", False):
        raise RuntimeError("linear_loss: its gradient can be taken once, and was taken before")
    out: list[Tensor | None] = [None] * 3
    gradients, operands = ctx.saved_tensors[:3], ctx.saved_tensors[3:]
    for i, gradient in enumerate(gradients):
        if ctx.needs_input_grad[i] and not ctx.have[i]:
            raise RuntimeError(f"linear_loss: expected needs[{i}] for an operand with gradient, got False")
        if ctx.needs_input_grad[i]:
            out[i] = _final(_scaled(gradient, grad.detach()), operands[i])
    ctx.taken = True
    return (*out, *[None] * 12)


def _register(name: str, kernel: Any, fake: Any, setup: Any, grad: Any) -> None:
    for key in ("CPU", "CUDA"):
        _LIBRARY.impl(name, _without_autocast(kernel), key)
    torch.library.register_fake(f"tenfold::{name}", fake, lib=_LIBRARY)
    torch.library.register_autograd(f"tenfold::{name}", grad, setup_context=setup, lib=_LIBRARY)


_register("linear_logprob_slopes", _linear_logprob_slopes, _slopes_fake, _slopes_setup, _slopes_grad)
_register("first_derivative", lambda g, _: g.clone(), lambda g, _: g.new_empty(g.shape), None, _only_once)
_register("linear_loss", _linear_loss, _loss_fake, _loss_setup, _loss_grad)


def wanted(*operands: Tensor | None) -> Sequence[bool]:
    """Which operands get a gradient if the loss is differentiated."""
    if not torch.is_grad_enabled():
        return [False] * len(operands)
    return [t is not None and t.requires_grad for t in operands]
