"""Losses for segmentation as modules, with MONAI's names, arguments and defaults, on fused kernels."""

from .boundary import BoundaryLoss, HausdorffDTLoss, LogHausdorffDTLoss, signed_distance_maps
from .deep_supervision import DeepSupervisionLoss
from .dice import DiceCELoss, DiceLoss, GeneralizedDiceLoss, TverskyLoss
from .focal import DiceFocalLoss, FocalLoss

__all__ = [
    "BoundaryLoss",
    "DeepSupervisionLoss",
    "DiceCELoss",
    "DiceFocalLoss",
    "DiceLoss",
    "FocalLoss",
    "GeneralizedDiceLoss",
    "HausdorffDTLoss",
    "LogHausdorffDTLoss",
    "TverskyLoss",
    "signed_distance_maps",
]
