"""The examples of docs/sophia.md, as they stand there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

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
    found = re.search(rf"<!-- run: {name} -->\n```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    assert found is not None, name
    (tmp_path / "train.py").write_text(found[1], encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "train.py"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.search(says, done.stdout), done.stdout
