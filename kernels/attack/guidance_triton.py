# mypy: allow-untyped-defs, allow-untyped-calls
"""Losses, noise, guidance and splicing in Triton: each tensor read once, a program for a tile of a row.

bfloat16 is kept as its bits, as in zo_triton.py. float64 tensors, and the gradient of splicing, go through
the PyTorch reference. The interpreter (TRITON_INTERPRET=1 before this module is imported) runs the kernels on
CPU tensors.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from tenfold.kernels.erase.erase_triton import _rounded, _value
from tenfold.kernels.zo.zo_triton import _storage
from tenfold.kernels.zo.zo_triton_tiles import INTERPRETED, _on
from torch import Tensor

from . import guidance_reference
from .guidance_reference import PREDICTIONS, splice_embed_backward

__all__ = [
    "add_noise_rows",
    "cfg_ddim_step",
    "mse_rows",
    "mse_rows_backward",
    "sld_guidance",
    "splice_embed",
    "splice_embed_backward",
]

BLOCK = 4096 if INTERPRETED else 1024


@triton.jit
def _tile(size, BLOCK: tl.constexpr):
    """(row, elements of this program's tile in all rows, which of them there are)."""
    tiles = tl.cdiv(size, BLOCK)
    row = tl.program_id(0) // tiles
    within = tl.program_id(0) % tiles * BLOCK + tl.arange(0, BLOCK)
    return row, row.to(tl.int64) * size + within, within < size


@triton.jit
def _read(p, at, real):
    return _value(tl.load(p + at, mask=real, other=0))


@triton.jit
def _difference(pred, target, other, at, real, eta, OTHER: tl.constexpr):
    goal = _read(target, at, real)
    if OTHER:
        goal = goal - eta * (_read(other, at, real) - goal)
    return _read(pred, at, real) - goal


@triton.jit
def _mse_kernel(
    pred, target, other, sums, eta, size, OTHER: tl.constexpr, SQUARES: tl.constexpr, BLOCK: tl.constexpr
):
    _, at, real = _tile(size, BLOCK)
    far = _difference(pred, target, other, at, real, eta, OTHER).to(tl.float64)
    each = far * far if SQUARES else tl.abs(far)
    tl.store(sums + tl.program_id(0), tl.sum(tl.where(real, each, 0.0), 0))


@triton.jit
def _mse_backward_kernel(
    pred, target, other, grad, out, eta, size, OTHER: tl.constexpr, SQUARES: tl.constexpr, BLOCK: tl.constexpr
):
    row, at, real = _tile(size, BLOCK)
    far = _difference(pred, target, other, at, real, eta, OTHER)
    scale = (tl.load(grad + row) / size).to(tl.float32)
    slope = 2.0 * far if SQUARES else tl.where(far > 0, 1.0, tl.where(far < 0, -1.0, far))
    tl.store(out + at, _rounded(slope * scale, out), mask=real)


@triton.jit
def _noise_kernel(x0, eps, out, times, abar, step, levels, size, BLOCK: tl.constexpr):
    row, at, real = _tile(size, BLOCK)
    t = tl.load(times + row * step)
    level = tl.load(abar + t, mask=(t >= 0) & (t < levels), other=float("nan"))
    keep, more = tl.sqrt(level).to(tl.float32), tl.sqrt(1.0 - level).to(tl.float32)
    tl.store(out + at, _rounded(keep * _read(x0, at, real) + more * _read(eps, at, real), out), mask=real)


@triton.jit
def _step_kernel(
    x, eu, ec, out, guidance, levels, size, total, STEPS: tl.constexpr, KIND: tl.constexpr,
    GUIDED: tl.constexpr, DOUBLED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """levels: a and b, one after the other; STEPS: of guidance, a, b from row to row, as bits."""
    row, at, real = _tile(size, BLOCK)
    a = tl.load(levels + row * (STEPS // 2 % 2))
    b = tl.load(levels + total + row * (STEPS // 4))
    r, s, rb, sb = tl.sqrt(a), tl.sqrt(1.0 - a), tl.sqrt(b), tl.sqrt(1.0 - b)
    if KIND == 0:
        of_x, of_out = rb / r, sb - rb * s / r
    elif KIND == 1:
        of_x, of_out = rb * r + sb * s, sb * r - rb * s
    else:
        of_x = tl.where(s > 0, sb / tl.where(s > 0, s, 1.0), 0.0)
        of_out = rb - of_x * r
    prediction = _read(ec, at, real)
    if GUIDED:
        base = _read(eu, at, real)
        scale = tl.load(guidance + row * (STEPS % 2)).to(tl.float32)
        prediction = base + scale * (prediction - base)
    z = _rounded(of_x.to(tl.float32) * _read(x, at, real) + of_out.to(tl.float32) * prediction, out)
    tl.store(out + at, z, mask=real)
    if DOUBLED:
        pictures = (tl.num_programs(0) // tl.cdiv(size, BLOCK)).to(tl.int64)
        tl.store(out + pictures * size + at, z, mask=real)


@triton.jit
def _safe_kernel(
    eu, ec, es, momentum, out, after, guidance, step, scale, threshold, momentum_scale, beta, rest, size,
    WARM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row, at, real = _tile(size, BLOCK)
    u, c, s, v = _read(eu, at, real), _read(ec, at, real), _read(es, at, real), _read(momentum, at, real)
    far = c - s
    grown = tl.abs(far) * scale
    mu = tl.where(far >= threshold, 0.0, tl.where(grown > 1.0, 1.0, grown))
    away = mu * (s - u) + momentum_scale * v
    tl.store(after + at, _rounded(beta * v + rest * away, after), mask=real)
    apart = c - u
    if WARM:
        apart = apart - away
    weight = tl.load(guidance + row * step).to(tl.float32)
    tl.store(out + at, _rounded(u + weight * apart, out), mask=real)


@triton.jit
def _splice_kernel(embeds, adv, index, out, columns, extra, width, BLOCK: tl.constexpr):
    """A program per row of `out`; an index out of range gives NaN."""
    row = tl.program_id(0).to(tl.int64)
    source = tl.load(index + row)
    b = row // columns
    own, other = (source >= 0) & (source < columns), (source >= columns) & (source < columns + extra)
    for first in range(0, width, BLOCK):
        at = first + tl.arange(0, BLOCK)
        real = at < width
        kept = tl.load(embeds + (b * columns + source) * width + at, mask=real & own, other=0)
        put = tl.load(adv + (b * extra + source - columns) * width + at, mask=real & other, other=0)
        missing = _rounded(tl.full([BLOCK], float("nan"), tl.float32), out)
        tl.store(out + row * width + at, tl.where(own, kept, tl.where(other, put, missing)), mask=real)


def _grid(x: Tensor) -> tuple[int]:
    return (len(x) * triton.cdiv(x[0].numel(), BLOCK),)


def _in_reference(x: Tensor) -> bool:
    return x.dtype == torch.float64 or not x.numel()


def mse_rows(pred: Tensor, target: Tensor, other: Tensor | None, eta: float, criterion: str) -> Tensor:
    """See guidance_reference.mse_rows."""
    if _in_reference(pred):
        return guidance_reference.mse_rows(pred, target, other, eta, criterion)
    grid, size = _grid(pred), pred[0].numel()
    sums = torch.empty(grid[0], dtype=torch.float64, device=pred.device)
    given = [_storage(x) for x in (pred, target, pred if other is None else other)]
    with _on(pred.device):
        _mse_kernel[grid](
            *given,
            sums,
            float(eta),
            size,
            OTHER=other is not None and eta != 0,
            SQUARES=criterion == "l2",
            BLOCK=BLOCK,
        )
    return sums.view(len(pred), -1).sum(1) / size


def mse_rows_backward(
    grad: Tensor, pred: Tensor, target: Tensor, other: Tensor | None, eta: float, criterion: str
) -> Tensor:
    """See guidance_reference.mse_rows_backward."""
    if _in_reference(pred):
        return guidance_reference.mse_rows_backward(grad, pred, target, other, eta, criterion)
    out, size = torch.empty_like(pred), pred[0].numel()
    given = [_storage(x) for x in (pred, target, pred if other is None else other)]
    with _on(pred.device):
        _mse_backward_kernel[_grid(pred)](
            *given, grad.double().contiguous(), _storage(out), float(eta), size,
            OTHER=other is not None and eta != 0, SQUARES=criterion == "l2", BLOCK=BLOCK,
        )  # fmt: skip
    return out


def add_noise_rows(x0: Tensor, eps: Tensor, t: Tensor, abar: Tensor) -> Tensor:
    """See guidance_reference.add_noise_rows."""
    if _in_reference(x0):
        return guidance_reference.add_noise_rows(x0, eps, t, abar)
    out = torch.empty_like(x0)
    given = [_storage(x) for x in (x0, eps, out)]
    with _on(x0.device):
        _noise_kernel[_grid(x0)](
            *given, t, abar.double(), int(len(t) > 1), len(abar), x0[0].numel(), BLOCK=BLOCK,
            enable_fp_fusion=False,
        )  # fmt: skip
    return out


def cfg_ddim_step(
    x: Tensor,
    eu: Tensor | None,
    ec: Tensor,
    guidance: Tensor,
    a: Tensor,
    b: Tensor,
    prediction: str,
    doubled: bool,
) -> Tensor:
    """See guidance_reference.cfg_ddim_step."""
    if _in_reference(x):
        return guidance_reference.cfg_ddim_step(x, eu, ec, guidance, a, b, prediction, doubled)
    out = x.new_empty((2 * len(x) if doubled else len(x), *x.shape[1:]))
    given = [_storage(v) for v in (x, ec if eu is None else eu, ec, out)]
    steps = sum(int(len(v) > 1) << bit for bit, v in enumerate((guidance, a, b)))
    with _on(x.device):
        _step_kernel[_grid(x)](
            *given, guidance, torch.cat([a, b]), x[0].numel(), len(a), STEPS=steps,
            KIND=PREDICTIONS.index(prediction), GUIDED=eu is not None, DOUBLED=doubled, BLOCK=BLOCK,
            enable_fp_fusion=False,
        )  # fmt: skip
    return out


def sld_guidance(
    eu: Tensor,
    ec: Tensor,
    es: Tensor,
    momentum: Tensor,
    guidance: Tensor,
    scale: float,
    threshold: float,
    momentum_scale: float,
    momentum_beta: float,
    warm: bool,
) -> tuple[Tensor, Tensor]:
    """See guidance_reference.sld_guidance."""
    numbers = (scale, threshold, momentum_scale, momentum_beta)
    if _in_reference(eu):
        return guidance_reference.sld_guidance(eu, ec, es, momentum, guidance, *numbers, warm)
    out, after = torch.empty_like(eu), torch.empty_like(eu)
    given = [_storage(v) for v in (eu, ec, es, momentum, out, after)]
    with _on(eu.device):
        _safe_kernel[_grid(eu)](
            *given, guidance, int(len(guidance) > 1), *map(float, numbers), 1.0 - momentum_beta,
            eu[0].numel(), WARM=warm, BLOCK=BLOCK, enable_fp_fusion=False,
        )  # fmt: skip
    return out, after


def splice_embed(embeds: Tensor, adv: Tensor, index: Tensor) -> Tensor:
    """See guidance_reference.splice_embed."""
    if _in_reference(embeds):
        return guidance_reference.splice_embed(embeds, adv, index)
    out = torch.empty_like(embeds)
    batch, columns, width = embeds.shape
    given = [_storage(embeds), _storage(adv), index, _storage(out)]
    with _on(embeds.device):
        _splice_kernel[(batch * columns,)](*given, columns, adv.shape[1], width, BLOCK=512)
    return out


def ahead_of_time() -> list[tuple[str, Any, dict[str, str], dict[str, Any], dict[str, Any]]]:
    """What nox -s cuda_compile compiles without a GPU: (name, kernel, signature, constants, options)."""
    found: list[tuple[str, Any, dict[str, str], dict[str, Any], dict[str, Any]]] = []
    exact = {"enable_fp_fusion": False}
    for name, kind in (("fp32", "*fp32"), ("bf16", "*u16"), ("fp16", "*fp16")):

        def add(
            op: str,
            kernel: Any,
            tensors: str,
            more: dict[str, str],
            constants: dict[str, Any],
            options: dict[str, Any],
            name: str = name,
            kind: str = kind,
        ) -> None:
            """`tensors` come first or last among the arguments as the kernel has them."""
            order = kernel.arg_names
            signature = dict.fromkeys(tensors.split(), kind) | more | dict.fromkeys(constants, "constexpr")
            signature = {key: signature[key] for key in order}
            found.append((f"{op}.{name}", kernel, signature, constants, options))

        loss = {"OTHER": True, "SQUARES": True, "BLOCK": BLOCK}
        add(
            "mse", _mse_kernel, "pred target other", {"sums": "*fp64", "eta": "fp32", "size": "i32"}, loss, {}
        )
        more = {"grad": "*fp64", "eta": "fp32", "size": "i32"}
        add("mse_backward", _mse_backward_kernel, "pred target other out", more, loss, {})
        more = {"times": "*i64", "abar": "*fp64", "step": "i32", "levels": "i32", "size": "i32"}
        add("noise", _noise_kernel, "x0 eps out", more, {"BLOCK": BLOCK}, exact)
        more = {"guidance": "*fp64", "levels": "*fp64", "size": "i32", "total": "i32"}
        steps = {"STEPS": 6, "KIND": 0, "GUIDED": True, "DOUBLED": True, "BLOCK": BLOCK}
        add("step", _step_kernel, "x eu ec out", more, steps, exact)
        numbers = ["scale", "threshold", "momentum_scale", "beta", "rest"]
        more = {"guidance": "*fp64", "step": "i32", "size": "i32"} | dict.fromkeys(numbers, "fp32")
        names = "eu ec es momentum out after"
        add("safe", _safe_kernel, names, more, {"WARM": True, "BLOCK": BLOCK}, exact)
        more = {"index": "*i64"} | dict.fromkeys(("columns", "extra", "width"), "i32")
        add("splice", _splice_kernel, "embeds adv out", more, {"BLOCK": 512}, {})
    return found
