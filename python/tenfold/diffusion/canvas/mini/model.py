"""The model of the mini canvas: CLIP's text model and diffusers' UNet, at a size for one processor."""

from __future__ import annotations

from typing import Any

import torch

from tenfold.diffusion.bundle import Bundle
from tenfold.diffusion.canvas.mini.images import OBJECTS
from tenfold.diffusion.canvas.mini.styles import STYLES
from tenfold.diffusion.embedded import END, START, UNKNOWN, word_text_encoder, word_tokenizer
from tenfold.diffusion.schedule import Schedule

__all__ = ["CONTEXT", "TEMPLATE_WORDS", "new_bundle", "tokenizer", "words"]

WIDTH = 64
CONTEXT = 16
"""Tokens of a prompt, with the first and the end token."""

TEMPLATE_WORDS = (
    *("a", "an", "the", "of", "in", "by", "image", "photo", "picture", "painting", "portrait", "artwork"),
    *("art", "style", "style."),
)


def words() -> tuple[str, ...]:
    """All words, in the order of their ids; the first and the end token last."""
    styles = [word.lower() for style in STYLES for word in style.split("_")]
    names = [name.lower() for name in OBJECTS]
    return (*dict.fromkeys((*names, *styles, *TEMPLATE_WORDS)), UNKNOWN, START, END)


def tokenizer() -> Any:
    """A new tokenizer of whole words, that pads with the end token and reads any other word as "unknown"."""
    return word_tokenizer(words(), CONTEXT)


def new_bundle(seed: int = 0) -> Bundle:
    """The untrained model: latents [16, 8, 8] of pictures [3, 32, 32], predictions of the clean latents."""
    from diffusers import UNet2DConditionModel

    from tenfold.diffusion.canvas.mini.codec import CHANNELS, PatchCodec

    words = tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        text_encoder = word_text_encoder(words, width=WIDTH, layers=1)
        unet = UNet2DConditionModel(
            sample_size=8,
            in_channels=CHANNELS,
            out_channels=CHANNELS,
            block_out_channels=(64, 96),
            down_block_types=("CrossAttnDownBlock2D",) * 2,
            up_block_types=("CrossAttnUpBlock2D",) * 2,
            layers_per_block=1,
            cross_attention_dim=WIDTH,
            attention_head_dim=4,
            norm_num_groups=8,
        )
    schedule = Schedule.scaled_linear("sample")
    return Bundle(unet, text_encoder, words, PatchCodec(), schedule, name="canvas").freeze()
