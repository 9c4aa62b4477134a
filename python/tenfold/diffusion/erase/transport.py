"""Facilitated transport: how strongly an adapter acts on a prompt (Lyu et al., arXiv 2312.16145).

    m(p) = max over erased texts c of max(cos(E(p), E(c)), |T(p) and T(c)| / |T(c)|)

E is the text states as one vector, T the set of a text's tokens. Each picture is made with the adapter at
its own prompt's strength: prompts that share nothing with the concept leave it outside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tenfold import _checks
from tenfold.diffusion.encode import encode, tokenize
from tenfold.diffusion.erase.lowrank import adapters, layers_of

if TYPE_CHECKING:
    from tenfold.diffusion.bundle import Bundle
    from tenfold.diffusion.sampling import Batch, Step

__all__ = ["METRICS", "Transport", "multipliers"]

METRICS = ("clipcos_tokenuni", "clipcos", "tokenuni")
"""What m is made of: both, the cosine of the states, the share of tokens."""


def multipliers(
    bundle: Bundle,
    texts: Sequence[str] | None,
    states: Tensor,
    erased: Sequence[str],
    metric: str = "clipcos_tokenuni",
) -> Tensor:
    """m [B], float32, of prompts `texts` with text states [B, L, D] for the erased texts.

    Raises:
        ValueError: tokens are to be compared and `texts` is None; an erased text without tokens.
    """
    _checks.choice("metric", metric, METRICS)
    found = []
    if "clipcos" in metric:
        other = encode(bundle, list(erased)).float().flatten(1)
        rows = states.float().flatten(1)
        found.append(torch.cosine_similarity(rows[:, None], other[None], dim=-1))
    if "tokenuni" in metric:
        if texts is None:
            _checks.fail(ValueError, "texts", "what the prompts say", "states only")
        assert texts is not None
        said, gone = (_token_sets(bundle, group) for group in (texts, erased))
        if not all(gone):
            _checks.fail(ValueError, "erased", "texts with tokens", list(erased))
        shares = [[len(row & one) / len(one) for one in gone] for row in said]
        found.append(torch.tensor(shares, device=states.device))
    return torch.stack([x.max(1).values for x in found]).max(0).values


def _token_sets(bundle: Bundle, texts: Sequence[str]) -> list[set[int]]:
    tokens = tokenize(bundle, list(texts), overflow="truncate")
    return [set(row[1 : 1 + int(n)].tolist()) for row, n in zip(tokens.ids, tokens.lengths, strict=True)]


@dataclass(frozen=True, eq=False)
class Transport:
    """A `SamplingHook`: an adapter beside the UNet's weights, each picture with its own multiplier.

    tensors: of the adapter (`lowrank.layers_of`). erased: the texts it was made for. metric: one of
    `METRICS`.
    """

    tensors: Mapping[str, Tensor] = field(repr=False)
    erased: tuple[str, ...]
    metric: str = "clipcos_tokenuni"

    @contextmanager
    def begin(self, batch: Batch) -> Iterator[Callable[[Step, Tensor], Tensor]]:
        """Put the adapter beside the UNet for one batch."""
        unet = batch.bundle.unet
        layers = layers_of(unet, {k: v.to(batch.states.device) for k, v in self.tensors.items()})
        m = multipliers(batch.bundle, batch.texts, batch.states, self.erased, self.metric)

        def rows(count: int) -> Tensor:
            if count % len(m):
                _checks.fail(RuntimeError, "hooks", f"calls on a multiple of {len(m)} rows", count)
            return m.repeat(count // len(m))

        with adapters(unet, layers, rows):
            yield lambda step, states: states
