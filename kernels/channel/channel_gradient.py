"""Gradients of the superposition channel: gains are drawn and powers allocated again, piece by piece."""

from __future__ import annotations

import torch
from torch import Tensor

from ..power.power_gradient import in_pieces, joint_gradient, separable_gradient
from ..power.power_reference import reciprocal, sums
from .channel_reference import (
    JOINT,
    Draw,
    Given,
    allocated,
    gains_of,
    noise_of,
    pieces,
    superposed,
    wanted,
)

Four = tuple[Tensor, Tensor, Tensor, Tensor]


def channel_gradient(grad: Tensor, given: Given, draw: Draw, allocate: int, detach: bool) -> Four:
    """By transmit, gains, alpha and power; empty where not given. Complex: dL/dRe + i dL/dIm."""
    t = given.transmit
    none = t.new_empty(0)
    d_t = torch.zeros_like(t, memory_format=torch.contiguous_format)
    d_g, d_alpha, d_power = (
        none if v is None else torch.zeros_like(v, memory_format=torch.contiguous_format)
        for v in (given.gains, given.alpha, given.power)
    )
    if not grad.numel():
        return d_t, d_g, d_alpha, d_power
    for part in pieces(given):
        mine, dy = given.rows(part), grad[part]
        g = gains_of(mine, draw, part.start)
        if allocate:
            found = _allocated(dy, mine, g, noise_of(mine, draw, part.start), allocate, detach)
            d_t[part], by_gains, d_power[part] = found
        else:
            u = mine.transmit
            if mine.alpha is not None:
                r = superposed(g, u.resolve_conj(), noise_of(mine, draw, part.start))
                d_alpha[part] = (dy.conj() * r).real.sum(-1)
                dy = dy * mine.alpha[:, None]
            d_t[part] = g.conj() * dy[:, None]
            by_gains = u.conj() * dy[:, None]
        if given.gains is not None:
            d_g[part] = by_gains
    return d_t, d_g, d_alpha, d_power


def _allocated(
    dy: Tensor, given: Given, g: Tensor, noise: Tensor, allocate: int, detach: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """By transmit, gains and power, through the allocation (`detach`: which then is a constant)."""
    t, power, rho = given.transmit.resolve_conj(), given.power, given.rho
    assert power is not None
    assert rho is not None
    u, alpha, dual = allocated(given, g, allocate)
    d_r = dy * alpha[:, None]
    d_alpha = None if detach else (dy.conj() * superposed(g, u, noise)).real.sum(-1)
    d_u, direct = g.conj() * d_r[:, None], u.conj() * d_r[:, None]
    c = rho.sqrt()[..., None]
    if allocate == JOINT:
        s = wanted(given)
        if detach:
            b = power[..., None] * g.abs().square()
            inverse = sums(b, s.abs().square(), given.noise, dual).inverse[:, None]
            share = (power * reciprocal(dual) * reciprocal(alpha)[:, None])[..., None]
            d_s = (share * inverse * g * d_u).sum(1)
            return c * d_s[:, None], direct, torch.zeros_like(power)
        d_g, d_s, d_power, _, _ = in_pieces(
            joint_gradient, (d_u, d_alpha, None, None), (g, s, power, given.noise, None), dual
        )
        return c * d_s[:, None], d_g + direct, d_power
    single = g.dtype == torch.complex64
    v = torch.ops.tenfold.ssdt_separable(
        g, power, given.noise, rho.sqrt(), None, 1e-6 if single else 1e-12, 128
    )[0]
    sent = v * t
    energy = sent.abs().square().mean(-1)
    over = energy > power
    factor = torch.where(over, power * reciprocal(energy), 1.0).sqrt()
    along = (d_u.conj() * sent).real.sum(-1)  # dL / d factor
    d_power = torch.where(over, 0.5 * along * factor / power, 0.0)
    by_energy = torch.where(over, -0.5 * along * factor * reciprocal(energy), 0.0)
    d_sent = d_u * factor[..., None] + (2 * by_energy / t.shape[-1])[..., None] * sent
    d_t = v.conj() * d_sent
    if detach:
        return d_t, direct, torch.zeros_like(power)
    d_g, by_power, _, _, _ = in_pieces(
        separable_gradient,
        (t.conj() * d_sent, d_alpha, None, None),
        (g, power, given.noise, rho.sqrt(), None),
        dual,
    )
    return d_t, d_g + direct, d_power + by_power
