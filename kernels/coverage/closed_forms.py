"""What sums over all rows come to without a pass over all pairs, float64: O(N d), or O(N d^2) for squares.

Points are read in blocks of rows and never copied whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .problem import COSINES, Similarity

ROWS = 4096
MOMENTS = 16
ROUNDING = 2.4e-7
"""Twice float32's, by which a product of length d may be off d times over."""


def blocks(points: Tensor) -> Iterator[Tensor]:
    """float64 blocks of rows."""
    for first in range(0, len(points), ROWS):
        yield points[first : first + ROWS].double()


def mean_of(points: Tensor) -> Tensor:
    """float64 [d]."""
    total = torch.zeros(points.shape[1], dtype=torch.float64, device=points.device)
    for rows in blocks(points):
        total += rows.sum(0)
    return total / max(len(points), 1)


def dyadic_shift(points: Tensor) -> Tensor:
    """The mean of each feature, float64, rounded to a multiple of a power of two near its spread.

    Distances do not change with it, cancellation does; and integer features stay exact.
    """
    mean = mean_of(points)
    square = torch.zeros_like(mean)
    for rows in blocks(points):
        square += (rows - mean).square().sum(0)
    spread = (square / max(len(points), 1)).sqrt()
    unit = torch.exp2(torch.floor(torch.log2(spread)))
    shift = torch.where(spread > 0, torch.round(mean / unit) * unit, points[0].double())
    return torch.where(torch.isfinite(shift), shift, 0.0)


def unit(rows: Tensor) -> Tensor:
    """Rows of length 1; rows of zeros stay."""
    length = rows.square().sum(1, keepdim=True).sqrt()
    return rows / torch.where(length > 0, length, 1.0)


def compared(points: Tensor, kind: str, shift: Tensor | None) -> Iterator[Tensor]:
    """float64 blocks of points as a kind compares them."""
    for rows in blocks(points):
        if kind in COSINES:
            yield unit(rows)
        else:
            yield rows if shift is None else rows - shift


def by_radius(points: Tensor, shift: Tensor) -> Tensor:
    """Rows from the farthest from the shift to the nearest, int64 [N]."""
    square = torch.cat([rows.square().sum(1) for rows in compared(points, "", shift)])
    return torch.argsort(square, descending=True, stable=True)


def has_column_sums(kind: str) -> bool:
    return kind in ("sqeuclidean", "cosine01", "cosine2", "inner")


def column_sums(s: Similarity, shift: Tensor | None, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """(sum_i w_i s_ij, s_jj), float64 [N] each, for the kinds of has_column_sums; s.bound is known."""
    assert s.points is not None
    d = s.points.shape[1]
    device = s.device
    total = torch.zeros(d, dtype=torch.float64, device=device)
    second = torch.zeros(d, d, dtype=torch.float64, device=device) if s.kind == "cosine2" else None
    mass, norms = 0.0, 0.0
    for at, z in enumerate(compared(s.points, s.kind, shift)):
        w = None if weights is None else weights[at * ROWS : at * ROWS + len(z), None]
        weighted = z if w is None else z * w
        total += weighted.sum(0)
        mass += len(z) if w is None else float(w.sum())
        norms += float((weighted * z).sum())
        if second is not None:
            second += weighted.T @ z
    sums, own = [], []
    for z in compared(s.points, s.kind, shift):
        square = z.square().sum(1)
        if s.kind == "sqeuclidean":
            assert s.bound is not None
            sums.append(mass * (s.bound - square) - norms + 2.0 * (z @ total))
            own.append(torch.full_like(square, s.bound))
        elif s.kind == "cosine01":
            sums.append(0.5 * (mass + z @ total))
            own.append(0.5 + 0.5 * square)
        elif s.kind == "cosine2":
            assert second is not None
            sums.append(((z @ second) * z).sum(1))
            own.append(square.square())
        else:
            sums.append(z @ total)
            own.append(square)
    return torch.cat(sums), torch.cat(own)


@dataclass(frozen=True)
class Moments:
    """CoverMoments of coverage_api.hpp: W, z_j . sum w z, z_j^T M z_j, and M = sum w z z^T."""

    mass: float
    slope: Tensor
    square: Tensor
    second: Tensor
    slack: float


def moments(s: Similarity, shift: Tensor, weights: Tensor | None) -> Moments | None:
    """For "sqeuclidean", where N d^2 operations are few beside what they save."""
    assert s.points is not None
    n, d = s.points.shape
    if s.kind != "sqeuclidean" or MOMENTS * d > n:
        return None
    total = torch.zeros(d, dtype=torch.float64, device=s.device)
    second = torch.zeros(d, d, dtype=torch.float64, device=s.device)
    for at, z in enumerate(compared(s.points, s.kind, shift)):
        weighted = z if weights is None else z * weights[at * ROWS : at * ROWS + len(z), None]
        total += weighted.sum(0)
        second += weighted.T @ z
    slope, square = [], []
    for z in compared(s.points, s.kind, shift):
        slope.append(z @ total)
        square.append(((z @ second) * z).sum(1))
    mass = float(n) if weights is None else float(weights.sum())
    assert s.bound is not None
    return Moments(mass, torch.cat(slope), torch.cat(square), second, mass * s.bound * d * ROUNDING)


def first_bounds(s: Similarity, shift: Tensor | None, weights: Tensor | None) -> Tensor | None:
    """float64 [N], no less than the gains of an empty cover as float32 computes them; None: not known."""
    if s.points is None or s.kind not in ("sqeuclidean", "cosine01", "cosine2"):
        return None
    sums, _ = column_sums(s, shift, weights)
    largest = s.bound if s.kind == "sqeuclidean" else 1.0
    mass = float(s.points.shape[0]) if weights is None else float(weights.sum())
    assert largest is not None
    return sums + mass * largest * s.points.shape[1] * ROUNDING
