"""The compiled pursuit behind the signature of fgrad_reference.py.

For float64, and where the columns of inner products would take too much room, the pursuit runs in PyTorch.
On a GPU it does too, but for the columns: each step is a few products that are bound by memory, and the host
waits for none of them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tenfold import _native
from tenfold._native import DTYPE_CODES

from . import fgrad_reference
from .fgrad_reference import finish, keeps_columns, start


def _matrix(x: Tensor) -> tuple[int, int, int, int, int]:
    return x.data_ptr(), *x.shape, x.stride(0), DTYPE_CODES[x.dtype]


def _rows(x: Tensor) -> Tensor:
    return x if x.stride(1) == 1 or x.shape[1] <= 1 else x.contiguous()


def _module(tensor: Tensor) -> tuple[Any, tuple[int]]:
    """The CUDA module, and the stream in use on the tensor's device."""
    return _native.cuda, (torch.cuda.current_stream(tensor.device).cuda_stream,)


def column(e: Tensor, h: Tensor, pick: Tensor, bias: bool) -> Tensor:
    """See fgrad_reference.column; float32 factors on a GPU."""
    out = torch.empty(e.shape[0], dtype=torch.float64, device=e.device)
    module, last = _module(e)
    module.fgrad_column(_matrix(e), _matrix(h), pick.data_ptr(), float(bias), out.data_ptr(), *last)
    return out


def omp(
    e: Tensor, h: Tensor, target: Tensor | None, k: int, lam: float, bias: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See fgrad_reference.omp."""
    exact = torch.float64 in (e.dtype, h.dtype)
    if e.is_cuda and not exact:
        return fgrad_reference.omp(_rows(e.float()), _rows(h.float()), target, k, lam, bias, column)
    if exact or not keeps_columns(e.shape[0], k, e.shape[1] + h.shape[1]) or k == 0:
        return fgrad_reference.omp(e, h, target, k, lam, bias)
    rows = e.shape[0]
    goal, q = start(e, h, target, bias)
    size = goal.square().sum()
    columns, c = torch.empty(k, rows, dtype=torch.float64), torch.empty(rows, dtype=torch.float64)
    gram, chol = torch.zeros(k, k, dtype=torch.float64), torch.zeros(k, k, dtype=torch.float64)
    indices, residuals = torch.zeros(k, dtype=torch.int64), torch.empty(k, dtype=torch.float64)
    errors, hidden = _rows(e), _rows(h)
    room = (q, columns, c, indices, gram, chol, residuals)
    head = (_matrix(errors), _matrix(hidden), bias, k, lam, float(size))
    _native.cpu.omp_factored(*head, *(t.data_ptr() for t in room), torch.get_num_threads())
    return finish(indices, gram, chol.diagonal(), q[indices], residuals, size, lam)
