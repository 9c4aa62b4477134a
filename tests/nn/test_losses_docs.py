"""The examples of docs/segmentation_losses.md, as they stand there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "segmentation_losses.md"


@pytest.mark.parametrize(
    ("name", "says"),
    [("training", r"loss [12]\.\d+ -> 0\.\d+"), ("partial", r"^True$"), ("volume", r"^\(64")],
)
def test_examples_run_as_they_stand(name: str, says: str, tmp_path: Path) -> None:
    if not PAGE.exists():
        pytest.skip("not in a checkout")
    text = PAGE.read_text(encoding="utf-8") + (PAGE.parent / "ops.md").read_text(encoding="utf-8")
    found = re.search(rf"<!-- run: {name} -->\n```python\n(.*?)```", text, re.S)
    assert found is not None, name
    (tmp_path / "example.py").write_text(found[1], encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "example.py"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.search(says, done.stdout, re.M), done.stdout
