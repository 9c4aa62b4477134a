"""From token log-probabilities to option scores and losses: which hidden rows count, what becomes of them.

Everything here is small ([B, T] at most) and in float64, so that the only rounding that matters is that of
the dot products.  Index arithmetic runs on the CPU: with option lengths, labels and counts given there, a
CUDA call synchronises only to check the token ids.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tenfold import _checks


class Tokens(NamedTuple):
    """The P option tokens, rows in order. Position t of a row predicts its token t + 1."""

    row: Tensor  # int64 [P], in [0, B)
    slot: Tensor  # int64 [P], 0 for a row's first option token
    position: Tensor  # int64 [P], of the hidden state that predicts the token
    target: Tensor  # int64 [P], the token
    lengths: Tensor  # float64 [B], option_len
    longest: int  # the largest of them


def option_tokens(ids: Tensor, option_len: Tensor, attention_mask: Tensor | None, vocabulary: int) -> Tokens:
    """The option tokens of ids [B, T]: the last option_len[b] attended ones of each row.

    Raises:
        ValueError: option_len outside [1, T - 1], an option or the token before it under the mask, or an
            option token outside the vocabulary.
    """
    length = ids.shape[1]
    lengths = option_len.to("cpu", torch.int64)
    check_each("option_len", lengths, 1, length - 1, f"1 to T - 1 = {length - 1} option tokens in every row")
    end = (
        _row_ends(attention_mask, lengths) if attention_mask is not None else torch.full_like(lengths, length)
    )
    row = torch.repeat_interleave(lengths)
    slot = torch.arange(row.numel()) - (lengths.cumsum(0) - lengths)[row]
    position = (end - lengths)[row] + slot - 1
    longest = int(lengths.max()) if lengths.numel() else 0
    row, slot, position, lengths = (t.to(ids.device) for t in (row, slot, position, lengths.double()))
    target = ids[row, position + 1]
    check_tokens("ids", target, vocabulary)
    return Tokens(row, slot, position, target, lengths, longest)


def check_each(name: str, values: Tensor, low: int, high: int, expected: str) -> None:
    bad = (values < low) | (values > high)
    if bad.any():
        i = int(bad.nonzero()[0, 0])
        _checks.fail(ValueError, f"{name}[{i}]", expected, int(values[i]))


def check_tokens(name: str, tokens: Tensor, vocabulary: int) -> None:
    """Every token in [0, vocabulary), or a ValueError that quotes one that is not."""
    if ((tokens < 0) | (tokens >= vocabulary)).any():
        bad = tokens[(tokens < 0) | (tokens >= vocabulary)][0]
        _checks.fail(ValueError, name, f"tokens in [0, {vocabulary}), the rows of weight", int(bad))


def _row_ends(attention_mask: Tensor, lengths: Tensor) -> Tensor:
    """One past each row's last attended token; the tokens a row needs must all be attended."""
    attended = attention_mask.to("cpu") != 0
    size = attended.shape[1]
    at = torch.arange(size)
    end = torch.where(attended, at + 1, 0).amax(dim=1) if size else torch.zeros_like(lengths)
    first = (end - lengths - 1)[:, None]
    needed = (at >= first) & (at < end[:, None])
    bad = (first[:, 0] < 0) | (needed & ~attended).any(dim=1)
    if bad.any():
        i = int(bad.nonzero()[0, 0])
        expected = f"{int(lengths[i])} option tokens and the token before them attended at the end of the row"
        _checks.fail(ValueError, f"attention_mask[{i}]", expected, attended[i].int().tolist())
    return end


def mean_per_row(logp: Tensor, tokens: Tokens) -> Tensor:
    """Scores float64 [B]: the mean of each row's token log-probabilities, in the order of the tokens."""
    grid = logp.new_zeros((tokens.lengths.numel(), tokens.longest))
    grid[tokens.row, tokens.slot] = logp
    return grid.sum(dim=1) / tokens.lengths


class Choices(NamedTuple):
    """Rows grouped into examples."""

    example: Tensor  # int64 [B]
    slot: Tensor  # int64 [B], the row's place among its example's options
    labels: Tensor  # int64 [N]
    most: int  # the largest number of options


def choices(counts: Tensor, labels: Tensor, rows: int, device: torch.device) -> Choices:
    """Groups of counts[e] consecutive rows, with the right option of each.

    Raises:
        ValueError: counts that are not positive or do not sum to `rows`, labels outside [0, counts[e]).
    """
    counts, labels = counts.to("cpu", torch.int64), labels.to("cpu", torch.int64)
    check_each("num_options", counts, 1, max(rows, 1), "at least one option per example")
    if int(counts.sum()) != rows:
        _checks.fail(ValueError, "num_options", f"counts that sum to B = {rows}", int(counts.sum()))
    bad = (labels < 0) | (labels >= counts)
    if bad.any():
        i = int(bad.nonzero()[0, 0])
        _checks.fail(ValueError, f"labels[{i}]", f"an option in [0, {int(counts[i])})", int(labels[i]))
    example = torch.repeat_interleave(counts)
    slot = torch.arange(rows) - (counts.cumsum(0) - counts)[example]
    most = int(counts.max()) if counts.numel() else 0
    return Choices(example.to(device), slot.to(device), labels.to(device), most)


def _table(scores: Tensor, c: Choices) -> Tensor:
    """Scores as [N, most], -inf where an example has fewer options."""
    table = scores.new_full((c.labels.numel(), c.most), -torch.inf)
    table[c.example, c.slot] = scores
    return table


def choice_loss(scores: Tensor, c: Choices) -> Tensor:
    """Mean over examples of the cross-entropy over an example's options; NaN when there are none."""
    table = _table(scores, c)
    right = table.gather(1, c.labels[:, None])[:, 0] if c.most else scores[:0]
    return (table.logsumexp(dim=1) - right).mean()


def choice_loss_backward(scores: Tensor, c: Choices) -> Tensor:
    """d choice_loss / d scores, [B]."""
    slope = _table(scores, c).softmax(dim=1)
    if c.most:
        slope.scatter_add_(1, c.labels[:, None], slope.new_full((c.labels.numel(), 1), -1.0))
    return slope[c.example, c.slot] / max(c.labels.numel(), 1)
