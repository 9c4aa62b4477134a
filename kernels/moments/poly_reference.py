"""Squared MMD with a polynomial kernel k(a, b) = (gamma a.b + coef)^degree, tile after tile.

A tile of the kernel matrix is one matrix product; nothing of n x n is kept. The estimates of many subsets
come from one pass: with the 0/1 matrix Z of subsets, the sums over the pairs of all subsets are column sums
of Z * (K Z), so each pair of points is visited once, however many subsets hold it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

TILE = 512
"""Rows of a tile."""


class Poly(NamedTuple):
    """The kernel (gamma a.b + coef)^degree."""

    degree: int
    gamma: float
    coef: float


def kernel(a: Tensor, b: Tensor, k: Poly) -> Tensor:
    """[N, M] float64; the product itself is in the points' own type."""
    return _power((a @ b.T).double().mul_(k.gamma).add_(k.coef), k.degree)


def _power(base: Tensor, degree: int) -> Tensor:
    """base^degree by products: torch's pow takes a logarithm for each."""
    if degree == 0:
        return torch.ones_like(base)
    out = base
    for _ in range(degree - 1):
        out = out * base
    return out


def _diagonal(x: Tensor, k: Poly) -> Tensor:
    return _power(x.double().square().sum(1).mul_(k.gamma).add_(k.coef), k.degree)


def _weights(n: int, biased: bool) -> float:
    return 1.0 / (n * n if biased else n * (n - 1))


def mmd2(x: Tensor, y: Tensor, k: Poly, biased: bool) -> Tensor:
    """The estimate from all points, a float64 scalar."""
    total = x.new_zeros((), dtype=torch.float64)
    for points in (x, y):
        inner = total.new_zeros(())
        for first in range(0, len(points), TILE):
            tile, last = points[first : first + TILE], min(first + TILE, len(points))
            inner += kernel(tile, tile, k).sum()
            inner += 2.0 * kernel(tile, points[last:], k).sum()
        if not biased:
            inner -= _diagonal(points, k).sum()
        total += inner * _weights(len(points), biased)
    cross = total.new_zeros(())
    for first in range(0, len(x), TILE):
        cross += kernel(x[first : first + TILE], y, k).sum()
    return total - 2.0 * cross / (len(x) * len(y))


def gradients(x: Tensor, y: Tensor, k: Poly, biased: bool) -> tuple[Tensor, Tensor]:
    """d mmd2 / d x and d y, of the points' dtype."""
    return _gradient(x, y, k, biased), _gradient(y, x, k, biased)


def _gradient(x: Tensor, y: Tensor, k: Poly, biased: bool) -> Tensor:
    out = torch.zeros_like(x)
    slope = Poly(k.degree - 1, k.gamma, k.coef)
    scale = 2.0 * k.degree * k.gamma
    if not k.degree:
        return out
    for first in range(0, len(x), TILE):
        rows = x[first : first + TILE]
        own = kernel(rows, x, slope)
        if not biased:
            at = torch.arange(len(rows), device=x.device)
            own[at, at + first] = 0.0
        own *= scale * _weights(len(x), biased)
        other = kernel(rows, y, slope).mul_(-scale / (len(x) * len(y)))
        out[first : first + TILE] = own.to(x.dtype) @ x + other.to(x.dtype) @ y
    return out


def subset_mmd2(x: Tensor, y: Tensor, picks: tuple[Tensor, Tensor], k: Poly) -> Tensor:
    """Unbiased estimates [S] of subsets: picks are int64 [S, m] places in x and in y, none twice in a row."""
    size = picks[0].shape[1]
    zx, zy = _indicator(picks[0], len(x)), _indicator(picks[1], len(y))
    own = zx.new_zeros(len(picks[0]))
    for points, z in ((x, zx), (y, zy)):
        for first in range(0, len(points), TILE):
            last = min(first + TILE, len(points))
            rows, mine = points[first:last], z[first:last]
            own += (mine * (kernel(rows, rows, k) @ mine)).sum(0)
            own += 2.0 * (mine * (kernel(rows, points[last:], k) @ z[last:])).sum(0)
        own -= _diagonal(points, k) @ z
    cross = torch.zeros_like(own)
    for first in range(0, len(x), TILE):
        tile = kernel(x[first : first + TILE], y, k)
        cross += (zx[first : first + TILE] * (tile @ zy)).sum(0)
    return own / (size * (size - 1)) - 2.0 * cross / (size * size)


def _indicator(picks: Tensor, n: int) -> Tensor:
    z = torch.zeros(n, len(picks), dtype=torch.float64, device=picks.device)
    return z.scatter_(0, picks.T, 1.0)
