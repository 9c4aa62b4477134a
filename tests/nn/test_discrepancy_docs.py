"""The examples of docs/mmd.md, as they stand there, and that the page names every loss."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import pytest
from child import example

from tenfold.nn import discrepancy

PAGE = Path(__file__).parents[2] / "docs" / "mmd.md"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("loop", r"MMD 0\.[1-9]\d+ -> 0\.0\d+, target accuracy (1\.00|0\.9\d)"),
        ("test", r"MMD\^2 0\.\d+, p 0\.00\d"),
    ],
)
def test_examples_run_as_they_stand(name: str, says: str) -> None:
    if not PAGE.exists():
        pytest.skip("not in a checkout")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(example(PAGE.read_text(encoding="utf-8"), name), name, "exec"), {})
    assert re.search(says, printed.getvalue()), printed.getvalue()


def test_page_names_every_loss() -> None:
    if not PAGE.exists():
        pytest.skip("not in a checkout")
    named = set(re.findall(r"^\.\. autoclass:: (\w+)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE))
    assert named == {name for name in vars(discrepancy) if name.endswith("Loss")}
