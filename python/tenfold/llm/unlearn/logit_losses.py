"""The losses of :mod:`tenfold.llm.unlearn.losses` as plain functions of logits, for use in other code.

``logits`` are [B, T, V] as a causal model gives them and ``labels`` int64 [B, T] with -100 where a token is
not
predicted; the usual shift by one is made here. All sums are in float32 at least.

    loss = logit_losses.npo(model(**forget).logits, forget_labels, ref_nll) + logit_losses.nll(logits, labels)

``sequence_nll`` gives ``ref_nll``; compute it once, with the model before unlearning, and keep B numbers.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tenfold import ops
from tenfold.llm.unlearn import losses
from tenfold.llm.unlearn.losses import Tokens

__all__ = [
    "ceu", "dpo", "ga", "kl", "margin", "nll", "npo", "satimp", "score", "sequence_nll",
    "simnpo", "soul_kl", "undial", "wga",
]  # fmt: skip


def score(logits: Tensor, labels: Tensor) -> Tokens:
    """Log-probabilities of the labelled tokens."""
    rows = losses.labelled(logits, labels)
    return Tokens(ops.logits_logprob(rows.hidden, rows.targets).logp, rows.sequence, rows.sequences)


def sequence_nll(logits: Tensor, labels: Tensor) -> Tensor:
    """s [B]: summed negative log-likelihood of each sequence."""
    return losses.sequence_nll(score(logits, labels))[0]


def nll(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean negative log-likelihood over labelled tokens."""
    return losses.nll(score(logits, labels))


def ga(logits: Tensor, labels: Tensor) -> Tensor:
    """See :func:`losses.ga`."""
    return losses.ga(score(logits, labels))


def npo(
    logits: Tensor, labels: Tensor, ref_nll: Tensor, *, beta: float = 0.1, per: str = "sequence"
) -> Tensor:
    """See :func:`losses.npo`."""
    return losses.npo(score(logits, labels), ref_nll, beta=beta, per=per)


def dpo(
    lose_logits: Tensor, lose_labels: Tensor, win_logits: Tensor, win_labels: Tensor, ref_lose: Tensor,
    ref_win: Tensor, *, beta: float = 0.1,
) -> Tensor:  # fmt: skip
    """See :func:`losses.dpo`."""
    return losses.dpo(
        score(lose_logits, lose_labels), score(win_logits, win_labels), ref_lose, ref_win, beta=beta
    )


def simnpo(logits: Tensor, labels: Tensor, *, beta: float = 4.5, delta: float = 0.0) -> Tensor:
    """See :func:`losses.simnpo`."""
    return losses.simnpo(score(logits, labels), beta=beta, delta=delta)


def wga(logits: Tensor, labels: Tensor, *, beta: float = 1.0) -> Tensor:
    """See :func:`losses.wga`."""
    return losses.wga(score(logits, labels), beta=beta)


def satimp(logits: Tensor, labels: Tensor, *, beta1: float = 5.0, beta2: float = 1.0) -> Tensor:
    """See :func:`losses.satimp`."""
    return losses.satimp(score(logits, labels), beta1=beta1, beta2=beta2)


def kl(
    logits: Tensor, ref_logits: Tensor, labels: Tensor, *, direction: str = "forward", rows: str = "labelled"
) -> Tensor:
    """See :func:`losses.kl`.

    Args:
        rows: ``"labelled"``: mean over the rows that predict a labelled token. ``"all"``: mean over all B T
            rows, prompts and padding included, without shift: what open-unlearning computes, for comparison
            with numbers made that way.
    """
    if rows == "all":
        now, before = (z.flatten(0, 1) for z in (logits, ref_logits))
    elif rows == "labelled":
        now, before = (losses.labelled(z, labels).hidden for z in (logits, ref_logits))
    else:
        raise ValueError(f"rows: expected 'labelled' or 'all', got {rows!r}")
    log_p, log_ref = _log_softmax(now), _log_softmax(before.detach())
    if direction == "reverse":
        log_p, log_ref = log_ref, log_p
    elif direction != "forward":
        raise ValueError(f"direction: expected 'forward' or 'reverse', got {direction!r}")
    each = _expected(log_ref.exp(), log_ref - log_p)
    return each.sum() / max(1, each.numel())


def soul_kl(logits: Tensor, ref_logits: Tensor) -> Tensor:
    """What SOUL's code calls KL: -sum p log(p_ref + 1e-12), mean over all B T rows, for legacy runs only.

    It is a cross-entropy, not a divergence: its gradient does not vanish where the models are equal.
    """
    p, ref = _log_softmax(logits).exp(), _log_softmax(ref_logits.detach()).exp()
    return -(p * (ref + 1e-12).log()).sum(-1).mean()


def undial(logits: Tensor, ref_logits: Tensor, labels: Tensor, *, beta: float = 10.0) -> Tensor:
    """See :func:`losses.undial`."""
    rows, ref = losses.labelled(logits, labels), losses.labelled(ref_logits.detach(), labels)
    lowered = ref.hidden.to(_wide(ref.hidden)) - beta * F.one_hot(rows.targets, logits.shape[-1])
    return _cross_entropy(rows.hidden, lowered.softmax(-1))


def ceu(logits: Tensor, labels: Tensor, *, skip: int = 1) -> Tensor:
    """See :func:`losses.ceu`; the first ``skip`` labelled tokens of each sequence are left out."""
    rows = losses.labelled(logits, losses.skip_first(labels, skip))
    without = rows.hidden.detach().to(_wide(rows.hidden)).scatter(1, rows.targets[:, None], float("-inf"))
    return _cross_entropy(rows.hidden, without.softmax(-1))


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """See :func:`losses.margin`."""
    rows = losses.labelled(logits, labels).hidden
    wide = rows.to(_wide(rows))
    each = (wide.amax(-1) - wide.mean(-1)).square()
    return each.sum() / max(1, each.numel())


def _wide(values: Tensor) -> torch.dtype:
    return torch.promote_types(values.dtype, torch.float32)


def _expected(p: Tensor, values: Tensor) -> Tensor:
    """sum_v p values, where tokens of probability 0 count as 0: their value may be infinite."""
    return (p * values.masked_fill(p == 0, 0.0)).sum(-1)


def _log_softmax(logits: Tensor) -> Tensor:
    return logits.to(_wide(logits)).log_softmax(-1)


def _cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    each = -_expected(target, _log_softmax(logits))
    return each.sum() / max(1, each.numel())
