"""Attention maps of a UNet, read from its queries and keys, whatever computes the attention itself.

Hooks on `to_q` and `to_k` see the projected queries and keys; probabilities are made from them where they are
wanted. The forward pass stays what it is, and gradients flow.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tenfold import _checks

__all__ = ["Recorded", "attn_maps", "grid_of", "record"]


class Recorded(NamedTuple):
    """name: of the attention module. q [B, heads, n, dk], k [B, heads, L, dk]; scale: of their product."""

    name: str
    q: Tensor
    k: Tensor
    scale: float


@contextmanager
def record(unet: nn.Module, *kinds: str) -> Iterator[list[Recorded]]:
    """Collect queries and keys of every attention module whose name ends with one of `kinds` ("attn1" self,
    "attn2" cross attention) while the block is open; clear the list between calls of the UNet.

    Raises:
        ValueError: the UNet has no such module, or one whose queries are normalised after the projection.
    """
    found: list[Recorded] = []
    modules = {name: m for name, m in unet.named_modules() if name.split(".")[-1] in kinds}
    if not modules:
        _checks.fail(ValueError, "unet", f"attention modules named {' or '.join(kinds)}", "none")
    handles = []
    try:
        for name, module in modules.items():
            if getattr(module, "norm_q", None) is not None:
                _checks.fail(ValueError, f"unet: {name}", "queries as projected", "a norm behind to_q")
            handles += _listen(module, name, found)
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _listen(module: Any, name: str, found: list[Recorded]) -> list[Any]:
    last: list[Tensor] = []

    def on_q(layer: nn.Module, args: Any, out: Tensor) -> None:
        last[:] = [_heads(out, module.heads)]

    def on_k(layer: nn.Module, args: Any, out: Tensor) -> None:
        found.append(Recorded(name, last[0], _heads(out, module.heads), float(module.scale)))

    return [module.to_q.register_forward_hook(on_q), module.to_k.register_forward_hook(on_k)]


def _heads(x: Tensor, heads: int) -> Tensor:
    """[B, n, heads * dk] -> [B, heads, n, dk]: the head is the inner index, the picture the outer one."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def _probabilities(q: Tensor, k: Tensor, scale: float) -> Tensor:
    return (q @ k.transpose(-1, -2) * scale).softmax(-1)


def attn_maps(recorded: list[Recorded], count: int) -> Tensor:
    """[B, n, L], float64: probabilities, the mean over heads and over the layers with n = `count`
    positions."""
    chosen = [r for r in recorded if r.q.shape[2] == count]
    maps = [_probabilities(r.q.double(), r.k.double(), r.scale).mean(1) for r in chosen]
    return torch.stack(maps).mean(0)


def grid_of(count: int, height: int, width: int) -> tuple[int, int]:
    """(rows, columns) of a layer with `count` positions on latents of `height` x `width`.

    Raises:
        ValueError: no halving of the sides gives as many.
    """
    rows, columns = height, width
    while rows * columns > count:
        rows, columns = (rows + 1) // 2, (columns + 1) // 2
    if rows * columns != count:
        _checks.fail(ValueError, "positions", f"a halved grid of {height} x {width}", count)
    return rows, columns
