"""Two processes under torchrun that exchange losses and nothing else."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))

from ranks import torchrun
from zolog_cases import batch, network, optimizer, same_bits

from tenfold.optim import ZOSGD, HybridFirstOrder, _parallel

PROBE = """
import json
from zolog_cases import *

sent = []

def counted(name):
    inner = getattr(dist, name)
    def call(*args, **kwargs):
        for value in args[:2]:
            for t in value if isinstance(value, list) else [value]:
                if isinstance(t, torch.Tensor):
                    sent.append([name, t.numel() * t.element_size()])
        return inner(*args, **kwargs)
    setattr(dist, name, call)

for name in ("all_gather", "all_reduce", "broadcast", "all_gather_into_tensor", "all_gather_object",
             "broadcast_object_list", "reduce", "gather", "scatter", "send", "recv", "all_to_all", "barrier"):
    counted(name)

def shard(model, step, rank, world):
    x, y = batch(step)
    x, y = x[rank::world], y[rank::world]
    dtype = next(model.parameters()).dtype
    return lambda: (model(x.to(dtype)).float() - y).square().mean()

def save(name, model, opt):
    records = [opt.last_step.losses, [s.value for s in opt.last_step.scalars]]
    torch.save((dict(model.named_parameters()), records), f"{name}.{rank}.pt")
"""
SENT = """
json.dump(sent, open(f"sent.{rank}.json", "w"))
"""


def results(folder: Path, name: str) -> list[tuple[dict[str, Tensor], list[Any]]]:
    return [torch.load(folder / f"{name}.{rank}.pt", weights_only=False) for rank in range(2)]


BODY = """
CASES = (
    ("sgd", "f32", {"restore": "arithmetic"}),
    ("adam", "bf16 sr", {}),
    ("fzoo", "f32", {}),
    ("conservative", "f32", {}),
    ("sparse", "f32", {"num_queries": 2}),
)
for name, numerics, options in CASES:
    dtype, rounding = NUMERICS[numerics]
    model = network(dtype)
    opt = optimizer(model, name, rounding=rounding, parallel="data", **options)
    for step in range(6):
        opt.step(shard(model, step, rank, world))
    save("data " + name, model, opt)

for name, options in (("sgd q=3", {"restore": "exact"}), ("fzoo", {"restore": "dual"}), ("sgd", {}),
                      ("adam", {"num_queries": 4, "rounding": "sr"})):
    model = network(torch.bfloat16 if options.get("rounding") else torch.float32)
    opt = optimizer(model, name, parallel="query", **options)
    calls = 0
    for step in range(6):
        inner = closure(model, step)
        def counting():
            global calls
            calls += 1
            return inner()
        opt.step(counting)
    save("query " + name, model, opt)
    torch.save(calls, f"calls {name}.{rank}.pt")

model = network()
opt = optimizer(model, parallel="data")
model_loss = shard(model, 0, rank, world)
opt.step(lambda: float("nan") if rank else model_loss())  # one rank alone
assert opt.last_step.skipped
from tenfold.optim import zolog
with zolog.ZOLog.create(f"run.{rank}.zolog", opt, model):
    opt.step(model_loss)
save("after nan", model, opt)

model = network()
if rank == 1:
    model[3].bias.data += 1
try:
    optimizer(model, parallel="data").step(shard(model, 0, rank, world))
    message = "none"
except RuntimeError as error:
    message = str(error)
torch.save(message, f"disagree.{rank}.pt")
"""


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which two ranks have done all of `BODY`."""
    return torchrun(PROBE + BODY + SENT, tmp_path_factory.mktemp("two"))


@pytest.mark.parametrize("name", ["sgd", "adam", "fzoo", "conservative", "sparse"])
def test_ranks_with_their_own_data_have_the_same_weights(name: str, two: Path) -> None:
    (weights, records), (others, other_records) = results(two, f"data {name}")
    assert same_bits(weights, others)
    assert records == other_records


@pytest.mark.parametrize(
    ("name", "options"), [("sgd", {"restore": "arithmetic"}), ("fzoo", {}), ("sparse", {})]
)
def test_one_process_with_the_averaged_losses_does_the_same(
    name: str, options: dict[str, Any], two: Path
) -> None:
    (weights, records), _ = results(two, f"data {name}")
    model = network()
    if name == "sparse":
        options = {"num_queries": 2}
    opt = optimizer(model, name, **options)
    for step in range(6):
        x, y = batch(step)

        def averaged(x: Tensor = x, y: Tensor = y) -> float:
            shards = [float((model(x[r::2]) - y[r::2]).square().mean()) for r in range(2)]
            return sum(shards) / 2

        opt.step(averaged)
    assert list(records[0]) == list(opt.last_step.losses)  # the very float64s, added in the same order
    assert same_bits(dict(model.named_parameters()), weights)
    whole = network()
    opt = optimizer(whole, name, **options)
    for step in range(6):
        x, y = batch(step)
        opt.step(lambda x=x, y=y: (whole(x) - y).square().mean())
    for name_, p in whole.named_parameters():  # and the whole batch, within the rounding of its loss
        assert torch.allclose(p, weights[name_], atol=2e-3 if name == "fzoo" else 2e-4)


@pytest.mark.parametrize("name", ["sgd q=3", "fzoo", "sgd", "adam"])
def test_queries_shared_out_are_the_run_of_one_process(name: str, two: Path) -> None:
    (weights, records), (others, other_records) = results(two, f"query {name}")
    assert same_bits(weights, others)
    assert records == other_records
    options: dict[str, Any] = {"num_queries": 4, "rounding": "sr"} if name == "adam" else {}
    model = network(torch.bfloat16 if options else torch.float32)
    opt = optimizer(model, name, restore="exact", **options)
    for step in range(6):
        x, y = batch(step)
        dtype = next(model.parameters()).dtype
        opt.step(lambda x=x, y=y, dtype=dtype: (model(x.to(dtype)).float() - y).square().mean())
    assert list(opt.last_step.losses) == list(records[0])
    assert same_bits(dict(model.named_parameters()), weights)


def test_each_rank_evaluates_its_queries_only(two: Path) -> None:
    calls = {
        name: [torch.load(two / f"calls {name}.{r}.pt") for r in range(2)]
        for name in ("sgd q=3", "fzoo", "sgd")
    }
    assert calls["sgd q=3"] == [6 * 2 * 2, 6 * 2 * 1]  # queries 0 and 2; query 1
    assert calls["fzoo"] == [6 * (1 + 4), 6 * (1 + 4)]  # L(theta), which all evaluate, and four of eight
    assert calls["sgd"] == [12, 0]


def test_a_loss_that_is_not_finite_on_one_rank_skips_the_step_on_all(two: Path) -> None:
    from tenfold.optim import zolog

    (weights, _), (others, _) = results(two, "after nan")
    assert same_bits(weights, others)
    base = network()
    for rank in range(2):  # each log, of a parallel run, replays in one process
        again = {name: p.detach().clone() for name, p in base.named_parameters()}
        zolog.replay(again, two / f"run.{rank}.zolog")
        assert same_bits(again, weights)


def test_other_weights_on_one_rank_are_noticed_by_all(two: Path) -> None:
    for rank in range(2):
        message = torch.load(two / f"disagree.{rank}.pt")
        assert (
            "expected all ranks to start with the same weights and options, got others on rank 1" in message
        )


def test_only_scalars_are_exchanged(two: Path) -> None:
    import json

    for rank in range(2):
        sent = json.loads((two / f"sent.{rank}.json").read_text())
        assert {name for name, _ in sent} == {"all_gather"}
        assert max(size for _, size in sent) <= 32 * 8  # the digest of the start
        # a step: at most 9 losses of FZOO, twice where queries are shared out
        assert sorted({size for _, size in sent})[-2] <= 2 * 9 * 8


@pytest.mark.slow
def test_four_ranks(tmp_path: Path) -> None:
    body = """
model = network()
opt = optimizer(model, "sgd q=3", parallel="query")
for step in range(4):
    opt.step(closure(model, step))
save("four", model, opt)
"""
    torchrun(PROBE + body, tmp_path, ranks=4)
    found = [torch.load(tmp_path / f"four.{rank}.pt", weights_only=False)[0] for rank in range(4)]
    assert all(same_bits(found[0], other) for other in found[1:])


# -- in one process -------------------------------------------------------------------------------------


def test_it_needs_a_process_group() -> None:
    with pytest.raises(RuntimeError, match="parallel: expected a running process group, got none"):
        ZOSGD(network().parameters(), parallel="data")
    with pytest.raises(ValueError, match="restore: expected 'exact' or 'dual' with parallel='query'"):
        ZOSGD(network().parameters(), parallel="query", restore="arithmetic")
    with pytest.raises(ValueError, match="parallel: expected one of 'data', 'query', got 'model'"):
        ZOSGD(network().parameters(), parallel="model")


def test_hybrid_steps_are_not_shared() -> None:
    model = torch.nn.Sequential(*[torch.nn.Linear(3, 3) for _ in range(3)])
    hybrid = HybridFirstOrder(1, lambda params: torch.optim.SGD(params, lr=1e-2), model)
    opt = ZOSGD(model.parameters(), streams=model, hybrid=hybrid)
    ranks = Ranks("data", 0, [])
    ranks._agreed = False
    with pytest.raises(ValueError, match="parallel: expected None in a hybrid optimizer"):
        ranks.agree(opt)


class Ranks(_parallel.Parallel):
    """Two ranks of which the other one's answers are given."""

    def __init__(self, mode: str, rank: int, other: list[float]) -> None:
        self.mode, self.rank, self.world_size, self.other = mode, rank, 2, other

    def _all_gather(self, values: Any) -> list[list[float]]:
        rows = [list(values), self.other]
        return rows if self.rank == 0 else rows[::-1]


def test_means_are_added_in_the_order_of_the_ranks() -> None:
    assert Ranks("data", 0, [1e16, 1.0]).mean([3.0, 2.0]) == [(3.0 + 1e16) / 2, 1.5]
    assert Ranks("data", 1, [1e16, 1.0]).mean([3.0, 2.0]) == [(1e16 + 3.0) / 2, 1.5]


def test_gather_takes_the_lowest_rank_that_knows() -> None:
    first = Ranks("query", 0, [9.0, 2.0, 0.0, 1.0, 1.0, 0.0])
    assert first.gather([1.0, None, float("inf")]) == [1.0, 2.0, float("inf")]
    assert [first.mine(k) for k in range(3)] == [True, False, True]
    with pytest.raises(RuntimeError, match="expected a loss from some rank, got none for 2"):
        first.gather([1.0, None, None])
