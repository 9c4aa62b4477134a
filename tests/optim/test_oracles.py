"""Three steps of every optimizer on a quadratic, against values worked out in float64 beforehand."""

from __future__ import annotations

import pytest
import torch

from tenfold.ops import zo_sample
from tenfold.optim import (
    ZOSGD,
    ForwardGrad,
    HiZOO,
    RAdaZO,
    SparseMeZO,
    ZOAdam,
    ZOSGDConservative,
    ZOSGDMomentum,
    ZOSGDSign,
    splitmix64,
)

SGD = [0.9933566, -1.9208985, 0.4729146]
HELD = [
    pytest.param(ZOSGD, {"lr": 0.05}, SGD, id="sgd"),
    pytest.param(ZOSGD, {"lr": 0.05, "num_queries": 4}, [0.8084732, -1.9326989, 0.4115675], id="q4"),
    pytest.param(ZOSGD, {"lr": 0.05, "one_sided": True}, [0.9932304, -1.9208584, 0.4729768], id="one-sided"),
    pytest.param(
        ZOSGD, {"lr": 0.05, "dist": "rademacher"}, [0.9480938, -1.7655938, 0.2655938], id="rademacher"
    ),
    pytest.param(ZOSGDMomentum, {"lr": 0.02}, [0.9896485, -1.9640819, 0.4971152], id="momentum"),
    pytest.param(ZOAdam, {"lr": 0.1}, [1.0016894, -1.7442787, 0.4637885], id="adam"),
    pytest.param(ZOSGDSign, {"lr": 0.1, "mode": "element"}, [1.1, -1.7, 0.4], id="sign-element"),
    pytest.param(
        ZOSGDSign, {"lr": 0.05, "mode": "scalar"}, [0.972746, -1.9122301, 0.513564], id="sign-scalar"
    ),
    pytest.param(ZOSGDConservative, {"lr": 0.3}, [0.960281, -1.4697334, 0.3103751], id="conservative"),
]


@pytest.mark.parametrize("restore", ["auto", "arithmetic", "exact", "dual"])
@pytest.mark.parametrize(("optimizer", "options", "final"), HELD)
def test_three_steps_in_float64(quadratic, optimizer, options, final, restore):
    theta, closure = quadratic()
    opt = optimizer([theta], eps=1e-3, seed=0, restore=restore, **options)
    for _ in range(3):
        opt.step(closure)
    assert theta.tolist() == pytest.approx(final, abs=1e-6)


@pytest.mark.parametrize("restore", ["arithmetic", "exact", "dual"])
@pytest.mark.parametrize(("optimizer", "options", "final"), HELD)
def test_three_steps_in_float32(quadratic, optimizer, options, final, restore):
    theta, closure = quadratic(torch.float32)
    opt = optimizer([theta], eps=1e-3, seed=0, restore=restore, **options)
    for _ in range(3):
        opt.step(closure)
    assert theta.tolist() == pytest.approx(final, rel=1e-3)


def test_forward_gradient_is_the_limit_of_sgd(quadratic):
    theta, closure = quadratic()
    opt = ForwardGrad([theta], lr=0.05, seed=0)
    for _ in range(3):
        opt.step(closure)
    assert theta.tolist() == pytest.approx(SGD, abs=1e-7)


def steps_by_hand(update, steps=3, eps=1e-3):
    """The quadratic with an update written out: update(theta, c, z, t, (L0, L+, L-)) -> theta."""
    theta = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    curvature = torch.tensor([1.0, 0.5, 2.0], dtype=torch.float64)

    def loss(x):
        return (0.5 * (curvature * x * x).sum()).item()

    for t in range(steps):
        z = zo_sample(splitmix64(0, t), 0, 0, n=3).double()
        theta = update(theta, z, t, loss, eps)
    return theta


def test_nesterov_and_dampened_momentum_by_hand(quadratic):
    for nesterov, dampening in ((True, 0.0), (False, 0.9)):
        state = {}

        def update(theta, z, t, loss, eps, state=state, nesterov=nesterov, dampening=dampening):
            g = (loss(theta + eps * z) - loss(theta - eps * z)) / (2 * eps) * z
            state["m"] = g if t == 0 else 0.9 * state["m"] + (1 - dampening) * g
            step = g + 0.9 * state["m"] if nesterov else state["m"]
            return (1 - 0.02 * 0.3) * theta - 0.02 * step

        theta, closure = quadratic()
        opt = ZOSGDMomentum(
            [theta], lr=0.02, nesterov=nesterov, dampening=dampening, weight_decay=0.3, restore="exact"
        )
        for _ in range(3):
            opt.step(closure)
        assert torch.allclose(theta, steps_by_hand(update), rtol=0, atol=1e-10)


def test_radazo_by_hand(quadratic):
    state = {"m": 0.0, "v": 0.0}

    def update(theta, z, t, loss, eps):
        g = (loss(theta + eps * z) - loss(theta - eps * z)) / (2 * eps) * z
        state["m"] = 0.9 * state["m"] + 0.1 * g
        state["v"] = 0.999 * state["v"] + 0.001 * state["m"] ** 2
        root = (state["v"] / (1 - 0.999 ** (t + 1))).sqrt() + 1e-8
        return theta - 0.1 * state["m"] / (1 - 0.9 ** (t + 1)) / root

    expected = steps_by_hand(update)
    for opt_of in (
        lambda theta: RAdaZO([theta], lr=0.1, restore="exact"),
        lambda theta: ZOAdam([theta], lr=0.1, restore="exact", variant="radazo"),
    ):
        theta, closure = quadratic()
        opt = opt_of(theta)
        for _ in range(3):
            opt.step(closure)
        assert torch.allclose(theta, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("restore", ["arithmetic", "exact", "dual"])
def test_hizoo_by_hand(quadratic, restore):
    smoothing = 0.1
    state = {"h": torch.ones(3, dtype=torch.float64)}

    def update(theta, z, t, loss, eps):
        u = z / state["h"].sqrt()
        plus, minus, base = loss(theta + eps * u), loss(theta - eps * u), loss(theta)
        seen = abs(plus + minus - 2 * base) / (2 * eps * eps) * z * z
        state["h"] = (1 - smoothing) * state["h"] + smoothing * state["h"] * seen
        return theta - 0.05 * (plus - minus) / (2 * eps) * z / state["h"].sqrt()

    expected = steps_by_hand(update)
    theta, closure = quadratic()
    opt = HiZOO([theta], lr=0.05, smoothing=smoothing, restore=restore)
    for _ in range(3):
        opt.step(closure)
    assert len(opt.last_step.losses) == 3
    assert torch.allclose(theta, expected, rtol=0, atol=1e-8)
    assert torch.allclose(opt.state[theta]["hessian"], state["h"], rtol=1e-6, atol=0)


def test_sparse_mezo_moves_the_small_weights_alone(quadratic):
    theta, closure = quadratic()
    before = theta.detach().clone()
    opt = SparseMeZO([theta], lr=0.05, ratio=0.6, restore="exact")  # ceil(0.4 * 3) = 2 of 3 move
    opt.step(closure)
    assert (theta != before).tolist() == [True, False, True]
    z = zo_sample(splitmix64(0, 0), 0, 0, n=3).double()
    g = before[0] * z[0] + 2.0 * before[2] * z[2]
    assert theta[0].item() == pytest.approx((before[0] - 0.05 * g * z[0]).item(), abs=1e-6)
