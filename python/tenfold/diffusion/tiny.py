"""A latent pipeline of random weights, small enough that a whole training loop takes less than a second."""

from __future__ import annotations

from typing import Any

import torch

from tenfold.diffusion.bundle import Bundle
from tenfold.diffusion.schedule import Schedule

__all__ = ["tiny_bundle", "tiny_tokenizer", "tiny_unet"]

_WORDS = (
    *("a", "an", "of", "the", "photo", "painting", "cat", "dog", "church", "tench", "parachute"),
    *("garbage", "truck", "van", "gogh", "nu", "dity", "style"),
)
"""Whole tokens of the small tokenizer. "nudity" is two, "nu" and "dity", as with CLIP's own."""

_INNER = {"nu"}  # pieces that do not end a word


def _bytes_as_letters() -> list[str]:
    """A printable letter for each byte, as byte-level BPE has them (GPT-2's table)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [b for b in range(256) if b not in plain]
    return [chr(b) for b in plain] + [chr(256 + i) for i in range(len(hidden))]


def tiny_tokenizer(context: int = 77) -> Any:
    """A `CLIPTokenizer` of 256 letters and a few words: any text has ids, common prompts have few."""
    from transformers import CLIPTokenizer

    merges: list[Any] = []
    for word in _WORDS:
        pieces = [*word[:-1], word[-1] if word in _INNER else word[-1] + "</w>"]
        while len(pieces) > 1:
            merges.append((pieces[0], pieces[1]))
            pieces = [pieces[0] + pieces[1], *pieces[2:]]
    merges = list(dict.fromkeys(merges))
    letters = _bytes_as_letters()
    tokens = [*letters, *(letter + "</w>" for letter in letters), *("".join(pair) for pair in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=context)


def tiny_unet(**changes: Any) -> Any:
    """The UNet of `tiny_bundle`, its weights from PyTorch's state; `changes` of its configuration."""
    from diffusers import UNet2DConditionModel

    shape: dict[str, Any] = {
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "layers_per_block": 1,
        "block_out_channels": (8, 16),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": 32,
        "attention_head_dim": 4,
        "norm_num_groups": 4,
    }
    return UNet2DConditionModel(**{**shape, **changes})


def tiny_bundle(seed: int = 0, *, prediction_type: str = "epsilon", projection: bool = False) -> Bundle:
    """Random weights in the shape of Stable Diffusion: a text encoder of two layers of width 32, a UNet of 67
    thousand parameters on latents [4, 8, 8], a VAE that makes them pictures [3, 64, 64]. Frozen.

    Args:
        prediction_type: "epsilon", "v_prediction" or "sample".
        projection: a `CLIPTextModelWithProjection` for the text encoder.
    """
    from diffusers import AutoencoderKL
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    tokenizer = tiny_tokenizer()
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=37,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=77,
        projection_dim=24,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        text_encoder = (CLIPTextModelWithProjection if projection else CLIPTextModel)(config)
        unet = tiny_unet()
        vae = AutoencoderKL(
            block_out_channels=(4, 4, 4, 4),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=2,
        )
    schedule = Schedule.scaled_linear(prediction_type)
    return Bundle(unet, text_encoder, tokenizer, vae, schedule, name=f"tiny-{seed}").freeze()
