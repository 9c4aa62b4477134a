"""Small updates of half-precision weights: lost to nearest, kept on average by stochastic rounding."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tenfold.ops import Term, zo_chain_, zo_sample
from tenfold.optim import ZOSGD
from tenfold.optim._seeds import splitmix64

ELEMENTS, STEPS, MOVE = 1_000_000, 100, 1e-4


def ones(rounding: str, **options) -> tuple[nn.Parameter, ZOSGD]:
    theta = nn.Parameter(torch.ones(ELEMENTS, dtype=torch.bfloat16))
    opt = ZOSGD([theta], rounding=rounding, restore="dual", **options)
    opt._reached = True  # the closures below need no weights
    return theta, opt


@pytest.mark.parametrize(("rounding", "mean", "within"), [("sr", 0.99, 3e-5), ("rne", 1.0, 0.0)])
def test_a_hundred_decays_of_1e_4_on_a_million_ones(rounding, mean, within):
    theta, opt = ones(rounding, lr=1.0)
    for t in range(STEPS):
        opt.param_groups[0]["weight_decay"] = MOVE / (1 - MOVE * t)  # takes 1e-4 from the expected mean
        opt.step(lambda: 0.0)
    assert abs(theta.double().mean().item() - mean) <= within
    assert (theta == 1).all() == (rounding == "rne")


def test_a_hundred_updates_of_1e_4_along_signs_arrive_on_average():
    theta, opt = ones("sr", lr=1.0, eps=1.0, dist="rademacher")
    nearest, lost = ones("rne", lr=1.0, eps=1.0, dist="rademacher")
    wanted = torch.ones(ELEMENTS, dtype=torch.float64)
    for t in range(STEPS):
        for each in (opt, lost):
            losses = iter((MOVE, -MOVE))  # projected gradient 1e-4
            each.step(lambda losses=losses: next(losses))
        wanted -= MOVE * zo_sample(splitmix64(0, t), 0, 0, n=ELEMENTS, dist="rademacher")
    assert (nearest == 1).all()
    errors = theta.double() - wanted
    assert abs(errors.mean().item()) <= 3e-5
    moved = wanted - 1
    slope = ((theta.double() - 1) * moved).sum() / moved.square().sum()
    assert slope.item() == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_chain_is_one_rounding_from_the_sum_in_float64(dtype):
    generator = torch.Generator().manual_seed(0)
    w = (torch.rand(4001, generator=generator, dtype=torch.float64) + 0.5).to(dtype)
    terms = [Term(3, k, (-1) ** k * 10.0 ** -(k + 2)) for k in range(5)]
    decay = 1 - 2**-7  # a float32, so that nothing but sums and products rounds
    exact = decay * w.double()
    for t in terms:
        exact += t.coef * zo_sample(3, 1, t.query, n=4001, dtype=torch.float64)
    zo_chain_([w], [1], terms, decay=decay)
    ulp = torch.finfo(dtype).eps * 2.0 ** exact.abs().log2().floor()
    slack = 6 * torch.finfo(torch.float32).eps * 2 if dtype not in (torch.float64,) else 1e-15
    assert ((w.double() - exact).abs() <= ulp / 2 + slack).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_decay_alone_is_the_rounded_product(dtype):
    w = torch.randn(4001, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    decay = 0.9990234375  # 1 - 2^-10
    want = (decay * w.double()).to(dtype)
    theta = nn.Parameter(w.clone())
    zo_chain_([w], [1], [Term(1, 0, 0.0)], decay=decay)
    assert torch.equal(w, want)
    opt = ZOSGD([theta], lr=1.0, weight_decay=2.0**-10)
    opt.step(lambda: 0.0 * theta.sum())
    assert torch.equal(theta.detach(), want)
