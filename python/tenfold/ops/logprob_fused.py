"""Losses from hidden states whose gradient is computed on the way: one matrix product of four saved."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from tenfold import _arrays, _checks

from . import _rows_fused as _registered
from .logprob import _expect_device, _expect_shape, _integers, _operands
from .logprob_rows import _ignore, _math_dtype, _vocabulary


class LinearLoss(NamedTuple):
    """loss: a scalar, differentiable. logp: [N], the log-probabilities it was made of, without gradient."""

    loss: Any
    logp: Any


def linear_loss(
    hidden: Any,
    weight: Any,
    targets: Any,
    bias: Any = None,
    *,
    weights: Any = None,
    segments: Any = None,
    num_segments: int = 0,
    kind: str = "weights",
    ref_nll: Any = None,
    factor: float = 1.0,
    beta: float = 1.0,
    delta: float = 0.0,
    softcap: float | None = None,
    ignore_index: int = -100,
) -> LinearLoss:
    """sum_n weights[n] log p(targets[n]) + factor sum_b f(sequence b), with its gradient in the same pass.

    Where `linear_logprob` learns what a token weighs only in the backward pass and multiplies hidden states
    and unembedding once more, here the logits of a chunk become their gradient at once: 6 N V D operations
    for loss and gradient instead of 8, as Liger-Kernel does for cross-entropy (arXiv 2410.10989). It suits
    losses that are a sum over tokens or over sequences: gradient ascent, GradDiff, fine-tuning on refusals,
    NPO, SimNPO, WGA, SatImp, with the retain term in the same call. A loss that ties sequences together (DPO,
    NPO on batch means) goes through `linear_logprob`.

    Memory beside the gradients themselves: a chunk of logits, 64 MiB on the CPU, or one whole sequence of up
    to 100 MiB where `kind` is "npo" or "simnpo". Longer sequences cost the fourth product.

    Args:
        hidden, weight, bias, softcap, ignore_index: as `linear_logprob`.
        targets: [N] int64 in [0, V), or ignore_index.
        weights: [N] floating point, no gradient; what log p of a row counts. Rows that belong to a sequence
            (below) do not read theirs. None: 0.
        segments: [N] int64, the sequence of each row in [0, num_segments), or -1 for a row that counts by its
            weight; ascending over the rows that are not ignored. None: all -1.
        num_segments: B. A sequence without rows counts with nll 0, as it does in a mean over sequences.
        kind: f. "weights": there are no sequences. With s_b = -sum log p and n_b rows,
            "npo": -(2/beta) log sigma(beta (s_b - ref_nll[b])) (arXiv 2404.05868);
            "simnpo": -(2/beta) log sigma(beta (s_b / n_b - delta)) (arXiv 2410.07163);
            "power": sum of p^beta (1 - p)^delta log p over the rows of b, the powers held constant: WGA
            (arXiv 2502.19301) with delta 0, SatImp (arXiv 2505.11953).
        ref_nll: [B] for "npo": s_b of the model before unlearning.
        factor: of the second sum, 1 / B for a mean over sequences.
        beta, delta: of f. beta > 0 for "npo" and "simnpo", both >= 0 for "power".

    Returns:
        LinearLoss(loss [], logp [N]): float32 (float64 for float64 input). The gradient of loss can be taken
        once. Without gradients (`torch.no_grad()`, or no operand asks for one) it costs the first product
        alone.

    Raises:
        IndexError: a target or segment out of range.
        TypeError, ValueError, RuntimeError: as `linear_logprob`; segments that are not ascending; an argument
            that `kind` does not read or lacks.
    """
    like = _arrays.kind_of(hidden)
    hidden, weight, bias = _operands(hidden, weight, bias, 2)
    _vocabulary("weight", weight.shape[0])
    rows, device = hidden.shape[:1], hidden.device
    targets = _integers("targets", targets, rows, "[N] of hidden", device)
    if weights is not None:
        weights = _floats("weights", weights, rows, "[N] of hidden", device)
    num_segments = _checks.integer("num_segments", num_segments, 0, 2**31)
    if segments is not None:
        segments = _integers("segments", segments, rows, "[N] of hidden", device)
    beta, delta, ref_nll = _of_kind(kind, segments, num_segments, ref_nll, beta, delta, device)
    softcap = None if softcap is None else _checks.real("softcap", softcap, positive=True)
    loss, logp, *_ = torch.ops.tenfold.linear_loss(
        hidden, weight, bias, targets, weights, segments, ref_nll, num_segments, kind,
        _checks.real("factor", factor), beta, delta, softcap, _ignore(ignore_index),
        _registered.wanted(hidden, weight, bias),
    )  # fmt: skip
    dtype = _math_dtype(hidden, weight, bias)
    return LinearLoss(like(loss.to(dtype)), like(logp.to(dtype)))


def _floats(name: str, value: Any, shape: Any, what: str, device: torch.device) -> Tensor:
    value = _checks.tensor(name, _arrays.as_tensor(name, value))
    _expect_shape(name, value, shape, what)
    _expect_device(name, value, device)
    return value.detach()


def _of_kind(
    kind: str, segments: Any, count: int, ref_nll: Any, beta: Any, delta: Any, device: torch.device
) -> tuple[float, float, Tensor | None]:
    """What `kind` reads, checked."""
    _checks.choice("kind", kind, _registered.KINDS)
    beta, delta = _checks.real("beta", beta), _checks.real("delta", delta)
    if (kind == "weights") != (segments is None and count == 0):
        expected = "none for kind='weights'" if kind == "weights" else f"[N] int64 for kind={kind!r}"
        got = f"num_segments={count} and {'none' if segments is None else 'segments'}"
        _checks.fail(ValueError, "segments", expected, got)
    if kind in ("npo", "simnpo") and beta <= 0:
        _checks.fail(ValueError, "beta", f"a number > 0 for kind={kind!r}", beta)
    if kind == "power" and min(beta, delta) < 0:
        _checks.fail(
            ValueError, "beta" if beta < 0 else "delta", "a number >= 0 for kind='power'", (beta, delta)
        )
    if (ref_nll is not None) != (kind == "npo"):
        expected = "[B] for kind='npo'" if kind == "npo" else f"none for kind={kind!r}"
        _checks.fail(ValueError, "ref_nll", expected, "none" if ref_nll is None else "a tensor")
    if ref_nll is not None:
        ref_nll = _floats("ref_nll", ref_nll, (count,), "[num_segments]", device)
    return beta, delta, ref_nll
