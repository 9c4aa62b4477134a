"""Memory that is not there: an op says so, the process goes on, and no argument is half-written."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_ops_fuzz import NAMES

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    path = tmp_path_factory.mktemp("library") / "failing_memory.so"
    source = str(HERE / "failing_memory.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", source, "-o", str(path), "-ldl"], check=True)
    return path


@pytest.mark.skipif(sys.platform != "linux", reason="LD_PRELOAD and /proc")
@pytest.mark.parametrize("examples", [1, pytest.param(8, marks=pytest.mark.slow)])
def test_every_op_meets_memory_that_is_not_there(library: Path, examples: int) -> None:
    done = subprocess.run(
        [sys.executable, str(HERE / "memory_child.py"), str(examples), *NAMES],
        capture_output=True,
        text=True,
        env={**os.environ, "LD_PRELOAD": str(library)},
    )
    assert done.returncode == 0, done.stdout[-200:] + done.stderr[-2000:]
    lines = [line for line in done.stdout.splitlines() if not line.endswith("?")]
    found = dict(line.split(": ", 1) for line in lines)
    assert found.keys() == set(NAMES)
    wrong = {name: text for name, text in found.items() if not text.strip().isdigit()}
    assert not wrong
    assert sum(int(text) > 0 for text in found.values()) > 100  # the others ask for no memory
