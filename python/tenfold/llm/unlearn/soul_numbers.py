"""Numbers and tables of a ``soul`` run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from tenfold.llm.unlearn import methods
from tenfold.llm.unlearn.curvature import FIRST_ORDER
from tenfold.llm.unlearn.soul import KEPT, Attempt, Outcome

__all__ = [
    "ORDER", "best", "by_figure", "collect", "evaluation_rows", "fall", "kept", "optimizer_name", "pair",
    "rate",
    "same_setting", "shown", "spread",
    "sweep_rows",
    "title", "win_rate",
]  # fmt: skip

OPTIMIZER_NAMES = {
    "adamw": "AdamW", "sophia": "Sophia (GNB)", "sophia-h": "Sophia-H", "empirical-fisher": "Sophia (emp. "
    "Fisher)",
    "liuhong99": "SophiaG (published)", "soul-legacy": "SOUL's optimizer", "sign": "sign-momentum",
}  # fmt: skip
SOLVER_NAMES = {
    "diag": "diagonal (GNB)", "cg": "conjugate gradients", "lissa": "LiSSA", "woodfisher": "WoodFisher",
    "woodfisher-legacy": "WoodFisher (in circulation)",
}  # fmt: skip
ORDER = {
    name: "first order" if name in FIRST_ORDER else "second order" for name in OPTIMIZER_NAMES
} | dict.fromkeys(SOLVER_NAMES, "one shot")
OPTIMIZER_NAMES |= SOLVER_NAMES

ONE_SHOT = ("damp", "iterations", "residual", "slope", "forget_predicted", "retain_predicted",
"forget_before",
            "retain_before", "forget", "retain")  # fmt: skip
"""Numbers of a step of influence unlearning that go into ``metrics.json``."""

EVALUATION = {
    "forget_quality": "forget quality (p)", "forget_quality_log10": "log10 p", "model_utility": "model "
    "utility",
    "forget_prob": "forget prob", "forget_rougeL_recall": "forget ROUGE-L", "forget_key_accuracy": "forget "
    "key found",
    "forget_truth_ratio": "forget truth ratio", "forget_extraction_strength": "forget ES",
    "mia_min_k": "MIA Min-K AUC", "forget_base_logprob": "readability", "forget_repetition": "repetition",
    "retain_prob": "retain prob", "retain_rougeL_recall": "retain ROUGE-L", "retain_truth_ratio": "retain "
    "truth ratio",
    "world_facts_rougeL_recall": "facts ROUGE-L", "world_facts_prob": "facts prob",
    "soul_forget_quality": "SOUL's forget quality",
}  # fmt: skip
"""Name in an evaluation -> column of the table."""


def title(attempt: Attempt) -> str:
    """Method and optimizer in words."""
    return f"{methods.find(attempt.job.method).title}, {optimizer_name(attempt)}"


def optimizer_name(attempt: Attempt) -> str:
    """Of the optimizer, or of the solver of influence unlearning."""
    return OPTIMIZER_NAMES[attempt.job.optimizer]


def rate(attempt: Attempt) -> str:
    """``lr 0.0003``, or ``alpha 2``."""
    return f"{'alpha' if attempt.job.method == 'iu' else 'lr'} {attempt.job.lr:g}"


def win_rate(attempt: Attempt) -> float:
    """Mean over the steps of the share of coordinates that were not clipped; NaN for AdamW."""
    return _mean(row["win_rate"] for row in attempt.history.steps if "win_rate" in row)


def fall(outcome: Outcome, attempt: Attempt) -> float:
    """How many times the probability of the forget answers went down."""
    return outcome.before["forget"] / max(attempt.probability["forget"], 1e-12)


def kept(outcome: Outcome, attempt: Attempt) -> float:
    """Share of the retain probability that is left."""
    return attempt.probability["retain"] / outcome.before["retain"]


def best(outcome: Outcome, optimizers: Iterable[str] | None = None) -> Attempt | None:
    """Of the chosen runs the one that forgets most while it keeps enough of the retain set, or None.

    Runs with a whole evaluation only, where there are any.
    """
    wanted = None if optimizers is None else set(optimizers)
    mine = [
        a for a in outcome.chosen.values()
        if (wanted is None or a.job.optimizer in wanted) and kept(outcome, a) >= KEPT
    ]  # fmt: skip
    evaluated = [a for a in mine if a.result is not None]
    return min(evaluated or mine, key=lambda a: a.probability["forget"], default=None)


def pair(outcome: Outcome) -> list[Attempt | None]:
    """The best first-order and the best second-order run."""
    first = [o for o in outcome.config.optimizers if o in FIRST_ORDER]
    second = [o for o in outcome.config.optimizers if o not in FIRST_ORDER]
    return [best(outcome, first), best(outcome, second)]


def shown(outcome: Outcome) -> list[tuple[str, Attempt]]:
    """What stands on top of the page, with its kind: the best first- and second-order run, and the best step
    of influence unlearning."""
    first, second = pair(outcome)
    found = [("First order", first), ("Second order", second), ("One step", best(outcome, SOLVER_NAMES))]
    return [(label, a) for label, a in found if a is not None]


def same_setting(outcome: Outcome, attempt: Attempt) -> list[Attempt]:
    """The runs of other seeds with the settings of a chosen one, itself included."""
    return [a for a in outcome.attempts if a.name == attempt.name and a.job.lr == attempt.job.lr]


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation (0 for one value)."""
    mean = _mean(values)
    if len(values) < 2:
        return mean, 0.0
    return mean, math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))


def collect(outcome: Outcome) -> dict[str, float | int]:
    """Numbers of ``metrics.json``."""
    numbers: dict[str, float | int] = {
        "parameters": outcome.parameters,
        "trained_parameters": outcome.trained_parameters,
        "taught_from_cache": int(outcome.cached),
        "runs": len(outcome.attempts),
        "tuning_runs": len(outcome.tuning),
    }
    for name, value in outcome.before.items():
        numbers[f"{name}_prob_before"] = value
        numbers[f"{name}_prob_untaught"] = outcome.untaught[name]
    for name, chosen in outcome.chosen.items():
        runs = same_setting(outcome, chosen)
        for part in chosen.probability:
            mean, sd = spread([a.probability[part] for a in runs])
            numbers[f"{name}.{part}_prob"] = mean
            if len(runs) > 1:
                numbers[f"{name}.{part}_prob_sd"] = sd
        numbers[f"{name}.forget_fall"] = fall(outcome, chosen)
        numbers[f"{name}.retain_kept"] = kept(outcome, chosen)
        if chosen.job.method == "iu":
            told = chosen.history.steps[0]
            numbers |= {f"{name}.{key}": told[key] for key in ONE_SHOT if key in told}
        numbers[f"{name}.lr"] = chosen.job.lr
        numbers[f"{name}.win_rate"] = win_rate(chosen)
        numbers[f"{name}.seconds"] = chosen.history.seconds
        if chosen.result is not None:
            numbers |= {f"{name}.evaluation.{k}": v for k, v in chosen.result.metrics.items()}
    if outcome.before_result is not None:
        numbers |= {f"before.evaluation.{k}": v for k, v in outcome.before_result.metrics.items()}
    if outcome.reference is not None:
        numbers |= {f"reference.evaluation.{k}": v for k, v in outcome.reference.metrics.items()}
    top = best(outcome)
    if top is not None:
        numbers["forget_fall"], numbers["retain_kept"] = fall(outcome, top), kept(outcome, top)
    return {key: value for key, value in numbers.items() if math.isfinite(value)}


def sweep_rows(outcome: Outcome) -> list[dict[str, Any]]:
    """One row per run: the reported ones, then those that chose learning rates on other authors."""
    rows = [_run_row(outcome, a, outcome.before, outcome.chosen.values()) for a in outcome.attempts]
    return rows + [
        _run_row(outcome, a, outcome.tuning_before, outcome.tuned.values()) for a in outcome.tuning
    ]


def _run_row(
    outcome: Outcome, a: Attempt, before: dict[str, float], chosen: Iterable[Attempt]
) -> dict[str, Any]:
    changed = _mean(row["changed"] for row in a.history.steps if "changed" in row)
    row = {
        "method": methods.find(a.job.method).title,
        "optimizer": optimizer_name(a),
        "lr or alpha": a.job.lr,
        "seed": a.job.seed,
        "forget prob": a.probability["forget"],
        "falls by": before["forget"] / max(a.probability["forget"], 1e-12),
        "keeps %": 100 * a.probability["retain"] / before["retain"],
        "win rate": _or_blank(win_rate(a)),
        "chosen": "yes" if any(a is c for c in chosen) else "",
        "chosen by": outcome.config.selection(a.job.optimizer, a.job.method),
        "split": "reported" if before is outcome.before else "tuning",
        "retain prob": a.probability["retain"],
        "facts prob": a.probability.get("facts", ""),
        "order": ORDER[a.job.optimizer],
        "changed": _or_blank(changed),
        "skipped": a.history.skipped,
        "seconds": round(a.history.seconds, 1),
    }
    return row if outcome.tuning else {key: value for key, value in row.items() if key != "split"}


def evaluation_rows(outcome: Outcome) -> list[dict[str, Any]]:
    """One row per evaluated model: before, the reference, the chosen runs."""
    told = [("taught", outcome.before_result), ("never taught the two authors", outcome.reference)]
    told += [(title(a), a.result) for a in outcome.chosen.values()]
    rows = []
    for name, result in told:
        if result is not None:
            found = {column: result.metrics.get(key, "") for key, column in EVALUATION.items()}
            rows.append({"model": name, **found})
    return rows


def by_figure(rows: Sequence[dict[str, Any]], most: int = 5) -> list[dict[str, Any]]:
    """The same the other way round, a row per figure and a column per model; empty for more than ``most``
    models."""
    if not 0 < len(rows) <= most:
        return []
    return [
        {"figure": figure, **{str(row["model"]): row[figure] for row in rows}}
        for figure in rows[0]
        if figure != "model"
    ]


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return sum(listed) / len(listed) if listed else math.nan


def _or_blank(value: float) -> float | str:
    return value if math.isfinite(value) else ""
