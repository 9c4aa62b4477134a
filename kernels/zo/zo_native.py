"""The compiled zeroth-order passes behind the signatures of zo_reference.py: tensors in, raw pointers out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from tenfold import _native
from tenfold._native import DTYPE_CODES

from .zo_reference import PURPOSES

NO_ROUNDING = -1


def _view(t: Tensor) -> tuple[int, int, Sequence[int], Sequence[int]]:
    if t.is_contiguous():
        return t.data_ptr(), t.numel(), (), ()
    return t.data_ptr(), t.numel(), t.shape, t.stride()


def _terms(
    seeds: Sequence[int], queries: Sequence[int], coefs: Sequence[float], dists: Sequence[str]
) -> list[tuple[int, int, float, int]]:
    return [(s, q, c, PURPOSES[d]) for s, q, c, d in zip(seeds, queries, coefs, dists, strict=True)]


def _by_dtype(params: Sequence[Tensor]) -> dict[torch.dtype, list[int]]:
    groups: dict[torch.dtype, list[int]] = {}
    for i, p in enumerate(params):
        groups.setdefault(p.dtype, []).append(i)
    return groups


def _code(dtype: torch.dtype | None) -> int:
    return NO_ROUNDING if dtype is None or dtype in (torch.float32, torch.float64) else DTYPE_CODES[dtype]


def _module(t: Tensor) -> tuple[ModuleType, tuple[Any, ...]]:
    """The module for the tensor's device and what it takes last: a thread count, or a stream handle."""
    if t.device.type == "cuda":
        assert _native.cuda is not None
        return _native.cuda, (torch.cuda.current_stream(t.device).cuda_stream,)
    return _native.cpu, (torch.get_num_threads(),)


def chain_(
    params: Sequence[Tensor],
    sources: Sequence[Tensor] | None,
    streams: Sequence[int],
    seeds: Sequence[int],
    queries: Sequence[int],
    coefs: Sequence[float],
    dists: Sequence[str],
    decay: float = 1.0,
    z_round: torch.dtype | None = None,
    stochastic: bool = False,
    rounding_seed: int = 0,
    rounding_query: int = 0,
) -> None:
    """See zo_reference.chain_; one call, and one parallel region or launch, per dtype present."""
    terms = _terms(seeds, queries, coefs, dists)
    for dtype, members in _by_dtype(params).items():
        module, where = _module(params[members[0]])
        module.zo_chain(
            [_view(params[i]) for i in members],
            [] if sources is None else [_view(sources[i]) for i in members],
            [streams[i] for i in members],
            terms,
            decay,
            DTYPE_CODES[dtype],
            _code(z_round),
            stochastic,
            rounding_seed,
            rounding_query,
            *where,
        )


def adam_(
    params: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    streams: Sequence[int],
    seeds: Sequence[int],
    queries: Sequence[int],
    coefs: Sequence[float],
    dists: Sequence[str],
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    step: int,
    decay: float = 1.0,
    z_round: torch.dtype | None = None,
    stochastic: bool = False,
    rounding_seed: int = 0,
    rounding_query: int = 0,
) -> None:
    """See zo_reference.adam_."""
    terms = _terms(seeds, queries, coefs, dists)
    scalars = [
        beta1,
        beta2,
        1 - beta1,
        1 - beta2,
        1 / math.sqrt(1 - beta2**step),
        eps,
        -lr / (1 - beta1**step),
    ]
    for dtype, members in _by_dtype(params).items():
        module, where = _module(params[members[0]])
        module.zo_adam(
            [_view(params[i]) for i in members],
            [_view(exp_avgs[i]) for i in members],
            [_view(exp_avg_sqs[i]) for i in members],
            [streams[i] for i in members],
            terms,
            scalars,
            decay,
            DTYPE_CODES[dtype],
            _code(z_round),
            stochastic,
            rounding_seed,
            rounding_query,
            *where,
        )


def sample_(out: Tensor, seed: int, stream: int, query: int, first: int, dist: str) -> None:
    """Fill contiguous `out` with elements [first, first + numel) of a direction."""
    module, where = _module(out)
    module.zo_sample(
        seed,
        stream,
        query,
        PURPOSES[dist],
        first,
        out.numel(),
        DTYPE_CODES[out.dtype],
        out.data_ptr(),
        *where,
    )


def words_(out: Tensor, seed: int, stream: int, query: int, purpose: str, first_block: int) -> None:
    """Fill contiguous int64 `out` [blocks, 4] with raw generator words."""
    module, where = _module(out)
    module.zo_words(seed, stream, query, PURPOSES[purpose], first_block, out.shape[0], out.data_ptr(), *where)


def stochastic_round(x: Tensor, dtype: torch.dtype, seed: int, stream: int, query: int, first: int) -> Tensor:
    """Contiguous float32 `x` rounded stochastically to `dtype`."""
    out = torch.empty_like(x, dtype=dtype)
    module, where = _module(x)
    module.zo_stochastic_round(
        x.data_ptr(), x.numel(), out.data_ptr(), DTYPE_CODES[dtype], seed, stream, query, first, *where
    )
    return out


def moments(seed: int, stream: int, query: int, first: int, n: int, dist: str) -> tuple[float, float]:
    """Sum and sum of squares of elements [first, first + n), float64, nothing stored; on the CPU."""
    threads = torch.get_num_threads()
    total, squares = _native.cpu.zo_moments(seed, stream, query, PURPOSES[dist], first, n, threads)
    return total, squares
