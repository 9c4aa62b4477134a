"""Greedy answers: in batches of like length, stopped at the end of the text, finished rows dropped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tenfold import _checks
from tenfold.llm.schemes import Adapted
from tenfold.llm.tasks.encoding import _front, _start
from tenfold.llm.unlearn.encoding import portions
from tenfold.llm.unlearn.evaluate.scores import Progress

__all__ = ["decode", "generate", "generate_ids", "prompt_ids", "stop_ids"]


def stop_ids(model: Any, tokenizer: Any) -> set[int]:
    """Tokens that end an answer: the tokenizer's end-of-text token and those of the generation config."""
    found = {tokenizer.eos_token_id}
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    found |= set(configured) if isinstance(configured, (list, tuple)) else {configured}
    return {int(token) for token in found if token is not None}


def prompt_ids(tokenizer: Any, prompts: Sequence[str], max_length: int) -> list[list[int]]:
    """Token ids of each prompt with what the tokenizer puts in front; the last ``max_length`` of them.

    A blank at the end of a prompt is left to the model, whose tokens mostly begin with it.
    """
    front = _front(tokenizer)
    bodies = tokenizer([prompt.rstrip(" ") for prompt in prompts], add_special_tokens=False).input_ids
    found = []
    for body in bodies:
        before = [] if front and list(body[: len(front)]) == front else front
        before = before or ([] if body else _start(tokenizer))
        found.append(before + list(body)[-(max_length - len(before)) :])
    return found


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 200,
    max_length: int = 2048,
    tokens: int = 4096,
    progress: Progress = None,
) -> list[str]:
    """Greedy answers as text, without blanks around them; see :func:`generate_ids`."""
    ids = generate_ids(
        model, tokenizer, prompts, max_new_tokens=max_new_tokens, max_length=max_length, tokens=tokens,
        progress=progress,
    )  # fmt: skip
    return decode(tokenizer, ids)


def decode(tokenizer: Any, ids: Sequence[Sequence[int]]) -> list[str]:
    """Answers as text, without special tokens and without blanks around them."""
    return [tokenizer.decode(row, skip_special_tokens=True).strip() for row in ids]


@torch.no_grad()
def generate_ids(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 200,
    max_length: int = 2048,
    tokens: int = 4096,
    progress: Progress = None,
) -> list[list[int]]:
    """Greedy continuations as token ids, without the token that ended them.

    Args:
        model: a causal model of ``transformers``.
        tokenizer: of the model.
        prompts: texts; what the tokenizer puts in front of a text is added.
        max_new_tokens: largest length of an answer, prompt not counted.
        max_length: largest length of a prompt and its answer; longer prompts lose tokens on their left.
        tokens: prompts in a batch times the longest prompt and its answer.
        progress: called with the number of answers done after each batch.

    Raises:
        ValueError: no room for a prompt beside ``max_new_tokens``.
    """
    _checks.integer("max_new_tokens", max_new_tokens, 1, 2**31)
    if max_length <= max_new_tokens + 1:
        raise ValueError(
            f"max_length: expected more than max_new_tokens + 1 = {max_new_tokens + 1}, got {max_length}"
        )
    rows = prompt_ids(tokenizer, prompts, max_length - max_new_tokens)
    stop, found = stop_ids(model, tokenizer), [[0]] * len(rows)
    was_training = model.training
    model.eval()
    try:
        for chosen in portions([len(row) + max_new_tokens for row in rows], tokens):
            ids, mask = _padded([rows[i] for i in chosen], tokenizer.pad_token_id)
            made = _continue(model, ids, mask, max_new_tokens, stop)
            for i, answer in zip(chosen, made, strict=True):
                found[i] = answer
            if progress is not None:
                progress(len(chosen))
    finally:
        model.train(was_training)
    return found


def _padded(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """On the left."""
    from tenfold.llm.prompts import pad_left

    return pad_left(rows, pad_id)


def _continue(model: Any, ids: Tensor, mask: Tensor, max_new: int, stop: set[int]) -> list[list[int]]:
    """Greedy answers of one batch. Once half of its rows have ended, the others go on alone."""
    adapted = Adapted(model, "ft", {})
    mask = mask.to(adapted.device)
    cache, hidden = adapted.prefill(ids.to(adapted.device), mask)
    weight, bias = adapted.head()
    made: list[list[int]] = [[] for _ in range(len(ids))]
    rows = list(range(len(ids)))  # which answer each row of the batch belongs to
    ended: set[int] = set()
    for _ in range(max_new):
        tokens = F.linear(hidden, weight, bias).argmax(-1)
        for row, token in zip(rows, tokens.tolist(), strict=True):
            if token in stop:
                ended.add(row)
            elif row not in ended:
                made[row].append(token)
        live = [i for i, row in enumerate(rows) if row not in ended]
        if not live:
            break
        if 2 * len(live) <= len(rows):
            keep = torch.tensor(live, device=mask.device)
            cache.batch_select_indices(keep)
            mask, tokens, rows = mask[keep], tokens[keep], [rows[i] for i in live]
        one = torch.ones_like(tokens)[:, None]
        hidden = adapted.continued(tokens[:, None], one, mask, cache)[:, -1]
        mask = torch.cat((mask, one), 1)
    return made
