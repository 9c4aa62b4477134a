"""The messages that docs/troubleshooting.md explains are still those of the source."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

FOREIGN = ("pip", "CMake", "nvcc", "torchvision", "argparse", "jsonargparse", "PyTorch")
"""Programs whose messages the page explains as well; their source is not here."""


def entries(tree: Path) -> list[tuple[str, str]]:
    """(where it comes from, message) of each message on the page."""
    page = (tree / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    return re.findall(r"^<!-- from: (.+) -->\n```text\n(.+)\n```$", page, re.MULTILINE)


def texts(file: Path) -> list[str]:
    """What a file can say: in Python its strings, joined as the parser joins them, fields as a zero byte."""
    source = file.read_text(encoding="utf-8")
    if file.suffix != ".py":
        return [source]
    parts = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.JoinedStr | ast.Constant))
    return [" ".join(_text(node).split()) for node in parts]


def _text(node: ast.expr) -> str:
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part) for part in node.values)
    return str(node.value) if isinstance(node, ast.Constant) else "\0"


def says(text: str, message: str) -> bool:
    """Whether the fixed parts of `message` stand in `text`, in order."""
    fixed = [re.escape(part.strip()) for part in message.split("...") if len(part.strip()) > 1]
    return bool(fixed) and re.search(".*?".join(fixed), text, re.DOTALL) is not None


def test_each_message_of_ours_is_in_its_source(tree: Path) -> None:
    found = entries(tree)
    assert len(found) >= 40
    for where, message in found:
        if where not in FOREIGN:
            assert any(says(text, message) for text in texts(tree / where)), f"{where}: {message}"


@pytest.mark.parametrize("message", ["out: expected a new or full folder, got ...", "... ..."])
def test_a_message_that_is_not_there_is_missed(tree: Path, message: str) -> None:
    assert not any(says(text, message) for text in texts(tree / "python" / "tenfold" / "runs" / "folder.py"))


def test_every_block_says_where_it_comes_from(tree: Path) -> None:
    page = (tree / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    assert page.count("```text\n") == len(entries(tree))


def test_every_entry_has_a_cure(tree: Path) -> None:
    page = (tree / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    for entry in page.split("\n### ")[1:]:
        title = entry.splitlines()[0]
        assert re.search(
            r"```(sh|python)\n|In MATLAB: `|The message has the line|write the expression", entry
        ), title
