"""Is what the model says still language? To be read beside every forget quality.

Two figures that need no classifier. ``repetition``: the share of an answer's token trigrams that occurred in
it before; near 1 for "{{{{{{". ``base_logprob``: the mean log-probability per token of the answer, behind its
prompt, under the untouched base model; low for anything that no fluent model would say.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tenfold.llm.unlearn.encoding import IGNORE, Encoded
from tenfold.llm.unlearn.evaluate.scores import Progress, token_scores

__all__ = ["base_logprobs", "repetition"]


def repetition(tokens: Sequence[int], n: int = 3) -> float:
    """1 - distinct n-grams / n-grams; 0 for fewer than two n-grams."""
    grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if len(grams) > 1 else 0.0


def base_logprobs(
    base: Any,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    *,
    pad_id: int,
    progress: Progress = None,
) -> list[float | None]:
    """Mean log-probability per token of each answer under ``base``; None for an empty answer.

    Args:
        base: the model before any teaching or unlearning.
        prompts, answers: token ids.
        pad_id: token for padding.
    """
    rows = [
        Encoded([*prompt, *answer], [IGNORE] * len(prompt) + list(answer), i)
        for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True))
        if len(answer) and len(prompt)
    ]
    found: list[float | None] = [None] * len(prompts)
    for row, scores in zip(rows, token_scores(base, rows, pad_id=pad_id, progress=progress), strict=True):
        found[row.index] = float(scores.logp.mean())
    return found
