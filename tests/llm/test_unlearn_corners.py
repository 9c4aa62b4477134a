"""Batches with nothing to predict, sequences without a label, and a vocabulary of 256,000, in every loss."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tenfold import ops
from tenfold.llm.unlearn import fused, logit_losses, losses, methods
from tenfold.llm.unlearn.losses import Head, Rows, labelled, score

_GENERATOR = torch.Generator().manual_seed(3)
HIDDEN, REF = (torch.randn(3, 7, 8, generator=_GENERATOR) for _ in range(2))
WEIGHT = torch.randn(29, 8, generator=_GENERATOR)
LABELS = torch.randint(0, 29, (3, 7), generator=_GENERATOR)
LABELS[1] = -100  # a sequence without a label
LABELS[0, :3] = -100
BEFORE = torch.tensor([9.0, 0.0, 12.0])
NONE = torch.full_like(LABELS, -100)

MEANS: dict[str, Callable[[Rows, Head, Rows], Tensor]] = {
    "nll": lambda rows, head, ref: losses.nll(score(rows, head)),
    "ga": lambda rows, head, ref: losses.ga(score(rows, head)),
    "wga": lambda rows, head, ref: losses.wga(score(rows, head)),
    "satimp": lambda rows, head, ref: losses.satimp(score(rows, head)),
    "kl": lambda rows, head, ref: losses.kl(rows, head, ref.hidden, head),
    "undial": lambda rows, head, ref: losses.undial(rows, head, ref.hidden, head),
    "ceu": lambda rows, head, ref: losses.ceu(rows, head),
    "margin": lambda rows, head, ref: losses.margin(rows, head),
    "topk_kl": lambda rows, head, ref: losses.topk_kl(rows, head, kept(ref, head)),
    "topk_undial": lambda rows, head, ref: losses.topk_undial(rows, head, kept(ref, head)),
}
SEQUENCES: dict[str, Callable[[losses.Tokens], Tensor]] = {
    "npo": lambda tokens: losses.npo(tokens, BEFORE),
    "dpo": lambda tokens: losses.dpo(tokens, tokens, BEFORE, BEFORE.flip(0)),
    "simnpo": lambda tokens: losses.simnpo(tokens),
}


def kept(ref: Rows, head: Head) -> ops.TopK:
    return ops.linear_topk(ref.hidden, head.weight.detach(), 5, targets=ref.targets)


@pytest.mark.parametrize("name", MEANS)
def test_a_batch_without_labels_has_loss_and_gradient_zero(name: str) -> None:
    hidden, weight = HIDDEN.clone().requires_grad_(), WEIGHT.clone().requires_grad_()
    loss = MEANS[name](labelled(hidden, NONE), Head(weight), labelled(REF, NONE))
    assert float(loss.detach()) == 0
    assert not any(g.any() for g in torch.autograd.grad(loss, (hidden, weight)))


@pytest.mark.parametrize("name", MEANS)
def test_a_sequence_without_labels_changes_no_mean_over_tokens(name: str) -> None:
    both, alone = (MEANS[name](labelled(h, y), Head(WEIGHT), labelled(r, y)) for h, y, r in (
        (HIDDEN, LABELS, REF), (HIDDEN[[0, 2]], LABELS[[0, 2]], REF[[0, 2]]),
    ))  # fmt: skip
    torch.testing.assert_close(both, alone)
    assert float(both) != 0


@pytest.mark.parametrize("name", SEQUENCES)
def test_a_sequence_without_labels_counts_with_nothing(name: str) -> None:
    for labels in (LABELS, NONE):
        hidden = HIDDEN.clone().requires_grad_()
        loss = SEQUENCES[name](score(labelled(hidden, labels), Head(WEIGHT)))
        dense = SEQUENCES[name](logit_losses.score(hidden.double() @ WEIGHT.double().T, labels))
        torch.testing.assert_close(loss.detach(), dense.detach().float(), rtol=1e-5, atol=1e-5)
        (slope,) = torch.autograd.grad(loss, hidden)
        assert slope.isfinite().all()
        assert not slope[1].any()


@pytest.mark.parametrize("name", fused.FUSED)
def test_both_terms_at_once_with_empty_sequences_and_batches(name: str) -> None:
    options = methods.METHODS[name].defaults
    ref = BEFORE if name == "npo" else None
    for forget, retain in ((LABELS, NONE), (NONE, LABELS), (NONE, NONE), (LABELS, None)):
        hidden = HIDDEN.clone().requires_grad_()
        kept_rows = None if retain is None else labelled(hidden, retain)
        found, parts = fused.loss(
            name, options, labelled(hidden, forget), kept_rows, Head(WEIGHT), ref_nll=ref, gamma=0.5
        )
        total = parts["forget"] + 0.5 * parts.get("retain", 0.0)
        assert float(found.detach()) == pytest.approx(total, rel=1e-5, abs=1e-6)
        (slope,) = torch.autograd.grad(found, hidden)
        assert slope.isfinite().all()
        assert slope.any() == (forget is LABELS or retain is LABELS)


@pytest.mark.parametrize("name", [*MEANS, *SEQUENCES])
def test_a_vocabulary_of_256000(name: str) -> None:
    """Against all logits in float64; tokens at both ends of the vocabulary."""
    size = 256_000
    generator = torch.Generator().manual_seed(0)
    hidden, ref = (torch.randn(3, 2, 4, generator=generator) for _ in range(2))
    weight = torch.randn(size, 4, generator=generator)
    labels = torch.tensor([[-100, size - 1], [-100, 0], [-100, 131_072]])
    h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    wide = [t.double().requires_grad_() for t in (hidden, weight)]
    rows, ref_rows = labelled(h, labels), labelled(ref, labels)
    z, zr = wide[0] @ wide[1].T, ref.double() @ weight.double().T
    if name in SEQUENCES:
        loss, expected = SEQUENCES[name](score(rows, Head(w))), SEQUENCES[name](logit_losses.score(z, labels))
    elif name.startswith("topk"):
        k = 2000
        top = ops.linear_topk(ref_rows.hidden, weight, k, targets=ref_rows.targets)
        short = losses.topk_kl if name == "topk_kl" else losses.topk_undial
        loss, expected = short(rows, Head(w), top), short(labelled(wide[0], labels), Head(wide[1]), top)
    else:
        # the reference's own head is not trained
        head, before = Head(w), Head(weight)
        loss = {
            "kl": lambda: losses.kl(rows, head, ref_rows.hidden, before),
            "undial": lambda: losses.undial(rows, head, ref_rows.hidden, before),
        }.get(name, lambda: MEANS[name](rows, head, ref_rows))()
        arguments = {"kl": (zr, labels), "undial": (zr, labels)}.get(name, (labels,))
        options = {"skip": 0} if name == "ceu" else {}
        expected = getattr(logit_losses, name)(z, *arguments, **options)
    assert math.isfinite(float(loss.detach()))
    torch.testing.assert_close(loss.detach().double(), expected.detach(), rtol=2e-5, atol=1e-6)
    found, wanted = torch.autograd.grad(loss, (h, w)), torch.autograd.grad(expected, wide)
    for a, b in zip(found, wanted, strict=True):
        # float32 products over 256,000 terms: some libraries lose 1.2e-4
        assert float((a.double() - b).norm()) <= 4e-4 * float(b.norm())
