"""The examples of docs/sophia.md, as they stand there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from child import shown

PAGE = Path(__file__).parents[2] / "docs" / "sophia.md"


@pytest.mark.parametrize(
    ("name", "needs", "says"),
    [
        ("trainer", "transformers", r"refreshed 4 times, win rate 0\.\d+"),
        ("loop", None, r"loss \d\.\d+ -> 0\.\d+"),
        ("influence", None, r"forget \+\d\.\d+ \(predicted \+\d\.\d+\)"),
    ],
)
@pytest.mark.slow
def test_examples_run_as_they_stand(name: str, needs: str | None, says: str, tmp_path: Path) -> None:
    if not PAGE.exists():
        pytest.skip("not in a checkout")
    if needs is not None:
        pytest.importorskip(needs)
    printed = shown(PAGE.read_text(encoding="utf-8"), name, tmp_path)
    assert re.search(says, printed), printed
