"""The small problems the optimizer tests share."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

CURVATURE = (1.0, 0.5, 2.0)
START = (1.0, -2.0, 0.5)


@pytest.fixture
def quadratic() -> Callable[..., tuple[nn.Parameter, Callable[[], Tensor]]]:
    """L = 0.5 sum(A theta^2) in three dimensions, and its closure."""

    def make(dtype: torch.dtype = torch.float64):
        theta = nn.Parameter(torch.tensor(START, dtype=dtype))
        curvature = torch.tensor(CURVATURE, dtype=dtype)
        return theta, lambda: 0.5 * (curvature * theta * theta).sum()

    return make


@pytest.fixture
def network() -> Callable[..., tuple[nn.Module, Callable[[], Tensor]]]:
    """A small network with norms and biases, and a regression closure whose loss is read in float32."""

    def make(dtype: torch.dtype = torch.float32):
        generator = torch.Generator().manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 16), nn.LayerNorm(16), nn.Tanh(), nn.Linear(16, 1)).to(dtype)
        for p in model.parameters():
            p.data.copy_(0.3 * torch.randn(p.shape, generator=generator))
        x = torch.randn(12, 6, generator=generator).to(dtype)
        y = torch.randn(12, 1, generator=generator)
        return model, lambda: (model(x).float() - y).square().mean()

    return make
