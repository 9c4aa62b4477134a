"""The weights come back: after probes, after failures, after Ctrl-C."""

from __future__ import annotations

import math
import os
import signal

import pytest
import torch
from torch import nn

import tenfold.optim._walk as walk_module
from tenfold.optim import FZOO, ZOSGD, ZOAdam

OPTIMIZERS = [ZOSGD, FZOO, ZOAdam]
HALF_AND_SINGLE = [torch.float32, torch.bfloat16, torch.float16]


def bits(x: torch.Tensor) -> torch.Tensor:
    return x.detach().clone().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()])


def weights(dtype: torch.dtype, n: int = 64) -> nn.Parameter:
    generator = torch.Generator().manual_seed(0)
    return nn.Parameter((0.02 * torch.randn(n, generator=generator)).to(dtype))


@pytest.mark.parametrize("dtype", HALF_AND_SINGLE)
@pytest.mark.parametrize("options", [{}, {"rounding": "sr"}, {"one_sided": True, "num_queries": 2}])
@pytest.mark.parametrize("restore", ["exact", "dual"])
def test_exact_restore_changes_no_bit_in_a_thousand_cycles(dtype, options, restore):
    theta = weights(dtype)
    before = bits(theta)
    opt = ZOSGD([theta], lr=0.0, restore=restore, **options)
    probed = []
    for _ in range(1000):
        opt.step(lambda: probed.append(0) or theta.float().sum())
    assert torch.equal(bits(theta), before)
    assert len(probed) >= 2000


@pytest.mark.parametrize(
    ("dtype", "drift"), [(torch.float32, 1.2e-8), (torch.bfloat16, 7.8e-4), (torch.float16, 9.8e-5)]
)
def test_arithmetic_restore_drifts_as_documented(dtype, drift):
    theta = weights(dtype, 20_000)
    before = theta.detach().double()
    opt = ZOSGD([theta], lr=0.0, eps=1e-3, restore="arithmetic")
    for _ in range(100):
        opt.step(lambda: 0.0)
    rms = (theta.detach().double() - before).square().mean().sqrt().item()
    assert rms == pytest.approx(drift, rel=0.1)


def test_exact_restore_moves_weights_by_the_update_alone():
    theta, twin = weights(torch.bfloat16), weights(torch.bfloat16)
    opt = ZOSGD([theta], lr=0.1, eps=0.05, num_queries=2, restore="exact")
    opt.step(lambda: theta.float().square().sum())
    from tenfold.ops import Term, zo_chain_

    terms = [Term(opt.last_step.seed, i, -0.1 * g / 2) for i, g in enumerate(opt.last_step.projected_grads)]
    zo_chain_([twin.detach()], [0], terms)
    assert torch.equal(bits(theta), bits(twin))


def test_exact_restore_sees_what_the_user_writes_between_steps():
    theta = weights(torch.bfloat16)
    opt = ZOSGD([theta], lr=0.0, restore="exact")
    opt.step(lambda: 1.0)
    theta.data.fill_(2.0)
    opt.step(lambda: 1.0)
    assert (theta == 2.0).all()


class Stop(BaseException):
    pass


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, Stop])
@pytest.mark.parametrize("call", [0, 1, 2, 3, 4])
def test_an_exception_in_the_closure_restores_and_does_not_count(optimizer, error, call):
    exact, summed = weights(torch.bfloat16), weights(torch.float32)
    for theta, restore in ((exact, "exact"), (summed, "arithmetic")):
        before = theta.detach().clone()
        opt = optimizer([theta], lr=0.1, eps=0.01, num_queries=4, restore=restore)
        calls = []

        def closure(calls=calls, theta=theta):
            if len(calls) == call:
                raise error("from the closure")
            calls.append(0)
            return theta.float().sum()

        with pytest.raises(error, match="from the closure"):
            opt.step(closure)
        assert len(calls) == call
        assert opt.num_steps == 0
        assert opt.last_step is None
        if restore == "exact":
            assert torch.equal(bits(theta), bits(before))
        else:
            assert (theta - before).abs().max() < 1e-7


@pytest.fixture
def sigint_raises():
    """As at a terminal: a process that a shell started in the background may ignore SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("sigint_raises")
@pytest.mark.parametrize("name", ["zo_perturb_", "zo_chain_"])
@pytest.mark.parametrize("options", [{}, {"num_queries": 3}, {"restore": "exact"}])
def test_ctrl_c_during_a_pass_waits_for_its_end(monkeypatch, name, options):
    theta = weights(torch.float32)
    before = theta.detach().clone()
    opt = ZOSGD([theta], lr=0.0, eps=0.01, **options)
    op = getattr(walk_module, name)
    hits = []

    def interrupted(*args, **kwargs):
        op(*args, **kwargs)
        if not hits:
            hits.append(1)
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(walk_module, name, interrupted)
    handler = signal.getsignal(signal.SIGINT)
    try:
        for _ in range(3):
            opt.step(lambda: 1.0)
    except KeyboardInterrupt:
        hits.append(2)
    assert hits in ([1, 2], [])  # [] where no step of this kind calls the op
    assert signal.getsignal(signal.SIGINT) is handler
    assert (theta - before).abs().max() < 1e-7


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_skips_the_update(optimizer, bad):
    theta = weights(torch.bfloat16)
    before = bits(theta)
    opt = optimizer([theta], lr=0.1, num_queries=2, restore="exact", max_nonfinite=2, weight_decay=0.5)
    losses = iter([1.0, bad, 2.0, 3.0])
    assert not math.isfinite(opt.step(lambda: next(losses)).item())
    assert torch.equal(bits(theta), before)
    assert opt.last_step.skipped
    assert (opt.num_steps, opt.num_skipped) == (1, 1)
    opt.step(lambda: theta.float().square().sum())  # a finite step in between starts the count again
    after = bits(theta)
    assert not torch.equal(after, before)
    opt.step(lambda: math.nan)
    with pytest.raises(RuntimeError, match=r"^closure: expected finite losses, got .*2 in a row"):
        opt.step(lambda: bad)
    assert torch.equal(bits(theta), after)
    assert opt.num_skipped == 3


def test_arithmetic_restore_after_nan(quadratic):
    theta, _ = quadratic()
    before = theta.detach().clone()
    ZOSGD([theta], lr=0.1, num_queries=3).step(lambda: math.nan)
    assert torch.allclose(theta, before, rtol=0, atol=1e-14)


def test_a_gradient_too_large_for_float32_skips_the_update(quadratic):
    theta, _ = quadratic()
    losses = iter([3e38, -3e38])
    opt = ZOSGD([theta], lr=1e-3, eps=1e-6)
    before = theta.detach().clone()
    opt.step(lambda: next(losses))
    assert opt.last_step.skipped
    assert torch.allclose(theta, before, rtol=0, atol=1e-14)


def test_exact_restore_keeps_one_copy_and_arithmetic_none():
    theta = weights(torch.float32)
    frozen = nn.Parameter(torch.ones(3), requires_grad=False)
    for restore, copies in (("arithmetic", 0), ("exact", 1)):
        opt = ZOSGD([theta, frozen], lr=0.1, restore=restore)
        for _ in range(2):
            opt.step(lambda: theta.sum())
        assert len(opt._copies) == copies
