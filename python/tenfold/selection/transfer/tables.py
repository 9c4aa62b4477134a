"""Numbers of a run as rows: methods at each pruning ratio, gains over controls, what was kept, health."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tenfold._statistics import bootstrap_mean
from tenfold.selection.transfer.methods import METHODS
from tenfold.selection.transfer.rankings import kept_count
from tenfold.selection.transfer.run import Outcome, Trial

__all__ = [
    "Summary", "cells", "controls", "difference", "health_rows", "kept_rows", "metrics", "ours", "rows",
    "summary", "trial_rows",
]  # fmt: skip

CONTROLS = ("random", "lm-reverse", "random-samples", "moderate", "el2n")
"""What a mapping is held against, if they were run."""


@dataclass(frozen=True)
class Summary:
    """A method at a ratio: accuracy in [0, 1] over seeds (random draws of a seed averaged first), standard
    deviation over seeds (NaN with one), 95 % bootstrap interval over test images, and what it cost."""

    mean: float
    deviation: float
    low: float
    high: float
    images: float
    steps: float
    seconds: float


def title(method: str) -> str:
    """How a method is called."""
    return METHODS[method].title


def ratios_of(outcome: Outcome, method: str) -> list[float]:
    """Ratios at which a method was run: 0 for what prunes nothing."""
    return [0.0] if METHODS[method].unit == "all" else list(outcome.config.ratios)


def cells(outcome: Outcome) -> list[tuple[str, float]]:
    """Every (method, ratio) of the run."""
    return [(m, r) for m in outcome.config.methods for r in ratios_of(outcome, m)]


def by_seed(trials: list[Trial], kind: str) -> NDArray[np.float64]:
    """[seeds, test images]: share of a seed's draws that were right."""
    seeds = list(dict.fromkeys(t.job.seed for t in trials))
    return np.stack(
        [np.mean([t.hits[kind] for t in trials if t.job.seed == s], axis=0, dtype=float) for s in seeds]
    )


def summary(outcome: Outcome, method: str, ratio: float, kind: str = "lp") -> Summary:
    """Of one cell."""
    trials = outcome.of(method, ratio)
    values = by_seed(trials, kind)
    low, high = bootstrap_mean(values.mean(0))
    each = values.mean(1)
    cost = [np.mean([getattr(t.figures, n) for t in trials]) for n in ("images", "steps", "seconds")]
    return Summary(
        float(each.mean()), float(np.std(each, ddof=1)) if len(each) > 1 else math.nan, low, high,
        *map(float, cost),
    )  # fmt: skip


def difference(
    outcome: Outcome, method: str, other: str, ratio: float, kind: str = "lp"
) -> tuple[float, float, float]:
    """Accuracy of `method` minus `other` at a ratio, with its 95 % interval over test images, paired."""
    there = 0.0 if METHODS[other].unit == "all" else ratio
    d = by_seed(outcome.of(method, ratio), kind).mean(0) - by_seed(outcome.of(other, there), kind).mean(0)
    return float(d.mean()), *bootstrap_mean(d)


def ours(outcome: Outcome) -> list[str]:
    """The methods of the run that look at the target and are no controls."""
    return [m for m in outcome.config.methods if m in ("lm", "fm", "fm-kmeans", "ffmm", "cmt", "cmt-median")]


def controls(outcome: Outcome) -> list[str]:
    """The controls that were run."""
    return [m for m in CONTROLS if m in outcome.config.methods]


def overhead(outcome: Outcome, method: str) -> float:
    """Processor seconds of the surrogate, its passes over the images and the ranking, mean over seeds."""
    if not METHODS[method].needs:
        return 0.0
    parts = [
        s.state["surrogate_seconds"] + s.state["features_seconds"] + s.state["ranking_seconds"][method]
        for s in outcome.surveys
    ]
    return float(np.mean(parts))


def rows(outcome: Outcome) -> list[dict[str, Any]]:
    """One row per method and ratio: accuracies in percent, images, steps, time with the surrogate's."""
    full = (
        summary(outcome, "none", 0.0, outcome.config.evaluate[0])
        if "none" in outcome.config.methods
        else None
    )
    made = []
    for method, ratio in cells(outcome):
        row: dict[str, Any] = {"method": title(method), "pruned %": round(100 * ratio)}
        for kind in outcome.config.evaluate:
            s = summary(outcome, method, ratio, kind)
            spread = "" if math.isnan(s.deviation) else f" ± {100 * s.deviation:.1f}"
            row[f"{kind.upper()} %"] = f"{100 * s.mean:.1f}{spread}"
        row |= {"images": round(s.images), "steps": round(s.steps), "seconds": round(s.seconds, 2)}
        if full is not None and s.steps and method != "none":
            row["steps saved"] = f"{full.steps / s.steps:.2f}x"
            row["with surrogate"] = f"{full.seconds / (s.seconds + overhead(outcome, method)):.2f}x"
        made.append(row)
    return made


def gain_rows(outcome: Outcome, kind: str) -> list[dict[str, Any]]:
    """Every mapping against the whole source and each control, at each ratio."""
    others = [m for m in ("none", *controls(outcome)) if m in outcome.config.methods]
    made = []
    for method in ours(outcome):
        for ratio in outcome.config.ratios:
            row: dict[str, Any] = {"method": title(method), "pruned %": round(100 * ratio)}
            for other in others:
                d, low, high = difference(outcome, method, other, ratio, kind)
                row[f"minus {title(other)}"] = f"{100 * d:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
            made.append(row)
    return made


def trial_rows(outcome: Outcome) -> list[dict[str, Any]]:
    """Every training."""
    names = ("images", "classes", "steps", "seconds", "loss", "lp", "ff", "ff_best")
    return [
        {"method": t.job.method, "ratio": t.job.ratio, "seed": t.job.seed, "draw": t.job.draw}
        | {n: _blank(getattr(t.figures, n)) for n in names}
        for t in outcome.trials
    ]


def kept_rows(outcome: Outcome, method: str) -> list[dict[str, Any]]:
    """Source classes by votes: how many seeds keep each at every ratio, most votes first."""
    classes = outcome.task.source.classes
    with_votes = [s for s in outcome.surveys if f"votes/{method}" in s.tensors]
    if not with_votes or len(with_votes[0].tensors[f"votes/{method}"]) != len(classes):
        return []
    votes = np.mean([s.tensors[f"votes/{method}"].numpy() for s in with_votes], axis=0)
    orders = [s.tensors[f"order/{method}"].numpy() for s in with_votes]
    made = []
    for c in np.argsort(-votes, kind="stable"):
        row: dict[str, Any] = {"class": classes[c], "votes": round(float(votes[c]), 1)}
        for ratio in outcome.config.ratios:
            m = kept_count(len(classes), ratio)
            row[f"kept at {round(100 * ratio)} %"] = f"{sum(c in o[:m] for o in orders)} of {len(orders)}"
        made.append(row)
    return made


def health_rows(outcome: Outcome) -> list[dict[str, Any]]:
    """Figures of the mapping, a row per seed."""
    names = {
        "confidence": "confidence on target", "confidence_held_out": "on held-out source",
        "energy": "energy on target", "energy_held_out": "energy on held-out source",
        "unfamiliar": "unfamiliar share", "classes_used": "classes with votes",
        "effective_classes": "effective classes",
        "top_share": "votes in top tenth",
        "largest_share": "votes in top class", "consistency": "consistency", "agreement": "LM/FM correlation",
        "overlap": "LM/FM overlap at 50 %",
    }  # fmt: skip
    return [
        {"seed": s.seed, "surrogate accuracy": round(s.state["accuracy_held_out"], 3)}
        | {told: _blank(s.state["health"][name], 3) for name, told in names.items()}
        | {"warnings": "; ".join(s.state["health"]["warnings"])}
        for s in outcome.surveys
    ]


def metrics(outcome: Outcome) -> dict[str, float | int]:
    """The flat numbers of metrics.json: METHOD.RATIO.KIND and so on."""
    found: dict[str, float | int] = {
        "source.images": len(outcome.task.source), "source.classes": len(outcome.task.source.classes),
        "target.classes": len(outcome.task.target.classes), "test.images": len(outcome.task.test),
        "trainings": len(outcome.trials),
    }  # fmt: skip
    for name in ("surrogate_seconds", "features_seconds"):
        found[name.replace("_", ".")] = float(np.mean([s.state[name] for s in outcome.surveys]))
    for method, ratio in cells(outcome):
        at = f"{method}.{round(100 * ratio)}"
        for kind in outcome.config.evaluate:
            s = summary(outcome, method, ratio, kind)
            found |= {f"{at}.{kind}": s.mean, f"{at}.{kind}_low": s.low, f"{at}.{kind}_high": s.high}
            if not math.isnan(s.deviation):
                found[f"{at}.{kind}_sd"] = s.deviation
        found |= {f"{at}.images": s.images, f"{at}.steps": s.steps, f"{at}.seconds": s.seconds}
    for one in outcome.surveys:
        for name, value in one.state["health"].items():
            if isinstance(value, (int, float)) and not math.isnan(value):
                found[f"health.{one.seed}.{name}"] = value
    found["health.warnings"] = sum(len(s.state["health"]["warnings"]) for s in outcome.surveys)
    return found


def _blank(value: Any, digits: int | None = None) -> Any:
    if isinstance(value, float) and math.isnan(value):
        return ""
    return round(value, digits) if digits is not None and isinstance(value, float) else value
