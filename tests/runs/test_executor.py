"""Jobs in processes of their own."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tenfold.runs.executor import run_jobs

JOBS = """
import os, sys, time
from pathlib import Path

def job(folder):
    Path(folder, str(os.getpid())).touch()
    time.sleep(600)
"""
MAIN = """
import sys
sys.path.insert(0, sys.argv[1])
from slow_jobs import job
from tenfold.runs.executor import run_jobs
list(run_jobs(job, [sys.argv[2]] * 2, workers=2))
"""


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_results_are_those_of_one_process():
    pytest.importorskip("joblib")
    assert sorted(run_jobs(math.isqrt, range(70), workers=2)) == sorted(map(math.isqrt, range(70)))


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_workers_end_with_a_killed_parent(tmp_path: Path):
    pytest.importorskip("joblib")
    (tmp_path / "slow_jobs.py").write_text(JOBS)
    seen = tmp_path / "seen"
    seen.mkdir()
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    parent = subprocess.Popen([sys.executable, "-c", MAIN, str(tmp_path), str(seen)], env=env)
    try:
        deadline = time.monotonic() + 120
        while len(list(seen.iterdir())) < 2 and time.monotonic() < deadline:
            time.sleep(0.2)
        pids = [int(path.name) for path in seen.iterdir()]
        assert len(pids) == 2
        assert all(map(alive, pids))
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    deadline = time.monotonic() + 30
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not any(map(alive, pids))
