"""FSDP2: two ranks with half of each parameter make the step of one process that has all."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))

from ranks import torchrun
from zolog_cases import batch, network, same_bits

from tenfold.optim import (
    FZOO,
    LOZO,
    ZOSGD,
    Blocks,
    ForwardGrad,
    HiZOO,
    HybridFirstOrder,
    MagnitudeSparsity,
    RAdaZO,
    RandomSparsity,
    SparseMeZO,
    ZOAdam,
    ZOMuon,
    ZOSGDConservative,
    ZOSGDMomentum,
    ZOSGDSign,
    zolog,
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
    "blocks": (ZOSGD, {"blocks": "of the model"}, torch.float32),
}


def make(name: str, model: nn.Module, **more: Any) -> Any:
    kind, options, _ = CASES[name]
    if "blocks" in options:
        options = {"blocks": Blocks([model[0], model[1]])}
    return kind(model.parameters(), streams=model, **{**COMMON, **options, **more})


def losses_of_shards(model: nn.Module, step: int, world: int) -> list[Any]:
    """What each rank computes, as closures."""
    x, y = batch(step)
    dtype = next(model.parameters()).dtype

    def of(rank: int) -> Tensor:
        return (model(x[rank::world].to(dtype)).float() - y[rank::world]).square().mean()

    return [lambda rank=rank: of(rank) for rank in range(world)]


BODY = """
from zolog_cases import *
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

# a log, a checkpoint in the middle, a loss that is not finite
import torch.distributed.checkpoint as dcp
from tenfold.optim import zolog

model = sharded(torch.float32)
opt = make("adam", model, parallel="data", rounding="rne")
with zolog.ZOLog.create(f"run.{rank}.zolog", opt, model):
    for step in range(4):
        if step == 2:
            dcp.save({"model": model.state_dict(), "optimizer": opt.state_dict()}, checkpoint_id="half")
            whole = opt.state_dict()
        opt.step(losses_of_shards(model, step, world)[rank])
    opt.step(lambda: float("nan") if rank else 1.0)
    assert opt.last_step.skipped
torch.save(gathered(model, opt), f"logged.{rank}.pt")

again = sharded(torch.float32)
late = make("adam", again, parallel="data", rounding="rne", seed=1)
late.step(losses_of_shards(again, 9, world)[rank])  # makes the states that dcp loads into
held = {"model": again.state_dict(), "optimizer": late.state_dict()}
dcp.load(held, checkpoint_id="half")
again.load_state_dict(held["model"])
late.load_state_dict(held["optimizer"])
for step in range(2, 4):
    late.step(losses_of_shards(again, step, world)[rank])
torch.save(gathered(again, late), f"resumed.{rank}.pt")

base = sharded(torch.float32)
replayed = make("adam", base, parallel="data", rounding="rne")
zolog.replay(base, f"run.{rank}.zolog", optimizer=replayed)
torch.save(gathered(base, replayed), f"replayed.{rank}.pt")

# an exception between probes
model = sharded(torch.float32)
opt = make("sgd", model, parallel="data")
before = gathered(model, opt)
calls = []
def interrupted():
    calls.append(0)
    if len(calls) == 2:
        raise KeyboardInterrupt
    return losses_of_shards(model, 0, world)[rank]()
try:
    opt.step(interrupted)
except KeyboardInterrupt:
    pass
assert len(calls) == 2 and same_bits(gathered(model, opt), before)

# no FSDP: tensors dealt out by hand, one of them whole on both ranks
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

class Dealt(torch.nn.Module):
    def __init__(self):
        super().__init__()
        mesh = init_device_mesh("cpu", (world,))
        plain = network(width=11)
        self.weight = torch.nn.Parameter(distribute_tensor(plain[0].weight.detach(), mesh, [Shard(0)]))
        self.bias = torch.nn.Parameter(distribute_tensor(plain[0].bias.detach(), mesh, [Replicate()]))
        self.gain = torch.nn.Parameter(plain[1].weight.detach().clone())
    def forward(self, x):
        y = torch.nn.functional.linear(x, self.weight.full_tensor(), self.bias.full_tensor())
        return (y * self.gain).tanh().sum(1, keepdim=True)

from tenfold.optim import SparseMeZO
model = Dealt()
opt = SparseMeZO(model.parameters(), streams=model, lr=1e-2, eps=1e-2, every=1, parallel="data")
for step in range(4):
    opt.step(losses_of_shards(model, step, world)[rank])
torch.save([p.full_tensor() if isinstance(p, DTensor) else p.detach() for p in model.parameters()],
           f"dealt.{rank}.pt")
"""


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which two ranks have done all of `BODY`."""
    return torchrun(BODY, tmp_path_factory.mktemp("two"))


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


def _by_name(two: Path, name: str) -> list[dict[str, Tensor]]:
    return [torch.load(two / f"{name}.{rank}.pt") for rank in range(2)]


def test_a_log_of_a_sharded_run_replays_in_one_process(two: Path) -> None:
    logged = _by_name(two, "logged")
    for rank in range(2):
        model = network(width=11)
        opt = zolog.replay(model, two / f"run.{rank}.zolog")
        assert opt is not None
        assert (opt.num_steps, opt.num_skipped) == (5, 1)
        assert same_bits(model, logged[rank])


def test_and_in_two(two: Path) -> None:
    for replayed, logged in zip(_by_name(two, "replayed"), _by_name(two, "logged"), strict=True):
        assert same_bits(replayed, logged)


def test_checkpoints_of_sharded_states_go_on_to_the_same_bits(two: Path) -> None:
    for resumed, logged in zip(_by_name(two, "resumed"), _by_name(two, "logged"), strict=True):
        assert same_bits(resumed, logged)


def test_tensors_dealt_out_by_hand(two: Path) -> None:
    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            plain = network(width=11)
            self.weight, self.bias, self.gain = plain[0].weight, plain[0].bias, plain[1].weight

        def forward(self, x: Tensor) -> Tensor:
            y = nn.functional.linear(x, self.weight, self.bias)
            return (y * self.gain).tanh().sum(1, keepdim=True)

    model = Whole()
    opt = SparseMeZO(model.parameters(), streams=model, lr=1e-2, eps=1e-2, every=1)
    for step in range(4):
        parts = losses_of_shards(model, step, 2)
        opt.step(lambda parts=parts: sum(float(part()) for part in parts) / 2)
    for rank in range(2):
        for dealt, whole in zip(torch.load(two / f"dealt.{rank}.pt"), model.parameters(), strict=True):
            assert torch.equal(dealt, whole)


# -- in one process -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mesh() -> Any:
    """A mesh of this process alone."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    if dist.is_initialized():
        pytest.skip("a process group runs already")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def _module(mesh: Any, *placements: Any) -> nn.Module:
    from torch.distributed.tensor import distribute_tensor

    model = nn.Linear(4, 6, bias=False)
    model.weight = nn.Parameter(distribute_tensor(model.weight.detach(), mesh, list(placements)))
    return model


@pytest.mark.parametrize(
    ("kind", "options", "error", "message"),
    [
        (LOZO, {}, TypeError, r"weight: expected a tensor that is not sharded with LOZO, got a DTensor"),
        (ZOMuon, {}, TypeError, r"weight: expected a tensor that is not sharded with ZOMuon"),
        (ForwardGrad, {}, TypeError, r"weight: expected a tensor that is not sharded with ForwardGrad"),
        (ZOSGD, {"restore": "dual"}, ValueError, r"restore: expected 'exact' or 'arithmetic' with DTensors"),
        (ZOSGD, {"parallel": None}, ValueError, r"parallel: expected 'data' with DTensors, got None"),
        (ZOSGD, {"parallel": "query"}, ValueError, r"parallel: expected 'data' with DTensors, got 'query'"),
        (ZOSGD, {"streams": None}, ValueError, r"streams: expected the module that holds the parameters"),
        (ZOSGD, {"hybrid": True}, ValueError, r"hybrid: expected None with DTensors"),
    ],
)
def test_what_does_not_combine(
    kind: Any, options: dict[str, Any], error: type[Exception], message: str, mesh: Any
) -> None:
    from torch.distributed.tensor import Shard

    model = _module(mesh, Shard(0))
    if options.get("hybrid"):
        options = {"hybrid": HybridFirstOrder(1, lambda params: torch.optim.SGD(params, lr=1e-2), model)}
    with pytest.raises(error, match=message):
        kind(model.named_parameters(), **{"streams": model, "parallel": "data", **options})


def test_other_placements(mesh: Any) -> None:
    from torch.distributed.tensor import DTensor, Partial, Shard

    for placement in (Shard(1), Partial()):
        model = nn.Linear(4, 6, bias=False)
        weight = DTensor.from_local(model.weight.detach(), mesh, [placement])
        model.weight = nn.Parameter(weight)
        with pytest.raises(TypeError, match=r"weight: expected a DTensor with placements Shard\(0\)"):
            ZOSGD(model.named_parameters(), streams=model, parallel="data")


def test_rows_dealt_out_otherwise_than_torch_chunk(mesh: Any) -> None:
    from torch.distributed.tensor import DTensor, Shard

    model = nn.Linear(4, 6, bias=False)
    odd = DTensor.from_local(torch.zeros(5, 4), mesh, [Shard(0)], shape=(6, 4), stride=(4, 1))
    model.weight = nn.Parameter(odd)
    with pytest.raises(TypeError, match=r"weight: expected a shard of shape \(6, 4\)"):
        ZOSGD(model.named_parameters(), streams=model, parallel="data")


def test_attach_and_undo_take_whole_parameters(mesh: Any) -> None:
    from torch.distributed.tensor import Shard

    from tenfold.optim import _passes

    model = _module(mesh, Shard(0))
    opt = ZOSGD(model.named_parameters(), streams=model, parallel="data")
    with pytest.raises(ValueError, match="optimizer: expected one whose parameters are not sharded"):
        opt.attach(model)
    with pytest.raises(ValueError, match="optimizer: expected one whose parameters are not sharded"):
        _passes.undo(opt, [])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_quantiles_by_counting(dtype: torch.dtype, mesh: Any) -> None:
    """Bisection over bits finds what the radix select finds."""
    from tenfold.ops import quantile_abs
    from tenfold.optim import _parallel, _shards

    ranks = _parallel.Parallel("data")
    tensors = [torch.randn(n, generator=torch.Generator().manual_seed(n)).to(dtype) for n in (1, 40, 333)]
    for q in (0.0, 0.25, 0.5, 1.0):
        each = _shards.quantiles(tensors, q, ranks, together=False)
        assert each == [quantile_abs([t], q) for t in tensors]
        assert _shards.quantiles(tensors, q, ranks, together=True) == [quantile_abs(tensors, q)]
    assert _shards.quantiles([tensors[0][:0]], 0.5, ranks, together=False) == [0.0]
