"""A codec in closed form in the place of a VAE: principal components of patches of 4 x 4 pixels.

48 numbers of a patch become 16, means removed, scaled by their deviations to the power -1/2 and brought to
mean variance 1: components that matter little then weigh little in a training loss, and noise covers all of
them.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

__all__ = ["CHANNELS", "PATCH", "PatchCodec", "fitted"]

PATCH, CHANNELS = 4, 16


class PatchCodec(ModelMixin, ConfigMixin):
    """Pictures [B, 3, H, W] in [-1, 1] to latents [B, 16, H/4, W/4] and back, with the calls of
    `AutoencoderKL`: `encode(x).latent_dist.mean`, `decode(z).sample`."""

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        latent_channels: int = CHANNELS,
        block_out_channels: tuple[int, ...] = (1, 1, 1),
        scaling_factor: float = 1.0,
    ) -> None:
        super().__init__()
        patch = 2 ** (len(block_out_channels) - 1)
        width = in_channels * patch * patch
        self.patch = patch
        self.mean = nn.Parameter(torch.zeros(width), requires_grad=False)
        self.into = nn.Parameter(torch.zeros(latent_channels, width), requires_grad=False)
        self.back = nn.Parameter(torch.zeros(width, latent_channels), requires_grad=False)

    def encode(self, x: Tensor) -> Any:
        batch, _, height, width = x.shape
        rows = nn.functional.unfold(x, self.patch, stride=self.patch) - self.mean[:, None]
        z = (self.into @ rows).view(batch, -1, height // self.patch, width // self.patch)
        return SimpleNamespace(latent_dist=SimpleNamespace(mean=z, sample=lambda generator=None: z))

    def decode(self, z: Tensor, return_dict: bool = True, generator: Any = None) -> Any:
        height, width = z.shape[2:]
        rows = self.back @ z.flatten(2) + self.mean[:, None]
        size = (height * self.patch, width * self.patch)
        x = nn.functional.fold(rows, size, self.patch, stride=self.patch)
        return SimpleNamespace(sample=x) if return_dict else (x,)


def fitted(pictures: Tensor) -> PatchCodec:
    """The codec of pictures [B, 3, H, W] in [-1, 1]."""
    codec = PatchCodec()
    rows = nn.functional.unfold(pictures, PATCH, stride=PATCH).transpose(1, 2).flatten(0, 1).double().numpy()
    mean = rows.mean(0)
    values, vectors = np.linalg.eigh(np.cov(rows.T))
    values, vectors = values[::-1][:CHANNELS], vectors[:, ::-1][:, :CHANNELS]
    vectors = vectors * np.sign(vectors[np.abs(vectors).argmax(0), np.arange(CHANNELS)])
    scale = values**-0.25  # deviation to the power -1/2
    scale = scale / np.sqrt(np.mean(values * scale**2))
    with torch.no_grad():
        codec.mean.copy_(torch.from_numpy(mean))
        codec.into.copy_(torch.from_numpy((vectors * scale).T.copy()))
        codec.back.copy_(torch.from_numpy(vectors / scale))
    return codec
