"""Forward gradients: exact, of real models, and the limit of the central difference."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tenfold.ops import zo_sample
from tenfold.optim import ZOSGD, ForwardGrad


@pytest.mark.parametrize("family", ["opt", "llama", "mistral", "roberta"])
def test_derivatives_of_language_models_are_those_of_backpropagation(language_model, family):
    model, closure = language_model(family)
    before = [p.detach().clone() for p in model.parameters()]
    opt = ForwardGrad(model.parameters(), lr=0.0, num_queries=2, streams=model)
    loss = opt.step(closure)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    exact = closure()
    assert loss.item() == pytest.approx(exact.item(), rel=1e-5)
    exact.backward()
    parameters = dict(model.named_parameters())
    for query, found in enumerate(opt.last_step.projected_grads):
        dot = 0.0
        for name, stream, shape, _ in opt.named_slots():
            if (grad := parameters[name].grad) is not None:
                z = zo_sample(opt.last_step.seed, stream, query, n=grad.numel()).view(shape)
                dot += (grad.double() * z.double()).sum().item()
        assert found == pytest.approx(dot, rel=1e-4)


def test_the_central_difference_converges_to_it_as_eps_squared(tagger):
    model, closure = tagger(torch.float64)
    x = {"float64": torch.arange(15).view(3, 5) % 11}

    def smooth():
        return model(x["float64"]).tanh().square().sum()

    forward = ForwardGrad(model.parameters(), lr=0.0, streams=model)
    forward.step(smooth)
    (exact,) = forward.last_step.projected_grads
    errors = []
    for eps in (4e-3, 2e-3, 1e-3):
        opt = ZOSGD(model.parameters(), lr=0.0, eps=eps, streams=model)
        opt.step(smooth)
        errors.append(abs(opt.last_step.projected_grads[0] - exact))
    assert errors[0] / errors[1] == pytest.approx(4.0, rel=0.1)
    assert errors[1] / errors[2] == pytest.approx(4.0, rel=0.1)
    assert closure is not None


def test_several_queries_average(quadratic):
    theta, closure = quadratic()
    before = theta.detach().clone()
    opt = ForwardGrad([theta], lr=0.1, num_queries=3)
    opt.step(closure)
    gradient = before * torch.tensor([1.0, 0.5, 2.0], dtype=torch.float64)
    z = [zo_sample(opt.last_step.seed, 0, i, n=3).double() for i in range(3)]
    expected = before - 0.1 * sum((gradient @ zi) * zi for zi in z) / 3
    assert torch.allclose(theta, expected, rtol=0, atol=1e-10)
    assert opt.last_step.passes == 1


class NoForward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, g):
        return g * 2


def test_what_has_no_forward_derivative_is_refused(quadratic):
    theta, closure = quadratic()
    before = theta.detach().clone()
    opt = ForwardGrad([theta], lr=0.1)
    with pytest.raises(RuntimeError, match=r"^closure: expected operations with forward-mode derivatives"):
        opt.step(lambda: NoForward.apply(theta * 1.0).sum())
    with pytest.raises(TypeError, match=r"^closure: expected a loss computed from the parameters"):
        opt.step(lambda: torch.tensor(1.0))
    with pytest.raises(TypeError, match=r"^closure: expected a real scalar loss"):
        opt.step(lambda: closure().item())
    for option in ("eps", "restore", "one_sided", "blocks"):
        with pytest.raises(TypeError, match=f"unexpected keyword argument '{option}'"):
            ForwardGrad([theta], **{option: None})
    assert torch.equal(theta, before)
    assert isinstance(theta, nn.Parameter)
