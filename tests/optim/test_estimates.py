"""Directions and estimates as numbers: norms, variances, least squares, compatibility."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

from tenfold.ops import zo_sample
from tenfold.optim import (
    ZOSGD,
    RandomSparsity,
    ZOAdam,
    ZOSGDConservative,
    ZOSGDSign,
)

pytestmark = pytest.mark.filterwarnings("ignore::tenfold.PerformanceWarning")


@pytest.mark.slow
@pytest.mark.parametrize(("dist", "factor"), [("gaussian", 202.0), ("rademacher", 200.0), ("sphere", 200.0)])
def test_the_size_of_the_estimate(dist, factor):
    """E|g|^2 / |a|^2 on a linear loss is d + 2, d and d."""
    d, n = 200, 20_000
    a = torch.randn(d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    theta = nn.Parameter(torch.zeros(d, dtype=torch.float64))
    opt = ZOSGD([theta], lr=0.0, eps=1.0, dist=dist, num_queries=n, one_sided=True, restore="exact")
    opt.step(lambda: torch.dot(a, theta))
    seed, total = opt.last_step.seed, 0.0
    for i, g in enumerate(opt.last_step.projected_grads):
        sampled = "gaussian" if dist == "sphere" else dist
        size = (
            d if dist == "sphere" else zo_sample(seed, 0, i, n=d, dist=sampled).double().square().sum().item()
        )
        total += g * g * size
    assert total / n / (a @ a).item() == pytest.approx(factor, rel=0.03)


@pytest.mark.parametrize("restore", ["arithmetic", "exact", "dual"])
def test_the_sphere_has_norm_sqrt_d_over_all_tensors(restore):
    params = [nn.Parameter(torch.zeros(n, dtype=torch.float64)) for n in (7, 100, 33)]
    seen = []
    opt = ZOSGD(params, lr=0.5, eps=1.0, dist="sphere", restore=restore, num_queries=2)

    def closure():
        here = torch.cat([p * 1.0 for p in params]).detach()
        seen.append(here)
        return here[0]

    opt.step(closure)
    for probe in seen:
        assert probe.norm().item() == pytest.approx(math.sqrt(140), rel=1e-6)
    z = torch.cat([zo_sample(opt.last_step.seed, k, 0, n=p.numel()).double() for k, p in enumerate(params)])
    assert torch.allclose(seen[0], z * math.sqrt(140) / z.norm(), rtol=0, atol=1e-6)


def test_gauss16_directions_are_their_own():
    theta = nn.Parameter(torch.zeros(5000))
    losses = iter((1e-3, -1e-3))
    ZOSGD([theta], lr=1.0, dist="gauss16").step(lambda: next(losses))
    z = theta.detach()
    assert z.abs().max() <= 4.86
    assert z.std().item() == pytest.approx(1.0, abs=0.05)
    assert not torch.equal(z, -zo_sample(0xE220A8397B1DCDAF, 0, 0, n=5000))


@pytest.mark.parametrize("one_sided", [False, True])
def test_least_squares_has_all_projected_gradients(one_sided):
    d, q = 12, 5
    a = torch.linspace(-1, 2, d, dtype=torch.float64)
    theta = nn.Parameter(torch.zeros(d, dtype=torch.float64))
    opt = ZOSGD([theta], lr=1.0, num_queries=q, aggregate="least_squares", one_sided=one_sided)
    opt.step(lambda: torch.dot(a, theta))
    estimate = -theta.detach() * q / d
    z = torch.stack([zo_sample(opt.last_step.seed, 0, i, n=d).double() for i in range(q)])
    assert torch.allclose(z @ estimate, z @ a, rtol=0, atol=1e-6)
    whole = torch.linalg.lstsq(z, (z @ a)[:, None]).solution[:, 0]  # smallest norm: in the span of the rows
    assert torch.allclose(estimate, whole, rtol=0, atol=1e-6)


def test_as_many_queries_as_elements_find_the_gradient():
    d = 6
    a = torch.linspace(1, 3, d, dtype=torch.float64)
    theta = nn.Parameter(torch.zeros(d, dtype=torch.float64))
    ZOSGD([theta], lr=1.0, num_queries=d, aggregate="least_squares").step(lambda: torch.dot(a, theta))
    assert torch.allclose(-theta, a, rtol=0, atol=1e-6)


# -- compat -------------------------------------------------------------------------------------------


class Norm(nn.Module):
    """A norm that no name tells."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.RMSNorm(3)
        self.layer_norm = nn.Linear(3, 3, bias=False)


def test_mezo_exempts_by_name(quadratic):
    decayed = {}
    for compat in (None, "mezo", "zo-llm"):
        model = Norm()
        for p in model.parameters():
            p.data.fill_(1.0)
        opt = ZOSGD(model.parameters(), lr=0.1, weight_decay=0.5, streams=model, compat=compat)
        opt.step(lambda: 1.0)
        decayed[compat] = [name for name, p in model.named_parameters() if not (p == 1).all()]
    assert decayed[None] == ["layer_norm.weight"]
    assert decayed["mezo"] == ["scale.weight"]
    assert decayed["zo-llm"] == []  # ignored altogether
    theta, _ = quadratic()
    with pytest.raises(ValueError, match=r"^streams: expected a module with compat='mezo'"):
        ZOSGD([theta], compat="mezo")


@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.9])
def test_zo_llm_masks_phi_of_the_ratio(ratio):
    n = 20_000
    shares = []
    for compat in (None, "zo-llm"):
        theta = nn.Parameter(torch.zeros(n))
        losses = iter((1e-3, -1e-3))
        ZOSGD([theta], lr=1.0, mask=RandomSparsity(ratio), compat=compat).step(
            lambda losses=losses: next(losses)
        )
        shares.append((theta == 0).double().mean().item())
    published = {0.1: 0.541, 0.5: 0.692, 0.9: 0.816}[ratio]
    assert shares[0] == pytest.approx(ratio, abs=0.015)
    assert shares[1] == pytest.approx(published, abs=0.015)


@pytest.mark.parametrize(("optimizer", "queries"), [(ZOSGD, 3), (ZOSGDConservative, 1)])
def test_zo_llm_updates_ignore_the_mask(optimizer, queries):
    for compat, everything in ((None, False), ("zo-llm", True)):
        theta = nn.Parameter(torch.zeros(200))
        opt = optimizer([theta], lr=1e-3, num_queries=queries, mask=RandomSparsity(0.5), compat=compat)
        opt.step(lambda theta=theta: (theta - 1).square().sum())
        moved = (theta != 0).float().mean().item()
        assert (moved > 0.99) is everything
        assert moved > 0.2


def test_zo_llm_steps_signs_by_adamw(quadratic):
    theta, closure = quadratic()
    other, _ = quadratic()
    sign = ZOSGDSign([theta], lr=0.1, compat="zo-llm", restore="exact")
    adam = ZOAdam([other], lr=0.1, restore="exact")
    for _ in range(3):
        sign.step(closure)
        up = sign.last_step.projected_grads[0] > 0
        losses = itertools.cycle((1e-3, -1e-3) if up else (-1e-3, 1e-3))
        adam.step(lambda losses=losses: next(losses))
    assert torch.allclose(theta, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("spoilt", "sign"), [(1, -1.0), (2, 1.0)])
def test_zo_llm_takes_the_opposite_of_a_nan(quadratic, spoilt, sign):
    theta, closure = quadratic()
    opt = ZOSGDConservative([theta], lr=0.3, compat="zo-llm")
    calls = []

    def partly():
        calls.append(0)
        return closure() * (math.nan if len(calls) == 3 + spoilt else 1.0)

    opt.step(partly)
    assert opt.last_step.scalars[-1].value == sign


# -- what does not combine ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"dist": "sphere", "mask": RandomSparsity(0.5)}, "mask"),
        ({"aggregate": "least_squares", "mask": RandomSparsity(0.5)}, "mask"),
        ({"parallel": "query", "restore": "arithmetic"}, "restore"),
        ({"group": object()}, "parallel"),
    ],
)
def test_options_that_do_not_combine(options, name):
    with pytest.raises(ValueError, match=f"^{name}: expected .*, got "):
        ZOSGD([nn.Parameter(torch.ones(3))], **options)


def test_bad_masks():
    for make in (
        lambda: RandomSparsity(1.1),
        lambda: RandomSparsity(-0.1),
        lambda: RandomSparsity(1.0, rescale=True),
        lambda: RandomSparsity(math.nan),
    ):
        with pytest.raises(ValueError, match=r"^ratio: expected"):
            make()
    with pytest.raises(ValueError, match=r"^every: expected"):
        RandomSparsity(0.5, every=0)
    with pytest.raises(ValueError, match=r"^scope: expected"):
        RandomSparsity(0.5, scope="layer")
