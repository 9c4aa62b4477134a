"""Sophia: wrong arguments are named, and nothing is written."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))

from sophia_cases import batch, network, put_gradients, same_bits, weights

from tenfold.optim import Sophia, SophiaCallback, SophiaG, SophiaH


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1e-3}, "lr: expected a finite number >= 0, got -0.001"),
        ({"lr": float("nan")}, "lr: expected a finite number"),
        ({"betas": (1.0, 0.9)}, r"betas\[0\]: expected a finite number >= 0 < 1, got 1.0"),
        ({"betas": (0.9, -0.1)}, r"betas\[1\]: expected"),
        ({"betas": (0.9,)}, "betas: expected two numbers"),
        ({"rho": -0.1}, "rho: expected a finite number >= 0"),
        ({"gamma": -0.1}, "rho: expected a finite number >= 0"),
        ({"rho": "big"}, "rho: expected one of 'auto', got 'big'"),
        ({"rho": "auto", "mode": "sign"}, "rho: expected a number in mode 'sign'"),
        ({"eps": 0.0}, "eps: expected a finite number > 0"),
        ({"weight_decay": -1}, "weight_decay: expected"),
        ({"mode": "newton"}, "mode: expected one of 'paper', 'liuhong99'.*got 'newton'"),
        ({"estimator": "fisher"}, "estimator: expected one of 'gnb', 'hutchinson'"),
        ({"update_interval": 0}, "update_interval: expected an integer in"),
        ({"state_dtype": torch.float16}, "state_dtype: expected torch.float32, torch.bfloat16 or '8bit'"),
        ({"rounding": "up"}, "rounding: expected one of 'nearest'"),
        ({"master": True, "rounding": "kahan"}, "rounding: expected 'nearest' beside master weights"),
        ({"nonfinite": "ignore"}, "nonfinite: expected one of 'propagate'"),
        ({"bs": 12}, "bs: expected None but in 'liuhong99' and 'soul_legacy'"),
        ({"bs": 0, "mode": "liuhong99"}, "bs: expected a finite number > 0"),
        ({"target_win_rate": 1.0}, "target_win_rate: expected"),
        ({"seed": -1}, "seed: expected an integer"),
    ],
)
def test_arguments_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sophia(network().parameters(), **options)


@pytest.mark.parametrize("options", [{"lr": "fast"}, {"master": 1}, {"state_dtype": 8}, {"seed": 1.5}])
def test_arguments_of_the_wrong_kind(options: dict[str, Any]) -> None:
    name = next(iter(options))
    with pytest.raises(TypeError, match=f"{name}: expected"):
        Sophia(network().parameters(), **options)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int32])
def test_parameters_that_are_no_real_numbers(dtype: torch.dtype) -> None:
    p = nn.Parameter(torch.zeros(3, dtype=dtype), requires_grad=False)
    with pytest.raises(TypeError, match=r"params\[1\]: expected a parameter of dtype float32"):
        Sophia([nn.Parameter(torch.zeros(2)), p])
    with pytest.raises(TypeError, match=r"head\.bias: expected a parameter"):
        Sophia([("head.bias", p)])


def test_a_group_that_is_refused_is_not_kept() -> None:
    opt = Sophia(network().parameters())
    with pytest.raises(ValueError, match="lr: expected"):
        opt.add_param_group({"params": [nn.Parameter(torch.zeros(2))], "lr": -1.0})
    assert len(opt.param_groups) == 1


def test_a_sparse_gradient_is_named_before_anything_is_written() -> None:
    model = nn.Sequential(nn.Embedding(5, 3, sparse=True), nn.Linear(3, 2))
    opt = Sophia(list(model.named_parameters())[::-1], mode="sign")
    model(torch.tensor([1, 2])).sum().backward()
    before = weights(model)
    with pytest.raises(TypeError, match=r"0\.weight\.grad: expected a dense \(strided\) gradient"):
        opt.step()
    assert same_bits(weights(model), before)
    assert not opt.state


def test_a_gradient_that_is_not_finite_is_named_before_any_group_is_stepped() -> None:
    model = network()
    first = list(model[0].named_parameters())
    named = (("body", first), ("head", list(model[-1].named_parameters())))
    groups = [{"params": [(f"{part}.{n}", p) for n, p in layer]} for part, layer in named]
    opt = Sophia(groups, nonfinite="error", rho="auto", weight_decay=0.0)
    opt.estimate_hessian(model, [batch(0)])
    put_gradients(model, 0)
    model[-1].bias.grad[0] = float("nan")
    before, kept = weights(model), {k: v.clone() for k, v in opt.state[first[0][1]].items()}
    with pytest.raises(RuntimeError, match=r"head\.bias\.grad: expected finite gradients, got 1 that"):
        opt.step()
    assert same_bits(weights(model), before)
    assert all(torch.equal(kept[k], v) for k, v in opt.state[first[0][1]].items())
    assert (opt.num_updates, opt.param_groups[0]["rho"]) == (0, 0.04)
    put_gradients(model, 0)
    opt.step()
    assert opt.num_updates == 1


def test_wrong_calls() -> None:
    model = network()
    put_gradients(model, 0)
    with pytest.raises(ValueError, match="bs: expected None in every mode but 'liuhong99'"):
        Sophia(model.parameters()).step(bs=100)
    with pytest.raises(ValueError, match="bs: expected a finite number > 0"):
        SophiaG(model.parameters()).step(bs=0)
    with pytest.raises(TypeError, match="step: expected closure, bs and grad_scaler, got batch_size"):
        SophiaG(model.parameters()).step(batch_size=3)
    for mode in ("sign", "soul_legacy"):
        opt = Sophia(model.parameters(), mode=mode)
        with pytest.raises(RuntimeError, match="mode: expected one whose curvature is refreshed by call"):
            opt.update_hessian()
        with pytest.raises(RuntimeError, match=f"got '{mode}'"):
            opt.estimate_hessian(model, [batch(0)])
    with pytest.raises(ValueError, match="scale: expected"):
        Sophia(model.parameters()).update_hessian(-1.0)


def test_wrong_batches() -> None:
    model = network()
    opt = Sophia(model.parameters())
    x, y = batch(0)
    with pytest.raises(ValueError, match="batches: expected at least one batch, got none"):
        opt.estimate_hessian(model, [])
    with pytest.raises(ValueError, match="batches: expected at least one position to predict"):
        opt.estimate_hessian(model, [(x, torch.full_like(y, -100))])
    with pytest.raises(TypeError, match=r"batches: expected dicts or \(inputs, targets\) pairs"):
        opt.estimate_hessian(model, [x])
    with pytest.raises(ValueError, match="mask: expected shape"):
        opt.estimate_hessian(model, [(x, y[:3])])
    with pytest.raises(TypeError, match=r"model: expected logits"):
        opt.estimate_hessian(model, [(x, y)], predict=lambda model, batch: model(batch[0]).argmax(-1))
    with pytest.raises(TypeError, match=r"model: expected a torch.nn.Module, got function"):
        opt.estimate_hessian(lambda x: x, [(x, y)])
    with pytest.raises(ValueError, match="estimator: expected one of"):
        opt.estimate_hessian(model, [(x, y)], estimator="kfac")
    with pytest.raises(TypeError, match="loss: expected a callable that returns a scalar tensor"):
        opt.estimate_hessian(model, [(x, y)], estimator="hutchinson", loss=lambda m, b: m(b[0]))
    assert not opt.state
    assert opt.num_refreshes == 0


def test_wrong_sources() -> None:
    with pytest.raises(ValueError, match="source: expected one of 'train', 'forget'"):
        SophiaCallback(10, "test")
    with pytest.raises(TypeError, match="source: expected a name, an iterable or a callable, got int"):
        SophiaCallback(10, 3)
    with pytest.raises(TypeError, match="source: expected an iterable that starts anew"):
        SophiaCallback(10, iter([1]))
    with pytest.raises(TypeError, match=r"optimizers: expected a tenfold\.optim\.Sophia .*got SGD"):
        SophiaCallback(10).on_step_begin(None, None, None, optimizer=torch.optim.SGD([torch.zeros(1)]))


def test_states_that_do_not_fit() -> None:
    model, other = network(), nn.Linear(3, 3)
    opt = Sophia(other.parameters())
    put_gradients(other, 0)
    opt.step()
    mine = Sophia(list(model.parameters())[:2])
    put_gradients(model, 0)
    mine.step()
    before = {k: v.clone() for k, v in mine.state[next(iter(mine.state))].items()}
    with pytest.raises(ValueError, match=r"state_dict: expected exp_avg of shape \(16, 6\) for params\[0\]"):
        mine.load_state_dict(opt.state_dict())
    adam = torch.optim.Adam(list(model.parameters())[:2])
    adam.step()
    broken = adam.state_dict()
    broken["state"][0].pop("exp_avg")
    with pytest.raises(ValueError, match=r"state_dict: expected an exp_avg for params\[0\]"):
        mine.load_state_dict(broken)
    after = mine.state[next(iter(mine.state))]
    assert all(torch.equal(after[k], v) for k, v in before.items())


def test_eight_bits_need_single_precision() -> None:
    p = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    with pytest.raises(
        ValueError, match=r"state_dtype: expected a dtype for the float64 parameter params\[0\]"
    ):
        SophiaH([p], state_dtype="8bit")
