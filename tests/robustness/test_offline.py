"""Nothing asks for the network unless it was given the name of something that lies there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tenfold.workflows import WORKFLOWS

CHILD = Path(__file__).with_name("offline_child.py")
SECONDS = 60
"""How long the start of a workflow is watched: assets are found and models built by then."""


def environment(tmp_path: Path) -> dict[str, str]:
    """Without the switches that forbid the hub to be asked, and with empty caches."""
    switches = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
    kept = {key: value for key, value in os.environ.items() if key not in switches}
    return {**kept, "OMP_NUM_THREADS": "1", "HF_HOME": str(tmp_path / "hub")}


def test_importing_everything_asks_for_no_network(tmp_path: Path) -> None:
    command = [sys.executable, str(CHILD), "import"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(tmp_path), cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "network:" not in done.stdout, done.stdout


@pytest.mark.slow
@pytest.mark.demo
@pytest.mark.parametrize("name", WORKFLOWS)
def test_the_embedded_start_of_a_workflow_asks_for_no_network(name: str, tmp_path: Path) -> None:
    command = [sys.executable, str(CHILD), "run", name, "--out", str(tmp_path / "run")]
    child = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(tmp_path),
        cwd=tmp_path,
    )
    try:
        out, said = child.communicate(timeout=SECONDS)
        assert child.returncode == 0, said[-2000:]
    except subprocess.TimeoutExpired:
        child.kill()
        out, said = child.communicate()
    assert "network:" not in out, out
    assert (tmp_path / "run" / "config.yaml").exists(), said[-2000:]
