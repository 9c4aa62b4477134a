"""The network of MS-MDA (arXiv 2107.07740): a common extractor, then one small branch per source.

    Linear d-256-128-64, LeakyReLU(0.01) after each             common
    Linear 64-32, BatchNorm, LeakyReLU(0.01), Linear 32-C       branch j of J

The J branches are one batched weight, so that a step costs one matrix product and not J. A method with a
single head (source-only, DAN, ...) is the same network with J = 1: heads are matched in every comparison.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tenfold import _checks

__all__ = ["FEATURES", "Discriminator", "Network", "reverse_gradient"]

HIDDEN, COMMON, FEATURES = (256, 128), 64, 32
SLOPE, MOMENTUM, EPS = 0.01, 0.1, 1e-5
BN = ("shared", "target")


class Network(nn.Module):
    """Extractor and J branches.

    Args:
        width: number of input features d.
        classes: C >= 2.
        branches: J >= 1.
        bn: whose passes move the running statistics that are used after training: ``"shared"``, those of
            sources and target alike, as in MS-MDA's code; ``"target"``, the target's alone (a branch that
            never saw the target keeps its sources').

    While training, sources and target pass through batch normalisation separately, each by its own batch.

    Raises:
        ValueError, TypeError: a number out of range, an unknown ``bn``.
    """

    def __init__(self, width: int, classes: int, branches: int = 1, *, bn: str = "shared"):
        super().__init__()
        width = _checks.integer("width", width, 1, 2**31 - 1)
        classes = _checks.integer("classes", classes, 2, 2**31 - 1)
        j = _checks.integer("branches", branches, 1, 2**31 - 1)
        self.bn = _checks.choice("bn", bn, BN)
        layers: list[nn.Module] = []
        for before, after in zip((width, *HIDDEN), (*HIDDEN, COMMON), strict=True):
            layers += [nn.Linear(before, after), nn.LeakyReLU(SLOPE)]
        self.extractor = nn.Sequential(*layers)
        self.w1 = _uniform(COMMON, j, COMMON, FEATURES)
        self.b1 = _uniform(COMMON, j, FEATURES)
        self.gain = nn.Parameter(torch.ones(j, FEATURES))
        self.shift = nn.Parameter(torch.zeros(j, FEATURES))
        self.w2 = _uniform(FEATURES, j, FEATURES, classes)
        self.b2 = _uniform(FEATURES, j, classes)
        self.mean: Tensor
        self.var: Tensor
        self.register_buffer("mean", torch.zeros(j, FEATURES))
        self.register_buffer("var", torch.ones(j, FEATURES))

    @property
    def branches(self) -> int:
        """J."""
        return int(self.w1.shape[0])

    @property
    def classes(self) -> int:
        """C."""
        return int(self.w2.shape[2])

    def head(self, h: Tensor, chosen: slice = slice(None), *, target: bool = False) -> tuple[Tensor, Tensor]:
        """Features and logits of the chosen branches.

        Args:
            h: the extractor's output, [J', N, 64] (rows of its own for each branch) or [N, 64] (the same).
            chosen: which J' branches.
            target: the rows are the target's (for ``bn``).

        Returns:
            z [J', N, 32] and logits [J', N, C].
        """
        z = torch.matmul(h, self.w1[chosen]) + self.b1[chosen, None]
        z = F.leaky_relu(self._normalised(z, chosen, target), SLOPE)
        return z, torch.baddbmm(self.b2[chosen, None], z, self.w2[chosen])

    def _normalised(self, z: Tensor, chosen: slice, target: bool) -> Tensor:
        j, n, _ = z.shape
        flat = z.transpose(0, 1).reshape(n, j * FEATURES)
        moves = self.training and (target or self.bn == "shared")
        mean, var = (None, None) if self.training and not moves else (self.mean[chosen], self.var[chosen])
        flat = F.batch_norm(
            flat, None if mean is None else mean.view(-1), None if var is None else var.view(-1),
            self.gain[chosen].reshape(-1), self.shift[chosen].reshape(-1), self.training, MOMENTUM, EPS,
        )  # fmt: skip
        return flat.view(n, j, FEATURES).transpose(0, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [N, d] -> features [J, N, 32] and logits [J, N, C] of all branches, as of the target."""
        return self.head(self.extractor(x), target=True)

    def extra_repr(self) -> str:
        """Shown by print."""
        return f"branches={self.branches}, classes={self.classes}, bn={self.bn!r}"


def _uniform(fan_in: int, *shape: int) -> nn.Parameter:
    """As nn.Linear draws weights and biases."""
    bound = 1 / math.sqrt(fan_in)
    return nn.Parameter(torch.empty(shape).uniform_(-bound, bound))


class Discriminator(nn.Sequential):
    """Source or target? Three layers, one logit (DANN, Ganin et al., arXiv 1505.07818)."""

    def __init__(self, features: int = FEATURES, hidden: int = 64):
        super().__init__(
            nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 1)
        )


class _Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return -ctx.scale * grad, None


def reverse_gradient(x: Tensor, scale: float) -> Tensor:
    """x itself; its gradient is multiplied by -scale on the way back (DANN)."""
    result: Tensor = _Reversed.apply(x, scale)
    return result
