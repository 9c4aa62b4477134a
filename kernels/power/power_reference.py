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
    """[R]: how far from the optimum: (max A - sum mu A) / max A; of `newton` (max A - min A) / max A"""
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
        top = found.needed.amax(-1)
        least = torch.where(live, found.needed, torch.inf).amin(-1)
        spread = torch.where(left, (top - least) * reciprocal(top), spread)
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


# ---- joint -----------------------------------------------------------------------------------------------


class Joint(NamedTuple):
    transmit: Tensor
    """[R, N, K] complex: u"""
    alpha: Tensor
    """[R]"""
    mu: Tensor
    """[R, N]"""
    objective: Tensor
    """[R]"""
    iterations: Tensor
    """[R] int32"""


MOST = 128


def _scaled(values: Tensor) -> tuple[Tensor, Tensor]:
    """`values` with each row's largest magnitude brought to 1, and that magnitude (1 for a row of zeros)."""
    size = values.abs().flatten(1).amax(-1) if values[0].numel() else values.new_zeros(len(values)).real
    size = torch.where(size > 0, size, 1.0)
    return values / size.reshape(-1, *[1] * (values.ndim - 1)), size


def joint(
    gains: Tensor,
    symbols: Tensor,
    power: Tensor,
    noise: Tensor,
    tolerance: float = 1e-10,
    most: int = MOST,
    statistics: Tensor | None = None,
) -> Joint:
    """gains [R, N, K] and symbols [R, K] complex, power [R, N] and noise [R] real, all double precision.

    `statistics` [R, K], where given, stands for |s|^2 in the search; a user may then exceed its power, and
    the objective is meaningless: both are for the caller to mend.
    """
    if not gains.numel():
        return _nothing(gains, symbols)
    g, g_size = _scaled(gains)
    s, s_size = _scaled(symbols)
    noise = noise / g_size.square()
    wanted = s.abs().square()
    searched = wanted if statistics is None else statistics / s_size.square()[:, None]
    b = power[..., None] * g.abs().square()
    found = dual(b, searched, noise, tolerance, most)
    w, alpha = _precoder(g, s, b, power, searched, noise, found.mu)
    u = w * reciprocal(alpha)[:, None, None]
    objective = _objective(g, s, u, alpha, noise) * s_size.square()
    return Joint(u, alpha * s_size / g_size, found.mu, objective, found.iterations)


def _nothing(gains: Tensor, symbols: Tensor) -> Joint:
    zeros = symbols.abs().sum(-1) * 0.0
    left_over = symbols.abs().square().sum(-1)
    mu = zeros[:, None].expand(*gains.shape[:2])
    return Joint(gains.clone(), zeros, mu.clone(), left_over, zeros.to(torch.int32))


def _precoder(
    g: Tensor, s: Tensor, b: Tensor, power: Tensor, searched: Tensor, noise: Tensor, mu: Tensor
) -> tuple[Tensor, Tensor]:
    """w = alpha u, and alpha: from the user that needs most, so that no user exceeds its power."""
    found = sums(b, searched, noise, mu)
    share = power * reciprocal(mu)
    w = share[..., None] * g.conj_physical() * (s * found.inverse)[:, None]
    return w, (found.needed.amax(-1) / g.shape[2]).sqrt()


def _objective(g: Tensor, s: Tensor, u: Tensor, alpha: Tensor, noise: Tensor) -> Tensor:
    received = alpha[:, None] * (g * u).sum(1)
    return (received - s).abs().square().sum(-1) + s.shape[1] * noise * alpha.square()


# ---- separable -------------------------------------------------------------------------------------------


class Separable(NamedTuple):
    precoder: Tensor
    """[R, N, K] complex: v"""
    alpha: Tensor
    """[R]"""
    tau: Tensor
    """[R, N]"""
    objective: Tensor
    """[R]"""
    iterations: Tensor
    """[R] int32"""


def needed_power(strength: Tensor, wanted: Tensor, share: Tensor, tau: Tensor) -> tuple[Tensor, Tensor]:
    """M_n(tau) = c_n^2 mean_k q |g|^2 / (|g|^2 + tau)^2, and its derivative.

    strength is |g|^2, share q [R, N, K].
    """
    inverse = reciprocal(strength + tau[..., None]) * (strength > 0)
    term = share * strength * inverse.square()
    scale = wanted.square()
    return scale * term.mean(-1), -2 * scale * (term * inverse).mean(-1)


def shares_of_noise(
    strength: Tensor, wanted: Tensor, share: Tensor, power: Tensor, noise: Tensor, tolerance: float, most: int
) -> tuple[Tensor, Tensor, Tensor]:
    """tau [R, N] >= 0 with sum_n P_n tau_n = noise, all M_n(tau_n) equal where tau_n > 0 and not larger
    where it is 0; alpha [R]; iterations.

    Newton's method on M_n^(-1/2), which is nearly linear in tau, with an active set.
    """
    at_zero, _ = needed_power(strength, wanted, share, torch.zeros_like(power))
    alive = at_zero > 0
    bound = torch.where(alive, reciprocal(at_zero.sqrt()), torch.inf)  # phi_n(0)
    active = alive & (noise[:, None] > 0)
    count = active.sum(-1, keepdim=True).clamp_min(1)
    tau = torch.where(active, noise[:, None] / (count * power), 0.0)
    left = active.any(-1)
    psi = torch.where(left, 0.0, bound.amin(-1))
    iterations = torch.zeros_like(noise, dtype=torch.int32)
    for _ in range(most):
        if not bool(left.any()):
            break
        iterations += left.int()
        need, slope = needed_power(strength, wanted, share, tau)
        root = need.sqrt()
        phi = torch.where(active, reciprocal(root), 0.0)
        rise = torch.where(active, -0.5 * slope * reciprocal(root * need), 1.0)
        weight = torch.where(active, power / rise, 0.0)
        now = (noise + (weight * phi).sum(-1) - (power * tau * active).sum(-1)) * reciprocal(weight.sum(-1))
        now = torch.where(now > 0, now, torch.where(active, phi, torch.inf).amin(-1))
        moved = tau + (now[:, None] - phi) / rise
        drop = active & (moved <= 0) & (bound >= now[:, None])
        shrunk = active & (moved <= 0) & ~drop
        back = alive & ~active & (bound < now[:, None])
        fresh = torch.where(active & ~drop & ~shrunk, moved, torch.where(shrunk, 0.1 * tau, 0.0))
        fresh = torch.where(back, 1e-3 * noise[:, None] / power, fresh)
        error = torch.where(active, (phi - now[:, None]).abs(), 0.0).amax(-1)
        settled = (error <= tolerance * now) & ~(drop | shrunk | back).any(-1)
        tau = torch.where(left[:, None], fresh, tau)
        active = torch.where(left[:, None], (active & ~drop) | back, active)
        psi = torch.where(left, now, psi)
        left = left & ~settled
    total = (power * tau).sum(-1)
    tau = tau * torch.where(total > 0, noise * reciprocal(total), 1.0)[:, None]  # meets sum P tau = noise
    need, _ = needed_power(strength, wanted, share, tau)
    return tau, need.amax(-1).sqrt(), iterations


def separable(
    gains: Tensor,
    power: Tensor,
    noise: Tensor,
    wanted: Tensor,
    weights: Tensor | None,
    tolerance: float = 1e-12,
    most: int = MOST,
) -> Separable:
    """gains [R, N, K] complex, power and wanted c [R, N], noise [R] real; weights |t|^2 [R, N, K] or None."""
    carriers = gains.shape[2]
    if not gains.numel():
        zeros = noise * 0.0
        residual = (power * wanted.square()).sum(-1) * carriers
        return Separable(gains.clone(), zeros, torch.zeros_like(power), residual, zeros.to(torch.int32))
    g, size = _scaled(gains)
    noise_scaled = noise / size.square()
    strength = g.abs().square()
    share = torch.ones_like(strength) if weights is None else weights / power[..., None]
    tau, alpha, iterations = shares_of_noise(strength, wanted, share, power, noise_scaled, tolerance, most)
    w = wanted[..., None] * g.conj_physical() * reciprocal(strength + tau[..., None])
    v = w * reciprocal(alpha)[:, None, None]
    energy = power[..., None].expand_as(strength) if weights is None else weights
    off = (g * w - wanted[..., None]).abs().square()
    objective = (energy * off).sum((-1, -2)) + noise_scaled * carriers * alpha.square()
    return Separable(v, alpha / size, tau * size.square()[:, None], objective, iterations)


# ---- water-filling ---------------------------------------------------------------------------------------


def project_simplex(x: Tensor, mass: Tensor) -> tuple[Tensor, Tensor]:
    """(x - theta)_+ with sum `mass` along the last axis, and theta; x = -inf takes no part. No sorting:
    entries below the threshold of the rest leave until none does (Michelot 1986)."""
    inside = x > -torch.inf
    theta = torch.full_like(mass, -torch.inf)
    value = torch.where(inside, x, 0.0)
    top = torch.where(inside, x, -torch.inf).amax(-1, keepdim=True) if x.numel() else theta[..., None]
    while True:
        count = inside.sum(-1)
        total = torch.where(inside, value, 0.0).sum(-1)
        theta = torch.where(count > 0, (total - mass) / count.clamp_min(1), -torch.inf)
        stay = inside & ((x > theta[..., None]) | (x == top))
        if torch.equal(stay, inside):
            break
        inside = stay
    return torch.where(inside, (value - theta[..., None]).clamp_min(0.0), 0.0), theta


def mse_water_filling(gains: Tensor, weights: Tensor, power: Tensor) -> tuple[Tensor, Tensor]:
    """p = ((sqrt(S a) / c - 1) / a)_+ with sum P along the last axis, and c; S a = 0 gets none. Rows that
    are not numbers, or whose S a or 1 / a are beyond them, are not a number.

    Carriers whose sqrt(S a) is below c leave, c of the rest is larger, until none does. Where P is small
    beside 1 / a, roots and c differ by less than they are rounded to; so those that are clearly below leave
    first, and the others are measured from the weakest of them, m: their distances d = sqrt(S a) - m and
    f = m - c give p = (d + f) / (c a) without the difference of near numbers. Here too the clearly below
    leave, the weakest among them, until f >= 0: -f may be the distance of a carrier with a far larger 1 / a
    but for rounding.
    """
    product = weights * gains
    root = product.sqrt()
    inside = root > 0
    inverse = reciprocal(gains)
    clearly = 1 - (product.shape[-1] + 8) * torch.finfo(product.dtype).eps
    while True:
        level = _level(root, inverse, power, inside)
        stay = inside & ((root > clearly * level[..., None]) | _strongest(product, inside))
        if torch.equal(stay, inside):
            break
        inside = stay
    while True:
        weakest = torch.where(inside, product, torch.inf).amin(-1, keepdim=True)
        weakest = torch.where(inside.any(-1, keepdim=True), weakest, 1.0)
        ahead = torch.where(inside, (product - weakest) / (root + weakest.sqrt()), 0.0)
        rest = weakest.sqrt()[..., 0] * power - (ahead * inverse).sum(-1)
        rise = rest * reciprocal(power + torch.where(inside, inverse, 0.0).sum(-1))  # f
        far = (ahead > -clearly * rise[..., None]) | (rise >= 0)[..., None]
        stay = inside & (far | _strongest(product, inside))
        if torch.equal(stay, inside):
            break
        inside = stay
    level = _level(root, inverse, power, inside)
    p = (ahead + rise[..., None]) * reciprocal(level)[..., None] * inverse
    poison = torch.where((power >= 0) & (power < torch.inf), 0.0, torch.nan)
    poison = poison + (product * 0 + inverse * 0).sum(-1)
    return torch.where(inside, p.clamp_min(0.0), 0.0) + poison[..., None], level + poison


def _level(root: Tensor, inverse: Tensor, power: Tensor, inside: Tensor) -> Tensor:
    above = torch.where(inside, root * inverse, 0.0).sum(-1)
    below = power + torch.where(inside, inverse, 0.0).sum(-1)
    return torch.where(inside.any(-1), above * reciprocal(below), torch.inf)


def _strongest(product: Tensor, inside: Tensor) -> Tensor:
    return product == torch.where(inside, product, 0.0).amax(-1, keepdim=True)


def downlink_water_filling(gains: Tensor, weights: Tensor, power: Tensor) -> tuple[Tensor, Tensor]:
    """p [R, K] >= 0 with sum P, least sum_n sum_k S_k / (1 + a_nk p_k), and the multiplier; a [R, N, K].

    On each carrier h(p) = sum_n S a / (1 + a p)^2 falls in p, and h^(-1/2), a power mean of lines, rises and
    is concave (for one user it is a line), so Newton's method on that from below finds h(p) = level without
    overshooting; the level is found by bisection in its logarithm.
    """
    first = (weights[:, None] * gains).sum(1)  # h(0)
    high = first.amax(-1)
    alive = high > 0
    top = torch.where(alive, high, 1.0).log()
    total = torch.where(power > 0, power, 1.0)[:, None]
    low = _slopes(gains, weights, total.expand_as(first))[0].amax(-1)
    bottom = torch.minimum(torch.where(alive & (low > 0), low, 1.0).log(), top)
    p = torch.zeros_like(first)
    for _ in range(64):
        middle = 0.5 * (bottom + top)
        p = _at_level(gains, weights, first, middle.exp(), total)
        more = p.sum(-1) > power
        bottom, top = torch.where(more, middle, bottom), torch.where(more, top, middle)
    level = torch.where(alive, (0.5 * (bottom + top)).exp(), torch.inf)
    scale = torch.where(alive & (power > 0), power * reciprocal(p.sum(-1)), 0.0)
    return p * scale[:, None], level


def _slopes(gains: Tensor, weights: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
    """h(p) and h'(p)."""
    inverse = 1 / (1 + gains * p[:, None])
    term = weights[:, None] * gains * inverse.square()
    return term.sum(1), -2 * (term * gains * inverse).sum(1)


def _at_level(gains: Tensor, weights: Tensor, first: Tensor, level: Tensor, limit: Tensor) -> Tensor:
    p = torch.zeros_like(first)
    for _ in range(40):
        value, slope = _slopes(gains, weights, p)
        ahead = 2 * value * ((value / level[:, None]).sqrt() - 1)
        step = torch.where(slope < 0, ahead / torch.where(slope < 0, -slope, 1.0), 0.0)
        moved = torch.where(first > level[:, None], (p + step).clamp_min(0.0), 0.0)
        moved = torch.minimum(moved, limit)
        if bool(((moved - p).abs() <= 1e-14 * moved).all()):
            return moved
        p = moved
    return p


def normalize(x: Tensor, power: Tensor, mean: bool) -> Tensor:
    """x [R, K] times sqrt(K P) / |x| (sqrt(P) / |x| for the sum); a row of zeros stays."""
    scaled, _ = _scaled(x) if x.numel() else (x, x)
    length = scaled.abs().square().sum(-1).sqrt()
    wanted = (power * x.shape[-1]).sqrt() if mean else power.sqrt()
    return scaled * (wanted * reciprocal(length))[:, None]
