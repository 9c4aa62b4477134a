"""Several seeds of a ``soul`` run: means, intervals, and every optimizer against AdamW seed by seed.

Intervals are Student's, 95 %, of the mean over seeds. A seed decides the order of the rows, which retain
rows go with them, and the labels that curvature is made from; the taught weights and the rows are the same
for all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tenfold.llm.unlearn import methods
from tenfold.llm.unlearn.soul import Attempt, Outcome
from tenfold.llm.unlearn.soul_numbers import ORDER, kept, optimizer_name, same_setting, win_rate

__all__ = ["comparison_rows", "interval", "seed_rows"]

T975 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045,
)  # fmt: skip
"""Student's t at 0.975 for 1 to 29 degrees of freedom."""


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half width of its 95 % interval; half width NaN for fewer than two values.

    Raises:
        ValueError: no values.
    """
    if not values:
        raise ValueError("values: expected at least one number, got none")
    n = len(values)
    mean = math.fsum(values) / n
    if n < 2:
        return mean, math.nan
    deviation = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1))
    quantile = T975[n - 2] if n - 2 < len(T975) else 1.96
    return mean, quantile * deviation / math.sqrt(n)


def seed_rows(outcome: Outcome) -> list[dict[str, Any]]:
    """One row per method and optimizer: what the seeds of its chosen learning rate found."""
    if len(outcome.config.seeds or []) < 2:
        return []
    rows = []
    for a in outcome.chosen.values():
        runs = same_setting(outcome, a)
        row: dict[str, Any] = {
            "method": methods.find(a.job.method).title, "optimizer": optimizer_name(a),
            "order": ORDER[a.job.optimizer], "lr": a.job.lr,
            "chosen by": outcome.config.selection(a.job.optimizer, a.job.method), "seeds": len(runs),
        }  # fmt: skip
        for column, values in (
            ("forget prob", [r.probability["forget"] for r in runs]),
            ("retain prob", [r.probability["retain"] for r in runs]),
            ("keeps %", [100 * kept(outcome, r) for r in runs]),
            ("facts prob", [r.probability["facts"] for r in runs if "facts" in r.probability]),
            ("win rate", [w for w in map(win_rate, runs) if math.isfinite(w)]),
        ):
            if values:
                mean, half = interval(values)
                row |= {column: mean, f"{column} +-": half if math.isfinite(half) else ""}
        rows.append(row)
    return rows


def comparison_rows(outcome: Outcome) -> list[dict[str, Any]]:
    """Every optimizer minus AdamW with the same method, seed by seed: the mean difference and its
    interval."""
    rows = []
    for a in outcome.chosen.values():
        other = outcome.chosen.get(f"{a.job.method}-adamw")
        if other is None or a is other:
            continue
        pairs = _paired(same_setting(outcome, a), same_setting(outcome, other))
        if len(pairs) < 2:
            continue
        row: dict[str, Any] = {
            "method": methods.find(a.job.method).title, "optimizer": optimizer_name(a),
            "order": ORDER[a.job.optimizer], "seeds": len(pairs),
        }  # fmt: skip
        for column, differences in (
            ("forget prob", [x.probability["forget"] - y.probability["forget"] for x, y in pairs]),
            ("keeps, points", [100 * (kept(outcome, x) - kept(outcome, y)) for x, y in pairs]),
        ):
            mean, half = interval(differences)
            row |= {
                f"{column}, minus AdamW's": mean, f"{column} +-": half,
                f"{column}: differs": "yes" if abs(mean) > half else "no",
            }  # fmt: skip
        rows.append(row)
    return rows


def _paired(one: Sequence[Attempt], other: Sequence[Attempt]) -> list[tuple[Attempt, Attempt]]:
    by_seed = {a.job.seed: a for a in other}
    return [(a, by_seed[a.job.seed]) for a in one if a.job.seed in by_seed]
