"""Soft overlap of logits and labels in plain PyTorch: the definition, and the fallback.

Every region loss is a function of a few sums over voxels, per batch item b and class c (y: the label as 0 or
1, or a soft label; p: the probability; only voxels that are neither masked nor ignored count):

    INTERSECTION  sum p y          PREDICTION          sum p        PREDICTION_SQUARED  sum p^2
    TARGET        sum y            TARGET_SQUARED      sum y^2
    LOG_POSITIVE  sum y (1 - p)^gamma (-log p)
    LOG_NEGATIVE  sum (1 - y) p^gamma (-log(1 - p)), for the sigmoid only

so one kernel serves Dice, its squared, Jaccard, generalised and Tversky forms, cross-entropy and focal loss.
`backward` takes the gradient with respect to these sums and gives the one with respect to the logits.
Arithmetic is float32 (float64 for float64 logits); sums over pieces of voxels are joined in float64.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

SUMS = (
    "intersection",
    "prediction",
    "prediction_squared",
    "target",
    "target_squared",
    "log_positive",
    "log_negative",
)
INTERSECTION, PREDICTION, PREDICTION_SQUARED, TARGET, TARGET_SQUARED, LOG_POSITIVE, LOG_NEGATIVE = range(7)

ACTIVATIONS = ("softmax", "sigmoid", "none")
CHUNK = 1 << 20  # logits that are worked on at a time


class Options(NamedTuple):
    """ignore: the label of voxels to leave out, or None. squares, logs: whether these sums are wanted."""

    activation: str = "softmax"
    gamma: float = 0.0
    ignore: int | None = None
    squares: bool = True
    logs: bool = True


def math_dtype(logits: Tensor) -> torch.dtype:
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def first_bad_label(target: Tensor, mask: Tensor | None, classes: int, ignore: int | None) -> int | None:
    """A label outside [0, classes) that is neither ignored nor masked, or None."""
    bad = _outside(target.long(), mask, classes, ignore)
    return int(target[bad][0]) if bool(bad.any()) else None


def forward(
    logits: Tensor, target: Tensor, mask: Tensor | None, options: Options
) -> tuple[Tensor, Tensor, Tensor]:
    """The sums, the log-sum-exp of each voxel, and how many labels are outside the classes.

    Args:
        logits: [B, C, N].
        target: [B, N] integer labels, or [B, C, N] of any dtype.
        mask: [B, N] bool or uint8, zero where a voxel is left out; or None.

    Returns:
        (float64 [B, C, 7], math dtype [B, N] or empty where the activation is not the softmax, int64 [1]).
    """
    batches, classes, voxels = logits.shape
    sums = torch.zeros(batches, classes, len(SUMS), dtype=torch.float64, device=logits.device)
    softmax = options.activation == "softmax"
    lse = torch.zeros((batches, voxels) if softmax else (0,), dtype=math_dtype(logits), device=logits.device)
    bad = torch.zeros(1, dtype=torch.int64, device=logits.device)
    for part in _parts(logits):
        x, y, valid = _read(logits, target, mask, options, part)
        if target.ndim == 2:
            m = None if mask is None else mask[:, part]
            bad += _outside(target[:, part].long(), m, classes, options.ignore).sum()
        if softmax:
            level = torch.logsumexp(x, 1)
            lse[:, part] = torch.where(valid[:, 0], level, 0)
            log_p, log_q = x - level[:, None], None
            p = log_p.exp()
        else:
            log_p, log_q = F.logsigmoid(x), F.logsigmoid(-x)
            p = torch.sigmoid(x) if options.activation == "sigmoid" else x
        keep = lambda value, v=valid: torch.where(v, value, 0).sum(2, dtype=torch.float64)  # noqa: E731
        sums[:, :, INTERSECTION] += keep(p * y)
        sums[:, :, PREDICTION] += keep(p)
        sums[:, :, TARGET] += keep(y.expand_as(p))
        sums[:, :, TARGET_SQUARED] += keep(y * y)
        if options.squares:
            sums[:, :, PREDICTION_SQUARED] += keep(p * p)
        if options.logs and options.activation != "none":
            positive = _power(1 - p, options.gamma) * -log_p
            sums[:, :, LOG_POSITIVE] += keep(torch.where(y == 0, 0, y * positive))
            if log_q is not None:
                negative = _power(p, options.gamma) * -log_q
                sums[:, :, LOG_NEGATIVE] += keep(torch.where(y == 1, 0, (1 - y) * negative))
    return sums, lse, bad


def backward(
    grad: Tensor,
    logits: Tensor,
    target: Tensor,
    mask: Tensor | None,
    lse: Tensor,
    options: Options,
    out: Tensor,
) -> None:
    """Writes d(loss)/d(logits) into out [B, C, N], grad [B, C, 7] being d(loss)/d(sums)."""
    gamma = options.gamma
    for part in _parts(logits):
        x, y, valid = _read(logits, target, mask, options, part)
        g = grad.to(x.dtype).unbind(2)
        g = tuple(value[:, :, None] for value in g)
        if options.activation == "softmax":
            log_p = x - lse[:, None, part]
            p = log_p.exp()
            slope = g[INTERSECTION] * y + g[PREDICTION] + 2 * g[PREDICTION_SQUARED] * p
            focal = g[LOG_POSITIVE] * torch.where(y == 0, 0, y * _focal_slope(p, log_p, gamma))
            dx = p * (slope - (p * slope).sum(1, keepdim=True) + focal.sum(1, keepdim=True)) - focal
        elif options.activation == "sigmoid":
            p, q = torch.sigmoid(x), torch.sigmoid(-x)
            slope = g[INTERSECTION] * y + g[PREDICTION] + 2 * g[PREDICTION_SQUARED] * p
            positive = -_power(q, gamma) * (q - gamma * p * F.logsigmoid(x))
            negative = _power(p, gamma) * (p - gamma * q * F.logsigmoid(-x))
            dx = slope * p * q + g[LOG_POSITIVE] * y * positive + g[LOG_NEGATIVE] * (1 - y) * negative
        else:
            dx = g[INTERSECTION] * y + g[PREDICTION] + 2 * g[PREDICTION_SQUARED] * x
        out[:, :, part] = torch.where(valid, dx, 0).to(out.dtype)


def _parts(logits: Tensor) -> Iterator[slice]:
    batches, classes, voxels = logits.shape
    step = max(1, CHUNK // max(1, batches * classes))
    for first in range(0, voxels, step):
        yield slice(first, min(first + step, voxels))


def _outside(labels: Tensor, mask: Tensor | None, classes: int, ignore: int | None) -> Tensor:
    bad = (labels < 0) | (labels >= classes)
    if ignore is not None:
        bad &= labels != ignore
    return bad if mask is None else bad & (mask != 0)


def _read(
    logits: Tensor, target: Tensor, mask: Tensor | None, options: Options, part: slice
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits and labels [B, C, n] of a part in the arithmetic's dtype; which voxels count [B, 1, n]."""
    dtype = math_dtype(logits)
    x = logits[:, :, part].to(dtype)
    valid = torch.ones(x.shape[0], 1, x.shape[2], dtype=torch.bool, device=x.device)
    if mask is not None:
        valid = mask[:, None, part] != 0
    if target.ndim == 3:
        return x, target[:, :, part].to(dtype), valid
    labels = target[:, None, part].long()
    if options.ignore is not None:
        valid = valid & (labels != options.ignore)
    valid = valid & (labels >= 0) & (labels < x.shape[1])
    classes = torch.arange(x.shape[1], device=x.device)[None, :, None]
    return x, (labels == classes).to(dtype), valid


def _power(base: Tensor, gamma: float) -> Tensor:
    return torch.ones_like(base) if gamma == 0 else base.clamp(min=0) ** gamma


def _focal_slope(p: Tensor, log_p: Tensor, gamma: float) -> Tensor:
    """-d/dlog(p) of (1 - p)^gamma (-log p): the weight that cross-entropy's gradient gets."""
    if gamma == 0:
        return torch.ones_like(p)
    q = (1 - p).clamp(min=1e-20)
    return q**gamma - gamma * q ** (gamma - 1) * p * log_p
