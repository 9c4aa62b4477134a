"""A kernel that loses its vector code, or copies what it need not, fails here.

For each key kernel: the least CPU time of ours over the least of a fixed expression of torch (NumPy, SciPy)
on the same input, taken in turns in one process on one thread. Inputs and expressions are those of
`tenfold bench`, made smaller. The bound is FACTOR times what the ratio usually is. Noise only adds time, and
a kernel above its bound is measured again and again, so that what stays above it is slow itself.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from tenfold.benchmarks import find_case
from tenfold.benchmarks.clocks import Samples, repeats_for, take_sample
from tenfold.benchmarks.harness import CPU, Workload

from tenfold import _native

FACTOR = 2.0
FEWEST, MOST, MOST_S = 5, 40, 4.0
"""Rounds: a kernel within its bound is done after the fewest; CPU seconds after which no more are begun."""


@dataclass(frozen=True)
class Guard:
    """The case `id`, its side `peer`, and sizes to put in place of the benchmarks' own.

    usual: the ratio with AVX-512 on both sides, and with AVX2 on both."""

    id: str
    peer: str
    usual: tuple[float, float]
    sizes: dict[str, Any] = field(default_factory=dict)


OPT = {"vocab": 2000, "positions": 130, "hidden": 256, "layers": 2, "ffn": 1024}
GPT2 = {"vocab": 2000, "positions": 128, "hidden": 256, "layers": 2}
UCE = {"erase.ROWS": [320], "erase.TOKENS": 10, "erase.ERASED": 2, "erase.KEPT": 6, "erase.SHOWN": 6}
VOLUME = {"ts512.SHAPE": (30, 128, 128)}

GUARDS = (
    Guard("zo.perturb.gaussian.f32.n1e6", "mezo", (0.18, 0.29)),
    Guard("zo.step_passes.f32.opt125m", "mezo", (0.137, 0.21), {"zo.OPT_125M": OPT}),
    Guard("sophia.step.f32.124m", "liuhong99", (0.345, 0.345), {"sophia.GPT2_124M": GPT2}),
    Guard("logprob.sequence.f32.b4t512v50257", "torch_chunked", (0.33, 0.39), {"logprob.LENGTH": 16}),
    Guard(
        "logprob.linear.f32.n2048d768v50257",
        "torch_chunked",
        (1.4, 1.4),
        {"logprob.LENGTH": 32, "logprob.VOCABULARY": 5000, "logprob.WIDTH": 256},
    ),
    Guard("mmd.mk.f32.512x64", "torch", (0.115, 0.115)),
    Guard(
        "selection.nn1.f32.50kx500x2048", "torch_cdist", (0.8, 0.8), {"distance.NEAREST": (2000, 200, 256)}
    ),
    Guard(
        "selection.kcenter.f32.50kx512-k500", "numpy_blas", (1.1, 1.8), {"distance.KCENTER": (4000, 128, 50)}
    ),
    Guard(
        "selection.facility_location.f32.10kx64-k200",
        "reference",
        (0.015, 0.0165),
        {"coverage.POINTS": 500, "coverage.PICKS": 30},
    ),
    Guard("selection.scores.f32.50kx1000", "torch", (0.075, 0.085), {"scores.ROWS": 1000}),
    Guard("overlap.counts.u8.ts512", "numpy_bincount", (0.118, 0.14), VOLUME),
    Guard("overlap.dice_ce.f32.55x28x224x224", "torch", (0.31, 0.37), {"softdice.PATCH": (8, 48, 48)}),
    Guard("surface.edt.f32.50x313x271", "scipy", (0.105, 0.127), {"surface.EDT_SHAPE": (25, 80, 70)}),
    Guard("surface.all.u8.ts512", "distances", (0.072, 0.076), VOLUME),
    Guard("power.ssdt_joint.f32.1e5x64-n2", "torch_bisection", (0.08, 0.17), {"power.ROWS": 500}),
    Guard("power.waterfill.f32.1e5x64", "torch_sort", (0.05, 0.3), {"power.ROWS": 4000}),
    Guard("channel.noma.rayleigh.c64.4096x8x64-n2", "torch", (0.46, 0.6), {"channel.CODEWORDS": 128}),
    Guard("erase.uce.f32.sd15-32matrices", "reference", (0.245, 0.245), UCE),
    Guard("erase.saliency.f32.10m", "numpy_partition", (0.193, 0.193), {"erase.WEIGHTS": 1_000_000}),
    Guard("attack.simplex.f32.r5-v49408", "reference_bisection", (0.048, 0.61)),
    Guard("attack.nearest_token.f32.r8-49408x768", "torch_gemm_argmax", (0.75, 0.75), {"attack.WORDS": 8000}),
    Guard("metrics.moments.f64.d2048-n5000", "torch", (1.1, 1.1), {"metrics.D": 256, "metrics.ROWS": 1000}),
    Guard("quality.ssim.f32.32x3x256x256", "torch", (0.075, 0.06), {"quality.SHAPE": (2, 3, 128, 128)}),
)


def _surface_expression() -> Callable[[], Any]:
    """What any surface distance needs: SciPy's distance transform of each mask, in the box of both."""
    from scipy import ndimage
    from tenfold.benchmarks import surface, ts512

    a, b, _ = ts512.volumes(False)

    def run() -> None:
        for label in ts512.present(a):
            part = surface.box_of(a == label, b == label)
            for volume in (a, b):
                ndimage.distance_transform_edt(volume[part] != label, ts512.SPACING)

    return run


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def workload(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workload]:
    """The benchmark's input and sides at the guard's size."""
    from tenfold.benchmarks import ts512

    guard: Guard = request.param
    for name, value in guard.sizes.items():
        module, _, constant = name.partition(".")
        monkeypatch.setattr(import_module(f"tenfold.benchmarks.{module}"), constant, value)
    ts512.volumes.cache_clear()
    yield find_case(guard.id).build(CPU, False)
    ts512.volumes.cache_clear()


def least_ratio(ours: Callable[[], Any], theirs: Callable[[], Any], reset: Any, bound: float) -> float:
    """Least CPU time of ours over the least of theirs; measured until it is within the bound, or often."""
    runs, samples, repeats, begin = (ours, theirs), (Samples(), Samples()), [], time.process_time()
    for run in runs:
        first = Samples()
        for _ in range(2):
            reset()
            take_sample(run, CPU, 1, first)
        repeats.append(repeats_for(min(first.cpu), CPU))
    ratio = float("inf")
    for turn in range(MOST):
        for side in (0, 1) if turn % 2 else (1, 0):
            reset()
            take_sample(runs[side], CPU, repeats[side], samples[side])
        ratio = min(samples[0].cpu) / min(samples[1].cpu)
        if turn + 1 >= FEWEST and (ratio <= bound or time.process_time() - begin > MOST_S):
            break
    return ratio


@pytest.mark.skipif(
    not {"avx2", "avx512"} & set(_native.cpu.isa_available()),
    reason="what is usual was measured on x86-64 processors with AVX2 and AVX-512",
)
@pytest.mark.parametrize(
    ("guard", "workload"), [(g, g) for g in GUARDS], indirect=["workload"], ids=[g.id for g in GUARDS]
)
def test_no_slower_than_it_was(
    guard: Guard, workload: Workload, record_property: Callable[[str, object], None]
) -> None:
    sides = {side.name: side for side in workload.others}
    if guard.peer == "distances":
        theirs = _surface_expression()
    else:
        side = sides[guard.peer]
        assert not (side.prepare and side.prepare())
        theirs = side.run
    # what the processor can do, not TENFOLD_ISA: a kernel that does not take its vectors is to fail
    usual = guard.usual[0 if "avx512" in _native.cpu.isa_available() else 1]
    bound = FACTOR * usual
    ratio = least_ratio(workload.ours.run, theirs, workload.reset, bound)
    record_property("ratio", ratio)
    assert ratio <= bound, f"{ratio:.3f} of the time of {guard.peer}; usually {usual}"


# What the guards see for certain. Not named: kernels that BLAS, memory or bits of masks set the pace of, and
# those that vectors make about three times faster than plain code: they trip now and then.
VECTORS = (
    "zo.perturb", "zo.step_passes", "sophia", "logprob.sequence", "power.waterfill", "channel",
    "attack.simplex",
)  # fmt: skip
NATIVE = ("mmd", "selection.kcenter", "selection.scores", "overlap.counts", "overlap.dice_ce", "surface.edt")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variable", "value", "kernels"),
    [("TENFOLD_ISA", "baseline", VECTORS), ("TENFOLD_BACKEND", "reference", NATIVE)],
    ids=["without vectors", "without kernels"],
)
def test_the_guard_sees(variable: str, value: str, kernels: tuple[str, ...]) -> None:
    """The same tests in a process that has lost the vector code, or all native code: each is to fail."""
    chosen = [g.id for g in GUARDS if g.id.startswith(kernels)]
    assert len(chosen) == len(kernels)
    tests = [f"{__file__}::test_no_slower_than_it_was[{name}]" for name in chosen]
    command = [sys.executable, "-m", "pytest", "-q", "--tb=no", "-p", "no:cacheprovider", *tests]
    environment = os.environ | {variable: value}
    root = Path(__file__).parents[2]
    found = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=root, check=False)
    failed = re.findall(r"^FAILED .*\[(.*?)\]", found.stdout, re.MULTILINE)
    assert sorted(failed) == sorted(chosen), found.stdout
