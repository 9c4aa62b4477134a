"""The Frechet distance between features, computed so that few samples and bad conditions do no harm.

FID (Heusel et al., arXiv 1706.08500) is |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^1/2 of Inception features.
The usual code takes a square root or the eigenvalues of the product S1 S2, which is not symmetric: slow, and
off by 1e-4 where there are fewer samples than features. The trace is also a sum of singular values:

    tr (S1 S2)^1/2 = |A B^T|_* = |L1^T L2|_*     S1 = A^T A = L1 L1^T, S2 = B^T B = L2 L2^T

with A, B the centred rows over sqrt(n - 1). So there are three routes:

    "rows"      fewer samples than features on a side: singular values of A B^T, [n1, n2]
    "cholesky"  else: eigenvalues of L1^T S2 L1, symmetric
    "eigen"     moments alone, and S1 not positive definite: eigenvalues of S1^1/2 S2 S1^1/2, good to about 1e-7
                of the traces, since the root of a rounding error is large
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tenfold import _arrays, _checks

__all__ = ["Frechet", "Moments", "frechet_distance", "frechet_of_moments"]

_BLOCK = 512
_ROWS = 4096


class Frechet(NamedTuple):
    """value: the distance, >= 0 up to rounding. means: |m1 - m2|^2. traces: tr S1 + tr S2. cross: tr (S1 S2)^1/2.
    route: how `cross` was found. rank: how many singular values are above rounding. clipped: sum of negative
    eigenvalues that were taken for 0."""

    value: float
    means: float
    traces: float
    cross: float
    route: str
    rank: int
    clipped: float


@dataclass(eq=False)
class Moments:
    """Count, mean [D] and scatter sum (x - mean)(x - mean)^T [D, D] of rows, float64; merged without loss (Chan,
    Golub and LeVeque, 1979), so that shards give what one pass gives."""

    count: int
    mean: Tensor
    scatter: Tensor

    @classmethod
    def of(cls, features: Any) -> Moments:
        """Of features [N, D], real; N may be 0.

        Raises:
            TypeError, ValueError: as `frechet_distance`.
        """
        x = _features("features", features, 0)
        found = cls(0, x.new_zeros(x.shape[1], dtype=torch.float64), _square(x))
        for rows in x.split(_ROWS):
            found = found.merged(_moments(rows.double()))
        return found

    def merged(self, other: Moments) -> Moments:
        """Of the rows of both.

        Raises:
            ValueError: other numbers of features.
        """
        if self.mean.shape != other.mean.shape:
            _checks.fail(ValueError, "other", f"{self.mean.numel()} features", other.mean.numel())
        if not self.count or not other.count:
            return self if self.count else other
        count = self.count + other.count
        gap = other.mean - self.mean
        scatter = self.scatter + other.scatter + torch.outer(gap, gap) * (self.count * other.count / count)
        return Moments(count, self.mean + gap * (other.count / count), scatter)

    @property
    def covariance(self) -> Tensor:
        """Unbiased, [D, D].

        Raises:
            ValueError: fewer than two rows.
        """
        if self.count < 2:
            _checks.fail(ValueError, "features", "at least two rows", self.count)
        return self.scatter / (self.count - 1)


def frechet_distance(x: Any, y: Any) -> Frechet:
    """The Frechet distance between two sets of features, as if both were Gaussian.

    Args:
        x: features [N, D], a row each: float16, bfloat16, float32 or float64; N >= 2. y: [M, D], alike.

    Returns:
        Numbers in float64, with how they were found.

    Raises:
        TypeError: no floating tensors or arrays. ValueError: another shape, fewer than two rows, numbers of
            features that differ, NaN or infinity.
    """
    a, b = _features("x", x, 2), _features("y", y, 2)
    if a.shape[1] != b.shape[1]:
        _checks.fail(ValueError, "y", f"{a.shape[1]} features, as x has", b.shape[1])
    b = b.to(a.device)
    if min(len(a), len(b)) > a.shape[1]:
        return frechet_of_moments(Moments.of(a), Moments.of(b))
    means, rows = [], []
    for z in (a, b):
        wide = z.double()
        means.append(wide.mean(0))
        rows.append((wide - means[-1]) / (len(z) - 1) ** 0.5)
    values = torch.linalg.svdvals(rows[0] @ rows[1].T)
    traces = sum(float(r.square().sum()) for r in rows)
    return _found(means, traces, values, "rows", 0.0)


def frechet_of_moments(first: Moments, second: Moments) -> Frechet:
    """The Frechet distance from moments alone (stored statistics, merged shards).

    Raises:
        ValueError: fewer than two rows, other numbers of features, NaN or infinity.
    """
    if first.mean.shape != second.mean.shape:
        _checks.fail(ValueError, "second", f"{first.mean.numel()} features", second.mean.numel())
    for name, m in (("first", first), ("second", second)):
        if not bool(m.mean.isfinite().all()) or not bool(m.scatter.isfinite().all()):
            _checks.fail(ValueError, name, "finite moments", "NaN or infinity")
    s1, s2 = first.covariance, second.covariance
    means, traces = [first.mean, second.mean], float(s1.trace() + s2.trace())
    for one, other in ((s1, s2), (s2, s1)):
        factor, wrong = torch.linalg.cholesky_ex(one)
        if not int(wrong) and _well_conditioned(factor):
            values = torch.linalg.eigvalsh(_congruent(factor, other))
            return _found(means, traces, _roots(values), "cholesky", _negative(values))
    values, vectors = torch.linalg.eigh(s1)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    squares = torch.linalg.eigvalsh(root @ s2 @ root)
    return _found(means, traces, _roots(squares), "eigen", _negative(values) + _negative(squares))


def _found(means: list[Tensor], traces: float, values: Tensor, route: str, clipped: float) -> Frechet:
    apart = float((means[0] - means[1]).square().sum())
    cross = float(values.sum())
    rank = int((values > 1e-12 * float(values.max())).sum()) if values.numel() else 0
    return Frechet(apart + (traces - 2 * cross), apart, traces, cross, route, rank, clipped)


def _well_conditioned(factor: Tensor) -> bool:
    """Whether rounding errors of the squares stay small beside the smallest of them."""
    diagonal = factor.diagonal()
    return bool(diagonal.min() > 1e-6 * diagonal.max())


def _roots(squares: Tensor) -> Tensor:
    return squares.clamp(min=0).sqrt()


def _negative(values: Tensor) -> float:
    return float(-values.clamp(max=0).sum())


def _congruent(factor: Tensor, inner: Tensor) -> Tensor:
    """The lower triangle of L^T S L, in blocks of which half are left out, L being triangular: what `eigvalsh`
    reads."""
    size = len(factor)
    half, out = torch.empty_like(inner), torch.zeros_like(inner)
    for at in range(0, size, _BLOCK):
        to = min(at + _BLOCK, size)
        torch.mm(factor[at:, at:to].T, inner[at:], out=half[at:to])
    for at in range(0, size, _BLOCK):
        to = min(at + _BLOCK, size)
        out[at:, at:to] = half[at:, at:] @ factor[at:, at:to]
    return out


def _moments(rows: Tensor) -> Moments:
    """Half of the products of a full one: the upper blocks, then mirrored."""
    mean = rows.mean(0)
    centred = rows - mean
    scatter = _square(rows)
    for at in range(0, rows.shape[1], _BLOCK // 2):
        to = min(at + _BLOCK // 2, rows.shape[1])
        product = centred[:, at:to].T @ centred[:, at:]
        scatter[at:to, at:] = product
        scatter[to:, at:to] = product[:, to - at :].T
    return Moments(len(rows), mean, scatter)


def _square(like: Tensor) -> Tensor:
    return torch.zeros(like.shape[1], like.shape[1], dtype=torch.float64, device=like.device)


def _features(name: str, value: Any, least: int) -> Tensor:
    x = _arrays.as_tensor(name, value)
    if not x.is_floating_point():
        _checks.fail(TypeError if x.is_complex() else ValueError, name, "floating features [N, D]", x.dtype)
    if x.ndim != 2 or not x.shape[1]:
        _checks.fail(ValueError, name, "features [N, D]", list(x.shape))
    if len(x) < least:
        _checks.fail(ValueError, name, f"at least {least} rows", len(x))
    if not bool(x.isfinite().all()):
        _checks.fail(ValueError, name, "finite features", "NaN or infinity")
    return x.detach()
