"""A loss on the outputs of several resolutions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tenfold import _checks

MODES = ("same", "exp", "two", "pymic", "nnunet")


class DeepSupervisionLoss(nn.Module):
    """The weighted sum of a loss over a list of outputs, full resolution first.

    Args:
        loss: any loss of (input, target).
        weight_mode: MONAI's "same" (1, 1, ...), "exp" (1, 1/2, 1/4, ... at least 1/16) or "two" (1, 1/2,
            1/2, ...); "pymic": 1/2^i over their sum, outputs enlarged to the size of the target (trilinear
            or bilinear) as PyMIC does; "nnunet": 1/2^i over their sum, the last of several left out, targets
            reduced as in nnU-Net. Except with "pymic" the target is reduced to each output (nearest-exact).
        weights: these weights instead, one per output.
    """

    def __init__(
        self, loss: nn.Module, weight_mode: str = "exp", weights: Sequence[float] | None = None
    ) -> None:
        super().__init__()
        self.loss = loss
        self.weight_mode = _checks.choice("weight_mode", weight_mode, MODES)
        self.weights = None if weights is None else [_checks.real("weights", w) for w in weights]

    def get_weights(self, levels: int = 1) -> list[float]:
        """The weights of so many outputs."""
        levels = max(1, levels)
        if self.weights is not None and len(self.weights) >= levels:
            return self.weights[:levels]
        halves = [0.5**i for i in range(levels)]
        if self.weight_mode == "exp":
            return [max(w, 0.0625) for w in halves]
        if self.weight_mode == "two":
            return [1.0] + [0.5] * (levels - 1)
        if self.weight_mode == "same":
            return [1.0] * levels
        if self.weight_mode == "nnunet" and levels > 1:
            halves[-1] = 0.0
        return [w / sum(halves) for w in halves]

    def forward(self, input: Tensor | Sequence[Tensor], target: Tensor) -> Tensor:
        """input: one output or a list of them, [B, C, spatial...] each; target [B, 1 or C, spatial...]."""
        if isinstance(input, Tensor):
            return self.loss(input, target)
        outputs = _checks.sequence("input", input, "tensors")
        if not outputs:
            _checks.fail(ValueError, "input", "at least one output", "none")
        total = torch.zeros((), device=target.device)
        for output, weight in zip(outputs, self.get_weights(len(outputs)), strict=True):
            if weight != 0:
                total = total + weight * self._level(output, target)
        return total

    def _level(self, output: Tensor, target: Tensor) -> Tensor:
        if output.shape[2:] != target.shape[2:]:
            if self.weight_mode == "pymic":
                mode = {3: "linear", 4: "bilinear", 5: "trilinear"}[output.ndim]
                output = F.interpolate(output, target.shape[2:], mode=mode, align_corners=False)
            else:
                target = _reduced(target, output.shape[2:])
        loss: Tensor = self.loss(output, target)
        return loss


def _reduced(target: Tensor, size: Sequence[int]) -> Tensor:
    """The nearest voxel of each place, for every dtype: as F.interpolate(mode="nearest-exact")."""
    for axis, n in enumerate(size, 2):
        old = target.shape[axis]
        at = (torch.arange(n, device=target.device, dtype=torch.float32) + 0.5) * (old / n)
        target = target.index_select(axis, at.long().clamp(max=old - 1))
    return target
