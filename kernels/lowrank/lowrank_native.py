"""The compiled low-rank passes behind the signatures of lowrank_reference.py: tensors in, raw pointers out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tenfold._native import DTYPE_CODES
from tenfold.kernels.zo import zo_native
from torch import Tensor

PURPOSES = {"u": 5, "v": 6}


def lowrank_(
    params: Sequence[Tensor],
    sources: Sequence[Tensor] | None,
    vs: Sequence[Tensor],
    us: Sequence[Tensor] | None,
    streams: Sequence[int],
    seeds: Sequence[int],
    queries: Sequence[int],
    coefs: Sequence[float],
    decay: float = 1.0,
    stochastic: bool = False,
    rounding_seed: int = 0,
    rounding_query: int = 0,
) -> None:
    """See lowrank_reference.lowrank_; one call, and one parallel region or launch, per dtype present."""
    terms = list(zip(seeds, queries, coefs, strict=True))
    groups: dict[torch.dtype, list[int]] = {}
    for i, p in enumerate(params):
        if p.numel():
            groups.setdefault(p.dtype, []).append(i)
    for dtype, members in groups.items():
        module, where = zo_native._module(params[members[0]])
        held = []  # what the addresses point to, until the call returns
        rows = []
        for i in members:
            param, source = params[i], params[i] if sources is None else sources[i]
            transposed = vs[i].t().contiguous()
            left = None if us is None else us[i].contiguous()
            held.append((transposed, left))
            rows.append(
                (
                    param.data_ptr(),
                    source.data_ptr(),
                    transposed.data_ptr(),
                    0 if left is None else left.data_ptr(),
                    *param.shape,
                    *param.stride(),
                    *source.stride(),
                    vs[i].shape[1],
                    streams[i],
                )
            )
        options = (decay, DTYPE_CODES[dtype], stochastic, rounding_seed, rounding_query)
        module.lowrank(rows, terms, *options, *where)


def factor_(out: Tensor, seed: int, stream: int, query: int, side: str) -> None:
    """Fill contiguous `out` [rows, rank] with a factor, rounded to its dtype."""
    module, where = zo_native._module(out)
    terms = [(seed, query, 1.0)]
    code = DTYPE_CODES[out.dtype]
    module.lowrank_factor(terms, stream, PURPOSES[side], out.numel(), code, out.data_ptr(), *where)


def project_(
    out: Tensor, seeds: Sequence[int], queries: Sequence[int], coefs: Sequence[float], stream: int, side: str
) -> None:
    """Fill contiguous float32 `out` [rows, rank] with sum_k coef_k U_k."""
    module, where = zo_native._module(out)
    terms = list(zip(seeds, queries, coefs, strict=True))
    module.lowrank_project(terms, stream, PURPOSES[side], out.numel(), 0, out.data_ptr(), *where)
