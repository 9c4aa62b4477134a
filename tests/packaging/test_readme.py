"""What the README says can be done can be done, and what it says of the project is so."""

from __future__ import annotations

import importlib.util
import re
import subprocess
from pathlib import Path
from types import ModuleType

import pytest
import torch

from tenfold.workflows import WORKFLOWS


def block(tree: Path, marker: str, language: str) -> str:
    """The fenced block after `<!-- marker -->`."""
    text = (tree / "README.md").read_text(encoding="utf-8")
    found = re.findall(
        rf"^<!-- {re.escape(marker)} -->\n```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE
    )
    assert len(found) == 1, f"README.md: expected one {language} block after {marker!r}, got {len(found)}"
    return found[0]


def load_script(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_example_trains_and_perturbs(tree: Path) -> None:
    code = block(tree, "example: drop-in", "python")
    assert sum(bool(line.strip()) for line in code.splitlines()) <= 10
    torch.manual_seed(0)
    names: dict = {}
    exec(compile(code, "README.md", "exec"), names)
    losses = [float(loss) for loss in names["losses"]]
    assert losses[-1] < 0.05 * losses[0]

    moved = [weight.clone() for weight in names["weights"]]
    names["zo_perturb_"](names["weights"], range(len(moved)), seed=2, query=0, c=1e-3)
    for before, after in zip(moved, names["weights"], strict=True):
        assert 0 < (after - before).abs().max() < 1e-2


@pytest.mark.parametrize("marker", ["command: demo", "command: test"])
def test_commands_are_valid_and_pinned(tree: Path, marker: str) -> None:
    command = block(tree, marker, "sh")
    subprocess.run(["sh", "-n"], input=command, text=True, check=True)
    assert command.startswith("python3 -m venv .venv && . .venv/bin/activate &&\n")
    for install in re.findall(r"pip install[^&\n]*", command):
        assert "-c constraints.txt" in install or "--no-deps -r assets.txt" in install
    for named in re.findall(r"[\w.]+\.txt", command):
        assert (tree / named).exists()


def test_demo_command_runs_a_system_that_is_ready(tree: Path) -> None:
    name = re.findall(r"tenfold run (\w+)", block(tree, "command: demo", "sh"))
    assert [WORKFLOWS[n].ready for n in name] == [True]


def test_ci_runs_the_test_command(tree: Path) -> None:
    """The line of .ci/run that takes the command out of the README finds exactly the block."""
    script = (tree / ".ci" / "run").read_text(encoding="utf-8")
    line = re.search(r"^command=\$\((awk .*)\)$", script, re.MULTILINE)
    assert line is not None
    taken = subprocess.run(["bash", "-c", line[1]], cwd=tree, capture_output=True, text=True, check=True)
    assert taken.stdout == block(tree, "command: test", "sh")


def test_table_of_systems(tree: Path) -> None:
    text = (tree / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \|(.*)\| (ready|not ready yet) \|$", text, re.MULTILINE)
    assert [row[0] for row in rows] == list(WORKFLOWS)
    for name, about, state in rows:
        arxiv = re.search(r"arXiv (\d{4}\.\d{5})", WORKFLOWS[name].paper)
        assert arxiv is not None
        assert arxiv[1] in about
        assert state == ("ready" if WORKFLOWS[name].ready else "not ready yet")


def test_links_lead_somewhere(tree: Path) -> None:
    for page in [tree / "README.md", *sorted((tree / "docs").rglob("*.md"))]:
        if "_build" in page.parts:
            continue
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
            if not re.match(r"[a-z]+:", target):
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_figures_are_those_of_the_record(tree: Path) -> None:
    script = load_script(tree / "docs" / "update_readme.py")
    result = script.load(script.RECORD)
    readme = (tree / "README.md").read_text(encoding="utf-8")
    assert script.replaced(readme, script.table(result)) == readme
    assert script.picture(result) == script.PICTURE.read_text(encoding="utf-8")


def test_no_heading_of_the_tables_stands_twice(tree: Path) -> None:
    headings = re.findall(r"^\*\*.+", (tree / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(headings) == len(set(headings))


def test_figures_that_disagree_are_refused(tree: Path, tmp_path: Path) -> None:
    script = load_script(tree / "docs" / "update_readme.py")
    text = script.RECORD.read_text(encoding="utf-8")
    path = tmp_path / "bench.json"
    path.write_text(text.replace('"agrees": true', '"agrees": false', 1), encoding="utf-8")
    with pytest.raises(ValueError, match="disagrees with"):
        script.load(path)
    path.write_text(text.replace("tenfold.bench/1", "tenfold.bench/0"), encoding="utf-8")
    with pytest.raises(ValueError, match="expected schema"):
        script.load(path)


def test_records_of_another_run_stand_beside_the_others(tree: Path) -> None:
    script = load_script(tree / "docs" / "update_readme.py")
    result = script.load(script.RECORD)
    before = {record["id"]: script.runs_of(result)[record.get("run", 0)] for record in result["records"]}
    other = {"cpu": "another processor", **{k: v for k, v in result["environment"].items() if k != "cpu"}}
    first = result["records"][0]
    new = {
        "schema": result["schema"], "environment": other, "floors": result["floors"],
        "records": [{**first, "ms": 2 * first["ms"]} | {"run": 0}],
    }  # fmt: skip
    both = script.merged(result, new)
    assert [record["id"] for record in both["records"]] == [record["id"] for record in result["records"]]
    for record in both["records"]:
        run = both["runs"][record["run"]]
        assert (
            run["environment"]["cpu"]
            == (other if record["id"] == first["id"] else before[record["id"]]["environment"])["cpu"]
        )
    assert both["records"][0]["ms"] == 2 * first["ms"]
    text = script.table(both)
    assert text.count("another processor") == 1
    assert text.count("The whole record") == 1
    # a run of which nothing is left is forgotten
    everything = script.merged(both, {**new, "records": [{**r, "run": 0} for r in result["records"]]})
    assert len(everything["runs"]) == 1
    assert everything["environment"] == other
