"""Power allocation against what wireless-research code runs today.

Peers that are no packages are written from published expressions: "torch_bisection", 40 halvings with whole
matrices at a time, as batched allocators are written; "torch_sort", water-filling and simplex projection by
sorting; "sionna", the bisection of its downlink_fair_power_control for fairness 0, water level and bracket as
published. "cvxpy" solves a few rows one after the other; the time of all is extrapolated from them.
"""

from __future__ import annotations

from functools import partial
from importlib import import_module
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from .harness import Agreement, Case, Side, Work, Workload, compare_values
from .installed import missing
from .zo import _backend, _version

ROWS, USERS, CARRIERS = 100_000, 2, 64
SNR_DB = 10.0
SOLVED = 20
"""Rows that a general solver is given."""


def _torch() -> str:
    return f"torch {torch.__version__}"


def _solver() -> str:
    if missing("cvxpy", "clarabel"):
        return "cvxpy, Clarabel"
    return f"cvxpy {version('cvxpy')}, Clarabel {version('clarabel')}"


# ---- joint allocation ------------------------------------------------------------------------------------


def _uplink(device: torch.device, tiny: bool) -> tuple[Tensor, Tensor, Tensor, float]:
    """Rayleigh gains of two users, the sum of their symbols, budgets of 0.6 and 0.4 W."""
    rows = 100 if tiny else ROWS
    generator = torch.Generator(device).manual_seed(3)
    g, t = (
        torch.randn(rows, USERS, CARRIERS, dtype=torch.complex64, device=device, generator=generator)
        for _ in range(2)
    )
    power = torch.tensor([0.6, 0.4], device=device)
    s = (power.sqrt()[:, None] * t).sum(1)
    return g, s, power, float(power[0]) * 10 ** (-SNR_DB / 10)


def _joint_ours(g: Tensor, s: Tensor, power: Tensor, noise: float) -> tuple[Tensor, Tensor]:
    from tenfold.ops import ssdt_joint

    found = ssdt_joint(g, s, power, noise)
    return found.transmit, found.alpha


def _joint_bisection(g: Tensor, s: Tensor, power: Tensor, noise: float) -> tuple[Tensor, Tensor]:
    """Our dual of two users, its root found by 40 halvings."""
    b = power[:, None] * (g.real.square() + g.imag.square())
    wanted = s.real.square() + s.imag.square()
    low, high = torch.zeros_like(wanted[:, :1]), torch.ones_like(wanted[:, :1])
    for _ in range(40):
        m = 0.5 * (low + high)
        q = 1 - m
        d = noise * m * q + b[:, 0] * q + b[:, 1] * m
        rising = (wanted * (b[:, 0] * q * q - b[:, 1] * m * m) / (d * d)).sum(1, keepdim=True) > 0
        low, high = torch.where(rising, m, low), torch.where(rising, high, m)
    m = 0.5 * (low + high)
    q = 1 - m
    d = noise * m * q + b[:, 0] * q + b[:, 1] * m
    ratio = torch.stack([q / d, m / d], 1)
    w = power[:, None] * ratio * g.conj() * s[:, None]
    need = (w.real.square() + w.imag.square()).sum(-1) / power
    alpha = (need.amax(-1) / g.shape[-1]).sqrt()
    return w / alpha[:, None, None], alpha


def _joint_cvxpy(g: Tensor, s: Tensor, power: Tensor, noise: float, rows: int) -> tuple[Tensor, Tensor]:
    cp = import_module("cvxpy")
    alphas, out = [], []
    for i in range(rows):
        w = cp.Variable((USERS, CARRIERS), complex=True)
        heard = sum(cp.multiply(g[i, n].numpy(), w[n]) for n in range(USERS))
        need = cp.maximum(*(cp.sum_squares(w[n]) / float(power[n]) for n in range(USERS)))
        problem = cp.Problem(cp.Minimize(cp.sum_squares(heard - s[i].numpy()) + noise * need))
        problem.solve(solver="CLARABEL")
        value = torch.from_numpy(w.value)
        alpha = (value.abs().square().sum(-1) / power.double()).amax().div(CARRIERS).sqrt()
        alphas.append(alpha)
        out.append(value / alpha)
    return torch.stack(out).to(torch.complex64), torch.stack(alphas).float()


def _parts(found: tuple[Tensor, Tensor]) -> list[Tensor]:
    u, alpha = found
    return [torch.view_as_real(u).clone(), alpha.clone()]


def _joint(device: torch.device, tiny: bool) -> Workload:
    g, s, power, noise = _uplink(device, tiny)
    rows = min(SOLVED, len(g))

    def near(tolerance: float, ours: list[Tensor], theirs: list[Tensor]) -> Agreement:
        count = len(theirs[1])
        return compare_values([t[:count] for t in ours], theirs, tolerance)

    def solver() -> str | None:
        if device.type != "cpu":
            return "it runs on the CPU"
        return missing("cvxpy", "clarabel")

    cvxpy = partial(_joint_cvxpy, g, s, power, noise, rows)
    size = g.nbytes * 2 + s.nbytes
    return Workload(
        ours=Side(
            "tenfold",
            partial(_joint_ours, g, s, power, noise),
            version=_version(),
            kind="ours",
            backend=partial(_backend, "ssdt_joint", device),
        ),
        others=[
            Side(
                "torch_bisection",
                partial(_joint_bisection, g, s, power, noise),
                version=f"{_torch()}, 40 halvings of our dual",
                agree=partial(near, 2e-4),
                fewest=1,
            ),
            Side(
                "cvxpy",
                cvxpy,
                version=f"{_solver()}, extrapolated from {rows} of {len(g)} rows",
                agree=partial(near, 2e-3),
                prepare=solver,
                fewest=1,
                part=rows / len(g),
                measure_memory=False,
            ),
        ],
        work=Work(bytes=float(size)),
        keep=_parts,
        note=f"{len(g)} rows of {USERS} users on {CARRIERS} subcarriers, {SNR_DB:g} dB; cvxpy {rows} rows",
    )


# ---- water-filling ---------------------------------------------------------------------------------------


def _channels(device: torch.device, tiny: bool) -> tuple[Tensor, Tensor]:
    rows = 100 if tiny else ROWS
    generator = torch.Generator(device).manual_seed(4)
    g = torch.randn(rows, CARRIERS, 2, device=device, generator=generator).square().sum(-1) * 5
    return g, torch.full((rows,), float(CARRIERS), device=device) / 8


def _fill_ours(g: Tensor, power: Tensor) -> Tensor:
    from tenfold.ops import water_filling

    found: Tensor = water_filling(g, power).power
    return found


def _fill_sorting(g: Tensor, power: Tensor) -> Tensor:
    x = 1 / g
    ordered, _ = x.sort(-1)
    levels = (power[:, None] + ordered.cumsum(-1)) / torch.arange(1, g.shape[-1] + 1, device=g.device)
    used = (levels > ordered).sum(-1, keepdim=True)
    return (levels.gather(-1, used - 1) - x).clamp_min(0)


def _fill_bisection(g: Tensor, power: Tensor) -> Tensor:
    x = 1 / g
    low = x.amin(-1, keepdim=True)
    high = low + power[:, None]
    for _ in range(40):
        level = 0.5 * (low + high)
        more = (level - x).clamp_min(0).sum(-1, keepdim=True) > power[:, None]
        low, high = torch.where(more, low, level), torch.where(more, level, high)
    return (0.5 * (low + high) - x).clamp_min(0)


def _fill_sionna(g: Tensor, power: Tensor) -> Tensor:
    """The level within [0, 1000], widened until it holds, halved until all rows are within 1e-5."""
    x = 1 / g
    low = torch.zeros_like(power)
    high = torch.full_like(power, 1000.0)
    for _ in range(100):
        short = (high[:, None] - x).clamp_min(0).sum(-1) < power
        if not bool(short.any()):
            break
        high = torch.where(short, high * 2, high)
    p = torch.zeros_like(g)
    for _ in range(100):
        level = 0.5 * (low + high)
        p = (level[:, None] - x).clamp_min(0)
        used = p.sum(-1)
        if bool(((used - power).abs() <= 1e-5 * power).all()):
            break
        more = used > power
        low, high = torch.where(more, low, level), torch.where(more, level, high)
    return p


def _waterfill(device: torch.device, tiny: bool) -> Workload:
    g, power = _channels(device, tiny)

    def near(ours: list[Tensor], theirs: list[Tensor]) -> Agreement:
        return compare_values(ours, theirs, 1e-4)

    def peer(name: str, run: Any, version: str) -> Side:
        return Side(name, partial(run, g, power), version=version, agree=near)

    return Workload(
        ours=Side(
            "tenfold",
            partial(_fill_ours, g, power),
            version=_version(),
            kind="ours",
            backend=partial(_backend, "water_filling", device),
        ),
        others=[
            peer("torch_sort", _fill_sorting, _torch()),
            peer("torch_bisection", _fill_bisection, f"{_torch()}, 40 halvings"),
            peer("sionna", _fill_sionna, f"{_torch()}, expression of Sionna's downlink_fair_power_control"),
        ],
        work=Work(bytes=2.0 * g.nbytes),
        keep=lambda p: [p.clone()],
        note=f"{len(g)} rows of {CARRIERS} subcarriers, Rayleigh",
    )


# ---- water-filling for the mean squared error ------------------------------------------------------------


def _weighted(device: torch.device, tiny: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Gains and powers of `_channels`, variances S of what the subcarriers carry."""
    g, power = _channels(device, tiny)
    generator = torch.Generator(device).manual_seed(5)
    return g, torch.rand(g.shape, device=device, generator=generator) * 2, power


def _mse_ours(g: Tensor, s: Tensor, power: Tensor) -> Tensor:
    from tenfold.ops import mse_water_filling

    found: Tensor = mse_water_filling(g, s, power)
    return found


def _mse_sorting(g: Tensor, s: Tensor, power: Tensor) -> Tensor:
    """The level of each set of strongest carriers; the largest is that of the carriers above it."""
    root = (s * g).sqrt()
    ordered, order = root.sort(-1, descending=True)
    inverse = (1 / g).gather(-1, order)
    level = ((ordered * inverse).cumsum(-1) / (power[:, None] + inverse.cumsum(-1))).amax(-1, keepdim=True)
    return ((root / level - 1) / g).clamp_min(0)


def _mse_bisection(g: Tensor, s: Tensor, power: Tensor) -> Tensor:
    root = (s * g).sqrt()
    high = root.amax(-1, keepdim=True)
    low = (root / (1 + power[:, None] * g)).amax(-1, keepdim=True)
    for _ in range(40):
        level = 0.5 * (low + high)
        more = ((root / level - 1) / g).clamp_min(0).sum(-1, keepdim=True) > power[:, None]
        low, high = torch.where(more, level, low), torch.where(more, high, level)
    return ((root / (0.5 * (low + high)) - 1) / g).clamp_min(0)


def _mse_waterfill(device: torch.device, tiny: bool) -> Workload:
    g, s, power = _weighted(device, tiny)

    def near(ours: list[Tensor], theirs: list[Tensor]) -> Agreement:
        return compare_values(ours, theirs, 1e-4)

    def peer(name: str, run: Any, version: str) -> Side:
        return Side(name, partial(run, g, s, power), version=version, agree=near)

    return Workload(
        ours=Side(
            "tenfold",
            partial(_mse_ours, g, s, power),
            version=_version(),
            kind="ours",
            backend=partial(_backend, "mse_water_filling", device),
        ),
        others=[
            peer("torch_sort", _mse_sorting, _torch()),
            peer("torch_bisection", _mse_bisection, f"{_torch()}, 40 halvings"),
        ],
        work=Work(bytes=3.0 * g.nbytes),
        keep=lambda p: [p.clone()],
        note=f"{len(g)} rows of {CARRIERS} subcarriers, Rayleigh, weights in (0, 2)",
    )


def cases() -> list[Case]:
    """The cases of this family."""
    return [
        Case("power.ssdt_joint.f32.1e5x64-n2", _joint),
        Case("power.waterfill.f32.1e5x64", _waterfill),
        Case("power.mse_waterfill.f32.1e5x64", _mse_waterfill),
    ]
