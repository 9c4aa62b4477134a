"""Whether a mapping can be trusted: does the surrogate know what it is looking at when it sees the target?

Label mapping can fail without a sign of it: images that look like nothing in the source still get a class.
What gives it away is the surrogate's confidence beside its confidence on source images it was not trained on,
votes that pile up in few classes, and a disagreement of label mapping with feature mapping.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from tenfold import _checks
from tenfold.selection.transfer.rankings import ClassRanking

__all__ = ["Health", "mapping_health", "rank_agreement"]

LOW_CONFIDENCE = 0.7
"""Warn where the target's mean largest probability is below this share of the held-out source's."""
PILED_UP = 0.5
"""Warn where one class has more of the votes, if the target has more than two classes."""
TOO_FEW = 0.5
"""Warn where the votes spread over fewer classes (by entropy) than this share of the target's classes."""
DISAGREEMENT = 0.4
"""Warn where the rank correlation of LM's and FM's votes is below this."""


@dataclass
class Health:
    """Figures of one mapping.

    Attributes:
        confidence, confidence_held_out: mean of the largest softmax probability, of the target and of source
            images that the surrogate has not seen.
        energy, energy_held_out: mean of -logsumexp of the logits (arXiv 2010.03759); lower is more familiar.
        unfamiliar: share of target images with an energy above 95 % of the held-out source's.
        classes_used: source classes with at least one vote.
        effective_classes: exp of the entropy of the votes: over how many classes they spread.
        top_share: share of the votes in the most voted tenth of the classes (at least one class).
        largest_share: share of the votes in the most voted class.
        consistency: of each target class the share of its most frequent source class, averaged; NaN without
            target labels.
        agreement: Spearman's correlation of LM's and FM's votes, NaN if one is missing.
        overlap: share of the classes that LM keeps at half pruning which FM keeps too, NaN likewise.
        warnings: what to look at, in words.
    """

    confidence: float
    confidence_held_out: float
    energy: float
    energy_held_out: float
    unfamiliar: float
    classes_used: int
    effective_classes: float
    top_share: float
    largest_share: float
    consistency: float
    agreement: float
    overlap: float
    warnings: list[str] = field(default_factory=list)


def mapping_health(
    target: Tensor, held_out: Tensor, lm: ClassRanking, fm: ClassRanking | None = None
) -> Health:
    """Figures and warnings of a label mapping.

    Args:
        target: logits of the surrogate on the target's images, [n, Cs].
        held_out: on source images it was not trained on, [m, Cs].
        lm, fm: the mappings, over the same source classes.
    """
    if not len(target) or not len(held_out):
        _checks.fail(ValueError, "target and held_out", "at least one row", (len(target), len(held_out)))
    assert lm.votes is not None
    p, q = target.double().softmax(1).amax(1), held_out.double().softmax(1).amax(1)
    e, f = -target.double().logsumexp(1), -held_out.double().logsumexp(1)
    votes = np.sort(lm.votes.numpy())[::-1].astype(float)
    shares = votes / max(votes.sum(), 1.0)
    consistency = float("nan")
    if lm.matrix is not None:
        rows = lm.matrix[lm.matrix.sum(1) > 0].double()
        consistency = float((rows.amax(1) / rows.sum(1)).mean())
    agreement = overlap = float("nan")
    if fm is not None and fm.votes is not None and len(fm.votes) == len(lm.votes):
        agreement = rank_agreement(lm.votes, fm.votes)
        mine, other = set(lm.kept_classes(0.5).tolist()), set(fm.kept_classes(0.5).tolist())
        overlap = len(mine & other) / len(mine)
    made = Health(
        float(p.mean()), float(q.mean()), float(e.mean()), float(f.mean()),
        float((e > torch.quantile(f, 0.95)).double().mean()), int((lm.votes > 0).sum()),
        float(np.exp(-(shares[shares > 0] * np.log(shares[shares > 0])).sum())),
        float(shares[: max(1, len(shares) // 10)].sum()), float(shares[0]), consistency, agreement, overlap,
    )  # fmt: skip
    made.warnings = _warnings(made, 0 if lm.matrix is None else len(lm.matrix))
    return made


def rank_agreement(a: Tensor, b: Tensor) -> float:
    """Spearman's rank correlation with mean ranks for ties; NaN where one side is constant."""
    x, y = (_ranks(v.numpy()) for v in (a, b))
    if x.std() == 0 or y.std() == 0:
        return float("nan")
    return float(np.corrcoef(x, y)[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts - 1) / 2)[inverse]


def _warnings(h: Health, target_classes: int) -> list[str]:
    found = []
    if h.confidence < LOW_CONFIDENCE * h.confidence_held_out:
        found.append(
            f"the surrogate is unsure of the target: its largest probability is {h.confidence:.2f} on "
            f"average, {h.confidence_held_out:.2f} on source images it has not seen"
        )
    if h.largest_share > PILED_UP and target_classes != 2:
        found.append(f"{100 * h.largest_share:.0f} % of the votes went to one source class")
    if h.effective_classes < TOO_FEW * target_classes:
        found.append(
            f"the votes spread over {h.effective_classes:.1f} source classes, for {target_classes} target "
            "classes"
        )
    if h.agreement < DISAGREEMENT:
        found.append(
            f"label mapping and feature mapping disagree: their votes' correlation is {h.agreement:.2f}"
        )
    return found
