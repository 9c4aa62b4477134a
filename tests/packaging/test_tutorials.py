"""A tutorial for each system that is not pending: its source, and the notebook that was made of it."""

from __future__ import annotations

import ast
import importlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

from tenfold.workflows import WORKFLOWS

LARGEST_PICTURE, LARGEST_FOLDER = 60_000, 3_000_000  # bytes
WRITTEN = list(WORKFLOWS)
CELL = re.compile(r"^```\{code-cell\}\n(.*?)\n```$", re.DOTALL | re.MULTILINE)


@pytest.fixture(params=WRITTEN)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def source(tree: Path, name: str) -> str:
    """The Markdown source without its header."""
    text = (tree / "docs" / "tutorials" / f"{name}.md").read_text(encoding="utf-8")
    header = re.match(r"---\n.*?\n---\n", text, re.DOTALL)
    assert header is not None
    return text[header.end() :]


def cells(tree: Path, name: str) -> list[dict[str, Any]]:
    """The cells of the notebook."""
    text = (tree / "docs" / "tutorials" / f"{name}.ipynb").read_text(encoding="utf-8")
    return list(json.loads(text)["cells"])


def code_of(notebook: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [cell for cell in notebook if cell["cell_type"] == "code"]


def output_text(cell: dict[str, Any]) -> str:
    return "".join(
        "".join(output.get("text", output.get("data", {}).get("text/plain", "")))
        for output in cell["outputs"]
    )


def test_the_notebook_is_of_this_source(tree: Path, name: str) -> None:
    """Word for word: whoever edits a source executes it again."""
    text, notebook = source(tree, name), cells(tree, name)
    assert ["".join(cell["source"]) for cell in code_of(notebook)] == CELL.findall(text)
    prose = ["".join(cell["source"]) for cell in notebook if cell["cell_type"] == "markdown"]
    assert re.sub(r"\s+", " ", " ".join(prose)) == re.sub(r"\s+", " ", CELL.sub("", text)).strip()


def test_every_cell_ran_in_order_and_something_is_seen(tree: Path, name: str) -> None:
    code = code_of(cells(tree, name))
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert sum(bool(output_text(cell).strip()) for cell in code) >= 3
    pictures = [output["data"]["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    assert pictures
    assert max(len(picture) * 3 // 4 for picture in pictures) <= LARGEST_PICTURE


def test_numbers_in_the_prose_are_from_the_cells(tree: Path, name: str) -> None:
    """Every number with a decimal point outside code and links stands in a cell or its output."""
    text, notebook = source(tree, name), code_of(cells(tree, name))
    shown = " ".join("".join(cell["source"]) + output_text(cell) for cell in notebook)
    prose = re.sub(r"`[^`]*`|\([^()]*https?:[^()]*\)|\[[^\]]*\]\([^)]*\)", "", CELL.sub("", text))
    for number in re.findall(r"(?<![\w.])\d+\.\d+(?![\w.]*\d)", prose):
        assert number in shown, f"{name}: {number}"


def test_cells_use_public_names_and_the_workflow(tree: Path, name: str) -> None:
    """Cells compile, name nothing private of tenfold, and make the workflow's own config."""
    code = CELL.findall(source(tree, name))
    for number, text in enumerate(code):
        compile(text, f"{name}, cell {number}", "exec")
        for module, imported in imports_of(ast.parse(text)):
            check_public(module, imported)
    config = WORKFLOWS[name].config.partition(":")[2]
    assert f"{config}(" in "\n".join(code)


def imports_of(parsed: ast.AST) -> list[tuple[str, str]]:
    """(module, name) of every import from tenfold; the name is empty for `import module`."""
    found = []
    for node in ast.walk(parsed):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "tenfold":
            found += [(str(node.module), alias.name) for alias in node.names]
        elif isinstance(node, ast.Import):
            found += [(a.name, "") for a in node.names if a.name.partition(".")[0] == "tenfold"]
    return found


def check_public(module: str, imported: str) -> None:
    assert not any(part.startswith("_") for part in [*module.split("."), imported]), f"{module}: {imported}"
    home = importlib.import_module(module)
    if imported and imported not in home.__all__:
        assert hasattr(home, "__path__"), f"{module}: {imported}"  # then it may be a module of that package
        importlib.import_module(f"{module}.{imported}")


def test_the_folder_is_small_and_the_page_names_all(tree: Path) -> None:
    folder = tree / "docs" / "tutorials"
    page = (folder / "index.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| \[[^\]]*\]\((\w+)\.ipynb\) \|", page, re.MULTILINE) == WRITTEN
    assert sum(path.stat().st_size for path in folder.iterdir() if path.is_file()) <= LARGEST_FOLDER
    assert {path.stem for path in folder.glob("*.ipynb")} == set(WRITTEN)
