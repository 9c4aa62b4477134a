"""The digital way with a real code: mapping and demapping by definition; with Sionna, the whole of it."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from tenfold.semcom.channel import Fading, complex_normal
from tenfold.semcom.config import CtsemcomConfig
from tenfold.semcom.ldpc import cancelled, demap, map_bits, require_sionna
from tenfold.semcom.run import transfer

with_sionna = pytest.mark.skipif(find_spec("sionna") is None, reason="Sionna is not installed")


def test_mapping_has_its_power_and_demapping_is_the_log_ratio() -> None:
    draw = torch.Generator().manual_seed(0)
    bits = torch.randint(0, 2, (2, 3, 24), generator=draw).float()
    power = torch.tensor([0.6, 0.4, 0.1]).expand(2, 3)
    x = map_bits(bits, power, (3, 4))
    torch.testing.assert_close(x.abs().square(), power[..., None, None].expand(2, 3, 3, 4))
    g = torch.randn(2, 3, 3, 4, dtype=torch.complex64, generator=draw)
    y = g * x + 0.3 * torch.randn(2, 3, 3, 4, dtype=torch.complex64, generator=draw)
    noise = 0.05 + torch.rand(2, 3, 3, 4, generator=draw)
    found = demap(y, g, power, noise).view(2, 3, 3, 4, 2)
    # By definition: sums of densities over the four points, given the bit of the real part.
    logs = {}
    for bit in (0, 1):
        points = [
            (power / 2).sqrt()[..., None, None] * complex(1 - 2 * bit, 1 - 2 * other) for other in (0, 1)
        ]
        logs[bit] = torch.logsumexp(torch.stack([-(y - g * p).abs().square() / noise for p in points]), 0)
    torch.testing.assert_close(found[..., 0], logs[1] - logs[0], rtol=1e-3, atol=1e-3)


def test_without_sionna_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pictures: Path
) -> None:
    import tenfold.semcom.ldpc as ldpc

    monkeypatch.setattr(ldpc, "find_spec", lambda name: None)
    config = CtsemcomConfig(dataset="folder", data=str(pictures), pairs=2, methods=["digital-ldpc"])
    with pytest.raises(ModuleNotFoundError, match=r"sionna.*tenfold\[sionna\]"):
        transfer(config, tmp_path / "run")
    with pytest.raises(ModuleNotFoundError, match="method digital needs none"):
        require_sionna()


@with_sionna
def test_cancellation_needs_users_of_different_power() -> None:
    gains = Fading("awgn").gains((8, 4, 2, 64), 0)
    noise = complex_normal((8, 4, 64), 1.0, 1, 1)

    def through(power: tuple[float, ...], snr_db: float) -> float:
        sigma2 = torch.full((8,), power[0] / 10 ** (snr_db / 10))
        return float(cancelled(gains[:, :, : len(power)], noise, power, sigma2, 3).float().mean())

    assert through((1.0,), 5.0) == 1.0
    assert through((1.0,), -5.0) == 0.0  # capacity 0.4 bit, the code sends 1
    assert through((0.8, 0.2), 20.0) == 1.0
    assert through((0.5, 0.5), 40.0) == 0.0  # two of equal power: less than 1 bit for the first
    sigma2 = torch.full((8,), 0.06)
    whole = cancelled(gains, noise, (0.6, 0.4), sigma2, 3)
    assert torch.equal(whole[4:], cancelled(gains[4:], noise[4:], (0.6, 0.4), sigma2[4:], 3, first=4))


@with_sionna
def test_long_codewords_are_cut_into_blocks() -> None:
    gains = Fading("awgn").gains((2, 216, 1, 64), 0)
    noise = complex_normal((2, 216, 64), 1.0, 1, 1)
    found = cancelled(gains, noise, (1.0,), torch.tensor([10**-0.5, 10**0.5]), 3)
    assert found.tolist() == [[True], [False]]


@with_sionna
def test_pictures_stay_below_the_bound(tmp_path: Path, pictures: Path) -> None:
    config = CtsemcomConfig(
        dataset="folder", data=str(pictures), pairs=6, methods=["digital", "digital-ldpc"],
        snr_db=[0.0, 30.0], variances=[1.0], variance_snr_db=[30.0], csi_errors_db=[], csi_bits_tried=[],
        workers=1,
    )  # fmt: skip
    found = transfer(replace(config, power_w=[0.9, 0.1]), tmp_path / "run").metrics
    values = [found[f"digital-ldpc.snr{snr}.var1.psnr_db"] for snr in (0, 30)]
    assert values[0] < values[1] < found["digital.snr30.var1.psnr_db"]
