# mypy: allow-untyped-defs, allow-untyped-calls
"""Power allocation in Triton: a program solves ROWS rows at a time, all in float64 but for water-filling.

The algorithms are those of power_reference.py. Gains are read again in every step (from a cache: a program's
rows are a few KB), so that registers hold only what a step sums up, users by users. The Newton systems are
symmetric and, with the square of their border added, positive definite: elimination needs no pivots.

What no tile holds (more than MOST_USERS users, rows of more than MOST_CARRIERS in water-filling and
normalisation) goes through the PyTorch reference with a PerformanceWarning. The interpreter
(TRITON_INTERPRET=1 before this module is imported) runs the kernels on CPU tensors.
"""

from __future__ import annotations

import os
import warnings
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from tenfold._backend import PerformanceWarning

from . import power_rounded
from .power_reference import CAREFUL, INTERIOR, NEWTON

_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # it pays for programs, not for their size
MOST_USERS = 8
MOST_CARRIERS = 16384
WARPS = 4
_TILE = 2**20 if _INTERPRETED else 512
"""Values of a tile."""


# ---- pieces ----------------------------------------------------------------------------------------------


@triton.jit
def _inverse(x):
    return tl.where(x == 0, 0.0, 1 / tl.where(x == 0, 1.0, x))


@triton.jit
def _any(x):
    return tl.max(x.to(tl.int32), axis=0) > 0


@triton.jit
def _solved(matrix, one, other, n, N: tl.constexpr):
    """matrix x = one, matrix y = other: positive definite [R, N, N], by Gauss-Jordan elimination."""
    for c in tl.static_range(N):
        here = n[None, :] == c
        row = tl.sum(tl.where(n[None, :, None] == c, matrix, 0.0), axis=1)
        column = tl.sum(tl.where(n[None, None, :] == c, matrix, 0.0), axis=2)
        pivot = tl.sum(tl.where(here, row, 0.0), axis=1)[:, None]
        factor = tl.where(here, 0.0, column / pivot)
        matrix -= factor[:, :, None] * row[:, None, :]
        one -= factor * tl.sum(tl.where(here, one, 0.0), axis=1)[:, None]
        other -= factor * tl.sum(tl.where(here, other, 0.0), axis=1)[:, None]
    diagonal = tl.sum(tl.where(n[None, :, None] == n[None, None, :], matrix, 0.0), axis=2)
    return one / diagonal, other / diagonal


@triton.jit
def _strength(gains, at_user, k, carrier_step, users, carriers, inverse_size):
    """|g|^2 [R, N, B] with gains scaled, and real and imaginary parts."""
    there = users[:, :, None] & (k < carriers)[None, None, :]
    at = gains + at_user[:, :, None] + k.to(tl.int64)[None, None, :] * carrier_step
    re = tl.load(at, mask=there, other=0.0).to(tl.float64) * inverse_size[:, None, None]
    im = tl.load(at + 1, mask=there, other=0.0).to(tl.float64) * inverse_size[:, None, None]
    return re * re + im * im, re, im


@triton.jit
def _symbols(symbols, at_row, k, carrier_step, rows, carriers, inverse_size):
    there = rows[:, None] & (k < carriers)[None, :]
    at = symbols + at_row[:, None] + k.to(tl.int64)[None, :] * carrier_step
    re = tl.load(at, mask=there, other=0.0).to(tl.float64) * inverse_size[:, None]
    im = tl.load(at + 1, mask=there, other=0.0).to(tl.float64) * inverse_size[:, None]
    return re * re + im * im, re, im


@triton.jit
def _largest(re, im, top, poison, AXES: tl.constexpr):
    """The largest part so far of each row, and a sum that is not zero once a part was not finite."""
    size = tl.maximum(tl.abs(re), tl.abs(im))
    size = tl.where(size == size, size, 0.0)
    spoilt = re * 0.0 + im * 0.0
    if AXES == 2:
        size = tl.max(size, axis=2)
        spoilt = tl.sum(spoilt, axis=2)
    return tl.maximum(top, tl.max(size, axis=1)), poison + tl.sum(spoilt, axis=1)


@triton.jit
def _searched(own, searched, at_row, k, carrier_step, rows, carriers, inverse_size, SEARCHED: tl.constexpr):
    """What stands for |s|^2 in the search."""
    if SEARCHED:
        there = rows[:, None] & (k < carriers)[None, :]
        at = searched + at_row[:, None] + k.to(tl.int64)[None, :] * carrier_step
        size = inverse_size[:, None]
        return tl.load(at, mask=there, other=0.0).to(tl.float64) * size * size
    return own


@triton.jit
def _sums(
    gains, g_user, gk, symbols, s_row, sk, searched, e_row, ek, power, noise, mu, g_in, s_in,
    rows, users, carriers, R: tl.constexpr, N: tl.constexpr, B: tl.constexpr, SEARCHED: tl.constexpr,
):  # fmt: skip
    """sum_k S b / den^2 and its curvature sum_k S b_i b_j / den^3; see power_reference.sums."""
    weighted = tl.zeros([R, N], tl.float64)
    curved = tl.zeros([R, N, N], tl.float64)
    share = _inverse(mu)
    for first in range(0, carriers, B):
        k = first + tl.arange(0, B)
        strength, _, _ = _strength(gains, g_user, k, gk, users, carriers, g_in)
        own, _, _ = _symbols(symbols, s_row, k, sk, rows, carriers, s_in)
        wanted = _searched(own, searched, e_row, k, ek, rows, carriers, s_in, SEARCHED)
        b = strength * power[:, :, None]
        r = _inverse(noise[:, None] + tl.sum(b * share[:, :, None], axis=1))
        weighted += tl.sum((wanted * r * r)[:, None, :] * b, axis=2)
        cube = (wanted * r * r * r)[:, None, None, :]
        curved += tl.sum(cube * b[:, :, None, :] * b[:, None, :, :], axis=3)
    return tl.where(mu > 0, weighted, 0.0), curved


@triton.jit
def _joint_kernel(
    gains, symbols, power, noise, searched, transmit, alphas, mus, objectives, steps,
    gr, gn, gk, sr, sk, pr, pn, nr, er, ek, count_rows, count_users, carriers, tolerance, most,
    newton_most, interior_most, interior_centring, interior_reach, careful_most, careful_centring,
    careful_reach, R: tl.constexpr, N: tl.constexpr, B: tl.constexpr, SEARCHED: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    n = tl.arange(0, N)
    rows = row < count_rows
    users = rows[:, None] & (n < count_users)[None, :]
    g_user = row[:, None] * gr + n[None, :] * gn
    s_row = row * sr
    e_row = row * er
    budget = tl.load(power + row[:, None] * pr + n[None, :] * pn, mask=users, other=1.0).to(tl.float64)
    given = tl.load(noise + row * nr, mask=rows, other=1.0).to(tl.float64)
    one = tl.full([R], 1.0, tl.float64)

    # Rows are scaled by their largest gain and symbol.
    g_top = tl.zeros([R], tl.float64)
    s_top = tl.zeros([R], tl.float64)
    poison = given * 0.0 + tl.sum(budget * 0.0, axis=1)
    for first in range(0, carriers, B):
        k = first + tl.arange(0, B)
        _, re, im = _strength(gains, g_user, k, gk, users, carriers, one)
        g_top, poison = _largest(re, im, g_top, poison, 2)
        _, re, im = _symbols(symbols, s_row, k, sk, rows, carriers, one)
        s_top, poison = _largest(re, im, s_top, poison, 1)
    fine = (poison == 0) & (given >= 0) & (tl.min(budget, axis=1) > 0)
    g_size = tl.where(fine & (g_top > 0), g_top, 1.0)
    s_size = tl.where(fine & (s_top > 0), s_top, 1.0)
    g_in = 1 / g_size
    s_in = 1 / s_size
    level = tl.where(fine, given, 1.0) / g_size / g_size
    budget = tl.where(fine[:, None], budget, 1.0)

    # The start, and who has gain at all.
    found = tl.zeros([R, N], tl.float64)
    for first in range(0, carriers, B):
        k = first + tl.arange(0, B)
        strength, _, _ = _strength(gains, g_user, k, gk, users, carriers, g_in)
        own, _, _ = _symbols(symbols, s_row, k, sk, rows, carriers, s_in)
        wanted = _searched(own, searched, e_row, k, ek, rows, carriers, s_in, SEARCHED)
        found += tl.sum(wanted[:, None, :] * strength * budget[:, :, None], axis=2)
    start = tl.sqrt(tl.where(fine[:, None], found, 0.0))
    start = start * _inverse(tl.sum(start, axis=1))[:, None]
    live = start > 0
    lives = tl.sum(live.to(tl.float64), axis=1)
    count = tl.maximum(lives, 1.0)
    same = n[None, :, None] == n[None, None, :]
    both = live[:, :, None] & live[:, None, :]
    alone = same & ~both  # a user without gain stays where it is
    mu = start
    spread = tl.zeros([R], tl.float64)
    iterations = tl.zeros([R], tl.int32)

    # Newton's method in log mu, as power_reference.newton; each row of its system is scaled by B / mu.
    left = lives > 1
    step = 0
    while _any(left):
        weighted, curved = _sums(
            gains, g_user, gk, symbols, s_row, sk, searched, e_row, ek, budget, level, mu, g_in, s_in,
            rows, users, carriers, R, N, B, SEARCHED,
        )  # fmt: skip
        safe = tl.where(live, mu, 1.0)
        needed = weighted / (safe * safe)
        top = tl.max(needed, axis=1)
        least = tl.min(tl.where(live, needed, float("inf")), axis=1)
        spread = tl.where(left, (top - least) * _inverse(top), spread)
        left = left & ((spread > tolerance) | (spread != spread)) & (step < newton_most)
        iterations += left.to(tl.int32)
        slope = tl.where(live, weighted / safe, 0.0)
        matrix = tl.where(same, 2 * slope[:, :, None], 0.0) - 2 * curved / (
            safe[:, :, None] * safe[:, None, :]
        )
        border = mu[:, :, None] * mu[:, None, :] * (2 * tl.sum(slope, axis=1))[:, None, None]
        matrix = tl.where(alone, 1.0, tl.where(both, matrix + border, 0.0))
        logs = tl.where(live, tl.log(tl.where(needed > 0, needed, 1.0)), 0.0)
        x, y = _solved(matrix, slope * logs, slope, n, N)
        nu = tl.sum(mu * x, axis=1) / tl.sum(mu * y, axis=1)
        change = tl.where(live, x - nu[:, None] * y, 0.0)
        change = change / tl.maximum(tl.max(tl.abs(change), axis=1), 1.0)[:, None]
        moved = mu * tl.exp(change)
        moved = moved * _inverse(tl.sum(moved, axis=1))[:, None]
        good = tl.sum(moved * 0.0, axis=1) == 0
        mu = tl.where((left & good)[:, None], moved, mu)
        step += 1

    # Interior points where the optimum lies on the boundary, as power_reference.interior_point.
    room = most - newton_most
    for method in range(2):
        limit = tl.minimum(tl.where(method == 0, interior_most, careful_most), room)
        centring = tl.where(method == 0, interior_centring, careful_centring)
        reach = tl.where(method == 0, interior_reach, careful_reach)
        left = (lives > 1) & ((spread > tolerance) | (spread != spread)) & (room > 0)
        tried = left
        at = tl.where(live, 0.9 * start + 0.1 / count[:, None], 0.0)
        best = at
        least = tl.full([R], float("inf"), tl.float64)
        nu = tl.zeros([R], tl.float64)
        slack = tl.zeros([R, N], tl.float64)
        step = 0
        while _any(left):
            weighted, curved = _sums(
                gains, g_user, gk, symbols, s_row, sk, searched, e_row, ek, budget, level, at, g_in, s_in,
                rows, users, carriers, R, N, B, SEARCHED,
            )  # fmt: skip
            safe = tl.where(live, at, 1.0)
            needed = weighted / (safe * safe)
            top = tl.max(needed, axis=1)
            mean = tl.sum(at * needed, axis=1)
            nu = tl.where(step == 0, 1.1 * mean, nu)
            free = tl.where(live, tl.maximum(nu[:, None] - needed, 0.1 * nu[:, None]), 0.0)
            slack = tl.where(step == 0, free, slack)
            now = (top - mean) * _inverse(top)
            better = left & (now < least)
            best = tl.where(better[:, None], at, best)
            least = tl.where(better, now, least)
            left = left & ((least > tolerance) | (least != least)) & (step < limit)
            iterations += left.to(tl.int32)
            goal = centring * tl.sum(at * slack, axis=1) / count
            steep = tl.where(live, 2 * weighted / safe + slack * safe, 0.0)
            matrix = tl.where(same, steep[:, :, None], 0.0)
            matrix -= 2 * curved / (safe[:, :, None] * safe[:, None, :])
            rise = tl.sum(steep, axis=1)
            border = at[:, :, None] * at[:, None, :] * rise[:, None, None]
            matrix = tl.where(alone, 1.0, tl.where(both, matrix + border, 0.0))
            missing = 1 - tl.sum(at, axis=1)
            right = tl.where(live, goal[:, None] - (nu[:, None] - needed) * safe, 0.0)
            right += (rise * missing)[:, None] * at
            x, y = _solved(matrix, right, at, n, N)
            d_nu = (tl.sum(at * x, axis=1) - missing) / tl.sum(at * y, axis=1)
            d_mu = tl.where(live, (x - d_nu[:, None] * y) * at, 0.0)
            d_slack = tl.where(live, (goal[:, None] - slack * d_mu) / safe - slack, 0.0)
            go_mu = tl.where(d_mu < 0, -at / tl.where(d_mu < 0, d_mu, 1.0), float("inf"))
            go_slack = tl.where(d_slack < 0, -slack / tl.where(d_slack < 0, d_slack, 1.0), float("inf"))
            go = reach * tl.minimum(tl.min(go_mu, axis=1), tl.min(go_slack, axis=1))
            good = tl.sum(x * 0.0 + y * 0.0, axis=1) + d_nu * 0.0 == 0
            left = left & good
            go = tl.where(left, tl.minimum(go, 1.0), 0.0)
            at = tl.where(left[:, None], at + go[:, None] * d_mu, at)
            slack = tl.where(left[:, None], slack + go[:, None] * d_slack, slack)
            nu = tl.where(left, nu + go * d_nu, nu)
            step += 1
        gained = tried & (least < spread)
        mu = tl.where(gained[:, None], best, mu)
        spread = tl.where(gained, least, spread)

    # What is transmitted.
    weighted, _ = _sums(
        gains, g_user, gk, symbols, s_row, sk, searched, e_row, ek, budget, level, mu, g_in, s_in,
        rows, users, carriers, R, N, B, SEARCHED,
    )  # fmt: skip
    share = _inverse(mu)
    alpha = tl.sqrt(tl.max(weighted * share * share, axis=1) / carriers)
    over = _inverse(alpha)
    cost = level * carriers * alpha * alpha
    nan = tl.where(fine, 0.0, float("nan"))
    for first in range(0, carriers, B):
        k = first + tl.arange(0, B)
        strength, re, im = _strength(gains, g_user, k, gk, users, carriers, g_in)
        own, s_re, s_im = _symbols(symbols, s_row, k, sk, rows, carriers, s_in)
        b = strength * budget[:, :, None]
        r = _inverse(level[:, None] + tl.sum(b * share[:, :, None], axis=1))
        factor = (budget * share)[:, :, None] * r[:, None, :]
        heard = tl.where(alpha[:, None] > 0, tl.sum(factor * strength, axis=1), 0.0)
        cost += tl.sum((heard - 1) * (heard - 1) * own, axis=1)
        by = factor * over[:, None, None] + nan[:, None, None]
        there = users[:, :, None] & (k < carriers)[None, None, :]
        to = transmit + 2 * (
            (row[:, None] * count_users + n[None, :])[:, :, None] * carriers + k[None, None, :]
        )
        tl.store(to, by * (re * s_re[:, None, :] + im * s_im[:, None, :]), mask=there)
        tl.store(to + 1, by * (re * s_im[:, None, :] - im * s_re[:, None, :]), mask=there)
    tl.store(mus + row[:, None] * count_users + n[None, :], mu + nan[:, None], mask=users)
    tl.store(alphas + row, alpha * s_size / g_size + nan, mask=rows)
    tl.store(objectives + row, cost * s_size * s_size + nan, mask=rows)
    tl.store(steps + row, iterations, mask=rows)


# ---- separable -------------------------------------------------------------------------------------------


@triton.jit
def _shares(weights, at_user, k, carrier_step, users, carriers, budget, WEIGHTED: tl.constexpr):
    there = users[:, :, None] & (k < carriers)[None, None, :]
    if WEIGHTED:
        at = weights + at_user[:, :, None] + k.to(tl.int64)[None, None, :] * carrier_step
        return tl.load(at, mask=there, other=0.0).to(tl.float64) / budget[:, :, None]
    return there.to(tl.float64)


@triton.jit
def _needs(
    gains, g_user, gk, weights, w_user, wk, budget, wanted, tau, g_in, users, carriers,
    R: tl.constexpr, N: tl.constexpr, B: tl.constexpr, WEIGHTED: tl.constexpr,
):  # fmt: skip
    """See power_reference.needed_power."""
    need = tl.zeros([R, N], tl.float64)
    fall = tl.zeros([R, N], tl.float64)
    for first in range(0, carriers, B):
        k = first + tl.arange(0, B)
        strength, _, _ = _strength(gains, g_user, k, gk, users, carriers, g_in)
        share = _shares(weights, w_user, k, wk, users, carriers, budget, WEIGHTED)
        r = tl.where(strength > 0, 1 / tl.where(strength > 0, strength + tau[:, :, None], 1.0), 0.0)
        term = share * strength * r * r
        need += tl.sum(term, axis=2)
        fall += tl.sum(term * r, axis=2)
    scale = wanted * wanted / carriers
    return scale * need, -2 * scale * fall


@triton.jit
def _separable_kernel(
    gains, power, noise, wants, weights, precoder, alphas, taus, objectives, steps,
    gr, gn, gk, pr, pn, nr, cr, cn, wr, wn, wk, count_rows, count_users, carriers, tolerance, most,
    R: tl.constexpr, N: tl.constexpr, B: tl.constexpr, WEIGHTED: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    n = tl.arange(0, N)
    rows = row < count_rows
    users = rows[:, None] & (n < count_users)[None, :]
    g_user = row[:, None] * gr + n[None, :] * gn
    w_user = row[:, None] * wr + n[None, :] * wn
    budget = tl.load(power + row[:, None] * pr + n[None, :] * pn, mask=users, other=1.0).to(tl.float64)
    wanted = tl.load(wants + row[:, None] * cr + n[None, :] * cn, mask=users, other=0.0).to(tl.float64)
    given = tl.load(noise + row * nr, mask=rows, other=1.0).to(tl.float64)
    one = tl.full([R], 1.0, tl.float64)
    g_top = tl.zeros([R], tl.float64)
    poison = given * 0.0 + tl.sum(budget * 0.0 + wanted * 0.0, axis=1)
    for first in range(0, carriers, B):
        k = first + tl.arange(0, B)
        _, re, im = _strength(gains, g_user, k, gk, users, carriers, one)
        g_top, poison = _largest(re, im, g_top, poison, 2)
        share = _shares(weights, w_user, k, wk, users, carriers, budget, WEIGHTED)
        poison += tl.sum(tl.sum(share * 0.0, axis=2), axis=1)
    fine = (poison == 0) & (given >= 0) & (tl.min(budget, axis=1) > 0)
    size = tl.where(fine & (g_top > 0), g_top, 1.0)
    g_in = 1 / size
    level = tl.where(fine, given, 1.0) / size / size
    budget = tl.where(fine[:, None], budget, 1.0)
    wanted = tl.where(fine[:, None], wanted, 0.0)

    # As power_reference.shares_of_noise.
    tau = tl.zeros([R, N], tl.float64)
    need, _ = _needs(
        gains, g_user, gk, weights, w_user, wk, budget, wanted, tau, g_in, users, carriers, R, N, B, WEIGHTED
    )
    alive = (need > 0) & fine[:, None]
    bound = tl.where(alive, 1 / tl.sqrt(tl.where(alive, need, 1.0)), float("inf"))
    active = alive & (level > 0)[:, None]
    count = tl.sum(active.to(tl.float64), axis=1)
    tau = tl.where(active, level[:, None] / (tl.maximum(count, 1.0)[:, None] * budget), 0.0)
    left = count > 0
    iterations = tl.zeros([R], tl.int32)
    step = 0
    while _any(left):
        iterations += left.to(tl.int32)
        need, slope = _needs(
            gains,
            g_user,
            gk,
            weights,
            w_user,
            wk,
            budget,
            wanted,
            tau,
            g_in,
            users,
            carriers,
            R,
            N,
            B,
            WEIGHTED,
        )
        root = tl.sqrt(need)
        phi = tl.where(active, _inverse(root), 0.0)
        rise = tl.where(active, -0.5 * slope * _inverse(root * need), 1.0)
        weight = tl.where(active, budget / rise, 0.0)
        have = level + tl.sum(weight * phi - tl.where(active, budget * tau, 0.0), axis=1)
        psi = have * _inverse(tl.sum(weight, axis=1))
        psi = tl.where(psi > 0, psi, tl.min(tl.where(active, phi, float("inf")), axis=1))
        moved = tau + (psi[:, None] - phi) / rise
        drop = active & (moved <= 0) & (bound >= psi[:, None])
        shrunk = active & (moved <= 0) & (bound < psi[:, None])
        back = alive & (active == 0) & (bound < psi[:, None])
        error = tl.max(tl.where(active, tl.abs(phi - psi[:, None]), 0.0), axis=1)
        changed = tl.max((drop | shrunk | back).to(tl.int32), axis=1) > 0
        fresh = tl.where(drop, 0.0, tl.where(shrunk, 0.1 * tau, tl.where(active, moved, 0.0)))
        fresh = tl.where(back, 1e-3 * level[:, None] / budget, fresh)
        tau = tl.where(left[:, None], fresh, tau)
        active = tl.where(left[:, None], (active & (drop == 0)) | back, active)
        step += 1
        left = left & ((error > tolerance * psi) | changed) & (step < most)
    spent = tl.sum(budget * tau, axis=1)
    tau = tau * tl.where(spent > 0, level * _inverse(spent), 1.0)[:, None]  # meets sum P tau = noise
    need, _ = _needs(
        gains, g_user, gk, weights, w_user, wk, budget, wanted, tau, g_in, users, carriers, R, N, B, WEIGHTED
    )
    top = tl.max(tl.where(users, need, 0.0), axis=1)
    alpha = tl.sqrt(top)
    scale = _inverse(alpha)
    cost = level * carriers * top
    nan = tl.where(fine, 0.0, float("nan"))
    for first in range(0, carriers, B):
        k = first + tl.arange(0, B)
        strength, re, im = _strength(gains, g_user, k, gk, users, carriers, g_in)
        share = _shares(weights, w_user, k, wk, users, carriers, budget, WEIGHTED)
        d = tl.where(strength > 0, 1 / tl.where(strength > 0, strength + tau[:, :, None], 1.0), 0.0)
        lost = wanted[:, :, None] * tl.where(d > 0, tau[:, :, None] * d, 1.0)
        cost += tl.sum(tl.sum(budget[:, :, None] * share * lost * lost, axis=2), axis=1)
        by = wanted[:, :, None] * d * scale[:, None, None] + nan[:, None, None]
        there = users[:, :, None] & (k < carriers)[None, None, :]
        to = precoder + 2 * (
            (row[:, None] * count_users + n[None, :])[:, :, None] * carriers + k[None, None, :]
        )
        tl.store(to, by * re, mask=there)
        tl.store(to + 1, -by * im, mask=there)
    tl.store(
        taus + row[:, None] * count_users + n[None, :],
        tau * (size * size)[:, None] + nan[:, None],
        mask=users,
    )
    tl.store(alphas + row, alpha / size + nan, mask=rows)
    tl.store(objectives + row, cost + nan, mask=rows)
    tl.store(steps + row, iterations, mask=rows)


# ---- water-filling, normalisation ------------------------------------------------------------------------


@triton.jit
def _water_kernel(
    x, masses, out, thetas, xr, xk, mr, count_rows, carriers,
    INVERSE: tl.constexpr, R: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    k = tl.arange(0, B)
    rows = row < count_rows
    there = rows[:, None] & (k < carriers)[None, :]
    at = x + row[:, None] * xr + k.to(tl.int64)[None, :] * xk
    v = tl.load(at, mask=there, other=0.0 if INVERSE else float("-inf"))
    mass = tl.load(masses + row * mr, mask=rows, other=1.0)
    if INVERSE:
        y = tl.where(v > 0, 1 / tl.where(v > 0, v, 1.0), float("inf"))
    else:
        y = -v
    low = tl.min(tl.where(v == v, y, float("inf")), axis=1)
    strange = tl.max((v != v).to(tl.int32), axis=1) > 0
    unknown = strange | (low == float("-inf")) | ((mass >= 0) == 0)
    known = (unknown == 0) & (low < float("inf"))
    above = tl.where(known[:, None], y - tl.where(known, low, 0.0)[:, None], 0.0)
    level = tl.where(known, mass, 0.0)
    count = tl.full([R], B + 1, tl.float32).to(level.dtype)
    left = known
    while _any(left):
        inside = above <= level[:, None]
        found = tl.sum(tl.where(inside, 1.0, 0.0).to(level.dtype), axis=1)
        sum = tl.sum(tl.where(inside, above, 0.0), axis=1)
        left = left & (found < count)
        count = tl.where(left, found, count)
        level = tl.where(left, (mass + sum) / tl.where(left, found, 1.0), level)
    nothing = tl.where(unknown, float("nan"), 0.0)
    p = tl.where(known[:, None], tl.maximum(level[:, None] - above, 0.0), nothing[:, None])
    theta = tl.where(known, -(level + low), tl.where(unknown, float("nan"), float("-inf")))
    tl.store(out + row[:, None] * carriers + k[None, :], p, mask=there)
    tl.store(thetas + row, theta, mask=rows)


@triton.jit
def _mse_kernel(
    gains, weights, power, out, levels, gr, gk, wr, wk, pr, count_rows, carriers,
    R: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    k = tl.arange(0, B)
    rows = row < count_rows
    there = rows[:, None] & (k < carriers)[None, :]
    at = k.to(tl.int64)[None, :]
    gain = tl.load(gains + row[:, None] * gr + at * gk, mask=there, other=0.0).to(tl.float64)
    weight = tl.load(weights + row[:, None] * wr + at * wk, mask=there, other=0.0).to(tl.float64)
    total = tl.load(power + row * pr, mask=rows, other=1.0).to(tl.float64)
    product = gain * weight
    root = tl.where(product > 0, tl.sqrt(tl.where(product > 0, product, 1.0)), 0.0)
    inverse = _inverse(gain)
    poison = tl.where((total >= 0) & (total < float("inf")), 0.0, float("nan"))
    poison += tl.sum(product * 0 + inverse * 0, axis=1)
    top = tl.max(product, axis=1)
    level = tl.full([R], float("inf"), tl.float64)
    inside = product > 0
    count = tl.sum(inside.to(tl.float64), axis=1)
    clearly = 1 - (carriers + 8) * tl.full([R], 2.220446049250313e-16, tl.float64)
    left = count > 0
    while _any(left):  # the two searches of power_reference.py
        sum = tl.sum(tl.where(inside, root * inverse, 0.0), axis=1)
        below = total + tl.sum(tl.where(inside, inverse, 0.0), axis=1)
        level = tl.where(left, sum / tl.where(left, below, 1.0), level)
        stay = inside & ((root > (clearly * level)[:, None]) | (product == top[:, None]))
        found = tl.sum(stay.to(tl.float64), axis=1)
        left = left & (found != count)
        inside = tl.where(left[:, None], stay, inside)
        count = tl.where(left, found, count)
    alive = count > 0
    left = alive
    ahead = tl.zeros([R, B], tl.float64)
    rise = tl.zeros([R], tl.float64)
    while _any(left):
        weakest = tl.min(tl.where(inside, product, float("inf")), axis=1)
        weakest = tl.where(alive, weakest, 1.0)
        start = tl.sqrt(weakest)
        ahead = tl.where(inside, (product - weakest[:, None]) / (root + start[:, None]), 0.0)
        sum = tl.sum(tl.where(inside, root * inverse, 0.0), axis=1)
        below = tl.where(alive, total + tl.sum(tl.where(inside, inverse, 0.0), axis=1), 1.0)
        level = tl.where(alive, sum / below, level)
        rise = tl.where(alive, (start * total - tl.sum(ahead * inverse, axis=1)) / below, 0.0)
        stay = inside & ((ahead > -(clearly * rise)[:, None]) | (product == top[:, None]))
        found = tl.sum(stay.to(tl.float64), axis=1)
        left = left & (rise < 0) & (found != count)
        inside = tl.where(left[:, None], stay, inside)
        count = tl.where(left, found, count)
    p = tl.where(inside, tl.maximum((ahead + rise[:, None]) / level[:, None] * inverse, 0.0), 0.0)
    tl.store(out + row[:, None] * carriers + k[None, :], p + poison[:, None], mask=there)
    tl.store(levels + row, level + poison, mask=rows)


@triton.jit
def _normalize_kernel(
    x, power, out, xr, xk, pr, count_rows, carriers, factor,
    PARTS: tl.constexpr, R: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """x [rows, carriers * PARTS] in `out`; in x the parts of a number lie side by side."""
    row = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    i = tl.arange(0, B)
    rows = row < count_rows
    there = rows[:, None] & (i < carriers * PARTS)[None, :]
    at = (i // PARTS).to(tl.int64) * xk + i % PARTS
    v = tl.load(x + row[:, None] * xr + at[None, :], mask=there, other=0.0).to(tl.float64)
    total = tl.load(power + row * pr, mask=rows, other=1.0).to(tl.float64)
    size = tl.abs(v)
    most = tl.max(tl.where(size == size, size, 0.0), axis=1) + tl.sum(v * 0.0, axis=1)
    scale = tl.where(most == 0, 0.0, 1 / tl.where(most == 0, 1.0, most))
    v = v * scale[:, None]
    length = tl.sqrt(tl.sum(v * v, axis=1))
    by = tl.where(length == 0, 0.0, tl.sqrt(total * factor) / tl.where(length == 0, 1.0, length))
    tl.store(out + row[:, None] * (carriers * PARTS) + i[None, :], v * by[:, None], mask=there)


# ---- behind the ops' signatures --------------------------------------------------------------------------


def _slow(what: str) -> None:
    warnings.warn(
        f"power allocation: the slow PyTorch reference runs, Triton's kernels take {what}",
        PerformanceWarning,
        stacklevel=3,
    )


def _tile(users: int, carriers: int, pairs: bool) -> tuple[int, int, int]:
    """(rows, users, carriers) of a tile, powers of two; pairs: it is one of pairs of users."""
    n = triton.next_power_of_2(users)
    b = min(triton.next_power_of_2(carriers), 1024 if _INTERPRETED else (32 if pairs and n > 4 else 64))
    return max(1, min(64, _TILE // ((n * n if pairs else n) * b))), n, b


def _row_tile(carriers: int, values: int) -> tuple[int, int]:
    """(rows, values) of a tile of whole rows."""
    b = triton.next_power_of_2(carriers)
    return max(1, min(64, (2**20 if _INTERPRETED else values) // b)), b


def _real(value: Tensor) -> Tensor:
    return torch.view_as_real(value.resolve_conj())


def _results(gains: Tensor) -> tuple[Tensor, ...]:
    rows, users, _ = gains.shape
    real, device = gains.real.dtype, gains.device
    row = torch.empty(rows, dtype=real, device=device)
    return (
        torch.empty(gains.shape, dtype=gains.dtype, device=device),
        row,
        torch.empty(rows, users, dtype=real, device=device),
        torch.empty_like(row),
        torch.empty(rows, dtype=torch.int32, device=device),
    )


def joint(
    gains: Tensor,
    symbols: Tensor,
    power: Tensor,
    noise: Tensor,
    statistics: Tensor | None,
    tolerance: float,
    most: int,
) -> tuple[Tensor, ...]:
    """See power_reference.joint."""
    rows, users, carriers = gains.shape
    if users > MOST_USERS and gains.numel():
        _slow(f"at most {MOST_USERS} users")
    if not gains.numel() or users > MOST_USERS:
        return power_rounded.joint(gains, symbols, power, noise, statistics, tolerance, most)
    g, s, out = _real(gains), _real(symbols), _results(gains)
    searched = power if statistics is None else statistics
    limit = tolerance if gains.dtype == torch.complex128 else min(tolerance, 1e-7)
    r, n, b = _tile(users, carriers, True)
    _joint_kernel[(triton.cdiv(rows, r),)](
        g, s, power, noise, searched, torch.view_as_real(out[0]), *out[1:],
        *g.stride()[:3], *s.stride()[:2], *power.stride(), noise.stride(0), *searched.stride(),
        rows, users, carriers, float(limit), most, min(NEWTON, most), *INTERIOR, *CAREFUL,
        R=r, N=n, B=b, SEARCHED=statistics is not None, num_warps=WARPS,
    )  # fmt: skip
    return out


def separable(
    gains: Tensor,
    power: Tensor,
    noise: Tensor,
    wanted: Tensor,
    weights: Tensor | None,
    tolerance: float,
    most: int,
) -> tuple[Tensor, ...]:
    """See power_reference.separable."""
    rows, users, carriers = gains.shape
    if users > MOST_USERS and gains.numel():
        _slow(f"at most {MOST_USERS} users")
    if not gains.numel() or users > MOST_USERS:
        return power_rounded.separable(gains, power, noise, wanted, weights, tolerance, most)
    g, out = _real(gains), _results(gains)
    load = g[..., 0] if weights is None else weights
    r, n, b = _tile(users, carriers, False)
    _separable_kernel[(triton.cdiv(rows, r),)](
        g, power, noise, wanted, load, torch.view_as_real(out[0]), *out[1:],
        *g.stride()[:3], *power.stride(), noise.stride(0), *wanted.stride(), *load.stride(),
        rows, users, carriers, float(tolerance), most,
        R=r, N=n, B=b, WEIGHTED=weights is not None, num_warps=WARPS if n <= 4 else 2 * WARPS,
    )  # fmt: skip
    return out


def water_filling(x: Tensor, mass: Tensor, inverse: bool) -> tuple[Tensor, ...]:
    """See power_rounded.water_filling."""
    rows, carriers = x.shape
    if carriers > MOST_CARRIERS:
        _slow(f"at most {MOST_CARRIERS} carriers")
    if not x.numel() or carriers > MOST_CARRIERS:
        return power_rounded.water_filling(x, mass, inverse)
    p = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    theta = torch.empty(rows, dtype=x.dtype, device=x.device)
    r, b = _row_tile(carriers, 4096 // x.element_size())
    _water_kernel[(triton.cdiv(rows, r),)](
        x, mass, p, theta, *x.stride(), mass.stride(0), rows, carriers, INVERSE=inverse, R=r, B=b,
        num_warps=WARPS if b <= 4096 else 16,
    )  # fmt: skip
    return p, theta


def mse_water_filling(gains: Tensor, weights: Tensor, power: Tensor) -> tuple[Tensor, ...]:
    """See power_reference.mse_water_filling."""
    rows, carriers = gains.shape
    if carriers > MOST_CARRIERS:
        _slow(f"at most {MOST_CARRIERS} carriers")
    if not gains.numel() or carriers > MOST_CARRIERS:
        return power_rounded.mse_water_filling(gains, weights, power)
    p = torch.empty(gains.shape, dtype=gains.dtype, device=gains.device)
    level = torch.empty(rows, dtype=gains.dtype, device=gains.device)
    r, b = _row_tile(carriers, 256)
    _mse_kernel[(triton.cdiv(rows, r),)](
        gains, weights, power, p, level, *gains.stride(), *weights.stride(), power.stride(0),
        rows, carriers, R=r, B=b, num_warps=WARPS if b <= 1024 else 16,
    )  # fmt: skip
    return p, level


def power_normalize(x: Tensor, power: Tensor, mean: bool) -> Tensor:
    """See power_reference.normalize."""
    rows, carriers = x.shape
    if carriers > MOST_CARRIERS:
        _slow(f"at most {MOST_CARRIERS} carriers")
    if not x.numel() or carriers > MOST_CARRIERS:
        return power_rounded.power_normalize(x, power, mean)
    parts = 2 if x.is_complex() else 1
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    v, to = (_real(x), torch.view_as_real(y)) if x.is_complex() else (x, y)
    r, b = _row_tile(carriers * parts, 1024)
    _normalize_kernel[(triton.cdiv(rows, r),)](
        v, power, to, *v.stride()[:2], power.stride(0), rows, carriers, float(carriers if mean else 1),
        PARTS=parts, R=r, B=b, num_warps=WARPS if b <= 2048 else 16,
    )  # fmt: skip
    return y


def ahead_of_time() -> list[tuple[str, Any, dict[str, str], dict[str, Any], dict[str, Any]]]:
    """(name, kernel, signature, constants, options) of the kernels to compile where there is no GPU."""
    cases: list[tuple[str, Any, dict[str, str], dict[str, Any], dict[str, Any]]] = []

    def add(name: str, kernel: Any, types: dict[str, str], constants: dict[str, Any], warps: int) -> None:
        types = {n: types.get(n, "constexpr" if n in constants else "i32") for n in kernel.arg_names}
        cases.append((name, kernel, types, constants, {"num_warps": warps}))

    def pointers(names: str, dtype: str) -> dict[str, str]:
        return dict.fromkeys(names.split(), f"*{dtype}")

    numbers = dict.fromkeys(
        ("tolerance", "factor", "interior_centring", "interior_reach", "careful_centring", "careful_reach"),
        "fp32",
    )
    for dtype, users, more in (
        ("fp32", 1, False),
        ("fp32", 2, True),
        ("fp32", 2, False),
        ("fp64", 2, False),
        ("fp32", 4, False),
        ("fp32", 8, False),
    ):
        name = f"{users}_users.{dtype}"
        types = pointers("gains symbols power noise searched transmit alphas mus objectives", dtype)
        types |= {"steps": "*i32"} | numbers
        full = name + (".searched" if more else "")
        tile = dict(zip("RNB", _tile(users, 64, True), strict=True))
        add(f"joint.{full}", _joint_kernel, types, tile | {"SEARCHED": more}, WARPS)
        types = pointers("gains power noise wants weights precoder alphas taus objectives", dtype)
        types |= {"steps": "*i32"} | numbers
        full = name + (".weighted" if more else "")
        tile = dict(zip("RNB", _tile(users, 64, False), strict=True))
        add(
            f"separable.{full}",
            _separable_kernel,
            types,
            tile | {"WEIGHTED": more},
            WARPS if users <= 4 else 2 * WARPS,
        )
    for dtype, carriers in (("fp32", 64), ("fp32", 1024), ("fp64", 64)):
        r, b = _row_tile(carriers, 1024 if dtype == "fp32" else 512)
        types = pointers("x masses out thetas", dtype)
        for inverse in (True, False):
            name = f"water.{carriers}.{dtype}{'.inverse' if inverse else ''}"
            add(name, _water_kernel, types, {"INVERSE": inverse, "R": r, "B": b}, WARPS)
        r, b = _row_tile(carriers, 256)
        types = pointers("gains weights power out levels", dtype)
        add(f"mse_water.{carriers}.{dtype}", _mse_kernel, types, {"R": r, "B": b}, WARPS)
        r, b = _row_tile(carriers, 1024)
        types = pointers("x power out", dtype) | numbers
        for parts in (1, 2):
            constants = {"PARTS": parts, "R": r, "B": b}
            name = f"normalize.{carriers}.{dtype}{'.complex' if parts == 2 else ''}"
            add(name, _normalize_kernel, types, constants, WARPS)
    return cases
