"""Labels drawn from softmax(logits): their distribution, the same ones everywhere, and the GNB estimate."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tenfold.kernels.logprob import rows_linear, rows_native, rows_reference
from torch import Tensor

import tenfold
from tenfold import _native
from tenfold.ops import gnb_sample, linear_gnb_sample, logits_logprob

FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def draw(*shape: int, seed: int = 0, scale: float = 3.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def chi_square(counts: Tensor, p: Tensor) -> float:
    """p-value of observed counts; tokens are pooled, in order, into bins that expect at least 50."""
    total = counts.sum().item()
    expected = p.double().numpy() * total
    edges, mass = [0], 0.0
    for i, e in enumerate(expected):
        mass += e
        if mass >= 50:
            edges.append(i + 1)
            mass = 0.0
    edges[-1] = len(expected)
    observed = np.add.reduceat(counts.numpy(), edges[:-1])
    expected = np.add.reduceat(expected, edges[:-1])
    statistic = float(((observed - expected) ** 2 / expected).sum())
    half = torch.tensor([(len(expected) - 1) / 2, statistic / 2], dtype=torch.float64)
    return torch.special.gammaincc(half[0], half[1]).item()


def repeated(row: Tensor, draws: int, backend: Any, rows: int, **options: Any) -> Tensor:
    """How often each token is drawn from one row of logits; the row is not copied."""
    logits = row.to(backend.device).expand(rows, -1)
    counts = torch.zeros(row.numel(), dtype=torch.int64)
    for start in range(0, draws, rows):
        tokens = gnb_sample(logits, seed=11, row_offset=start, **options).tokens.cpu()
        counts += torch.bincount(tokens, minlength=row.numel())
    return counts


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_distribution_of_labels(backend: Any, temperature: float) -> None:
    if backend.interpreted:
        pytest.skip("slow when interpreted; that its labels are those of the reference is tested below")
    slow = backend.name == "reference"
    size, draws = (2100, 600) if slow else (5000, 20_000)
    row = draw(size, seed=1, scale=2.0)
    counts = repeated(row, draws, backend, draws, temperature=temperature)
    assert chi_square(counts, (row.double() / temperature).softmax(0)) > 1e-3
    warmer = (row.double() / (temperature * 1.3)).softmax(0)
    assert slow or chi_square(counts, warmer) < 1e-3  # the test sees a wrong distribution


@pytest.mark.slow
def test_the_distribution_over_a_whole_vocabulary(backend: Any) -> None:
    if backend.interpreted:
        pytest.skip("a million interpreted draws take an hour; the labels are those of the reference")
    row = draw(50_257, seed=2, scale=2.0)
    counts = repeated(row, 1_000_000, backend, 500)
    assert counts.sum() == 1_000_000
    assert chi_square(counts, row.double().softmax(0)) > 1e-3


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("size", [1, 17, 2048, 2049, 6000])
def test_every_backend_draws_the_same_labels(backend: Any, dtype: torch.dtype, size: int) -> None:
    logits = draw(12, size, seed=size).to(dtype)
    logits[3, (size + 1) // 2 :] = -torch.inf
    logits[4] = 0.0
    logits[5] *= 20
    for temperature in (1.0, 1.7):
        with tenfold.use_backend("reference"):
            expected = gnb_sample(logits, seed=2**64 - 5, row_offset=7, temperature=temperature)
        got = gnb_sample(logits.to(backend.device), seed=2**64 - 5, row_offset=7, temperature=temperature)
        assert torch.equal(got.tokens.cpu(), expected.tokens)
        torch.testing.assert_close(got.logp.cpu(), expected.logp, rtol=1e-6, atol=1e-6)
        wide = logits.double() / temperature
        exact = wide.log_softmax(1).gather(1, got.tokens.cpu()[:, None])[:, 0]
        torch.testing.assert_close(got.logp.cpu().double(), exact, rtol=4e-6, atol=4e-6)


def test_threads_and_parts_draw_the_same_labels(isa: str, set_threads: Any) -> None:
    logits = draw(40, 5000)
    found = []
    for threads in (1, 2, 5):
        set_threads(threads)
        found.append(gnb_sample(logits, seed=3).tokens)
    parts = [gnb_sample(logits[i : i + 8], seed=3, row_offset=i).tokens for i in range(0, 40, 8)]
    assert torch.equal(torch.cat(parts), found[0])
    assert all(torch.equal(f, found[0]) for f in found)
    assert not torch.equal(gnb_sample(logits, seed=4).tokens, found[0])
    assert torch.equal(gnb_sample(logits.view(4, 10, 5000), seed=3).tokens.flatten(), found[0])


def test_a_uniform_number_at_the_ends(backend: Any) -> None:
    """u next to 0 gives the first token that can be drawn, u next to 1 the last one."""
    logits = torch.zeros(2, 5000)
    logits[:, :3] = logits[:, 4100:] = -torch.inf
    u = torch.tensor([2.0**-54, 1 - 2.0**-53], dtype=torch.float64)
    rows = rows_reference
    if backend.name == "triton":
        from tenfold.kernels.logprob import rows_triton as rows
    elif backend.name != "reference":
        rows = rows_native
    token, _, _ = rows.sample(logits.to(backend.device), u.to(backend.device))
    assert token.tolist() == [3, 4099]


def test_impossible_tokens_are_never_drawn(backend: Any) -> None:
    count = 60 if backend.interpreted else 400
    logits = torch.full((count, 4500), -torch.inf)
    logits[:, 4400:4403] = 0.0
    logits[:, 5] = -200.0
    tokens = gnb_sample(logits.to(backend.device), seed=9).tokens
    assert sorted(set(tokens.tolist())) == [4400, 4401, 4402]


def test_masked_rows_and_rows_without_a_distribution(backend: Any) -> None:
    logits = draw(6, 2500)
    logits[1, 2400] = torch.nan
    logits[2, 3] = torch.inf
    logits[3] = -torch.inf
    mask = torch.tensor([1, 1, 1, 1, 0, 1])
    z = logits.clone().to(backend.device).requires_grad_()
    got = gnb_sample(z, seed=1, mask=mask.to(backend.device), ignore_index=-7)
    assert (got.tokens[1:5] == -7).all()
    assert got.logp[1:4].isnan().all()
    assert got.logp[4] == 0
    got.logp[[0, 4, 5]].sum().backward()
    assert z.grad is not None
    assert (z.grad[4] == 0).all()
    clean = gnb_sample(logits[[0]].to(backend.device), seed=1)
    assert got.tokens[0] == clean.tokens[0]
    exact = logits[0].double().requires_grad_()
    exact.log_softmax(0)[got.tokens[0].item()].backward()
    torch.testing.assert_close(z.grad[0].cpu().double(), exact.grad, rtol=1e-5, atol=1e-7)


def test_the_linear_form_draws_from_its_logits(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight, bias = draw(9, 8), draw(300, 8, seed=1, scale=0.3), draw(300, seed=2)
    mask = torch.tensor([1, 0, 1, 1, 1, 0, 1, 1, 1], dtype=torch.bool)
    moved = [t.to(backend.device) for t in (hidden, weight, bias)]
    monkeypatch.setattr(rows_linear, "CHUNK_BYTES", {"cpu": 4 * 300 * 4, "cuda": 4 * 300 * 4})
    got = linear_gnb_sample(*moved, seed=5, mask=mask.to(backend.device), temperature=0.9)
    logits = hidden @ weight.T + bias
    with tenfold.use_backend("auto"):
        expected = gnb_sample(logits, seed=5, mask=mask, temperature=0.9)
    assert torch.equal(got.tokens.cpu(), expected.tokens)
    torch.testing.assert_close(got.logp.cpu(), expected.logp, rtol=1e-5, atol=1e-5)
    h, w, b = (t.clone().requires_grad_() for t in moved)
    linear_gnb_sample(h, w, b, seed=5, mask=mask.to(backend.device), temperature=0.9).logp.sum().backward()
    wide = [t.double().requires_grad_() for t in (hidden, weight, bias)]
    x = (wide[0] @ wide[1].T + wide[2]) / 0.9
    x.log_softmax(1)[mask].gather(1, expected.tokens[mask][:, None]).sum().backward()
    for a, e in zip((h, w, b), wide, strict=True):
        torch.testing.assert_close(a.grad.cpu().double(), e.grad, rtol=1e-4, atol=1e-5)  # type: ignore[union-attr]


def test_the_gnb_estimate_is_the_gauss_newton_diagonal() -> None:
    """20,000 draws for 16 rows and 7 classes: the mean of B g^2 against mean_b x_bj^2 p_bv (1 - p_bv)."""
    seeds, rows, classes, width = 20_000, 16, 7, 5
    x = draw(rows, width, seed=3, scale=1.0).double()
    weight = draw(classes, width, seed=4, scale=0.7).double()
    p = (x @ weight.T).softmax(1)
    logits = (x @ weight.T).float().repeat(seeds, 1)
    tokens = gnb_sample(logits, seed=17).tokens.view(seeds, rows)
    one = torch.nn.functional.one_hot(tokens, classes).double()
    gradient = torch.einsum("sbv,bj->svj", p - one, x) / rows  # of the mean cross-entropy
    estimate = rows * gradient.square()
    exact = torch.einsum("bv,bj->vj", p * (1 - p), x.square()) / rows
    error = (estimate.mean(0) - exact).abs()
    assert (error <= 4 * estimate.std(0) / seeds**0.5).all()
    # What autograd makes of one draw is that gradient.
    w = weight.clone().requires_grad_()
    sample = linear_gnb_sample(x, w, seed=17)
    (-sample.logp.mean()).backward()
    assert torch.equal(sample.tokens, tokens[0])  # drawn from the same float32 logits
    assert w.grad is not None
    torch.testing.assert_close(w.grad, gradient[0], rtol=1e-12, atol=1e-12)


def test_logp_is_that_of_logits_logprob(backend: Any) -> None:
    logits = draw(5, 4000).to(backend.device)
    got = gnb_sample(logits, seed=0)
    torch.testing.assert_close(got.logp, logits_logprob(logits, got.tokens).logp, rtol=2e-6, atol=2e-6)


def test_exp_has_the_same_bits_on_every_instruction_set() -> None:
    """Weights of a block of its own per entry show exp_exact bit by bit, through the labels' log sum exp."""
    x = torch.linspace(-90, 0, 4001)
    rows = torch.stack([x, torch.zeros_like(x)], dim=1).repeat_interleave(2, dim=1)
    u = torch.full((4001,), 0.5, dtype=torch.float64)
    expected = rows_reference.sample(rows, u)
    before = _native.cpu.isa_used()
    try:
        for name in _native.cpu.isa_available():
            _native.cpu.use_isa(name)
            token, logp, lse = rows_native.sample(rows, u)
            assert torch.equal(token, expected[0])
            torch.testing.assert_close(lse, expected[2], rtol=1e-15, atol=1e-15)
            torch.testing.assert_close(logp, expected[1], rtol=1e-15, atol=1e-15)
    finally:
        _native.cpu.use_isa(before)
    exact = x.double().exp()
    error = (rows_reference.exp_exact(x).double() - exact).abs() / exact
    assert error[x > -87].max() < 3 * 2.0**-24


def test_numpy_in_numpy_out() -> None:
    got = gnb_sample(draw(3, 9).numpy(), seed=1)
    assert isinstance(got.tokens, np.ndarray)
    assert isinstance(got.logp, np.ndarray)
    assert gnb_sample(torch.empty(0, 9), seed=1).tokens.shape == (0,)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"seed": -1}, ValueError, r"^seed: expected an integer in \[0, 2\^64\)"),
        ({"row_offset": -1}, ValueError, r"^row_offset: expected an integer"),
        ({"temperature": 0.0}, ValueError, r"^temperature: expected a finite number > 0"),
        ({"mask": torch.ones(4)}, ValueError, r"^mask: expected shape \(3,\)"),
        ({"mask": torch.ones(3, dtype=torch.float64)}, TypeError, r"^mask: expected dtype"),
    ],
)
def test_wrong_arguments(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        gnb_sample(torch.zeros(3, 9), **({"seed": 1} | change))
    with pytest.raises(error, match=message):
        linear_gnb_sample(torch.zeros(3, 2), torch.zeros(9, 2), **({"seed": 1} | change))
