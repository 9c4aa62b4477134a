"""The meta gradient against double backward, and Meta-Weight-Net in a training loop."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from tenfold.selection.reweight import MetaWeightNet, WeightNet, meta_weight_step

D = torch.float64
SGDS: list[dict[str, Any]] = [
    {"lr": 0.1},
    {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-2},
    {"lr": 0.05, "momentum": 0.8, "nesterov": True, "weight_decay": 1e-2},
    {"lr": 0.1, "momentum": 0.7, "dampening": 0.3},
]


def conv() -> nn.Module:
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(6, 4),
    ]  # fmt: skip
    return nn.Sequential(*layers).to(D)


def batch(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, 3, 6, 6, dtype=D, generator=g), torch.randint(0, 4, (n,), generator=g)


def trained(kind: dict[str, Any], steps: int = 3) -> tuple[nn.Module, torch.optim.Optimizer, nn.Module]:
    """A model with momentum in its buffers, and a V."""
    model = conv()
    optimizer = torch.optim.SGD(model.parameters(), **kind)
    for k in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(batch(8, k)[0]), batch(8, k)[1]).backward()
        optimizer.step()
    torch.manual_seed(1)
    return model, optimizer, WeightNet(12).to(D)


def by_double_backward(
    model: nn.Module, v: nn.Module, optimizer: torch.optim.Optimizer, data: Any, meta: Any, normalise: bool
) -> tuple[list[Tensor], Tensor]:
    """The definition: SGD's step written out with a graph, and the gradient through all of it."""
    theta = {n: p for n, p in model.named_parameters() if p.requires_grad}

    def losses(parameters: dict[str, Tensor], rows: Any) -> Tensor:
        buffers = {n: b.clone() for n, b in model.named_buffers()}
        out = functional_call(model, (parameters, buffers), (rows[0],))
        return F.cross_entropy(out, rows[1], reduction="none")

    each = losses(theta, data)
    w = v(each.detach())
    w = w / w.mean() if normalise else w
    grads = torch.autograd.grad((w * each).mean(), list(theta.values()), create_graph=True)
    group = optimizer.param_groups[0]
    moved = {}
    for (name, p), g in zip(theta.items(), grads, strict=True):
        d = g + group["weight_decay"] * p.detach()
        if group["momentum"]:
            buffer = optimizer.state.get(p, {}).get("momentum_buffer")
            b = d if buffer is None else group["momentum"] * buffer + (1 - group["dampening"]) * d
            d = d + group["momentum"] * b if group["nesterov"] else b
        moved[name] = p.detach() - group["lr"] * d
    meta_loss = losses(moved, meta).mean()
    return list(torch.autograd.grad(meta_loss, list(v.parameters()))), meta_loss.detach()


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("kind", SGDS, ids=["plain", "momentum", "nesterov", "dampening"])
@pytest.mark.parametrize("steps", [0, 3])
def test_meta_gradient_is_that_of_double_backward(kind: dict[str, Any], normalise: bool, steps: int) -> None:
    model, optimizer, v = trained(kind, steps)
    wanted, loss = by_double_backward(model, v, optimizer, batch(9, 7), batch(5, 8), normalise)
    for derivative in ("jvp", "double-backward"):
        got = meta_weight_step(
            model, v, batch(9, 7), batch(5, 8), optimizer, normalise=normalise, derivative=derivative
        )
        assert float(got.meta_loss) == pytest.approx(float(loss), rel=1e-12)
        for mine, right in zip(got.gradients, wanted, strict=True):
            assert float((mine - right).abs().max()) <= 1e-10 * float(right.abs().max())


def test_each_sensitivity_is_a_difference_quotient() -> None:
    """dL_meta/dw_i by moving one weight a little."""
    model, optimizer, v = trained(SGDS[1])
    data, meta = batch(4, 7), batch(5, 8)
    found = meta_weight_step(model, v, data, meta, optimizer)

    class Fixed(nn.Module):
        def __init__(self, shift: Tensor):
            super().__init__()
            self.shift, self.free = shift, nn.Parameter(torch.zeros((), dtype=D))

        def forward(self, losses: Tensor) -> Tensor:
            return v(losses) + self.shift + 0 * self.free

    for i in range(4):
        shift = torch.zeros(4, dtype=D)
        shift[i] = 1e-5
        up, down = (
            meta_weight_step(model, Fixed(s), data, meta, optimizer).meta_loss for s in (shift, -shift)
        )
        assert float(up - down) / 2e-5 == pytest.approx(float(found.sensitivities[i]), rel=1e-5)


def test_nothing_moves_in_a_meta_step() -> None:
    model, optimizer, v = trained(SGDS[1])
    before = {n: t.clone() for n, t in (model.state_dict() | v.state_dict()).items()}
    state = torch.get_rng_state()
    meta_weight_step(model, v, batch(9), batch(5), optimizer)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[n], t) for n, t in (model.state_dict() | v.state_dict()).items())
    assert all(p.grad is None for p in v.parameters())


def test_dropout_masks_are_those_of_the_first_pass() -> None:
    """With a dropout layer, both derivatives see the masks of one and the same pass."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 16), nn.Dropout(0.5), nn.Linear(16, 3)).to(D)
    v = WeightNet(6).to(D)
    data = (torch.randn(8, 5, dtype=D), torch.randint(0, 3, (8,)))
    found = []
    for derivative in ("jvp", "double-backward"):
        torch.manual_seed(3)
        found.append(meta_weight_step(model, v, data, data, lr=0.1, derivative=derivative).gradients)
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-14)


def test_frozen_layers_and_unused_parameters() -> None:
    model, _, v = trained(SGDS[0], 0)
    model[0].weight.requires_grad_(False)
    model.register_parameter("unused", nn.Parameter(torch.ones(3, dtype=D)))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1, 0.9)
    found = meta_weight_step(model, v, batch(6), batch(5), optimizer)
    assert all(bool(torch.isfinite(g).all()) for g in found.gradients)


def test_a_step_is_vs_step_then_sgds() -> None:
    """One step of the class: Adam on V with the meta gradient, then SGD on the loss weighted by the new V."""
    model, optimizer, v = trained(SGDS[1])
    other, twin, w = trained(SGDS[1])
    reweighter = MetaWeightNet(model, optimizer, weight_net=v, lr=1e-2)
    told = reweighter.step(batch(9), batch(5, 1))
    gradients = meta_weight_step(other, w, batch(9), batch(5, 1), twin).gradients
    adam = torch.optim.Adam(w.parameters(), 1e-2)
    for p, g in zip(w.parameters(), gradients, strict=True):
        p.grad = g
    adam.step()
    losses = F.cross_entropy(other(batch(9)[0]), batch(9)[1], reduction="none")
    twin.zero_grad()
    (w(losses.detach()).detach() * losses).mean().backward()
    twin.step()
    assert told is not None
    for a, b in ((v, w), (model, other)):
        for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True):
            torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-14)


def test_a_loop_of_ones_own() -> None:
    """Class 0 loses 70 % of its labels: trusted rows end with a smaller loss than after plain training."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(300, 2, generator=g)
    y = (x[:, 0] > 0).long()
    noisy = torch.where((torch.rand(300, generator=g) < 0.7) & (y == 0), 1 - y, y)
    trusted = torch.randn(60, 2, generator=g)
    meta = (trusted, (trusted[:, 0] > 0).long())
    torch.manual_seed(0)
    plain, model = nn.Linear(2, 2), nn.Linear(2, 2)
    sgd = torch.optim.SGD(plain.parameters(), 0.5)
    reweighter = MetaWeightNet(model, torch.optim.SGD(model.parameters(), 0.5), lr=1e-2, normalise=True)
    for _ in range(200):
        sgd.zero_grad()
        F.cross_entropy(plain(x), noisy).backward()
        sgd.step()
        reweighter.step((x, noisy), meta)
    with torch.no_grad():
        mine, without = (float(F.cross_entropy(m(meta[0]), meta[1])) for m in (model, plain))
    assert mine < without - 0.1


def test_intervals_other_optimizers_and_state() -> None:
    model, _, _ = trained(SGDS[0], 0)
    adam = torch.optim.Adam(model.parameters(), 1e-3)
    with pytest.raises(TypeError, match=r"optimizer: expected torch.optim.SGD"):
        MetaWeightNet(model, adam)
    reweighter = MetaWeightNet(model, adam, pseudo_lr=0.1, meta_interval=2, hidden=7)
    assert reweighter.step(batch(6), batch(4)) is not None
    assert reweighter.step(batch(6), None) is None
    with pytest.raises(ValueError, match="meta_batch: expected meta rows at step 2"):
        reweighter.step(batch(6), None)
    again = MetaWeightNet(model, adam, pseudo_lr=0.1, hidden=7)
    again.load_state_dict(reweighter.state_dict())
    assert again.steps == 2
    for a, b in zip(again.weight_net.parameters(), reweighter.weight_net.parameters(), strict=True):
        assert torch.equal(a, b)


def test_what_is_refused() -> None:
    model, optimizer, v = trained(SGDS[0], 0)
    with pytest.raises(TypeError, match="optimizer: expected either an optimizer or lr, got none"):
        meta_weight_step(model, v, batch(4), batch(4))
    with pytest.raises(TypeError, match="optimizer: expected either"):
        meta_weight_step(model, v, batch(4), batch(4), optimizer, lr=0.1)
    part = torch.optim.SGD([model[0].weight], 0.1)
    with pytest.raises(ValueError, match="optimizer: expected every trainable parameter"):
        meta_weight_step(model, v, batch(4), batch(4), part)
    with pytest.raises(ValueError, match="derivative: expected one of"):
        meta_weight_step(model, v, batch(4), batch(4), optimizer, derivative="finite")
    x, y = batch(4)
    x[2] = float("nan")
    with pytest.raises(RuntimeError, match="losses: expected finite values, got nan for sample"):
        meta_weight_step(model, v, (x, y), batch(4), optimizer)
    with pytest.raises(ValueError, match="batch: expected at least one sample"):
        meta_weight_step(model, v, (x[:0], y[:0]), batch(4), optimizer)
    with pytest.raises(ValueError, match="meta_batch: expected at least one sample"):
        meta_weight_step(model, v, batch(4), (x[:0], y[:0]), optimizer)
    with pytest.raises(ValueError, match="model: expected parameters that require grad"):
        meta_weight_step(conv().requires_grad_(False), v, batch(4), batch(4), lr=0.1)
