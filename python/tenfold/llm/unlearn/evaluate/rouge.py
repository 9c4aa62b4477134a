"""ROUGE-L (Lin, 2004) as the package rouge-score computes it: ASCII words, Porter's stems, no sentence split.

The longest common subsequence is counted 64 columns and more at a time in one Python integer (Allison and
Dix, 1986; Hyyro, 2004): texts of a few hundred words take microseconds.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from tenfold.llm.unlearn.evaluate.porter import stem

__all__ = ["RougeL", "lcs", "rouge_l", "words"]


class RougeL(NamedTuple):
    """Shares in [0, 1]: of the prediction's words, of the target's words, and their harmonic mean."""

    precision: float
    recall: float
    f1: float


def words(text: str, *, stemmed: bool = True) -> list[str]:
    """Runs of a-z and 0-9 in lower case; those of more than three letters stemmed."""
    found = re.findall("[a-z0-9]+", text.lower())
    return [stem(word) if len(word) > 3 else word for word in found] if stemmed else found


def lcs(first: Sequence[object], second: Sequence[object]) -> int:
    """Length of the longest common subsequence."""
    places: dict[object, int] = {}
    for i, member in enumerate(first):
        places[member] = places.get(member, 0) | 1 << i
    row = whole = (1 << len(first)) - 1  # a bit that is 0: here the length grows by one
    for member in second:
        shared = row & places.get(member, 0)
        row = (row + shared | row - shared) & whole
    return len(first) - row.bit_count()


def rouge_l(target: str, prediction: str, *, stemmed: bool = True) -> RougeL:
    """ROUGE-L of a prediction; zeros where either text has no word."""
    wanted, said = words(target, stemmed=stemmed), words(prediction, stemmed=stemmed)
    if not wanted or not said:
        return RougeL(0.0, 0.0, 0.0)
    common = lcs(wanted, said)
    precision, recall = common / len(said), common / len(wanted)
    return RougeL(precision, recall, 2 * precision * recall / (precision + recall) if common else 0.0)
