"""The examples of docs/training_loops.md, as they stand there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "training_loops.md"
RUN = "from torch.distributed.run import main; main()"


def example(name: str) -> str:
    found = re.search(rf"<!-- run: {name} -->\n```python\n(.*?)```", PAGE.read_text(), re.S)
    assert found is not None, name
    return found[1]


@pytest.mark.parametrize(
    ("name", "command", "says"),
    [
        ("trainer", [], r"8 steps, last losses \(\d"),
        ("accelerate", [], r"4 steps"),
        (
            "torchrun",
            ["-c", RUN, "--standalone", "--nproc-per-node=2"],
            r"rank \d: (\S+)\n(?s:.*)rank \d: \1\n",
        ),
    ],
)
@pytest.mark.slow
def test_examples_run_as_they_stand(name: str, command: list[str], says: str, tmp_path: Path) -> None:
    if not PAGE.exists():
        pytest.skip("not in a checkout")
    if name != "torchrun":
        pytest.importorskip("transformers" if name == "trainer" else "accelerate")
    (tmp_path / "train.py").write_text(example(name))
    done = subprocess.run(
        [sys.executable, *command, "train.py"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.search(says, done.stdout), done.stdout
