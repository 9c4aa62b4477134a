"""The row ops under gradcheck, opcheck, torch.compile and autocast, and what memory they take."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tenfold.kernels.logprob import rows_linear
from torch import Tensor

import tenfold
from tenfold.ops import (
    gnb_sample,
    linear_ceu,
    linear_gnb_sample,
    linear_kl,
    linear_logprob,
    linear_undial,
    logits_logprob,
    segment_nll,
)

TARGETS = torch.tensor([3, -100, 0, 22, 7])


def head(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    g = torch.Generator().manual_seed(1)
    shapes = ((5, 6), (23, 6), (23,))
    return [torch.randn(*shape, generator=g).to(dtype).requires_grad_() for shape in shapes]


def reference() -> list[Tensor]:
    g = torch.Generator().manual_seed(2)
    return [torch.randn(*shape, generator=g) for shape in ((5, 4), (23, 4), (23,))]


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_gradcheck(backend: Any, softcap: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows_linear, "CHUNK_BYTES", {"cpu": 8 * 23 * 2, "cuda": 8 * 23 * 2})
    operands = [t.detach().to(backend.device).requires_grad_() for t in head()]
    targets = TARGETS.to(backend.device)

    def linear(h: Tensor, w: Tensor, b: Tensor) -> Tensor:
        found: Tensor = linear_logprob(h, w, targets, b, softcap=softcap).logp
        return found

    assert torch.autograd.gradcheck(linear, operands)
    logits = torch.randn(2, 3, 11, dtype=torch.float64, device=backend.device, requires_grad=True)
    chosen = torch.tensor([[1, -100, 0], [10, 2, 2]], device=backend.device)
    assert torch.autograd.gradcheck(lambda z: logits_logprob(z, chosen, softcap=softcap).logp, [logits])
    assert torch.autograd.gradcheck(lambda z: gnb_sample(z, seed=3, temperature=1.5).logp, [logits])


def test_a_second_derivative_is_refused_not_wrong() -> None:
    h, w, b = head()
    (first,) = torch.autograd.grad(linear_logprob(h, w, TARGETS, b).logp.sum(), [h], create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated once, not twice"):
        torch.autograd.grad(first.sum(), [h])


def test_only_what_is_asked_for_is_computed() -> None:
    h, w, b = head()
    w.requires_grad_(False)
    linear_logprob(h, w, TARGETS, b).logp.sum().backward()
    assert w.grad is None
    assert h.grad is not None
    assert b.grad is not None


def arguments(op: str, dtype: torch.dtype) -> tuple[Any, ...]:
    h, w, b = head(dtype)
    logits = torch.randn(5, 23).to(dtype).requires_grad_()
    draw = (torch.tensor([1, 0, 1, 1, 1]), 3, 2, 0.9, -100)
    ref = reference()
    return {
        "logits_logprob": (logits, TARGETS, None, -100, True),
        "linear_logprob": (h, w, b, TARGETS, 5.0, -100, False),
        "gnb_sample": (logits, *draw),
        "linear_gnb_sample": (h, w, None, *draw),
        "linear_ceu": (h, w, b, TARGETS, -100),
        "linear_divergence": (h, w, b, *ref, TARGETS, 10.0, "cross_entropy", -100, "linear_undial"),
        "segment_nll": (torch.randn(5, requires_grad=True), torch.tensor([0, 1, -1, 1, 0]), 3),
    }[op]


OPS = [
    "logits_logprob",
    "linear_logprob",
    "gnb_sample",
    "linear_gnb_sample",
    "linear_ceu",
    "linear_divergence",
    "segment_nll",
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("op", OPS)
def test_opcheck(op: str) -> None:
    torch.library.opcheck(getattr(torch.ops.tenfold, op).default, arguments(op, torch.float32))


@pytest.mark.filterwarnings("ignore")
def test_opcheck_of_the_backward_ops() -> None:
    h, w, b = (t.detach() for t in head(torch.float32))
    rows = [torch.randn(5, dtype=torch.float64) for _ in range(3)]
    ops = torch.ops.tenfold
    after = (TARGETS, None, 1.0, -100)
    torch.library.opcheck(ops.logits_softmax_backward.default, (*rows, torch.randn(5, 23), *after))
    for needs in ([True, True, True], [True, False, False]):
        torch.library.opcheck(ops.linear_softmax_backward.default, (*rows, h, w, b, *after, needs))
    pair = (h, w, None, *reference()[:2], None, TARGETS, 0.0, "reverse", -100, "linear_kl")
    torch.library.opcheck(
        ops.linear_divergence_backward.default, (rows[0], *rows, *pair, [True, True, False])
    )


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which(os.environ.get("CXX") or "g++"), reason="needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")
def test_compiles_to_one_graph() -> None:
    ref = reference()
    segments = torch.tensor([0, 0, 1, 1, -1])

    def f(h: Tensor, w: Tensor, b: Tensor) -> Tensor:
        x = h.tanh()
        stats = linear_logprob(x, w, TARGETS, b, want=("logp", "mean_logp"))
        nll, _ = segment_nll(stats.logp, segments, 2)
        draws = gnb_sample(x @ w.T, seed=5).logp + linear_gnb_sample(x, w, b, seed=6).logp
        rows = linear_kl(x, w, ref[0], ref[1], bias=b) + linear_undial(x, w, ref[0], ref[1], TARGETS)
        loss: Tensor = nll.square().sum() + (draws + rows + linear_ceu(x, w, TARGETS, b)).sum()
        return loss + logits_logprob(x @ w.T, TARGETS).logp.sum() + stats.mean_logp.detach().sum()

    torch._dynamo.reset()
    ours, theirs = head(torch.float32), head(torch.float32)
    loss, expected = torch.compile(f, fullgraph=True)(*ours), f(*theirs)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(loss, expected)
    for a, e in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.grad, e.grad)


@pytest.mark.parametrize("forced", ["cpu", "reference"])
def test_autocast_does_not_narrow_the_products(forced: str) -> None:
    def run(h: Tensor, w: Tensor, b: Tensor) -> Tensor:
        logp = linear_logprob(h, w, TARGETS, b).logp
        (logp.sum() + linear_ceu(h, w, TARGETS, b).sum()).backward()
        found: Tensor = logp.detach()
        return found

    ours, theirs = head(torch.float32), head(torch.float32)
    with tenfold.use_backend(forced):
        expected = run(*theirs)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            got = run(*ours)
    assert torch.equal(got, expected)
    for a, e in zip(ours, theirs, strict=True):
        assert torch.equal(a.grad, e.grad)  # type: ignore[arg-type]


def test_threads_do_not_change_a_bit(isa: str, set_threads: Callable[[int], None]) -> None:
    logits = torch.randn(9, 5000, generator=torch.Generator().manual_seed(0)).requires_grad_()
    targets = torch.arange(9) * 500
    found = []
    for threads in (1, 2, 7):
        set_threads(threads)
        got = logits_logprob(logits, targets, want=("lse", "mean_logp", "mean_logp2"))
        (slope,) = torch.autograd.grad(got.logp.sum(), [logits])
        found.append((*(v for v in got if v is not None), slope))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, found[0], strict=True))


# ---- memory ----------------------------------------------------------------------------------------------

ROWS, LONG, WIDTH = 1024, 20_000, 16
PeakBytes = Callable[[Callable[[], object]], int]
LOGITS = 4 * ROWS * LONG  # 82 MB: more than malloc keeps for later, so a peak is seen


def wide_head(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(ROWS, WIDTH, generator=g).to(dtype).requires_grad_()
    weight = torch.randn(LONG, WIDTH, generator=g).to(dtype).requires_grad_()
    return hidden, weight, torch.randint(LONG, (ROWS,), generator=g)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_linear_forms_keep_no_logits(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, peak_bytes: PeakBytes
) -> None:
    monkeypatch.setattr(rows_linear, "CHUNK_BYTES", {"cpu": 4 << 20})
    monkeypatch.setattr(rows_linear, "WIDEN_BYTES", 1 << 18)
    h, w, targets = wide_head(dtype)
    works: list[Callable[[], Tensor]] = [
        lambda: linear_logprob(h, w, targets, softcap=9.0, want=("mean_logp",)).logp,
        lambda: linear_gnb_sample(h, w, seed=1).logp,
        lambda: linear_ceu(h, w, targets),
        lambda: linear_kl(h, w, h, w),
        lambda: linear_kl(h, w, h, w, direction="reverse"),
        lambda: linear_undial(h, w, h, w, targets),
    ]
    for work in works:

        def both(work: Callable[[], Tensor] = work) -> None:
            torch.autograd.grad(work().sum(), [h, w])

        both()  # code pages, thread stacks
        assert peak_bytes(both) < LOGITS // 4
    dense = peak_bytes(lambda: (h.float() @ w.float().T).log_softmax(1)[torch.arange(ROWS), targets])
    assert dense > LOGITS // 2  # that it is seen at all; part may lie in memory that was there


def test_rows_of_logits_are_reduced_where_they_lie(isa: str, peak_bytes: PeakBytes) -> None:
    logits = torch.randn(2, ROWS // 2 + 1, LONG)
    targets = torch.zeros(2, ROWS // 2, dtype=torch.int64)
    view = logits[:, :-1]
    for work in (
        lambda: logits_logprob(view, targets, want=("mean_logp", "argmax")),
        lambda: gnb_sample(view, seed=1),
    ):
        work()
        assert peak_bytes(work) < LOGITS // 16
    assert peak_bytes(lambda: view.reshape(-1, LONG).log_softmax(1)) > LOGITS // 2
