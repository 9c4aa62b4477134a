"""The compiled soft-overlap kernels behind the signatures of softdice_reference.py."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tenfold import _native
from tenfold._native import DTYPE_CODES

from .softdice_reference import ACTIVATIONS, SUMS, Options, math_dtype

_CODES = DTYPE_CODES | {
    torch.bool: 4,
    torch.uint8: 4,
    torch.int8: 5,
    torch.int16: 6,
    torch.int32: 7,
    torch.int64: 8,
}
BLOCKS = 1024
"""Most blocks per batch item of the CUDA forward, each with sums of its own."""

_Map = tuple[int, int, int, int, int]


def _on_cuda(tensor: Tensor) -> bool:
    return tensor.is_cuda


def _stream(tensor: Tensor) -> int:
    return int(torch.cuda.current_stream(tensor.device).cuda_stream)


def _view(value: Tensor | None) -> _Map:
    """(address, dtype, stride of batch items, of classes, of voxels) of [B, C, N] or [B, N]."""
    if value is None:
        return 0, 0, 0, 0, 0
    strides = (value.stride(0), value.stride(1) if value.ndim == 3 else 0, value.stride(-1))
    return value.data_ptr(), _CODES[value.dtype], *strides


def _head(logits: Tensor, target: Tensor, mask: Tensor | None, options: Options) -> tuple[Any, ...]:
    ignore = options.ignore
    packed = (
        ignore is not None,
        ignore or 0,
        ACTIVATIONS.index(options.activation),
        options.gamma,
        options.squares,
        options.logs,
    )
    views = (_view(logits), _view(target), _view(mask))
    return *views, (*logits.shape, target.ndim == 3), packed


def forward(
    logits: Tensor, target: Tensor, mask: Tensor | None, options: Options
) -> tuple[Tensor, Tensor, Tensor]:
    """See softdice_reference.forward."""
    batches, classes, voxels = logits.shape
    device, softmax = logits.device, options.activation == "softmax"
    sums = torch.empty(batches, classes, len(SUMS), dtype=torch.float64, device=device)
    lse = torch.empty((batches, voxels) if softmax else (0,), dtype=math_dtype(logits), device=device)
    bad = torch.zeros(1, dtype=torch.int64, device=device)
    head = (*_head(logits, target, mask, options), lse.data_ptr())
    if not _on_cuda(logits):
        _native.cpu.soft_overlap(*head, sums.data_ptr(), bad.data_ptr(), torch.get_num_threads())
        return sums, lse, bad
    blocks = max(1, min(BLOCKS, (voxels + 127) // 128))
    make = torch.empty if voxels else torch.zeros  # without voxels nothing is launched
    partial = make(batches, blocks, classes, len(SUMS), dtype=torch.float64, device=device)
    counts = torch.zeros(batches, blocks, dtype=torch.int64, device=device)
    assert _native.cuda is not None
    _native.cuda.soft_overlap(*head, partial.data_ptr(), counts.data_ptr(), blocks, _stream(logits))
    return partial.sum(1), lse, counts.sum().reshape(1)


def backward(
    grad: Tensor,
    logits: Tensor,
    target: Tensor,
    mask: Tensor | None,
    lse: Tensor,
    options: Options,
    out: Tensor,
) -> None:
    """See softdice_reference.backward."""
    head = (*_head(logits, target, mask, options), lse.data_ptr(), grad.data_ptr(), _view(out))
    if _on_cuda(logits):
        assert _native.cuda is not None
        _native.cuda.soft_overlap_backward(*head, _stream(logits))
    else:
        _native.cpu.soft_overlap_backward(*head, torch.get_num_threads())
