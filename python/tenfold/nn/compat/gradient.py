"""The gradient reversal of domain-adversarial training (Ganin et al., arXiv 1505.07818)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return -ctx.scale * grad, None


def reverse_gradient(x: Tensor, scale: float = 1.0) -> Tensor:
    """x itself; its gradient comes back times -scale."""
    result = _Reverse.apply(x, scale)
    assert isinstance(result, Tensor)
    return result
