"""What a model of real size takes, told from its shape alone: nothing is allocated and nothing downloaded.

plan_unet(stable_diffusion_unet("1.4"))      859.5 million parameters, 803 GFLOP a call at 64 x 64 latents
plan_memory(stable_diffusion_unet("1.4"))    the most bytes that a call, or a training step, has alive at once
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tenfold import _checks

__all__ = ["MemoryPlan", "UnetPlan", "plan_memory", "plan_unet", "stable_diffusion_unet"]

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
    "xl": {
        **_SHARED,
        "sample_size": 128,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 2,
        "up_block_types": ("CrossAttnUpBlock2D",) * 2 + ("UpBlock2D",),
        "transformer_layers_per_block": (1, 2, 10),
        "cross_attention_dim": 2048,
        "attention_head_dim": (5, 10, 20),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
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


@dataclass(frozen=True)
class MemoryPlan:
    """weight_bytes: of the UNet. state_bytes: gradients and both moments of the trainable weights.
    kept_bytes: what a forward call keeps for the backward pass, its result included; 0 where nothing asks for
    a gradient. peak_bytes: the most that is alive at once, all this and temporaries together."""

    weight_bytes: int
    state_bytes: int
    kept_bytes: int
    peak_bytes: int


def stable_diffusion_unet(version: str = "1.4", *, device: Any = "meta") -> Any:
    """The UNet of Stable Diffusion "1.4", "1.5", "2.1" or "xl", random weights; on "meta" it has only
    shapes."""
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
    with torch.device("meta"):
        shapes = UNet2DConditionModel.from_config(unet.config)
        inputs = _inputs(unet.config, batch, tokens)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        shapes(**inputs)
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


def plan_memory(
    unet: Any,
    *,
    batch: int = 1,
    tokens: int = 77,
    dtype: torch.dtype | None = None,
    text_gradient: bool = False,
) -> MemoryPlan:
    """Follow a call or a training step on fake tensors, and count what is alive.

    Where nothing asks for a gradient, one call. Else a step of Adam from the second on: a call with the last
    gradients still there, the backward pass, the update. Attention is the fused kernel's, which keeps no
    maps. What kernels take beside tensors and what an allocator holds back is not counted.

    Args:
        unet: a `UNet2DConditionModel` on any device; its trainable weights are those that ask for a gradient.
        batch, tokens, dtype: as `plan_unet` has them.
        text_gradient: the text states, and SDXL's pooled text, ask for a gradient, as where a text encoder
            trains or is attacked.
    """
    from diffusers import UNet2DConditionModel

    batch = _checks.integer("batch", batch, 1, 2**16)
    tokens = _checks.integer("tokens", tokens, 1, 2**16)
    if dtype is not None:
        _checks.dtype("dtype", dtype)
    kinds = {name: (p.requires_grad, dtype or p.dtype) for name, p in unet.named_parameters()}
    with _fake() as live:
        model = UNet2DConditionModel.from_config(unet.config).eval()
        for name, parameter in model.named_parameters():
            parameter.data = parameter.data.to(kinds[name][1])
            parameter.requires_grad_(kinds[name][0])
            live.hold(parameter)
        weights = live.now
        trained = [p for p in model.parameters() if p.requires_grad]
        moments = [torch.empty_like(p) for p in trained for _ in range(2)]
        inputs = _inputs(unet.config, batch, tokens, next(iter(kinds.values()))[1])
        for text in (inputs["encoder_hidden_states"], *_pooled(inputs)):
            text.requires_grad_(text_gradient)
        for parameter in trained:
            parameter.grad = torch.empty_like(parameter)
        before = live.peak = live.now
        kept = 0
        if trained or text_gradient:
            out = model(**inputs)[0]
            kept = live.now - before
            loss = out.square().mean()
            del out
            for parameter in trained:
                parameter.grad = None
            loss.backward()
            for moment in moments:  # Adam's two temporaries
                moment.sqrt() / 2
        else:
            with torch.no_grad():
                model(**inputs)
        state = 3 * sum(p.numel() * p.element_size() for p in trained)
        return MemoryPlan(weights, state, kept, live.peak)


def _inputs(config: Any, batch: int, tokens: int, dtype: torch.dtype | None = None) -> dict[str, Any]:
    """What a UNet is called with, of the right shapes and without values."""
    size = config.sample_size if isinstance(config.sample_size, (tuple, list)) else (config.sample_size,) * 2
    found: dict[str, Any] = {
        "sample": torch.empty((batch, config.in_channels, *size), dtype=dtype),
        "timestep": torch.empty((batch,), dtype=torch.int64),
        "encoder_hidden_states": torch.empty((batch, tokens, config.cross_attention_dim), dtype=dtype),
        "return_dict": False,
    }
    kind = getattr(config, "addition_embed_type", None)
    if kind not in (None, "text_time"):
        _checks.fail(ValueError, "unet", "one that reads text states, or SDXL's", kind)
    if kind == "text_time":
        width = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        found["added_cond_kwargs"] = {
            "text_embeds": torch.empty((batch, width), dtype=dtype),
            "time_ids": torch.empty((batch, 6), dtype=dtype),
        }
    return found


def _pooled(inputs: dict[str, Any]) -> list[Tensor]:
    """SDXL's pooled text among what a UNet is called with."""
    return [inputs["added_cond_kwargs"]["text_embeds"]] if "added_cond_kwargs" in inputs else []


class _Live(TorchDispatchMode):
    """Bytes of the tensors that are alive, now and at most."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.held: dict[int, int] = {}

    def hold(self, tensor: Tensor) -> None:
        """Count a tensor's storage once, until it is freed."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.held:
            return
        self.held[key] = storage.nbytes()
        self.now += self.held[key]
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._freed, key)

    def _freed(self, key: int) -> None:
        self.now -= self.held.pop(key)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for found in tree_leaves(out):
            if isinstance(found, Tensor):
                self.hold(found)
        return out


@contextmanager
def _fake() -> Iterator[_Live]:
    """A block whose tensors have shapes and lifetimes and no values."""
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True), _Live() as live:
        yield live
