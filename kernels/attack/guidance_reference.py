"""What erasers and attacks do around a call of the UNet, in plain PyTorch: the oracle and the fallback.

Tensors are [B, ...] of one shape and dtype; arithmetic is float32, float64 for float64 tensors. What stands
once per picture (guidance, levels) is float64 [B] or [1].
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

PREDICTIONS = ("epsilon", "v_prediction", "sample")


def wide(x: Tensor) -> Tensor:
    """In the dtype of the arithmetic."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def each(value: Tensor, like: Tensor) -> Tensor:
    """[B] or [1] so that it multiplies `like` [B, ...], in its dtype."""
    return value.to(like.dtype).view(-1, *[1] * (like.ndim - 1))


def apart(pred: Tensor, target: Tensor, other: Tensor | None, eta: float) -> Tensor:
    """pred - target, or pred - (target - eta (other - target)); flat rows."""
    goal = wide(target)
    if other is not None and eta != 0:  # what is not weighed may be anything
        goal = goal - eta * (wide(other) - goal)
    return (wide(pred) - goal).flatten(1)


def mse_rows(pred: Tensor, target: Tensor, other: Tensor | None, eta: float, criterion: str) -> Tensor:
    """float64 [B]: means of squares ("l2") or sizes ("l1")."""
    far = apart(pred, target, other, eta).double()
    return (far.square() if criterion == "l2" else far.abs()).mean(1)


def mse_rows_backward(
    grad: Tensor, pred: Tensor, target: Tensor, other: Tensor | None, eta: float, criterion: str
) -> Tensor:
    """The gradient at pred, of its dtype; grad float64 [B]."""
    far = apart(pred, target, other, eta)
    slope = 2 * far if criterion == "l2" else far.sign()
    return (slope * (grad / far.shape[1]).to(far.dtype)[:, None]).view(pred.shape).to(pred.dtype)


def add_noise_rows(x0: Tensor, eps: Tensor, t: Tensor, abar: Tensor) -> Tensor:
    """sqrt(abar_t) x0 + sqrt(1 - abar_t) eps; NaN where t is out of range."""
    inside = (t >= 0) & (t < abar.numel())
    level = torch.where(inside, abar.double()[t.clamp(0, abar.numel() - 1)], math.nan)
    a = wide(x0)
    return (each(level.sqrt(), a) * a + each((1 - level).sqrt(), a) * wide(eps)).to(x0.dtype)


def step_weights(a: Tensor, b: Tensor, prediction: str) -> tuple[Tensor, Tensor]:
    """(of x, of the model's output) in the step from level abar = a to b, float64: DDIM with eta 0.

    x0 = (x - s e) / r and x' = sqrt(b) x0 + sqrt(1 - b) e for r = sqrt(a), s = sqrt(1 - a); with v, x0 =
    r x - s v and e = r v + s x; with the sample itself, e = (x - r x0) / s.
    """
    r, s, rb, sb = a.sqrt(), (1 - a).sqrt(), b.sqrt(), (1 - b).sqrt()
    if prediction == "epsilon":
        return rb / r, sb - rb * s / r
    if prediction == "v_prediction":
        return rb * r + sb * s, sb * r - rb * s
    ratio = torch.where(s > 0, sb / s, torch.zeros_like(s))
    return ratio, rb - ratio * r


def cfg_ddim_step(
    x: Tensor,
    eu: Tensor | None,
    ec: Tensor,
    guidance: Tensor,
    a: Tensor,
    b: Tensor,
    prediction: str,
    doubled: bool,
) -> Tensor:
    """x at level b; [x; x] if doubled."""
    z, out = wide(x), wide(ec)
    if eu is not None:
        base = wide(eu)
        out = base + each(guidance, z) * (out - base)
    of_x, of_out = step_weights(a, b, prediction)
    stepped = (each(of_x, z) * z + each(of_out, z) * out).to(x.dtype)
    return torch.cat([stepped, stepped]) if doubled else stepped


def sld_guidance(
    eu: Tensor,
    ec: Tensor,
    es: Tensor,
    momentum: Tensor,
    guidance: Tensor,
    scale: float,
    threshold: float,
    momentum_scale: float,
    momentum_beta: float,
    warm: bool,
) -> tuple[Tensor, Tensor]:
    """(prediction, next momentum)."""
    u, c, s, v = (wide(x) for x in (eu, ec, es, momentum))
    far = c - s
    mu = torch.where(far >= threshold, torch.zeros_like(far), (far.abs() * scale).clamp(max=1.0))
    away = mu * (s - u) + momentum_scale * v
    after = momentum_beta * v + (1 - momentum_beta) * away
    out = u + each(guidance, u) * ((c - u) - (away if warm else 0.0))
    return out.to(eu.dtype), after.to(momentum.dtype)


def splice_embed(embeds: Tensor, adv: Tensor, index: Tensor) -> Tensor:
    """Rows [B, L, D] of [embeds; adv] [B, L + k, D] by index int64 [B, L]; NaN where that is out of range."""
    both, inside = torch.cat([embeds, adv], 1), _inside(index, embeds.shape[1] + adv.shape[1])
    if not both.shape[1]:
        return torch.full_like(embeds, math.nan)
    at = torch.where(inside, index, 0)[:, :, None].expand(-1, -1, embeds.shape[2])
    return torch.where(inside[:, :, None], both.gather(1, at), math.nan)


def _inside(index: Tensor, size: int) -> Tensor:
    return (index >= 0) & (index < size)


def splice_embed_backward(grad: Tensor, index: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Gradients at embeds [B, L, D] and adv [B, k, D]: rows of grad added where they came from."""
    batch, columns, width = grad.shape
    out = wide(grad).new_zeros(batch, columns + k + 1, width)  # the last takes what came from nowhere
    at = torch.where(_inside(index, columns + k), index, columns + k)
    out.scatter_add_(1, at[:, :, None].expand(-1, -1, width), wide(grad))
    of_embeds, of_adv = out[:, :columns].to(grad.dtype), out[:, columns : columns + k].to(grad.dtype)
    return of_embeds.clone(memory_format=torch.contiguous_format), of_adv.clone(
        memory_format=torch.contiguous_format
    )
