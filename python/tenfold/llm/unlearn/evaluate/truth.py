"""Probability, truth ratio, forget quality and model utility of TOFU (arXiv 2401.06121), from mean NLLs.

``a`` stands for the mean negative log-probability per token of an answer, end-of-text token included.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from tenfold.llm.unlearn.evaluate.statistics import KSResult, harmonic_mean, ks_2samp

__all__ = [
    "choice_probability",
    "forget_quality",
    "model_utility",
    "probability",
    "soul_truth_ratio",
    "truth_ratio",
    "truth_ratio_forget",
    "truth_ratio_margin",
    "truth_ratio_retain",
]

TINY = 1e-10
SOUL_TINY = 1e-12


def probability(a: float) -> float:
    """exp(-a): the answer's probability, brought to a single token's by the geometric mean."""
    return math.exp(-a)


def choice_probability(right: float, wrong: Sequence[float]) -> float:
    """p of the right answer over p of all, from their a: TOFU's probability of real authors and facts."""
    p = probability(right)
    return p / (p + math.fsum(map(probability, wrong)) + TINY)


def truth_ratio(paraphrase: float, wrong: Sequence[float]) -> float:
    """R of one item (TOFU, open-unlearning): geometric mean of the false answers' p over the right p."""
    return probability(_mean(wrong)) / (probability(paraphrase) + TINY)


def soul_truth_ratio(paraphrase: float, wrong: Sequence[float]) -> float:
    """R of one item as SOUL's code has it: the arithmetic mean of the false answers' p."""
    return _mean([probability(a) for a in wrong]) / (probability(paraphrase) + SOUL_TINY)


def truth_ratio_forget(ratios: Sequence[float]) -> float:
    """Mean of min(R, 1/R): largest where true and false answers are equally likely (forget set)."""
    return _mean([min(r, 1 / (r + TINY)) for r in ratios])


def truth_ratio_retain(ratios: Sequence[float]) -> float:
    """Mean of max(0, 1 - R): largest where true answers are likelier (everything else)."""
    return _mean([max(0.0, 1 - r) for r in ratios])


def truth_ratio_margin(paraphrase: Sequence[float], wrong: Sequence[Sequence[float]]) -> float:
    """Mean of p(right) / (p(right) + p(wrong)): the form of open-unlearning's meta-evaluation."""
    pairs = [(probability(a), probability(_mean(w))) for a, w in zip(paraphrase, wrong, strict=True)]
    return _mean([p / (p + q + TINY) for p, q in pairs])


def forget_quality(ratios: Sequence[float], reference: Sequence[float]) -> KSResult:
    """Kolmogorov-Smirnov test of the forget set's truth ratios against those of a model that never saw it.

    A p-value near 1 says that the two cannot be told apart, which a model that talks nonsense may reach, too.
    SOUL's published figure is this test against the *same* model's ratios on the *retain* set.
    """
    return ks_2samp(ratios, reference)


def model_utility(groups: Mapping[str, Mapping[str, float]]) -> tuple[float, int]:
    """Harmonic mean of probability, ROUGE-L recall and truth ratio over the groups, and of how many numbers.

    TOFU has nine: three for each of retain set, real authors and world facts.
    """
    values = [value for group in groups.values() for value in group.values()]
    return harmonic_mean(values), len(values)


def _mean(values: Sequence[float]) -> float:
    if not values:
        raise ValueError("values: expected at least one number, got none")
    return math.fsum(values) / len(values)
