"""Power allocation over 1000 random rows: what its optima obey, and what must not change a bit of them."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tenfold import _native, ops
from tenfold._backend import OPS

DTYPES = [torch.complex64, torch.complex128]
CARRIERS = (1, 2, 16, 64)
USERS = range(1, 9)
ROWS = 32
"""Per number of users and of subcarriers: 1024 in all."""


@pytest.fixture
def backend(backend, request):
    if backend.name not in OPS["ssdt_joint"]:
        pytest.skip(f"no {backend.name} kernel of power allocation")
    return backend


def drawn(rows: int, users: int, carriers: int, dtype: torch.dtype, seed: int) -> tuple[Tensor, ...]:
    """Gains, symbols, budgets and noise: variances of 1e-2 to 1e2 per user, SNR of -20 to 50 dB."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.complex128)

    g = normal(rows, users, carriers) * (10 ** (4 * uniform(rows, users, 1) - 2)).sqrt()
    power = 0.1 + uniform(rows, users)
    s = (power.sqrt()[..., None] * normal(rows, users, carriers)).sum(1)
    noise = power[:, 0] * 10 ** (-(70 * uniform(rows) - 20) / 10)
    real = torch.float64 if dtype == torch.complex128 else torch.float32
    return g.to(dtype), s.to(dtype), power.to(real), noise.to(real)


def wide(*tensors: Tensor) -> list[Tensor]:
    return [t.cpu().to(torch.complex128 if t.is_complex() else torch.float64) for t in tensors]


# ---- joint ---------------------------------------------------------------------------------------------


def dual(b: Tensor, wanted: Tensor, noise: Tensor, mu: Tensor) -> tuple[Tensor, Tensor]:
    """The dual's value sum_k S sigma2 / den, a bound from below for any mu, and A_n at mu > 0."""
    den = noise[:, None] + (b / mu[..., None]).sum(1)
    needed = (wanted[:, None] * b / den[:, None] ** 2).sum(-1) / mu**2
    return noise * (wanted / den).sum(-1), needed


def bisected(b: Tensor, wanted: Tensor, noise: Tensor) -> Tensor:
    """mu of two users by 40 halvings of A_1 - A_2."""
    low, high = torch.zeros_like(noise), torch.ones_like(noise)
    for _ in range(40):
        m = (low + high) / 2
        _, needed = dual(b, wanted, noise, torch.stack([m, 1 - m], -1))
        up = needed[:, 0] > needed[:, 1]
        low, high = torch.where(up, m, low), torch.where(up, high, m)
    m = (low + high) / 2
    return torch.stack([m, 1 - m], -1)


def iterated(b: Tensor, wanted: Tensor, noise: Tensor) -> Tensor:
    """mu of any number of users by the fixed point mu_n ~ sqrt(sum_k S b_n / den^2): slow, but no Newton."""
    mu = torch.full(b.shape[:2], 1 / b.shape[1], dtype=torch.float64)
    for _ in range(300):
        _, needed = dual(b, wanted, noise, mu)
        root = needed.sqrt() * mu
        mu = root / root.sum(-1, keepdim=True)
    return mu


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("users", USERS)
def test_every_joint_row(backend, users, dtype):
    """Budgets, conditions of optimality, steps, and the objective against slower methods for our dual."""
    double = dtype == torch.complex128
    rows = 4 if backend.interpreted else ROWS
    for carriers in CARRIERS:
        given = drawn(rows, users, carriers, dtype, seed=100 * users + carriers)
        found = ops.ssdt_joint(*(t.to(backend.device) for t in given))
        g, s, power, noise, u, alpha, mu, objective = wide(*given, *found[:4])
        assert found.iterations.max() <= 12
        used = u.abs().square().mean(-1) / power
        assert (used <= 1 + 1e-5).all()
        assert ((used - 1).abs() <= 1e-5)[mu > 1e-6].all()
        b, wanted = power[..., None] * g.abs() ** 2, s.abs() ** 2
        bound, needed = dual(b, wanted, noise, mu)
        assert (needed.amax(-1) / needed.amin(-1) - 1 <= (1e-9 if double else 1e-4)).all()
        slower = bisected if users == 2 else iterated
        best, _ = dual(b, wanted, noise, slower(b, wanted, noise))
        assert (objective <= best * (1 + 1e-5)).all()
        # What is sent costs no more than the bound: nothing better exists. The cost is a difference from s,
        # so float32 leaves an error of its resolution times |s|^2.
        heard = (alpha[:, None] * (g * u).sum(1) - s).abs().square().sum(-1)
        cost = heard + carriers * noise * alpha**2
        assert (
            cost <= bound * (1 + (1e-8 if double else 1e-5)) + (0 if double else 1e-10) * wanted.sum(-1)
        ).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("users", [2, 3])
def test_the_price_of_noise_and_power(backend, users, dtype):
    """Falling budgets and rising noise cost; more users never do, as they may stay silent."""
    g, s, power, noise = (t.to(backend.device) for t in drawn(ROWS, users, 16, dtype, seed=7))
    found = ops.ssdt_joint(g, s, power, noise)
    slack = 1 + (1e-9 if dtype == torch.complex128 else 1e-5)
    assert (ops.ssdt_joint(g, s, power, 2 * noise).objective * slack >= found.objective).all()
    assert (ops.ssdt_joint(g, s, power / 2, noise).objective * slack >= found.objective).all()
    fewer = ops.ssdt_joint(g[:, 1:], s, power[:, 1:], noise)
    assert (fewer.objective * slack >= found.objective).all()
    # Only sigma2 / P counts: both twice as large changes alpha and u as their units do.
    both = ops.ssdt_joint(g, s, 4 * power, 4 * noise)
    torch.testing.assert_close(both.transmit, 2 * found.transmit, rtol=2e-5, atol=2e-5)
    torch.testing.assert_close(2 * both.alpha, found.alpha, rtol=2e-5, atol=0)


# ---- separable -----------------------------------------------------------------------------------------


def shares(strength: Tensor, power: Tensor, noise: Tensor) -> Tensor:
    """tau by bisections within a bisection: M_n(tau_n) = alpha^2 for all n with sum P tau = sigma2."""

    def needed(tau: Tensor) -> Tensor:
        return (strength / (strength + tau[..., None]) ** 2).mean(-1)

    def at_level(level: Tensor) -> Tensor:
        low = torch.full_like(power, -80.0)
        high = (noise[:, None] / power).log().expand_as(power)
        for _ in range(50):
            middle = (low + high) / 2
            more = needed(middle.exp()) > level[:, None]
            low, high = torch.where(more, middle, low), torch.where(more, high, middle)
        over = needed(torch.zeros_like(power)) > level[:, None]
        return torch.where(over, low.exp(), 0.0)

    least, most = torch.full_like(noise, -80.0), torch.full_like(noise, 80.0)
    for _ in range(60):
        middle = (least + most) / 2
        more = (power * at_level(middle.exp())).sum(-1) > noise
        least, most = torch.where(more, middle, least), torch.where(more, most, middle)
    return at_level(((least + most) / 2).exp())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("users", USERS)
def test_every_separable_row(backend, users, dtype):
    double = dtype == torch.complex128
    rows = 4 if backend.interpreted else ROWS
    tolerance = 1e-9 if double else 1e-5
    for carriers in CARRIERS:
        g, _, power, noise = drawn(rows, users, carriers, dtype, seed=1000 * users + carriers)
        found = ops.ssdt_separable(*(t.to(backend.device) for t in (g, power, noise)))
        assert found.iterations.max() <= 12
        g, power, noise, v, alpha, tau, objective = wide(g, power, noise, *found[:4])
        torch.testing.assert_close((power * tau).sum(-1), noise, rtol=tolerance, atol=0)
        used = v.abs().square().mean(-1)  # symbols of power P_n
        assert (used <= 1 + tolerance).all()
        assert ((used - 1).abs() <= tolerance)[tau * power > 1e-6 * noise[:, None]].all()
        strength = g.abs() ** 2
        need = (strength / (strength + tau[..., None]) ** 2).mean(-1)
        high = alpha[:, None].square()
        assert (need <= high * (1 + 1e-4)).all()
        assert ((need / high - 1).abs() <= (1e-8 if double else 1e-4))[
            tau * power > 1e-6 * noise[:, None]
        ].all()
        if carriers == 16:
            w_tau = shares(strength, power, noise)
            level = (strength / (strength + w_tau[..., None]) ** 2).mean(-1).amax(-1)
            lost = (w_tau[..., None] / (strength + w_tau[..., None])).square().sum(-1)
            best = (power * lost).sum(-1) + carriers * noise * level
            assert (objective <= best * (1 + 1e-5)).all()


@pytest.mark.parametrize("users", [1, 2, 5])
def test_symmetries_of_separable(backend, users):
    g, _, power, noise = (t.to(backend.device) for t in drawn(ROWS, users, 12, torch.complex128, seed=8))
    found = ops.ssdt_separable(g, power, noise)

    def same(a: Tensor, b: Tensor) -> None:
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)

    scaled = ops.ssdt_separable(7e4 * g, power, 7e4**2 * noise)
    same(scaled.precoder, found.precoder)
    same(scaled.alpha * 7e4, found.alpha)
    same(scaled.objective, found.objective)
    angle = torch.linspace(0, 40, g.numel(), dtype=torch.float64, device=g.device).view(g.shape)
    turn = torch.polar(torch.ones_like(angle), angle)
    same(ops.ssdt_separable(g * turn, power, noise).precoder * turn, found.precoder)
    back = ops.ssdt_separable(g.flip(1, 2), power.flip(1), noise)
    same(back.precoder.flip(1, 2), found.precoder)
    equal = ops.ssdt_separable(g[:, :1].expand_as(g), power[:, :1].expand_as(power), noise)
    same(equal.tau * power[:, :1] * users, noise[:, None].expand_as(power))


# ---- bits ----------------------------------------------------------------------------------------------


def everything(dtype: torch.dtype, users: int, carriers: int, device: Any = "cpu") -> list[Tensor]:
    """Results of every op on one draw, some gains zero so that rows of each kind occur."""
    g, s, power, noise = (t.to(device) for t in drawn(131, users, carriers, dtype, seed=9))
    g[::5, 0, ::2] = 0
    real = g[:, 0].abs()
    filled = ops.water_filling(real, noise)
    return [
        *ops.ssdt_joint(g, s, power, noise),
        *ops.ssdt_joint(g, s, power, noise, statistics="csi"),
        *ops.ssdt_separable(g, power, noise),
        filled.power,
        filled.level,
        ops.project_simplex(real, noise),
        ops.mse_water_filling(real, s.abs(), noise),
        ops.power_normalize(s, noise),
        ops.power_normalize(real, noise),
    ]


def assert_same_bits(first: list[Tensor], second: list[Tensor]) -> None:
    for i, (a, b) in enumerate(zip(first, second, strict=True)):
        assert torch.equal(a, b), f"result {i} differs in {int((a != b).sum())} of {a.numel()} elements"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("users", [2, 3])
def test_a_second_call_gives_the_same_bits(backend, users, dtype):
    assert_same_bits(*(everything(dtype, users, 20, backend.device) for _ in range(2)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("users", [1, 2, 3])
def test_threads_give_the_same_bits(users, dtype, set_threads):
    results = []
    for threads in (1, 2, 3):
        set_threads(threads)
        results.append(everything(dtype, users, 33))
    assert_same_bits(results[0], results[1])
    assert_same_bits(results[0], results[2])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("users", [1, 2, 3])
def test_instruction_sets_give_the_same_bits(users, dtype):
    """Sums run in one order of lanes whatever their width, and nothing is contracted."""
    before = _native.cpu.isa_used()
    results = []
    try:
        for name in _native.cpu.isa_available():
            _native.cpu.use_isa(name)
            results.append(everything(dtype, users, 37))
    finally:
        _native.cpu.use_isa(before)
    for other in results[1:]:
        assert_same_bits(results[0], other)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("users", [1, 3])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_bad_row_of_any_argument_stays_alone(backend, value, users, dtype):
    clean = [t.to(backend.device) for t in drawn(6, users, 8, dtype, seed=10)]
    want = [*ops.ssdt_joint(*clean), *ops.ssdt_separable(clean[0], *clean[2:])]
    others = [0, 1, 2, 4, 5]
    for i in range(4):
        given = [t.clone() for t in clean]
        given[i][3] = value
        found = [*ops.ssdt_joint(*given, check=False), *ops.ssdt_separable(given[0], *given[2:], check=False)]
        assert found[3][3].isnan()
        assert found[0][3].isnan().all()
        if i != 1:  # symbols are no argument of the separable form
            assert found[8][3].isnan()
            assert found[5][3].isnan().all()
        assert_same_bits([t[others] for t in found], [t[others] for t in want])


@pytest.mark.parametrize("users", [2, 3])
def test_transposed_in_memory(backend, users):
    """Every order of the three axes in memory, and a stride over carriers, as the plain layout gives."""
    g, s, power, noise = (t.to(backend.device) for t in drawn(6, users, 9, torch.complex128, seed=11))
    want = [*ops.ssdt_joint(g, s, power, noise), *ops.ssdt_separable(g, power, noise)]
    apart = torch.zeros(6, users, 27, dtype=g.dtype, device=g.device)[..., ::3]
    layouts = [apart.copy_(g)]
    for order in ((0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 1, 0)):
        back = [order.index(axis) for axis in range(3)]
        layouts.append(g.permute(order).contiguous().permute(back))
    for gains in layouts:
        assert not gains.is_contiguous()
        found = [*ops.ssdt_joint(gains, s, power, noise), *ops.ssdt_separable(gains, power, noise)]
        for a, b in zip(found, want, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


MEMORY = """
import pathlib, torch
from tenfold import ops

torch.set_num_threads(1)
rows, users, carriers = 1_000_000, 2, 64
gains = torch.randn(1000, users, carriers, dtype=torch.complex64).repeat(rows // 1000, 1, 1)
symbols = torch.randn(1000, carriers, dtype=torch.complex64).repeat(rows // 1000, 1)
ops.ssdt_joint(gains[:1000], symbols[:1000], [0.6, 0.4], 0.06)


def kib(field):
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1])


pathlib.Path("/proc/self/clear_refs").write_text("5")
before = kib("VmRSS")
found = ops.ssdt_joint(gains, symbols, [0.6, 0.4], 0.06)
print((kib("VmHWM") - before) * 1024 - sum(value.nbytes for value in found))
"""


@pytest.mark.slow
def test_a_million_rows_need_no_memory_but_their_results():
    """Two users on 64 subcarriers, 1.5 GB of inputs, 1 GB of results; 2 MB beyond them."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pytest.skip("this system does not let a process reset its own peak memory")
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if free < 4 << 30:
        pytest.skip(f"needs 4 GiB of free memory, found {free / 2**30:.1f}")
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) <= 2 << 20
