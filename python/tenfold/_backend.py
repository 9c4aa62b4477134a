"""Which implementation of an op runs: CPU, CUDA, Triton, or the plain PyTorch reference.

By default the best one there is for the tensors' device. `use_backend(NAME)` or the environment variable
TENFOLD_BACKEND forces one; a forced backend that an op or device does not have is an error, never a detour.
"""

from __future__ import annotations

import os
import warnings
from types import TracebackType

from . import _checks, _native

BACKENDS = ("cpu", "cuda", "triton", "reference")

OPS: dict[str, tuple[str, ...]] = {}
"""Op name -> the backends it is written for. Each module of tenfold.ops adds its own."""

PREFERENCE = {"cpu": ("cpu", "reference"), "cuda": ("cuda", "triton", "reference")}
"""Device type -> backends tried in this order; other devices get the reference."""


class PerformanceWarning(UserWarning):
    """An op runs as the plain PyTorch reference because no native backend is available."""


_forced: str | None = None
_warned: set[tuple[str, str]] = set()


def _from_environment() -> str | None:
    name = os.environ.get("TENFOLD_BACKEND", "").strip()
    return _checks.choice("TENFOLD_BACKEND", name, BACKENDS) if name and name != "auto" else None


class use_backend:
    """Force one backend: `tenfold.use_backend("triton")` from here on, or as a context manager for a block.

    `"auto"` returns to the default choice. The setting holds for the whole process.

    Raises:
        ValueError: the name is none of "auto", "cpu", "cuda", "triton", "reference".
    """

    def __init__(self, name: str) -> None:
        global _forced
        _checks.choice("use_backend", name, ("auto", *BACKENDS))
        self._before = _forced
        _forced = name

    def __enter__(self) -> use_backend:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        global _forced
        _forced = self._before


def forced_backend() -> str | None:
    """The backend forced by use_backend or TENFOLD_BACKEND, or None."""
    if _forced is not None:
        return None if _forced == "auto" else _forced
    return _from_environment()


def why_not(backend: str, device_type: str) -> str | None:
    """Why `backend` cannot serve tensors on `device_type` here, or None when it can."""
    if backend == "reference":
        return None
    if backend == "cpu":
        return None if device_type == "cpu" else "the cpu backend needs tensors on the CPU"
    if backend == "cuda":
        if device_type != "cuda":
            return "the cuda backend needs tensors on a CUDA device"
        return None if _native.cuda is not None else _native.cuda_why
    if not _has_triton():
        return "Triton is not installed (pip install triton)"
    if device_type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        return "Triton needs tensors on a GPU (on the CPU: its interpreter, TRITON_INTERPRET=1 at start)"
    return None


def _has_triton() -> bool:
    from importlib.util import find_spec

    return find_spec("triton") is not None


def chosen_backend(op: str, device_type: str) -> str:
    """The backend `op` takes for tensors on `device_type`.

    Raises:
        RuntimeError: a forced backend is not written for the op or cannot serve the device.
    """
    written = OPS[op]
    forced = forced_backend()
    if forced is not None:
        reason = f"it has {', '.join(written)}" if forced not in written else why_not(forced, device_type)
        if reason is not None:
            raise RuntimeError(f"tenfold.{op}: backend {forced!r} was forced, but {reason}")
        return forced
    for name in PREFERENCE.get(device_type, ("reference",)):
        if name in written and why_not(name, device_type) is None:
            break
    if name == "reference" and (op, device_type) not in _warned:
        _warned.add((op, device_type))
        reasons = [
            f"{b}: {why_not(b, device_type)}"
            for b in PREFERENCE.get(device_type, ())
            if b in written and b != "reference"
        ]
        detail = "; ".join(reasons) or f"no native backend is written for {device_type!r}"
        warnings.warn(
            f"tenfold.{op} runs as the slow PyTorch reference on {device_type!r}: {detail}",
            PerformanceWarning,
            stacklevel=3,
        )
    return name
