"""Choosing the samples that matter: coreset selection with one interface for every method.

    from tenfold import selection

    chosen = selection.select("kcenter", features, k=500)          # a Selection
    chosen = selection.FacilityLocation(balanced=True).fit(features, labels).select(0.1)
    chosen.subset(dataset), chosen.sampler(weighted=True), chosen.save("kept.npz")

Needs torch and numpy; modules load when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tenfold.selection.result import Selection, SelectionSampler, WeightedSubset

_HOMES = {
    "Selection": "result",
    "SelectionSampler": "result",
    "WeightedSubset": "result",
}
"""Public name -> the module of this package that it lives in."""

_MODULES = ("reweight", "transfer")
"""Sub-packages, loaded when they are first named."""

__all__ = ["Selection", "SelectionSampler", "WeightedSubset"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    if name in _MODULES:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *_MODULES})
