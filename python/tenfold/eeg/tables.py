"""Numbers of a run as rows: methods, targets, pairs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tenfold.eeg.run import Outcome
from tenfold.eeg.statistics import Comparison, compare, holm, interval
from tenfold.eeg.study import CHOSEN_ON

__all__ = [
    "Summary", "against", "baselines", "mean_confusion", "method_rows", "numbers", "pair_rows", "seen",
    "summary",
    "target_rows",
]  # fmt: skip

BASE, OURS, REVISED = "source-only", "ms-dcda", "ms-dcda-revised"


@dataclass(frozen=True)
class Summary:
    """Accuracy of one method, in [0, 1].

    Attributes:
        mean: over targets, seeds averaged first.
        low, high: 95 % bootstrap interval over target subjects.
        over_targets: standard deviation over target subjects.
        over_seeds: standard deviation over seeds of the mean over targets; NaN with one seed.
        collapsed: share of trainings that learned nothing; above none, the method is left out of comparisons.
    """

    mean: float
    low: float
    high: float
    over_targets: float
    over_seeds: float
    collapsed: float


def title(outcome: Outcome, name: str) -> str:
    """How a method is called."""
    return outcome.config.method(name).title


def summary(outcome: Outcome, name: str, score: str = "accuracy") -> Summary:
    """Of one method."""
    values = outcome.by_subject(name, score)
    low, high = interval(values)
    seeds = outcome.table(name, score).mean(0)
    return Summary(
        float(values.mean()), low, high, _deviation(values), _deviation(seeds),
        outcome.collapsed(name) / len(outcome.of(name)),
    )  # fmt: skip


def _deviation(values: Any) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")


def compared(outcome: Outcome) -> list[str]:
    """Methods none of whose trainings collapsed: the others say nothing about adaptation."""
    return [name for name in outcome.config.methods if not outcome.collapsed(name)]


def against(outcome: Outcome, base: str = BASE) -> dict[str, tuple[Comparison, float]]:
    """Method -> (its comparison with `base`, p after Holm); collapsed methods are left out."""
    names = compared(outcome)
    if base not in names:
        return {}
    b = outcome.by_subject(base)
    found = {name: compare(outcome.by_subject(name), b) for name in names if name != base}
    adjusted = holm({name: c.p for name, c in found.items()})
    return {name: (c, adjusted[name]) for name, c in found.items()}


def method_rows(outcome: Outcome) -> list[dict[str, Any]]:
    """One row per method, in percent."""
    rows = []
    for name in outcome.config.methods:
        s = summary(outcome, name)
        row = {
            "method": title(outcome, name), "accuracy %": _percent(s.mean),
            "95 % interval": f"{100 * s.low:.1f} to {100 * s.high:.1f}",
            "± targets": _percent(s.over_targets), "± seeds": _percent(s.over_seeds),
            "macro-F1 %": _percent(float(outcome.by_subject(name, "macro_f1").mean())),
            "on sources %": _percent(float(outcome.by_subject(name, "source_accuracy").mean())),
        }  # fmt: skip
        if any(outcome.collapsed(n) for n in outcome.config.methods):
            row["collapsed"] = outcome.collapsed(name)
        rows.append(row)
    return rows


def geometry_rows(outcome: Outcome) -> list[dict[str, Any]]:
    """What the features look like, and what a training cost."""
    rows = []
    for name in outcome.config.methods:
        mean = {
            key: float(outcome.by_subject(name, key).mean())
            for key in ("margin", "compactness", "a_distance", "seconds")
        }
        rows.append(
            {
                "method": title(outcome, name), "between classes": round(mean["margin"], 3),
                "to own class": round(mean["compactness"], 3),
                "ratio": round(mean["margin"] / max(mean["compactness"], 1e-12), 2),
                "proxy A-distance": round(mean["a_distance"], 2),
                "processor s": round(mean["seconds"], 2),
            }
        )  # fmt: skip
    return rows


def target_rows(outcome: Outcome) -> list[dict[str, Any]]:
    """One row per fold: accuracy of every method in percent, seeds averaged."""
    tables = {name: outcome.table(name).mean(1) for name in outcome.config.methods}
    return [
        {"target": outcome.folds[number].target.name}
        | {title(outcome, name): _percent(float(tables[name][row])) for name in outcome.config.methods}
        for row, number in enumerate(outcome.numbers)
    ]


def trial_rows(outcome: Outcome) -> list[dict[str, Any]]:
    """Every training."""
    return [
        {"method": t.method, "target": outcome.folds[t.fold].target.name, "seed": t.seed}
        | {k: v for k, v in t.scores.plain().items() if k != "confusion"}
        for t in outcome.trials
    ]


def pair_rows(outcome: Outcome, base: str) -> list[dict[str, Any]]:
    """Every method against `base`."""
    return [
        {
            "method": title(outcome, name), f"minus {title(outcome, base)}": f"{100 * c.difference:+.1f}",
            "95 % interval": f"{100 * c.low:+.1f} to {100 * c.high:+.1f}",
            "better / equal / worse": f"{c.wins} / {c.ties} / {c.targets - c.wins - c.ties}",
            "Wilcoxon p": f"{c.p:.2g}", "p (Holm)": f"{p:.2g}",
        }
        for name, (c, p) in against(outcome, base).items()
    ]  # fmt: skip


def mean_confusion(outcome: Outcome, name: str) -> Any:
    """Counts over all folds and seeds, [C, C]."""
    return np.sum([t.scores.confusion for t in outcome.of(name)], axis=0)


def baselines(outcome: Outcome) -> list[str]:
    """The methods that are not MS-DCDA's or variants of it, and not source-only; none that collapsed."""
    return [n for n in compared(outcome) if outcome.config.method(n).heads != "options" and n != BASE]


def seen(outcome: Outcome) -> list[str]:
    """Methods for pictures: source-only, the best other method, and both forms of MS-DCDA."""
    names = outcome.config.methods
    others = baselines(outcome)
    best = [max(others, key=lambda n: summary(outcome, n).mean)] if others else []
    found = [n for n in (BASE, *best, OURS, REVISED) if n in names]
    return found or names[:3]


def numbers(outcome: Outcome) -> dict[str, float | int]:
    """The flat numbers of metrics.json."""
    found: dict[str, float | int] = {
        "classes": len(outcome.corpus.classes), "folds": len(outcome.numbers),
        "trainings": len(outcome.trials),
    }  # fmt: skip
    for name in outcome.config.methods:
        s = summary(outcome, name)
        found |= {
            f"{name}.accuracy": s.mean, f"{name}.accuracy_low": s.low, f"{name}.accuracy_high": s.high,
            f"{name}.macro_f1": float(outcome.by_subject(name, "macro_f1").mean()),
            f"{name}.source_accuracy": float(outcome.by_subject(name, "source_accuracy").mean()),
            f"{name}.collapsed": outcome.collapsed(name),
            f"{name}.seconds": float(outcome.table(name, "seconds").mean()),
        }  # fmt: skip
        for key, value in (("std_targets", s.over_targets), ("std_seeds", s.over_seeds)):
            if value == value:
                found[f"{name}.{key}"] = value
    for name, (c, p) in against(outcome).items():
        found |= {f"{name}.gain": c.difference, f"{name}.gain_low": c.low, f"{name}.gain_high": c.high}
        if p == p:
            found[f"{name}.gain_p"] = p
    return found


def split_rows(outcome: Outcome, names: list[str], best: str | None) -> list[dict[str, Any]]:
    """Accuracy on the targets that choices were made with, and on the others, there also against `best`."""
    rows = []
    unseen = [row for row, k in enumerate(outcome.numbers) if k not in CHOSEN_ON[1]]
    used = [row for row, k in enumerate(outcome.numbers) if k in CHOSEN_ON[1]]
    for name in names:
        values = outcome.table(name).mean(1)
        row: dict[str, Any] = {"method": title(outcome, name)}
        row["0 to 7 %"] = _percent(float(values[used].mean())) if used else ""
        row["8 to 14 %"] = _percent(float(values[unseen].mean()))
        if best is not None and name != best:
            c = compare(values[unseen], outcome.table(best).mean(1)[unseen])
            row[f"8 to 14: minus {title(outcome, best)}"] = f"{100 * c.difference:+.1f}"
            row["95 % interval"] = f"{100 * c.low:+.1f} to {100 * c.high:+.1f}"
            row["better / equal / worse"] = f"{c.wins} / {c.ties} / {c.targets - c.wins - c.ties}"
        rows.append(row)
    return rows


def _percent(value: float) -> Any:
    return "" if value != value else round(100 * value, 1)
