"""Allocators: power, what they minimise, which is better than which, degenerate channels."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tenfold.ops.power import power_normalize
from tenfold.semcom.allocation import ALLOCATORS, allocate, nmse_db
from tenfold.semcom.channel import Fading, complex_normal, noise_power_w, superpose

POWER = (0.6, 0.4)


def scene(rows: int = 60, power: tuple[float, ...] = POWER, seed: int = 3) -> tuple[Tensor, Tensor]:
    users = len(power)
    t = power_normalize(complex_normal((rows, 1, users, 64), 1.0, seed, 5), torch.tensor(power))
    return t, Fading().gains((rows, 1, users, 64), seed)


def error(method: str, snr_db: float, power: tuple[float, ...] = POWER, rows: int = 60) -> float:
    """NMSE over all rows, dB, the noise drawn."""
    t, g = scene(rows, power)
    sigma2 = noise_power_w(snr_db, power)
    found = allocate(method, t, g, power, sigma2)
    y = superpose(g, found.transmit) + complex_normal((rows, 1, 64), sigma2, 3, 1)
    return float(nmse_db((found.scale * y).flatten(0, 1), t.sum(2).flatten(0, 1)))


@pytest.mark.parametrize("method", ALLOCATORS)
@pytest.mark.parametrize("snr_db", [-10.0, 10.0, 40.0])
def test_nobody_exceeds_its_power(method: str, snr_db: float) -> None:
    t, g = scene(20)
    found = allocate(method, t, g, POWER, noise_power_w(snr_db, POWER))
    used = found.transmit.abs().square().mean(-1)
    assert bool((used <= torch.tensor(POWER) * (1 + 1e-5)).all())
    assert found.scale.shape[-1] in (1, 64)
    assert bool(torch.isfinite(torch.view_as_real(found.transmit)).all())


@pytest.mark.parametrize("method", ALLOCATORS)
@pytest.mark.parametrize("noise_power", [0.06, 0.0])
def test_dead_users_and_subcarriers_are_survived(method: str, noise_power: float) -> None:
    t, g = scene(4)
    g = g.clone()
    g[0, :, 0] = 0
    g[1, :, :, 5] = 0
    g[2] = 0
    found = allocate(method, t, g, POWER, noise_power)
    for part in (found.transmit, found.scale + 0j):
        assert bool(torch.isfinite(torch.view_as_real(part.contiguous())).all())
    assert bool((found.transmit.abs().square().mean(-1) <= torch.tensor(POWER) * (1 + 1e-5)).all())


def test_order_of_the_methods_for_two_users() -> None:
    at = {m: error(m, 10.0) for m in ALLOCATORS}
    assert (
        at["ssdt-joint"] <= at["ssdt-joint-csi"] <= at["ssdt-sep"] < at["phase"] < at["rx-lmmse"] < at["none"]
    )
    assert at["phase"] < at["water-filling"]  # power for capacity is not power for the sum
    assert at["ssdt-joint"] < -12
    assert at["ssdt-sep"] < -7.5


def test_for_one_user_ssdt_is_what_the_receiver_could_do_alone() -> None:
    """Transmit and receive MSE are dual: -2.24, -6.94, -13.88 dB; water-filling on both sides is better."""
    for snr_db, known in ((0.0, -2.24), (10.0, -6.94), (20.0, -13.88)):
        joint, receiver = (error(m, snr_db, (1.0,), 400) for m in ("ssdt-joint", "rx-lmmse"))
        assert joint == pytest.approx(receiver, abs=0.25)
        assert joint == pytest.approx(known, abs=0.4)
        assert error("mse-water-filling", snr_db, (1.0,), 400) < joint


def test_rx_lmmse_is_the_minimum_over_receivers() -> None:
    t, g = scene(3000)
    found = allocate("rx-lmmse", t, g, POWER, 0.06)
    y = superpose(g, t) + complex_normal((3000, 1, 64), 0.06, 3, 1)
    best = nmse_db((found.scale * y).flatten(0, 1), t.sum(2).flatten(0, 1))
    for factor in (0.9, 1.1, 1.0 + 0.1j):
        assert best < nmse_db((factor * found.scale * y).flatten(0, 1), t.sum(2).flatten(0, 1))


def test_rho_asks_for_the_gains_of_the_training_channel() -> None:
    t, g = scene()
    rho = (1.0, 0.25)
    wanted = (torch.tensor(rho).sqrt()[:, None] * t).sum(2)
    for method in ("ssdt-sep", "ssdt-joint"):
        found = allocate(method, t, g, POWER, 1e-4, rho=rho)
        got = nmse_db((found.scale * superpose(g, found.transmit)).flatten(0, 1), wanted.flatten(0, 1))
        assert got < (-18 if method == "ssdt-sep" else -25)


def test_one_alpha_per_codeword() -> None:
    t, g = (x.view(15, 4, 2, 64) for x in scene(60))
    found = allocate("ssdt-joint", t, g, POWER, 0.06, alpha_scope="codeword")
    assert torch.equal(found.scale, found.scale[:, :1].expand_as(found.scale))
    each = allocate("ssdt-joint", t, g, POWER, 0.06)
    a, b = (
        (f.scale * superpose(g, f.transmit) - t.sum(2)).abs().square().sum()
        + 64 * 0.06 * f.scale.square().sum()
        for f in (found, each)
    )
    assert float(a) >= float(b) * (1 - 1e-5)


def test_gradients_reach_the_symbols() -> None:
    t, g = scene(2)
    for method in ("ssdt-sep", "ssdt-joint", "rx-lmmse", "phase"):
        x = t.clone().requires_grad_()
        found = allocate(method, x, g, POWER, 0.06)
        (found.scale * superpose(g, found.transmit)).abs().square().sum().backward()
        assert x.grad is not None
        assert bool((x.grad.abs() > 0).any())


def test_wrong_arguments_are_named() -> None:
    t, g = scene(2)
    with pytest.raises(ValueError, match="method: expected one of"):
        allocate("ssdt", t, g, POWER, 0.06)
    with pytest.raises(ValueError, match="power_w: expected one power for each of 2 users"):
        allocate("none", t, g, (1.0,), 0.06)
    for power in ((0.6, 0.0), (0.6, float("nan"))):
        with pytest.raises(ValueError, match="power_w: expected finite values > 0"):
            allocate("phase", t, g, power, 0.06)
    with pytest.raises(ValueError, match="noise_power_w: expected finite values >= 0, got -1"):
        allocate("phase", t, g, POWER, torch.tensor([[0.1], [-1.0]]))
    with pytest.raises(ValueError, match="transmitted and gains: expected one shape"):
        allocate("none", t, g[..., :32], POWER, 0.06)
