"""A reference kept as K tokens: values, gradients, and the error that is promised."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tenfold.kernels.logprob import rows_linear
from torch import Tensor

from tenfold.ops import TopK, linear_kl, linear_topk, linear_topk_kl

ROWS, SIZE, WIDTH = 9, 37, 5


def head(dtype: torch.dtype = torch.float64, device: Any = "cpu") -> list[Tensor]:
    g = torch.Generator().manual_seed(1)
    shapes = ((ROWS, WIDTH), (SIZE, WIDTH), (SIZE,))
    return [torch.randn(*s, generator=g).to(device, dtype).requires_grad_() for s in shapes]


def other(device: Any = "cpu") -> list[Tensor]:
    g = torch.Generator().manual_seed(2)
    return [torch.randn(*s, generator=g).double().to(device) for s in ((ROWS, 4), (SIZE, 4), (SIZE,))]


def log_softmax(h: Tensor, w: Tensor, b: Tensor, softcap: float | None) -> Tensor:
    z = h @ w.T + b
    return (z if softcap is None else softcap * torch.tanh(z / softcap)).log_softmax(1)


def dense(operands: list[Tensor], reference: TopK, softcap: float | None) -> Tensor:
    """Divergence of the K + 1 outcomes from all logits."""
    log_p = log_softmax(*operands, softcap)
    q, rest = reference.logp.double().cpu(), reference.log_rest.double().cpu()
    tokens = reference.tokens.cpu()
    loss = (q.exp() * (q - log_p.gather(1, tokens))).sum(1)
    if tokens.shape[1] == SIZE:
        return loss
    return loss + rest.exp() * (rest - log_p.scatter(1, tokens, -torch.inf).logsumexp(1))


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_the_likeliest_tokens_and_the_mass_of_the_others(backend: Any, softcap: float | None) -> None:
    h, w, b = other(backend.device)
    log_q = log_softmax(h, w, b, softcap).cpu()
    for k in (1, 5, SIZE):
        found = linear_topk(h.float(), w.float(), k, b.float(), softcap=softcap)
        expected = log_q.topk(k, dim=1)
        torch.testing.assert_close(found.logp.cpu().double(), expected.values, rtol=1e-5, atol=1e-5)
        total = found.logp.exp().sum(1) + found.log_rest.exp()
        torch.testing.assert_close(total.cpu(), torch.ones(ROWS), rtol=1e-5, atol=1e-5)
        assert (found.log_rest == -torch.inf).all() == (k == SIZE)
        assert found.tokens.dtype == torch.int64
    targets = log_q.argmin(1).to(backend.device)
    found = linear_topk(h, w, 4, b, targets=targets, softcap=softcap)
    for row in range(ROWS):
        three = log_q[row].topk(3).indices.tolist()
        assert set(found.tokens[row].tolist()) == {*three, int(targets[row])}
    own = found.tokens == targets[:, None]
    torch.testing.assert_close(found.logp.cpu()[own.cpu()].double(), log_q.amin(1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("k", [1, 6, SIZE])
def test_values_and_gradients(
    backend: Any, k: int, softcap: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows_linear, "CHUNK_BYTES", {"cpu": 4 * SIZE * 4, "cuda": 4 * SIZE * 4})
    reference = linear_topk(*other(backend.device)[:2], k, other(backend.device)[2], softcap=softcap)
    grad = torch.randn(ROWS, generator=torch.Generator().manual_seed(3))
    for dtype, tolerance in ((torch.float64, 2e-7), (torch.float32, 2e-5), (torch.bfloat16, 2e-2)):
        ours = head(dtype, backend.device)
        theirs = [t.detach().cpu().double().requires_grad_() for t in ours]
        got = linear_topk_kl(ours[0], ours[1], reference, ours[2], softcap=softcap)
        want = dense(theirs, reference, softcap)
        near = min(tolerance, 2e-5)
        torch.testing.assert_close(got.detach().cpu().double(), want.detach(), rtol=near, atol=near)
        found = torch.autograd.grad((got * grad.to(backend.device)).sum(), ours)
        expected = torch.autograd.grad((want * grad).sum(), theirs)
        for a, e in zip(found, expected, strict=True):
            torch.testing.assert_close(a.cpu().double(), e, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("k", [1, 3, 10, 30])
def test_the_error_is_the_one_that_is_promised(k: int) -> None:
    """The value lacks r KL(rest || rest); the gradient by the logits is off by at most 2 r in the 1-norm."""
    h, w, b = (t.detach() for t in head())
    rh, rw, rb = other()
    log_q, log_p = log_softmax(rh, rw, rb, None), log_softmax(h, w, b, None)
    kept = linear_topk(rh, rw, k, rb)
    r = kept.log_rest.double().exp()
    outside = torch.ones(ROWS, SIZE, dtype=torch.bool).scatter(1, kept.tokens, False)
    rests = [torch.where(outside, x, -torch.inf).log_softmax(1) for x in (log_q, log_p)]
    missing = r * torch.where(outside, rests[0].exp() * (rests[0] - rests[1]), 0.0).sum(1)
    full = linear_kl(h, w, rh, rw, bias=b, ref_bias=rb)
    coarse = linear_topk_kl(h, w, kept, b)
    torch.testing.assert_close(full - coarse, missing, rtol=1e-6, atol=1e-7)
    assert (coarse <= full + 1e-7).all()
    assert (missing > 1e-4).any()
    # the gradient by the logits: an identity as the head
    z = (h @ w.T + b).requires_grad_()
    one = torch.eye(SIZE, dtype=torch.float64)
    (slope,) = torch.autograd.grad(linear_topk_kl(z, one, kept).sum(), [z])
    off = (slope - (log_p.exp() - log_q.exp())).abs().sum(1)
    assert (off <= 2 * r + 1e-6).all()
    assert (off > 1e-3 * r).any()


def test_no_divergence_and_no_gradient_where_nothing_changed(backend: Any) -> None:
    h, w, b = head(torch.float32, backend.device)
    kept = linear_topk(h.detach(), w.detach(), 7, b.detach())
    loss = linear_topk_kl(h, w, kept, b)
    assert loss.detach().abs().max() < 1e-6
    assert all(g.abs().max() < 1e-5 for g in torch.autograd.grad(loss.sum(), [h, w, b]))


def test_a_second_derivative_is_refused_not_zero() -> None:
    h, w, b = head()
    loss = linear_topk_kl(h, w, linear_topk(h.detach(), w.detach(), 7), b)
    (first,) = torch.autograd.grad(loss.sum(), [h], create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated once, not twice"):
        torch.autograd.grad(first.sum() + h.sum(), [h])


def test_rows_left_out_and_no_rows(backend: Any) -> None:
    h, w, b = head(torch.float32, backend.device)
    kept = linear_topk(*(t.float() for t in other(backend.device)[:2]), 5)
    kept.tokens[[0, 4], 0] = -100
    loss = linear_topk_kl(h, w, kept, b)
    assert (loss[[0, 4]] == 0).all()
    (slope,) = torch.autograd.grad(loss.sum(), [h])
    assert (slope[[0, 4]] == 0).all()
    assert (slope[1] != 0).any()
    nothing = linear_topk(h[:0].detach(), w.detach(), 5)
    assert [t.shape for t in nothing] == [(0, 5), (0, 5), (0,)]
    (slope,) = torch.autograd.grad(linear_topk_kl(h[:0], w, nothing, b).sum(), [w])
    assert (slope == 0).all()


def test_logits_of_minus_infinity() -> None:
    """Tokens that the model or the reference rules out."""
    h = torch.ones(1, 1)
    w = torch.zeros(5, 1)
    ruled_out = torch.tensor([0.0, 0.0, -torch.inf, -torch.inf, -torch.inf])
    kept = linear_topk(h, w, 2, ruled_out)
    assert kept.log_rest.item() == -torch.inf
    assert linear_topk_kl(h, w, kept, ruled_out).item() == pytest.approx(0.0, abs=1e-7)
    assert linear_topk_kl(h, w, kept).item() == pytest.approx(torch.tensor(2.5).log().item(), rel=1e-6)
    kept = linear_topk(h, w, 2)  # mass 3/5 where the model has none
    assert (
        linear_topk_kl(h, w, TopK(torch.tensor([[0, 1]]), kept.logp, kept.log_rest), ruled_out).item()
        == torch.inf
    )


@pytest.mark.filterwarnings("ignore")
def test_opcheck() -> None:
    h, w, b = head(torch.float32)
    kept = linear_topk(*(t.float() for t in other()[:2]), 5)
    ops, check = torch.ops.tenfold, torch.library.opcheck
    check(ops.linear_topk_kl.default, (h, w, b, *kept, 3.0))
    sums = [torch.randn(ROWS, dtype=torch.float64) for _ in range(3)]
    arguments = (*sums, h.detach(), w.detach(), None, *kept, None, [True, False, False])
    check(ops.linear_topk_kl_backward.default, arguments)


def test_no_logits_are_kept(
    monkeypatch: pytest.MonkeyPatch, peak_bytes: Callable[[Callable[[], object]], int]
) -> None:
    rows, size, width = 1024, 20_000, 16
    monkeypatch.setattr(rows_linear, "CHUNK_BYTES", {"cpu": 4 << 20})
    g = torch.Generator().manual_seed(0)
    h = torch.randn(rows, width, generator=g).requires_grad_()
    w = torch.randn(size, width, generator=g).requires_grad_()

    def work() -> None:
        kept = linear_topk(h.detach(), w.detach(), 64, softcap=9.0)
        torch.autograd.grad(linear_topk_kl(h, w, kept, softcap=9.0).sum(), [h, w])

    work()
    assert peak_bytes(work) < 4 * rows * size // 4


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"tokens": torch.full((ROWS, 3), SIZE)},
            IndexError,
            r"^reference.tokens: expected tokens in \[0, 37\)",
        ),
        ({"tokens": torch.zeros(ROWS, dtype=torch.int64)}, ValueError, "^reference.tokens: expected shape"),
        ({"tokens": torch.zeros(ROWS, 3)}, TypeError, "^reference.tokens: expected dtype int64"),
        ({"logp": torch.zeros(ROWS, 2)}, ValueError, "^reference.logp: expected shape"),
        ({"log_rest": torch.zeros(2)}, ValueError, "^reference.log_rest: expected shape"),
    ],
)
def test_wrong_references(change: dict[str, Tensor], error: type[Exception], message: str) -> None:
    h, w, _ = head()
    with pytest.raises(error, match=message):
        linear_topk_kl(h, w, linear_topk(*other()[:2], 3)._replace(**change))


def test_wrong_arguments() -> None:
    h, w, _ = head()
    for k in (0, SIZE + 1):
        with pytest.raises(ValueError, match=r"^k: expected an integer"):
            linear_topk(h, w, k)
    with pytest.raises(IndexError, match=r"^targets: expected tokens in \[0, 37\), got -100"):
        linear_topk(h, w, 3, targets=torch.full((ROWS,), -100))
    with pytest.raises(TypeError, match=r"^reference: expected a TopK"):
        linear_topk_kl(h, w, h)
