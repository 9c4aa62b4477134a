"""One page for several runs: what each paper says, what its run shows, how long it took."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tenfold.runs.environment import capture
from tenfold.runs.files import read_json, write_json, write_text
from tenfold.runs.progress import duration
from tenfold.runs.report import command, inline, picture, show_number
from tenfold.workflows import WORKFLOWS

__all__ = ["SCHEMA", "Entry", "write_summary"]

SCHEMA = "tenfold.summary/1"


@dataclass
class Entry:
    """A run in the folder of its workflow's name. exit_code: None before it has ended."""

    name: str
    exit_code: int | None = None

    @property
    def state(self) -> str:
        """ "waiting", "finished", "interrupted" or "failed"; 1 is a finished run that found faults in its
        input."""
        if self.exit_code is None:
            return "waiting"
        return {0: "finished", 1: "finished", 130: "interrupted"}.get(self.exit_code, "failed")


def write_summary(root: Path, entries: Sequence[Entry]) -> Path:
    """Write index.html and summary.json from the finished runs below `root`; the page's path."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    for entry in entries:  # a run may have failed after its exit code was good, or the other way round
        if entry.state == "finished" and not (root / entry.name / "metrics.json").exists():
            entry.exit_code = 3
    runs = [_run(root, entry) for entry in entries]
    environment = capture(None)
    finished = [run for run in runs if run["state"] == "finished"]
    write_json(
        root / "summary.json",
        {
            "schema": SCHEMA,
            "environment": environment,
            "seconds": round(sum(run["seconds"] for run in finished), 3),
            "runs": [
                {key: run[key] for key in ("name", "state", "exit_code", "seconds", "peak_rss_mib", "claims")}
                for run in runs
            ],
        },
    )
    templates = Environment(
        loader=PackageLoader("tenfold.runs", "template"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    templates.filters.update(number=show_number, inline=inline, duration=duration)
    html = templates.get_template("summary.html.j2").render(
        runs=runs,
        environment=environment,
        finished=len(finished),
        seconds=sum(run["seconds"] for run in finished),
    )
    write_text(root / "index.html", html)
    return root / "index.html"


def _run(root: Path, entry: Entry) -> dict[str, Any]:
    folder, workflow = root / entry.name, WORKFLOWS[entry.name]
    found: dict[str, Any] = {
        "name": entry.name, "state": entry.state, "exit_code": entry.exit_code,
        "command": command(entry.name), "paper": workflow.paper, "default": workflow.default,
        "seconds": 0.0, "peak_rss_mib": 0.0,
        "title": entry.name, "lead": "", "headlines": [], "claims": [], "figure": None, "message": "",
    }  # fmt: skip
    if entry.state != "finished":
        found["message"] = _last_words(folder)
        return found
    page, document = read_json(folder / "report.json"), read_json(folder / "metrics.json")
    found |= {key: page[key] for key in ("title", "lead", "headlines", "claims")}
    found |= {key: document[key] for key in ("seconds", "peak_rss_mib")}
    names = [name for section in page["sections"] for name in section["figures"]]
    if names:
        found["figure"] = {**page["figures"][names[0]], **picture(folder / "figures", names[0])}
    return found


def _last_words(folder: Path) -> str:
    """The last line of a run's log, where it has one."""
    log = folder / "log.txt"
    lines = log.read_text(encoding="utf-8").split("\n") if log.exists() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
