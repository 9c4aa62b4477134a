"""The compiled modules: `cpu` (always) and `cuda` (a module, or None with the reason in `cuda_why`).

`_cpu` is built without an OpenMP runtime of its own. PyTorch has loaded one by the time this module is
imported, and its symbols are global, so both share one pool of threads. Two pools spin against each other on
a busy machine.
"""

from __future__ import annotations

import ctypes
import os
from importlib import import_module
from types import ModuleType

import torch

DTYPE_CODES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
"""Codes that cross the native boundary; kernels/core/dtype.hpp holds the same table."""


def _share_openmp() -> None:
    """Make an OpenMP runtime's symbols global when PyTorch's own are not (some keep theirs private)."""
    if hasattr(ctypes.CDLL(None), "GOMP_parallel"):
        return
    for name in ("libgomp.so.1", "libiomp5.so", "libomp.so", "libomp.so.5"):
        try:
            ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)
        except OSError:
            continue
        if hasattr(ctypes.CDLL(None), "GOMP_parallel"):
            return
    raise ImportError(
        "tenfold: no OpenMP runtime found: PyTorch exports none and neither libgomp, libiomp5 nor libomp "
        "could be loaded. Install one (Debian/Ubuntu: apt install libgomp1; conda: llvm-openmp)."
    )


def _one_thread_after_fork() -> None:
    """GNU's OpenMP keeps its threads in a pool, of which a forked child has the records and not the threads.

    Its next parallel region would wait for them for ever, PyTorch's as well as ours. PyTorch's DataLoader
    sets its workers to one thread for the same reason. A child that wants more starts by spawn.
    """
    if torch.get_num_threads() > 1:
        torch.set_num_threads(1)


_share_openmp()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_one_thread_after_fork)

cpu: ModuleType = import_module("tenfold._cpu")  # needs the OpenMP symbols above
cuda: ModuleType | None
cuda_why = ""
try:
    cuda = import_module("tenfold._cuda")
except ImportError as error:
    cuda = None
    note = cpu.build_info()["cuda"]
    cuda_why = note if not note.startswith("CUDA ") else f"built for {note}, but it does not load: {error}"

if os.environ.get("TENFOLD_ISA"):
    cpu.use_isa(os.environ["TENFOLD_ISA"])

build_info: dict[str, str] = cpu.build_info()
"""Compiler, build type and CUDA state at build time."""
