"""Perturbed linear and embedding layers in plain PyTorch: the oracle of the native kernels, and the fallback.

A layer with weights W + c z, z regenerated from its counter, without writing W: two such calls, with +eps and
-eps, are the probes of a zeroth-order step (MeZO, Malladi et al., arXiv 2305.17333) that need no restoring.
z is element for element that of zo_reference.chain_.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tenfold.kernels.zo import zo_reference as zo
from torch import Tensor

from . import linear as blocks


def _direction(
    first: int,
    n: int,
    seed: int,
    stream: int,
    query: int,
    dist: str,
    z_round: torch.dtype | None,
    like: Tensor,
) -> Tensor:
    """z of elements [first, first+n) in the dtype of the math on `like`."""
    z = zo._DISTRIBUTIONS[dist](seed, stream, query, first, n, like.device)
    if z_round is not None:
        z = z.to(z_round)
    return z.to(zo._compute_dtype(like))


@torch.no_grad()
def fill(
    weight: Tensor,
    row: int,
    outs: Sequence[Tensor],
    coefs: Sequence[float],
    seed: int,
    stream: int,
    query: int,
    dist: str,
    z_round: torch.dtype | None,
) -> None:
    """outs[g] = round(fma(coefs[g], z, W[row : row + rows])), rows and rounding those of outs[g]."""
    rows, k = outs[0].shape
    dtype = zo._compute_dtype(weight)
    height = max(1, zo.CHUNK // max(1, k))
    for at in range(0, rows, height):
        count = min(height, rows - at)
        z = _direction((row + at) * k, count * k, seed, stream, query, dist, z_round, weight).view(count, k)
        w = weight[row + at : row + at + count].to(dtype)
        for out, coef in zip(outs, coefs, strict=True):
            out[at : at + count] = zo._fma(zo._scalar(coef, dtype), z, w, dtype)


@torch.no_grad()
def embed(
    weight: Tensor,
    ids: Sequence[Tensor],
    outs: Sequence[Tensor],
    coefs: Sequence[float],
    seed: int,
    stream: int,
    query: int,
    dist: str,
    z_round: torch.dtype | None,
) -> None:
    """outs[g] [T, K] = round(fma(coefs[g], z[ids[g]], W[ids[g]])); z is made for these rows only."""
    k = weight.shape[1]
    dtype = zo._compute_dtype(weight)
    rows, places = torch.unique(torch.stack(list(ids)), return_inverse=True)
    z = torch.empty(rows.numel(), k, dtype=dtype, device=weight.device)
    for i, row in enumerate(rows.tolist()):
        z[i] = _direction(row * k, k, seed, stream, query, dist, z_round, weight)
    for g, (out, coef) in enumerate(zip(outs, coefs, strict=True)):
        w = weight[ids[g]].to(dtype)
        out.copy_(zo._fma(zo._scalar(coef, dtype), z[places[g]], w, dtype))


def linear(*arguments: Any) -> Tensor:
    """See linear.linear."""
    return blocks.linear(fill, *arguments)
