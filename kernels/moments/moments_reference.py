"""Mean and scatter of feature rows, and the Frechet distance of two Gaussians, in float64.

These are matrix products and symmetric eigenvalues, which BLAS and LAPACK behind PyTorch do at the machine's
speed; what is left to win is doing fewer of them. A symmetric product is made by its lower blocks
alone, L^T S L uses that L is triangular, and where there are fewer rows than dimensions the eigenvalues are
those of a matrix of the rows' number.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

BLOCK = 256
"""Columns of a block of a symmetric product."""
CHUNK = 1024
"""Rows that are converted to float64 at a time."""


class Moments(NamedTuple):
    """Of n rows: their mean [D] and the scatter sum (x - mean)(x - mean)^T [D, D], float64."""

    n: int
    mean: Tensor
    scatter: Tensor

    @property
    def covariance(self) -> Tensor:
        """The unbiased covariance [D, D]."""
        return self.scatter / (self.n - 1)


class Rows(NamedTuple):
    """One side of a distance: its mean, and its covariance, or rows with spread^T spread = covariance."""

    mean: Tensor
    spread: Tensor | None
    covariance: Tensor | None


class Frechet(NamedTuple):
    """A Frechet distance and how it came about."""

    value: Tensor
    """The distance, a float64 scalar, not negative."""
    mean_term: float
    """The squared distance of the means."""
    trace: float
    """tr S1 + tr S2."""
    root_trace: float
    """tr (S1 S2)^(1/2)."""
    route: str
    """How: "rows" (singular values, or eigenvalues of a matrix of the rows' number), "cholesky", "eigh", or
    "equal" (the two sides are the same)."""
    rank: int
    """Eigenvalues that stand clear of rounding."""
    clipped: float
    """Sum of the square roots of eigenvalues below zero, which count as zero; rounding leaves such."""


def none(size: int, device: torch.device) -> Moments:
    """Moments of no rows."""
    zeros = torch.zeros(size, dtype=torch.float64, device=device)
    return Moments(0, zeros, torch.zeros(size, size, dtype=torch.float64, device=device))


def update(state: Moments, x: Tensor) -> Moments:
    """`state` and the rows x [N, D], which is read once in chunks."""
    if not len(x):
        return state
    shift = x[:1].double().mean(0)
    total = torch.zeros_like(shift)
    scatter = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64, device=x.device)
    for first in range(0, len(x), CHUNK):
        rows = x[first : first + CHUNK].double() - shift
        total += rows.sum(0)
        add_gram_(scatter, rows)
    mirror_(scatter)
    mean = total / len(x)
    scatter.addr_(total, mean, alpha=-1.0)
    return merge(state, Moments(len(x), mean + shift, scatter))


def merge(a: Moments, b: Moments) -> Moments:
    """Moments of the rows of both (Chan, Golub and LeVeque 1983)."""
    if not a.n or not b.n:
        return b if not a.n else a
    n = a.n + b.n
    gap = b.mean - a.mean
    part = gap * (a.n * b.n / n) ** 0.5
    scatter = (a.scatter + b.scatter).addr_(part, part)
    return Moments(n, a.mean + gap * (b.n / n), scatter)


def add_gram_(out: Tensor, rows: Tensor) -> None:
    """out += rows^T rows, its blocks on and below the diagonal only."""
    for j in range(0, out.shape[0], BLOCK):
        out[j:, j : j + BLOCK].addmm_(rows[:, j:].T, rows[:, j : j + BLOCK])


def mirror_(out: Tensor) -> None:
    """Blocks above the diagonal from those below."""
    for j in range(0, out.shape[0], BLOCK):
        out[j : j + BLOCK, j + BLOCK :] = out[j + BLOCK :, j : j + BLOCK].T


def spread(x: Tensor) -> Tensor:
    """[N - 1, D] float64 rows whose Gram matrix is the unbiased covariance of x [N, D].

    Helmert's rows, (x_1 + .. + x_k - k x_(k+1)) / sqrt(k (k + 1)), span what centred rows span, without the
    one direction in which these are zero: its eigenvalue would be rounding, and its square root 1e-8.
    """
    rows = x.double() - x[:1].double()
    k = torch.arange(1, len(x), dtype=torch.float64, device=x.device)[:, None]
    out = rows[:-1].cumsum(0)
    out -= k * rows[1:]
    return out.div_((k * (k + 1) * (len(x) - 1)).sqrt_())


def frechet(a: Rows, b: Rows) -> Frechet:
    """|m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2).

    The last trace is the sum of the singular values of A B^T for S1 = A^T A and S2 = B^T B. Where both sides
    have fewer rows than dimensions, A and B are their spread rows and it is computed as that (route "rows").
    Else symmetric eigenvalues serve: of B S1 B^T where one side has few rows (route "rows" too), or of
    L^T S2 L with S1 = L L^T (route "cholesky"). Where neither covariance is positive
    definite and there are no rows, S1's own square root takes L's place (route "eigh", good to about 1e-7).
    """
    gap = a.mean - b.mean
    mean_term, trace = float(gap @ gap), _trace(a) + _trace(b)
    if _same(a, b):
        return Frechet(gap.new_zeros(()), 0.0, trace, trace / 2, "equal", 0, 0.0)
    if a.spread is not None and b.spread is not None:
        roots, below, route = torch.linalg.svdvals(a.spread @ b.spread.T), 0.0, "rows"
        clear = roots > roots[0] * len(roots) * torch.finfo(torch.float64).eps
    else:
        product, route = _product(a, b)
        eigenvalues = torch.linalg.eigvalsh(product)
        below = float(eigenvalues.clamp_max(0.0).neg_().sqrt_().sum())
        clear = eigenvalues > eigenvalues[-1] * len(eigenvalues) * torch.finfo(torch.float64).eps
        roots = eigenvalues.clamp_min(0.0).sqrt_()
    root = float(roots.sum())
    value = max(0.0, mean_term + trace - 2.0 * root)
    return Frechet(gap.new_tensor(value), mean_term, trace, root, route, int(clear.sum()), below)


def _same(a: Rows, b: Rows) -> bool:
    if not torch.equal(a.mean, b.mean):
        return False
    if a.spread is not None and b.spread is not None:
        return torch.equal(a.spread, b.spread)
    return a.covariance is not None and b.covariance is not None and torch.equal(a.covariance, b.covariance)


def _trace(side: Rows) -> float:
    if side.covariance is not None:
        return float(side.covariance.trace())
    assert side.spread is not None
    return float(side.spread.square().sum())


def _product(a: Rows, b: Rows) -> tuple[Tensor, str]:
    """A symmetric matrix whose eigenvalues are those of S1 S2, but for zeros, and how it was found."""
    if a.spread is not None:
        a, b = b, a
    if b.spread is not None:
        assert a.covariance is not None
        return b.spread @ a.covariance @ b.spread.T, "rows"
    assert a.covariance is not None
    assert b.covariance is not None
    for one, other in ((a.covariance, b.covariance), (b.covariance, a.covariance)):
        factor, failed = torch.linalg.cholesky_ex(one)
        if not int(failed):
            return _congruent(factor, other), "cholesky"
    values, vectors = torch.linalg.eigh(a.covariance)
    half = vectors * values.clamp_min(0.0).sqrt_()
    return half.T @ b.covariance @ half, "eigh"


def _congruent(factor: Tensor, s: Tensor) -> Tensor:
    """The lower blocks of L^T S L, L lower triangular: a third of the work of two full products."""
    half = torch.empty_like(s)
    for j in range(0, len(s), BLOCK):  # column j of L starts at row j
        torch.mm(s[:, j:], factor[j:, j : j + BLOCK], out=half[:, j : j + BLOCK])
    out = torch.empty_like(s)
    for i in range(0, len(s), BLOCK):
        out[i : i + BLOCK, : i + BLOCK] = factor[i:, i : i + BLOCK].T @ half[i:, : i + BLOCK]
    return out  # eigvalsh reads the lower triangle
