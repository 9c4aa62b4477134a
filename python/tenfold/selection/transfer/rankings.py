"""Orders of what is kept first, of classes or of samples, and what they keep at any pruning ratio.

A pruning ratio r of Cs classes keeps max(1, floor(Cs (1 - r) + 1/2)) of them with all of their samples; of N
samples it keeps max(1, floor(N (1 - r) + 1/2)). Ties go to the smaller class or sample number.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tenfold import _checks

__all__ = ["ClassRanking", "ModerateRanking", "Ranking", "SampleRanking", "class_budgets", "kept_count"]


class Ranking(Protocol):
    """Anything that says what to keep."""

    @property
    def method(self) -> str:
        """How it came about."""
        ...

    def keep(self, ratio: float) -> NDArray[np.int64]:
        """Positions of the kept source samples, ascending, after a share `ratio` has been pruned."""
        ...


def kept_count(count: int, ratio: float) -> int:
    """How many of `count` are kept; at least one. ValueError for a ratio outside [0, 1)."""
    ratio = _checks.real("ratio", ratio, at_least=0.0, below=1.0)
    return max(1, int(np.floor(count * (1 - ratio) + 0.5)))


def class_budgets(counts: NDArray[Any], ratio: float) -> NDArray[np.int64]:
    """Kept samples of each class: the same share of each, and `kept_count` of all of them together.

    The nearest lower whole number of each share; what is missing goes to the largest remainders (ties to the
    smaller class).
    """
    total = kept_count(int(counts.sum()), ratio)
    exact = counts * (1 - ratio)
    budgets = np.minimum(np.floor(exact + 1e-9).astype(np.int64), counts)
    order = np.argsort(-(exact - budgets), kind="stable")
    short = total - int(budgets.sum())
    for c in [c for c in order if budgets[c] < counts[c]][: max(short, 0)]:
        budgets[c] += 1
    return budgets


@dataclass(frozen=True, eq=False)
class ClassRanking:
    """Classes by relevance.

    Attributes:
        method: how it came about.
        labels: class (or pseudo-class) of each source sample, int64 [N].
        scores: of each class, float64 [Cs]; the largest is kept first. -inf for a class without samples.
        votes: target samples that chose each class, int64 [Cs], where the method counts.
        matrix: the same by the target's own classes, int64 [Ct, Cs], where these are known.
        distances: of each sample to the centre of its pseudo-class, float32 [N]. If given, the budget is in
            samples: whole classes in order, of the last one the samples nearest to its centre.
    """

    method: str
    labels: Tensor
    scores: NDArray[np.float64]
    votes: Tensor | None = None
    matrix: Tensor | None = None
    distances: Tensor | None = None

    def order(self) -> NDArray[np.int64]:
        """Class numbers, the most relevant first."""
        return np.argsort(-self.scores, kind="stable").astype(np.int64)

    def kept_classes(self, ratio: float) -> NDArray[np.int64]:
        """Class numbers kept, the most relevant first."""
        return self.order()[: kept_count(len(self.scores), ratio)]

    def keep(self, ratio: float) -> NDArray[np.int64]:
        """Positions of the kept source samples."""
        from tenfold.ops import class_mask

        if self.distances is None:
            kept = class_mask(self.labels, torch.from_numpy(self.kept_classes(ratio)), len(self.scores))
            return kept.numpy()
        rank = np.empty(len(self.scores), np.int64)
        rank[self.order()] = np.arange(len(rank))
        by = np.lexsort((self.distances.numpy(), rank[self.labels.numpy()]))
        return np.sort(by[: kept_count(len(self.labels), ratio)]).astype(np.int64)

    def reversed(self) -> ClassRanking:
        """The least relevant first: a control. Classes without samples stay last."""
        scores = np.where(np.isneginf(self.scores), -np.inf, -self.scores)
        return replace(self, method=f"{self.method}-reverse", scores=scores)


@dataclass(frozen=True, eq=False)
class SampleRanking:
    """Samples by a score, float64 [N]: the largest is kept first."""

    method: str
    scores: NDArray[np.float64]

    def keep(self, ratio: float) -> NDArray[np.int64]:
        """Positions of the kept source samples."""
        order = np.argsort(-self.scores, kind="stable")
        return np.sort(order[: kept_count(len(order), ratio)]).astype(np.int64)


@dataclass(frozen=True, eq=False)
class ModerateRanking:
    """In each class the samples of middling distance to its median (Moderate coreset, ICLR 2023).

    Attributes:
        distances: of each sample to the component-wise median of its class, float32 [N].
        labels: int64 [N].
    """

    method: str
    distances: Tensor
    labels: Tensor

    def keep(self, ratio: float) -> NDArray[np.int64]:
        """Positions of the kept source samples: the central window of each class by (distance, index)."""
        labels = self.labels.numpy()
        budgets = class_budgets(np.bincount(labels), ratio)
        order = np.lexsort((self.distances.numpy(), labels))
        starts = np.concatenate([[0], np.cumsum(np.bincount(labels))])
        kept = []
        for c, q in enumerate(budgets):
            low = starts[c] + (starts[c + 1] - starts[c] - q) // 2
            kept.append(order[low : low + q])
        return np.sort(np.concatenate(kept)).astype(np.int64)
