"""Corners where two features meet."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tenfold.ops import zo_sample
from tenfold.optim import ZOSGD, Blocks, HiZOO, HybridFirstOrder, ZOAdam, ZOSGDMomentum, splitmix64, zolog


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(6, 6, dtype=torch.float64), nn.Tanh()) for _ in range(4)
        )
        self.norm = nn.LayerNorm(6, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


X = torch.linspace(-1, 1, 30, dtype=torch.float64).reshape(5, 6)


def objective(model: nn.Module) -> Any:
    return lambda: model(X).square().mean() + model(X)[0, 0]


def test_a_compiled_model_is_probed_where_a_plain_one_is() -> None:
    torch._dynamo.reset()
    found = []
    for compiled, restore in ((False, "exact"), (True, "exact"), (False, "dual"), (True, "dual")):
        model: Any = Net()
        optimizer = ZOSGD(model.parameters(), lr=1e-2, restore=restore, streams=model)
        called = torch.compile(model, backend="eager") if compiled else model
        for _ in range(2):
            optimizer.step(objective(called))
        assert optimizer.last_step is not None
        found.append(optimizer.last_step.projected_grads[0])
    assert found == pytest.approx([found[0]] * 4, rel=1e-6)


def test_how_ranks_share_work_is_not_part_of_the_state() -> None:
    model = Net()
    optimizer = ZOSGD(model.parameters())
    saved = optimizer.state_dict()
    assert "parallel" not in saved["zo"]
    saved["zo"]["parallel"] = "data"  # as an earlier version wrote it
    optimizer.load_state_dict(saved)
    assert optimizer.parallel is None


def test_a_step_that_cannot_be_logged_is_not_made(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Net()
    optimizer = ZOAdam(model.parameters(), lr=1e-2, streams=model)
    with zolog.ZOLog.create(tmp_path / "run.zolog", optimizer, model) as log:
        optimizer.step(objective(model))
        before = {name: p.detach().clone() for name, p in model.named_parameters()}

        def full(step: Any) -> None:
            raise OSError("no space left")

        monkeypatch.setattr(log._appender, "append", full)
        with pytest.raises(OSError, match="no space"):
            optimizer.step(objective(model))
        assert optimizer.num_steps == 1
        assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
        monkeypatch.undo()
        optimizer.step(objective(model))  # and the log goes on with the step that failed
    assert zolog.info(tmp_path / "run.zolog")["steps"] == 2


def test_a_step_that_fails_after_it_was_logged_is_taken_out_of_the_log(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Net()
    optimizer = ZOSGD(model.parameters(), lr=1e-2, streams=model)
    with zolog.ZOLog.create(tmp_path / "run.zolog", optimizer, model):
        optimizer.step(objective(model))

        def fails(*_: Any) -> None:
            raise MemoryError("not now")

        monkeypatch.setattr(optimizer, "_apply", fails)
        with pytest.raises(MemoryError):
            optimizer.step(objective(model))
        monkeypatch.undo()
        optimizer.step(objective(model))
    assert zolog.info(tmp_path / "run.zolog")["steps"] == 2
    again = Net()
    zolog.replay(again, tmp_path / "run.zolog")
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))


def test_parameters_that_thaw_belong_to_their_block() -> None:
    found = []
    for reuse in (True, False):
        model = Net()
        model.layers[2].requires_grad_(False)
        blocks = Blocks(model, order="simultaneous", reuse_prefix=reuse)
        optimizer = ZOSGD(model.parameters(), lr=1e-2, streams=model, blocks=blocks)
        optimizer.step(lambda model=model: model(X)[0, 0])
        model.layers[2].requires_grad_(True)
        optimizer.step(lambda model=model: model(X)[0, 0])
        assert optimizer.last_step is not None
        found.append(optimizer.last_step.projected_grads)
    assert len(found[0]) >= 4
    assert found[0] == pytest.approx(found[1], rel=1e-9)


def test_a_hybrid_step_does_not_ascend() -> None:
    model = Net()
    hybrid = HybridFirstOrder(1, lambda params: torch.optim.SGD(params, lr=0.1))
    with pytest.raises(ValueError, match="maximize: expected False"):
        ZOSGD(model.parameters(), streams=model, hybrid=hybrid, maximize=True)


def test_least_squares_finds_the_gradient_of_groups_with_other_distances() -> None:
    torch.manual_seed(3)
    a, b = (nn.Parameter(torch.zeros(n, dtype=torch.float64)) for n in (8, 12))
    ga, gb = torch.randn(8, dtype=torch.float64), torch.randn(12, dtype=torch.float64)
    groups = [{"params": [a], "eps": 1e-3}, {"params": [b], "eps": 1e-2}]
    optimizer = ZOSGD(groups, lr=1.0, num_queries=20, aggregate="least_squares")
    optimizer.step(lambda: a @ ga + b @ gb)
    torch.testing.assert_close(-a.detach(), ga, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(-b.detach(), gb, rtol=1e-6, atol=1e-6)


def test_dual_tells_of_a_parameter_that_the_closure_does_not_reach() -> None:
    model = Net()
    optimizer = ZOSGD(model.parameters(), restore="dual", streams=model)
    with pytest.warns(RuntimeWarning, match=r"does not reach layers\.1\.0\.weight"):
        optimizer.step(lambda: model.norm(model.layers[0](X)).square().mean())


def test_a_term_beside_the_loss_of_an_attached_model_is_refused() -> None:
    class Loss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = Net()

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"loss": self.net(x).square().mean()}

    model = Loss()
    optimizer = ZOSGD(model.parameters(), lr=1e-2, streams=model)
    optimizer.attach(model)
    before = [p.detach().clone() for p in model.parameters()]
    loss = model(X)["loss"] + 1e-3 * sum(p.square().sum() for p in model.parameters())
    loss.backward()
    with pytest.raises(RuntimeError, match=r"net\.layers\.0\.0\.weight\.grad: expected None"):
        optimizer.step()
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
    optimizer.zero_grad()
    model(X)["loss"].backward()
    optimizer.step()
    assert optimizer.num_steps == 1


def test_hizoo_of_two_queries_and_two_groups_by_hand() -> None:
    a, smoothing, lr = torch.tensor([1.0, 0.5, 2.0, 3.0], dtype=torch.float64), 0.1, 0.05
    start = torch.tensor([1.0, -2.0, 0.5, 1.5], dtype=torch.float64)
    eps = (1e-3, 1e-3, 4e-3, 4e-3)  # two parameters of two elements each
    first, second = (nn.Parameter(part.clone()) for part in start.split(2))
    groups = [{"params": [first], "eps": eps[0]}, {"params": [second], "eps": eps[2]}]
    optimizer = HiZOO(groups, lr=lr, smoothing=smoothing, num_queries=2)

    def loss(theta: Tensor) -> float:
        return float(0.5 * (a * theta * theta).sum())

    theta, h, distance = start.clone(), torch.ones(4, dtype=torch.float64), torch.tensor(eps).double()
    for step in range(2):
        seed = splitmix64(0, step)
        seen, gradient = torch.zeros(4).double(), torch.zeros(4).double()
        for query in (0, 1):
            z = torch.cat([zo_sample(seed, s, query, n=2).double() for s in (0, 1)])
            u = distance * z / h.sqrt()
            plus, minus, base = loss(theta + u), loss(theta - u), loss(theta)
            seen += abs(plus + minus - 2 * base) / (2 * distance**2) * z * z / 2
            gradient += (plus - minus) / (2 * distance) * z / 2
        h = (1 - smoothing) * h + smoothing * h * seen
        theta = theta - lr * gradient / h.sqrt()
        optimizer.step(lambda: loss(torch.cat([first.detach(), second.detach()])))
    torch.testing.assert_close(torch.cat([first.detach(), second.detach()]), theta, rtol=0, atol=1e-7)
    found = torch.cat([optimizer.state[p]["hessian"] for p in (first, second)])
    torch.testing.assert_close(found, h, rtol=1e-5, atol=0)


@pytest.mark.parametrize("make", [ZOAdam, ZOSGDMomentum])
def test_memory_that_runs_out_in_the_first_step_leaves_the_weights(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Net()
    groups = [{"params": [p]} for p in model.parameters()]
    optimizer = make(groups, lr=1e-2, streams=model, restore="dual")
    before = [p.detach().clone() for p in model.parameters()]
    module = sys.modules[f"tenfold.optim.{'adam' if make is ZOAdam else 'sgd'}"]
    real, calls = module.empty_state, iter(range(100))

    def runs_out(p: Tensor, *rest: Any) -> Tensor:
        if next(calls) == 3:
            raise MemoryError("no room")
        return real(p, *rest)

    monkeypatch.setattr(module, "empty_state", runs_out)
    with pytest.raises(MemoryError):
        optimizer.step(lambda: model(X)[0, 0])
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
    monkeypatch.undo()
    optimizer.step(lambda: model(X)[0, 0])
    assert optimizer.num_steps == 1
