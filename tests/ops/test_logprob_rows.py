"""linear_logprob and logits_logprob on every backend: values, gradients, rows left out, rows apart."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tenfold.kernels.logprob import rows_linear, rows_reference
from torch import Tensor

from tenfold.ops import linear_logprob, logits_logprob
from tenfold.ops.logprob_rows import WANT

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
SIZES = (1, 2, 31, 2047, 2048, 2049, 5000)


def draw(*shape: int, seed: int = 0, scale: float = 3.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def leaf(t: Tensor, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> Tensor:
    return t.detach().clone().to(device, dtype or t.dtype).requires_grad_()


def exact(logits: Tensor, targets: Tensor, softcap: float | None = None) -> rows_reference.RowStats:
    """In float64 on the stored values."""
    return rows_reference.forward(logits.double(), targets, softcap)


def assert_near(got: Any, expected: Tensor, tolerance: float = 4e-6, relative: float = 4e-6) -> None:
    torch.testing.assert_close(
        got.cpu().double(), expected.double(), rtol=relative, atol=tolerance, equal_nan=True
    )


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("softcap", [None, 5.0])
def test_stats_of_logits(backend: Any, dtype: torch.dtype, softcap: float | None) -> None:
    for size in SIZES:
        logits = draw(3, size, seed=size).to(dtype)
        targets = torch.tensor([0, size - 1, size // 2])
        expected = exact(logits, targets, softcap)
        got = logits_logprob(
            logits.to(backend.device), targets.to(backend.device), softcap=softcap, want=WANT
        )
        for name in WANT:
            value = getattr(got, name)
            if name == "argmax":
                assert torch.equal(value.cpu(), expected.argmax), size
            else:
                assert value.dtype == torch.float32
                assert_near(value, getattr(expected, name), 2e-5 if name == "mean_logp2" else 5e-6)


def test_what_is_not_wanted_is_none() -> None:
    got = logits_logprob(draw(2, 9), torch.tensor([1, 2]), want=("lse",))
    assert got.lse is not None
    assert got.argmax is got.mean_logit is got.mean_logp is got.mean_logp2 is None


def test_min_k_plus_plus_of_a_written_row(backend: Any) -> None:
    logits = torch.tensor([[1.0, 2.0, 0.0, -1.0]], device=backend.device)
    s = logits_logprob(logits, torch.tensor([1], device=backend.device), want=WANT)
    variance = s.mean_logp2 - s.mean_logp**2
    score = (s.logp - s.mean_logp) / variance.sqrt()
    for got, expected in (
        (s.lse, 2.4401896986),
        (s.mean_logp, -0.9475369640),
        (variance, 0.6165862749),
        (score, 0.6461128781),
    ):
        assert got.item() == pytest.approx(expected, abs=1e-6)


def test_the_lowest_of_equal_logits_is_the_argmax(backend: Any) -> None:
    logits = torch.zeros(3, 6000, device=backend.device)
    logits[1, [70, 71, 2047, 4000]] = 2.0
    logits[2, [5999, 2500]] = 1.0
    targets = torch.zeros(3, dtype=torch.int64, device=backend.device)
    assert logits_logprob(logits, targets, want=("argmax",)).argmax.tolist() == [0, 70, 2500]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("softcap", [None, 5.0])
def test_gradient_of_logits(backend: Any, dtype: torch.dtype, softcap: float | None) -> None:
    for size in (1, 31, 2049):
        logits = draw(5, size, seed=size).to(dtype)
        targets, weights = torch.arange(5) % size, draw(5, seed=9)
        targets[3] = -100
        z = leaf(logits, backend.device)
        logp = logits_logprob(z, targets.to(backend.device), softcap=softcap).logp
        (logp * weights.to(backend.device)).sum().backward()
        assert z.grad is not None
        assert z.grad.dtype == dtype
        wide = leaf(logits, dtype=torch.float64)
        x = wide if softcap is None else softcap * torch.tanh(wide / softcap)
        rows = torch.tensor([0, 1, 2, 4])
        (x.log_softmax(1)[rows, targets[rows]] * weights[rows]).sum().backward()
        assert wide.grad is not None
        tolerance = {torch.float32: 1e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}[dtype]
        torch.testing.assert_close(z.grad.cpu().double(), wide.grad, rtol=tolerance, atol=tolerance * 0.1)


def test_a_shifted_view_is_not_copied(backend: Any) -> None:
    batch = draw(2, 6, 301).to(backend.device)
    targets = torch.arange(10).view(2, 5) * 30
    expected = exact(batch[:, :-1].reshape(-1, 301).cpu(), targets.view(-1))
    got = logits_logprob(batch[:, :-1], targets.to(backend.device), want=("lse",))
    assert got.logp.shape == (2, 5)
    assert_near(got.logp.flatten(), expected.logp)
    every_other = logits_logprob(batch[0, ::2, 1:].detach(), targets[0, :3].to(backend.device))
    assert_near(every_other.logp, exact(batch[0, ::2, 1:].cpu(), targets[0, :3]).logp)
    turned = batch[0].T.contiguous().T  # the vocabulary with a step
    assert_near(
        logits_logprob(turned[:5], targets[0].to(backend.device)).logp,
        exact(turned[:5].cpu(), targets[0]).logp,
    )
    z = leaf(batch, backend.device)
    logits_logprob(z[:, :-1], targets.to(backend.device)).logp.sum().backward()
    assert z.grad is not None
    assert (z.grad[:, -1] == 0).all()
    assert_near(z.grad[:, :-1].sum(-1), torch.zeros(2, 5))


def test_minus_infinity(backend: Any) -> None:
    logits = draw(4, 5000)
    logits[0, 7:4990] = -torch.inf
    logits[1, :2048] = -torch.inf  # a whole block
    logits[2, 1:] = -torch.inf
    logits[3] = -torch.inf
    targets = torch.tensor([8, 3000, 0, 5])
    z = leaf(logits, backend.device)
    got = logits_logprob(z, targets.to(backend.device), want=WANT)
    expected = exact(logits, targets)
    assert got.logp[0] == -torch.inf
    assert got.logp[2] == 0
    assert got.logp[3].isnan()
    for name in ("logp", "lse", "mean_logit"):
        assert_near(getattr(got, name)[:3], getattr(expected, name)[:3], 1e-5)
    for name in ("mean_logp", "mean_logp2"):
        assert_near(getattr(got, name)[:3], getattr(expected, name)[:3], 1e-4)
    got.logp[1:3].sum().backward()
    assert z.grad is not None
    assert (z.grad[1, :2048] == 0).all()
    assert (z.grad[2] == 0).all()


def test_nan_and_infinity_stay_in_their_row(backend: Any) -> None:
    clean = draw(4, 3000)
    logits = clean.clone()
    logits[1, 2500] = torch.nan
    logits[2, 17] = torch.inf
    targets = torch.tensor([5, 6, 7, 8], device=backend.device)
    z = leaf(logits, backend.device)
    got = logits_logprob(z, targets, want=WANT)
    assert got.logp[1:3].isnan().all()
    assert got.argmax[1:3].tolist() == [2500, 17]
    for name in WANT:
        expected = getattr(exact(clean, targets.cpu()), name)[[0, 3]]
        assert_near(getattr(got, name)[[0, 3]], expected, 2e-5)
    got.logp.sum().backward()
    assert z.grad is not None
    assert z.grad[1].isnan().all()
    assert z.grad[[0, 3]].isfinite().all()


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.integers(0, 9),
    width=st.integers(1, 40),
    size=st.integers(2, 90),
    dtypes=st.tuples(st.sampled_from(FLOATS), st.sampled_from(FLOATS)),
    biased=st.booleans(),
    softcap=st.sampled_from([None, 4.0]),
    seed=st.integers(0, 99),
)
def test_linear_of_any_shape(
    backend: Any,
    rows: int,
    width: int,
    size: int,
    dtypes: tuple[torch.dtype, torch.dtype],
    biased: bool,
    softcap: float | None,
    seed: int,
) -> None:
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, width, generator=g).to(dtypes[0])
    weight = torch.randn(size, width, generator=g).to(dtypes[1])
    bias = torch.randn(size, generator=g) if biased else None
    targets = torch.randint(size, (rows,), generator=g)
    targets[torch.rand(rows, generator=g) < 0.3] = -100
    grad = torch.randn(rows, generator=g)
    ours = [leaf(t, backend.device) for t in (hidden, weight)]
    b = None if bias is None else bias.to(backend.device)
    got = linear_logprob(*ours, targets.to(backend.device), b, softcap=softcap, want=WANT)
    wide = [leaf(t, dtype=torch.float64) for t in (hidden, weight)]
    x = wide[0] @ wide[1].T + (0 if bias is None else bias.double())
    x = x if softcap is None else softcap * torch.tanh(x / softcap)
    live = targets >= 0
    expected = torch.where(live, x.log_softmax(1).gather(1, targets.clamp(min=0)[:, None])[:, 0], 0.0)
    assert_near(got.logp, expected.detach(), 2e-5)
    stats = exact(x.detach(), torch.where(live, targets, -1))
    for name in ("lse", "mean_logit", "mean_logp"):
        assert_near(getattr(got, name), getattr(stats, name), 5e-5)
    (got.logp * grad.to(backend.device)).sum().backward()
    (expected * grad).sum().backward()
    for a, e, dtype in zip(ours, wide, dtypes, strict=True):
        assert a.grad is not None
        assert e.grad is not None
        tolerance = {torch.float32: 3e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}[dtype]
        # A GPU multiplies slopes of |p - y| <= 1 that are rounded to the type, half a unit of 2^-8 or 2^-11 each.
        rounding = 0.0 if backend.device.type == "cpu" else tolerance
        torch.testing.assert_close(a.grad.cpu().double(), e.grad, rtol=tolerance, atol=tolerance + rounding)


def test_all_rows_ignored(backend: Any) -> None:
    hidden = leaf(draw(4, 8), backend.device)
    weight, bias = leaf(draw(30, 8), backend.device), draw(30).to(backend.device)
    bias.requires_grad_()
    targets = torch.full((4,), 7, device=backend.device)
    got = linear_logprob(hidden, weight, targets, bias, ignore_index=7, want=WANT)
    for name in WANT:
        assert (getattr(got, name) == 0).all()
        assert getattr(got, name).shape == (4,)
    got.logp.sum().backward()
    for t in (hidden, weight, bias):
        assert t.grad is not None
        assert (t.grad == 0).all()
    logits = leaf(draw(4, 30), backend.device)
    logp = logits_logprob(logits, targets, ignore_index=7).logp
    logp.sum().backward()
    assert (logp == 0).all()
    assert (logits.grad == 0).all()  # type: ignore[union-attr]


def test_no_rows(backend: Any) -> None:
    hidden = torch.empty(0, 8, device=backend.device, requires_grad=True)
    weight = leaf(draw(30, 8), backend.device)
    none = torch.empty(0, dtype=torch.int64, device=backend.device)
    got = linear_logprob(hidden, weight, none, want=WANT)
    assert all(getattr(got, name).shape == (0,) for name in WANT)
    got.logp.sum().backward()
    assert (weight.grad == 0).all()  # type: ignore[union-attr]
    for shape in ((0, 30), (0, 3, 30), (3, 0, 30)):
        logits = torch.empty(shape, device=backend.device, requires_grad=True)
        targets = torch.empty(shape[:-1], dtype=torch.int64, device=backend.device)
        logits_logprob(logits, targets, want=WANT).logp.sum().backward()


def test_chunks_do_not_change_rows(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # Quarters: all sums of their products are exact, so that only chunks can make a difference.
    hidden, weight = ((4 * draw(n, 16)).round() / 4 for n in (50, 90))
    weight, targets = weight.bfloat16(), torch.arange(50)
    moved = [t.to(backend.device) for t in (hidden, weight, targets)]

    def run() -> tuple[Tensor, Tensor, Tensor]:
        h, w = moved[0].clone().requires_grad_(), moved[1].clone().requires_grad_()
        logp = linear_logprob(h, w, moved[2]).logp
        logp.sum().backward()
        assert h.grad is not None
        assert w.grad is not None
        return logp.detach(), h.grad, w.grad

    whole = run()
    monkeypatch.setattr(rows_linear, "CHUNK_BYTES", {"cpu": 4 * 90 * 7, "cuda": 4 * 90 * 7})
    monkeypatch.setattr(rows_linear, "WIDEN_BYTES", 4 * 16 * 13)
    pieces = run()
    for a, b, tolerance in zip(whole, pieces, (2e-6, 1e-5, 2e-2), strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def test_a_tied_weight_gets_both_gradients() -> None:
    embedding = draw(20, 6).requires_grad_()
    ids = torch.tensor([3, 4, 5])
    linear_logprob(embedding[ids].tanh(), embedding, ids + 1).logp.sum().backward()
    other = embedding.detach().clone().requires_grad_()
    z = other[ids].tanh() @ other.T
    z.log_softmax(1)[torch.arange(3), ids + 1].sum().backward()
    torch.testing.assert_close(embedding.grad, other.grad, rtol=1e-5, atol=1e-5)


def test_a_vocabulary_of_262144(backend: Any) -> None:
    size = 262_144
    logits = draw(2, size, scale=2.0)
    targets = torch.tensor([size - 1, 131_072])
    got = logits_logprob(logits.to(backend.device), targets.to(backend.device), want=WANT)
    expected = exact(logits, targets)
    assert_near(got.logp, expected.logp)
    assert torch.equal(got.argmax.cpu(), expected.argmax)
    assert_near(got.mean_logp, expected.mean_logp)


def test_numpy_in_numpy_out() -> None:
    logits = draw(3, 9).numpy()
    got = logits_logprob(logits, np.array([1, 2, 3]), want=("argmax",))
    assert isinstance(got.logp, np.ndarray)
    assert isinstance(got.argmax, np.ndarray)


@pytest.mark.parametrize("bad", [-1, 30, 2**40])
def test_a_target_outside_the_vocabulary(backend: Any, bad: int) -> None:
    targets = torch.tensor([0, bad, -100, 29], device=backend.device)
    with pytest.raises(IndexError, match=rf"^targets: expected tokens in \[0, 30\).*got {bad}$"):
        logits_logprob(draw(4, 30).to(backend.device), targets)
    with pytest.raises(IndexError, match=r"^targets: expected tokens in \[0, 30\)"):
        linear_logprob(draw(4, 8).to(backend.device), draw(30, 8).to(backend.device), targets)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"logits": torch.zeros(3)}, ValueError, r"^logits: expected shape \[N, V\] or \[B, T, V\]"),
        ({"logits": torch.zeros(3, 0)}, ValueError, r"^logits: expected a vocabulary of at least one"),
        ({"logits": torch.zeros(3, 9, dtype=torch.int64)}, TypeError, r"^logits: expected dtype"),
        ({"targets": torch.zeros(2, dtype=torch.int64)}, ValueError, r"^targets: expected shape \(3,\)"),
        ({"targets": torch.zeros(3)}, TypeError, r"^targets: expected dtype int64"),
        ({"softcap": 0.0}, ValueError, r"^softcap: expected a finite number > 0"),
        ({"want": "lse"}, TypeError, r"^want: expected a list of names"),
        ({"want": ("logits",)}, ValueError, r"^want\[0\]: expected one of 'logp'"),
        ({"ignore_index": 1.5}, TypeError, r"^ignore_index: expected an integer"),
    ],
)
def test_wrong_arguments(change: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {"logits": torch.zeros(3, 9), "targets": torch.zeros(3, dtype=torch.int64)} | change
    with pytest.raises(error, match=message):
        logits_logprob(arguments.pop("logits"), arguments.pop("targets"), **arguments)
