"""Projected gradient descent (arXiv 1706.06083) for adversarial pretraining."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tenfold import _checks
from tenfold.selection.transfer.augment import View

__all__ = ["Attack", "perturb"]


@dataclass(frozen=True)
class Attack:
    """How images are perturbed.

    Attributes:
        epsilon: largest change of a channel, in units of 0 .. 1.
        steps: gradient steps, each of 2 epsilon / steps.
        compat: as the published code does: the start and the steps are epsilon-sized in *normalised* units
            (about four times smaller in pixels), only the projection is in pixels, and the network is in
            training mode while it is attacked, so that its running statistics move with every step. Else
            all is in pixel units and the network is in evaluation mode.
    """

    epsilon: float = 3 / 255
    steps: int = 3
    compat: bool = False

    def __post_init__(self) -> None:
        _checks.real("epsilon", self.epsilon, at_least=0.0, below=1.0)
        _checks.integer("steps", self.steps, 1, 1000)


def perturb(
    network: nn.Module, x: Tensor, y: Tensor, attack: Attack, view: View, generator: torch.Generator
) -> Tensor:
    """Images near `x` (normalised by `view`) that raise the cross-entropy; normalised again, detached.

    Args:
        network: in training mode; left so.
        x, y: float [B, C, H, W], int64 [B].
        generator: of the random start, on the CPU.
    """
    shape = (-1, 1, 1)
    mean, std = (torch.tensor(v, dtype=x.dtype, device=x.device).view(shape) for v in (view.mean, view.std))
    epsilon, step = attack.epsilon, 2 * attack.epsilon / attack.steps
    original = x * std + mean
    start = (torch.rand(x.shape, generator=generator).to(x) * 2 - 1) * epsilon
    scale = torch.ones_like(std) if attack.compat else 1 / std
    now = x + start * scale
    if not attack.compat:
        now = ((now * std + mean).clamp(0, 1) - mean) / std
        network.eval()
    for _ in range(attack.steps):
        now = now.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(network(now), y), now)
        moved = (now.detach() + step * scale * gradient.sign()) * std + mean
        moved = original + (moved - original).clamp(-epsilon, epsilon)
        now = (moved.clamp(0, 1) - mean) / std
    network.train()
    return now.detach()
