"""The short commands: list, bench, doctor, report."""

from __future__ import annotations

import json
import shutil
import textwrap
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from tenfold.cli.parsing import make_parser, parse
from tenfold.workflows import WORKFLOWS

__all__ = ["bench", "doctor", "list_workflows", "report"]


def list_workflows(arguments: Sequence[str]) -> int:
    """The ten workflows as text, or with --json as other programs read them."""
    parser = make_parser("tenfold list", "The ten workflows: paper, embedded default, kernels, state.")
    parser.add_argument("--json", action="store_true", help="print JSON")
    rows = [
        {"name": w.name, "paper": w.paper, "families": w.families, "default": w.default, "ready": w.ready}
        for w in WORKFLOWS.values()
    ]
    if parse(parser, arguments)["json"]:
        _print_json(rows)
    else:
        _print_blocks(rows)
    return 0


def bench(arguments: Sequence[str]) -> int:
    """`tenfold bench` is `python -m tenfold.benchmarks`."""
    return int(import_module("tenfold.benchmarks").main(list(arguments)))


def doctor(arguments: Sequence[str]) -> int:
    """What is here and what is missing; exit code 1 if the native core does not load."""
    about = "What is installed, which backend each op takes, what is missing and how to get it."
    parser = make_parser("tenfold doctor", about)
    parser.add_argument("--json", action="store_true", help="print JSON")
    as_json = parse(parser, arguments)["json"]
    from tenfold import doctor as doctor_module

    found = doctor_module.report()
    if as_json:
        _print_json(found)
    else:
        print(doctor_module.as_text(found))
    return 0 if found["native"]["loaded"] else 1


def report(arguments: Sequence[str]) -> int:
    """Make report.html again, for instance after an update of the template."""
    parser = make_parser("tenfold report", "Make report.html of a finished run again from its folder.")
    parser.add_argument("folder", metavar="DIR", type=str, help="folder of a finished run")
    values = parse(parser, arguments)
    from tenfold.runs.report import render

    print(f"report: {render(values['folder'])}")
    return 0


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


def _print_blocks(rows: Sequence[dict[str, Any]]) -> None:
    width = min(shutil.get_terminal_size().columns, 110)
    indent = 2 + max(len(row["name"]) for row in rows)
    for row in rows:
        print(f"{row['name']:<{indent}}{'ready' if row['ready'] else 'not ready yet'}")
        for line in (row["paper"], f"default: {row['default']}", f"kernels: {', '.join(row['families'])}"):
            print(textwrap.indent(textwrap.fill(line, width - indent, subsequent_indent="  "), " " * indent))
