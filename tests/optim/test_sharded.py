"""FSDP2: two ranks with half of each parameter make the step of one process that has all."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))

from test_parallel import torchrun
from zolog_cases import batch, network, same_bits

from tenfold.optim import (
    FZOO,
    ZOSGD,
    Blocks,
    HiZOO,
    MagnitudeSparsity,
    RAdaZO,
    RandomSparsity,
    SparseMeZO,
    ZOAdam,
    ZOSGDConservative,
    ZOSGDMomentum,
    ZOSGDSign,
)

STEPS = 4
COMMON = {"lr": 1e-2, "eps": 1e-2, "seed": 7}
# name: class, options, dtype
CASES: dict[str, tuple[Any, dict[str, Any], torch.dtype]] = {
    "sgd": (ZOSGD, {"weight_decay": 0.1}, torch.float32),
    "sgd arithmetic": (ZOSGD, {"restore": "arithmetic", "num_queries": 2}, torch.float32),
    "sgd bf16 sr": (ZOSGD, {"rounding": "sr"}, torch.bfloat16),
    "sgd sphere": (ZOSGD, {"dist": "sphere"}, torch.float32),
    "sgd rademacher": (ZOSGD, {"dist": "rademacher", "z_round": torch.bfloat16}, torch.float32),
    "sgd random": (ZOSGD, {"mask": RandomSparsity(0.5)}, torch.float32),
    "sgd global": (ZOSGD, {"mask": RandomSparsity(0.5, every=2, scope="global")}, torch.float32),
    "sgd least squares": (ZOSGD, {"num_queries": 3, "aggregate": "least_squares"}, torch.float32),
    "momentum": (ZOSGDMomentum, {}, torch.float32),
    "momentum bf16": (ZOSGDMomentum, {"state_dtype": torch.bfloat16}, torch.bfloat16),
    "sign": (ZOSGDSign, {"num_queries": 2}, torch.float32),
    "conservative": (ZOSGDConservative, {}, torch.float32),
    "adam": (ZOAdam, {"rounding": "sr"}, torch.bfloat16),
    "adam f64": (ZOAdam, {"mask": MagnitudeSparsity(0.5, every=1)}, torch.float64),
    "radazo": (RAdaZO, {}, torch.float32),
    "fzoo": (FZOO, {}, torch.float32),
    "hizoo": (HiZOO, {"smoothing": 0.01}, torch.float32),
    "sparse": (SparseMeZO, {"every": 2}, torch.float32),
    "sparse arithmetic": (SparseMeZO, {"restore": "arithmetic"}, torch.float32),
}


def make(name: str, model: nn.Module, **more: Any) -> Any:
    kind, options, _ = CASES[name]
    return kind(model.parameters(), streams=model, **{**COMMON, **options, **more})


def losses_of_shards(model: nn.Module, step: int, world: int) -> list[Any]:
    """What each rank computes, as closures."""
    x, y = batch(step)
    dtype = next(model.parameters()).dtype

    def of(rank: int) -> Tensor:
        return (model(x[rank::world].to(dtype)).float() - y[rank::world]).square().mean()

    return [lambda rank=rank: of(rank) for rank in range(world)]


BODY = """
from test_sharded import CASES, losses_of_shards, make
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

def sharded(dtype, **how):
    model = network(dtype, width=11)
    fully_shard(model[0])
    fully_shard(model, **how)
    return model

def gathered(model, opt):
    for p in opt.param_groups[0]["params"]:
        assert isinstance(p, DTensor), type(p)
    names = {s[0]: p for s, p in zip(opt.named_slots(), opt.param_groups[0]["params"])}
    return {name: p.full_tensor() for name, p in names.items()}

def states(opt):
    found = {}
    for k, p in enumerate(opt.param_groups[0]["params"]):
        for key, value in opt.state[p].items():
            found[f"{k} {key}"] = value.full_tensor() if isinstance(value, DTensor) else value
    return found

for name, (_, _, dtype) in CASES.items():
    model = sharded(dtype)
    opt = make(name, model, parallel="data")
    for step in range(4):
        opt.step(losses_of_shards(model, step, world)[rank])
    with torch.no_grad():
        after = float(losses_of_shards(model, 0, 1)[0]())
    torch.save((gathered(model, opt), states(opt), list(opt.last_step.losses), after), f"{name}.{rank}.pt")
"""


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which two ranks have done all of `BODY`."""
    folder = tmp_path_factory.mktemp("two")
    done = torchrun(BODY, folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.parametrize("name", CASES)
def test_two_halves_make_the_step_of_the_whole(name: str, two: Path) -> None:
    model = network(CASES[name][2], width=11)
    opt = make(name, model)
    for step in range(STEPS):
        parts = losses_of_shards(model, step, 2)
        opt.step(lambda parts=parts: sum(float(part()) for part in parts) / 2)
    own = {f"{k} {key}": v for k, p in enumerate(model.parameters()) for key, v in opt.state[p].items()}
    with torch.no_grad():
        after = float(losses_of_shards(model, 0, 1)[0]())
    for rank in range(2):
        weights, states, losses, seen = torch.load(two / f"{name}.{rank}.pt", weights_only=False)
        assert losses == list(opt.last_step.losses)
        assert same_bits(weights, {n: p.detach() for n, p in model.named_parameters()})
        assert states.keys() == own.keys()
        for key, value in own.items():
            assert torch.equal(torch.as_tensor(states[key]), torch.as_tensor(value)), key
        assert seen == after  # the model computes with the weights as they are
