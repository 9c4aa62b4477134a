"""The kernels of the superposition channel on a GPU, or their CUDA source on the host, against the reference:
to the bit."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from tenfold.kernels.channel import channel_cuda, channel_reference
from tenfold.kernels.channel.channel_reference import Draw, Given

import tenfold.ops  # noqa: F401  (registers what the reference draws with)


def module_of(gpu, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> ModuleType:
    if gpu.name == "triton":
        from tenfold.kernels.channel import channel_triton

        return channel_triton
    if gpu.name == "emulated":
        built = request.getfixturevalue("emulated_cuda")
        monkeypatch.setattr(channel_cuda, "_door", lambda: built)
        monkeypatch.setattr(channel_cuda, "_stream", lambda tensor: 0)
    return channel_cuda


def given_of(shape, dtype, form: str) -> Given:
    generator = torch.Generator().manual_seed(3)

    def drawn(*size, dtype):
        return torch.randn(size, dtype=dtype, generator=generator)

    rows, users, carriers = shape
    real = torch.float64 if dtype == torch.complex128 else torch.float32
    u = drawn(*shape, dtype=dtype)
    if form == "strided":
        u = drawn(rows, carriers, users, dtype=dtype).transpose(1, 2).conj()
    mean, scale = drawn(rows, users, dtype=real).abs(), drawn(users, dtype=real).abs().expand(rows, users)
    noise, alpha = drawn(1, dtype=real).abs().expand(rows), drawn(rows, dtype=real).abs()
    gains = drawn(*shape, dtype=dtype) if form == "given" else None
    return Given(u, gains, mean, scale, noise, alpha if form != "drawn" else None, None, alpha[:, None])


def on(device: torch.device, given: Given) -> Given:
    return Given(*(None if t is None else t.to(device) for t in given))  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
@pytest.mark.parametrize("form", ["drawn", "given", "strided"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (9, 2, 64), (7, 3, 37), (2, 1, 600)], ids=str)
def test_the_channel_is_the_reference_to_the_bit(gpu, monkeypatch, request, shape, form, dtype):
    kernels = module_of(gpu, monkeypatch, request)
    given = given_of(shape, dtype, form)
    for draw in (Draw(5, 3, 0, 1), Draw(-2, 2**24 - 1, 2**40 + 6, 3)):
        want = channel_reference.channel(given, draw, 0)[0]
        assert torch.equal(kernels.channel(on(gpu.device, given), draw, 0)[0].cpu(), want)
        g = kernels.gains(on(gpu.device, given), draw)
        assert torch.equal(g.cpu(), channel_reference.gains(given, draw))


@pytest.mark.parametrize("shape", [(9, 2, 64), (7, 3, 37)], ids=str)
def test_what_the_receiver_wants_is_the_reference_to_the_bit(gpu, monkeypatch, request, shape):
    kernels = module_of(gpu, monkeypatch, request)
    given = given_of(shape, torch.complex64, "drawn")
    given = given._replace(rho=given.mean)
    assert torch.equal(kernels.wanted(on(gpu.device, given)).cpu(), channel_reference.wanted(given))


def test_allocation_in_pieces(gpu, monkeypatch, request):
    """The solver is the op's own; pieces, views and the scale are these kernels'."""
    kernels = module_of(gpu, monkeypatch, request)
    given = given_of((50, 2, 16), torch.complex64, "drawn")
    given = given._replace(power=torch.tensor([0.6, 0.4]).expand(50, 2), rho=torch.ones(50, 2))
    want = channel_reference.channel(given, Draw(1, 0, 7, 1), 1)
    monkeypatch.setattr(channel_reference, "PIECE", 16 if gpu.device.type == "cuda" else 256)
    got = kernels.channel(on(gpu.device, given), Draw(1, 0, 7, 1), 1)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=2e-5, atol=2e-5)
