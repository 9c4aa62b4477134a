"""`tenfold run all`: one process and one folder a workflow, and the page about all."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tenfold.cli import run_all
from tenfold.workflows import WORKFLOWS

Call = Callable[..., tuple[int, str, str]]
HERE = Path(__file__).parent
TWO = """
import dataclasses, sys
from tenfold.workflows import WORKFLOWS, Workflow
toy = Workflow("toy", "A paper", ("zo",), "a walk", "toy_workflow:ToyConfig", "toy_workflow:run", True)
WORKFLOWS["toy"] = toy
WORKFLOWS["second"] = dataclasses.replace(toy, name="second")
from tenfold.cli import main
sys.exit(main())
"""


@pytest.fixture
def two(call: Call, monkeypatch: pytest.MonkeyPatch) -> Call:
    """`call`, with two toys as the only workflows that are ready, in their processes too."""
    import dataclasses

    toy = WORKFLOWS["toy"]
    for name, workflow in list(WORKFLOWS.items()):
        monkeypatch.setitem(WORKFLOWS, name, dataclasses.replace(workflow, ready=name == "toy"))
    monkeypatch.setitem(WORKFLOWS, "second", dataclasses.replace(toy, name="second"))
    monkeypatch.setattr(run_all, "_TENFOLD", (sys.executable, "-c", TWO))
    monkeypatch.setenv("PYTHONPATH", str(HERE))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return call


def states(folder: str) -> dict[str, str]:
    return {run["name"]: run["state"] for run in json.loads(Path(folder, "summary.json").read_text())["runs"]}


def write_config(name: str, text: str) -> None:
    Path("configs").mkdir(exist_ok=True)
    Path("configs", f"{name}.yaml").write_text(text)


def test_all_run_and_one_page_shows_them(two: Call) -> None:
    write_config("second", "steps: 5\n")
    code, out, _ = two("run", "all", "--out", "all", "--configs", "configs")
    assert code == 0
    assert out.splitlines()[-1] == "summary: all/index.html"
    assert states("all") == {"toy": "finished", "second": "finished"}
    steps = [
        json.loads(Path("all", name, "metrics.json").read_text())["config"]["steps"]
        for name in ("toy", "second")
    ]
    assert steps == [20, 5]
    page = Path("all/index.html").read_text()
    assert "2 of 2 systems finished" in page
    assert 'href="second/report.html"' in page
    assert "Position" in page


def test_a_run_that_fails_is_told_and_the_others_go_on(two: Call) -> None:
    write_config("toy", "die_at: 3\nhow: bug\n")
    code, out, _ = two("run", "all", "--out", "all", "--configs", "configs")
    assert code == 1
    assert "not finished: toy" in out
    assert states("all") == {"toy": "failed", "second": "finished"}
    page = Path("all/index.html").read_text()
    assert "1 of 2 systems finished" in page
    assert "a fault of ours" in page  # the end of its log


def test_killed_runs_are_resumed_and_finished_ones_stay(two: Call) -> None:
    write_config("second", "die_at: 11\n")
    assert two("run", "all", "--out", "all", "--configs", "configs")[0] == 1
    before = Path("all/toy/metrics.json").stat().st_mtime_ns
    assert two("run", "all", "--out", "all", "--resume")[0] == 0
    assert Path("all/toy/metrics.json").stat().st_mtime_ns == before
    assert states("all") == {"toy": "finished", "second": "finished"}
    positions = [
        json.loads(Path("all", name, "metrics.json").read_text())["metrics"]["position"]
        for name in ("toy", "second")
    ]
    assert positions[0] == positions[1]  # the interrupted walk is the whole one


def test_hostile_text_is_shown_and_not_run(two: Call) -> None:
    two("run", "all", "--out", "all", "--only", "toy")
    report = Path("all/toy/report.json")
    report.write_text(report.read_text().replace("A walk.", "<script>alert(1)</script>"))
    assert two("run", "all", "--out", "all", "--only", "toy", "--resume")[0] == 0
    page = Path("all/index.html").read_text()
    assert "<script>alert" not in page
    assert "&lt;script&gt;" in page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "toi"], "only: expected names of toy, second, got 'toi' (did you mean 'toy'?)"),
        (["--only", "soul"], "only: expected names of toy, second, got 'soul'"),
        (["--only", "toy", "toy"], "only: expected each name once, got toy twice"),
        (["--only", "toy", "--skip", "toy"], "expected at least one workflow to run, got none"),
        (["--resume"], "out: expected the folder to go on in, got none"),
        (["--resume", "--out", "none"], "out: expected the folder of an earlier run of all, got none"),
        (["--out", "full"], "out: expected a new or empty folder, got full"),
        (["--configs", "full"], "configs: expected a folder with NAME.yaml files, got full"),
        (["--configs", "wrong"], "configs: expected files named as workflows, got toi.yaml"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(two: Call, arguments: list[str], message: str) -> None:
    for folder, name in (("full", "file"), ("wrong", "toi.yaml")):
        Path(folder).mkdir()
        Path(folder, name).write_text("")
    before = sorted(Path().rglob("*"))
    code, out, err = two("run", "all", *arguments)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert message in err
    assert sorted(Path().rglob("*")) == before
