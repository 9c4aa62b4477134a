"""`tenfold bench [FAMILY ...]`."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from . import FAMILIES, cases_of
from .floors import better_of, measure_floors
from .harness import Case, Plan, floor_of, run_case
from .memory import measure_in_children
from .report import SCHEMA, environment, markdown, plot, to_json, write_text

SKIPPABLE = ("reference", "compiled")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="tenfold bench",
        description="Time operations against the machine's floor, the PyTorch reference and named peers.",
    )
    made.add_argument(
        "families", nargs="*", metavar="FAMILY", help=f"families to run: {', '.join(FAMILIES)} (default: all)"
    )
    made.add_argument("--only", metavar="ID,ID", help="run only these ids")
    made.add_argument("--list", action="store_true", help="print the ids and stop")
    made.add_argument("--threads", type=int, default=1, metavar="N", help="threads of every side (default 1)")
    made.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    made.add_argument("--json", metavar="FILE", type=Path, help="write the records here")
    made.add_argument("--out", metavar="DIR", type=Path, help="write bench.json, bench.md and plots here")
    made.add_argument(
        "--seconds", type=float, default=6.0, metavar="S", help="time budget of one side (default 6)"
    )
    made.add_argument("--runs", type=int, default=9, metavar="N", help="most samples of one side (default 9)")
    made.add_argument(
        "--no-memory", action="store_true", help="do not measure memory (CPU: one process per side)"
    )
    for kind in SKIPPABLE:
        made.add_argument(f"--no-{kind}", action="store_true", help=f"do not run the {kind} side")
    return made


def chosen_cases(families: Sequence[str], only: str | None) -> list[Case]:
    """Cases of the families, or of the ids in `only`; ValueError names what is unknown."""
    unknown = [f for f in families if f not in FAMILIES]
    if unknown:
        raise ValueError(f"FAMILY: expected one of {', '.join(FAMILIES)}, got {', '.join(unknown)}")
    ids = [part.strip() for part in only.split(",") if part.strip()] if only is not None else None
    if ids is not None and not ids:
        raise ValueError("--only: expected ids separated by commas, got none")
    if not families:
        families = [f for f in FAMILIES if ids is None or any(i.split(".", 1)[0] == f for i in ids)] or list(
            FAMILIES
        )
    cases = [case for family in families for case in cases_of(family)]
    if ids is None:
        return cases
    known = {case.id: case for case in cases}
    missing = [i for i in ids if i not in known]
    if missing:
        raise ValueError(f"--only: expected ids listed by --list, got {', '.join(missing)}")
    return [known[i] for i in dict.fromkeys(ids)]


def _checked_plan(options: argparse.Namespace) -> Plan:
    if options.threads < 1:
        raise ValueError(f"--threads: expected at least 1, got {options.threads}")
    if options.runs < 1:
        raise ValueError(f"--runs: expected at least 1, got {options.runs}")
    if not options.seconds > 0:
        raise ValueError(f"--seconds: expected more than 0, got {options.seconds}")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device: cuda was asked for, but torch finds no CUDA device here")
    return Plan(
        device=torch.device(options.device),
        threads=options.threads,
        seconds=options.seconds,
        most=options.runs,
        leave_out=frozenset(kind for kind in SKIPPABLE if getattr(options, f"no_{kind}")),
    )


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _outcome(record: dict[str, Any]) -> str:
    if record["ms"] is None:
        return f"missing: {record['why_missing']}"
    peers = [
        f"{p['name']} {p['times_ours']:.2f}x{'' if p['agrees'] else ' DISAGREES'}"
        for p in record["peers"]
        if p["ms"] is not None
    ]
    return ", ".join(peers) or "no peer ran"


def failed(records: Sequence[dict[str, Any]]) -> bool:
    """Whether ours did not run somewhere, or a peer that ran disagrees."""
    return any(
        record["ms"] is None or any(peer["ms"] is not None and not peer["agrees"] for peer in record["peers"])
        for record in records
    )


def measure(
    cases: Sequence[Case],
    plan: Plan,
    with_memory: bool = True,
    keep: Callable[[dict[str, Any]], None] = lambda result: None,
) -> dict[str, Any]:
    """Floors, then every case in turn: the object that `--json` writes.

    `keep` is called with what there is after every case. An interrupt (Ctrl-C, SIGTERM) ends the measuring:
    the case at work is lost, and the result says `interrupted`.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(plan.threads)
    try:
        result: dict[str, Any] = {"schema": SCHEMA, "environment": environment(plan)}
        _say("measuring what this machine can do ...")
        counts = sorted({1, plan.threads}) if plan.device.type == "cpu" else [1]
        result["floors"] = measure_floors(plan.device, counts)
        result["records"] = []
        try:
            for i, case in enumerate(cases, 1):
                record = run_case(case, plan, measure_in_children if with_memory else None)
                result["records"].append(record)
                _say(f"[{i}/{len(cases)}] {case.id}: {_outcome(record)}")
                keep(_with_floors(result, plan))
            result["floors"] = better_of(result["floors"], measure_floors(plan.device, counts))
        except KeyboardInterrupt:
            result["interrupted"] = f"after {len(result['records'])} of {len(cases)} cases"
            _say(f"tenfold bench: interrupted {result['interrupted']}")
        return _with_floors(result, plan)
    finally:
        torch.set_num_threads(before)


def _with_floors(result: dict[str, Any], plan: Plan) -> dict[str, Any]:
    for record in result["records"]:
        if "work" in record:
            record.update(floor_of(record["work"], result["floors"], plan.threads))
    return result


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def write(result: dict[str, Any], table: str, json_file: Path | None, folder: Path | None) -> None:
    """Writes what was asked for; a missing matplotlib costs the plots only, and is said."""
    if json_file:
        write_text(json_file, to_json(result))
    if not folder:
        return
    write_text(folder / "bench.json", to_json(result))
    write_text(folder / "bench.md", table)
    try:
        plot(result, folder)
    except ImportError as error:
        _say(f"no plots: {error} (pip install matplotlib)")


def main(argv: Sequence[str] | None = None) -> int:
    """0: ours ran everywhere and every peer that ran agrees; 1: not so; 2: the command line is wrong; 130:
    interrupted, what there was is written."""
    try:
        options = parser().parse_args(argv)
        cases = chosen_cases(options.families, options.only)
        plan = _checked_plan(options)
    except ValueError as error:
        _say(f"tenfold bench: {error}")
        return 2
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 2
    left_out = [case.id for case in cases if plan.device.type not in case.devices]
    cases = [case for case in cases if plan.device.type in case.devices]
    if options.list:
        print("\n".join(case.id for case in cases))
        return 0
    for case_id in left_out:
        _say(f"tenfold bench: {case_id} is left out: the operation has no kernel on {plan.device.type}")
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _interrupt)

    def keep(so_far: dict[str, Any]) -> None:
        for path in (options.json, options.out / "bench.json" if options.out else None):
            if path:
                write_text(path, to_json(so_far))

    result = measure(cases, plan, not options.no_memory, keep)
    table = markdown(result)
    print(table, end="")
    write(result, table, options.json, options.out)
    if "interrupted" in result:
        return 130
    return 1 if failed(result["records"]) else 0
