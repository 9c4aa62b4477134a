"""Fixtures for the op tests: settings of the process put back, and children for what may end the process."""

from __future__ import annotations

import os
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch


@pytest.fixture
def set_threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def inductor() -> str:
    """torch.compile's own backend; where it has no C++ compiler, the one that stops before it needs it."""
    return "inductor" if shutil.which(os.environ.get("CXX") or "g++") else "aot_eager"


@pytest.fixture
def in_child() -> Callable[[Callable[[], object]], int]:
    """Run a function in a forked child on one thread; how it ended: 0, 1 (it raised), or minus the signal."""

    def run(function: Callable[[], object]) -> int:
        sys.stdout.flush()
        sys.stderr.flush()
        child = os.fork()
        if child == 0:
            code = 1
            try:
                torch.set_num_threads(1)
                function()
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    return run


@pytest.fixture
def peak_bytes() -> Callable[[Callable[[], object]], int]:
    """How far a function raises the resident set at its highest, in bytes (Linux)."""
    return _peak_bytes


def _peak_bytes(work: Callable[[], object]) -> int:
    if "libasan" in os.environ.get("LD_PRELOAD", ""):
        pytest.skip("the address sanitizer takes memory of its own")
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pytest.skip("this system does not let a process reset its own peak memory")

    def kib(field: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith(field)).split()[1])

    before = kib("VmRSS")
    work()
    return (kib("VmHWM") - before) * 1024
