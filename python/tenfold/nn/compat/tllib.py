"""Transfer-Learning-Library's alignment losses: names, arguments and values of tllib.alignment."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tenfold import _checks
from tenfold.nn.discrepancy import tllib_constant
from tenfold.ops import joint_mmd, mmd
from tenfold.ops.mmd import FLOOR, _base

from .gradient import reverse_gradient


class GaussianKernel(nn.Module):
    """exp(-|a - b|^2 / (2 sigma^2)); sigma^2 is alpha times the mean squared distance, or fixed.

    Args:
        sigma: the fixed width.
        track_running_stats: take the width from each batch (the default).
        alpha: the multiple of the mean over all pairs, i == j among them.
    """

    def __init__(
        self, sigma: float | None = None, track_running_stats: bool = True, alpha: float = 1.0
    ) -> None:
        super().__init__()
        if not track_running_stats and sigma is None:
            _checks.fail(ValueError, "sigma", "a number where track_running_stats is False", "None")
        self.sigma_square = None if sigma is None else torch.tensor(float(sigma) ** 2)
        self.track_running_stats = track_running_stats
        self.alpha = alpha

    def forward(self, X: Tensor) -> Tensor:
        """[N, d] to the kernel matrix [N, N]: for a look at it, the losses do not call it."""
        distance = torch.cdist(X, X).square()
        if self.track_running_stats:
            self.sigma_square = self.alpha * distance.detach().mean()
        assert self.sigma_square is not None
        return torch.exp(-distance / (2.0 * self.sigma_square))


def _widths(kernels: Sequence[nn.Module], z_s: Tensor, z_t: Tensor) -> tuple[str | float, list[float]]:
    """The base of the widths and their multiples; where fixed and tracked kernels meet, numbers."""
    tracked = [bool(k.track_running_stats) for k in kernels]
    if all(tracked):
        return "tllib", [2.0 * float(k.alpha) for k in kernels]  # type: ignore[arg-type]
    mean = float(_base("tllib", z_s[None], z_t[None], FLOOR)) if any(tracked) else 1.0  # type: ignore[arg-type]
    return 1.0, [
        2.0 * (float(k.alpha) * mean if follows else float(k.sigma_square))  # type: ignore[arg-type]
        for k, follows in zip(kernels, tracked, strict=True)
    ]


class MultipleKernelMaximumMeanDiscrepancy(nn.Module):
    """MK-MMD (DAN, arXiv 1502.02791), with memory linear in the batch and batches that may differ in size.

    Args:
        kernels: `GaussianKernel`s, these or Transfer-Learning-Library's own.
        linear: neighbours in a ring instead of all pairs.
    """

    def __init__(self, kernels: Sequence[nn.Module], linear: bool | None = False) -> None:
        super().__init__()
        self.kernels = kernels
        self.linear = bool(linear)

    def forward(self, z_s: Tensor, z_t: Tensor) -> Tensor:
        """[N, d] and [M, d] to a scalar, plus 2 / (N - 1) as there."""
        bandwidth, factors = _widths(self.kernels, z_s, z_t)
        estimator = "linear" if self.linear else "unbiased"
        value = mmd(z_s, z_t, bandwidth=bandwidth, factors=factors, estimator=estimator)
        assert isinstance(value, Tensor)
        return value + tllib_constant(len(z_s), len(z_t))


class JointMultipleKernelMaximumMeanDiscrepancy(nn.Module):
    """Joint MK-MMD (JAN, arXiv 1605.06636).

    Args:
        kernels: for each layer its `GaussianKernel`s.
        linear: neighbours in a ring instead of all pairs.
        thetas: for each layer a module that its features go through first (adversarial JAN).
    """

    def __init__(
        self,
        kernels: Sequence[Sequence[nn.Module]],
        linear: bool | None = True,
        thetas: Sequence[nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.kernels = kernels
        self.linear = bool(linear)
        self.thetas = thetas if thetas else [nn.Identity() for _ in kernels]

    def forward(self, z_s: Sequence[Tensor], z_t: Sequence[Tensor]) -> Tensor:
        """Sequences of [N, d_l] and [M, d_l] to a scalar, plus 2 / (N - 1) as there."""
        n, m = len(z_s[0]), len(z_t[0])
        moved = [
            theta(torch.cat((s, t))).split((n, m)) for theta, s, t in zip(self.thetas, z_s, z_t, strict=True)
        ]
        sources, targets = [s for s, _ in moved], [t for _, t in moved]
        widths = [_widths(k, s, t) for k, s, t in zip(self.kernels, sources, targets, strict=True)]
        value = joint_mmd(
            sources,
            targets,
            bandwidth=[base for base, _ in widths],
            factors=[factors for _, factors in widths],
            estimator="linear" if self.linear else "unbiased",
        )
        assert isinstance(value, Tensor)
        return value + tllib_constant(n, m)


class Theta(nn.Module):
    """A linear layer, at first the identity, that maximises the loss which its input minimises.

    Args:
        dim: d of the features.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.layer1 = nn.Linear(dim, dim)
        nn.init.eye_(self.layer1.weight)
        nn.init.zeros_(self.layer1.bias)

    def forward(self, features: Tensor) -> Tensor:
        """[N, dim] to [N, dim]."""
        return reverse_gradient(self.layer1(reverse_gradient(features)))


class CorrelationAlignmentLoss(nn.Module):
    """As published there: mean squared difference of the means plus that of the covariances.

    `tenfold.nn.CORALLoss` is the formula of the paper (arXiv 1607.01719): without the means, over 4.
    """

    def forward(self, f_s: Tensor, f_t: Tensor) -> Tensor:
        """[N, d] and [M, d] to a scalar."""
        means = f_s.mean(0), f_t.mean(0)
        centred = f_s - means[0], f_t - means[1]
        s, t = (z.T @ z / (len(z) - 1) for z in centred)
        return (means[0] - means[1]).square().mean() + (s - t).square().mean()
