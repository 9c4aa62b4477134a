"""Losses as modules: discrepancies between domains on fused kernels."""

from .discrepancy import CDDLoss, CORALLoss, JointMMDLoss, LinearMMDLoss, LMMDLoss, MMDLoss

__all__ = [
    "CDDLoss",
    "CORALLoss",
    "JointMMDLoss",
    "LMMDLoss",
    "LinearMMDLoss",
    "MMDLoss",
]
