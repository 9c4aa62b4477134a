"""Log-probabilities and their gradients a chunk of the vocabulary at a time: what the backends share.

A chunk of logits is computed, used and thrown away; the workspace is bounded by CHUNK_BYTES whatever the
vocabulary.  Forward keeps, per row and part of the vocabulary, the largest logit and the sum of exponentials
(Milakov and Gimelshein, arXiv 1805.02867); backward computes the logits once more and needs only the total.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from .logprob_reference import math_dtype

CHUNK_BYTES = {"cpu": 4 << 20, "cuda": 32 << 20}
"""Bytes of logits (and of widened weights) held at a time, by device type; every accelerator as "cuda"."""

Product = Callable[[Tensor, Tensor], Tensor]

ROW_TILE = 1024  # rows that pass over a chunk together


def join(largest: Tensor, sums: Tensor, target_logit: Tensor) -> tuple[Tensor, Tensor]:
    """Parts [S, P] of the vocabulary to (log p(target), log sum exp), both float64 [P]."""
    top = largest.amax(dim=0).double()
    total = (sums.double() * (largest.double() - top).exp()).sum(dim=0)
    lse = top + total.log()
    return target_logit.double() - lse, lse


@contextlib.contextmanager
def ieee_matmul(device_type: str) -> Iterator[None]:
    """Full float32 products, also where the process asked for TF32 or bfloat16 ones.

    The setting belongs to the process, so another thread's products inside the block are full float32 too.
    """
    flags: Any = torch.backends.cuda.matmul if device_type == "cuda" else torch.backends.mkldnn
    flags = flags if device_type == "cuda" else getattr(flags, "matmul", flags)
    before = getattr(flags, "fp32_precision", None)
    if before is not None:  # torch >= 2.9
        if before not in ("tf32", "bf16"):
            yield
            return
        flags.fp32_precision = "ieee"
        try:
            yield
        finally:
            flags.fp32_precision = before
        return
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)


def chunk_columns(device_type: str, vocabulary: int, rows: int, width: int, itemsize: int) -> int:
    """Columns per chunk: logits [rows, columns] and widened weights [columns, width] within the limit."""
    limit = CHUNK_BYTES["cpu" if device_type == "cpu" else "cuda"]
    columns = limit // (itemsize * max(rows, width, 1))
    return max(1, min(vocabulary, columns))


def _operands(rows: Tensor, weight: Tensor, dtype: torch.dtype) -> tuple[Tensor, torch.dtype, Product]:
    """Rows, the dtype to bring weights to, and x [R, H], w [C, H] -> x w^T [R, C] in `dtype`."""
    halves = rows.dtype == weight.dtype and weight.dtype in (torch.float16, torch.bfloat16)
    if halves and rows.is_cuda and hasattr(torch.ops.aten.mm, "dtype"):  # tensor cores, torch >= 2.8
        return rows, weight.dtype, lambda x, w: torch.mm(x, w.T, out_dtype=dtype)
    return rows.to(dtype), dtype, lambda x, w: x @ w.T


class Chunks:
    """The loops: `vocabulary()` yields slices of columns, `logits(columns)` row slices with their logits."""

    def __init__(self, rows: Tensor, weight: Tensor, bias: Tensor | None) -> None:
        self.weight, self.bias = weight, bias
        self.dtype = math_dtype(rows, weight, bias)
        self.rows, self.product_dtype, self.product = _operands(rows, weight, self.dtype)
        self.tile = max(1, min(rows.shape[0], ROW_TILE))
        self.columns = chunk_columns(
            rows.device.type, weight.shape[0], self.tile, weight.shape[1], self.dtype.itemsize
        )

    def vocabulary(self) -> Iterator[slice]:
        size = self.weight.shape[0]
        for first in range(0, size, self.columns):
            yield slice(first, min(first + self.columns, size))

    def products(self, columns: slice) -> Iterator[tuple[slice, Tensor]]:
        """Row slices with rows . weight[columns], before the bias, in the math dtype; yours to change."""
        w = self.weight[columns].to(self.product_dtype)
        for start in range(0, self.rows.shape[0], self.tile):
            part = slice(start, min(start + self.tile, self.rows.shape[0]))
            yield part, self.product(self.rows[part], w)

    def logits(self, columns: slice) -> Iterator[tuple[slice, Tensor]]:
        for part, logits in self.products(columns):
            yield part, logits if self.bias is None else logits.add_(self.bias[columns])


def token_logprobs(
    rows: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor
) -> tuple[Tensor, Tensor]:
    """See logprob_reference.token_logprobs; any device, dtype and strides."""
    chunks = Chunks(rows, weight, bias)
    n, dtype, device = rows.shape[0], chunks.dtype, rows.device
    largest = torch.full((n,), torch.finfo(dtype).min, dtype=dtype, device=device)
    total = torch.zeros(n, dtype=torch.float64, device=device)
    target_logit = torch.zeros(n, dtype=dtype, device=device)
    with ieee_matmul(device.type):
        for columns in chunks.vocabulary():
            for part, logits in chunks.logits(columns):
                inside, local = _local_targets(targets[part], columns)
                picked = logits.gather(1, local[:, None])[:, 0]
                target_logit[part] = torch.where(inside, picked, target_logit[part])
                top = torch.maximum(largest[part], logits.amax(dim=1))
                added = logits.sub_(top[:, None]).exp_().sum(dim=1)
                total[part] = total[part] * (largest[part] - top).double().exp() + added
                largest[part] = top
    return join(largest[None], total[None], target_logit)


def _local_targets(targets: Tensor, columns: slice) -> tuple[Tensor, Tensor]:
    """Which targets lie in `columns`, and each as an index into them that is safe to use."""
    local = targets - columns.start
    size = columns.stop - columns.start
    return (local >= 0) & (local < size), local.clamp(0, size - 1)


def token_logprobs_backward(
    grad: Tensor,
    lse: Tensor,
    rows: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    needs: Sequence[bool] = (True, True, True),
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of sum_p grad[p] log p(targets[p]) for rows [P, H], weight [V, H] and bias [V], where needed.

    d log p(target) / d logit[v] = [v = target] - exp(logit[v] - lse), a chunk of v at a time.
    """
    chunks = Chunks(rows, weight, bias)
    dtype, device = chunks.dtype, rows.device
    scale, lse = grad.to(dtype), lse.to(dtype)
    grad_rows = torch.zeros(rows.shape, dtype=dtype, device=device) if needs[0] else None
    grad_weight = torch.empty(weight.shape, dtype=weight.dtype, device=device) if needs[1] else None
    grad_bias = torch.empty_like(bias) if needs[2] and bias is not None else None
    with ieee_matmul(device.type):
        for columns in chunks.vocabulary():
            w = weight[columns].to(dtype)
            by_weight, by_bias = torch.zeros_like(w), w.new_zeros(w.shape[0])
            for part, logits in chunks.logits(columns):
                slope = logits.sub_(lse[part, None]).exp_().mul_(-scale[part, None])
                inside, local = _local_targets(targets[part], columns)
                slope.scatter_add_(1, local[:, None], (scale[part] * inside)[:, None])
                if grad_rows is not None:
                    grad_rows[part].addmm_(slope, w)
                if grad_weight is not None:
                    by_weight.addmm_(slope.T, rows[part].to(dtype))
                if grad_bias is not None:
                    by_bias += slope.sum(dim=0)
            if grad_weight is not None:
                grad_weight[columns] = by_weight
            if grad_bias is not None:
                grad_bias[columns] = by_bias
    return (None if grad_rows is None else grad_rows.to(rows.dtype)), grad_weight, grad_bias
