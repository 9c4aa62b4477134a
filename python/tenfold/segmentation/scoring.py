"""Numbers of one case: what is computed for a structure, and what holds where a mask is empty.

Every surface metric carries its convention in its name: `dm` is the definition of surface-distance and of the
challenge (areas of surface elements), `edge` that of MONAI and MedPy (edge voxels, unweighted).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tenfold.ops.surface import SurfaceMetrics, surface_metrics
from tenfold.segmentation.crops import Crop, common_box

__all__ = [
    "AREA_METRICS",
    "EDGE_METRICS",
    "OVERLAP_METRICS",
    "empty_scores",
    "measure",
    "measure_crops",
    "overlap",
]

OVERLAP_METRICS = ("dsc", "jaccard", "precision", "recall", "vs", "rvd")
AREA_METRICS = ("nsd_dm", "hd95_dm", "hd_dm", "asd_dm_target", "asd_dm_pred", "assd_dm")
EDGE_METRICS = ("nsd_edge", "hd95_edge_max", "hd95_edge_pooled", "assd_edge")
DISTANCES = (*AREA_METRICS[1:], *EDGE_METRICS[1:])
"""Metrics in mm: smaller is better, and there is none where one mask is empty."""


def overlap(target: int, pred: int, both: int) -> dict[str, float]:
    """Metrics of three voxel counts: |A|, |B| and |A and B|, at least one of A and B not empty."""
    return {
        "dsc": 2 * both / (target + pred),
        "jaccard": both / (target + pred - both),
        "precision": both / pred if pred else 0.0,
        "recall": both / target if target else 0.0,
        "vs": 1 - abs(target - pred) / (target + pred),
        "rvd": (pred - target) / target if target else math.inf,
    }


def empty_scores(
    target: int, pred: int, diagonal: float, empty_distance: str, edge: bool
) -> dict[str, float]:
    """Scores where a mask is empty, as the challenge has them: 1 if both are, else 0.

    Distances are 0 where both are empty; where one is, `empty_distance` says: inf, nan, or diagonal (that of
    the image in mm).
    """
    same = target == pred == 0
    score = 1.0 if same else 0.0
    far = {"inf": math.inf, "nan": math.nan, "diagonal": diagonal}[empty_distance]
    names = (*OVERLAP_METRICS, *AREA_METRICS, *(EDGE_METRICS if edge else ()))
    found = {name: (0.0 if same else far) if name in DISTANCES else score for name in names}
    found["rvd"] = 0.0 if same else math.inf if not target else -1.0
    return found


def measure(
    target: NDArray[Any], pred: NDArray[Any], parts: Sequence[tuple[int, ...]], spacing: Sequence[float],
    tolerances: Sequence[float], *, edge: bool = False, empty_distance: str = "inf",
    diagonal: float | None = None,
) -> list[dict[str, float]]:  # fmt: skip
    """The scores of every structure of two label maps (z, y, x), in one pass.

    Args:
        target, pred: integer volumes of one shape.
        parts: the labels that each structure is the union of.
        spacing: mm, (z, y, x).
        tolerances: mm, one for each structure.
        edge: also the edge-voxel family.
        empty_distance: "inf", "nan" or "diagonal"; see `empty_scores`.
        diagonal: of the image, mm, where the volumes are parts of one.

    Returns a dict for each structure: voxels_target, voxels_pred, voxels_both and the metrics.
    """
    if diagonal is None:
        diagonal = float(np.linalg.norm(np.multiply(target.shape, spacing)))
    limits = [[tolerance] for tolerance in tolerances]
    area = surface_metrics(target, pred, parts, spacing, tolerances=limits)
    surfaces = _area_scores(area)
    if edge:
        found = surface_metrics(
            target, pred, parts, spacing, tolerances=limits, percentiles=(95,), definition="edge"
        )
        surfaces = [mine | more for mine, more in zip(surfaces, _edge_scores(found), strict=True)]
    voxels = [(a, b, both) for a, b, both in area.voxels.tolist()]
    return [
        _joined(counts, surface if counts[0] and counts[1] else None, diagonal, empty_distance, edge)
        for counts, surface in zip(voxels, surfaces, strict=True)
    ]


def _area_scores(found: SurfaceMetrics) -> list[dict[str, float]]:
    hd, asd = found.hausdorff(), found.asd()
    columns = found.nsd()[:, 0], hd[:, 0], hd[:, 1], asd[:, 0], asd[:, 1], found.assd()
    return [dict(zip(AREA_METRICS, row, strict=True)) for row in np.stack(columns, 1).tolist()]


def _edge_scores(found: SurfaceMetrics) -> list[dict[str, float]]:
    columns = found.nsd()[:, 0], found.hausdorff()[:, 0], found.hd_pooled[:, 0], found.assd()
    return [dict(zip(EDGE_METRICS, row, strict=True)) for row in np.stack(columns, 1).tolist()]


def _joined(
    counts: tuple[int, int, int], surface: Mapping[str, float] | None, diagonal: float, empty_distance: str,
    edge: bool,
) -> dict[str, float]:  # fmt: skip
    scores = (
        empty_scores(counts[0], counts[1], diagonal, empty_distance, edge)
        if surface is None
        else {**overlap(*counts), **surface}
    )
    return {**dict(zip(("voxels_target", "voxels_pred", "voxels_both"), counts, strict=True)), **scores}


def measure_crops(
    target: Crop, pred: Crop, tolerance: float, *, edge: bool = False, empty_distance: str = "inf"
) -> dict[str, float]:
    """The scores of one structure from two masks of the same volume."""
    header = target.header
    start, stop = common_box([target, pred])
    diagonal = float(np.linalg.norm(np.multiply(header.shape, header.spacing)))
    both = [(1,)]
    return measure(
        target.span(start, stop), pred.span(start, stop), both, header.spacing, [tolerance], edge=edge,
        empty_distance=empty_distance, diagonal=diagonal,
    )[0]  # fmt: skip
