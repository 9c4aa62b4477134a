"""A leader board from several ``unlearncanvas`` runs.

Methods stand in one table only if they were scored alike: the same model, canvas, targets, seeds, pictures,
conventions and features. Everything else makes a table of its own, with what it was scored by above it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tenfold import _checks
from tenfold.diffusion.canvas.files import COLUMNS, read_results, reference_results, table_rows
from tenfold.diffusion.canvas.ranking import Ranked, rank_methods
from tenfold.diffusion.canvas.scores import Score, summarise
from tenfold.runs.files import read_json, write_text

__all__ = ["Board", "boards", "leader_board"]

_ALIKE = (
    "model", "canvas", "targets", "seeds", "budget", "sampling", "sampler", "steps", "guidance",
    "style_judge", "object_judge", "data", "seed_images", "cra", "feature_name",
)  # fmt: skip
"""Settings in which two runs must agree for their methods to be ranked together."""
_HEADS = {
    "style_ua": "style UA", "style_ira": "IRA", "style_cra": "CRA", "object_ua": "object UA",
    "object_ira": "IRA", "object_cra": "CRA", "fid": "distance", "seconds": "time, s",
    "memory_gb": "memory, GB", "storage_gb": "storage, GB",
}  # fmt: skip


@dataclass
class Board:
    """Methods that were scored alike. settings: by what. runs: method -> folder of its run. published: rows
    of the paper's table, on its own canvas only; they have no place in the ranking."""

    settings: dict[str, Any]
    ranked: list[Ranked]
    rows: dict[str, dict[str, float | None]]
    runs: dict[str, Path]
    published: dict[str, dict[str, Any]]


def boards(folders: Sequence[str | Path]) -> list[Board]:
    """One board for each way of scoring, in the order of the folders.

    Raises:
        FileNotFoundError: a folder has no finished run. ValueError: a run of another workflow; no folder; a
            method twice on one board.
    """
    if not folders:
        _checks.fail(ValueError, "folders", "at least one run", "none")
    groups: dict[str, tuple[dict[str, Any], list[Score], dict[str, Path]]] = {}
    for folder in map(Path, folders):
        settings, scores = _read(folder)
        _, held, runs = groups.setdefault(repr(settings), (settings, [], {}))
        for method in dict.fromkeys(one.method for one in scores):
            if method in runs:
                got = f"{method!r} in {runs[method]} and in {folder}"
                _checks.fail(ValueError, "folders", "each method once among runs scored alike", got)
            runs[method] = folder
        held += scores
    found = []
    for settings, scores, runs in groups.values():
        published = reference_results() if settings["canvas"] == "unlearncanvas" else {}
        rows = table_rows(summarise(scores))
        found.append(Board(settings, rank_methods(scores), rows, runs, published))
    return found


def _read(folder: Path) -> tuple[dict[str, Any], list[Score]]:
    for name in ("metrics.json", "results.jsonl"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"folders: expected a finished run with {name}, got {folder}")
    document = read_json(folder / "metrics.json")
    workflow = document.get("name") if isinstance(document, dict) else None
    if workflow != "unlearncanvas":
        _checks.fail(ValueError, str(folder), "a run of unlearncanvas", repr(workflow))
    try:
        settings = {name: document["config"].get(name) for name in _ALIKE}
        settings["base"] = {k: document["metrics"][f"base.{k}"] for k in ("style", "object")}
    except (KeyError, TypeError, AttributeError) as error:
        file = folder / "metrics.json"
        raise ValueError(f"{file}: expected the numbers of a run, got others ({error!r})") from error
    for name in ("targets", "seeds"):  # their order changes nothing
        if isinstance(settings[name], list):
            settings[name] = sorted(settings[name], key=str)
    scores = [one for one in read_results(folder / "results.jsonl") if one.method != "base"]
    if not scores:
        _checks.fail(ValueError, str(folder / "results.jsonl"), "scores of edited models", "none")
    for one in scores:
        if (one.seed_images, one.cra_over) != (settings["seed_images"], settings["cra"]):
            got = f"{one.seed_images}, {one.cra_over} for {one.method}, {one.target}"
            expected = f"the conventions of the run, {settings['seed_images']}, {settings['cra']}"
            _checks.fail(ValueError, str(folder / "results.jsonl"), expected, got)
    return settings, scores


def leader_board(folders: Sequence[str | Path], out: str | Path) -> Path:
    """Write the page; it stands by itself, and links to the runs' reports.

    Args:
        folders: of finished runs. out: an .html file, replaced if it is there.

    Raises:
        As `boards`; ValueError: another ending than .html.
    """
    out = Path(out)
    if out.suffix != ".html":
        _checks.fail(ValueError, "out", "a file that ends in .html", out.name)
    found = boards(folders)
    from jinja2 import Environment, PackageLoader, StrictUndefined

    templates = Environment(
        loader=PackageLoader("tenfold.runs", "template"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    tables = [_table(board, out.parent) for board in found]
    html = templates.get_template("board.html.j2").render(tables=tables, columns=[*_HEADS.values()])
    write_text(out, html)
    return out


def _table(board: Board, beside: Path) -> dict[str, Any]:
    lines = []
    for place, one in enumerate(board.ranked, 1):
        report = quote(os.path.relpath(board.runs[one.method] / "report.html", beside))
        note = f"{one.mean_rank:.2f} ({one.interval[0]:.2f} to {one.interval[1]:.2f})"
        lines.append(
            {"place": place, "method": one.method, "link": report, "rank": note, "sort": one.mean_rank,
             "cells": _cells(board.rows[one.method]), "beaten": ", ".join(one.beaten_by)}
        )  # fmt: skip
    for method, row in board.published.items():
        lines.append(
            {"place": "", "method": f"{method}, as published", "link": "", "rank": "", "sort": 1e9,
             "cells": _cells(row), "beaten": ""}
        )  # fmt: skip
    settings = {k: _shown(v) for k, v in board.settings.items() if v not in (None, "", [])}
    return {"settings": settings, "lines": lines}


def _cells(row: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"text": "" if row[c] is None else f"{row[c]:.4g}", "sort": -1.0 if row[c] is None else row[c]}
        for c in COLUMNS
    ]


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {100 * v:.1f} %" for k, v in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
