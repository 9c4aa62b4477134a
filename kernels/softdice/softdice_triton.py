# mypy: allow-untyped-defs, allow-untyped-calls
"""Soft overlap in Triton: a program owns BLOCK_N voxels and goes over the classes in blocks.

Forward: the log-sum-exp first, joined from block to block (Milakov and Gimelshein, arXiv 1805.02867), then
probabilities and sums; the second look at the logits finds them in the caches. Each program writes its own
sums, float32, which are added in float64, so that the result does not depend on the order of programs.

float64 logits go through the PyTorch reference. The interpreter (TRITON_INTERPRET=1 before this module is
imported) runs the kernels on CPU tensors.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import softdice_reference
from .softdice_reference import ACTIVATIONS, SUMS, Options

BLOCK_N = 256
BLOCK_C = 16
WARPS = 8

_MINUS_INFINITY = tl.constexpr(float("-inf"))


@triton.jit
def _focal(q, gamma):
    """q^gamma for q in [0, 1]."""
    return tl.exp(gamma * tl.log(tl.maximum(q, 1e-20)))


@triton.jit
def _kept(target, mask, b, n, voxels, classes, tb, tn, mb, mn, ignore, DENSE, MASKED, IGNORES):
    """Which voxels count, their labels, and how many labels are outside the classes."""
    keep = n < voxels
    if MASKED:
        keep = keep & (tl.load(mask + b * mb + n * mn, mask=keep, other=0) != 0)
    label = tl.zeros_like(n)
    bad = tl.zeros_like(n)
    if not DENSE:
        label = tl.load(target + b * tb + n * tn, mask=n < voxels, other=0).to(tl.int64)
        if IGNORES:
            keep = keep & (label != ignore)
        inside = (label >= 0) & (label < classes)
        bad = (keep & ~inside).to(tl.int64)
        keep = keep & inside
    return keep, label, tl.sum(bad, 0)


@triton.jit
def _truth(target, label, b, c, n, real, tb, tc, tn, DENSE):
    """The label map of a block of classes, [BLOCK_C, BLOCK_N]."""
    if DENSE:
        y = tl.load(target + b * tb + c[:, None] * tc + n[None, :] * tn, mask=real, other=0).to(tl.float32)
    else:
        y = (label[None, :] == c[:, None]).to(tl.float32)
    return y


@triton.jit
def _softplus(x):
    return tl.maximum(x, 0.0) + tl.log(1.0 + tl.exp(-tl.abs(x)))


@triton.jit
def _forward_kernel(
    logits,
    target,
    mask,
    lse_out,
    partial,
    bad_out,
    classes,
    voxels,
    xb,
    xc,
    xn,
    tb,
    tc,
    tn,
    mb,
    mn,
    ignore,
    gamma,
    ACTIVATION: tl.constexpr,
    DENSE: tl.constexpr,
    MASKED: tl.constexpr,
    IGNORES: tl.constexpr,
    FOCAL: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    block = tl.program_id(0)
    b = tl.program_id(1).to(tl.int64)
    blocks = tl.num_programs(0)
    n = block.to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    keep, label, bad = _kept(
        target, mask, b, n, voxels, classes, tb, tn, mb, mn, ignore, DENSE, MASKED, IGNORES
    )
    tl.store(bad_out + b * blocks + block, bad)
    lse = tl.zeros([BLOCK_N], tl.float32)
    if ACTIVATION == 0:
        top = tl.full([BLOCK_N], _MINUS_INFINITY, tl.float32)
        total = tl.zeros([BLOCK_N], tl.float32)
        for first in range(0, classes, BLOCK_C):
            c = first + tl.arange(0, BLOCK_C)
            real = (c < classes)[:, None] & keep[None, :]
            at = logits + b * xb + c.to(tl.int64)[:, None] * xc + n[None, :] * xn
            x = tl.load(at, mask=real, other=_MINUS_INFINITY).to(tl.float32)
            above = tl.maximum(top, tl.max(x, 0))
            base = tl.where(above == _MINUS_INFINITY, 0.0, above)
            total = total * tl.exp(top - base) + tl.sum(tl.exp(x - base[None, :]), 0)
            top = above
        lse = tl.where(keep, top + tl.log(total), 0.0)
        tl.store(lse_out + b * voxels + n, lse, mask=n < voxels)
    for first in range(0, classes, BLOCK_C):
        c = (first + tl.arange(0, BLOCK_C)).to(tl.int64)
        real = (c < classes)[:, None] & keep[None, :]
        x = tl.load(logits + b * xb + c[:, None] * xc + n[None, :] * xn, mask=real, other=0.0).to(tl.float32)
        y = _truth(target, label, b, c, n, real, tb, tc, tn, DENSE)
        positive = tl.zeros_like(x)
        negative = tl.zeros_like(x)
        p = x
        if ACTIVATION == 0:
            positive = lse[None, :] - x
            p = tl.exp(-positive)
            if FOCAL:
                positive = positive * _focal(1.0 - p, gamma)
        if ACTIVATION == 1:
            p = 1.0 / (1.0 + tl.exp(-x))
            positive = _softplus(-x)
            negative = _softplus(x)
            if FOCAL:
                focal_positive = tl.exp(-gamma * negative) * positive
                negative = tl.exp(-gamma * positive) * negative
                positive = focal_positive
        p = tl.where(real, p, 0.0)
        y = tl.where(real, y, 0.0)
        positive = tl.where(y == 0.0, 0.0, y * positive)
        negative = tl.where(real & (y != 1.0), (1.0 - y) * negative, 0.0)
        out = partial + ((b * blocks + block) * classes + c) * 7
        inside = c < classes
        tl.store(out, tl.sum(p * y, 1), mask=inside)
        tl.store(out + 1, tl.sum(p, 1), mask=inside)
        tl.store(out + 2, tl.sum(p * p, 1), mask=inside)
        tl.store(out + 3, tl.sum(y, 1), mask=inside)
        tl.store(out + 4, tl.sum(y * y, 1), mask=inside)
        tl.store(out + 5, tl.sum(positive, 1), mask=inside)
        tl.store(out + 6, tl.sum(negative, 1), mask=inside)


@triton.jit
def _backward_kernel(
    logits,
    target,
    mask,
    lse_in,
    grad,
    out,
    classes,
    voxels,
    xb,
    xc,
    xn,
    tb,
    tc,
    tn,
    mb,
    mn,
    ob,
    oc,
    on,
    ignore,
    gamma,
    ACTIVATION: tl.constexpr,
    DENSE: tl.constexpr,
    MASKED: tl.constexpr,
    IGNORES: tl.constexpr,
    FOCAL: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    b = tl.program_id(1).to(tl.int64)
    n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    keep, label, _ = _kept(
        target, mask, b, n, voxels, classes, tb, tn, mb, mn, ignore, DENSE, MASKED, IGNORES
    )
    lse = tl.zeros([BLOCK_N], tl.float32)
    total = tl.zeros([BLOCK_N], tl.float32)  # sum_j p_j (d/dp_j) - the focal terms
    rounds = 1
    if ACTIVATION == 0:
        lse = tl.load(lse_in + b * voxels + n, mask=keep, other=0.0)
        rounds = 2
    for turn in range(rounds):
        for first in range(0, classes, BLOCK_C):
            c = (first + tl.arange(0, BLOCK_C)).to(tl.int64)
            inside = c < classes
            real = inside[:, None] & keep[None, :]
            x = tl.load(logits + b * xb + c[:, None] * xc + n[None, :] * xn, mask=real, other=0.0).to(
                tl.float32
            )
            y = _truth(target, label, b, c, n, real, tb, tc, tn, DENSE)
            g = grad + (b * classes + c) * 7
            of_tp = tl.load(g, mask=inside, other=0.0)[:, None]
            of_p = tl.load(g + 1, mask=inside, other=0.0)[:, None]
            of_square = tl.load(g + 2, mask=inside, other=0.0)[:, None]
            of_positive = tl.load(g + 5, mask=inside, other=0.0)[:, None]
            of_negative = tl.load(g + 6, mask=inside, other=0.0)[:, None]
            p = x
            focal = tl.zeros_like(x)
            if ACTIVATION == 0:
                log_p = x - lse[None, :]
                p = tl.exp(log_p)
                focal = of_positive * y
                if FOCAL:
                    q = tl.maximum(1.0 - p, 1e-20)
                    focal = focal * _focal(q, gamma) * (1.0 - gamma * p * log_p / q)
                focal = tl.where(y == 0.0, 0.0, focal)
            if ACTIVATION == 1:
                p = 1.0 / (1.0 + tl.exp(-x))
            slope = of_tp * y + of_p + 2.0 * of_square * p
            dx = slope
            if ACTIVATION == 0:
                dx = p * (slope - total[None, :]) - focal
                if turn == 0:
                    total += tl.sum(tl.where(real, p * slope - focal, 0.0), 0)
            if ACTIVATION == 1:
                q = 1.0 / (1.0 + tl.exp(x))
                positive = q
                negative = p
                if FOCAL:
                    loss_positive = _softplus(-x)
                    loss_negative = _softplus(x)
                    positive = tl.exp(-gamma * loss_negative) * (q + gamma * p * loss_positive)
                    negative = tl.exp(-gamma * loss_positive) * (p + gamma * q * loss_negative)
                dx = slope * p * q - of_positive * y * positive + of_negative * (1.0 - y) * negative
            if turn == rounds - 1:
                at = out + b * ob + c[:, None] * oc + n[None, :] * on
                rounded = tl.where(real, dx, 0.0).to(out.dtype.element_ty)
                tl.store(at, rounded, mask=inside[:, None] & (n < voxels)[None, :])


def forward(
    logits: Tensor, target: Tensor, mask: Tensor | None, options: Options
) -> tuple[Tensor, Tensor, Tensor]:
    """See softdice_reference.forward."""
    if logits.dtype == torch.float64 or logits.numel() == 0:
        return softdice_reference.forward(logits, target, mask, options)
    batches, classes, voxels = logits.shape
    device, blocks = logits.device, triton.cdiv(voxels, BLOCK_N)
    lse = torch.empty((batches, voxels) if options.activation == "softmax" else (0,), device=device)
    partial = torch.empty(batches, blocks, classes, len(SUMS), device=device)
    bad = torch.empty(batches, blocks, dtype=torch.int64, device=device)
    target, mask = _bytes(target), None if mask is None else _bytes(mask)
    strides, constants = _strides(logits, target, mask), _constants(target, mask, options)
    _forward_kernel[(blocks, batches)](
        logits,
        target,
        logits if mask is None else mask,
        lse,
        partial,
        bad,
        classes,
        voxels,
        *strides,
        options.ignore or 0,
        options.gamma,
        **constants,
        num_warps=WARPS,
    )
    sums = partial.sum(1, dtype=torch.float64)
    if not options.squares:
        sums[:, :, softdice_reference.PREDICTION_SQUARED] = 0
    if not options.logs:
        sums[:, :, softdice_reference.LOG_POSITIVE :] = 0
    return sums, lse, bad.sum().reshape(1)


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
    if logits.dtype == torch.float64 or logits.numel() == 0:
        return softdice_reference.backward(grad, logits, target, mask, lse, options, out)
    batches, classes, voxels = logits.shape
    target, mask = _bytes(target), None if mask is None else _bytes(mask)
    strides, constants = _strides(logits, target, mask), _constants(target, mask, options)
    _backward_kernel[(triton.cdiv(voxels, BLOCK_N), batches)](
        logits,
        target,
        logits if mask is None else mask,
        lse if lse.numel() else logits,
        grad.float(),
        out,
        classes,
        voxels,
        *strides,
        *out.stride(),
        options.ignore or 0,
        options.gamma,
        **constants,
        num_warps=WARPS,
    )
    return None


def _bytes(value: Tensor) -> Tensor:
    return value.view(torch.uint8) if value.dtype == torch.bool else value


def _strides(logits: Tensor, target: Tensor, mask: Tensor | None) -> tuple[int, ...]:
    classes = target.stride(1) if target.ndim == 3 else 0
    of_mask = (0, 0) if mask is None else (mask.stride(0), mask.stride(1))
    return *logits.stride(), target.stride(0), classes, target.stride(-1), *of_mask


def _constants(target: Tensor, mask: Tensor | None, options: Options) -> dict[str, Any]:
    return {
        "ACTIVATION": ACTIVATIONS.index(options.activation),
        "DENSE": target.ndim == 3,
        "MASKED": mask is not None,
        "IGNORES": options.ignore is not None,
        "FOCAL": options.gamma != 0,
        "BLOCK_C": BLOCK_C,
        "BLOCK_N": BLOCK_N,
    }


def ahead_of_time() -> list[tuple[str, Any, dict[str, str], dict[str, Any], dict[str, Any]]]:
    """(name, kernel, signature, constants, options) of the kernels to compile where there is no GPU."""
    cases: list[tuple[str, Any, dict[str, str], dict[str, Any], dict[str, Any]]] = []
    views = ("xb", "xc", "xn", "tb", "tc", "tn", "mb", "mn")
    for dtype, activation, dense, focal in (
        ("fp32", 0, False, False),
        ("fp16", 0, False, True),
        ("bf16", 0, True, False),
        ("fp32", 1, True, True),
        ("bf16", 2, False, False),
    ):
        constants: dict[str, Any] = {"ACTIVATION": activation, "DENSE": dense, "MASKED": dense}
        constants |= {"IGNORES": True, "FOCAL": focal, "BLOCK_C": BLOCK_C, "BLOCK_N": BLOCK_N}
        tensors = {"logits": f"*{dtype}", "target": "*fp32" if dense else "*u8", "mask": "*u8"}
        tail = {"ignore": "i32", "gamma": "fp32"} | dict.fromkeys(constants, "constexpr")
        sizes = {"classes": "i32", "voxels": "i32"}
        forward_ = tensors | {"lse_out": "*fp32", "partial": "*fp32", "bad_out": "*i64"} | sizes
        forward_ |= dict.fromkeys(views, "i32") | tail
        backward_ = tensors | {"lse_in": "*fp32", "grad": "*fp32", "out": f"*{dtype}"} | sizes
        backward_ |= dict.fromkeys((*views, "ob", "oc", "on"), "i32") | tail
        name = f"{ACTIVATIONS[activation]}.{dtype}{'.map' if dense else ''}{'.focal' if focal else ''}"
        cases.append((f"soft_overlap.{name}", _forward_kernel, forward_, constants, {"num_warps": WARPS}))
        cases.append(
            (f"soft_overlap_backward.{name}", _backward_kernel, backward_, constants, {"num_warps": WARPS})
        )
    return cases
