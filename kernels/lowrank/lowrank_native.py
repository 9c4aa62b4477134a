"""The compiled low-rank passes behind the signatures of lowrank_reference.py: tensors to raw pointers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tenfold.kernels.zo import zo_native
from torch import Tensor

from tenfold._native import DTYPE_CODES

PURPOSES = {"u": 5, "v": 6}


def _transposed(vs: Sequence[Tensor]) -> list[Tensor]:
    """Each V [columns, rank] as [rank, columns]; on a GPU those of one shape in two launches together."""
    out = [v.t() for v in vs]
    alike: dict[torch.Size, list[int]] = {}
    for i, v in enumerate(out):
        if not v.is_contiguous():
            alike.setdefault(v.shape, []).append(i)
    for members in alike.values():
        together = len(members) > 2 and vs[members[0]].is_cuda
        made = torch.stack([vs[i] for i in members]).mT.contiguous() if together else None
        for n, i in enumerate(members):
            out[i] = out[i].contiguous() if made is None else made[n]
    return out


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
    calls = []  # all made before the first is: memory may run out while factors are copied
    for dtype, members in groups.items():
        held = _transposed([vs[i] for i in members])  # what the addresses point to, until the call returns
        rows = []
        for i, transposed in zip(members, tuple(held), strict=True):
            param, source = params[i], params[i] if sources is None else sources[i]
            left = None if us is None else us[i].contiguous()
            if left is not None:
                held.append(left)
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
        calls.append((params[members[0]], rows, DTYPE_CODES[dtype], held))
    for first, rows, code, _ in calls:
        module, where = zo_native._module(first)
        module.lowrank(rows, terms, decay, code, stochastic, rounding_seed, rounding_query, *where)


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
