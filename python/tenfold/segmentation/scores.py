"""Scores of several teams as one array: teams x cases x columns, where a column is a metric of an organ."""

from __future__ import annotations

import csv
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tenfold._checks import fail
from tenfold._reading import reading

__all__ = ["Column", "Missing", "ScoreTable", "filled", "larger_is_better", "read_scores"]

Missing: TypeAlias = "str | float | Callable[[NDArray[np.float64]], float]"
"""What to do where a score is missing (NaN or infinite).

"error" refuses, "drop" leaves the case out for that team, "worst" ranks it last (only where cases are ranked
one by one), a number takes its place (in the metric's own units: 0 for the Dice of SegRap), and a function is
given the scores present in the column and returns the number.
"""

_LARGER = re.compile(r"(dsc|dice|nsd|jaccard|iou|precision|recall|sensitivity|specificity|vs)(?![a-z])", re.I)
_SMALLER = re.compile(r"(hd|hausdorff|asd|assd|masd|fpr|fnr|error|loss)(?![a-z])", re.I)
_KEYS = ("team", "case", "task", "organ")


class Column(NamedTuple):
    """What one ranking is about."""

    task: str
    organ: str
    metric: str


@dataclass(frozen=True)
class ScoreTable:
    """Scores as they were measured. Make it with `from_records` or `read_scores`."""

    teams: tuple[str, ...]
    """In the order of their first records."""
    cases: tuple[str, ...]
    columns: tuple[Column, ...]
    values: NDArray[np.float64]
    """[teams, cases, columns]; NaN where there is no number."""
    recorded: NDArray[np.bool_]
    """[teams, cases, columns]: whether there was a record, with a number in it or not."""
    smaller: frozenset[str] = frozenset()
    """Metrics of which the smaller value is the better."""
    cohorts: tuple[str, ...] | None = None
    """The cohort of each case, where the challenge has several (SegRap2025)."""

    @classmethod
    def from_records(
        cls,
        records: Iterable[Mapping[str, Any]],
        *,
        smaller_better: Iterable[str] = (),
        cohorts: Mapping[str, str] | None = None,
    ) -> ScoreTable:
        """Records with `case`, `metric`, `value` and, where there are several, `team`, `task`, `organ`,
        `cohort`.

        A value of None, "" or "NA" is missing. `smaller_better` names metrics whose direction their name does
        not tell; `cohorts` maps cases to cohorts. ValueError for no records, for two records of one score and
        for a metric of unknown direction; TypeError for a value that is no number.
        """
        rows = list(records)
        if not rows:
            fail(ValueError, "records", "at least one record", "none")
        for name in ("case", "metric", "value"):
            if name not in rows[0]:
                fail(ValueError, "records", f"a field {name!r} in each record", f"fields {list(rows[0])}")
        teams = _order(str(row.get("team", "")) for row in rows)
        cases = _order(str(row["case"]) for row in rows)
        columns = _order(_column(row) for row in rows)
        values = np.full((len(teams), len(cases), len(columns)), np.nan)
        recorded = np.zeros(values.shape, dtype=bool)
        for row in rows:
            at = teams[str(row.get("team", ""))], cases[str(row["case"])], columns[_column(row)]
            if recorded[at]:
                fail(ValueError, "records", "one record of each score", f"two of {_where(row)}")
            values[at] = _number(row)
            recorded[at] = True
        found = dict(cohorts or {}) or {str(r["case"]): str(r["cohort"]) for r in rows if r.get("cohort")}
        return cls(
            tuple(teams), tuple(cases), tuple(columns), values, recorded,
            _smaller({column.metric for column in columns}, smaller_better), _cohorts(list(cases), found),
        )  # fmt: skip

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(column.task for column in self.columns))

    @property
    def organs(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(column.organ for column in self.columns))

    @property
    def metrics(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(column.metric for column in self.columns))

    @property
    def missing(self) -> NDArray[np.bool_]:
        """[teams, cases, columns]: no finite number where some team has a record of that case and column."""
        return ~np.isfinite(self.values) & self.recorded.any(axis=0)

    def select(
        self,
        *,
        task: str | None = None,
        metrics: str | Sequence[str] | None = None,
        organs: str | Sequence[str] | None = None,
        teams: Sequence[str] | None = None,
        cases: Sequence[str] | None = None,
    ) -> ScoreTable:
        """The part with these names; cases of which no record is left are left out as well.

        ValueError for a name that is not there.
        """
        keep = _among("task", [task] if task is not None else None, self.tasks)
        organs_kept, metrics_kept = (
            _among("organs", organs, self.organs), _among("metrics", metrics, self.metrics),
        )  # fmt: skip
        k = [
            i for i, c in enumerate(self.columns)
            if c.task in keep and c.organ in organs_kept and c.metric in metrics_kept
        ]  # fmt: skip
        if not k:
            fail(ValueError, "select", "at least one column of these names", "none")
        t = [self.teams.index(name) for name in _among("teams", teams, self.teams)]
        wanted = set(_among("cases", cases, self.cases))
        held = np.asarray(self.recorded[:, :, k].any(axis=(0, 2)))
        c = [i for i, name in enumerate(self.cases) if name in wanted and held[i]]
        block = np.ix_(t, c, k)
        return ScoreTable(
            tuple(self.teams[i] for i in t), tuple(self.cases[i] for i in c),
            tuple(self.columns[i] for i in k),
            self.values[block], self.recorded[block], self.smaller,
            None if self.cohorts is None else tuple(self.cohorts[i] for i in c),
        )  # fmt: skip

    def means(self, metric: str) -> NDArray[np.float64]:
        """[teams, cases]: the mean over organs of a metric, of those with a finite number; NaN if none
        has."""
        k = [i for i, column in enumerate(self.columns) if column.metric == metric]
        if not k:
            fail(ValueError, "metric", f"one of {list(self.metrics)}", repr(metric))
        return mean_of_finite(self.values[:, :, k], axis=2)


def mean_of_finite(values: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    """The mean along `axis` of what is finite; NaN, without a warning, where nothing is."""
    finite = np.isfinite(values)
    number = finite.sum(axis=axis)
    total = np.where(finite, values, 0.0).sum(axis=axis)
    return np.where(number > 0, total / np.maximum(number, 1), np.nan)


def larger_is_better(metric: str) -> bool | None:
    """What the name of a metric (`dsc`, `nsd_dm@1.0`, `hd95_edge_max`) tells of its direction, or None."""
    if _LARGER.match(metric):
        return True
    return False if _SMALLER.match(re.sub(r"\d+", "", metric, count=1)) else None


def filled(table: ScoreTable, na: Missing) -> NDArray[np.float64]:
    """[teams, cases, columns], larger always better, NaN left only where `na` is "drop" or "worst".

    ValueError for "error" if a number is missing, naming the first.
    """
    if isinstance(na, str):
        if na not in ("error", "drop", "worst"):
            fail(ValueError, "na", "'error', 'drop', 'worst', a number or a function", repr(na))
    elif not callable(na) and not (isinstance(na, (int, float)) and math.isfinite(na)):
        fail(TypeError, "na", "'error', 'drop', 'worst', a finite number or a function", repr(na))
    values = np.where(np.isfinite(table.values), table.values, np.nan)
    gaps = np.argwhere(np.isnan(values))
    if na == "error" and len(gaps):
        t, c, k = gaps[0]
        where = f"team {table.teams[t]!r}, case {table.cases[c]!r}, {' '.join(table.columns[k])}"
        fail(ValueError, "scores", "a finite number everywhere, or `na` to say what else", f"none for {where}"
             + (f" and {len(gaps) - 1} more" if len(gaps) > 1 else ""))  # fmt: skip
    if not isinstance(na, str):
        for k in dict.fromkeys(gaps[:, 2].tolist()):
            part = values[:, :, k]
            present = part[~np.isnan(part)]
            part[np.isnan(part)] = float(na(present)) if callable(na) else float(na)
    sign = np.array([-1.0 if column.metric in table.smaller else 1.0 for column in table.columns])
    return values * sign


def read_scores(
    paths: str | os.PathLike[str] | Mapping[str, str | os.PathLike[str]] | Sequence[str | os.PathLike[str]],
    metrics: Sequence[str] | None = None,
    *,
    smaller_better: Iterable[str] = (),
    cohorts: Mapping[str, str] | None = None,
) -> ScoreTable:
    """Scores from CSV files: one with all teams, or several, by team (a mapping) or with a team column.

    Three layouts are told apart by their header: one score a row (`metric` and `value`), one row per organ
    with a column per metric (as per_case.csv), and the challenge's own (`Name`, `<Organ>_DSC` ...,
    `<Organ>_NSD` ...). `metrics` picks columns of the second; by default `dsc` and the one whose name
    begins with `nsd` (of several, with `nsd_dm`). Where a file has no team column, the team is the
    mapping's key, or the file's name. ValueError names file and line.
    """
    if isinstance(paths, Mapping):
        files: list[tuple[str | None, Path]] = [(str(team), Path(path)) for team, path in paths.items()]
    else:
        several = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
        files = [(None, Path(path)) for path in several]
    if not files:
        fail(ValueError, "paths", "at least one CSV file", "none")
    records = [record for team, path in files for record in _read(path, team, metrics)]
    with reading(", ".join(str(path) for _, path in files), "scores"):
        return ScoreTable.from_records(records, smaller_better=smaller_better, cohorts=cohorts)


def _read(path: Path, team: str | None, metrics: Sequence[str] | None) -> list[dict[str, Any]]:
    if not path.is_file():
        fail(FileNotFoundError, "tables", "CSV files", f"{path}, a folder" if path.is_dir() else f"no {path}")
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        rows = []
        try:
            head = list(reader.fieldnames or ())
            for row in reader:
                if None in row or None in row.values():
                    where = f"{path}, line {reader.line_num}"
                    fail(ValueError, where, f"{len(head)} fields", "another number")
                rows.append(row)
        except (UnicodeDecodeError, csv.Error) as error:
            raise ValueError(f"{path}: expected a CSV file in UTF-8, got another ({error})") from error
    if not rows:
        fail(ValueError, str(path), "a CSV file with a header and rows", "no rows")
    own = {"team": team if team is not None else path.stem}
    if head[0] == "Name":
        organs = [(name, *name.rsplit("_", 1)) for name in head[1:]]
        if any(len(parts) != 3 for parts in organs):
            fail(ValueError, str(path), "columns <Organ>_<METRIC> after Name", head[1:])
        return [
            {**own, "case": row["Name"], "organ": organ, "metric": metric.lower(), "value": row[name]}
            for row in rows for name, organ, metric in organs
        ]  # fmt: skip
    if "case" not in head:
        fail(ValueError, str(path), "a column 'case' (or the challenge's 'Name')", head)
    given = {} if "team" in head and team is None else own
    if "metric" in head and "value" in head:
        return [{**row, **given} for row in rows]
    names = list(metrics) if metrics is not None else _default_metrics(path, head)
    for name in names:
        if name not in head:
            fail(ValueError, "metrics", f"columns of {path}: {head}", repr(name))
    keys = [key for key in (*_KEYS, "cohort") if key in head]
    return [
        {**{key: row[key] for key in keys}, **given, "metric": name, "value": row[name]}
        for row in rows for name in names
    ]  # fmt: skip


def _default_metrics(path: Path, head: Sequence[str]) -> list[str]:
    """Dice, and the surface Dice: the only one, or of several the challenge's (nsd_dm)."""
    surface = [name for name in head if name.lower().startswith("nsd")]
    if len(surface) > 1:
        surface = [name for name in surface if name.startswith("nsd_dm")]
    if "dsc" not in head or len(surface) != 1:
        expected = f"`metrics`, as {path} has not one column 'dsc' and one that begins with 'nsd'"
        fail(ValueError, "metrics", expected, f"columns {list(head)}")
    return ["dsc", surface[0]]


def _order(names: Iterable[Any]) -> dict[Any, int]:
    return {name: i for i, name in enumerate(dict.fromkeys(names))}


def _column(row: Mapping[str, Any]) -> Column:
    return Column(str(row.get("task", "")), str(row.get("organ", "")), str(row["metric"]))


def _where(row: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {row[key]!r}" for key in (*_KEYS, "metric") if row.get(key))


def _number(row: Mapping[str, Any]) -> float:
    value = row["value"]
    if value is None or (
        isinstance(value, str) and value.strip().lower() in ("", "na", "nan", "none", "null")
    ):
        return math.nan
    try:
        if isinstance(value, (bool, complex)):
            raise TypeError
        return float(value)
    except (TypeError, ValueError):
        fail(TypeError, f"value of {_where(row)}", "a number", repr(value))


def _smaller(metrics: set[str], named: Iterable[str]) -> frozenset[str]:
    given = [named] if isinstance(named, str) else list(named)
    for name in given:
        if name not in metrics:
            fail(ValueError, "smaller_better", f"metrics among {sorted(metrics)}", repr(name))
    found = set(given)
    for metric in sorted(metrics - found):
        better = larger_is_better(metric)
        if better is None:
            fail(
                ValueError,
                "metric",
                "a name that tells its direction, or one of `smaller_better`",
                repr(metric),
            )
        if not better:
            found.add(metric)
    return frozenset(found)


def _cohorts(cases: Sequence[str], found: Mapping[str, str]) -> tuple[str, ...] | None:
    if not found:
        return None
    without = [case for case in cases if case not in found]
    if without:
        fail(ValueError, "cohorts", "a cohort for each case", f"none for case {without[0]!r}")
    return tuple(found[case] for case in cases)


def _among(argument: str, names: str | Sequence[str] | None, known: Sequence[str]) -> list[str]:
    if names is None:
        return list(known)
    chosen = [names] if isinstance(names, str) else list(names)
    for name in chosen:
        if name not in known:
            fail(ValueError, argument, f"names among {list(known)}", repr(name))
    return chosen
