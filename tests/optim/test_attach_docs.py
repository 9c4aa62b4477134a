"""The examples of docs/training_loops.md, as they stand there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from child import shown, under_torchrun

PAGE = Path(__file__).parents[2] / "docs" / "training_loops.md"


@pytest.mark.parametrize(
    ("name", "before", "says"),
    [
        ("trainer", (), r"8 steps, last losses \(\d"),
        ("accelerate", (), r"4 steps"),
        ("torchrun", under_torchrun(), r"rank \d: (\S+)\n(?s:.*)rank \d: \1\n"),
    ],
)
@pytest.mark.slow
def test_examples_run_as_they_stand(name: str, before: tuple[str, ...], says: str, tmp_path: Path) -> None:
    if not PAGE.exists():
        pytest.skip("not in a checkout")
    if name != "torchrun":
        pytest.importorskip("transformers" if name == "trainer" else "accelerate")
    printed = shown(PAGE.read_text(encoding="utf-8"), name, tmp_path, *before)
    assert re.search(says, printed), printed
