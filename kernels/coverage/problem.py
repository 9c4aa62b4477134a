"""What a coverage problem is, for every backend: similarities, what is wanted, and the random samples."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

KINDS = ("sqeuclidean", "euclidean", "cosine01", "cosine2", "rbf", "inner")
OPTIMIZERS = ("lazy", "naive", "stochastic", "lazier")
DISTANCES = ("sqeuclidean", "euclidean")
COSINES = ("cosine01", "cosine2")
BATCH = 32
"""Stale candidates that lazy greedy brings up to date at a time."""

Sparse = tuple[Tensor, Tensor, Tensor]
"""indptr int64 [N + 1], indices int64 and values [nnz]: for every candidate the rows it covers, ascending."""


@dataclass(frozen=True)
class Similarity:
    """How well candidate j covers row i: exactly one of three.

    points: [N, d], candidates and rows alike, with `kind` and `gamma` (rbf), and `bound`, the largest
    distance, squared for "sqeuclidean" (None: to be found).

    dense: [N, M], a row per candidate. sparse: a candidate's list of rows and values; absent ones are 0.
    """

    points: Tensor | None = None
    kind: str = "inner"
    gamma: float = 0.0
    bound: float | None = None
    dense: Tensor | None = None
    sparse: Sparse | None = None
    rows: int = 0

    @property
    def _given(self) -> Tensor:
        if self.points is not None:
            return self.points
        if self.dense is not None:
            return self.dense
        assert self.sparse is not None
        return self.sparse[2]

    @property
    def candidates(self) -> int:
        return self._given.shape[0] if self.sparse is None else self.sparse[0].shape[0] - 1

    @property
    def device(self) -> torch.device:
        return self._given.device

    @property
    def dtype(self) -> torch.dtype:
        return self._given.dtype


@dataclass(frozen=True)
class Wanted:
    """`k` picks at most, in all no dearer than `budget`; `words` are the random bits of stochastic samples,
    int64 [k, sample]; `weights` of the rows [M] and `costs` of the candidates [N] are float64 or None."""

    k: int
    optimizer: str = "lazy"
    words: Tensor | None = None
    initial: tuple[int, ...] = ()
    weights: Tensor | None = None
    costs: Tensor | None = None
    budget: float = math.inf


@dataclass(frozen=True)
class Cover:
    """int64 [picks], float64 [picks], float64 scale and total: f = total; owner int64 [M], the position of
    the covering one among (*initial, *picks)."""

    indices: Tensor
    gains: Tensor
    owner: Tensor
    objective: float


def scale_of(kind: str) -> float:
    """A kind is scale * max(0, value - floor): what a unit of `value` is worth."""
    return 0.5 if kind == "cosine01" else 1.0


def sample_size(candidates: int, k: int, epsilon: float) -> int:
    """ceil(N / k ln(1 / epsilon)): with as many, f is 1 - 1/e - epsilon of the best in expectation."""
    return max(1, min(candidates, math.ceil(candidates / max(k, 1) * math.log(1.0 / epsilon))))


class Pool:
    """Unselected candidates, from which a step draws without replacement (the front of a shuffle)."""

    def __init__(self, members: list[int]) -> None:
        self.members = members

    def draw(self, words: list[int]) -> list[int]:
        m = self.members
        count = min(len(words), len(m))
        for i in range(count):
            other = i + (words[i] * (len(m) - i) >> 32)
            m[i], m[other] = m[other], m[i]
        return m[:count]

    def remove(self, which: int) -> None:
        at = self.members.index(which)
        self.members[at] = self.members[-1]
        self.members.pop()


def tolist(words: Any) -> list[list[int]]:
    return [] if words is None else words.tolist()
