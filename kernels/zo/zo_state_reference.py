"""Zeroth-order passes with state in plain PyTorch: the oracle of the native kernels (see zo_reference.py).

Scalars are made in float64 and each rounded once to the compute dtype. g = 0; g = fma(coef_k, z_k, g), k in
order; g = 0 where an element is masked. `decayed` is decay*theta. Weights are rounded to their dtype last; a
state is stored in its own dtype, bfloat16 by stochastic rounding with bits of its own (the rounding query
with its top bit flipped for the first state, the bit below for the second). Weights see the states before
that rounding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from . import zo_reference as ref
from .zo_mask import MaskArgs, masked

FIRST_STATE, SECOND_STATE = 0x800000, 0x400000


def _gradient(
    x: Tensor,
    t: int,
    stream: int,
    first: int,
    seeds: Sequence[int],
    queries: Sequence[int],
    coefs: Sequence[float],
    dists: Sequence[str],
    z_round: torch.dtype | None,
    mask: MaskArgs | None,
    start: int,
) -> Tensor:
    """g for the weights x [n], elements first, first+1, ... of tensor t, which starts at `start`."""
    g = ref._direction(torch.zeros_like(x), stream, first, seeds, queries, coefs, dists, z_round)
    return g if mask is None else torch.where(masked(mask, t, x, stream, first, start), 0.0, g)


def _decayed(x: Tensor, decay: float) -> Tensor:
    return x * ref._scalar(decay, x.dtype) if decay != 1.0 else x


def _store_state(target: Tensor, value: Tensor, first: int, stream: int, seed: int, query: int) -> None:
    ref._store(target, value, first, stream, True, seed, query)


@torch.no_grad()
def momentum_(
    params: Sequence[Tensor],
    momentum_buffers: Sequence[Tensor],
    streams: Sequence[int],
    seeds: Sequence[int],
    queries: Sequence[int],
    coefs: Sequence[float],
    dists: Sequence[str],
    lr: float,
    momentum: float,
    dampening: float,
    nesterov: bool,
    first_step: bool,
    decay: float = 1.0,
    z_round: torch.dtype | None = None,
    stochastic: bool = False,
    rounding_seed: int = 0,
    rounding_query: int = 0,
    mask: MaskArgs | None = None,
    firsts: Sequence[int] = (),
) -> None:
    """SGD with momentum, in the convention of torch.optim.SGD.

    m = g on the first step, else fma(momentum, m, (1-dampening)*g)
    d = fma(momentum, m, g) if nesterov else m
    theta = round(fma(-lr, d, decayed))
    """
    columns = seeds, queries, coefs, dists
    for t, (param, buffer, stream) in enumerate(zip(params, momentum_buffers, streams, strict=True)):
        dtype, start = ref._compute_dtype(param), ref._start(firsts, t)
        rate, keep, fresh = (ref._scalar(v, dtype) for v in (-lr, momentum, 1 - dampening))
        for first, (target, m_at) in ref._pieces((param, buffer), start):
            x = target.reshape(-1).to(dtype)
            g = _gradient(x, t, stream, first, *columns, z_round, mask, start)
            m = g if first_step else ref._fma(keep, m_at.reshape(-1).to(dtype), fresh * g, dtype)
            d = ref._fma(keep, m, g, dtype) if nesterov else m
            acc = ref._fma(rate, d, _decayed(x, decay), dtype)
            _store_state(m_at, m, first, stream, rounding_seed, rounding_query ^ FIRST_STATE)
            ref._store(target, acc, first, stream, stochastic, rounding_seed, rounding_query)


@torch.no_grad()
def adam_(
    params: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    streams: Sequence[int],
    seeds: Sequence[int],
    queries: Sequence[int],
    coefs: Sequence[float],
    dists: Sequence[str],
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    step: int,
    decay: float = 1.0,
    z_round: torch.dtype | None = None,
    stochastic: bool = False,
    rounding_seed: int = 0,
    rounding_query: int = 0,
    variant: str = "adam",
    mask: MaskArgs | None = None,
    firsts: Sequence[int] = (),
) -> None:
    """Adam (Kingma and Ba, arXiv 1412.6980) on g = sum_k coef_k z_k, in place on theta and states; step >= 1.

    Per element:
        m = fma(beta1, m, (1-beta1)*g)
        v = fma(beta2, v, ((1-beta2)*g)*g)         "radazo" (arXiv 2502.01014): the new m in place of g
        denominator = fma(sqrt(v), 1/sqrt(1-beta2^step), eps)
        theta = round(fma(-lr/(1-beta1^step), m/denominator, decayed))
    """
    columns = seeds, queries, coefs, dists
    values = beta1, beta2, 1 - beta1, 1 - beta2, 1 / math.sqrt(1 - beta2**step), eps, -lr / (1 - beta1**step)
    tensors = zip(params, exp_avgs, exp_avg_sqs, streams, strict=True)
    for t, (param, mean, square, stream) in enumerate(tensors):
        dtype, start = ref._compute_dtype(param), ref._start(firsts, t)
        b1, b2, one_b1, one_b2, inverse, tiny, rate = (ref._scalar(value, dtype) for value in values)
        for first, (target, m_at, v_at) in ref._pieces((param, mean, square), start):
            x = target.reshape(-1).to(dtype)
            g = _gradient(x, t, stream, first, *columns, z_round, mask, start)
            m = ref._fma(b1, m_at.reshape(-1).to(dtype), one_b1 * g, dtype)
            squared = m if variant == "radazo" else g
            v = ref._fma(b2, v_at.reshape(-1).to(dtype), (one_b2 * squared) * squared, dtype)
            denominator = ref._fma(ref._sqrt(v), inverse, tiny, dtype)
            acc = ref._fma(rate, m / denominator, _decayed(x, decay), dtype)
            _store_state(m_at, m, first, stream, rounding_seed, rounding_query ^ FIRST_STATE)
            _store_state(v_at, v, first, stream, rounding_seed, rounding_query ^ SECOND_STATE)
            ref._store(target, acc, first, stream, stochastic, rounding_seed, rounding_query)


@torch.no_grad()
def sign_(
    params: Sequence[Tensor],
    streams: Sequence[int],
    seeds: Sequence[int],
    queries: Sequence[int],
    coefs: Sequence[float],
    dists: Sequence[str],
    lr: float,
    decay: float = 1.0,
    z_round: torch.dtype | None = None,
    stochastic: bool = False,
    rounding_seed: int = 0,
    rounding_query: int = 0,
    mask: MaskArgs | None = None,
    firsts: Sequence[int] = (),
) -> None:
    """theta = round(fma(-lr, s, decayed)), s = 1 where g > 0, -1 where g < 0, else 0."""
    columns = seeds, queries, coefs, dists
    for t, (param, stream) in enumerate(zip(params, streams, strict=True)):
        dtype, start = ref._compute_dtype(param), ref._start(firsts, t)
        for first, (target,) in ref._pieces((param,), start):
            x = target.reshape(-1).to(dtype)
            g = _gradient(x, t, stream, first, *columns, z_round, mask, start)
            sign = (g > 0).to(dtype) - (g < 0).to(dtype)
            acc = ref._fma(ref._scalar(-lr, dtype), sign, _decayed(x, decay), dtype)
            ref._store(target, acc, first, stream, stochastic, rounding_seed, rounding_query)


def _drawn(
    x: Tensor, stream: int, first: int, seed: int, query: int, dist: str, z_round: torch.dtype | None
) -> Tensor:
    z = ref._DISTRIBUTIONS[dist](seed, stream, query, first, x.numel(), x.device)
    return (z if z_round is None else z.to(z_round)).to(x.dtype)


@torch.no_grad()
def hizoo_perturb_(
    params: Sequence[Tensor],
    sources: Sequence[Tensor] | None,
    hessians: Sequence[Tensor],
    streams: Sequence[int],
    seed: int,
    query: int,
    c: float,
    dist: str,
    z_round: torch.dtype | None = None,
    stochastic: bool = False,
    rounding_seed: int = 0,
    rounding_query: int = 0,
    mask: MaskArgs | None = None,
    firsts: Sequence[int] = (),
) -> None:
    """theta = round(fma(c, z/sqrt(h), source)); masked elements are copied (HiZOO, arXiv 2402.15173)."""
    tensors = zip(params, params if sources is None else sources, hessians, streams, strict=True)
    for t, (param, source, hessian, stream) in enumerate(tensors):
        dtype, start = ref._compute_dtype(param), ref._start(firsts, t)
        for first, (target, clean, h_at) in ref._pieces((param, source, hessian), start):
            x = clean.reshape(-1).to(dtype)
            z = _drawn(x, stream, first, seed, query, dist, z_round)
            acc = ref._fma(ref._scalar(c, dtype), z / ref._sqrt(h_at.reshape(-1)), x, dtype)
            if mask is not None:
                acc = torch.where(masked(mask, t, x, stream, first, start), x, acc)
            ref._store(target, acc, first, stream, stochastic, rounding_seed, rounding_query)


@torch.no_grad()
def hizoo_update_(
    params: Sequence[Tensor],
    hessians: Sequence[Tensor],
    streams: Sequence[int],
    seeds: Sequence[int],
    queries: Sequence[int],
    coefs: Sequence[float],
    dists: Sequence[str],
    curvatures: Sequence[float],
    lr: float,
    smoothing: float,
    restore: float = 0.0,
    decay: float = 1.0,
    z_round: torch.dtype | None = None,
    stochastic: bool = False,
    rounding_seed: int = 0,
    rounding_query: int = 0,
    mask: MaskArgs | None = None,
    firsts: Sequence[int] = (),
) -> None:
    """A HiZOO step (Zhao et al., arXiv 2402.15173) on weights and the diagonal of the Hessian.

    theta = fma(restore, z/sqrt(h), theta)      unless restore is 0, which takes one term
    t = fma(curvature_k, z_k*z_k, t) from 0, k in order
    h = fma(a, h*t, (1-a)*h), a the smoothing
    theta = round(fma(-lr, g/sqrt(h), decay*theta))
    A masked element gets round(decay*theta), and its h stays.
    """
    for i, (param, hessian, stream) in enumerate(zip(params, hessians, streams, strict=True)):
        dtype, start = ref._compute_dtype(param), ref._start(firsts, i)
        a, one_a, rate, back = (ref._scalar(v, dtype) for v in (smoothing, 1 - smoothing, -lr, restore))
        for first, (target, h_at) in ref._pieces((param, hessian), start):
            x, before = target.reshape(-1).to(dtype), h_at.reshape(-1)
            g, t, theta = torch.zeros_like(x), torch.zeros_like(x), x
            for seed, query, coef, dist, curvature in zip(
                seeds, queries, coefs, dists, curvatures, strict=True
            ):
                z = _drawn(x, stream, first, seed, query, dist, z_round)
                if restore != 0.0:
                    theta = ref._fma(back, z / ref._sqrt(before), theta, dtype)
                g = ref._fma(ref._scalar(coef, dtype), z, g, dtype)
                t = ref._fma(ref._scalar(curvature, dtype), z * z, t, dtype)
            h = ref._fma(a, before * t, one_a * before, dtype)
            acc = ref._fma(rate, g / ref._sqrt(h), _decayed(theta, decay), dtype)
            if mask is not None:
                out = masked(mask, i, x, stream, first, start)
                h, acc = torch.where(out, before, h), torch.where(out, _decayed(x, decay), acc)
            h_at.copy_(h.view(h_at.shape))
            ref._store(target, acc, first, stream, stochastic, rounding_seed, rounding_query)


@torch.no_grad()
def replay_(
    params: Sequence[Tensor],
    streams: Sequence[int],
    seeds: Sequence[int],
    queries: Sequence[int],
    coefs: Sequence[float],
    dists: Sequence[str],
    sizes: Sequence[int],
    decays: Sequence[float],
    rounding_seeds: Sequence[int],
    rounding_queries: Sequence[int],
    mask_seeds: Sequence[int],
    mask_queries: Sequence[int],
    mask_ratios: Sequence[float],
    z_round: torch.dtype | None = None,
    stochastic: bool = False,
) -> None:
    """One chain_ per pass. Pass p has sizes[p] of the terms; ratios stand tensor by tensor, negative for no
    mask.

    mask_ratios is empty, or holds len(sizes) * len(params) entries, those of pass p from p * len(params) on.
    """
    for p, end in enumerate(accumulate(sizes)):
        terms = slice(end - sizes[p], end)
        ratios = list(mask_ratios[p * len(params) : (p + 1) * len(params)])
        mask = MaskArgs("random", mask_seeds[p], mask_queries[p], ratios, [])
        chain = seeds[terms], queries[terms], coefs[terms], dists[terms], decays[p], z_round, stochastic
        rounding = rounding_seeds[p], rounding_queries[p]
        unmasked = not ratios or ratios[0] < 0
        ref.chain_(params, None, streams, *chain, *rounding, None if unmasked else mask)
