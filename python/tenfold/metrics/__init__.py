"""Metrics of segmentations, received pictures and generated ones: functions on arrays, and classes with the
protocol of TorchMetrics.

`compat="segrap" | "deepmind" | "monai"` chooses whose numbers are met where conventions differ.
"""

from .features import (
    CLIPMaximumMeanDiscrepancy,
    FrechetInceptionDistance,
    KernelInceptionDistance,
    clip_mmd,
    frechet_distance,
    kernel_distance,
    score_label,
)
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
from .image import (
    MultiScaleStructuralSimilarityIndexMeasure,
    PeakSignalNoiseRatio,
    StructuralSimilarityIndexMeasure,
    ms_ssim,
    nmse,
    papr,
    psnr,
    ssim,
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
    "CLIPMaximumMeanDiscrepancy",
    "DiceScore",
    "FrechetInceptionDistance",
    "HausdorffDistance",
    "KernelInceptionDistance",
    "MultiScaleStructuralSimilarityIndexMeasure",
    "NormalizedSurfaceDice",
    "PeakSignalNoiseRatio",
    "SegmentationMetrics",
    "StructuralSimilarityIndexMeasure",
    "SurfaceDice",
    "VolumeSimilarity",
    "average_surface_distance",
    "clip_mmd",
    "dice_score",
    "frechet_distance",
    "hausdorff_distance",
    "kernel_distance",
    "ms_ssim",
    "nmse",
    "normalized_surface_dice",
    "papr",
    "psnr",
    "raw_scores",
    "reduce_scores",
    "score_label",
    "segmentation_scores",
    "ssim",
    "surface_dice",
    "volume_similarity",
]
