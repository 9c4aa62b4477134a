# mypy: allow-untyped-defs, allow-untyped-calls
"""Interpolation and argmax in Triton: a program owns BLOCK outputs and goes over the classes.

Neighbouring outputs share their neighbours, so most loads come from the caches. float64 logits go through the
PyTorch reference. The interpreter (TRITON_INTERPRET=1 before this module is imported) runs it on CPU tensors.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import volume_reference

BLOCK = 512


@triton.jit
def _neighbours(i, size_in, size_out, ALIGN: tl.constexpr):
    """The two nearest places along an axis and the share of the second, in float32 as PyTorch."""
    if ALIGN:
        at = (i * 1.0) * ((size_in - 1) * 1.0 / ((size_out - 1) * 1.0 + (size_out == 1) * 1.0))
    else:
        at = (size_in * 1.0 / (size_out * 1.0)) * (i + 0.5) - 0.5
    at = tl.maximum(at, 0.0)
    low = tl.minimum(at.to(tl.int32), size_in - 1)
    high = tl.minimum(low + 1, size_in - 1)
    return low, high, at - low * 1.0


@triton.jit
def _resample_kernel(
    logits,
    labels,
    classes,
    in_z,
    in_y,
    in_x,
    out_z,
    out_y,
    out_x,
    stride_c,
    stride_z,
    stride_y,
    stride_x,
    ALIGN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    x = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    line = tl.program_id(1)
    inside = x < out_x
    z0, z1, wz = _neighbours(line // out_y, in_z, out_z, ALIGN)
    y0, y1, wy = _neighbours(line % out_y, in_y, out_y, ALIGN)
    x0, x1, wx = _neighbours(x, in_x, out_x, ALIGN)
    low = x0.to(tl.int64) * stride_x
    high = x1.to(tl.int64) * stride_x
    row00 = z0.to(tl.int64) * stride_z + y0.to(tl.int64) * stride_y
    row01 = z0.to(tl.int64) * stride_z + y1.to(tl.int64) * stride_y
    row10 = z1.to(tl.int64) * stride_z + y0.to(tl.int64) * stride_y
    row11 = z1.to(tl.int64) * stride_z + y1.to(tl.int64) * stride_y
    w00 = (1 - wz) * (1 - wy)
    w01 = (1 - wz) * wy
    w10 = wz * (1 - wy)
    w11 = wz * wy
    best = tl.full([BLOCK], float("-inf"), tl.float32)
    label = tl.zeros([BLOCK], tl.int32)
    base = logits
    for c in range(0, classes):  # noqa: PIE808
        a = w00 * tl.load(base + row00 + low, mask=inside, other=0.0).to(tl.float32)
        a += w01 * tl.load(base + row01 + low, mask=inside, other=0.0).to(tl.float32)
        a += w10 * tl.load(base + row10 + low, mask=inside, other=0.0).to(tl.float32)
        a += w11 * tl.load(base + row11 + low, mask=inside, other=0.0).to(tl.float32)
        b = w00 * tl.load(base + row00 + high, mask=inside, other=0.0).to(tl.float32)
        b += w01 * tl.load(base + row01 + high, mask=inside, other=0.0).to(tl.float32)
        b += w10 * tl.load(base + row10 + high, mask=inside, other=0.0).to(tl.float32)
        b += w11 * tl.load(base + row11 + high, mask=inside, other=0.0).to(tl.float32)
        value = a + wx * (b - a)
        wins = value > best
        best = tl.where(wins, value, best)
        label = tl.where(wins, c, label)
        base += stride_c
    tl.store(labels + line.to(tl.int64) * out_x + x, label.to(labels.dtype.element_ty), mask=inside)


def resample_argmax(
    logits: Tensor, size: tuple[int, int, int], align_corners: bool, dtype: torch.dtype
) -> Tensor:
    """See volume_reference.resample_argmax."""
    if logits.dtype == torch.float64:
        return volume_reference.resample_argmax(logits, size, align_corners, dtype)
    labels = torch.empty(size, dtype=dtype, device=logits.device)
    classes, *shape = logits.shape
    block = min(BLOCK, max(16, triton.next_power_of_2(size[2])))
    grid = (triton.cdiv(size[2], block), size[0] * size[1])
    _resample_kernel[grid](
        logits, labels, classes, *shape, *size, *logits.stride(), ALIGN=align_corners, BLOCK=block
    )
    return labels


def ahead_of_time() -> list[tuple[str, Any, dict[str, str], dict[str, Any], dict[str, Any]]]:
    """(name, kernel, signature, constants, options) of the kernels to compile where there is no GPU."""
    sizes = ("classes", "in_z", "in_y", "in_x", "out_z", "out_y", "out_x")
    strides = ("stride_c", "stride_z", "stride_y", "stride_x")
    constants: dict[str, Any] = {"ALIGN": False, "BLOCK": BLOCK}
    cases: list[tuple[str, Any, dict[str, str], dict[str, Any], dict[str, Any]]] = []
    for dtype in ("fp32", "fp16"):
        signature = {"logits": f"*{dtype}", "labels": "*u8"} | dict.fromkeys((*sizes, *strides), "i32")
        signature |= dict.fromkeys(constants, "constexpr")
        cases.append((f"resample_argmax.{dtype}", _resample_kernel, signature, constants, {"num_warps": 4}))
    return cases
