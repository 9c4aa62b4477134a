"""The token steps of attacks on diffusion models in plain PyTorch: the oracle and the fallback.

Rows are independent. R = prompts x extra tokens, V = vocabulary, D = width of a word embedding.
"""

from __future__ import annotations

import math

import torch
from tenfold.kernels.power import power_reference
from torch import Tensor

NEAR = 1e-6
"""Scores this close to the best are compared again in float64; see `near_bound`."""


def simplex_project(p: Tensor, radius: float) -> Tensor:
    """[R, V], the projection of each row on {y >= 0, sum y = radius}; NaN where a row has no answer."""
    wide = p.double()
    good = (wide < math.inf).all(1, keepdim=True) & (wide > -math.inf).any(1, keepdim=True)
    mass = torch.full((p.shape[0],), radius, dtype=torch.float64, device=p.device)
    found, _ = power_reference.project_simplex(torch.where(good, wide, torch.zeros_like(wide)), mass)
    return torch.where(good, found, math.nan).to(p.dtype)


def ste_adam_simplex_(
    p: Tensor,
    m: Tensor,
    v: Tensor,
    grad_embeds: Tensor,
    table: Tensor,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    step: int,
    banned: Tensor | None,
) -> None:
    """g = clamp(grad_embeds table^T, -1, 1) + weight_decay p, Adam, projection, in place."""
    gradient = times_transposed(grad_embeds, table).clamp_(-1, 1)
    adam_(p, m, v, gradient, lr, beta1, beta2, eps, weight_decay, step)
    if banned is not None:
        p.masked_fill_(banned, -math.inf)
    p.copy_(simplex_project(p, 1.0))


def times_transposed(rows: Tensor, table: Tensor) -> Tensor:
    """rows table^T, float32 [R, V]; a table in half precision is read as it is, with rows scaled to fit."""
    with torch.autocast(rows.device.type, enabled=False):
        if table.dtype in (torch.float32, torch.float64):
            return (rows.to(table.dtype) @ table.t()).float()
        rows = rows.float()
        size = rows.abs().amax(1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        return ((rows / size).to(table.dtype) @ table.t()).float().mul_(size)


def adam_(
    p: Tensor,
    m: Tensor,
    v: Tensor,
    gradient: Tensor,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    step: int,
) -> None:
    """Adam in place; the decay is part of the gradient."""
    g = gradient.add(p, alpha=weight_decay)
    m.lerp_(g, 1 - beta1)
    v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
    spread = v.sqrt().div_(math.sqrt(1 - beta2**step)).add_(eps)
    p.addcdiv_(m, spread, value=-lr / (1 - beta1**step))


def sample_rows(p: Tensor, u: Tensor) -> Tensor:
    """int64 [R]: the smallest j whose running sum exceeds u times the row's sum, in float64; -1 if that is
    not > 0 and finite."""
    running = p.double().cumsum(1)
    total = running[:, -1:].contiguous()
    found = torch.searchsorted(running, u.double()[:, None] * total, right=True)
    last = torch.searchsorted(running, total)  # where the sum is reached: the last one with p > 0
    return torch.where((total > 0) & total.isfinite(), torch.minimum(found, last), -1)[:, 0]


def nearest_token(
    q: Tensor, table: Tensor, inv_norm: Tensor | None, metric: str, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """(int64 [R], float32 [R]): the best score's lowest id, close ones decided in float64; NaN q: (-1, NaN).

    Nothing waits for the device: where rows must be decided again is not asked, all are.
    """
    ids, scores = [], []
    with torch.autocast(q.device.type, enabled=False):
        for rows in q.float().split(64):
            found = _scores(rows, table.float(), inv_norm, metric)
            exact = _scores(rows.double(), table.double(), None, metric)
            out = found.isnan() if mask is None else found.isnan() | ~mask
            found = found.masked_fill(out, -math.inf)
            bound = near_bound(found.amax(1), rows, metric)
            exact = exact.masked_fill(out | (found < bound[:, None]), -math.inf)
            top = exact.amax(1, keepdim=True)
            bad = ~rows.isfinite().all(1) | (top[:, 0] == -math.inf)
            ids.append(torch.where(bad, -1, (exact == top).int().argmax(1)))
            scores.append(torch.where(bad, math.nan, top[:, 0]).float())
    if not ids:
        return q.new_empty(0, dtype=torch.int64), q.new_empty(0, dtype=torch.float32)
    return torch.cat(ids), torch.cat(scores)


def near_bound(best: Tensor, q: Tensor, metric: str) -> Tensor:
    """The lowest float32 score that may be the best in exact arithmetic, [R]: as in attack.hpp."""
    share = NEAR * (1 + q.shape[1] / 1024)
    if metric == "cos":
        return best - share
    wide = best.double()
    return (wide - share * (1 + q.double().square().sum(1) + 2 * wide.abs())).float()


def inverse_norms(table: Tensor) -> Tensor:
    """1 / |row|, float32 [V] (float64 for a float64 table); 0 for a row of zeros."""
    wide = table if table.dtype == torch.float64 else table.float()
    norms = torch.linalg.vector_norm(wide, dim=1)
    return torch.where(norms > 0, 1 / norms, torch.zeros_like(norms))


def _scores(q: Tensor, table: Tensor, inv_norm: Tensor | None, metric: str) -> Tensor:
    products = q @ table.t()
    if metric == "l2":
        return products - 0.5 * table.square().sum(1) - 0.5 * q.square().sum(1, keepdim=True)
    return products * (inverse_norms(table) if inv_norm is None else inv_norm) * inverse_norms(q)[:, None]


def sign_step_(
    delta: Tensor, grad: Tensor, lr: float, eps: float | None, norm: str, origin: Tensor | None
) -> None:
    """delta -= lr sign(grad), then back into the ball of radius eps about origin, in place."""
    wide = torch.promote_types(delta.dtype, torch.float32)
    moved = delta.to(wide) - lr * grad.to(wide).sign()
    if eps is not None:
        centre = torch.zeros_like(moved) if origin is None else origin.to(wide)
        apart = moved - centre
        if norm == "linf":
            apart = apart.clamp(-eps, eps)
        else:
            size = torch.linalg.vector_norm(apart[:, None].flatten(1).double(), dim=1)
            factor = torch.where(size > eps, eps / size, torch.ones_like(size)).to(wide)
            apart = apart * factor.view(-1, *[1] * (apart.ndim - 1))
        moved = centre + apart
    delta.copy_(moved)
