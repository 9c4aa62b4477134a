"""The few rows that weights are learned on, and the trusted part of them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from tenfold import _checks
from tenfold.ops import class_median_distance, moderate_select
from tenfold.selection.reweight.corrupt import checked_labels

__all__ = [
    "Split",
    "coreset_size",
    "meta_count",
    "moderate_coreset",
    "purity",
    "random_coreset",
    "split_meta",
]


def coreset_size(ratio: float, count: int) -> int:
    """floor(ratio * count + 0.5), at least one."""
    ratio = _checks.real("ratio", ratio, positive=True)
    if ratio > 1:
        _checks.fail(ValueError, "ratio", "a share in (0, 1]", ratio)
    return max(1, int(np.floor(ratio * count + 0.5)))


def moderate_coreset(
    features: ArrayLike, labels: ArrayLike, budget: int, num_classes: int, *, rounding: str = "exact"
) -> NDArray[np.int64]:
    """Rows whose distance to their class's median feature is neither small nor large, class by class.

    Moderate coreset (Xia et al., ICLR 2023) as CW-ERM takes it: the same number of each class, floor(budget /
    num_classes) or all that a class has; with a budget below the number of classes, of all rows at once.

    Args:
        features: [N, d]. labels: [N], the labels that are known (noisy ones, where labels are noisy).
        rounding: "exact", or "reference" for the counts of the published code.

    Returns:
        int64 row numbers, ascending.
    """
    y = checked_labels("labels", labels, num_classes)
    x = np.ascontiguousarray(np.asarray(features, dtype=np.float32))
    if x.ndim != 2 or len(x) != len(y):
        _checks.fail(ValueError, "features", f"[{len(y)}, d], one row a label", x.shape)
    _checks.integer("budget", budget, 1, len(y))
    _, distances = class_median_distance(torch.from_numpy(x), torch.from_numpy(y), num_classes)
    by_class = torch.from_numpy(y) if budget >= num_classes else None
    chosen = moderate_select(distances, by_class, budget, rounding=rounding)
    return np.sort(np.asarray(chosen, dtype=np.int64))


def random_coreset(count: int, budget: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """`budget` of `count` rows, uniformly, ascending."""
    _checks.integer("budget", budget, 1, count)
    return np.sort(rng.permutation(count)[:budget]).astype(np.int64)


@dataclass(frozen=True)
class Split:
    """Positions within the rows given: `train` is what the classifier sees, `meta` what V is judged by."""

    train: NDArray[np.int64]
    meta: NDArray[np.int64]
    disjoint: bool = field(default=True)

    def __post_init__(self) -> None:
        if not len(self.train) or not len(self.meta):
            _checks.fail(ValueError, "split", "rows in both parts", f"{len(self.train)} and {len(self.meta)}")
        both = np.intersect1d(self.train, self.meta)
        if self.disjoint and len(both):
            _checks.fail(ValueError, "meta", "rows that are not trained on", f"row {both[0]} in both")


def meta_count(count: int) -> int:
    """How many of `count` rows are meta rows in the published code: 2 %, at least 100 or half of the rows."""
    return max(int(0.02 * count), max(min(100, int(0.5 * count)), 1))


def split_meta(
    labels: ArrayLike, num_classes: int, rng: np.random.Generator, *, count: int | None = None,
    compat: str = "",
) -> Split:  # fmt: skip
    """Part rows into meta rows and the rest, each class in proportion (largest remainder).

    Args:
        labels: [n] of the rows to part.
        count: meta rows; None: :func:`meta_count`.
        compat: "reference": every row is in both parts. The published code means to part them, but edits
            attributes of a `Subset` that indexing does not look at.
    """
    _checks.choice("compat", compat, ("", "reference"))
    y = checked_labels("labels", labels, num_classes)
    if compat == "reference":
        every = np.arange(len(y), dtype=np.int64)
        return Split(every, every, disjoint=False)
    if len(y) < 2:
        _checks.fail(ValueError, "labels", "at least two rows to part", len(y))
    wanted = min(meta_count(len(y)), len(y) - 1) if count is None else count
    _checks.integer("count", wanted, 1, len(y) - 1)
    sizes = np.bincount(y, minlength=num_classes)
    ideal = sizes * (wanted / len(y))
    take = np.floor(ideal).astype(np.int64)
    order = np.argsort(-(ideal - take), kind="stable")
    for c in order[: wanted - int(take.sum())]:
        take[c] += 1
    meta = [rng.permutation(np.flatnonzero(y == c))[: take[c]] for c in range(num_classes)]
    chosen = np.sort(np.concatenate(meta)).astype(np.int64)
    return Split(np.setdiff1d(np.arange(len(y)), chosen).astype(np.int64), chosen)


def purity(labels: ArrayLike, true_labels: ArrayLike, rows: ArrayLike | None = None) -> float:
    """Share of labels that are right, of all rows or of some."""
    right = np.asarray(labels) == np.asarray(true_labels)
    return float((right if rows is None else right[np.asarray(rows)]).mean())
