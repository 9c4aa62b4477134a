"""Membership inference: does the model treat the forget set like texts that it has never seen?

An attack gives each text a score, low for texts that look like training data. ``auc`` is the probability that
a forget text scores below a holdout text: 1 when the forget set is plainly remembered, .5 when nothing tells
them apart, near 0 when it was pushed far below unseen text. The end-of-text token does not count.

Loss: Yeom et al. (arXiv 1709.01604). Min-K%: Shi et al. (arXiv 2310.16789). Min-K%++: Zhang et al. (arXiv
2404.02936). zlib and reference: Carlini et al. (arXiv 2012.07805). PrivLeak: MUSE (arXiv 2407.06460).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tenfold import _checks
from tenfold.llm.unlearn.encoding import IGNORE, Encoded, collate
from tenfold.llm.unlearn.evaluate.scores import TokenScores, head_of, hidden_states
from tenfold.llm.unlearn.evaluate.statistics import auc
from tenfold.ops import linear_logprob

__all__ = ["grad_norms", "membership", "min_k", "min_k_plus_plus", "privleak", "soul_membership"]

VARIANCE_FLOOR = 1e-6
SOUL_SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)


def loss(scores: TokenScores) -> float:
    """Mean NLL."""
    return -float(scores.logp.mean())


def min_k(scores: TokenScores, k: float = 0.4) -> float:
    """Minus the mean log-probability of the share ``k`` of tokens that are least likely (at least one)."""
    return -_lowest(scores.logp, k)


def min_k_plus_plus(scores: TokenScores, k: float = 0.4) -> float:
    """The same of log-probabilities standardised by their mean and variance over the vocabulary.

    Raises:
        ValueError: scores without these moments.
    """
    if len(scores.mean) != len(scores.logp):
        raise ValueError("scores: expected moments=True in token_scores, got scores without moments")
    return -_lowest(standardised(scores), k)


def standardised(scores: TokenScores) -> Tensor:
    """(log p - mean) / standard deviation, the variance floored at 1e-6."""
    return (scores.logp - scores.mean) / scores.variance.clamp_min(VARIANCE_FLOOR).sqrt()


def _lowest(values: Tensor, k: float) -> float:
    _checks.real("k", k, positive=True)
    count = max(1, int(len(values) * k))
    return float(values.sort().values[:count].mean())


def zlib_ratio(scores: TokenScores, text: str) -> float:
    """Mean NLL over the length in bytes of the compressed text."""
    return loss(scores) / len(zlib.compress(text.encode("utf-8")))


def grad_norms(model: Any, rows: Sequence[Encoded], *, pad_id: int, p: float = 2.0) -> list[float]:
    """Norm of the gradient of each row's mean NLL with respect to all weights.

    One row at a time, forward and backward; the gradients that the parameters had are put back.
    """
    parameters = list(model.parameters())
    kept = [(x.grad, x.requires_grad) for x in parameters]
    found = []
    try:
        for x in parameters:
            x.requires_grad_(True)
        for row in rows:
            for x in parameters:
                x.grad = None
            _row_loss(model, row, pad_id).backward()
            norms = [torch.linalg.vector_norm(x.grad, p) for x in parameters if x.grad is not None]
            found.append(float(torch.linalg.vector_norm(torch.stack(norms), p)))
    finally:
        for x, (grad, wanted) in zip(parameters, kept, strict=True):
            x.grad = grad
            x.requires_grad_(wanted)
    return found


def _row_loss(model: Any, row: Encoded, pad_id: int) -> Tensor:
    batch = {name: x.to(next(model.parameters()).device) for name, x in collate([row], pad_id).items()}
    with torch.enable_grad():
        hidden = hidden_states(model, batch["input_ids"], batch["attention_mask"])
        wanted = batch["labels"][:, 1:] != IGNORE
        weight, bias, cap = head_of(model)
        targets = batch["labels"][:, 1:][wanted]
        logp: Tensor = linear_logprob(hidden[:, :-1][wanted], weight, targets, bias, softcap=cap).logp
        return -logp.mean()


def membership(
    forget: Sequence[TokenScores],
    holdout: Sequence[TokenScores],
    *,
    texts: tuple[Sequence[str], Sequence[str]] | None = None,
    reference: tuple[Sequence[TokenScores], Sequence[TokenScores]] | None = None,
    norms: tuple[Sequence[float], Sequence[float]] | None = None,
    k: float = 0.4,
) -> dict[str, float]:
    """AUC of each attack for which there is what it needs.

    Args:
        forget, holdout: scores of both sets.
        texts: answers of both sets, for ``zlib``.
        reference: scores of both sets under another model, for ``reference`` (difference of mean NLLs).
        norms: of :func:`grad_norms` of both sets, for ``gradnorm``.
        k: of Min-K% and Min-K%++.

    Returns:
        ``loss``, ``min_k``; ``min_k_plus_plus`` where the scores have moments; ``zlib``, ``reference``,
        ``gradnorm`` where asked for. 1: the forget set is likelier than the holdout.

    Raises:
        ValueError: an empty set.
    """
    sets = [[row.without_end() for row in rows] for rows in (forget, holdout)]
    use = [[i for i, row in enumerate(rows) if len(row.logp)] for rows in sets]
    for name, chosen in zip(("forget", "holdout"), use, strict=True):
        if not chosen:
            raise ValueError(f"{name}: expected at least one row with tokens, got none")
    attacks: dict[str, Callable[[int, int], float]] = {
        "loss": lambda which, i: loss(sets[which][i]),
        "min_k": lambda which, i: min_k(sets[which][i], k),
    }
    if all(len(sets[which][i].mean) for which in (0, 1) for i in use[which]):
        attacks["min_k_plus_plus"] = lambda which, i: min_k_plus_plus(sets[which][i], k)
    if texts is not None:
        attacks["zlib"] = lambda which, i: zlib_ratio(sets[which][i], texts[which][i])
    if reference is not None:
        attacks["reference"] = lambda which, i: loss(sets[which][i]) - loss(reference[which][i].without_end())
    if norms is not None:
        attacks["gradnorm"] = lambda which, i: norms[which][i]
    return {
        name: auc([score(1, i) for i in use[1]], [score(0, i) for i in use[0]])
        for name, score in attacks.items()
    }


def soul_membership(
    forget: Sequence[TokenScores], others: Sequence[TokenScores], *, shares: Sequence[float] = SOUL_SHARES
) -> dict[str, float]:
    """AUC as SOUL's code reports it: forget labelled 1, scored by *minus* Min-K% log-probability, against
    real authors and world facts.

    That is 1 - the membership AUC above, and its non-members differ from the forget set in style as well as
    in membership. For comparison with its table only.
    """
    found = {}
    for share in shares:
        ours, theirs = ([min_k(row, share) for row in rows] for rows in (forget, others))
        found[f"min_{round(100 * share)}"] = auc(ours, theirs)
    return found


def privleak(value: float, reference: float = 0.5) -> float:
    """PrivLeak in percent: how far (1 - AUC) is from that of a retrained model; 0 is best.

    Args:
        value: AUC of the unlearned model, as of :func:`membership`.
        reference: the retrained model's AUC; .5 where there is none.
    """
    other = 1 - reference
    return ((1 - value) - other) / (other + 1e-10) * 100
