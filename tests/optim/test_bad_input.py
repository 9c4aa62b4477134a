"""Bad input raises a typed error that names it, and no weight has moved."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from tenfold.optim import FZOO, ZOSGD, ZOAdam


def theta() -> nn.Parameter:
    return nn.Parameter(torch.linspace(-1, 1, 6))


@pytest.mark.parametrize("optimizer", [ZOSGD, FZOO, ZOAdam])
@pytest.mark.parametrize(
    ("options", "error", "name"),
    [
        ({"eps": 0.0}, ValueError, "eps"),
        ({"eps": -1e-3}, ValueError, "eps"),
        ({"eps": math.inf}, ValueError, "eps"),
        ({"lr": math.nan}, ValueError, "lr"),
        ({"lr": -1.0}, ValueError, "lr"),
        ({"lr": "big"}, TypeError, "lr"),
        ({"weight_decay": -0.1}, ValueError, "weight_decay"),
        ({"num_queries": 0}, ValueError, "num_queries"),
        ({"num_queries": 2.0}, TypeError, "num_queries"),
        ({"num_queries": (1 << 24) + 1}, ValueError, "num_queries"),
        ({"seed": -1}, ValueError, "seed"),
        ({"seed": 1 << 64}, ValueError, "seed"),
        ({"dist": "cauchy"}, ValueError, "dist"),
        ({"restore": "never"}, ValueError, "restore"),
        ({"rounding": "up"}, ValueError, "rounding"),
        ({"max_nonfinite": 0}, ValueError, "max_nonfinite"),
        ({"streams": "model"}, TypeError, "streams"),
    ],
)
def test_options(optimizer, options, error, name):
    with pytest.raises(error, match=f"^{name}: expected .*, got "):
        optimizer([theta()], **options)


def test_options_of_one_optimizer():
    with pytest.raises(ValueError, match=r"^num_queries: expected an integer >= 2"):
        FZOO([theta()], num_queries=1)
    with pytest.raises(ValueError, match=r"^num_queries: expected an integer in"):
        ZOAdam([theta()], num_queries=65)
    with pytest.raises(TypeError, match=r"^z_round: expected"):
        ZOSGD([theta()], z_round=torch.int8)
    for betas in ((0.9,), (0.9, 1.0), (-0.1, 0.9), 0.9):
        with pytest.raises(ValueError, match=r"^betas.*: expected"):
            ZOAdam([theta()], betas=betas)
    with pytest.raises(ValueError, match=r"^adam_eps: expected"):
        ZOAdam([theta()], adam_eps=0.0)


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        (list, ValueError, "^params: expected at least one tensor, got an empty list"),
        (lambda: [{"params": []}], ValueError, "^params: expected at least one tensor with requires_grad"),
        (
            lambda: [theta().requires_grad_(False)],
            ValueError,
            "^params: expected at least one .*requires_grad",
        ),
        (lambda: theta(), TypeError, "^params: expected an ordered iterable"),
        (lambda: {theta()}, TypeError, "^params: expected an ordered"),
        (lambda: [theta(), 3.0], TypeError, r"^params\[1\]: expected a torch.Tensor .*, got float"),
        (
            lambda: [torch.ones(3, dtype=torch.int32)],
            TypeError,
            r"^params\[0\]: expected dtype .*torch.int32",
        ),
        (lambda: [torch.ones(3, dtype=torch.complex64)], TypeError, r"^params\[0\]: expected .*complex64"),
        (lambda: [("w", torch.eye(3).to_sparse())], TypeError, "^w: expected a dense .*sparse_coo"),
        (lambda: [("w", theta()), theta()], ValueError, r"^params: expected \(name, tensor\) pairs"),
    ],
)
def test_parameters(params, error, message):
    with pytest.raises(error, match=message):
        ZOSGD(params())


def test_quantised_parameters():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch is giving these tensors up, but old files still hold them
        scaled = torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)
    with pytest.raises(TypeError, match=r"^w: expected dtype float32 .*, got torch.qint8"):
        ZOSGD([("w", scaled)])


def test_partly_shared_storage_names_both():
    base = torch.zeros(10)
    pair = [nn.Parameter(base[:6]), nn.Parameter(base[4:])]
    message = r"^params\[1\]: expected every tensor once, got one that shares memory with params\[0\]"
    with pytest.raises(ValueError, match=message):
        ZOSGD(pair)
    opt = ZOSGD(pair[:1])
    with pytest.raises(ValueError, match=message):
        opt.add_param_group({"params": pair[1:]})
    assert len(opt.param_groups) == 1
    ZOSGD([nn.Parameter(base[:5]), nn.Parameter(base[5:])])  # neighbours are fine


def test_one_tensor_in_two_groups():
    p = theta()
    with pytest.raises(ValueError, match=r"^params\[1\]: expected every tensor once"):
        ZOSGD([{"params": [p]}, {"params": [p]}])


def test_expanded_storage():
    with pytest.raises(ValueError, match=r"^params\[1\]: expected a tensor without overlapping memory"):
        ZOSGD([theta(), nn.Parameter(torch.zeros(1).expand(4))])


def test_streams_module_must_hold_every_parameter():
    model = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"^streams: expected .*params\[2\]"):
        ZOSGD([*model.parameters(), theta()], streams=model)


@pytest.mark.parametrize(
    ("result", "shown"),
    [
        (torch.ones(2), "shape"),
        (torch.empty(0), "shape"),
        (torch.tensor(1j), "complex64"),
        (1j, "complex"),
        (None, "NoneType"),
        ("0.5", "str"),
        (np.ones(2), "ndarray"),
    ],
)
@pytest.mark.parametrize("optimizer", [ZOSGD, FZOO, ZOAdam])
@pytest.mark.parametrize("at", [0, 1])
def test_losses(optimizer, result, shown, at):
    p = theta()
    before = p.detach().clone()
    results = [1.0] * at + [result]
    opt = optimizer([p], lr=0.1, restore="exact")
    with pytest.raises(TypeError, match=f"^closure: expected a real scalar loss, got .*{shown}"):
        opt.step(lambda: results.pop(0))
    assert torch.equal(p, before)
    assert opt.num_steps == 0


@pytest.mark.parametrize("closure", [None, 1.0])
def test_closure_is_required(closure):
    opt = ZOSGD([theta()])
    with pytest.raises(TypeError, match=r"^closure: expected a callable"):
        opt.step(closure)


@pytest.mark.parametrize(("option", "value"), [("lr", math.nan), ("eps", 0.0), ("weight_decay", -1.0)])
def test_group_options_are_checked_at_every_step(option, value):
    p = theta()
    before = p.detach().clone()
    opt = ZOSGD([p], lr=0.1)
    opt.param_groups[0][option] = value
    with pytest.raises(ValueError, match=f"^{option}: expected"):
        opt.step(lambda: p.sum())
    assert torch.equal(p, before)


def test_everything_frozen_later():
    p = theta()
    opt = ZOSGD([p], lr=0.1)
    p.requires_grad_(False)
    with pytest.raises(ValueError, match="requires_grad=True"):
        opt.step(lambda: p.sum())


def test_an_error_of_the_op_leaves_everything_in_place():
    good, bad = theta(), nn.Parameter(torch.zeros(4))
    before = good.detach().clone()
    opt = ZOSGD([{"params": [good]}, {"params": [bad], "eps": 1e-2}], lr=0.1, restore="exact")
    bad.data = torch.zeros(1).expand(4)  # behind the back of the optimizer; the first group has moved by then
    with pytest.raises(ValueError, match="overlapping memory"):
        opt.step(lambda: good.sum())
    assert torch.equal(good, before)
