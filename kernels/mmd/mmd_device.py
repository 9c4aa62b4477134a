"""What a device needs before and after its pass over pairs of points, in PyTorch on that device.

Centring, widths, weights and the sums over blocks are O(n d) or O(C^2) and stay on the device: nothing waits
for the host, and a call can be captured into a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from . import mmd_reference
from .mmd_reference import Contrast, Pairs

TILE = 64
"""Points of a block."""


class PairPass(NamedTuple):
    """z [B, n, d] centred; v [B or 1, n, C]; inverse widths [B, K]; partial [B, tiles]; gradient or empty."""

    z: Tensor
    v: Tensor
    inverse: Tensor
    partial: Tensor
    gradient: Tensor
    sources: int
    within: tuple[float, float]
    doubling: bool
    options: Pairs


class ContrastPass(NamedTuple):
    """weights [B, C, C, 4]; sums [B, n, C, 2] float64, zero; gradient [2, B, n, d] or empty."""

    z: Tensor
    labels: Tensor
    inverse: Tensor
    weights: Tensor
    sums: Tensor
    gradient: Tensor
    sources: int
    doubling: bool
    options: Contrast


def doubling(factors: Sequence[float]) -> bool:
    """Whether each width is twice the one before."""
    return all(b == 2.0 * a for a, b in pairwise(factors))


@lru_cache(maxsize=64)
def _constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Copied to the device once: a copy from the host would wait, and could not be captured."""
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=torch.float64, device=device)


def inverse_widths(base: Tensor, factors: Sequence[float]) -> Tensor:
    """[..., K] float32, from the narrowest kernel to the widest."""
    widths = base[..., None] * _constant(tuple(factors), base.device)
    return (1.0 / widths).to(torch.float32).contiguous()


def pairs(
    launch: Callable[[PairPass], None],
    x: Tensor,
    y: Tensor,
    v: Tensor | None,
    base: Tensor | None,
    o: Pairs,
) -> tuple[Tensor, ...]:
    """mmd_reference.pairs with `launch` for the pass. Float64 and values by column go by strips in PyTorch:
    the latter are products with the kernel matrix, which the device's own library does best."""
    if o.by_column or mmd_reference.math_dtype(x, y) == torch.float64:
        return mmd_reference.pairs(x, y, v, base, o)
    z = mmd_reference.centred(x, y).contiguous()
    batch, points, _ = z.shape
    n, m = x.shape[1], y.shape[1]
    if base is None:
        base = mmd_reference.mean_distance(z).clamp_min(o.floor)
    if v is None:
        v = torch.full((1, points, 1), -1.0 / m if m else 0.0, device=z.device)
        v[:, :n] = 1.0 / n
    partial = torch.empty((batch, -(-points // TILE)), dtype=torch.float64, device=z.device)
    gradient = torch.empty_like(z) if o.gradient else z.new_empty(0)
    within = (n / max(n - 1, 1), m / max(m - 1, 1))
    v = v.to(torch.float32).contiguous()
    inverse = inverse_widths(base, o.factors)
    launch(PairPass(z, v, inverse, partial, gradient, n, within, doubling(o.factors), o))
    return partial.sum(1), base, gradient


def contrast(
    launch: Callable[[ContrastPass], None], s: Tensor, ys: Tensor, t: Tensor, yt: Tensor, o: Contrast
) -> tuple[Tensor, ...]:
    """mmd_reference.contrast with `launch` for the pass. Float64 goes by classes in PyTorch."""
    if mmd_reference.math_dtype(s, t) == torch.float64:
        return mmd_reference.contrast(s, ys, t, yt, o)
    z = mmd_reference.centred(s, t).contiguous()
    batch, points, _ = z.shape
    n, classes = s.shape[1], o.classes
    labels = torch.cat((ys, yt), 1).contiguous()
    member = (labels[..., None] == torch.arange(classes, device=z.device)).double()  # [B, n + m, C]
    source, target = member[:, :n], member[:, n:]
    counts, others = source.sum(1), target.sum(1)
    base = _class_bases(z.double(), source, target, n).clamp_min(o.floor)

    counted = (counts[:, :, None] >= max(1, o.min_count)) & (others[:, None, :] >= max(1, o.min_count))
    diagonal = torch.eye(classes, dtype=torch.bool, device=z.device)
    same = (counted & diagonal).sum((1, 2), keepdim=True).double()
    apart = (counted & ~diagonal).sum((1, 2), keepdim=True).double()
    share = counted / torch.where(diagonal, same, apart).clamp_min(1.0)
    a = counts.clamp_min(1.0)[:, :, None]
    b = others.clamp_min(1.0)[:, None, :]
    parts = torch.stack(torch.broadcast_tensors(1 / (a * a), 1 / (b * b), -1 / (a * b), 0 * a * b), -1)
    weights = (parts * share[..., None]).to(torch.float32).contiguous()

    sums = torch.zeros((batch, points, classes, 2), dtype=torch.float64, device=z.device)
    gradient = torch.empty((2, *z.shape), device=z.device) if o.gradient else z.new_empty(0)
    inverse = inverse_widths(base, o.factors)
    chain = doubling(o.factors) and not o.clamp
    launch(ContrastPass(z, labels, inverse, weights, sums, gradient, n, chain, o))
    own_source = torch.einsum("bia,bic->bac", source, sums[:, :n, :, 0])
    own_target = torch.einsum("bia,bic->bca", target, sums[:, n:, :, 0])
    cross = torch.einsum("bia,bic->bac", source, sums[:, :n, :, 1])
    matrix = own_source * parts[..., 0] + own_target * parts[..., 1] + 2.0 * cross * parts[..., 2]
    kept = torch.where(counted, matrix, 0.0) * share
    intra, inter = (kept * diagonal).sum((1, 2)), (kept * ~diagonal).sum((1, 2))
    return intra, inter, torch.where(counted, matrix, float("nan")), gradient


def _class_bases(z: Tensor, source: Tensor, target: Tensor, n: int) -> Tensor:
    """[B, C, C]: mean of |z_i - z_j|^2 over i != j within source class a and target class b together."""

    def moments(points: Tensor, member: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        sums = torch.einsum("bid,bic->bcd", points, member)
        return member.sum(1), sums, torch.einsum("bi,bic->bc", points.square().sum(2), member)

    (k, sums, q), (m, others, r) = moments(z[:, :n], source), moments(z[:, n:], target)
    count = k[:, :, None] + m[:, None, :]
    length = sums.square().sum(2)[:, :, None] + others.square().sum(2)[:, None, :]
    length = length + 2.0 * torch.einsum("bad,bcd->bac", sums, others)
    top = 2.0 * (count * (q[:, :, None] + r[:, None, :]) - length)
    return (top / (count * count - count).clamp_min(1.0)).clamp_min(0.0)
