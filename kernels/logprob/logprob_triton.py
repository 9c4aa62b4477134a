# mypy: allow-untyped-defs, allow-untyped-calls
"""Log-probabilities from hidden states in Triton: tiles of rows by blocks of vocabulary, no logits stored.

A program owns BLOCK_P rows and one run of the vocabulary.  It multiplies block by block on the tensor cores
(float32 operands: in full precision, "ieee"), accumulates in float32, and keeps per row the largest logit and
the sum of exponentials (Milakov and Gimelshein, arXiv 1805.02867), and the target's logit where it meets it.
logprob_chunks.join puts the runs together.

Triton's interpreter (TRITON_INTERPRET=1 before this module is imported) runs the kernel on CPU tensors.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import logprob_chunks
from .logprob_chunks import join
from .logprob_reference import math_dtype

INTERPRETED = bool(triton.knobs.runtime.interpret) if hasattr(triton, "knobs") else False

PROGRAMS = 1024
"""Programs that fill a device; fixed, so that a result does not depend on the device's size."""

_NO_LOGIT = tl.constexpr(-3.402823466e38)  # finite: no inf - inf where a bias is -inf


@triton.jit
def _partials(
    rows,
    weight,
    bias,
    targets,
    largest,
    sums,
    target_logit,
    n_rows,
    width,
    vocabulary,
    row_stride,
    column_stride,
    width_stride,
    per_program,
    HAS_BIAS: tl.constexpr,
    WIDEN: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    p = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    run = tl.program_id(1)
    begin = run * per_program
    end = tl.minimum(begin + per_program, vocabulary)
    real = p < n_rows
    target = tl.load(targets + p, mask=real, other=-1)
    row = rows + p.to(tl.int64)[:, None] * row_stride
    top = tl.full([BLOCK_P], _NO_LOGIT, tl.float32)
    total = tl.zeros([BLOCK_P], tl.float32)
    picked = tl.zeros([BLOCK_P], tl.float32)
    for first in range(begin, end, BLOCK_V):
        v = first + tl.arange(0, BLOCK_V)
        inside = v < end
        column = weight + v.to(tl.int64)[None, :] * column_stride
        logits = tl.zeros([BLOCK_P, BLOCK_V], tl.float32)
        for h0 in range(0, width, BLOCK_H):
            h = h0 + tl.arange(0, BLOCK_H)
            x = tl.load(row + h[None, :], mask=real[:, None] & (h < width)[None, :], other=0.0)
            w = tl.load(
                column + h[:, None] * width_stride, mask=(h < width)[:, None] & inside[None, :], other=0.0
            )
            if WIDEN:
                x = x.to(tl.float32)
                w = w.to(tl.float32)
            logits = tl.dot(x, w, logits, input_precision="ieee")
        if HAS_BIAS:
            logits += tl.load(bias + v, mask=inside, other=0.0).to(tl.float32)[None, :]
        logits = tl.where(inside[None, :], logits, float("-inf"))
        picked += tl.sum(tl.where(v[None, :] == target[:, None], logits, 0.0), axis=1)
        higher = tl.maximum(top, tl.max(logits, axis=1))
        total = total * tl.exp(top - higher) + tl.sum(tl.exp(logits - higher[:, None]), axis=1)
        top = higher
    tl.store(largest + run * n_rows + p, top, mask=real)
    tl.store(sums + run * n_rows + p, total, mask=real)
    tl.store(target_logit + p, picked, mask=real & (target >= begin) & (target < end))


def _blocks(n_rows: int, widen: bool) -> dict[str, Any]:
    """Tile sizes that keep to registers on sm_80 and sm_90 (README.md has the counts)."""
    rows = min(max(16, triton.next_power_of_2(n_rows)), 32 if widen else 64)
    width = 16 if widen and rows == 32 else 64 if rows == 16 and not widen else 32
    return {
        "BLOCK_P": rows,
        "BLOCK_V": 64,
        "BLOCK_H": width,
        "num_warps": 8 if rows == 64 else 4,
        "enable_fp_fusion": True,
    }


def token_logprobs(
    rows: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor
) -> tuple[Tensor, Tensor]:
    """See logprob_reference.token_logprobs. Float64 operands go by chunks in PyTorch."""
    if math_dtype(rows, weight, bias) == torch.float64 or 0 in (*rows.shape, weight.shape[0]):
        return logprob_chunks.token_logprobs(rows, weight, bias, targets)
    rows, targets = rows.contiguous(), targets.contiguous()
    bias = None if bias is None else bias.contiguous()
    n, vocabulary, device = rows.shape[0], weight.shape[0], rows.device
    widen = rows.dtype != weight.dtype or weight.dtype == torch.float32
    # NumPy has no bfloat16, and the interpreter's dot would take its bits for integers.
    widen = widen or (INTERPRETED and weight.dtype == torch.bfloat16)
    blocks = _blocks(n, widen)
    tiles = triton.cdiv(n, blocks["BLOCK_P"])
    runs = max(1, min(triton.cdiv(vocabulary, blocks["BLOCK_V"]), PROGRAMS // tiles))
    per_program = triton.cdiv(triton.cdiv(vocabulary, runs), blocks["BLOCK_V"]) * blocks["BLOCK_V"]
    runs = triton.cdiv(vocabulary, per_program)
    largest = torch.empty((runs, n), device=device)
    sums = torch.empty((runs, n), device=device)
    target_logit = torch.empty(n, device=device)
    _partials[(tiles, runs)](
        rows,
        weight,
        weight if bias is None else bias,
        targets,
        largest,
        sums,
        target_logit,
        n,
        rows.shape[1],
        vocabulary,
        rows.stride(0),
        weight.stride(0),
        weight.stride(1),
        per_program,
        HAS_BIAS=bias is not None,
        WIDEN=widen,
        **blocks,
    )
    return join(largest, sums, target_logit)


def ahead_of_time() -> list[tuple[str, Any, dict[str, str], dict[str, Any], dict[str, Any]]]:
    """(name, kernel, signature, constants, options) of the kernels to compile where there is no GPU."""
    cases = []
    for dtype, rows in (("fp32", 16), ("fp32", 32), ("bf16", 16), ("bf16", 64), ("fp16", 16), ("fp16", 64)):
        constants = {"HAS_BIAS": True, "WIDEN": dtype == "fp32"} | _blocks(rows, dtype == "fp32")
        options = {name: constants.pop(name) for name in ("num_warps", "enable_fp_fusion")}
        pointers = {"rows": dtype, "weight": dtype, "bias": dtype, "targets": "i64"}
        pointers |= dict.fromkeys(("largest", "sums", "target_logit"), "fp32")
        integers = (
            "n_rows",
            "width",
            "vocabulary",
            "row_stride",
            "column_stride",
            "width_stride",
            "per_program",
        )
        signature = {name: "*" + kind for name, kind in pointers.items()} | dict.fromkeys(integers, "i32")
        signature |= dict.fromkeys(constants, "constexpr")
        cases.append((f"token_logprobs.{dtype}.{rows}_rows", _partials, signature, constants, options))
    return cases
