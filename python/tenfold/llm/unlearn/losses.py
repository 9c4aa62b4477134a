"""Unlearning losses from hidden states and the unembedding: no [tokens, vocabulary] tensor of more than a
chunk is ever held.

    rows = labelled(hidden, labels)              the positions that predict a labelled token, [N, D]
    tokens = score(rows, head)                   log-probabilities of their labels, [N]
    loss = npo(tokens, ref_nll) + gamma * nll(score(labelled(retain_hidden, retain_labels), head))

Every loss that reads log-probabilities of labels alone is a weight on them, so one op
(:func:`tenfold.ops.linear_logprob`) serves them all; KL, UNDIAL, CE-U and the margin of PDU have their own.
The
same losses as functions of logits are in :mod:`tenfold.llm.unlearn.logit_losses`.

Notation: s_b = -sum_t log p(y_t) over the labelled tokens of sequence b, n_b their count. Sequences without a
labelled token count as s_b = 0; a batch without any has loss 0 and gradient 0, where the loss is a mean over
tokens.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tenfold import ops

__all__ = [
    "IGNORE", "Head", "Rows", "Tokens", "activation", "ceu", "control_vector", "dpo", "dual_step", "ga", "kl",
    "l1", "labelled", "logits", "margin", "nll", "npo", "ramp", "satimp", "score", "sequence_nll", "simnpo",
    "skip_first", "topk_kl", "topk_undial", "undial", "wga",
]  # fmt: skip

IGNORE = -100
"""Label of a position that is not predicted."""

KEPT_LOGITS = 64 << 20
"""Bytes of logits that a loss may keep for its backward pass: one chunk of :mod:`tenfold.ops`."""


class Head(NamedTuple):
    """The unembedding: weight [V, D], bias [V] or None, and the soft cap of the logits (Gemma) or None."""

    weight: Tensor
    bias: Tensor | None = None
    softcap: float | None = None


class Rows(NamedTuple):
    """Positions of a batch that predict a labelled token.

    hidden: [N, D].  targets: int64 [N].  sequence: int64 [N], the row of the batch.  count: rows of the
    batch.
    """

    hidden: Tensor
    targets: Tensor
    sequence: Tensor
    sequences: int


class Tokens(NamedTuple):
    """Log-probabilities [N] of labelled tokens, the sequence of each (int64 [N]), and how many sequences."""

    logp: Tensor
    sequence: Tensor
    sequences: int


def labelled(hidden: Tensor, labels: Tensor) -> Rows:
    """Positions of ``hidden`` [B, T, D] whose next token has a label, with the usual shift by one.

    Args:
        labels: int64 [B, T]; -100 where a token is not predicted. The first label of a sequence has nothing
            before it and is not predicted.

    Raises:
        ValueError: the shapes do not agree.
    """
    if hidden.dim() != 3 or labels.shape != hidden.shape[:2]:
        raise ValueError(
            f"labels: expected shape {tuple(hidden.shape[:2])} of hidden [B, T, D], got {tuple(labels.shape)}"
        )
    following = labels[:, 1:]
    where = following != IGNORE
    sequence = torch.arange(len(labels), device=labels.device)[:, None].expand_as(where)
    return Rows(hidden[:, :-1][where], following[where], sequence[where], len(labels))


def logits(hidden: Tensor, head: Head) -> Tensor:
    """All logits [..., V] of hidden states, for what has no form without them."""
    out = F.linear(hidden, head.weight, head.bias)
    return out if head.softcap is None else head.softcap * torch.tanh(out / head.softcap)


def skip_first(labels: Tensor, count: int) -> Tensor:
    """Labels [B, T] with the first ``count`` labelled tokens of every sequence set to -100."""
    has = labels != IGNORE
    return labels.masked_fill(has & (has.cumsum(1) <= count), IGNORE)


def score(rows: Rows, head: Head) -> Tokens:
    """Log-probabilities of the labels, differentiable in hidden states and unembedding.

    Where float32 logits of all rows fit in :data:`KEPT_LOGITS` bytes and gradients are wanted, they are kept
    for the backward pass; else it computes them again, a chunk at a time. The numbers are the same.
    """
    if _keeps_logits(rows.hidden, head):
        logits = F.linear(rows.hidden, head.weight, head.bias)
        found = ops.logits_logprob(logits, rows.targets, softcap=head.softcap)
    else:
        found = ops.linear_logprob(rows.hidden, head.weight, rows.targets, head.bias, softcap=head.softcap)
    return Tokens(found.logp, rows.sequence, rows.sequences)


def _keeps_logits(hidden: Tensor, head: Head) -> bool:
    size = hidden.shape[0] * head.weight.shape[0] * 4
    plain = hidden.dtype == head.weight.dtype == torch.float32
    return torch.is_grad_enabled() and plain and hidden.device.type == "cpu" and 0 < size <= KEPT_LOGITS


def sequence_nll(tokens: Tokens) -> tuple[Tensor, Tensor]:
    """``(s, n)``: summed negative log-likelihood [B] and number of labelled tokens [B] of each sequence."""
    return ops.segment_nll(tokens.logp, tokens.sequence, tokens.sequences)


# -- losses of log-probabilities -----------------------------------------------------------------------------


def nll(tokens: Tokens) -> Tensor:
    """Mean over labelled tokens of the negative log-likelihood: the retain term, FT, PO and random labels."""
    return -_mean(tokens.logp)


def ga(tokens: Tokens) -> Tensor:
    """Gradient ascent: -sum s / sum n. With ``gamma * nll(retain)`` it is GradDiff (arXiv 2401.06121)."""
    return _mean(tokens.logp)


def npo(tokens: Tokens, ref_nll: Tensor, *, beta: float = 0.1, per: str = "sequence") -> Tensor:
    """Negative preference optimization, -(2/beta) mean_b log sigma(beta (s_b - sref_b)) (arXiv 2404.05868).

    Args:
        ref_nll: s_b [B] of the model before unlearning; with ``per="batch"`` its mean over tokens.
        per: ``"sequence"`` as the paper; ``"batch"`` compares means over all tokens of the batch, as SOUL's
            code does (equal to the paper's up to that normalisation only).
    """
    if per == "batch":
        return -2 / beta * F.logsigmoid(beta * (nll(tokens) - ref_nll)).mean()
    if per != "sequence":
        raise ValueError(f"per: expected 'sequence' or 'batch', got {per!r}")
    nll_now, _ = sequence_nll(tokens)
    return -2 / beta * F.logsigmoid(beta * (nll_now - _like(ref_nll, nll_now))).mean()


def dpo(lose: Tokens, win: Tokens, ref_lose: Tensor, ref_win: Tensor, *, beta: float = 0.1) -> Tensor:
    """Direct preference for a refusal over the answer (IdkDPO, arXiv 2401.06121).

    -(2/beta) mean_b log sigma(beta ((s_l - sref_l) - (s_w - sref_w))): ``lose`` are the answers to forget,
    ``win`` the refusals to the same questions; ``ref_*`` their s [B] before unlearning.
    """
    s_lose, s_win = sequence_nll(lose)[0], sequence_nll(win)[0]
    difference = (s_lose - _like(ref_lose, s_lose)) - (s_win - _like(ref_win, s_win))
    return -2 / beta * F.logsigmoid(beta * difference).mean()


def simnpo(tokens: Tokens, *, beta: float = 4.5, delta: float = 0.0) -> Tensor:
    """NPO without a reference, by length: -(2/beta) mean log sigma(beta (s_b/n_b - delta)) (arXiv
    2410.07163)."""
    total, count = sequence_nll(tokens)
    return -2 / beta * F.logsigmoid(beta * (total / count.clamp_min(1) - delta)).mean()


def wga(tokens: Tokens, *, beta: float = 1.0) -> Tensor:
    """Weighted ascent, -mean_t p_t^beta nll_t with the weights held constant (arXiv 2502.19301)."""
    return satimp(tokens, beta1=beta, beta2=0.0)


def satimp(tokens: Tokens, *, beta1: float = 5.0, beta2: float = 1.0) -> Tensor:
    """Saturation and importance weights: -mean_t p^beta1 (1 - p)^beta2 nll_t, held constant (2505.11953)."""
    p = tokens.logp.detach().exp()
    return _mean(p**beta1 * (1 - p) ** beta2 * tokens.logp)


# -- losses of whole distributions ---------------------------------------------------------------------------


def kl(rows: Rows, head: Head, ref_hidden: Tensor, ref_head: Head, *, direction: str = "forward") -> Tensor:
    """Mean over labelled rows of KL(ref to current), or of its reverse; the reference has no gradient.

    Args:
        ref_hidden: hidden states [N, D'] of the reference at the same rows.
        direction: ``"forward"`` is sum p_ref (log p_ref - log p), ``"reverse"`` the other way round.
    """
    _no_softcap("kl", head, ref_head)
    each = ops.linear_kl(
        rows.hidden, head.weight, ref_hidden, ref_head.weight, bias=head.bias, ref_bias=ref_head.bias,
        direction=direction,
    )  # fmt: skip
    return _mean(each)


def undial(rows: Rows, head: Head, ref_hidden: Tensor, ref_head: Head, *, beta: float = 10.0) -> Tensor:
    """Cross-entropy against softmax(zref - beta onehot(y)), mean over labelled rows (arXiv 2402.10052)."""
    _no_softcap("undial", head, ref_head)
    each = ops.linear_undial(
        rows.hidden, head.weight, ref_hidden, ref_head.weight, rows.targets, bias=head.bias,
        ref_bias=ref_head.bias, beta=beta,
    )  # fmt: skip
    return _mean(each)


def topk_kl(rows: Rows, head: Head, reference: ops.TopK) -> Tensor:
    """:func:`kl` from a reference of which K tokens per row are kept, mean over labelled rows.

    With r the reference's mass outside them, a row's value is smaller than the full divergence by r times the
    divergence of the renormalised rests, and the absolute errors of its gradient by the logits add up to 2 r
    at most: see :func:`tenfold.ops.linear_topk_kl`.
    """
    each = ops.linear_topk_kl(rows.hidden, head.weight, reference, head.bias, softcap=head.softcap)
    return _mean(each)


def topk_undial(rows: Rows, head: Head, reference: ops.TopK, *, beta: float = 10.0) -> Tensor:
    """:func:`undial` from K tokens per row, the label among them; mean over labelled rows.

    Lowering the label's logit turns probabilities q into q e^(-beta) at the label, over 1 - q(label) (1 -
    e^-beta). The mass outside the K tokens becomes r' = r / (1 - q(label) (1 - e^-beta)); the value lacks r'
    times the cross-entropy of the renormalised rests, the gradient is off by 2 r' at most as in
    :func:`topk_kl`.

    Raises:
        ValueError: a label that is not among the tokens of its row.
    """
    own = reference.tokens == rows.targets[:, None]
    if not bool(own.any(1).all()):
        missing = int(rows.targets[~own.any(1)][0])
        raise ValueError(f"reference: expected the label of each row among its tokens, got none of {missing}")
    q = reference.logp.double()
    lowered = torch.where(own, q - beta, q)
    rest = reference.log_rest.double()
    total = torch.cat((lowered, rest[:, None]), 1).logsumexp(1)
    target = ops.TopK(reference.tokens, lowered - total[:, None], rest - total)
    outcomes = torch.cat((target.logp, target.log_rest[:, None]), 1)
    entropy = torch.special.entr(outcomes.exp()).sum(1)
    each = ops.linear_topk_kl(rows.hidden, head.weight, target, head.bias, softcap=head.softcap)
    return _mean(each + entropy.to(each.dtype))


def ceu(rows: Rows, head: Head) -> Tensor:
    """Cross-entropy against the model's own distribution with the label taken out, held constant
    (2503.01224).

    The paper leaves out the first answer token: make ``rows`` from ``skip_first(labels, 1)``.
    """
    _no_softcap("ceu", head)
    return _mean(ops.linear_ceu(rows.hidden, head.weight, rows.targets, head.bias))


def margin(rows: Rows, head: Head) -> Tensor:
    """Mean over labelled rows of (largest logit - mean logit)^2: PDU's forget loss (arXiv 2506.05314).

    The largest logit is found by the log-probability op; its value and the mean are dot products.
    """
    _no_softcap("margin", head)
    with torch.no_grad():
        best = ops.linear_logprob(
            rows.hidden, head.weight, rows.targets, head.bias, want=("argmax",)
        ).argmax  # fmt: skip
    wide = torch.promote_types(rows.hidden.dtype, torch.float32)
    hidden = rows.hidden.to(wide)
    largest = (hidden * head.weight[best].to(wide)).sum(1)
    mean = hidden @ head.weight.mean(0, dtype=wide)
    if head.bias is not None:
        largest, mean = largest + head.bias[best].to(wide), mean + head.bias.mean(dtype=wide)
    return _mean((largest - mean).square())


def dual_step(weight: float, retain_loss: float, *, bound: float, step_size: float = 1.0) -> float:
    """PDU's multiplier after a step: max(0, weight + step_size (retain_loss - bound))."""
    return max(0.0, weight + step_size * (retain_loss - bound))


# -- losses of activations and weights -----------------------------------------------------------------------


def control_vector(size: int, *, coefficient: float, seed: int, device: torch.device | None = None) -> Tensor:
    """RMU's target [size]: coefficient c / |c|, c uniform in [0, 1) (arXiv 2403.03218)."""
    generator = torch.Generator().manual_seed(seed)
    c = torch.rand(size, generator=generator)
    return (c * (coefficient / c.norm())).to(device)


def activation(hidden: Tensor, target: Tensor, labels: Tensor) -> Tensor:
    """Mean over sequences of the mean over labelled positions of the mean square distance over features.

    RMU's forget term with a control vector [D] as ``target``, its retain term with the activations [B, T, D]
    of the model before unlearning. Sequences without a label count as 0.

    Args:
        hidden: activations [B, T, D] of one block.
        labels: int64 [B, T], -100 where a position does not count (no shift: activations are of the token
            itself).
    """
    where = labels != IGNORE
    distance = (hidden - target).square().mean(-1).masked_fill(~where, 0.0)
    # both [B]: a count kept as [B, 1] would broadcast to [B, B] and average every pair of sequences
    return (distance.sum(1) / where.sum(1).clamp_min(1)).mean()


def l1(parameters: list[Tensor]) -> Tensor:
    """Sum of absolute values: ``alpha`` times this on top of FT gives l1-sparse unlearning (2304.04934)."""
    return torch.stack([p.abs().sum() for p in parameters]).sum()


def ramp(gamma: float, epoch: float, epochs: int) -> float:
    """Retain weight that grows with the epochs, gamma epoch / epochs (SOUL's ``*_epoch`` methods)."""
    return gamma * min(1.0, epoch / epochs) if epochs else gamma


def _mean(values: Tensor) -> Tensor:
    """Mean of [N], 0 for none; summed in the type of the values, which is float32 at least."""
    return values.sum() / max(1, values.numel())


def _like(reference: Tensor, values: Tensor) -> Tensor:
    if reference.shape != values.shape:
        raise ValueError(f"ref_nll: expected shape {tuple(values.shape)}, got {tuple(reference.shape)}")
    return reference.detach().to(values)


def _no_softcap(name: str, *heads: Head) -> None:
    if any(head.softcap is not None and math.isfinite(head.softcap) for head in heads):
        also = " (topk_kl and topk_undial know it)" if name in ("kl", "undial") else ""
        raise ValueError(f"{name}: expected logits without a soft cap{also}, got softcap={heads[0].softcap}")
