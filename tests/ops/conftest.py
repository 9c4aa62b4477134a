"""Fixtures for the op tests: every compiled instruction set in turn, and process-wide settings put back."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Iterator

import pytest
import torch

from tenfold import _native


@pytest.fixture(params=_native.cpu.isa_available())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """The instruction set in use during the test."""
    before = _native.cpu.isa_used()
    _native.cpu.use_isa(request.param)
    yield request.param
    _native.cpu.use_isa(before)


@pytest.fixture
def set_threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


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
