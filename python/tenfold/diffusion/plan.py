"""What a model of real size takes, told from its shape alone: nothing is allocated and nothing downloaded.

plan_unet(stable_diffusion_unet("1.4"))      859.5 million parameters, 803 GFLOP a call at 64 x 64 latents
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from tenfold import _checks

__all__ = ["UnetPlan", "plan_unet", "stable_diffusion_unet"]

_SHARED = {
    "in_channels": 4,
    "out_channels": 4,
    "layers_per_block": 2,
    "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
}
_UNETS: dict[str, dict[str, Any]] = {
    "1.4": {**_SHARED, "sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},
    "1.5": {**_SHARED, "sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},
    "2.1": {
        **_SHARED,
        "sample_size": 96,
        "cross_attention_dim": 1024,
        "attention_head_dim": (5, 10, 20, 20),
        "use_linear_projection": True,
    },
}


@dataclass(frozen=True)
class UnetPlan:
    """parameters: of the UNet; trainable: those that ask for a gradient.
    weight_bytes: of its weights in their dtype. adam_bytes: gradients and both moments of the trainable ones.
    flops: of one forward call, a multiply-add as two. A backward pass takes about twice that for the
    activations' and, for trained weights, the weights' gradients together."""

    parameters: int
    trainable: int
    weight_bytes: int
    adam_bytes: int
    flops: int


def stable_diffusion_unet(version: str = "1.4", *, device: Any = "meta") -> Any:
    """The UNet of Stable Diffusion "1.4", "1.5" or "2.1", random weights; on "meta" it has only shapes."""
    from diffusers import UNet2DConditionModel

    _checks.choice("version", version, _UNETS)
    with torch.device(device):
        return UNet2DConditionModel(**_UNETS[version])


def plan_unet(unet: Any, *, batch: int = 1, tokens: int = 77, dtype: torch.dtype | None = None) -> UnetPlan:
    """Count a UNet: sizes from its parameters, operations from a call on shapes alone (meta tensors).

    Args:
        unet: a `UNet2DConditionModel` on any device.
        batch: of the call. tokens: of the text. dtype: of the weights; their own if None.
    """
    from diffusers import UNet2DConditionModel
    from torch.utils.flop_counter import FlopCounterMode

    batch = _checks.integer("batch", batch, 1, 2**16)
    tokens = _checks.integer("tokens", tokens, 1, 2**16)
    if dtype is not None:
        _checks.dtype("dtype", dtype)
    config = unet.config
    if getattr(config, "addition_embed_type", None) is not None:
        _checks.fail(ValueError, "unet", "one that reads text states only", config.addition_embed_type)
    size = config.sample_size if isinstance(config.sample_size, (tuple, list)) else (config.sample_size,) * 2
    with torch.device("meta"):
        shapes = UNet2DConditionModel.from_config(config)
        z = torch.empty((batch, config.in_channels, *size))
        states = torch.empty((batch, tokens, config.cross_attention_dim))
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        shapes(z, torch.zeros((batch,), device="meta"), encoder_hidden_states=states)
    parameters = list(unet.parameters())
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    width = [dtype.itemsize if dtype else p.element_size() for p in parameters]
    bytes_ = sum(p.numel() * w for p, w in zip(parameters, width, strict=True))
    per_weight = dtype.itemsize if dtype else parameters[0].element_size()
    return UnetPlan(
        sum(p.numel() for p in parameters),
        trained,
        bytes_,
        3 * trained * per_weight,
        counter.get_total_flops(),
    )
