"""The clocks: CPU time, wall time, and the time of a GPU between two events.

The host issues work to a GPU and goes on. What two events around a call enclose is therefore the time of the
device only if the whole call was queued before the device reached the first of them; else the device waits
for the host in between, and a pass of microseconds seems to last as long as its launches. So the stream is
kept busy first, until the call has been issued (`take_device_sample`).
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch

# A sample shorter than this is repeated inside the clock, so that the clock's own cost stays below a percent.
SHORTEST_SAMPLE_S = 2e-3
MOST_REPEATS = 2000
# A GPU waits this much longer than the host needs to issue a call, so that it finds the call's work queued.
HEAD_START_S = 5e-4
LONGEST_ISSUE_S = 25e-3
UNAIDED = 3


CLOCKS = {
    "process_cpu": "CPU time of the whole process, user and system, all its threads (one thread is at work)",
    "wall": "wall-clock time (several threads are at work)",
    "cuda_events": "time between two CUDA events on the current stream, L2 cache flushed before; the stream "
    "waits before the first event until the call has been issued, so that the time of a side that does not "
    "synchronise is the device's, without the host's launches, which wall_ms of calls without a wait holds",
}


@dataclass
class Samples:
    """Seconds per call; one entry per sample and clock. issue: until the host had queued the call."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    cuda: list[float] = field(default_factory=list)
    issue: list[float] = field(default_factory=list)

    def of(self, clock: str) -> list[float]:
        return {"process_cpu": self.cpu, "wall": self.wall, "cuda_events": self.cuda}[clock]


def quantile(values: Iterable[float], q: float) -> float:
    """Linear-interpolated quantile, 0 <= q <= 1; ValueError when there are no values."""
    ordered = sorted(values)
    if not ordered:
        raise ValueError("values: expected at least one, got none")
    position = q * (len(ordered) - 1)
    low = math.floor(position)
    high = math.ceil(position)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def summary(samples: Samples, clock: str) -> dict[str, Any]:
    """Median and quartiles in milliseconds, on the clock in force and on the others that were read."""
    values = samples.of(clock)
    return {
        "ms": quantile(values, 0.5) * 1e3,
        "ms_quartiles": [quantile(values, 0.25) * 1e3, quantile(values, 0.75) * 1e3],
        "runs": len(values),
        "wall_ms": quantile(samples.wall, 0.5) * 1e3,
        "cpu_ms": quantile(samples.cpu, 0.5) * 1e3,
    }


_flush_buffers: dict[torch.device, torch.Tensor] = {}


def flush_l2(device: torch.device) -> None:
    """Overwrites more memory than the device's L2 cache holds."""
    if device not in _flush_buffers:
        cache = int(getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 64 << 20))
        _flush_buffers[device] = torch.empty(2 * max(cache, 64 << 20), dtype=torch.uint8, device=device)
    _flush_buffers[device].zero_()


_cycles_per_second: dict[torch.device, float] = {}


def device_wait(device: torch.device, seconds: float) -> None:
    """Keeps the current stream busy for about so long, without touching memory."""
    if device not in _cycles_per_second:
        cycles = 2_000_000
        for _ in range(2):  # the first of them loads the kernel
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            torch.cuda._sleep(cycles)
            end.record()
            torch.cuda.synchronize(device)
        _cycles_per_second[device] = cycles / (start.elapsed_time(end) * 1e-3)
    torch.cuda._sleep(int(seconds * _cycles_per_second[device]))


def take_sample(run: Callable[[], Any], device: torch.device, repeats: int, samples: Samples) -> float:
    """Call run `repeats` times under the clocks, add the time per call; returns wall seconds of it all."""
    events = None
    if device.type == "cuda":
        flush_l2(device)
        events = (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
        torch.cuda.synchronize(device)
    collecting = gc.isenabled()
    gc.disable()
    try:
        wall, cpu = time.perf_counter(), time.process_time()
        if events:
            events[0].record()
        for _ in range(repeats):
            run()
        if events:
            samples.issue.append(time.perf_counter() - wall)
            events[1].record()
            torch.cuda.synchronize(device)
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    finally:
        if collecting:
            gc.enable()
    samples.wall.append(wall / repeats)
    samples.cpu.append(cpu / repeats)
    if events:
        samples.cuda.append(events[0].elapsed_time(events[1]) * 1e-3 / repeats)
    return wall


def take_device_sample(
    run: Callable[[], Any], device: torch.device, samples: Samples, host: bool = False
) -> float:
    """One call behind a wait that outlasts its issue; adds the time between the events only.

    What takes the host longer than LONGEST_ISSUE_S, because it synchronises or does its work there,
    gets no wait, and neither has work of the `host`, for which the wall clock counts.
    """
    wait = 1.5 * quantile(samples.issue, 0.5) + HEAD_START_S
    begin = time.perf_counter()
    flush_l2(device)
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize(device)
    collecting = gc.isenabled()
    gc.disable()
    try:
        if wait <= LONGEST_ISSUE_S and not host:
            device_wait(device, wait)
        start.record()
        issued = time.perf_counter()
        run()
        end.record()
        torch.cuda.synchronize(device)
        elapsed = time.perf_counter() - issued
    finally:
        if collecting:
            gc.enable()
    samples.cuda.append(elapsed if host else start.elapsed_time(end) * 1e-3)
    return time.perf_counter() - begin


def repeats_for(seconds: float, device: torch.device) -> int:
    """Calls per sample. CUDA calls stand alone, because the L2 flush must come before each of them."""
    if device.type == "cuda":
        return 1
    return max(1, min(MOST_REPEATS, math.ceil(SHORTEST_SAMPLE_S / max(seconds, 1e-9))))
