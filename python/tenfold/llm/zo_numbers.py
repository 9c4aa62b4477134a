"""Numbers of a ``zo`` run: scores with intervals, the flat numbers of metrics.json, examples as text."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from tenfold.llm import memory, stats
from tenfold.llm.training import History
from tenfold.llm.zo import Outcome


@dataclass(frozen=True)
class Score:
    """Accuracy with a 95 % interval, and mean cross-entropy, on the test split."""

    accuracy: float
    low: float
    high: float
    loss: float


def _right(logits: Tensor, labels: Tensor) -> NDArray[np.float64]:
    return (logits.argmax(1) == labels).double().numpy()


def _score_one(logits: Tensor, labels: Tensor) -> Score:
    right = _right(logits, labels)
    low, high = stats.wilson(int(right.sum()), len(right))
    return Score(float(right.mean()), low, high, float(F.cross_entropy(logits, labels)))


def score(outcome: Outcome) -> dict[str, Score]:
    """Scores named ``before``, ``seedN``, ``after`` (mean of the seeds) and, if it was run, ``full``."""
    labels = outcome.labels
    scores = {"before": _score_one(outcome.before["test"], labels)}
    for seed, trained in outcome.seeds.items():
        scores[f"seed{seed}"] = _score_one(trained.test_logits, labels)
    of_seeds = [scores[f"seed{seed}"] for seed in outcome.seeds]
    if len(of_seeds) == 1:
        scores["after"] = of_seeds[0]
    else:
        low, high = stats.bootstrap_mean(_mean_right(outcome))
        scores["after"] = Score(
            _mean([s.accuracy for s in of_seeds]), low, high, _mean([s.loss for s in of_seeds])
        )
    if outcome.full is not None:
        scores["full"] = _score_one(outcome.full.test_logits, labels)
    return scores


def _mean_right(outcome: Outcome) -> NDArray[np.float64]:
    """For every test example, the share of seeds that answer it rightly."""
    rows = [_right(t.test_logits, outcome.labels) for t in outcome.seeds.values()]
    return np.mean(rows, axis=0, dtype=np.float64)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _spread(values: list[float]) -> float:
    """Standard deviation over seeds (n - 1); 0 for a single one."""
    centre = _mean(values)
    return math.sqrt(sum((v - centre) ** 2 for v in values) / max(1, len(values) - 1))


def collect(outcome: Outcome, scores: dict[str, Score]) -> dict[str, float | int]:
    """The numbers of ``metrics.json``: accuracies and shares from 0 to 1, memory in MiB, time in seconds."""
    gain = _mean_right(outcome) - _right(outcome.before["test"], outcome.labels)
    gain_low, gain_high = stats.bootstrap_mean(gain)
    histories = [trained.history for trained in outcome.seeds.values()]
    numbers: dict[str, float | int] = {
        "accuracy_before": scores["before"].accuracy,
        "accuracy_before_low": scores["before"].low,
        "accuracy_before_high": scores["before"].high,
        "accuracy_after": scores["after"].accuracy,
        "accuracy_after_low": scores["after"].low,
        "accuracy_after_high": scores["after"].high,
        "accuracy_after_seed_sd": _spread([scores[f"seed{seed}"].accuracy for seed in outcome.seeds]),
        "accuracy_gain": float(gain.mean()),
        "accuracy_gain_low": gain_low,
        "accuracy_gain_high": gain_high,
        "loss_before": scores["before"].loss,
        "loss_after": scores["after"].loss,
        "test_examples": len(outcome.labels),
        "parameters": outcome.parameters,
        "trained_parameters": outcome.trained_parameters,
        "steps": max(len(history.steps) for history in histories),
        "forwards_per_seed": max(history.forwards for history in histories),
        "train_seconds_per_seed": _mean([history.seconds for history in histories]),
        "skipped_steps": sum(history.skipped for history in histories),
        "kept_seconds": outcome.kept_seconds,
        "short_path_max_difference": outcome.check,
    }
    for seed, trained in outcome.seeds.items():
        numbers[f"accuracy_after_seed{seed}"] = scores[f"seed{seed}"].accuracy
        numbers[f"loss_after_seed{seed}"] = scores[f"seed{seed}"].loss
        numbers[f"chosen_step_seed{seed}"] = trained.history.best_step
    for row in time_rows(outcome):
        prefix = "" if row["phase"] == "seeds" else "full_"
        for key in ("ms_per_step", "pass_ms", "forward_share", "pass_share", "rest_share"):
            numbers[prefix + key] = float(row[key])
    if outcome.full is not None:
        numbers |= {
            "full_accuracy": scores["full"].accuracy,
            "full_accuracy_low": scores["full"].low,
            "full_accuracy_high": scores["full"].high,
            "full_loss": scores["full"].loss,
            "full_steps": len(outcome.full.history.steps),
            "full_forwards": outcome.full.history.forwards,
            "full_train_seconds": outcome.full.history.seconds,
        }
    numbers |= {"usual_pass_ms": outcome.usual_pass_ms, "usual_pass_share": usual_share(outcome)}
    numbers |= _memory_numbers(outcome.memory)
    return numbers


def _memory_numbers(rows: list[memory.Measured]) -> dict[str, float]:
    numbers: dict[str, float] = {}
    for row in rows:
        name = row.mode.replace("-", "_")
        numbers[f"memory_{name}_above_model_mib"] = row.above_model
        numbers[f"memory_{name}_above_start_mib"] = row.above_start
        numbers[f"memory_{name}_step_seconds"] = row.seconds
    by_mode = {row.mode: row for row in rows}
    if "zo" in by_mode and "adam" in by_mode:
        numbers["memory_model_mib"] = by_mode["zo"].weights
        numbers["memory_adam_over_zo"] = by_mode["adam"].above_start / by_mode["zo"].above_start
    return numbers


def time_rows(outcome: Outcome) -> list[dict[str, Any]]:
    """Mean time of a step and its shares, for the seeds together and for the second phase."""
    phases = [("seeds", part_name(outcome), [t.history for t in outcome.seeds.values()])]
    if outcome.full is not None:
        phases.append(("full", "every parameter", [outcome.full.history]))
    rows = []
    for phase, what, histories in phases:
        sums = {key: _total(histories, key) for key in ("forward_seconds", "pass_seconds", "rest_seconds")}
        steps = sum(len(history.steps) for history in histories)
        passes = _total(histories, "passes")
        whole = sum(sums.values())
        rows.append(
            {
                "phase": phase,
                "what": what,
                "steps": steps,
                "ms_per_step": 1e3 * whole / steps,
                "forward_share": sums["forward_seconds"] / whole,
                "pass_share": sums["pass_seconds"] / whole,
                "rest_share": sums["rest_seconds"] / whole,
                "passes_per_step": passes / steps,
                "pass_ms": 1e3 * sums["pass_seconds"] / passes,
            }
        )
    return rows


def usual_share(outcome: Outcome) -> float:
    """Share of a step of the last phase that its passes would take as the papers' code writes them."""
    row = time_rows(outcome)[-1]
    usual = outcome.usual_pass_ms * row["passes_per_step"]
    return float(usual / (usual + row["ms_per_step"] * (1 - row["pass_share"])))


def _total(histories: list[History], key: str) -> float:
    return sum(row[key] for history in histories for row in history.steps)


def examples(outcome: Outcome, each: int = 3) -> list[dict[str, Any]]:
    """A few test examples with the first seed's answers before and after: put right, spoiled, still wrong."""
    words = [word.strip() for word in outcome.config.verbalizers]
    after = next(iter(outcome.seeds.values())).test_logits.softmax(1)
    before = outcome.before["test"].softmax(1)
    kinds: dict[tuple[bool, bool], list[dict[str, Any]]] = {}
    for i, label in enumerate(outcome.labels.tolist()):
        was, now = int(before[i].argmax()), int(after[i].argmax())
        verdicts = {(False, True): "put right", (True, False): "spoiled", (False, False): "still wrong"}
        verdict = verdicts.get((was == label, now == label))
        if verdict is not None:
            kinds.setdefault((was == label, now == label), []).append(
                {
                    "example": outcome.texts[i],
                    "truth": words[label],
                    "before": f"{words[was]} ({100 * float(before[i, was]):.0f} %)",
                    "after": f"{words[now]} ({100 * float(after[i, now]):.0f} %)",
                    "verdict": verdict,
                }
            )
    shown = [
        row
        for key, count in (((False, True), 2 * each), ((True, False), each), ((False, False), each))
        for row in _both_labels(kinds.get(key, []), count)
    ]
    return shown or [
        {"example": "(no example changed)", "truth": "", "before": "", "after": "", "verdict": ""}
    ]


def _both_labels(rows: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """The first rows of each label in turn, so that one class does not fill the list."""
    by_label: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_label.setdefault(row["truth"], []).append(row)
    turns = [group[i] for i in range(count) for group in by_label.values() if i < len(group)]
    return turns[:count]


def part_name(outcome: Outcome) -> str:
    """What the seeds train, in words."""
    trainable = str(outcome.config.trainable)
    names = {"last-block": "the last block", "full": "every parameter"}
    return names.get(trainable, f"the last {trainable.removeprefix('last-')} blocks")


def milliseconds(value: float) -> str:
    """A time given in milliseconds, for people: '3.3 ms', '65 ms', '6.7 s'."""
    if value >= 1000:
        return f"{value / 1000:.1f} s"
    return f"{value:.0f} ms" if value >= 10 else f"{value:.1f} ms"
