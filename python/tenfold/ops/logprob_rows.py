"""Log-probabilities of tokens, and labels drawn from them, from logits or from hidden states without logits.

Every loss of unlearning that weighs the tokens of a sequence (gradient ascent, NPO arXiv 2404.05868, SimNPO
arXiv 2410.07163, DPO arXiv 2305.18290, preference optimisation with refusals) is a function of log p(token),
and its gradient one weight per token.  `linear_logprob` gives these numbers from the hidden states with no
more than a chunk of logits in memory, `logits_logprob` from logits in one pass over them.  `gnb_sample` draws
the labels of the Gauss-Newton-Bartlett estimate of Sophia (arXiv 2305.14342).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tenfold import _arrays, _checks

from . import _rows as _registered  # noqa: F401
from . import _rows_fused as _fused
from .logprob import _expect_device, _expect_shape, _integers, _operands

WANT = ("logp", "lse", "argmax", "mean_logit", "mean_logp", "mean_logp2")


class LogProbs(NamedTuple):
    """One number per token; None where it was not wanted."""

    logp: Any
    lse: Any = None
    argmax: Any = None
    mean_logit: Any = None
    mean_logp: Any = None
    mean_logp2: Any = None


class GNBSample(NamedTuple):
    """tokens: int64, ignore_index where nothing was drawn. logp: their log-probabilities."""

    tokens: Any
    logp: Any


def linear_logprob(
    hidden: Any,
    weight: Any,
    targets: Any,
    bias: Any = None,
    *,
    softcap: float | None = None,
    ignore_index: int = -100,
    want: Sequence[str] = ("logp",),
) -> LogProbs:
    """log p(targets[n]) under softmax(cap(hidden[n] weight^T + bias)), no more than a chunk of logits kept.

    Rows whose target is ignore_index are dropped before the product and give 0 and no gradient. The backward
    pass computes the logits again, a chunk at a time: 8 N V D operations for both passes instead of 6; where
    only hidden asks for a gradient, forward keeps it up to the weight of a row, [N, D] in float32, and both
    take 4. `linear_loss` needs 6 for losses that are sums over tokens or sequences.
    Products are accumulated in float32 from the stored values, under autocast and whatever the settings of
    TF32; on CUDA, half-precision operands meet a gradient rounded to their dtype, as they do in autograd.

    Args:
        hidden: [N, D] hidden states after the last norm, float32, bfloat16, float16 or float64 (then all math
            is float64).
        weight: [V, D] unembedding; its dtype may differ from that of hidden.
        targets: [N] int64 in [0, V), or ignore_index.
        bias: [V] or None.
        softcap: logits become softcap * tanh(logits / softcap) (Gemma 2, arXiv 2408.00118); positive, or
            None.
        ignore_index: the target of a row to leave out.
        want: which of "logp", "lse", "argmax", "mean_logit", "mean_logp", "mean_logp2" to return. "logp"
            comes in any case. lse: log sum exp of the logits. argmax: int64, the lowest index of the largest
            logit, so `argmax == targets` tells whether greedy decoding hits. mean_logit: the mean logit over
            the vocabulary. mean_logp, mean_logp2: sum_v p log p and sum_v p (log p)^2, the moments by which
            Min-K%++ (arXiv 2404.02936) standardises log p(target). All come from the same pass.

    Returns:
        LogProbs: float32 [N] each (float64 for float64 input), natural logarithms. Only logp is
        differentiable, once, in hidden, weight and bias. A target of probability 0 gives -inf; a row with NaN
        among its logits gives NaN and leaves the other rows alone.

    Raises:
        IndexError: a target outside [0, V) that is not ignore_index.
        TypeError: an argument of the wrong kind or dtype.
        ValueError: shapes or devices that do not fit, softcap not positive, an unknown name in want.
        RuntimeError: a forced backend that cannot run.
    """
    kind = _arrays.kind_of(hidden)
    hidden, weight, bias = _operands(hidden, weight, bias, 2)
    targets = _integers("targets", targets, hidden.shape[:1], "[N] of hidden", hidden.device)
    softcap, ignore_index, wanted = _options(softcap, ignore_index, want)
    by_hidden, *by_head = _fused.wanted(hidden, weight, bias)
    op = torch.ops.tenfold.linear_logprob
    if by_hidden and not any(by_head):
        op = torch.ops.tenfold.linear_logprob_slopes
    found = op(hidden, weight, bias, targets, softcap, ignore_index, _stats(wanted))[: len(WANT)]
    return _named(found, wanted, _math_dtype(hidden, weight, bias), kind)


def logits_logprob(
    logits: Any,
    targets: Any,
    *,
    softcap: float | None = None,
    ignore_index: int = -100,
    want: Sequence[str] = ("logp",),
) -> LogProbs:
    """log p(target) under softmax(cap(logits)), in one pass over the logits.

    Rows may lie anywhere as long as the vocabulary has stride 1: a shifted view `logits[:, :-1]` is not
    copied. The backward pass writes the gradient straight from the logits and the kept log-sum-exp.

    Args:
        logits: [N, V] or [B, T, V]; float32, bfloat16, float16 or float64.
        targets: [N] or [B, T] int64 in [0, V), or ignore_index.
        softcap, ignore_index, want: as `linear_logprob`.

    Returns:
        LogProbs with the shape of targets; float32 (float64 for float64 logits). Only logp is differentiable,
        once, in logits.

    Raises:
        IndexError, TypeError, ValueError, RuntimeError: as `linear_logprob`.
    """
    kind = _arrays.kind_of(logits)
    logits = _logits(logits)
    shape = logits.shape[:-1]
    targets = _integers("targets", targets, shape, "that of logits without V", logits.device)
    softcap, ignore_index, wanted = _options(softcap, ignore_index, want)
    found = torch.ops.tenfold.logits_logprob(logits, targets, softcap, ignore_index, _stats(wanted))
    return _named(found, wanted, _math_dtype(logits), kind)


def gnb_sample(
    logits: Any,
    *,
    seed: int,
    row_offset: int = 0,
    temperature: float = 1.0,
    mask: Any = None,
    ignore_index: int = -100,
) -> GNBSample:
    """One label per row from softmax(logits / temperature), and its log-probability.

    With B rows, `(-logp.sum() / B).backward()` leaves the gradient g of the mean cross-entropy with the drawn
    labels, and B g^2 estimates the diagonal of the Gauss-Newton matrix without bias: the
    Gauss-Newton-Bartlett estimator of Sophia (arXiv 2305.14342, algorithm 2).

    The draw is the inverse CDF: one pass for sums of blocks, one block read again. Row i of the flattened
    rows takes the uniform number of (seed, row_offset + i), from Philox4x32-10, so a batch drawn in parts
    gives the same labels. The same logits give the same labels on every backend and instruction set, whatever
    the threads: the arithmetic of the draw is float32 with each operation rounded once, sums are of integers.
    A token of probability 0 is never drawn, nor one less likely than 2^-31 times the likeliest of its 2048
    neighbours. float64 logits are rounded to float32 for the draw.

    Args:
        logits: [N, V] or [B, T, V]; float32, bfloat16, float16 or float64.
        seed: integer in [0, 2^64).
        row_offset: number of the first row, an integer in [0, 2^62).
        temperature: > 0. Both the draw and logp belong to softmax(logits / temperature).
        mask: [N] or [B, T], zero (or False) where nothing is to be drawn, as at padding.
        ignore_index: the token of a row that is masked.

    Returns:
        GNBSample(tokens int64, logp): logp float32 (float64 for float64 logits), differentiable once in
        logits, 0 where masked. A row of NaN, +inf or nothing but -inf gives ignore_index and NaN.

    Raises:
        TypeError, ValueError, RuntimeError: as `linear_logprob`.
    """
    kind = _arrays.kind_of(logits)
    logits = _logits(logits)
    draw = _draw(mask, logits.shape[:-1], logits.device, seed, row_offset, temperature, ignore_index)
    logp, tokens, _ = torch.ops.tenfold.gnb_sample(logits, *draw)
    return GNBSample(kind(tokens), kind(logp.to(_math_dtype(logits))))


def linear_gnb_sample(
    hidden: Any,
    weight: Any,
    bias: Any = None,
    *,
    seed: int,
    row_offset: int = 0,
    temperature: float = 1.0,
    mask: Any = None,
    ignore_index: int = -100,
    softcap: float | None = None,
) -> GNBSample:
    """`gnb_sample` of hidden weight^T + bias, no more than a chunk of logits kept.

    Masked rows are dropped before the product. Given equal logits the labels are those of `gnb_sample`. The
    logits themselves are matrix products, which differ in the last bits between machines, and once in a long
    while a label with them.

    Args:
        hidden, weight, bias, softcap: as `linear_logprob`; the cap comes before the temperature.
        seed, row_offset, temperature, mask, ignore_index: as `gnb_sample`; mask [N].

    Returns:
        GNBSample(tokens int64 [N], logp [N]), logp differentiable once in hidden, weight and bias.

    Raises:
        TypeError, ValueError, RuntimeError: as `linear_logprob`.
    """
    kind = _arrays.kind_of(hidden)
    hidden, weight, bias = _operands(hidden, weight, bias, 2)
    _vocabulary("weight", weight.shape[0])
    draw = _draw(mask, hidden.shape[:1], hidden.device, seed, row_offset, temperature, ignore_index)
    softcap = None if softcap is None else _checks.real("softcap", softcap, positive=True)
    logp, tokens, _ = torch.ops.tenfold.linear_gnb_sample(hidden, weight, bias, *draw, softcap)
    return GNBSample(kind(tokens), kind(logp.to(_math_dtype(hidden, weight, bias))))


# ---- checks ----------------------------------------------------------------------------------------------


def _math_dtype(*tensors: Tensor | None) -> torch.dtype:
    from tenfold.kernels.logprob.logprob_reference import math_dtype

    return math_dtype(*tensors)


def _vocabulary(name: str, size: int) -> None:
    if size < 1:
        _checks.fail(ValueError, name, "a vocabulary of at least one token", size)


def _logits(logits: Any) -> Tensor:
    logits = _checks.tensor("logits", _arrays.as_tensor("logits", logits))
    if logits.ndim not in (2, 3):
        _checks.fail(ValueError, "logits", "shape [N, V] or [B, T, V]", tuple(logits.shape))
    _vocabulary("logits", logits.shape[-1])
    return logits


def _ignore(ignore_index: Any) -> int:
    return _checks.integer("ignore_index", ignore_index, -(2**63), 2**63 - 1)


def _options(softcap: Any, ignore_index: Any, want: Any) -> tuple[float | None, int, tuple[str, ...]]:
    if softcap is not None:
        softcap = _checks.real("softcap", softcap, positive=True)
    names = _checks.sequence("want", want, "names")
    wanted = tuple(_checks.choice(f"want[{i}]", name, WANT) for i, name in enumerate(names))
    return softcap, _ignore(ignore_index), wanted


def _stats(wanted: tuple[str, ...]) -> bool:
    return any(name not in ("logp", "lse") for name in wanted)


def _named(found: Sequence[Tensor], wanted: tuple[str, ...], dtype: torch.dtype, kind: Any) -> LogProbs:
    values = dict(zip(WANT, found, strict=True))
    out = {
        name: kind(value if name == "argmax" else value.to(dtype))
        for name, value in values.items()
        if name in wanted or name == "logp"
    }
    return LogProbs(**out)


def _draw(
    mask: Any,
    shape: Sequence[int],
    device: torch.device,
    seed: Any,
    row_offset: Any,
    temperature: Any,
    ignore_index: Any,
) -> tuple[Tensor | None, int, int, float, int]:
    if mask is not None:
        mask = _checks.tensor(
            "mask",
            _arrays.as_tensor("mask", mask),
            (torch.bool, torch.int64, torch.int32, torch.uint8, torch.float32),
        )
        _expect_shape("mask", mask, shape, "one entry per row")
        _expect_device("mask", mask, device)
    seed = _checks.seed("seed", seed)
    seed = seed - 2**64 if seed >= 2**63 else seed  # schemas carry signed integers
    row_offset = _checks.integer("row_offset", row_offset, 0, 2**62)
    temperature = _checks.real("temperature", temperature, positive=True)
    return mask, seed, row_offset, temperature, _ignore(ignore_index)
