"""Peak extra memory of one call, measured in a fresh process per side.

The child process loads all code by running the side on a tiny input, builds the real input, gives freed pages
back, notes its resident size, resets the kernel's high-water mark (Linux: write 5 to
/proc/self/clear_refs), runs the side once and reads the mark. Workspace that a side keeps for later is
thereby counted, code is not.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from .harness import Plan, Workload

CHILD_LIMIT_S = 600


def _status_kib(key: str) -> int | None:
    try:
        found = re.search(rf"^{key}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found.group(1)) if found else None


def _high_water_kib() -> int:
    mark = _status_kib("VmHWM")
    if mark is not None:
        return mark
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // 1024 if sys.platform == "darwin" else peak


def _resident_kib() -> int | None:
    """Resident size; the exact sum where the kernel offers it (VmRSS lags by some pages per thread)."""
    try:
        found = re.search(r"^Rss:\s+(\d+) kB", Path("/proc/self/smaps_rollup").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return int(found.group(1)) if found else _status_kib("VmRSS")


def _reset_high_water() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _give_back_free_pages() -> None:
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)


def peak_extra(run: Callable[[], Any]) -> dict[str, Any]:
    """Runs once and returns {"peak_extra_mib", "peak_method"}: peak resident size minus resident size before.

    Where the high-water mark cannot be reset, the growth of the mark is taken, which can only be too small.
    """
    _give_back_free_pages()
    resident = _resident_kib()
    if resident is not None and _reset_high_water():
        before, method = resident, "VmHWM after reset, minus resident size before"
    else:
        before, method = _high_water_kib(), "growth of the peak resident size (a lower bound)"
    result = run()
    peak = _high_water_kib()
    del result
    return {"peak_extra_mib": max(0.0, (peak - before) / 1024), "peak_method": method}


def _side_named(workload: Workload, name: str) -> Any:
    for side in [workload.ours, *workload.others, *workload.parts]:
        if side.name == name:
            return side
    raise ValueError(f"side: expected a side of the case, got {name!r}")


def measure_here(case_id: str, side_name: str) -> dict[str, Any]:
    """Measures one side of one case in this process (CPU)."""
    from . import find_case

    case = find_case(case_id)
    device = torch.device("cpu")
    tiny = case.build(device, True)
    side = _side_named(tiny, side_name)
    why = side.prepare() if side.prepare else None
    if why:
        raise RuntimeError(f"{side_name}: {why}")
    for _ in range(2):
        tiny.reset()
        side.run()
    del tiny, side
    workload = case.build(device, False)
    side = _side_named(workload, side_name)
    if side.prepare:
        side.prepare()
    workload.reset()
    return peak_extra(side.run)


def measure_in_children(
    case_id: str, sides: Sequence[str], plan: Plan, rounds: int = 1
) -> dict[str, dict[str, Any]]:
    """Peak extra memory of the sides, each in its own process, in turns; the largest round counts."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(plan.threads), "MKL_NUM_THREADS": str(plan.threads)}
    peaks: dict[str, dict[str, Any]] = {}
    for _ in range(rounds):
        for name in sides:
            found = _child(case_id, name, plan.threads, environment)
            old = peaks.get(name)
            if old is None or (found["peak_extra_mib"] or 0) > (old["peak_extra_mib"] or 0):
                peaks[name] = found
    return peaks


def _child(case_id: str, side: str, threads: int, environment: dict[str, str]) -> dict[str, Any]:
    command = [sys.executable, "-m", f"{__package__}.memory", case_id, side, "--threads", str(threads)]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=CHILD_LIMIT_S)
    except subprocess.TimeoutExpired:
        return {"peak_extra_mib": None, "peak_method": f"failed: no result within {CHILD_LIMIT_S} s"}
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return {"peak_extra_mib": None, "peak_method": f"failed: {last[:300]}"}
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Entry of the child process: prints one JSON line."""
    parser = argparse.ArgumentParser(prog="tenfold.benchmarks.memory", description=__doc__)
    parser.add_argument("id")
    parser.add_argument("side")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    print(json.dumps(measure_here(options.id, options.side)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
