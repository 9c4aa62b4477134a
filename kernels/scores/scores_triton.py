# mypy: allow-untyped-defs, allow-untyped-calls
"""Scores, cross-entropies and votes of rows of logits in Triton: a program per row, a block of it at a time.

The sums and their joining are those of scores.hpp. Rows whose classes have a step are copied; float64 goes
through the PyTorch reference, as do class medians and masks. Histograms are sums of integers.

Triton's interpreter (TRITON_INTERPRET=1 before this module is imported) runs the kernels on CPU tensors.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import scores_reference
from .scores_reference import NAMES, RowScores, count_votes, empty_scores

__all__ = [
    "class_vote",
    "count_votes",
    "cross_entropy_rows",
    "cross_entropy_rows_backward",
    "dynamics_scatter_",
    "score_rows",
]

LARGEST_BLOCK = 4096

_NONE = tl.constexpr(-1.7e38)  # stands where there is no logit; a logit below counts as -inf
_LEAST = tl.constexpr(-87.0)
_NOWHERE = tl.constexpr(2**31 - 1)


@triton.jit
def _row_sums(row, label, classes, BLOCK: tl.constexpr):
    """Over the classes but the label: largest and second logit, sums of e, e d and e^2 about the largest, the
    largest one's lowest class; and over all: 0, or NaN where a logit is not finite, and whether one is NaN or
    +inf."""
    top = _NONE + tl.zeros([], tl.float32)
    second = _NONE + tl.zeros([], tl.float32)
    s = tl.zeros([], tl.float32)
    a = tl.zeros([], tl.float32)
    q = tl.zeros([], tl.float32)
    finite = tl.zeros([], tl.float32)
    spoilt = tl.zeros([], tl.int32)
    index = _NOWHERE + tl.zeros([], tl.int32)
    for first in range(0, classes, BLOCK):
        v = first + tl.arange(0, BLOCK)
        inside = v < classes
        x = tl.load(row + v, mask=inside, other=0.0).to(tl.float32)
        finite += tl.sum(x * 0.0, axis=0)
        spoilt += tl.sum(((x != x) | (x == float("inf"))).to(tl.int32), axis=0)
        real = inside & (v != label) & (x > _NONE)
        x = tl.where(real, x, _NONE)
        here = tl.max(x, axis=0)
        at = tl.min(tl.where(real & (x == here), v, _NOWHERE), axis=0)
        next_here = tl.max(tl.where(v == at, _NONE, x), axis=0)
        d = tl.where(real, x - here, 0.0)
        e = tl.where(real & (d >= _LEAST), tl.exp(d), 0.0)
        index = tl.where(here > top, at, index)
        higher = tl.maximum(top, here)
        second = tl.maximum(tl.minimum(top, here), tl.maximum(second, next_here))
        before = tl.maximum(top - higher, _LEAST)
        after = tl.maximum(here - higher, _LEAST)
        c = tl.exp(before)
        f = tl.exp(after)
        s_here = tl.sum(e, axis=0)
        a = c * (a + before * s) + f * (tl.sum(e * d, axis=0) + after * s_here)
        s = c * s + f * s_here
        q = c * c * q + f * f * tl.sum(e * e, axis=0)
        top = higher
    return top, second, s, a, q, index, finite, spoilt


@triton.jit
def _log1p(x):
    """ln(1 + x) for x >= 0: the series below 1/16, where 1 + x would lose digits."""
    y = x * (1.0 - x * (0.5 - x * (0.33333334 - x * (0.25 - x * (0.2 - x * 0.16666667)))))
    return tl.where(x < 0.0625, y, tl.log(1.0 + x))


@triton.jit
def _total(row, label, classes, top, s):
    """The label's logit, the largest of all, its distance from there, sum of the others and of all about it,
    and ln of the latter."""
    valid = (label >= 0) & (label < classes)
    own = tl.load(row + tl.where(valid, label, 0)).to(tl.float32)
    own = tl.where(valid, own, float("-inf"))
    high = tl.maximum(top, own)
    high = tl.where(own != own, own, high)
    shift = tl.where(top > _NONE, tl.maximum(top - high, _LEAST), _LEAST)
    c = tl.where(top > _NONE, tl.exp(shift), 0.0)
    below = high - own
    own_e = tl.where(below <= 87.0, tl.exp(-tl.minimum(below, 87.0)), 0.0)
    rest = c * s
    log_total = tl.where(own == high, _log1p(rest), tl.log(rest + own_e))
    return valid, own, high, shift, c, below, own_e, rest, rest + own_e, log_total


@triton.jit
def _score_kernel(
    logits, labels, norms, el2n, grand, loss, entropy, margin, least, label_margin, correct, histogram, bad,
    stride, classes,
    EL2N: tl.constexpr, GRAND: tl.constexpr, LOSS: tl.constexpr, ENTROPY: tl.constexpr, MARGIN: tl.constexpr,
    LEAST: tl.constexpr, LABEL_MARGIN: tl.constexpr, CORRECT: tl.constexpr, HISTOGRAM: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    r = tl.program_id(0).to(tl.int64)
    row = logits + r * stride
    label = tl.load(labels + r)
    top, second, s, a, q, index, finite, spoilt = _row_sums(row, label, classes, BLOCK)
    valid, own, high, shift, c, below, own_e, rest, total, log_total = _total(row, label, classes, top, s)
    hopeless = (spoilt > 0) | ((top <= _NONE) & (own <= _NONE))
    nothing = hopeless | (valid == 0)
    nan = float("nan")
    share = rest / total
    norm = tl.sqrt(c * c * q / (total * total) + share * share)
    norm = tl.where(nothing, nan, norm)
    if EL2N:
        tl.store(el2n + r, norm)
    if GRAND:
        tl.store(grand + r, norm * tl.sqrt(1.0 + tl.load(norms + r)))
    if LOSS:
        tl.store(loss + r, tl.where(nothing, nan, log_total + below))
    if ENTROPY:
        moment = c * (a + shift * s) - tl.where(own_e > 0.0, own_e * below, 0.0)
        tl.store(entropy + r, tl.where(nothing, nan, log_total - moment / total))
    if MARGIN:
        rival = tl.where(own >= top, top, tl.maximum(own, second))
        near = tl.where(rival > _NONE, tl.exp(tl.maximum(rival - high, _LEAST)), 0.0)
        tl.store(margin + r, tl.where(nothing, nan, (1.0 - near) / total))
    if LEAST:
        tl.store(least + r, tl.where(nothing, nan, tl.where(own == high, share, (total - 1.0) / total)))
    if LABEL_MARGIN:
        tl.store(label_margin + r, tl.where(nothing, nan, (own_e - c) / total))
    mine = (own > top) | ((own == top) & (label < index))
    if CORRECT:
        tl.store(correct + r, (mine & (nothing == 0)).to(tl.int8))
    if HISTOGRAM:
        choice = tl.where(mine, label, index.to(tl.int64))
        tl.atomic_add(histogram + tl.where(hopeless, 0, choice), tl.where(hopeless, 0, 1).to(tl.int64))
    wrong = finite != finite
    tl.atomic_min(bad, r, mask=wrong)
    tl.atomic_min(bad + 1, r, mask=valid == 0)


@triton.jit
def _cross_entropy_kernel(logits, labels, loss, top_out, log_out, stride, classes, BLOCK: tl.constexpr):
    r = tl.program_id(0).to(tl.int64)
    row = logits + r * stride
    label = tl.load(labels + r)
    top, _, s, _, _, _, _, spoilt = _row_sums(row, label, classes, BLOCK)
    valid, own, high, _, _, below, _, _, _, log_total = _total(row, label, classes, top, s)
    hopeless = (spoilt > 0) | ((top <= _NONE) & (own <= _NONE))
    nan = float("nan")
    tl.store(loss + r, tl.where(hopeless | (valid == 0), nan, log_total + below))
    tl.store(top_out + r, high)
    tl.store(log_out + r, tl.where(hopeless, nan, log_total))


@triton.jit
def _backward_kernel(
    grad, logits, labels, top, log_total, out, stride, out_stride, classes, BLOCK: tl.constexpr
):
    r = tl.program_id(0).to(tl.int64)
    v = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = v < classes
    g = tl.load(grad + r)
    x = tl.load(logits + r * stride + v, mask=inside, other=0.0).to(tl.float32)
    d = (x - tl.load(top + r)) - tl.load(log_total + r)
    p = tl.where(d < _LEAST, 0.0, tl.exp(d))
    p = tl.where(v == tl.load(labels + r), p - 1.0, p)
    p = tl.where(g == 0.0, 0.0, g * p)
    tl.store(out + r * out_stride + v, p.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _vote_kernel(
    logits, targets, histogram, matrix, bad, stride, classes, MATRIX: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    r = tl.program_id(0).to(tl.int64)
    row = logits + r * stride
    top = float("-inf") + tl.zeros([], tl.float32)
    index = _NOWHERE + tl.zeros([], tl.int32)
    nan = tl.zeros([], tl.int32)
    for first in range(0, classes, BLOCK):
        v = first + tl.arange(0, BLOCK)
        inside = v < classes
        x = tl.load(row + v, mask=inside, other=float("-inf")).to(tl.float32)
        nan += tl.sum((x != x).to(tl.int32), axis=0)
        x = tl.where(x == x, x, float("-inf"))
        here = tl.max(x, axis=0)
        at = tl.min(tl.where(inside & (x == here), v, _NOWHERE), axis=0)
        index = tl.where(here > top, at, index)
        top = tl.maximum(top, here)
    fine = (nan == 0) & (top > float("-inf"))
    choice = tl.where(fine, index, 0).to(tl.int64)
    tl.atomic_add(histogram + choice, fine.to(tl.int64))
    if MATRIX:
        tl.atomic_add(matrix + tl.load(targets + r) * classes + choice, fine.to(tl.int64))
    tl.atomic_min(bad, r, mask=fine == 0)


# ---- launches --------------------------------------------------------------------------------------------


def _rows(x: Tensor) -> Tensor:
    return x if x.stride(1) == 1 or x.shape[1] <= 1 else x.contiguous()


def _block(classes: int) -> tuple[int, int]:
    """Entries of a row at a time, and warps."""
    block = min(LARGEST_BLOCK, triton.next_power_of_2(max(16, classes)))
    return block, 1 if block <= 512 else 4 if block <= 2048 else 8


def score_rows(
    logits: Tensor, labels: Tensor, norms_squared: Tensor | None, want: frozenset[str]
) -> tuple[RowScores, Tensor]:
    """See scores_reference.score_rows."""
    if logits.dtype == torch.float64:
        return scores_reference.score_rows(logits, labels, norms_squared, want)
    rows, classes = logits.shape
    out = empty_scores(rows, classes, torch.float32, logits.device, want)
    bad = torch.full((2,), rows, dtype=torch.int64, device=logits.device)
    if rows:
        z, y = _rows(logits), labels.contiguous()
        norms = z if norms_squared is None else norms_squared.to(torch.float32).contiguous()
        block, warps = _block(classes)
        flags = {name: name in want for name in NAMES}
        rooms = [(t.view(torch.int8) if t.dtype == torch.bool else t) if flags[n] else bad
                 for n, t in zip(NAMES, out, strict=True)]  # fmt: skip
        _score_kernel[(rows,)](
            z, y, norms, *rooms, bad, z.stride(0), classes, *flags.values(), block, num_warps=warps
        )
    return out, bad


def dynamics_scatter_(state: dict[str, Tensor], indices: Tensor, scores: RowScores) -> None:
    """See scores_reference.dynamics_scatter_: seven numbers per sample, which PyTorch moves as well."""
    scores_reference.dynamics_scatter_(state, indices, scores)


def cross_entropy_rows(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """See scores_reference.cross_entropy_rows."""
    if logits.dtype == torch.float64 or not logits.numel():
        return scores_reference.cross_entropy_rows(logits, labels)
    z, y = _rows(logits), labels.contiguous()
    loss, top, log_total = (torch.empty(z.shape[0], dtype=torch.float32, device=z.device) for _ in range(3))
    block, warps = _block(z.shape[1])
    _cross_entropy_kernel[(z.shape[0],)](
        z, y, loss, top, log_total, z.stride(0), z.shape[1], block, num_warps=warps
    )
    return loss, top, log_total


def cross_entropy_rows_backward(
    grad: Tensor, logits: Tensor, labels: Tensor, top: Tensor, log_total: Tensor
) -> Tensor:
    """See scores_reference.cross_entropy_rows_backward."""
    if logits.dtype == torch.float64 or not logits.numel():
        return scores_reference.cross_entropy_rows_backward(grad, logits, labels, top, log_total)
    z, y = _rows(logits), labels.contiguous()
    g, t, n = (v.to(torch.float32).contiguous() for v in (grad, top, log_total))
    out = torch.empty(z.shape, dtype=z.dtype, device=z.device)
    block, warps = _block(z.shape[1])
    grid = (z.shape[0], triton.cdiv(z.shape[1], block))
    _backward_kernel[grid](g, z, y, t, n, out, z.stride(0), out.stride(0), z.shape[1], block, num_warps=warps)
    return out


def class_vote(logits: Tensor, targets: Tensor | None, histogram: Tensor, matrix: Tensor | None) -> Tensor:
    """See scores_reference.class_vote."""
    if logits.dtype == torch.float64:
        return scores_reference.class_vote(logits, targets, histogram, matrix)
    bad = torch.full((1,), logits.shape[0], dtype=torch.int64, device=logits.device)
    if logits.shape[0]:
        z = _rows(logits)
        own = bad if targets is None else targets.contiguous()
        to = matrix if matrix is not None and targets is not None else bad
        block, warps = _block(z.shape[1])
        _vote_kernel[(z.shape[0],)](
            z, own, histogram, to, bad, z.stride(0), z.shape[1], to is not bad, block, num_warps=warps
        )
    return bad[0]


def ahead_of_time() -> list[tuple]:
    """(name, kernel, signature, constants, options) for benchmarks/cuda_compile.py."""
    listed = []
    for name, kind in (("fp32", "*fp32"), ("bf16", "*bf16"), ("fp16", "*fp16")):
        rows = {"logits": kind, "labels": "*i64"}
        flags = {n.upper() if n != "least_confidence" else "LEAST": True for n in NAMES}
        floats = dict.fromkeys(
            ("norms", "el2n", "grand", "loss", "entropy", "margin", "least", "label_margin"), "*fp32"
        )
        score = {**rows, **floats, "correct": "*i8", "histogram": "*i64", "bad": "*i64"}
        sizes = {"stride": "i64", "classes": "i32"}
        options = {"num_warps": 4}
        listed += [
            _listed(f"score.{name}", _score_kernel, {**score, **sizes}, {**flags, "BLOCK": 1024}, options),
            _listed(
                f"cross_entropy.{name}",
                _cross_entropy_kernel,
                {**rows, "loss": "*fp32", "top_out": "*fp32", "log_out": "*fp32", **sizes},
                {"BLOCK": 1024},
                options,
            ),
            _listed(
                f"cross_entropy_backward.{name}",
                _backward_kernel,
                {
                    "grad": "*fp32", **rows, "top": "*fp32", "log_total": "*fp32", "out": kind,
                    "stride": "i64", "out_stride": "i64", "classes": "i32",
                },
                {"BLOCK": 1024},
                options,
            ),
            _listed(
                f"vote.{name}",
                _vote_kernel,
                {
                    "logits": kind, "targets": "*i64", "histogram": "*i64", "matrix": "*i64", "bad": "*i64",
                    **sizes,
                },
                {"MATRIX": True, "BLOCK": 1024},
                options,
            ),
        ]  # fmt: skip
    return listed


def _listed(name, kernel, signature, constants, options):
    return name, kernel, {**signature, **dict.fromkeys(constants, "constexpr")}, constants, options
