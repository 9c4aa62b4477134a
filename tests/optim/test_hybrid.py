"""Back-propagation through the last layers, zeroth-order steps for the rest."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from tenfold.ops import zo_sample
from tenfold.optim import ZOSGD, HybridFirstOrder, ZOAdam


def sgd(params):
    return torch.optim.SGD(params, lr=0.1)


@pytest.mark.parametrize("restore", ["arithmetic", "exact", "dual"])
@pytest.mark.parametrize("last", [1, 3])
@pytest.mark.filterwarnings("ignore::tenfold.PerformanceWarning")
def test_both_updates_are_made_at_the_same_weights(tagger, restore, last):
    model, closure = tagger()
    twin, same = tagger()
    opt = ZOSGD(
        model.parameters(), lr=1e-2, restore=restore, streams=model, hybrid=HybridFirstOrder(last, sgd)
    )
    opt.step(closure)
    same().backward()
    tail = {id(p) for layer in model.layers[-last:] for p in layer.parameters()}
    tail |= {id(p) for p in model.norm.parameters()}
    (g,) = opt.last_step.projected_grads
    for (name, _, _, _), p, q in zip(opt.named_slots(), model.parameters(), twin.parameters(), strict=True):
        stream = opt._slots[p].stream
        z = zo_sample(opt.last_step.seed, stream, 0, n=p.numel()).view(p.shape)
        expected = q.detach() - (0.1 * q.grad if id(p) in tail else 1e-2 * g * z)
        assert torch.allclose(p, expected, rtol=0, atol=1e-6), name
    assert all(p.grad is None for p in model.parameters())
    assert all(p.requires_grad for p in model.parameters())


def test_the_graph_begins_at_the_first_of_the_last_layers(tagger):
    model, closure = tagger()
    watched = []
    for index, layer in enumerate(model.layers):
        layer.register_forward_hook(
            lambda module, inputs, out, index=index: watched.append((index, out.requires_grad))
        )
    opt = ZOSGD(model.parameters(), streams=model, hybrid=HybridFirstOrder(2, sgd))
    opt.step(closure)
    assert watched[:4] == [(0, False), (1, False), (2, True), (3, True)]
    assert not any(grad for _, grad in watched[4:])


@pytest.mark.parametrize("family", ["opt", "llama", "mistral", "roberta"])
def test_it_trains_language_models(language_model, family):
    model, closure = language_model(family)
    first = closure().item()
    opt = ZOAdam(
        model.parameters(),
        lr=1e-4,
        streams=model,
        hybrid=HybridFirstOrder(1, lambda ps: torch.optim.AdamW(ps, lr=1e-2)),
    )
    for _ in range(10):
        opt.step(closure)
    assert closure().item() < first - 0.5
    chain_one = sum(p in opt._tail for p in model.parameters())
    assert 0 < chain_one < len(list(model.parameters()))


def test_gradients_that_are_not_finite_skip_both_updates(tagger):
    model, closure = tagger()
    before = copy.deepcopy(model.state_dict())
    opt = ZOSGD(model.parameters(), lr=0.1, streams=model, hybrid=HybridFirstOrder(1, sgd))
    opt.step(lambda: closure() * math.inf)
    assert opt.last_step.skipped
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_state_schedulers_and_what_cannot_be(tagger):
    model, closure = tagger()
    hybrid = HybridFirstOrder(1, lambda ps: torch.optim.Adam(ps, lr=0.01))
    opt = ZOSGD(model.parameters(), lr=0.1, streams=model, hybrid=hybrid)
    torch.optim.lr_scheduler.StepLR(opt.first_order, step_size=1)
    opt.step(closure)
    saved = opt.state_dict()
    other, same = tagger()
    other.load_state_dict(model.state_dict())
    loaded = ZOSGD(other.parameters(), streams=other, hybrid=hybrid)
    loaded.load_state_dict(saved)
    for _ in range(2):
        opt.step(closure)
        loaded.step(same)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    with pytest.raises(ValueError, match=r"^state_dict: expected a hybrid part"):
        ZOSGD(other.parameters()).load_state_dict(saved)
    with pytest.raises(ValueError, match=r"^hybrid: expected None in a replay"):
        opt.replay_step((), (0.1,), (1e-3,))
    with pytest.raises(ValueError, match=r"^hybrid: expected None: a callable"):
        opt.hyperparameters()
    with pytest.raises(ValueError, match=r"^hybrid: expected fewer layers than the 4"):
        ZOSGD(model.parameters(), streams=model, hybrid=HybridFirstOrder(4, sgd))
    with pytest.raises(ValueError, match=r"^hybrid: expected a model"):
        ZOSGD(model.parameters(), hybrid=HybridFirstOrder(1, sgd))
    with pytest.raises(ValueError, match=r"^last: expected"):
        HybridFirstOrder(0, sgd)
    with pytest.raises(TypeError, match=r"^closure: expected a loss with a gradient"):
        opt.step(lambda: 1.0)
