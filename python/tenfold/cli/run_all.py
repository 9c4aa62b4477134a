"""`tenfold run all`: every workflow on its embedded default, one after another, and one page for all."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from tenfold.cli import did_you_mean
from tenfold.workflows import WORKFLOWS

__all__ = ["run_all"]

_TENFOLD = (sys.executable, "-m", "tenfold")


def run_all(arguments: Sequence[str]) -> int:
    """Exit code: 0 if every run finished, 1 if one did not, 130 if interrupted."""
    from tenfold.cli.parsing import make_parser, parse
    from tenfold.runs.folder import require
    from tenfold.runs.summary import Entry, write_summary

    parser = make_parser("tenfold run all", "Run the workflows one after another; one page shows all.")
    out = "folder of the runs, one below it for each (default: runs/all-DATE-TIME)"
    parser.add_argument("--out", metavar="DIR", type=str, help=out)
    only = "the workflows to run, in this order (default: all that are ready)"
    parser.add_argument("--only", metavar="NAME", type=str, nargs="+", help=only)
    parser.add_argument("--skip", metavar="NAME", type=str, nargs="+", help="workflows to leave out")
    configs = "folder with a NAME.yaml for each workflow that is not to run its embedded default"
    parser.add_argument("--configs", metavar="DIR", type=str, help=configs)
    resume = "go on in --out: what has finished stays, what was interrupted is resumed"
    parser.add_argument("--resume", action="store_true", help=resume)
    values = parse(parser, arguments)
    names = _names(values["only"], values["skip"])
    require("jinja2", "matplotlib", "safetensors")
    settings = _settings(values["configs"], names)
    root = _folder(values["out"], values["resume"])
    entries = [Entry(name) for name in names]
    code = 0
    for i, entry in enumerate(entries):
        write_summary(root, entries)
        print(f"[{i + 1}/{len(entries)}] tenfold run {entry.name}", file=sys.stderr, flush=True)
        entry.exit_code = _run(entry.name, root / entry.name, settings.get(entry.name))
        write_summary(root, entries)
        if entry.exit_code == 130:
            print(f"go on with: tenfold run all --out {root} --resume", file=sys.stderr)
            return 130
        code = code or int(entry.state != "finished")
    failed = [entry.name for entry in entries if entry.state != "finished"]
    if failed:
        print(f"not finished: {', '.join(failed)}")
    print(f"summary: {root / 'index.html'}")
    return code


def _names(only: Sequence[str] | None, skip: Sequence[str] | None) -> list[str]:
    """The workflows to run."""
    ready = [name for name, workflow in WORKFLOWS.items() if workflow.ready]
    for argument, given in (("only", only or ()), ("skip", skip or ())):
        for i, name in enumerate(given):
            if name not in ready:
                known = f"{', '.join(ready)}, got {name!r}{did_you_mean(name, ready)}"
                raise ValueError(f"{argument}: expected names of {known}")
            if name in given[:i]:
                raise ValueError(f"{argument}: expected each name once, got {name} twice")
    chosen = [name for name in (only or ready) if name not in (skip or ())]
    if not chosen:
        raise ValueError("only, skip: expected at least one workflow to run, got none")
    return chosen


def _settings(configs: str | None, names: Sequence[str]) -> dict[str, Path]:
    """Name -> its settings file, for those that have one."""
    if configs is None:
        return {}
    found = {path.stem: path for path in sorted(Path(configs).glob("*.yaml"))}
    if not found:
        raise FileNotFoundError(f"configs: expected a folder with NAME.yaml files, got {configs} with none")
    for name in found:
        if name not in WORKFLOWS:
            got = f"{name}.yaml{did_you_mean(name, WORKFLOWS)}"
            raise ValueError(f"configs: expected files named as workflows, got {got}")
    return {name: found[name] for name in names if name in found}


def _folder(out: str | None, resume: bool) -> Path:
    if resume and out is None:
        raise ValueError("out: expected the folder to go on in, got none")
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    root = Path(out) if out is not None else Path("runs") / f"all-{stamp}"
    if root.exists() and not root.is_dir():
        raise FileExistsError(f"out: expected a folder, got the file {root}")
    if resume and not root.is_dir():
        raise FileNotFoundError(f"out: expected the folder of an earlier run of all, got {root}, none there")
    if root.is_dir() and any(root.iterdir()) and not resume:
        raise FileExistsError(f"out: expected a new or empty folder, got {root}; --resume goes on there")
    root.mkdir(parents=True, exist_ok=True)
    return root


def _run(name: str, out: Path, config: Path | None) -> int:
    """Exit code of one workflow, in a process of its own: its memory is its own, and so is its crash."""
    command: list[Any] = [*_TENFOLD, "run", name, "--out", out]
    if (out / "config.yaml").exists():
        command += ["--resume"]
    elif config is not None:
        command += ["--config", config]
    start = time.monotonic()
    process = subprocess.Popen([str(part) for part in command])
    try:
        code = process.wait()
    except KeyboardInterrupt:  # the terminal has told the run as well
        process.wait()
        return 130
    if code not in (0, 1):
        print(f"{name}: exit code {code} after {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    return code
