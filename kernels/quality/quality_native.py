"""The compiled picture-quality kernels behind the signatures of quality_reference.py."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tenfold import _native
from tenfold._native import DTYPE_CODES

from .quality_reference import Options, math_dtype

_CODES = DTYPE_CODES | {torch.uint8: 4}
_NONE = (0, 0, 0, 0, 0, 0)

Pair = tuple[Tensor | None, Tensor | None]


def _image(value: Tensor | None) -> tuple[int, ...]:
    """(address, dtype, four strides) of [B, C, H, W]."""
    return _NONE if value is None else (value.data_ptr(), _CODES[value.dtype], *value.stride())


def _pair(first: Tensor | None, second: Tensor | None) -> tuple[Any, Any]:
    return _image(first), _image(second)


def _shape(x: Tensor, y: Tensor) -> tuple[Any, ...]:
    return (*x.shape, math_dtype(x, y) == torch.float64)


def _options(options: Options) -> tuple[Any, ...]:
    weights = list(options.taps)
    return weights, options.unbiased, options.c1, options.c2, options.scale, options.contrast


def similarity(x: Tensor, y: Tensor, options: Options, pool: bool) -> tuple[Tensor, Tensor, Tensor]:
    """See quality_reference.similarity."""
    batch, channels, height, width = x.shape
    wide = math_dtype(x, y)
    half = (batch, channels, (height + 1) // 2, (width + 1) // 2) if pool else (0,)
    px, py = (torch.empty(half, dtype=wide, device=x.device) for _ in range(2))
    means = torch.empty(batch, channels, dtype=torch.float64, device=x.device)
    if batch:
        pooled = _pair(px, py) if pool else (_NONE, _NONE)
        head = (_pair(x, y), _shape(x, y), _options(options), pooled)
        _native.cpu.image_similarity(*head, means.data_ptr(), torch.get_num_threads())
    return means, px, py


def similarity_backward(
    grad: Tensor, x: Tensor, y: Tensor, pooled: Pair, options: Options, out: Pair
) -> None:
    """See quality_reference.similarity_backward."""
    if not len(x):
        return
    head = (_pair(x, y), _shape(x, y), _options(options), _pair(*pooled), grad.data_ptr(), _pair(*out))
    _native.cpu.image_similarity_backward(*head, torch.get_num_threads())


def squared_error(x: Tensor, y: Tensor) -> Tensor:
    """See quality_reference.squared_error."""
    means = torch.empty(len(x), dtype=torch.float64, device=x.device)
    if len(x):
        head = (_pair(x, y), _shape(x, y))
        _native.cpu.image_squared_error(*head, means.data_ptr(), torch.get_num_threads())
    return means


def squared_error_backward(grad: Tensor, x: Tensor, y: Tensor, out: Pair) -> None:
    """See quality_reference.squared_error_backward."""
    if not len(x):
        return
    head = (_pair(x, y), _shape(x, y), grad.data_ptr(), _pair(*out))
    _native.cpu.image_squared_error_backward(*head, torch.get_num_threads())
