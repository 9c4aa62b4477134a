"""LOZO, LOZO-M and ZO-Muon against their formulas."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tenfold.ops import lowrank_factor, zo_sample
from tenfold.optim import LOZO, ZOMuon, splitmix64
from tenfold.optim.muon import msign

pytestmark = pytest.mark.filterwarnings("ignore::tenfold.PerformanceWarning")
MODES = ["arithmetic", "exact", "dual"]


def problem():
    generator = torch.Generator().manual_seed(0)
    w = nn.Parameter(torch.randn(12, 7, generator=generator, dtype=torch.float64))
    b = nn.Parameter(torch.randn(12, generator=generator, dtype=torch.float64))
    x = torch.randn(9, 7, generator=generator, dtype=torch.float64)
    return w, b, lambda: torch.tanh(nn.functional.linear(x, w, b)).square().sum() + w.sum()


@pytest.mark.parametrize("restore", MODES)
def test_lozo_probes_and_updates_along_the_same_direction_in_every_step(restore):
    """Also in the steps that draw a new V, where the published code does not."""
    w, b, closure = problem()
    opt = LOZO([w, b], lr=0.01, eps=1e-3, rank=2, nu=2, restore=restore)
    for step in range(5):
        start, seen = w.detach().clone(), []
        opt.step(lambda seen=seen: (seen.append((w * 1.0).detach()), closure())[1])
        probe = (seen[0] - start) / 1e-3
        (c,) = opt.last_step.projected_grads
        update = (start - w.detach()) / (0.01 * c)
        cosine = (probe * update).sum() / (probe.norm() * update.norm())
        assert cosine.item() == pytest.approx(1.0, abs=1e-6)
        seed = splitmix64(0, step)
        u = lowrank_factor(seed, 0, 0, 12, 2, side="u").double()
        v = lowrank_factor(splitmix64(0, step - step % 2), 0, 0, 7, 2, side="v").double()
        assert torch.allclose(update, u @ v.T, rtol=0, atol=1e-4)
        assert torch.linalg.matrix_rank(probe, tol=1e-3) == 2


def test_lozo_moves_vectors_along_gaussian_directions():
    w, b, closure = problem()
    before = b.detach().clone()
    opt = LOZO([w, b], lr=0.01, restore="exact")
    opt.step(closure)
    (c,) = opt.last_step.projected_grads
    z = zo_sample(opt.last_step.seed, 1, 0, n=12).double()
    assert torch.allclose(b, before - 0.01 * c * z, rtol=0, atol=1e-12)


@pytest.mark.parametrize("restore", MODES)
def test_lozo_with_momentum_by_hand(restore):
    w, b, closure = problem()
    opt = LOZO([w, b], lr=0.01, rank=2, nu=2, momentum=0.8, restore=restore)
    n = n_b = None
    for step in range(4):
        start, start_b, seed = w.detach().clone(), b.detach().clone(), splitmix64(0, step)
        opt.step(closure)
        (c,) = opt.last_step.projected_grads
        u = lowrank_factor(seed, 0, 0, 12, 2, side="u").double()
        v = lowrank_factor(splitmix64(0, step - step % 2), 0, 0, 7, 2, side="v").double()
        z = zo_sample(seed, 1, 0, n=12).double()
        if step == 0:
            n, n_b = c * u, c * z
        else:
            if step == 2:  # the old momentum, fitted by the new V
                old = lowrank_factor(splitmix64(0, 0), 0, 0, 7, 2, side="v").double()
                n = torch.linalg.lstsq(v, (n @ old.T).T).solution.T
            n, n_b = 0.8 * n + 0.2 * c * u, 0.8 * n_b + 0.2 * c * z
        assert torch.allclose(w, start - 0.01 * n @ v.T, rtol=0, atol=1e-5)
        assert torch.allclose(b, start_b - 0.01 * n_b, rtol=0, atol=1e-8)
    assert opt.state[w]["momentum_buffer"].shape == (12, 2)


@pytest.mark.parametrize("restore", MODES)
@pytest.mark.parametrize("method", ["svd", "newton-schulz"])
def test_muon_by_hand(restore, method):
    w, b, closure = problem()
    opt = ZOMuon([w, b], lr=0.02, rank=3, nu=2, msign=method, restore=restore)
    for step in range(3):
        start, start_b, seed = w.detach().clone(), b.detach().clone(), splitmix64(0, step)
        opt.step(closure)
        cs = opt.last_step.projected_grads
        assert len(opt.last_step.losses) == 5  # four probes share L(theta)
        gaussian = lowrank_factor(splitmix64(0, step - step % 2), 0, 0, 12, 3, side="v").double()
        q, r = torch.linalg.qr(gaussian)
        p = q * r.diagonal().sign()
        found = sum(c * lowrank_factor(seed, 0, i, 7, 3, side="u").double().T for i, c in enumerate(cs)) / 4
        if method == "svd":
            left, _, right = torch.linalg.svd(found, full_matrices=False)
            sign = left @ right
        else:
            sign = msign(found.float(), method).double()
            singular = torch.linalg.svdvals(sign)
            assert 0.6 < singular.min() <= singular.max() < 1.3
        assert torch.allclose(w, start - 0.02 * p @ sign, rtol=0, atol=1e-4)
        z = [zo_sample(seed, 1, i, n=12).double() for i in range(4)]
        g = sum(c * zi for c, zi in zip(cs, z, strict=True)) / 4
        assert torch.allclose(b, start_b - 0.02 * 0.01 * g, rtol=0, atol=1e-9)


def test_muon_basis_is_orthonormal_and_smaller_for_small_matrices():
    w = nn.Parameter(torch.ones(2, 9))
    opt = ZOMuon([w], lr=0.1)
    opt.step(lambda: (w * w).sum())
    assert opt._basis(w).shape == (2, 2)
    assert torch.allclose(opt._basis(w).T @ opt._basis(w), torch.eye(2), atol=1e-6)


def test_msign_of_zero_is_finite():
    for method in ("svd", "newton-schulz"):
        assert (msign(torch.zeros(4, 3), method) == 0).all()


def test_bad_options():
    w = nn.Parameter(torch.ones(4, 4))
    for options, name in (
        ({"rank": 0}, "rank"),
        ({"rank": 257}, "rank"),
        ({"nu": 0}, "nu"),
        ({"dist": "rademacher"}, "dist"),
        ({"aggregate": "least_squares"}, "aggregate"),
        ({"z_round": torch.bfloat16}, "z_round"),
    ):
        for optimizer in (LOZO, ZOMuon):
            with pytest.raises(ValueError, match=f"^{name}: expected"):
                optimizer([w], **options)
    with pytest.raises(ValueError, match=r"^momentum: expected"):
        LOZO([w], momentum=1.0)
    with pytest.raises(ValueError, match=r"^msign: expected"):
        ZOMuon([w], msign="qr")
