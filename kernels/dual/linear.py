"""Products with perturbed weights by row blocks: what CPU and CUDA do where no fused kernel serves.

A block of rows of W is perturbed into a small buffer that is used again for every block, once for each copy
of the input that wants this direction, and multiplied by the library's own matrix product.  W is only read.
`fill` is the backend's: it draws z once and writes W + c z for every coefficient c that it is given.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

BLOCK_BYTES = {"cpu": 8 << 20, "cuda": 64 << 20}
"""Buffers of one block, all copies together: within the last-level cache of a CPU, and large enough on a GPU
to keep it busy."""

FUSED_ROWS = {torch.float32: 16, torch.bfloat16: 64, torch.float16: 64}
"""Rows of x per copy up to which a fused kernel (dual_triton.py) serves better on a GPU: one tile of its
products, so that no z is made twice."""

# fill(weight, first row, outs [rows, K], coefs, seed, stream, query, dist, z_round)
Fill = Callable[
    [Tensor, int, Sequence[Tensor], Sequence[float], int, int, int, str, "torch.dtype | None"], None
]

_held = threading.local()


def few_rows(x: Tensor, weight: Tensor) -> bool:
    """Whether the fused kernel is for this layer: few rows, and rows of z that start on a block."""
    rows = x.numel() // max(1, x.shape[0] * x.shape[-1])
    return rows <= FUSED_ROWS.get(weight.dtype, 0) and weight.shape[1] % 4 == 0


def _scratch(n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A flat buffer of n elements. On the CPU a thread keeps its last one: fresh pages cost more than z."""
    if device.type != "cpu":
        return torch.empty(n, dtype=dtype, device=device)
    kept: Tensor | None = getattr(_held, "buffer", None)
    size = n * dtype.itemsize
    if kept is None or kept.numel() < size:
        with torch.inference_mode(False):
            kept = torch.empty(size, dtype=torch.uint8)
        if size <= BLOCK_BYTES["cpu"]:
            _held.buffer = kept
    return kept[:size].view(dtype)


def _math_dtype(weight: Tensor, fold: bool) -> torch.dtype:
    """What the product is done in: folded weights in their own dtype, others in float32 at least."""
    return weight.dtype if fold or weight.dtype == torch.float64 else torch.float32


def _groups(queries: Sequence[int], coefs: Sequence[float], perturbed: bool) -> list[tuple[int, list[int]]]:
    """(query, copies that use it), and last (-1, copies whose weights are W as it is)."""
    groups: dict[int, list[int]] = {}
    for p, (query, coef) in enumerate(zip(queries, coefs, strict=True)):
        groups.setdefault(query if perturbed and coef != 0.0 else -1, []).append(p)
    return sorted(groups.items(), key=lambda item: item[0] < 0)


def _biases(
    fill: Fill,
    bias: Tensor,
    dtype: torch.dtype,
    seed: int,
    stream: int | None,
    groups: Sequence[tuple[int, list[int]]],
    coefs: Sequence[float],
    dist: str,
    z_round: torch.dtype | None,
) -> Tensor:
    """b + c z_b for every copy: [P, N] in the dtype of the product."""
    out = torch.empty(len(coefs), bias.shape[0], dtype=dtype, device=bias.device)
    for query, members in groups:
        if query < 0 or stream is None:
            out[members] = bias.to(dtype)
            continue
        rows = [out[p].unsqueeze(0) for p in members]
        fill(bias.unsqueeze(0), 0, rows, [coefs[p] for p in members], seed, stream, query, dist, z_round)
    return out


def _multiply(out: Tensor, x: Tensor, rows: Tensor, bias: Tensor | None) -> None:
    """out [M, rows] = x rows^T + bias, rounded to the dtype of out at the end."""
    if out.dtype == x.dtype:
        if bias is None:
            torch.mm(x, rows.t(), out=out)
        else:
            torch.addmm(bias, x, rows.t(), out=out)
        return
    product = torch.mm(x, rows.t()) if bias is None else torch.addmm(bias, x, rows.t())
    out.copy_(product)


def _multiply_together(out: Tensor, x: Tensor, rows: Tensor, bias: Tensor | None) -> None:
    """_multiply for all copies: out [P, M, rows], x [P, M, K], rows [P, rows, K], bias [P, rows].

    One product fills a GPU that the products of single copies would leave half idle.
    """
    to = out if out.dtype == x.dtype and out.is_contiguous() else None
    if bias is None:
        product = torch.bmm(x, rows.mT, out=to)
    else:
        product = torch.baddbmm(bias.unsqueeze(1), x, rows.mT, out=to)
    if to is None:
        out.copy_(product)


def linear(
    fill: Fill,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    seed: int,
    stream: int | None,
    bias_stream: int | None,
    queries: Sequence[int],
    coefs: Sequence[float],
    dist: str,
    fold: bool,
    z_round: torch.dtype | None,
    out_dtype: torch.dtype,
) -> Tensor:
    """y[p] = x[p] (W + coef_p z)^T + (b + coef_p z_b), [P, ..., N] in `out_dtype`."""
    copies, (n, k) = x.shape[0], weight.shape
    math = _math_dtype(weight, fold)
    flat = x.reshape(copies, x.shape[1:-1].numel(), k).to(math)
    out = torch.empty(copies, flat.shape[1], n, dtype=out_dtype, device=x.device)
    groups = _groups(queries, coefs, stream is not None)
    shifts = None
    if bias is not None:
        by_bias = _groups(queries, coefs, bias_stream is not None)
        shifts = _biases(fill, bias, math, seed, bias_stream, by_bias, coefs, dist, z_round)
    most = max(len(members) for _, members in groups) if groups else 1
    budget = BLOCK_BYTES.get(x.device.type, BLOCK_BYTES["cuda"])
    height = max(16, budget // max(1, most * k * math.itemsize) // 16 * 16)
    buffer = None
    for row in range(0, n, height):
        rows = min(height, n - row)
        for query, members in groups:
            if query < 0:
                tiles = weight[row : row + rows].to(math).expand(len(members), -1, -1)
            else:
                if buffer is None:
                    buffer = _scratch(most * min(height, n) * k, math, x.device)
                tiles = buffer[: len(members) * rows * k].view(len(members), rows, k)
                chosen = [coefs[p] for p in members]
                fill(weight, row, list(tiles), chosen, seed, stream or 0, query, dist, z_round)
            shift = None if shifts is None else shifts[:, row : row + rows]
            if x.is_cuda and query >= 0 and len(members) == copies:
                _multiply_together(out[:, :, row : row + rows], flat, tiles, shift)
                continue
            for tile, p in zip(tiles, members, strict=True):
                _multiply(out[p, :, row : row + rows], flat[p], tile, None if shift is None else shift[p])
    return out.view(*x.shape[:-1], n)
