"""Bounds on projected gradients, and quantised models that learn by their scales (QZO, arXiv 2505.13430)."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tenfold.optim import FZOO, ZOSGD, ForwardGrad, HiZOO, ZOAdam, from_hyperparameters, zolog


class QuantisedLinear(nn.Module):
    """Integers [out, in] that stay, and a float scale per row that learns."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        scale = weight.abs().amax(1, keepdim=True) / 7
        self.register_buffer("integers", (weight / scale).round().to(torch.int8))
        self.scale = nn.Parameter(scale)

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.integers * self.scale).T


def problem(seed: int = 0) -> tuple[nn.Sequential, Any]:
    """A quantised network whose scales are off, and its distance to the one they were right in."""
    g = torch.Generator().manual_seed(seed)
    layers = [QuantisedLinear(torch.randn(m, n, generator=g) / n**0.5) for m, n in ((16, 8), (4, 16))]
    model = nn.Sequential(layers[0], nn.Tanh(), layers[1])
    x = torch.randn(64, 8, generator=g)
    with torch.no_grad():
        y = model(x)
        for layer in layers:
            layer.scale *= 1 + 0.5 * torch.rand(layer.scale.shape, generator=g)
    return model, lambda: (model(x) - y).square().mean()


def test_scales_learn_and_integers_stay() -> None:
    model, loss = problem()
    integers = {name: b.clone() for name, b in model.named_buffers()}
    start = loss().item()
    opt = ZOSGD(model.parameters(), lr=2e-3, eps=1e-3, seed=1, max_projected_grad=1.0)
    largest = 0.0
    for _ in range(300):
        opt.step(loss)
        largest = max(largest, abs(opt.last_step.projected_grads[0]))
    assert largest == 1.0  # the bound was met
    assert loss().item() < 0.2 * start
    assert all(torch.equal(b, integers[name]) for name, b in model.named_buffers())
    assert {b.dtype for b in integers.values()} == {torch.int8}


@pytest.mark.parametrize(
    ("kind", "options"),
    [(ZOSGD, {"num_queries": 3}), (ZOAdam, {}), (HiZOO, {}), (ForwardGrad, {}), (FZOO, {})],
)
def test_projected_gradients_are_clipped(kind: Any, options: dict[str, Any]) -> None:
    free, bounded = problem()[0], problem()[0]
    steep = [lambda m=m: 100 * sum(p.sum() for p in m.parameters()) for m in (free, bounded)]
    opts = [kind(free.parameters(), seed=2, **options)]
    opts.append(kind(bounded.parameters(), seed=2, max_projected_grad=0.5, **options))
    for opt, closure in zip(opts, steep, strict=True):
        opt.step(closure)
    raw, clipped = (opt.last_step.projected_grads for opt in opts)
    assert any(abs(g) > 0.5 for g in raw)
    assert list(clipped) == [max(-0.5, min(0.5, g)) for g in raw]


def test_the_update_is_that_of_the_clipped_value() -> None:
    (model, loss), (other, other_loss) = problem(), problem()
    opt = ZOSGD(model.parameters(), lr=0.1, seed=3, max_projected_grad=1e-3)
    opt.step(loss)
    value = opt.last_step.projected_grads[0]
    assert abs(value) == 1e-3
    plain = ZOSGD(other.parameters(), lr=0.1, seed=3)
    plain.step(other_loss)
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        start = problem()[0].get_parameter(next(n for n, r in model.named_parameters() if r is p))
        ratio = value / plain.last_step.projected_grads[0]
        assert torch.allclose(p - start, (q - start) * ratio, atol=1e-7)


def test_a_loss_that_is_not_finite_still_skips() -> None:
    model, _ = problem()
    before = copy.deepcopy(model.state_dict())
    opt = ZOSGD(model.parameters(), max_projected_grad=1.0)
    opt.step(lambda: math.inf)
    assert opt.last_step.skipped
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_saved_logged_and_rebuilt(tmp_path: Path) -> None:
    model, loss = problem()
    base = copy.deepcopy(model)
    opt = ZOSGD(model.named_parameters(), lr=1e-2, streams=model, max_projected_grad=0.01)
    with zolog.ZOLog.create(tmp_path / "a.zolog", opt, model):
        for _ in range(5):
            opt.step(loss)
    zolog.replay(base, tmp_path / "a.zolog")
    assert all(torch.equal(p, q) for p, q in zip(base.parameters(), model.parameters(), strict=True))
    again = from_hyperparameters(opt.hyperparameters(), model.named_parameters(), model)
    assert again.max_projected_grad == 0.01
    fresh = ZOSGD(model.named_parameters(), streams=model)
    assert "max_projected_grad" not in fresh.hyperparameters()["options"]
    fresh.load_state_dict(opt.state_dict())
    assert fresh.max_projected_grad == 0.01


@pytest.mark.parametrize("bound", [0.0, -1.0, math.nan, math.inf])
def test_bad_bounds(bound: float) -> None:
    model, _ = problem()
    with pytest.raises(ValueError, match="max_projected_grad: expected a finite number > 0"):
        ZOSGD(model.parameters(), max_projected_grad=bound)
