"""Segmentation metrics: functions on arrays, and classes with the protocol of TorchMetrics.

`compat="segrap" | "deepmind" | "monai"` chooses whose numbers are met where conventions differ.
"""

from .functional import (
    average_surface_distance,
    dice_score,
    hausdorff_distance,
    normalized_surface_dice,
    raw_scores,
    segmentation_scores,
    surface_dice,
    volume_similarity,
)
from .segmentation import (
    AverageSurfaceDistance,
    DiceScore,
    HausdorffDistance,
    NormalizedSurfaceDice,
    SegmentationMetrics,
    SurfaceDice,
    VolumeSimilarity,
    reduce_scores,
)

__all__ = [
    "AverageSurfaceDistance",
    "DiceScore",
    "HausdorffDistance",
    "NormalizedSurfaceDice",
    "SegmentationMetrics",
    "SurfaceDice",
    "VolumeSimilarity",
    "average_surface_distance",
    "dice_score",
    "hausdorff_distance",
    "normalized_surface_dice",
    "raw_scores",
    "reduce_scores",
    "segmentation_scores",
    "surface_dice",
    "volume_similarity",
]
