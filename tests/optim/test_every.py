"""What every optimizer does alike: come back from an interrupt, save and load, train, refuse."""

from __future__ import annotations

import io
import math

import pytest
import torch
from torch import nn

import tenfold
from tenfold.optim import FZOO, ForwardGrad, ZOSGDConservative

pytestmark = pytest.mark.filterwarnings("ignore::tenfold.PerformanceWarning")


def bits(model: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def same(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_interrupt_between_probes_restores_the_weights_exactly(tagger, case, error):
    """With the default way back, in bfloat16, where rounding would show."""
    model, closure = tagger(torch.bfloat16)
    opt = case.make(model.parameters(), lr=0.1, streams=model)
    opt.step(closure)
    before, step = bits(model), opt.num_steps
    states = {
        p: {k: v.clone() for k, v in s.items() if isinstance(v, torch.Tensor)} for p, s in opt.state.items()
    }
    for call in range(len(opt.last_step.losses)):
        calls = []

        def interrupted(calls=calls, call=call):
            if len(calls) == call:
                raise error("between probes")
            calls.append(0)
            return closure()

        with pytest.raises(error, match="between probes"):
            opt.step(interrupted)
        assert same(bits(model), before)
    assert opt.num_steps == step
    for p, state in states.items():
        assert all(torch.equal(opt.state[p][k], v) for k, v in state.items())


def test_a_loaded_run_continues_to_the_same_bits(tagger, case):
    def run(steps, model, closure, opt):
        for _ in range(steps):
            opt.step(closure)

    straight, closure = tagger(torch.bfloat16)
    opt = case.make(straight.parameters(), lr=0.01, seed=7, rounding="sr", streams=straight)
    run(5, straight, closure, opt)

    broken, closure = tagger(torch.bfloat16)
    opt = case.make(broken.parameters(), lr=0.01, seed=7, rounding="sr", streams=broken)
    run(3, broken, closure, opt)
    file = io.BytesIO()
    torch.save({"model": broken.state_dict(), "optimizer": opt.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)

    resumed, closure = tagger(torch.bfloat16)
    resumed.load_state_dict(saved["model"])
    opt = case.optimizer(resumed.parameters())  # everything else comes out of the file
    opt.load_state_dict(saved["optimizer"])
    run(2, resumed, closure, opt)
    assert same(bits(resumed), bits(straight))
    assert not same(bits(resumed), bits(broken))


def test_it_lowers_the_loss(tagger, case):
    if case.options.get("maximize"):
        pytest.skip("ascends")
    model, closure = tagger(layers=2)
    first = closure().item()
    opt = case.make(model.parameters(), lr=3e-3, streams=model)
    for _ in range(20):
        opt.step(closure)
    assert closure().item() < first


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_moves_nothing(tagger, case, bad):
    model, closure = tagger()
    before = bits(model)
    opt = case.make(model.parameters(), lr=0.1, streams=model, max_nonfinite=2)
    opt.step(lambda: closure() * bad)
    assert opt.last_step.skipped
    with pytest.raises(RuntimeError, match=r"^closure: expected finite losses"):
        opt.step(lambda: closure() * bad)
    assert same(bits(model), before)
    assert opt.num_skipped == 2


def test_frozen_everything_and_wrong_losses(tagger, case):
    model, closure = tagger()
    before = bits(model)
    opt = case.make(model.parameters(), lr=0.1, streams=model)
    for wrong in (lambda: torch.ones(2), lambda: closure() * 1j, lambda: None, lambda: "0.5"):
        with pytest.raises(TypeError, match=r"^closure: expected a real scalar loss"):
            opt.step(wrong)
    for p in model.parameters():
        p.requires_grad_(False)
    with pytest.raises(ValueError, match=r"^params: expected at least one tensor with requires_grad"):
        opt.step(closure)
    with pytest.raises(ValueError, match=r"^params: expected at least one tensor with requires_grad"):
        case.make(model.parameters(), lr=0.1)
    assert same(bits(model), before)
    assert opt.num_steps == 0


def test_reference_and_native_agree_bit_for_bit(tagger, case):
    if case.optimizer is ForwardGrad:
        pytest.skip("its losses come with the step")
    results = []
    for backend in ("auto", "reference"):
        model, _ = tagger()
        losses = torch.rand(100, generator=torch.Generator().manual_seed(0)).tolist()
        opt = case.make(model.parameters(), restore="exact", lr=0.01, streams=model)
        if backend == "reference":
            with tenfold.use_backend("reference"):
                for _ in range(2):
                    opt.step(lambda losses=losses: losses.pop())
        else:
            for _ in range(2):
                opt.step(lambda losses=losses: losses.pop())
        results.append(bits(model))
    assert same(*results)


def test_four_micro_batches_are_one_batch(case):
    if case.optimizer is FZOO or case.options.get("dist") == "sphere":
        pytest.skip("nothing of its own here")
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(16, 5, generator=generator, dtype=torch.float64)
    y = torch.randn(16, generator=generator, dtype=torch.float64)
    found = []
    for pieces in (1, 4):
        model = nn.Linear(5, 1).double()
        nn.init.constant_(model.weight, 0.3)
        nn.init.constant_(model.bias, 0.1)

        def closure(model=model, pieces=pieces):
            parts = zip(x.chunk(pieces), y.chunk(pieces), strict=True)
            return sum((model(a)[:, 0] - b).square().mean() for a, b in parts) / pieces

        opt = case.make(model.parameters(), lr=0.01)
        opt.step(closure)
        found.append(opt.last_step.projected_grads)
    assert found[1] == pytest.approx(found[0], rel=1e-6)


@pytest.mark.parametrize(
    ("wrong", "error", "name"),
    [
        ({"eps": 0.0}, ValueError, "eps"),
        ({"lr": math.nan}, ValueError, "lr"),
        ({"weight_decay": -1.0}, ValueError, "weight_decay"),
        ({"num_queries": 0}, ValueError, "num_queries"),
        ({"num_queries": (1 << 24) + 1}, ValueError, "num_queries"),
        ({"seed": -1}, ValueError, "seed"),
        ({"dist": "cauchy"}, ValueError, "dist"),
        ({"aggregate": "median"}, ValueError, "aggregate"),
        ({"compat": "mezzo"}, ValueError, "compat"),
        ({"parallel": "model"}, ValueError, "parallel"),
        ({"mask": 0.5}, TypeError, "mask"),
        ({"hybrid": 2}, TypeError, "hybrid"),
    ],
)
def test_options_are_checked(case, wrong, error, name):
    theta = nn.Parameter(torch.ones(3))
    if (case.optimizer is ForwardGrad and name == "eps") or (
        name == "mask" and "SparseMeZO" in str(case.optimizer)
    ):
        with pytest.raises(TypeError, match="unexpected keyword argument"):
            case.make([theta], **wrong)
        return
    with pytest.raises(error, match=f"^{name}: expected .*, got "):
        case.make([theta], **wrong)


def test_unknown_options_are_refused(case):
    with pytest.raises(TypeError, match="unexpected keyword argument 'epsilon'"):
        case.make([nn.Parameter(torch.ones(3))], epsilon=1e-3)


def test_a_candidate_that_is_not_finite_is_never_taken(quadratic):
    for spoilt, choice in ((1, 0), (0, None), (2, None)):
        theta, closure = quadratic()
        before = theta.detach().clone()
        opt = ZOSGDConservative([theta], lr=0.3)
        calls = []

        def partly(calls=calls, spoilt=spoilt, closure=closure):
            calls.append(0)
            return closure() * (math.nan if len(calls) == 3 + spoilt else 1.0)

        opt.step(partly)
        assert not opt.last_step.skipped
        taken = opt.last_step.scalars[-1].value
        assert taken == (0.0 if choice == 0 else 1.0)
        assert torch.equal(theta, before) == (choice == 0)
        assert torch.isfinite(theta).all()


def test_conservative_without_a_finite_candidate_skips(quadratic):
    theta, closure = quadratic()
    before = theta.detach().clone()
    opt = ZOSGDConservative([theta], lr=0.3)
    calls = []
    opt.step(lambda: (calls.append(0), closure() * (math.nan if len(calls) > 2 else 1.0))[1])
    assert opt.last_step.skipped
    assert len(opt.last_step.losses) == 5
    assert torch.equal(theta, before)
    assert opt.num_skipped == 1
