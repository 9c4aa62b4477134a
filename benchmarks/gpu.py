"""Everything that needs a GPU, in one command: build, tests, memory checks, benchmarks.

    python -m benchmarks.gpu --out DIR            # in a checkout, with torch, pytest and nvcc at hand
    python -m tenfold.benchmarks.gpu --out DIR    # where the package is installed already

Each part has a limit of its own, and gpu.json and gpu.md are written after each, so that parts can be run in
separate calls with the same DIR and an interrupted one costs only itself. Tests and memory checks run at the
same time, the benchmarks alone. This file and gpu_report.py need nothing but Python: the package under test
is what `build` installs into DIR/site.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

from .gpu_report import SCHEMA, summary, table

LIMITS = {"build": 300, "tests": 200, "sanitizer": 150, "bench": 240}
"""Seconds."""

TOGETHER = (("build",), ("tests", "sanitizer"), ("bench",))
"""What may run at the same time: times are measured with nothing beside them."""

TESTS = ("tests/cuda", "tests/ops", "tests/optim", "tests/nn", "tests/metrics")
CHOSEN = "(cuda or triton or gpu) and not emulated and not test_compile and not compiles_ahead"
"""Not what needs no GPU: the emulated source, and the compilers' reports."""

GRACE_S = 30


class Job:
    """One command of a part: how it ended, within which time."""

    running: ClassVar[set[subprocess.Popen[bytes]]] = set()

    def __init__(
        self, command: Sequence[str], folder: Path, env: dict[str, str], limit: float, log: Path
    ) -> None:
        begin = time.monotonic()
        with log.open("ab") as out:
            child = subprocess.Popen(
                command, cwd=folder, env=env, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
            )
            self.timed_out = False
            self.running.add(child)
            try:
                child.wait(max(limit, 1.0))
            except subprocess.TimeoutExpired:
                self.timed_out = True
                _end(child)
            except KeyboardInterrupt:
                _end(child)
                raise
            finally:
                self.running.discard(child)
        self.code, self.seconds = child.returncode, time.monotonic() - begin


def _end(child: subprocess.Popen[bytes]) -> None:
    """Ctrl-C for it and its children, which write what they have; then the end."""
    for sign in (signal.SIGINT, signal.SIGKILL):
        try:
            os.killpg(child.pid, sign)
        except ProcessLookupError:
            return
        try:
            child.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            continue


class Place:
    """Where things are, and the environment of what is started."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.out, self.source = options, options.out.resolve(), options.source.resolve()
        self.out.mkdir(parents=True, exist_ok=True)
        self.site = options.site.resolve() if options.site else self.out / "site"
        self.env = {
            **os.environ,
            "PYTHONUNBUFFERED": "1",
            "OMP_NUM_THREADS": "1",
            "OMP_WAIT_POLICY": "passive",
            "TENFOLD_GPU_BROKEN": str(self.out / "broken.txt"),
        }
        if self.site.is_dir() or "build" in options.part:
            before = os.environ.get("PYTHONPATH")
            self.env["PYTHONPATH"] = f"{self.site}{os.pathsep}{before}" if before else str(self.site)

    def run(
        self, name: str, command: Sequence[str], limit: float, folder: Path | None = None, **env: str
    ) -> Job:
        return Job(command, folder or self.out, {**self.env, **env}, limit, self.out / f"{name}.log")


def _asked(command: Sequence[str], env: dict[str, str] | None = None) -> str:
    """Standard output of a command, or nothing when it is not there or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=env, timeout=120)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def device() -> dict[str, str]:
    """The first GPU as its driver names it; RuntimeError when there is none."""
    keys = ("name", "memory", "driver", "compute_capability")
    query = "--query-gpu=name,memory.total,driver_version,compute_cap"
    lines = _asked(["nvidia-smi", query, "--format=csv,noheader"]).splitlines()
    if not lines:
        raise RuntimeError("device: expected an NVIDIA GPU that nvidia-smi names, got none")
    return dict(zip(keys, (cell.strip() for cell in lines[0].split(",")), strict=True))


_VERSIONS = """
import importlib.metadata as metadata, json, platform
found = {"python": platform.python_version()}
for name in ("tenfold", "torch", "triton"):
    try:
        found[name] = metadata.version(name)
    except metadata.PackageNotFoundError:
        found[name] = ""
print(json.dumps(found))
"""


def versions(env: dict[str, str]) -> dict[str, str]:
    """Of what was measured; an empty text for what is not there."""
    found = json.loads(_asked([sys.executable, "-c", _VERSIONS], env) or "{}")
    compiler = re.search(r"release ([\d.]+)", _asked(["nvcc", "--version"]))
    return {**found, "nvcc": compiler[1] if compiler else ""}


# ---- parts -----------------------------------------------------------------------------------------------


def build(at: Place, limit: float) -> dict[str, Any]:
    """A wheel for this GPU alone, or the one given, installed into DIR/site."""
    begin, wheel = time.monotonic(), at.options.wheel
    pip = [sys.executable, "-m", "pip"]
    if wheel is None:
        architecture = device()["compute_capability"].replace(".", "") + "-real"
        at.env |= {"TENFOLD_CUDA": "on", "TENFOLD_CUDA_ARCHS": architecture}
        at.env.setdefault("CMAKE_BUILD_PARALLEL_LEVEL", str(os.cpu_count() or 1))
        made = [*pip, "wheel", "-q", "--no-build-isolation", "--no-deps", "-w", str(at.out), "."]
        job = at.run("build", made, limit, at.source)
        wheels = sorted(at.out.glob("tenfold-*.whl"), key=lambda path: path.stat().st_mtime)
        if job.code != 0 or not wheels:
            return {"ok": False, "code": job.code, "timed_out": job.timed_out, "wheel": ""}
        wheel = wheels[-1]
    install = [*pip, "install", "-q", "--no-deps", "--no-compile", "--upgrade", "--target", str(at.site)]
    job = at.run("build", [*install, str(wheel.resolve())], limit - (time.monotonic() - begin))
    return {"ok": job.code == 0, "code": job.code, "timed_out": job.timed_out, "wheel": wheel.name}


def tests(at: Place, limit: float) -> dict[str, Any]:
    """Tests that run on the GPU, in parallel where pytest-xdist is installed."""
    report, broken = at.out / "tests.xml", at.out / "broken.txt"
    for path in (report, broken):
        path.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-p", "tenfold.benchmarks.gpu_guard", "-q", "--tb=short"]
    command += ["-rfE", "--slow", "-k", CHOSEN, f"--junitxml={report}", f"--rootdir={at.source}"]
    if _asked([sys.executable, "-c", "import xdist; print(xdist.__version__)"], at.env):
        command += ["-n", str(at.options.workers), "--dist", "worksteal"]
    job = at.run("tests", [*command, *at.options.tests], limit, at.source)
    found = counted(report)
    lines = broken.read_text(encoding="utf-8").splitlines() if broken.exists() else []
    return {
        **found,
        "ok": job.code == 0 and found["passed"] > 0,
        "code": job.code,
        "timed_out": job.timed_out,
        "broken": lines,
    }


def counted(report: Path) -> dict[str, Any]:
    """Counts and failures of a JUnit report; zeros when there is none."""
    found: dict[str, Any] = {"passed": 0, "failed": 0, "skipped": 0, "failures": []}
    if not report.exists():
        return found
    for case in ET.parse(report).iter("testcase"):
        wrong = [child for child in case if child.tag in ("failure", "error")]
        if wrong:
            found["failed"] += 1
            why = (wrong[0].get("message") or "").splitlines()
            name = f"{case.get('classname', '').replace('.', '/')}::{case.get('name')}"
            found["failures"].append([name, why[0][:300] if why else ""])
        else:
            found["skipped" if case.find("skipped") is not None else "passed"] += 1
    return found


def sanitizer(at: Place, limit: float) -> dict[str, Any]:
    """compute-sanitizer's memcheck over one call of every op, each tensor in an allocation of its own."""
    log = at.out / "sanitizer.log"
    log.unlink(missing_ok=True)
    command = ["compute-sanitizer", "--tool", "memcheck", "--error-exitcode", "9", sys.executable]
    command += ["-W", "ignore", "-m", "tenfold.benchmarks.calls", "--device", "cuda"]
    try:
        job = at.run("sanitizer", command, limit, PYTORCH_NO_CUDA_MEMORY_CACHING="1")
    except OSError as error:
        return {"ok": False, "errors": None, "calls": 0, "timed_out": False, "why": str(error)}
    text = log.read_text(encoding="utf-8", errors="replace")
    said = re.search(r"ERROR SUMMARY: (\d+) error", text)
    calls = len(re.findall(r"^[a-z]+\.[a-z0-9_.]+$", text, re.MULTILINE))
    errors = int(said[1]) if said else None
    return {
        "ok": job.code == 0 and errors == 0,
        "code": job.code,
        "timed_out": job.timed_out,
        "errors": errors,
        "calls": calls,
    }


def bench(at: Place, limit: float) -> dict[str, Any]:
    """`tenfold bench --device cuda`: every family, with the peers that are installed."""
    record = at.out / "bench.json"
    record.unlink(missing_ok=True)
    command = [sys.executable, "-W", "ignore", "-m", "tenfold.benchmarks", *at.options.families]
    command += ["--device", "cuda", "--json", str(record), "--out", str(at.out / "bench")]
    command += ["--seconds", str(at.options.seconds), "--runs", str(at.options.runs)]
    command += ["--no-reference"]  # whose passes take seconds, and which the tests compare to the bit
    if at.options.no_compiled:
        command += ["--no-compiled"]
    job = at.run("bench", command, limit)
    empty: dict[str, Any] = {"records": [], "floors": {"rates": {}}}
    found = json.loads(record.read_text(encoding="utf-8")) if record.exists() else empty
    if job.timed_out:
        found.setdefault("interrupted", f"after {len(found['records'])} cases")
    return {**found, "ok": job.code == 0, "code": job.code, "timed_out": job.timed_out}


PARTS: dict[str, Callable[[Place, float], dict[str, Any]]] = {
    "build": build,
    "tests": tests,
    "sanitizer": sanitizer,
    "bench": bench,
}


# ---- the command -----------------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="tenfold.benchmarks.gpu", description=(__doc__ or "").splitlines()[0])
    made.add_argument("--out", type=Path, required=True, metavar="DIR", help="where everything is written")
    made.add_argument("--part", nargs="+", choices=tuple(PARTS), default=list(PARTS), help="default: all")
    made.add_argument("--source", type=Path, default=Path(), metavar="DIR", help="the checkout (default: .)")
    made.add_argument("--wheel", type=Path, metavar="FILE", help="install this one instead of building")
    made.add_argument("--site", type=Path, metavar="DIR", help="where to install (default: DIR/site)")
    made.add_argument("--limit", nargs="+", default=[], metavar="PART=SECONDS", help=f"default: {LIMITS}")
    made.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 2), help="of the tests")
    made.add_argument("--tests", nargs="+", default=list(TESTS), metavar="PATH", help="below the checkout")
    made.add_argument("--families", nargs="+", default=[], help="of the benchmarks (default: all)")
    made.add_argument("--seconds", type=float, default=0.4, help="of one side of a benchmark (default 0.4)")
    made.add_argument("--runs", type=int, default=7, help="most samples of one side (default 7)")
    made.add_argument("--no-compiled", action="store_true", help="benchmarks without torch.compile")
    return made


def limits(given: Sequence[str]) -> dict[str, float]:
    """LIMITS with those of the command line; ValueError names what is wrong."""
    found: dict[str, float] = dict(LIMITS)
    for text in given:
        part, _, seconds = text.partition("=")
        if part not in PARTS or not re.fullmatch(r"\d+(\.\d+)?", seconds):
            raise ValueError(
                f"--limit: expected PART=SECONDS with a part of {', '.join(PARTS)}, got {text!r}"
            )
        found[part] = float(seconds)
    return found


def _write(path: Path, text: str) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, path)


def _at_once(work: Place, names: Sequence[str], allowed: dict[str, float]) -> dict[str, Any]:
    def timed(name: str) -> dict[str, Any]:
        begin = time.monotonic()
        part = PARTS[name](work, allowed[name])
        return {**part, "seconds": round(time.monotonic() - begin, 1)}

    with ThreadPoolExecutor(len(names)) as pool:
        try:
            return dict(zip(names, pool.map(timed, names), strict=True))
        except KeyboardInterrupt:
            for child in list(Job.running):
                _end(child)
            raise


def main(argv: Sequence[str] | None = None) -> int:
    """0: every part that was asked for went well; 1: not so; 2: the command line is wrong, or there is no
    GPU."""
    try:
        options = parser().parse_args(argv)
        allowed = limits(options.limit)
        found = device()
    except (ValueError, RuntimeError) as error:
        print(f"gpu: {error}", file=sys.stderr)
        return 2
    work = Place(options)
    path = work.out / "gpu.json"
    result: dict[str, Any] = {"schema": SCHEMA, "parts": {}}
    if path.exists():
        result = json.loads(path.read_text(encoding="utf-8"))
    for names in ([name for name in group if name in options.part] for group in TOGETHER):
        if not names:
            continue
        print(f"{', '.join(names)} ...", file=sys.stderr, flush=True)
        result["parts"] |= _at_once(work, names, allowed)
        result |= {"device": found, "versions": versions(work.env)}
        result["date"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        _write(path, json.dumps(result, indent=1) + "\n")
        _write(work.out / "gpu.md", table(result) + "\n")
        if names == ["build"] and not result["parts"]["build"]["ok"]:
            break
    print(summary(result))
    return 0 if all(result["parts"].get(name, {}).get("ok") for name in options.part) else 1


if __name__ == "__main__":
    sys.exit(main())
