"""Codecs: layout of symbols, power, what the SNR and the channels reach."""

from __future__ import annotations

import pytest
import torch

from tenfold.semcom.channel import Fading
from tenfold.semcom.codec import CODECS, CodecSpec, make_codec, parameters
from tenfold.semcom.link import Link

SNR = torch.tensor([0.0, 15.0])


def images(users: int = 2, height: int = 32, width: int = 32) -> torch.Tensor:
    return torch.rand(2, users, 3, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("preset", CODECS)
def test_shapes_and_padding(preset: str) -> None:
    codec = make_codec(preset, width=12)  # type: ignore[arg-type]
    t = codec.encode(images(), SNR)
    assert t.shape == (2, 4, 2, 64)
    assert t.dtype == torch.complex64
    assert codec.decode(t.sum(2), SNR, (32, 32)).shape == (2, 2, 3, 32, 32)
    wide = codec.encode(images(2, 40, 48), SNR)  # 4 x 10 x 12 = 480 features on 8 x 64 places
    assert wide.shape == (2, 8, 2, 64)
    assert bool((wide.flatten(3)[:, -1, :, 32:] == 0).all())
    out = codec.decode(wide.sum(2), SNR, (40, 48))
    assert out.shape == (2, 2, 3, 40, 48)
    assert 0 <= float(out.detach().min()) <= float(out.detach().max()) <= 1


def test_map_l_of_a_32x32_picture_is_ofdm_symbol_l() -> None:
    codec = make_codec("adjscc-lite")
    raw = codec.encoders[0](images()[:, 0], SNR)
    t = codec.encode(images(), SNR)
    torch.testing.assert_close(t[:, 3, 0].real, raw[:, 6].flatten(1))
    torch.testing.assert_close(t[:, 3, 0].imag, raw[:, 7].flatten(1))


@pytest.mark.parametrize("mode", ["mean", "sum"])
def test_every_symbol_has_its_user_s_power(mode: str) -> None:
    t = Link(power_mode=mode).symbols(make_codec("deepjscc"), images(), SNR)
    power = t.abs().square().mean(-1) if mode == "mean" else t.abs().square().sum(-1)
    torch.testing.assert_close(power, torch.tensor([0.6, 0.4]).expand(2, 4, 2), rtol=1e-5, atol=0)


def test_who_sees_the_snr() -> None:
    for preset, sees in (("adjscc-lite", True), ("adjscc", True), ("deepjscc", False)):
        codec = make_codec(preset, width=12)  # type: ignore[arg-type]
        a, b = (codec.encode(images(), torch.full((2,), s)) for s in (0.0, 20.0))
        assert torch.equal(a, b) != sees


def test_a_decoder_with_csi_needs_the_channels() -> None:
    codec = make_codec(CodecSpec(csi=True))
    out, received = Link()(codec, images(), SNR, seed=3)
    assert out.shape == (2, 2, 3, 32, 32)
    other = codec.decode(received.signal, SNR, (32, 32), 1j * received.known)
    assert not torch.allclose(out, other)
    with pytest.raises(ValueError, match="gains: expected the channels"):
        codec.decode(received.signal, SNR, (32, 32))


def test_orthogonal_users_do_not_meet() -> None:
    codec = make_codec(CodecSpec(orthogonal=True))
    link = Link(fading=Fading("awgn"))
    t = link.symbols(codec, images(), SNR)
    assert bool((t.abs().prod(2) == 0).all())
    power = t.abs().square().mean((1, 3))
    torch.testing.assert_close(power, torch.tensor([0.6, 0.4]).expand(2, 2), rtol=1e-5, atol=0)
    with pytest.raises(ValueError, match="maps: expected a multiple of 3 users"):
        CodecSpec(users=3, orthogonal=True)


def test_a_link_does_not_depend_on_how_codewords_are_batched() -> None:
    codec = make_codec("adjscc-lite")
    whole, _ = Link(method="ssdt-sep")(codec, images(), SNR, seed=5)
    second, _ = Link(method="ssdt-sep")(codec, images()[1:], SNR[1:], seed=5, first=1)
    torch.testing.assert_close(whole[1:], second, atol=1e-5, rtol=0)


def test_the_same_seed_gives_the_same_weights_and_leaves_torch_s_alone() -> None:
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    a, b = (make_codec("adjscc-lite", seed=4) for _ in range(2))
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    assert parameters(a) == 388_464


def test_wrong_pictures_are_named() -> None:
    codec = make_codec("adjscc-lite")
    for wrong in (images(3), images(2, 30)):
        with pytest.raises(ValueError, match="images: expected"):
            codec.encode(wrong, SNR)
    with pytest.raises(ValueError, match="preset: expected one of"):
        make_codec("jpeg")
