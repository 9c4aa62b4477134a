"""Eight-bit states of Sophia in plain PyTorch: one scale per 256 elements, codes spaced by the logarithm.

A value x of a block with scale s has the code of x / s in (0, 1]. Codes are equally spaced in the bits of the
float, which is the logarithm of base 2 with straight lines between powers of two: encoding and decoding are
integer arithmetic, exact everywhere, without tables. They reach over 7.1 decades.

    first moment   127 magnitudes and a sign; 0 is zero, 0x80 is NaN; the scale is max |m|
    Hessian        255 magnitudes of sqrt(h); 0 is zero; the scale is sqrt(max h)

Straight lines in the bits are straight lines in the value, so adding random bits below the last kept one
rounds stochastically, as it does for bfloat16. A Hessian that is not zero never gets the code of zero, and
one that is negative has it: at a step it counts as zero anyway. Infinities have the largest code.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 256
ONE = 0x3F800000  # the bits of 1.0
EXP_AVG_STEP, HESSIAN_STEP = 3 << 19, 3 << 18
EXP_AVG_TOP, HESSIAN_TOP = 127, 255
NAN_CODE = 0x80


def blocks_of(n: int) -> int:
    return (n + BLOCK - 1) // BLOCK


def _blocks(x: Tensor) -> Tensor:
    """[n] as [blocks, 256], filled up with zeros."""
    return torch.nn.functional.pad(x, (0, -x.numel() % BLOCK)).view(-1, BLOCK)


def _levels(ratio: Tensor, step: int, top: int, r16: Tensor | None) -> Tensor:
    """Level 0..top of magnitudes in [0, 1], by steps below 1.0: to nearest, or up by chance."""
    below = ONE - ratio.view(torch.int32).to(torch.int64)
    shift = r16.to(torch.int64) * step >> 16 if r16 is not None else step // 2
    return top - torch.div(below + shift, step, rounding_mode="floor")


def _magnitudes(levels: Tensor, step: int, top: int) -> Tensor:
    bits = ONE - (top - levels.to(torch.int64)) * step
    return torch.where(levels > 0, bits, 0).to(torch.int32).view(torch.float32)


def encode_exp_avg(m: Tensor, r16: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """float32 [n] to (uint8 codes [n], float32 scales [blocks])."""
    x, n = _blocks(m), m.numel()
    size = x.abs()
    scale = torch.where(torch.isfinite(size), size, 0.0).amax(1, keepdim=True)
    ratio = (size / scale).clamp(max=1.0)
    ratio = torch.where((scale > 0) & ~ratio.isnan(), ratio, 0.0)
    levels = _levels(ratio, EXP_AVG_STEP, EXP_AVG_TOP, None if r16 is None else _blocks(r16)).clamp(min=0)
    codes = torch.where(levels > 0, levels | (x < 0).to(torch.int64) << 7, 0)
    codes = torch.where(x.isnan(), NAN_CODE, codes)
    return codes.to(torch.uint8).view(-1)[:n], scale.view(-1)


def decode_exp_avg(codes: Tensor, scales: Tensor) -> Tensor:
    c = _blocks(codes)
    value = _magnitudes(c & 0x7F, EXP_AVG_STEP, EXP_AVG_TOP) * scales.view(-1, 1)
    value = torch.where(c > NAN_CODE, -value, value)
    return torch.where(c == NAN_CODE, torch.nan, value).view(-1)[: codes.numel()]


def encode_hessian(h: Tensor, r16: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """As encode_exp_avg, of values that are not negative (those count as zero)."""
    x, n = _blocks(h), h.numel()
    largest = torch.where(torch.isfinite(x), x, 0.0).amax(1, keepdim=True).clamp(min=0.0)
    scale = sqrt(largest)
    ratio = (sqrt(x.clamp(min=0.0)) / scale).clamp(max=1.0)
    ratio = torch.where(scale > 0, ratio, 0.0)
    ratio = torch.where(x.isfinite() | ~(x > 0) & ~x.isnan(), ratio, 1.0)
    levels = _levels(ratio, HESSIAN_STEP, HESSIAN_TOP, None if r16 is None else _blocks(r16)).clamp(min=1)
    codes = torch.where((ratio > 0) | (x > 0), levels, 0)
    return codes.to(torch.uint8).view(-1)[:n], scale.view(-1)


def decode_hessian(codes: Tensor, scales: Tensor) -> Tensor:
    root = _magnitudes(_blocks(codes), HESSIAN_STEP, HESSIAN_TOP) * scales.view(-1, 1)
    return (root * root).view(-1)[: codes.numel()]


def sqrt(x: Tensor) -> Tensor:
    """Correctly rounded in float32 on any device: 53 bits are enough for the second rounding."""
    return x.to(torch.float64).sqrt().to(torch.float32)
