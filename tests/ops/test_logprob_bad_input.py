"""Bad input to the log-probability losses: typed errors that name the argument, what was expected and got."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tenfold.ops.logprob import option_loss, token_logprobs, verbalizer_loss

INT = torch.int64


def good() -> dict[str, Any]:
    return {
        "hidden": torch.randn(4, 5, 6),
        "weight": torch.randn(11, 6),
        "bias": None,
        "ids": torch.arange(20).view(4, 5) % 11,
        "option_len": torch.tensor([1, 2, 4, 1]),
        "num_options": 2,
        "labels": torch.tensor([1, 0]),
    }


OPTION_CASES: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"hidden": torch.randn(4, 6)}, ValueError, r"hidden: expected shape \[B, T, H\], got \(4, 6\)"),
    (
        {"hidden": torch.zeros(4, 5, 6, dtype=INT)},
        TypeError,
        r"hidden: expected dtype .*float32.*, got torch.int64",
    ),
    ({"hidden": [[1.0]]}, TypeError, r"hidden: expected a torch.Tensor.*, got list"),
    (
        {"weight": torch.randn(11, 7)},
        ValueError,
        r"weight: expected shape \[V, H\] with H = 6.*, got \(11, 7\)",
    ),
    ({"weight": torch.randn(11, 6).to_sparse()}, TypeError, r"weight: expected a dense"),
    ({"weight": torch.empty(11, 6, device="meta")}, ValueError, r"weight: expected device cpu.*, got meta"),
    ({"bias": torch.randn(10)}, ValueError, r"bias: expected shape \(11,\).*, got \(10,\)"),
    ({"ids": torch.zeros(4, 4, dtype=INT)}, ValueError, r"ids: expected shape \(4, 5\).*, got \(4, 4\)"),
    ({"ids": torch.zeros(4, 5)}, TypeError, r"ids: expected dtype int64.*, got torch.float32"),
    ({"ids": torch.full((4, 5), 11)}, ValueError, r"ids: expected tokens in \[0, 11\).*, got 11"),
    ({"ids": torch.full((4, 5), -100)}, ValueError, r"ids: expected tokens in \[0, 11\).*, got -100"),
    ({"option_len": [1, 0, 1, 1]}, ValueError, r"option_len\[1\]: expected 1 to T - 1 = 4.*, got 0"),
    ({"option_len": [1, 1, 1, 5]}, ValueError, r"option_len\[3\]: expected 1 to T - 1 = 4.*, got 5"),
    ({"option_len": [1, -2, 1, 1]}, ValueError, r"option_len\[1\]: .*, got -2"),
    ({"option_len": [1, 1, 1]}, ValueError, r"option_len: expected shape \(4,\).*, got \(3,\)"),
    ({"option_len": [1, 1.5, 1, 1]}, TypeError, r"option_len\[1\]: expected an integer.*, got float 1.5"),
    ({"option_len": torch.ones(4)}, TypeError, r"option_len: expected dtype int64.*, got torch.float32"),
    ({"num_options": 3}, ValueError, r"num_options: expected a divisor of B = 4, got 3"),
    ({"num_options": 0}, ValueError, r"num_options: expected an integer in \[1, .*, got 0"),
    ({"num_options": None}, ValueError, r"num_options: expected a value in mode \"choice\".*, got None"),
    ({"num_options": True}, TypeError, r"num_options: expected an integer.*, got bool True"),
    ({"num_options": [3, 2]}, ValueError, r"num_options: expected counts that sum to B = 4, got 5"),
    ({"num_options": [4, 0]}, ValueError, r"num_options\[1\]: expected at least one option.*, got 0"),
    ({"labels": None}, ValueError, r"labels: expected a value in mode \"choice\".*, got None"),
    ({"labels": [1, 2]}, ValueError, r"labels\[1\]: expected an option in \[0, 2\), got 2"),
    ({"labels": [-1, 0]}, ValueError, r"labels\[0\]: expected an option in \[0, 2\), got -1"),
    ({"labels": [1, 0, 0]}, ValueError, r"labels: expected shape \(2,\).*, got \(3,\)"),
    ({"labels": torch.tensor([0.0, 1.0])}, TypeError, r"labels: expected dtype int64.*, got torch.float32"),
    ({"mode": "nll"}, ValueError, r"mode: expected one of 'choice', 'lm', got 'nll'"),
    ({"mode": "lm"}, ValueError, r"num_options: expected None in mode \"lm\", got int"),
    ({"mode": "lm", "num_options": None}, ValueError, r"labels: expected None in mode \"lm\", got Tensor"),
    (
        {"attention_mask": torch.ones(4, 6)},
        ValueError,
        r"attention_mask: expected shape \(4, 5\).*, got \(4, 6\)",
    ),
    (
        {"attention_mask": torch.tensor([[0, 0, 0, 1, 1]] * 4)},
        ValueError,
        r"attention_mask\[1\]: expected 2 option tokens and the token before .*\[0, 0, 0, 1, 1\]",
    ),
    ({"attention_mask": torch.zeros(4, 5)}, ValueError, r"attention_mask\[0\]: expected 1 option"),
]


@pytest.mark.parametrize(("change", "kind", "message"), OPTION_CASES)
def test_option_loss(change: dict[str, Any], kind: type[Exception], message: str) -> None:
    option_loss(**good())
    with pytest.raises(kind, match=message):
        option_loss(**{**good(), **change})


def test_a_row_of_one_token_has_no_option() -> None:
    short = {"hidden": torch.randn(4, 1, 6), "ids": torch.zeros(4, 1, dtype=INT), "option_len": [1] * 4}
    with pytest.raises(ValueError, match=r"option_len\[0\]: expected 1 to T - 1 = 0 .*, got 1"):
        option_loss(**{**good(), **short})


@pytest.mark.parametrize(
    ("targets", "kind", "message"),
    [
        ([0, 1], ValueError, r"targets: expected shape \(3,\).*, got \(2,\)"),
        ([0, 1, 6], ValueError, r"targets: expected tokens in \[0, 6\).*, got 6"),
        ([0, 1, "a"], TypeError, r"targets\[2\]: expected an integer.*, got str 'a'"),
        (torch.zeros(3), TypeError, r"targets: expected dtype int64.*, got torch.float32"),
    ],
)
def test_token_logprobs(targets: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        token_logprobs(torch.randn(3, 4), torch.randn(6, 4), None, targets)


@pytest.mark.parametrize(
    ("token_ids", "labels", "message"),
    [
        ([1, 6], [0, 1, 0], r"token_ids: expected tokens in \[0, 6\).*, got 6"),
        ([1, 2], [0, 1, 2], r"labels\[2\]: expected an index into token_ids, in \[0, 2\), got 2"),
        ([1, 2], [0, 1], r"labels: expected shape \(3,\).*, got \(2,\)"),
        (torch.zeros(2, 2, dtype=INT), [0, 1, 0], r"token_ids: expected shape \[C\], got \(2, 2\)"),
    ],
)
def test_verbalizer_loss(token_ids: Any, labels: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        verbalizer_loss(torch.randn(3, 4), torch.randn(6, 4), token_ids, labels)


@pytest.mark.filterwarnings("ignore:.*quantize")
def test_a_quantised_weight_is_refused() -> None:
    weight = torch.quantize_per_tensor(torch.randn(11, 6), 0.1, 0, torch.qint8)
    with pytest.raises(TypeError, match=r"weight: expected dtype float32.*, got torch.qint8"):
        option_loss(**{**good(), "weight": weight})
