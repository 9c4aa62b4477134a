"""The inner steps of token attacks, on tensors alone: no model, no text.

Each function has the signature of one kernel, so that a native op can take its place. Rows are independent:
R = prompts x extra tokens, V = vocabulary, D = width of a word embedding.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tenfold import _checks
from tenfold.ops.power import project_simplex

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

_NEAR = 1e-6  # scores this close to the best are compared again in float64


def simplex_project(p: Tensor, radius: float = 1.0) -> Tensor:
    """Each row's Euclidean projection on the simplex {y >= 0, sum y = radius}, exact. -inf becomes 0.

    Args:
        p: float [R, V].

    Raises:
        ValueError: V = 0, radius <= 0, or (on the CPU, where looking costs no wait) NaN or +inf in a row.
    """
    _checks.real("radius", radius, positive=True)
    if p.ndim != 2 or not p.shape[1]:
        _checks.fail(ValueError, "p", "a matrix [R, V] with V > 0", list(p.shape))
    if p.device.type == "cpu":
        bad = ~(p < math.inf).all(1)
        if bool(bad.any()):
            row = int(bad.nonzero()[0])
            _checks.fail(ValueError, f"p[{row}]", "numbers below infinity", "NaN or infinity")
    return project_simplex(p, radius)


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
    """One step of Adam on rows of probabilities, from the gradient at the sampled embeddings; in place.

    g = clamp(grad_embeds table^T, -1, 1) + weight_decay p, the straight-through gradient of the one-hot rows;
    Adam (the decay is part of the gradient, not decoupled); projection on the simplex.

    Args:
        p, m, v: float32 [R, V], probabilities and Adam's two moments.
        grad_embeds: [R, D]. table: word embeddings [V, D], any float dtype.
        step: 1 for the first.
        banned: bool [V], tokens whose probability stays 0.
        project: what follows Adam.
    """
    g = _times_transposed(grad_embeds, table).clamp_(-1, 1)
    adam_(p, m, v, g, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, step=step)
    if banned is not None:
        p.masked_fill_(banned, -math.inf)
    p.copy_(project(p))


def _times_transposed(rows: Tensor, table: Tensor) -> Tensor:
    """rows table^T, float32 [R, V]; a table in half precision is read as it is, with rows scaled to fit."""
    if table.dtype in (torch.float32, torch.float64):
        return (rows.to(table.dtype) @ table.t()).float()
    rows = rows.float()
    size = rows.abs().amax(1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    return ((rows / size).to(table.dtype) @ table.t()).float().mul_(size)


def sample_rows(p: Tensor, u: Tensor) -> Tensor:
    """int64 [R]: in each row the smallest j whose running sum exceeds u times the row's sum (float64).

    Args:
        p: >= 0, float [R, V]. u: [R], in [0, 1).

    Raises:
        ValueError: on the CPU, a u outside [0, 1), or a row of zeros.
    """
    running = p.double().cumsum(1)
    total = running[:, -1:]
    if p.device.type == "cpu":
        if u.shape != p.shape[:1] or not bool(((u >= 0) & (u < 1)).all()):
            _checks.fail(ValueError, "u", f"{p.shape[0]} numbers in [0, 1)", u)
        if not bool((total > 0).all()):
            row = int((~(total > 0)).nonzero()[0, 0])
            _checks.fail(ValueError, f"p[{row}]", "a row with a positive sum", float(total[row]))
    found = torch.searchsorted(running, (u.double()[:, None] * total).contiguous(), right=True)
    last = torch.searchsorted(
        running, total.contiguous()
    )  # where the sum is reached: the last one with p > 0
    return torch.minimum(found, last)[:, 0]


def inverse_norms(table: Tensor) -> Tensor:
    """1 / |row| of word embeddings [V, D], float32 [V]; 0 for a row of zeros. The table never trains: keep
    it."""
    norms = torch.linalg.vector_norm(table.float(), dim=1)
    return torch.where(norms > 0, 1 / norms, torch.zeros_like(norms))


@torch.no_grad()
def nearest_token(
    q: Tensor,
    table: Tensor,
    inv_norm: Tensor | None = None,
    *,
    metric: str = "cos",
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The word embedding nearest to each query: (ids int64 [R], scores float32 [R]).

    The lowest id wins among equals; scores within 1e-6 of the best are compared again in float64, so that the
    answer does not depend on the order of a sum.

    Args:
        q: [R, D]. table: [V, D]. inv_norm: float32 [V], `inverse_norms(table)` if kept.
        metric: "cos", the cosine (0 where a norm is 0); "l2", minus half the squared distance.
        mask: bool [V], True where a token may be chosen.

    Raises:
        ValueError: NaN in a query (on the CPU), or no token may be chosen.
    """
    _checks.choice("metric", metric, ("cos", "l2"))
    if mask is not None and not bool(mask.any()):
        _checks.fail(ValueError, "mask", "at least one token that may be chosen", "none")
    if q.device.type == "cpu" and bool(q.isnan().any()):
        _checks.fail(ValueError, f"q[{int(q.isnan().any(1).nonzero()[0])}]", "numbers", "NaN")
    scores = _scores(q.float(), table.float(), inv_norm, metric)
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    best = scores.amax(1)
    slack = _NEAR * (1.0 if metric == "cos" else best.abs().clamp_min(1.0)[:, None])
    near = scores >= best[:, None] - slack
    ids = near.int().argmax(1)
    for row in (near.sum(1) > 1).nonzero()[:, 0].tolist():
        few = near[row].nonzero()[:, 0]
        exact = _scores(q[row : row + 1].double(), table[few].double(), None, metric)[0]
        ids[row] = few[int((exact == exact.max()).nonzero()[0])]
    return ids, scores.gather(1, ids[:, None])[:, 0]


def _scores(q: Tensor, table: Tensor, inv_norm: Tensor | None, metric: str) -> Tensor:
    products = q @ table.t()
    if metric == "l2":
        return products - 0.5 * table.square().sum(1) - 0.5 * q.square().sum(1, keepdim=True)
    if inv_norm is None:
        norms = torch.linalg.vector_norm(table, dim=1)
        inv_norm = torch.where(norms > 0, 1 / norms, torch.zeros_like(norms))
    sizes = torch.linalg.vector_norm(q, dim=1, keepdim=True)
    return products * inv_norm * torch.where(sizes > 0, 1 / sizes, torch.zeros_like(sizes))


def eps_mse_rows(pred: Tensor, target: Tensor, criterion: str = "l2") -> Tensor:
    """float32 [B]: each picture's mean squared ("l2") or absolute ("l1") error; differentiable in `pred`.

    Args:
        pred, target: [B, ...] of one shape.
    """
    _checks.choice("criterion", criterion, ("l1", "l2"))
    if pred.shape != target.shape:
        _checks.fail(ValueError, "target", f"shape {list(pred.shape)}", list(target.shape))
    apart: Any = (pred.float() - target.float()).flatten(1)
    return (apart.square() if criterion == "l2" else apart.abs()).mean(1)


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
