"""A key/value cache that holds a trained prefix and nothing else (imports transformers: load it late)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer


class PrefixLayer(DynamicLayer):
    """Keys and values [heads, length, head size] in front of those of every row; nothing is stored.

    A stock layer would keep what each forward adds. This one gives prefix and new states joined and forgets
    them, so that a block can be computed again (activation checkpointing) and frees its states at once.
    """

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.prefix_keys, self.prefix_values = keys, values
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        return join(self.prefix_keys, key_states), join(self.prefix_values, value_states)

    def get_seq_length(self, *args: Any) -> int:
        return int(self.prefix_keys.shape[-2])


def join(prefix: Tensor, states: Tensor) -> Tensor:
    """[heads, p, d] in front of [B, heads, T, d]."""
    return torch.cat((prefix.expand(states.shape[0], -1, -1, -1).to(states.dtype), states), dim=-2)


def prefix_cache(keys: Sequence[Tensor], values: Sequence[Tensor]) -> Any:
    """For one forward, or many: see :class:`PrefixLayer`."""
    return Cache(layers=[PrefixLayer(k, v) for k, v in zip(keys, values, strict=True)])


def growing_cache(keys: Sequence[Tensor], values: Sequence[Tensor], rows: int) -> Any:
    """A stock cache for generation that begins with the prefix (empty without one), for a batch of rows."""
    cache = DynamicCache()
    for i, (k, v) in enumerate(zip(keys, values, strict=True)):
        cache.update(k.expand(rows, -1, -1, -1).clone(), v.expand(rows, -1, -1, -1).clone(), i)
    return cache


def recorded(cache: Any) -> tuple[list[Tensor], list[Tensor]]:
    """Keys and values of the first row of a stock cache, layer by layer: [heads, T, d] each."""
    return [layer.keys[0] for layer in cache.layers], [layer.values[0] for layer in cache.layers]
