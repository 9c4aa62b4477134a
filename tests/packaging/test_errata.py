"""Each test that a page of errata names exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs" / "errata").glob("*.md"))


def named(page: Path) -> list[tuple[str, str]]:
    return re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", page.read_text(encoding="utf-8"))


@pytest.mark.skipif(not PAGES, reason="no docs beside the tests")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_erratum_names_a_test_that_exists(page: Path) -> None:
    rows = [line for line in page.read_text(encoding="utf-8").splitlines() if re.match(r"\| \d+ \|", line)]
    assert rows
    for row in rows:
        assert re.search(r"`tests/[\w/]+\.py::\w+`", row), row
    missing = []
    for file, name in named(page):
        path = ROOT / file
        tree = ast.parse(path.read_text(encoding="utf-8")) if path.is_file() else ast.Module([], [])
        if name not in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}:
            missing.append(f"{file}::{name}")
    assert not missing
