"""How a picture becomes a network's input: crop, size, flip, normalisation.

The crops are those of the published training code's loader (FFCV): a random part of 8 to 100 % of the area
with sides between 3:4 and 4:3, or the central square. Sizes are changed with Pillow's antialiased bilinear
filter, where that loader takes OpenCV's area filter.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tenfold import _checks

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "View"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class View:
    """What is seen of a picture.

    Attributes:
        size: side of the square input in pixels; 0 keeps images in memory as they are.
        crop: "random" (RandomResizedCrop), "centre" (a square of `share` of the shorter side).
        share: of the centre crop. 224 / 256 validates ImageNet; 1 is the whole square.
        flip: probability of mirroring left and right.
        mean, std: of each channel, in units of 0 .. 1.
    """

    size: int = 224
    crop: Literal["random", "centre"] = "centre"
    share: float = 1.0
    flip: float = 0.0
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def __post_init__(self) -> None:
        _checks.integer("size", self.size, 0, 1 << 16)
        _checks.choice("crop", self.crop, ("random", "centre"))
        for name in ("share", "flip"):
            if not 0 <= _checks.real(name, getattr(self, name), at_least=0.0) <= 1:
                _checks.fail(ValueError, name, "a number in [0, 1]", getattr(self, name))

    def at(self, size: int) -> View:
        """The same at another size."""
        return replace(self, size=size)

    def of_picture(self, picture: NDArray[np.uint8], seed: int, epoch: int, index: int) -> Tensor:
        """float32 [3, size, size] of a uint8 picture [height, width, 3]."""
        from PIL import Image

        generator = np.random.default_rng([seed, epoch, index])
        height, width = picture.shape[:2]
        if self.crop == "random":
            top, left, h, w = random_box(height, width, generator)
        else:
            top, left, h, w = centre_box(height, width, self.share)
        box = (left, top, left + w, top + h)
        sized = Image.fromarray(picture).resize((self.size, self.size), Image.Resampling.BILINEAR, box)
        x = torch.from_numpy(np.array(sized)).permute(2, 0, 1).float().div_(255)
        if self.flip and generator.random() < self.flip:
            x = x.flip(2)
        return self.normalised(x)

    def of_tensor(self, x: Tensor, seed: int, epoch: int, index: Tensor) -> Tensor:
        """Images in memory are taken whole and normalised already; only flips apply to them."""
        if not self.flip:
            return x
        turned = torch.tensor(
            [np.random.default_rng([seed, epoch, int(i)]).random() < self.flip for i in index]
        )
        return torch.where(turned[:, None, None, None], x.flip(3), x)

    def normalised(self, x: Tensor) -> Tensor:
        """(x - mean) / std by channel, of x in 0 .. 1 [..., channels, H, W]."""
        mean, std = (torch.tensor(v, dtype=x.dtype)[:, None, None] for v in (self.mean, self.std))
        return (x - mean) / std


def random_box(height: int, width: int, generator: Any) -> tuple[int, int, int, int]:
    """(top, left, height, width) of a random part; after ten vain tries the central part that fits."""
    low, high = 3 / 4, 4 / 3
    for _ in range(10):
        area = height * width * generator.uniform(0.08, 1.0)
        aspect = math.exp(generator.uniform(math.log(low), math.log(high)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(generator.integers(height - h + 1)), int(generator.integers(width - w + 1)), h, w
    w, h = min(width, round(height * high)), min(height, round(width / low))
    return (height - h) // 2, (width - w) // 2, h, w


def centre_box(height: int, width: int, share: float) -> tuple[int, int, int, int]:
    """(top, left, side, side) of the central square of `share` of the shorter side."""
    side = max(1, int(share * min(height, width)))
    return (height - side) // 2, (width - side) // 2, side, side
