"""torchrun as a subprocess, for the tests of workflows on several processes."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from child import environment, under_torchrun


def arguments(name: str, config: Any, folder: Path) -> list[str]:
    """``run NAME --config FILE``, the file written in `folder`."""
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(dataclasses.asdict(config)))
    return ["run", name, "--config", str(file)]


def start(*arguments: str) -> subprocess.Popen[str]:
    """``torchrun ... -m tenfold ARGUMENTS`` on two processes."""
    return subprocess.Popen(
        [sys.executable, *under_torchrun(2), "-m", "tenfold", *arguments],
        env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def finish(process: subprocess.Popen[str], seconds: float = 240) -> tuple[int, str, str]:
    """Exit code, standard output, standard error."""
    try:
        out, err = process.communicate(timeout=seconds)
    finally:
        process.kill()
    return process.returncode, out, err


def kill_rank(process: subprocess.Popen[str], rank: int, when: Callable[[], bool]) -> None:
    """Kill one of its processes once ``when()`` holds."""
    until = time.monotonic() + 120
    while not when():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < until
        time.sleep(0.02)
    os.kill(_of_rank(process.pid, rank), signal.SIGKILL)


def _of_rank(parent: int, rank: int) -> int:
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            its_parent = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
            variables = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if its_parent == parent and f"RANK={rank}".encode() in variables:
            return int(folder.name)
    raise AssertionError(f"rank {rank} of {parent} is not there")
