"""A model with a soft cap on its logits (Gemma 2, arXiv 2408.00118) through losses, curvature and runs."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from soul_tiny import make_rows
from torch import Tensor

from tenfold import ops
from tenfold.llm.unlearn import curvature, logit_losses, losses
from tenfold.llm.unlearn.objective import Objective
from tenfold.llm.unlearn.subject import Subject
from tenfold.llm.unlearn.trainer import Job, train

CAP = 1.5
FORGET, RETAIN = [1, 4, 2], [0, 3, 5]


def make_gemma() -> Any:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=64, sliding_window=32,
        query_pre_attn_scalar=8, final_logit_softcapping=CAP, attn_logit_softcapping=20.0,
        initializer_range=0.2,
        pad_token_id=0,
        attn_implementation="eager",
    )  # fmt: skip
    return Gemma2ForCausalLM(config).eval().requires_grad_(False)


def make_subject(trainable: str) -> Subject:
    subject = Subject(make_gemma(), 0, trainable)
    for seed, (name, count) in enumerate({"forget": 6, "retain": 9, "refusal": 6, "random": 6}.items()):
        subject.add(name, make_rows(count, seed))
    return subject


def model_logits(subject: Subject, name: str, chosen: list[int]) -> tuple[Tensor, Tensor]:
    """Of the model's own forward, with its cap; labels."""
    batch = subject.batch(name, chosen)
    return subject.model(input_ids=batch.ids, attention_mask=batch.mask).logits, batch.labels


DENSE = {
    "ga": lambda z, y, ref: logit_losses.ga(z, y),
    "po": lambda z, y, ref: logit_losses.nll(z, y),
    "npo": lambda z, y, ref: logit_losses.npo(z, y, ref),
    "simnpo": lambda z, y, ref: logit_losses.simnpo(z, y),
    "wga": lambda z, y, ref: logit_losses.wga(z, y),
    "satimp": lambda z, y, ref: logit_losses.satimp(z, y),
}


@pytest.mark.parametrize("trainable", ["full", "last-1"])
@pytest.mark.parametrize("method", DENSE)
def test_losses_and_gradients_are_those_of_the_models_own_logits(method: str, trainable: str) -> None:
    subject = make_subject(trainable)
    assert subject.head.softcap == CAP
    objective = Objective(subject, method, retain_loss="nll", gamma=0.5)
    with torch.no_grad():
        before, labels = model_logits(subject, "forget", FORGET)
        ref = logit_losses.sequence_nll(before, labels)
        assert float(before.abs().max()) > 0.8 * CAP  # the cap does something
        for parameter in subject.parameters.values():
            parameter += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    parameters = list(subject.parameters.values())
    loss, _ = objective.loss(FORGET, RETAIN)
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    now, labels = model_logits(subject, "refusal" if method == "po" else "forget", FORGET)
    kept = model_logits(subject, "retain", RETAIN)
    expected = DENSE[method](now, labels, ref) + 0.5 * logit_losses.nll(*kept)
    torch.testing.assert_close(loss.detach(), expected.detach(), rtol=2e-5, atol=2e-5)
    wanted = torch.autograd.grad(expected, parameters, allow_unused=True)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-3, atol=2e-5)


def test_divergences_from_kept_tokens_know_the_cap() -> None:
    subject = make_subject("last-2")
    objective = Objective(subject, "kl", topk=64)
    with torch.no_grad():
        before, labels = model_logits(subject, "retain", RETAIN)
        for parameter in subject.parameters.values():
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    _, parts = objective.loss(FORGET, RETAIN)
    now, _ = model_logits(subject, "retain", RETAIN)
    assert parts["retain"] == pytest.approx(float(logit_losses.kl(now, before, labels).detach()), rel=1e-3)
    with pytest.raises(ValueError, match=r"^kl: expected logits without a soft cap \(topk_kl"):
        Objective(subject, "kl").loss(FORGET, RETAIN)


def test_souls_kl_knows_the_cap() -> None:
    subject = make_subject("last-2")
    objective = Objective(subject, "graddiff", retain_loss="soul_kl")
    batch = subject.batch("retain", RETAIN)
    z = model_logits(subject, "retain", RETAIN)[0][batch.mask > 0]
    _, parts = objective.loss(FORGET, RETAIN)
    assert parts["retain"] == pytest.approx(float(logit_losses.soul_kl(z, z).detach()), rel=1e-4)


def test_labels_are_drawn_under_the_cap() -> None:
    """A cap near zero makes every token as likely; without it one token would be drawn always."""
    hidden = torch.full((4000, 2), 3.0, requires_grad=True)
    weight = torch.tensor([[9.0, 9.0], [0.0, 0.0], [-9.0, -9.0]])
    drawn = ops.linear_gnb_sample(hidden, weight, seed=3, softcap=0.5)
    p = torch.tensor([0.5, 0.0, -0.5]).softmax(0)
    share = torch.bincount(drawn.tokens, minlength=3) / 4000
    assert ((share - p).abs() < 5 * (p * (1 - p) / 4000).sqrt()).all()
    expected = ops.linear_logprob(hidden, weight, drawn.tokens, softcap=0.5).logp
    torch.testing.assert_close(drawn.logp, expected)
    for a, b in zip(*(torch.autograd.grad(x.sum(), [hidden]) for x in (drawn.logp, expected)), strict=True):
        torch.testing.assert_close(a, b)
    assert (ops.linear_gnb_sample(hidden, weight, seed=3).tokens == 0).all()


def test_the_sampled_gradient_is_that_of_the_capped_model() -> None:
    subject = make_subject("last-1")
    curvature.accumulate_sampled(subject, [("retain", RETAIN)], seed=7)
    found = {name: p.grad.clone() for name, p in subject.parameters.items() if p.grad is not None}
    batch = subject.batch("retain", RETAIN)
    rows = subject.labelled(batch)
    z = losses.labelled(model_logits(subject, "retain", RETAIN)[0], batch.labels).hidden
    drawn = ops.gnb_sample(z.detach(), seed=7).tokens
    head = subject.head
    again = ops.linear_gnb_sample(rows.hidden, head.weight, head.bias, seed=7, softcap=head.softcap).tokens
    assert torch.equal(drawn, again)
    loss = torch.nn.functional.cross_entropy(z, drawn, reduction="sum")
    wanted = torch.autograd.grad(loss, [subject.parameters[name] for name in found])
    for a, b in zip(found.values(), wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("optimizer", ["sophia", "sophia-h", "adamw"])
def test_a_short_run(optimizer: str) -> None:
    subject = make_subject("last-1")
    before = subject.nll("forget")[0].sum()
    job = Job(
        key="a",
        method="npo",
        optimizer=optimizer,
        lr=1e-2,
        steps=6,
        batch_size=3,
        every=2,
        schedule="constant",
    )
    history = train(subject, job)
    assert all(math.isfinite(row["loss"]) for row in history.steps)
    assert float(subject.nll("forget")[0].sum()) > float(before) + 0.5
