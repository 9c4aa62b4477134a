"""The embedded model: CLIP's text model and diffusers' UNet at a size that a processor trains in minutes."""

from __future__ import annotations

import torch

from tenfold.diffusion.bundle import Bundle
from tenfold.diffusion.digits.vocabulary import tokenizer
from tenfold.diffusion.embedded import word_text_encoder
from tenfold.diffusion.schedule import Schedule

__all__ = ["new_bundle"]

WIDTH = 32


def new_bundle(seed: int = 0) -> Bundle:
    """The untrained model: 32.8 thousand parameters that read text, a UNet of 271.9 thousand on pixels."""
    from diffusers import UNet2DConditionModel

    words = tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        text_encoder = word_text_encoder(words, width=WIDTH, layers=2)
        unet = UNet2DConditionModel(
            sample_size=8,
            in_channels=1,
            out_channels=1,
            block_out_channels=(16, 32),
            down_block_types=("CrossAttnDownBlock2D",) * 2,
            up_block_types=("CrossAttnUpBlock2D",) * 2,
            layers_per_block=1,
            cross_attention_dim=WIDTH,
            attention_head_dim=4,
            norm_num_groups=8,
        )
    return Bundle(unet, text_encoder, words, None, Schedule.scaled_linear(), name="digits").freeze()
