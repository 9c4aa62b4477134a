"""Kernel mean discrepancies in plain PyTorch: the oracle, and the fallback where no native kernel is.

A kernel of several widths, k(a, b) = sum_u exp(-|a - b|^2 / (base * factors[u])), over points that are
centred by their joint mean first: |a|^2 + |b|^2 - 2ab loses all digits when the points lie far from the
origin.  Every function makes the kernel matrix in strips of rows and keeps none of it, so memory grows with
the number of points and not with its square.  Widths are constants for the gradient, as in the papers' code.

Gretton et al., "A kernel two-sample test" (JMLR 2012); Long et al., DAN (arXiv 1502.02791); Kang et al., CAN
(arXiv 1901.00976); Zhu et al., DSAN (LMMD).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

STRIP = 1 << 21
"""Elements of the kernel matrix in memory at a time."""

CLAMP = (1e-5, 1e5)
"""Where CAN's code clamps D / width."""


class Pairs(NamedTuple):
    """What a pass over all pairs of points is asked for."""

    factors: Sequence[float]
    floor: float
    unbiased: bool
    by_column: bool
    gradient: bool


class Contrast(NamedTuple):
    classes: int
    factors: Sequence[float]
    floor: float
    clamp: bool
    min_count: int
    gradient: bool


def math_dtype(*tensors: Tensor) -> torch.dtype:
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def centred(x: Tensor, y: Tensor) -> Tensor:
    """[B, N + M, d] less the mean of all N + M points, which is taken in float64."""
    z = torch.cat((x, y), 1).to(math_dtype(x, y))
    return z - z.mean(1, keepdim=True, dtype=torch.float64).to(z.dtype)


def mean_distance(z: Tensor) -> Tensor:
    """[B]: the mean of |z_i - z_j|^2 over i != j, in O(n d), for centred points; 0 for a single point."""
    n = z.shape[1]
    if n < 2:
        return z.new_zeros(z.shape[0], dtype=torch.float64)
    squares = z.double().square().sum((1, 2))
    rest = z.double().sum(1).square().sum(1)  # what centring in floats has left
    return 2.0 * (n * squares - rest) / (n * n - n)


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """[rows, columns] from centred points, never negative."""
    d = (a * a).sum(-1)[..., :, None] + (b * b).sum(-1)[..., None, :] - 2.0 * (a @ b.transpose(-1, -2))
    return d.clamp_min(0.0)


def kernel(d: Tensor, widths: Sequence[Tensor | float], clamp: bool = False) -> tuple[Tensor, Tensor]:
    """sum_u exp(-d / w_u), and sum_u exp(-d / w_u) / w_u, which is minus its derivative by d."""
    total, slope = torch.zeros_like(d), torch.zeros_like(d)
    for width in widths:
        t = d / width
        if clamp:
            inside = (t >= CLAMP[0]) & (t <= CLAMP[1])
            e = torch.exp(-t.clamp(*CLAMP))
            slope += torch.where(inside, e, 0.0) / width
        else:
            e = torch.exp(-t)
            slope += e / width
        total += e
    return total, slope


def pairs(x: Tensor, y: Tensor, v: Tensor | None, base: Tensor | None, o: Pairs) -> tuple[Tensor, ...]:
    """sum_ij W_ij k(z_i, z_j) over z = [x; y] for each problem of the batch.

    Args:
        x, y: [B, N, d] and [B, M, d]; M may be 0.
        v: [B or 1, N + M, C] with W_ij = sum_c v_ic v_jc; None: 1/N for x and -1/M for y.
        base: [B] float64, or None for the mean distance, at least o.floor.
        o: with `unbiased`, W_ii = 0 and W within x and within y is larger by N/(N-1) and M/(M-1).

    Returns:
        value [B], or [B, C] with `by_column` (one quadratic form per column of v), float64; the base [B],
        float64; and the gradient [B, N + M, d] of the sum, empty unless asked for.
    """
    z = centred(x, y)
    n, m = x.shape[1], y.shape[1]
    if base is None:
        base = mean_distance(z).clamp_min(o.floor)
    if v is None:
        v = torch.cat((z.new_full((1, n, 1), 1.0 / n), z.new_full((1, m, 1), -1.0 / m if m else 0.0)), 1)
    v = v.to(z.dtype)
    value = z.new_zeros((z.shape[0], v.shape[2] if o.by_column else 1), dtype=torch.float64)
    gradient = torch.zeros_like(z) if o.gradient else z.new_empty(0)
    rows = max(1, STRIP // max(1, n + m))
    side = torch.arange(n + m, device=z.device) >= n
    for k in range(z.shape[0]):
        points, weights = z[k], v[k if v.shape[0] > 1 else 0]
        widths = [float(base[k]) * f for f in o.factors]
        for first in range(0, n + m, rows):
            strip = slice(first, min(first + rows, n + m))
            d = squared_distances(points[strip], points)
            inner = torch.arange(strip.start, strip.stop, device=z.device)
            d[inner - first, inner] = 0.0
            total, slope = kernel(d, widths)
            scale = torch.ones_like(d)
            if o.unbiased:
                scale = torch.where(side[strip, None] & side, m / max(m - 1, 1), scale)
                scale = torch.where(~side[strip, None] & ~side, n / max(n - 1, 1), scale)
                scale[inner - first, inner] = 0.0
            if o.by_column:
                inside = (total * scale).double() @ weights.double()
                value[k] += (weights[strip].double() * inside).sum(0)
            else:
                scale = scale * (weights[strip] @ weights.T)
                value[k] += (scale * total).double().sum()
            if o.gradient:
                g = scale * slope
                gradient[k, strip] = -4.0 * (g.sum(1, keepdim=True) * points[strip] - g @ points)
    return value if o.by_column else value[:, 0], base, gradient


def class_mean_distances(groups: Sequence[Tensor], others: Sequence[Tensor]) -> Tensor:
    """[C, C] float64: mean of |z_i - z_j|^2 over i != j in groups[a] with others[b]; 0 below two points."""

    def moments(parts: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        counts = torch.tensor([len(p) for p in parts], dtype=torch.float64, device=parts[0].device)
        sums = torch.stack([p.double().sum(0) for p in parts])
        squares = torch.stack([p.double().square().sum() for p in parts])
        return counts, sums, squares

    (n, s, q), (m, t, r) = moments(groups), moments(others)
    count = n[:, None] + m
    sums = s.square().sum(1)[:, None] + t.square().sum(1) + 2.0 * s @ t.T
    top = 2.0 * (count * (q[:, None] + r) - sums)
    return (top / (count * count - count).clamp_min(1.0)).clamp_min(0.0)


def contrast(s: Tensor, ys: Tensor, t: Tensor, yt: Tensor, o: Contrast) -> tuple[Tensor, ...]:
    """The contrastive domain discrepancy, class by class.

    M[a, b] is the biased squared MMD of source class a and target class b, with the mean distance within
    their union as base; a pair counts when both have o.min_count points.

    Args:
        s, t: [B, N, d] and [B, M, d]. ys, yt: [B, N] and [B, M] int64 in [-1, classes), -1: ignored.

    Returns:
        intra [B] (mean of M[a, a]), inter [B] (mean of M[a, b], a != b), each 0 without a pair that counts;
        M [B, C, C], NaN where a pair does not count, float64; gradients of intra and of inter
        [2, B, N + M, d], empty unless asked for.
    """
    z = centred(s, t)
    size, n, classes = z.shape[0], s.shape[1], o.classes
    matrix = z.new_full((size, classes, classes), float("nan"), dtype=torch.float64)
    intra, inter = z.new_zeros(size, dtype=torch.float64), z.new_zeros(size, dtype=torch.float64)
    gradients = z.new_zeros((2, *z.shape)) if o.gradient else z.new_empty(0)
    for k in range(size):
        places = [torch.nonzero(ys[k] == c)[:, 0] for c in range(classes)]
        others = [torch.nonzero(yt[k] == c)[:, 0] + n for c in range(classes)]
        counted = [
            (a, b)
            for a in range(classes)
            for b in range(classes)
            if min(len(places[a]), len(others[b])) >= max(1, o.min_count)
        ]
        if not counted:
            continue
        bases = class_mean_distances([z[k, p] for p in places], [z[k, p] for p in others])
        same = sum(a == b for a, b in counted)
        for a, b in counted:
            at = torch.cat((places[a], others[b]))
            points = z[k, at]
            v = z.new_full((len(at), 1), 1.0 / len(places[a]))
            v[len(places[a]) :] = -1.0 / len(others[b])
            base = float(bases[a, b].clamp_min(o.floor))
            d = squared_distances(points, points)
            d.fill_diagonal_(0.0)
            total, slope = kernel(d, [base * f for f in o.factors], o.clamp)
            weights = v @ v.T
            matrix[k, a, b] = (weights * total).double().sum()
            count = same if a == b else len(counted) - same
            (intra if a == b else inter)[k] += matrix[k, a, b] / count
            if o.gradient:
                g = weights * slope
                change = -4.0 / count * (g.sum(1, keepdim=True) * points - g @ points)
                gradients[0 if a == b else 1, k].index_add_(0, at, change)
    return intra, inter, matrix, gradients


def median_distance(x: Tensor) -> Tensor:
    """[B] float64: the lower median of |x_i - x_j|^2 over all ordered pairs, i == j among them.

    Found by counting, digit by digit of the float pattern (non-negative floats have the order of their
    patterns), so that no list of pairs is kept.
    """
    z = centred(x, x[:, :0])
    bits, integers = (64, torch.int64) if z.dtype == torch.float64 else (32, torch.int32)
    out = z.new_empty(x.shape[0], dtype=torch.float64)
    for k, points in enumerate(z):
        n = len(points)
        rank, prefix, left = (n * n - 1) // 2, 0, bits
        while left:
            step = min(16, left)
            counts = torch.zeros(1 << step, dtype=torch.int64, device=z.device)
            for first in range(0, n, max(1, STRIP // n)):
                d = squared_distances(points[first : first + max(1, STRIP // n)], points)
                inner = torch.arange(len(d), device=z.device)
                d[inner, inner + first] = 0.0
                pattern = d.abs().view(integers).to(torch.int64).flatten()  # a NaN may have its sign set
                if left < bits:
                    pattern = pattern[pattern >> left == prefix]
                counts += torch.bincount((pattern >> (left - step)) & ((1 << step) - 1), minlength=1 << step)
            reached = counts.cumsum(0)
            digit = int(torch.searchsorted(reached, rank, right=True))
            rank -= int(reached[digit - 1]) if digit else 0
            prefix, left = prefix << step | digit, left - step
        found = torch.tensor(prefix, dtype=torch.int64, device=z.device).to(integers)
        out[k] = found.view(z.dtype).double()
    return out
