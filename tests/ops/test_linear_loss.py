"""linear_loss and the slopes of linear_logprob: gradients that are there before backward."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tenfold.kernels.logprob import rows_fused, rows_linear
from torch import Tensor

import tenfold
from tenfold.ops import linear_logprob, linear_loss, segment_nll

ROWS, SIZE, WIDTH = 15, 41, 6
SEGMENTS = torch.tensor([-1] * 4 + [0] * 5 + [1] + [3] * 5)  # sequence 2 has no rows
TARGETS = torch.randint(SIZE, (ROWS,), generator=torch.Generator().manual_seed(4))
TARGETS[[2, 6]] = -100
WEIGHTS = torch.randn(ROWS, generator=torch.Generator().manual_seed(5))
BEFORE = torch.tensor([14.0, 2.0, 0.5, 20.0])

OPTIONS: dict[str, dict[str, Any]] = {
    "weights": {},
    "npo": {"ref_nll": BEFORE, "beta": 0.3},
    "simnpo": {"beta": 1.5, "delta": 1.0},
    "power": {"beta": 0.5, "delta": 1.0},
}


def head(dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu") -> list[Tensor]:
    g = torch.Generator().manual_seed(1)
    shapes = ((ROWS, WIDTH), (SIZE, WIDTH), (SIZE,))
    return [torch.randn(*s, generator=g).to(device, dtype).requires_grad_() for s in shapes]


def fused(operands: list[Tensor], kind: str, device: Any = "cpu", softcap: float | None = None) -> Tensor:
    h, w, b = operands
    options = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in OPTIONS[kind].items()}
    if kind != "weights":
        options |= {"segments": SEGMENTS.to(device), "num_segments": 4, "factor": 0.25}
    found = linear_loss(
        h, w, TARGETS.to(device), b, weights=WEIGHTS.to(device), kind=kind, softcap=softcap, **options
    )
    loss: Tensor = found.loss
    return loss


def dense(operands: list[Tensor], kind: str, softcap: float | None = None) -> Tensor:
    """From all logits, by the definitions."""
    h, w, b = operands
    z = h @ w.T + b
    z = z if softcap is None else softcap * torch.tanh(z / softcap)
    live = TARGETS >= 0
    logp = torch.where(live, z.log_softmax(1).gather(1, TARGETS.clamp(min=0)[:, None])[:, 0], 0.0)
    if kind == "weights":
        return (WEIGHTS * logp).sum()
    own = SEGMENTS < 0
    loss = (WEIGHTS * logp)[own].sum()
    if kind == "power":
        p = logp.detach().exp()
        return loss + 0.25 * (p**0.5 * (1 - p) * logp)[~own].sum()
    for i in range(4):
        mine = live & (i == SEGMENTS)
        s, n = -logp[mine].sum(), max(1, int(mine.sum()))
        x = 0.3 * (s - BEFORE[i]) if kind == "npo" else 1.5 * (s / n - 1.0)
        loss = loss - 0.25 * 2 / (0.3 if kind == "npo" else 1.5) * F.logsigmoid(x)
    return loss


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("kind", OPTIONS)
def test_the_definitions(backend: Any, kind: str, softcap: float | None) -> None:
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 2e-5), (torch.bfloat16, 2e-2)):
        ours = head(dtype, backend.device)
        theirs = [t.detach().cpu().double().requires_grad_() for t in ours]
        loss, expected = fused(ours, kind, backend.device, softcap), dense(theirs, kind, softcap)
        assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        near = min(tolerance, 2e-5)
        torch.testing.assert_close(loss.detach().cpu().double(), expected.detach(), rtol=near, atol=near)
        got, want = torch.autograd.grad(-3 * loss, ours), torch.autograd.grad(-3 * expected, theirs)
        for a, e in zip(got, want, strict=True):
            assert a.dtype == dtype
            torch.testing.assert_close(a.cpu().double(), e, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kind", OPTIONS)
@pytest.mark.parametrize(("chunk", "sequence"), [(3, 3), (3, 5), (1, 1), (7, 7)])
def test_chunks_smaller_and_larger_than_a_sequence(
    kind: str, chunk: int, sequence: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = torch.autograd.grad(fused(ours := head(), kind), ours)
    monkeypatch.setattr(rows_linear, "CHUNK_BYTES", {"cpu": 8 * SIZE * chunk})
    monkeypatch.setattr(rows_fused, "SEQUENCE_BYTES", {"cpu": 8 * SIZE * sequence})
    pieces = torch.autograd.grad(fused(ours := head(), kind), ours)
    for a, b in zip(whole, pieces, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_chunks_are_of_one_size_and_hold_the_longest_sequence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows_linear, "CHUNK_BYTES", {"cpu": 8 * SIZE * 5})
    _, w, _ = head()
    hidden = torch.zeros(12, WIDTH, dtype=torch.float64)
    parts = [part.stop - part.start for part in rows_linear.Head(hidden, w, None).parts()]
    assert parts == [4, 4, 4]
    assert rows_linear.Head(hidden, w, None, at_least=5).tile == 5
    assert rows_linear.Head(hidden, w, None, at_least=20).tile == 12


def test_pieces_are_whole_sequences() -> None:
    assert rows_fused._pieces([1] * 5 + [4, 2, 1, 9, 1], 5) == [
        slice(0, 5), slice(5, 9), slice(9, 12), slice(12, 21), slice(21, 22)
    ]  # fmt: skip
    assert rows_fused._pieces([0, 0], 5) == []
    assert rows_fused._pieces([0, 3, 0, 3], 5) == [slice(0, 3), slice(3, 6)]


def test_every_chunk_is_multiplied_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[slice] = []
    plain = rows_linear.Head.logits
    monkeypatch.setattr(rows_linear, "CHUNK_BYTES", {"cpu": 8 * SIZE * 4})

    def logits(self: rows_linear.Head, part: slice) -> Tensor:
        seen.append(part)
        return plain(self, part)

    monkeypatch.setattr(rows_linear.Head, "logits", logits)
    for kind in OPTIONS:
        seen.clear()
        ours = head()
        torch.autograd.grad(fused(ours, kind), ours)
        assert sum(part.stop - part.start for part in seen) == 13
    h, w, b = head()
    for frozen, products in ((False, 2), (True, 1)):
        seen.clear()
        rest = [t.detach() if frozen else t for t in (w, b)]
        torch.autograd.grad(linear_logprob(h, rest[0], TARGETS, rest[1]).logp.sum(), [h])
        assert sum(part.stop - part.start for part in seen) == 13 * products


@pytest.mark.parametrize("softcap", [None, 3.0])
def test_slopes_where_the_head_is_frozen(backend: Any, softcap: float | None) -> None:
    targets, grad = TARGETS.to(backend.device), WEIGHTS.to(backend.device)
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        h, w, b = head(dtype, backend.device)
        trained = linear_logprob(h, w, targets, b, softcap=softcap, want=("argmax", "mean_logp"))
        frozen = linear_logprob(
            h, w.detach(), targets, b.detach(), softcap=softcap, want=("argmax", "mean_logp")
        )
        for name in ("logp", "argmax", "mean_logp"):
            assert torch.equal(getattr(trained, name), getattr(frozen, name))
        (a,) = torch.autograd.grad((trained.logp * grad).sum(), [h])
        (e,) = torch.autograd.grad((frozen.logp * grad).sum(), [h])
        tolerance = {torch.float64: 1e-12, torch.float32: 5e-6, torch.bfloat16: 2e-2}[dtype]
        torch.testing.assert_close(a, e, rtol=tolerance, atol=tolerance)
        assert (e[2] == 0).all()


@pytest.mark.parametrize("kind", ["weights", "npo"])
def test_nothing_to_learn_from(backend: Any, kind: str) -> None:
    none = torch.full((ROWS,), -100, device=backend.device)
    options: dict[str, Any] = {"weights": WEIGHTS.to(backend.device)}
    if kind == "npo":
        ref = torch.zeros(4, device=backend.device)
        options = {"segments": SEGMENTS.to(backend.device), "num_segments": 4, "ref_nll": ref, "kind": kind}
    for rows in (ROWS, 0):
        h, w, b = head(torch.float32, backend.device)
        cut = {k: v[:rows] if k in ("weights", "segments") else v for k, v in options.items()}
        found = linear_loss(h[:rows], w, none[:rows], b, **cut)
        assert float(found.loss.detach()) == pytest.approx(0.0 if kind == "weights" else 8 * 0.6931471806)
        found.loss.backward()
        assert all((t.grad == 0).all() for t in (h, w, b))  # type: ignore[union-attr]
        assert found.logp.shape == (rows,)


def test_a_weight_of_zero_silences_a_target_of_probability_zero() -> None:
    w = torch.zeros(3, 1)
    bias = torch.tensor([0.0, 0.0, -torch.inf])
    h = torch.ones(2, 1, requires_grad=True)
    loss = linear_loss(h, w, torch.tensor([2, 1]), bias, weights=torch.tensor([0.0, 1.0])).loss
    assert float(loss.detach()) == pytest.approx(-0.6931471806)
    loss.backward()
    assert h.grad is not None
    assert h.grad.isfinite().all()


def test_without_gradients_only_numbers() -> None:
    h, w, b = (t.detach() for t in head())
    found = torch.ops.tenfold.linear_loss(
        h, w, b, TARGETS, WEIGHTS, None, None, 0, "weights", 1.0, 1.0, 0.0, None, -100, [False] * 3
    )
    assert [t.numel() for t in found[2:]] == [0, 0, 0]
    with torch.no_grad():
        assert not fused(head(), "npo").requires_grad


def test_the_gradient_is_taken_once() -> None:
    ours = head()
    loss = fused(ours, "npo")
    first = torch.autograd.grad(2 * loss, ours, retain_graph=True)
    with pytest.raises(RuntimeError, match="can be taken once"):
        torch.autograd.grad(loss, ours)
    for a, e in zip(first, torch.autograd.grad(2 * fused(ours, "npo"), ours), strict=True):
        assert torch.equal(a, e)


def test_a_second_derivative_is_refused_not_zero() -> None:
    h, w, b = head()
    frozen = linear_logprob(h, w.detach(), TARGETS, b.detach()).logp.sum()
    for loss in (frozen, fused([h, w, b], "npo")):
        (first,) = torch.autograd.grad(loss, [h], create_graph=True)
        with pytest.raises(RuntimeError, match="differentiated once, not twice"):
            torch.autograd.grad(first.sum() + h.sum(), [h])


def test_gradcheck_of_the_slopes() -> None:
    h, w, b = head()
    assert torch.autograd.gradcheck(lambda x: linear_logprob(x, w.detach(), TARGETS, b.detach()).logp, [h])


@pytest.mark.filterwarnings("ignore")
def test_opcheck() -> None:
    h, w, b = head(torch.float32)
    ops, check = torch.ops.tenfold, torch.library.opcheck
    frozen = (h, w.detach(), b.detach(), TARGETS, 5.0, -100, True)
    check(ops.linear_logprob_slopes.default, frozen)
    rest = (4, "npo", 0.25, 0.3, 0.0, None, -100)
    everything = (h, w, b, TARGETS, WEIGHTS, SEGMENTS, BEFORE, *rest, [True] * 3)
    check(ops.linear_loss.default, everything)
    check(
        ops.linear_loss.default,
        (h, w.detach(), None, TARGETS, WEIGHTS, SEGMENTS, BEFORE, *rest, [True, False, False]),
    )


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which(os.environ.get("CXX") or "g++"), reason="needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")
def test_compiles_to_one_graph() -> None:
    def f(h: Tensor, w: Tensor, b: Tensor) -> Tensor:
        x = h.tanh()
        frozen: Tensor = linear_logprob(x, w.detach(), TARGETS, b.detach()).logp
        return fused([x, w, b], "npo") * 2 + frozen.square().sum()

    torch._dynamo.reset()
    ours, theirs = head(torch.float32), head(torch.float32)
    loss, expected = torch.compile(f, fullgraph=True)(*ours), f(*theirs)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(loss, expected)
    for a, e in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.grad, e.grad)


def test_autocast_does_not_narrow_the_products() -> None:
    ours, theirs = head(torch.float32), head(torch.float32)
    with tenfold.use_backend("cpu"):
        expected = torch.autograd.grad(fused(theirs, "simnpo"), theirs)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            got = torch.autograd.grad(fused(ours, "simnpo"), ours)
    assert all(torch.equal(a, e) for a, e in zip(got, expected, strict=True))


def test_memory_is_the_gradients_and_a_chunk(
    monkeypatch: pytest.MonkeyPatch, peak_bytes: Callable[[Callable[[], object]], int]
) -> None:
    """By the resident set: hidden and weight gradient, one chunk of logits, and nothing like all logits."""
    rows, size, width = 1024, 20_000, 64
    monkeypatch.setattr(rows_linear, "CHUNK_BYTES", {"cpu": 8 << 20})
    g = torch.Generator().manual_seed(0)
    h = torch.randn(rows, width, generator=g).requires_grad_()
    w = torch.randn(size, width, generator=g).requires_grad_()
    y = torch.randint(size, (rows,), generator=g)

    def work() -> None:
        loss = linear_loss(h, w, y, weights=torch.full((rows,), -1.0)).loss
        (0.5 * loss).backward()
        h.grad = w.grad = None

    work()
    allowed = 4 * (rows + size) * width + (8 << 20)
    assert peak_bytes(work) < 1.25 * allowed + (2 << 20) < 4 * rows * size // 4


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"weights": torch.zeros(3)}, ValueError, r"^weights: expected shape \(15,\)"),
        ({"weights": torch.zeros(15, dtype=torch.int64)}, TypeError, "^weights: expected dtype"),
        ({"segments": torch.zeros(15)}, TypeError, "^segments: expected dtype int64"),
        ({"segments": SEGMENTS.flip(0)}, ValueError, "^segments: expected ascending order, got 3 before 1"),
        ({"segments": SEGMENTS + 1}, IndexError, r"^segments: expected segments in \[0, 4\).*got 4$"),
        ({"segments": None, "num_segments": 0}, ValueError, "^segments: expected .* for kind='npo', got"),
        ({"kind": "weights", "ref_nll": None}, ValueError, "^segments: expected none for kind='weights'"),
        ({"kind": "dpo"}, ValueError, "^kind: expected one of 'weights'"),
        ({"kind": "simnpo"}, ValueError, "^ref_nll: expected none for kind='simnpo'"),
        ({"ref_nll": None}, ValueError, r"^ref_nll: expected \[B\] for kind='npo', got none"),
        ({"ref_nll": torch.zeros(3)}, ValueError, r"^ref_nll: expected shape \(4,\)"),
        ({"beta": 0.0}, ValueError, "^beta: expected a number > 0"),
        ({"beta": torch.nan}, ValueError, "^beta: expected a finite number"),
        ({"kind": "power", "ref_nll": None, "delta": -1.0}, ValueError, "^delta: expected a number >= 0"),
        ({"factor": "1"}, TypeError, "^factor: expected"),
        ({"softcap": -1.0}, ValueError, "^softcap: expected a finite number > 0"),
        ({"targets": TARGETS + SIZE}, IndexError, r"^targets: expected tokens in \[0, 41\)"),
    ],
)
def test_wrong_arguments(change: dict[str, Any], error: type[Exception], message: str) -> None:
    h, w, _ = head()
    arguments: dict[str, Any] = {
        "targets": TARGETS, "segments": SEGMENTS, "num_segments": 4, "kind": "npo", "ref_nll": BEFORE
    } | change  # fmt: skip
    with pytest.raises(error, match=message):
        linear_loss(h, w, arguments.pop("targets"), **arguments)


def test_sums_of_sequences_are_those_of_segment_nll() -> None:
    h, w, b = head()
    found = linear_loss(
        h, w, TARGETS, b, segments=SEGMENTS, num_segments=4, kind="npo", ref_nll=BEFORE, beta=1.0
    )
    nll, _ = segment_nll(found.logp, SEGMENTS, 4)
    torch.testing.assert_close(-2 * F.logsigmoid(nll - BEFORE).sum(), found.loss.detach())
