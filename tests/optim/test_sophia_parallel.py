"""Sophia in two processes under torchrun: accumulation, DistributedDataParallel and FSDP2."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))

from ranks import torchrun
from sophia_cases import batch, causal_batch, causal_model, loss_on, network

from tenfold.optim import Sophia

COMMON = """
from torch import nn
from sophia_cases import *
from tenfold.optim import Sophia

def whole(t):
    return t.full_tensor() if hasattr(t, "full_tensor") else t

def save(name, model, opt):
    params = list(model.parameters())
    states = [whole(opt.state[p]["hessian"]).detach() for p in params]
    torch.save((states, [whole(p).detach() for p in params]), f"{name}.{rank}.pt")
"""

BODY = """
# data parallel by hand, and under DistributedDataParallel: ranks take every second batch
for name in ("plain", "ddp", "causal ddp"):
    for estimator in ("gnb", "hutchinson", "empirical_fisher"):
        model = causal_model() if "causal" in name else network()
        make = causal_batch if "causal" in name else batch
        opt = Sophia(model.parameters(), betas=(0.9, 0.5))
        outer = nn.parallel.DistributedDataParallel(model) if "ddp" in name else model
        for refresh in range(2):
            data = [make(4 * refresh + i) for i in range(rank, 4, world)]
            count = opt.estimate_hessian(outer, data, estimator=estimator)
        assert count == (2 * 4 * 5 if "causal" in name else 32), count
        save(f"{name} {estimator}", model, opt)

# a training loop under DistributedDataParallel: refreshes come between its steps
model = network()
opt = Sophia(model.parameters(), lr=1e-2, update_interval=2)
outer = nn.parallel.DistributedDataParallel(model)
for step in range(4):
    if opt.hessian_due:
        opt.estimate_hessian(outer, [batch(50 + 2 * step + rank)])
    loss_on(outer, 2 * step + rank).backward()
    opt.step()
    opt.zero_grad()
assert opt.stats(reduce=True)["elements"] == 2 * sum(p.numel() for p in model.parameters())
save("ddp loop", model, opt)

# missing gradients on one rank
class Switch(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = network(seed=1), network(seed=2)
    def forward(self, x):
        return self.a(x) if rank == 0 else self.b(x)
model = Switch()
opt = Sophia(model.parameters())
opt.estimate_hessian(model, [batch(rank)])
save("switch", model, opt)
"""

FSDP = """
from torch.distributed.fsdp import fully_shard

for name, dtype in (("fsdp", None), ("causal fsdp", None)):
    for estimator in ("gnb", "empirical_fisher"):
        causal = "causal" in name
        model = causal_model() if causal else network()
        for part in (model.model.layers if causal else (model[0], model[3])):
            fully_shard(part)
        fully_shard(model)
        opt = Sophia(model.parameters(), lr=1e-2, betas=(0.9, 0.5), rho="auto" if not causal else 0.04)
        make = causal_batch if causal else batch
        for step in range(2):
            mine = [make(4 * step + i) for i in range(rank, 4, world)]
            opt.estimate_hessian(model, mine, estimator=estimator)
            data = make(20 + 2 * step + rank)
            loss = model(**data).loss if causal else nn.functional.cross_entropy(model(data[0]), data[1])
            loss.backward()
            if not causal:
                opt._rho_is_stale = False
            opt.step()
            opt.zero_grad()
        assert type(opt.state[next(model.parameters())]["exp_avg"]).__name__ == "DTensor"
        total = sum(p.numel() for p in model.parameters())
        assert opt.stats(reduce=True)["elements"] == total
        assert opt.stats()["elements"] < total
        save(f"{name} {estimator}", model, opt)

# rho agrees between the shards, and distributed checkpoints restore a run
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

model = network()
fully_shard(model)
opt = Sophia(model.parameters(), lr=1e-2, rho="auto", target_win_rate=0.4)
opt.estimate_hessian(model, [batch(rank)])
loss_on(model, rank).backward()
opt.step()
rhos = [None, None]
dist.all_gather_object(rhos, opt.param_groups[0]["rho"])
assert rhos[0] == rhos[1] != 0.04, rhos
saved = get_optimizer_state_dict(model, opt)
other = Sophia(model.parameters(), lr=5.0)
set_optimizer_state_dict(model, other, saved)
assert other.param_groups[0]["lr"] == 1e-2 and other.num_updates == 1 and other.num_refreshes == 1
for p in model.parameters():
    assert torch.equal(whole(other.state[p]["hessian"]), whole(opt.state[p]["hessian"]))
try:
    opt.estimate_hessian(model, [batch(rank)], estimator="hutchinson")
    raise SystemExit("not refused")
except RuntimeError as error:
    assert "it has no double backward" in str(error)
try:
    Sophia(model.parameters(), state_dtype="8bit")
    raise SystemExit("not refused")
except ValueError as error:
    assert "DTensor parameter" in str(error)
"""


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("transformers")
    return torchrun(COMMON + BODY, tmp_path_factory.mktemp("two"))


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("transformers")
    return torchrun(COMMON + FSDP, tmp_path_factory.mktemp("sharded"))


def results(folder: Path, name: str) -> tuple[list[Tensor], list[Tensor]]:
    """States and weights of rank 0; those of rank 1 are the same bits."""
    a, b = (torch.load(folder / f"{name}.{rank}.pt") for rank in range(2))
    for mine, other in zip(a[0] + a[1], b[0] + b[1], strict=True):
        assert torch.equal(mine, other)
    return a


def near(a: list[Tensor], b: list[Tensor], relative: float = 2e-5, most: float = 1e-6) -> bool:
    """Within `most`, and within a share of the largest entry where all are small."""
    limits = [min(most, relative * float(y.detach().abs().max())) for y in b]
    return all(float((x - y).detach().abs().max()) <= z for x, y, z in zip(a, b, limits, strict=True))


@pytest.mark.parametrize("estimator", ["gnb", "hutchinson", "empirical_fisher"])
@pytest.mark.parametrize("name", ["plain", "ddp", "causal ddp"])
@pytest.mark.slow
def test_two_ranks_have_the_curvature_of_one(name: str, estimator: str, two: Path) -> None:
    found, _ = results(two, f"{name} {estimator}")
    causal = "causal" in name
    model = causal_model() if causal else network()
    make = causal_batch if causal else batch
    opt = Sophia(model.parameters(), betas=(0.9, 0.5))
    for refresh in range(2):
        opt.estimate_hessian(model, [make(4 * refresh + i) for i in range(4)], estimator=estimator)
    wanted = [opt.state[p]["hessian"] for p in model.parameters()]
    assert near(found, wanted)
    assert all(float(h.abs().max()) > 0 for h in wanted)


@pytest.mark.slow
def test_a_loop_under_ddp_is_the_loop_of_one_process(two: Path) -> None:
    found, reached = results(two, "ddp loop")
    model = network()
    opt = Sophia(model.parameters(), lr=1e-2, update_interval=2)
    for step in range(4):
        if opt.hessian_due:
            opt.estimate_hessian(model, [batch(50 + 2 * step + rank) for rank in range(2)])
        ((loss_on(model, 2 * step) + loss_on(model, 2 * step + 1)) / 2).backward()
        opt.step()
        opt.zero_grad()
    assert near(found, [opt.state[p]["hessian"] for p in model.parameters()])
    assert near(reached, list(model.parameters()))


@pytest.mark.slow
def test_a_gradient_that_one_rank_lacks_counts_as_zero(two: Path) -> None:
    found, _ = results(two, "switch")
    assert len(found) == 12
    assert all(float(h.max()) > 0 for h in found)


@pytest.mark.parametrize("estimator", ["gnb", "empirical_fisher"])
@pytest.mark.parametrize("name", ["fsdp", "causal fsdp"])
@pytest.mark.slow
def test_shards_are_one_process_cut_in_pieces(name: str, estimator: str, sharded: Path) -> None:
    found, reached = results(sharded, f"{name} {estimator}")
    causal = "causal" in name
    model = causal_model() if causal else network()
    make = causal_batch if causal else batch
    opt = Sophia(model.parameters(), lr=1e-2, betas=(0.9, 0.5))
    for step in range(2):
        first = 4 * step
        data = [make(first + i) for i in range(4)]
        if estimator == "empirical_fisher":  # there a batch is that of all ranks
            data = [together(*data[:2]), together(*data[2:])]
        opt.estimate_hessian(model, data, estimator=estimator)
        for rank in range(2):
            one = make(20 + 2 * step + rank)
            loss = model(**one).loss if causal else torch.nn.functional.cross_entropy(model(one[0]), one[1])
            (loss / 2).backward()
        opt.step()
        opt.zero_grad()
    assert near(found, [opt.state[p]["hessian"] for p in model.parameters()])
    # A step divides by the curvature, by rounding where that is small; 1e-5 is a thousandth of a whole step.
    assert near(reached, list(model.parameters()), relative=2e-4, most=1e-5)


def together(a: object, b: object) -> object:
    if isinstance(a, dict):
        return {k: torch.cat([a[k], b[k]]) for k in a}  # type: ignore[index]
    return tuple(torch.cat(pair) for pair in zip(a, b, strict=True))  # type: ignore[call-overload]
