"""What an evaluation asks of a model about sets of rows, all in one go: the log-probability of every right,
paraphrased and false answer, and greedy answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from tenfold import _checks
from tenfold.llm.unlearn.encoding import Encoded, encode_rows
from tenfold.llm.unlearn.evaluate.generation import decode, generate_ids, prompt_ids
from tenfold.llm.unlearn.evaluate.scores import Progress, TokenScores, token_scores
from tenfold.llm.unlearn.rows import Row
from tenfold.llm.unlearn.templates import prompts

__all__ = ["Answers", "Asked", "Stage", "ask", "select"]

Stage: TypeAlias = "Callable[[str, int, int], None] | None"
"""``progress(stage, done, total)``."""


@dataclass
class Asked:
    """One row and what the model gave for it. None: not asked, or no token of it fits.

    Attributes:
        row: the row.
        answer, paraphrase: scores of the answer and of the answer in other words (of the answer itself, where
            the row has no other words).
        wrong: scores of each false answer.
        generated: the greedy answer; ``tokens`` and ``prompt`` are the ids of it and of what is in front.
    """

    row: Row
    answer: TokenScores | None = None
    paraphrase: TokenScores | None = None
    wrong: list[TokenScores | None] = field(default_factory=list)
    generated: str | None = None
    tokens: list[int] = field(default_factory=list)
    prompt: list[int] = field(default_factory=list)

    @property
    def nll(self) -> float | None:
        """Mean NLL per token of the answer."""
        return _nll(self.answer)

    @property
    def paraphrase_nll(self) -> float | None:
        return _nll(self.paraphrase)

    @property
    def wrong_nll(self) -> list[float] | None:
        """Of the false answers; None where there are none, or one does not fit."""
        found = [_nll(scores) for scores in self.wrong]
        return [a for a in found if a is not None] if found and None not in found else None


def _nll(scores: TokenScores | None) -> float | None:
    return None if scores is None else -float(scores.logp.mean())


@dataclass
class Answers:
    """What was asked of each set, and how many texts did not fit.

    Attributes:
        sets: rows of each set, with what the model gave.
        unlabelled: texts left out because their prompt fills the length.
        truncated: texts that lost tokens at their end.
    """

    sets: dict[str, list[Asked]]
    unlabelled: int = 0
    truncated: int = 0


def select(rows: Sequence[Row], limit: int | None) -> list[Row]:
    """``limit`` rows at even distances, or all."""
    if limit is None or limit >= len(rows):
        return list(rows)
    _checks.integer("limit", limit, 1, 2**62)
    return [rows[i * len(rows) // limit] for i in range(limit)]


def ask(
    model: Any,
    tokenizer: Any,
    sets: Mapping[str, Sequence[Row]],
    template: str,
    *,
    max_length: int = 512,
    paraphrased: bool = False,
    tokens: int = 4096,
    score: Any = token_scores,
    progress: Stage = None,
) -> Answers:
    """Log-probabilities of all answers of all sets.

    Args:
        sets: rows by name.
        template: as in :func:`tenfold.llm.unlearn.data.prompt`.
        paraphrased: paraphrased and false answers follow the paraphrased question where a row has one (as
            SOUL asks them) instead of the question (TOFU).
        score: called as :func:`token_scores`, which it stands in for.

    Raises:
        ValueError: no rows at all; every prompt fills ``max_length``.
    """
    found = Answers({name: [Asked(row) for row in rows] for name, rows in sets.items()})
    every = [asked for rows in found.sets.values() for asked in rows]
    wanted: list[tuple[Asked, str, int]] = []
    questions: list[Row] = []
    for asked in every:
        row = asked.row
        other = row.paraphrased_question if paraphrased else ""
        wanted += [(asked, "answer", 0)]
        questions += [Row(row.question, row.answer)]
        if row.wrong:
            wanted += [(asked, "paraphrase", 0), *((asked, "wrong", j) for j in range(len(row.wrong)))]
            said = (row.paraphrased_answer or row.answer, *row.wrong)
            questions += [Row(other or row.question, text) for text in said]
            asked.wrong = [None] * len(row.wrong)
    if not questions:
        raise ValueError("rows: expected at least one row, got none in any set")
    numbered = [replace(row, index=i) for i, row in enumerate(questions)]
    encoded = encode_rows(tokenizer, numbered, template, max_length)
    found.unlabelled, found.truncated = len(encoded.unlabelled), encoded.truncated
    scored = score(
        model, encoded.rows, pad_id=tokenizer.pad_token_id, eos_id=tokenizer.eos_token_id, tokens=tokens,
        progress=counted(progress, "log-probabilities", len(encoded.rows)),
    )  # fmt: skip
    for item, scores in zip(encoded.rows, scored, strict=True):
        asked, kind, j = wanted[item.index]
        if kind == "wrong":
            asked.wrong[j] = scores
        else:
            setattr(asked, kind, scores)
    return found


def answer_all(
    model: Any,
    tokenizer: Any,
    answers: Answers,
    template: str,
    *,
    max_new_tokens: int = 200,
    tokens: int = 4096,
    progress: Stage = None,
) -> None:
    """Fill in the greedy answer of every row."""
    every = [asked for rows in answers.sets.values() for asked in rows]
    texts = prompts(template, [asked.row for asked in every], tokenizer)
    made = generate_ids(
        model, tokenizer, texts, max_new_tokens=max_new_tokens, tokens=tokens,
        progress=counted(progress, "answers", len(texts)),
    )  # fmt: skip
    fronts = prompt_ids(tokenizer, texts, 2**31)
    said = decode(tokenizer, made)
    for asked, ids, front, text in zip(every, made, fronts, said, strict=True):
        asked.generated, asked.tokens, asked.prompt = text, ids, front


def encoded_answers(tokenizer: Any, rows: Sequence[Row], template: str, max_length: int) -> list[Encoded]:
    """Rows as tokens, numbered by place; those whose prompt fills the length are missing."""
    numbered = [replace(row, index=i) for i, row in enumerate(rows)]
    return encode_rows(tokenizer, numbered, template, max_length).rows


def counted(progress: Stage, stage: str, total: int) -> Progress:
    """A callback that adds up."""
    if progress is None:
        return None
    done = 0

    def step(count: int) -> None:
        nonlocal done
        done += count
        progress(stage, done, total)

    return step
