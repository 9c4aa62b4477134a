"""The inner steps of token attacks, on tensors alone: no model, no text.

Rows are independent: R = prompts x extra tokens, V = vocabulary, D = width of a word embedding. The kernels
are ops of `tenfold.ops`; here stands what only comparisons with published runs need.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from tenfold import _checks, ops
from tenfold.ops import eps_mse_rows, inverse_norms, nearest_token, sample_rows, simplex_project

__all__ = [
    "adam_",
    "bisection_project",
    "eps_mse_rows",
    "inverse_norms",
    "nearest_token",
    "sample_rows",
    "simplex_project",
    "ste_adam_simplex_",
]


def bisection_project(p: Tensor, radius: float = 1.0, xi: float = 1e-5) -> Tensor:
    """The projection as UnlearnDiffAtk's published code has it: a bisection that ends at intervals of `xi`.

    With rows of some 4e-5 that leaves sums of 0.96 to 0.97. Only to compare with published runs.
    """
    rows = []
    for row in p:
        kept = row.clamp(0, radius)
        low, high = float((row - radius).min()), float(row.max())
        if abs(float(kept.sum()) - radius) > xi:
            while abs(high - low) > xi:
                middle = (low + high) / 2
                above = float((row - middle).clamp(0, radius).sum()) - radius
                if above == 0:
                    break
                low, high = (middle, high) if above > 0 else (low, middle)
            kept = (row - middle).clamp(0, radius)
        rows.append(kept)
    return torch.stack(rows)


@torch.no_grad()
def ste_adam_simplex_(
    p: Tensor,
    m: Tensor,
    v: Tensor,
    grad_embeds: Tensor,
    table: Tensor,
    *,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    step: int,
    banned: Tensor | None = None,
    project: Callable[[Tensor], Tensor] = simplex_project,
) -> None:
    """`tenfold.ops.ste_adam_simplex_`; with another projection, the same out of single operations."""
    if project is simplex_project:
        ops.ste_adam_simplex_(
            p, m, v, grad_embeds, table, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, step=step,
            banned=banned,
        )  # fmt: skip
        return
    from tenfold.kernels.attack.attack_reference import times_transposed

    g = times_transposed(grad_embeds, table).clamp_(-1, 1)
    adam_(p, m, v, g, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, step=step)
    if banned is not None:
        p.masked_fill_(banned, -math.inf)
    p.copy_(project(p))


@torch.no_grad()
def adam_(
    x: Tensor,
    m: Tensor,
    v: Tensor,
    gradient: Tensor,
    *,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    step: int,
) -> None:
    """One step of Adam in place, `weight_decay` as part of the gradient; x, m, v, gradient of one shape."""
    step = _checks.integer("step", step, 1, 2**62)
    g = gradient.add(x, alpha=weight_decay)
    m.lerp_(g, 1 - betas[0])
    v.mul_(betas[1]).addcmul_(g, g, value=1 - betas[1])
    spread = v.sqrt().div_(math.sqrt(1 - betas[1] ** step)).add_(eps)
    x.addcdiv_(m, spread, value=-lr / (1 - betas[0] ** step))
