"""Sophia's estimates of curvature against closed forms."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))

from sophia_cases import batch, causal_batch, causal_model, loss_on, network, same_bits, weights

from tenfold.optim import Sophia, SophiaH

ROWS, WIDTH, WORDS = 16, 5, 7


def softmax_regression() -> tuple[nn.Linear, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    model = nn.Linear(WIDTH, WORDS, bias=False)
    model.weight.data.copy_(0.5 * torch.randn(WORDS, WIDTH, generator=generator))
    return model, torch.randn(ROWS, WIDTH, generator=generator), torch.zeros(ROWS, dtype=torch.int64)


def gauss_newton(model: nn.Linear, x: Tensor) -> Tensor:
    """Diagonal of the Gauss-Newton matrix of the mean cross-entropy: mean_b x_bj^2 p_bv (1 - p_bv)."""
    p = model(x).softmax(-1).detach()
    return (p * (1 - p)).T @ x.square() / x.shape[0]


def estimate(opt: Sophia, p: Tensor, beta2: float = 0.0) -> Tensor:
    """h^ itself: with beta2 = 0 the curvature is the last estimate."""
    assert opt.param_groups[0]["betas"][1] == beta2
    return opt.state[p]["hessian"]


def test_gnb_is_the_diagonal_of_the_gauss_newton_matrix_on_average() -> None:
    model, x, y = softmax_regression()
    opt = Sophia(model.parameters(), betas=(0.9, 0.0))
    draws = []
    for _ in range(1500):  # each refresh has its own seed
        assert opt.estimate_hessian(model, [(x, y)]) == ROWS
        draws.append(estimate(opt, model.weight).clone())
    found = torch.stack(draws)
    error = (found.mean(0) - gauss_newton(model, x)).abs()
    assert (error <= 4.5 * found.std(0) / len(draws) ** 0.5).all()
    assert (found >= 0).all()
    assert len({float(d.sum()) for d in draws[:20]}) == 20


def test_gnb_accumulates_before_it_squares() -> None:
    """Of two batches it is the sum of gradients that is squared: B g^2 with B of both."""
    model, x, y = softmax_regression()
    opt = Sophia(model.parameters(), betas=(0.9, 0.0), seed=4)
    grads = []

    def predict(model: nn.Module, batch: Any) -> Tensor:
        return model(batch[0])

    hook = model.weight.register_hook(lambda g: grads.append(g.clone()))
    assert opt.estimate_hessian(model, [(x[:4], y[:4]), (x[4:], y[4:])], predict=predict) == ROWS
    hook.remove()
    total = 1024 * (grads[0] + grads[1])
    assert torch.allclose(estimate(opt, model.weight), total.square() / ROWS, rtol=1e-5)
    assert not torch.allclose((1024 * grads[0]).square() / ROWS, total.square() / ROWS, rtol=0.2)


def test_masked_positions_are_not_sampled() -> None:
    model, x, y = softmax_regression()
    half = y.clone()
    half[8:] = -100
    results = []
    for rows, labels in ((x, half), (torch.cat([x[:8], 1e6 * x[8:]]), half)):
        opt = Sophia(model.parameters(), betas=(0.9, 0.0))
        assert opt.estimate_hessian(model, [(rows, labels)]) == 8
        results.append(estimate(opt, model.weight))
    assert torch.equal(*results)


def test_in_the_authors_form_the_curvature_does_not_hold_b() -> None:
    model, x, y = softmax_regression()
    found = {}
    for mode in ("paper", "liuhong99"):
        opt = Sophia(model.parameters(), betas=(0.9, 0.0), mode=mode, lr=1e-3)
        opt.estimate_hessian(model, [(x, y)])
        found[mode] = estimate(opt, model.weight)
    assert torch.allclose(found["paper"], ROWS * found["liuhong99"], rtol=1e-6)
    assert opt.param_groups[0]["measured_bs"] == ROWS  # and steps multiply by it


@pytest.mark.parametrize("estimator", ["gnb", "hutchinson", "empirical_fisher"])
def test_gradients_are_left_as_they_were(estimator: str) -> None:
    model = network()
    opt = Sophia(model.parameters())
    loss_on(model, 0).backward()
    model[3].bias.grad = None
    kept = [p.grad for p in model.parameters()]
    values = [None if g is None else g.clone() for g in kept]
    before = weights(model)
    opt.estimate_hessian(model, [batch(1), batch(2)], estimator=estimator)
    for p, grad, value in zip(model.parameters(), kept, values, strict=True):
        assert p.grad is grad
        assert grad is None or torch.equal(grad, value)
    assert same_bits(weights(model), before)

    def broken(model: nn.Module, batch: Any) -> Tensor:
        loss_on(model, 3).backward()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        opt.estimate_hessian(model, [batch(0)], predict=broken, loss=broken, estimator=estimator)
    assert [p.grad for p in model.parameters()] == kept or all(
        p.grad is g for p, g in zip(model.parameters(), kept, strict=True)
    )


def test_clipping_the_sampled_gradient_is_off_unless_asked_for() -> None:
    model, x, y = softmax_regression()
    found = []
    for max_norm in (None, 1e-3):
        opt = Sophia(model.parameters(), betas=(0.9, 0.0))
        opt.estimate_hessian(model, [(x, y)], max_norm=max_norm)
        found.append(float(estimate(opt, model.weight).sum()))  # B |g|^2
    assert found[0] > 10 * ROWS * 1e-6
    assert found[1] == pytest.approx(ROWS * 1e-6, rel=1e-2)


def test_an_estimate_that_is_not_finite_is_dropped() -> None:
    model, x, y = softmax_regression()
    opt = Sophia(model.parameters())
    opt.estimate_hessian(model, [(x, y)])
    kept = opt.state[model.weight]["hessian"].clone()
    with torch.no_grad():
        x = x.clone()
        x[0, 0] = float("inf")
    for estimator in ("gnb", "empirical_fisher"):
        opt.estimate_hessian(model, [(x, y)], estimator=estimator)
        assert torch.equal(opt.state[model.weight]["hessian"], kept)
    assert opt.stats()["skipped_refreshes"] == 2


# -- Hutchinson -------------------------------------------------------------------------------------------

MATRIX = ((2.0, -1.0), (-1.0, 3.0))


def test_a_sign_probe_of_a_two_by_two_quadratic_gives_one_of_two_answers() -> None:
    p = nn.Parameter(torch.tensor([0.3, -0.2]))
    model = nn.Module()
    model.p = p
    matrix = torch.tensor(MATRIX)
    opt = SophiaH([p], betas=(0.9, 0.0))
    seen = []
    for _ in range(200):
        opt.estimate_hessian(model, [0], loss=lambda m, b: 0.5 * m.p @ matrix @ m.p)
        seen.append(tuple(opt.state[p]["hessian"].tolist()))
    assert set(seen) == {(1.0, 2.0), (3.0, 4.0)}
    assert 70 <= seen.count((1.0, 2.0)) <= 130
    opt.estimate_hessian(model, [0], loss=lambda m, b: 0.5 * m.p @ matrix @ m.p, probes=400)
    assert opt.state[p]["hessian"].tolist() == pytest.approx([2.0, 3.0], abs=0.2)


def test_hutchinson_is_the_diagonal_of_the_hessian_on_average() -> None:
    model = network(torch.float64)
    x, y = batch(0)
    x = x.double()
    opt = SophiaH(model.parameters(), betas=(0.9, 0.0))
    opt.estimate_hessian(
        model, [(x, y)], probes=600, loss=lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1])
    )
    bias = model[3].bias
    loss = nn.functional.cross_entropy(model(x), y)
    (grad,) = torch.autograd.grad(loss, [bias], create_graph=True)
    exact = torch.stack([torch.autograd.grad(g, bias, retain_graph=True)[0][i] for i, g in enumerate(grad)])
    assert torch.allclose(opt.state[bias]["hessian"], exact, atol=0.04)
    assert (exact > 0.02).all()


def test_empirical_fisher_squares_each_batch_of_true_labels() -> None:
    model = network(torch.float64)
    data = [(x.double(), y) for x, y in (batch(0, 4), batch(1, 12))]
    opt = Sophia(model.parameters(), betas=(0.9, 0.0), mode="empirical_fisher")
    assert opt.estimator == "empirical_fisher"
    assert opt.estimate_hessian(model, data) == 16
    wanted: Any = 0.0
    for x, y in data:
        loss = nn.functional.cross_entropy(model(x).float(), y)
        wanted = wanted + len(y) * torch.autograd.grad(loss, model[0].weight)[0].square() / 2
    assert torch.allclose(opt.state[model[0].weight]["hessian"], wanted, rtol=1e-6)


# -- causal language models -------------------------------------------------------------------------------


def test_hidden_states_and_logits_give_the_same_curvature() -> None:
    pytest.importorskip("transformers")
    model = causal_model()
    data = [causal_batch(0), causal_batch(1)]
    calls = []
    hook = model.lm_head.register_forward_pre_hook(lambda module, args: calls.append(args[0].shape))
    slow = Sophia(model.parameters(), betas=(0.9, 0.0))
    from tenfold.optim import _predictions

    fast = Sophia(model.parameters(), betas=(0.9, 0.0))
    assert fast.estimate_hessian(model, data) == 2 * 2 * 5
    hook.remove()
    plain = _predictions._plain
    try:
        _predictions._plain = lambda head: False
        assert slow.estimate_hessian(model, data) == 20
    finally:
        _predictions._plain = plain
    for p in model.parameters():
        assert torch.allclose(fast.state[p]["hessian"], slow.state[p]["hessian"], rtol=1e-3, atol=1e-7)
    assert float(fast.state[model.lm_head.weight]["hessian"].sum()) > 0
    assert "forward" not in model.lm_head.__dict__
    assert len(calls) == 3  # two batches, and the look at what follows the head


def test_logits_are_not_made_where_the_head_is_plain() -> None:
    pytest.importorskip("transformers")
    model = causal_model()
    opt = Sophia(model.parameters())
    opt.estimate_hessian(model, [causal_batch(0)])
    sizes = []
    hook = model.register_forward_hook(lambda module, args, kwargs, out: sizes.append(out.logits.shape[-1]),
                                       with_kwargs=True)  # fmt: skip
    opt.estimate_hessian(model, [causal_batch(0)])
    hook.remove()
    assert sizes == [1]


def test_a_soft_cap_behind_the_head_is_respected() -> None:
    pytest.importorskip("transformers")
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    model = Gemma2ForCausalLM(
        Gemma2Config(
            vocab_size=31, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=1, head_dim=8, final_logit_softcapping=0.5, sliding_window=16,
        )
    ).eval()  # fmt: skip
    opt = Sophia(model.parameters(), betas=(0.9, 0.0))
    opt.estimate_hessian(model, [causal_batch(0)])
    wanted = Sophia(model.parameters(), betas=(0.9, 0.0))

    def predict(model: nn.Module, batch: Any) -> Any:
        mask = torch.zeros_like(batch["labels"], dtype=torch.bool)
        mask[:, :-1] = batch["labels"][:, 1:] != -100
        return model(batch["input_ids"]).logits[mask]

    wanted.estimate_hessian(model, [causal_batch(0)], predict=predict)
    for p in model.parameters():
        assert torch.allclose(opt.state[p]["hessian"], wanted.state[p]["hessian"], rtol=1e-4, atol=1e-9)


def test_padding_counts_where_there_are_no_labels() -> None:
    pytest.importorskip("transformers")
    model = causal_model()
    data = causal_batch(0)
    del data["labels"]
    data["attention_mask"][0, :3] = 0
    assert Sophia(model.parameters()).estimate_hessian(model, [data]) == 3 + 6


def test_only_trainable_parameters_have_curvature() -> None:
    pytest.importorskip("transformers")
    model = causal_model(tie_word_embeddings=True)
    for name, p in model.named_parameters():
        p.requires_grad_("q_proj" in name or "embed" in name)
    trainable = [p for p in model.parameters() if p.requires_grad]
    opt = Sophia(trainable)
    opt.estimate_hessian(model, [causal_batch(0)])
    assert set(opt.state) == set(trainable)
    for estimator in ("hutchinson", "empirical_fisher"):
        opt.estimate_hessian(model, [causal_batch(0)], estimator=estimator)
    assert all(p.grad is None for p in model.parameters())
