"""Every reader on mutants of valid files: it reads or says what is wrong, never more than that."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from drawing import EXAMPLES


def test_readers_survive_damaged_files(tmp_path: Path) -> None:
    child = Path(__file__).with_name("readers_child.py")
    done = subprocess.run(
        [sys.executable, str(child), str(tmp_path), str(EXAMPLES or 40), "0"],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(child.parent)},
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    found = [line for line in done.stdout.splitlines() if ": mutant " in line]  # libraries print, too
    assert not found, found
