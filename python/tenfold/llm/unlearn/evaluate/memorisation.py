"""How much of a text the model still has by heart, from teacher-forced greedy predictions."""

from __future__ import annotations

from collections.abc import Sequence

from tenfold.llm.unlearn.evaluate.scores import TokenScores

__all__ = ["exact_memorisation", "extraction_strength"]


def extraction_strength(greedy: Sequence[bool], *, floor: bool = False) -> float:
    """1 - k/n, where k is the smallest start from which all n - k tokens are predicted (arXiv 2202.07646).

    Args:
        greedy: for each token, whether it is the model's most likely one.
        floor: open-unlearning's loop ends at k = n - 1 whether or not the last token is predicted, so that a
            text of which nothing can be extracted scores 1/n instead of 0; True gives that figure.
    """
    n = len(greedy)
    if n == 0:
        return 0.0
    k = n
    while k and greedy[k - 1]:
        k -= 1
    return 1 - min(k, n - 1 if floor else n) / n


def exact_memorisation(greedy: Sequence[bool]) -> float:
    """Share of tokens that are the model's most likely ones; 0 for no tokens."""
    return sum(map(bool, greedy)) / len(greedy) if len(greedy) else 0.0


def memorisation(scores: Sequence[TokenScores]) -> list[dict[str, float]]:
    """Both of each row, the end-of-text token left out."""
    flags = [row.without_end().greedy.tolist() for row in scores]
    return [
        {
            "extraction_strength": extraction_strength(row),
            "extraction_strength_floor": extraction_strength(row, floor=True),
            "exact_memorisation": exact_memorisation(row),
        }
        for row in flags
    ]
