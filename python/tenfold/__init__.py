"""Tenfold: the hot cores of ten published machine-learning systems as fast PyTorch ops and whole workflows.

    import tenfold
    tenfold.ops        functions on tensors, with CPU, CUDA and Triton kernels
    tenfold.optim      optimizers
    tenfold.nn         losses
    tenfold.metrics    metrics
    tenfold.llm        workflows on language models; others in diffusion, selection, eeg, segmentation, semcom

Submodules are loaded when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import diffusion as diffusion
    from . import doctor as doctor
    from . import eeg as eeg
    from . import llm as llm
    from . import metrics as metrics
    from . import nn as nn
    from . import ops as ops
    from . import optim as optim
    from . import runs as runs
    from . import segmentation as segmentation
    from . import selection as selection
    from . import semcom as semcom
    from ._backend import PerformanceWarning, use_backend

__version__ = "0.1.0"
__all__ = ["PerformanceWarning", "__version__", "use_backend"]
"""Without the submodules, all of which `from tenfold import *` would load."""

_SUBMODULES = (
    "diffusion", "doctor", "eeg", "llm", "metrics", "nn", "ops", "optim", "runs", "segmentation", "selection",
    "semcom",
)  # fmt: skip
_BACKEND_NAMES = ("PerformanceWarning", "use_backend")


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return import_module(f".{name}", __name__)
    if name in _BACKEND_NAMES:
        return getattr(import_module("._backend", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted((*__all__, *_SUBMODULES))
