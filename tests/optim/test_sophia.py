"""Sophia: known answers, the published trajectory, and what holds in every mode."""

from __future__ import annotations

import copy
import math
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))

from sophia_cases import Published, batch, loss_on, network, put_gradients, same_bits, weights

from tenfold.optim import Sophia, SophiaG, SophiaH

START = (0.5, -0.25, 0.1, 0.0, 2.0)


def five(dtype: torch.dtype = torch.float32) -> nn.Parameter:
    return nn.Parameter(torch.tensor(START, dtype=dtype))


def close(value: Tensor, wanted: list[float], rel: float = 1e-6) -> bool:
    return value.tolist() == pytest.approx(wanted, rel=rel, abs=1e-30)


# -- known answers ----------------------------------------------------------------------------------------


def test_two_steps_of_the_authors_code() -> None:
    p = five()
    opt = SophiaG([p], lr=0.1, rho=0.04, weight_decay=0.1)
    p.grad = torch.tensor([1e-2, 0.1, 0, 0, 3e-2])
    opt.update_hessian()
    p.grad = torch.tensor([1e-3, -2e-2, 0, 5e-6, 1e-4])
    opt.step(bs=500)
    assert close(p, [0.395, -0.2125, 0.099, -0.1, 1.9780556])
    assert opt.win_rate == 2 / 5
    opt.step(bs=500)
    assert close(p, [0.29105002, -0.14160001, 0.09801, -0.199, 1.9544543])
    assert close(opt.state[p]["exp_avg"], [6.8775e-5, -1.3755e-3, 0, 3.43875e-7, 6.8775e-6])
    assert opt.state[p]["step"] == 2


def test_two_steps_of_the_code_of_soul() -> None:
    p = five()
    opt = Sophia([p], lr=0.1, betas=(0.9, 0.95), rho=0.04, weight_decay=0.1, mode="soul_legacy")
    p.grad = torch.tensor([1e-3, -2e-2, 0, 5e-6, 0.5])
    opt.step()
    assert close(p, [0.395, -0.15472656, 0.099, -0.1, 1.976289])
    opt.step()
    assert close(p, [0.29105002, -0.06706653, 0.09801, -0.199, 1.9530816])
    assert close(opt.state[p]["exp_avg"], [3.439e-4, -6.878e-3, 0, 1.7195e-6, 0.17195], 2e-6)
    assert close(opt.state[p]["hessian"], [9.75e-8, 3.9e-5, 0, 2.4375e-12, 2.4375e-2], 2e-6)


def test_one_step_of_the_paper() -> None:
    p = five(torch.float64)
    opt = Sophia([p], lr=0.1, betas=(0.5, 0.9), gamma=0.05, eps=1e-3, weight_decay=0.5)
    p.grad = torch.tensor([1e-2, 0.1, 0, 0, 3.0], dtype=torch.float64)
    opt.update_hessian(scale=10.0)
    p.grad = torch.tensor([1e-4, -1e-4, 0, 5e-6, 2e-2], dtype=torch.float64)
    opt.step()
    m = [5e-5, -5e-5, 0, 2.5e-6, 1e-2]
    h = [0.1 * 10 * g * g for g in (1e-2, 0.1, 0, 0, 3.0)]
    u = [max(-1, min(1, a / max(0.05 * b, 1e-3))) for a, b in zip(m, h, strict=True)]
    assert close(p, [0.95 * w - 0.1 * v for w, v in zip(START, u, strict=True)], 1e-12)


def test_sign_is_sign_momentum_and_keeps_no_curvature() -> None:
    p = five()
    opt = Sophia([p], lr=0.1, betas=(0.9, 0.99), weight_decay=0, mode="sign")
    m = torch.zeros(5)
    wanted = p.detach().clone()
    for k in range(4):
        p.grad = torch.randn(5, generator=torch.Generator().manual_seed(k))
        m = 0.9 * m + 0.1 * p.grad
        wanted -= 0.1 * m.sign()
        opt.step()
    assert torch.allclose(p, wanted)
    assert set(opt.state[p]) == {"step", "exp_avg"}
    assert opt.win_rate == 0


def test_momentum_of_soul_decays_twice_in_a_step() -> None:
    p = five()
    opt = Sophia([p], lr=1e-2, betas=(0.9, 0.95), mode="soul_legacy")
    m = torch.zeros(5)
    for k in range(3):
        p.grad = torch.randn(5, generator=torch.Generator().manual_seed(k))
        for _ in range(2):
            m = 0.9 * m + 0.1 * p.grad
        opt.step()
    assert torch.allclose(opt.state[p]["exp_avg"], m)


def test_minibatch_size_enters_at_the_step_or_into_the_curvature_alike() -> None:
    models = [network(torch.float64) for _ in range(2)]
    paper = Sophia(models[0].parameters(), gamma=0.05, eps=1e-30)
    code = SophiaG(models[1].parameters(), rho=0.05)
    for opt, model, scale in ((paper, models[0], 480.0), (code, models[1], 1.0)):
        opt.param_groups[0]["eps"] = 1e-30
        opt.param_groups[0]["weight_decay"] = 0.1
        put_gradients(model, 7, 1e-2)
        opt.update_hessian(scale)
        put_gradients(model, 8, 1e-3)
    paper.step()
    code.step(bs=480)
    for a, b in zip(weights(models[0]), weights(models[1]), strict=True):
        assert torch.allclose(a, b, rtol=1e-13)


# -- the published trajectory -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("decay", "maximize"), [(0.0, False), (0.1, False), (0.1, True)], ids=["plain", "decay", "maximize"]
)
def test_a_hundred_steps_are_those_of_the_authors_code(decay: float, maximize: bool) -> None:
    ours, theirs = network(), network()
    options = {"lr": 3e-3, "rho": 0.03, "weight_decay": decay, "maximize": maximize}
    a, b = SophiaG(ours.parameters(), **options), Published(theirs.parameters(), **options)
    for step in range(100):
        for opt, model in ((a, ours), (b, theirs)):

            def closure(opt: Any = opt, model: nn.Module = model, step: int = step) -> Tensor:
                opt.zero_grad()
                loss = loss_on(model, step)
                loss.backward()
                return loss

            assert opt.step(closure, bs=64).item() > 0
            if step % 10 == 9:
                opt.update_hessian()
        if step == 40:  # and once each goes on with the other's state
            a_state, b_state = copy.deepcopy(a.state_dict()), copy.deepcopy(b.state_dict())
            a.load_state_dict(b_state)
            b.load_state_dict(a_state)
    assert a.num_updates == 100
    for x, y in zip(weights(ours), weights(theirs), strict=True):
        assert torch.allclose(x, y, rtol=2e-5, atol=2e-6)
    moved = max(float((x - y).abs().max()) for x, y in zip(weights(ours), weights(network()), strict=True))
    assert moved > 0.05


def test_given_gradients_the_bits_are_those_of_the_authors_code() -> None:
    ours, theirs = network(), network()
    a, b = SophiaG(ours.parameters(), weight_decay=0.2), Published(theirs.parameters(), weight_decay=0.2)
    for step in range(30):
        for opt, model in ((a, ours), (b, theirs)):
            put_gradients(model, step, 1e-3)
            opt.step(bs=640)
            if step % 10 == 9:
                opt.update_hessian()
    assert all(
        torch.allclose(x, y, rtol=1e-6, atol=1e-9)
        for x, y in zip(weights(ours), weights(theirs), strict=True)
    )


# -- invariants -------------------------------------------------------------------------------------------

MODES = ["paper", "liuhong99", "soul_legacy", "empirical_fisher", "sign"]


@pytest.mark.parametrize("mode", MODES)
def test_no_weight_moves_further_than_lr(mode: str) -> None:
    model = network()
    opt = Sophia(model.parameters(), lr=1e-3, mode=mode, weight_decay=0.1)
    for step in range(6):
        before = weights(model)
        put_gradients(model, step, 10.0 ** (step - 3))
        if mode not in ("soul_legacy", "sign"):
            opt.update_hessian()
        opt.step()
        for p, old in zip(model.parameters(), before, strict=True):
            change = (p.detach().double() - old.double() + 1e-4 * old.double()).abs()
            assert (change <= 1e-3 * (1 + 1e-6) + 1e-7 * old.abs()).all()
    if mode != "sign":
        assert all((state["hessian"] >= 0).all() for state in opt.state.values())


@pytest.mark.parametrize("mode", MODES)
def test_groups_cut_otherwise_make_the_same_step(mode: str) -> None:
    results = []
    for cut in (1, 3):
        model = network()
        params = list(model.parameters())
        opt = Sophia([{"params": params[:cut]}, {"params": params[cut:]}], mode=mode)
        for step in range(3):
            put_gradients(model, step)
            if mode not in ("soul_legacy", "sign"):
                opt.update_hessian()
            opt.step()
        results.append(weights(model))
    assert same_bits(*results)


def test_a_missing_gradient_leaves_the_parameter_without_state() -> None:
    model = network()
    params = list(model.parameters())
    opt = Sophia(params)
    put_gradients(model, 0)
    params[1].grad = None
    before = weights(model)
    opt.update_hessian()
    opt.step()
    assert params[1] not in opt.state
    assert torch.equal(params[1], before[1])
    assert opt.state[params[0]]["step"] == 1
    model.zero_grad()
    opt.step()  # nothing to do is no error
    assert opt.state[params[0]]["step"] == 1


def test_groups_have_their_own_options_and_schedulers_reach_them() -> None:
    model = network()
    params = list(model.parameters())
    opt = Sophia(
        [{"params": params[:1], "lr": 0.5, "weight_decay": 0.0}, {"params": params[1:]}], mode="sign"
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(opt, lambda step: 0.5**step)
    before = weights(model)
    put_gradients(model, 0)
    opt.step()
    schedule.step()
    assert opt.param_groups[0]["lr"] == 0.25
    assert torch.allclose((params[0] - before[0]).abs(), torch.tensor(0.5))
    before = weights(model)
    opt.step()
    assert torch.allclose((params[0] - before[0]).abs(), torch.tensor(0.25))


def test_gradients_need_not_be_contiguous() -> None:
    results = []
    for strided in (False, True):
        model = network()
        opt = Sophia(model.parameters())
        put_gradients(model, 0)
        if strided:
            for p in model.parameters():
                p.grad = torch.stack([p.grad, p.grad + 1], -1)[..., 0]
        opt.update_hessian()
        opt.step()
        results.append(weights(model))
    assert same_bits(*results)


def test_when_the_curvature_is_due() -> None:
    for mode, due in (("paper", [0, 3, 6]), ("liuhong99", [3, 6]), ("sign", []), ("soul_legacy", [])):
        model = network()
        opt = Sophia(model.parameters(), mode=mode, update_interval=3)
        found = []
        for step in range(8):
            put_gradients(model, step)
            if opt.hessian_due:
                found.append(step)
                opt.update_hessian()
                assert not opt.hessian_due
            opt.step()
        assert found == due, mode


@pytest.mark.parametrize("mode", ["paper", "liuhong99"])  # eps as the least denominator, and added to it
def test_negative_curvature_is_a_sign_step(mode: str) -> None:
    p = five()
    opt = Sophia([p], lr=0.1, weight_decay=0.0, mode=mode)
    p.grad = torch.tensor([1.0, -1, 0, 1, 1])
    opt.step()
    opt.state[p]["hessian"].fill_(-5.0)
    before = p.detach().clone()
    opt.step()
    assert torch.allclose(p, before - 0.1 * torch.tensor([1.0, -1, 0, 1, 1]))


# -- half precision ---------------------------------------------------------------------------------------


def million(**options: Any) -> tuple[nn.Parameter, Sophia]:
    w = 0.02 * torch.randn(1_000_000, generator=torch.Generator().manual_seed(0))
    p = nn.Parameter(w.bfloat16())
    p.grad = torch.ones_like(p)
    return p, Sophia([p], lr=5e-6, weight_decay=0.0, mode="sign", **options)


def test_bf16_weights_rounded_to_nearest_lose_most_updates_and_say_so_once() -> None:
    p, opt = million()
    assert opt.state_dtype == torch.float32
    with pytest.warns(UserWarning, match="lost it to rounding"):
        opt.step()
    assert 0.05 < opt.stats()["changed"] < 0.1
    assert opt.state[p]["exp_avg"].dtype == torch.float32
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opt.step()


@pytest.mark.parametrize("options", [{"rounding": "stochastic"}, {"rounding": "kahan"}, {"master": True}])
def test_ways_to_keep_small_updates(options: dict[str, Any]) -> None:
    p, opt = million(**options)
    start = p.detach().double()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(4):
            opt.step()
    state = opt.state[p]
    reached = p.detach().double() + state["compensation"].double() if "compensation" in state else p.double()
    reached = state["master"].double() if "master" in state else reached
    assert (reached - start).mean().item() == pytest.approx(-4 * 5e-6, rel=0.02)
    if "master" in state:
        assert torch.equal(p, state["master"].bfloat16())


def test_stochastic_rounding_repeats_and_differs_between_steps() -> None:
    runs = []
    for _ in range(2):
        p, opt = million(rounding="stochastic", seed=3)
        moved = []
        for _ in range(2):
            before = p.detach().clone()
            opt.step()
            moved.append(p.detach() != before)
        runs.append(p.detach().clone())
        assert not torch.equal(*moved)
    assert torch.equal(*runs)


@pytest.mark.parametrize(("dtype", "at_least"), [("8bit", 0.97), (torch.bfloat16, 0.98)])
def test_states_in_few_bits_go_the_same_way(dtype: Any, at_least: float) -> None:
    paths = []
    for state_dtype in (torch.float32, dtype):
        p = nn.Parameter(torch.zeros(4000))
        opt = SophiaG([p], lr=1e-3, weight_decay=0.0, state_dtype=state_dtype, rho=1.0)
        size = torch.exp(2 * torch.randn(4000, generator=torch.Generator().manual_seed(9)) - 8)
        for step in range(40):
            p.grad = size * (torch.randn(4000, generator=torch.Generator().manual_seed(step)) + 0.3)
            if step % 10 == 0:
                opt.update_hessian()
            opt.step(bs=400)
        paths.append(p.detach().clone())
    assert 0.05 < opt.win_rate < 1.0
    assert float(nn.functional.cosine_similarity(*paths, dim=0)) > at_least
    if dtype == "8bit":
        stored = opt.state[p]
        assert (
            sum(t.numel() * t.element_size() for k, t in stored.items() if k != "step") == 4000 * 2 + 16 * 8
        )


# -- what was counted -------------------------------------------------------------------------------------


def test_statistics_of_a_step() -> None:
    p = five()
    opt = SophiaG([p], lr=0.1, rho=0.04, weight_decay=0.1, bs=500, nonfinite="skip_element")
    assert math.isnan(opt.win_rate)
    p.grad = torch.tensor([1e-2, 0.1, 0, 0, 3e-2])
    opt.update_hessian()
    p.grad = torch.tensor([1e-3, -2e-2, 0, float("nan"), 1e-4])
    opt.step()
    found = opt.stats()
    u = [1, -7e-4 / 2e-3, 0, 0, 3.5e-6 / 1.8e-4]
    assert found["update_rms"] == pytest.approx(math.sqrt(sum(v * v for v in u) / 5), rel=1e-5)
    assert (found["nonfinite"], found["elements"], found["changed"]) == (1, 5, 4 / 5)
    assert found["win_rate"] == 2 / 5


def test_statistics_may_be_counted_now_and_then() -> None:
    p = five()
    opt = Sophia([p], mode="sign", stats_interval=3)
    seen = []
    for step in range(7):
        p.grad = torch.zeros(5)
        p.grad[0] = float("nan") if step in (3, 5) else 1.0
        opt.step()
        seen.append(opt.stats()["nonfinite"])
    assert seen == [0, 0, 0, 1, 1, 1, 0]


def test_gradients_that_are_not_finite() -> None:
    p = five()
    p.grad = torch.tensor([1.0, float("nan"), float("inf"), 0, 1])
    before = p.detach().clone()
    with pytest.raises(RuntimeError, match="expected finite gradients, got 2"):
        Sophia([p], mode="sign", nonfinite="error").step()
    assert torch.equal(p, before)
    Sophia([p], lr=0.1, weight_decay=0.0, mode="sign", nonfinite="skip_element").step()
    assert torch.equal(p[1:3], before[1:3])
    assert p[0] != before[0]
    Sophia([p], mode="sign").step()
    assert p[1].isnan()
    assert p[2].isfinite()


@pytest.mark.parametrize("mode", ["paper", "liuhong99"])
def test_auto_rho_reaches_the_wanted_win_rate(mode: str) -> None:
    p = nn.Parameter(torch.zeros(20_000))
    opt = Sophia([p], rho="auto", mode=mode, target_win_rate=0.25, update_interval=4)
    size = torch.exp(torch.randn(20_000, generator=torch.Generator().manual_seed(5)))
    seen = []
    for step in range(12):
        p.grad = size * torch.randn(20_000, generator=torch.Generator().manual_seed(step))
        if opt.hessian_due or step == 0:
            opt.update_hessian(1.0)
            seen.append(step)
        opt.step(bs=128 if mode == "liuhong99" else None)
        if step in seen:
            assert opt.win_rate == pytest.approx(0.25, abs=1e-3)
    assert seen == [0, 4, 8]
    assert opt.param_groups[0]["rho"] != 0.04


# -- the subclasses ---------------------------------------------------------------------------------------


def test_subclasses_have_the_constants_of_their_papers() -> None:
    g = SophiaG(network().parameters())
    assert (g.mode, g.estimator) == ("liuhong99", "gnb")
    want = {"lr": 1e-4, "betas": (0.965, 0.99), "rho": 0.04, "weight_decay": 0.1, "eps": 1e-15}
    assert {k: g.param_groups[0][k] for k in want} == want
    h = SophiaH(network().parameters())
    assert (h.mode, h.estimator, h.update_interval) == ("paper", "hutchinson", 10)
    want = {"lr": 6e-4, "betas": (0.96, 0.99), "rho": 0.01, "weight_decay": 0.2, "eps": 1e-12}
    assert {k: h.param_groups[0][k] for k in want} == want


def test_it_learns() -> None:
    model = network()
    opt = Sophia(model.parameters(), lr=1e-2, gamma=0.5)
    first = sum(loss_on(model, k).item() for k in range(4))
    for step in range(100):
        if opt.hessian_due:
            opt.estimate_hessian(model, [batch(step % 4)])
        opt.zero_grad()
        loss_on(model, step % 4).backward()
        opt.step()
    assert sum(loss_on(model, k).item() for k in range(4)) < 0.6 * first


@pytest.mark.parametrize("mode", MODES)
def test_maximize_is_the_step_of_the_negated_gradient(mode: str) -> None:
    results = []
    for maximize in (False, True):
        model = network()
        opt = Sophia(model.parameters(), lr=1e-2, mode=mode, maximize=maximize)
        for step in range(4):
            put_gradients(model, step)
            if mode not in ("soul_legacy", "sign"):
                opt.update_hessian()
            if maximize:
                for p in model.parameters():
                    p.grad.neg_()
            opt.step()
        results.append(weights(model))
    assert same_bits(*results)
