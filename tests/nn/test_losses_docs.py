"""The examples of docs/segmentation_losses.md, as they stand there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from child import shown

PAGE = Path(__file__).parents[2] / "docs" / "segmentation_losses.md"


@pytest.mark.parametrize(
    ("name", "says"),
    [("training", r"loss [12]\.\d+ -> 0\.\d+"), ("partial", r"^True$"), ("volume", r"^\(64")],
)
def test_examples_run_as_they_stand(name: str, says: str, tmp_path: Path) -> None:
    if not PAGE.exists():
        pytest.skip("not in a checkout")
    text = PAGE.read_text(encoding="utf-8") + (PAGE.parent / "ops.md").read_text(encoding="utf-8")
    printed = shown(text, name, tmp_path)
    assert re.search(says, printed, re.M), printed
