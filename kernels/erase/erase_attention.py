"""Attention columns on the CPU: products by BLAS, tiles of rows that stay in the second-level cache."""

from __future__ import annotations

import torch
from torch import Tensor

from .erase_reference import math_dtype

_TILE_BYTES = 1 << 19


def column_norm(q: Tensor, k: Tensor, mask: Tensor, scale: float) -> Tensor:
    """See erase_reference.column_norm."""
    wide, total = math_dtype(q, k), 0.0
    for b in range(q.shape[0]):
        columns = mask[b].nonzero().flatten()
        for head in range(q.shape[1]):
            keys = k[b, head].to(wide).T
            for first, last in _rows(q, k, wide):
                p = torch.mm(q[b, head, first:last].to(wide), keys).mul_(scale)
                p.sub_(p.amax(1, keepdim=True)).exp_()
                sums, chosen = p.sum(1), p.index_select(1, columns).square_().sum(1)
                total += float(chosen.div_(sums.square_()).sum(dtype=torch.float64))
    return torch.tensor(total, dtype=torch.float64)


def column_norm_backward(
    grad: Tensor, q: Tensor, k: Tensor, mask: Tensor, scale: float, dq: Tensor | None, dk: Tensor | None
) -> None:
    """See erase_reference.column_norm_backward."""
    wide, factor = math_dtype(q, k), 2 * scale * float(grad)
    sums = torch.zeros(k.shape, dtype=wide) if dk is not None else None
    for b in range(q.shape[0]):
        chosen = mask[b].to(wide)
        for head in range(q.shape[1]):
            keys = k[b, head].to(wide)
            for first, last in _rows(q, k, wide):
                rows = q[b, head, first:last].to(wide)
                p = torch.mm(rows, keys.T).mul_(scale)
                p.sub_(p.amax(1, keepdim=True)).exp_()
                p.div_(p.sum(1, keepdim=True))
                picked = p * chosen
                norms = torch.linalg.vector_norm(picked, dim=1, keepdim=True).square_()
                ds = picked.sub_(norms).mul_(p).mul_(factor)
                if dq is not None:
                    dq[b, head, first:last] = torch.mm(ds, keys)
                if sums is not None:
                    sums[b, head].addmm_(ds.T, rows)
    if dk is not None and sums is not None:
        dk.copy_(sums)


def _rows(q: Tensor, k: Tensor, wide: torch.dtype) -> list[tuple[int, int]]:
    tile = max(16, _TILE_BYTES // (k.shape[2] * wide.itemsize))
    return [(i, min(i + tile, q.shape[2])) for i in range(0, q.shape[2], tile)]
