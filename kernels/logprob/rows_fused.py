"""Loss and gradient of a head in one visit to each chunk of rows.

Backward of rows_linear.py multiplies hidden states and unembedding once more, because what a token weighs in
the loss is known only then.  Where it is known sooner, the logits of a chunk become its gradient at once and
the second product is saved: for losses that weigh tokens, as soon as the chunk is there; for losses of
sequences, as soon as the chunk holds the whole sequence; and for any loss whatever, if only the hidden states
need a gradient, because the gradient of a row is proportional to its weight.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType

import torch
from torch import Tensor

from .logprob_chunks import ieee_matmul
from .rows_linear import Gradient, Gradients, Head, _by_chunks, _select, kept

SEQUENCE_BYTES = {"cpu": 100 << 20, "cuda": 256 << 20}
"""Logits of one sequence that may be held together, by device type. A longer one is visited twice."""

Weigh = Callable[[slice, Tensor], Tensor]
"""(which of the rows that count, their log p) -> d loss / d log p."""


def forward_with_slopes(
    rows: ModuleType,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    softcap: float | None,
    stats: bool,
) -> list[Tensor]:
    """rows.forward of the logits of `hidden`, and d log p[n] / d hidden[n] in the dtype of the products."""
    keep = kept(targets)
    head = Head(_select(hidden, keep), weight, bias)
    gradient = Gradient(head, None, (True, False, False))
    chosen = targets[keep]

    def reduce(part: slice, logits: Tensor) -> Sequence[Tensor]:
        found: Sequence[Tensor] = rows.forward(logits, chosen[part], softcap, 1.0, stats)
        ones = torch.ones_like(found[0])
        _differentiate(rows, gradient, part, logits, chosen, found[0], found[1], ones, softcap)
        return found

    found = _by_chunks(head, keep, hidden.shape[0], 6 if stats else 2, reduce)
    assert gradient.hidden is not None
    if keep.numel() == hidden.shape[0]:
        return [*found, gradient.hidden]
    slopes = gradient.hidden.new_zeros(hidden.shape)
    slopes[keep] = gradient.hidden
    return [*found, slopes]


def loss_gradients(
    rows: ModuleType,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    softcap: float | None,
    sequences: Sequence[int],
    weigh: Weigh,
    needs: Sequence[bool],
) -> tuple[Tensor, Gradients]:
    """log p [N] (0 for rows left out) and the gradients of a loss that is a sum over pieces of the rows.

    sequences: lengths of the pieces of the rows that count, in order; `weigh` is called with whole pieces.
    """
    keep = kept(targets)
    limit = SEQUENCE_BYTES["cpu" if hidden.device.type == "cpu" else "cuda"]
    size = torch.promote_types(hidden.dtype, torch.float32).itemsize * weight.shape[0]
    together = [length for length in sequences if length * size <= limit]
    head = Head(_select(hidden, keep), weight, bias, at_least=max(together, default=0))
    gradient = Gradient(head, bias, needs)
    chosen = targets[keep]
    logp = torch.zeros(targets.shape, dtype=torch.float64, device=targets.device)
    with ieee_matmul(hidden.device.type):
        for piece in _pieces(sequences, head.tile) or [slice(0, 0)]:
            logp[keep[piece]] = _visit(rows, head, gradient, piece, chosen, softcap, weigh, any(needs))
    return logp, gradient.result(keep, hidden)


def _pieces(sequences: Sequence[int], tile: int) -> list[slice]:
    """Runs of whole sequences of at most `tile` rows; a longer sequence stands alone."""
    found: list[slice] = []
    start = stop = 0
    for length in sequences:
        if stop > start and stop - start + length > tile:
            found.append(slice(start, stop))
            start = stop
        stop += length
    return [*found, slice(start, stop)] if stop > start else found


def _visit(
    rows: ModuleType,
    head: Head,
    gradient: Gradient,
    piece: slice,
    targets: Tensor,
    softcap: float | None,
    weigh: Weigh,
    differentiate: bool,
) -> Tensor:
    """log p of the rows of a piece, whose gradient is added."""
    cuts = range(piece.start, max(piece.stop, piece.start + 1), head.tile)
    parts = [slice(cut, min(cut + head.tile, piece.stop)) for cut in cuts]
    logits, found = torch.empty(0), []
    for part in parts:
        logits = head.logits(part)
        found.append(rows.forward(logits, targets[part], softcap, 1.0, False)[:2])
    logp, lse = (torch.cat(column) for column in zip(*found, strict=True))
    if not differentiate:
        return logp
    weights = weigh(piece, logp)
    for part in parts:
        if len(parts) > 1:
            logits = head.logits(part)
        at = slice(part.start - piece.start, part.stop - piece.start)
        per_row = (logp[at], lse[at], weights[at])
        _differentiate(rows, gradient, part, logits, targets, *per_row, softcap)
    return logp


def _differentiate(
    rows: ModuleType,
    gradient: Gradient,
    part: slice,
    logits: Tensor,
    targets: Tensor,
    logp: Tensor,
    lse: Tensor,
    weights: Tensor,
    softcap: float | None,
) -> None:
    """The logits of these rows become the slope of sum(weights log p), which is added to the gradient."""
    rows.softmax_(logits, logits, targets[part], lse, -weights, -weights * torch.expm1(logp), softcap, 1.0)
    gradient.add(part, logits)
