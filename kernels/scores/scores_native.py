"""The compiled kernels of sample scores behind the signatures of scores_reference.py.

float64 goes through PyTorch a few rows at a time; so do class medians on a GPU, where a sort per class is
bound by memory and is what PyTorch does best.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tenfold import _native
from tenfold._native import DTYPE_CODES

from . import scores_reference
from .scores_reference import RowScores, count_votes, empty_scores

__all__ = [
    "class_mask",
    "class_medians",
    "class_vote",
    "count_votes",
    "cross_entropy_rows",
    "cross_entropy_rows_backward",
    "dynamics_scatter_",
    "own_distances",
    "score_rows",
]

_Matrix = tuple[int, int, int, int, int]


def _module(tensor: Tensor) -> tuple[Any, tuple[int]]:
    """The compiled module for the tensor's device, and the last argument of its functions."""
    if tensor.is_cuda:
        return _native.cuda, (torch.cuda.current_stream(tensor.device).cuda_stream,)
    return _native.cpu, (torch.get_num_threads(),)


def _rows(x: Tensor) -> Tensor:
    """With unit stride in a row, copied if need be."""
    return x if x.stride(1) == 1 or x.shape[1] <= 1 else x.contiguous()


def _matrix(x: Tensor) -> _Matrix:
    return x.data_ptr(), *x.shape, x.stride(0), DTYPE_CODES[x.dtype]


def _none(rows: int, like: Tensor, count: int) -> Tensor:
    return torch.full((count,), rows, dtype=torch.int64, device=like.device)


def score_rows(
    logits: Tensor, labels: Tensor, norms_squared: Tensor | None, want: frozenset[str]
) -> tuple[RowScores, Tensor]:
    """See scores_reference.score_rows."""
    if logits.dtype == torch.float64:
        return scores_reference.score_rows(logits, labels, norms_squared, want)
    rows, classes = logits.shape
    out = empty_scores(rows, classes, torch.float32, logits.device, want)
    bad = _none(rows, logits, 2)
    if rows:
        z, y = _rows(logits), labels.contiguous()
        norms = None if norms_squared is None else norms_squared.to(torch.float32).contiguous()
        module, last = _module(logits)
        pointers = [t.data_ptr() if t.numel() else 0 for t in out]
        at = norms.data_ptr() if norms is not None else 0
        module.score_rows(_matrix(z), y.data_ptr(), at, pointers, bad.data_ptr(), *last)
    return out, bad


def dynamics_scatter_(state: dict[str, Tensor], indices: Tensor, scores: RowScores) -> None:
    """See scores_reference.dynamics_scatter_."""
    if not indices.numel():
        return
    at = indices.contiguous()
    rows = [t.data_ptr() for t in (at, scores.correct, scores.label_margin, scores.el2n)]
    module, last = _module(at)
    module.dynamics_scatter(at.numel(), *rows, [t.data_ptr() for t in state.values()], *last)


def cross_entropy_rows(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """See scores_reference.cross_entropy_rows."""
    if logits.dtype == torch.float64 or not logits.numel():
        return scores_reference.cross_entropy_rows(logits, labels)
    z, y = _rows(logits), labels.contiguous()
    loss, top, log_total = (torch.empty(z.shape[0], dtype=torch.float32, device=z.device) for _ in range(3))
    module, last = _module(z)
    out = [t.data_ptr() for t in (loss, top, log_total)]
    module.cross_entropy_rows(_matrix(z), y.data_ptr(), *out, 0, 0, 0, *last)
    return loss, top, log_total


def cross_entropy_rows_backward(
    grad: Tensor, logits: Tensor, labels: Tensor, top: Tensor, log_total: Tensor
) -> Tensor:
    """See scores_reference.cross_entropy_rows_backward."""
    if logits.dtype == torch.float64 or not logits.numel():
        return scores_reference.cross_entropy_rows_backward(grad, logits, labels, top, log_total)
    z, y = _rows(logits), labels.contiguous()
    per_row = [t.to(torch.float32).contiguous() for t in (top, log_total, grad)]
    out = torch.empty(z.shape, dtype=z.dtype, device=z.device)
    module, last = _module(z)
    pointers = [t.data_ptr() for t in per_row]
    module.cross_entropy_rows(_matrix(z), y.data_ptr(), 0, *pointers, out.data_ptr(), out.stride(0), *last)
    return out


def class_medians(x: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """See scores_reference.class_medians."""
    if x.dtype == torch.float64 or x.is_cuda or not x.shape[1]:
        return scores_reference.class_medians(x, labels, classes)
    rows, y = _rows(x), labels.contiguous()
    medians = torch.empty(classes, x.shape[1], dtype=torch.float32)
    bad = torch.zeros(1, dtype=torch.uint8)
    _native.cpu.class_medians(
        _matrix(rows), y.data_ptr(), classes, medians.data_ptr(), 0, bad.data_ptr(), torch.get_num_threads()
    )
    first = scores_reference.first_not_finite(x) if int(bad) else torch.tensor(x.shape[0])
    return medians, first


def own_distances(x: Tensor, labels: Tensor, centers: Tensor) -> Tensor:
    """See scores_reference.own_distances."""
    if x.dtype == torch.float64 or x.is_cuda or not x.shape[1]:
        return scores_reference.own_distances(x, labels, centers)
    rows, y, middle = _rows(x), labels.contiguous(), centers.contiguous()
    out = torch.empty(x.shape[0], dtype=torch.float32)
    if x.shape[0]:
        pointers = (middle.data_ptr(), out.data_ptr(), 0)
        _native.cpu.class_medians(
            _matrix(rows), y.data_ptr(), centers.shape[0], *pointers, torch.get_num_threads()
        )
    return out


def class_vote(logits: Tensor, targets: Tensor | None, histogram: Tensor, matrix: Tensor | None) -> Tensor:
    """See scores_reference.class_vote."""
    if logits.dtype == torch.float64:
        return scores_reference.class_vote(logits, targets, histogram, matrix)
    bad = _none(logits.shape[0], logits, 1)
    if logits.shape[0]:
        z = _rows(logits)
        own = None if targets is None else targets.contiguous()
        module, last = _module(z)
        at = own.data_ptr() if own is not None and matrix is not None else 0
        to = matrix.data_ptr() if own is not None and matrix is not None else 0
        module.class_vote(_matrix(z), at, histogram.data_ptr(), to, bad.data_ptr(), *last)
    return bad[0]


def class_mask(labels: Tensor, keep: Tensor) -> tuple[Tensor, int]:
    """See scores_reference.class_mask."""
    if labels.is_cuda or not labels.numel():
        return scores_reference.class_mask(labels, keep)
    y, table = labels.contiguous(), keep.contiguous()
    pieces = -(-y.numel() // _native.cpu.class_mask_piece)
    counts = torch.empty(pieces, dtype=torch.int64)
    bad = _none(y.numel(), y, 1)
    signed = y.dtype != torch.uint8
    head = (y.data_ptr(), y.element_size(), signed, y.numel(), table.data_ptr(), table.numel())
    tail = (counts.data_ptr(), bad.data_ptr())
    _native.cpu.class_mask(*head, *tail, 0, torch.get_num_threads())
    if int(bad) < y.numel():
        return counts[:0], int(bad)
    out = torch.empty(int(counts.sum()), dtype=torch.int64)
    if out.numel():
        _native.cpu.class_mask(*head, *tail, out.data_ptr(), torch.get_num_threads())
    return out, y.numel()
