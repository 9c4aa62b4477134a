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


def _on_cuda(tensor: Tensor) -> bool:
    return tensor.is_cuda


def _stream(tensor: Tensor) -> int:
    return int(torch.cuda.current_stream(tensor.device).cuda_stream)


def _door(x: Tensor) -> tuple[Any, int]:
    """The module whose kernels serve x, and what its calls end with: the stream, or how many threads."""
    if _on_cuda(x):
        assert _native.cuda is not None
        return _native.cuda, _stream(x)
    return _native.cpu, torch.get_num_threads()


def similarity(x: Tensor, y: Tensor, options: Options, pool: bool) -> tuple[Tensor, Tensor, Tensor]:
    """See quality_reference.similarity."""
    batch, channels, height, width = x.shape
    wide = math_dtype(x, y)
    half = (batch, channels, (height + 1) // 2, (width + 1) // 2) if pool else (0,)
    px, py = (torch.empty(half, dtype=wide, device=x.device) for _ in range(2))
    if not batch:
        return torch.empty(batch, channels, dtype=torch.float64, device=x.device), px, py
    pooled = _pair(px, py) if pool else (_NONE, _NONE)
    head = (_pair(x, y), _shape(x, y), _options(options), pooled)
    module, last = _door(x)
    if not _on_cuda(x):
        means = torch.empty(batch, channels, dtype=torch.float64, device=x.device)
        module.image_similarity(*head, means.data_ptr(), last)
        return means, px, py
    tiles = module.image_similarity_parts(head[1], head[2])
    sums = torch.empty(batch, channels, tiles, dtype=torch.float64, device=x.device)
    module.image_similarity(*head, sums.data_ptr(), last)
    lost = len(options.taps) - 1
    return sums.sum(2) / ((height - lost) * (width - lost)), px, py


def similarity_backward(
    grad: Tensor, x: Tensor, y: Tensor, pooled: Pair, options: Options, out: Pair
) -> None:
    """See quality_reference.similarity_backward."""
    if not len(x):
        return
    head = (_pair(x, y), _shape(x, y), _options(options), _pair(*pooled), grad.data_ptr(), _pair(*out))
    module, last = _door(x)
    module.image_similarity_backward(*head, last)


def squared_error(x: Tensor, y: Tensor) -> Tensor:
    """See quality_reference.squared_error."""
    if not len(x):
        return torch.empty(0, dtype=torch.float64, device=x.device)
    head = (_pair(x, y), _shape(x, y))
    module, last = _door(x)
    if not _on_cuda(x):
        means = torch.empty(len(x), dtype=torch.float64, device=x.device)
        module.image_squared_error(*head, means.data_ptr(), last)
        return means
    pieces = module.image_squared_error_parts(head[1])
    sums = torch.empty(len(x), pieces, dtype=torch.float64, device=x.device)
    module.image_squared_error(*head, sums.data_ptr(), last)
    return sums.sum(1) / x[0].numel()


def squared_error_backward(grad: Tensor, x: Tensor, y: Tensor, out: Pair) -> None:
    """See quality_reference.squared_error_backward."""
    if not len(x):
        return
    head = (_pair(x, y), _shape(x, y), grad.data_ptr(), _pair(*out))
    module, last = _door(x)
    module.image_squared_error_backward(*head, last)
