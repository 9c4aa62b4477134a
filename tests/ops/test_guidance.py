"""Losses, noise, guidance and splicing: every backend against float64, and against the published formulas."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tenfold.kernels.attack import guidance_reference
from torch import Tensor

from tenfold._backend import OPS
from tenfold.ops import (
    add_noise_rows,
    cfg_ddim_step,
    eps_mse_rows,
    esd_mse,
    sld_guidance,
    splice_embed,
)

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
SHAPES = [(1, 1), (3, 4, 5, 5), (2, 3, 70, 71)]
STEP = {torch.float32: 2e-6, torch.float64: 1e-12, torch.bfloat16: 2**-7, torch.float16: 2**-10}


@pytest.fixture
def backend(backend: Any) -> Any:
    if backend.name not in OPS["esd_mse"]:
        pytest.skip(f"no {backend.name} kernel of these ops")
    return backend


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def near(found: Tensor, expected: Tensor, dtype: torch.dtype, scale: float = 1.0) -> None:
    step = scale * STEP[dtype]
    torch.testing.assert_close(found.detach().cpu().double(), expected.double(), atol=step, rtol=step)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_losses_and_their_gradients(backend, dtype, shape):
    if backend.interpreted and (dtype == torch.bfloat16 or len(shape) == 2):
        pytest.skip("the interpreter cuts bfloat16 off")
    given = [normal(*shape, seed=s, dtype=dtype) for s in range(3)]
    exact = [x.double().requires_grad_() for x in given]
    leaves = [x.to(backend.device).requires_grad_() for x in given]
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    for eta in (0.0, 1.0, 0.7):
        x, e0, ep = exact
        want = (x - ((1 + eta) * e0 - eta * ep)).square().mean()
        got = esd_mse(*leaves, eta)
        assert got.dtype == wide
        near(got, want, wide)
        for a, b in zip(
            torch.autograd.grad(3 * got, leaves), torch.autograd.grad(3 * want, exact), strict=True
        ):
            near(a, b, dtype)
    weights = torch.arange(1.0, shape[0] + 1)
    for criterion, known in (("l2", torch.square), ("l1", torch.abs)):
        rows = known(exact[0] - exact[1]).flatten(1).mean(1)
        got = eps_mse_rows(leaves[0], leaves[1], criterion)
        assert got.dtype == wide
        near(got, rows, wide)
        found = torch.autograd.grad((got * weights.to(backend.device)).sum(), leaves[:2])
        for a, b in zip(found, torch.autograd.grad((rows * weights).sum(), exact[:2]), strict=True):
            near(a, b, dtype)


def test_losses_refuse():
    x = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="prediction: expected a tensor with elements"):
        esd_mse(x[:0], x[:0], x[:0])
    with pytest.raises(ValueError, match=r"e0: expected shape \[2, 3\]"):
        esd_mse(x, x[:1], x)
    with pytest.raises(TypeError, match=r"target: expected dtype torch\.float32"):
        eps_mse_rows(x, x.double())
    with pytest.raises(ValueError, match="criterion"):
        eps_mse_rows(x, x, "l3")
    with pytest.raises(ValueError, match="eta: expected a finite number"):
        esd_mse(x, x, x, float("nan"))
    assert eps_mse_rows(x[:0], x[:0]).shape == (0,)
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(esd_mse(leaf, x + 1, x), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated once"):
        gradient.sum().backward()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_noise_of_each_picture(backend, dtype):
    if backend.interpreted and dtype == torch.bfloat16:
        pytest.skip("the interpreter cuts bfloat16 off")
    x, e = (normal(3, 4, 9, 7, seed=s, dtype=dtype) for s in range(2))
    abar = torch.linspace(0.9991, 0.0047, 1000)
    for times in (torch.tensor([0, 999, 41]), torch.tensor([500])):
        level = abar.double()[times].view(-1, 1, 1, 1)
        want = level.sqrt() * x.double() + (1 - level).sqrt() * e.double()
        given = [v.to(backend.device) for v in (x, e, times, abar)]
        near(add_noise_rows(*given), want, dtype)
    leaves = [v.double().to(backend.device).requires_grad_() for v in (x[:, :1, :2, :2], e[:, :1, :2, :2])]
    steps, levels = torch.tensor([0, 999, 41]).to(backend.device), abar.to(backend.device)
    assert torch.autograd.gradcheck(lambda a, b: add_noise_rows(a, b, steps, levels), leaves)
    for bad in (-1, 1000):
        if backend.device.type == "cpu":
            with pytest.raises(ValueError, match=r"t: expected timesteps in \[0, 1000\)"):
                add_noise_rows(x, e, torch.tensor([0, bad, 1]), abar)
    with pytest.raises(ValueError, match=r"t: expected \[3\] or \[1\]"):
        add_noise_rows(x, e, torch.tensor([0, 1]), abar)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_guided_steps(backend, prediction, dtype):
    """Against the clean sample and the noise taken apart, as in the papers."""
    if backend.interpreted and dtype == torch.bfloat16:
        pytest.skip("the interpreter cuts bfloat16 off")
    z, eu, ec = (normal(3, 4, 9, 7, seed=s, dtype=dtype) for s in range(3))
    guidance, a, b = (
        torch.tensor([1.0, 3.0, 7.5]),
        torch.tensor([0.9, 0.3, 0.01]),
        torch.tensor([0.99, 0.5, 0.02]),
    )
    if prediction != "epsilon":
        a[2] = 0.0
    g, r, s = (v.double().view(-1, 1, 1, 1) for v in (guidance, a.double().sqrt(), (1 - a.double()).sqrt()))
    x, u, c = (v.double() for v in (z, eu, ec))
    out = u + g * (c - u)
    if prediction == "epsilon":
        clean, noise = (x - s * out) / r, out
    elif prediction == "v_prediction":
        clean, noise = r * x - s * out, r * out + s * x
    else:
        clean, noise = out, (x - r * out) / s
    to = b.double().view(-1, 1, 1, 1)
    want = to.sqrt() * clean + (1 - to).sqrt() * noise
    given = [v.to(backend.device) for v in (z, eu, ec, guidance, a, b)]
    near(cfg_ddim_step(*given, prediction_type=prediction), want, dtype, 20)
    both = cfg_ddim_step(*given, prediction_type=prediction, doubled=True)
    assert both.shape[0] == 6
    near(both[3:], want, dtype, 20)
    plain = cfg_ddim_step(given[0], None, given[2], 1.0, 0.5, 0.75, prediction_type=prediction)
    same = cfg_ddim_step(given[0], given[2], given[2], 4.0, 0.5, 0.75, prediction_type=prediction)
    near(plain, same.cpu(), dtype)
    if backend.device.type == "cpu" and prediction == "epsilon":
        with pytest.raises(ValueError, match=r"a_t: expected levels in \(0, 1\]"):
            cfg_ddim_step(z, None, ec, 1.0, 0.0, 0.5)
    with pytest.raises(ValueError, match="guidance: expected a number or"):
        cfg_ddim_step(z, eu, ec, torch.ones(2), 0.5, 0.75)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("warm", [False, True])
def test_safe_guidance(backend, dtype, warm):
    if backend.interpreted and dtype == torch.bfloat16:
        pytest.skip("the interpreter cuts bfloat16 off")
    eu, ec, es, v = (normal(2, 4, 9, 7, seed=s, dtype=dtype) for s in range(4))
    guidance = torch.tensor([3.0, 7.5])
    more = {"scale": 2.0, "threshold": 0.02, "momentum_scale": 0.5, "momentum_beta": 0.7, "warm": warm}
    u, c, s, m = (x.double() for x in (eu, ec, es, v))
    mu = torch.where(c - s >= 0.02, 0.0, ((c - s).abs() * 2).clamp(max=1))
    away = mu * (s - u) + 0.5 * m
    want = u + guidance.double().view(-1, 1, 1, 1) * ((c - u) - (away if warm else 0))
    given = [x.to(backend.device) for x in (eu, ec, es, v, guidance)]
    out, after = sld_guidance(*given, **more)
    # where ec - es meets the threshold, half precision may fall on either side
    clear = ((c - s) - 0.02).abs() > 1e-6
    near(out.cpu()[clear], want[clear], dtype, 10)
    near(after.cpu()[clear], (0.7 * m + 0.3 * away)[clear], dtype, 4)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_splicing(backend, dtype):
    if backend.interpreted and dtype == torch.bfloat16:
        pytest.skip("the interpreter cuts bfloat16 off")
    embeds, adv = normal(2, 7, 33, dtype=dtype), normal(2, 3, 33, seed=1, dtype=dtype)
    index = torch.tensor([[0, 7, 8, 9, 1, 6, 6], [0, 1, 2, 7, 8, 9, 6]])
    leaves = [x.to(backend.device).requires_grad_() for x in (embeds, adv)]
    found = splice_embed(*leaves, index.to(backend.device))
    rows = torch.cat([embeds, adv], 1)
    want = torch.stack([rows[i][index[i]] for i in range(2)])
    assert torch.equal(found.detach().cpu(), want)
    weights = normal(2, 7, 33, seed=2, dtype=dtype)
    gradients = torch.autograd.grad(found, leaves, weights.to(backend.device))
    exact = guidance_reference.splice_embed_backward(weights.double(), index, 3)
    for a, b in zip(gradients, exact, strict=True):
        assert a.dtype == dtype
        near(a, b, dtype)
    with pytest.raises(ValueError, match="adv: expected"):
        splice_embed(embeds, adv[:1], index)
    if backend.device.type == "cpu":
        with pytest.raises(ValueError, match=r"index: expected numbers in \[0, 10\)"):
            splice_embed(embeds, adv, index + 1)


def test_empty_batches(backend):
    x = torch.zeros(0, 4, 3, device=backend.device)
    t = torch.tensor([1], device=backend.device)
    assert add_noise_rows(x, x, t, torch.ones(3, device=backend.device)).shape == x.shape
    assert cfg_ddim_step(x, x, x, 1.0, 0.5, 0.6, doubled=True).shape == x.shape
    more = {"scale": 1.0, "threshold": 0.0, "momentum_scale": 0.0, "momentum_beta": 0.0}
    assert sld_guidance(x, x, x, x, 1.0, **more)[0].shape == x.shape
    assert splice_embed(x, x[:, :2], torch.zeros(0, 4, dtype=torch.int64, device=x.device)).shape == x.shape


def test_layouts(backend):
    x, y = (normal(2, 3, 8, 6, seed=s).to(backend.device) for s in range(2))
    for change in (
        lambda v: v.contiguous(memory_format=torch.channels_last),
        lambda v: v.transpose(1, 2),
        lambda v: v[:, ::2, 1:],
    ):
        a, b = change(x), change(y)
        torch.testing.assert_close(eps_mse_rows(a, b), eps_mse_rows(a.contiguous(), b.contiguous()))
        found = cfg_ddim_step(a, a, b, 2.0, 0.5, 0.6)
        torch.testing.assert_close(found, cfg_ddim_step(*(v.contiguous() for v in (a, a, b)), 2.0, 0.5, 0.6))


def test_threads_change_nothing(set_threads):
    x, y, z = (normal(3, 4, 90, 91, seed=s, dtype=torch.float32) for s in range(3))
    found = []
    for threads in (1, 2, 3):
        set_threads(threads)
        found.append([esd_mse(x, y, z), eps_mse_rows(x, y, "l1"), cfg_ddim_step(x, y, z, 2.0, 0.5, 0.6)])
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_opcheck():
    x, y, z = (normal(2, 12, seed=s).requires_grad_() for s in range(3))
    check, ops = torch.library.opcheck, torch.ops.tenfold
    check(ops.guided_mse_rows, (x, y, z, 0.5, "l2"))
    check(ops.guided_mse_rows, (x, y, None, 0.0, "l1"))
    check(ops.add_noise_rows, (x, y, torch.tensor([0, 2]), torch.tensor([0.9, 0.5, 0.1]).double()))
    plain, one = [v.detach() for v in (x, y, z)], torch.full((1,), 0.5).double()
    check(ops.cfg_ddim_step, (*plain, one, one, one, "v_prediction", True))
    check(ops.sld_guidance, (*plain, plain[0].clone(), one, 2.0, 0.1, 0.5, 0.7, True))
    embeds, adv = normal(2, 4, 3).requires_grad_(), normal(2, 2, 3).requires_grad_()
    check(ops.splice_embed, (embeds, adv, torch.tensor([[0, 4, 5, 3], [0, 1, 4, 5]])))


def test_compiles_as_one_graph():
    x, y, z = (normal(2, 12, seed=s).requires_grad_() for s in range(3))

    def loss(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        return esd_mse(a, b, c) + eps_mse_rows(a, b).sum() + cfg_ddim_step(a, b, c, 2.0, 0.5, 0.6).sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    want, got = (torch.autograd.grad(f(x, y, z), (x, y)) for f in (loss, compiled))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)


def test_splicing_nothing_and_gradients_of_their_own(backend):
    adv = normal(2, 3, 4, dtype=torch.float32).to(backend.device).requires_grad_()
    index = torch.zeros(2, 0, dtype=torch.int64, device=backend.device)
    splice_embed(torch.zeros(2, 0, 4, device=backend.device), adv, index).sum().backward()
    assert adv.grad is not None
    assert not bool(adv.grad.any())

    both = guidance_reference.splice_embed_backward(normal(2, 5, 4), torch.arange(5).expand(2, 5) + 1, 3)
    assert all(t.is_contiguous() for t in both)
    assert both[0].untyped_storage().data_ptr() != both[1].untyped_storage().data_ptr()


def test_what_is_not_weighed_may_be_anything(backend):
    x, y = (normal(2, 6, seed=s, dtype=torch.float32).to(backend.device) for s in (1, 2))
    near(
        esd_mse(x, y, torch.full_like(x, math.inf), 0.0),
        (x - y).cpu().double().square().mean(),
        torch.float32,
    )


def test_steps_take_levels_from_the_cpu_and_refuse_a_number(backend):
    x = normal(3, 4, 5, dtype=torch.float32).to(backend.device)
    level = torch.tensor([0.5, 0.25], dtype=torch.float64)
    got = cfg_ddim_step(x, None, x, 1.0, level[0], level[1])
    torch.testing.assert_close(got, cfg_ddim_step(x, None, x, 1.0, 0.5, 0.25))
    one = torch.zeros((), device=backend.device)
    with pytest.raises(ValueError, match="x: expected"):
        cfg_ddim_step(one, None, one, 1.0, 0.5, 0.25)
