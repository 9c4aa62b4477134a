"""All selectors by name, and `select`, which makes, fits and asks one in a single call."""

from __future__ import annotations

from typing import Any

from tenfold import _checks
from tenfold.selection import coverage, geometry, gradients, scores, strata
from tenfold.selection.base import Selector
from tenfold.selection.result import Selection

__all__ = ["METHODS", "make", "select"]

METHODS: dict[str, type[Selector]] = {
    kind.method: kind
    for kind in (
        geometry.Random,
        geometry.KCenterGreedy,
        geometry.KMeansCoreset,
        geometry.SSP,
        geometry.Herding,
        geometry.Moderate,
        geometry.ContextualDiversity,
        coverage.FacilityLocation,
        coverage.GraphCut,
        coverage.LogDeterminant,
        gradients.CRAIG,
        gradients.GradMatch,
        gradients.Glister,
        scores.EL2N,
        scores.GraNd,
        scores.Loss,
        scores.Entropy,
        scores.Margin,
        scores.LeastConfidence,
        scores.AUM,
        scores.Correctness,
        scores.Forgetting,
        scores.Memorization,
        scores.Scored,
        strata.CCS,
        strata.D2,
        strata.Cal,
    )
}
"""Name -> selector."""


def make(method: str, **options: Any) -> Selector:
    """A selector by name. ValueError for a name or an option that there is not."""
    _checks.choice("method", method, tuple(METHODS))
    return METHODS[method]().set_params(**options)


def select(
    method: str,
    features: Any = None,
    logits: Any = None,
    labels: Any = None,
    *,
    k: int | None = None,
    ratio: float | None = None,
    balanced: bool | str = False,
    seed: int = 0,
    scores: Any = None,
    dynamics: Any = None,
    validation: Any = None,
    **options: Any,
) -> Selection:
    """Choose rows by a method's name: one call for `METHODS[method](...).fit(...).select(...)`.

    Args:
        method: "kcenter", "facility_location", "moderate", "el2n", ...: the names in `METHODS`.
        features, logits, labels, scores, dynamics, validation: as `Selector.fit` takes X, logits, y, ...
        k: how many rows, or
        ratio: which share of them, in (0, 1]: floor(ratio N + 1/2) rows.
        balanced: choose within each class.
        seed: of whatever is drawn.
        options: parameters of the method.

    Returns:
        Selection.

    Raises:
        TypeError, ValueError: an unknown method or option, both or none of k and ratio, and what `fit` and
            `select` refuse.
    """
    if (k is None) == (ratio is None):
        _checks.fail(ValueError, "k", "either k or ratio", "none" if k is None else "both")
    if k is not None:
        budget: Any = _checks.integer("k", k, 0, 2**62)
    else:
        budget = _checks.real("ratio", ratio, positive=True)
    selector = make(method, balanced=balanced, seed=seed, **options)
    data = {"logits": logits, "scores": scores, "dynamics": dynamics, "validation": validation}
    return selector.fit(features, labels, **data).select(budget)
