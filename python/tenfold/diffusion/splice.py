"""Extra tokens put into a prompt: where each goes, on ids and on word embeddings.

S is the first token, T the prompt's L tokens, E the end token and padding, a the k extra tokens:

    prefix        S a T E            suffix  S T a E
    mid           S T[:L//2] a T[L//2:] E
    insert        chunks of L // (k + 1) tokens of T, each followed by one a; what is left of T last
    per_k_words   one a before every 3 tokens of T, the last a before what is left
    replace       S a E..E           (no T)
    add           S T+a E            (embeddings only, k = L)

The row keeps its length: the last k columns of padding fall off. The modes are those of UnlearnDiffAtk (arXiv
2310.11868) and AdvUnlearn (arXiv 2405.15234).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from tenfold import _checks
from tenfold.ops import splice_embed

__all__ = ["MODES", "end_positions", "splice", "splice_ids", "splice_plan"]

MODES = ("prefix", "suffix", "mid", "insert", "per_k_words", "replace", "add")
_WORDS = 3  # of "per_k_words", fixed in the published code


def splice(
    embeds: Tensor, adv: Tensor, lengths: Any, mode: str = "prefix", *, compat: str = "fixed"
) -> Tensor:
    """Word embeddings [B, L, D] of prompts with `adv` [B, k, D] (or [1, k, D] for all) put in: [B, L, D].

    Args:
        lengths: int64 [B], tokens of each prompt (`tokenize`).
        mode: one of `MODES`, or a published name ("prefix_k", "insert_k", ...).
        compat: "reference": as the published code cuts, which drops the k tokens behind `lengths` instead of
            the last k columns. The same where padding is the end token and `lengths` are right.

    Raises:
        ValueError: unknown mode; a prompt has no room for k more tokens (its row is named); k < 1.
    """
    counts, mode = _arguments(embeds, adv, lengths, mode, 3)
    adv = adv.expand(embeds.shape[0], -1, -1)
    index = _index(counts, embeds.shape[1], adv.shape[1], mode, compat).to(embeds.device)
    if mode == "add":
        return _gather(embeds, index) + _gather(
            torch.cat([torch.zeros_like(embeds[:, :1]), adv], 1), _added(index, counts)
        )
    spliced: Tensor = splice_embed(embeds, adv.to(embeds.dtype), index)
    return spliced


def splice_ids(
    ids: Tensor, adv: Tensor, lengths: Any, mode: str = "prefix", *, compat: str = "fixed"
) -> Tensor:
    """The same on ids: int64 [B, L] with `adv` [B, k] (or [1, k]) put in. "add" leaves the prompt's ids."""
    counts, mode = _arguments(ids, adv, lengths, mode, 2)
    adv = adv.expand(ids.shape[0], -1)
    index = _index(counts, ids.shape[1], adv.shape[1], mode, compat).to(ids.device)
    return torch.cat([ids, adv], dim=1).gather(1, index)


def end_positions(lengths: Tensor, k: int, mode: str = "prefix") -> Tensor:
    """int64 [B]: where the end token is after splicing, whatever ids were put in."""
    mode = _mode(mode)
    if mode == "replace":
        return torch.full_like(lengths, 1 + k)
    return lengths + 1 + (0 if mode == "add" else k)


def splice_plan(length: int, k: int, mode: str, columns: int, *, compat: str = "fixed") -> list[int]:
    """Where each of `columns` columns comes from: that column of the row, or columns + j, extra token j."""
    columns = _checks.integer("columns", columns, 2, 2**31)
    return [
        int(x) for x in _index([length], columns, _checks.integer("k", k, 1, 2**31), _mode(mode), compat)[0]
    ]


@lru_cache(maxsize=4096)
def _plan(length: int, k: int, mode: str, columns: int, compat: str) -> tuple[int, ...]:
    prompt = list(range(1, 1 + length))
    extra = list(range(columns, columns + k))
    # The published code cuts a row into 1, L, k and the rest, and drops the third piece.
    ends = list(range(1 + length + (k if compat == "reference" else 0), columns))
    if not ends:
        ends = [columns - 1]
    if mode == "prefix":
        body = extra + prompt
    elif mode == "suffix":
        body = prompt + extra
    elif mode == "mid":
        body = prompt[: length // 2] + extra + prompt[length // 2 :]
    elif mode == "insert":
        body = _inserted(prompt, extra, length // (k + 1))
    elif mode == "per_k_words":
        body = [x for i in range(k - 1) for x in (extra[i], *prompt[_WORDS * i : _WORDS * (i + 1)])]
        body += [extra[-1], *prompt[_WORDS * (k - 1) :]]
    elif mode == "replace":
        body = extra + [ends[0]] * length
    else:  # add
        body = prompt + [ends[0]] * (length if compat == "reference" else 0)
    whole = [0, *body, *ends]
    return tuple((whole + [columns - 1] * columns)[:columns])


def _inserted(prompt: list[int], extra: list[int], chunk: int) -> list[int]:
    body: list[int] = []
    for i, one in enumerate(extra):
        body += [*prompt[chunk * i : chunk * (i + 1)], one]
    return body + prompt[chunk * len(extra) :]


def _index(counts: list[int], columns: int, k: int, mode: str, compat: str) -> Tensor:
    _checks.choice("compat", compat, ("fixed", "reference"))
    for row, length in enumerate(counts):
        _checks.integer("lengths", length, 0, columns - 2)
        used = k if mode == "replace" else length if mode == "add" else length + k
        if not 0 <= length <= columns - 2 or used > columns - 2:
            got = f"{length} tokens and k = {k}"
            _checks.fail(
                ValueError, f"prompt {row}", f"at most {columns - 2} tokens with the spliced ones", got
            )
    if mode == "add" and k != max(counts, default=k):
        _checks.fail(ValueError, "k", f"{max(counts)}, the tokens of the longest prompt, for 'add'", k)
    rows = [_plan(length, k, mode, columns, compat) for length in counts]
    return torch.tensor(rows, dtype=torch.int64).view(len(counts), columns)


def _added(index: Tensor, counts: list[int]) -> Tensor:
    """For "add": 1 + j where column 1 + j of the prompt stands, else 0 (the row of zeros)."""
    lengths = torch.tensor(counts, dtype=torch.int64, device=index.device)[:, None]
    columns = torch.arange(index.shape[1], device=index.device)[None]
    return torch.where((columns >= 1) & (columns <= lengths), columns, torch.zeros_like(columns))


def _gather(rows: Tensor, index: Tensor) -> Tensor:
    return rows.gather(1, index[:, :, None].expand(-1, -1, rows.shape[2]))


def _mode(mode: Any) -> str:
    name = mode if mode in ("per_k_words", "add") or not isinstance(mode, str) else mode.removesuffix("_k")
    return _checks.choice("mode", name, MODES)


def _arguments(rows: Tensor, adv: Tensor, lengths: Any, mode: str, ndim: int) -> tuple[list[int], str]:
    mode = _mode(mode)
    for name, value in (("embeds" if ndim == 3 else "ids", rows), ("adv", adv)):
        if not isinstance(value, Tensor) or value.ndim != ndim:
            got = tuple(value.shape) if isinstance(value, Tensor) else _checks.describe(value)
            _checks.fail(TypeError, name, f"a tensor of {ndim} dimensions", got)
    if adv.shape[0] not in (1, rows.shape[0]) or adv.shape[2:] != rows.shape[2:]:
        expected = f"[{rows.shape[0]}, k{', ' + str(rows.shape[2]) if ndim == 3 else ''}]"
        _checks.fail(ValueError, "adv", expected, list(adv.shape))
    if adv.shape[1] < 1:
        _checks.fail(ValueError, "k", "at least one extra token", adv.shape[1])
    counts = lengths.tolist() if isinstance(lengths, Tensor) else list(lengths)
    _checks.length("lengths", counts, rows.shape[0], "the prompts")
    return counts, mode
