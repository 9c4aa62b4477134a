"""What `tenfold._reading.reading` wraps, and what stays what it is."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch

from tenfold._reading import reading

STAY = (
    MemoryError("kernels"),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
    ModuleNotFoundError("No module named 'pyarrow'"),
    FileNotFoundError("folder: expected weights.safetensors, got none"),
    PermissionError(errno.EACCES, "Permission denied", "/data/a.bin"),
    ValueError("a.bin: expected one row"),
)
WRAPPED = (
    KeyError("state"),
    ValueError("no magic number"),
    RuntimeError("size mismatch"),
    OSError("image file is truncated"),
    EOFError(),
)


@pytest.mark.parametrize("error", STAY, ids=lambda error: type(error).__name__)
def test_these_stay_what_they_are(error: Exception) -> None:
    with pytest.raises(type(error)) as raised, reading("/data/a.bin", "a file"):
        raise error
    assert raised.value is error


@pytest.mark.parametrize("error", WRAPPED, ids=lambda error: type(error).__name__)
def test_others_become_one_that_names_the_file(error: Exception) -> None:
    told = r"^/data/a\.bin: expected a file, got another file \(.+\)$"
    with pytest.raises(ValueError, match=told), reading(Path("/data/a.bin"), "a file"):
        raise error
