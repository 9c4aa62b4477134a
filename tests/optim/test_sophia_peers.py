"""SophiaH beside that of pytorch_optimizer 4.1.0."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tenfold.optim import SophiaH


def test_the_trajectory_of_pytorch_optimizer() -> None:
    """On a diagonal Hessian, negative in one place, every sign probe gives the diagonal itself."""
    peer = pytest.importorskip("pytorch_optimizer")
    found = version("pytorch_optimizer")
    if tuple(int(part) for part in found.split(".")[:2]) < (4, 1):
        pytest.skip(f"pytorch_optimizer {found}: 4.1.0 repaired its estimates")
    curvature = torch.tensor([3.0, 0.5, 0.02, -0.4, 0.0, 40.0])
    start = torch.tensor([1.0, -2.0, 0.5, 0.1, 3.0, -0.02])
    clip, theirs_lr, k = 2.0, 2e-2, 5
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    model = nn.Module()
    model.p = ours

    def loss(p: Tensor) -> Tensor:
        return 0.5 * (curvature * p * p).sum() + (0.1 * p).sum()

    def of_model(model: Any, batch: Any) -> Tensor:
        return loss(model.p)

    a = SophiaH([ours], theirs_lr * clip, gamma=clip, eps=1e-12 * clip, weight_decay=0.0, update_interval=k)
    b = peer.SophiaH([theirs], lr=theirs_lr, p=clip, update_period=k, hessian_distribution="rademacher")
    wins = []
    for _ in range(40):
        if a.hessian_due:
            a.estimate_hessian(model, [0], loss=of_model)
        ours.grad = theirs.grad = None
        loss(ours).backward()
        a.step()
        wins.append(a.win_rate)
        loss(theirs).backward(create_graph=True)
        b.step()
        assert torch.allclose(ours, theirs, rtol=1e-6, atol=1e-7)
    assert 0 < sum(wins) / len(wins) < 1  # some coordinates were clipped and some not
