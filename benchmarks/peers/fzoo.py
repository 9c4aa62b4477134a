"""FZOO ("Fast Zeroth-Order Optimizer", arXiv 2506.09034): passes along random signs.

The published loop, written anew from its expressions (DKmiyan/FZOO, revision d4f8a8b): as MeZO's, with
signs that are drawn as integers 0 or 1 in the weights' dtype.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

VERSION = "expression of DKmiyan/FZOO d4f8a8b"


def draw(like: torch.Tensor) -> torch.Tensor:
    """Random signs of a tensor's shape, dtype and device, from torch's global generator."""
    return torch.randint(0, 2, size=like.size(), device=like.device, dtype=like.dtype) * 2 - 1


def perturb(named: Sequence[tuple[str, torch.Tensor]], seed: int, scale: float, eps: float) -> None:
    """theta <- theta + scale * z * eps with z = +1 or -1."""
    torch.manual_seed(seed)
    for _, p in named:
        z = draw(p.data)
        p.data = p.data + scale * z * eps
