"""What MS-DCDA's abstract leaves open, every choice by name, and the few numbers that other methods share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tenfold import _checks

__all__ = ["Options"]

_CHOICES = {
    "share": ("branches", "halves"),
    "coarse": ("mk", "linear", "none"),
    "tau": ("dwl", "fixed", "none"),
    "labels": ("argmax", "ensemble", "cluster"),
    "predict": ("mean", "ensemble", "weighted"),
}


@dataclass(frozen=True)
class Options:
    """Choices of a method. The defaults are MS-DCDA's first reconstruction, fixed before anything was run."""

    weight: float | None = None
    """Factor of all adaptation terms beside lambda(p). None: 0.5 for DSAN, else 1."""

    kernels: int = 5
    """Gaussian kernels of a discrepancy."""

    mul: float = 2.0
    """Ratio of one kernel's width to the next."""

    individual: bool = True
    """MS-DCDA: a branch for each source."""

    ensemble: bool = True
    """MS-DCDA: a branch for all sources together."""

    share: Literal["branches", "halves"] = "branches"
    """MS-DCDA: in means all branches count alike, or the ensemble branch as much as all others together."""

    coarse: Literal["mk", "linear", "none"] = "mk"
    """MS-DCDA: discrepancy of whole domains with Gaussian kernels, with the linear one, or none."""

    intra: float = 1.0
    """MS-DCDA: factor of the discrepancy within classes."""

    inter: float = 1.0
    """MS-DCDA: factor (beta) of the discrepancy between classes, which is made larger."""

    tau: Literal["dwl", "fixed", "none"] = "dwl"
    """MS-DCDA: weight between coarse and class-wise terms: moving, fixed, or none (both whole)."""

    tau_value: float = 0.5
    """MS-DCDA: tau when it is fixed, and as long as the moving one has nothing to go by."""

    labels: Literal["argmax", "ensemble", "cluster"] = "argmax"
    """MS-DCDA: the target's classes: the prediction's, the ensemble branch's, or by spherical k-means."""

    confidence: float = 0.0
    """MS-DCDA: target rows with less probability (of cluster: less similarity) have no class."""

    warm: float = 0.0
    """MS-DCDA: share of the steps before the class-wise terms begin."""

    min_count: int = 2
    """MS-DCDA: rows on either side that a pair of classes needs to count."""

    predict: Literal["mean", "ensemble", "weighted"] = "mean"
    """With branches: all alike, the ensemble branch alone (MS-DCDA), or by exp(-MMD^2 / temperature)."""

    temperature: float = 0.1
    """Of predict=weighted."""

    agreement: float = 0.01
    """MS-MDA: factor of the disagreement between branches."""

    def __post_init__(self) -> None:
        for name, known in _CHOICES.items():
            _checks.choice(name, getattr(self, name), known)
        for name in ("intra", "inter", "agreement"):
            _checks.real(name, getattr(self, name), at_least=0.0)
        for name in ("tau_value", "confidence", "warm"):
            value = _checks.real(name, getattr(self, name), at_least=0.0)
            if value > 1:
                _checks.fail(ValueError, name, "a number in [0, 1]", value)
        for name in ("mul", "temperature"):
            _checks.real(name, getattr(self, name), positive=True)
        if self.weight is not None:
            _checks.real("weight", self.weight, at_least=0.0)
        _checks.integer("kernels", self.kernels, 1, 32)
        _checks.integer("min_count", self.min_count, 1, 2**31 - 1)
        if not (self.individual or self.ensemble):
            _checks.fail(ValueError, "individual and ensemble", "at least one", "neither")
        if not self.ensemble and "ensemble" in (self.labels, self.predict):
            got = f"labels={self.labels!r}, predict={self.predict!r}"
            _checks.fail(ValueError, "labels and predict", "another than 'ensemble' without that branch", got)
