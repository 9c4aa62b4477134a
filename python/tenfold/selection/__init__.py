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
    from tenfold.selection.base import Selector
    from tenfold.selection.budgets import budget_size, class_budgets
    from tenfold.selection.coverage import FacilityLocation, GraphCut, LogDeterminant
    from tenfold.selection.dynamics import Recorder
    from tenfold.selection.embedding import Embedding, embed
    from tenfold.selection.geometry import (
        SSP,
        ContextualDiversity,
        Herding,
        KCenterGreedy,
        KMeansCoreset,
        Moderate,
        Random,
    )
    from tenfold.selection.gradients import CRAIG, Glister, GradMatch, grand_scores
    from tenfold.selection.inputs import gather
    from tenfold.selection.methods import METHODS, make, select
    from tenfold.selection.result import Selection, SelectionSampler, WeightedSubset
    from tenfold.selection.scores import (
        AUM,
        EL2N,
        Correctness,
        Entropy,
        Forgetting,
        GraNd,
        LeastConfidence,
        Loss,
        Margin,
        Memorization,
        Scored,
    )
    from tenfold.selection.strata import CCS, D2, Cal

_HOMES = {
    "Embedding": "embedding",
    "embed": "embedding",
    "AUM": "scores",
    "CCS": "strata",
    "CRAIG": "gradients",
    "Cal": "strata",
    "ContextualDiversity": "geometry",
    "Correctness": "scores",
    "D2": "strata",
    "EL2N": "scores",
    "Entropy": "scores",
    "FacilityLocation": "coverage",
    "Forgetting": "scores",
    "Glister": "gradients",
    "GraNd": "scores",
    "GradMatch": "gradients",
    "GraphCut": "coverage",
    "Herding": "geometry",
    "KCenterGreedy": "geometry",
    "KMeansCoreset": "geometry",
    "LeastConfidence": "scores",
    "LogDeterminant": "coverage",
    "Loss": "scores",
    "METHODS": "methods",
    "Margin": "scores",
    "Memorization": "scores",
    "Moderate": "geometry",
    "Random": "geometry",
    "Recorder": "dynamics",
    "SSP": "geometry",
    "Scored": "scores",
    "Selection": "result",
    "SelectionSampler": "result",
    "Selector": "base",
    "WeightedSubset": "result",
    "budget_size": "budgets",
    "class_budgets": "budgets",
    "gather": "inputs",
    "grand_scores": "gradients",
    "make": "methods",
    "select": "methods",
}
"""Public name -> the module of this package that it lives in."""

_MODULES = ("compat", "files", "reweight", "sharded", "transfer")
"""Modules and sub-packages, loaded when they are first named."""

__all__ = [
    "AUM",
    "CCS",
    "CRAIG",
    "D2",
    "EL2N",
    "METHODS",
    "SSP",
    "Cal",
    "ContextualDiversity",
    "Correctness",
    "Embedding",
    "Entropy",
    "FacilityLocation",
    "Forgetting",
    "Glister",
    "GraNd",
    "GradMatch",
    "GraphCut",
    "Herding",
    "KCenterGreedy",
    "KMeansCoreset",
    "LeastConfidence",
    "LogDeterminant",
    "Loss",
    "Margin",
    "Memorization",
    "Moderate",
    "Random",
    "Recorder",
    "Scored",
    "Selection",
    "SelectionSampler",
    "Selector",
    "WeightedSubset",
    "budget_size",
    "class_budgets",
    "embed",
    "gather",
    "grand_scores",
    "make",
    "select",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    if name in _MODULES:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *_MODULES})
