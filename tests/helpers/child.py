"""Python in a process of its own, on one thread and without a GPU."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

TORCHRUN = "from torch.distributed.run import main; main()"


def environment() -> dict[str, str]:
    quiet = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    return {**os.environ, **quiet, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}


def output(*arguments: str, folder: Path, seconds: float = 240) -> str:
    """What ``python ARGUMENTS`` prints in `folder`, where it ends well."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def under_torchrun(ranks: int = 2) -> tuple[str, ...]:
    """Arguments of python that come before a script's, to run it on this many processes."""
    return ("-c", TORCHRUN, "--standalone", f"--nproc-per-node={ranks}")


def example(page: str, name: str) -> str:
    """The example of a page of documentation that stands behind ``<!-- run: NAME -->``."""
    found = re.search(rf"<!-- run: {name} -->\n```python\n(.*?)```", page, re.S)
    assert found is not None, name
    return found[1]


def shown(page: str, name: str, folder: Path, *before: str) -> str:
    """What an example prints as a script in `folder`; `before`: arguments of python before the script."""
    (folder / "example.py").write_text(example(page, name), encoding="utf-8")
    return output(*before, "example.py", folder=folder)
