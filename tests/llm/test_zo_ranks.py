"""The workflow `zo` on two processes that exchange losses: what is as in one, and a rank that dies."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from task_files import save_model, write_sst2
from torchrun import arguments, finish, kill_rank, start

from tenfold.llm import ZOConfig, finetune, zo_ranks

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::tenfold.PerformanceWarning"),
]


def make_config(model: Path, data: Path, **own: Any) -> ZOConfig:
    settings: dict[str, Any] = {
        "model": str(model), "data": str(data), "steps": 12, "lr": 2e-2, "num_queries": 3, "batch_size": 16,
        "train_size": 40, "dev_size": 20, "test_size": 40, "eval_every": 5, "seeds": [0], "memory": False,
    }  # fmt: skip
    return ZOConfig(**(settings | own))


def found(run: Path) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """Tensors of all checkpoints, and the numbers that are no times."""
    tensors = {
        f"{file.stem} {name}": tensor
        for file in sorted(run.glob("checkpoints/*.safetensors"))
        for name, tensor in load_file(file).items()
    }
    numbers = json.loads((run / "metrics.json").read_text())["metrics"]
    words = ("loss", "accuracy", "forwards", "step_kept", "skipped")
    return tensors, {
        key: value for key, value in numbers.items() if any(w in key for w in words) and "_ms" not in key
    }


def assert_same(run: Path, other: Path) -> None:
    (weights, numbers), (others, other_numbers) = found(run), found(other)
    assert weights.keys() == others.keys() != set()
    assert all(torch.equal(tensor, others[name]) for name, tensor in weights.items())
    assert numbers == other_numbers != {}


def both(config: ZOConfig, folder: Path) -> tuple[Path, Path]:
    """Folders of a run in one process and of the same on two."""
    process = start(*arguments("zo", config, folder), "--out", str(folder / "two"))
    finetune(config, folder / "one")
    code, out, err = finish(process)
    assert code == 0, err
    assert out.count("report:") == 1
    return folder / "one", folder / "two"


@pytest.mark.slow
def test_directions_that_are_dealt_out_give_the_bits_of_one_process(
    model_folder: Path, data_file: Path, tmp_path: Path
) -> None:
    config = make_config(model_folder, data_file, restore="exact", full_steps=2, full_batch_size=5)
    assert_same(*both(config, tmp_path))


@pytest.mark.slow
def test_rows_that_are_dealt_out_differ_by_the_rounding_of_the_loss(
    model_folder: Path, data_file: Path, tmp_path: Path
) -> None:
    own = {"full_steps": 2, "full_batch_size": 8, "lr": 1e-3, "optimizer": "zo-sgd"}
    config = make_config(model_folder, data_file, **own)
    (weights, numbers), (others, other_numbers) = map(found, both(config, tmp_path))
    assert numbers["loss_after"] == pytest.approx(other_numbers["loss_after"], rel=1e-5)
    assert numbers["loss_after"] != numbers["loss_before"]
    for name, tensor in weights.items():
        torch.testing.assert_close(tensor, others[name], rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("task")
    return Path(save_model("opt", folder / "opt")), write_sst2(folder / "data")


def make_task(task: tuple[Path, Path], **own: Any) -> ZOConfig:
    settings: dict[str, Any] = {"task": "sst2", "optimizer": "fzoo", "lr": 3e-3, "num_queries": None}
    return make_config(*task, **(settings | own))


@pytest.mark.slow
def test_a_task_loses_a_rank_and_goes_on_to_the_same_bits(task: tuple[Path, Path], tmp_path: Path) -> None:
    config = make_task(task, scheme="lora", steps=24, save_seconds=1e-9)
    called, out = arguments("zo", config, tmp_path), tmp_path / "two"
    process = start(*called, "--out", str(out))
    finetune(config, tmp_path / "one")
    state = out / "state" / "sst2-lora-fzoo-seed0.safetensors"

    def steps() -> int:
        with safe_open(state, "pt") as file:
            return len(json.loads(file.metadata()["state"])["history"]["steps"])

    kill_rank(process, 1, lambda: state.exists() and steps() >= 3)
    code, _, err = finish(process, 60)
    assert code != 0
    assert "--resume goes on from the last saved state" in err
    assert steps() < 24
    code, _, err = finish(start("run", "zo", "--out", str(out), "--resume"))
    assert code == 0, err
    assert_same(tmp_path / "one", out)


# -- in one process ------------------------------------------------------------------------------------------


def test_what_is_dealt_out() -> None:
    group: Any = SimpleNamespace(size=2, rank=1)
    assert zo_ranks.way(group, "exact", 2) == zo_ranks.way(group, None, 8) == "query"
    assert zo_ranks.way(group, "exact", 1) == zo_ranks.way(group, "arithmetic", 8) == "data"


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"tables": "accuracy"}, "tables: expected none on 2 processes, got 'accuracy'"),
        ({"task": "sst2", "optimizer": "adam"}, "optimizer: expected a zeroth-order one on 2 processes"),
        ({"batch_size": 3}, "batch_size: expected a multiple of the 2 processes, got 3"),
        ({"full_steps": 1, "full_batch_size": 3}, "full_batch_size: expected a multiple of the 2 processes"),
    ],
)
def test_settings_that_cannot_be_shared(
    own: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ZOConfig(**own)
    zo_ranks.check(config)  # in one process
    monkeypatch.setattr(zo_ranks, "current", lambda: SimpleNamespace(size=2, rank=0))
    with pytest.raises(ValueError, match=message):
        zo_ranks.check(config)
