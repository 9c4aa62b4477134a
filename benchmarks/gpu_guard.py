"""A pytest plugin for GPU runs: `-p tenfold.benchmarks.gpu_guard`.

After an illegal access every later call in a process fails, and so would every later test. A worker whose
context broke writes down after which test and ends itself; pytest-xdist starts another one.
"""

from __future__ import annotations

import os

import pytest
import torch

VARIABLE = "TENFOLD_GPU_BROKEN"
"""Environment variable with the file that is appended to."""


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    """Wait for the device; what an earlier launch did wrong shows here at the latest."""
    if not torch.cuda.is_initialized():
        return
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        with open(os.environ[VARIABLE], "a", encoding="utf-8") as file:
            file.write(f"{item.nodeid}: {' '.join(str(error).split())[:200]}\n")
        os._exit(3)
