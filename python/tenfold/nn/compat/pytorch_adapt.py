"""pytorch-adapt's MMDLoss, MMDBatchedLoss and CORALLoss: names, arguments and values of its layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tenfold import _checks
from tenfold.ops import coral, joint_mmd, mmd
from tenfold.ops.mmd import FLOOR

MMD_TYPES = {"linear": "pairs", "quadratic": "unbiased"}


class MMDLoss(nn.Module):
    """MMD of two tensors, or joint MMD (JAN) of two lists of them; kernels are averaged, not summed.

    Args:
        kernel_scales: a number, or a tensor with one for each kernel: the widths are bandwidth / scale.
        mmd_type: "linear" (disjoint pairs, O(N)) or "quadratic" (unbiased).
        dist_func: None, which is the squared Euclidean distance; no other is fused.
        bandwidth: a number; None: the median of the squared distances within x.

    Raises:
        ValueError: another mmd_type.
        TypeError: a dist_func.
    """

    def __init__(
        self,
        kernel_scales: float | Tensor = 1,
        mmd_type: str = "linear",
        dist_func: Any = None,
        bandwidth: float | None = None,
    ) -> None:
        super().__init__()
        if dist_func is not None:
            _checks.fail(
                TypeError, "dist_func", "None (squared Euclidean distance)", type(dist_func).__name__
            )
        _checks.choice("mmd_type", mmd_type, MMD_TYPES)
        self.kernel_scales, self.mmd_type, self.bandwidth = kernel_scales, mmd_type, bandwidth
        scales = kernel_scales.tolist() if isinstance(kernel_scales, Tensor) else kernel_scales
        self.factors = [
            1.0 / _checks.real("kernel_scales", s, positive=True)
            for s in (scales if isinstance(scales, list) else [scales])
        ]

    def forward(self, x: Tensor | Sequence[Tensor], y: Tensor | Sequence[Tensor]) -> Tensor:
        """[N, d] and [M, d], or lists of them, to a scalar; N == M for "linear"."""
        estimator = MMD_TYPES[self.mmd_type]
        bandwidth = "median" if self.bandwidth is None else self.bandwidth
        if isinstance(x, Tensor) or isinstance(y, Tensor):
            value = mmd(x, y, bandwidth=bandwidth, factors=self.factors, estimator=estimator)
            layers = 1
        else:
            layers = len(x)
            factors = [self.factors] * layers
            value = joint_mmd(x, y, bandwidth=bandwidth, factors=factors, estimator=estimator)
        assert isinstance(value, Tensor)
        return value / len(self.factors) ** layers

    def extra_repr(self) -> str:
        """As there."""
        return f"mmd_type={self.mmd_type}, kernel_scales={self.kernel_scales}"


class MMDBatchedLoss(MMDLoss):
    """MMDLoss with mmd_type="quadratic" and the median of the medians of batches of rows as bandwidth.

    Args:
        batch_size: rows of a median, as there; memory is linear in the batch in any case.
        The other arguments are those of `MMDLoss`.
    """

    def __init__(self, batch_size: int = 1024, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if self.mmd_type != "quadratic":
            _checks.fail(ValueError, "mmd_type", "'quadratic'", repr(self.mmd_type))
        self.batch_size = _checks.integer("batch_size", batch_size, 1, 2**31 - 1)

    def forward(self, x: Any, y: Any) -> Tensor:
        """[N, d] and [M, d] to a scalar."""
        for name, value in (("x", x), ("y", y)):
            if not isinstance(value, Tensor):
                _checks.fail(TypeError, name, "a tensor", type(value).__name__)
        if self.bandwidth is not None or len(x) <= self.batch_size:
            return super().forward(x, y)
        with torch.no_grad():
            rows = x.split(self.batch_size)
            medians = [torch.cdist(r.float(), x.float()).square().median() for r in rows]
            median = torch.stack(medians).median().clamp_min(FLOOR)
        value = mmd(x, y, bandwidth=median, factors=self.factors, estimator="unbiased")
        assert isinstance(value, Tensor)
        return value / len(self.factors)


class CORALLoss(nn.Module):
    """``|cov x - cov y|_F^2`` / (4 d^2) (arXiv 1607.01719)."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """[N, d] and [M, d] to a scalar."""
        value = coral(x, y)
        assert isinstance(value, Tensor)
        return value
