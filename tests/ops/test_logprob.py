"""option_loss, token_logprobs and verbalizer_loss against the row-by-row float64 oracle, on every backend."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tenfold.kernels.logprob import logprob_chunks, logprob_native, logprob_reference
from torch import Tensor

import tenfold
from tenfold import _native
from tenfold.ops.logprob import option_loss, token_logprobs, verbalizer_loss


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def batch(
    seed: int, rows: int, length: int, width: int, vocabulary: int, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {
        "hidden": torch.randn(rows, length, width, generator=g).to(dtype),
        "weight": (torch.randn(vocabulary, width, generator=g) / width**0.5).to(dtype),
        "bias": torch.randn(vocabulary, generator=g).to(dtype),
        "ids": torch.randint(vocabulary, (rows, length), generator=g),
        "option_len": torch.randint(1, length, (rows,), generator=g),
    }


def exact(data: dict[str, Tensor], **rest: object) -> tuple[Tensor, Tensor]:
    """The oracle in float64 on the stored values."""
    wide = {k: v.double() if v.is_floating_point() else v for k, v in data.items()}
    lengths = wide.pop("option_len").tolist()
    return logprob_reference.option_loss(**wide, option_len=lengths, **rest)  # type: ignore[arg-type]


def moved(data: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {k: v if k == "option_len" else v.to(device) for k, v in data.items()}


def assert_near(got: Tensor, expected: Tensor, tolerance: float = 5e-6) -> None:
    torch.testing.assert_close(got.cpu().double(), expected, rtol=0, atol=tolerance)


RAGGED = {"num_options": [3, 1, 2], "labels": [2, 0, 1]}


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("mode", ["choice", "lm"])
def test_option_loss_matches_the_oracle(backend: Any, mode: str, dtype: torch.dtype) -> None:
    data = batch(0, 6, 9, 40, 150, dtype)
    rest = RAGGED if mode == "choice" else {}
    loss, scores = exact(data, mode=mode, **rest)
    got = option_loss(**moved(data, backend.device), mode=mode, **rest)
    assert got.loss.dtype == got.scores.dtype == torch.float32
    assert_near(got.loss, loss)
    assert_near(got.scores, scores)


def test_float64_stays_float64(backend: Any) -> None:
    data = batch(1, 6, 5, 8, 30, torch.float64)
    got = option_loss(**moved(data, backend.device), **RAGGED)
    loss, scores = exact(data, **RAGGED)
    assert got.loss.dtype == torch.float64
    assert_near(got.loss, loss, 1e-13)
    assert_near(got.scores, scores, 1e-13)


def test_an_int_counts_options_for_every_example(backend: Any) -> None:
    data = moved(batch(2, 6, 5, 8, 30), backend.device)
    same = option_loss(**data, num_options=torch.tensor([3, 3]), labels=torch.tensor([1, 2]))
    got = option_loss(**data, num_options=3, labels=(1, 2))
    assert torch.equal(got.loss, same.loss)


def test_mixed_dtypes_multiply_the_stored_values(backend: Any) -> None:
    data = batch(3, 6, 5, 8, 30)
    data["hidden"] = data["hidden"].bfloat16()
    data["bias"] = data["bias"].half()
    got = option_loss(**moved(data, backend.device), **RAGGED)
    assert_near(got.loss, exact(data, **RAGGED)[0])


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.integers(1, 40),
    width=st.integers(1, 70),
    vocabulary=st.integers(1, 90),
    dtype=st.sampled_from(FLOATS),
    strided=st.booleans(),
    biased=st.booleans(),
    seed=st.integers(0, 99),
)
def test_token_logprobs_of_any_shape(
    backend: Any,
    rows: int,
    width: int,
    vocabulary: int,
    dtype: torch.dtype,
    strided: bool,
    biased: bool,
    seed: int,
) -> None:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, width, generator=g).to(dtype)
    w = torch.randn(vocabulary, width, generator=g).to(dtype)
    b = torch.randn(vocabulary, generator=g) if biased else None
    t = torch.randint(vocabulary, (rows,), generator=g)
    expected, _ = logprob_reference.token_logprobs(x.double(), w.double(), b, t)
    x, w, t = x.to(backend.device), w.to(backend.device), t.to(backend.device)
    if strided:  # every other row of the weight, a transposed hidden, targets with a step
        w = torch.stack([w, torch.full_like(w, 9.0)], dim=1)[:, 0]
        x = x.T.contiguous().T
        t = torch.stack([t, t], dim=1)[:, 0]
    got = token_logprobs(x, w, None if b is None else b.to(backend.device), t)
    assert got.dtype == torch.float32
    assert_near(got, expected, 2e-5 if width > 30 else 1e-5)


def test_a_transposed_weight(backend: Any) -> None:
    x, w, t = torch.randn(5, 16), torch.randn(16, 33).T, torch.arange(5)
    expected, _ = logprob_reference.token_logprobs(x.double(), w.double(), None, t)
    assert_near(
        token_logprobs(x.to(backend.device), w.to(backend.device), None, t.to(backend.device)), expected
    )


def test_columns_ruled_out_by_the_bias(backend: Any) -> None:
    x, w = torch.randn(4, 8), torch.randn(50, 8)
    b = torch.full((50,), -torch.inf)
    b[[3, 7, 49]] = 0.0
    t = torch.tensor([3, 7, 49, 11])
    got = token_logprobs(*(v.to(backend.device) for v in (x, w, b, t))).cpu()
    expected = (x.double() @ w.double().T + b).log_softmax(1)[torch.arange(4), t]
    assert got[3] == -torch.inf
    assert_near(got[:3], expected[:3])


def test_large_logits_do_not_overflow(backend: Any) -> None:
    x, w, t = torch.randn(4, 8) * 1e4, torch.randn(50, 8), torch.arange(4)
    expected, _ = logprob_reference.token_logprobs(x.double(), w.double(), None, t)
    got = token_logprobs(x.to(backend.device), w.to(backend.device), None, t.to(backend.device))
    torch.testing.assert_close(got.cpu().double(), expected, rtol=2e-6, atol=1e-5)


@pytest.mark.parametrize("where", ["hidden", "weight", "bias"])
def test_nan_reaches_the_loss(backend: Any, where: str) -> None:
    data = batch(4, 6, 5, 8, 30)
    data["ids"].clamp_(min=1)
    (data["hidden"][:, :, 3] if where == "hidden" else data[where][0]).fill_(torch.nan)
    assert option_loss(**moved(data, backend.device), **RAGGED).loss.isnan()


def test_no_rows(backend: Any) -> None:
    empty = option_loss(
        torch.empty(0, 4, 8, device=backend.device),
        torch.randn(30, 8, device=backend.device),
        None,
        torch.empty(0, 4, dtype=torch.int64, device=backend.device),
        [],
        num_options=2,
        labels=[],
    )
    assert empty.scores.shape == (0,)
    assert empty.loss.isnan()
    rows, w = torch.empty(0, 8, device=backend.device), torch.randn(30, 8, device=backend.device)
    assert token_logprobs(rows, w, None, torch.empty(0, dtype=torch.int64, device=backend.device)).shape == (
        0,
    )


def test_width_zero_leaves_the_bias(backend: Any) -> None:
    bias, targets = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([2, 0])
    x, w = torch.empty(2, 0), torch.empty(3, 0)
    got = token_logprobs(*(v.to(backend.device) for v in (x, w, bias, targets)))
    assert_near(got, bias.double().log_softmax(0)[targets])


@pytest.mark.parametrize("side", ["left", "right"])
def test_attention_mask_finds_the_end_of_a_row(backend: Any, side: str) -> None:
    data = batch(5, 4, 6, 8, 30)
    data["option_len"] = torch.tensor([1, 2, 3, 1])
    expected = exact(data, num_options=[2, 2], labels=[0, 1])
    pad = (0, 0, 3, 0) if side == "left" else (0, 0, 0, 3)
    data["hidden"] = torch.nn.functional.pad(data["hidden"], pad, value=float("nan"))
    data["ids"] = torch.nn.functional.pad(data["ids"], pad[2:], value=1)
    mask = torch.nn.functional.pad(torch.ones(4, 6, dtype=torch.int64), pad[2:])
    data = moved(data, backend.device)
    got = option_loss(**data, num_options=2, labels=[0, 1], attention_mask=mask.to(backend.device))
    assert_near(got.loss, expected[0])
    assert_near(got.scores, expected[1])


def test_verbalizer_loss_is_the_softmax_over_its_words(backend: Any) -> None:
    g = torch.Generator().manual_seed(6)
    for dtype in FLOATS:
        x, w = torch.randn(7, 16, generator=g).to(dtype), torch.randn(90, 16, generator=g).to(dtype)
        b, words, labels = torch.randn(90, generator=g), [5, 80, 17], [0, 1, 2, 2, 1, 0, 1]
        expected = logprob_reference.verbalizer_loss(
            x.double(), w.double(), torch.tensor(words), torch.tensor(labels), b.double()
        )
        got = verbalizer_loss(x.to(backend.device), w.to(backend.device), words, labels, b.to(backend.device))
        assert_near(got[0], expected[0], 2e-6)
        assert_near(got[1], expected[1], 1e-5)


def test_threads_and_rows_do_not_change_a_bit(isa: str) -> None:
    g = torch.Generator().manual_seed(7)
    x, w = torch.randn(70, 96, generator=g), torch.randn(1234, 96, generator=g)
    t = torch.randint(1234, (70,), generator=g)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 7):
            torch.set_num_threads(threads)
            results.append(logprob_native.token_logprobs(x, w, None, t))
    finally:
        torch.set_num_threads(before)
    for logp, lse in results[1:]:
        assert torch.equal(logp, results[0][0])
        assert torch.equal(lse, results[0][1])
    one_by_one = [logprob_native.token_logprobs(x[i : i + 1], w, None, t[i : i + 1])[0] for i in (0, 20, 69)]
    assert torch.equal(torch.cat(one_by_one), results[0][0][[0, 20, 69]])


def test_more_rows_than_a_tile(isa: str) -> None:
    x, w, t = torch.randn(300, 24), torch.randn(70, 24).bfloat16(), torch.randint(70, (300,))
    expected, _ = logprob_reference.token_logprobs(x.double(), w.double(), None, t)
    assert_near(logprob_native.token_logprobs(x, w, None, t)[0], expected)


def test_chunks_of_the_vocabulary_join(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logprob_chunks, "CHUNK_BYTES", {"cpu": 4 * 24 * 10})
    monkeypatch.setattr(logprob_chunks, "ROW_TILE", 4)
    x, w, b, t = torch.randn(9, 24), torch.randn(97, 24), torch.randn(97), torch.randint(97, (9,))
    chunks = logprob_chunks.Chunks(x, w, b)
    assert len(list(chunks.vocabulary())) == 10
    assert len(list(chunks.logits(slice(0, 10)))) == 3
    expected, lse = logprob_reference.token_logprobs(x.double(), w.double(), b.double(), t)
    got = logprob_chunks.token_logprobs(x, w, b, t)
    assert_near(got[0], expected)
    assert_near(got[1], lse)


def test_numpy_in_numpy_out() -> None:
    data = batch(8, 6, 5, 8, 30)
    got = option_loss(**{k: v.numpy() for k, v in data.items()}, **RAGGED)
    assert isinstance(got.loss, np.ndarray)
    assert isinstance(got.scores, np.ndarray)
    assert np.array_equal(got.scores, option_loss(**data, **RAGGED).scores.numpy())


def test_a_forced_backend_that_cannot_run_is_an_error() -> None:
    data = batch(9, 6, 5, 8, 30)
    with tenfold.use_backend("cuda"), pytest.raises(RuntimeError, match=r"option_loss.*'cuda' was forced"):
        option_loss(**data, **RAGGED)


def test_the_instruction_sets_agree() -> None:
    g = torch.Generator().manual_seed(10)
    x, w = torch.randn(20, 64, generator=g), torch.randn(500, 64, generator=g).half()
    t = torch.randint(500, (20,), generator=g)
    before, results = _native.cpu.isa_used(), []
    try:
        for name in _native.cpu.isa_available():
            _native.cpu.use_isa(name)
            results.append(logprob_native.token_logprobs(x, w, None, t)[0])
    finally:
        _native.cpu.use_isa(before)
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=0, atol=3e-6)
