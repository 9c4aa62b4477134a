"""Low-rank zeroth-order passes in plain PyTorch: the oracle of the native kernels, and the fallback.

A direction of a matrix W [m, n] is Z = U V^T with U [m, r] regenerated from its counter and V [n, r] kept
(LOZO, Chen et al., arXiv 2410.07698).  Element (i, j) of a factor is normal number i*r + j of its sequence:
block (i*r + j)/4, position (i*r + j)%4, purpose 5 for U and 6 for V; the normals are those of
zo_reference.py.  Every value is defined to the bit; each line says where it rounds.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tenfold.kernels.zo import zo_reference as zo
from torch import Tensor

SIDES = {"u": "lowrank_u", "v": "lowrank_v"}


def normals(
    seed: int, stream: int, query: int, side: str, first: int, n: int, device: torch.device | str
) -> Tensor:
    """Elements [first, first+n) of a factor, float32."""
    x, skip = zo._word_range(seed, stream, query, SIDES[side], first, n, 4, device)
    z0, z1 = zo._box_muller(x[:, 0], x[:, 1])
    z2, z3 = zo._box_muller(x[:, 2], x[:, 3])
    return torch.stack((z0, z1, z2, z3), dim=1).reshape(-1)[skip : skip + n]


def factor_(out: Tensor, seed: int, stream: int, query: int, side: str) -> None:
    """Fill contiguous `out` [rows, rank] with a factor, rounded to its dtype."""
    flat = out.view(-1)
    for at in range(0, flat.numel(), zo.CHUNK):
        n = min(zo.CHUNK, flat.numel() - at)
        flat[at : at + n] = normals(seed, stream, query, side, at, n, out.device)


def project_(
    out: Tensor, seeds: Sequence[int], queries: Sequence[int], coefs: Sequence[float], stream: int, side: str
) -> None:
    """Fill contiguous float32 `out` [rows, rank] with sum_k coef_k U_k: one fma per term from 0, in order."""
    flat = out.view(-1)
    for at in range(0, flat.numel(), zo.CHUNK):
        n = min(zo.CHUNK, flat.numel() - at)
        acc = torch.zeros(n, device=out.device)
        for seed, query, coef in zip(seeds, queries, coefs, strict=True):
            u = normals(seed, stream, query, side, at, n, out.device)
            acc = zo.fma32(zo._scalar(coef, torch.float32), u, acc)
        flat[at : at + n] = acc


def _product(u: Tensor, v: Tensor, dtype: torch.dtype) -> Tensor:
    """u v^T, one fma per rank from 0, in order."""
    s = torch.zeros(u.shape[0], v.shape[0], dtype=dtype, device=u.device)
    for j in range(u.shape[1]):
        s = zo._fma(u[:, j, None], v[None, :, j], s, dtype)
    return s


@torch.no_grad()
def lowrank_(
    params: Sequence[Tensor],
    sources: Sequence[Tensor] | None,
    vs: Sequence[Tensor],
    us: Sequence[Tensor] | None,
    streams: Sequence[int],
    seeds: Sequence[int],
    queries: Sequence[int],
    coefs: Sequence[float],
    decay: float = 1.0,
    stochastic: bool = False,
    rounding_seed: int = 0,
    rounding_query: int = 0,
) -> None:
    """W = round(decay*source + sum_k coef_k U_k V^T) in place.

    Per element, in float32 (float64 for float64 matrices, factors cast up):
        acc = decay*source
        s = 0; s = fma(U_k[i, l], V[j, l], s)   l in order
        acc = fma(coef_k, s, acc)               k in order
    and one rounding, stochastic with the bits of (rounding_seed, stream, rounding_query), element i*n + j.
    `us` gives the one U explicitly; seeds and queries are then not used.
    """
    for index, (param, stream) in enumerate(zip(params, streams, strict=True)):
        if param.numel() == 0:
            continue
        m, n = param.shape
        dtype = zo._compute_dtype(param)
        source = param if sources is None else sources[index]
        v = vs[index].to(dtype)
        rank = v.shape[1]
        height = max(1, zo.CHUNK // n)
        for row in range(0, m, height):
            rows = min(height, m - row)
            acc = source[row : row + rows].to(dtype)
            if decay != 1.0:
                acc = acc * zo._scalar(decay, dtype)
            for seed, query, coef in zip(seeds, queries, coefs, strict=True):
                if us is None:
                    u = normals(seed, stream, query, "u", row * rank, rows * rank, param.device).view(
                        rows, rank
                    )
                else:
                    u = us[index][row : row + rows]
                acc = zo._fma(zo._scalar(coef, dtype), _product(u.to(dtype), v, dtype), acc, dtype)
            target = param[row : row + rows]
            zo._store(target, acc.reshape(-1), row * n, stream, stochastic, rounding_seed, rounding_query)
