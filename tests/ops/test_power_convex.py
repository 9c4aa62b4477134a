"""Power allocation against a general convex solver (cvxpy with Clarabel), on random and degenerate rows.

The solver is given the problem itself, not our dual. Its variables are scaled so that every coefficient is
at most 1 (gains of 1e12 beside 1e-12 are else beyond any interior-point method in double precision); the
phases of the gains are left out, as they only turn the transmitted signals.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from tenfold import ops
from tenfold._backend import OPS

cp: Any = pytest.importorskip("cvxpy", reason="cvxpy is not installed")
pytest.importorskip("clarabel", reason="clarabel is not installed")

pytestmark = pytest.mark.filterwarnings("ignore:Solution may be inaccurate")  # 1e-11 asked, 1e-8 is plenty
TOLERANCE = {torch.complex128: 1e-6, torch.complex64: 5e-6}
"""Of the objective, relative: what float32 leaves of a residual is measured against |s|^2."""
Row = tuple[Tensor, Tensor, Tensor, Tensor]


@pytest.fixture
def backend(backend, request):
    if backend.name not in OPS["ssdt_joint"]:
        pytest.skip(f"no {backend.name} kernel of power allocation")
    return backend


# ---- rows ----------------------------------------------------------------------------------------------


def drawn(users: int, carriers: int, seed: int, sparse: float = 0.0, noise: float | None = None) -> Row:
    """Gains of variance 1e-2 to 1e2 per user, budgets of 0.1 to 1.1 W, SNR of -20 to 50 dB."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.complex128)

    g = normal(users, carriers) * (10 ** (4 * uniform(users, 1) - 2)).sqrt()
    g = torch.where(uniform(users, carriers) < sparse, 0.0, g)
    power = 0.1 + uniform(users)
    s = (power.sqrt()[:, None] * normal(users, carriers)).sum(0)
    level = 10 ** (-(70 * uniform(1)[0] - 20) / 10)
    return g, s, power, level if noise is None else torch.tensor(noise, dtype=torch.float64)


def some_slow(names: Iterable[str], fast: int) -> list[Any]:
    """Of the random rows the first few in every run, all of them with the slow tests."""
    slow = {f"random {i}" for i in range(fast, 50)}
    return [pytest.param(name, marks=[pytest.mark.slow] if name in slow else []) for name in names]


def random_row(i: int) -> Row:
    return drawn(1 + i % 8, (4, 8, 16)[i % 3], 100 + i)


def degenerate_rows() -> dict[str, Row]:
    rows: dict[str, Row] = {}
    g, s, power, noise = drawn(3, 6, 1, noise=0.1)
    dead = g.clone()
    dead[1] = 0
    rows["dead user"] = (dead, s, power, noise)
    dead = g.clone()
    dead[:, 2] = 0
    rows["dead subcarrier"] = (dead, s, power, noise)
    rows["no gain at all"] = (torch.zeros_like(g), s, power, noise)
    rows["one zero gain"] = (
        torch.where(torch.arange(6) == torch.tensor([[9], [4], [9]]), 0.0, g),
        s,
        power,
        noise,
    )
    rows["silent symbols"] = (g, torch.where(torch.arange(6) % 2 == 0, 0.0, s), power, noise)
    rows["one subcarrier"] = drawn(3, 1, 2, noise=0.1)
    rows["one subcarrier of one user"] = drawn(1, 1, 3, noise=0.1)
    rows["equal gains"] = (g[:1].expand(3, 6).clone(), s, power[:1].expand(3).clone(), noise)
    rows["equal gains, unequal budgets"] = (g[:1].expand(3, 6).clone(), s, power, noise)
    rows["a user without a binding budget"] = (
        torch.tensor([[3, 0, 0, 0], [0.1, 0.5, 0.5, 0.5]], dtype=torch.complex128),
        torch.tensor([1, 1j, -1, 0.5], dtype=torch.complex128),
        torch.tensor([0.6, 0.4], dtype=torch.float64),
        noise,
    )
    for i in range(6):
        rows[f"60 % sparse {i}"] = drawn(3, 8, 20 + i, sparse=0.6, noise=0.1)
    spread = 10.0 ** torch.linspace(-12, 12, 9, dtype=torch.float64)
    wide, s, power, noise = drawn(2, 9, 4, noise=0.1)
    rows["gains of 1e-12 to 1e12 on subcarriers"] = (wide * spread, s, power, noise)
    rows["gains of 1e-12 to 1e12 of users"] = (wide * spread[[3, 5], None], s, power, noise)
    rows["budgets of 1e-6 and 1e6"] = (wide, s, torch.tensor([1e-6, 1e6], dtype=torch.float64), noise)
    rows["no interference but noise of 1e6"] = (wide, s, power, torch.tensor(1e6, dtype=torch.float64))
    return rows


ROWS: dict[str, Row] = {f"random {i}": random_row(i) for i in range(50)} | degenerate_rows()
NAMES = some_slow(ROWS, 8)


# ---- the solver ----------------------------------------------------------------------------------------


def solved(cost: Any, *constraints: Any) -> float:
    problem = cp.Problem(cp.Minimize(cost), list(constraints))
    problem.solve(solver="CLARABEL", tol_gap_abs=1e-11, tol_gap_rel=1e-11, tol_feas=1e-11)
    assert problem.status in ("optimal", "optimal_inaccurate")
    return float(problem.value)


def coefficients(g: Tensor, power: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """With y = w sqrt(|g|^2 + sigma2 / P): what |g| w and sqrt(sigma2 / P) w are per y."""
    strength = g.abs() ** 2
    price = (noise / power)[:, None].expand_as(strength)
    return (strength / (strength + price)).sqrt(), (price / (strength + price)).sqrt()


@cache
def joint_optimum(name: str) -> float:
    """min |sum_n g_n w_n - s|^2 + sigma2 max_n |w_n|^2 / P_n: real and imaginary parts as two columns."""
    g, s, power, noise = ROWS[name]
    fit, price = (t.numpy() for t in coefficients(g, power, noise))
    y = [cp.Variable((g.shape[1], 2)) for _ in power]
    received = sum(cp.multiply(fit[n][:, None], y[n]) for n in range(len(y)))
    spent = [cp.sum_squares(cp.multiply(price[n][:, None], y[n])) for n in range(len(y))]
    most = cp.maximum(*spent) if len(spent) > 1 else spent[0]
    return solved(cp.sum_squares(received - torch.view_as_real(s).numpy()) + most)


@cache
def separable_optimum(name: str, weighted: bool) -> float:
    """min sum_nk T_nk |g w - c|^2 + sigma2 max_n sum_k T_nk |w|^2 / P_n, T = P or weights, over real g w."""
    g, s, power, noise = ROWS[name]
    c, load = wanted_and_load(g, s, power, weighted)
    fit, price = (t.numpy() for t in coefficients(g, power, noise))
    y = [cp.Variable(g.shape[1]) for _ in power]
    root = load.sqrt().numpy()
    lost = sum(
        cp.sum_squares(cp.multiply(root[n], cp.multiply(fit[n], y[n]) - float(c[n]))) for n in range(len(y))
    )
    spent = [cp.sum_squares(cp.multiply(root[n] * price[n], y[n])) for n in range(len(y))]
    return solved(lost + (cp.maximum(*spent) if len(spent) > 1 else spent[0]))


def wanted_and_load(g: Tensor, s: Tensor, power: Tensor, weighted: bool) -> tuple[Tensor, Tensor]:
    if not weighted:
        return torch.ones_like(power), power[:, None].expand(g.shape)
    c = 0.5 + torch.arange(len(power), dtype=torch.float64) / len(power)
    return c, power[:, None] * (0.2 + s.abs() ** 2)


# ---- allocation over users -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_joint_is_the_optimum(backend, name, dtype):
    g, s, power, noise = ROWS[name]
    best = joint_optimum(name)
    real = torch.float64 if dtype == torch.complex128 else torch.float32
    given = [
        t.to(kind).to(backend.device) for t, kind in ((g, dtype), (s, dtype), (power, real), (noise, real))
    ]
    found = ops.ssdt_joint(*given)
    size = float((s.abs() ** 2).sum())
    slack = 1e-11 * size if dtype == torch.complex128 else 1e-6 * size
    assert float(found.objective) == pytest.approx(best, rel=TOLERANCE[dtype], abs=slack)
    # What is sent costs that much, and keeps each budget.
    u, alpha = found.transmit.cpu().to(torch.complex128), float(found.alpha)
    cost = float((alpha * (g * u).sum(0) - s).abs().square().sum() + len(s) * noise * alpha**2)
    assert cost == pytest.approx(best, rel=TOLERANCE[dtype], abs=slack)
    assert (u.abs().square().mean(-1) <= power * (1 + (1e-9 if dtype == torch.complex128 else 1e-5))).all()


@pytest.mark.parametrize("weighted", [False, True], ids=["expected", "weighted"])
@pytest.mark.parametrize("name", NAMES)
def test_separable_is_the_optimum(backend, name, weighted):
    g, s, power, noise = ROWS[name]
    c, load = wanted_and_load(g, s, power, weighted)
    best = separable_optimum(name, weighted)
    g_, power_, noise_, c_, load_ = (t.to(backend.device) for t in (g, power, noise, c, load.contiguous()))
    found = ops.ssdt_separable(g_, power_, noise_, c=c_, weights=load_ if weighted else None)
    assert float(found.objective) == pytest.approx(best, rel=1e-6)
    v, alpha = found.precoder.cpu(), float(found.alpha)
    cost = float((load * (alpha * g * v - c[:, None]).abs().square()).sum() + g.shape[1] * noise * alpha**2)
    assert cost == pytest.approx(best, rel=1e-6)
    used = (load * v.abs().square()).mean(-1)
    assert (used <= power * (1 + 1e-9)).all()


def test_a_budget_of_nothing_is_refused():
    g, s, power, noise = ROWS["random 1"]
    for budget, got in ((torch.zeros_like(power), "0.0"), (-power, "-")):
        with pytest.raises(ValueError, match=rf"power: expected finite values > 0, got {got}"):
            ops.ssdt_joint(g, s, budget, noise)
        with pytest.raises(ValueError, match=rf"power: expected finite values > 0, got {got}"):
            ops.ssdt_separable(g, budget, noise)


# ---- water-filling -------------------------------------------------------------------------------------


BEYOND = "gains of 1e-12 to 1e12"
"""Clarabel stops up to 2e-5 above the optimum here."""


def filling_rows() -> dict[str, tuple[Tensor, Tensor, float]]:
    """Gains a, weights S, and what there is to share."""
    rows: dict[str, tuple[Tensor, Tensor, float]] = {}
    for i in range(20):
        generator = torch.Generator().manual_seed(i)
        a, s = (torch.rand(12, generator=generator, dtype=torch.float64) for _ in range(2))
        rows[f"random {i}"] = (-a.log() * 10.0 ** (i % 5 - 2), s, (0.01, 0.5, 2.0, 30.0)[i % 4])
    a, s, _ = rows["random 2"]
    rows["dead subcarrier"] = (torch.where(torch.arange(12) == 3, 0.0, a), s, 1.0)
    rows["no weight"] = (a, torch.where(torch.arange(12) % 3 == 0, 0.0, s), 1.0)
    rows["one subcarrier"] = (a[:1], s[:1], 1.0)
    rows["equal gains"] = (torch.full_like(a, 0.7), torch.ones_like(s), 1.0)
    rows[BEYOND] = (10.0 ** torch.linspace(-12, 12, 12, dtype=torch.float64), s, 1.0)
    rows["half of them without gain"] = (torch.where(torch.arange(12) % 2 == 0, 0.0, a), s, 5.0)
    return rows


FILLINGS = filling_rows()
FILLING_NAMES = some_slow(FILLINGS, 4)


def shared(power: float, carriers: int) -> tuple[Any, list[Any]]:
    p = cp.Variable(carriers, nonneg=True)
    return p, [cp.sum(p) == power]


@cache
def best_rate(name: str) -> float:
    a, _, power = FILLINGS[name]
    p, constraints = shared(power, len(a))
    # log(1 + a p) = log(max(1, a)) + log(1 / max(1, a) + a / max(1, a) p): coefficients of at most 1
    scale = a.clamp_min(1.0)
    inside = (1 / scale).numpy() + cp.multiply((a / scale).numpy(), p)
    return float(scale.log().sum()) - solved(-cp.sum(cp.log(inside)), *constraints)


@cache
def least_error(name: str, users: int) -> float:
    """min sum_nk S_k / (1 + a_nk p_k), one or several users."""
    a, s, power = FILLINGS[name]
    p, constraints = shared(power, len(a))
    scales = [row.clamp_min(1.0) for row in user_gains(a, users)]
    cost = sum(
        cp.sum(
            cp.multiply(
                (s / scale).numpy(), cp.inv_pos((1 / scale).numpy() + cp.multiply((row / scale).numpy(), p))
            )
        )
        for row, scale in zip(user_gains(a, users), scales, strict=True)
    )
    return solved(cost, *constraints)


def user_gains(a: Tensor, users: int) -> Tensor:
    return torch.stack([a.roll(n) for n in range(users)])


@pytest.mark.parametrize("name", FILLING_NAMES)
def test_water_filling_is_the_optimum(backend, name):
    a, _, power = FILLINGS[name]
    found = ops.water_filling(a.to(backend.device), power)
    assert float(found.rate) == pytest.approx(best_rate(name), rel=1e-6)
    assert (found.power >= 0).all()
    assert float(found.power.sum()) == pytest.approx(power, rel=1e-12)


@pytest.mark.parametrize("name", FILLING_NAMES)
def test_mse_water_filling_is_the_optimum(backend, name):
    a, s, power = FILLINGS[name]
    p = ops.mse_water_filling(a.to(backend.device), s.to(backend.device), power).cpu()
    check_filling(p, a[None], s, power, least_error(name, 1), name)


@pytest.mark.parametrize("users", [1, 3])
@pytest.mark.parametrize("name", FILLING_NAMES)
def test_downlink_water_filling_is_the_optimum(name, users):
    a, s, power = FILLINGS[name]
    gains = user_gains(a, users)
    check_filling(ops.mse_water_filling(gains, s, power), gains, s, power, least_error(name, users), name)


def check_filling(p: Tensor, gains: Tensor, s: Tensor, power: float, best: float, name: str) -> None:
    assert (p >= 0).all()
    assert float(p.sum()) == pytest.approx(power, rel=1e-9)
    cost = float((s / (1 + gains * p)).sum())
    assert cost <= best * (1 + 1e-6)
    assert cost >= best * (1 - (2e-5 if name == BEYOND else 1e-6))
    # No point of the simplex costs less than the tangent plane at p does at the best of its corners.
    slope = -(s * gains / (1 + gains * p) ** 2).sum(0)
    bound = cost + power * float(slope.min()) - float((slope * p).sum())
    assert cost - bound <= 1e-8 * cost


def test_nothing_to_share(backend):
    """A budget of zero is allowed here: nothing is sent, and nothing is undefined."""
    a, s, _ = (t.to(backend.device) if isinstance(t, Tensor) else t for t in FILLINGS["random 2"])
    found = ops.water_filling(a, 0.0)
    assert (found.power == 0).all()
    assert found.rate == 0
    assert float(found.level) == pytest.approx(float(1 / a.max()), rel=1e-12)
    assert (ops.mse_water_filling(a, s, 0.0) == 0).all()
    assert (ops.mse_water_filling(torch.stack([a, a.flip(0)]), s, 0.0) == 0).all()
    with pytest.raises(ValueError, match=r"power: expected finite values >= 0, got -0.5"):
        ops.water_filling(a, -0.5)
    with pytest.raises(ValueError, match=r"power: expected finite values >= 0, got -0.5"):
        ops.mse_water_filling(a, s, -0.5)
