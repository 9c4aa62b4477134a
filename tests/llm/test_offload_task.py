"""`tenfold run zo --task ... --offload DIR`: whole runs on models whose weights stay on disk."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import task_files
import torch

from tenfold.cli import main
from tenfold.llm import ZOConfig, engine, models, offload_task
from tenfold.llm.engine import Job, run_job
from tenfold.llm.objective import Objective
from tenfold.optim import zolog
from tenfold.runs import RunFolder

SIZES: dict[str, Any] = {
    "train_size": 48, "dev_size": 20, "test_size": 24, "batch_size": 8, "max_length": 48,
}  # fmt: skip


@dataclasses.dataclass
class Settings:
    seed: int = 0


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    task_files.write_copa(folder)
    task_files.write_squad(folder)
    return task_files.write_sst2(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    home = tmp_path_factory.mktemp("models")
    return {family: task_files.save_model(family, home / family) for family in ("opt", "llama", "roberta")}


def job(model: str, data: Path, **own: Any) -> Job:
    settings: dict[str, Any] = {
        "key": "one", "model": model, "task": "sst2", "data": str(data), "lr": 3e-3, "eps": 1e-2, "steps": 8,
        "looks": 4, "log": True, **SIZES,
    }  # fmt: skip
    return Job(**(settings | own))


def run_folder(path: Path, resume: bool = False) -> RunFolder:
    return RunFolder.create("test", Settings(), path, resume=resume)


@pytest.mark.parametrize("family", ["opt", "llama"])
@pytest.mark.parametrize("task", ["sst2", "copa"])
def test_a_run_is_the_one_in_memory(
    family: str, task: str, folders: dict[str, str], data: Path, tmp_path: Path
) -> None:
    """Same looks, same choice, same test figures, up to the rounding of two losses in one batch."""
    own: dict[str, Any] = {"task": task, "num_queries": 2, "weight_decay": 0.1}
    if task == "copa":
        own |= {"train_size": 18, "dev_size": 6, "test_size": 12}
    found = []
    for name, more in (
        ("plain", {"restore": "exact"}),
        ("streamed", {"offload": str(tmp_path / "work"), "keep": True}),
    ):
        settings = job(folders[family], data, **own, **more)
        found.append(run_job(settings, run_folder(tmp_path / name)))
    plain, streamed = found
    for part in ("before", "dev", "test"):
        assert streamed[part] == pytest.approx(plain[part], abs=2e-4), part
    assert [row["loss"] for row in streamed["curve"]] == pytest.approx(
        [row["loss"] for row in plain["curve"]], abs=2e-4
    )
    for name in ("best_step", "queries", "steps", "trainable", "parameters", "form", "source", "sizes"):
        assert streamed[name] == plain[name], name
    assert streamed["step_ms"]["forwards"] > 0
    assert streamed["step_ms"]["passes"] > 0
    assert not any((tmp_path / "work").iterdir())  # the working copy goes with the run


def test_the_kept_weights_are_those_of_the_best_look_and_of_the_log(
    folders: dict[str, str], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[dict[str, torch.Tensor]] = []
    plain = Objective.score

    def watched(self: Objective, split: str) -> dict[str, float]:
        looks.append({n: t.clone() for n, t in self.adapted.trainer.tensors()})  # type: ignore[attr-defined]
        found = plain(self, split)
        return {**found, "loss": [0.9, 0.8, 0.5, 0.7, 0.6][len(looks) - 1]} if split == "dev" else found

    monkeypatch.setattr(Objective, "score", watched)
    folder = run_folder(tmp_path / "run")
    found = run_job(job(folders["llama"], data, offload=str(tmp_path / "w"), keep=True), folder)
    assert found["best_step"] == 4
    assert len(looks) == 6  # test was scored once
    kept = models.load_model(str(folder.path / "checkpoints" / "one"))
    again = engine.load_any_model(folders["llama"], torch.float32).requires_grad_(True)
    zolog.replay(again, folder.path / "logs" / "one.zolog", until=4)
    for name, tensor in looks[2].items():
        assert torch.equal(looks[5][name], tensor), name
        assert torch.equal(kept.get_parameter(name), tensor), name
        assert torch.equal(again.get_parameter(name), tensor), name
        assert not torch.equal(looks[4][name], tensor), name


def test_an_interrupted_run_goes_on_to_the_same_numbers(
    folders: dict[str, str], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = job(folders["opt"], data, dtype="bfloat16", offload=str(tmp_path / "w"))
    whole = run_job(settings, run_folder(tmp_path / "whole"))
    plain = offload_task.Streaming.zo_step
    for stop in (0, 3, 6):
        calls = [0]

        def killed(self: Any, batch: Any, calls: list[int] = calls, stop: int = stop) -> Any:
            if calls[0] == stop:
                raise KeyboardInterrupt
            calls[0] += 1
            return plain(self, batch)

        monkeypatch.setattr(offload_task.Streaming, "zo_step", killed)
        path = tmp_path / f"cut{stop}"
        with pytest.raises(KeyboardInterrupt) as caught:
            run_job(settings, run_folder(path), save_seconds=0.0)
        del caught  # and with it the frames that hold the log open
        monkeypatch.setattr(offload_task.Streaming, "zo_step", plain)
        for file in (tmp_path / "w").iterdir():  # whatever a kill leaves behind
            file.write_bytes(file.read_bytes()[::-1])
        again = run_job(settings, run_folder(path, resume=True))
        assert (again["test"], again["evals"][0]["loss"]) == (whole["test"], whole["evals"][0]["loss"])
        for rows in ("curve", "evals"):
            assert [row["loss"] for row in again[rows]] == [row["loss"] for row in whole[rows]]
        logs = [(folder / "logs" / "one.zolog").read_bytes() for folder in (path, tmp_path / "whole")]
        assert logs[0] == logs[1]


def command(folder: str, data: Path, out: Path, *more: str) -> list[str]:
    sizes = [word for name, value in SIZES.items() for word in (f"--{name}", str(value))]
    return [
        "run", "zo", "--task", "sst2", "--data", str(data), "--model", folder, "--offload",
        str(out.parent / "work"), "--steps", "60", "--lr", "3e-3", "--eps", "1e-2", "--eval_every", "20",
        "--save_seconds", "0.01", *sizes, "--out", str(out), *more,
    ]  # fmt: skip


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")
def test_the_command_after_sigkill(folders: dict[str, str], data: Path, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert main(command(folders["opt"], data, whole)) == 0
    arguments = command(folders["opt"], data, cut, "--seeds", "[0]")
    process = subprocess.Popen(
        [sys.executable, "-c", "import sys; from tenfold.cli import main; main(sys.argv[1:])", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    log = cut / "logs" / "sst2-ft-zo-sgd-seed0.zolog"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if log.exists() and zolog.info(log)["steps"] >= 5:
            break
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (cut / "metrics.json").exists()
    assert main([*arguments, "--resume"]) == 0
    numbers = [json.loads((path / "metrics.json").read_text())["metrics"] for path in (whole, cut)]
    for name, value in numbers[0].items():
        if not any(word in name for word in ("seconds", "_ms", "peak")):
            assert numbers[1][name] == value, name
    assert "never in memory as a whole" in (cut / "report.html").read_text(encoding="utf-8")
    stored = json.loads((cut / "results" / "sst2-ft-zo-sgd-seed0.json").read_text())
    assert stored["job"]["optimizer"] == "zo-sgd"
    assert (cut / "checkpoints" / "sst2-ft-zo-sgd-seed0" / "config.json").exists()


def test_question_answering_generates_from_streamed_blocks(
    folders: dict[str, str], data: Path, tmp_path: Path
) -> None:
    own = {
        "task": "squad",
        "max_length": 96,
        "train_size": 10,
        "dev_size": 4,
        "test_size": 4,
        "batch_size": 4,
        "steps": 2,
    }
    results = [
        run_job(
            job(folders["llama"], data / "squad", **own, lr=1e-4, offload=where), run_folder(tmp_path / name)
        )
        for name, where in (("plain", ""), ("streamed", str(tmp_path / "w")))
    ]
    assert results[1]["test"] == pytest.approx(results[0]["test"], abs=1e-4)


REFUSED = [
    ({"optimizer": "fzoo"}, "optimizer: expected zo-sgd with offload, got 'fzoo'"),
    ({"scheme": "lora"}, "scheme: expected ft with offload, got 'lora'"),
    ({"restore": "dual"}, "restore: expected auto or exact with offload, got 'dual'"),
    ({"model": "smollm2"}, "model: expected a local folder with config.json"),
]


@pytest.mark.parametrize(
    ("own", "message"),
    [*REFUSED, ({"sweep": [0.1, 1.0]}, "sweep: expected none with offload"),
     ({"task": "", "tables": "accuracy", "optimizer": ""}, "offload: expected it with task alone"),
     ({"task": "", "model": "smollm2", "data": "reviews"}, "offload: expected it with task")],
)  # fmt: skip
def test_settings_that_do_not_fit_are_named_before_anything_is_read(
    own: dict[str, Any], message: str, folders: dict[str, str], tmp_path: Path
) -> None:
    settings = {"task": "sst2", "data": str(tmp_path / "none"), "model": folders["opt"], "offload": "w"}
    with pytest.raises(ValueError, match=message):
        ZOConfig(**(settings | own))


@pytest.mark.parametrize(
    ("own", "message"), [*REFUSED, ({"extra": {"one_sided": True}}, "extra: expected nothing but dist")]
)
def test_jobs_that_do_not_fit_are_named(
    own: dict[str, Any], message: str, folders: dict[str, str], data: Path, tmp_path: Path
) -> None:
    settings = dataclasses.replace(job(folders["opt"], data, offload=str(tmp_path / "w")), **own)
    with pytest.raises(ValueError, match=message):
        run_job(settings, run_folder(tmp_path / "r"))
    assert not (tmp_path / "w").exists()


def test_the_command_takes_zo_sgd_by_itself_and_fzoo_otherwise(folders: dict[str, str]) -> None:
    assert ZOConfig(task="sst2", model=folders["opt"], offload="w").optimizer == "zo-sgd"
    assert ZOConfig(task="sst2", model=folders["opt"]).optimizer == "fzoo"
    assert ZOConfig().optimizer == "fzoo"


def test_a_full_folder_and_a_masked_model_are_refused(
    folders: dict[str, str], data: Path, tmp_path: Path
) -> None:
    (tmp_path / "000001.bin").touch()
    with pytest.raises(ValueError, match="offload: expected an empty or new folder"):
        run_job(job(folders["opt"], data, offload=str(tmp_path)), run_folder(tmp_path / "r"))
    with pytest.raises(ValueError, match="model: expected a causal language model"):
        run_job(job(folders["roberta"], data, offload=str(tmp_path / "w")), run_folder(tmp_path / "s"))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's peak-memory reset")
def test_a_whole_run_never_holds_the_model(data: Path, tmp_path: Path) -> None:
    """Training, looks, the return to the best step and the checkpoint of a model of half a gigabyte."""
    model = task_files.save_model("llama", tmp_path / "model", width=1024, layers=12, heads=8)
    settings = job(model, data, steps=2, looks=1, offload=str(tmp_path / "w"), keep=True, lr=1.0)
    found = run_job(settings, run_folder(tmp_path / "run"))
    size = 4 * found["parameters"]
    assert size > 450 * 2**20
    assert found["best_step"] == 0
    assert found["peak_bytes"] < 0.45 * size, (found["peak_bytes"] / 2**20, size / 2**20)
