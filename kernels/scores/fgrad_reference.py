"""Last-layer gradients as factors, in plain PyTorch.

The gradient of a sample's loss in a linear layer is the outer product of its output error e (softmax minus
one-hot for the cross-entropy) and the layer's input with a leading 1 for the bias: g_i = e_i [1, h_i]^T.
It has rank one, so inner products, norms and sums need C + d numbers per sample instead of C (d + 1):

    <g_i, g_j> = (e_i . e_j)(b + h_i . h_j)        b = 1 with a bias, else 0
    <g_i, R>   = e_i . (R [1, h_i])                R a matrix [C, d + b]
    sum w_i g_i = (w * E)^T [1, H]
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .nnls import nnls
from .scores_reference import CHUNK

KEPT_BYTES = 64 << 20
"""Columns of inner products that orthogonal matching pursuit may always keep."""


def math_dtype(*tensors: Tensor) -> torch.dtype:
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def gram(e: Tensor, h: Tensor, f: Tensor, g: Tensor, bias: bool) -> Tensor:
    """<g_i, g'_j> for samples (e, h) and (f, g): [N, M]."""
    dtype = math_dtype(e, h, f, g)
    out = torch.addmm(torch.full((), float(bias), dtype=dtype, device=e.device), h.to(dtype), g.to(dtype).T)
    return out.mul_(e.to(dtype) @ f.to(dtype).T)


def norms_squared(e: Tensor, h: Tensor, bias: bool) -> Tensor:
    dtype = math_dtype(e, h)
    return e.to(dtype).square().sum(1) * (h.to(dtype).square().sum(1) + float(bias))


def sqdist(e: Tensor, h: Tensor, f: Tensor, g: Tensor, bias: bool) -> Tensor:
    """||g_i - g'_j||^2 [N, M], at least 0. Inner products cancel, so they are made in float64."""
    out = gram(e.double(), h.double(), f.double(), g.double(), bias).mul_(-2)
    out += norms_squared(e.double(), h.double(), bias)[:, None]
    out += norms_squared(f.double(), g.double(), bias)
    return out.clamp_min_(0).to(math_dtype(e, h, f, g))


def mv(e: Tensor, h: Tensor, matrix: Tensor, bias: bool) -> Tensor:
    """<g_i, matrix> [N], a chunk of rows at a time."""
    dtype = math_dtype(e, h, matrix)
    first = matrix[:, 0].to(dtype) if bias else torch.zeros((), dtype=dtype, device=e.device)
    weight = matrix[:, int(bias) :].to(dtype).T
    out = torch.empty(e.shape[0], dtype=dtype, device=e.device)
    for part in _chunks(e, h):
        out[part] = (torch.addmm(first, h[part].to(dtype), weight) * e[part].to(dtype)).sum(1)
    return out


def rmv(e: Tensor, h: Tensor, weights: Tensor, bias: bool) -> Tensor:
    """sum_i weights_i g_i [C, d + bias], a chunk of rows at a time."""
    dtype = math_dtype(e, h, weights)
    sums = torch.zeros(e.shape[1], h.shape[1] + int(bias), dtype=dtype, device=e.device)
    for part in _chunks(e, h):
        scaled = (e[part].to(dtype) * weights[part].to(dtype)[:, None]).T
        sums[:, int(bias) :].addmm_(scaled, h[part].to(dtype))
        if bias:
            sums[:, 0] += scaled.sum(1)
    return sums


def _chunks(e: Tensor, h: Tensor) -> list[slice]:
    step = max(1, CHUNK // max(1, e.shape[1] + h.shape[1]))
    return [slice(first, first + step) for first in range(0, e.shape[0], step)]


def keeps_columns(rows: int, k: int, width: int) -> bool:
    """Whether the pursuit keeps the inner products of every sample with each pick: they take no more room
    than the float32 factors themselves, or little."""
    return 8 * rows * k <= max(KEPT_BYTES, 4 * rows * width)


def column(e: Tensor, h: Tensor, pick: Tensor, bias: bool) -> Tensor:
    """<g_i, g_pick> of every sample, float64 [N]; `pick` is an int64 scalar where e is. A chunk of rows at a
    time."""
    out = torch.empty(e.shape[0], dtype=torch.float64, device=e.device)
    e_pick, h_pick = (t.index_select(0, pick.reshape(1))[0].double() for t in (e, h))
    for part in _chunks(e, h):
        out[part] = (e[part].double() @ e_pick) * (h[part].double() @ h_pick + float(bias))
    return out


def omp(
    e: Tensor,
    h: Tensor,
    target: Tensor | None,
    k: int,
    lam: float,
    bias: bool,
    make_column: Callable[[Tensor, Tensor, Tensor, bool], Tensor] = column,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Orthogonal matching pursuit: see `tenfold.ops.omp_factored`. Indices and weights of the kept picks,
    the residual after each pick, and that of the weights returned. Sums are float64."""
    goal, q = start(e, h, target, bias)
    indices, gram_, pivots, residuals = _pursue(e, h, goal, q, k, lam, bias, make_column)
    return finish(indices, gram_, pivots, q[indices], residuals, goal.square().sum(), lam)


def start(e: Tensor, h: Tensor, target: Tensor | None, bias: bool) -> tuple[Tensor, Tensor]:
    """The target, by default the mean gradient, and every gradient's inner product with it, in float64."""
    if target is None:
        rows = e.shape[0]
        mean = torch.full((rows,), 1 / max(1, rows), dtype=torch.float64, device=e.device)
        target = rmv(e, h, mean, bias)
    return target.double(), mv(e, h, target.double(), bias)


def _pursue(
    e: Tensor,
    h: Tensor,
    target: Tensor,
    q: Tensor,
    k: int,
    lam: float,
    bias: bool,
    make_column: Callable[[Tensor, Tensor, Tensor, bool], Tensor],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Picks [k], their inner products [k, k], pivots of the Cholesky factor, residuals. Nothing waits for the
    device, and little is launched per pick: the factor's inverse is kept, whose products solve the system."""
    indices = torch.zeros(k, dtype=torch.int64, device=e.device)
    g, inverse, answers = (q.new_zeros(k, k) for _ in range(3))
    forward = q.new_zeros(k)  # inverse @ q[picks]
    keep = keeps_columns(e.shape[0], k, e.shape[1] + h.shape[1])
    columns = q.new_empty(k if keep else 0, e.shape[0])
    c, untaken = q, q.clone()
    for t in range(k):
        here = slice(t + 1)
        indices[t] = c.argmax()
        untaken.index_fill_(0, indices[t], -torch.inf)
        picks = indices[here]
        new = make_column(e, h, indices[t], bias)
        g[t, here] = new[picks]
        append_row_(inverse, g[t, here], t, lam)
        at = q[picks]
        forward[t] = inverse[t, here] @ at
        x = answers[t, here]
        if t:
            torch.mv(inverse[here, here].T, forward[here], out=x)
        else:
            x.copy_(torch.where(g[0, :1] == 0, 0.0, at / g[0, :1]))
        if keep:
            columns[t] = new
            c = torch.addmv(untaken, columns[here].T, x, alpha=-1)
        else:
            c = untaken - mv(e, h, rmv(e[picks], h[picks], x, bias), bias)  # float64, as x is
    g += g.tril(-1).T
    squares = target.square().sum() - 2 * (answers @ q[indices]) + ((answers @ g) * answers).sum(1)
    return indices, g, inverse.diagonal().reciprocal(), squares.clamp_min(0).sqrt()


def append_row_(inverse: Tensor, row: Tensor, t: int, lam: float) -> None:
    """Row t of the inverse of the Cholesky factor of G + lam I. A sample that depends on those before it gets
    the pivot infinity, a row of zeros, and with it the weight 0."""
    before = inverse[:t, :t]
    lower = before @ row[:t]
    own = row[t] + lam
    rest = own - lower @ lower
    pivot = torch.where(rest > 1e-13 * own, rest.clamp_min(0).sqrt(), torch.inf)
    inverse[t, :t] = (lower @ before) / -pivot
    inverse[t, t] = 1 / pivot


def finish(
    indices: Tensor,
    gram_: Tensor,
    pivots: Tensor,
    at: Tensor,
    residuals: Tensor,
    size: Tensor,
    lam: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Non-negative weights of the same normal equations; picks of weight 0 are left out, those that depend on
    earlier ones, and those whose inner products are not finite."""
    g, b, free = (t.cpu() for t in (gram_, at, pivots.isfinite() & at.isfinite()))
    some = free.nonzero()[:, 0]
    system = g[some][:, some] + lam * torch.eye(some.numel(), dtype=torch.float64)
    x = torch.zeros_like(b)
    x[some] = torch.from_numpy(nnls(system.numpy(), b[some].numpy()))
    kept = x > 0
    rest = size.cpu() - 2 * (x @ b) + x @ (g @ x)
    device = indices.device
    return (
        indices[kept.to(device)],
        x[kept].to(device, torch.float32),
        residuals,
        rest.clamp_min(0).sqrt().to(device),
    )
