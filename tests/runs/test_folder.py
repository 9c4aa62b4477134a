from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tenfold import runs
from tenfold.runs.folder import MAY_DIFFER, latest_unfinished, plain


def test_new_folder_keeps_the_resolved_config(folder: runs.RunFolder) -> None:
    stored = yaml.safe_load((folder.path / "config.yaml").read_text())
    assert stored == {"seed": 7, "rate": 1e-6, "names": ["a", "b"], "where": "data"}
    assert isinstance(stored["rate"], float)
    assert "started toy" in (folder.path / "log.txt").read_text()
    assert not folder.finished


def test_default_place_and_same_second(
    settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    paths = [runs.RunFolder.create("toy", settings).path for _ in range(3)]
    assert len(set(paths)) == 3
    assert all(path.parent == Path("runs") and path.name.startswith("toy-") for path in paths)


def test_occupied_folder_is_refused_untouched(settings: Any, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="out: expected a new or empty folder"):
        runs.RunFolder.create("toy", settings, tmp_path)
    with pytest.raises(FileExistsError, match="out: expected"):
        runs.RunFolder.create("toy", settings, tmp_path / "notes.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("config", [{"seed": 1}, None, runs.Section])
def test_config_must_be_a_dataclass_instance(config: Any, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="config: expected a dataclass instance"):
        runs.RunFolder.create("toy", config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_tables(folder: runs.RunFolder) -> None:
    path = folder.write_table("losses", [{"step": 1, "loss": 0.1 + 0.2}, {"step": 2, "note": "a,b\nc"}])
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows == [
        {"step": "1", "loss": "0.30000000000000004", "note": ""},
        {"step": "2", "loss": "", "note": "a,b\nc"},
    ]
    with pytest.raises(ValueError, match="rows: expected at least one row"):
        folder.write_table("empty", [])
    with pytest.raises(ValueError, match="name: expected letters"):
        folder.write_table("../escape", [{"a": 1}])
    assert [p.name for p in (folder.path / "tables").iterdir()] == ["losses.csv"]


def test_figures_need_words(drawn: runs.RunFolder) -> None:
    assert {p.name for p in (drawn.path / "figures").iterdir()} == {"curve.png", "curve.svg", "captions.json"}
    fig, _ = runs.figure(1, 1)
    with pytest.raises(ValueError, match="alt: expected a sentence"):
        drawn.write_figure("other", fig, caption="Something.", alt=" ")
    assert not (drawn.path / "figures" / "other.png").exists()


def test_safetensors(folder: runs.RunFolder) -> None:
    tensor = torch.arange(6.0).reshape(2, 3).t()
    path = folder.write_safetensors("model", {"w": tensor}, {"step": "3"})
    assert torch.equal(load_file(path)["w"], tensor)


def test_state_round_trip(folder: runs.RunFolder) -> None:
    assert folder.load_state("train") is None
    weights = torch.randn(5).to(torch.bfloat16)
    folder.save_state("train", {"step": 3, "losses": [0.1, float("nan")], "seed": 2**64 - 1}, {"w": weights})
    folder.save_state("eval", [1, 2])
    loaded = folder.load_state("train")
    assert loaded is not None
    state, tensors = loaded
    assert state["step"] == 3
    assert state["losses"][0] == 0.1
    assert state["losses"][1] != state["losses"][1]
    assert state["seed"] == 2**64 - 1
    assert torch.equal(tensors["w"], weights)
    assert folder.load_state("eval") == ([1, 2], {})


def test_state_that_cannot_be_saved_leaves_the_old_one(folder: runs.RunFolder) -> None:
    folder.save_state("train", {"step": 1}, {"w": torch.ones(2)})
    with pytest.raises(TypeError, match="not JSON serializable"):
        folder.save_state("train", {"step": object()})
    shared = torch.ones(4)
    with pytest.raises(RuntimeError, match="share memory"):
        folder.save_state("train", {"step": 2}, {"a": shared, "b": shared})
    assert folder.load_state("train")[0] == {"step": 1}  # type: ignore[index]


def test_broken_state_is_named(folder: runs.RunFolder) -> None:
    folder.save_state("train", {"step": 1})
    (folder.path / "state" / "train.safetensors").write_bytes(b"torn")
    with pytest.raises(ValueError, match=r"train\.safetensors: expected a (saved state|safetensors file)"):
        folder.load_state("train")


def test_resume_goes_on_in_the_same_folder(folder: runs.RunFolder, settings: Any) -> None:
    folder.save_state("train", {"step": 5})
    again = runs.RunFolder.create("toy", settings, folder.path, resume=True)
    assert again.load_state("train") == ({"step": 5}, {})
    assert again.seconds >= json.loads((folder.path / "state" / "session.json").read_text())["seconds"] > 0
    assert "resumed toy" in (folder.path / "log.txt").read_text()


def test_resume_with_other_settings_names_them(folder: runs.RunFolder, settings: Any) -> None:
    other = replace(settings, rate=1e-5, names=("a", "b"))
    with pytest.raises(ValueError, match=r"config: .*rate=1e-05 \(was 1e-06\)$"):
        runs.RunFolder.create("toy", other, folder.path, resume=True)


def test_resume_with_a_setting_that_may_differ(tmp_path: Path) -> None:
    @dataclass
    class Config:
        seed: int = 7
        on_error: str = field(default="stop", metadata=MAY_DIFFER)

    first = runs.RunFolder.create("toy", Config(), tmp_path / "run")
    again = runs.RunFolder.create("toy", Config(on_error="record"), first.path, resume=True)
    assert again.config == {"seed": 7, "on_error": "record"}
    text = (first.path / "config.yaml").read_text()
    assert text == "# tenfold run toy --config config.yaml\nseed: 7\non_error: record\n"
    assert "with on_error='record' (was 'stop')" in (first.path / "log.txt").read_text()
    with pytest.raises(ValueError, match=r"got seed=8 \(was 7\)$"):
        runs.RunFolder.create("toy", Config(seed=8), first.path, resume=True)


def test_resume_of_another_workflow_or_of_nothing(
    folder: runs.RunFolder, settings: Any, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="name: expected 'toy'"):
        runs.RunFolder.create("other", settings, folder.path, resume=True)
    with pytest.raises(FileNotFoundError, match=r"no config\.yaml"):
        runs.RunFolder.create("toy", settings, tmp_path / "nowhere", resume=True)


def test_discard_takes_back_a_start_only(folder: runs.RunFolder, settings: Any) -> None:
    resumed = runs.RunFolder.create("toy", settings, folder.path, resume=True)
    assert not resumed.discard()
    folder.write_table("kept", [{"a": 1}])
    assert not folder.discard()
    assert (folder.path / "config.yaml").exists()
    shutil.rmtree(folder.path / "tables")
    assert folder.discard()
    assert not folder.path.exists()


def test_latest_unfinished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"runs/toy-\*"):
        latest_unfinished("toy")
    for date, finished in (("20260101-000000", False), ("20260102-000000", False), ("20260103-000000", True)):
        path = Path("runs") / f"toy-{date}"
        path.mkdir(parents=True)
        (path / "config.yaml").write_text("{}")
        if finished:
            (path / "metrics.json").write_text("{}")
    assert latest_unfinished("toy") == Path("runs/toy-20260102-000000")


def test_finish_writes_what_the_design_says(drawn: runs.RunFolder, report: runs.Report) -> None:
    drawn.save_state("train", {"step": 1})
    page = drawn.finish({"accuracy": 0.77, "steps": 3}, report)
    pieces = "config.yaml log.txt tables figures environment.json report.json report.html metrics.json"
    assert {path.name for path in drawn.path.iterdir()} == set(pieces.split())
    assert page == drawn.path / "report.html"
    assert drawn.finished
    document = json.loads((drawn.path / "metrics.json").read_text())
    assert list(document) == ["schema", "name", "config", "metrics", "environment", "seconds", "peak_rss_mib"]
    assert document["schema"] == "tenfold.metrics/1"
    assert document["config"] == plain(drawn.config)
    assert document["metrics"] == {"accuracy": 0.77, "steps": 3}
    assert document["environment"]["seed"] == 7
    assert document["environment"] == json.loads((drawn.path / "environment.json").read_text())
    assert document["peak_rss_mib"] > 10


@pytest.mark.parametrize("bad", [float("nan"), None])
def test_bad_numbers_leave_the_run_unfinished(drawn: runs.RunFolder, report: runs.Report, bad: Any) -> None:
    before = sorted(path.name for path in drawn.path.iterdir())
    with pytest.raises((ValueError, TypeError), match=r"metrics\['loss'\]"):
        drawn.finish({"loss": bad}, report)
    assert sorted(path.name for path in drawn.path.iterdir()) == before


@pytest.mark.parametrize("kind", ["figures", "tables"])
def test_unknown_names_in_the_report(drawn: runs.RunFolder, report: runs.Report, kind: str) -> None:
    section: dict[str, Any] = {kind: ["absent"]}
    with pytest.raises(ValueError, match=f"section 'S': {kind}: expected one of .*, got 'absent'"):
        drawn.finish({"a": 1}, replace(report, sections=[runs.Section("S", **section)]))
    assert not drawn.finished


def test_time_of_an_interrupted_session_counts(
    folder: runs.RunFolder, settings: Any, report: runs.Report
) -> None:
    folder._before["seconds"] = 1000.0
    folder.save_state("train", {})
    again = runs.RunFolder.create("toy", settings, folder.path, resume=True)
    again.finish({"a": 1}, replace(report, sections=[]))
    assert json.loads((folder.path / "metrics.json").read_text())["seconds"] >= 1000


def test_config_numbers_that_json_cannot_hold(tmp_path: Path, settings: Any, report: runs.Report) -> None:
    odd = runs.RunFolder.create("toy", replace(settings, rate=float("inf")), tmp_path / "odd")
    with pytest.raises(ValueError, match="JSON compliant"):
        odd.finish({"a": 1}, replace(report, sections=[]))
    assert not odd.finished


def test_resume_clears_what_a_killed_process_left(folder: runs.RunFolder, settings: Any) -> None:
    gone = subprocess.Popen([sys.executable, "-c", "pass"])
    gone.wait()
    tables = folder.path / "tables"
    (tables / f".edit.{gone.pid}.part").mkdir(parents=True)
    kept = [tables / f".mine.csv.{os.getpid()}.part", tables / "notes.part", tables / "a.csv"]
    for path in (*kept, tables / f".edit.{gone.pid}.part" / "w", tables / f".a.csv.{gone.pid}.part"):
        path.write_text("x")
    runs.RunFolder.create("toy", settings, folder.path, resume=True)
    assert sorted(tables.iterdir()) == sorted(kept)
