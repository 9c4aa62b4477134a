"""What an evaluation leaves: the challenge's CSV, a long table, summaries, the form of Grand Challenge."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from tenfold.runs.files import write_json
from tenfold.segmentation.cases import Row
from tenfold.segmentation.evaluate import Evaluation
from tenfold.segmentation.labels import Task
from tenfold.segmentation.scoring import AREA_METRICS, DISTANCES, EDGE_METRICS, OVERLAP_METRICS

__all__ = [
    "CONVENTIONS",
    "case_rows", "challenge_rows", "grand_challenge", "means", "metric_names", "summary_rows",
    "write_run_json",
]  # fmt: skip

_HEAD = ("team", "case", "task", "organ", "tolerance_mm")
_TAIL = ("ml_target", "ml_pred", "flags")


def metric_names(found: Evaluation) -> list[str]:
    """The metrics of the rows, by their names there."""
    return [*OVERLAP_METRICS, *AREA_METRICS, *(EDGE_METRICS if found.options.edge else ())]


def case_rows(found: Evaluation) -> list[Row]:
    """The long table: one row for each team, case and structure. The surface Dice names its tolerance."""
    columns = [*_HEAD, *metric_names(found), *_TAIL]
    return [{_with_unit(name): row.get(name, "") for name in columns} for row in found.rows]


def _with_unit(name: str) -> str:
    if name.startswith("nsd_"):
        return f"{name}@tolerance"
    return f"{name}_mm" if name in DISTANCES else name


def challenge_rows(found: Evaluation, team: str) -> list[dict[str, str]]:
    """The challenge's table: Name, DSC of each structure, NSD of each, rounded to four decimals, by name.

    Byte for byte what its script writes through pandas: DSC is rounded as Python rounds, NSD as NumPy does,
    and a column whose values all come from the rule for empty masks holds whole numbers.
    """
    task = found.task
    cells: dict[str, dict[str, Row]] = {}
    for row in found.rows:
        if row["team"] == team:
            cells.setdefault(row["case"], {})[row["organ"]] = row
    columns: dict[str, list[str]] = {"Name": sorted(cells)}
    for metric, title in (("dsc", "DSC"), ("nsd_dm", "NSD")):
        for organ in task.csv_order:
            values = [cells[case].get(organ, {}) for case in columns["Name"]]
            columns[f"{organ}_{title}"] = _column(values, metric)
    return [dict(zip(columns, line, strict=True)) for line in zip(*columns.values(), strict=True)]


def _column(rows: Sequence[Row], metric: str) -> list[str]:
    whole = bool(rows) and all("empty_target" in row.get("flags", "") for row in rows)
    found = []
    for row in rows:
        if metric not in row:
            found.append("")
        elif whole:
            found.append(str(int(row[metric])))
        else:
            value = float(row[metric])
            found.append(repr(round(value, 4) if metric == "dsc" else float(np.round(value, 4))))
    return found


def summary_rows(found: Evaluation) -> list[Row]:
    """Mean and spread over cases for each team, structure and metric.

    Infinite distances are counted and left out of the means; `n` is what the means are taken over.
    """
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in found.rows:
        groups.setdefault((row["team"], row["organ"], ""), []).append(row)
    rows = []
    for (team, organ, _), members in groups.items():
        missing = sum("missing" in row["flags"] or "failed" in row["flags"] for row in members)
        for metric in metric_names(found):
            values = [float(row[metric]) for row in members if metric in row]
            finite = [v for v in values if math.isfinite(v)]
            rows.append(
                {"team": team, "organ": organ, "metric": _with_unit(metric), **_spread(finite),
                 "n": len(finite), "n_infinite": len(values) - len(finite), "n_missing": missing}
            )  # fmt: skip
    return rows


def _spread(values: Sequence[float]) -> dict[str, float | str]:
    names = ("mean", "sd", "q05", "q25", "median", "q75", "q95")
    if not values:
        return dict.fromkeys(names, "")
    quantiles = np.quantile(values, [0.05, 0.25, 0.5, 0.75, 0.95]).tolist()
    sd: float | str = statistics.stdev(values) if len(values) > 1 else ""
    return dict(zip(names, (statistics.fmean(values), sd, *quantiles), strict=True))


def means(found: Evaluation, metric: str, team: str, organs: Iterable[str] | None = None) -> float:
    """Mean over structures of the means over cases; NaN if there is no finite value."""
    wanted = set(organs or found.task.organs)
    groups: dict[str, list[float]] = {}
    for row in found.rows:
        if row["team"] == team and row["organ"] in wanted and math.isfinite(row.get(metric, math.nan)):
            groups.setdefault(row["organ"], []).append(float(row[metric]))
    return statistics.fmean(map(statistics.fmean, groups.values())) if groups else math.nan


def grand_challenge(found: Evaluation, team: str) -> dict[str, Any]:
    """The form of Grand Challenge: {"case": {metric: {case: value}}, "aggregates": {metric: {mean, ...}}}.

    Values that are not finite are null and listed under "not_finite".
    """
    cases: dict[str, dict[str, float | None]] = {}
    strange: list[str] = []
    for row in (r for r in found.rows if r["team"] == team):
        for metric in metric_names(found):
            name = f"{row['organ']}_{metric.upper()}"
            value = row.get(metric)
            finite = value is not None and math.isfinite(value)
            cases.setdefault(name, {})[row["case"]] = float(value) if value is not None and finite else None
            if value is not None and not finite:
                strange.append(f"{row['case']}: {name}")
    aggregates = {
        name: _aggregate([v for v in values.values() if v is not None]) for name, values in cases.items()
    }
    return {"case": cases, "aggregates": aggregates, "not_finite": strange}


def _aggregate(values: Sequence[float]) -> dict[str, float | int | None]:
    if not values:
        return {**dict.fromkeys(("mean", "std", "min", "25%", "50%", "75%", "max")), "count": 0}
    q25, q50, q75 = np.quantile(values, [0.25, 0.5, 0.75]).tolist()
    return {
        "mean": statistics.fmean(values), "std": statistics.stdev(values) if len(values) > 1 else None,
        "min": min(values), "25%": q25, "50%": q50, "75%": q75, "max": max(values), "count": len(values),
    }  # fmt: skip


def write_run_json(path: Path, found: Evaluation) -> None:
    """What was compared and how: versions, tolerances, conventions, SHA-256 of every file."""
    from tenfold.segmentation.streams import inflater

    task: Task = found.task
    write_json(
        path,
        {
            "schema": "tenfold.segrap/1",
            "versions": {name: metadata.version(name) for name in ("tenfold", "numpy", "torch", "nibabel")},
            "inflated_by": inflater().__name__,
            "task": task.name,
            "teams": found.teams,
            "tolerances_mm": {organ: task.tolerance_of(organ) for organ in task.organs},
            "conventions": CONVENTIONS,
            "options": vars(found.options),
            "faults": found.faults,
            "notes": found.notes,
            "sha256": dict(sorted(found.files.items())),
        },
    )


CONVENTIONS = {
    "dm": "surface elements weighted by area, as surface-distance has it; tolerance inclusive",
    "edge": "edge voxels (6 neighbours), unweighted; hd95_edge_max as MONAI, the others as MedPy",
    "empty": "both masks empty: 1 (distance 0); one empty, or no prediction: 0",
    "spacing": "of the reference, mm",
}
