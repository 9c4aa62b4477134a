"""Which peers are installed, and what to install for those that are not."""

from __future__ import annotations

from importlib.metadata import version
from importlib.util import find_spec

__all__ = ["missing", "version_of"]

_EXTRAS = {
    "bench": ("entmax", "pytorch_msssim", "scipy", "skimage", "torchmetrics", "transformers"),
    "bench-seg": ("SimpleITK", "edt", "medpy", "monai", "surface_distance"),
}
_PACKAGES = {
    "PIL": "pillow",
    "sklearn": "scikit-learn",
    "apricot": "apricot-select",
    "cc3d": "connected-components-3d",
    "faiss": "faiss-cpu",
    "liger_kernel": "liger-kernel",
    "pytorch_adapt": "pytorch-adapt",
    "pytorch_msssim": "pytorch-msssim",
    "pytorch_optimizer": "pytorch-optimizer",
    "skimage": "scikit-image",
    "submodlib": "submodlib-py",
    "surface_distance": "surface-distance",
}
"""What a module's package is called, where the two differ."""


def missing(*modules: str) -> str | None:
    """Why peers cannot run: which of their modules is not installed, and how to get it."""
    absent = next((module for module in modules if not find_spec(module)), None)
    if absent is None:
        return None
    extra = next((extra for extra, held in _EXTRAS.items() if absent in held), None)
    how = f"in the checkout: pip install '.[{extra}]'" if extra else f"pip install {_package(absent)}"
    return f"{absent} is not installed ({how})"


def version_of(module: str) -> str:
    """The version of a module's package; nothing where it is not installed."""
    return version(_package(module)) if find_spec(module) else ""


def _package(module: str) -> str:
    return _PACKAGES.get(module, module)
