"""Greedy selection on factored last-layer gradients: CRAIG and GLISTER, on any device."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import fgrad_reference as fgrad

BLOCK = 256
"""Candidates whose distances to all samples are made together in the first pass."""
STALE = 32
"""Candidates evaluated again together."""


def craig(e: Tensor, h: Tensor, k: int, bias: bool, squared: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """k samples that cover all gradients (facility location with s = c - distance, c the largest distance):
    indices, gains float64, counts of samples nearest to each pick, objective float64 scalar.

    Lazy greedy: gains only shrink as picks are made, so a candidate whose gain was made in this step and is
    the largest of all bounds is the best (Minoux 1978). Memory is N times 256 distances.
    """
    e, h = e.double(), h.double()

    def distances(at: Tensor) -> Tensor:
        found = fgrad.sqdist(e, h, e[at], h[at], bias)
        return found if squared else found.sqrt_()

    n, device = e.shape[0], e.device
    everything = torch.arange(n, device=device)
    sums, largest = [], torch.zeros((), dtype=torch.float64, device=device)
    for at in everything.split(BLOCK) if k else ():
        block = distances(at)
        sums.append(block.sum(0))
        largest = torch.maximum(largest, block.amax())
    bound = (n * largest - torch.cat(sums)).cpu().numpy() if k else np.empty(0)
    fresh = np.zeros(n, dtype=np.int64)
    nearest = largest.repeat(n)
    owner = torch.zeros(n, dtype=torch.int64, device=device)
    indices, gains = [], []
    for t in range(k):
        j = _best(bound, fresh, t, partial(_gains, nearest, distances))
        indices.append(j)
        gains.append(float(bound[j]))
        own = distances(torch.tensor([j], device=device))[:, 0]
        closer = own < nearest if t else torch.ones(n, dtype=torch.bool, device=device)
        nearest, owner = torch.where(closer, own, nearest), owner.masked_fill(closer, t)
        bound[j] = -np.inf
    counts = torch.bincount(owner, minlength=k) if k else owner[:0]
    objective = (largest - nearest).sum() if k else largest
    picked = torch.tensor(indices, dtype=torch.int64, device=device)
    return picked, torch.tensor(gains, dtype=torch.float64, device=device), counts, objective


def _gains(nearest: Tensor, distances: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    """How much the candidates `at` would bring all samples nearer to a pick."""
    return (nearest[:, None] - distances(at.to(nearest.device))).clamp_min_(0).sum(0)


def _best(bound: Any, fresh: Any, t: int, gains: Callable[[Tensor], Tensor]) -> int:
    """The candidate of the largest gain, the smaller index of equals; brings bounds up to date on the way."""
    while True:
        j = int(bound.argmax())
        if fresh[j] == t:
            return j
        count = min(STALE, bound.size)
        at = np.argpartition(-bound, count - 1)[:count]
        at = np.union1d(at[(fresh[at] != t) & (bound[at] > -np.inf)], [j])
        bound[at] = gains(torch.from_numpy(at)).cpu().numpy()
        fresh[at] = t


def glister(
    e: Tensor,
    h: Tensor,
    val_logits: Tensor,
    val_hidden: Tensor,
    val_labels: Tensor,
    k: int,
    rounds: int,
    eta: float,
    bias: bool,
) -> tuple[Tensor, Tensor]:
    """k samples whose gradients lie along the validation set's, in rounds; indices and gains."""
    wide = fgrad.math_dtype(e, h, val_logits, val_hidden)
    e, h, z, hv = (t.to(wide) for t in (e, h, val_logits, val_hidden))
    lead = torch.ones(hv.shape[0], int(bias), dtype=hv.dtype, device=hv.device)
    inputs = torch.cat([lead, hv], 1)
    taken = torch.zeros(e.shape[0], dtype=torch.bool, device=e.device)
    moved = torch.zeros(e.shape[1], h.shape[1] + int(bias), dtype=e.dtype, device=e.device)
    indices: list[Tensor] = []
    gains: list[Tensor] = []
    left = k
    while left > 0:
        ev = torch.softmax(z - eta * (inputs @ moved.T), 1)
        ev.scatter_add_(1, val_labels[:, None], -torch.ones_like(ev[:, :1]))
        mean = ev.T @ inputs / inputs.shape[0]
        gain = fgrad.mv(e, h, mean, bias).masked_fill(taken, -torch.inf)
        best = gain.sort(descending=True, stable=True).indices[: min(left, -(-k // rounds))]
        indices.append(best)
        gains.append(gain[best])
        taken[best] = True
        ones = torch.ones(best.numel(), dtype=e.dtype, device=e.device)
        moved += fgrad.rmv(e[best], h[best], ones, bias)
        left -= best.numel()
    none = torch.zeros(0, dtype=torch.int64, device=e.device)
    return torch.cat([none, *indices]), torch.cat([none.to(e.dtype), *gains])
