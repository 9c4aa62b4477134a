"""The compiled row kernels behind the signatures of rows_reference.py.

float64 rows, and rows whose vocabulary has a step, go through PyTorch a few at a time: memory stays bounded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tenfold import _native
from tenfold._native import DTYPE_CODES

from . import rows_reference
from .rows_reference import KINDS, RowStats, row_blocks

ROWS = 32
"""Rows that PyTorch works on at a time."""

_View = tuple[int, int, int, int, int]


def _module(tensor: Tensor) -> tuple[Any, tuple[int]]:
    """The compiled module for the tensor's device, and the last argument of its functions."""
    if tensor.is_cuda:
        return _native.cuda, (torch.cuda.current_stream(tensor.device).cuda_stream,)
    return _native.cpu, (torch.get_num_threads(),)


def _view(rows: Tensor) -> _View:
    """(address, rows, rows per group, stride of groups, stride of rows) of [R, V] or [B, T, V]."""
    if rows.ndim == 2:
        return rows.data_ptr(), rows.shape[0], max(1, rows.shape[0]), 0, rows.stride(0)
    groups, inner, _ = rows.shape
    return rows.data_ptr(), groups * inner, max(1, inner), rows.stride(0), rows.stride(1)


def _compiled(*rows: Tensor) -> bool:
    return all(t.dtype != torch.float64 and (t.stride(-1) == 1 or t.shape[-1] == 1) for t in rows)


def _shape(
    logits: Tensor, softcap: float | None, inverse_temperature: float
) -> tuple[int, int, float, float]:
    return logits.shape[-1], DTYPE_CODES[logits.dtype], softcap or 0.0, inverse_temperature


def _count(logits: Tensor) -> int:
    return logits.shape[:-1].numel()


def _doubles(like: Tensor, count: int) -> list[Tensor]:
    rows = _count(like)
    return [torch.empty(rows, dtype=torch.float64, device=like.device) for _ in range(count)]


def _pieces(work: Callable[[slice, Tensor], Sequence[Tensor]], logits: Tensor) -> list[Tensor]:
    """What `work` gives for a few rows at a time, joined."""
    found = [work(part, z) for part, z in row_blocks(logits, ROWS)]
    found = found or [work(slice(0, 0), logits.reshape(0, logits.shape[-1]))]
    return [torch.cat(column) for column in zip(*found, strict=True)]


def forward(
    logits: Tensor,
    targets: Tensor,
    softcap: float | None = None,
    inverse_temperature: float = 1.0,
    stats: bool = True,
) -> RowStats:
    """See rows_reference.forward."""
    options = (softcap, inverse_temperature)
    if not _compiled(logits):
        pieces = _pieces(lambda p, z: rows_reference.forward(z, targets[p], *options, stats), logits)
        return RowStats(*pieces)
    module, last = _module(logits)
    targets = targets.contiguous()
    logp, lse = _doubles(logits, 2)
    argmax = torch.empty(_count(logits) if stats else 0, dtype=torch.int64, device=logits.device)
    means = _doubles(logits, 3) if stats else [logp.new_empty(0) for _ in range(3)]
    wanted = [t.data_ptr() if stats else 0 for t in (argmax, *means)]
    view, shape = _view(logits), _shape(logits, *options)
    module.row_forward(view, shape, targets.data_ptr(), logp.data_ptr(), lse.data_ptr(), *wanted, *last)
    return RowStats(logp, lse, argmax, *means)


def softmax_(
    out: Tensor,
    logits: Tensor,
    targets: Tensor,
    lse: Tensor,
    coef: Tensor,
    at_target: Tensor,
    softcap: float | None = None,
    inverse_temperature: float = 1.0,
) -> None:
    """See rows_reference.softmax_."""
    options = (softcap, inverse_temperature)
    if not _compiled(logits, out):
        for (p, z), (_, to) in zip(row_blocks(logits, ROWS), row_blocks(out, ROWS), strict=True):
            rows_reference.softmax_(to, z, targets[p], lse[p], coef[p], at_target[p], *options)
        return
    module, last = _module(logits)
    rows = [targets.contiguous(), *(t.to(torch.float64).contiguous() for t in (lse, coef, at_target))]
    pointers = [t.data_ptr() for t in rows]
    module.row_softmax(_view(out), _view(logits), _shape(logits, *options), *pointers, *last)


def sample(
    logits: Tensor, uniforms: Tensor, inverse_temperature: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    """See rows_reference.sample."""
    if not _compiled(logits):
        pieces = _pieces(lambda p, z: rows_reference.sample(z, uniforms[p], inverse_temperature), logits)
        return pieces[0], pieces[1], pieces[2]
    module, last = _module(logits)
    uniforms = uniforms.contiguous()
    tokens = torch.empty(_count(logits), dtype=torch.int64, device=logits.device)
    logp, lse = _doubles(logits, 2)
    pointers = [t.data_ptr() for t in (uniforms, tokens, logp, lse)]
    module.row_sample(_view(logits), _shape(logits, None, inverse_temperature), *pointers, *last)
    return tokens, logp, lse


def ceu(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """See rows_reference.ceu."""
    if not _compiled(logits):
        pieces = _pieces(lambda p, z: rows_reference.ceu(z, targets[p]), logits)
        return pieces[0], pieces[1], pieces[2]
    module, last = _module(logits)
    targets = targets.contiguous()
    loss, rest, logp = _doubles(logits, 3)
    pointers = [t.data_ptr() for t in (targets, loss, rest, logp)]
    module.row_ceu(_view(logits), _shape(logits, None, 1.0), *pointers, *last)
    return loss, rest, logp


def _singles(*rows: Tensor) -> bool:
    return _compiled(*rows) and all(t.dtype == torch.float32 for t in rows)


def divergence(
    logits: Tensor, ref_logits: Tensor, targets: Tensor, beta: float, kind: str
) -> tuple[Tensor, Tensor, Tensor]:
    """See rows_reference.divergence."""
    if not _singles(logits, ref_logits):
        pieces = _pieces(
            lambda p, z: rows_reference.divergence(z, ref_logits[p], targets[p], beta, kind), logits
        )
        return pieces[0], pieces[1], pieces[2]
    loss, lse, ref_lse = _doubles(logits, 3)
    _divergence(False, logits, logits, ref_logits, targets, beta, kind, loss, lse, ref_lse, loss)
    return loss, lse, ref_lse


def divergence_(
    out: Tensor,
    logits: Tensor,
    ref_logits: Tensor,
    targets: Tensor,
    beta: float,
    kind: str,
    loss: Tensor,
    lse: Tensor,
    ref_lse: Tensor,
    grad: Tensor,
) -> None:
    """See rows_reference.divergence_."""
    if not _singles(out, logits, ref_logits):
        for p, z in row_blocks(logits, ROWS):
            rest = (loss[p], lse[p], ref_lse[p], grad[p])
            rows_reference.divergence_(out[p], z, ref_logits[p], targets[p], beta, kind, *rest)
        return
    rows = (t.to(torch.float64).contiguous() for t in (loss, lse, ref_lse, grad))
    _divergence(True, out, logits, ref_logits, targets, beta, kind, *rows)


def _divergence(
    backward: bool,
    out: Tensor,
    logits: Tensor,
    ref_logits: Tensor,
    targets: Tensor,
    beta: float,
    kind: str,
    *rows: Tensor,
) -> None:
    module, last = _module(logits)
    targets = targets.contiguous()
    views = (_view(out), _view(logits), _view(ref_logits))
    pointers = [t.data_ptr() for t in rows]
    head = (backward, *views, logits.shape[-1], targets.data_ptr(), beta, KINDS.index(kind))
    module.row_divergence(*head, *pointers, *last)
