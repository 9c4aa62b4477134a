"""What all tests share: options and markers, quiet threads, and the backends as a parameter.

    pytest                   everything fast; Triton kernels through the interpreter where there is no GPU
    pytest --slow            the slow tests as well
    pytest -k "avx2"         one instruction set; likewise "triton", "reference", "cuda"

Tests marked `demo` read the embedded real model and text and are skipped where these are not installed;
tests marked `gpu` are skipped where torch sees no CUDA device.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "helpers"))  # for modules without tests

# Before anything loads an OpenMP runtime: waiting threads sleep, or they slow a busy machine down.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when Triton is imported

import tenfold
from tenfold import _native
from tenfold._backend import why_not


@pytest.fixture(autouse=True, scope="session")
def _fma_that_rounds_once() -> Iterator[None]:
    """An fma rounds once on every GPU; interpreters of Triton before 3.9 multiply, round, add and round."""
    with pytest.MonkeyPatch.context() as patch:
        if os.environ.get("TRITON_INTERPRET") == "1" and why_not("triton", "cpu") is None:
            from triton._C.libtriton import interpreter as native
            from triton.runtime import interpreter

            if not hasattr(native, "fma_fp32"):
                patch.setattr(interpreter.InterpreterBuilder, "create_fma", _exact_fma)
        yield


def _exact_fma(builder: Any, x: Any, y: Any, z: Any) -> Any:
    from tenfold.kernels.zo import zo_reference

    exact = zo_reference.fma64 if z.data.dtype == np.float64 else zo_reference.fma32
    operands = [torch.from_numpy(np.array(v)) for v in np.broadcast_arrays(x.data, y.data, z.data)]
    return type(z)(exact(*operands).numpy(), z.dtype.scalar)


@dataclass(frozen=True)
class Backend:
    """A backend in force: `name` as for use_backend, `device` where its tensors live, `isa` for "cpu"."""

    name: str
    device: torch.device
    isa: str | None = None

    @property
    def interpreted(self) -> bool:
        """Triton without a GPU: its interpreter takes seconds for what others do in milliseconds."""
        return self.name == "triton" and self.device.type == "cpu"

    def __str__(self) -> str:
        return f"cpu-{self.isa}" if self.isa else self.name


_GPU_OR_CPU = torch.device("cuda" if torch.cuda.is_available() else "cpu")
_BACKENDS = (
    Backend("reference", torch.device("cpu")),
    *(Backend("cpu", torch.device("cpu"), isa) for isa in _native.cpu.isa_compiled()),
    Backend("triton", _GPU_OR_CPU),
    Backend("cuda", torch.device("cuda")),
)


def _missing(backend: Backend) -> str | None:
    """Why `backend` cannot run here, or None."""
    if backend.isa and backend.isa not in _native.cpu.isa_available():
        return f"this CPU cannot run {backend.isa}"
    if backend.device.type == "cuda" and not torch.cuda.is_available():
        return "no CUDA device"
    return why_not(backend.name, backend.device.type)


@pytest.fixture(params=_BACKENDS, ids=str)
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """Runs the test once on each backend and instruction set; those that this machine lacks are skipped."""
    chosen: Backend = request.param
    reason = _missing(chosen)
    if reason:
        pytest.skip(f"{chosen}: {reason}")
    isa_before = _native.cpu.isa_used()
    if chosen.isa:
        _native.cpu.use_isa(chosen.isa)
    with tenfold.use_backend(chosen.name):
        yield chosen
    _native.cpu.use_isa(isa_before)


@pytest.fixture(params=_native.cpu.isa_compiled())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test once on each instruction set of the CPU module, the module set to it."""
    name: str = request.param
    if name not in _native.cpu.isa_available():
        pytest.skip(f"this CPU cannot run {name}")
    before = _native.cpu.isa_used()
    _native.cpu.use_isa(name)
    yield name
    _native.cpu.use_isa(before)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests marked slow as well")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    reasons = {
        "slow": None if config.getoption("--slow") else "slow (run with --slow)",
        "demo": _missing_assets(),
    }
    reasons["gpu"] = None if torch.cuda.is_available() else "no CUDA device"
    for item in items:
        for marker, reason in reasons.items():
            if reason and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


def _missing_assets() -> str | None:
    from tenfold import assets

    absent = [f"{name} {state}" for name, state in assets.status().items() if not state.startswith("found")]
    return absent[0].partition(". Install it")[0] if absent else None


def pytest_report_header() -> str:
    cpu = _native.cpu
    return ", ".join(
        [
            f"tenfold: torch {torch.__version__}",
            f"instruction sets {' '.join(cpu.isa_available())}",
            f"in use {cpu.isa_used()}",
            f"CUDA {'device found' if torch.cuda.is_available() else 'without device'}",
            f"TRITON_INTERPRET={os.environ.get('TRITON_INTERPRET', '')}",
        ]
    )
