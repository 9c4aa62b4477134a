"""Fading and noise: conventions, statistics, replay and independence of shards."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tenfold.semcom.channel import (
    NOISE_STREAM,
    Fading,
    complex_normal,
    estimate_gains,
    lloyd_max,
    noise_power_w,
    noma_channel,
    quantise_gains,
    superpose,
)


def test_complex_normal_has_the_total_variance_and_no_correlation() -> None:
    z = complex_normal((4_000_000,), 2.5, seed=11)
    power = z.abs().square()
    assert float(power.mean()) == pytest.approx(2.5, rel=3e-3)
    assert float(power.square().mean() / power.mean() ** 2) == pytest.approx(2, abs=0.02)
    assert abs(float((z.real * z.imag).mean()) / 1.25) < 2e-3
    assert abs(complex((z[1:] * z[:-1].conj()).mean())) / 2.5 < 2e-3


def test_power_is_exponential() -> None:
    from scipy.stats import kstest

    power = (complex_normal((200_000,), 0.3, seed=5).abs().square() / 0.3).numpy()
    assert kstest(power, "expon").pvalue > 1e-3


def test_words_are_philox_words_of_the_documented_counter() -> None:
    from tenfold.ops.zo import random_words

    z = complex_normal((6,), 1.0, seed=9, stream=1, offset=3)
    w = random_words(9, stream=1, query=3, blocks=3).double().view(6, 2).numpy()
    u = (w + 0.5) / 2**32
    expected = np.sqrt(-np.log(u[:, 0])) * np.exp(2j * np.pi * u[:, 1])
    np.testing.assert_allclose(z.numpy(), expected, atol=2e-6)


def test_shards_and_batches_see_the_same_channel() -> None:
    fading = Fading("rayleigh", 2.0)
    whole = fading.gains((6, 3, 2, 8), seed=1, offset=4)
    assert torch.equal(whole[2:5], fading.gains((3, 3, 2, 8), seed=1, offset=4, first=2))
    assert not torch.equal(whole, fading.gains((6, 3, 2, 8), seed=1, offset=5))
    u = torch.ones((6, 3, 2, 8), dtype=torch.complex64)
    y = noma_channel(u, 2.0, 0.1, seed=1)
    assert torch.equal(y[4:], noma_channel(u[4:], 2.0, 0.1, seed=1, first=4))


@pytest.mark.parametrize("kind", ["awgn", "rayleigh", "rician"])
@pytest.mark.parametrize("block", [False, True])
def test_the_fused_channel_is_the_one_drawn_in_parts(kind: str, block: bool) -> None:
    fading = Fading(kind, 1.7, 6.0, block)  # type: ignore[arg-type]
    u = complex_normal((5, 4, 2, 24), seed=7)
    y, g = noma_channel(
        u, 1.7, 0.1, 3, 2, fading=kind, k_factor_db=6.0, block=block, first=3, return_gains=True
    )
    assert torch.equal(g, fading.gains(u.shape, 3, 2, first=3))
    noise = complex_normal((5, 4, 24), 0.1, 3, NOISE_STREAM, 2, first=3 * 4 * 24)
    torch.testing.assert_close(y, superpose(g, u) + noise, atol=1e-6, rtol=1e-6)


def test_block_fading_is_constant_over_symbols() -> None:
    g = Fading(block=True).gains((2, 4, 2, 16), seed=3)
    assert torch.equal(g, g[:, :1].expand_as(g))
    assert not torch.equal(g[0], g[1])


def test_rician_is_a_constant_and_a_scattered_part() -> None:
    fading = Fading("rician", variance=2.0, k_factor_db=3.0)
    g = fading.gains((500, 4, 2, 64), seed=3)
    ratio = 10**0.3
    assert float(g.abs().square().mean()) == pytest.approx(2.0, rel=1e-2)
    assert complex(g.mean()) == pytest.approx(math.sqrt(2 * ratio / (1 + ratio)), abs=1e-2)
    assert torch.equal(Fading("awgn").gains((1, 1, 2, 4), 0), torch.ones(1, 1, 2, 4, dtype=torch.complex64))


def test_noise_is_fixed_and_follows_neither_gains_nor_signal() -> None:
    u = torch.randn(200, 2, 2, 64, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    noises = []
    for variance, scale in ((1.0, 1.0), (0.01, 1.0), (1.0, 0.01)):
        y, g = noma_channel(scale * u, variance, 0.06, seed=2, return_gains=True)
        noises.append(y - superpose(g, scale * u))
        assert float(noises[-1].abs().square().mean()) == pytest.approx(0.06, rel=2e-2)
    torch.testing.assert_close(noises[0], noises[1], atol=1e-5, rtol=0)
    torch.testing.assert_close(noises[0], noises[2], atol=1e-5, rtol=0)
    correlation = (noises[1].conj() * g[:, :, 0]).mean().abs() / 0.06**0.5
    assert float(correlation) < 0.02


def test_snr_is_that_of_the_first_user() -> None:
    assert noise_power_w(10.0, (0.6, 0.4)) == pytest.approx(0.06)
    assert 10 * math.log10(0.6 * 2 / noise_power_w(7.0, (0.6, 0.4), rho=2)) == pytest.approx(7.0)


def test_alpha_and_gradients_through_the_channel() -> None:
    u = torch.randn(2, 1, 2, 4, dtype=torch.complex64, requires_grad=True)
    alpha = torch.full((2, 1), 0.5)
    y, g = noma_channel(u, 1.0, 0.1, seed=2, alpha=alpha, return_gains=True)
    torch.testing.assert_close(y, 0.5 * noma_channel(u, 1.0, 0.1, seed=2))
    y.real.sum().backward()
    assert u.grad is not None
    torch.testing.assert_close(u.grad, 0.5 * g.conj())


def test_estimates_have_the_error_that_was_asked_for() -> None:
    fading = Fading("rayleigh", 4.0)
    g = fading.gains((100, 4, 2, 64), seed=1)
    known = estimate_gains(g, fading, 1, csi_err_db=-10.0)
    assert float((known - g).abs().square().mean()) == pytest.approx(0.4, rel=2e-2)
    assert torch.equal(estimate_gains(g, fading, 1), g)
    shard = estimate_gains(g[40:], fading, 1, csi_err_db=-10.0, first=40)
    assert torch.equal(known[40:], shard)


def test_quantised_gains_take_the_levels_of_lloyd_and_max() -> None:
    np.testing.assert_allclose(lloyd_max(4), [-1.5104, -0.4528, 0.4528, 1.5104], atol=1e-4)
    np.testing.assert_allclose(lloyd_max(2), [-math.sqrt(2 / math.pi), math.sqrt(2 / math.pi)], atol=1e-9)
    g = Fading("rayleigh", 2.0).gains((100, 4, 2, 64), seed=1)
    errors = [float((quantise_gains(g, b, variance=2.0) - g).abs().square().mean()) / 2 for b in (2, 4, 6)]
    np.testing.assert_allclose(errors, [0.3634, 0.1175, 0.03454], rtol=0.03)  # Max 1960, table I
    assert len(torch.view_as_real(quantise_gains(g, 4, variance=2.0)).unique()) == 4
    g[0, 0, 0, 0] = math.nan
    assert quantise_gains(g, 4, variance=2.0).isnan().sum() == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Fading("nakagami"), "kind: expected one of"),  # type: ignore[arg-type]
        (lambda: Fading(variance=0.0), "variance: expected"),
        (lambda: Fading().gains((2, 2, 4), 0), "shape: expected four numbers"),
        (lambda: quantise_gains(torch.ones(3, dtype=torch.complex64), 3, variance=1.0), "csi_bits: expected"),
        (lambda: Fading("rician", k_factor_db=4000.0), "k_factor_db: expected"),
        (lambda: estimate_gains(torch.ones(2, 2, 4) + 0j, Fading(), 0), "gains: expected shape"),
        (
            lambda: estimate_gains(torch.ones(1, 1, 2, 4) + 0j, Fading(), 0, csi_err_db=9999.0),
            "csi_err_db: expected",
        ),
        (lambda: complex_normal((3,), -1.0), "variance: expected"),
        (lambda: noma_channel(torch.ones(3), 1.0, 0.1, 0), "transmit: expected"),
        (lambda: noma_channel(torch.ones(3, 2, 4) + 0j, 1.0, 0.1, 0, first=-1), "first: expected"),
    ],
)
def test_wrong_arguments_are_named(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()  # type: ignore[operator]
