"""From scores and generated texts to predictions, and from predictions to figures."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import Any

from tenfold.llm.tasks.catalog import Task, find
from tenfold.llm.tasks.templates import Example


def predict(
    sums: Sequence[float],
    option_len: Sequence[int],
    num_options: Sequence[int],
    *,
    domain_sums: Sequence[float] | None = None,
) -> list[int]:
    """Index of the best option of each example.

    Args:
        sums: log-probability of each option (the sum over its tokens), one per row of ``encode``.
        option_len: tokens of each option.
        num_options: rows of each example.
        domain_sums: the same behind the domain strings (``encode(..., calibrate=True)``). Given, an option
            scores ``sums - domain_sums`` (arXiv 2104.08315); else its mean over its tokens.

    Raises:
        ValueError: lengths that do not fit, an option of no tokens, a score that is NaN.
    """
    total = sum(num_options)
    for name, values in (("sums", sums), ("option_len", option_len), ("domain_sums", domain_sums)):
        if values is not None and len(values) != total:
            raise ValueError(f"{name}: expected {total} entries (one per row), got {len(values)}")
    if domain_sums is None:
        for length in option_len:
            if length < 1:
                raise ValueError(f"option_len: expected at least 1, got {length}")
        scores = [float(value) / length for value, length in zip(sums, option_len, strict=True)]
    else:
        scores = [float(value) - float(domain) for value, domain in zip(sums, domain_sums, strict=True)]
    if any(score != score for score in scores):
        raise ValueError("sums: expected numbers, got NaN")
    chosen, start = [], 0
    for count in num_options:
        if count < 1:
            raise ValueError(f"num_options: expected at least 1, got {count}")
        chosen.append(max(range(count), key=lambda i: scores[start + i]))
        start += count
    return chosen


def first_line(generated: str) -> str:
    """The answer within a generated text: what stands before the first newline, without blanks around it."""
    return generated.split("\n", 1)[0].strip()


def normalize_answer(answer: str) -> str:
    """Lower case, no ASCII punctuation, no articles, single blanks (SQuAD, arXiv 1606.05250)."""
    bare = answer.lower().translate(str.maketrans("", "", string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def exact_match(answer: str, gold: Sequence[str]) -> float:
    """1 if the answer equals a gold answer once both are normalised, else 0."""
    return float(any(normalize_answer(answer) == normalize_answer(one) for one in gold))


def token_f1(answer: str, gold: Sequence[str]) -> float:
    """Largest F1 score over the gold answers, of the words that answer and gold answer share."""
    return max(_f1(normalize_answer(answer).split(), normalize_answer(one).split()) for one in gold)


def _f1(words: list[str], gold: list[str]) -> float:
    shared = sum((Counter(words) & Counter(gold)).values())
    if shared == 0:
        return 0.0
    precision, recall = shared / len(words), shared / len(gold)
    return 2 * precision * recall / (precision + recall)


def evaluate(task: str | Task, predictions: Sequence[Any], examples: Sequence[Example]) -> dict[str, float]:
    """Figures of a task, each a mean over the examples in [0, 1].

    Args:
        task: name, or the task itself.
        predictions: index of the chosen option for each example; for question answering the generated text,
            of which the first line counts.
        examples: the examples, in the same order.

    Returns:
        ``{"accuracy": ...}``, or ``{"f1": ..., "em": ...}`` for SQuAD and DROP. ReCoRD counts every gold
        entity as right.

    Raises:
        ValueError: no examples, or another number of predictions.
        TypeError: a prediction of the wrong kind.
    """
    known = find(task) if isinstance(task, str) else task
    if not examples or len(predictions) != len(examples):
        raise ValueError(
            f"predictions: expected one for each of {len(examples)} > 0 examples, got {len(predictions)}"
        )
    pairs = list(zip(predictions, examples, strict=True))
    if known.kind == "qa":
        for prediction in predictions:
            if not isinstance(prediction, str):
                raise TypeError(f"predictions: expected texts, got {type(prediction).__name__}")
        lines = [(first_line(text), example.answers) for text, example in pairs]
        return {
            "f1": _mean(token_f1(line, gold) for line, gold in lines),
            "em": _mean(exact_match(line, gold) for line, gold in lines),
        }
    return {"accuracy": _mean(_is_right(int(chosen), example) for chosen, example in pairs)}


def _is_right(chosen: int, example: Example) -> bool:
    if not 0 <= chosen < len(example.options):
        raise ValueError(f"predictions: expected 0 to {len(example.options) - 1}, got {chosen}")
    return example.options[chosen] in example.answers if example.answers else chosen == example.label


def _mean(values: Any) -> float:
    numbers = [float(value) for value in values]
    return sum(numbers) / len(numbers)
