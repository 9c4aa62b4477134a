"""What is under test here: CUDA C++ and Triton on a GPU, and the CUDA source on the host (emulate.py)."""

from __future__ import annotations

import importlib.util
import shutil
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
import torch
from tenfold.kernels.zo import zo_cuda, zo_native

from tenfold import _native


@dataclass(frozen=True)
class Device:
    """`module` has the functions of zo_reference.py; its tensors live on `device`."""

    name: str
    module: ModuleType
    device: torch.device


@pytest.fixture(scope="session")
def emulated_cuda(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """csrc/cuda_module.cpp and the kernels, compiled for the host."""
    if shutil.which("g++") is None or importlib.util.find_spec("pybind11") is None:
        pytest.skip("needs g++ and pybind11")
    spec = importlib.util.spec_from_file_location("emulate", Path(__file__).parent / "emulate.py")
    assert spec is not None
    assert spec.loader is not None
    emulate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(emulate)
    built: ModuleType = emulate.build(tmp_path_factory.mktemp("emulated"))
    return built


PLACES = [
    pytest.param("emulated", marks=pytest.mark.slow),
    pytest.param("cuda", marks=pytest.mark.gpu),
    pytest.param("triton", marks=pytest.mark.gpu),
]


@pytest.fixture(params=PLACES)
def gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Device:
    """Runs the test on the emulated CUDA kernels (slow) and, on a GPU, on both kinds of kernels."""
    if request.param == "emulated":
        built = request.getfixturevalue("emulated_cuda")
        monkeypatch.setattr(zo_native, "_module", lambda tensor: (built, (0,)))
        return Device("emulated", zo_cuda, torch.device("cpu"))
    return real_device(request.param)


def real_device(name: str) -> Device:
    """CUDA C++ or Triton kernels on the first GPU."""
    if name == "triton":
        pytest.importorskip("triton")
        from tenfold.kernels.zo import zo_triton

        return Device(name, zo_triton, torch.device("cuda", 0))
    if _native.cuda is None:
        pytest.skip(_native.cuda_why)
    return Device(name, zo_cuda, torch.device("cuda", 0))


@pytest.fixture(params=["cuda", "triton"])
def real_gpu(request: pytest.FixtureRequest) -> Device:
    """As `gpu`, without the emulation; for tests marked gpu."""
    return real_device(request.param)
