"""The compiled log-probability kernels behind the signature of logprob_reference.token_logprobs.

CPU: one fused kernel, dot products and log-sum-exp, no logits in memory.  CUDA: cuBLAS writes a chunk of
products, the native kernel reads it once while it is still in the cache.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tenfold import _native
from tenfold._native import DTYPE_CODES

from . import logprob_chunks
from .logprob_chunks import Chunks, ieee_matmul, join
from .logprob_reference import math_dtype

SEGMENTS = 64
"""Parts of the vocabulary on the CPU.  Fixes the order of summation whatever the threads."""

BLOCKS = 1024
"""Thread blocks that fill a CUDA device; fixed, so that a result does not depend on the device's size."""


def token_logprobs(
    rows: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor
) -> tuple[Tensor, Tensor]:
    """See logprob_reference.token_logprobs. Float64 operands go by chunks in PyTorch."""
    if math_dtype(rows, weight, bias) == torch.float64 or 0 in (*rows.shape, weight.shape[0]):
        return logprob_chunks.token_logprobs(rows, weight, bias, targets)
    targets = targets.contiguous()
    if bias is not None:
        bias = bias.to(torch.float32).contiguous()
    if rows.is_cuda:
        return _cuda(rows, weight, bias, targets)
    if weight.stride(1) != 1:
        return logprob_chunks.token_logprobs(rows, weight, bias, targets)
    return _cpu(rows, weight, bias, targets)


def _cpu(rows: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> tuple[Tensor, Tensor]:
    rows = rows.to(torch.float32).contiguous()
    n, width = rows.shape
    largest = torch.empty((SEGMENTS, n))
    sums = torch.empty((SEGMENTS, n))
    target_logit = torch.empty(n)
    cpu: Any = _native.cpu
    cpu.token_logprobs(
        rows.data_ptr(),
        targets.data_ptr(),
        weight.data_ptr(),
        0 if bias is None else bias.data_ptr(),
        n,
        width,
        weight.shape[0],
        weight.stride(0),
        DTYPE_CODES[weight.dtype],
        SEGMENTS,
        largest.data_ptr(),
        sums.data_ptr(),
        target_logit.data_ptr(),
        torch.get_num_threads(),
    )
    return join(largest, sums, target_logit)


def _cuda(rows: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> tuple[Tensor, Tensor]:
    assert _native.cuda is not None
    chunks = Chunks(rows, weight, None)
    n, device = rows.shape[0], rows.device
    splits = max(1, min(64, BLOCKS // n))
    slices = list(chunks.vocabulary())
    largest = torch.empty((len(slices), splits, n), device=device)
    sums = torch.empty_like(largest)
    target_logit = torch.empty(n, device=device)
    stream = torch.cuda.current_stream(device).cuda_stream
    with torch.cuda.device(device), ieee_matmul("cuda"):
        for k, columns in enumerate(slices):
            for part, products in chunks.products(columns):
                _native.cuda.lse_partials(
                    products.data_ptr(),
                    targets[part].data_ptr(),
                    0 if bias is None else bias[columns].data_ptr(),
                    products.shape[0],
                    products.shape[1],
                    products.stride(0),
                    columns.start,
                    splits,
                    n,
                    largest[k, :, part].data_ptr(),
                    sums[k, :, part].data_ptr(),
                    target_logit[part].data_ptr(),
                    stream,
                )
    return join(largest.flatten(0, 1), sums.flatten(0, 1), target_logit)
