"""Label noise and class imbalance, as the literature on reweighting makes them.

Every function draws from the generator that it is given and leaves the labels that it was given alone.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tenfold import _checks

__all__ = ["CIFAR10_PAIRS", "class_counts", "long_tail", "noisy_labels"]

NOISE = ("symmetric", "flip", "flip2", "asymmetric")
CIFAR10_PAIRS = {9: 1, 2: 0, 4: 7, 3: 5, 5: 3}
"""Classes of CIFAR-10 that look alike: truck to automobile, bird to airplane, deer to horse, cat and dog."""


def noisy_labels(
    labels: ArrayLike,
    kind: str,
    rate: float,
    num_classes: int,
    rng: np.random.Generator,
    pairs: Mapping[int, int] | None = None,
) -> NDArray[np.int64]:
    """Labels of which about `rate` have been drawn anew.

    Args:
        labels: [N] in 0..num_classes-1.
        kind: "symmetric": a class drawn from all, the right one among them, so that rate (C-1)/C of the
            labels are wrong (Meta-Weight-Net, arXiv 1902.07379). "flip": one other class, the same for all
            samples of a class. "flip2": one of two such classes. "asymmetric": by `pairs`; classes without a
            partner keep their labels.
        rate: in [0, 1).
        pairs: class -> class; None: every class goes to the next one.

    Returns:
        int64 [N].
    """
    _checks.choice("kind", kind, NOISE)
    rate = _checks.real("rate", rate, at_least=0.0, below=1.0)
    y = checked_labels("labels", labels, num_classes)
    drawn = rng.random(len(y)) < rate
    if kind == "symmetric":
        other = rng.integers(0, num_classes, len(y))
    elif kind == "asymmetric":
        table = dict(pairs) if pairs is not None else {c: (c + 1) % num_classes for c in range(num_classes)}
        other = np.array([table.get(c, c) for c in range(num_classes)], np.int64)[y]
    else:
        count = 1 if kind == "flip" else 2
        if num_classes <= count:
            _checks.fail(ValueError, "num_classes", f"more than {count} for {kind}", num_classes)
        others = np.stack(
            [rng.permutation([c for c in range(num_classes) if c != k])[:count] for k in range(num_classes)]
        )
        other = others[y, rng.integers(0, count, len(y))]
    return np.where(drawn, other, y).astype(np.int64)


def class_counts(most: int, factor: float, num_classes: int) -> NDArray[np.int64]:
    """Samples of each class of a long tail: most * factor^(-c / (C - 1)), so `factor` times fewer at the end.

    This is the split of CIFAR that Meta-Weight-Net and its relatives use; int, as there, cuts towards zero,
    and no class is left without a sample.
    """
    _checks.integer("most", most, 1, 2**62)
    factor = _checks.real("factor", factor, at_least=1.0)
    steps = np.arange(num_classes) / max(num_classes - 1, 1)
    return np.maximum((most * factor**-steps).astype(np.int64), 1)


def long_tail(
    labels: ArrayLike, factor: float, num_classes: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Rows of a long-tailed subset, ascending: class 0 keeps its samples, the last one 1/factor of them.

    Args:
        labels: [N].
        factor: largest class over smallest, >= 1.

    Returns:
        int64 row numbers. A class that has fewer than its share keeps what it has.
    """
    y = checked_labels("labels", labels, num_classes)
    present = np.bincount(y, minlength=num_classes)
    counts = np.minimum(class_counts(int(present.max(initial=1)), factor, num_classes), present)
    kept = [rng.permutation(np.flatnonzero(y == c))[: counts[c]] for c in range(num_classes)]
    return np.sort(np.concatenate(kept)).astype(np.int64)


def checked_labels(name: str, labels: ArrayLike, num_classes: int) -> NDArray[np.int64]:
    """int64 [N], each in 0..num_classes-1."""
    _checks.integer("num_classes", num_classes, 1, 2**31 - 1)
    y = np.asarray(labels)
    if y.ndim != 1:
        _checks.fail(ValueError, name, "one label a sample, [N]", f"shape {y.shape}")
    if y.size and y.dtype.kind not in "iu":
        _checks.fail(TypeError, name, "whole numbers", y.dtype)
    y = y.astype(np.int64)
    bad = np.flatnonzero((y < 0) | (y >= num_classes))
    if len(bad):
        _checks.fail(ValueError, name, f"classes in 0..{num_classes - 1}", f"{y[bad[0]]} at row {bad[0]}")
    return y
