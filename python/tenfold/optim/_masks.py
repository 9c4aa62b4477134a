"""Which elements move in a step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor

from ._options import MagnitudeSparsity, RandomSparsity
from ._seeds import splitmix64
from ._shards import is_sharded, locals_of, owned, quantiles

Mask = Any  # tenfold.ops.RandomMask | MagnitudeMask | BitMask, one entry per tensor


def only(mask: Mask | None, k: int) -> Mask | None:
    """The mask of tensor number k alone."""
    if mask is None:
        return None
    name = mask._fields[-1]  # ratio, threshold or bits: what there is one of for each tensor
    return mask._replace(**{name: [getattr(mask, name)[k]]})


def joined(masks: Sequence[Mask | None]) -> Mask | None:
    """One mask of the same kind for the tensors of all."""
    first = masks[0]
    if first is None or len(masks) == 1:
        return first
    name = first._fields[-1]
    return first._replace(**{name: [entry for mask in masks for entry in getattr(mask, name)]})


def phi(s: float) -> float:
    """The share that a mask drawn as N(0, 1) < s really masks."""
    return 0.5 * (1.0 + math.erf(s / math.sqrt(2.0)))


def window(option: RandomSparsity | MagnitudeSparsity, step: int) -> int:
    """The first step of the window of steps that share a mask (random) or thresholds (magnitude)."""
    return 0 if option.every is None else step - step % option.every


def shares(
    option: RandomSparsity, params: list[Tensor], compat: str | None, parallel: Any = None
) -> list[float]:
    """The masked share of each tensor; `parallel` where tensors are sharded."""
    ratio = phi(option.ratio) if compat == "zo-llm" else option.ratio
    if option.scope == "tensor":
        return [ratio] * len(params)
    from tenfold.ops import count_within, quantile_abs

    if any(is_sharded(p) for p in params):
        (threshold,) = quantiles(params, ratio, parallel, together=True)
        here = count_within(locals_of(params), [threshold] * len(params))
        mine = [float(n) if owned(p, parallel.rank) else 0.0 for n, p in zip(here, params, strict=True)]
        sums = parallel.total(mine)
        return [n / p.numel() if p.numel() else 0.0 for n, p in zip(sums, params, strict=True)]
    if any(p.device != params[0].device for p in params):
        message = "mask: expected all parameters on one device with scope='global', got several"
        raise ValueError(message)
    threshold = quantile_abs(params, ratio)
    counts = count_within(params, [threshold] * len(params))
    return [count / p.numel() if p.numel() else 0.0 for count, p in zip(counts, params, strict=True)]


def thresholds(option: MagnitudeSparsity, params: list[Tensor], parallel: Any = None) -> list[float]:
    """The largest magnitude that still moves, per tensor; `parallel` where tensors are sharded."""
    from tenfold.ops import quantile_abs

    if any(is_sharded(p) for p in params):
        return quantiles(params, 1.0 - option.ratio, parallel, together=False)
    return [quantile_abs([p], 1.0 - option.ratio) if p.numel() else 0.0 for p in params]


def random_mask(option: RandomSparsity, seed: int, step: int, ratios: list[float]) -> Mask:
    from tenfold.ops import RandomMask

    return RandomMask(splitmix64(seed, window(option, step)), 0, ratios)


def magnitude_mask(params: list[Tensor], limits: list[float], *, fixed: bool) -> Mask:
    """`fixed` stores one bit per element, for passes that see other than the clean weights."""
    from tenfold.ops import BitMask, MagnitudeMask, magnitude_bits

    if fixed:
        return BitMask(cast("Sequence[Tensor]", magnitude_bits(params, limits)))
    return MagnitudeMask(limits)
