"""The compiled discrepancy kernels behind the signatures of mmd_reference.py: tensors to raw pointers."""

from __future__ import annotations

import torch
from tenfold.kernels.zo import zo_native
from torch import Tensor

from tenfold import _native
from tenfold._native import DTYPE_CODES

from . import mmd_device, mmd_reference
from .mmd_device import ContrastPass, PairPass
from .mmd_reference import Contrast, Pairs

EXACT = 32
"""Bits of a float32."""


def _launch_pairs(p: PairPass) -> None:
    module, where = zo_native._module(p.z)
    batch, points, dim = p.z.shape
    module.mmd_pairs(
        p.z.data_ptr(),
        p.v.data_ptr(),
        p.inverse.data_ptr(),
        p.partial.data_ptr(),
        p.gradient.data_ptr() if p.options.gradient else 0,
        points,
        p.sources,
        dim,
        p.v.shape[2],
        0 if p.v.shape[0] == 1 else points * p.v.shape[2],
        *p.within,
        len(p.options.factors),
        batch,
        p.doubling,
        p.options.unbiased,
        *where,
    )


def _launch_contrast(p: ContrastPass) -> None:
    module, where = zo_native._module(p.z)
    batch, points, dim = p.z.shape
    module.mmd_contrast(
        p.z.data_ptr(),
        p.labels.data_ptr(),
        p.inverse.data_ptr(),
        p.weights.data_ptr(),
        p.sums.data_ptr(),
        p.gradient.data_ptr() if p.options.gradient else 0,
        points,
        p.sources,
        dim,
        p.options.classes,
        len(p.options.factors),
        batch,
        p.doubling,
        p.options.clamp,
        *where,
    )


def _inputs(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Contiguous, in one dtype that the kernel reads."""
    if x.dtype != y.dtype:
        x, y = x.float(), y.float()
    return x.contiguous(), y.contiguous()


def pairs(x: Tensor, y: Tensor, v: Tensor | None, base: Tensor | None, o: Pairs) -> tuple[Tensor, ...]:
    """See mmd_reference.pairs. Float64 goes by strips in PyTorch."""
    if mmd_reference.math_dtype(x, y) == torch.float64:
        return mmd_reference.pairs(x, y, v, base, o)
    if x.is_cuda:
        return mmd_device.pairs(_launch_pairs, x, y, v, base, o)
    x, y = _inputs(x, y)
    batch, n, d = x.shape
    m = y.shape[1]
    columns, shared = 1, True
    if v is not None:
        v = v.to(torch.float32).contiguous()
        columns, shared = v.shape[2], v.shape[0] == 1
    value = torch.empty((batch, columns) if o.by_column else (batch,), dtype=torch.float64)
    bases = torch.empty(batch, dtype=torch.float64)
    gradient = torch.empty((batch, n + m, d) if o.gradient else 0)
    if base is not None:
        base = base.to(torch.float64).contiguous()
    _native.cpu.mmd_pairs(
        x.data_ptr(),
        y.data_ptr(),
        batch,
        n,
        m,
        d,
        DTYPE_CODES[x.dtype],
        0 if v is None else v.data_ptr(),
        columns,
        shared,
        (o.factors, o.floor, False),
        0 if base is None else base.data_ptr(),
        o.unbiased,
        o.by_column,
        value.data_ptr(),
        bases.data_ptr(),
        gradient.data_ptr() if o.gradient else 0,
        torch.get_num_threads(),
    )
    return value, bases, gradient


def contrast(s: Tensor, ys: Tensor, t: Tensor, yt: Tensor, o: Contrast) -> tuple[Tensor, ...]:
    """See mmd_reference.contrast."""
    if mmd_reference.math_dtype(s, t) == torch.float64:
        return mmd_reference.contrast(s, ys, t, yt, o)
    if s.is_cuda:
        return mmd_device.contrast(_launch_contrast, s, ys, t, yt, o)
    s, t = _inputs(s, t)
    ys, yt = ys.contiguous(), yt.contiguous()
    batch, n, d = s.shape
    m = t.shape[1]
    intra, inter = torch.empty((2, batch), dtype=torch.float64)
    matrix = torch.empty((batch, o.classes, o.classes), dtype=torch.float64)
    gradients = torch.zeros((2, batch, n + m, d) if o.gradient else 0)
    _native.cpu.mmd_contrast(
        s.data_ptr(),
        t.data_ptr(),
        ys.data_ptr(),
        yt.data_ptr(),
        batch,
        n,
        m,
        d,
        o.classes,
        DTYPE_CODES[s.dtype],
        (o.factors, o.floor, o.clamp),
        o.min_count,
        intra.data_ptr(),
        inter.data_ptr(),
        matrix.data_ptr(),
        gradients[0].data_ptr() if o.gradient else 0,
        gradients[1].data_ptr() if o.gradient else 0,
        torch.get_num_threads(),
    )
    return intra, inter, matrix, gradients


def median_distance(x: Tensor) -> Tensor:
    """See mmd_reference.median_distance: the float32 pattern, found digit by digit in three passes."""
    if x.is_cuda or x.dtype == torch.float64:
        return mmd_reference.median_distance(x)
    x = x.contiguous()
    out = torch.empty(x.shape[0], dtype=torch.float64)
    for k, points in enumerate(x):
        n, d = points.shape
        rank, prefix, left = (n * n - 1) // 2, 0, EXACT
        while left:
            bits = min(11, left)
            counts = torch.zeros(1 << bits, dtype=torch.int64)
            _native.cpu.mmd_digits(
                points.data_ptr(),
                n,
                d,
                DTYPE_CODES[x.dtype],
                prefix,
                left - bits,
                bits,
                counts.data_ptr(),
                torch.get_num_threads(),
            )
            reached = counts.cumsum(0)
            digit = int(torch.searchsorted(reached, rank, right=True))
            if digit == len(counts):  # NaN among the distances has no place in the order
                prefix, left = 0x7FC00000, 0
                break
            rank -= int(reached[digit - 1]) if digit else 0
            prefix, left = prefix << bits | digit, left - bits
        out[k] = torch.tensor(prefix, dtype=torch.int64).to(torch.int32).view(torch.float32).double()
    return out
