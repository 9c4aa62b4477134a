"""Low-rank changes of a UNet's layers under the names that LoRA files use, merged or beside the weights.

    y = W x + m (alpha / r) U (D x),   D [r, in], U [out, r];  of a convolution D has its kernel, U is 1 x 1

Keys are `lora_unet_<path with _ for .>.lora_down.weight`, `.lora_up.weight`, `.alpha`, as Stable Diffusion
web interfaces and the published adapters of SPM have them. A key names a layer only beside a UNet: `_`
stands for `.` and for itself.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tenfold import _checks
from tenfold.ops import lowrank_apply_
from tenfold.runs.files import read_safetensors

__all__ = [
    "PREFIX",
    "LowRank",
    "adapters",
    "layers_of",
    "merged_weights",
    "read_lowrank",
    "tensors_of",
    "transformer_layers",
    "write_lowrank",
]

PREFIX = "lora_unet_"
_DOWN, _UP, _ALPHA = ".lora_down.weight", ".lora_up.weight", ".alpha"


class LowRank(NamedTuple):
    """down [r, in] or [r, in, kh, kw], up [out, r] or [out, r, 1, 1]; scale: alpha / r."""

    down: Tensor
    up: Tensor
    scale: float


def transformer_layers(unet: nn.Module) -> dict[str, Any]:
    """Path -> module of every linear layer and convolution inside a `Transformer2DModel`: where SPM has its
    adapters."""
    inside = [n for n, m in unet.named_modules() if type(m).__name__ == "Transformer2DModel"]
    return {
        name: module
        for name, module in unet.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d)) and name.startswith(tuple(f"{n}." for n in inside))
    }


def tensors_of(layers: Mapping[str, LowRank]) -> dict[str, Tensor]:
    """Path -> change, as tensors under the published names."""
    found = {}
    for path, layer in layers.items():
        key = PREFIX + path.replace(".", "_")
        found[key + _DOWN] = layer.down.detach()
        found[key + _UP] = layer.up.detach()
        found[key + _ALPHA] = torch.tensor(layer.scale * layer.down.shape[0])
    return found


def layers_of(unet: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, LowRank]:
    """Path -> change, of tensors under the published names, checked against the UNet.

    A layer without `.alpha` has alpha = r. Linear changes stored as 1 x 1 kernels fit linear layers.

    Raises:
        ValueError: a key of another kind, a layer that the UNet lacks, or shapes that do not fit.
    """
    modules = {
        PREFIX + name.replace(".", "_"): (name, m)
        for name, m in unet.named_modules()
        if isinstance(m, (nn.Linear, nn.Conv2d))
    }
    stems: dict[str, None] = {}
    for key in tensors:
        stem = next((key.removesuffix(end) for end in (_DOWN, _UP, _ALPHA) if key.endswith(end)), None)
        if stem is None or not key.startswith(PREFIX):
            _checks.fail(ValueError, "tensors", f"keys {PREFIX}....lora_down.weight, .lora_up.weight", key)
        stems[stem] = None
    found = {}
    for stem in stems:
        if stem not in modules:
            _checks.fail(ValueError, "unet", f"a layer {stem}", "none")
        path, module = modules[stem]
        down, up = tensors.get(stem + _DOWN), tensors.get(stem + _UP)
        if down is None or up is None:
            _checks.fail(ValueError, stem, "lora_down and lora_up", "one of them")
        assert down is not None
        assert up is not None
        alpha = float(tensors.get(stem + _ALPHA, torch.tensor(float(down.shape[0]))))
        found[path] = _fitted(path, module, LowRank(down, up, alpha / max(down.shape[0], 1)))
    return found


def _fitted(path: str, module: Any, layer: LowRank) -> LowRank:
    weight, rank = module.weight, layer.down.shape[0]
    down, up = layer.down, layer.up
    if weight.ndim == 2 and down.ndim == 4:
        down, up = down.flatten(1), up.flatten(1)
    right = [rank, *weight.shape[1:]]
    left = [weight.shape[0], rank, *[1] * (weight.ndim - 2)]
    if list(down.shape) != right or list(up.shape) != left or rank < 1:
        _checks.fail(ValueError, path, f"down {right} and up {left}", f"{list(down.shape)}, {list(up.shape)}")
    if getattr(module, "groups", 1) != 1:
        _checks.fail(ValueError, path, "a convolution without groups", module.groups)
    return LowRank(down, up, layer.scale)


def merged_weights(unet: nn.Module, tensors: Mapping[str, Tensor], multiplier: float) -> dict[str, Tensor]:
    """Name of a parameter -> its value with the change merged in."""
    found = {}
    parameters = dict(unet.named_parameters())
    for path, layer in layers_of(unet, tensors).items():
        value = parameters[f"{path}.weight"].detach().clone()
        down, up = layer.down.to(value.device), layer.up.to(value.device)
        lowrank_apply_([value], [down], [up], scale=layer.scale * multiplier)
        found[f"{path}.weight"] = value
    return found


@contextmanager
def adapters(
    unet: nn.Module, layers: Mapping[str, LowRank], multiplier: Callable[[int], Any] = lambda rows: 1.0
) -> Iterator[None]:
    """Run the UNet with the changes beside its weights while the block is open.

    Args:
        multiplier: number of rows of the batch -> m, a number or [rows]; asked at every layer.
    """
    handles = []
    try:
        for path, layer in layers.items():
            handles.append(unet.get_submodule(path).register_forward_hook(_beside(layer, multiplier)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _beside(layer: LowRank, multiplier: Callable[[int], Any]) -> Any:
    def hook(module: Any, args: Any, out: Tensor) -> Tensor:
        x = args[0]
        if layer.down.ndim == 2:
            added = F.linear(F.linear(x, layer.down.to(x)), layer.up.to(x))
        else:
            inner = F.conv2d(x, layer.down.to(x), None, module.stride, module.padding, module.dilation)
            added = F.conv2d(inner, layer.up.to(x))
        m = multiplier(x.shape[0])
        if isinstance(m, Tensor):
            m = m.to(x).view(-1, *[1] * (x.ndim - 1))
        return out + m * layer.scale * added

    return hook


def read_lowrank(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors, metadata) of a safetensors file.

    Raises:
        FileNotFoundError: no such file. ValueError: no safetensors.
    """
    from tenfold.diffusion.keys import load_component_state

    return load_component_state(path), read_safetensors(path)[1]


def write_lowrank(path: str | Path, tensors: Mapping[str, Tensor], details: Mapping[str, Any]) -> Path:
    """Write tensors as one safetensors file, with what published adapters say in its metadata: "prompts",
    "rank", "alpha" (of details' "erased", "rank", "alpha").

    Raises:
        FileExistsError: there is something at `path`.
    """
    from safetensors.torch import save_file

    path = Path(path)
    if path.exists():
        raise FileExistsError(f"path: expected a new one, got {path}, which exists")
    said = {"prompts": ",".join(details.get("erased", ()))}
    said |= {key: str(details[key]) for key in ("rank", "alpha") if key in details}
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        save_file({k: t.detach().cpu().contiguous() for k, t in tensors.items()}, aside, said)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
    return path
