"""Discrepancies between a source and a target domain, for domain adaptation. See docs/mmd.md."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tenfold import _checks
from tenfold.ops import cdd, coral, joint_mmd, linear_mmd, lmmd
from tenfold.ops.mmd import BANDWIDTHS, ESTIMATORS, FLOOR, factors_of, mmd_with_base

REDUCTIONS = ("mean", "sum", "none")

CONVENTIONS = {
    None: ("mean", "biased"),
    "msmda": ("mean", "biased"),
    "tllib": ("tllib", "unbiased"),
    "pytorch_adapt": ("median", "unbiased"),
}
"""compat -> bandwidth and estimator where none is given."""

COLLAPSED = 1e-3


def reduced(values: Tensor, reduction: str) -> Tensor:
    """A scalar stays; a batch of problems [B] becomes its mean or sum."""
    if values.ndim == 0 or reduction == "none":
        return values
    return values.mean() if reduction == "mean" else values.sum()


class MMDLoss(nn.Module):
    """Squared MMD with several Gaussian kernels (MK-MMD; DAN, arXiv 1502.02791). See `tenfold.ops.mmd`.

    An adaptive bandwidth makes the loss blind to scale, so features without normalisation can shrink to a
    point while it falls. `mean_distance` holds the last base of the widths, and one warning is given when it
    is below 1e-3 of the first.

    Args:
        kernels, mul, factors, floor: as `tenfold.ops.mmd`.
        bandwidth, estimator: as `tenfold.ops.mmd`; None: what `compat` takes, else "mean" and "biased".
        compat: values of other code. "msmda" (also DSAN, torcheeg): kernels summed, biased, mean distance:
            Tenfold's own convention. "tllib" (Transfer-Learning-Library): its widths, unbiased, plus
            1 / (N - 1) + 1 / (M - 1). "pytorch_adapt": kernels averaged, unbiased, median distance of the
            source; with estimator="pairs" its mmd_type="linear".
        reduction: of a batch of problems [B, N, d]: "mean", "sum" or "none".

    Raises:
        TypeError, ValueError: an unknown name, a number out of range; in forward as `tenfold.ops.mmd`.
    """

    def __init__(
        self,
        kernels: int = 5,
        mul: float = 2.0,
        bandwidth: Any = None,
        estimator: str | None = None,
        *,
        factors: Sequence[float] | None = None,
        compat: str | None = None,
        floor: float = FLOOR,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        if compat not in CONVENTIONS:
            names = ", ".join(repr(c) for c in CONVENTIONS if c)
            _checks.fail(ValueError, "compat", f"None or one of {names}", repr(compat))
        usual_bandwidth, usual_estimator = CONVENTIONS[compat]
        self.bandwidth = usual_bandwidth if bandwidth is None else bandwidth
        if isinstance(self.bandwidth, str):
            _checks.choice("bandwidth", self.bandwidth, BANDWIDTHS)
        self.estimator = _checks.choice("estimator", estimator or usual_estimator, ESTIMATORS)
        self.kernels, self.mul = len(factors_of(kernels, mul)), float(mul)
        self.factors = None if factors is None else list(factors)
        self.compat, self.floor = compat, _checks.real("floor", floor, positive=True)
        self.reduction = _checks.choice("reduction", reduction, REDUCTIONS)
        self.mean_distance: Tensor | None = None
        self._first: float | None = None
        self._calls = 0

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """source [N, d] and target [M, d], or [B, N, d] and [B, M, d], to a scalar."""
        value, base = mmd_with_base(
            source,
            target,
            kernels=self.kernels,
            mul=self.mul,
            bandwidth=self.bandwidth,
            estimator=self.estimator,
            factors=self.factors,
            floor=self.floor,
        )
        if self.compat == "pytorch_adapt":
            value = value / (self.kernels if self.factors is None else len(self.factors))
        elif self.compat == "tllib":
            value = value + tllib_constant(source.shape[-2], target.shape[-2])
        if not torch.compiler.is_compiling():
            self._watch(base)
        return reduced(value, self.reduction)

    def _watch(self, base: Tensor) -> None:
        self.mean_distance = base.detach()
        self._calls += 1
        if not isinstance(self.bandwidth, str) or (base.is_cuda and self._calls % 100 != 1):
            return  # reading a number waits for the device
        now = float(base) if base.ndim == 0 else float(base.min())
        if self._first is None:
            self._first = now
        elif 0.0 < now < COLLAPSED * self._first:
            warnings.warn(
                f"the features have shrunk: their mean squared distance was {self._first:.3g} and is "
                f"{now:.3g}. The MMD does not see scale; normalise the features or give a fixed bandwidth",
                RuntimeWarning,
                stacklevel=3,
            )
            self._first = 0.0  # once

    def extra_repr(self) -> str:
        """What differs from call to call."""
        bandwidth = self.bandwidth if isinstance(self.bandwidth, (str, int, float)) else "tensor"
        return (
            f"kernels={self.kernels}, mul={self.mul}, bandwidth={bandwidth!r}, estimator={self.estimator!r}"
        )


def tllib_constant(n: int, m: int) -> float:
    """2 / (N - 1) for N == M, which Transfer-Learning-Library adds whatever the number of kernels."""
    return 1.0 / (n - 1) + 1.0 / (m - 1) if min(n, m) > 1 else float("inf")


class JointMMDLoss(nn.Module):
    """MMD under the product of the kernels of several layers (JAN, arXiv 1605.06636).

    Args:
        kernels, mul, bandwidth, estimator, factors, floor: as `tenfold.ops.joint_mmd`.

    Raises:
        TypeError, ValueError: in forward, as `tenfold.ops.joint_mmd`.
    """

    def __init__(
        self,
        kernels: int | Sequence[int] = 5,
        mul: float | Sequence[float] = 2.0,
        bandwidth: Any = "mean",
        estimator: str = "biased",
        *,
        factors: Sequence[Sequence[float]] | None = None,
        floor: float = FLOOR,
    ) -> None:
        super().__init__()
        self.estimator = _checks.choice("estimator", estimator, ESTIMATORS)
        self.kernels, self.mul, self.bandwidth, self.factors, self.floor = (
            kernels,
            mul,
            bandwidth,
            factors,
            floor,
        )

    def forward(self, source: Sequence[Tensor], target: Sequence[Tensor]) -> Tensor:
        """Lists of [N, d_l] and of [M, d_l], to a scalar."""
        value = joint_mmd(
            source,
            target,
            kernels=self.kernels,
            mul=self.mul,
            bandwidth=self.bandwidth,
            estimator=self.estimator,
            factors=self.factors,
            floor=self.floor,
        )
        assert isinstance(value, Tensor)
        return value


class LinearMMDLoss(nn.Module):
    """``|mean source - mean target|^2``, the MMD of the linear kernel (DDC, arXiv 1412.3474).

    Args:
        reduction: of a batch of problems: "mean", "sum" or "none".
    """

    def __init__(self, reduction: str = "mean") -> None:
        super().__init__()
        self.reduction = _checks.choice("reduction", reduction, REDUCTIONS)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """source [N, d] and target [M, d], or with a batch in front, to a scalar."""
        return reduced(linear_mmd(source, target), self.reduction)


class CORALLoss(nn.Module):
    """``|cov source - cov target|_F^2`` / (4 d^2) (Deep CORAL, arXiv 1607.01719).

    Args:
        reduction: of a batch of problems: "mean", "sum" or "none".
    """

    def __init__(self, reduction: str = "mean") -> None:
        super().__init__()
        self.reduction = _checks.choice("reduction", reduction, REDUCTIONS)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """source [N, d] and target [M, d], or with a batch in front, to a scalar."""
        return reduced(coral(source, target), self.reduction)


class LMMDLoss(nn.Module):
    """Local MMD: class by class, target points by their predicted probabilities (DSAN, TNNLS 2020).

    Args:
        kernels, mul, bandwidth, floor: as `tenfold.ops.lmmd`.
        reduction: of a batch of problems: "mean", "sum" or "none".
    """

    def __init__(
        self,
        kernels: int = 5,
        mul: float = 2.0,
        bandwidth: Any = "mean",
        *,
        floor: float = FLOOR,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        self.kernels, self.mul, self.bandwidth, self.floor = kernels, mul, bandwidth, floor
        self.reduction = _checks.choice("reduction", reduction, REDUCTIONS)

    def forward(self, source: Tensor, target: Tensor, labels: Tensor, probabilities: Tensor) -> Tensor:
        """source [N, d], target [M, d], labels [N] int64, probabilities [M, C], or with a batch in front."""
        value = lmmd(
            source,
            labels,
            target,
            probabilities,
            kernels=self.kernels,
            mul=self.mul,
            bandwidth=self.bandwidth,
            floor=self.floor,
        )
        return reduced(value, self.reduction)


class CDDLoss(nn.Module):
    """Contrastive domain discrepancy, intra - beta * inter (CAN, arXiv 1901.00976): `tenfold.ops.cdd`.

    Args:
        num_classes: C.
        kernels, mul, min_count, clamp, floor: as `tenfold.ops.cdd`.
        beta: weight of the discrepancy between different classes; 0: intra-class only.
        reduction: of a batch of problems: "mean", "sum" or "none".
    """

    def __init__(
        self,
        num_classes: int,
        kernels: int = 5,
        mul: float = 2.0,
        *,
        beta: float = 1.0,
        min_count: int = 2,
        clamp: str = "none",
        floor: float = FLOOR,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        self.num_classes = _checks.integer("num_classes", num_classes, 1, 2**31 - 1)
        self.kernels, self.mul = len(factors_of(kernels, mul)), float(mul)
        self.beta = _checks.real("beta", beta, at_least=0.0)
        self.min_count = _checks.integer("min_count", min_count, 1, 2**31 - 1)
        self.clamp = _checks.choice("clamp", clamp, ("none", "can"))
        self.floor = _checks.real("floor", floor, positive=True)
        self.reduction = _checks.choice("reduction", reduction, REDUCTIONS)

    def forward(self, source: Tensor, target: Tensor, source_labels: Tensor, target_labels: Tensor) -> Tensor:
        """source [N, d], target [M, d], labels [N] and [M] int64 (-1: left out), or with a batch in front."""
        found = cdd(
            source,
            source_labels,
            target,
            target_labels,
            self.num_classes,
            kernels=self.kernels,
            mul=self.mul,
            min_count=self.min_count,
            clamp=self.clamp,
            floor=self.floor,
        )
        return reduced(found.intra - self.beta * found.inter, self.reduction)
