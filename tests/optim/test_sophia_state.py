"""Sophia: saving, loading, and the loops of others (GradScaler, accelerate)."""

from __future__ import annotations

import copy
import io
import pickle
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))

from sophia_cases import Published, batch, loss_on, network, put_gradients, same_bits, weights

from tenfold.optim import Sophia, SophiaG

CASES = [
    pytest.param(torch.float32, {}, id="f32"),
    pytest.param(torch.float64, {}, id="f64"),
    pytest.param(torch.bfloat16, {"rounding": "stochastic"}, id="bf16-sr"),
    pytest.param(torch.bfloat16, {"rounding": "kahan"}, id="bf16-kahan"),
    pytest.param(torch.bfloat16, {"master": True, "state_dtype": torch.bfloat16}, id="bf16-master"),
    pytest.param(torch.float32, {"state_dtype": "8bit"}, id="8bit"),
    pytest.param(torch.float32, {"mode": "soul_legacy"}, id="soul"),
    pytest.param(torch.float32, {"mode": "sign"}, id="sign"),
    pytest.param(torch.float32, {"rho": "auto", "update_interval": 2}, id="auto"),
]


def advance(model: nn.Module, opt: Sophia, steps: range) -> None:
    for step in steps:
        if opt.hessian_due:
            put_gradients(model, 100 + step, 1e-2)
            opt.update_hessian(100.0)
        put_gradients(model, step, 1e-3)
        opt.step()


@pytest.mark.parametrize(("dtype", "options"), CASES)
def test_a_run_saved_in_the_middle_goes_on_to_the_same_bits(
    dtype: torch.dtype, options: dict[str, Any]
) -> None:
    options = {"update_interval": 3, **options}
    whole = network(dtype)
    opt = Sophia(whole.parameters(), **options)
    advance(whole, opt, range(4))
    file = io.BytesIO()
    torch.save((whole.state_dict(), opt.state_dict()), file)
    file.seek(0)
    model_state, opt_state = torch.load(file, weights_only=True)
    again = network(dtype, seed=1)
    again.load_state_dict(model_state)
    other = Sophia(again.parameters(), **options)
    other.load_state_dict(opt_state)
    advance(whole, opt, range(4, 9))
    advance(again, other, range(4, 9))
    assert same_bits(weights(whole), weights(again))
    for p, q in zip(whole.parameters(), again.parameters(), strict=True):
        assert opt.state[p].keys() == other.state[q].keys()
        assert all(torch.equal(opt.state[p][k], other.state[q][k]) for k in opt.state[p])
    assert (other.num_updates, other.num_refreshes) == (opt.num_updates, opt.num_refreshes)


def test_copies_and_pickles_go_on_alike() -> None:
    model = network()
    opt = Sophia(model.parameters(), mode="liuhong99", seed=5)
    advance(model, opt, range(2))
    copied = copy.deepcopy(opt)
    pickled = pickle.loads(pickle.dumps(opt))
    for other in (copied, pickled):
        assert (other.mode, other.seed, other.num_updates) == ("liuhong99", 5, 2)
        params = [p for group in other.param_groups for p in group["params"]]
        for p, q in zip(params, model.parameters(), strict=True):
            p.grad = torch.ones_like(q)
        other.step()
        assert other.num_updates == 3
    assert opt.num_updates == 2


def test_a_state_of_the_authors_code_loads_and_back() -> None:
    theirs_model, ours_model = network(), network()
    theirs = Published(theirs_model.parameters(), lr=1e-2, rho=0.1)
    for step in range(12):
        put_gradients(theirs_model, step, 1e-3)
        theirs.step(bs=64)
    theirs.update_hessian()
    ours_model.load_state_dict(theirs_model.state_dict())
    ours = SophiaG(ours_model.parameters())
    ours.load_state_dict(theirs.state_dict())
    assert (ours.num_updates, ours.param_groups[0]["lr"], ours.param_groups[0]["rho"]) == (12, 1e-2, 0.1)
    back = Published(theirs_model.parameters())
    back.load_state_dict(copy.deepcopy(ours.state_dict()))
    for opt, model in ((ours, ours_model), (back, theirs_model)):
        put_gradients(model, 50, 1e-3)
        opt.step(bs=64)
    for a, b in zip(weights(ours_model), weights(theirs_model), strict=True):
        assert torch.allclose(a, b, rtol=1e-6, atol=1e-8)
    state = next(iter(back.state.values()))
    assert set(state) == {"step", "exp_avg", "hessian"}
    assert state["step"] == 13
    assert {"lr", "betas", "rho", "weight_decay", "maximize", "capturable"} <= set(back.param_groups[0])


def test_sophia_g_takes_every_argument_of_the_authors_class() -> None:
    for capturable in (False, True):
        model = network()
        opt = SophiaG(model.parameters(), 1e-3, (0.9, 0.95), 0.03, 0.2, maximize=True, capturable=capturable)
        put_gradients(model, 0)
        opt.step(None, 64)
        group = opt.param_groups[0]
        assert (group["lr"], group["betas"], group["rho"]) == (1e-3, (0.9, 0.95), 0.03)
        assert (group["weight_decay"], group["maximize"]) == (0.2, True)


def test_bf16_states_of_the_authors_code_become_float32() -> None:
    model = network(torch.bfloat16)
    theirs = Published(model.parameters())
    put_gradients(model, 0)
    theirs.step()
    theirs.update_hessian()
    ours = SophiaG(model.parameters(), rounding="stochastic")
    ours.load_state_dict(theirs.state_dict())
    p = next(model.parameters())
    assert theirs.state[p]["exp_avg"].dtype == torch.bfloat16
    assert ours.state[p]["exp_avg"].dtype == ours.state[p]["hessian"].dtype == torch.float32
    assert torch.equal(ours.state[p]["hessian"], theirs.state[p]["hessian"].float())


@pytest.mark.parametrize(("old", "new"), [(torch.float32, "8bit"), ("8bit", torch.float32)])
def test_states_come_in_the_dtype_of_the_optimizer(old: Any, new: Any) -> None:
    model = network()
    opt = SophiaG(model.parameters(), state_dtype=old)
    put_gradients(model, 0)
    opt.update_hessian()
    opt.step()
    other = SophiaG(model.parameters(), state_dtype=new)
    other.load_state_dict(opt.state_dict())
    back = SophiaG(model.parameters())
    for source in (opt, other):
        back.load_state_dict(source.state_dict())
    fine = SophiaG(model.parameters())
    fine.load_state_dict(opt.state_dict())
    for p in model.parameters():
        for name in ("exp_avg", "hessian"):
            a, b = back.state[p][name], fine.state[p][name]
            assert torch.allclose(a, b, rtol=0.1, atol=1e-6 * float(b.abs().max()))


# -- loops of others --------------------------------------------------------------------------------------


def test_a_grad_scaler_unscales_and_skips() -> None:
    scaled, plain = network(), network()
    opt, reference = (Sophia(m.parameters(), lr=1e-2, mode="soul_legacy") for m in (scaled, plain))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=10_000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for step in range(5):
            for p in scaled.parameters():
                p.grad = None
            scaler.scale(loss_on(scaled, step)).backward()
            overflow = step == 2
            if overflow:
                next(scaled.parameters()).grad[0, 0] = float("inf")
                before, kept = weights(scaled), copy.deepcopy(opt.state_dict()["state"])
            if step == 3:
                scaler.unscale_(opt)
            scaler.step(opt)
            scaler.update()
            if overflow:
                assert same_bits(weights(scaled), before)
                for i, state in opt.state_dict()["state"].items():
                    assert all(torch.equal(state[k], kept[i][k]) for k in state)
                assert scaler.get_scale() == 512
                continue
            reference.zero_grad()
            loss_on(plain, step).backward()
            reference.step()
    assert same_bits(weights(scaled), weights(plain))  # powers of two scale exactly
    assert opt.state[next(scaled.parameters())]["step"] == 4


def test_a_grad_scaler_as_an_argument() -> None:
    scaled, plain = network(), network()
    opt, reference = (SophiaG(m.parameters(), lr=1e-2) for m in (scaled, plain))
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    for bad in (False, True):
        opt.zero_grad()
        scaler.scale(loss_on(scaled, 0)).backward()
        if bad:
            next(scaled.parameters()).grad.fill_(float("nan"))
        opt.update_hessian(grad_scaler=scaler)
        opt.step(bs=10, grad_scaler=scaler)
        scaler.update()
    loss_on(plain, 0).backward()
    reference.update_hessian()
    reference.step(bs=10)
    assert same_bits(weights(scaled), weights(plain))
    for p, q in zip(scaled.parameters(), plain.parameters(), strict=True):
        assert torch.equal(opt.state[p]["hessian"], reference.state[q]["hessian"])


def test_accelerate_steps_it() -> None:
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    model, alone = network(), network()
    inner = Sophia(model.parameters(), lr=1e-2)
    wrapped, opt = accelerator.prepare(model, inner)
    for step in range(4):
        with accelerator.accumulate(wrapped):
            if inner.hessian_due and step % 2 == 0:
                inner.estimate_hessian(wrapped, [batch(step)])
            accelerator.backward(loss_on(wrapped, step))
            opt.step()
            opt.zero_grad()
    reference = Sophia(alone.parameters(), lr=1e-2)
    for step in range(2):
        if reference.hessian_due:
            reference.estimate_hessian(alone, [batch(0)])
        ((loss_on(alone, 2 * step) + loss_on(alone, 2 * step + 1)) / 2).backward()
        reference.step()
        reference.zero_grad()
    assert inner.num_updates == 2
    for a, b in zip(weights(model), weights(alone), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_as_many_counts_as_real_steps_without_a_scaler() -> None:
    model = network()
    opt = Sophia(model.parameters(), mode="sign")
    for _ in range(3):
        put_gradients(model, 0)
        opt.step()
    assert {float(s["step"]) for s in opt.state.values()} == {3.0}
