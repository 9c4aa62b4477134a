"""The compiled passes behind the signatures of erase_reference.py: tensors to raw pointers."""

from __future__ import annotations

from .erase_attention import column_norm, column_norm_backward
from .erase_reference import adam_, saliency_, select, topk_bits_

__all__ = ["adam_", "column_norm", "column_norm_backward", "saliency_", "select", "topk_bits_"]
