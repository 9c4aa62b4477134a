"""Losses as modules on fused kernels: of segmentation, as MONAI names them, and between domains."""

from .boundary import BoundaryLoss, HausdorffDTLoss, LogHausdorffDTLoss, signed_distance_maps
from .deep_supervision import DeepSupervisionLoss
from .dice import DiceCELoss, DiceLoss, GeneralizedDiceLoss, TverskyLoss
from .discrepancy import CDDLoss, CORALLoss, JointMMDLoss, LinearMMDLoss, LMMDLoss, MMDLoss
from .focal import DiceFocalLoss, FocalLoss

__all__ = [
    "BoundaryLoss",
    "CDDLoss",
    "CORALLoss",
    "DeepSupervisionLoss",
    "DiceCELoss",
    "DiceFocalLoss",
    "DiceLoss",
    "FocalLoss",
    "GeneralizedDiceLoss",
    "HausdorffDTLoss",
    "JointMMDLoss",
    "LMMDLoss",
    "LinearMMDLoss",
    "LogHausdorffDTLoss",
    "MMDLoss",
    "TverskyLoss",
    "signed_distance_maps",
]
