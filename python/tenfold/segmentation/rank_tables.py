"""Rankings as tables: rows for CSV files, and a leaderboard as Markdown and as a page."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tenfold._checks import fail, integer
from tenfold.segmentation.bootstrap import Bootstrap, LeftOut
from tenfold.segmentation.drawing import titled
from tenfold.segmentation.ranking import Ranking
from tenfold.segmentation.scores import ScoreTable, filled, mean_of_finite
from tenfold.segmentation.statistics import Significance

__all__ = [
    "WorstScore",
    "column_rows",
    "leaderboard_html",
    "leaderboard_markdown",
    "leaderboard_rows",
    "left_out_rows",
    "rank_rows",
    "significance_rows",
    "worst_scores",
]

Row = dict[str, Any]


def rank_rows(
    ranking: Ranking, bootstrap: Bootstrap | None = None, significances: Sequence[Significance] = ()
) -> list[Row]:
    """A row for each team, best first: ranks.csv.

    `mean_<metric>` is the mean over cases and organs as it was ranked (missing scores filled or left out),
    `missing` the number of scores without a finite number. With a bootstrap: the median rank, the 95 %
    interval and the share of resamples won. With significance maps: on each metric, the number of teams
    beaten.
    """
    table = ranking.table
    means = {} if table is None else _means(ranking, table)
    interval = None if bootstrap is None else bootstrap.interval()
    rows = []
    for t in ranking.order:
        row: Row = {
            "rank": _whole(ranking.rank[t]),
            "team": ranking.teams[t],
            "score": float(ranking.score[t]),
        }
        row |= {f"mean_{metric}": _number(values[t]) for metric, values in means.items()}
        if table is not None:
            row["missing"] = int(table.missing[t].sum())
        if bootstrap is not None and interval is not None:
            row |= {
                "rank_median": float(bootstrap.median[t]), "rank_low": float(interval[t, 0]),
                "rank_high": float(interval[t, 1]), "winner_share": float(bootstrap.winner[t]),
            }  # fmt: skip
        for found in significances:
            row[f"wins_{found.metric}"] = int(found.better[found.teams.index(ranking.teams[t])].sum())
        rows.append(row)
    return rows


def column_rows(ranking: Ranking) -> list[Row]:
    """A row for each column and team: the score that was ranked there, and the rank."""
    return [
        {
            "task": column.task, "organ": column.organ, "metric": column.metric, "team": ranking.teams[t],
            "score": _number(ranking.column_scores[t, k]), "rank": _whole(ranking.column_ranks[t, k]),
        }
        for k, column in enumerate(ranking.columns) for t in ranking.order
    ]  # fmt: skip


def significance_rows(found: Significance) -> list[Row]:
    """A row for each ordered pair of teams. An empty p: no case in which the two differ."""
    adjusted = f"p_{found.adjust}"
    return [
        {
            "metric": found.metric, "team": found.teams[i], "against": found.teams[j],
            "p": _number(found.p[i, j]),
            **({} if found.adjust == "none" else {adjusted: _number(found.adjusted[i, j])}),
            "significant": bool(found.better[i, j]),
        }
        for i in range(len(found.teams)) for j in range(len(found.teams)) if i != j
    ]  # fmt: skip


def left_out_rows(found: LeftOut) -> list[Row]:
    """A row for what was left out, with Kendall's tau and every team's rank."""
    return [
        {
            f"without_{found.by}": name, "tau": _number(found.tau[k]),
            **{f"rank {found.ranking.teams[t]}": _whole(found.ranks[k, t]) for t in found.ranking.order},
        }
        for k, name in enumerate(found.names)
    ]  # fmt: skip


class WorstScore(NamedTuple):
    """One bad score, to be looked at."""

    team: str
    case: str
    task: str
    organ: str
    metric: str
    value: float


def worst_scores(
    table: ScoreTable, metric: str, number: int = 6, *, teams: Sequence[str] | None = None, per_organ: int = 1
) -> list[WorstScore]:
    """The worst finite scores of a metric, the worst first, of each organ no more than `per_organ`.

    Without that limit the same hard organ would fill the list.
    """
    integer("number", number, 1, 10**6)
    integer("per_organ", per_organ, 1, 10**6)
    part = table.select(metrics=metric, teams=teams)
    sign = -1.0 if metric in table.smaller else 1.0
    found: list[WorstScore] = []
    count: dict[str, int] = {}
    keys = np.where(np.isfinite(part.values), sign * part.values, np.inf)
    for flat in np.argsort(keys, axis=None, kind="stable"):
        t, c, k = np.unravel_index(flat, keys.shape)
        if len(found) == number or not np.isfinite(keys[t, c, k]):
            break
        column = part.columns[k]
        if count.get(column.organ, 0) < per_organ:
            count[column.organ] = count.get(column.organ, 0) + 1
            value = float(part.values[t, c, k])
            found.append(WorstScore(part.teams[t], part.cases[c], column.task, column.organ, metric, value))
    return found


def leaderboard_rows(rows: Sequence[Mapping[str, Any]]) -> list[Row]:
    """The rows of `rank_rows` as they are read: titles for names, shares in percent, intervals in a cell."""
    head, body = _leaderboard(rows)
    return [dict(zip(head, line, strict=True)) for line in body]


def leaderboard_markdown(rows: Sequence[Mapping[str, Any]], title: str, note: str = "") -> str:
    """The rows of `rank_rows` as a Markdown table under a heading; `note` says how the ranking was made."""
    head, body = _leaderboard(rows)
    lines = [f"# {_plain(title)}", ""]
    if note:
        lines += [_plain(note), ""]
    lines.append("| " + " | ".join(head) + " |")
    lines.append("|" + "|".join("---" if name == "Team" else "--:" for name in head) + "|")
    lines += ["| " + " | ".join(_plain(cell) for cell in row) + " |" for row in body]
    return "\n".join(lines) + "\n"


def leaderboard_html(rows: Sequence[Mapping[str, Any]], title: str, note: str = "") -> str:
    """The same as a page of its own, light and dark."""
    head, body = _leaderboard(rows)
    cells = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    lines = "\n".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in body
    )
    return _PAGE.format(
        title=html.escape(title), note=f"<p>{html.escape(note)}</p>" if note else "", head=cells, body=lines
    )


_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --ink: #1c2024; --line: #dfe2e6; --paper: #ffffff; }}
@media (prefers-color-scheme: dark) {{ :root {{ --ink: #e9ebee; --line: #363c43; --paper: #1b1f24; }} }}
body {{ font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 2rem auto;
  max-width: 70rem; padding: 0 1rem; }}
div {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .35rem .8rem; border-bottom: 1px solid var(--line); text-align: right; }}
th:nth-child(2), td:nth-child(2) {{ text-align: left; }}
</style>
<h1>{title}</h1>
{note}
<div><table>
<thead><tr>{head}</tr></thead>
<tbody>
{body}
</tbody>
</table></div>
</html>
"""


def _leaderboard(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    if not rows:
        fail(ValueError, "rows", "at least one team", "none")
    metrics = [key for key in rows[0] if key.startswith("mean_")]
    wins = [key for key in rows[0] if key.startswith("wins_")]
    stable = "rank_low" in rows[0]
    head = ["Rank", "Team", "Score", *(titled(key.removeprefix("mean_")) for key in metrics)]
    head += ["95 % of ranks", "First in"] if stable else []
    head += [f"Beats by {titled(key.removeprefix('wins_'))}" for key in wins]
    missing = any(row.get("missing") for row in rows)
    head += ["Missing"] if missing else []
    body = []
    for row in rows:
        line = [f"{row['rank']:g}", str(row["team"]), f"{row['score']:.4f}"]
        line += ["–" if row[key] == "" else f"{row[key]:.4f}" for key in metrics]
        if stable:
            line += [f"{row['rank_low']:g}–{row['rank_high']:g}", f"{100 * row['winner_share']:.0f} %"]
        line += [str(row[key]) for key in wins]
        line += [str(row["missing"])] if missing else []
        body.append(line)
    return head, body


def _means(ranking: Ranking, table: ScoreTable) -> dict[str, Any]:
    """Metric -> mean over organs of the scores ranked, or of means over cases where ranks were averaged."""
    if ranking.scheme.method in ("segrap", "aggregate-then-rank") and not ranking.scheme.statistical:
        scores = ranking.column_scores
    else:
        na = "drop" if ranking.scheme.na in ("worst", "error") else ranking.scheme.na
        sign = np.array([-1.0 if column.metric in table.smaller else 1.0 for column in table.columns])
        scores = mean_of_finite(filled(table, na), axis=1) * sign
    found = {}
    for metric in table.metrics:
        k = [i for i, column in enumerate(table.columns) if column.metric == metric]
        found[metric] = mean_of_finite(scores[:, k], axis=1)
    return found


def _plain(text: str) -> str:
    """Text that Markdown shows as it is, on one line of a table."""
    return "".join("\\" + c if c in "\\`*_|<>[]" else c for c in " ".join(str(text).split()))


def _number(value: Any) -> float | str:
    return float(value) if np.isfinite(value) else ""


def _whole(value: Any) -> int | float:
    return int(value) if float(value).is_integer() else float(value)
