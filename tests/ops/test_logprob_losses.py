"""The pieces that unlearning losses are made of, against written numbers and against autograd in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tenfold.kernels.logprob import rows_linear
from torch import Tensor
from torch.nn import functional as F

from tenfold.ops import linear_ceu, linear_kl, linear_logprob, linear_undial, logits_logprob, segment_nll

Z = torch.tensor(
    [
        [[1, 2, 0, -1], [0, 0.5, 1, 2], [9, 9, 9, 9]],
        [[2, -1, 0, 1], [1, 1, 1, 1], [9, 9, 9, 9]],
    ],
    dtype=torch.float64,
)
ZR = torch.tensor([[[0, 0, 0, 0]] * 3, [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]], dtype=torch.float64)
LABELS = torch.tensor([[-100, 1, 3], [-100, 0, -100]])
TARGETS = LABELS[:, 1:]  # position t predicts label t + 1
SEGMENTS = torch.arange(2).repeat_interleave(2)
DTYPES = [(torch.float64, 1e-9), (torch.float32, 1e-5)]


def leaf(t: Tensor, device: torch.device | None = None, dtype: torch.dtype | None = None) -> Tensor:
    return t.detach().clone().to(device or t.device, dtype or t.dtype).requires_grad_()


def sums(logits: Tensor) -> Tensor:
    logp = logits_logprob(logits[:, :-1], TARGETS.to(logits.device)).logp.flatten()
    segments = torch.where(TARGETS.flatten() == -100, -1, SEGMENTS).to(logits.device)
    return segment_nll(logp, segments, 2)[0]


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
def test_sums_of_written_logits(backend: Any, dtype: torch.dtype, tolerance: float) -> None:
    z = leaf(Z, backend.device, dtype)
    s, ref = sums(z), sums(ZR.to(backend.device, dtype))
    assert s.dtype == dtype
    assert s.tolist() == pytest.approx([0.9861960885, 0.4401896986], rel=tolerance)
    assert ref.tolist() == pytest.approx([2.7725887222, 0.7436683806], rel=tolerance)
    npo = -2 / 0.1 * F.logsigmoid(0.1 * (s - ref)).mean()
    assert npo.item() == pytest.approx(14.9488675215, rel=tolerance)
    npo.backward()
    assert z.grad is not None
    assert z.grad.norm().item() == pytest.approx(0.4229357217, rel=max(tolerance, 1e-8))
    expected = [-0.128992508, 0.193903438, -0.047453692, -0.017457238]
    assert z.grad[0, 0].tolist() == pytest.approx(expected, rel=max(tolerance, 1e-7), abs=1e-9)


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
def test_ascent_and_weights_of_written_logits(backend: Any, dtype: torch.dtype, tolerance: float) -> None:
    def run(weigh: Any) -> tuple[float, float]:
        z = leaf(Z, backend.device, dtype)
        logp = logits_logprob(z[:, :-1], TARGETS.to(backend.device)).logp
        loss = weigh(logp)
        loss.backward()
        assert z.grad is not None
        return loss.item(), z.grad.norm().item()

    live = (TARGETS != -100).to(backend.device)

    def satimp(logp: Tensor) -> Tensor:
        p = logp.detach().exp()
        return (p**5 * (1 - p) * live * logp).sum() / 3

    cases = [
        (lambda logp: logp.sum() / 3, (-0.4754619290, 0.2642284110)),
        (lambda logp: (logp.detach().exp() * live * logp).sum() / 3, (-0.2943892356, 0.1636838173)),
        (satimp, (-0.0165616666, 0.0093087844)),
    ]
    for weigh, expected in cases:
        assert run(weigh) == pytest.approx(expected, rel=max(tolerance, 3e-9))


def identity(z: Tensor, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Hidden states and a weight whose product is exactly z."""
    return z.to(device, dtype), torch.eye(4, device=device, dtype=dtype)


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
def test_kl_of_written_logits(backend: Any, dtype: torch.dtype, tolerance: float) -> None:
    h, w = identity(Z[:, :-1].reshape(-1, 4), backend.device, dtype)
    hr, wr = identity(ZR[:, :-1].reshape(-1, 4), backend.device, dtype)
    h = leaf(h)
    live = (TARGETS.flatten() != -100).to(backend.device)
    rows = linear_kl(h, w, hr, wr, mask=live)
    loss = rows.sum() / live.sum()
    loss.backward()
    assert (rows[~live] == 0).all()
    assert loss.item() == pytest.approx(0.3532539326, rel=tolerance)
    assert h.grad is not None
    assert h.grad.norm().item() == pytest.approx(0.22198857380, rel=tolerance)


def head(seed: int, rows: int, width: int, size: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    shapes = ((rows, width), (size, width), (size,))
    return [torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype) for shape in shapes]


def dense(name: str, x: Tensor, y: Tensor, targets: Tensor) -> Tensor:
    """The losses as one reads them."""
    log_p, log_q = x.log_softmax(1), y.log_softmax(1)
    if name == "forward":
        return (log_q.exp() * (log_q - log_p)).sum(1)
    if name == "reverse":
        return (log_p.exp() * (log_p - log_q)).sum(1)
    one = F.one_hot(targets, x.shape[1])
    if name == "undial":
        return -((y - 10.0 * one).softmax(1) * log_p).sum(1)
    q = x.detach().masked_fill(one.bool(), -torch.inf).softmax(1)
    return -(q * log_p).sum(1)


def ours(name: str, h: Tensor, w: Tensor, b: Tensor, ref: list[Tensor], targets: Tensor) -> Tensor:
    if name == "ceu":
        found: Tensor = linear_ceu(h, w, targets, b)
    elif name == "undial":
        found = linear_undial(h, w, ref[0], ref[1], targets, bias=b, ref_bias=ref[2])
    else:
        found = linear_kl(h, w, ref[0], ref[1], bias=b, ref_bias=ref[2], mask=targets >= 0, direction=name)
    return found


NAMES = ["forward", "reverse", "undial", "ceu"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_rows_and_gradients_are_the_dense_ones(backend: Any, name: str, dtype: torch.dtype) -> None:
    for size in (5, 2300):
        h, w, b = (t / 2 for t in head(0, 6, 8, size, dtype))
        ref = head(1, 6, 3, size, dtype)
        targets = torch.tensor([0, 4, -100, 2, 3, 1])
        live = targets >= 0
        mine = [leaf(t, backend.device) for t in (h, w, b)]
        moved = [t.to(backend.device) for t in ref]
        loss = ours(name, *mine, moved, targets.to(backend.device))  # type: ignore[misc]
        weights = torch.linspace(0.5, 1.5, 6, dtype=loss.dtype, device=backend.device)
        (loss * weights).sum().backward()
        wide = [leaf(t, dtype=torch.float64) for t in (h, w, b)]
        y = ref[0].double() @ ref[1].double().T + ref[2].double()
        x = wide[0] @ wide[1].T + wide[2]
        expected = torch.where(live, dense(name, x, y, targets.clamp(min=0)), 0.0)
        (expected * weights.cpu().double()).sum().backward()
        value = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-5}[dtype]
        torch.testing.assert_close(loss.cpu().double(), expected.detach(), rtol=value, atol=value)
        slope = {torch.float64: 1e-11, torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
        for a, e in zip(mine, wide, strict=True):
            assert a.grad is not None
            assert e.grad is not None
            assert a.grad.dtype == dtype
            torch.testing.assert_close(a.grad.cpu().double(), e.grad, rtol=slope, atol=slope * 0.1)


@pytest.mark.parametrize("name", NAMES)
def test_gradcheck(backend: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows_linear, "CHUNK_BYTES", {"cpu": 2 * 8 * 11 * 2, "cuda": 2 * 8 * 11 * 2})
    if name == "ceu":
        pytest.skip("CE-U holds its target distribution constant: no finite difference sees that")
    operands = [leaf(t, backend.device) for t in head(2, 5, 4, 11)]
    ref = [t.to(backend.device) for t in head(3, 5, 3, 11)]
    targets = torch.tensor([0, 10, -100, 3, 3], device=backend.device)
    assert torch.autograd.gradcheck(lambda h, w, b: ours(name, h, w, b, ref, targets), operands)


def test_identical_models_have_no_divergence(backend: Any) -> None:
    h, w, b = (t.to(backend.device) for t in head(4, 7, 8, 3000, torch.float32))
    h = leaf(h)
    for direction in ("forward", "reverse"):
        loss = linear_kl(h, w, h.detach(), w, bias=b, ref_bias=b, direction=direction)
        assert (loss == 0).all()
        (gradient,) = torch.autograd.grad(loss.sum(), [h])
        assert gradient.abs().max() < 1e-6


def test_ruled_out_tokens(backend: Any) -> None:
    h, w, _ = (t.to(backend.device) for t in head(5, 3, 8, 50, torch.float32))
    bias = torch.zeros(50, device=backend.device)
    bias[10:] = -torch.inf
    for direction in ("forward", "reverse"):
        both = linear_kl(h, w, h * 0.5, w, bias=bias, ref_bias=bias, direction=direction)
        assert both.isfinite().all()
    assert (linear_kl(h, w, h, w, bias=bias) == torch.inf).all()
    targets = torch.tensor([1, 2, 3], device=backend.device)
    assert linear_ceu(h, w, targets, bias).isfinite().all()


def test_ceu_of_a_sure_model(backend: Any) -> None:
    """p(target) = 1 - 1e-13: the other tokens' distribution must not come out of a difference."""
    logits = torch.tensor([[30.0, 0.0, 1.0, -1.0]])
    h, w = leaf(logits, backend.device), torch.eye(4, device=backend.device)
    loss = linear_ceu(h, w, torch.tensor([0], device=backend.device))
    x = logits.double()
    q = x.masked_fill(torch.tensor([[True, False, False, False]]), -torch.inf).softmax(1)
    assert loss.item() == pytest.approx(-(q * x.log_softmax(1)).sum().item(), rel=1e-6)
    loss.sum().backward()
    assert h.grad is not None
    torch.testing.assert_close(h.grad.cpu().double(), x.softmax(1) - q, rtol=1e-6, atol=1e-7)


def test_bfloat16_sums_are_kept_in_float64() -> None:
    g = torch.Generator().manual_seed(0)
    logp = -(9.0 + 2 * torch.rand(1000, generator=g)).bfloat16()
    segments = torch.arange(1000) % 2
    nll, count = segment_nll(logp, segments, 3)
    exact = torch.stack([-logp[segments == i].double().sum() for i in range(3)])
    assert nll.dtype == torch.float32
    assert count.tolist() == [500, 500, 0]
    torch.testing.assert_close(nll.double(), exact, rtol=1e-7, atol=0)
    naive = torch.stack([-logp[segments == i].sum() for i in range(2)])
    assert (naive.double() - exact[:2]).abs().max() > 1  # what its own dtype would have made of it
    lossy = torch.zeros(2, dtype=torch.bfloat16).index_add_(0, segments, -logp)
    assert (lossy.double() - exact[:2]).abs().max() > 500


def test_segments_left_out_and_their_gradient() -> None:
    logp = torch.tensor([-1.0, -2.0, -4.0, -8.0, torch.nan], requires_grad=True)
    nll, count = segment_nll(logp, torch.tensor([1, 0, 1, -1, -1]), 3)
    assert nll.tolist() == [2.0, 5.0, 0.0]
    assert count.tolist() == [1, 2, 0]
    (nll * torch.tensor([1.0, 10.0, 100.0])).sum().backward()
    assert logp.grad is not None
    assert logp.grad.tolist() == [-10.0, -1.0, -10.0, 0.0, 0.0]
    wide = logp.detach()[:4].double().requires_grad_()
    assert torch.autograd.gradcheck(lambda v: segment_nll(v, torch.tensor([1, 0, 1, -1]), 2)[0], [wide])
    empty, none = segment_nll(torch.empty(0), torch.empty(0, dtype=torch.int64), 2)
    assert empty.tolist() == [0.0, 0.0]
    assert none.tolist() == [0, 0]


@pytest.mark.parametrize("bad", [-2, 3])
def test_a_segment_out_of_range(bad: int) -> None:
    with pytest.raises(IndexError, match=rf"^segments: expected segments in \[0, 3\).*got {bad}$"):
        segment_nll(torch.zeros(2), torch.tensor([0, bad]), 3)


def test_wrong_arguments() -> None:
    h, w, b = head(6, 3, 4, 9)
    with pytest.raises(ValueError, match=r"^direction: expected one of 'forward', 'reverse'"):
        linear_kl(h, w, h, w, direction="both")
    with pytest.raises(ValueError, match=r"^ref_hidden: expected shape \[N, E\] with N = 3"):
        linear_kl(h, w, h[:2], w)
    with pytest.raises(ValueError, match=r"^ref_weight: expected shape \(9, 4\)"):
        linear_kl(h, w, h, w[:8])
    with pytest.raises(ValueError, match=r"^ref_bias: expected shape \(9,\)"):
        linear_undial(h, w, h, w, torch.zeros(3, dtype=torch.int64), ref_bias=b[:1])
    with pytest.raises(ValueError, match=r"^beta: expected a finite number"):
        linear_undial(h, w, h, w, torch.zeros(3, dtype=torch.int64), beta=torch.inf)
    for op in (linear_ceu, linear_logprob):
        with pytest.raises(IndexError, match=r"^targets: expected tokens in .*got -7$"):
            op(h, w, torch.tensor([0, -7, 1]))
    with pytest.raises(IndexError, match=r"^targets: expected tokens in .*got -101$"):  # never wraps around
        linear_undial(h, w, h, w, torch.tensor([0, -101, 1]))
    with pytest.raises(ValueError, match=r"^weight: expected a vocabulary of at least two"):
        linear_ceu(h, w[:1], torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"^mask: expected shape \(3,\)"):
        linear_kl(h, w, h, w, mask=torch.ones(2, dtype=torch.bool))
