"""Closed-form edits W' = W + (W D^T) R as a pair of small matrices: made one of several, undone, made
smaller.

W' = W (I + D^T R) with R and D [m, d]; m is the number of erased rows, or the rank once it is cut.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tenfold import _checks

__all__ = ["closed_value", "composed", "inverted", "shortened"]


def closed_value(weight: Tensor, right: Tensor, left: Tensor) -> Tensor:
    """W + (W D^T) R for a weight [out, d] of any floating type: computed in float64, rounded once."""
    exact = weight.double()
    d, r = left.to(exact), right.to(exact)
    return (exact + (exact @ d.T) @ r).to(weight.dtype)


def composed(pairs: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """(R, D) that do what the pairs (R_i, D_i) do one after the other.

    (I + A^T P)(I + B^T Q) = I + A^T (P + P B^T Q) + B^T Q, so D = [A; B] and R = [P + (P B^T) Q; Q].
    """
    right, left = (x.double() for x in pairs[0])
    for q, b in pairs[1:]:
        if b.shape[1] != left.shape[1]:
            _checks.fail(ValueError, "edits", f"matrices of {left.shape[1]} columns", b.shape[1])
        q, b = q.to(right), b.to(left)
        right, left = torch.cat([right + (right @ b.T) @ q, q]), torch.cat([left, b])
    return right, left


def inverted(right: Tensor, left: Tensor) -> tuple[Tensor, Tensor]:
    """(R, D) that lead back: (I + D^T R)^-1 = I - D^T (I + R D^T)^-1 R.

    Raises:
        RuntimeError: the edit cannot be undone, I + R D^T is singular.
    """
    r, d = right.double(), left.double()
    core = torch.eye(len(r), dtype=torch.float64, device=r.device) + r @ d.T
    factor, wrong = torch.linalg.inv_ex(core)
    if int(wrong) or not bool(factor.isfinite().all()):
        _checks.fail(RuntimeError, "edit", "one that has an inverse", "a singular one")
    return -(factor @ r), d


def shortened(right: Tensor, left: Tensor, tolerance: float) -> tuple[Tensor, Tensor, float]:
    """(R, D, error): singular values of D^T R below `tolerance` times the largest are left out.

    error: Frobenius norm of what is left out over that of D^T R. With nothing left the pair has no rows.
    """
    _checks.real("truncate", tolerance, at_least=0.0)
    r, d = right.double(), left.double()
    qd, td = torch.linalg.qr(d.T)
    qr, tr = torch.linalg.qr(r.T)
    u, s, v = torch.linalg.svd(td @ tr.T)
    largest = float(s.max()) if len(s) else 0.0
    kept = int((s > tolerance * largest).sum()) if largest else 0
    root = s[:kept].sqrt()
    whole = float(s.norm())
    error = float(s[kept:].norm()) / whole if whole else 0.0
    return (qr @ v.T[:, :kept] * root).T.contiguous(), (qd @ u[:, :kept] * root).T.contiguous(), error
