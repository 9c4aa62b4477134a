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

from .zo_mask import KINDS, MaskArgs, word_threshold
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
    return _module_on(t.device)


def _module_on(device: torch.device) -> tuple[ModuleType, tuple[Any, ...]]:
    if device.type == "cuda":
        assert _native.cuda is not None
        return _native.cuda, (torch.cuda.current_stream(device).cuda_stream,)
    return _native.cpu, (torch.get_num_threads(),)


_NO_MASK: tuple[int, int, int, list[float], list[int]] = (0, 0, 0, [], [])


def _masked(mask: MaskArgs | None, members: Sequence[int]) -> tuple[int, int, int, list[float], list[int]]:
    """The mask of some of the tensors as the binding takes it."""
    if mask is None:
        return _NO_MASK
    values = [mask.values[i] for i in members] if mask.kind != "bits" else []
    if mask.kind == "random":
        values = [float(word_threshold(v)) for v in values]
    bits = [mask.bits[i].data_ptr() for i in members] if mask.kind == "bits" else []
    return KINDS.index(mask.kind) + 1, mask.seed, mask.query, values, bits


def _extra(mask: MaskArgs | None, members: Sequence[int]) -> tuple[Any, ...]:
    return () if mask is None else (_masked(mask, members),)


def _by_dtypes(*lists: Sequence[Tensor]) -> dict[tuple[torch.dtype, ...], list[int]]:
    """Indices by the dtypes of the tensors that stand together."""
    groups: dict[tuple[torch.dtype, ...], list[int]] = {}
    for i, together in enumerate(zip(*lists, strict=True)):
        groups.setdefault(tuple(t.dtype for t in together), []).append(i)
    return groups


def _places(
    streams: Sequence[int], firsts: Sequence[int], members: Sequence[int]
) -> list[int] | list[tuple[int, int]]:
    """The streams of some of the tensors, for shards (on the CPU only) with their first elements."""
    if firsts:
        return [(streams[i], firsts[i]) for i in members]
    return [streams[i] for i in members]


def _views(
    tensors: Sequence[Tensor], members: Sequence[int]
) -> list[tuple[int, int, Sequence[int], Sequence[int]]]:
    return [_view(tensors[i]) for i in members]


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
    mask: MaskArgs | None = None,
    firsts: Sequence[int] = (),
) -> None:
    """See zo_reference.chain_; one call, and one parallel region or launch, per dtype present."""
    terms = _terms(seeds, queries, coefs, dists)
    for dtype, members in _by_dtype(params).items():
        module, where = _module(params[members[0]])
        module.zo_chain(
            [_view(params[i]) for i in members],
            [] if sources is None else [_view(sources[i]) for i in members],
            _places(streams, firsts, members),
            terms,
            decay,
            DTYPE_CODES[dtype],
            _code(z_round),
            stochastic,
            rounding_seed,
            rounding_query,
            *where,
            *_extra(mask, members),
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
    variant: str = "adam",
    mask: MaskArgs | None = None,
    firsts: Sequence[int] = (),
) -> None:
    """See zo_state_reference.adam_; one call per pair of dtypes, of weights and of states."""
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
    for (dtype, state), members in _by_dtypes(params, exp_avgs).items():
        module, where = _module(params[members[0]])
        half = state == torch.bfloat16
        plain = mask is None and variant == "adam" and not half
        module.zo_adam(
            _views(params, members),
            _views(exp_avgs, members),
            _views(exp_avg_sqs, members),
            _places(streams, firsts, members),
            terms,
            scalars,
            decay,
            DTYPE_CODES[dtype],
            _code(z_round),
            stochastic,
            rounding_seed,
            rounding_query,
            *where,
            *(() if plain else (half, variant == "radazo", _masked(mask, members))),
        )


def momentum_(
    params: Sequence[Tensor],
    momentum_buffers: Sequence[Tensor],
    streams: Sequence[int],
    seeds: Sequence[int],
    queries: Sequence[int],
    coefs: Sequence[float],
    dists: Sequence[str],
    lr: float,
    momentum: float,
    dampening: float,
    nesterov: bool,
    first_step: bool,
    decay: float = 1.0,
    z_round: torch.dtype | None = None,
    stochastic: bool = False,
    rounding_seed: int = 0,
    rounding_query: int = 0,
    mask: MaskArgs | None = None,
    firsts: Sequence[int] = (),
) -> None:
    """See zo_state_reference.momentum_."""
    terms = _terms(seeds, queries, coefs, dists)
    for (dtype, state), members in _by_dtypes(params, momentum_buffers).items():
        module, where = _module(params[members[0]])
        module.zo_momentum(
            _views(params, members),
            _views(momentum_buffers, members),
            _places(streams, firsts, members),
            terms,
            [momentum, 1 - dampening, -lr],
            decay,
            DTYPE_CODES[dtype],
            _code(z_round),
            stochastic,
            rounding_seed,
            rounding_query,
            *where,
            state == torch.bfloat16,
            nesterov,
            first_step,
            _masked(mask, members),
        )


def sign_(
    params: Sequence[Tensor],
    streams: Sequence[int],
    seeds: Sequence[int],
    queries: Sequence[int],
    coefs: Sequence[float],
    dists: Sequence[str],
    lr: float,
    decay: float = 1.0,
    z_round: torch.dtype | None = None,
    stochastic: bool = False,
    rounding_seed: int = 0,
    rounding_query: int = 0,
    mask: MaskArgs | None = None,
    firsts: Sequence[int] = (),
) -> None:
    """See zo_state_reference.sign_."""
    terms = _terms(seeds, queries, coefs, dists)
    for dtype, members in _by_dtype(params).items():
        module, where = _module(params[members[0]])
        module.zo_sign(
            _views(params, members),
            _places(streams, firsts, members),
            terms,
            -lr,
            decay,
            DTYPE_CODES[dtype],
            _code(z_round),
            stochastic,
            rounding_seed,
            rounding_query,
            *where,
            _masked(mask, members),
        )


def hizoo_perturb_(
    params: Sequence[Tensor],
    sources: Sequence[Tensor] | None,
    hessians: Sequence[Tensor],
    streams: Sequence[int],
    seed: int,
    query: int,
    c: float,
    dist: str,
    z_round: torch.dtype | None = None,
    stochastic: bool = False,
    rounding_seed: int = 0,
    rounding_query: int = 0,
    mask: MaskArgs | None = None,
    firsts: Sequence[int] = (),
) -> None:
    """See zo_state_reference.hizoo_perturb_."""
    for dtype, members in _by_dtype(params).items():
        module, where = _module(params[members[0]])
        module.zo_hizoo_perturb(
            _views(params, members),
            [] if sources is None else _views(sources, members),
            _views(hessians, members),
            _places(streams, firsts, members),
            (seed, query, c, PURPOSES[dist]),
            DTYPE_CODES[dtype],
            _code(z_round),
            stochastic,
            rounding_seed,
            rounding_query,
            *where,
            _masked(mask, members),
        )


def hizoo_update_(
    params: Sequence[Tensor],
    hessians: Sequence[Tensor],
    streams: Sequence[int],
    seeds: Sequence[int],
    queries: Sequence[int],
    coefs: Sequence[float],
    dists: Sequence[str],
    curvatures: Sequence[float],
    lr: float,
    smoothing: float,
    restore: float = 0.0,
    decay: float = 1.0,
    z_round: torch.dtype | None = None,
    stochastic: bool = False,
    rounding_seed: int = 0,
    rounding_query: int = 0,
    mask: MaskArgs | None = None,
    firsts: Sequence[int] = (),
) -> None:
    """See zo_state_reference.hizoo_update_."""
    terms = _terms(seeds, queries, coefs, dists)
    for dtype, members in _by_dtype(params).items():
        module, where = _module(params[members[0]])
        module.zo_hizoo_update(
            _views(params, members),
            _views(hessians, members),
            _places(streams, firsts, members),
            terms,
            list(curvatures),
            [smoothing, 1 - smoothing, -lr, restore],
            decay,
            DTYPE_CODES[dtype],
            _code(z_round),
            stochastic,
            rounding_seed,
            rounding_query,
            *where,
            _masked(mask, members),
        )


def replay_(
    params: Sequence[Tensor],
    streams: Sequence[int],
    seeds: Sequence[int],
    queries: Sequence[int],
    coefs: Sequence[float],
    dists: Sequence[str],
    sizes: Sequence[int],
    decays: Sequence[float],
    rounding_seeds: Sequence[int],
    rounding_queries: Sequence[int],
    mask_seeds: Sequence[int],
    mask_queries: Sequence[int],
    mask_ratios: Sequence[float],
    z_round: torch.dtype | None = None,
    stochastic: bool = False,
) -> None:
    """See zo_state_reference.replay_."""
    terms = _terms(seeds, queries, coefs, dists)
    limits = [float(word_threshold(r)) if r >= 0 else -1.0 for r in mask_ratios]
    rows = range(0, len(limits), len(params))
    for dtype, members in _by_dtype(params).items():
        module, where = _module(params[members[0]])
        module.zo_replay(
            _views(params, members),
            [streams[i] for i in members],
            terms,
            list(sizes),
            list(decays),
            list(rounding_seeds),
            list(rounding_queries),
            list(mask_seeds),
            list(mask_queries),
            [limits[row + i] for row in rows for i in members],
            DTYPE_CODES[dtype],
            _code(z_round),
            stochastic,
            *where,
        )


def square_sums(
    numels: Sequence[int],
    streams: Sequence[int],
    seed: int,
    query: int,
    dist: str,
    device: torch.device | str = "cpu",
    mask: MaskArgs | None = None,
    params: Sequence[Tensor] = (),
) -> list[float]:
    """See zo_select_reference.square_sums."""
    groups = _by_dtype(params) if params else {torch.float32: list(range(len(numels)))}
    module, where = _module_on(torch.device(device))
    out = [0.0] * len(numels)
    for dtype, members in groups.items():
        views = _views(params, members) if params else [(0, numels[i], (), ()) for i in members]
        sums = module.zo_square_sums(
            views,
            [streams[i] for i in members],
            seed,
            query,
            PURPOSES[dist],
            DTYPE_CODES[dtype],
            *where,
            _masked(mask, members),
        )
        for i, value in zip(members, sums, strict=True):
            out[i] = value
    return out


_DIGIT_BITS = 11  # kDigitBits of zo_api.hpp


def quantile_abs(params: Sequence[Tensor], rank: int) -> float:
    """See zo_select_reference.quantile_abs: 11 bits at a time, of 31 or, where a tensor is float64, of 63."""
    wide = any(t.dtype == torch.float64 for t in params)
    groups = _by_dtype([t for t in params if t.numel()])
    params = [t for t in params if t.numel()]
    prefix, left = 0, 63 if wide else 31
    while left:
        width = min(left, _DIGIT_BITS)
        known = _DIGIT_BITS - width  # bits of the last digit that the prefix has already
        shift = left - width
        counts = torch.zeros(1 << _DIGIT_BITS, dtype=torch.int64)
        for dtype, members in groups.items():
            module, where = _module(params[members[0]])
            options = DTYPE_CODES[dtype], wide, shift, prefix >> known, *where
            counts += torch.tensor(module.zo_count_digits(_views(params, members), *options))
        counts = counts.view(1 << known, 1 << width)[prefix & ((1 << known) - 1)]
        below = counts.cumsum(0)
        digit = int(torch.searchsorted(below, torch.tensor(rank)).item())
        rank -= int(below[digit] - counts[digit])
        prefix = prefix << width | digit
        left = shift
    kind, floating = (torch.int64, torch.float64) if wide else (torch.int32, torch.float32)
    return torch.tensor(prefix, dtype=kind).view(floating).item()


def count_within(params: Sequence[Tensor], thresholds: Sequence[float]) -> list[int]:
    """See zo_select_reference.count_within."""
    out = [0] * len(params)
    for dtype, members in _by_dtype(params).items():
        module, where = _module(params[members[0]])
        bounds = [thresholds[i] for i in members]
        counts = module.zo_count_within(_views(params, members), bounds, DTYPE_CODES[dtype], *where)
        for i, count in zip(members, counts, strict=True):
            out[i] = count
    return out


def magnitude_bits_(out: Sequence[Tensor], params: Sequence[Tensor], thresholds: Sequence[float]) -> None:
    """See zo_select_reference.magnitude_bits_."""
    for dtype, members in _by_dtype(params).items():
        module, where = _module(params[members[0]])
        bounds = [thresholds[i] for i in members]
        bits = [out[i].data_ptr() for i in members]
        module.zo_magnitude_bits(_views(params, members), bounds, bits, DTYPE_CODES[dtype], *where)


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
