"""The workflow `soul` on two processes: the bits of one, a rank that dies, going on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from soul_tiny import make_subject, save_byte_model
from torchrun import arguments, finish, kill_rank, start

from tenfold.llm.unlearn import soul_ranks
from tenfold.llm.unlearn.soul import unlearn
from tenfold.llm.unlearn.soul_config import SoulConfig

pytestmark = pytest.mark.usefixtures("one_thread")
MICRO_BATCHES = 3  # of two ranks the second has none in the last round


@pytest.fixture(scope="module")
def byte_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_byte_model(tmp_path_factory.mktemp("model"))


def make_config(folder: Path, model: Path, **own: Any) -> SoulConfig:
    forget, retain = folder / "hp.jsonl", folder / "c4.jsonl"
    lines = [{"prompt": f"Go on: part {i}", "response": f"the end {i * i}"} for i in range(9)]
    forget.write_text("".join(json.dumps(line) + "\n" for line in lines))
    retain.write_text("".join(json.dumps({"text": f"report {i} of the weather"}) + "\n" for i in range(7)))
    settings: dict[str, Any] = {
        "task": "copyright", "data": str(forget), "retain": str(retain), "model": str(model), "lr": [3e-3],
        "epochs": 2.0, "batch_size": 2, "accumulation": MICRO_BATCHES, "every": 2, "max_new_tokens": 2,
        "limit": 1, "max_length": 48,
    }  # fmt: skip
    return SoulConfig(**(settings | own))


def weights(run: Path) -> dict[str, dict[str, torch.Tensor]]:
    found = {file.parent.name: load_file(file) for file in run.glob("checkpoints/*/*.safetensors")}
    assert found
    return found


def assert_same(run: Path, other: Path) -> None:
    """Weights bit for bit, and every number but times."""
    ours, theirs = weights(run), weights(other)
    assert ours.keys() == theirs.keys()
    for key, tensors in ours.items():
        assert tensors.keys() == theirs[key].keys()
        assert all(torch.equal(tensor, theirs[key][name]) for name, tensor in tensors.items()), key
    numbers = [json.loads((folder / "metrics.json").read_text())["metrics"] for folder in (run, other)]
    assert numbers[0] == numbers[1]
    steps = [(folder / "tables" / "steps.csv").read_text().splitlines() for folder in (run, other)]
    place = steps[0][0].split(",").index("seconds")
    without = [[line.split(",")[:place] + line.split(",")[place + 1 :] for line in table] for table in steps]
    assert without[0] == without[1]


CASES: dict[str, dict[str, Any]] = {
    "full": {"method": "graddiff,rmu", "optimizer": "adamw,sophia"},
    "last-2": {"method": "pdu", "optimizer": "sophia-h,liuhong99,empirical-fisher"},
    "lora": {"method": "po", "optimizer": "soul-legacy"},
}


@pytest.mark.slow
@pytest.mark.parametrize("trainable", CASES)
def test_two_processes_have_the_bits_of_one(trainable: str, byte_model: Path, tmp_path: Path) -> None:
    config = make_config(tmp_path, byte_model, trainable=trainable, **CASES[trainable])
    process = start(*arguments("soul", config, tmp_path), "--out", str(tmp_path / "two"))
    unlearn(config, tmp_path / "one")
    code, out, err = finish(process)
    assert code == 0, err
    assert out.count("report:") == 1  # one rank speaks
    assert (tmp_path / "two" / "log.txt").read_text().count("started soul") == 1
    assert_same(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_is_killed_ends_the_other_and_the_run_goes_on(
    victim: int, byte_model: Path, tmp_path: Path
) -> None:
    own = {"method": "graddiff", "optimizer": "sophia", "epochs": 50.0, "save_seconds": 0.0}
    config = make_config(tmp_path, byte_model, **own)
    called, out = arguments("soul", config, tmp_path), tmp_path / "two"
    process = start(*called, "--out", str(out))
    unlearn(config, tmp_path / "one")
    state = out / "state" / "graddiff-sophia-lr0.003-seed0.safetensors"

    def begun() -> bool:
        return state.exists() and len(_state(state)["history"]["steps"]) >= 4

    kill_rank(process, victim, begun)
    code, _, err = finish(process, 60)
    assert code != 0
    assert "--resume goes on from the last saved state" in err
    assert "ranks: expected" in err
    assert not (out / "metrics.json").exists()
    before = len(_state(state)["history"]["steps"])
    assert before < 75
    if victim:  # on two processes again, else on one: how many there are is no part of a run
        code, _, err = finish(start("run", "soul", "--out", str(out), "--resume"))
        assert code == 0, err
    else:
        unlearn(config, out, resume=True)
    assert_same(tmp_path / "one", out)


@pytest.mark.slow
def test_a_rank_that_is_killed_while_the_first_evaluates_is_noticed(byte_model: Path, tmp_path: Path) -> None:
    config = make_config(tmp_path, byte_model, limit=None, max_new_tokens=400)
    out = tmp_path / "two"
    process = start(*arguments("soul", config, tmp_path), "--out", str(out))
    log = out / "log.txt"
    kill_rank(process, 1, lambda: log.exists() and "evaluating before" in log.read_text())
    code, _, err = finish(process, 60)
    assert code != 0
    assert "this one was told to end" in err
    assert "--resume goes on from the last saved state" in err


def _state(path: Path) -> Any:
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["state"])


@pytest.mark.slow
def test_what_cannot_run_on_two_processes_is_said_once(byte_model: Path, tmp_path: Path) -> None:
    config = make_config(tmp_path, byte_model, accumulation=1)
    code, _, err = finish(start(*arguments("soul", config, tmp_path), "--out", str(tmp_path / "two")), 60)
    assert code != 0
    assert err.count("accumulation: expected at least 2 micro-batches in a step for 2 processes, got 1") == 1
    assert not (tmp_path / "two").exists()


# -- in one process ------------------------------------------------------------------------------------------


class Two:
    """Two ranks of which the other one's gradients are given."""

    rank, size = 0, 2

    def __init__(self, other: list[Any]) -> None:
        self.other = iter(other)
        self.tensors: Any = iter(())

    def gather(self, value: Any) -> list[Any]:
        parts, having, grads = next(self.other)
        self.tensors = iter(grads)
        return [value, (parts, having)]

    def gather_tensor(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        return [tensor.clone(), next(self.tensors)]


def test_gradients_are_added_in_the_order_of_the_micro_batches() -> None:
    """1e8 + 1 - 1e8 is 0 in float32, and 1e8 - 1e8 + 1 is 1."""
    subject = make_subject("last-1")
    parameters = list(subject.parameters.values())
    shapes = [torch.ones_like(p) for p in parameters]
    values = {0: 1e8, 1: 1.0, 2: -1e8}

    def micro_batch(number: int) -> dict[str, float]:
        for parameter in parameters:
            assert parameter.grad is None
            parameter.grad = torch.full_like(parameter, values[number])
        return {"loss": float(number)}

    yes, no = [True] * len(shapes), [False] * len(shapes)
    group: Any = Two([({"loss": 1.0}, yes, shapes), ({}, no, shapes)])
    assert soul_ranks.in_turn(group, subject, 3, micro_batch) == [{"loss": float(i)} for i in range(3)]
    assert all(float(p.grad.abs().max()) == 0 for p in parameters if p.grad is not None)
    for parameter in parameters:
        parameter.grad = None
    values = {0: 1e8, 2: 1.0}
    group = Two([({"loss": 1.0}, yes, [-1e8 * one for one in shapes]), ({}, no, shapes)])
    soul_ranks.in_turn(group, subject, 3, micro_batch)
    assert all(float(p.grad.min()) == 1 for p in parameters if p.grad is not None)


class Second:
    """Rank 1 of two; rank 0 tells and shares what is given, and has found the same or ``differs``."""

    rank, size = 1, 2

    def __init__(self, saving: bool = False, differs: str = "", shared: Any = None) -> None:
        self.saving, self.differs, self.shared = saving, differs, shared
        self.compared: list[str] = []

    def hear(self) -> bool:
        return self.saving

    def share(self, tensors: None) -> Any:
        return self.shared

    def agree(self, what: str, found: str) -> None:
        self.compared.append(what)
        if self.differs and self.differs in what:
            raise RuntimeError(what)


def stepped(optimizer: str = "sophia") -> tuple[Any, Any]:
    from tenfold.llm.unlearn import curvature

    subject = make_subject("last-1")
    made = curvature.make_optimizer(optimizer, subject, lr=1e-3)
    curvature.refresh(made, optimizer, subject, [("retain", [0, 1])], seed=0)
    return subject, made


def test_curvature_is_that_of_rank_0() -> None:
    subject, optimizer = stepped()
    held = soul_ranks._states(subject, optimizer)
    shared = {name: torch.full_like(t, 3.0) for name, t in held.items() if name.endswith("/hessian")}
    assert len(shared) == len(subject.parameters)
    group: Any = Second(shared=shared)
    soul_ranks.share_curvature(group, subject, optimizer)
    for parameter in subject.parameters.values():
        assert float(optimizer.state[parameter]["hessian"].min()) == 3
        assert float(optimizer.state[parameter]["exp_avg"].abs().max()) == 0


def test_weights_are_compared_at_intervals_and_states_before_a_save() -> None:
    subject, optimizer = stepped()
    for step, saving, parts in ((7, False, 0), (soul_ranks.COMPARE, False, 1), (7, True, 2)):
        group: Any = Second(saving)
        soul_ranks.compare(group, subject, optimizer, step, False)  # rank 0 decides
        assert len(group.compared) == parts
    for differs in ("weights after step 7", "states of the optimizer after step 7"):
        group = Second(True, differs)
        with pytest.raises(RuntimeError, match=differs):
            soul_ranks.compare(group, subject, optimizer, 7, False)
