"""Gradients of the log-probability losses, and their life under opcheck, torch.compile and autocast."""

from __future__ import annotations

import os
import shutil
from typing import Any

import pytest
import torch
from tenfold.kernels.logprob import logprob_chunks, logprob_reference
from torch import Tensor

from tenfold.ops.logprob import option_loss, token_logprobs, verbalizer_loss

CHOICE: dict[str, Any] = {"num_options": [2, 3], "labels": [1, 0]}
IDS = torch.randint(23, (5, 7), generator=torch.Generator().manual_seed(0))
LENGTHS = torch.tensor([1, 2, 3, 6, 1])
OPTIONS = (IDS, LENGTHS, torch.tensor([2, 3]), torch.tensor([1, 0]), None, "choice")
TOKENS = (torch.arange(7) * 3 % 23,)
WORDS = (torch.tensor([4, 4, 20]), torch.tensor([0, 1, 2, 0, 1, 2, 1]))


def operands(*shape: int, dtype: torch.dtype = torch.float64, bias: bool = True) -> list[Tensor | None]:
    g = torch.Generator().manual_seed(1)
    hidden, weight = torch.randn(*shape, 6, generator=g), torch.randn(23, 6, generator=g)
    vector = torch.randn(23, generator=g).to(dtype).requires_grad_() if bias else None
    return [hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), vector]


@pytest.mark.parametrize("mode", ["choice", "lm"])
def test_gradcheck_of_option_loss(mode: str) -> None:
    rest = CHOICE if mode == "choice" else {}

    def f(hidden: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        return tuple(option_loss(hidden, weight, bias, IDS, LENGTHS, mode=mode, **rest))  # type: ignore[return-value]

    assert torch.autograd.gradcheck(f, operands(5, 7))


def test_gradcheck_over_chunks_and_row_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logprob_chunks, "CHUNK_BYTES", {"cpu": 8 * 6 * 5})
    monkeypatch.setattr(logprob_chunks, "ROW_TILE", 3)
    assert torch.autograd.gradcheck(lambda *o: token_logprobs(*o, *TOKENS), operands(7))


def test_gradcheck_of_verbalizer_loss() -> None:
    assert torch.autograd.gradcheck(lambda h, w, b: verbalizer_loss(h, w, *WORDS, b), operands(7))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_of_narrow_dtypes(dtype: torch.dtype) -> None:
    ours, theirs = operands(5, 7, dtype=dtype), operands(5, 7, dtype=dtype)
    option_loss(*ours, IDS, LENGTHS, **CHOICE).loss.backward()
    wide = [t.double() for t in theirs if t is not None]
    logprob_reference.option_loss(*wide, IDS, LENGTHS.tolist(), [2, 3], [1, 0])[0].backward()
    tolerance = 1e-6 if dtype == torch.float32 else 4e-3
    for a, b in zip(ours, theirs, strict=True):
        assert a is not None
        assert b is not None
        assert a.grad is not None
        assert a.grad.dtype == dtype
        torch.testing.assert_close(a.grad, b.grad, rtol=tolerance, atol=tolerance * 0.1)


def test_only_what_is_asked_for_is_computed() -> None:
    hidden, weight, bias = operands(5, 7)
    assert weight is not None
    weight.requires_grad_(False)
    option_loss(hidden, weight, bias, IDS, LENGTHS, **CHOICE).loss.backward()
    assert weight.grad is None
    assert hidden is not None
    assert bias is not None
    assert hidden.grad is not None
    assert bias.grad is not None


def test_a_second_derivative_is_refused_not_wrong() -> None:
    hidden, weight, bias = operands(5, 7)
    loss = option_loss(hidden, weight, bias, IDS, LENGTHS, **CHOICE).loss
    (first,) = torch.autograd.grad(loss, [hidden], create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated once, not twice"):
        torch.autograd.grad(first.sum(), [hidden])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("op", ["option_loss", "token_logprobs", "verbalizer_loss"])
def test_opcheck(op: str, bias: bool) -> None:
    shape = (5, 7) if op == "option_loss" else (7,)
    hidden, weight, vector = operands(*shape, dtype=torch.float32, bias=bias)
    arguments = {
        "option_loss": (hidden, weight, vector, *OPTIONS),
        "token_logprobs": (hidden, weight, vector, *TOKENS),
        "verbalizer_loss": (hidden, weight, *WORDS, vector),
    }
    torch.library.opcheck(getattr(torch.ops.tenfold, op).default, arguments[op])


@pytest.mark.filterwarnings("ignore")
def test_opcheck_of_the_backward_ops() -> None:
    ops = torch.ops.tenfold
    with torch.no_grad():
        hidden, weight, bias = operands(5, 7)
        _, scores, lse = ops.option_loss(hidden, weight, bias, *OPTIONS)
        head = (torch.tensor(1.0).double(), torch.ones_like(scores), scores, lse)
        for needs in ([True, True, True], [True, False, False]):
            arguments = (
                *head,
                *(t.detach() for t in (hidden, weight, bias) if t is not None),
                *OPTIONS,
                needs,
            )
            torch.library.opcheck(ops.option_loss_backward.default, arguments)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which(os.environ.get("CXX") or "g++"), reason="needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mode", ["choice", "lm"])
def test_compiles_to_one_graph(mode: str) -> None:
    rest = CHOICE if mode == "choice" else {}

    def f(hidden: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        x = hidden.tanh()
        loss, scores = option_loss(x, weight, bias, IDS, LENGTHS, mode=mode, **rest)
        small, _ = verbalizer_loss(x[:, 3], weight, [4, 9], [0, 1, 1, 0, 1], bias)
        return loss + small + token_logprobs(x[:, 0], weight, bias, IDS[:, 1]).sum(), scores

    torch._dynamo.reset()
    ours, theirs = operands(5, 7), operands(5, 7)
    loss, scores = torch.compile(f, fullgraph=True)(*ours)  # type: ignore[arg-type]
    expected, expected_scores = f(*theirs)  # type: ignore[arg-type]
    loss.backward()
    expected.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(scores, expected_scores)
    for a, b in zip(ours, theirs, strict=True):
        assert a is not None
        assert b is not None
        torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize("forced", ["cpu", "reference"])
def test_autocast_does_not_narrow_the_products(forced: str) -> None:
    import tenfold

    ours, theirs = operands(5, 7, dtype=torch.float32), operands(5, 7, dtype=torch.float32)
    with tenfold.use_backend(forced):
        expected = option_loss(*theirs, IDS, LENGTHS, **CHOICE)
        expected.loss.backward()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            got = option_loss(*ours, IDS, LENGTHS, **CHOICE)
            got.loss.backward()
            words = verbalizer_loss(ours[0].detach()[:, 0], ours[1], [1, 2], [0, 1, 0, 1, 0])  # type: ignore[union-attr]
    assert torch.equal(got.loss, expected.loss)
    assert words[0].dtype == torch.float32
    for a, b in zip(ours, theirs, strict=True):
        assert a is not None
        assert b is not None
        torch.testing.assert_close(a.grad, b.grad, rtol=0, atol=0)


@pytest.mark.parametrize("device_type", ["cpu", "cuda"])
@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_products_are_full_float32_and_the_setting_comes_back(device_type: str, precision: str) -> None:
    flags = torch.backends.cuda.matmul if device_type == "cuda" else torch.backends.mkldnn.matmul
    if not hasattr(flags, "fp32_precision"):
        pytest.skip("this PyTorch has one setting for all devices")
    try:
        torch.set_float32_matmul_precision(precision)
        before = flags.fp32_precision
        with logprob_chunks.ieee_matmul(device_type):
            assert flags.fp32_precision in ("ieee", "none")
        assert flags.fp32_precision == before
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision("highest")
