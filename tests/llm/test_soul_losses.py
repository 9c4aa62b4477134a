"""Every unlearning loss against closed forms: values, gradients, the linear path against the dense one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tenfold.llm.unlearn import logit_losses, losses
from tenfold.llm.unlearn.losses import Head, labelled, score

Z = torch.tensor(
    [[[1, 2, 0, -1], [0, 0.5, 1, 2], [9, 9, 9, 9]], [[2, -1, 0, 1], [1, 1, 1, 1], [9, 9, 9, 9]]],
    dtype=torch.float64,
)
ZR = torch.tensor([[[0.0] * 4] * 3, [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]], dtype=torch.float64)
LABELS = torch.tensor([[-100, 1, 3], [-100, 0, -100]])
SREF = torch.tensor([2.7725887222, 0.7436683806], dtype=torch.float64)

CASES: dict[str, tuple[Callable[[Tensor], Tensor], float, float]] = {
    "ga": (lambda z: logit_losses.ga(z, LABELS), -0.4754619290, 0.2642284110),
    "npo": (
        lambda z: logit_losses.npo(z, LABELS, logit_losses.sequence_nll(ZR, LABELS)),
        14.9488675215,
        0.4229357217,
    ),
    "simnpo": (lambda z: logit_losses.simnpo(z, LABELS), 0.0516532454, 0.0621685843),
    "wga": (lambda z: logit_losses.wga(z, LABELS), -0.2943892356, 0.1636838173),
    "satimp": (lambda z: logit_losses.satimp(z, LABELS), -0.0165616666, 0.0093087844),
    "kl": (lambda z: logit_losses.kl(z, ZR.to(z), LABELS), 0.3532539326, 0.2219885738),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", CASES)
def test_values_and_gradient_norms(name: str, dtype: torch.dtype) -> None:
    loss, value, norm = CASES[name]
    z = Z.detach().clone().to(dtype).requires_grad_()
    found = loss(z)
    (gradient,) = torch.autograd.grad(found, z)
    tolerance = 1e-9 if dtype == torch.float64 else 1e-5
    assert float(found.detach()) == pytest.approx(value, abs=tolerance, rel=tolerance)
    assert float(gradient.norm()) == pytest.approx(norm, abs=tolerance, rel=tolerance)


def test_sequence_sums() -> None:
    torch.testing.assert_close(
        logit_losses.sequence_nll(Z, LABELS),
        torch.tensor([0.9861960885, 0.4401896986], dtype=torch.float64),
        atol=1e-9,
        rtol=0,
    )
    torch.testing.assert_close(logit_losses.sequence_nll(ZR, LABELS), SREF, atol=1e-9, rtol=0)


def test_npo_gradient_of_a_row() -> None:
    z = Z.detach().clone().requires_grad_()
    logit_losses.npo(z, LABELS, SREF).backward()
    assert z.grad is not None
    expected = torch.tensor([-0.128992508, 0.193903438, -0.047453692, -0.017457238], dtype=torch.float64)
    torch.testing.assert_close(z.grad[0, 0], expected, atol=1e-9, rtol=0)


def test_kl_over_all_rows_is_the_other_codes_number() -> None:
    assert float(logit_losses.kl(Z, ZR, LABELS, rows="all")) == pytest.approx(0.1962924441, abs=1e-9)


def test_souls_kl_does_not_vanish_at_equal_models() -> None:
    torch.manual_seed(0)
    z = torch.randn(2, 3, 11, dtype=torch.float64, requires_grad=True)
    for loss, vanishes in ((logit_losses.soul_kl(z, z), False), (logit_losses.kl(z, z, WIDE[1]), True)):
        (gradient,) = torch.autograd.grad(loss, z)
        assert (float(gradient.norm()) < 1e-12) == vanishes


# -- the linear path against the dense one -------------------------------------------------------------------

_GENERATOR = torch.Generator().manual_seed(3)
HIDDEN, REF_HIDDEN = (torch.randn(3, 7, 8, generator=_GENERATOR) for _ in range(2))
WEIGHT, REF_WEIGHT = (torch.randn(29, 8, generator=_GENERATOR) for _ in range(2))
LONG = torch.randint(0, 29, (3, 7), generator=_GENERATOR)
LONG[0, :3] = LONG[1, :1] = LONG[2, 5:] = -100
WIDE = (HIDDEN, torch.tensor([[-100, 1, 3], [-100, 0, -100]]))
BEFORE = torch.tensor([9.0, 30.0, 12.0])


def _rows(hidden: Tensor) -> losses.Rows:
    return labelled(hidden, LONG)


BOTH: dict[str, tuple[Callable[[Tensor, Head], Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
    "nll": (lambda h, w: losses.nll(score(_rows(h), w)), lambda z, r: logit_losses.nll(z, LONG)),
    "ga": (lambda h, w: losses.ga(score(_rows(h), w)), lambda z, r: logit_losses.ga(z, LONG)),
    "npo": (
        lambda h, w: losses.npo(score(_rows(h), w), BEFORE),
        lambda z, r: logit_losses.npo(z, LONG, BEFORE),
    ),
    "npo of the batch": (
        lambda h, w: losses.npo(score(_rows(h), w), BEFORE.mean(), per="batch"),
        lambda z, r: logit_losses.npo(z, LONG, BEFORE.mean(), per="batch"),
    ),
    "dpo": (
        lambda h, w: losses.dpo(
            score(_rows(h), w), score(labelled(h.flip(0), LONG), w), BEFORE, BEFORE.flip(0)
        ),
        lambda z, r: logit_losses.dpo(z, LONG, z.flip(0), LONG, BEFORE, BEFORE.flip(0)),
    ),
    "simnpo": (lambda h, w: losses.simnpo(score(_rows(h), w)), lambda z, r: logit_losses.simnpo(z, LONG)),
    "wga": (lambda h, w: losses.wga(score(_rows(h), w)), lambda z, r: logit_losses.wga(z, LONG)),
    "satimp": (lambda h, w: losses.satimp(score(_rows(h), w)), lambda z, r: logit_losses.satimp(z, LONG)),
    "kl": (
        lambda h, w: losses.kl(_rows(h), w, _rows(REF_HIDDEN.to(h)).hidden, Head(REF_WEIGHT.to(h))),
        lambda z, r: logit_losses.kl(z, r, LONG),
    ),
    "reverse kl": (
        lambda h, w: losses.kl(
            _rows(h), w, _rows(REF_HIDDEN.to(h)).hidden, Head(REF_WEIGHT.to(h)), direction="reverse"
        ),
        lambda z, r: logit_losses.kl(z, r, LONG, direction="reverse"),
    ),
    "undial": (
        lambda h, w: losses.undial(_rows(h), w, _rows(REF_HIDDEN.to(h)).hidden, Head(REF_WEIGHT.to(h))),
        lambda z, r: logit_losses.undial(z, r, LONG),
    ),
    "ceu": (
        lambda h, w: losses.ceu(labelled(h, losses.skip_first(LONG, 1)), w),
        lambda z, r: logit_losses.ceu(z, LONG),
    ),
    "margin": (lambda h, w: losses.margin(_rows(h), w), lambda z, r: logit_losses.margin(z, LONG)),
}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-3)])
@pytest.mark.parametrize("name", BOTH)
def test_from_hidden_states_as_from_logits(name: str, dtype: torch.dtype, tolerance: float) -> None:
    linear, dense = BOTH[name]
    hidden, weight = (t.to(dtype).requires_grad_() for t in (HIDDEN.clone(), WEIGHT.clone()))
    found = linear(hidden, Head(weight))
    wide = [t.detach().double().requires_grad_() for t in (hidden, weight)]
    ref = REF_HIDDEN.to(dtype).double() @ REF_WEIGHT.to(dtype).double().T
    expected = dense(wide[0] @ wide[1].T, ref)
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=tolerance, abs=tolerance)
    gradients = torch.autograd.grad(found, (hidden, weight))
    oracle = torch.autograd.grad(expected, wide)
    rounding = 2.0**-7 if dtype == torch.bfloat16 else 1e-5  # a stored bfloat16 gradient has 8 bits
    for got, want in zip(gradients, oracle, strict=True):
        assert float((got.double() - want).norm()) <= rounding * float(want.norm())


@pytest.mark.parametrize("name", ["nll", "kl", "undial", "ceu", "margin"])
def test_the_bias_of_the_unembedding_counts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of Phi; the reference has the same one."""
    linear, dense = BOTH[name]
    bias = torch.linspace(-2, 2, 29)
    monkeypatch.setitem(globals(), "Head", lambda weight: losses.Head(weight, bias.to(weight)))
    found = linear(HIDDEN, Head(WEIGHT))
    expected = dense(HIDDEN @ WEIGHT.T + bias, REF_HIDDEN @ REF_WEIGHT.T + bias)
    torch.testing.assert_close(found, expected)


def test_labels_are_shifted_and_the_first_of_a_sequence_is_not_predicted() -> None:
    rows = labelled(HIDDEN, LONG)
    where = [(b, t) for b in range(3) for t in range(6) if LONG[b, t + 1] != -100]
    assert torch.equal(rows.hidden, torch.stack([HIDDEN[b, t] for b, t in where]))
    assert rows.targets.tolist() == [int(LONG[b, t + 1]) for b, t in where]
    assert rows.sequence.tolist() == [b for b, _ in where]
    with pytest.raises(ValueError, match=r"labels: expected shape \(3, 7\)"):
        labelled(HIDDEN, LONG[:, :5])


def test_a_batch_without_labels_has_loss_and_gradient_zero() -> None:
    hidden = HIDDEN.clone().requires_grad_()
    none = torch.full_like(LONG, -100)
    for make in (losses.nll, losses.ga, losses.wga, losses.satimp):
        loss = make(score(labelled(hidden, none), Head(WEIGHT)))
        assert float(loss.detach()) == 0
        assert not torch.autograd.grad(loss, hidden)[0].any()


def test_activation_distance_averages_each_sequence_by_its_own_length() -> None:
    """With counts [B, 1] the quotient is [B, B], and sequences are divided by each other's lengths."""
    by_hand = []
    for b in range(3):
        at = [t for t in range(7) if LONG[b, t] != -100]
        by_hand.append(sum(float((HIDDEN[b, t] - 0.5).square().mean()) for t in at) / len(at))
    target = torch.full((8,), 0.5)
    found = losses.activation(HIDDEN, target, LONG)
    assert float(found) == pytest.approx(sum(by_hand) / 3, rel=1e-6)
    where = LONG != -100
    summed = ((HIDDEN - 0.5).square().mean(-1) * where).sum(1)
    assert abs(float((summed / where.sum(-1, keepdim=True)).mean()) - float(found)) > 1e-3


@pytest.mark.parametrize("name", ["kl", "reverse kl", "undial", "ceu"])
def test_a_token_that_is_ruled_out_changes_nothing(name: str) -> None:
    """A logit of -inf, as masked vocabularies have them: losses and gradients are those without the token."""
    loss: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "kl": lambda z, ref: logit_losses.kl(z, ref, LABELS),
        "reverse kl": lambda z, ref: logit_losses.kl(z, ref, LABELS, direction="reverse"),
        "undial": lambda z, ref: logit_losses.undial(z, ref, LABELS),
        "ceu": lambda z, ref: logit_losses.ceu(z, LABELS, skip=0),
    }
    out = torch.full((2, 3, 1), -torch.inf, dtype=torch.float64)
    z, longer = Z.clone().requires_grad_(), torch.cat([Z, out], -1).requires_grad_()
    want, found = loss[name](z, ZR), loss[name](longer, torch.cat([ZR, out], -1))
    want.backward()
    found.backward()
    assert z.grad is not None
    assert longer.grad is not None
    torch.testing.assert_close(found, want)
    torch.testing.assert_close(longer.grad[..., :-1], z.grad)
    assert not longer.grad[..., -1].any()


def test_control_vector_has_the_length_asked_for_and_no_negative_entry() -> None:
    vector = losses.control_vector(64, coefficient=20.0, seed=1)
    assert float(vector.norm()) == pytest.approx(20, rel=1e-6)
    assert float(vector.min()) >= 0
    assert not torch.equal(vector, losses.control_vector(64, coefficient=20.0, seed=2))


def test_the_dual_weight_grows_while_the_bound_is_broken_and_stays_above_zero() -> None:
    assert losses.dual_step(1.0, 0.7, bound=0.5, step_size=2.0) == pytest.approx(1.4)
    assert losses.dual_step(0.1, 0.0, bound=0.5) == 0.0


def test_ramp() -> None:
    assert [losses.ramp(2.0, epoch, 4) for epoch in (0, 1, 4, 9)] == [0.0, 0.5, 2.0, 2.0]


def test_wrong_arguments_are_named() -> None:
    tokens = score(labelled(HIDDEN, LONG), Head(WEIGHT))
    with pytest.raises(ValueError, match=r"ref_nll: expected shape \(3,\), got \(2,\)"):
        losses.npo(tokens, BEFORE[:2])
    with pytest.raises(ValueError, match="per: expected"):
        losses.npo(tokens, BEFORE, per="token")
    with pytest.raises(ValueError, match="direction: expected"):
        logit_losses.kl(HIDDEN, HIDDEN, LONG, direction="up")
    with pytest.raises(ValueError, match="soft cap"):
        losses.ceu(labelled(HIDDEN, LONG), Head(WEIGHT, softcap=30.0))


def test_keeping_logits_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(500, 16, generator=generator)
    targets = torch.randint(0, 500, (12,), generator=generator)
    start = torch.randn(12, 16, generator=generator)
    found = []
    for limit in (1 << 20, 0):
        monkeypatch.setattr(losses, "KEPT_LOGITS", limit)
        hidden = start.clone().requires_grad_(True)
        rows = losses.Rows(hidden, targets, torch.zeros(12, dtype=torch.int64), 1)
        assert losses._keeps_logits(hidden, Head(weight)) == (limit > 0)
        value = losses.nll(losses.score(rows, Head(weight)))
        value.backward()
        found.append((value.detach(), hidden.grad))
    assert torch.equal(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        assert not losses._keeps_logits(start, Head(weight))
