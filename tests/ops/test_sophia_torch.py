"""Sophia ops as torch sees them: opcheck, torch.compile, and the memory that a step takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tenfold
from tenfold.ops import (
    hutchinson_accumulate_,
    hutchinson_probe,
    sophia8_dequantize,
    sophia8_quantize,
    sophia_hessian_,
    sophia_step_,
)

OPS = torch.ops.tenfold
STEP = (1e-3, 0.9, 0.5, 0.1, 1e-12)


def _lists(count: int, dtype: torch.dtype = torch.float32) -> list[list[Tensor]]:
    generator = torch.Generator().manual_seed(2)
    return [[torch.rand(s, generator=generator).to(dtype) for s in ((300,), (3, 5))] for _ in range(count)]


def _step_arguments(kind: str) -> tuple[Any, ...]:
    p, g, m, h = _lists(4)
    m_scales: list[Tensor] = []
    h_scales: list[Tensor] = []
    masters: list[Tensor] = []
    stats: list[Tensor] = []
    numbers: tuple[Tensor | None, Tensor | None] = (None, None)
    beta2 = None
    if kind == "8bit":
        m, m_scales = map(list, zip(*(sophia8_quantize(t, "exp_avg") for t in m), strict=True))
        h, h_scales = map(list, zip(*(sophia8_quantize(t, "hessian") for t in h), strict=True))
    if kind == "full":
        masters = [t.clone() for t in p]
        p = [t.bfloat16() for t in p]
        stats, numbers = [torch.zeros(6, dtype=torch.float64)], (torch.ones(1), torch.zeros(1))
        beta2 = 0.9
    if kind == "sign":
        h = []
    rest = ("max", beta2, False, "nearest", 3, 1, "propagate")
    return (p, g, m, h, m_scales, h_scales, masters, [], stats, *numbers, [0, 1], *STEP, *rest)


@pytest.mark.parametrize("kind", ["plain", "8bit", "full", "sign"])
def test_opcheck_of_the_step(kind: str) -> None:
    found = torch.library.opcheck(OPS.sophia_step_.default, _step_arguments(kind))
    assert set(found.values()) == {"SUCCESS"}


def test_opcheck_of_the_rest() -> None:
    h, g, u = _lists(3)
    codes, scales = sophia8_quantize(g[0], "hessian")
    for op, arguments in (
        (OPS.sophia_hessian_, (h, g, u, [], None, None, [0, 1], 0.9, 0.1, 1, 2)),
        (OPS.sophia8_quantize, (g[0], "exp_avg", 5, 1, 2)),
        (OPS.sophia8_quantize, (g[1], "hessian", None, 0, 0)),
        (OPS.sophia8_dequantize, (codes, scales, "hessian")),
    ):
        assert set(torch.library.opcheck(op.default, arguments).values()) == {"SUCCESS"}


def _train(p: list[Tensor], g: list[Tensor], m: list[Tensor], h: list[Tensor]) -> tuple[Tensor, Tensor]:
    u = hutchinson_probe(g, seed=2**63 + 1)
    sums = [torch.zeros_like(t) for t in g]
    hutchinson_accumulate_(sums, u, g, 0.5)
    sophia_hessian_(h, g, beta2=0.9, scale=4.0)
    sophia_step_(p, g, m, h, lr=1e-2, beta1=0.9, denom_scale=0.3, weight_decay=0.1)
    codes, scales = sophia8_quantize(m[0], "exp_avg", seed=4)
    return sophia8_dequantize(codes, scales, "exp_avg"), sums[1] * p[1]


@pytest.mark.parametrize("mode", ["eager", "aot_eager"])
def test_compile_without_graph_breaks(mode: str) -> None:
    torch._dynamo.reset()
    plain, compiled = _lists(4), _lists(4)
    expected = _train(*plain)
    got = torch.compile(_train, fullgraph=True, backend=mode)(*compiled)
    torch._dynamo.reset()
    for ours, theirs in zip([list(got), *compiled], [list(expected), *plain], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def _high_water() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) << 10


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_takes_no_memory_of_its_size(dtype: torch.dtype) -> None:
    """48 or 24 MiB of weights; a step and a refresh take less than a tenth of that beside them."""
    n = 12 << 20
    p, g = torch.full((n,), 0.5, dtype=dtype), torch.full((n,), 1e-3, dtype=dtype)
    m, h = torch.full((n,), 1e-3), torch.full((n,), 1e-3)
    stats = torch.zeros(6, dtype=torch.float64)

    def work() -> None:
        sophia_hessian_([h], [g], beta2=0.9)
        sophia_step_([p], [g], [m], [h], lr=1e-3, beta1=0.9, rounding="stochastic", stats=stats)

    with tenfold.use_backend("cpu"):
        work()  # loads code
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            pytest.skip("this system does not let a process reset its own peak memory")
        before = _high_water()
        work()
    assert _high_water() - before < p.nbytes // 10
