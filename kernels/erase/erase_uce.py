"""Unified Concept Editing on BLAS and LAPACK: one Gram matrix, one Cholesky factor, two products per matrix.

The products are dense and large, so that libraries do them at the processor's peak; what is ours is that
there are few of them: half of the Gram matrix, nothing per prompt, nothing twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

_BLOCKS = 4
"""Columns of the Gram matrix are cut into so many parts; those below its diagonal are not made."""
_CHUNK_BYTES = 1 << 23
_APPLY_BYTES = 1 << 21


def gram(rows: Tensor, weights: Tensor | None = None) -> Tensor:
    """rows^T diag(weights) rows in float64 [d, d], through float64 copies of a few rows at a time."""
    count, d = rows.shape
    out = torch.zeros(d, d, dtype=torch.float64, device=rows.device)
    step = -(-d // _BLOCKS)
    edges = [(i, min(i + step, d)) for i in range(0, d, step)]
    chunk = min(max(d, _CHUNK_BYTES // (8 * max(d, 1))), count)
    room = torch.empty(chunk, d, dtype=torch.float64, device=rows.device)
    for first in range(0, count, max(chunk, 1)):
        part = room[: min(chunk, count - first)].copy_(rows[first : first + chunk])
        scaled = part if weights is None else part * weights[first : first + chunk, None].double()
        for i, j in edges:
            out[i:j, i:].addmm_(scaled[:, i:j].T, part[:, i:])
    upper = out.triu()
    return upper + out.triu(1).T


def factors(
    old: Tensor,
    keep: Tensor,
    keep_weights: Tensor | None,
    lam: float,
    erase_scale: float,
    retain_scale: float,
) -> tuple[Tensor, int, float]:
    """(R = s_e C_o M^-1 [m, d]; 1 if the system is singular, -1 if sums of squares are not finite, else 0;
    the least pivot). Rounding alone makes a singular matrix look definite, with pivots of the size of the
    largest entry times eps: such a one is singular too."""
    system = erase_scale * gram(old) + retain_scale * gram(keep, keep_weights)
    if not bool(system.diagonal().isfinite().all()):
        return old, -1, 0.0
    system.diagonal().add_(lam)
    factor, wrong = torch.linalg.cholesky_ex(system)
    pivot = float(factor.diagonal().square().min()) if len(factor) else 1.0
    largest = float(system.diagonal().max()) if len(factor) else 0.0
    if int(wrong) or pivot <= 4 * len(system) * torch.finfo(torch.float64).eps * largest:
        return old, 1, 0.0 if int(wrong) else pivot
    right = torch.cholesky_solve(erase_scale * old.double().T, factor).T.contiguous()
    return right, 0, pivot


def row_chunks(w: Tensor, rank: int, wide: torch.dtype) -> Iterator[slice]:
    """Rows whose products with the factors stay in the cache."""
    step = max(64, _APPLY_BYTES // (wide.itemsize * max(w.shape[1] + rank, 1)))
    return (slice(i, i + step) for i in range(0, len(w), step))


def change_rows(
    w: Tensor,
    right: Tensor,
    left: Tensor,
    old: Tensor | None,
    blocks: Sequence[int],
) -> Tensor:
    """What is added to a matrix (in the type of the math) by an edit."""
    values = w @ left.T
    if old is not None:
        values.sub_(projections(w, left, old, blocks))
    return values @ right


def projections(w: Tensor, left: Tensor, old: Tensor, blocks: Sequence[int]) -> Tensor:
    """For technique "tensor": with V_o = C_o W^T, V_n = C_n W^T of one prompt's rows, V* = V_n - <U, V_n> U
    and U = V_o / |V_o|, so V* - V_o = (V_n - V_o) - a V_o with a = <V_o, V_n> / |V_o|^2."""
    before = w @ old.T
    after = before + w @ left.T
    for first, last in pairwise(blocks):
        part = before[:, first:last]
        norm = part.double().square().sum()
        inner = (part.double() * after[:, first:last].double()).sum()
        part.mul_((inner / norm if norm > 0 else inner).to(part.dtype))
    return before
