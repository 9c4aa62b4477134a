"""Volume operations in plain PyTorch: the definitions, and the fallback where no native backend exists."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def resample_argmax(
    logits: Tensor, size: tuple[int, int, int], align_corners: bool, dtype: torch.dtype
) -> Tensor:
    """[C, z, y, x] -> labels [*size]: trilinear per class, the lowest of the largest; one class at a time."""
    work = logits.dtype if logits.dtype == torch.float64 else torch.float32
    best = torch.full(size, -torch.inf, dtype=work, device=logits.device)
    label = torch.zeros(size, dtype=dtype, device=logits.device)
    for c in range(logits.shape[0]):
        one = logits[c][None, None].to(work)
        value = F.interpolate(one, size, mode="trilinear", align_corners=align_corners)[0, 0]
        wins = value > best
        best = torch.where(wins, value, best)
        label[wins] = c
    return label
