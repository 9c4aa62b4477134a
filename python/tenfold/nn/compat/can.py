"""CDD of CAN, the Contrastive Adaptation Network: name, arguments and values, on any device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tenfold import _checks
from tenfold.ops import cdd


class CDD:
    """Contrastive domain discrepancy of points that are sorted by class, summed over layers.

    Args:
        num_layers: how many layers are compared.
        kernel_num, kernel_mul: for each layer the number and ratio of its widths.
        num_classes: the number that sums are divided by, of the data set and not of the batch.
        intra_only: without the discrepancy between classes.
    """

    def __init__(
        self,
        num_layers: int,
        kernel_num: Sequence[int],
        kernel_mul: Sequence[float],
        num_classes: int,
        intra_only: bool = False,
        **_: Any,
    ) -> None:
        self.num_layers = _checks.integer("num_layers", num_layers, 1, 2**31 - 1)
        _checks.length(
            "kernel_num", _checks.sequence("kernel_num", kernel_num, "integers"), num_layers, "layers"
        )
        _checks.length(
            "kernel_mul", _checks.sequence("kernel_mul", kernel_mul, "numbers"), num_layers, "layers"
        )
        self.kernel_num, self.kernel_mul = kernel_num, kernel_mul
        self.num_classes = _checks.integer("num_classes", num_classes, 1, 2**31 - 1)
        self.intra_only = bool(intra_only) or num_classes == 1

    def forward(
        self, source: Sequence[Tensor], target: Sequence[Tensor], nums_S: Sequence[int], nums_T: Sequence[int]
    ) -> dict[str, Tensor | None]:
        """Layers [N, d_l] and [M, d_l], and how many points of each class, to {"cdd", "intra", "inter"}."""
        classes = len(nums_S)
        _checks.length("nums_T", nums_T, classes, "the classes of nums_S")
        for name, nums in (("nums_S", nums_S), ("nums_T", nums_T)):
            if min(nums, default=0) < 1:
                _checks.fail(ValueError, name, "at least one point of each class", list(nums))
        device = source[0].device
        ys, yt = (
            torch.repeat_interleave(torch.arange(classes), torch.as_tensor(nums)).to(device)
            for nums in (nums_S, nums_T)
        )
        intra: Any = 0.0
        inter: Any = 0.0
        for layer in range(self.num_layers):
            found = cdd(
                source[layer],
                ys,
                target[layer],
                yt,
                classes,
                kernels=self.kernel_num[layer],
                mul=self.kernel_mul[layer],
                min_count=1,
                clamp="can",
            )
            intra, inter = intra + found.intra, inter + found.inter
        intra = intra * (classes / self.num_classes)
        if self.intra_only:
            return {"cdd": intra, "intra": intra, "inter": None}
        inter = inter * (classes * (classes - 1) / (self.num_classes * (self.num_classes - 1)))
        return {"cdd": intra - inter, "intra": intra, "inter": inter}
