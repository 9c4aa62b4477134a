"""k-means clustering."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from tenfold import _checks
from tenfold._backend import OPS

from ._shards import features
from .distance import DISTANCE_BACKENDS, _centers, kernels, require_finite

OPS |= {"kmeans": DISTANCE_BACKENDS}

_LIBRARY = torch.library.Library("tenfold", "FRAGMENT")
_LIBRARY.define(
    "kmeans(Tensor[] x, Tensor? centers, int clusters, int iterations, float tol, int seed) -> "
    "(Tensor centers, Tensor labels, Tensor inertia, Tensor counts, Tensor updates, Tensor moved)"
)


class KMeans(NamedTuple):
    """What `kmeans` finds in N rows.

    centers: float32 [K, d].

    labels: int32 [N], the nearest centre of each row.

    inertia: the sum of squared distances to it.

    counts: int64 [K], the rows of each cluster.

    iterations: how many times the centres were updated.

    moved: how many times an empty cluster was moved to the row farthest from its centre.
    """

    centers: Any
    labels: Any
    inertia: float
    counts: Any
    iterations: int
    moved: int


def kmeans(
    x: Any,
    num_clusters: int,
    *,
    iterations: int = 25,
    init: Any = "k-means++",
    tol: float = 0.0,
    seed: int = 0,
    check: bool = True,
) -> KMeans:
    """Lloyd's k-means with exact assignments: the same result on every backend but for the last digits.

    Args:
        x: features [N, d], float32, bfloat16, float16 or float64 (the last through the reference), or a list
            of such shards. Memory-mapped arrays are read in blocks, once per iteration.
        num_clusters: K, 1 to N.
        iterations: updates of the centres at most; it ends earlier when no label changes.
        init: "k-means++" (Arthur and Vassilvitskii, SODA 2007; by `seed`) or centres [K, d].
        tol: also ends when the squared movement of all centres together is at most tol times the mean
            variance of a feature.
        seed: of "k-means++".
        check: whether values that are not finite are looked for. Without it they give an undefined result.

    Returns:
        KMeans; its labels, inertia and counts belong to its centres. Centres are means made in float64, and
        float64 for float64 `x`. A cluster that loses all rows moves to the row that is farthest from its
        centre, if there is one that is not on its centre.

    Raises:
        TypeError, ValueError: wrong kinds or shapes, K > N, a row that is not finite, a squared distance
            beyond the range of its type.
    """
    data = features("x", x)
    clusters = _checks.integer("num_clusters", num_clusters, 1, data.rows)
    iterations = _checks.integer("iterations", iterations, 0, 2**31 - 1)
    tol = _checks.real("tol", tol, at_least=0)
    seed = _checks.seed("seed", seed)
    centers = None
    if isinstance(init, str):
        _checks.choice("init", init, ("k-means++",))
    else:
        centers = _centers("init", init, data)
        if len(centers) != clusters:
            _checks.fail(ValueError, "init", f"{clusters} centres, one for each cluster", len(centers))
    if check:
        require_finite("x", data.shards)
        if centers is not None:
            require_finite("init", [centers])
    signed = seed - 2**64 if seed >= 2**63 else seed
    found = torch.ops.tenfold.kmeans(data.shards, centers, clusters, iterations, tol, signed)
    new, labels, inertia, counts, updates, moved = found
    return KMeans(
        data.kind(new), data.kind(labels), float(inertia), data.kind(counts), int(updates), int(moved)
    )


def _kmeans(
    x: list[Tensor], centers: Tensor | None, clusters: int, iterations: int, tol: float, seed: int
) -> tuple[Tensor, ...]:
    from tenfold.kernels.distance.kmeans import lloyd, plusplus
    from tenfold.kernels.distance.shards import take

    module = kernels("kmeans", x[0].device)
    if centers is None:
        rows = plusplus(module, x, clusters, seed % 2**64)
        centers = take(x, rows)
        centers = centers if centers.dtype == torch.float64 else centers.float()
    found = lloyd(module, x, centers.clone(), iterations, tol)
    inertia = found.distances.double().sum()
    facts = (torch.tensor(number, dtype=torch.int64) for number in (found.updates, found.moved))
    return found.centers, found.labels, inertia, found.counts, *facts


def _kmeans_fake(x: list[Tensor], centers: Tensor | None, clusters: int, *_: Any) -> tuple[Tensor, ...]:
    rows, width = sum(s.shape[0] for s in x), x[0].shape[1]
    dtype = torch.float64 if x[0].dtype == torch.float64 else torch.float32
    return (
        x[0].new_empty((clusters, width), dtype=dtype),
        x[0].new_empty(rows, dtype=torch.int32),
        x[0].new_empty((), dtype=torch.float64),
        x[0].new_empty(clusters, dtype=torch.int64),
        torch.empty((), dtype=torch.int64),
        torch.empty((), dtype=torch.int64),
    )


for _device in ("CPU", "CUDA"):
    _LIBRARY.impl("kmeans", _kmeans, _device)
torch.library.register_fake("tenfold::kmeans", _kmeans_fake, lib=_LIBRARY)
