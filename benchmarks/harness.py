"""The measuring itself: a case, its sides, and how they are compared and timed.

A case builds one input. Every side (ours, the plain-PyTorch reference, torch.compile of it, each peer)
works on that same input in the same process. Sides are first checked against ours, then timed in turns, so
that whatever else the machine is doing falls on all of them alike. The figure kept is the median of the
samples.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from .clocks import UNAIDED, Samples, repeats_for, summary, take_device_sample, take_sample

CPU = torch.device("cpu")

COLD_S = 0.1
"""A shorter first run may have taken most of it to load code, and does not say how long a call is."""


@dataclass(frozen=True)
class Agreement:
    """Result of comparing a side with ours: `max_error` is in the unit that `how` names."""

    agrees: bool
    max_error: float
    tolerance: float
    how: str


@dataclass(frozen=True)
class Work:
    """What an operation cannot avoid: bytes to and from memory, random normals, floating-point operations.

    `footprint` is the size of its data in bytes where that is small enough to stay in a cache between calls.
    `precision` is what its operations may be done in: "f32", "tf32" or "bf16" (on a GPU, matrix products).
    """

    bytes: float = 0.0
    footprint: float | None = None
    normals: float = 0.0
    flops: float = 0.0
    precision: str = "f32"


@dataclass
class Side:
    """One way of doing the case's work.

    run        does the work once on the case's input and returns what `Workload.keep` understands
    agree      compares (kept result of ours, kept result of this side)
    prepare    called once, untimed; returns why the side cannot run here, or None
    kind       "ours", "reference", "compiled" or "peer"
    fewest     samples taken even when one of them takes longer than the time budget
    host       works on the CPU also where the case's device is a GPU, and is timed by the wall clock there
    part       does this share of the case's work only; its times are divided by it, and the record says so
    """

    name: str
    run: Callable[[], Any]
    version: str = ""
    agree: Callable[[Any, Any], Agreement] | None = None
    prepare: Callable[[], str | None] | None = None
    kind: str = "peer"
    fewest: int = 3
    measure_memory: bool = True
    backend: Callable[[], str] | None = None
    host: bool = False
    part: float = 1.0


@dataclass
class Workload:
    """One input, and the sides that work on it.

    reset puts the input back to its first values before every sample; keep copies out of a result what is
    compared.
    """

    ours: Side
    others: list[Side]
    work: Work
    reset: Callable[[], None] = lambda: None
    keep: Callable[[Any], Any] = lambda result: result
    parts: list[Side] = field(default_factory=list)
    note: str = ""


@dataclass(frozen=True)
class Case:
    """id is `family.op.variant.workload`. build(device, tiny) makes the input; tiny builds a small one that
    only serves to load code before memory is measured. `needs` returns why the case cannot be built here,
    or None. `sweep` is (curve name, number of elements) for cases that make up a plot of time against
    size. `devices` are the kinds of device that the operation has a kernel for."""

    id: str
    build: Callable[[torch.device, bool], Workload]
    needs: Callable[[], str | None] = lambda: None
    sweep: tuple[str, int] | None = None
    devices: tuple[str, ...] = ("cpu", "cuda")


@dataclass(frozen=True)
class Plan:
    """How much to measure. seconds is the time budget of one side, most the largest number of its samples;
    sides of the kinds in leave_out ("reference", "compiled") are named but not run."""

    device: torch.device = CPU
    threads: int = 1
    seconds: float = 6.0
    most: int = 9
    leave_out: frozenset[str] = frozenset()

    @property
    def clock(self) -> str:
        """Which clock `ms` is: see `clocks.CLOCKS`."""
        if self.device.type == "cuda":
            return "cuda_events"
        return "process_cpu" if self.threads == 1 else "wall"


def time_in_turns(
    sides: Sequence[Side], reset: Callable[[], None], plan: Plan, first: dict[str, Samples]
) -> dict[str, Samples]:
    """Times the sides in turns; who begins moves on by one each round.

    `first` holds each side's first, warming run. It says how often a short side is repeated inside one
    sample, and for a side that is allowed a single sample and took longer than its budget it is that
    sample. A side drops out after plan.most samples, or once it has its fewest and its time budget is
    spent. On a GPU the wall clock reads UNAIDED calls of each side as they come, and the samples in turns
    are those of `take_device_sample`.
    """
    samples = {side.name: Samples() for side in sides}
    repeats: dict[str, int] = {}
    for side in sides:
        warm = first.get(side.name)
        if warm is not None and side.fewest == 1 and warm.wall[0] > plan.seconds:
            samples[side.name] = warm
        elif warm is None or min(warm.wall) < COLD_S:
            warm = Samples()
            for _ in range(3):  # the first finds cold caches and code not yet loaded: too few repeats
                reset()
                take_sample(side.run, plan.device, 1, warm)
        repeats[side.name] = repeats_for(min(warm.wall), plan.device)
    if plan.device.type == "cuda":
        for side in sides:
            if not samples[side.name].wall:
                _unaided(side, reset, plan, samples[side.name])
    spent = {side.name: sum(samples[side.name].of(plan.clock)) for side in sides}
    turn = 0
    while True:
        waiting = [side for side in sides if not _finished(side, samples[side.name], spent[side.name], plan)]
        if not waiting:
            return samples
        turn += 1
        for side in waiting[turn % len(waiting) :] + waiting[: turn % len(waiting)]:
            reset()
            if plan.device.type == "cuda":
                spent[side.name] += take_device_sample(side.run, plan.device, samples[side.name], side.host)
            else:
                spent[side.name] += take_sample(side.run, plan.device, repeats[side.name], samples[side.name])


def _unaided(side: Side, reset: Callable[[], None], plan: Plan, samples: Samples) -> None:
    """Wall and CPU time, and how long the host needs to issue a call, as they are without a wait."""
    for _ in range(UNAIDED):
        reset()
        if take_sample(side.run, plan.device, 1, samples) > plan.seconds:
            break
    samples.cuda.clear()


def _finished(side: Side, samples: Samples, spent: float, plan: Plan) -> bool:
    taken = len(samples.of(plan.clock))
    return taken >= plan.most or (taken >= min(side.fewest, plan.most) and spent >= plan.seconds)


def _extrapolate(record: dict[str, Any], part: float) -> None:
    for key in ("ms", "wall_ms", "cpu_ms"):
        record[key] /= part
    record["ms_quartiles"] = [value / part for value in record["ms_quartiles"]]
    record["extrapolated_from_part"] = part


def _memory_gbps(rates: dict[str, Any], footprint: float | None) -> float:
    """Beyond the caches the rate of memory; within them the rate measured at the next larger size."""
    hot = {int(size): rate for size, rate in rates.get("hot_gbps", {}).items()}
    sizes = [size for size in sorted(hot) if footprint is not None and size >= footprint]
    return float(max(rates["memory_gbps"], hot[sizes[0]] if sizes else 0.0))


def floor_of(work: dict[str, Any], floors: dict[str, Any], threads: int) -> dict[str, Any]:
    """The least time the work can take on this machine, in ms, and what sets it.

    Moving bytes and generating normals overlap, so the longer of the two counts; matrix products come on top,
    because here they are separate phases (forward passes, then weight passes).
    """
    at = str(threads)
    rates = floors["rates"].get(at) or floors["rates"][max(floors["rates"], key=int)]
    memory = work["bytes"] / (_memory_gbps(rates, work.get("footprint")) * 1e9) * 1e3
    generator_rate = rates.get("generator_gnormals")
    generator = work["normals"] / (generator_rate * 1e9) * 1e3 if generator_rate else 0.0
    peak = rates.get(f"{work.get('precision', 'f32')}_gflops") or rates["fma_gflops"]
    compute = work["flops"] / (peak * 1e9) * 1e3
    return {
        "floor_ms": compute + max(memory, generator),
        "floor_parts_ms": {"memory": memory, "generator": generator, "compute": compute},
    }


def compare_values(
    ours: Sequence[torch.Tensor], theirs: Sequence[torch.Tensor], tolerance: float, unit: str = "absolute"
) -> Agreement:
    """Largest absolute difference over lists of tensors; agrees when it is at most the tolerance."""
    if len(ours) != len(theirs) or any(a.shape != b.shape for a, b in zip(ours, theirs, strict=True)):
        return Agreement(False, math.inf, tolerance, "shapes differ")
    worst = 0.0
    for a, b in zip(ours, theirs, strict=True):
        for x, y in zip(a.reshape(-1).split(1 << 22), b.reshape(-1).split(1 << 22), strict=True):
            gap = (x.double() - y.double()).abs().max().item() if x.numel() else 0.0
            worst = math.inf if math.isnan(gap) else max(worst, gap)
    return Agreement(worst <= tolerance, worst, tolerance, f"largest {unit} difference of any element")


@dataclass(frozen=True)
class Moments:
    """Number, mean and variance (about the mean) of a set of values."""

    count: int
    mean: float
    variance: float


def change_moments(after: Sequence[torch.Tensor], before: Sequence[torch.Tensor] | None = None) -> Moments:
    """Mean and variance of `after - before` over all elements of a list, summed in float64."""
    count, total, squares = 0, 0.0, 0.0
    for i, tensor in enumerate(after):
        first = before[i].reshape(-1) if before is not None else None
        flat = tensor.detach().reshape(-1)
        for start in range(0, flat.numel(), 1 << 22):
            piece = flat[start : start + (1 << 22)].double()
            if first is not None:
                piece = piece - first[start : start + (1 << 22)].double()
            count += piece.numel()
            total += piece.sum().item()
            squares += piece.square().sum().item()
    mean = total / max(count, 1)
    return Moments(count, mean, squares / max(count, 1) - mean * mean)


def compare_moments(
    ours: Moments, theirs: Moments, allowance: float = 1e-3, unit: str = "change"
) -> Agreement:
    """For a side that draws other random numbers: same mean and same size of the change.

    max_error is the larger of |difference of means| / rms and |ratio of variances - 1|. Tolerance: six
    standard errors of the wider of the two (each side brings its own sampling error), plus the allowance
    for rounding.
    """
    if ours.count != theirs.count or ours.count == 0:
        return Agreement(False, math.inf, allowance, "the number of elements differs")
    tolerance = allowance + 12.0 / math.sqrt(ours.count)
    spread = math.sqrt(ours.variance) if ours.variance > 0 else 0.0
    if not (spread > 0 and math.isfinite(theirs.mean) and math.isfinite(theirs.variance)):
        same = ours == theirs
        return Agreement(same, 0.0 if same else math.inf, tolerance, f"the {unit} is zero or not finite")
    error = max(abs(ours.mean - theirs.mean) / spread, abs(theirs.variance / ours.variance - 1.0))
    how = (
        f"other random numbers, so compared statistically: mean of the {unit} "
        f"{ours.mean:.3e} and {theirs.mean:.3e}, "
        f"rms {spread:.6e} and {math.sqrt(max(theirs.variance, 0.0)):.6e}"
    )
    return Agreement(error <= tolerance, error, tolerance, how)


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__


@dataclass
class First:
    """A side's first run from the fresh input: what it gave and how long it took, or why it cannot run."""

    result: Any = None
    samples: Samples = field(default_factory=Samples)
    why: str | None = None


def _first_run(side: Side, workload: Workload, device: torch.device) -> First:
    first = First()
    results: list[Any] = []
    try:
        first.why = side.prepare() if side.prepare else None
        if not first.why:
            workload.reset()
            take_sample(lambda: results.append(side.run()), device, 1, first.samples)
            if side.kind != "part":
                first.result = workload.keep(results.pop())
    except Exception as error:  # a side that fails is named with its reason, and the others still run
        first.why = _reason(error)
    return first


MeasureMemory = Callable[[str, Sequence[str], Plan], dict[str, dict[str, Any]]]


def run_case(case: Case, plan: Plan, measure_memory: MeasureMemory | None = None) -> dict[str, Any]:
    """Measures one case and returns its record, but for the floor, which `floor_of` adds from record["work"].

    `measure_memory(case id, side names, plan)` returns {side: {"peak_extra_mib": .., "peak_method": ..}};
    None leaves memory out. A side that cannot run is named with `why_missing`; a peer that disagrees is
    timed all the same and marked `agrees: false`.
    """
    record = _blank_record(case, plan)
    record["why_missing"] = case.needs()
    if record["why_missing"]:
        return record
    try:
        _measure(record, case, plan, measure_memory)
    except Exception as error:  # the other cases still run
        record.update(ms=None, why_missing=_reason(error))
    return record


def _measure(record: dict[str, Any], case: Case, plan: Plan, measure_memory: MeasureMemory | None) -> None:
    workload = case.build(plan.device, False)
    record.update(note=workload.note, work=asdict(workload.work))
    record["peers"] = [_blank_peer(side) for side in workload.others]
    if workload.parts:
        record["parts"] = {part.name: {"ms": None, "why_missing": None} for part in workload.parts}
    # where the figures of each side go
    places = {workload.ours.name: record, **record.get("parts", {})}
    places.update((peer["name"], peer) for peer in record["peers"])

    first = _first_look(workload, plan, places)
    ready = [side for side in _sides(workload) if side.name in first]
    for name, taken in time_in_turns(ready, workload.reset, plan, first).items():
        places[name].update(summary(taken, plan.clock))
    for side in ready:
        if side.part != 1.0:
            _extrapolate(places[side.name], side.part)
    if plan.device.type == "cuda":
        for side in ready:
            if side.host:
                places[side.name]["clock"] = "wall"
    for peer in record["peers"]:
        if peer["ms"] and record["ms"]:
            peer["times_ours"] = peer["ms"] / record["ms"]

    measured = [side for side in ready if side.measure_memory]
    names = [side.name for side in measured]
    peaks = cuda_peaks(measured, workload.reset, plan.device) if plan.device.type == "cuda" else {}
    del workload, measured, ready
    gc.collect()
    if plan.device.type == "cpu" and measure_memory:
        peaks = measure_memory(case.id, names, plan)
    for name, peak in peaks.items():
        places[name].update(peak)


def _blank_record(case: Case, plan: Plan) -> dict[str, Any]:
    record: dict[str, Any] = {
        "id": case.id,
        "backend": "none",
        "ms": None,
        "why_missing": None,
        "peak_extra_mib": None,
        "floor_ms": None,
        "clock": plan.clock,
        "peers": [],
    }
    if case.sweep:
        record["sweep"] = {"curve": case.sweep[0], "elements": case.sweep[1]}
    return record


def _blank_peer(side: Side) -> dict[str, Any]:
    return {
        "name": side.name,
        "kind": side.kind,
        "version": side.version,
        "ms": None,
        "why_missing": None,
        "peak_extra_mib": None,
        "agrees": False,
        "max_error": None,
    }


def _sides(workload: Workload) -> list[Side]:
    return [workload.ours, *workload.others, *workload.parts]


def _first_look(workload: Workload, plan: Plan, places: dict[str, dict[str, Any]]) -> dict[str, Samples]:
    """Runs every side once and compares it with ours; the samples of those that ran.

    Writes why_missing, ours' backend and the comparisons to the sides' places.
    """
    first: dict[str, Samples] = {}
    ours: Any = None
    for side in _sides(workload):
        place = places[side.name]
        if side.kind in plan.leave_out:
            place["why_missing"] = f"left out by --no-{side.kind}"
            continue
        look = _first_run(side, workload, plan.device)
        place["why_missing"] = look.why
        if look.why:
            continue
        first[side.name] = look.samples
        if side is workload.ours:
            ours = look.result
            place["backend"] = side.backend() if side.backend else "unnamed"
        elif side.agree and workload.ours.name in first:
            place.update(_agreement(side.agree, ours, look.result))
    return first


def _agreement(agree: Callable[[Any, Any], Agreement], ours: Any, theirs: Any) -> dict[str, Any]:
    try:
        found = agree(ours, theirs)
    except Exception as error:  # a comparison that cannot be made is a disagreement, with the reason kept
        found = Agreement(False, math.inf, 0.0, _reason(error))
    return {
        "agrees": bool(found.agrees),
        "max_error": float(found.max_error) if math.isfinite(found.max_error) else None,
        "tolerance": found.tolerance,
        "how_compared": found.how,
    }


def cuda_peaks(
    sides: Sequence[Side], reset: Callable[[], None], device: torch.device
) -> dict[str, dict[str, Any]]:
    """Peak of torch's CUDA allocator during one call, above what was allocated before it."""
    peaks = {}
    for side in sides:
        reset()
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        side.run()
        torch.cuda.synchronize(device)
        extra = (torch.cuda.max_memory_allocated(device) - before) / 2**20
        peaks[side.name] = {"peak_extra_mib": extra, "peak_method": "torch.cuda.max_memory_allocated"}
    return peaks
