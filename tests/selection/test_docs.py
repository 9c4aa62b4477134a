"""docs/selection.md: its examples run as they stand, and it names everything that is public."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from child import shown

from tenfold import selection
from tenfold.selection import METHODS, compat, files, sharded

PAGE = Path(__file__).parents[2] / "docs" / "selection.md"
pytestmark = pytest.mark.skipif(not PAGE.exists(), reason="not in a checkout")


@pytest.mark.parametrize(
    ("name", "says"), [("first", "^50 60 600"), ("model", "^True 20$"), ("recorder", "^30 100 True$")]
)
def test_examples_run_as_they_stand(name: str, says: str, tmp_path: Path) -> None:
    printed = shown(PAGE.read_text(encoding="utf-8"), name, tmp_path)
    assert re.search(says, printed, re.M), printed


def test_everything_public_is_named() -> None:
    text = PAGE.read_text(encoding="utf-8")
    named = set(re.findall(r"^\.\. (?:auto(?:function|class)|py:data):: (\w+)", text, re.M))
    public = {*selection.__all__, *sharded.__all__, *compat.__all__, *files.__all__} - {"select_sharded"}
    assert named == public
    for module in (selection, sharded, compat, files):
        for name in module.__all__:
            assert (getattr(module, name).__doc__ or "").strip(), name


def test_every_method_is_in_the_table() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for name, kind in METHODS.items():
        assert re.search(rf"^\| [^|]*`{name}`[^|]* \| [^|]*`{kind.__name__}`", text, re.M), name
