"""Gradient sparsity: the same elements move in probes and update, and no others."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from tenfold.ops import RandomMask, zo_perturb_, zo_sample
from tenfold.optim import (
    FZOO,
    ZOSGD,
    ForwardGrad,
    MagnitudeSparsity,
    RandomSparsity,
    SparseMeZO,
    ZOAdam,
    ZOSGDConservative,
    ZOSGDMomentum,
    ZOSGDSign,
    splitmix64,
)

pytestmark = pytest.mark.filterwarnings("ignore::tenfold.PerformanceWarning")
MODES = ["arithmetic", "exact", "dual"]
CLASSES = [
    (ZOSGD, {"lr": 0.01}),
    (ZOSGD, {"lr": 0.01, "num_queries": 3}),
    (ZOSGD, {"lr": 0.01, "num_queries": 70, "one_sided": True}),
    (FZOO, {"lr": 0.01}),
    (ZOSGDConservative, {"lr": 1e-4}),
    (ZOSGDMomentum, {"lr": 0.01}),
    (ZOSGDSign, {"lr": 0.01}),
    (ZOAdam, {"lr": 0.01, "num_queries": 2}),
]


def weights(n: int = 512, seed: int = 0) -> nn.Parameter:
    return nn.Parameter(torch.randn(n, generator=torch.Generator().manual_seed(seed)))


@pytest.mark.parametrize("restore", MODES)
@pytest.mark.parametrize(("optimizer", "options"), CLASSES)
@pytest.mark.parametrize("mask", [RandomSparsity(0.6), MagnitudeSparsity(0.6)], ids=["random", "magnitude"])
def test_probes_and_update_move_the_same_elements(optimizer, options, restore, mask):
    theta = weights()
    before = theta.detach().clone()
    seen = []

    def closure():
        here = (theta * 1.0).detach()
        seen.append(here)
        return (here - 1.0).square().sum()

    opt = optimizer([theta], restore=restore, mask=mask, **options)
    opt.step(closure)
    if isinstance(mask, RandomSparsity):
        signs = torch.zeros(512)
        zo_perturb_([signs], [0], 1, 0, 1.0, "rademacher", mask=RandomMask(splitmix64(0, 0), 0, 0.6))
        allowed = signs != 0
        assert abs(allowed.float().mean() - 0.4) < 4 * math.sqrt(0.24 / 512)
    else:
        allowed = before.abs() <= before.abs().kthvalue(math.ceil(0.4 * 512)).values
    moved = theta != before
    probed = torch.stack([s != before for s in seen]).any(0)
    assert not (moved & ~allowed).any()
    assert not (probed & ~allowed).any()
    assert probed[allowed].float().mean() > 0.99
    assert moved[allowed].float().mean() > 0.97


def test_a_masked_forward_gradient_moves_unmasked_elements_alone():
    for mask in (RandomSparsity(0.5), MagnitudeSparsity(0.5)):
        theta = weights()
        before = theta.detach().clone()
        opt = ForwardGrad([theta], lr=0.1, mask=mask)
        opt.step(lambda theta=theta: (theta * theta).sum())
        moved = theta != before
        z = torch.where(moved, zo_sample(opt.last_step.seed, 0, 0, n=512), 0.0)
        assert 0.3 < moved.float().mean() < 0.7
        assert opt.last_step.projected_grads[0] == pytest.approx((2 * before @ z).item(), rel=1e-4)


@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_the_masked_share_is_the_ratio(ratio):
    n = 40_000
    theta = nn.Parameter(torch.zeros(n))
    losses = iter((1e-3, -1e-3))
    ZOSGD([theta], lr=1.0, mask=RandomSparsity(ratio)).step(lambda: next(losses))
    masked = (theta == 0).double().mean().item()
    assert abs(masked - ratio) <= 4 * math.sqrt(ratio * (1 - ratio) / n)


def test_a_mask_serves_so_many_steps():
    moved = []
    theta = nn.Parameter(torch.zeros(64))
    opt = ZOSGD([theta], lr=1.0, mask=RandomSparsity(0.5, every=3))
    for _ in range(6):
        losses = iter((1e-3, -1e-3))
        before = theta.detach().clone()
        opt.step(lambda losses=losses: next(losses))
        moved.append((theta != before).tolist())
    assert moved[0] == moved[1] == moved[2]
    assert moved[3] == moved[4] == moved[5]
    assert moved[0] != moved[3]


def test_global_scope_masks_of_each_tensor_its_share_of_small_weights():
    small, large = nn.Parameter(0.1 * weights(4000, 1).detach()), weights(4000, 2)
    threshold = torch.cat([small, large]).abs().kthvalue(4000).values  # the 0.5-quantile
    expected = [(p.abs() <= threshold).double().mean().item() for p in (small, large)]
    before = [p.detach().clone() for p in (small, large)]
    losses = iter((1e-3, -1e-3))
    ZOSGD([small, large], lr=1.0, mask=RandomSparsity(0.5, scope="global")).step(lambda: next(losses))
    for p, b, share in zip((small, large), before, expected, strict=True):
        assert (p == b).double().mean().item() == pytest.approx(share, abs=4 * math.sqrt(0.25 / 4000))
    assert expected[0] > 0.85
    assert sum(expected) == pytest.approx(1.0)


def test_rescale_keeps_the_expected_norm():
    theta = nn.Parameter(torch.zeros(20_000))
    losses = iter((1e-3, -1e-3))
    opt = ZOSGD([theta], lr=1.0, mask=RandomSparsity(0.75, rescale=True))
    opt.step(lambda: next(losses))
    z = zo_sample(opt.last_step.seed, 0, 0, n=20_000)
    moved = theta != 0
    # twice in the probe's direction, so four times in the step: (1/sqrt(1 - s))^2 = 4, g being given
    assert torch.allclose(theta[moved], -2.0 * z[moved], rtol=1e-5)
    assert (theta.detach().square().mean().sqrt()).item() == pytest.approx(1.0, rel=0.05)


def test_magnitude_thresholds_are_taken_every_so_many_steps():
    theta = nn.Parameter(torch.linspace(0.01, 1.0, 100))
    opt = SparseMeZO([theta], lr=0.0, ratio=0.75, restore="exact")
    opt.step(lambda: 0.0)
    first = dict(opt._limits)
    theta.data.mul_(10)
    opt.step(lambda: 0.0)
    assert opt._limits == first
    assert first[theta] == pytest.approx(0.25)
    again = SparseMeZO([theta], lr=0.0, ratio=0.75, every=1, restore="exact")
    again.step(lambda: 0.0)
    theta.data.mul_(10)
    again.step(lambda: 0.0)
    assert again._limits[theta] == pytest.approx(25.0)


def test_weight_decay_still_applies_to_masked_elements():
    theta = nn.Parameter(torch.ones(100))
    ZOSGD([theta], lr=0.1, weight_decay=0.5, mask=RandomSparsity(1.0), restore="exact").step(lambda: 1.0)
    assert torch.allclose(theta, torch.full((100,), 0.95))
