"""Gradients of the power allocations by implicit differentiation, on any backend, in double precision.

The solution is a root F(mu; theta) = 0, so d mu = -(dF/dmu)^-1 dF/dtheta: one transposed solve per row with
the matrix of the last Newton step, and no graph of the iterations. Rows are taken in pieces, so that memory
does not grow with their number. Complex gradients follow PyTorch: dL/dRe + i dL/dIm.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .power_reference import Sums, needed_power, reciprocal, sums

ROWS = 4096
"""Rows at a time."""
ACTIVE = 1e-7
"""A user below this share of the dual variable does not limit the others, and its share does not move."""

Gradients = tuple[Tensor, ...]


def in_pieces(
    function: Callable[..., Gradients],
    upstream: Sequence[Tensor | None],
    inputs: Sequence[Tensor | None],
    solution: Tensor,
) -> Gradients:
    """`function(upstream, inputs, solution)` of rows at a time; gradients in the inputs' types, or empty."""
    kept: list[list[Tensor]] = [[] for _ in inputs]
    for first in range(0, len(solution), ROWS):
        rows = slice(first, first + ROWS)
        given = [[None if t is None else _double(t[rows]) for t in group] for group in (upstream, inputs)]
        for place, found in zip(kept, function(*given, solution[rows].double()), strict=True):
            place.append(found)
    made = []
    for given_input, place in zip(inputs, kept, strict=True):
        if given_input is None:
            made.append(solution.new_empty(0))
        elif place:
            made.append(torch.cat(place).to(given_input.dtype))
        else:
            made.append(torch.zeros_like(given_input, memory_format=torch.contiguous_format))
    return tuple(made)


def _double(value: Tensor) -> Tensor:
    return value.to(torch.complex128 if value.is_complex() else torch.float64)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Re(conj(a) b)."""
    return a.real * b.real + a.imag * b.imag


def joint_gradient(
    upstream: Sequence[Tensor | None], inputs: Sequence[Tensor | None], mu: Tensor
) -> Gradients:
    """By gains [R, N, K], symbols [R, K], power [R, N], noise [R] and, where given, statistics [R, K].

    `upstream` are the gradients by u, alpha, mu and the dual objective. With b = P |g|^2, r = 1 / den:
    w = (P / mu) conj(g) s r, alpha^2 = sum_n mu_n A_n / K, u = w / alpha.
    """
    d_u, d_alpha, d_mu_given, d_objective = upstream
    g, s, power, noise, statistics = inputs
    assert g is not None
    assert s is not None
    assert power is not None
    assert noise is not None
    carriers = g.shape[2]
    wanted = (s.abs().square() if statistics is None else statistics)[:, None]
    strength = g.abs().square()
    b = power[..., None] * strength
    found = sums(b, wanted[:, 0], noise, mu)
    r, inverse = found.inverse[:, None], reciprocal(mu)[..., None]
    factor = power[..., None] * r * inverse
    alpha = ((mu * found.needed).sum(-1) / carriers).sqrt()
    over = reciprocal(alpha)[:, None, None]
    zero = torch.zeros_like(alpha)

    d_g, d_s = torch.zeros_like(g), torch.zeros_like(s)
    d_power, d_mu = torch.zeros_like(power), torch.zeros_like(mu)
    d_b, d_r = torch.zeros_like(b), torch.zeros_like(wanted)
    if d_mu_given is not None:
        d_mu = d_mu + d_mu_given
    by_alpha = zero if d_alpha is None else d_alpha
    if d_u is not None:
        turned = g.conj_physical() * s[:, None]
        u = factor * turned * over
        by_alpha = by_alpha - (_dot(d_u, u) * over).sum((-1, -2))
        d_w = d_u * over
        d_factor = _dot(d_w, turned)
        d_s = d_s + (factor * g * d_w).sum(1)
        d_g = d_g + factor * s[:, None] * d_w.conj_physical()
        d_power = d_power + (d_factor * r * inverse).sum(-1)
        d_r = d_r + (d_factor * power[..., None] * inverse).sum(1, keepdim=True)
        d_mu = d_mu - (d_factor * factor * inverse).sum(-1)
    t = (by_alpha * 0.5 * reciprocal(alpha) / carriers)[:, None, None]
    load = (b * inverse).sum(1, keepdim=True)
    d_wanted = t * load * r.square()
    d_b = d_b + t * wanted * r.square() * inverse
    d_r = d_r + t * 2 * wanted * r * load
    d_mu = d_mu - t[..., 0] * found.needed
    d_den = -r.square() * d_r
    d_mu = d_mu - (d_den * b * inverse.square()).sum(-1)

    # the implicit part: -lambda . d log A, with lambda from the transposed Newton matrix
    scaled = _adjoint(b, wanted[:, 0], found, mu, d_mu * mu)[..., None] * inverse.square()
    d_wanted = d_wanted - (scaled * b * r.square()).sum(1, keepdim=True)
    d_b = d_b - scaled * wanted * r.square()
    d_den = d_den + r.square() * (scaled * 2 * wanted * b * r).sum(1, keepdim=True)
    d_noise = d_den.sum((-1, -2))
    d_b = d_b + d_den * inverse
    if d_objective is not None:  # the envelope theorem: mu does not move it
        by = (d_objective * noise)[:, None, None]
        d_wanted = d_wanted + by * r + d_objective[:, None, None] * (r == 0)
        d_b = d_b - by * wanted * r.square() * inverse
        d_noise = d_noise + d_objective * carriers * alpha.square()
    d_power = d_power + (d_b * strength).sum(-1)
    d_g = d_g + 2 * power[..., None] * d_b * g
    if statistics is None:
        return d_g, d_s + 2 * d_wanted[:, 0] * s, d_power, d_noise, alpha.new_empty(0)
    return d_g, d_s, d_power, d_noise, d_wanted[:, 0]


def _adjoint(b: Tensor, wanted: Tensor, found: Sums, mu: Tensor, right: Tensor) -> Tensor:
    """lambda_n / A_n for users whose budget binds, 0 for the others; right is dL/d log mu."""
    users = mu.shape[1]
    active = mu > ACTIVE
    inverse, weighted, needed = found
    curvature = torch.einsum("rk,rnk,rjk->rnj", wanted * inverse**3, b, b)
    ratio = curvature * reciprocal(mu[:, None] * weighted[..., None])
    both = (active[:, :, None] & active[:, None, :]).to(mu.dtype)
    eye = torch.eye(users + 1, dtype=mu.dtype, device=mu.device)
    matrix = mu.new_zeros(len(mu), users + 1, users + 1)
    matrix[:, :users, :users] = (2 * ratio - 2 * eye[:users, :users]) * both
    matrix[:, :users, :users] += torch.diag_embed((~active).to(mu.dtype))
    matrix[:, :users, users] = -active.to(mu.dtype)
    matrix[:, users, :users] = mu * active
    matrix = torch.where(active.any(-1)[:, None, None], matrix, eye)
    target = torch.cat([torch.where(active, right, 0.0), torch.zeros_like(right[:, :1])], 1)
    solved, _ = torch.linalg.solve_ex(matrix.mT, target)
    return torch.where(active, solved[:, :users] * reciprocal(needed), 0.0)


def separable_gradient(
    upstream: Sequence[Tensor | None], inputs: Sequence[Tensor | None], tau: Tensor
) -> Gradients:
    """By gains [R, N, K], power [R, N], noise [R], wanted c [R, N] and, where given, weights [R, N, K].

    `upstream` are the gradients by v, alpha, tau and the objective. With d = 1 / (|g|^2 + tau):
    w = c conj(g) d, v = w / alpha, and alpha^2 = M_n(tau_n) of every user with tau_n > 0.
    """
    d_v, d_alpha, d_tau_given, d_objective = upstream
    g, power, noise, c, weights = inputs
    assert g is not None
    assert power is not None
    assert noise is not None
    assert c is not None
    carriers = g.shape[2]
    a = g.abs().square()
    share = torch.ones_like(a) if weights is None else weights / power[..., None]
    energy = power[..., None].expand_as(a) if weights is None else weights
    need, slope = needed_power(a, c, share, tau)
    active = tau > 0
    some = active.any(-1)
    level = torch.where(active, need, 0.0).sum(-1) / active.sum(-1).clamp_min(1)
    level = torch.where(some, level, need.amax(-1))
    alpha = level.sqrt()
    over = reciprocal(alpha)[:, None, None]
    d = reciprocal(a + tau[..., None]) * (a > 0)
    wide_c, wide_tau = c[..., None], tau[..., None]

    d_g, d_power = torch.zeros_like(g), torch.zeros_like(power)
    d_c, d_tau = torch.zeros_like(c), torch.zeros_like(tau)
    d_a, d_share, d_energy = torch.zeros_like(a), torch.zeros_like(a), torch.zeros_like(a)
    d_noise = torch.zeros_like(noise)
    if d_tau_given is not None:
        d_tau = d_tau + torch.where(active, d_tau_given, 0.0)
    by_alpha = torch.zeros_like(alpha) if d_alpha is None else d_alpha
    if d_v is not None:
        factor = wide_c * d
        by_alpha = by_alpha - (_dot(d_v, factor * g.conj_physical() * over) * over).sum((-1, -2))
        d_w = d_v * over
        d_factor = _dot(d_w, g.conj_physical())
        d_g = d_g + factor * d_w.conj_physical()
        d_c = d_c + (d_factor * d).sum(-1)
        d_sum = -d.square() * d_factor * wide_c
        d_a = d_a + d_sum
        d_tau = d_tau + torch.where(active, d_sum.sum(-1), 0.0)
    by_level = by_alpha * 0.5 * reciprocal(alpha)

    step = torch.where(active, reciprocal(slope), 0.0)
    kappa = (by_level + (d_tau * step).sum(-1)) * reciprocal((power * step).sum(-1))
    d_noise = d_noise + torch.where(some, kappa, 0.0)
    d_power = d_power - kappa[:, None] * tau
    top = (need == level[:, None]) & (need > 0)
    first = top & (top.cumsum(-1) == 1)
    d_need = torch.where(
        some[:, None], (kappa[:, None] * power - d_tau) * step, torch.where(first, by_level[:, None], 0.0)
    )
    d_c = d_c + 2 * d_need * need * reciprocal(c)
    scale = (d_need * c.square())[..., None] / carriers
    d_share = d_share + scale * a * d.square()
    d_a = d_a + scale * share * (d.square() - 2 * a * d**3)
    if d_objective is not None:  # the envelope theorem
        by = d_objective[:, None, None]
        regular = reciprocal(a + wide_tau)  # tau d is 1 where there is no gain
        lost = torch.where(a > 0, wide_tau * regular, 1.0)
        d_energy = d_energy + by * (wide_c * lost).square()
        d_a = d_a - by * energy * wide_c.square() * lost * d
        d_c = d_c + (2 * by * energy * wide_c * lost).sum(-1)
        d_share = d_share + by * power[..., None] * wide_tau * wide_c.square() * a * d.square()
        d_noise = d_noise + d_objective * carriers * level
    d_g = d_g + 2 * d_a * g
    if weights is None:
        return d_g, d_power + d_energy.sum(-1), d_noise, d_c, alpha.new_empty(0)
    d_power = d_power - (d_share * share).sum(-1) / power
    return d_g, d_power, d_noise, d_c, d_energy + d_share / power[..., None]


def downlink_gradient(
    upstream: Sequence[Tensor | None], inputs: Sequence[Tensor | None], p: Tensor
) -> Gradients:
    """By gains a [R, N, K], weights S [R, K] and power [R]: h_k(p_k) = level where p > 0, sum p = P."""
    (v,) = upstream
    a, weights, power = inputs
    assert v is not None
    assert a is not None
    assert weights is not None
    assert power is not None
    inside = p > 0
    x = a * p[:, None]
    d = 1 / (1 + x)
    slope = -2 * (weights[:, None] * a.square() * d**3).sum(1)
    step = torch.where(inside, 1 / torch.where(inside & (slope < 0), slope, -1.0), 0.0)
    v = torch.where(inside, v, 0.0)
    kappa = (v * step).sum(-1) * reciprocal(step.sum(-1))
    d_value = ((kappa[:, None] - v) * step)[:, None]
    d_a = d_value * weights[:, None] * d.square() * (1 - 2 * x * d)
    return d_a, (d_value * a * d.square()).sum(1), kappa
