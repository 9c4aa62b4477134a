"""`tenfold dp4tl`: index files without a run, and what is wrong in one line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("jsonargparse")
pytest.importorskip("PIL")

from safetensors.torch import save_file

from tenfold.cli import main
from tenfold.selection.transfer import index_files, networks


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """A source of three classes with validation images, a target, a surrogate without training."""
    generator = np.random.default_rng(0)
    for name, count, classes in (("source", 24, 3), ("val", 6, 3), ("target", 8, 2)):
        np.savez(
            tmp_path / f"{name}.npz", images=generator.integers(0, 255, (count, 12, 12, 3), dtype=np.uint8),
            labels=np.arange(count) % classes,
        )  # fmt: skip
    torch.manual_seed(0)
    save_file(networks.build("small", 3).state_dict(), tmp_path / "s.safetensors")
    found = {name: str(tmp_path / f"{name}.npz") for name in ("source", "val", "target")}
    return found | {"weights": str(tmp_path / "s.safetensors"), "out": str(tmp_path / "kept" / "toy")}


def prune(files: dict[str, str], *more: str) -> int:
    return main(["dp4tl", "prune", "--source", files["source"], "--out", files["out"], *more])


def test_index_files(files: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    code = prune(
        files, "--target", files["target"], "--source_val", files["val"], "--surrogate", "small",
        "--surrogate_weights", files["weights"], "--ratios", "[0.3, 0.6]",
    )  # fmt: skip
    said = capsys.readouterr()
    assert code == 0, said.err
    lines = said.out.splitlines()
    assert lines[0] == "label mapping: source, 24 images"
    assert lines[1].startswith("30 % pruned: 16 images of 2 classes: ")
    assert lines[2].startswith("60 % pruned: 8 images of 1 classes: ")
    assert lines[3].startswith("confidence: ")
    votes = index_files.read_frequency(f"{files['out']}_lm.frequency")
    best = int(votes.argmax())
    kept = index_files.read_indices(f"{files['out']}_lm_train_top1.indices")
    assert kept.tolist() == [i for i in range(24) if i % 3 == best]
    assert len(index_files.read_indices(f"{files['out']}_lm_val_top1.indices")) == 2
    assert json.loads(Path(f"{files['out']}_lm.json").read_text())["votes"] == votes.tolist()


def test_methods_that_look_at_nothing(files: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert prune(files, "--method", "random", "--ratios", "[0.6]") == 0
    assert "60 % pruned: 8 images" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--method", "none"], "method: expected one of"),
        (["--surrogate", "small"], "surrogate_weights: expected a file, for the method lm, got nothing"),
        (["--method", "random", "--ratios", "[1.0]"], "ratios: expected"),
        (["--method", "file"], "scores: expected a CSV file"),
    ],
)
def test_what_is_wrong_is_one_line(
    files: dict[str, str], capsys: pytest.CaptureFixture[str], more: list[str], said: str
) -> None:
    assert prune(files, *more) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
    assert not Path(files["out"]).parent.exists()


@pytest.mark.parametrize("command", ["prune", "pretrain", "finetune"])
def test_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dp4tl", command, "--help"]) == 0
    assert "--out" in capsys.readouterr().out
    assert main(["dp4tl", "prun"]) == 2
    assert "did you mean" in capsys.readouterr().err.lower()


def test_a_training_by_a_settings_file_of_another_kind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from .test_training import settings

    (tmp_path / "a.json").write_text(json.dumps(settings()))
    given = ["--settings", str(tmp_path / "a.json"), "--out", str(tmp_path / "x")]
    assert main(["dp4tl", "finetune", *given, "--weights", "w.safetensors"]) == 2
    assert "settings: expected a file for transfer" in capsys.readouterr().err
    assert main(["dp4tl", "pretrain", *given]) == 2
    assert "train.beton, which is not there" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
