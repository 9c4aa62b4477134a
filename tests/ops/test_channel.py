"""The superposition channel: statistics, replay, shards, equality with the ops it is made of, gradients."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tenfold.kernels.channel import channel_reference
from torch import Tensor

from tenfold import ops
from tenfold._backend import OPS

P = (0.6, 0.4)


@pytest.fixture
def backend(backend: Any) -> Any:
    if backend.name not in OPS["noma_channel"]:
        pytest.skip(f"no {backend.name} kernel of the channel")
    return backend


def symbols(*shape: int, dtype: torch.dtype = torch.complex64, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
@pytest.mark.parametrize("shape", [(5, 1, 1), (33, 2, 64), (7, 3, 37), (2, 2, 1500)])
@pytest.mark.parametrize("form", ["rayleigh", "rician", "awgn", "given", "alpha"])
def test_the_channel_is_the_reference_to_the_bit(backend, dtype, shape, form) -> None:
    u = symbols(*shape, dtype=dtype)
    options: dict[str, Any] = {"fading": form if form in ("rician", "awgn") else "rayleigh"}
    if form == "rician":
        options["k_factor_db"] = 3.0
    if form == "given":
        options["gains"] = symbols(*shape, dtype=dtype, seed=1)
    if form == "alpha":
        options["alpha"] = torch.linspace(0.5, 2, shape[0])
    got = ops.noma_channel(u, 2.0, 0.1, 5, 3, **options)
    y, g = ops.noma_channel(u, 2.0, 0.1, 5, 3, return_gains=True, **options)
    assert torch.equal(got, y)
    real = u.real.dtype
    noise = torch.full((shape[0],), 0.1, dtype=real)
    none = torch.zeros(shape[:2], dtype=real)
    alpha = None if form != "alpha" else options["alpha"].to(real)
    given = channel_reference.Given(u, g, none, none, noise, alpha, None, None)
    assert torch.equal(got, channel_reference.channel(given, channel_reference.Draw(5, 3, 0, 1), 0)[0])


@pytest.mark.parametrize("allocate", ["joint", "separable"])
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
@pytest.mark.parametrize("users", [1, 2, 3])
def test_allocation_within_the_pass_is_that_of_the_solver(backend, allocate, dtype, users) -> None:
    t = symbols(40, users, 16, dtype=dtype)
    power = torch.linspace(0.4, 0.9, users, dtype=t.real.dtype)
    got, g = ops.noma_channel(t, 1.5, 0.1, 2, allocate=allocate, power=power, return_gains=True)
    assert torch.equal(got, ops.noma_channel(t, 1.5, 0.1, 2, allocate=allocate, power=power))
    if allocate == "joint":
        found = ops.ssdt_joint(g, None, power, 0.1, transmitted=t)
        u = found.transmit
    else:
        found = ops.ssdt_separable(g, power, 0.1)
        u = found.precoder * t
        energy = u.abs().square().mean(-1)
        u = u * torch.where(energy > power, power / energy, 1.0).sqrt()[..., None]
    assert bool((u.abs().square().mean(-1) <= power * (1 + 1e-5)).all())
    expected = ops.noma_channel(u, 1.5, 0.1, 2, gains=g, alpha=found.alpha)
    tolerance = 2e-5 if dtype == torch.complex64 else 1e-9
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("allocate", [None, "joint", "separable"])
def test_rows_do_not_depend_on_the_batch(backend, allocate) -> None:
    t = symbols(70, 2, 24)
    more: dict[str, Any] = {"allocate": allocate, "power": P} if allocate else {}
    whole = ops.noma_channel(t, 1.0, 0.1, 9, 1, **more)
    assert torch.equal(whole, ops.noma_channel(t, 1.0, 0.1, 9, 1, **more))
    assert torch.equal(whole[37:], ops.noma_channel(t[37:], 1.0, 0.1, 9, 1, first=37, **more))
    assert not torch.equal(whole, ops.noma_channel(t, 1.0, 0.1, 9, 2, **more))
    assert not torch.equal(whole, ops.noma_channel(t, 1.0, 0.1, 10, 1, **more))


def test_block_fading_and_strides_and_real_views(backend) -> None:
    t = symbols(5, 4, 2, 24)
    y, g = ops.noma_channel(t, 1.0, 0.0, 9, block=True, return_gains=True)
    assert torch.equal(g, g[:, :1].expand_as(g))
    assert not torch.equal(g[0], g[1])
    assert torch.equal(y, ops.noma_channel(t, 1.0, 0.0, 9, block=True))
    part = ops.noma_channel(t[2:], 1.0, 0.0, 9, block=True, first=8)
    assert torch.equal(y[2:], part)
    strided = t.transpose(-1, -2).contiguous().transpose(-1, -2)
    assert torch.equal(y, ops.noma_channel(strided, 1.0, 0.0, 9, block=True))
    assert torch.equal(y, ops.noma_channel(torch.view_as_real(t), 1.0, 0.0, 9, block=True))
    assert torch.equal(
        ops.noma_channel(t.conj(), 1.0, 0.1, 9), ops.noma_channel(t.conj().resolve_conj(), 1.0, 0.1, 9)
    )


@pytest.mark.parametrize("shape", [(0, 2, 4), (3, 2, 0)])
@pytest.mark.parametrize("allocate", [None, "joint", "separable"])
def test_nothing_to_send(backend, shape, allocate) -> None:
    power = P if allocate else None
    y = ops.noma_channel(symbols(*shape), 1.0, 0.1, 0, allocate=allocate, power=power)
    assert y.shape == (shape[0], shape[2])


def test_statistics_of_fading_and_noise() -> None:
    from scipy.stats import kstest

    y, g = ops.noma_channel(
        torch.zeros(31_250, 2, 64, dtype=torch.complex64), 2.5, 0.3, 11, return_gains=True
    )
    power = g.abs().square().double()
    assert float(power.mean()) == pytest.approx(2.5, rel=3e-3)
    assert float(power.square().mean() / power.mean() ** 2) == pytest.approx(2, abs=0.02)
    assert abs(float((g.real * g.imag).double().mean())) / 1.25 < 2e-3
    assert abs(complex((g[:, 0] * g[:, 1].conj()).mean())) / 2.5 < 2e-3
    assert kstest((power.flatten()[:200_000] / 2.5).numpy(), "expon").pvalue > 1e-3
    assert float(y.abs().square().double().mean()) == pytest.approx(0.3, rel=3e-3)
    assert abs(complex((g[:, 0] * y.conj()).mean())) / math.sqrt(2.5 * 0.3) < 2e-3
    again = ops.noma_channel(torch.zeros(31_250, 2, 64, dtype=torch.complex64), 0.1, 0.3, 11)
    assert torch.equal(y, again)  # the noise does not follow the fading


def test_variance_of_each_user(backend) -> None:
    one = torch.zeros(3000, 2, 64, dtype=torch.complex64)
    _, g = ops.noma_channel(one, torch.tensor([0.5, 4.0]), 0.1, 1, return_gains=True, fading="rician",
                            k_factor_db=3.0)  # fmt: skip
    mean = g.abs().square().mean((0, 2))
    torch.testing.assert_close(mean, torch.tensor([0.5, 4.0]), rtol=1e-2, atol=0)


@pytest.mark.parametrize("allocate", [None, "joint", "separable"])
@pytest.mark.parametrize("known", [False, True])
def test_gradients(allocate, known) -> None:
    t = symbols(2, 2, 4, dtype=torch.complex128).requires_grad_()
    g = symbols(2, 2, 4, dtype=torch.complex128, seed=1).requires_grad_() if known else None
    real = torch.tensor(P, dtype=torch.float64).requires_grad_()
    name = "power" if allocate else "alpha"

    def call(t: Tensor, real: Tensor, g: Tensor | None = None) -> Any:
        return ops.noma_channel(t, 1.0, 0.1, 1, gains=g, allocate=allocate, **{name: real})

    assert torch.autograd.gradcheck(call, (t, real, g) if known else (t, real))


@pytest.mark.parametrize("allocate", ["joint", "separable"])
def test_detached_allocation_takes_it_as_constant(allocate) -> None:
    t = symbols(3, 2, 8, dtype=torch.complex128).requires_grad_()
    y, g = ops.noma_channel(
        t, 1.0, 0.1, 1, allocate=allocate, power=P, detach_allocation=True, return_gains=True
    )
    (got,) = torch.autograd.grad(y.abs().square().sum(), t)
    fixed = t.detach().requires_grad_()
    if allocate == "joint":
        s = fixed.sum(1)
        found = ops.ssdt_joint(g, s.detach(), P, 0.1)
        u = found.transmit / s.detach()[:, None] * s[:, None]
    else:
        found = ops.ssdt_separable(g, P, 0.1)
        u = found.precoder * fixed
        energy, power = u.abs().square().mean(-1), torch.tensor(P, dtype=torch.float64)
        u = u * torch.where(energy > power, power / energy, 1.0).sqrt()[..., None]
    same = ops.noma_channel(u, 1.0, 0.1, 1, gains=g, alpha=found.alpha)
    (expected,) = torch.autograd.grad(same.abs().square().sum(), fixed)
    torch.testing.assert_close(got, expected)


def test_gains_are_not_kept_for_the_backward_pass() -> None:
    t = symbols(64, 2, 16).requires_grad_()
    kept: list[int] = []

    def pack(x: Tensor) -> Tensor:
        kept.append(x.untyped_storage().data_ptr())
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        y = ops.noma_channel(t, 1.0, 0.1, 1, allocate="joint", power=P)
    large = {p for p in kept if p == t.untyped_storage().data_ptr()}
    assert large
    assert len(set(kept)) <= 6  # transmit, mean, scale, noise, power, rho
    y.abs().sum().backward()
    assert t.grad is not None


def test_the_op_keeps_pytorchs_rules() -> None:
    t = symbols(3, 2, 8).requires_grad_()
    row, user = torch.full((3,), 0.1), torch.full((3, 2), 0.5)
    for allocate in (0, 1, 2):
        power, rho = (user, user) if allocate else (None, None)
        arguments = (t, None, user, user, row, None, power, rho, 1, 0, 0, 1, allocate, False)
        torch.library.opcheck(torch.ops.tenfold.noma_channel.default, arguments)
    torch.library.opcheck(torch.ops.tenfold.noma_gains.default, (t.detach(), user, user, 1, 0, 0, 1))


def test_it_compiles_in_one_graph() -> None:
    t = symbols(3, 2, 8)

    def call(t: Tensor) -> Any:
        return ops.noma_channel(t, 1.0, 0.1, 1, allocate="joint", power=P)

    assert torch.equal(torch.compile(call, fullgraph=True, backend="aot_eager")(t), call(t))


T = torch.ones(3, 2, 4, dtype=torch.complex64)


@pytest.mark.parametrize(
    ("error", "message", "change"),
    [
        (ValueError, "transmit: expected shape", {"transmit": T[0, 0]}),
        (ValueError, "variance: expected", {"variance": 0.0}),
        (ValueError, "noise_power: expected finite values >= 0", {"noise_power": -1.0}),
        (ValueError, "seed: expected", {"seed": -1}),
        (ValueError, "offset: expected", {"offset": 2**24}),
        (ValueError, "gains: expected a shape", {"gains": T[:2]}),
        (ValueError, "fading: expected one of", {"fading": "nakagami"}),
        (ValueError, "k_factor_db: expected", {"fading": "rician"}),
        (ValueError, "k_factor_db: expected", {"k_factor_db": 3.0}),
        (ValueError, "k_factor_db: expected", {"fading": "rician", "k_factor_db": 4000.0}),
        (ValueError, "allocate: expected one of", {"allocate": "best"}),
        (ValueError, "allocate: expected one of", {"allocate": ["joint"], "power": P}),
        (ValueError, "power: expected", {"allocate": "joint"}),
        (ValueError, "power: expected None", {"power": P}),
        (ValueError, "alpha: expected None", {"allocate": "joint", "power": P, "alpha": 1.0}),
        (ValueError, "power: expected finite values > 0", {"allocate": "joint", "power": (1.0, 0.0)}),
        (ValueError, "first: expected a multiple of 3", {"transmit": T[None], "block": True, "first": 2}),
        (TypeError, "noise_power: expected", {"noise_power": torch.ones(3, requires_grad=True)}),
    ],
)
def test_wrong_arguments_are_named(error, message, change) -> None:
    arguments: dict[str, Any] = {"transmit": T, "variance": 1.0, "noise_power": 0.1, "seed": 0} | change
    with pytest.raises(error, match=message):
        ops.noma_channel(**arguments)
