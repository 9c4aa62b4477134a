"""Joining partial sums in the order of kernels/core/reduce.hpp, on whatever device they are."""

from __future__ import annotations

import torch
from torch import Tensor


def pairwise_sum(sums: Tensor) -> float:
    """pairwise_sum of reduce.hpp for float64 [n], level by level: neighbours are joined, an odd one is left.

    What is left over belongs to shorter runs the later levels see first, so it is added from short to long.
    """
    left: list[Tensor] = []
    while sums.numel() > 1:
        if sums.numel() % 2:
            left.append(sums[-1])
        pairs = sums[: sums.numel() // 2 * 2]
        sums = pairs[0::2] + pairs[1::2]
    total = torch.zeros((), dtype=torch.float64, device=sums.device)
    for part in [*left, *sums]:
        total = part + total
    return total.item()
