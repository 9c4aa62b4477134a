"""Transmit power allocation in plain PyTorch: the oracle, and the fallback where no native kernel is.

One row is one OFDM symbol: gains g [N, K] of N users on K subcarriers, wanted signal s [K], power budgets
P [N], noise power sigma2. With w = alpha u the joint problem is convex,

    min_w  sum_k |sum_n g_nk w_nk - s_k|^2 + sigma2 max_n |w_n|^2 / P_n,

and its dual over the simplex (mu >= 0, sum mu = 1) has one variable per user: with b_nk = P_n |g_nk|^2,
S_k = |s_k|^2 and den_k = sigma2 + sum_n b_nk / mu_n it is sum_k S_k sigma2 / den_k. Its optimum is where
A_n = sum_k S_k b_nk / (mu_n den_k)^2 is the same for every user with mu_n > 0 and not larger for the others.

Everything is solved in float64 and rounded to the inputs' type at the end.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

NEWTON = 12
"""Newton steps in log mu; rows with an optimum inside the simplex need 2 to 7."""
INTERIOR = (32, 0.1, 0.995)
"""Interior-point steps for the other rows: most of them, centring, share of the way to the boundary."""
CAREFUL = (64, 0.5, 0.7)
"""The same for the few rows that are still left."""


class Dual(NamedTuple):
    mu: Tensor
    """[R, N]"""
    spread: Tensor
    """[R]: (max A - sum mu A) / max A, zero at the optimum"""
    iterations: Tensor
    """[R] int32"""


class Sums(NamedTuple):
    inverse: Tensor
    """[R, K]: 1 / den, zero where den is"""
    weighted: Tensor
    """[R, N]: sum_k S_k b_nk / den_k^2"""
    needed: Tensor
    """[R, N]: A_n, zero for users without gain"""


def reciprocal(x: Tensor) -> Tensor:
    """1 / x, and 0 where x is 0."""
    zero = x == 0
    return torch.where(zero, 0.0, 1 / torch.where(zero, 1.0, x))


def sums(b: Tensor, power: Tensor, noise: Tensor, mu: Tensor) -> Sums:
    """b [R, N, K], power S [R, K], noise [R], mu [R, N]; users with mu = 0 take no part."""
    den = noise[:, None] + (b * reciprocal(mu)[..., None]).sum(1)
    inverse = reciprocal(den)
    weighted = (power[:, None] * b * inverse[:, None].square()).sum(-1)
    weighted = torch.where(mu > 0, weighted, 0.0)
    return Sums(inverse, weighted, weighted * reciprocal(mu).square())


def spread_of(mu: Tensor, needed: Tensor) -> Tensor:
    """How far from the optimum: zero when no user with mu > 0 needs less than the one who needs most."""
    top = needed.amax(-1)
    return (top - (mu * needed).sum(-1)) * reciprocal(top)


def _curvature(b: Tensor, power: Tensor, found: Sums) -> Tensor:
    return torch.einsum("rk,rnk,rjk->rnj", power * found.inverse**3, b, b)


def _start(b: Tensor, power: Tensor) -> Tensor:
    weight = (power[:, None] * b).sum(-1).sqrt()
    return weight * reciprocal(weight.sum(-1, keepdim=True))


def newton(b: Tensor, power: Tensor, noise: Tensor, tolerance: float, most: int) -> Dual:
    """Newton's method on log A_n = nu, sum mu = 1, in log mu; steps of at most 1."""
    rows, users, _ = b.shape
    mu = _start(b, power)
    live = mu > 0
    left = live.sum(-1) > 1
    iterations = torch.zeros(rows, dtype=torch.int32, device=b.device)
    spread = torch.zeros_like(noise)
    eye = torch.eye(users + 1, dtype=b.dtype, device=b.device)
    for step in range(most + 1):
        found = sums(b, power, noise, mu)
        spread = torch.where(left, spread_of(mu, found.needed), spread)
        left = left & ~(spread <= tolerance)
        if step == most or not bool(left.any()):
            break
        iterations += left.int()
        ratio = _curvature(b, power, found) * reciprocal(mu[:, None] * found.weighted[..., None])
        matrix = torch.zeros(rows, users + 1, users + 1, dtype=b.dtype, device=b.device)
        matrix[:, :users, :users] = 2 * ratio - 2 * eye[:users, :users]
        matrix[:, :users, users] = -live.to(b.dtype)
        matrix[:, users, :users] = mu
        right = torch.zeros(rows, users + 1, dtype=b.dtype, device=b.device)
        right[:, :users] = torch.where(live, -torch.where(live, found.needed, 1.0).log(), 0.0)
        change = _solve(matrix, right, left)[:, :users] * live
        change = change / change.abs().amax(-1, keepdim=True).clamp_min(1.0)
        moved = mu * change.exp()
        moved = moved * reciprocal(moved.sum(-1, keepdim=True))
        mu = torch.where((left & moved.isfinite().all(-1))[:, None], moved, mu)
    return Dual(mu, spread, iterations)


def _solve(matrix: Tensor, right: Tensor, left: Tensor) -> Tensor:
    """Solutions of the rows that are left; zeros for a singular matrix, which a later method then takes."""
    eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    matrix = torch.where(left[:, None, None], matrix, eye)
    found, _ = torch.linalg.solve_ex(matrix, right)
    return torch.where(left[:, None] & found.isfinite().all(-1, keepdim=True), found, 0.0)


def interior_point(
    b: Tensor, power: Tensor, noise: Tensor, tolerance: float, method: tuple[int, float, float]
) -> Dual:
    """Primal-dual interior-point method on the dual: optima on the simplex's boundary as well."""
    most, centring, reach = method
    rows, users, _ = b.shape
    start = _start(b, power)
    live = start > 0
    count = live.sum(-1).clamp_min(1).to(b.dtype)
    mu = torch.where(live, 0.9 * start + 0.1 / count[:, None], 0.0)
    found = sums(b, power, noise, mu)
    nu = 1.1 * (mu * found.needed).sum(-1)
    slack = torch.where(live, torch.maximum(nu[:, None] - found.needed, 0.1 * nu[:, None]), 0.0)
    best, spread = mu, spread_of(mu, found.needed)
    iterations = torch.zeros(rows, dtype=torch.int32, device=b.device)
    diagonal = torch.diag_embed
    for step in range(most + 1):
        now = spread_of(mu, found.needed)
        better = now < spread
        best = torch.where(better[:, None], mu, best)
        spread = torch.where(better, now, spread)
        left = (live.sum(-1) > 1) & ~(spread <= tolerance)
        if step == most or not bool(left.any()):
            break
        iterations += left.int()
        safe = torch.where(live, mu, 1.0)
        outer = safe[:, :, None] * safe[:, None, :]
        both = (live[:, :, None] & live[:, None, :]).to(b.dtype)
        hessian = 2 * _curvature(b, power, found) / outer - diagonal(2 * found.weighted / safe + slack * safe)
        matrix = torch.zeros(rows, users + 1, users + 1, dtype=b.dtype, device=b.device)
        matrix[:, :users, :users] = hessian * both + diagonal((~live).to(b.dtype))
        matrix[:, :users, users] = -safe * live
        matrix[:, users, :users] = safe * live
        goal = centring * (mu * slack).sum(-1) / count
        right = torch.zeros(rows, users + 1, dtype=b.dtype, device=b.device)
        right[:, :users] = ((nu[:, None] - found.needed) * safe - goal[:, None]) * live
        right[:, users] = 1 - mu.sum(-1)
        solved = _solve(matrix, right, left)
        d_mu = solved[:, :users] * safe * live
        d_slack = ((goal[:, None] - slack * d_mu) / safe - slack) * live
        go = torch.minimum(_room(mu, d_mu), _room(slack, d_slack))
        go = torch.where(left, (reach * go).clamp_max(1.0), 0.0)[:, None]
        mu, slack, nu = mu + go * d_mu, slack + go * d_slack, nu + go[:, 0] * solved[:, users]
        found = sums(b, power, noise, mu)
    return Dual(best, spread, iterations)


def _room(value: Tensor, change: Tensor) -> Tensor:
    """The largest step that keeps `value` >= 0."""
    falling = change < 0
    return torch.where(falling, -value / torch.where(falling, change, 1.0), torch.inf).amin(-1)


def dual(b: Tensor, power: Tensor, noise: Tensor, tolerance: float, most: int) -> Dual:
    """The optimum over the simplex, by Newton's method and, for rows where that fails, interior points."""
    found = newton(b, power, noise, tolerance, min(NEWTON, most))
    for method in (INTERIOR, CAREFUL):
        rows = (~(found.spread <= tolerance)).nonzero()[:, 0]
        room = most - NEWTON
        if not rows.numel() or room <= 0:
            break
        method = (min(method[0], room), *method[1:])
        again = interior_point(b[rows], power[rows], noise[rows], tolerance, method)
        better = again.spread < found.spread[rows]
        mu, spread, iterations = (t.clone() for t in found)
        mu[rows] = torch.where(better[:, None], again.mu, mu[rows])
        spread[rows] = torch.where(better, again.spread, spread[rows])
        iterations[rows] += again.iterations
        found = Dual(mu, spread, iterations)
    return found
