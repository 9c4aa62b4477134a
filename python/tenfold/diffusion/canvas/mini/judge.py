"""Judges of the mini canvas: a small convolutional classifier for styles and one for objects."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tenfold import _checks
from tenfold.diffusion.canvas.judging import JudgeCard

__all__ = ["Classifier", "MiniJudge"]


class Classifier(nn.Module):
    """Pictures [B, 3, H, W] in [0, 1] to logits: three convolutions, means and largest values of the last."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 24, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(24, 48, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(48, 96, 3, padding=1),
            nn.ReLU(),
        )
        self.head = nn.Linear(192, classes)

    def features(self, images: Tensor) -> Tensor:
        """[B, 192], what the last layer reads."""
        found = self.layers(images * 2 - 1)
        return torch.cat([found.mean((2, 3)), found.amax((2, 3))], 1)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(images))
        return logits


class MiniJudge:
    """Which style or object pictures show; a `ConceptJudge`, called as `judge(images)`.

    name: stands in results. classes: names, in the order of the logits. card: what it was trained on, and its
    accuracy on pictures that it was not.
    """

    def __init__(self, network: Classifier, card: JudgeCard) -> None:
        self.name, self.network, self.classes, self.card = card.name, network, card.classes, card

    def __call__(self, images: Tensor) -> Tensor:
        """`logits`."""
        return self.logits(images)

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """float32 [B, classes] of pictures [B, 3, H, W] in [0, 1].

        Raises:
            ValueError: another shape, or values that are not finite.
        """
        if images.ndim != 4 or images.shape[1] != 3:
            _checks.fail(ValueError, "images", "[B, 3, H, W]", list(images.shape))
        if not bool(images.isfinite().all()):
            _checks.fail(ValueError, "images", "finite pixels", "NaN or infinity")
        found: Tensor = self.network(images.float().cpu())
        return found

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """float32 [B, 192], for Frechet and kernel distances."""
        return self.network.features(images.float().cpu())
