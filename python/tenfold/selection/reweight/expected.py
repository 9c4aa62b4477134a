"""What the embedded default was expected to show, written down before it was run.

The thresholds are those of a prototype of the method on the same digits, with room for other draws.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tenfold.selection.reweight import tables
from tenfold.selection.reweight.config import CwermConfig
from tenfold.selection.reweight.run import Outcome

__all__ = ["Check", "checks"]

SAME = (
    "dataset", "model", "meta_model", "extractor", "features", "coreset", "ratio", "neighbours", "weights",
    "meta", "epochs", "batch", "lr", "weight_decay", "clamp", "precision", "meta_epochs", "meta_batch",
    "meta_lr", "meta_weight_decay", "meta_interval", "meta_normalise", "compat",
)  # fmt: skip
"""Settings in which a run is the embedded default; others were not thought about."""

NOISE, MEMORY, CLEAN = "symmetric:0.4", "symmetric:0.4+wd=0+epochs=100", "clean"


@dataclass(frozen=True)
class Check:
    """One expectation: what, at least or at most how much, and what was found (in `unit`)."""

    what: str
    bound: float
    found: float
    unit: str = "points"
    most: bool = False

    @property
    def holds(self) -> bool:
        """A bound that is met exactly holds."""
        return self.found <= self.bound if self.most else self.found >= self.bound

    @property
    def told(self) -> str:
        """What was found, for people."""
        return f"{self.found:.1f} {self.unit}"

    def row(self) -> dict[str, Any]:
        """Of the table."""
        bound = f"{'at most' if self.most else 'at least'} {self.bound:g} {self.unit}"
        return {
            "what": self.what,
            "expected": bound,
            "found": self.told,
            "holds": "yes" if self.holds else "no",
        }


def checks(outcome: Outcome) -> list[Check]:
    """Of a run of the embedded default, as far as it has the problems and methods; else none."""
    config, usual = outcome.config, CwermConfig().resolved()
    if any(getattr(config, name) != getattr(usual, name) for name in SAME):
        return []
    where = {text: k for k, text in enumerate(config.settings)}
    found: list[Check] = []
    for text, what, bound, most, value in (
        (NOISE, "CW-ERM above ERM, 40 % noise", 3.0, False, _gap("cw-erm", "erm")),
        (NOISE, "CW-ERM to its constant control, either way", 1.5, True,
         _gap("cw-erm", "cw-erm-constant", True)),
        (NOISE, "moderate coreset alone above a random one", 8.0, False, _gap("c-moderate", "c-random")),
        (NOISE, "right labels: moderate coreset above all rows", 12.0, False, _purity),
        (NOISE, "label-aware above ERM, 40 % noise", 3.0, False, _gap("label-aware-normalised", "erm")),
        (MEMORY, "label-aware above ERM where noise is memorised", 10.0, False,
         _gap("label-aware-normalised", "erm")),
        (CLEAN, "CW-ERM to ERM with clean labels, either way", 0.7, True, _gap("cw-erm", "erm", True)),
    ):  # fmt: skip
        got = value(outcome, where[text]) if text in where else None
        if got is not None:
            found.append(Check(what, bound, got, most=most))
    whole = tables.learning_seconds(outcome, True, where.get(NOISE, 0))
    if whole is not None and config.settings[0] == NOISE:
        ratio = whole / tables.reweighting_seconds(outcome)
        found.append(Check("reweighting on all rows, in time of that on the coreset", 5.0, ratio, "times"))
    return found


def _gap(a: str, b: str, either: bool = False) -> Callable[[Outcome, int], float | None]:
    """Mean over seeds of a - b in points; None where one of them was not trained."""

    def value(outcome: Outcome, setting: int) -> float | None:
        names = [arm.name for arm in outcome.config.arms(setting)]
        if a not in names or b not in names:
            return None
        mean = 100 * tables.difference(outcome, a, b, setting).mean
        return abs(mean) if either else mean

    return value


def _purity(outcome: Outcome, setting: int) -> float | None:
    states = [outcome.coreset(setting, s).state["purity"] for s in outcome.config.seeds]
    return 100 * float(np.mean([s["moderate"] - s["data"] for s in states]))
