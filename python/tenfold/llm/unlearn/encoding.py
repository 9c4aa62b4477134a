"""Prompt and answer as token ids with labels, and batches of them.

Where the answer begins is read off the character offsets of the tokens of the whole text. Tokenising the
prompt alone and counting gives another number whenever a token spans the seam. The attention mask comes from
the lengths of the rows: a mask from ``ids != pad_id`` would hide a real end-of-text token whenever padding
uses the same id.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tenfold import _checks
from tenfold.llm.tasks.encoding import _front, _start
from tenfold.llm.unlearn.rows import Row
from tenfold.llm.unlearn.templates import prompts

__all__ = [
    "IGNORE",
    "Encoded",
    "EncodedRows",
    "collate",
    "collate_packed",
    "encode",
    "encode_rows",
    "encode_texts",
    "portions",
]

IGNORE = -100


@dataclass(frozen=True)
class Encoded:
    """One row as tokens.

    Attributes:
        ids: token ids.
        labels: the same, -100 on the prompt. ``labels[t]`` is predicted at position t - 1.
        index: of the row.
        truncated: the text was longer than allowed.
    """

    ids: list[int]
    labels: list[int]
    index: int = 0
    truncated: bool = False

    @property
    def labelled(self) -> int:
        """Number of labels that are not -100."""
        return sum(label != IGNORE for label in self.labels)


@dataclass(frozen=True)
class EncodedRows:
    """Encoded rows that have labels, and what is to be said of the others.

    Attributes:
        rows: those with at least one label.
        unlabelled: index of each row whose prompt alone fills ``max_length``; it is left out of ``rows``.
        truncated: number of rows that lost tokens at their end.
    """

    rows: list[Encoded]
    unlabelled: list[int]
    truncated: int

    def __len__(self) -> int:
        return len(self.rows)


def encode(
    tokenizer: Any, prompt: str, answer: str, max_length: int = 512, *, index: int = 0, eos: bool = True
) -> Encoded:
    """Prompt, answer and end-of-text token, cut to ``max_length`` at the end.

    What the tokenizer puts in front of a text stands in front, unlabelled (a row without a prompt and without
    that gets a begin- or end-of-text token, so that its first token can be predicted). A token that spans the
    end of the prompt belongs to the answer.

    Args:
        tokenizer: a fast tokenizer of ``transformers``.
        prompt: text of which nothing is learned; may be empty.
        answer: text to label.
        max_length: largest number of tokens.
        index: kept in the result.
        eos: append the end-of-text token and label it.

    Raises:
        ValueError: a tokenizer without offsets, or without an end-of-text token.
    """
    _checks.integer("max_length", max_length, 2, 2**31)
    return _encoded(tokenizer, [(prompt, answer)], max_length, [index], eos)[0]


def encode_rows(
    tokenizer: Any,
    rows: Sequence[Row],
    template: str,
    max_length: int = 512,
    *,
    answers: Sequence[str] | None = None,
    paraphrased: bool = False,
    eos: bool = True,
) -> EncodedRows:
    """Rows in a template, tokenised in one call.

    Args:
        tokenizer, max_length, eos: as in :func:`encode`.
        template: as in :func:`tenfold.llm.unlearn.templates.prompt`.
        answers: other answers, one per row (refusals, say).
        paraphrased: ask the paraphrased question.

    Raises:
        ValueError: no rows; ``answers`` of another length; every prompt fills ``max_length``.
    """
    _checks.integer("max_length", max_length, 2, 2**31)
    if not rows:
        raise ValueError("rows: expected at least one row, got an empty set")
    if answers is not None:
        _checks.length("answers", answers, len(rows), "rows")
    said = [row.answer for row in rows] if answers is None else list(answers)
    pairs = list(zip(prompts(template, list(rows), tokenizer, paraphrased=paraphrased), said, strict=True))
    found = _encoded(tokenizer, pairs, max_length, [row.index for row in rows], eos)
    labelled = [encoded for encoded in found if encoded.labelled]
    if not labelled:
        raise ValueError(
            f"max_length: expected more than the tokens of a prompt, got {max_length}: the prompt of each of "
            f"{len(rows)} rows fills it, so that no token of an answer is left"
        )
    unlabelled = [encoded.index for encoded in found if not encoded.labelled]
    return EncodedRows(labelled, unlabelled, sum(encoded.truncated for encoded in found))


def encode_texts(tokenizer: Any, rows: Sequence[Row], max_length: int = 512) -> EncodedRows:
    """Plain texts cut into pieces of ``max_length`` tokens, all of it labelled.

    Nothing of a text is lost; every piece begins with the begin- (or end-)of-text token. ``index`` of a piece
    is that of its row; ``truncated`` is the number of rows of more than one piece.

    Raises:
        ValueError: no rows; a tokenizer without a begin- or end-of-text token.
    """
    _checks.integer("max_length", max_length, 2, 2**31)
    if not rows:
        raise ValueError("rows: expected at least one row, got an empty set")
    texts = [row.answer for row in rows]
    front = _front(tokenizer) or _start(tokenizer)
    room, pieces, several = max_length - len(front), [], 0
    if room < 1:
        raise ValueError(f"max_length: expected more than {len(front)} tokens, got {max_length}")
    for row, ids in zip(rows, tokenizer(texts, add_special_tokens=False).input_ids, strict=True):
        several += len(ids) > room
        for start in range(0, len(ids), room):
            piece = list(ids[start : start + room])
            pieces.append(Encoded(front + piece, [IGNORE] * len(front) + piece, row.index))
    return EncodedRows(pieces, [row.index for row in rows if not row.answer], several)


def _encoded(
    tokenizer: Any, pairs: Sequence[tuple[str, str]], max_length: int, indices: Sequence[int], eos: bool
) -> list[Encoded]:
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            f"tokenizer: expected a fast one, which tells the offsets of its tokens, got "
            f"{type(tokenizer).__name__}"
        )
    if eos and tokenizer.eos_token_id is None:
        raise ValueError(f"tokenizer: expected an end-of-text token, got none in {type(tokenizer).__name__}")
    texts = [prompt + answer for prompt, answer in pairs]
    batch = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
    front, found = _front(tokenizer), []
    for (prompt, _), ids, offsets, index in zip(
        pairs, batch.input_ids, batch.offset_mapping, indices, strict=True
    ):
        ids = list(ids)
        labels = [
            token if end > len(prompt) else IGNORE for token, (_, end) in zip(ids, offsets, strict=True)
        ]
        before = [] if front and ids[: len(front)] == front else front  # a chat template may have written it
        if not before and (not labels or labels[0] != IGNORE):
            before = _start(tokenizer)
        ids, labels = before + ids, [IGNORE] * len(before) + labels
        if eos and (not ids or ids[-1] != tokenizer.eos_token_id or labels[-1] == IGNORE):
            ids, labels = [*ids, tokenizer.eos_token_id], [*labels, tokenizer.eos_token_id]
        found.append(Encoded(ids[:max_length], labels[:max_length], index, len(ids) > max_length))
    return found


def collate(rows: Sequence[Encoded], pad_id: int, *, multiple_of: int = 1) -> dict[str, Tensor]:
    """A batch, padded on the right: int64 tensors on the CPU.

    Returns:
        ``input_ids``, ``labels`` (-100 on prompt and padding), ``attention_mask`` [B, T]; ``lengths``,
        ``index`` [B]. The first three are what a model of ``transformers`` takes.

    Raises:
        ValueError: no rows.
    """
    if not rows:
        raise ValueError("rows: expected at least one row, got none")
    _checks.integer("multiple_of", multiple_of, 1, 2**20)
    width = -(-max(len(row.ids) for row in rows) // multiple_of) * multiple_of
    ids = torch.full((len(rows), width), pad_id, dtype=torch.int64)
    labels = torch.full_like(ids, IGNORE)
    for i, row in enumerate(rows):
        ids[i, : len(row.ids)] = torch.tensor(row.ids)
        labels[i, : len(row.ids)] = torch.tensor(row.labels)
    lengths = torch.tensor([len(row.ids) for row in rows])
    mask = (torch.arange(width) < lengths[:, None]).long()
    index = torch.tensor([row.index for row in rows])
    return {"input_ids": ids, "labels": labels, "attention_mask": mask, "lengths": lengths, "index": index}


def collate_packed(rows: Sequence[Encoded]) -> dict[str, Tensor]:
    """A batch without padding: the rows one behind the other.

    Returns:
        ``input_ids``, ``labels``, ``position_ids`` [1, N]; ``cu_seqlens`` int32 [B + 1], where each row
        begins, and N; ``index`` [B]. The first label of every row is -100 already, so that no row is
        predicted from the one in front of it.

    Raises:
        ValueError: no rows.
    """
    if not rows:
        raise ValueError("rows: expected at least one row, got none")
    lengths = torch.tensor([len(row.ids) for row in rows])
    joined = {name: [t for row in rows for t in getattr(row, name)] for name in ("ids", "labels")}
    ends = torch.cat((torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)))
    return {
        "input_ids": torch.tensor([joined["ids"]]),
        "labels": torch.tensor([joined["labels"]]),
        "position_ids": torch.cat([torch.arange(n) for n in lengths.tolist()])[None],
        "cu_seqlens": ends.to(torch.int32),
        "index": torch.tensor([row.index for row in rows]),
    }


def portions(lengths: Sequence[int], tokens: int = 4096) -> list[list[int]]:
    """Indices in groups of like length: the longest of a group times its number stays within ``tokens``."""
    from tenfold.llm.objective import _portions

    return _portions(lengths, tokens)
