"""The embedded model: CLIP's text model and diffusers' UNet at a size that a processor trains in minutes."""

from __future__ import annotations

from typing import Any

import torch

from tenfold.diffusion.bundle import Bundle
from tenfold.diffusion.digits.vocabulary import CONTEXT, tokenizer
from tenfold.diffusion.encode import flat
from tenfold.diffusion.schedule import Schedule

__all__ = ["new_bundle"]

WIDTH = 32


def new_bundle(seed: int = 0) -> Bundle:
    """The untrained model: a text encoder of 32.8 thousand parameters and a UNet of 271.9 thousand on pixels.

    Token embeddings start as N(0, 0.5) and positions as N(0, 0.1): words are told apart from the start.
    """
    from diffusers import UNet2DConditionModel

    words = tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        text_encoder = _text_encoder(words)
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


def _text_encoder(words: Any) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT,
        projection_dim=WIDTH,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    made = CLIPTextModel(config)
    torch.nn.init.normal_(flat(made).embeddings.token_embedding.weight, 0, 0.5)
    torch.nn.init.normal_(flat(made).embeddings.position_embedding.weight, 0, 0.1)
    return made
