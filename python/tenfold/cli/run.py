"""`tenfold run NAME`: config from file and flags, a run folder, the workflow, and what came out."""

from __future__ import annotations

import dataclasses
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tenfold.cli import EXPLAINED, did_you_mean
from tenfold.runs import ranks
from tenfold.workflows import WORKFLOWS, Workflow

__all__ = ["run", "run_workflow"]

_USAGE = """usage: tenfold run NAME [--config FILE.yaml] [--field value ...] [--out DIR] [--resume]

Runs a workflow and writes one folder with its numbers, tables, figures and report.html.
Without settings it runs the embedded default: real data, no download.
tenfold run NAME --help shows the settings of a workflow.
tenfold run all runs every workflow's default one after another and writes one page about all.
"""


def run(arguments: Sequence[str]) -> int:
    """Exit code of `tenfold run`: 0 only if the run finished, 1 if it did and flagged faults of its input."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"{_USAGE}\nReady: {', '.join(_ready())} (tenfold list shows all)")
        return 0 if arguments else 2
    if arguments[0] == "all":
        from tenfold.cli.run_all import run_all

        _expect_one_process("all")
        return run_all(arguments[1:])
    return run_workflow(_workflow(arguments[0]), arguments[1:])


def run_workflow(workflow: Workflow, arguments: Sequence[str]) -> int:
    """Exit code of one workflow, called with `arguments`; under torchrun one of its processes."""
    if not ranks.started():
        return _run(workflow, *_settings(workflow, arguments))
    if not workflow.follower:
        _expect_one_process(workflow.name)
    with ranks.joined() as group:
        if group.rank:
            workflow.load_follower()(group)
            return 0
        return _run(workflow, *_settings(workflow, arguments))


def _expect_one_process(name: str) -> None:
    if ranks.started():
        known = ", ".join(name for name, workflow in WORKFLOWS.items() if workflow.follower)
        raise ValueError(f"torchrun: expected one of {known}, got {name}, which runs in one process")


def _ready() -> list[str]:
    return [name for name, workflow in WORKFLOWS.items() if workflow.ready]


def _workflow(name: str) -> Workflow:
    if name not in WORKFLOWS:
        known = ", ".join(WORKFLOWS)
        raise ValueError(f"expected a NAME of {known}, got {name!r}{did_you_mean(name, WORKFLOWS)}")
    if not WORKFLOWS[name].ready:
        raise ValueError(f"{name} is not ready in this version; ready: {', '.join(_ready())}")
    return WORKFLOWS[name]


def _settings(workflow: Workflow, arguments: Sequence[str]) -> tuple[Any, str | None, bool]:
    """(config, out, resume). A resumed run takes its settings from its own folder if no --config is given."""
    from tenfold.runs.folder import latest_unfinished

    values = _parse(workflow, arguments)
    out, resume = values["out"], values["resume"]
    if resume and values["config"] is None:
        out = out or str(latest_unfinished(workflow.name))
        stored = Path(out) / "config.yaml"
        if not stored.exists():
            raise FileNotFoundError(f"out: expected the folder of a run, got {out}, which has no config.yaml")
        values = _parse(workflow, ["--config", str(stored), *arguments])
    config = workflow.load_config()
    names = [field.name for field in dataclasses.fields(config) if field.init]
    made = config(**{name: values[name] for name in names})
    return made.resolved() if hasattr(made, "resolved") else made, out, resume


def _parse(workflow: Workflow, arguments: Sequence[str]) -> dict[str, Any]:
    from tenfold.cli.parsing import make_parser, parse, with_config
    from tenfold.runs.report import command

    default = workflow.default.rstrip(".")
    stop = "" if default.endswith("?") else "."
    about = f"{workflow.paper}." + (f" Embedded default: {default}{stop}" if default else "")
    parser = make_parser(command(workflow.name), about)
    with_config(parser, workflow.load_config())
    parser.add_argument(
        "--out", metavar="DIR", type=str, help="folder of the run (default: runs/NAME-DATE-TIME)"
    )
    resume = "go on with the interrupted run in --out, or with the latest one"
    parser.add_argument("--resume", action="store_true", help=resume)
    return parse(parser, arguments)


def _run(workflow: Workflow, config: Any, out: str | None, resume: bool) -> int:
    from tenfold.runs import RunFolder
    from tenfold.runs.report import command

    if resume and out is not None and (Path(out) / "metrics.json").exists():
        from tenfold.runs.files import read_json

        print(f"{workflow.name} has already finished\nreport: {Path(out) / 'report.html'}")
        return 1 if read_json(Path(out) / "metrics.json")["metrics"].get("faults") else 0
    target = workflow.load_target()
    folder = RunFolder.create(workflow.name, config, out, resume)
    try:
        result = target(config, folder)
    except KeyboardInterrupt:
        folder.log("interrupted")
        again = f"{command(workflow.name)} --out {folder.path} --resume"
        print(f"go on with: {again}", file=sys.stderr)
        return 130
    except Exception as error:
        if isinstance(error, EXPLAINED) and folder.discard():  # nothing to resume, nothing in the way
            raise
        folder.log_exception(traceback.format_exc())
        print(f"the traceback is in {folder.path / 'log.txt'}", file=sys.stderr)
        raise
    if not folder.finished:
        raise AssertionError(f"{workflow.name} ended without finishing {folder.path}")
    _print_result(folder.path)
    return int(getattr(result, "exit_code", 0))


def _print_result(path: Path) -> None:
    from tenfold.runs.files import read_json
    from tenfold.runs.report import show_number

    for headline in read_json(path / "report.json")["headlines"]:
        note = f"  ({headline['note']})" if headline["note"] else ""
        print(f"{headline['label']}: {show_number(headline['value'])}{note}")
    print(f"numbers: {path / 'metrics.json'}\nreport: {path / 'report.html'}")
