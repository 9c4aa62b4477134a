"""The power-allocation kernels on a GPU, or their CUDA source on the host, against those of the CPU, which
tests/ops/test_power.py holds against known optima and solvers."""

from __future__ import annotations

import importlib.util
import math
from types import ModuleType, SimpleNamespace

import pytest
import torch
from tenfold.kernels.power import power_native
from torch import Tensor


def _another(name: str) -> ModuleType:
    """A second copy of a module, which keeps the CPU's kernels when `kernels` gives the first to a GPU."""
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


cpu = _another("tenfold.kernels.power.power_native")

REAL = {torch.complex64: torch.float32, torch.complex128: torch.float64}
NEAR = {torch.float32: 1e-5, torch.float64: 1e-9}
LIMIT = {torch.float32: 2e-6, torch.float64: 1e-10}
# Two users in registers by 4, 8, 16 and 32 lanes and by a block; more by a warp in both sizes of shared
# memory; and what fits neither, by a block in memory.
SHAPES = [(1, 9), (2, 7), (2, 64), (2, 33), (2, 130), (2, 300), (3, 16), (8, 65), (3, 600), (2, 2052)]


@pytest.fixture
def kernels(gpu, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> ModuleType:
    if gpu.name == "triton":
        from tenfold.kernels.power import power_triton

        return power_triton
    if gpu.name == "emulated":
        built = request.getfixturevalue("emulated_cuda")
        monkeypatch.setattr(power_native, "_native", SimpleNamespace(cuda=built, cpu=None))
        monkeypatch.setattr(power_native, "_on_cuda", lambda tensor: True)
        monkeypatch.setattr(power_native, "_stream", lambda tensor: 0)
    return power_native


def drawn(
    rows: int, users: int, carriers: int, dtype: torch.dtype, sparse: float = 0.0
) -> tuple[Tensor, ...]:
    """Gains of users whose variances spread over 100, symbols, budgets, noise of -20 to 30 dB SNR."""
    generator = torch.Generator().manual_seed(1000 * users + carriers)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.complex128)

    g = normal(rows, users, carriers) * 10 ** (uniform(rows, users, 1) - 0.5)
    g = torch.where(uniform(rows, users, carriers) < sparse, 0.0, g)
    power = 0.1 + uniform(rows, users)
    s = (power.sqrt()[..., None] * normal(rows, users, carriers)).sum(1)
    noise = 10 ** (-(50 * uniform(rows) - 20) / 10)
    real = REAL[dtype]
    return g.to(dtype), s.to(dtype), power.to(real), noise.to(real)


def row_by_row(got: Tensor, want: Tensor, tolerance: float) -> None:
    """Within `tolerance` of the largest number of each row; NaN and infinities where they belong."""
    assert got.shape == want.shape
    assert got.dtype == want.dtype
    a, b = ((torch.view_as_real(t) if t.is_complex() else t).cpu().double() for t in (got, want))
    assert torch.equal(a.isnan(), b.isnan())
    assert torch.equal(a[b.isinf()], b[b.isinf()])
    fine = b.isfinite()
    a, b = (torch.where(fine, t, 0.0).flatten(1) if t.ndim > 1 else torch.where(fine, t, 0.0) for t in (a, b))
    size = b.abs().amax(-1, keepdim=True) if b.ndim > 1 else b.abs()
    assert ((a - b).abs() <= tolerance * size + 1e-15).all(), ((a - b).abs() / size).nan_to_num(0.0).max()


def same(got: tuple[Tensor, ...], want: tuple[Tensor, ...], power_of: Tensor, tolerance: float) -> None:
    """Signals, alpha, dual variables; the objective as a share of what silence costs."""
    for a, b in zip(got[:3], want[:3], strict=True):
        row_by_row(a, b, tolerance)
    gap = (got[3].cpu().double() - want[3].double()).abs()
    assert torch.equal(got[3].isnan().cpu(), want[3].isnan())
    assert (gap.nan_to_num(0.0) <= tolerance * power_of.double()).all()
    assert got[4].dtype == torch.int32


def _received(g: Tensor, found: tuple[Tensor, ...]) -> Tensor:
    return (g * found[0].cpu()).sum(1) * found[1].cpu()[:, None]


@pytest.mark.parametrize("dtype", REAL, ids=str)
@pytest.mark.parametrize("sparse", [0.0, 0.6])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_joint(gpu, kernels, shape, sparse, dtype):
    rows = 3 if shape[1] > 500 else 9
    g, s, power, noise = drawn(rows, *shape, dtype, sparse)
    real = REAL[dtype]
    expected = power.sum(-1, keepdim=True) * torch.rand(rows, shape[1]).to(real)
    for statistics in (None, expected) if shape[1] <= 100 else (None,):
        given = [None if t is None else t.to(gpu.device) for t in (g, s, power, noise, statistics)]
        got = kernels.joint(*given, LIMIT[real], 128)
        want = cpu.joint(g, s, power, noise, statistics, LIMIT[real], 128)
        if statistics is None:
            assert (got[0].cpu().abs().square().mean(-1) <= power * (1 + 1e-5)).all()
        else:  # no objective
            got, want = ((*found[:3], found[1], found[4]) for found in (got, want))
        if sparse:  # users with power to spare may share what they send otherwise; what is received is one
            got, want = ((_received(g, found), *found[1:]) for found in (got, want))
        same(got, want, s.abs().square().sum(-1), NEAR[real])


@pytest.mark.parametrize("dtype", REAL, ids=str)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", [(1, 9), (2, 64), (3, 16), (8, 65), (3, 600)], ids=str)
def test_separable(gpu, kernels, shape, weighted, dtype):
    rows = 3 if shape[1] > 500 else 9
    g, _, power, noise = drawn(rows, *shape, dtype)
    real = REAL[dtype]
    g[1, 0] = 0
    wanted = 0.5 + torch.rand(rows, shape[0]).to(real)
    weights = torch.rand(rows, *shape).to(real) if weighted else None
    given = [None if t is None else t.to(gpu.device) for t in (g, power, noise, wanted, weights)]
    limit = {torch.float32: 1e-6, torch.float64: 1e-12}[real]
    got = kernels.separable(*given, limit, 128)
    want = cpu.separable(g, power, noise, wanted, weights, limit, 128)
    same(got, want, (power * wanted.square()).sum(-1) * shape[1], NEAR[real])


@pytest.mark.parametrize("dtype", REAL, ids=str)
@pytest.mark.parametrize("users", [1, 2, 3])
def test_rows_that_are_no_problem(gpu, kernels, users, dtype):
    g, s, power, noise = drawn(11, users, 8, dtype)
    power[1, 0], noise[2], noise[3], g[4, -1, 3], s[5, 2] = 0.0, -1.0, math.nan, math.nan, math.inf
    power[6, -1], noise[7] = math.inf, math.inf
    g[8], s[9], noise[10] = 0.0, 0.0, 0.0
    real = REAL[dtype]
    given = [t.to(gpu.device) for t in (g, s, power, noise)]
    got = kernels.joint(*given, None, LIMIT[real], 128)
    want = cpu.joint(g, s, power, noise, None, LIMIT[real], 128)
    same(got, want, s.abs().square().sum(-1).nan_to_num(0, 0, 0) + 1e-30, NEAR[real])
    wanted = torch.ones_like(power)
    given = [t.to(gpu.device) for t in (g, power, noise, wanted)]
    got = kernels.separable(*given, None, LIMIT[real], 128)
    want = cpu.separable(g, power, noise, wanted, None, LIMIT[real], 128)
    others = [
        row for row in range(11) if row != 10
    ]  # without noise one user alone is limited, which one is rounding
    same(
        tuple(t[others] for t in got),
        tuple(t[others] for t in want),
        power.nan_to_num(0, 0, 0)[others].sum(-1) * 8 + 1e-30,
        NEAR[real],
    )


@pytest.mark.parametrize("dtype", REAL, ids=str)
@pytest.mark.parametrize("users", [2, 3])
def test_layouts_and_neighbours_do_not_show(gpu, kernels, users, dtype):
    g, s, power, noise = (t.to(gpu.device) for t in drawn(9, users, 12, dtype))
    limit = LIMIT[REAL[dtype]]
    wide = torch.zeros(9, 24, dtype=dtype, device=gpu.device)
    wide[:, ::2] = s
    turned = g.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    one, other = (
        (
            *kernels.joint(a, b, power, noise, None, limit, 128),
            *kernels.separable(a, power, noise, power, None, limit, 128),
        )
        for a, b in ((g, s), (turned, wide[:, ::2]))
    )
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    alone = kernels.joint(g[4:5], s[4:5], power[4:5], noise[4:5], None, limit, 128)
    assert all(torch.equal(a[4:5], b) for a, b in zip(one[:5], alone, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("carriers", [1, 7, 16, 64, 100, 132, 300, 1100, 2100])
def test_water_filling(gpu, kernels, carriers, dtype):
    generator = torch.Generator().manual_seed(carriers)
    g = -torch.rand(13, carriers, generator=generator, dtype=torch.float64).log() * 3
    g = torch.where(torch.rand(13, carriers, generator=generator) < 0.2, 0.0, g).to(dtype)
    mass = (torch.rand(13, generator=generator, dtype=torch.float64) * 5).to(dtype)
    g[3], g[4, 0], mass[5], g[6] = 0.0, math.nan, 0.0, 2.0
    for inverse in (True, False):
        x = g if inverse else torch.where(g == 0, -math.inf, g)
        want = cpu.water_filling(x, mass, inverse)
        spread = torch.zeros(carriers, 13, dtype=dtype, device=gpu.device).t()
        spread.copy_(x)
        found = [kernels.water_filling(v, mass.to(gpu.device), inverse) for v in (x.to(gpu.device), spread)]
        for got in found:
            row_by_row(got[0], want[0], NEAR[dtype])
            row_by_row(got[1], want[1], NEAR[dtype])
        assert all(torch.equal(a.nan_to_num(9.0), b.nan_to_num(9.0)) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("carriers", [1, 7, 64, 132, 300, 1100])
def test_mse_water_filling(gpu, kernels, carriers, dtype):
    generator = torch.Generator().manual_seed(carriers)
    a, s = (torch.rand(9, carriers, generator=generator, dtype=torch.float64).to(dtype) * 4 for _ in range(2))
    power = (torch.rand(9, generator=generator, dtype=torch.float64) * 5).to(dtype)
    a[:, 0], a[3], s[4], power[5] = 0.0, 0.0, 0.0, 0.0
    a[6], s[6], s[6, ::2], power[6] = 1.0, 1.0, 1 + 2.0**-20, 2.0**-60  # far below 1 / a
    a[2], s[2], power[2] = 2.0**-36, 2.0**36, 0.85  # near ties of unlike gains
    a[2, -1], s[2, -1] = 2.0**-111, 2.0**111 * (1 + 2.0**-50)
    a[7, -1], power[8] = math.nan, math.inf
    want = cpu.mse_water_filling(a, s, power)
    got = kernels.mse_water_filling(a.to(gpu.device), s.to(gpu.device), power.to(gpu.device))
    for one, other in zip(got, want, strict=True):
        row_by_row(one, other, NEAR[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.complex128], ids=str)
@pytest.mark.parametrize("carriers", [1, 7, 64, 132, 300, 1100])
def test_power_normalize(gpu, kernels, carriers, dtype):
    generator = torch.Generator().manual_seed(carriers)
    x = torch.randn(9, carriers, generator=generator, dtype=dtype)
    x[2] = 0
    x[3] *= 1e-25
    x[4] *= 1e18
    x[5, 0] = math.nan
    real = REAL.get(dtype, dtype)
    power = torch.rand(9, generator=generator, dtype=torch.float64).to(real)
    for mean in (True, False):
        want = cpu.power_normalize(x, power, mean)
        for given in (x.to(gpu.device), x.to(gpu.device).t().contiguous().t()):
            got = kernels.power_normalize(given, power.to(gpu.device), mean)
            others = [row for row in range(9) if row != 5]
            row_by_row(got[others], want[others], NEAR[real])
            assert got[5].isnan().all()
