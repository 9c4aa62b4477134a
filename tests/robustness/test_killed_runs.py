"""kill -9 of every workflow, in the middle of a save; --resume comes to the numbers of an unbroken run."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tenfold.workflows import WORKFLOWS

HERE = Path(__file__).parent
CHILD = HERE / "killed_child.py"
MEASURED = ("second", "_ms", "ms_", "speedup", "mib", "memory", "mean_rank", "share", "per_step")
"""What a metric's name holds when it is measured on this machine: times, memory and what is made of them."""


def helper(folder: str, name: str) -> Any:
    """A module without tests of another folder of tests."""
    sys.path.insert(0, str(HERE.parent / folder))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.pop(0)


def zo(folder: Path) -> list[Any]:
    tiny = helper("llm", "tiny_models")
    tiny.make_llama().save_pretrained(folder / "model")
    tiny.make_tokenizer().save_pretrained(folder / "model")
    lines = ["sentence\tlabel", *(f"{text}\t{label}" for text, label in tiny.sentences(120))]
    (folder / "all.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return ["--model", folder / "model", "--data", folder / "all.tsv", "--steps", 20, "--lr", 2e-2,
            "--num_queries", 2, "--batch_size", 16, "--train_size", 40, "--dev_size", 20, "--test_size", 40,
            "--eval_every", 5, "--seeds", [0, 1], "--full_steps", 2, "--memory", "false",
            "--save_seconds", 1e-6]  # fmt: skip


def soul(folder: Path) -> list[Any]:
    model = helper("llm", "soul_tiny").save_byte_model(folder / "model")
    return ["--model", model, "--method", "graddiff", "--optimizer", "adamw,sophia", "--trainable", "last-2",
            "--epochs", 1, "--batch_size", 10, "--lr", [1e-3], "--teach_epochs", 1, "--limit", 3,
            "--max_new_tokens", 4, "--max_length", 300, "--full_evaluation", "sophia",
            "--save_seconds", 1e-6]  # fmt: skip


def advunlearn(folder: Path) -> list[Any]:
    return ["--erased", ["advunlearn", "esd"], "--esd_iterations", 2, "--iterations", 6, "--warmup", 1,
            "--attack_steps", 2, "--bank_size", 1, "--batch", 2, "--train_steps", 3, "--try_timesteps", 1,
            "--try_iterations", 1, "--tries", 1, "--sample_steps", 3, "--state_every", 2]  # fmt: skip


def unlearndiffatk(folder: Path) -> list[Any]:
    lines = ["case_number,prompt,evaluation_seed,evaluation_guidance"]
    lines += [f"{10 + i},{text},{4290749014 + i},2.5" for i, text in enumerate(("five", "a photo of five"))]
    (folder / "p.csv").write_text("\n".join(lines) + "\n")
    return ["--erased", ["negative"], "--prompts", folder / "p.csv", "--timesteps", 2, "--iterations", 1,
            "--tries", 2, "--sample_steps", 3, "--target_steps", 3, "--seeds", [1]]  # fmt: skip


def unlearncanvas(folder: Path) -> list[Any]:
    return ["--methods", ["uce", "seot"], "--targets", ["Sketch", "Cats"], "--seeds", [188], "--steps", 4,
            "--budget", 40, "--finer", ["Winter/Horses"], "--finer_methods", ["uce"],
            "--sequential", ["Bricks", "Cats"], "--robust", []]  # fmt: skip


def dp4tl(folder: Path) -> list[Any]:
    return ["--methods", ["none", "lm", "random"], "--ratios", [0.9], "--seeds", [0], "--draws", 1,
            "--epochs", 1, "--evaluate", ["lp"], "--shots", 2]  # fmt: skip


def cwerm(folder: Path) -> list[Any]:
    return ["--settings", ["symmetric:0.4"], "--methods", ["erm", "cw-erm"], "--epochs", 1,
            "--meta_epochs", 2, "--seeds", [0, 1], "--ratios", [0.05]]  # fmt: skip


def msdcda(folder: Path) -> list[Any]:
    return ["--methods", ["source-only", "ms-dcda"], "--steps", 5, "--batch", 8, "--seeds", [0],
            "--targets", [1, 2], "--embedding", "none"]  # fmt: skip


def segrap(folder: Path) -> list[Any]:
    phantom = helper("segmentation", "phantom")
    for i in range(4):
        target = phantom.label_map(i, parts=2)
        phantom.write_map(folder / "gt" / f"c{i}.nii.gz", target)
        for team, by in (("a", 1), ("b", 2)):
            phantom.write_map(folder / "teams" / team / f"c{i}.nii.gz", phantom.moved(target, by, -1))
    return ["--predictions", folder / "teams", "--ground_truth", folder / "gt", "--task", 2,
            "--bootstrap", 20]  # fmt: skip


def ctsemcom(folder: Path) -> list[Any]:
    return ["--width", 9, "--symbols", 2, "--steps", 20, "--batch", 4, "--pairs", 4, "--snr_db", [10.0],
            "--variances", [1.0], "--variance_snr_db", [10.0], "--methods", ["awgn", "ssdt-sep"]]  # fmt: skip


SMALL: dict[str, Callable[[Path], list[Any]]] = {
    one.__name__: one
    for one in (
        *(zo, soul, advunlearn, unlearndiffatk, unlearncanvas),
        *(dp4tl, cwerm, msdcda, segrap, ctsemcom),
    )
}


def run(folder: Path, last: int, *arguments: Any) -> subprocess.CompletedProcess[str]:
    words = [json.dumps(a) if isinstance(a, list) else str(a) for a in arguments]
    return subprocess.run(
        [sys.executable, str(CHILD), str(last), "run", *words],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=900,
    )


def numbers(run_folder: Path) -> dict[str, Any]:
    found = json.loads((run_folder / "metrics.json").read_text())["metrics"]
    return {name: v for name, v in found.items() if not any(word in name.lower() for word in MEASURED)}


def test_every_workflow_is_killed() -> None:
    assert SMALL.keys() == WORKFLOWS.keys()


@pytest.mark.slow
@pytest.mark.demo
@pytest.mark.parametrize("name", WORKFLOWS)
def test_killed_in_a_save_and_resumed_comes_to_the_same_numbers(name: str, tmp_path: Path) -> None:
    given = SMALL[name](tmp_path)
    if name not in ("zo", "soul"):
        given += ["--workers", 1]
    whole = run(tmp_path, 0, name, *given, "--out", "whole")
    assert whole.returncode in (0, 1), whole.stderr[-3000:]
    renames = int((tmp_path / "renames.txt").read_text())
    wanted = numbers(tmp_path / "whole")
    assert len(wanted) > 3
    for part in (0.3, 0.6, 0.9):
        out = f"killed-{part}"
        killed = run(tmp_path, max(2, int(part * renames)), name, *given, "--out", out)
        assert killed.returncode == -signal.SIGKILL, killed.stderr[-3000:]
        assert not (tmp_path / out / "metrics.json").exists()
        resumed = run(tmp_path, 0, name, "--out", out, "--resume")
        assert resumed.returncode == whole.returncode, resumed.stderr[-3000:]
        assert numbers(tmp_path / out) == wanted
        assert not list((tmp_path / out).rglob("*.part"))
