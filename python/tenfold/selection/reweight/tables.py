"""Numbers of a run as rows: methods and their controls, ratios, time, weights, the paper's figures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tenfold.selection.reweight.arms import ARMS, Arm
from tenfold.selection.reweight.coreset import coreset_size
from tenfold.selection.reweight.paper import COLUMNS, SWEEP, TABLE
from tenfold.selection.reweight.run import Outcome, Weighing, problem_of

__all__ = ["Difference", "auc", "constant_of", "difference", "method_rows", "numbers", "time_of", "time_rows"]


@dataclass(frozen=True)
class Difference:
    """Mean over seeds of a - b in accuracy, with the 95 % interval of Student's t (infinite for one seed)."""

    mean: float
    low: float
    high: float

    @property
    def clear(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.low > 0 or self.high < 0

    def told(self) -> str:
        """In points, with its interval."""
        if not np.isfinite(self.low):
            return f"{100 * self.mean:+.1f} (one seed)"
        return f"{100 * self.mean:+.1f} ({100 * self.low:+.1f} to {100 * self.high:+.1f})"


def difference(outcome: Outcome, a: str, b: str, setting: int = 0, ratio: float | None = None) -> Difference:
    """Method a minus method b, paired by seed; b falls back to the run's own ratio where it has no other."""
    first = outcome.values(a, setting, ratio)
    second = outcome.values(b, setting, ratio)
    if not len(second):
        second = outcome.values(b, setting)
    return interval(first - second)


def interval(values: NDArray[np.float64]) -> Difference:
    """Of one number a seed."""
    mean = float(values.mean())
    if len(values) < 2:
        return Difference(mean, -np.inf, np.inf)
    from scipy.stats import t

    half = float(t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
    return Difference(mean, mean - half, mean + half)


def constant_of(arm: Arm) -> str:
    """The name of a weighted method's constant control; for normalised weights that is plain ERM."""
    return "erm" if arm.normalise else f"{arm.name}-constant"


def method_rows(outcome: Outcome, setting: int) -> list[dict[str, Any]]:
    """One row a method, in percent; weighted ones beside ERM and beside their own controls."""
    rows = []
    for arm in outcome.config.arms(setting):
        values = 100 * outcome.values(arm.name, setting)
        row = {
            "method": arm.title, "accuracy %": round(float(values.mean()), 1),
            "± seeds": round(float(values.std(ddof=1)), 1) if len(values) > 1 else "",
            "worst class %": _worst(outcome, arm.name, setting),
            "minus ERM (95 % interval)": "", "minus constant": "", "minus shuffled": "", "mean w": "",
            "rows": int(outcome.values(arm.name, setting, what="rows").mean()),
            "steps": int(outcome.values(arm.name, setting, what="steps").mean()),
        }  # fmt: skip
        if arm.name != "erm":
            row["minus ERM (95 % interval)"] = difference(outcome, arm.name, "erm", setting).told()
        if arm.source:
            row["mean w"] = round(_mean_weight(outcome, arm, setting), 3)
        if arm.source and not arm.control:
            for key, name in (
                ("minus constant", constant_of(arm)),
                ("minus shuffled", f"{arm.name}-shuffled"),
            ):
                row[key] = difference(outcome, arm.name, name, setting).told()
        rows.append(row)
    return rows


def _worst(outcome: Outcome, name: str, setting: int) -> float:
    recalls = [
        outcome.trials[(setting, s, outcome.at(None), name)].recall for s in outcome.config.seeds
    ]  # fmt: skip
    return round(100 * float(np.mean(recalls, 0).min()), 1)


def _mean_weight(outcome: Outcome, arm: Arm, setting: int) -> float:
    return float(np.mean([outcome.weights_of(arm, setting, s).mean() for s in outcome.config.seeds]))


def seed_rows(outcome: Outcome) -> list[dict[str, Any]]:
    """Every training."""
    return [
        {
            "problem": outcome.problems[t.setting].text, "method": t.arm, "coreset": t.ratio, "seed": t.seed,
            "accuracy": t.accuracy, "seconds": round(t.seconds, 4), "steps": t.steps, "rows": t.rows,
        }
        for t in outcome.trials.values()
    ]  # fmt: skip


def curve_rows(outcome: Outcome) -> list[dict[str, Any]]:
    """Every epoch of every training."""
    return [
        {"problem": outcome.problems[t.setting].text, "method": t.arm, "coreset": t.ratio, "seed": t.seed}
        | {"epoch": int(entry["epoch"]) + 1, "loss": entry["loss"], "accuracy": entry.get("accuracy", "")}
        for t in outcome.trials.values() for entry in t.curve
    ]  # fmt: skip


def ratios(outcome: Outcome) -> list[float]:
    """All coreset ratios that were tried, ascending."""
    return sorted({outcome.at(None), *(outcome.config.ratios or [])})


def ratio_rows(outcome: Outcome) -> list[dict[str, Any]]:
    """One row a ratio: accuracies in percent, purity, seconds of reweighting."""
    rows = []
    for ratio in ratios(outcome):
        states = [outcome.coreset(0, s, ratio).state for s in outcome.config.seeds]
        row: dict[str, Any] = {"coreset %": 100 * ratio, "samples": states[0]["size"]}
        if states[0]["purity"]:
            row["right labels %"] = round(100 * float(np.mean([s["purity"]["moderate"] for s in states])), 1)
        row["reweighting s"] = round(reweighting_seconds(outcome, ratio), 3)
        for arm in outcome.config.swept():
            row[arm.title] = round(100 * float(outcome.values(arm.name, 0, ratio).mean()), 1)
        rows.append(row)
    return rows


def reweighting_seconds(outcome: Outcome, ratio: float | None = None, setting: int = 0) -> float:
    """Choosing the coreset, learning on it, carrying weights by nearest neighbours; mean over seeds."""
    times = [outcome.coreset(setting, s, ratio).state["seconds"] for s in outcome.config.seeds]
    return float(np.mean([t["select"] + t["learn"] + t.get("carry-nn", 0.0) for t in times]))


def learning_seconds(outcome: Outcome, everything: bool, setting: int = 0) -> float | None:
    """Meta-Weight-Net alone, on the coreset or on all rows; None where it was not run."""
    found = [
        outcome.weighed.get(Weighing(setting, s, 1.0 if everything else outcome.at(None), everything))
        for s in outcome.config.seeds
    ]
    times = [w.state["seconds"]["learn"] for w in found if w is not None]
    return float(np.mean(times)) if times else None


def time_of(outcome: Outcome, arm: Arm, setting: int = 0) -> dict[str, float]:
    """Seconds of each part of a method, mean over seeds."""
    parts = {"features": 0.0, "coreset": 0.0, "weights": 0.0, "carrying": 0.0}
    if arm.source == "all":
        parts["weights"] = learning_seconds(outcome, True, setting) or 0.0
    elif arm.source == "coreset" or arm.rows == "moderate":
        times = [outcome.coreset(setting, s).state["seconds"] for s in outcome.config.seeds]
        parts["features"] = outcome.extract_seconds
        parts["coreset"] = float(np.mean([t["select"] for t in times]))
        if arm.source:
            parts["weights"] = float(np.mean([t["learn"] for t in times]))
            parts["carrying"] = float(np.mean([t[f"carry-{arm.mode}"] for t in times]))
    parts["training"] = float(outcome.values(arm.name, setting, what="seconds").mean())
    return parts


def time_rows(outcome: Outcome, setting: int = 0) -> list[dict[str, Any]]:
    """One row a method that is no control."""
    rows = []
    slowest = time_of(outcome, ARMS["w-erm"]) if "w-erm" in outcome.config.methods else None
    for arm in outcome.config.arms(setting):
        if arm.control:
            continue
        parts = time_of(outcome, arm, setting)
        total = sum(parts.values())
        row: dict[str, Any] = {"method": arm.title} | {f"{k} s": round(v, 3) for k, v in parts.items()}
        row["total s"] = round(total, 3)
        if slowest is not None:
            row["saved against W-ERM %"] = round(100 * (1 - total / sum(slowest.values())), 1)
        rows.append(row)
    return rows


def auc(scores: NDArray[Any], positive: NDArray[np.bool_]) -> float:
    """Probability that a positive has a higher score than a negative, ties counted half; NaN without both."""
    if positive.all() or not positive.any():
        return float("nan")
    from scipy.stats import rankdata

    n = int(positive.sum())
    ranks = rankdata(scores)[positive].sum()
    return float((ranks - n * (n + 1) / 2) / (n * (len(scores) - n)))


def weight_rows(outcome: Outcome, setting: int) -> list[dict[str, Any]]:
    """Weights of samples with right and with wrong labels, all seeds together; no controls."""
    rows = []
    for arm in outcome.config.arms(setting):
        if not arm.source or arm.control:
            continue
        w, right = pooled(outcome, arm, setting)
        if right.all():
            continue
        rows.append(
            {
                "weights": arm.title, "right labels: mean w": round(float(w[right].mean()), 4),
                "wrong labels: mean w": round(float(w[~right].mean()), 4),
                "ratio": round(float(w[right].mean() / max(w[~right].mean(), 1e-12)), 3),
                "AUC": round(auc(w, right), 3), "deviation of w": round(float(w.std()), 4),
                "share at 0 %": round(100 * float((w == 0).mean()), 1),
            }
        )  # fmt: skip
    return rows


def pooled(outcome: Outcome, arm: Arm, setting: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Weights and whether labels are right, over all seeds; all right where that is not known."""
    weights, right = [], []
    for seed in outcome.config.seeds:
        data, _ = problem_of(outcome.config, setting, seed)
        weights.append(outcome.weights_of(arm, setting, seed))
        right.append(np.ones(len(data.y), bool) if data.true_y is None else data.y == data.true_y)
    return np.concatenate(weights), np.concatenate(right)


def coreset_rows(outcome: Outcome) -> list[dict[str, Any]]:
    """Size and purity of coresets in each problem."""
    rows = []
    for k, setting in enumerate(outcome.problems):
        states = [outcome.coreset(k, s).state for s in outcome.config.seeds]
        row: dict[str, Any] = {
            "problem": setting.title, "rows": states[0]["count"], "coreset": states[0]["size"],
            "asked for": coreset_size(outcome.at(None), states[0]["count"]),
        }  # fmt: skip
        if states[0]["purity"]:
            for key, name in (
                ("data", "right labels %"),
                ("moderate", "in the coreset %"),
                ("random", "random %"),
            ):
                row[name] = round(100 * float(np.mean([s["purity"][key] for s in states])), 1)
        rows.append(row)
    return rows


def paper_column(outcome: Outcome) -> int | None:
    """Which column of the paper's table this run repeats."""
    config = outcome.config
    key = (config.dataset, config.model, config.extractor)
    return COLUMNS.index(key) if key in COLUMNS and config.settings == ["clean"] else None


def paper_rows(outcome: Outcome) -> list[dict[str, Any]]:
    """The paper's table with what this run found beside it."""
    rows = []
    for name, cells in TABLE.items():
        row: dict[str, Any] = {"method": ARMS[name].title}
        values = outcome.values(name) if name in outcome.config.methods else np.zeros(0)
        row["this run %"] = round(100 * float(values.mean()), 1) if len(values) else ""
        for (data, model, extractor), (accuracy, minutes) in zip(COLUMNS, cells, strict=True):
            short = {"preactresnet18": "PRN18", "resnet20": "RN20"}[model]
            features = {"vit_b_16": "ViT", "resnet50": "RN50"}[extractor]
            row[f"{data} {short} {features}"] = f"{accuracy:.1f} ({minutes:.1f} min)"
        rows.append(row)
    for control in ("cw-erm-constant", "cw-erm-shuffled"):
        values = outcome.values(control) if control in outcome.config.methods else np.zeros(0)
        if len(values):
            rows.append({"method": ARMS[control].title, "this run %": round(100 * float(values.mean()), 1)}
                        | dict.fromkeys(list(rows[0])[2:], "not reported"))  # fmt: skip
    return rows


def paper_sweep(outcome: Outcome) -> dict[float, float]:
    """CW-ERM's accuracy by coreset ratio as the paper has it, for the data set of this run."""
    return SWEEP.get(outcome.config.dataset, {})


def numbers(outcome: Outcome) -> dict[str, float | int]:
    """The flat numbers of metrics.json; problems by their slug, ratios other than the run's own by r-..."""
    config = outcome.config
    found: dict[str, float | int] = {"trainings": len(outcome.trials), "seeds": len(config.seeds)}
    for k, setting in enumerate(outcome.problems):
        for arm in config.arms(k):
            values = outcome.values(arm.name, k)
            stem = f"{setting.slug}/{arm.name}"
            found[f"{stem}.accuracy"] = float(values.mean())
            found[f"{stem}.seconds"] = float(sum(time_of(outcome, arm, k).values()))
            if len(values) > 1:
                found[f"{stem}.std_seeds"] = float(values.std(ddof=1))
            if arm.name != "erm":
                found |= _gain(stem, "gain", difference(outcome, arm.name, "erm", k))
            if arm.source and not arm.control:
                against = difference(outcome, arm.name, constant_of(arm), k)
                found |= _gain(stem, "gain_over_constant", against)
                shuffled = difference(outcome, arm.name, f"{arm.name}-shuffled", k)
                found |= _gain(stem, "gain_over_shuffled", shuffled)
        states = [outcome.coreset(k, s).state["purity"] for s in config.seeds]
        if states[0]:
            for key, name in (("data", "data"), ("moderate", "coreset"), ("random", "random")):
                found[f"{setting.slug}.purity.{name}"] = float(np.mean([s[key] for s in states]))
        for row in weight_rows(outcome, k):
            name = next(a.name for a in config.arms(k) if a.title == row["weights"])
            found[f"{setting.slug}/{name}.weight_auc"] = row["AUC"]
    for ratio in config.ratios or []:
        if ratio != config.ratio:
            for arm in config.swept():
                stem = f"{outcome.problems[0].slug}/{arm.name}.accuracy.r-{ratio:g}"
                found[stem] = float(outcome.values(arm.name, 0, ratio).mean())
    found |= _times(outcome)
    return found


def _gain(stem: str, name: str, d: Difference) -> dict[str, float]:
    found = {f"{stem}.{name}": d.mean}
    if np.isfinite(d.low):
        found |= {f"{stem}.{name}_low": d.low, f"{stem}.{name}_high": d.high}
    return found


def _times(outcome: Outcome) -> dict[str, float]:
    core, everything = reweighting_seconds(outcome), learning_seconds(outcome, True)
    found = {"reweighting.coreset_seconds": core, "extract_seconds": outcome.extract_seconds}
    if everything is not None:
        found["reweighting.all_seconds"] = everything
        found["reweighting.speedup"] = everything / max(core, 1e-9)
    return found
