from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tenfold.llm import prompts
from tenfold.llm.data import Example


def test_left_padding() -> None:
    ids, mask = prompts.pad_left([[5, 6, 7], [8]], pad_id=1)
    assert ids.tolist() == [[5, 6, 7], [1, 1, 8]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1]]


def test_long_prompts_keep_their_end(tokenizer: Any) -> None:
    encoded = prompts.encode([Example("good film bad cast", 1)], tokenizer, "{text} It was", max_length=3)
    assert tokenizer.convert_ids_to_tokens(encoded.rows[0]) == ["cast", "It", "was"]
    assert encoded.labels.tolist() == [1]


def test_blanks_at_the_end_are_left_out() -> None:
    seen: list[str] = []

    def tokenizer(texts: list[str]) -> Any:
        seen.extend(texts)
        return SimpleNamespace(input_ids=[[1] for _ in texts])

    prompts.encode([Example("good", 1)], tokenizer, "{text} It was  ", max_length=9)
    assert seen == ["good It was"]


def test_braces_in_a_text_are_text(tokenizer: Any) -> None:
    encoded = prompts.encode([Example("{label} {text}", 0)], tokenizer, "{text} It was", max_length=99)
    assert tokenizer.convert_ids_to_tokens(encoded.rows[0])[-2:] == ["It", "was"]


def test_options(tokenizer: Any) -> None:
    ids = prompts.option_ids(tokenizer, [" terrible", " great"])
    assert tokenizer.convert_ids_to_tokens(ids.tolist()) == ["terrible", "great"]
    assert ids.dtype == torch.int64


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([" great", " very bad"], r"one token each, got ' very bad' = 2"),
        ([" great"], "at least two"),
        ([" great", "great"], "different tokens"),
    ],
)
def test_bad_options(tokenizer: Any, words: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=f"verbalizers: expected .*{said}"):
        prompts.option_ids(tokenizer, words)


@pytest.mark.parametrize("template", ["It was", "{text} and {text}", "{sentence} It was"])
def test_bad_templates(template: str) -> None:
    with pytest.raises(ValueError, match=r"template: expected '{text}' exactly once"):
        prompts.check_template(template)
