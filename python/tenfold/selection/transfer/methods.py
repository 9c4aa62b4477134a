"""All ways to prune a source, by name, and what each of them looks at."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tenfold import _checks
from tenfold.selection.transfer import mapping
from tenfold.selection.transfer.baselines import prototype_distances
from tenfold.selection.transfer.rankings import ClassRanking, ModerateRanking, Ranking, SampleRanking

__all__ = ["DEFAULT", "METHODS", "Evidence", "Method", "rank"]


class Method(NamedTuple):
    """What a method is called, what it prunes, and what it needs."""

    title: str
    unit: str
    """classes, samples, or all (nothing is pruned)."""
    needs: tuple[str, ...] = ()
    """Fields of Evidence."""


METHODS = {
    "none": Method("whole source", "all"),
    "scratch": Method("target alone (no pretraining)", "all"),
    "lm": Method("label mapping", "classes", ("target_logits",)),
    "fm": Method("feature mapping", "classes", ("features", "target_features")),
    "fm-kmeans": Method("feature mapping, pseudo-classes", "samples", ("unlabelled", "target_unlabelled")),
    "ffmm": Method("feature mapping to coreset means", "classes", ("features", "target_features")),
    "cmt": Method("mean distance to target classes", "classes", ("features", "target_features")),
    "cmt-median": Method("mean distance to target medians", "classes", ("features", "target_features")),
    "random": Method("random classes", "classes"),
    "lm-reverse": Method("label mapping, reversed", "classes", ("target_logits",)),
    "fm-reverse": Method("feature mapping, reversed", "classes", ("features", "target_features")),
    "classes": Method("hand-picked classes", "classes", ("picked",)),
    "moderate": Method("Moderate", "samples", ("features",)),
    "el2n": Method("EL2N, hardest", "samples", ("el2n",)),
    "grand": Method("GraNd, largest", "samples", ("grand",)),
    "margin": Method("margin, hardest", "samples", ("margin",)),
    "ssp-hard": Method("prototypes, hardest", "samples", ("unlabelled",)),
    "ssp-easy": Method("prototypes, easiest", "samples", ("unlabelled",)),
    "file": Method("in-domain scores of a file", "samples", ("file",)),
    "random-samples": Method("random samples", "samples"),
}
"""Name -> method. lm, fm and their variants look at the target; the others are for comparison."""

DEFAULT = (
    "none", "scratch", "lm", "fm", "fm-kmeans", "random", "lm-reverse", "moderate", "el2n", "random-samples",
)  # fmt: skip


@dataclass(eq=False)
class Evidence:
    """What is known of source and target through a surrogate. Fields that no method needs stay None.

    Attributes:
        labels, classes: of the source: int64 [N], Cs.
        features, target_features: of the surrogate, [N, d] and [n, d].
        target_logits: of the surrogate on the target, [n, Cs].
        target_labels, target_classes: of the target, [n], Ct. cmt needs them; votes do not use them.
        unlabelled, target_unlabelled: features that needed no labels, [N, e] and [n, e].
        el2n, grand, margin, file: scores of source samples, float64 [N].
        picked: hand-picked classes in order.
        clusters: pseudo-classes; None for the default.
        coreset_ratio: of ffmm and cmt.
    """

    labels: Tensor
    classes: int
    features: Tensor | None = None
    target_features: Tensor | None = None
    target_logits: Tensor | None = None
    target_labels: Tensor | None = None
    target_classes: int = 0
    unlabelled: Tensor | None = None
    target_unlabelled: Tensor | None = None
    el2n: NDArray[np.float64] | None = None
    grand: NDArray[np.float64] | None = None
    margin: NDArray[np.float64] | None = None
    file: NDArray[np.float64] | None = None
    picked: list[int] = field(default_factory=list)
    clusters: int | None = None
    coreset_ratio: float = 0.8


def rank(method: str, evidence: Evidence, seed: int = 0) -> Ranking:
    """The ranking of a method; `seed` draws random ones and begins k-means.

    Raises:
        ValueError: an unknown method, or evidence that it needs is missing.
    """
    _checks.choice("method", method, [name for name, m in METHODS.items() if m.unit != "all"])
    for name in METHODS[method].needs:
        if getattr(evidence, name) is None or (name == "picked" and not evidence.picked):
            _checks.fail(ValueError, f"evidence for {method}", name, "none")
    e = evidence
    if method == "random":
        scores = np.random.default_rng([seed, 1]).permutation(e.classes).astype(float)
        return ClassRanking(method, e.labels, scores)
    if method == "random-samples":
        scores = np.random.default_rng([seed, 2]).permutation(len(e.labels)).astype(float)
        return SampleRanking(method, scores)
    if method.endswith("-reverse"):
        found = rank(method.removesuffix("-reverse"), e, seed)
        assert isinstance(found, ClassRanking)
        return found.reversed()
    if method == "classes":
        return _picked(e)
    if method in ("lm", "fm", "fm-kmeans", "ffmm", "cmt", "cmt-median"):
        return _mapped(method, e, seed)
    return _samples(method, e, seed)


def _picked(e: Evidence) -> ClassRanking:
    """Hand-picked classes in their order, then the others."""
    scores = np.full(e.classes, -float(e.classes))
    scores[e.picked] = -np.arange(len(e.picked), dtype=float)
    return ClassRanking("classes", e.labels, scores)


def _mapped(method: str, e: Evidence, seed: int) -> ClassRanking:
    known: dict[str, Any] = {}
    if e.target_labels is not None:
        known = {"target_labels": e.target_labels, "target_classes": e.target_classes or None}
    if method == "lm":
        return mapping.label_mapping(e.target_logits, e.labels, e.classes, **known)
    if method == "fm-kmeans":
        assert e.unlabelled is not None
        assert e.target_unlabelled is not None
        return mapping.pseudo_class_mapping(e.unlabelled, e.target_unlabelled, e.clusters, seed=seed, **known)
    assert e.features is not None
    assert e.target_features is not None
    if method in ("fm", "cmt", "cmt-median"):
        means = mapping.class_means([(e.features, e.labels)], e.classes)[0]
    else:
        means = mapping.coreset_means(e.features, e.labels, e.classes, e.coreset_ratio)
    if method in ("fm", "ffmm"):
        return mapping.feature_mapping(e.target_features, means, e.labels, method=method, **known)
    if e.target_labels is None:
        _checks.fail(ValueError, f"evidence for {method}", "target_labels", "none")
    return mapping.class_distance_mapping(
        means, e.target_features, e.target_labels, e.target_classes, e.labels,
        centre="coreset" if method == "cmt" else "median", ratio=e.coreset_ratio,
    )  # fmt: skip


def _samples(method: str, e: Evidence, seed: int) -> Ranking:
    if method == "moderate":
        from tenfold.ops import class_median_distance

        return ModerateRanking(method, class_median_distance(e.features, e.labels, e.classes)[1], e.labels)
    if method in ("ssp-hard", "ssp-easy"):
        assert e.unlabelled is not None
        clusters = e.clusters or mapping.default_clusters(len(e.labels))
        far = prototype_distances(e.unlabelled, clusters, seed=seed)
        return SampleRanking(method, far if method == "ssp-hard" else -far)
    scores = getattr(e, method)
    return SampleRanking(method, -scores if method == "margin" else scores)


def pca(x: Tensor, y: Tensor, components: int) -> tuple[Tensor, Tensor]:
    """(x, y) on the leading principal components of x: [N, components], [n, components]; no labels needed."""
    flat, other = x.flatten(1).double(), y.flatten(1).double()
    mean = flat.mean(0)
    _, vectors = torch.linalg.eigh((flat - mean).T @ (flat - mean))
    axes = vectors.flip(1)[:, :components]
    return ((flat - mean) @ axes).float(), ((other - mean) @ axes).float()
