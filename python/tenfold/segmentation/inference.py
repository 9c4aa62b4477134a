"""Label maps of whole volumes from a network that sees windows.

Windows are weighted by a Gaussian and run along z. A slab of logits as thick as one window is kept, and
slices
that no later window touches become labels at once: memory is classes x window depth x Y x X instead of
classes
x Z x Y x X.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from tenfold.segmentation.labels import Task

__all__ = ["flipped", "gaussian", "predict_labels", "window_starts"]


def window_starts(size: int, patch: int, step: float = 0.5) -> list[int]:
    """Evenly spaced starts that cover `size`, no further apart than `step` of a window (nnU-Net's rule)."""
    if not 0 < step <= 1:
        raise ValueError(f"step: expected a share of a window in (0, 1], got {step}")
    if size <= patch:
        return [0]
    count = math.ceil((size - patch) / (patch * step)) + 1
    return [round(i * (size - patch) / (count - 1)) for i in range(count)]


def gaussian(patch: Sequence[int], width: float = 1 / 8) -> Tensor:
    """Weights of a window: a Gaussian with deviation `width` of each side, largest 1, never 0; float32."""
    sides = [torch.arange(n, dtype=torch.float64) - (n - 1) / 2 for n in patch]
    bells = [torch.exp(-0.5 * (x / (n * width)) ** 2) for x, n in zip(sides, patch, strict=True)]
    weights = (bells[0][:, None, None] * bells[1][:, None] * bells[2]).float()
    weights = weights / weights.max()
    return weights.clamp_min(float(weights[weights > 0].min()))


@torch.no_grad()
def predict_labels(
    network: Callable[[Tensor], Tensor], image: NDArray[np.float32], patch: Sequence[int], classes: int, *,
    step: float = 0.5, device: str = "cpu", advance: Callable[[], None] = lambda: None,
) -> NDArray[np.uint8]:  # fmt: skip
    """The class of every voxel.

    Args:
        network: [1, C, *patch] -> logits [1, classes, *patch].
        image: [C, z, y, x]; smaller than a window it is padded with its minimum.
        step: distance of windows as a share of their side.
        advance: called once for each window.
    """
    if image.ndim != 4:
        raise ValueError(f"image: expected [channels, z, y, x], got shape {image.shape}")
    size = image.shape[1:]
    volume = torch.from_numpy(np.ascontiguousarray(image))
    short = [max(p - n, 0) for p, n in zip(patch, size, strict=True)]
    if any(short):
        volume = F.pad(volume, (0, short[2], 0, short[1], 0, short[0]), value=float(volume.min()))
    full = tuple(volume.shape[1:])
    starts = [window_starts(n, p, step) for n, p in zip(full, patch, strict=True)]
    weights = gaussian(patch).to(device)
    labels = np.zeros(full, np.uint8 if classes <= 256 else np.int16)
    slab = torch.zeros(classes, patch[0], *full[1:], device=device)
    for i, z in enumerate(starts[0]):
        for y in starts[1]:
            for x in starts[2]:
                here = (slice(y, y + patch[1]), slice(x, x + patch[2]))
                window = volume[:, z : z + patch[0], here[0], here[1]][None].to(device)
                slab[:, :, here[0], here[1]] += network(window)[0].float() * weights
                advance()
        done = starts[0][i + 1] - z if i + 1 < len(starts[0]) else patch[0]
        labels[z : z + done] = slab[:, :done].argmax(0).cpu().numpy()
        if done < patch[0]:
            slab[:, : patch[0] - done] = slab[:, done:].clone()
            slab[:, patch[0] - done :] = 0
    return labels[: size[0], : size[1], : size[2]]


def flipped(network: Callable[[Tensor], Tensor], task: Task) -> Callable[[Tensor], Tensor]:
    """The mean of the network's logits on a window and on its left-right mirror image, sides exchanged back.

    The last axis of the window must run from one side of the head to the other.
    """
    from tenfold.segmentation.labels import swap_labels

    def both(window: Tensor) -> Tensor:
        logits = network(window)
        mirror = network(window.flip(-1)).flip(-1)
        order = list(range(logits.shape[1]))
        for label, other in swap_labels(task).items():
            order[label] = other
        return (logits + mirror[:, order]) / 2

    return both
