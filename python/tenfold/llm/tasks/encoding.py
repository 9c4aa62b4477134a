"""Examples as rows of token ids, for causal language models and for masked ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tenfold import _checks
from tenfold.llm.prompts import option_ids
from tenfold.llm.tasks.templates import Example

SEPARATOR = "\n\n"
"""Between two demonstrations, and between the last one and the prompt."""


class Rows(NamedTuple):
    """Tokenised examples, one row per (example, option), the options of an example behind one another.

    Attributes:
        ids: token ids of prompt and option.
        option_len: number of tokens at the end of each row that are the option's, >= 1.
        num_options: rows of each example.
        labels: index of the right option among the rows of each example.
        truncated: number of rows that were cut on their left.
    """

    ids: list[list[int]]
    option_len: list[int]
    num_options: list[int]
    labels: list[int]
    truncated: int


class PaddedRows(NamedTuple):
    """Some examples of :class:`Rows` as tensors, all int64.

    ids, mask: [R, T], padded on the left (mask 0 there).  option_len: [R].  num_options, labels: [B].
    """

    ids: Tensor
    mask: Tensor
    option_len: Tensor
    num_options: Tensor
    labels: Tensor


class MaskedRows(NamedTuple):
    """Tokenised examples for a masked language model, one row per example.

    Attributes:
        ids: token ids.
        mask_at: position of the mask token in each row.
        options: token id of each class's word, int64 [C].
        labels: class of each example.
        truncated: number of rows that were cut on their left.
    """

    ids: list[list[int]]
    mask_at: list[int]
    options: Tensor
    labels: list[int]
    truncated: int


def demonstration_text(examples: Sequence[Example]) -> str:
    """Solved examples for in-context learning: prompt and right option of each, joined by an empty line."""
    solved = [(example.prompt + example.options[example.label]).strip() for example in examples]
    return SEPARATOR.join(solved).strip()


def encode(
    examples: Sequence[Example],
    tokenizer: Any,
    max_length: int,
    *,
    demonstrations: Sequence[Example] = (),
    only_correct: bool = False,
    calibrate: bool = False,
) -> Rows:
    """Rows of prompt and option.

    The length of an option is that of the whole text minus that of the prompt, both tokenised, as in MeZO. A
    row longer than ``max_length`` loses tokens on its left; what the tokenizer puts in front of every text (a
    BOS token) stays. A row that would start with its option gets the tokenizer's BOS (else EOS) token in
    front, because a language model does not predict the first token.

    Args:
        examples: of :func:`tenfold.llm.tasks.load`.
        tokenizer: a Hugging Face tokenizer.
        max_length: largest number of tokens in a row.
        demonstrations: solved examples put in front of every prompt.
        only_correct: only the right option of each example (language-model loss, question answering).
        calibrate: the domain string in the place of the prompt: the second half of calibration by surface
            form competition (arXiv 2104.08315).

    Raises:
        ValueError: an option without tokens, an option longer than ``max_length``, a task without a domain
            string.
    """
    _checks.integer("max_length", max_length, 2, 2**31)
    prompts, texts, counts, labels = _texts(examples, only_correct, calibrate)
    before = _front(tokenizer)
    lengths = [len(ids) for ids in _tokens(tokenizer, prompts)]
    bare = _tokens(tokenizer, texts)
    lead = demonstration_text(demonstrations)
    whole = _tokens(tokenizer, [(lead + SEPARATOR + text).lstrip() for text in texts]) if lead else bare
    rows, option_len, truncated = [], [], 0
    for i, (length, single, body) in enumerate(zip(lengths, bare, whole, strict=True)):
        option = len(single) - length
        if option < 1:
            raise ValueError(f"options: expected at least one token, got {option} in {texts[i][-80:]!r}")
        front = before or (_start(tokenizer) if option == len(body) else [])
        if option + max(1, len(front)) > max_length:
            raise ValueError(
                f"max_length: expected more than the {option} tokens of an option, got {max_length}"
            )
        kept = body[-(max_length - len(front)) :]
        truncated += len(kept) < len(body)
        rows.append(front + kept)
        option_len.append(option)
    return Rows(rows, option_len, counts, labels, truncated)


def _texts(
    examples: Sequence[Example], only_correct: bool, calibrate: bool
) -> tuple[list[str], list[str], list[int], list[int]]:
    """Prompts and whole texts of all rows; number of options and label of each example."""
    prompts, texts, counts, labels = [], [], [], []
    for example in examples:
        prompt: str | None = example.prompt
        if calibrate:
            prompt = example.sfc_prompt
            if prompt is None:
                raise ValueError(
                    "calibrate: expected a task with a domain string and a causal model, "
                    "got question answering or a masked model"
                )
        assert prompt is not None
        prompt = prompt.strip(" ")
        options = [example.options[example.label]] if only_correct else example.options
        prompts += [prompt.lstrip()] * len(options)
        texts += [(prompt + option).lstrip().rstrip(" ") for option in options]
        counts.append(len(options))
        labels.append(0 if only_correct else example.label)
    return prompts, texts, counts, labels


def encode_prompts(
    examples: Sequence[Example],
    tokenizer: Any,
    max_length: int,
    *,
    max_new_tokens: int = 50,
    demonstrations: Sequence[Example] = (),
) -> list[list[int]]:
    """Rows of the prompts alone, cut on the left so that ``max_new_tokens`` more fit into ``max_length``.

    Raises:
        ValueError: no room for a prompt.
    """
    _checks.integer("max_new_tokens", max_new_tokens, 1, 2**31)
    before = _front(tokenizer)
    room = max_length - max_new_tokens - len(before)
    if room < 1:
        raise ValueError(
            f"max_length: expected more than max_new_tokens = {max_new_tokens}, got {max_length}"
        )
    lead = demonstration_text(demonstrations)
    texts = [(lead + SEPARATOR + example.prompt.strip(" ")).lstrip() for example in examples]
    return [before + body[-room:] for body in _tokens(tokenizer, texts)]


def encode_masked(examples: Sequence[Example], tokenizer: Any, max_length: int) -> MaskedRows:
    """Rows of examples made with ``mask_token``; the answer is the word whose token fits the mask best.

    Args:
        examples: of ``load(..., mask_token=tokenizer.mask_token)``.
        tokenizer: a Hugging Face tokenizer with a mask token.
        max_length: largest number of tokens in a row; longer ones lose tokens on their left, behind what the
            tokenizer puts in front.

    Raises:
        ValueError: no mask token, a text with none or several masks (or whose mask was cut off), words of
            several tokens, examples with different words.
    """
    _checks.integer("max_length", max_length, 4, 2**31)
    if tokenizer.mask_token_id is None:
        raise ValueError(f"tokenizer: expected one with a mask token, got {type(tokenizer).__name__}")
    words = {tuple(example.options) for example in examples}
    if len(words) != 1:
        raise ValueError(f"examples: expected the same answer words in all, got {len(words)} different lists")
    before, after = _surroundings(tokenizer)
    room = max_length - len(before) - len(after)
    rows, places, truncated = [], [], 0
    bodies = _tokens(tokenizer, [example.prompt for example in examples])
    for example, body in zip(examples, bodies, strict=True):
        row = before + body[-room:] + after
        masks = [i for i, token in enumerate(row) if token == tokenizer.mask_token_id]
        if len(masks) != 1:
            raise ValueError(
                f"examples: expected one {tokenizer.mask_token!r} in {max_length} tokens, got {len(masks)} "
                f"in {example.prompt[-80:]!r}"
            )
        truncated += len(body) > room
        rows.append(row)
        places += masks
    (options,) = words
    labels = [example.label for example in examples]
    return MaskedRows(rows, places, option_ids(tokenizer, options), labels, truncated)


def collate(rows: Rows, chosen: Sequence[int], pad_id: int, *, multiple_of: int = 8) -> PaddedRows:
    """Examples ``chosen`` (indices into ``rows.num_options``) as tensors, padded on the left.

    The width is the longest row's, rounded up to ``multiple_of``.
    """
    starts = [0]
    for count in rows.num_options:
        starts.append(starts[-1] + count)
    picked = [row for i in chosen for row in range(starts[i], starts[i + 1])]
    ids, mask = _padded([rows.ids[row] for row in picked], pad_id, multiple_of, left=True)
    return PaddedRows(
        ids,
        mask,
        torch.tensor([rows.option_len[row] for row in picked], dtype=torch.int64),
        torch.tensor([rows.num_options[i] for i in chosen], dtype=torch.int64),
        torch.tensor([rows.labels[i] for i in chosen], dtype=torch.int64),
    )


def collate_masked(
    rows: MaskedRows, chosen: Sequence[int], pad_id: int, *, multiple_of: int = 8
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``(ids [B, T], mask [B, T], mask_at [B], labels [B])`` of some examples, int64, padded on the right."""
    ids, mask = _padded([rows.ids[i] for i in chosen], pad_id, multiple_of, left=False)
    places = torch.tensor([rows.mask_at[i] for i in chosen], dtype=torch.int64)
    return ids, mask, places, torch.tensor([rows.labels[i] for i in chosen], dtype=torch.int64)


def _padded(
    rows: Sequence[Sequence[int]], pad_id: int, multiple_of: int, *, left: bool
) -> tuple[Tensor, Tensor]:
    _checks.integer("multiple_of", multiple_of, 1, 2**20)
    width = -(-max(map(len, rows), default=0) // multiple_of) * multiple_of
    ids = torch.full((len(rows), width), pad_id, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        place = slice(width - len(row), width) if left else slice(0, len(row))
        ids[i, place] = torch.tensor(row, dtype=torch.int64)
        mask[i, place] = 1
    return ids, mask


def _tokens(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text without what the tokenizer puts around a text."""
    if not texts:
        return []
    return [list(ids) for ids in tokenizer(list(texts), add_special_tokens=False).input_ids]


def _surroundings(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Token ids that the tokenizer puts before and behind every text."""
    bare = list(tokenizer("a", add_special_tokens=False).input_ids)
    full = list(tokenizer("a").input_ids)
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return full[:start], full[start + len(bare) :]
    raise ValueError(f"tokenizer: expected special tokens around a text only, got {full} for {bare}")


def _front(tokenizer: Any) -> list[int]:
    before, after = _surroundings(tokenizer)
    if after:
        raise ValueError(f"tokenizer: expected no tokens behind a text, got {after} (a masked model's?)")
    return before


def _start(tokenizer: Any) -> list[int]:
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if start is None:
        raise ValueError("tokenizer: expected a BOS or EOS token for a row without a prompt, got neither")
    return [start]
