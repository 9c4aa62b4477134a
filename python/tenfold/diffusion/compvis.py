"""Names of a UNet's weights in CompVis' latent diffusion code, and in diffusers.

CompVis numbers blocks in one row: input_blocks.0 is the first convolution, then, for each level, its
`layers_per_block` residual blocks (with their attention as .1) and a downsampling; middle_block;
output_blocks, one more residual block per level, whose last one holds the upsampling as .1 or .2.
"""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor

from tenfold import _checks

__all__ = ["compvis_keys", "unet_keys"]

_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_OUTSIDE = {
    "input_blocks.0.0.": "conv_in.",
    "time_embed.0.": "time_embedding.linear_1.",
    "time_embed.2.": "time_embedding.linear_2.",
    "out.0.": "conv_norm_out.",
    "out.2.": "conv_out.",
}
_PREFIX = "model.diffusion_model."


def unet_keys(state: dict[str, Tensor], config: Any) -> dict[str, Tensor]:
    """A UNet's checkpoint with CompVis' names, renamed for a `UNet2DConditionModel` of this configuration.

    Of a whole checkpoint (with text encoder and VAE) only the UNet is taken; exponential means (`model_ema.`)
    are left out. Names that are not understood stay.

    Raises:
        ValueError: the configuration has more than one number of layers per block.
    """
    layers = config["layers_per_block"]
    if not isinstance(layers, int):
        _checks.fail(ValueError, "layers_per_block", "one number for all levels", layers)
    whole = any(key.startswith(_PREFIX) for key in state)
    taken = {
        key.removeprefix(_PREFIX): tensor
        for key, tensor in state.items()
        if not whole or key.startswith(_PREFIX)
    }
    renamed = {}
    for key, tensor in taken.items():
        name = _name(key.removeprefix("unet."), layers)
        if name.endswith((".proj_in.weight", ".proj_out.weight")) and config.get("use_linear_projection"):
            tensor = tensor.flatten(1)  # 1 x 1 convolutions there, linear layers here
        renamed[name] = tensor
    return renamed


def compvis_keys(state: dict[str, Tensor], config: Any, *, prefix: str = _PREFIX) -> dict[str, Tensor]:
    """The weights of a `UNet2DConditionModel` under CompVis' names: `unet_keys` the other way.

    Args:
        prefix: before every name; CompVis' scripts read "model.diffusion_model.", "" leaves it out.

    Raises:
        ValueError: the configuration has more than one number of layers per block; a name is no such UNet's.
    """
    layers = config["layers_per_block"]
    if not isinstance(layers, int):
        _checks.fail(ValueError, "layers_per_block", "one number for all levels", layers)
    attended = {key.split(".")[1] for key in state if re.match(r"up_blocks\.\d+\.attentions\.", key)}
    renamed = {}
    for key, tensor in state.items():
        name = _compvis_name(key, layers, attended)
        if name is None:
            _checks.fail(ValueError, "state", "names of a UNet2DConditionModel", repr(key))
        if key.endswith((".proj_in.weight", ".proj_out.weight")) and tensor.ndim == 2:
            tensor = tensor[:, :, None, None]
        renamed[prefix + name] = tensor
    return renamed


def _compvis_name(key: str, layers: int, attended: set[str]) -> str | None:
    for old, new in _OUTSIDE.items():
        if key.startswith(new):
            return old + key[len(new) :]
    middle = re.match(r"mid_block\.(resnets|attentions)\.([01])\.(.+)", key)
    if middle:
        place = 1 if middle[1] == "attentions" else 2 * int(middle[2])
        return f"middle_block.{place}.{_outer(middle[3], middle[1])}"
    block = re.match(r"(down|up)_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.(.+)", key)
    if block:
        side, level, kind, layer = block[1], int(block[2]), block[3], int(block[4])
        number = level * (layers + 1) + layer + (side == "down")
        part = int(kind == "attentions")
        return f"{'input' if side == 'down' else 'output'}_blocks.{number}.{part}.{_outer(block[5], kind)}"
    sample = re.match(r"(down|up)_blocks\.(\d+)\.(?:down|up)samplers\.0\.conv\.(.+)", key)
    if not sample:
        return None
    last = int(sample[2]) * (layers + 1) + layers
    if sample[1] == "down":
        return f"input_blocks.{last + 1}.0.op.{sample[3]}"
    return f"output_blocks.{last}.{2 if sample[2] in attended else 1}.conv.{sample[3]}"


def _outer(rest: str, kind: str) -> str:
    """Names within a residual block; those within attention are the same in both."""
    for old, new in _RESNET.items() if kind == "resnets" else ():
        if rest.startswith(f"{new}."):
            return old + rest[len(new) :]
    return rest


def _name(key: str, layers: int) -> str:
    for old, new in _OUTSIDE.items():
        if key.startswith(old):
            return new + key[len(old) :]
    middle = re.match(r"middle_block\.([012])\.(.+)", key)
    if middle:
        place = {"0": "resnets.0", "1": "attentions.0", "2": "resnets.1"}[middle[1]]
        return f"mid_block.{place}.{_inner(middle[2])}"
    block = re.match(r"(input|output)_blocks\.(\d+)\.(\d+)\.(.+)", key)
    if not block:
        return key
    side, number, part, rest = block[1], int(block[2]), int(block[3]), block[4]
    if side == "input":
        level, layer = divmod(number - 1, layers + 1)
        if rest.startswith("op."):
            return f"down_blocks.{level}.downsamplers.0.conv.{rest[3:]}"
        return f"down_blocks.{level}.{'attentions' if part else 'resnets'}.{layer}.{_inner(rest)}"
    level, layer = divmod(number, layers + 1)
    if part and rest.startswith("conv."):
        return f"up_blocks.{level}.upsamplers.0.{rest}"
    return f"up_blocks.{level}.{'attentions' if part else 'resnets'}.{layer}.{_inner(rest)}"


def _inner(rest: str) -> str:
    for old, new in _RESNET.items():
        if rest.startswith(f"{old}."):
            return new + rest[len(old) :]
    return rest
