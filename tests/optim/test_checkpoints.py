"""torch.distributed.checkpoint: two ranks of FSDP2 save, one process loads and goes on as they would have."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

sys.path.insert(0, str(Path(__file__).parent))

import sophia_cases
from ranks import torchrun
from test_sharded import losses_of_shards
from zolog_cases import network, same_bits

from tenfold.optim import Sophia, ZOAdam

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*torch.distributed.*:UserWarning")]

BODY = """
from zolog_cases import *
import sophia_cases
import torch.distributed.checkpoint as dcp
from test_checkpoints import make_sophia, make_zo, sophia_step
from test_sharded import losses_of_shards
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
from torch.distributed.fsdp import fully_shard

def whole(model):
    return {name: p.full_tensor() for name, p in model.named_parameters()}

model = network(width=11)
fully_shard(model)
opt = make_zo(model, parallel="data")
for step in range(4):
    if step == 2:
        dcp.save({"model": model.state_dict(), "optimizer": opt.state_dict()}, checkpoint_id="zo")
    opt.step(losses_of_shards(model, step, world)[rank])
torch.save(whole(model), f"zo.{rank}.pt")

model = sophia_cases.network()
fully_shard(model)
opt = make_sophia(model)
for step in range(4):
    if step == 2:
        states = get_optimizer_state_dict(model, opt)
        dcp.save({"model": model.state_dict(), "optimizer": states}, checkpoint_id="sophia")
    sophia_step(model, opt, step, [rank])
torch.save(whole(model), f"sophia.{rank}.pt")
"""


def make_zo(model: Any, parallel: str | None = None) -> ZOAdam:
    return ZOAdam(model.parameters(), lr=1e-2, eps=1e-2, seed=7, streams=model, parallel=parallel)


def make_sophia(model: Any) -> Sophia:
    return Sophia(model.parameters(), lr=1e-2, betas=(0.9, 0.5))


def sophia_step(model: Any, optimizer: Sophia, step: int, ranks: list[int]) -> None:
    """Curvature and gradient of the batches of these ranks."""
    if step % 2 == 0:
        optimizer.estimate_hessian(model, [sophia_cases.batch(10 * step + rank) for rank in ranks])
    for rank in ranks:
        (sophia_cases.loss_on(model, 20 + 2 * step + rank) / len(ranks)).backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return torchrun(BODY, tmp_path_factory.mktemp("two"))


def test_one_process_goes_on_with_zeroth_order_steps_to_the_same_bits(two: Path) -> None:
    model = network(width=11)
    opt = make_zo(model)
    opt.step(losses_of_shards(model, 9, 1)[0])  # makes the states that are loaded into
    held = {"model": model.state_dict(), "optimizer": opt.state_dict()}
    dcp.load(held, checkpoint_id=two / "zo")
    model.load_state_dict(held["model"])
    opt.load_state_dict(held["optimizer"])
    assert opt.num_steps == 2
    for step in range(2, 4):
        parts = losses_of_shards(model, step, 2)
        opt.step(lambda parts=parts: sum(float(part()) for part in parts) / 2)
    for rank in range(2):
        weights = {name: p.detach() for name, p in model.named_parameters()}
        assert same_bits(torch.load(two / f"zo.{rank}.pt"), weights)


def test_one_process_goes_on_with_sophia(two: Path) -> None:
    model = sophia_cases.network()
    opt = make_sophia(model)
    sophia_step(model, opt, 0, [5])
    held = {"model": model.state_dict(), "optimizer": get_optimizer_state_dict(model, opt)}
    dcp.load(held, checkpoint_id=two / "sophia")
    model.load_state_dict(held["model"])
    set_optimizer_state_dict(model, opt, held["optimizer"])
    assert (opt.num_updates, opt.num_refreshes) == (2, 1)
    for step in range(2, 4):
        sophia_step(model, opt, step, [0, 1])
    for rank in range(2):
        found = torch.load(two / f"sophia.{rank}.pt")
        for name, p in model.named_parameters():
            torch.testing.assert_close(found[name], p.detach(), rtol=1e-4, atol=1e-6)
