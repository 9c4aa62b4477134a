from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tenfold import cli
from tenfold.workflows import WORKFLOWS, Workflow

Call = Callable[..., tuple[int, str, str]]

NAMES = [
    "zo",
    "soul",
    "advunlearn",
    "unlearndiffatk",
    "unlearncanvas",
    "dp4tl",
    "cwerm",
    "msdcda",
    "segrap",
    "ctsemcom",
]


def one_line(err: str) -> str:
    assert err.count("\n") == 1, err
    return err.strip()


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_overview(call: Call, arguments: list[str]) -> None:
    code, out, _ = call(*arguments)
    assert code == 0
    for command in ("list", "run", "bench", "doctor", "report"):
        assert re.search(rf"^  {command} ", out, re.M)
    lines = [line for line in out.splitlines() if line.startswith("  ")]
    assert len({re.match(r"  \S+ +", line).end() for line in lines}) == 1  # type: ignore[union-attr]


def test_version(call: Call) -> None:
    code, out, _ = call("--version")
    assert code == 0
    assert re.fullmatch(r"tenfold \d+\.\d+\S*\n", out)


def test_unknown_command_is_met_with_the_nearest(call: Call) -> None:
    code, out, err = call("lsit")
    assert (code, out) == (2, "")
    assert one_line(err).endswith("got 'lsit' (did you mean 'list'?)")


def test_list_json_is_the_contract(call: Call) -> None:
    code, out, _ = call("list", "--json")
    rows = [row for row in json.loads(out) if row["name"] != "toy"]
    assert code == 0
    assert [row["name"] for row in rows] == NAMES
    for row in rows:
        assert list(row) == ["name", "paper", "families", "default", "ready"]
        assert re.search(r"\(arXiv \d{4}\.\d{5}\)$", row["paper"])
        assert row["families"]
        assert all(isinstance(family, str) for family in row["families"])
        assert "\n" not in row["default"]
        assert isinstance(row["ready"], bool)
    assert rows[0]["ready"]


def test_list_for_people_fits_the_terminal(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "72")
    code, out, _ = call("list")
    assert code == 0
    assert all(name in out for name in NAMES)
    assert max(map(len, out.splitlines())) <= 72


def test_what_is_ready_can_be_loaded() -> None:
    for workflow in WORKFLOWS.values():
        assert workflow.ready == bool(workflow.config) == bool(workflow.target)


def test_run_without_a_name_lists_what_is_ready(call: Call) -> None:
    assert call("run")[0] == 2
    code, out, _ = call("run", "--help")
    assert code == 0
    assert "Ready: zo" in out


def test_run_of_what_is_not_ready(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(WORKFLOWS, "toy", dataclasses.replace(WORKFLOWS["toy"], ready=False))
    code, _, err = call("run", "toy")
    assert code == 2
    assert "toy is not ready in this version; ready: zo, soul" in one_line(err)


def test_case_is_no_obstacle_to_a_suggestion(call: Call) -> None:
    assert "got 'DP4TL' (did you mean 'dp4tl'?)" in one_line(call("run", "DP4TL")[2])


def test_help_of_each_workflow_begins_with_a_sentence() -> None:
    for workflow in WORKFLOWS.values():
        first = (workflow.load_config().__doc__ or "").strip().splitlines()[0]
        assert first.endswith((".", "?")), workflow.name


def test_run_of_an_unknown_name(call: Call) -> None:
    code, _, err = call("run", "sool")
    assert code == 2
    assert "got 'sool' (did you mean 'soul'?)" in one_line(err)


def test_help_comes_from_the_dataclass(call: Call) -> None:
    code, out, _ = call("run", "toy", "--help")
    flat = " ".join(out.split())
    assert code == 0
    for text in (
        *("--steps STEPS Number of steps, at least 1. (type: int, default: 20)", "--kind {up,down}"),
        *(
            "Direction of the walk.",
            "What happens there: kill, interrupt, fail, memory, tensor, bug.",
            "--out DIR",
            "--resume",
        ),
        *("--config FILE.yaml", "A paper. Embedded default: a walk."),
    ):
        assert text in flat, text


def test_run_finishes_and_says_where(call: Call) -> None:
    code, out, err = call("run", "toy", "--out", "here", "--steps", "3", "--noisy")
    assert code == 0
    assert out.splitlines() == [
        "Position: -0.12  (from 0)",
        "numbers: here/metrics.json",
        "report: here/report.html",
    ]
    assert "walk: 3/3 (100 %)" in err
    document = json.loads(Path("here/metrics.json").read_text())
    assert document["name"] == "toy"
    assert document["config"]["steps"] == 3
    assert document["config"]["pause"] == 0.0  # as resolved
    assert document["metrics"]["noisy"] == 1


def test_default_folder(call: Call) -> None:
    assert call("run", "toy", "--steps", "1")[0] == 0
    (folder,) = Path("runs").iterdir()
    assert re.fullmatch(r"toy-\d{8}-\d{6}", folder.name)


def test_config_file_and_flags_over_it(call: Call) -> None:
    Path("toy.yaml").write_text("steps: 4\nrate: 1e-3\nkind: down\n")
    assert call("run", "toy", "--config", "toy.yaml", "--steps", "2", "--noisy=false", "--out", "one")[0] == 0
    config = json.loads(Path("one/metrics.json").read_text())["config"]
    assert (config["steps"], config["rate"], config["kind"], config["noisy"]) == (2, 1e-3, "down", False)
    assert call("run", "toy", "--config", "one/config.yaml", "--out", "two")[0] == 0
    numbers = [json.loads(Path(name, "metrics.json").read_text()) for name in ("one", "two")]
    assert numbers[0]["metrics"] == numbers[1]["metrics"]
    assert numbers[0]["config"] == numbers[1]["config"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--rate", "fast"], "--rate: expected float, got 'fast'"),
        (["--kind", "left"], "--kind: expected one of 'up', 'down', got 'left'"),
        (["--noisy", "maybe"], "--noisy: expected bool, got 'maybe'"),
        (["--pause", "long"], "--pause: expected float or null, got 'long'"),
        (["--pause", "-1"], "pause: expected a number >= 0, got -1"),
        (["--stepz", "3"], "unrecognized arguments: --stepz 3 (did you mean '--steps'?)"),
        (["--zzz", "3"], "unrecognized arguments: --zzz 3\n"),
        (["--stops", "1", "2"], "unrecognized arguments: 2 (a list is one word with commas: a,b)"),
        (["--stops", "1,x"], "--stops: expected list[int] or null, got"),
        (["--steps"], "argument --steps: expected one argument"),
        (["--steps", "0"], "steps: expected at least 1, got 0"),
        (["--config", "absent.yaml"], "--config: File does not exist: "),
        (["--config", "torn.yaml"], "--config torn.yaml: Problems parsing config"),
        (
            ["--config=other.yaml"],
            "--config other.yaml: Option 'stepz' is not accepted (did you mean 'steps'?)",
        ),
        (["--config", "sign.yaml"], "--config sign.yaml: Option 'ste/ps' is not accepted"),
        (["--config", "bytes.yaml"], "--config bytes.yaml: expected text in UTF-8, got other bytes"),
        (["--config", "list.yaml"], "--config list.yaml: stops: expected list[int] or null, got '0,1'"),
        (["--config", "list.yaml", "--stops", "3"], "--config list.yaml: stops: expected list[int]"),
        (["--config", "fine.yaml", "--rate", "fast"], "error: --rate: expected float, got 'fast'"),
        (["--out", "occupied"], "out: expected a new or empty folder, got occupied"),
        (["--resume"], "out: expected an unfinished run in runs/toy-* to resume"),
        (["--resume", "--out", "absent"], "out: expected the folder of a run, got absent"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(call: Call, arguments: list[str], complaint: str) -> None:
    Path("torn.yaml").write_text("steps: [1")
    Path("other.yaml").write_text("stepz: 1\n")
    Path("list.yaml").write_text("stops: 0,1\n")
    Path("sign.yaml").write_text("ste/ps: 1\n")
    Path("bytes.yaml").write_bytes(b"steps: \x9e\n")
    Path("fine.yaml").write_text("steps: 1\n")
    Path("occupied").mkdir()
    Path("occupied/notes.txt").write_text("mine")
    before = sorted(Path().rglob("*"))
    code, out, err = call("run", "toy", *arguments)
    assert (code, out) == (2, "")
    assert one_line(err).startswith("tenfold run: error: ")
    assert complaint in err
    assert sorted(Path().rglob("*")) == before


@pytest.mark.parametrize("marks", ["a,b c", "[a,b c]", "[a, 'b c']"])
@pytest.mark.parametrize("joined", [False, True])
def test_lists_need_no_brackets(call: Call, marks: str, joined: bool) -> None:
    given = [f"--marks={marks}", "--stops=7"] if joined else ["--marks", marks, "--stops", "7"]
    assert call("run", "toy", *given, "--steps", "1", "--out", "here")[0] == 0
    config = json.loads(Path("here/metrics.json").read_text())["config"]
    assert (config["marks"], config["stops"]) == (["a", "b c"], [7])


@pytest.mark.parametrize(
    ("marks", "items"),
    [
        ("#1", ["#1"]),
        ("*", ["*"]),
        ("yes,no", ["yes", "no"]),
        ("1, 2", ["1", "2"]),
        ('a: b,é,5" disk', ["a: b", "é", '5" disk']),
        ('"a,b",c,', ["a,b", "c"]),
    ],
)
def test_texts_of_a_list_are_taken_as_they_are(call: Call, marks: str, items: list[str]) -> None:
    assert call("run", "toy", f"--marks={marks}", "--steps", "1", "--out", "here")[0] == 0
    assert json.loads(Path("here/metrics.json").read_text())["config"]["marks"] == items


def test_names_in_capitals_are_found() -> None:
    from tenfold.cli import did_you_mean

    assert did_you_mean("van-gog", ["Van-Gogh", "Monet"]) == " (did you mean 'Van-Gogh'?)"


def test_a_list_that_may_be_null_may_be_null(call: Call) -> None:
    assert call("run", "toy", "--stops", "null", "--marks", "[]", "--steps", "1", "--out", "here")[0] == 0
    config = json.loads(Path("here/metrics.json").read_text())["config"]
    assert (config["marks"], config["stops"]) == ([], None)


def test_failure_in_the_run_is_told_and_kept(call: Call) -> None:
    code, _, err = call("run", "toy", "--die_at", "2", "--how", "fail", "--out", "here")
    assert code == 2
    assert err.splitlines()[-1] == "tenfold run: error: data: expected a file, got nothing"
    assert "the traceback is in here/log.txt" in err
    assert "Traceback" not in err
    assert "Traceback" in Path("here/log.txt").read_text()
    assert not Path("here/metrics.json").exists()


@pytest.mark.parametrize(("how", "said"), [("memory", "MemoryError"), ("tensor", "you tried to allocate")])
def test_memory_that_runs_out_is_one_line(call: Call, how: str, said: str) -> None:
    code, _, err = call("run", "toy", "--die_at", "2", "--how", how, "--out", "here")
    assert code == 2
    assert err.splitlines()[-1].startswith("tenfold run: error: memory has run out (")
    assert said in err.splitlines()[-1]
    assert call("run", "toy", "--out", "here", "--resume")[0] == 0


@pytest.mark.parametrize("there", [False, True])
def test_failed_start_leaves_nothing_in_the_way(call: Call, there: bool) -> None:
    if there:
        Path("here").mkdir()
    code, _, err = call("run", "toy", "--die_at", "0", "--how", "fail", "--out", "here")
    assert code == 2
    assert "log.txt" not in err
    assert Path("here").exists() == there
    assert call("run", "toy", "--out", "here", "--steps", "1")[0] == 0


def test_failed_start_is_not_what_resume_takes(call: Call) -> None:
    assert call("run", "toy", "--die_at", "9", "--how", "interrupt", "--rate", "0.5")[0] == 130
    assert call("run", "toy", "--die_at", "0", "--how", "fail")[0] == 2
    assert call("run", "toy", "--resume")[0] == 0
    (folder,) = Path("runs").iterdir()
    assert json.loads((folder / "metrics.json").read_text())["config"]["rate"] == 0.5


def test_fault_of_ours_at_the_start_keeps_the_log(call: Call) -> None:
    with pytest.raises(KeyError):
        call("run", "toy", "--die_at", "0", "--how", "bug", "--out", "here")
    assert "KeyError" in Path("here/log.txt").read_text()


def test_debug_shows_the_traceback(call: Call) -> None:
    with pytest.raises(ValueError, match="expected a file"):
        call("run", "toy", "--die_at", "2", "--how", "fail", "--debug")


def test_a_fault_of_ours_is_not_hidden(call: Call) -> None:
    with pytest.raises(KeyError):
        call("run", "toy", "--die_at", "2", "--how", "bug", "--out", "here")
    assert "KeyError" in Path("here/log.txt").read_text()


def test_interrupt_says_how_to_go_on_and_resume_gives_the_same_numbers(call: Call) -> None:
    code, _, err = call("run", "toy", "--die_at", "9", "--how", "interrupt", "--out", "here")
    assert code == 130
    assert err.splitlines()[-1] == "go on with: tenfold run toy --out here --resume"
    assert not Path("here/metrics.json").exists()
    code, _, err = call("run", "toy", "--out", "here", "--resume")
    assert code == 0
    assert "walk: 20/20" in err
    assert call("run", "toy", "--out", "whole")[0] == 0
    numbers = [json.loads(Path(name, "metrics.json").read_text())["metrics"] for name in ("here", "whole")]
    assert numbers[0] == numbers[1]


def test_resume_without_a_folder_takes_the_latest(call: Call) -> None:
    assert call("run", "toy", "--die_at", "9", "--how", "interrupt", "--rate", "0.5")[0] == 130
    code, out, _ = call("run", "toy", "--resume")
    assert code == 0
    assert "report: runs/toy-" in out
    (folder,) = Path("runs").iterdir()
    assert json.loads((folder / "metrics.json").read_text())["config"]["rate"] == 0.5


def test_resume_with_other_settings_is_refused(call: Call) -> None:
    assert call("run", "toy", "--die_at", "9", "--how", "interrupt", "--out", "here")[0] == 130
    code, _, err = call("run", "toy", "--out", "here", "--resume", "--rate", "0.5")
    assert code == 2
    assert "rate=0.5 (was 0.01)" in one_line(err)


def test_resume_of_a_finished_run(call: Call) -> None:
    assert call("run", "toy", "--out", "here")[0] == 0
    before = Path("here/metrics.json").read_bytes()
    code, out, _ = call("run", "toy", "--out", "here", "--resume")
    assert code == 0
    assert "already finished" in out
    assert Path("here/metrics.json").read_bytes() == before


def test_a_run_that_does_not_finish_is_no_success(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    unfinished = Workflow(
        "toy", "", ("zo",), "", config="toy_workflow:ToyConfig", target="toy_workflow:run_nothing", ready=True
    )
    monkeypatch.setitem(WORKFLOWS, "toy", unfinished)
    with pytest.raises(AssertionError, match="ended without finishing"):
        call("run", "toy")


def test_missing_package_says_what_to_install(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    absent = Workflow(
        "toy", "", ("zo",), "", config="toy_workflow:ToyConfig", target="no_such_module:run", ready=True
    )
    monkeypatch.setitem(WORKFLOWS, "toy", absent)
    code, _, err = call("run", "toy")
    assert code == 2
    assert "No module named 'no_such_module'; in the checkout: pip install '.[demo]'" in one_line(err)


@pytest.mark.parametrize("package", ["jinja2", "matplotlib"])
def test_package_that_the_end_needs_is_looked_for_first(
    call: Call, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    code, _, err = call("run", "toy", "--out", "here")
    assert code == 2
    assert f"No module named '{package}'; in the checkout: pip install '.[demo]'" in one_line(err)
    assert not Path("here").exists()


def test_report_makes_the_page_again(call: Call) -> None:
    call("run", "toy", "--out", "here")
    page = Path("here/report.html")
    before = page.read_bytes()
    page.unlink()
    code, out, _ = call("report", "here")
    assert (code, out) == (0, "report: here/report.html\n")
    assert page.read_bytes() == before


def test_report_of_nothing(call: Call) -> None:
    code, _, err = call("report", "absent")
    assert code == 2
    assert "absent/report.json: expected the file of a finished run" in one_line(err)


def test_bench_hands_its_arguments_on(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    import tenfold.benchmarks

    seen: list[list[str]] = []
    monkeypatch.setattr(tenfold.benchmarks, "main", lambda argv: seen.append(argv) or 3)
    assert call("bench", "zo", "--threads", "1")[0] == 3
    assert seen == [["zo", "--threads", "1"]]


def test_print_config_makes_a_file_to_start_from(call: Call) -> None:
    code, out, _ = call("run", "toy", "--steps", "3", "--print_config")
    assert code == 0
    Path("toy.yaml").write_text(out)
    assert call("run", "toy", "--config", "toy.yaml", "--out", "here")[0] == 0
    assert json.loads(Path("here/metrics.json").read_text())["config"]["steps"] == 3


def test_interrupt_before_a_run_starts(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_command", interrupted)
    code, _, err = call("list")
    assert code == 130
    assert "interrupted" in one_line(err)
