"""Transmit power allocation: known optima, optimality conditions, identities, degenerate rows, gradients."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor

from tenfold import ops
from tenfold._backend import OPS

PRECISION = {torch.complex64: 5e-6, torch.complex128: 1e-8}
P = (0.6, 0.4)


@pytest.fixture
def backend(backend, request):
    if backend.name not in OPS["ssdt_joint"]:
        pytest.skip(f"no {backend.name} kernel of power allocation")
    return backend


def drawn(
    rows: int,
    users: int,
    carriers: int,
    dtype: torch.dtype = torch.complex128,
    seed: int = 0,
    sparse: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gains of users whose variances spread over 1e4, symbols, budgets, noise of -20 to 50 dB SNR."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.complex128)

    g = normal(rows, users, carriers) * (10 ** (4 * uniform(rows, users, 1) - 2)).sqrt()
    g = torch.where(uniform(rows, users, carriers) < sparse, 0.0, g)
    power = 0.1 + uniform(rows, users)
    s = (power.sqrt()[..., None] * normal(rows, users, carriers)).sum(1)
    noise = 10 ** (-(70 * uniform(rows) - 20) / 10)
    real = torch.empty(0, dtype=dtype).real.dtype
    return g.to(dtype), s.to(dtype), power.to(real), noise.to(real)


def known(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    g = torch.tensor([[1, 0.5j, -2, 0.1], [0.3, 1, 1j, 2]], dtype=dtype)
    return g, torch.tensor([1, 1j, -1, 0.5], dtype=dtype)


def close(got: Tensor, want: object, tolerance: float) -> None:
    wanted = want if isinstance(want, Tensor) else torch.tensor(want, dtype=torch.float64)
    wide = torch.complex128 if got.is_complex() else torch.float64
    torch.testing.assert_close(got.cpu().to(wide), wanted.cpu().to(wide), rtol=tolerance, atol=tolerance)


def needed(g: Tensor, s: Tensor, power: Tensor, noise: Tensor, mu: Tensor) -> Tensor:
    """A_n = |w_n|^2 / P_n, in double precision; infinite for mu_n = 0."""
    g, mu, power, noise = g.to(torch.complex128), mu.double(), power.double(), noise.double()
    b = power[..., None] * g.abs() ** 2
    den = noise[:, None] + (b / mu[..., None]).sum(1)
    return ((s.to(torch.complex128).abs() ** 2)[:, None] * b / den[:, None] ** 2).sum(-1) / mu**2


# ---- known optima --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", PRECISION, ids=str)
def test_joint_of_two_users(backend, dtype):
    """Values that a convex solver (Clarabel) confirmed."""
    g, s = (t.to(backend.device) for t in known(dtype))
    found = ops.ssdt_joint(g, s, P, 0.1)
    tolerance = PRECISION[dtype]
    close(found.objective, 0.183884062, tolerance)
    close(found.alpha, 0.653472555, tolerance)
    close(found.mu, [0.584714331, 0.415285669], tolerance)
    u1 = torch.tensor([1.294733641, 0.594929845, 0.607725902, 0.019811743], dtype=torch.complex128)
    u2 = torch.tensor([0.364592074, 1.116866558j, 0.285222175j, 0.371927442], dtype=torch.complex128)
    close(found.transmit, torch.stack([u1, u2]), tolerance)


@pytest.mark.parametrize("dtype", PRECISION, ids=str)
def test_joint_without_noise(backend, dtype):
    g, s = (t.to(backend.device) for t in known(dtype))
    found = ops.ssdt_joint(g, s, P, 0.0)
    close(found.alpha, 0.703654189, PRECISION[dtype])
    close(found.mu, [0.586291, 0.413709], 1e-6 if dtype == torch.complex128 else 5e-6)
    close(found.objective, 0.0, 1e-9)


@pytest.mark.parametrize("dtype", PRECISION, ids=str)
def test_separable_of_two_users(backend, dtype):
    g, _ = known(dtype)
    found = ops.ssdt_separable(g.to(backend.device), P, 0.1)
    tolerance = PRECISION[dtype]
    close(found.objective, 1.079929626, tolerance)
    close(found.alpha, 1.015181556, tolerance)
    close(found.tau.cpu().double() * torch.tensor(P, dtype=torch.float64) / 0.1, [0.561925, 0.438075], 1e-5)
    v1 = torch.tensor([0.900691901, -1.433192853j, -0.481254854, 0.950318953], dtype=torch.complex128)
    close(found.precoder[0], v1, tolerance)


@pytest.mark.parametrize("dtype", PRECISION, ids=str)
def test_one_user_is_closed(backend, dtype):
    g = torch.tensor([[2, 1, 0.5, 0.1]], dtype=dtype, device=backend.device)
    s = torch.ones(4, dtype=dtype, device=backend.device)
    found = ops.ssdt_joint(g, s, [1.0], 0.1)
    w = torch.tensor([0.487804878, 0.909090909, 1.428571429, 0.909090909], dtype=torch.complex128)
    tolerance = PRECISION[dtype]
    close(found.alpha, 0.991421011, tolerance)
    close(found.objective, 1.310104530, tolerance)
    close(found.transmit[0] * found.alpha, w, tolerance)
    assert found.mu == 1
    assert found.iterations == 0
    alone = ops.ssdt_separable(g, [1.0], 0.1)
    close(alone.precoder[0] * alone.alpha, w, tolerance)  # all symbols are 1
    close(alone.tau, [0.1], tolerance)


@pytest.mark.parametrize("dtype", PRECISION, ids=str)
def test_optimum_on_the_boundary(backend, dtype):
    """User 1 can serve its one live carrier with 3.29 % of its power: only user 2's budget binds."""
    g = torch.tensor([[3, 0, 0, 0], [0.1, 0.5, 0.5, 0.5]], dtype=dtype, device=backend.device)
    _, s = known(dtype)
    found = ops.ssdt_joint(g, s.to(backend.device), P, 0.1)
    tolerance = 1e-8 if dtype == torch.complex128 else 1e-5
    close(found.mu, [0.0, 1.0], tolerance)
    close(found.objective, 1.125, tolerance)
    close(found.alpha, 1.185854123, tolerance)
    used = found.transmit.abs().square().mean(-1).cpu() / torch.tensor(P)
    close(used, [0.0329, 1.0], 1e-4)


# ---- optimality ----------------------------------------------------------------------------------------


def bisected(g: Tensor, s: Tensor, power: Tensor, noise: Tensor) -> Tensor:
    """The optimum for two users by 60 halvings of the dual's derivative."""
    b = power[..., None] * g.abs() ** 2
    wanted = s.abs() ** 2
    low, high = torch.zeros(len(g), dtype=torch.float64), torch.ones(len(g), dtype=torch.float64)
    for _ in range(60):
        m = ((low + high) / 2)[:, None]
        q = 1 - m
        d = noise[:, None] * m * q + b[:, 0] * q + b[:, 1] * m
        up = (wanted * (b[:, 0] * q**2 - b[:, 1] * m**2) / d**2).sum(-1) > 0
        low, high = torch.where(up, m[:, 0], low), torch.where(up, high, m[:, 0])
    m = ((low + high) / 2)[:, None]
    d = noise[:, None] * m * (1 - m) + b[:, 0] * (1 - m) + b[:, 1] * m
    return noise * (m * (1 - m) * wanted / d).sum(-1)


@pytest.mark.parametrize("dtype", PRECISION, ids=str)
@pytest.mark.parametrize("users", [1, 2, 3, 4, 5, 8])
def test_conditions_of_optimality(backend, users, dtype):
    rows = 40 if backend.interpreted else 170
    g, s, power, noise = (t[:rows].to(backend.device) for t in drawn(170, users, 16, dtype, seed=users))
    found = ops.ssdt_joint(g, s, power, noise)
    used = found.transmit.abs().square().mean(-1) / power
    assert (used <= 1 + 1e-5).all()
    assert ((used - 1).abs() <= 1e-5)[found.mu > 1e-6].all()
    a = needed(g, s, power, noise, found.mu)
    spread = a.amax(-1) / a.amin(-1) - 1
    assert (spread <= (1e-9 if dtype == torch.complex128 else 1e-4)).all()
    assert (found.mu.sum(-1) - 1).abs().max() <= 1e-6
    assert found.iterations.max() <= 12
    if users == 2:
        best = bisected(
            *(t.cpu().to(torch.complex128 if t.is_complex() else torch.float64) for t in (g, s, power, noise))
        )
        assert (
            found.objective.cpu().double() <= best * (1 + 1e-5) + 1e-5 * s.abs().square().sum(-1).cpu() * 1e-2
        ).all()


@pytest.mark.parametrize("dtype", PRECISION, ids=str)
@pytest.mark.parametrize("users", [1, 2, 3, 8])
def test_conditions_of_the_separable_optimum(backend, users, dtype):
    rows = 40 if backend.interpreted else 200
    g, _, power, noise = (t[:rows].to(backend.device) for t in drawn(200, users, 16, dtype, seed=10 + users))
    found = ops.ssdt_separable(g, power, noise)
    tolerance = 1e-9 if dtype == torch.complex128 else 2e-5
    torch.testing.assert_close((power * found.tau).sum(-1), noise, rtol=tolerance, atol=0)
    used = found.precoder.abs().square().mean(-1)
    assert (used <= 1 + tolerance).all()
    assert ((used - 1).abs() <= tolerance)[found.tau > 0].all()
    assert found.iterations.max() <= 12


def solver_optimum(g: Tensor, s: Tensor, power: Tensor, noise: Tensor) -> float:
    cp = pytest.importorskip("cvxpy")
    users, carriers = g.shape
    w = cp.Variable((users, carriers), complex=True)
    received = sum(cp.multiply(g[n].numpy(), w[n]) for n in range(users))
    costs = [cp.sum_squares(w[n]) / float(power[n]) for n in range(users)]
    cost = cp.sum_squares(received - s.numpy()) + float(noise) * cp.maximum(*costs)
    problem = cp.Problem(cp.Minimize(cost))
    for tolerance in (1e-11, 1e-9):  # on some processors it gives up before the first
        try:
            problem.solve(solver="CLARABEL", tol_gap_abs=tolerance, tol_gap_rel=tolerance, tol_feas=tolerance)
            return float(problem.value)
        except cp.error.SolverError as error:  # noqa: PERF203
            last = error
    raise last


@pytest.mark.parametrize("sparse", [0.0, 0.6])
def test_a_convex_solver_agrees(sparse):
    g, s, power, _ = drawn(8, 3, 8, seed=5, sparse=sparse)
    noise = torch.full((8,), 0.1, dtype=torch.float64)
    found = ops.ssdt_joint(g, s, power, noise)
    for i in range(8):
        best = solver_optimum(g[i], s[i], power[i], noise[i])
        assert found.objective[i] == pytest.approx(best, rel=1e-7)


@pytest.mark.parametrize("sparse", [0.5, 0.8])
@pytest.mark.parametrize("users", [2, 3, 8])
def test_duality_gap_of_sparse_gains(backend, users, sparse):
    """What a feasible transmit costs is no more than the dual bound: both are optimal."""
    rows = 6 if backend.interpreted else 200
    g, s, power, noise = (t[:rows] for t in drawn(200, users, 8, seed=3, sparse=sparse))
    found = ops.ssdt_joint(*(t.to(backend.device) for t in (g, s, power, noise)))
    mu = found.mu.cpu()
    assert (found.transmit.cpu().abs().square().mean(-1) <= power * (1 + 1e-9)).all()
    b = power[..., None] * g.abs() ** 2
    inside = torch.where(mu > 0, mu, 1.0)[..., None]
    live = (b > 0) & (mu[..., None] == 0)
    den = noise[:, None] + (b / inside).sum(1)
    bound = (s.abs() ** 2 * noise[:, None] / den * ~live.any(1)).sum(-1)
    received = (found.alpha.cpu()[:, None] * (g * found.transmit.cpu()).sum(1) - s).abs().square().sum(-1)
    cost = received + 8 * noise * found.alpha.cpu() ** 2
    assert (cost - bound <= 1e-8 * s.abs().square().sum(-1)).all()
    close(found.objective, cost, 1e-9)


# ---- identities ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("users", [2, 4])
def test_symmetries(backend, users):
    g, s, power, noise = (t.to(backend.device) for t in drawn(20, users, 12, seed=21))
    found = ops.ssdt_joint(g, s, power, noise)
    scaled = ops.ssdt_joint(3e5 * g, s, power, (3e5) ** 2 * noise)
    close(scaled.transmit, found.transmit, 1e-8)
    close(scaled.alpha * 3e5, found.alpha, 1e-8)
    turn = torch.polar(
        torch.ones(20, users, 12, dtype=torch.float64), torch.randn(20, users, 12, dtype=torch.float64)
    ).to(g)
    turned = ops.ssdt_joint(g * turn, s, power, noise)
    close(turned.transmit * turn, found.transmit, 1e-8)
    users_back, carriers_back = torch.arange(users).flip(0), torch.arange(12).flip(0)
    back = ops.ssdt_joint(
        g[:, users_back][..., carriers_back], s[:, carriers_back], power[:, users_back], noise
    )
    close(back.transmit[:, users_back][..., carriers_back], found.transmit, 1e-8)
    equal = ops.ssdt_joint(g[:, :1].expand_as(g), s, power[:, :1].expand_as(power), noise)
    close(equal.mu, torch.full((20, users), 1 / users, dtype=torch.float64), 1e-9)


def test_what_noise_and_power_cost(backend):
    """d objective / d sigma2 = K alpha^2; d objective / d P_n = -mu_n K alpha^2 sigma2 / P_n."""
    g, s, power, noise = (t.to(backend.device) for t in drawn(20, 3, 12, seed=22))
    power.requires_grad_()
    noise.requires_grad_()
    found = ops.ssdt_joint(g, s, power, noise)
    by_noise, by_power = torch.autograd.grad(found.objective.sum(), (noise, power))
    price = 12 * found.alpha.detach() ** 2
    torch.testing.assert_close(by_noise, price, rtol=1e-6, atol=0)
    wanted = -found.mu.detach() * (price * noise.detach())[:, None] / power.detach()
    torch.testing.assert_close(by_power, wanted, rtol=1e-5, atol=1e-12)


def test_codeword_shares_one_alpha(backend):
    g, s, power, _ = (t.to(backend.device) for t in drawn(3, 2, 4, seed=23))
    together = ops.ssdt_joint(g, s, power, 0.05, alpha_scope="codeword")
    each = ops.ssdt_joint(g, s, power, 0.05)
    assert together.alpha.shape == ()
    assert together.mu.shape == (3, 2)
    assert together.objective >= each.objective.sum() * (1 - 1e-9)
    assert (together.transmit.abs().square().mean(-1) <= power * (1 + 1e-9)).all()
    one = ops.ssdt_joint(g[:1], s[:1], power[:1], 0.05, alpha_scope="codeword")
    close(one.alpha, each.alpha[0], 1e-9)
    close(one.transmit[0], each.transmit[0], 1e-8)


def test_csi_only_alpha(backend):
    """alpha does not depend on the symbols, and each budget holds."""
    g, s, power, noise = (t.to(backend.device) for t in drawn(30, 2, 16, seed=24))
    one = ops.ssdt_joint(g, s, power, noise, statistics="csi")
    other = ops.ssdt_joint(g, s.flip(0).clone(), power, noise, statistics="csi")
    close(one.alpha, other.alpha, 1e-9)
    exact = ops.ssdt_joint(g, s, power, noise)
    assert (one.objective >= exact.objective * (1 - 1e-9)).all()
    assert (one.transmit.abs().square().mean(-1) <= power * (1 + 1e-9)).all()


def test_transmitted_and_rho_give_the_symbols(backend):
    g, s, power, noise = (t.to(backend.device) for t in drawn(5, 2, 6, seed=25))
    t = torch.stack([s, s.flip(0)], 1)
    rho = torch.tensor([0.5, 2.0], dtype=torch.float64, device=backend.device)
    by_parts = ops.ssdt_joint(g, None, power, noise, transmitted=t, rho=rho)
    whole = ops.ssdt_joint(g, (rho.sqrt()[:, None] * t).sum(1), power, noise)
    close(by_parts.transmit, whole.transmit, 1e-9)


def test_weights_make_the_budget_exact(backend):
    g, _, power, noise = (t.to(backend.device) for t in drawn(20, 3, 16, seed=26))
    t = torch.randn(20, 3, 16, dtype=torch.complex128, device=backend.device)
    t = ops.power_normalize(t, power)
    found = ops.ssdt_separable(g, power, noise, weights=t.abs().square())
    used = (found.precoder * t).abs().square().mean(-1) / power
    assert (used <= 1 + 1e-9).all()
    assert ((used - 1).abs() <= 1e-9)[found.tau > 0].all()


# ---- degenerate rows -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", PRECISION, ids=str)
@pytest.mark.parametrize("users", [2, 3])
def test_dead_users_and_carriers(backend, users, dtype):
    g, s, power, noise = (t.to(backend.device) for t in drawn(8, users, 6, dtype, seed=31))
    tolerance = 20 * PRECISION[dtype]
    dead = g.clone()
    dead[:, 1] = 0
    found = ops.ssdt_joint(dead, s, power, noise)
    rest = [n for n in range(users) if n != 1]
    without = ops.ssdt_joint(dead[:, rest], s, power[:, rest], noise)
    assert (found.transmit[:, 1] == 0).all()
    assert (found.mu[:, 1] == 0).all()
    close(found.transmit[:, rest], without.transmit, tolerance)
    carrier = g.clone()
    carrier[..., 2] = 0
    found = ops.ssdt_joint(carrier, s, power, noise)
    assert (found.transmit[..., 2] == 0).all()
    assert found.objective.isfinite().all()
    nothing = ops.ssdt_joint(torch.zeros_like(g), s, power, noise)
    assert (nothing.transmit == 0).all()
    assert (nothing.alpha == 0).all()
    close(nothing.objective, s.abs().square().sum(-1), PRECISION[dtype])
    silent = ops.ssdt_joint(g, torch.zeros_like(s), power, noise)
    for value in (silent.transmit, silent.alpha, silent.objective):
        assert (value == 0).all()


@pytest.mark.parametrize("dtype", PRECISION, ids=str)
def test_one_carrier_and_no_rows(backend, dtype):
    g, s, power, noise = (t.to(backend.device) for t in drawn(8, 3, 1, dtype, seed=32))
    found = ops.ssdt_joint(g, s, power, noise)
    received = (found.alpha[:, None] * (g * found.transmit).sum(1) - s).abs().square().sum(-1)
    close(found.objective, received + noise * found.alpha**2, 2e-5 if dtype == torch.complex64 else 1e-9)
    none = ops.ssdt_joint(g[:0], s[:0], power[:0], noise[:0])
    assert none.transmit.shape == (0, 3, 1)
    assert ops.ssdt_separable(g[:0], power[:0], noise[:0]).alpha.shape == (0,)


@pytest.mark.parametrize("dtype", PRECISION, ids=str)
@pytest.mark.parametrize("scale", [1e-12, 1e-6, 1e6, 1e12])
def test_range_of_gains(backend, scale, dtype):
    """Rows are scaled: the answer is that of gains near 1."""
    g, s, power, noise = (t.to(backend.device) for t in drawn(10, 2, 8, dtype, seed=33))
    noise = noise.clamp_min(1e-3)
    near, far = ops.ssdt_joint(g, s, power, noise), ops.ssdt_joint(g * scale, s, power, noise * scale * scale)
    close(far.transmit, near.transmit, 50 * PRECISION[dtype])
    close(far.alpha * scale, near.alpha, 50 * PRECISION[dtype])
    near_v = ops.ssdt_separable(g, power, noise)
    far_v = ops.ssdt_separable(g * scale, power, noise * scale * scale)
    close(far_v.precoder, near_v.precoder, 50 * PRECISION[dtype])


@pytest.mark.parametrize("dtype", PRECISION, ids=str)
def test_gains_of_1e12_beside_1e_12(backend, dtype):
    g, s, power, _ = (t.to(backend.device) for t in drawn(10, 2, 8, dtype, seed=34))
    size = 10.0 ** torch.linspace(-12, 12, 8, dtype=power.dtype, device=backend.device)
    found = ops.ssdt_joint(g * size, s, power, 0.1)
    assert found.transmit.isfinite().all()
    used = found.transmit.abs().square().mean(-1) / power
    assert (used <= 1 + 1e-5).all()
    lower = ops.ssdt_joint(g * size, s, power * 0.999, 0.1)
    assert (found.objective <= lower.objective * (1 + 1e-5)).all()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_one_bad_row_stays_alone(backend, value):
    g, s, power, noise = (t.to(backend.device) for t in drawn(6, 2, 8, torch.complex64, seed=35))
    clean = ops.ssdt_joint(g, s, power, noise)
    clean_v = ops.ssdt_separable(g, power, noise)
    g[3, 1, 2] = value
    with pytest.raises(ValueError, match=r"gains: expected finite values"):
        ops.ssdt_joint(g, s, power, noise, check=True)
    found = ops.ssdt_joint(g, s, power, noise, check=False)
    found_v = ops.ssdt_separable(g, power, noise, check=False)
    others = [0, 1, 2, 4, 5]
    assert found.objective[3].isnan()
    assert found.alpha[3].isnan()
    assert found.transmit[3].isnan().all()
    assert found_v.objective[3].isnan()
    for a, b in zip((*found, *found_v), (*clean, *clean_v), strict=True):
        assert torch.equal(a[others], b[others])


# ---- layouts -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", PRECISION, ids=str)
def test_strides_and_real_views(backend, dtype):
    g, s, power, noise = (t.to(backend.device) for t in drawn(6, 2, 9, dtype, seed=41))
    want = ops.ssdt_joint(g, s, power, noise)
    want_v = ops.ssdt_separable(g, power, noise)

    def same(a: Tensor, b: Tensor) -> bool:
        return torch.allclose(a, b, 1e-6, 1e-9) if backend.name == "reference" else torch.equal(a, b)

    turned = g.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    wide = torch.zeros(6, 18, dtype=dtype, device=backend.device)
    wide[:, ::2] = s
    layouts = [
        (turned, wide[:, ::2]),
        (torch.view_as_real(g), torch.view_as_real(s)),
        (g.conj().resolve_conj().conj(), s.conj().resolve_conj().conj()),
    ]
    for gains, symbols in layouts:
        found = ops.ssdt_joint(gains, symbols, power, noise)
        assert all(same(a, b) for a, b in zip(found, want, strict=True))
        found_v = ops.ssdt_separable(gains, power, noise)
        assert all(same(a, b) for a, b in zip(found_v, want_v, strict=True))


def test_leading_axes_and_broadcasts(backend):
    g, s, power, _ = (t.to(backend.device) for t in drawn(6, 2, 9, seed=42))
    flat = ops.ssdt_joint(g, s, power[0], 0.1)
    shaped = ops.ssdt_joint(g.view(2, 3, 2, 9), s.view(2, 3, 9), power[0], 0.1)
    assert shaped.transmit.shape == (2, 3, 2, 9)
    assert torch.equal(shaped.transmit.view(6, 2, 9), flat.transmit)
    assert shaped.iterations.dtype == torch.int32


def test_numpy_in_numpy_out():
    g, s, power, noise = drawn(3, 2, 4, seed=43)
    found = ops.ssdt_joint(g.numpy(), s.numpy(), power.numpy(), noise.numpy())
    assert all(isinstance(value, np.ndarray) for value in found)
    filled = ops.water_filling(power.numpy(), noise.numpy())
    assert isinstance(filled.power, np.ndarray)
    assert isinstance(filled.rate, np.ndarray)


def test_threads_do_not_show(backend, set_threads):
    rows = 41 if backend.interpreted else 301
    g, s, power, noise = (t.to(backend.device) for t in drawn(rows, 2, 20, torch.complex64, seed=44))
    results = []
    for threads in (1, 2):
        set_threads(threads)
        results.append(
            [
                *ops.ssdt_joint(g, s, power, noise),
                *ops.ssdt_separable(g, power, noise),
                ops.water_filling(g[:, 0].abs(), power[:, 0]).power,
                ops.power_normalize(s, noise),
            ]
        )
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


# ---- water-filling, projection, normalisation ----------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("carriers", [1, 2, 7, 16, 64, 100, 1000])
def test_water_filling_against_sorting(backend, carriers, dtype):
    generator = torch.Generator().manual_seed(carriers)
    g = -torch.rand(37, carriers, generator=generator, dtype=torch.float64).log() * 3
    power = torch.rand(37, generator=generator, dtype=torch.float64) * 5
    x, _ = (1 / g).sort(-1)
    count = torch.arange(1, carriers + 1)
    levels = (power[:, None] + x.cumsum(-1)) / count
    used = (levels > x).sum(-1, keepdim=True)
    level = levels.gather(-1, used - 1)
    found = ops.water_filling(g.to(dtype).to(backend.device), power.to(dtype).to(backend.device))
    tolerance = 1e-11 if dtype == torch.float64 else 1e-5
    close(found.level, level[:, 0], tolerance)
    close(found.power, (level - 1 / g).clamp_min(0), tolerance * 10)
    torch.testing.assert_close(found.power.sum(-1).cpu().double(), power, rtol=tolerance, atol=tolerance)
    close(found.rate, torch.log1p(g * (level - 1 / g).clamp_min(0)).sum(-1), 10 * tolerance)


def test_the_rate_leaves_out_what_has_no_power():
    gains = torch.tensor([-math.inf, -1.0, 0.0, 1.0], dtype=torch.float64)
    for given in (gains, gains.numpy()):
        assert float(ops.water_filling(given, 1.0).rate) == pytest.approx(math.log(2))


def test_water_filling_degenerate(backend):
    g = torch.tensor([[0.0, 0, 0], [1, 2, 4], [2, 2, 2], [-1, 0, 5], [1e-12, 1, 1e12]], device=backend.device)
    found = ops.water_filling(g, torch.tensor([1.0, 0, 3, 2, 1], device=backend.device))
    assert found.level[0] == math.inf
    assert (found.power[0] == 0).all()
    assert found.rate[0] == 0
    assert (found.power[1] == 0).all()
    close(found.level[1], 0.25, 1e-6)
    close(found.power[2], [1.0, 1, 1], 1e-6)
    close(found.power[3], [0.0, 0, 2], 1e-6)
    close(found.power[4], [0.0, 0, 1], 1e-6)
    tie = ops.water_filling(g[2], 0.0)
    assert (tie.power == 0).all()
    assert tie.level == 0.5
    unknown = ops.water_filling(torch.tensor([[1.0, math.nan], [1.0, 2.0]], device=backend.device), 1.0)
    assert unknown.power[0].isnan().all()
    close(unknown.power[1], [0.25, 0.75], 1e-6)
    mask = torch.tensor([False, True, True], device=backend.device)
    masked = ops.water_filling(g[1], 3.0, mask=mask)
    close(masked.power, [0.0, 1.375, 1.625], 1e-6)


def test_projection_and_its_identity(backend):
    x = torch.randn(50, 12, dtype=torch.float64, device=backend.device)
    p = ops.project_simplex(x, 2.0)
    torch.testing.assert_close(p.sum(-1), torch.full_like(p[:, 0], 2.0))
    assert (p >= 0).all()
    close(ops.project_simplex(p, 2.0), p, 1e-12)
    for _ in range(20):  # no other point of the simplex is nearer
        other = torch.distributions.Dirichlet(torch.ones(12)).sample((50,)).to(x) * 2
        assert ((p - x).norm(dim=-1) <= (other - x).norm(dim=-1)).all()
    ruled_out = x.clone()
    ruled_out[:, 3] = -math.inf
    assert (ops.project_simplex(ruled_out)[:, 3] == 0).all()


def test_mse_water_filling_ends_where_rounding_would_have_it_go_round(backend):
    """Found by fuzzing: a carrier that the level passes by a rounding error left the active set and came
    back."""
    a = torch.tensor([65504.0, 1.2e-38], dtype=torch.float64, device=backend.device)
    s = torch.tensor([2.0, 3e38], dtype=torch.float64, device=backend.device)
    p = ops.mse_water_filling(a, s, 1e20).tolist()
    assert p == pytest.approx([float(x) for x in exact_mse_filling(a, s, 1e20)], rel=1e-14)
    assert p[1] == pytest.approx(1e20)
    assert 0.002 < p[0] < 0.003


def exact_mse_filling(a: Tensor, s: Tensor, power: float) -> list[Fraction]:
    """Of one row, by adding the strongest carriers one after the other in rational numbers; roots to 80
    digits."""
    digits = 10**80
    gain = [Fraction(x) for x in a.tolist()]
    product = [g * Fraction(x) for g, x in zip(gain, s.tolist(), strict=True)]
    root = [Fraction(math.isqrt(int(q * digits**2)), digits) for q in product]
    order = sorted((k for k in range(len(gain)) if root[k] > 0), key=lambda k: -root[k])
    above, below, level = Fraction(0), Fraction(power), Fraction(0)
    for k in order:
        if root[k] <= level:
            break
        above, below = above + root[k] / gain[k], below + 1 / gain[k]
        level = above / below
    return [(r / level - 1) / g if r > level else Fraction(0) for r, g in zip(root, gain, strict=True)]


@pytest.mark.parametrize("power", [0.0, 2.0**-90, 1e-20, 1e-16, 1e-8, 1.0, 1e8])
def test_mse_water_filling_is_exact_whatever_the_power(backend, power):
    """Where P is far below 1 / a, powers are differences of numbers that rounding makes equal; so here are
    carriers a rounding step apart, equal ones, and one that is far weaker."""
    step = 2.0**-23
    a = torch.tensor(
        [[1.0, 1 + step, 1 + 3 * step, 1.0, 0.5], [1e-3, 2e-3, 3e-3, 0.0, 1e-12], [1e6, 1e6, 1.0, 1e-6, 5.0]]
    )
    s = torch.tensor(
        [[1.0, 1.0, 1 - step, 1.0, 2 + 4 * step], [6e3, 3e3, 2e3, 1.0, 1e9], [1.0, 1.0, 1e6, 1, 2]]
    )
    total = torch.tensor(power, dtype=torch.float32)
    for dtype, near in ((torch.float32, 3e-7), (torch.float64, 1e-14)):
        p = ops.mse_water_filling(*(t.to(backend.device, dtype) for t in (a, s, total))).cpu()
        for row, (gain, weight) in enumerate(zip(a, s, strict=True)):
            want = exact_mse_filling(gain, weight, total.item())
            for got, exact in zip(p[row].tolist(), want, strict=True):
                assert abs(Fraction(got) - exact) <= near * max(exact, Fraction(total.item()) / 10**6)


def test_mse_water_filling_keeps_the_power_of_near_ties_whose_gains_differ(backend):
    """Found by fuzzing: the carrier with the largest 1 / a draws the level so near that rounding had it
    leave, and another got its power, or none did."""
    step = 2.0**-52
    a = [[2.0**-36, 2.0**39, 0.0, 0.0], [2.0**-48, 2.0**27, 2.0**35, 2.0**56], [1.0, 2.0**-66, 1.0, 0.0]]
    s = [
        [2.0**36 * (1 + 4 * step), 2.0**-39, 1.0, 1.0],
        [2.0**48 * (1 + 5 * step), 2.0**-27, 2.0**-35, 2.0**-56 * (1 + 7 * step)],
        [1 + 6 * step, 2.0**66 * (1 + 5 * step), 1.0, 1.0],
    ]
    total = [2.25e-23, 2.33e-21, 1e-10]
    found = ops.mse_water_filling(
        *(torch.tensor(x, dtype=torch.float64, device=backend.device) for x in (a, s, total))
    )
    for row in range(3):
        want = exact_mse_filling(
            torch.tensor(a[row]).double(), torch.tensor(s[row], dtype=torch.float64), total[row]
        )
        assert sum(want) == pytest.approx(total[row])
        for got, exact in zip(found[row].tolist(), want, strict=True):
            assert abs(Fraction(got) - exact) <= 1e-14 * Fraction(total[row])


NOT_NUMBERS = [
    (0, math.nan),
    (1, math.nan),
    (2, math.nan),
    (0, math.inf),
    (1, math.inf),
    (2, math.inf),
    (2, -1.0),
]


@pytest.mark.parametrize("rows", [1, 2, 3, 5])
@pytest.mark.parametrize(("which", "value"), [*NOT_NUMBERS, (1, 1e308)])
def test_mse_water_filling_of_what_is_not_a_number(backend, which, value, rows):
    """Where nothing was checked, as on a GPU, or S a is beyond double precision: such a row is not a number,
    and the others know nothing of it."""
    fine = [torch.tensor([[1.0, 4.0, 8.0]]), torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([2.0])]
    fine = [t.to(backend.device, torch.float64) for t in fine]
    want = torch.ops.tenfold.mse_water_filling(*fine)
    given = [t.repeat(rows, *[1] * (t.ndim - 1)) for t in fine]
    given[which][rows // 2].view(-1)[-1] = value
    for got, expected in zip(torch.ops.tenfold.mse_water_filling(*given), want, strict=True):
        for row in range(rows):
            wanted = torch.full_like(expected[0], math.nan) if row == rows // 2 else expected[0]
            torch.testing.assert_close(got[row], wanted, rtol=0, atol=0, equal_nan=True)


def test_mse_water_filling_of_nothing(backend):
    for rows, carriers in ((0, 4), (3, 0), (0, 0)):
        a = torch.ones(rows, carriers, device=backend.device)
        p, level = torch.ops.tenfold.mse_water_filling(a, a, torch.ones(rows, device=backend.device))
        assert p.shape == a.shape
        assert level.tolist() == [math.inf] * rows


def test_mse_water_filling_is_stationary(backend):
    """S a / (1 + a p)^2 is one number where p > 0 and not larger where p = 0."""
    a = torch.rand(40, 16, dtype=torch.float64, device=backend.device) * 4
    s = torch.rand(40, 16, dtype=torch.float64, device=backend.device)
    a[:, 3] = 0
    p = ops.mse_water_filling(a, s, 2.0)
    torch.testing.assert_close(p.sum(-1), torch.full_like(p[:, 0], 2.0))
    slope = s * a / (1 + a * p) ** 2
    level = slope.amax(-1, keepdim=True)
    assert ((slope - level).abs() <= 1e-9 * level)[p > 0].all()
    users = torch.rand(10, 3, 8, dtype=torch.float64, device=backend.device) * 4
    q = ops.mse_water_filling(users, s[:10, :8], 2.0)
    torch.testing.assert_close(q.sum(-1), torch.full_like(q[:, 0], 2.0))
    slope = (s[:10, None, :8] * users / (1 + users * q[:, None]) ** 2).sum(1)
    level = slope.amax(-1, keepdim=True)
    assert ((slope - level).abs() <= 1e-7 * level)[q > 1e-9].all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.complex128], ids=str)
def test_power_normalize(backend, dtype):
    x = torch.randn(9, 13, dtype=dtype).to(backend.device)
    x[2] = 0
    x[3] *= 1e-25
    x[4] *= 1e18
    for mode, reduce in (("mean", torch.mean), ("sum", torch.sum)):
        y = ops.power_normalize(x, 2.5, mode=mode)
        power = reduce(y.abs().square(), -1)
        others = [0, 1, 3, 4, 5]
        torch.testing.assert_close(power[others], torch.full_like(power[others], 2.5), rtol=2e-6, atol=0)
        assert (y[2] == 0).all()


# ---- gradients -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("statistics", ["exact", "csi"])
@pytest.mark.parametrize("users", [1, 2, 3, 5])
def test_gradients_of_joint(users, statistics):
    g, s, power, _ = drawn(2, users, 4, seed=51 + users)
    leaves = (g, s, power, torch.tensor([0.3, 0.7], dtype=torch.float64))

    def run(*inputs: Tensor) -> tuple[Tensor, ...]:
        found = ops.ssdt_joint(*inputs, statistics=statistics, tolerance=1e-13)
        return found.transmit, found.alpha, found.mu, found.objective

    assert torch.autograd.gradcheck(run, [t.clone().requires_grad_() for t in leaves])


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("users", [1, 2, 3, 5])
def test_gradients_of_separable(users, weighted):
    g, _, power, _ = drawn(2, users, 4, seed=61 + users)
    c = 0.5 + torch.rand(2, users, dtype=torch.float64)
    leaves = [g, power, torch.tensor([0.3, 0.7], dtype=torch.float64), c]
    leaves += [torch.rand(2, users, 4, dtype=torch.float64)] if weighted else []

    def run(
        g: Tensor, power: Tensor, noise: Tensor, c: Tensor, weights: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        found = ops.ssdt_separable(g, power, noise, c=c, weights=weights, tolerance=1e-14)
        return found.precoder, found.alpha, found.tau, found.objective

    assert torch.autograd.gradcheck(run, [t.clone().requires_grad_() for t in leaves])


def test_gradients_of_the_others():
    generator = torch.Generator().manual_seed(71)
    a, s = (torch.rand(3, 7, generator=generator, dtype=torch.float64) + 0.1 for _ in range(2))
    power = torch.tensor([0.5, 1.0, 3.0], dtype=torch.float64)

    def filled(g: Tensor, p: Tensor) -> tuple[Tensor, ...]:
        found = ops.water_filling(g, p)
        return found.power, found.level, found.rate

    def leaves(*tensors: Tensor) -> list[Tensor]:
        return [t.clone().requires_grad_() for t in tensors]

    assert torch.autograd.gradcheck(filled, leaves(a, power))
    assert torch.autograd.gradcheck(ops.project_simplex, leaves(a, power))
    assert torch.autograd.gradcheck(ops.mse_water_filling, leaves(a, s, power))
    users = torch.rand(1, 2, 3, generator=generator, dtype=torch.float64) + 0.1
    assert torch.autograd.gradcheck(ops.mse_water_filling, leaves(users, s[:1, :3], power[2:]), atol=1e-4)
    z = torch.randn(3, 7, generator=generator, dtype=torch.complex128)
    for mode in ("mean", "sum"):
        for x in (z, a):
            assert torch.autograd.gradcheck(
                lambda x, p, m=mode: ops.power_normalize(x, p, mode=m), leaves(x, power)
            )


@pytest.mark.parametrize("power", [0.0, 1e-30, 1.0, 1e25, 1e38])
def test_gradients_of_mse_water_filling_in_single_precision(power):
    """The level and its square are far below the least float32 where P is far above 1 / a."""
    given = [torch.tensor([[1.0, 2.0, 0.5]]), torch.tensor([[1.0, 3.0, 0.0]]), torch.tensor([power])]
    found = []
    for dtype in (torch.float32, torch.float64):
        leaves = [t.to(dtype).requires_grad_() for t in given]
        p = ops.mse_water_filling(*leaves)
        found.append(torch.autograd.grad((p * p.new_tensor([1.0, 3.0, 1.0])).sum() / max(power, 1.0), leaves))
    for single, double in zip(*found, strict=True):
        torch.testing.assert_close(single.double(), double, rtol=1e-6, atol=1e-45)


def test_a_row_of_zeros_has_no_gradient(backend):
    x = torch.zeros(2, 4, dtype=torch.complex64, device=backend.device, requires_grad=True)
    ops.power_normalize(x, 1.0).abs().square().sum().backward()
    assert (x.grad == 0).all()


@pytest.mark.parametrize("dtype", PRECISION, ids=str)
def test_opcheck(dtype):  # of what is registered: instruction sets do not differ in it
    g, s, power, noise = drawn(3, 2, 4, dtype, seed=81)
    for t in (g, s, power, noise):
        t.requires_grad_()
    opcheck = torch.library.opcheck
    library = torch.ops.tenfold
    opcheck(library.ssdt_joint, (g, s, power, noise, None, 1e-6, 64))
    opcheck(library.ssdt_joint, (g, s, power, noise, s.detach().abs() ** 2, 1e-6, 64))
    opcheck(
        library.ssdt_separable, (g, power, noise, power.detach().clone().requires_grad_(), None, 1e-6, 64)
    )
    real = g.detach().abs()[:, 0].requires_grad_()
    for inverse in (False, True):
        opcheck(library.water_filling, (real, noise, inverse))
    opcheck(library.mse_water_filling, (real, real.detach().clone().requires_grad_(), noise))
    opcheck(library.power_normalize, (s, noise, True))


# ---- bad input -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"gains": torch.zeros(4, dtype=torch.complex64)}, ValueError, r"gains: expected shape .*\(4,\)"),
        ({"gains": torch.zeros(3, 2, 4)}, ValueError, r"gains: expected complex values"),
        ({"gains": "g"}, TypeError, r"gains: expected a torch.Tensor"),
        (
            {"symbols": torch.zeros(3, 5, dtype=torch.complex64)},
            ValueError,
            r"symbols: .*\(3, 4\), got \(3, 5\)",
        ),
        ({"symbols": None}, ValueError, r"symbols: expected either symbols or transmitted, got neither"),
        ({"power": torch.ones(3)}, ValueError, r"power: expected a shape that expands to \(3, 2\)"),
        ({"power": [0.5, 0.0]}, ValueError, r"power: expected finite values > 0, got 0.0"),
        ({"noise_power": -0.1}, ValueError, r"noise_power: expected finite values >= 0, got -0.1"),
        ({"noise_power": math.nan}, ValueError, r"noise_power: expected finite values"),
        ({"noise_power": torch.ones(2)}, ValueError, r"noise_power: expected a shape"),
        ({"power": ["a", 1.0]}, TypeError, r"power: expected numbers in lists of equal lengths, got"),
        ({"power": [[1.0], [1.0, 2.0]]}, TypeError, r"power: expected numbers in lists"),
        ({"rho": [-1.0, 1.0]}, ValueError, r"rho: expected finite values >= 0, got -1.0"),
        ({"rho": [math.nan, 1.0]}, ValueError, r"rho: expected finite values"),
        ({"rho": [-1.0, 1.0], "statistics": "csi"}, ValueError, r"rho: expected finite values >= 0"),
        ({"alpha_scope": "row"}, ValueError, r"alpha_scope: expected one of"),
        ({"statistics": "none"}, ValueError, r"statistics: expected one of"),
        ({"max_iterations": 0}, ValueError, r"max_iterations: expected an integer"),
        ({"tolerance": -1.0}, ValueError, r"tolerance: expected a finite number > 0"),
    ],
)
def test_bad_arguments_are_named(change, kind, message):
    g, s, power, noise = drawn(3, 2, 4, torch.complex64, seed=91)
    arguments = {"gains": g, "symbols": s, "power": power, "noise_power": noise, "check": True} | change
    with pytest.raises(kind, match=message):
        ops.ssdt_joint(**arguments)


def test_other_bad_arguments_are_named():
    g, _, power, noise = drawn(3, 2, 4, torch.complex64, seed=92)
    with pytest.raises(ValueError, match=r"weights: expected a shape that expands to \(3, 2, 4\)"):
        ops.ssdt_separable(g, power, noise, weights=torch.ones(3, 2, 5))
    with pytest.raises(ValueError, match=r"power: expected finite values >= 0, got -1.0"):
        ops.water_filling(torch.ones(3), -1.0)
    with pytest.raises(TypeError, match=r"mask: expected dtype bool"):
        ops.water_filling(torch.ones(3), 1.0, mask=torch.ones(3))
    with pytest.raises(ValueError, match=r"mode: expected one of"):
        ops.power_normalize(torch.ones(3), 1.0, mode="max")
    with pytest.raises(ValueError, match=r"weights: "):
        ops.mse_water_filling(torch.ones(2, 3), torch.ones(4), 1.0)


def test_pairs_compile_in_one_piece():
    gains, symbols, power, noise = drawn(3, 2, 8)

    def joint(g, s):
        return ops.ssdt_joint(g, s, power, noise).transmit

    def separable(g):
        return ops.ssdt_separable(g, power, noise).precoder

    pairs = torch.view_as_real(gains), torch.view_as_real(symbols)
    for function, given in ((joint, pairs), (separable, pairs[:1])):
        torch._dynamo.reset()
        compiled = torch.compile(function, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(*given), function(*given))


@pytest.mark.parametrize("power", [1e39, -1e39, 10**400])
def test_numbers_beyond_the_dtype(power):
    gains, symbols, _, noise = drawn(1, 2, 8, torch.complex64)
    with pytest.raises(ValueError, match=r"power: expected a number within the range of torch\.float32"):
        ops.ssdt_joint(gains, symbols, power, noise)
