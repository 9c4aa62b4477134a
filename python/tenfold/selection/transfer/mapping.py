"""Which source classes a target needs: label mapping, feature mapping, and their class-wise variants.

Label mapping (LM): each target image votes for the class that a surrogate, trained on the source, predicts.
Feature mapping (FM): it votes for the class whose mean feature is nearest; without source labels, classes are
clusters of features. Votes are counted and classes without them pruned (arXiv 2310.08782).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tenfold import _checks
from tenfold.selection.transfer.rankings import ClassRanking

__all__ = [
    "class_distance_mapping", "class_means", "coreset_means", "default_clusters", "feature_mapping",
    "label_mapping", "pseudo_class_mapping",
]  # fmt: skip


def label_mapping(
    target: Any, source_labels: Any, source_classes: int, *, target_labels: Any = None,
    target_classes: int | None = None,
) -> ClassRanking:  # fmt: skip
    """LM: source classes by the number of target images that are predicted to be of them.

    Args:
        target: logits [n, Cs] of the surrogate on the target's training images, or predictions int64 [n].
        source_labels: int64 [N].
        source_classes: Cs, any number.
        target_labels, target_classes: only to say which target class chose what; votes do not use them.

    Raises:
        ValueError: a row of logits that is not finite, or a label out of range.
    """
    from tenfold.ops import class_vote

    labels = _labels("source_labels", source_labels, source_classes)
    votes, matrix = class_vote(
        _tensor(target), source_classes,
        target_labels=None if target_labels is None else _tensor(target_labels),
        num_target_classes=None if target_labels is None else target_classes,
    )  # fmt: skip
    return ClassRanking("lm", labels, _scores(votes, labels, source_classes), votes, matrix)


def class_means(blocks: Iterable[tuple[Tensor, Tensor]], classes: int) -> tuple[Tensor, Tensor]:
    """(means float32 [C, d], counts int64 [C]) over (features [b, d], labels [b]) blocks, summed in float64.

    One pass and O(C d) memory. The mean of a class without samples is NaN.
    """
    sums: Tensor | None = None
    counts = torch.zeros(classes, dtype=torch.int64)
    for x, y in blocks:
        if len(x) != len(y):
            _checks.fail(ValueError, "labels", f"{len(x)}, one for each feature", len(y))
        if sums is None:
            sums = torch.zeros(classes, x.shape[1], dtype=torch.float64)
        sums.index_add_(0, y, x.to(torch.float64))
        counts += torch.bincount(y, minlength=classes)
    if sums is None:
        _checks.fail(ValueError, "features", "at least one row", "none")
    return (sums / counts[:, None]).float(), counts


def feature_mapping(
    target: Any, means: Tensor, source_labels: Any, *, method: str = "fm", target_labels: Any = None,
    target_classes: int | None = None,
) -> ClassRanking:  # fmt: skip
    """FM: source classes by the number of target images that are nearest to their mean feature.

    Args:
        target: features [n, d].
        means: [Cs, d], NaN for a class without samples (`class_means`, `coreset_means`); no vote goes there.
        source_labels: int64 [N].
        target_labels, target_classes: as in :func:`label_mapping`.
    """
    from tenfold.ops import class_vote, nn_assign

    labels = _labels("source_labels", source_labels, len(means))
    there = torch.isfinite(means).all(1).nonzero()[:, 0]
    if not len(there):
        _checks.fail(ValueError, "means", "a class with samples", "none")
    nearest = nn_assign(_tensor(target), means[there])[0][:, 0]
    votes, matrix = class_vote(
        there[nearest.long()], len(means),
        target_labels=None if target_labels is None else _tensor(target_labels),
        num_target_classes=None if target_labels is None else target_classes,
    )  # fmt: skip
    return ClassRanking(method, labels, _scores(votes, labels, len(means)), votes, matrix)


def default_clusters(count: int) -> int:
    """Pseudo-classes for `count` source samples: min(2000, count / 50), at least 1."""
    return max(1, min(2000, count // 50))


def pseudo_class_mapping(
    source: Tensor, target: Tensor, clusters: int | None = None, *, iterations: int = 25, seed: int = 0,
    method: str = "fm-kmeans", target_labels: Any = None, target_classes: int | None = None,
) -> ClassRanking:  # fmt: skip
    """FM without source labels: k-means clusters of the source's features are its classes.

    Args:
        source, target: features [N, d] and [n, d] of a surrogate that needed no labels.
        clusters: None for `default_clusters(N)`.
        iterations, seed: of k-means.
    """
    from tenfold.ops import kmeans, nn_assign

    clusters = default_clusters(len(source)) if clusters is None else clusters
    _checks.integer("clusters", clusters, 1, len(source))
    found = kmeans(source, clusters, iterations=iterations, seed=seed)
    assigned, squared = nn_assign(source, found.centers)
    ranking = feature_mapping(
        target, found.centers, assigned[:, 0].long(), method=method, target_labels=target_labels,
        target_classes=target_classes,
    )  # fmt: skip
    return ClassRanking(
        method, ranking.labels, ranking.scores, ranking.votes, ranking.matrix, squared[:, 0].sqrt()
    )


def coreset_means(features: Tensor, labels: Tensor, classes: int, ratio: float = 0.8) -> Tensor:
    """Means of each class over its samples of middling distance to the class median, float32 [C, d].

    `ratio` of each class is left out on both sides: the central floor((1 - ratio) n + 1/2), at least one, is
    averaged (the published variants ffmm and cmt, coreset_ratio 0.8).
    """
    from tenfold.ops import class_median_distance

    if not 0 <= _checks.real("ratio", ratio, at_least=0.0) < 1:
        _checks.fail(ValueError, "ratio", "a share in [0, 1)", ratio)
    labels = _labels("labels", labels, classes)
    _, distances = class_median_distance(features, labels, classes)
    order = np.lexsort((distances.numpy(), labels.numpy()))
    middle, start = [], 0
    for count in np.bincount(labels.numpy(), minlength=classes):
        q = min(count, max(1, int(np.floor((1 - ratio) * count + 0.5))))
        low = start + (count - q) // 2
        middle.append(order[low : low + q])
        start += count
    rows = torch.from_numpy(np.concatenate(middle))
    return class_means([(features[rows], labels[rows])], classes)[0]


def class_distance_mapping(
    means: Tensor, target: Tensor, target_labels: Any, target_classes: int, source_labels: Any, *,
    centre: str = "coreset", ratio: float = 0.8,
) -> ClassRanking:  # fmt: skip
    """Source classes by their mean distance to all target classes, near ones first (cmt, cmt_median).

    Args:
        means: of the source's classes [Cs, d], NaN for a class without samples.
        target, target_labels: features [n, d] and classes [n] of the target.
        centre: of a target class: "coreset" (cmt: mean of its samples of middling distance) or "median"
            (cmt_median: component by component).
        ratio: of the coreset, as in :func:`coreset_means`.
    """
    from tenfold.ops import class_median_distance

    _checks.choice("centre", centre, ("coreset", "median"))
    y = _labels("target_labels", target_labels, target_classes)
    labels = _labels("source_labels", source_labels, len(means))
    if centre == "coreset":
        centres = coreset_means(target, y, target_classes, ratio)
    else:
        centres = class_median_distance(target, y, target_classes)[0]
    centres = centres[torch.isfinite(centres).all(1)].double()
    distance = torch.cdist(means.double(), centres, compute_mode="donot_use_mm_for_euclid_dist").mean(1)
    scores = np.where(np.isfinite(distance.numpy()), -distance.numpy(), -np.inf)
    method = "cmt" if centre == "coreset" else "cmt-median"
    return ClassRanking(method, labels, scores)


def _tensor(value: Any) -> Tensor:
    return value if isinstance(value, Tensor) else torch.as_tensor(np.asarray(value))


def _labels(name: str, value: Any, classes: int) -> Tensor:
    labels = _tensor(value).long()
    if labels.ndim != 1:
        _checks.fail(ValueError, name, "one class per sample", f"shape {tuple(labels.shape)}")
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        wrong = int(labels.min()) if int(labels.min()) < 0 else int(labels.max())
        _checks.fail(ValueError, name, f"classes 0 to {classes - 1}", wrong)
    return labels


def _scores(votes: Tensor, labels: Tensor, classes: int) -> NDArray[np.float64]:
    """Votes; a class that has no samples cannot be kept, whatever its votes."""
    empty = torch.bincount(labels, minlength=classes) == 0
    return np.where(empty.numpy(), -np.inf, votes.numpy().astype(np.float64))
