"""From hidden states to losses a chunk of rows at a time: what the backends share.

A chunk of rows meets the whole unembedding, its logits (at most CHUNK_BYTES) are reduced by the row kernels
of a backend, and the next chunk takes their place.  Backward computes the logits once more, lets the row
kernels write the gradient over them, and multiplies that with the weight and with the hidden states.

`rows` is the module of a backend with the functions of rows_reference.py.  Targets that are negative leave
their rows out: these never meet the unembedding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from .logprob_chunks import ieee_matmul
from .logprob_reference import math_dtype

CHUNK_BYTES = {"cpu": 64 << 20, "cuda": 256 << 20}
"""Bytes of logits held at a time, by device type; every accelerator as "cuda"."""

WIDEN_BYTES = 16 << 20
"""Bytes of half-precision weights widened to float32 at a time."""

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


def chunk_bytes(tensor: Tensor) -> int:
    """CHUNK_BYTES of the tensor's device."""
    return CHUNK_BYTES["cpu" if tensor.device.type == "cpu" else "cuda"]


class Head:
    """hidden [P, H], weight [V, H], bias [V] or None, and their products a block of rows at a time."""

    def __init__(
        self, hidden: Tensor, weight: Tensor, bias: Tensor | None, share: int = 1, at_least: int = 0
    ) -> None:
        """`share`: how many heads divide CHUNK_BYTES between them. `at_least`: rows that must fit."""
        self.dtype = math_dtype(hidden, weight, bias)
        self.weight = weight
        self.bias = None if bias is None else bias.to(self.dtype)
        halves = hidden.dtype == weight.dtype and weight.dtype in (torch.float16, torch.bfloat16)
        # Tensor cores add up half products in float32; torch >= 2.8 hands out those sums unrounded.
        self.half = halves and hidden.is_cuda and hasattr(torch.ops.aten.mm, "dtype")
        self.hidden = hidden if self.half else hidden.to(self.dtype)
        vocabulary, width = weight.shape
        limit = chunk_bytes(hidden) // share // max(1, self.dtype.itemsize * vocabulary)
        rows = max(1, hidden.shape[0])
        tile = min(rows, max(1, limit, at_least))
        alike = -(-rows // -(-rows // tile))  # chunks of one size: products of few rows are slow
        self.tile = max(alike, min(rows, at_least))
        self.columns = vocabulary
        if not self.half and weight.dtype != self.dtype:
            self.columns = max(1, min(vocabulary, WIDEN_BYTES // max(1, self.dtype.itemsize * width)))
        self.buffer = hidden.new_empty((self.tile, vocabulary), dtype=self.dtype)

    def parts(self) -> Iterator[slice]:
        for start in range(0, max(1, self.hidden.shape[0]), self.tile):  # one empty part if there are no rows
            yield slice(start, min(start + self.tile, self.hidden.shape[0]))

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """Slices of the vocabulary with their weights in the dtype of the products."""
        size = self.weight.shape[0]
        for first in range(0, size, max(1, self.columns)):
            block = slice(first, min(first + self.columns, size))
            yield block, self.weight[block] if self.half else self.weight[block].to(self.dtype)

    def logits(self, part: slice) -> Tensor:
        """Logits of these rows, in a buffer that the next call overwrites."""
        rows = self.hidden[part]
        out = self.buffer[: rows.shape[0]]
        for block, w in self.blocks():
            if self.half:
                out[:, block] = torch.mm(rows, w.T, out_dtype=self.dtype)
            else:
                torch.mm(rows, w.T, out=out[:, block])
        return out if self.bias is None else out.add_(self.bias)


class Gradient:
    """Adds up the gradients of a head from those of its logits; float32 (float64) until the end."""

    def __init__(self, head: Head, bias: Tensor | None, needs: Sequence[bool]) -> None:
        self.head, self.bias_dtype = head, None if bias is None else bias.dtype
        empty, zeros = head.buffer.new_empty, head.buffer.new_zeros
        self.hidden = zeros(head.hidden.shape) if needs[0] else None
        self.weight = empty(head.weight.shape) if needs[1] else None
        self.bias = zeros(head.weight.shape[:1]) if needs[2] and bias is not None else None
        self.kept = 0.0  # what the sum so far counts: the first chunk overwrites what lies in `weight`

    def add(self, part: slice, slope: Tensor) -> None:
        """slope: d loss / d logits of these rows."""
        head = self.head
        if self.bias is not None:
            self.bias += slope.sum(dim=0)
        if head.half:
            slope = slope.to(head.weight.dtype)
        if self.weight is not None:
            if head.half:
                product = torch.mm(slope.T, head.hidden[part], out_dtype=head.dtype)
                self.weight = product if self.kept == 0 else self.weight.add_(product)
            else:
                self.weight.addmm_(slope.T, head.hidden[part], beta=self.kept)
            self.kept = 1.0
        if self.hidden is not None:
            for block, w in head.blocks():
                if head.half:
                    self.hidden[part] += torch.mm(slope[:, block], w, out_dtype=head.dtype)
                else:
                    self.hidden[part].addmm_(slope[:, block], w)

    def result(self, keep: Tensor, hidden: Tensor) -> Gradients:
        """Gradients of all rows in the dtypes of their operands; zeros for rows that were left out."""
        by_hidden = None
        if self.hidden is not None:
            by_hidden = self.hidden.to(hidden.dtype)
            if keep.numel() != hidden.shape[0]:
                by_hidden = torch.zeros_like(hidden, memory_format=torch.contiguous_format)
                by_hidden[keep] = self.hidden.to(hidden.dtype)
        by_weight = None if self.weight is None else self.weight.to(self.head.weight.dtype)
        by_bias = None if self.bias is None or self.bias_dtype is None else self.bias.to(self.bias_dtype)
        return by_hidden, by_weight, by_bias


def kept(targets: Tensor) -> Tensor:
    """The rows that count, int64."""
    return (targets >= 0).nonzero()[:, 0]


def _select(hidden: Tensor, keep: Tensor) -> Tensor:
    return hidden if keep.numel() == hidden.shape[0] else hidden[keep]


def forward(
    rows: ModuleType,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    softcap: float | None,
    stats: bool,
) -> list[Tensor]:
    """rows.forward of the logits of `hidden`."""
    keep = kept(targets)
    head = Head(_select(hidden, keep), weight, bias)
    chosen = targets[keep]
    n, wanted = hidden.shape[0], 6 if stats else 2
    return _by_chunks(
        head, keep, n, wanted, lambda part, z: rows.forward(z, chosen[part], softcap, 1.0, stats)
    )


def _by_chunks(
    head: Head, keep: Tensor, rows: int, wanted: int, reduce: Callable[[slice, Tensor], Sequence[Tensor]]
) -> list[Tensor]:
    """The outputs of `reduce` over all chunks, the first `wanted` of them [rows], zero for rows left out."""
    with ieee_matmul(head.hidden.device.type):
        found = [reduce(part, head.logits(part)) for part in head.parts()]
    joined = [torch.cat(column) for column in zip(*found, strict=True)]
    if keep.numel() == rows:
        return joined
    out = [value.new_zeros((rows,)) if i < wanted else value for i, value in enumerate(joined)]
    for i in range(wanted):
        out[i][keep] = joined[i]
    return out


def softmax_backward(
    rows: ModuleType,
    coef: Tensor,
    at_target: Tensor,
    lse: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    softcap: float | None,
    inverse_temperature: float,
    needs: Sequence[bool],
) -> Gradients:
    """Gradients through rows.softmax_: coef exp(x - lse), at_target at the target."""
    keep = kept(targets)
    head = Head(_select(hidden, keep), weight, bias)
    gradient = Gradient(head, bias, needs)
    per_row = [value[keep] for value in (targets, lse, coef, at_target)]
    with ieee_matmul(hidden.device.type):
        for part in head.parts():
            logits = head.logits(part)
            rows.softmax_(logits, logits, *(value[part] for value in per_row), softcap, inverse_temperature)
            gradient.add(part, logits)
    return gradient.result(keep, hidden)


def sample(
    rows: ModuleType,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    uniforms: Tensor,
    inverse_temperature: float,
    softcap: float | None = None,
) -> list[Tensor]:
    """rows.sample of the capped logits of `hidden`: (token, log p, log sum exp)."""
    keep = (uniforms >= 0).nonzero()[:, 0]
    head = Head(_select(hidden, keep), weight, bias)
    chosen = uniforms[keep]

    def reduce(part: slice, logits: Tensor) -> Sequence[Tensor]:
        if softcap is not None:
            logits.div_(softcap).tanh_().mul_(softcap)
        found: Sequence[Tensor] = rows.sample(logits, chosen[part], inverse_temperature)
        return found

    token, logp, lse = _by_chunks(head, keep, hidden.shape[0], 3, reduce)
    return [torch.where(uniforms >= 0, token, -1), logp, lse]


def ceu(
    rows: ModuleType, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor
) -> list[Tensor]:
    """rows.ceu of the logits of `hidden`: (loss, log sum exp of the others, log p)."""
    keep = kept(targets)
    head = Head(_select(hidden, keep), weight, bias)
    chosen = targets[keep]
    return _by_chunks(head, keep, hidden.shape[0], 3, lambda part, z: rows.ceu(z, chosen[part]))


def _two_heads(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, reference: Sequence[Any], keep: Tensor
) -> tuple[Head, Head]:
    ref_hidden, ref_weight, ref_bias = reference
    head = Head(_select(hidden, keep), weight, bias, share=2)
    ref = Head(_select(ref_hidden, keep), ref_weight, ref_bias, share=2)
    if ref.dtype.itemsize > head.dtype.itemsize:  # chunks of both hold the same rows
        head.tile = ref.tile
    return head, ref


def divergence(
    rows: ModuleType,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    reference: Sequence[Any],
    targets: Tensor,
    beta: float,
    kind: str,
) -> list[Tensor]:
    """rows.divergence of the logits of two heads: (loss, log sum exp, the reference's log sum exp)."""
    keep = kept(targets)
    head, ref = _two_heads(hidden, weight, bias, reference, keep)
    chosen = targets[keep]

    def reduce(part: slice, logits: Tensor) -> Sequence[Tensor]:
        found: Sequence[Tensor] = rows.divergence(logits, ref.logits(part), chosen[part], beta, kind)
        return found

    return _by_chunks(head, keep, hidden.shape[0], 3, reduce)


def divergence_backward(
    rows: ModuleType,
    grad: Tensor,
    loss: Tensor,
    lse: Tensor,
    ref_lse: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    reference: Sequence[Any],
    targets: Tensor,
    beta: float,
    kind: str,
    needs: Sequence[bool],
) -> Gradients:
    """Gradients of sum(grad * loss) for the first head."""
    keep = kept(targets)
    head, ref = _two_heads(hidden, weight, bias, reference, keep)
    gradient = Gradient(head, bias, needs)
    chosen = targets[keep]
    per_row = [value[keep] for value in (loss, lse, ref_lse, grad)]
    with ieee_matmul(hidden.device.type):
        for part in head.parts():
            logits = head.logits(part)
            rest = (value[part] for value in per_row)
            rows.divergence_(logits, logits, ref.logits(part), chosen[part], beta, kind, *rest)
            gradient.add(part, logits)
    return gradient.result(keep, hidden)
