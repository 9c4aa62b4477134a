"""Unlearning losses that see a whole distribution, from hidden states without logits; sums per sequence.

`linear_kl`, `linear_undial` and `linear_ceu` give one loss per row, so that any weighting stays with the
caller; `segment_nll` adds log-probabilities up per sequence.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tenfold import _arrays, _checks

from .logprob import _expect_device, _expect_shape, _integers, _operands
from .logprob_rows import _ignore, _math_dtype, _vocabulary


def linear_kl(
    hidden: Any,
    weight: Any,
    ref_hidden: Any,
    ref_weight: Any,
    *,
    bias: Any = None,
    ref_bias: Any = None,
    mask: Any = None,
    direction: str = "forward",
) -> Any:
    """KL divergence between a model and its reference at each row, logits of neither kept.

    "forward" is KL(reference || current) = sum_v q_v (log q_v - log p_v), the retain term of unlearning with
    a KL penalty (TOFU, arXiv 2401.06121); "reverse" is KL(current || reference). Two chunked products
    forward, two and up to two more backward.

    Args:
        hidden: [N, D] hidden states of the current model, after the last norm. Dtypes as `linear_logprob`.
        weight: [V, D]. bias: [V] or None.
        ref_hidden: [N, E]. ref_weight: [V, E]. ref_bias: [V] or None: the reference, which gets no gradient.
        mask: [N], zero (or False) for a row to leave out; None for all rows.
        direction: "forward" or "reverse".

    Returns:
        [N] float32 (float64 if any operand is float64), 0 for rows left out; differentiable once in hidden,
        weight and bias.

    Raises:
        TypeError, ValueError, RuntimeError: as `linear_logprob`.
    """
    kind = _arrays.kind_of(hidden)
    head = _operands(hidden, weight, bias, 2)
    reference = _reference(head, ref_hidden, ref_weight, ref_bias)
    _checks.choice("direction", direction, ("forward", "reverse"))
    targets = torch.zeros(head[0].shape[:1], dtype=torch.int64, device=head[0].device)
    if mask is not None:
        dtypes = (torch.bool, torch.int64, torch.int32, torch.uint8, torch.float32)
        mask = _checks.tensor("mask", _arrays.as_tensor("mask", mask), dtypes)
        _expect_shape("mask", mask, head[0].shape[:1], "[N] of hidden")
        _expect_device("mask", mask, head[0].device)
        targets = torch.where(mask != 0, 0, -1)
    loss, _, _ = torch.ops.tenfold.linear_divergence(
        *head, *reference, targets, 0.0, direction, -1, "linear_kl"
    )
    return kind(loss.to(_math_dtype(*head, *reference)))


def linear_undial(
    hidden: Any,
    weight: Any,
    ref_hidden: Any,
    ref_weight: Any,
    targets: Any,
    *,
    bias: Any = None,
    ref_bias: Any = None,
    beta: float = 10.0,
    ignore_index: int = -100,
) -> Any:
    """Cross-entropy with softmax(reference logits - beta onehot(target)): UNDIAL (arXiv 2402.10052).

    Args:
        hidden, weight, bias, ref_hidden, ref_weight, ref_bias: as `linear_kl`.
        targets: [N] int64 in [0, V), or ignore_index.
        beta: how much the reference's logit of the target is lowered; finite.
        ignore_index: the target of a row to leave out.

    Returns:
        [N], as `linear_kl`.

    Raises:
        IndexError: a target outside [0, V) that is not ignore_index.
        TypeError, ValueError, RuntimeError: as `linear_logprob`.
    """
    kind = _arrays.kind_of(hidden)
    head = _operands(hidden, weight, bias, 2)
    reference = _reference(head, ref_hidden, ref_weight, ref_bias)
    targets = _integers("targets", targets, head[0].shape[:1], "[N] of hidden", head[0].device)
    beta, ignore_index = _checks.real("beta", beta), _ignore(ignore_index)
    loss, _, _ = torch.ops.tenfold.linear_divergence(
        *head, *reference, targets, beta, "cross_entropy", ignore_index, "linear_undial"
    )
    return kind(loss.to(_math_dtype(*head, *reference)))


def linear_ceu(hidden: Any, weight: Any, targets: Any, bias: Any = None, *, ignore_index: int = -100) -> Any:
    """Cross-entropy with the model's own distribution without the target, held constant: CE-U.

    The loss is -sum_v q_v log p_v with q = softmax(logits, target at -inf); its gradient p - q is bounded
    whatever p(target), which that of gradient ascent is not (arXiv 2503.01224).

    Args:
        hidden, weight, bias, targets, ignore_index: as `linear_logprob`; V >= 2.

    Returns:
        [N] float32 (float64 for float64 input), 0 for rows left out; differentiable once in hidden, weight
        and bias, q held constant.

    Raises:
        IndexError, TypeError, ValueError, RuntimeError: as `linear_logprob`.
    """
    kind = _arrays.kind_of(hidden)
    head = _operands(hidden, weight, bias, 2)
    if head[1].shape[0] < 2:
        _checks.fail(ValueError, "weight", "a vocabulary of at least two tokens", head[1].shape[0])
    targets = _integers("targets", targets, head[0].shape[:1], "[N] of hidden", head[0].device)
    loss, _, _ = torch.ops.tenfold.linear_ceu(*head, targets, _ignore(ignore_index))
    return kind(loss.to(_math_dtype(*head)))


def segment_nll(logp: Any, segments: Any, num_segments: int) -> tuple[Any, Any]:
    """Negative log-likelihood and token count of each sequence: nll[b] = -sum of logp over its rows.

    Sums are float64 and rounded once. In bfloat16 they would be useless: its neighbours of 5000 lie 32 apart.

    Args:
        logp: [N] log-probabilities, float32, bfloat16, float16 or float64.
        segments: [N] int64, the sequence of each row in [0, num_segments), or -1 for a row to skip.
        num_segments: B, an integer >= 0.

    Returns:
        (nll [B], count int64 [B]): nll float32 (float64 for float64 logp), 0 for a sequence without rows;
        differentiable in logp.

    Raises:
        IndexError: a segment outside [-1, num_segments).
        TypeError, ValueError: an argument of the wrong kind, dtype or shape.
    """
    kind = _arrays.kind_of(logp)
    logp = _checks.tensor("logp", _arrays.as_tensor("logp", logp))
    if logp.ndim != 1:
        _checks.fail(ValueError, "logp", "shape [N]", tuple(logp.shape))
    segments = _integers("segments", segments, logp.shape, "[N] of logp", logp.device)
    num_segments = _checks.integer("num_segments", num_segments, 0, 2**31)
    nll, count = torch.ops.tenfold.segment_nll(logp, segments, num_segments)
    return kind(nll.to(_math_dtype(logp))), kind(count)


def _reference(
    head: tuple[Tensor, Tensor, Tensor | None], ref_hidden: Any, ref_weight: Any, ref_bias: Any
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The reference's operands: as many rows and tokens as the model's, on its device, without gradient."""
    hidden, weight, _ = head
    _vocabulary("weight", weight.shape[0])
    rows = _checks.tensor("ref_hidden", _arrays.as_tensor("ref_hidden", ref_hidden))
    matrix = _checks.tensor("ref_weight", _arrays.as_tensor("ref_weight", ref_weight))
    if rows.ndim != 2 or rows.shape[0] != hidden.shape[0]:
        expected = f"shape [N, E] with N = {hidden.shape[0]} as hidden"
        _checks.fail(ValueError, "ref_hidden", expected, tuple(rows.shape))
    _expect_shape("ref_weight", matrix, (weight.shape[0], rows.shape[1]), "[V of weight, E of ref_hidden]")
    for name, value in (("ref_hidden", rows), ("ref_weight", matrix)):
        _expect_device(name, value, hidden.device)
    if ref_bias is not None:
        ref_bias = _checks.tensor("ref_bias", _arrays.as_tensor("ref_bias", ref_bias)).detach()
        _expect_shape("ref_bias", ref_bias, weight.shape[:1], "[V] of weight")
        _expect_device("ref_bias", ref_bias, hidden.device)
    return rows.detach(), matrix.detach(), ref_bias
