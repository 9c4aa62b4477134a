"""Discrepancies class by class: contrastive (CAN, arXiv 1901.00976) and local (DSAN)."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from tenfold import _arrays, _checks

from .mmd import FLOOR, _ascending, _base, _samples, _traced, factors_of
from .mmd_dispatch import _float, _value, _watched


class ContrastiveDiscrepancy(NamedTuple):
    """intra, inter: [B] (or scalars). matrix: [B, C, C] (or [C, C]) float64, without gradient.

    matrix[a, b] is the biased squared MMD between source class a and target class b, NaN where one of them
    has fewer than min_count points. intra is the mean of the diagonal, inter of the rest.
    """

    intra: Any
    inter: Any
    matrix: Any


def _labels(name: str, value: Any, like: Tensor, single: bool, classes: int) -> Tensor:
    labels = _checks.tensor(name, _arrays.as_tensor(name, value, write=False), (torch.int64,))
    labels = labels[None] if single and labels.ndim == 1 else labels
    if labels.shape != like.shape[:2]:
        expected = tuple(like.shape[1:2]) if single else tuple(like.shape[:2])
        _checks.fail(ValueError, name, f"shape {expected}", tuple(labels.shape[int(single) :]))
    if labels.device != like.device:
        _checks.fail(TypeError, name, f"the device of its points ({like.device})", labels.device)
    if not torch.compiler.is_compiling() and labels.numel():
        low, high = (int(v) for v in torch.aminmax(labels))
        if low < -1 or high >= classes:
            _checks.fail(ValueError, name, f"labels in [-1, {classes})", low if low < -1 else high)
    return labels


def cdd(
    s: Any,
    ys: Any,
    t: Any,
    yt: Any,
    num_classes: int,
    *,
    kernels: int = 5,
    mul: float = 2.0,
    min_count: int = 2,
    clamp: str = "none",
    floor: float = FLOOR,
) -> ContrastiveDiscrepancy:
    """Contrastive domain discrepancy: the MMD between classes of a source and of a target (CAN).

    For source class a and target class b, M_ab is the biased squared MMD with the mean distance within their
    union as base. `intra` is the mean of M_aa, `inter` the mean of M_ab over a != b; CDD = intra - inter.

    Args:
        s: [N, d] or [B, N, d]: float32, float64, bfloat16 or float16. t: [M, d] or [B, M, d], same dtype.
        ys, yt: int64 labels in [-1, num_classes), shaped as the points; -1 leaves a point out.
        num_classes: C >= 1.
        kernels, mul, floor: as `mmd`.
        min_count: a pair of classes counts only with that many points on both sides, >= 1.
        clamp: "none", or "can" for CAN's own ``|.|^2`` / width clamped to [1e-5, 1e5].

    Returns:
        (intra, inter, matrix); a mean without pairs that count is 0. Differentiable once in s and t.

    Raises:
        TypeError, ValueError: as `mmd`; labels of another dtype, shape or range.
    """
    a, b, single = _samples(("s", "t"), s, t)
    classes = _checks.integer("num_classes", num_classes, 1, 2**31 - 1)
    source = _labels("ys", ys, a, single, classes)
    target = _labels("yt", yt, b, single, classes)
    least = _checks.integer("min_count", min_count, 1, 2**31 - 1)
    _checks.choice("clamp", clamp, ("none", "can"))
    floor = _checks.real("floor", floor, positive=True)
    factors = _ascending(factors_of(kernels, mul))
    intra, inter, matrix, _ = torch.ops.tenfold.cdd(
        a, source, b, target, classes, factors, floor, clamp == "can", least, _watched(a, b)
    )
    to = _arrays.kind_of(s)
    parts = (to(v[0] if single else v) for v in (intra, inter, matrix))
    return ContrastiveDiscrepancy(*parts)


def lmmd(
    s: Any,
    ys: Any,
    t: Any,
    q: Any,
    *,
    kernels: int = 5,
    mul: float = 2.0,
    bandwidth: Any = "mean",
    floor: float = FLOOR,
) -> Any:
    """Local MMD: class by class, source points by label and target points by predicted probability (DSAN).

    sum over classes present on both sides (by label and by arg max) of the MMD of the weighted samples,
    divided by their number; 0 if there is none.

    Args:
        s: [N, d] or [B, N, d]; t: [M, d] or [B, M, d]; N and M may differ.
        ys: [N] or [B, N] int64 labels in [-1, C), -1: left out.
        q: [M, C] or [B, M, C], class probabilities of the target points; a constant for the gradient.
        kernels, mul, bandwidth, floor: as `mmd`.

    Returns:
        A scalar, or [B]. Differentiable once in s and t.

    Raises:
        TypeError, ValueError: as `mmd`; q of another shape or negative.
    """
    a, b, single = _samples(("s", "t"), s, t)
    soft = _checks.tensor("q", _arrays.as_tensor("q", q, write=False)).detach()
    soft = soft[None] if single and soft.ndim == 2 else soft
    if soft.ndim != 3 or soft.shape[:2] != b.shape[:2]:
        _checks.fail(ValueError, "q", f"shape {[*b.shape[int(single) : 2], 'C']}", tuple(q.shape))
    if soft.device != b.device:
        _checks.fail(TypeError, "q", f"the device of its points ({b.device})", soft.device)
    if not soft.shape[2]:
        _checks.fail(ValueError, "q", "probabilities of at least one class", tuple(q.shape))
    if not _traced(soft) and bool((soft < 0).any()):
        _checks.fail(ValueError, "q", "probabilities >= 0", float(soft.min()))
    classes = soft.shape[2]
    labels = _labels("ys", ys, a, single, classes)
    floor = _checks.real("floor", floor, positive=True)
    v = lmmd_weights(labels, soft.to(_float(a, b)))
    base = None if isinstance(bandwidth, str) and bandwidth == "mean" else _base(bandwidth, a, b, floor)
    options = (_ascending(factors_of(kernels, mul)), floor, False, False, _watched(a, b))
    value, _ = _value(a, b, v, base, options)
    return _arrays.kind_of(s)(value[0] if single else value)


def lmmd_weights(labels: Tensor, q: Tensor) -> Tensor:
    """v [B, N + M, C] with sum_ij (v v^T)_ij k_ij = the local MMD of labels [B, N] and probabilities q."""
    classes = q.shape[2]
    onehot = torch.nn.functional.one_hot(labels.clamp_min(0), classes).to(q.dtype)
    onehot = onehot * (labels >= 0)[..., None]
    top = torch.nn.functional.one_hot(q.argmax(-1), classes)
    kept = (onehot.sum(1) > 0) & (top.sum(1) > 0)
    p = onehot / onehot.sum(1, keepdim=True).clamp_min(1.0)
    total = q.sum(1, keepdim=True)
    shares = q / torch.where(total > 0, total, 1.0)
    scale = kept.to(q.dtype) / kept.sum(1, keepdim=True).clamp_min(1).to(q.dtype).sqrt()
    return torch.cat((p, -shares), 1) * scale[:, None]
