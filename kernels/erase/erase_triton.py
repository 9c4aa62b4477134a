# mypy: allow-untyped-defs, allow-untyped-calls
"""Masked Adam, saliency sums and attention columns in Triton.

Adam and the sums launch once per tensor. Square roots and quotients are those that round (sqrt_rn, div_rn),
and products and sums are not contracted, so that they have the bits of the reference; what is masked is not
written. bfloat16 is kept as its bits, as in zo_triton.py.

Attention columns are fused: a program has a tile of rows, walks over tiles of columns and keeps the running
maximum, the sum of exponentials and the sum of their squares in the chosen columns. The backward pass makes
the scores again, once by rows for the gradient of q and once by columns for that of k, so that nothing is
added atomically and results do not depend on the order of programs. Products of float32 are three of TF32
(tf32x3), which keeps nearly all of float32's bits; plain multiply-adds of whole tiles spilled registers.

float64 goes through the PyTorch reference. The interpreter (TRITON_INTERPRET=1 before this module is
imported) runs the kernels on CPU tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from tenfold.kernels.zo import zo_triton
from tenfold.kernels.zo.zo_triton import _storage
from tenfold.kernels.zo.zo_triton_tiles import _INTERPRET, INTERPRETED, _bfloat16_bits, _bfloat16_value, _on
from torch import Tensor

from . import erase_reference
from .erase_reference import MODES, AdamArgs
from .erase_select import Selected, bits_by_threshold_, select_by_digits

BLOCK = 4096 if INTERPRETED else 1024
WARPS = 8
"""Of the attention kernels."""


def select(tensors: Sequence[Tensor], rank: int) -> Selected:
    """See erase_reference.select."""
    return select_by_digits(zo_triton, tensors, rank)


def topk_bits_(
    out: Sequence[Tensor], tensors: Sequence[Tensor], found: Selected, ties: int, largest: bool
) -> None:
    """See erase_reference.topk_bits_."""
    bits_by_threshold_(zo_triton, out, tensors, found, ties, largest)


@triton.jit
def _value(x):
    """What was loaded, in float32; bfloat16 comes as its bits."""
    if x.dtype == tl.uint16:
        return _bfloat16_value(x)
    else:
        return x.to(tl.float32)


@triton.jit
def _rounded(x, to):
    """float32 as it is stored at `to`."""
    if to.dtype.element_ty == tl.uint16:
        return _bfloat16_bits(x)
    else:
        return x.to(to.dtype.element_ty)


# ---- sums and steps --------------------------------------------------------------------------------------


@triton.jit
def _saliency_kernel(acc, grad, weight, numel, MODE: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    real = at < numel
    step = _value(tl.load(grad + at, mask=real, other=0))
    if MODE == 2:
        step *= _value(tl.load(weight + at, mask=real, other=0))
    if MODE != 0:
        step = tl.abs(step)
    tl.store(acc + at, tl.load(acc + at, mask=real, other=0) + step, mask=real)


@triton.jit
def _adam_kernel(
    param, grad, mean, square, bits, numel, keep, new1, beta2, new2, inverse, eps, rate, BLOCK: tl.constexpr
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    byte = tl.load(bits + at // 8, mask=at < numel, other=0).to(tl.int32)
    live = ((byte >> (at % 8).to(tl.int32)) & 1) != 0
    p = _value(tl.load(param + at, mask=live, other=0))
    g = _value(tl.load(grad + at, mask=live, other=0))
    m = _value(tl.load(mean + at, mask=live, other=0))
    v = _value(tl.load(square + at, mask=live, other=0))
    m += (g - m) * new1
    v = v * beta2 + g * g * new2
    p = p * keep - tl.math.div_rn(m, tl.math.sqrt_rn(v) * inverse + eps) * rate
    tl.store(param + at, _rounded(p, param), mask=live)
    tl.store(mean + at, _rounded(m, mean), mask=live)
    tl.store(square + at, _rounded(v, square), mask=live)


def _back(written: Tensor, copy: Tensor) -> None:
    if copy is not written:
        written.copy_(copy)


@torch.no_grad()
def saliency_(acc: Sequence[Tensor], grads: Sequence[Tensor], weights: Sequence[Tensor], mode: str) -> None:
    """See erase_reference.saliency_."""
    for i, (total, grad) in enumerate(zip(acc, grads, strict=True)):
        factor = weights[i] if mode == "product" else grad
        if torch.float64 in (total.dtype, grad.dtype, factor.dtype):
            erase_reference.saliency_([total], [grad], [factor], mode)
        elif total.numel():
            sums, steps, factors = (t.contiguous() for t in (total, grad, factor))
            count = sums.numel()
            with _on(sums.device):
                _saliency_kernel[(triton.cdiv(count, BLOCK),)](
                    sums,
                    _storage(steps),
                    _storage(factors),
                    count,
                    MODES.index(mode),
                    BLOCK,
                    enable_fp_fusion=False,
                )
            _back(total, sums)


@torch.no_grad()
def adam_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    masks: Sequence[Tensor],
    a: AdamArgs,
) -> None:
    """See erase_reference.adam_."""
    for given in zip(params, grads, exp_avgs, exp_avg_sqs, masks, strict=True):
        if given[0].dtype == torch.float64:
            erase_reference.adam_(*([t] for t in given), a)  # type: ignore[call-arg, arg-type]
        elif given[0].numel():
            made = [t.contiguous() for t in given]
            count, stored = made[0].numel(), [_storage(t) for t in made]
            with _on(made[0].device):
                grid = (triton.cdiv(count, BLOCK),)
                _adam_kernel[grid](*stored, count, *a, BLOCK, enable_fp_fusion=False)
            for i in (0, 2, 3):
                _back(given[i], made[i])


# ---- attention -------------------------------------------------------------------------------------------


@triton.jit
def _tile(base, first, count, s_row, s_column, width, SIZE: tl.constexpr, WIDTH: tl.constexpr):
    """Rows [SIZE, WIDTH] of q or k from `first` on, zeros beyond."""
    row = first + tl.arange(0, SIZE)
    column = tl.arange(0, WIDTH)
    at = base + row.to(tl.int64)[:, None] * s_row + column.to(tl.int64)[None, :] * s_column
    return tl.load(at, mask=(row < count)[:, None] & (column < width)[None, :], other=0)


@triton.jit
def _factor(x):
    """A tile as products take it: halves as they are, which the interpreter cannot for bfloat16."""
    if x.dtype == tl.uint16:
        return _bfloat16_value(x) if _INTERPRET else x.to(tl.bfloat16, bitcast=True)
    else:
        return x


@triton.jit
def _scores(q, k, first, length, scale, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    s = tl.dot(_factor(q), tl.trans(_factor(k)), input_precision="tf32x3") * scale
    column = first + tl.arange(0, COLUMNS)
    return tl.where((column < length)[None, :], s, float("-inf")), column


@triton.jit
def _rows_kernel(
    q,
    k,
    mask,
    stats,
    sums,
    dq,
    grad,
    heads,
    n,
    length,
    width,
    scale,
    qb,
    qh,
    qr,
    qc,
    kb,
    kh,
    kr,
    kc,
    db,
    dh,
    dr,
    dc,
    BACKWARD: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Of each row the maximum, 1 / sum of exponentials, and f; and the sum of f, or the gradient of q."""
    tiles = tl.cdiv(n, ROWS)
    pair = (tl.program_id(0) // tiles).to(tl.int64)
    b, h = pair // heads, pair % heads
    first = (tl.program_id(0) % tiles) * ROWS
    rows = _tile(q + b * qb + h * qh, first, n, qr, qc, width, ROWS, WIDTH)
    k += b * kb + h * kh
    most = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    chosen = tl.zeros([ROWS], tl.float32)
    for start in range(0, length, COLUMNS):
        keys = _tile(k, start, length, kr, kc, width, COLUMNS, WIDTH)
        s, column = _scores(rows, keys, start, length, scale, ROWS, COLUMNS)
        new = tl.maximum(most, tl.max(s, 1))
        shrink = tl.exp(most - new)
        e = tl.exp(s - new[:, None])
        inside = tl.load(mask + b * length + column, mask=column < length, other=0) != 0
        total = total * shrink + tl.sum(e, 1)
        chosen = chosen * shrink * shrink + tl.sum(tl.where(inside[None, :], e * e, 0.0), 1)
        most = new
    f = chosen / (total * total)
    row = first + tl.arange(0, ROWS)
    real = row < n
    if BACKWARD:
        at = stats + (pair * n + row) * 3
        tl.store(at, most, mask=real)
        tl.store(at + 1, 1.0 / total, mask=real)
        tl.store(at + 2, f, mask=real)
        factor = 2 * scale * tl.load(grad)
        out = tl.zeros([ROWS, WIDTH], tl.float32)
        for start in range(0, length, COLUMNS):
            keys = _tile(k, start, length, kr, kc, width, COLUMNS, WIDTH)
            s, column = _scores(rows, keys, start, length, scale, ROWS, COLUMNS)
            p = tl.exp(s - most[:, None]) / total[:, None]
            inside = tl.load(mask + b * length + column, mask=column < length, other=0) != 0
            ds = factor * p * (tl.where(inside[None, :], p, 0.0) - f[:, None])
            out += tl.dot(ds, _value(keys), input_precision="tf32x3")
        place = tl.arange(0, WIDTH)
        at = dq + b * db + h * dh + row.to(tl.int64)[:, None] * dr + place.to(tl.int64)[None, :] * dc
        tl.store(at, _rounded(out, dq), mask=real[:, None] & (place < width)[None, :])
    else:
        tl.store(sums + tl.program_id(0), tl.sum(tl.where(real, f, 0.0), 0))


@triton.jit
def _columns_kernel(
    q,
    k,
    mask,
    stats,
    dk,
    grad,
    heads,
    n,
    length,
    width,
    scale,
    qb,
    qh,
    qr,
    qc,
    kb,
    kh,
    kr,
    kc,
    db,
    dh,
    dr,
    dc,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """The gradient of a tile of k, over all rows."""
    tiles = tl.cdiv(length, COLUMNS)
    pair = (tl.program_id(0) // tiles).to(tl.int64)
    b, h = pair // heads, pair % heads
    first = (tl.program_id(0) % tiles) * COLUMNS
    keys = _tile(k + b * kb + h * kh, first, length, kr, kc, width, COLUMNS, WIDTH)
    q += b * qb + h * qh
    factor = 2 * scale * tl.load(grad)
    column = first + tl.arange(0, COLUMNS)
    inside = tl.load(mask + b * length + column, mask=column < length, other=0) != 0
    out = tl.zeros([COLUMNS, WIDTH], tl.float32)
    for start in range(0, n, ROWS):
        rows = _tile(q, start, n, qr, qc, width, ROWS, WIDTH)
        s, _ = _scores(rows, keys, first, length, scale, ROWS, COLUMNS)
        row = start + tl.arange(0, ROWS)
        real = row < n
        at = stats + (pair * n + row) * 3
        most = tl.load(at, mask=real, other=0)
        part = tl.load(at + 1, mask=real, other=0)  # rows that are not there weigh 0
        f = tl.load(at + 2, mask=real, other=0)
        p = tl.exp(s - most[:, None]) * part[:, None]
        ds = factor * p * (tl.where(inside[None, :], p, 0.0) - f[:, None])
        out += tl.dot(tl.trans(ds), _value(rows), input_precision="tf32x3")
    place = tl.arange(0, WIDTH)
    at = dk + b * db + h * dh + column.to(tl.int64)[:, None] * dr + place.to(tl.int64)[None, :] * dc
    tl.store(at, _rounded(out, dk), mask=(column < length)[:, None] & (place < width)[None, :])


def _sizes(width: int) -> dict[str, int]:
    """Rows and columns of a tile of the attention matrix: as many as leave registers for wide heads."""
    wide = max(16, triton.next_power_of_2(width))
    return {"ROWS": min(64, max(16, 2048 // wide)), "COLUMNS": 32, "WIDTH": wide}


def _shape(q: Tensor, k: Tensor) -> tuple[tuple[Any, ...], dict[str, int]]:
    heads, n, width = q.shape[1:]
    return (heads, n, k.shape[2], width), _sizes(width) | {"num_warps": WARPS}


def column_norm(q: Tensor, k: Tensor, mask: Tensor, scale: float) -> Tensor:
    """See erase_reference.column_norm."""
    if q.dtype == torch.float64:
        return erase_reference.column_norm(q, k, mask, scale)
    sizes, options = _shape(q, k)
    programs = q.shape[0] * q.shape[1] * triton.cdiv(q.shape[2], options["ROWS"])
    sums = torch.empty(programs, device=q.device)
    given = _storage(q), _storage(k), mask.to(torch.uint8).contiguous()
    strides = (*q.stride(), *k.stride(), 0, 0, 0, 0)
    with _on(q.device):
        _rows_kernel[(programs,)](*given, sums, sums, sums, sums, *sizes, scale, *strides, False, **options)
    return sums.sum(dtype=torch.float64)


def column_norm_backward(
    grad: Tensor, q: Tensor, k: Tensor, mask: Tensor, scale: float, dq: Tensor | None, dk: Tensor | None
) -> None:
    """See erase_reference.column_norm_backward."""
    if q.dtype == torch.float64:
        return erase_reference.column_norm_backward(grad, q, k, mask, scale, dq, dk)
    sizes, options = _shape(q, k)
    given = _storage(q), _storage(k), mask.to(torch.uint8).contiguous()
    slope, stats = grad.float().contiguous(), torch.empty(*q.shape[:3], 3, device=q.device)
    pairs, made = q.shape[0] * q.shape[1], torch.empty_like(q) if dq is None else dq
    own, rest = (*q.stride(), *k.stride()), (slope, *sizes, scale)
    with _on(q.device):
        grid = (pairs * triton.cdiv(q.shape[2], options["ROWS"]),)
        _rows_kernel[grid](*given, stats, stats, _storage(made), *rest, *own, *made.stride(), True, **options)
        if dk is not None:
            grid = (pairs * triton.cdiv(k.shape[2], options["COLUMNS"]),)
            _columns_kernel[grid](*given, stats, _storage(dk), *rest, *own, *dk.stride(), **options)
    return None


def ahead_of_time() -> list[tuple[str, Any, dict[str, str], dict[str, Any], dict[str, Any]]]:
    """What nox -s cuda_compile compiles without a GPU: (name, kernel, signature, constants, options)."""
    kinds = {"fp32": "*fp32", "bf16": "*u16", "fp16": "*fp16"}
    found: list[tuple[str, Any, dict[str, str], dict[str, Any], dict[str, Any]]] = []

    def add(name: str, kernel: Any, types: dict[str, str], constants: dict[str, Any], **options: Any) -> None:
        given = {p: types.get(p, "i32") for p in kernel.arg_names}
        given |= dict.fromkeys(constants, "constexpr")
        found.append((name, kernel, given, constants, options))

    for dtype, pointer in kinds.items():
        sums = {"acc": "*fp32", "grad": pointer, "weight": pointer}
        for mode, word in enumerate(MODES):
            constants = {"MODE": mode, "BLOCK": 1024}
            add(f"saliency.{word}.{dtype}", _saliency_kernel, sums, constants, enable_fp_fusion=False)
        for states in sorted({dtype, "fp32"}):
            types = {"param": pointer, "grad": pointer, "bits": "*u8"}
            types |= dict.fromkeys(("mean", "square"), kinds[states])
            types |= dict.fromkeys(AdamArgs._fields, "fp32")
            add(f"adam.{dtype}.{states}", _adam_kernel, types, {"BLOCK": 1024}, enable_fp_fusion=False)
        types = dict.fromkeys(("q", "k", "dq", "dk"), pointer) | {"mask": "*u8", "scale": "fp32"}
        types |= dict.fromkeys(("stats", "sums", "grad"), "*fp32")
        for width in (40, 80, 160):  # heads of Stable Diffusion 1.5
            sizes = _sizes(width)
            for backward in (False, True):
                name = f"columns.{'by_rows' if backward else 'forward'}.{dtype}.{width}"
                add(name, _rows_kernel, types, {"BACKWARD": backward} | sizes, num_warps=WARPS)
            name = f"columns.by_columns.{dtype}.{width}"
            add(name, _columns_kernel, types, sizes, num_warps=WARPS)
    return found
