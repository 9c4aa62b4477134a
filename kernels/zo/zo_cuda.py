"""The CUDA kernels behind the signatures of zo_reference.py: tensors in, raw pointers and a stream out.

Passes are called as on the CPU (zo_native.py); sums and counts come back through device memory.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tenfold._native import DTYPE_CODES

from . import zo_native
from .zo_mask import MaskArgs
from .zo_native import (
    adam_,
    chain_,
    hizoo_perturb_,
    hizoo_update_,
    magnitude_bits_,
    momentum_,
    replay_,
    sample_,
    sign_,
    stochastic_round,
    words_,
)
from .zo_reference import PURPOSES
from .zo_sums import pairwise_sum

__all__ = [
    "adam_",
    "chain_",
    "count_within",
    "hizoo_perturb_",
    "hizoo_update_",
    "magnitude_bits_",
    "moments",
    "momentum_",
    "quantile_abs",
    "replay_",
    "sample_",
    "sign_",
    "square_sums",
    "stochastic_round",
    "words_",
]

PIECE = 2048  # elements in one sum, kPiece of zo_select_cuda.cu
_PIECES_AT_ONCE = 1 << 18  # of whole tensors: 4 MiB of sums
_DIGIT_BITS = 11  # kDigitBits of zo_api.hpp


def _piece_sums(
    numels: Sequence[int],
    streams: Sequence[int],
    firsts: Sequence[int],
    seed: int,
    query: int,
    dist: str,
    device: torch.device,
    mask: MaskArgs | None = None,
    members: Sequence[int] = (),
    params: Sequence[Tensor] = (),
) -> list[Tensor]:
    """Per span, on the CPU: float64 [pieces, 2], sums of z and of z^2. `members`: their places in `mask`."""
    pieces = [-(-(first % PIECE + n) // PIECE) if n else 0 for n, first in zip(numels, firsts, strict=True)]
    out = torch.empty(sum(pieces), 2, dtype=torch.float64, device=device)
    module, where = zo_native._module(out)
    ends = torch.tensor(pieces).cumsum(0).tolist()
    module.zo_piece_sums(
        [out.data_ptr() + (end - count) * 16 for end, count in zip(ends, pieces, strict=True)],
        [zo_native._view(p) for p in params] or [(0, n, (), ()) for n in numels],
        list(streams),
        list(firsts),
        seed,
        query,
        PURPOSES[dist],
        DTYPE_CODES[params[0].dtype if params else torch.float32],
        *where,
        zo_native._masked(mask, members),
    )
    return list(out.cpu().split(pieces))


def square_sums(
    numels: Sequence[int],
    streams: Sequence[int],
    seed: int,
    query: int,
    dist: str,
    device: torch.device | str = "cuda",
    mask: MaskArgs | None = None,
    params: Sequence[Tensor] = (),
) -> list[float]:
    """See zo_select_reference.square_sums; the sums of some tensors at a time are held."""
    device = torch.device(device)
    groups = zo_native._by_dtype(params) if params else {torch.float32: list(range(len(numels)))}
    out = [0.0] * len(numels)
    for members in groups.values():
        held: list[int] = []
        pieces = 0
        for i in members:
            held.append(i)
            pieces += -(-numels[i] // PIECE)
            if pieces < _PIECES_AT_ONCE and i != members[-1]:
                continue
            spans = [numels[t] for t in held], [streams[t] for t in held], [0] * len(held)
            looked_at = [params[t] for t in held] if params else ()
            sums = _piece_sums(*spans, seed, query, dist, device, mask, held, looked_at)
            for t, pair in zip(held, sums, strict=True):
                out[t] = pairwise_sum(pair[:, 1])
            held, pieces = [], 0
    return out


def moments(
    seed: int,
    stream: int,
    query: int,
    first: int,
    n: int,
    dist: str,
    device: torch.device | str = "cuda",
) -> tuple[float, float]:
    """Sum and sum of squares of elements [first, first + n), float64, as zo_cpu.cpp joins them."""
    chunk, chunks = 512 * PIECE, 64
    totals = [0.0, 0.0]
    for start in range(0, n, chunk * chunks):
        ats = range(start, min(n, start + chunk * chunks), chunk)
        numels = [min(chunk, n - at) for at in ats]
        spans = numels, [stream] * len(ats), [first + at for at in ats]
        sums = _piece_sums(*spans, seed, query, dist, torch.device(device))
        for k in range(2):
            parts = [pairwise_sum(pairs[:, k]) for pairs in sums]
            totals[k] += pairwise_sum(torch.tensor(parts, dtype=torch.float64))
    return totals[0], totals[1]


def quantile_abs(params: Sequence[Tensor], rank: int) -> float:
    """See zo_select_reference.quantile_abs: 11 bits at a time, of 31 or, where a tensor is float64, of 63."""
    params = [t for t in params if t.numel()]
    wide = any(t.dtype == torch.float64 for t in params)
    groups = zo_native._by_dtype(params)
    counts = torch.empty(1 << _DIGIT_BITS, dtype=torch.int64, device=params[0].device)
    prefix = 0
    for shift in range(55 if wide else 22, -1, -_DIGIT_BITS):
        counts.zero_()
        for dtype, members in groups.items():
            module, where = zo_native._module(counts)
            views = [zo_native._view(params[i]) for i in members]
            module.zo_count_digits(views, DTYPE_CODES[dtype], wide, shift, prefix, counts.data_ptr(), *where)
        below = counts.cpu().cumsum(0)
        digit = int(torch.searchsorted(below, torch.tensor(rank)).item())
        rank -= int(below[digit - 1]) if digit else 0
        prefix = prefix << _DIGIT_BITS | digit
    kind, floating = (torch.int64, torch.float64) if wide else (torch.int32, torch.float32)
    return torch.tensor(prefix, dtype=kind).view(floating).item()


def count_within(params: Sequence[Tensor], thresholds: Sequence[float]) -> list[int]:
    """See zo_select_reference.count_within."""
    out = [0] * len(params)
    for dtype, members in zo_native._by_dtype(params).items():
        counts = torch.zeros(len(members), dtype=torch.int64, device=params[0].device)
        module, where = zo_native._module(counts)
        views = [zo_native._view(params[i]) for i in members]
        bounds = [thresholds[i] for i in members]
        module.zo_count_within(views, bounds, DTYPE_CODES[dtype], counts.data_ptr(), *where)
        for i, count in zip(members, counts.tolist(), strict=True):
            out[i] = count
    return out
