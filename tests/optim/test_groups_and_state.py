"""The conventions of torch.optim: groups, names, schedulers, saving and loading, tied and frozen weights."""

from __future__ import annotations

import copy
import io
import json

import pytest
import torch
from torch import nn

from tenfold.ops import zo_sample
from tenfold.optim import FZOO, ZOSGD, ZOAdam, splitmix64

RUNS = [
    pytest.param(ZOSGD, torch.float32, {"lr": 0.01}, id="sgd-f32"),
    pytest.param(ZOSGD, torch.bfloat16, {"lr": 0.01, "rounding": "sr", "num_queries": 3}, id="sgd-bf16-sr"),
    pytest.param(
        ZOSGD, torch.float16, {"lr": 0.01, "restore": "exact", "one_sided": True}, id="sgd-f16-exact"
    ),
    pytest.param(ZOSGD, torch.float32, {"lr": 0.01, "z_round": torch.bfloat16}, id="sgd-z-round"),
    pytest.param(FZOO, torch.float32, {"lr": 0.01}, id="fzoo-f32"),
    pytest.param(ZOAdam, torch.float32, {"lr": 0.01}, id="adam-f32"),
    pytest.param(
        ZOAdam, torch.bfloat16, {"lr": 0.01, "rounding": "sr", "weight_decay": 0.1}, id="adam-bf16-sr"
    ),
]


def through_a_file(state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def same_bits(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


# -- saving and loading -------------------------------------------------------------------------------


@pytest.mark.parametrize(("optimizer", "dtype", "options"), RUNS)
def test_a_loaded_run_continues_to_the_same_bits(network, optimizer, dtype, options):
    straight, closure = network(dtype)
    opt = optimizer(straight.parameters(), seed=7, streams=straight, **options)
    for _ in range(6):
        opt.step(closure)

    broken, closure = network(dtype)
    opt = optimizer(broken.parameters(), seed=7, streams=broken, **options)
    for _ in range(3):
        opt.step(closure)
    saved = through_a_file({"model": broken.state_dict(), "optimizer": opt.state_dict()})

    resumed, closure = network(dtype)
    resumed.load_state_dict(saved["model"])
    opt = optimizer(resumed.parameters())  # everything else comes out of the file
    opt.load_state_dict(saved["optimizer"])
    assert opt.num_steps == 3
    assert opt.seed == 7
    for _ in range(3):
        opt.step(closure)
    assert same_bits(resumed, straight)
    assert not same_bits(resumed, broken)


def test_adam_moments_keep_their_dtype_when_loaded(network):
    model, closure = network(torch.bfloat16)
    opt = ZOAdam(model.parameters(), lr=0.01)
    opt.step(closure)
    loaded = ZOAdam(model.parameters())
    loaded.load_state_dict(opt.state_dict())
    for p in model.parameters():
        for key in ("exp_avg", "exp_avg_sq"):
            assert loaded.state[p][key].dtype == torch.float32
            assert torch.equal(loaded.state[p][key], opt.state[p][key])
            assert loaded.state[p][key] is not opt.state[p][key]


def test_the_saved_part_is_plain_json(network):
    model, closure = network()
    opt = ZOSGD(model.parameters(), z_round=torch.float16)
    opt.step(closure)
    saved = json.loads(json.dumps(opt.state_dict()))
    other = ZOSGD(model.parameters())
    other.load_state_dict(saved)
    assert other.state_dict() == opt.state_dict()
    assert other.z_round == torch.float16


def test_load_refuses_what_does_not_fit(quadratic):
    theta, _closure = quadratic()
    opt = ZOSGD([theta], lr=0.5)
    foreign = torch.optim.SGD([theta], lr=0.1).state_dict()
    with pytest.raises(ValueError, match=r"^state_dict: expected the key 'zo'"):
        opt.load_state_dict(foreign)
    two = ZOSGD([theta, nn.Parameter(torch.ones(2))]).state_dict()
    with pytest.raises(ValueError, match=r"^state_dict: expected 1 parameters, got 2"):
        opt.load_state_dict(two)
    assert opt.param_groups[0]["lr"] == 0.5


def test_a_deep_copy_goes_its_own_way_to_the_same_bits(network):
    model, _ = network()
    opt = ZOAdam(model.parameters(), lr=0.01, streams=model)
    x = torch.ones(2, 6)
    opt.step(lambda: model(x).sum())
    model2, opt2 = copy.deepcopy((model, opt))
    opt.step(lambda: model(x).sum())
    assert not same_bits(model, model2)
    opt2.step(lambda: model2(x).sum())
    assert same_bits(model, model2)


# -- groups -------------------------------------------------------------------------------------------


def test_groups_have_their_own_lr_eps_and_weight_decay():
    a, b = (nn.Parameter(torch.ones(5, dtype=torch.float64)) for _ in range(2))
    opt = ZOSGD(
        [{"params": [a], "lr": 0.1, "eps": 1e-3}, {"params": [b], "eps": 1e-2, "weight_decay": 0.5}], lr=0.02
    )
    slope = torch.arange(1.0, 6.0, dtype=torch.float64)
    opt.step(lambda: slope @ a - slope @ b)
    seed = splitmix64(0, 0)
    za, zb = (zo_sample(seed, stream, n=5, dtype=torch.float64) for stream in range(2))
    difference = slope @ (1e-3 * za) - slope @ (1e-2 * zb)  # (L+ - L-) / 2
    assert torch.allclose(a, 1 - 0.1 * difference / 1e-3 * za, rtol=0, atol=1e-10)
    assert torch.allclose(b, 1 - 0.02 * 0.5 - 0.02 * difference / 1e-2 * zb, rtol=0, atol=1e-10)
    assert opt.last_step.projected_grads == pytest.approx([difference.item() / 1e-3])


def test_add_param_group_keeps_earlier_directions(quadratic):
    alone, closure = quadratic()
    ZOSGD([alone], lr=0.05).step(closure)
    theta, closure = quadratic()
    extra = nn.Parameter(torch.zeros(4, dtype=torch.float64))
    opt = ZOSGD([theta], lr=0.05)
    opt.add_param_group({"params": extra, "lr": 0.0})
    opt.step(closure)
    assert torch.allclose(theta, alone, rtol=0, atol=1e-12)
    assert len(opt.param_groups) == 2
    assert opt.param_groups[1]["eps"] == 1e-3


def test_named_parameters(network):
    model, closure = network()
    plain, same = network()
    opt = ZOSGD(model.named_parameters(), lr=0.01)
    opt.step(closure)
    ZOSGD(plain.parameters(), lr=0.01).step(same)
    assert same_bits(model, plain)
    assert opt.param_groups[0]["param_names"] == [name for name, _ in model.named_parameters()]


def test_learning_rate_schedulers(quadratic):
    theta, closure = quadratic()
    opt = ZOSGD([theta], lr=0.08)
    scheduler = torch.optim.lr_scheduler.StepLR(opt, step_size=2, gamma=0.5)
    manual, same = quadratic()
    other = ZOSGD([manual], lr=0.08)
    for step in range(5):
        opt.step(closure)
        scheduler.step()
        other.param_groups[0]["lr"] = 0.08 * 0.5 ** (step // 2)
        other.step(same)
    assert torch.equal(theta, manual)
    assert opt.param_groups[0]["lr"] == 0.02


def test_tensor_learning_rate(quadratic):
    theta, closure = quadratic()
    plain, same = quadratic()
    ZOSGD([theta], lr=torch.tensor(0.5)).step(closure)
    ZOSGD([plain], lr=0.5).step(same)
    assert torch.equal(theta, plain)


# -- tied, frozen and exempt parameters ---------------------------------------------------------------


def test_tied_weights_count_once():
    model = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 7, bias=False))
    model[1].weight = model[0].weight
    generator = torch.Generator().manual_seed(0)
    model[0].weight.data.copy_(torch.randn(7, 4, generator=generator))
    before = model[0].weight.detach().clone()
    twice = [
        model[0].weight,
        model[1].weight,
        model[0].weight.detach(),
    ]  # the third: another object, same view
    opt = ZOSGD(twice, lr=1.0, restore="exact")
    assert len(opt.param_groups[0]["params"]) == 1
    losses = iter((1e-3, -1e-3))  # projected gradient 1
    opt.step(lambda: next(losses))
    z = zo_sample(opt.last_step.seed, 0, n=28).view(7, 4)
    assert torch.equal(model[1].weight.detach(), before - z)


def test_freezing_does_not_change_the_directions_of_others(network):
    moves = []
    for frozen in (False, True):
        model, closure = network()
        model[0].weight.requires_grad_(not frozen)
        params = [p for p in model.parameters() if p.requires_grad]
        opt = ZOSGD(params, lr=0.1, streams=model, restore="exact")
        before = model[3].weight.detach().clone()
        opt.step(closure)
        moves.append((model[3].weight.detach() - before) / opt.last_step.projected_grads[0])
    assert torch.allclose(*moves, rtol=0, atol=1e-6)
    assert moves[0].abs().max() > 0.01


def test_frozen_parameters_are_left_alone_and_may_thaw(network):
    model, closure = network()
    model[0].weight.requires_grad_(False)
    before = model[0].weight.detach().clone()
    opt = ZOSGD(model.parameters(), lr=0.05)
    opt.step(closure)
    assert torch.equal(model[0].weight, before)
    model[0].weight.requires_grad_(True)
    opt.step(closure)
    assert not torch.equal(model[0].weight, before)


class OwnRMSNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))


def test_weight_decay_leaves_biases_and_norms_alone_when_the_module_is_known():
    parts = {
        "plain": nn.Linear(3, 3),
        "LayerNorm_by_name_only": nn.Linear(3, 3, bias=False),
        "a": nn.LayerNorm(3),
        "b": nn.BatchNorm1d(3),
        "c": nn.GroupNorm(1, 3),
        "d": OwnRMSNorm(),
        "e": nn.MultiheadAttention(3, 1),
    }
    for with_module in (True, False):
        model = nn.ModuleDict(copy.deepcopy(parts))
        for p in model.parameters():
            p.data.fill_(1.0)
        opt = ZOSGD(
            model.parameters(),
            lr=0.1,
            weight_decay=0.5,
            restore="exact",
            streams=model if with_module else None,
        )
        opt.step(lambda: 1.0)  # no gradient: only decay moves anything
        decayed = {name for name, p in model.named_parameters() if not torch.equal(p, torch.ones_like(p))}
        matrices = {
            "plain.weight",
            "LayerNorm_by_name_only.weight",
            "e.in_proj_weight",
            "e.out_proj.weight",
        }
        assert decayed == (matrices if with_module else set(dict(model.named_parameters())))
        for name in decayed:
            assert torch.allclose(model.get_parameter(name), torch.tensor(0.95))
