"""Zeroth-order passes in plain PyTorch: the oracle the native kernels are held to, and the fallback.

Every value here is defined to the bit, so each line says where it rounds.  Philox4x32-10 is the counter-based
generator of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011); the normals are
Box-Muller in float32 on top of it; the passes are those of MeZO (Malladi et al., arXiv 2305.17333), written
as one fused multiply-add per element.  Nothing is fast, but memory stays bounded: tensors are worked through
in pieces of CHUNK elements.

Compute dtype: float32 for float32, bfloat16 and float16 tensors, with coefficients rounded once to float32;
float64 for float64 tensors, with coefficients in float64 and z the float32 value cast up.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from .zo_mask import MaskArgs, masked

CHUNK = 1 << 16  # elements in one piece: about 4 MiB of float64 temporaries

PURPOSES = {
    "gaussian": 0,
    "rademacher": 1,
    "uniform": 2,
    "mask": 3,
    "rounding": 4,
    "lowrank_u": 5,
    "lowrank_v": 6,
    "gauss16": 7,
    "sophia": 8,
    "sophia_exp_avg": 9,
    "sophia_hessian": 10,
    "label": 11,
}

_LOW32 = 0xFFFFFFFF


# -- Philox4x32-10 ----------------------------------------------------------------------------------


def _mul_hi_lo(m: int, x: Tensor) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of the 64-bit product m*x, by 16-bit halves so that int64 never overflows."""
    low = x.bitwise_and(0xFFFF) * m
    mid = (x >> 16) * m + (low >> 16)
    return mid >> 16, (mid.bitwise_and(0xFFFF) << 16) | low.bitwise_and(0xFFFF)


def philox4x32_10(
    c0: Tensor, c1: Tensor, c2: Tensor, c3: Tensor, k0: int, k1: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ten Philox rounds on int64 tensors of 32-bit words: the four output words, same shape, in [0, 2^32)."""
    for _ in range(10):
        hi0, lo0 = _mul_hi_lo(0xD2511F53, c0)
        hi1, lo1 = _mul_hi_lo(0xCD9E8D57, c2)
        c0, c1, c2, c3 = hi1 ^ c1 ^ k0, lo1, hi0 ^ c3 ^ k1, lo0
        k0 = (k0 + 0x9E3779B9) & _LOW32
        k1 = (k1 + 0xBB67AE85) & _LOW32
    return c0, c1, c2, c3


def words(
    seed: int,
    stream: int,
    query: int,
    purpose: int | str,
    first_block: int,
    blocks: int,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Raw words, int64 [blocks, 4]: key seed, counter (block lo, block hi, stream, purpose<<24 | query)."""
    code = PURPOSES[purpose] if isinstance(purpose, str) else purpose
    block = torch.arange(first_block, first_block + blocks, dtype=torch.int64, device=device)
    counter = (
        block & _LOW32,
        (block >> 32) & _LOW32,
        torch.full_like(block, stream & _LOW32),
        torch.full_like(block, (code << 24) | query),
    )
    return torch.stack(philox4x32_10(*counter, seed & _LOW32, (seed >> 32) & _LOW32), dim=1)


def _word_range(
    seed: int,
    stream: int,
    query: int,
    purpose: str,
    first: int,
    n: int,
    per_block: int,
    device: torch.device | str,
) -> tuple[Tensor, int]:
    """Words of the blocks that cover elements [first, first+n), and how many leading elements to drop."""
    start = first // per_block
    stop = (first + n + per_block - 1) // per_block
    return words(seed, stream, query, purpose, start, max(stop - start, 0), device), first - start * per_block


# -- exact fused multiply-add -----------------------------------------------------------------------


def _f32(value: Tensor | float) -> Tensor | float:
    """The argument as float64 holding a float32 value (rounded once if it was not one)."""
    if isinstance(value, Tensor):
        return value.to(torch.float32).to(torch.float64)
    return torch.tensor(value, dtype=torch.float64).to(torch.float32).item()


def _two_sum(a: Tensor, b: Tensor | float) -> tuple[Tensor, Tensor]:
    """Knuth's TwoSum: s = RN(a+b) and the exact error e, a+b = s+e."""
    s = a + b
    bb = s - a
    return s, (a - (s - bb)) + (b - bb)


def _add_round_to_odd(a: Tensor, b: Tensor | float) -> Tensor:
    """a+b in float64, rounded to odd: a later rounding to fewer bits then counts alone.

    S. Boldo, G. Melquiond, "Emulation of a FMA and correctly rounded sums", IEEE TC 57(4), 2008.
    """
    s, e = _two_sum(a, b)
    bits = s.view(torch.int64)
    inexact_even = torch.isfinite(s) & (e != 0) & ((bits & 1) == 0)
    step = torch.where((e > 0) == (s > 0), 1, -1)  # towards the error: away from zero when the signs agree
    return torch.where(inexact_even, bits + step, bits).view(torch.float64)


def fma32(a: Tensor | float, b: Tensor | float, c: Tensor | float) -> Tensor:
    """round_f32(a*b + c) with a single rounding, float32 in and out (at least one argument a tensor).

    The float64 product of two float32 is exact; the sum is rounded to odd in float64, so that the final
    rounding to float32 is the only one that counts, also for float32 subnormals.  inf, NaN as in IEEE 754.
    """
    product, addend = _f32(a) * _f32(b), _f32(c)
    if not isinstance(product, Tensor):
        product = torch.full_like(torch.as_tensor(addend, dtype=torch.float64), product)
    return _add_round_to_odd(product, addend).to(torch.float32)


def _split(a: Tensor) -> tuple[Tensor, Tensor]:
    """Veltkamp's split of float64 into two halves of 26 bits."""
    t = a * 134217729.0
    high = t - (t - a)
    return high, a - high


def fma64(a: Tensor | float, b: Tensor | float, c: Tensor | float) -> Tensor:
    """round_f64(a*b + c) with a single rounding; with two if the product over- or underflows float64."""
    x, y, w = (torch.as_tensor(v, dtype=torch.float64) for v in (a, b, c))
    (xh, xl), (yh, yl) = _split(x), _split(y)
    uh = x * y
    ul = ((xh * yh - uh) + xh * yl + xl * yh) + xl * yl
    th, tl = _two_sum(ul, w)
    vh, vl = _two_sum(uh, th)
    exact = vh + _add_round_to_odd(tl, vl)
    # A zero has the sign that IEEE 754 gives the sum, which the error terms above know nothing of.
    return torch.where(torch.isfinite(exact) & (exact != 0), exact, uh + w)


def _fma(a: Tensor | float, b: Tensor | float, c: Tensor | float, dtype: torch.dtype) -> Tensor:
    return fma64(a, b, c) if dtype == torch.float64 else fma32(a, b, c)


def _horner(x: Tensor, coefficients: Sequence[float]) -> Tensor:
    """Polynomial in x, coefficients from high to low, one float32 fma per step."""
    acc = torch.full_like(x, coefficients[0])
    for c in coefficients[1:]:
        acc = fma32(acc, x, c)
    return acc


# -- the distributions ------------------------------------------------------------------------------

_LOG = (
    7.0376836292e-2,
    -1.1514610310e-1,
    1.1676998740e-1,
    -1.2420140846e-1,
    1.4249322787e-1,
    -1.6668057665e-1,
    2.0000714765e-1,
    -2.4999993993e-1,
    3.3333331174e-1,
)
_SIN = (-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1)
_COS = (2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2)


def _unit(x: Tensor) -> Tensor:
    """A 32-bit word as float32 in (0, 1]: fma(float(x), 2^-32, 2^-33), float() to nearest even."""
    return fma32(x.to(torch.float32), 2.0**-32, 2.0**-33)


def _sqrt(x: Tensor) -> Tensor:
    """Correctly rounded square root on any device.

    float32: 53 bits are enough for the second rounding.  float64: the vector library behind torch.sqrt on the
    CPU may be 1 ulp off, so the exact remainder decides between the root and its neighbours.
    """
    root = x.to(torch.float64).sqrt()
    if x.dtype == torch.float64:
        rest = fma64(-root, root, x)
        above = torch.nextafter(root, torch.full_like(root, float("inf")))
        below = torch.nextafter(root, torch.zeros_like(root))
        nearest = torch.where(rest <= -root * (root - below), below, root)
        root = torch.where(rest > root * (above - root), above, nearest)
    return root.to(x.dtype)


def _box_muller(x0: Tensor, x1: Tensor) -> tuple[Tensor, Tensor]:
    """Two normals of two words, float32, "tfz-normal v1": |z| < 6.77, 5.9e-7 from exact Box-Muller."""
    i = _unit(x0).view(torch.int32)
    e = (i - 0x3F3504F3) >> 23
    f = (i - (e << 23)).view(torch.float32) - 1
    s = f * f
    y = (s * f) * _horner(f, _LOG)
    y = f + fma32(-0.5, s, y)
    y = fma32(e.to(torch.float32), float.fromhex("0x1.62e430p-1"), y)  # ln u
    r = _sqrt(-2 * y)

    k = (x1 + 0x20000000) >> 30  # the quarter turn nearest to x1; 4 stands for 0
    a = (x1 - (k << 30)).to(torch.float32) * float.fromhex("0x1.921fb6p-30")
    t = a * a
    sin = fma32(_horner(t, _SIN) * t, a, a)
    cos = fma32(_horner(t, _COS) * t, t, fma32(-0.5, t, 1.0))
    odd = (k & 1) == 1
    sine = torch.where(odd, cos, sin)
    cosine = torch.where(odd, sin, cos)
    sine = torch.where((k & 2) != 0, -sine, sine)
    cosine = torch.where(((k + 1) & 2) != 0, -cosine, cosine)
    return r * cosine, r * sine


def _gaussian(seed: int, stream: int, query: int, first: int, n: int, device: torch.device | str) -> Tensor:
    x, skip = _word_range(seed, stream, query, "gaussian", first, n, 4, device)
    z0, z1 = _box_muller(x[:, 0], x[:, 1])
    z2, z3 = _box_muller(x[:, 2], x[:, 3])
    return torch.stack((z0, z1, z2, z3), dim=1).reshape(-1)[skip : skip + n]


def _rademacher(seed: int, stream: int, query: int, first: int, n: int, device: torch.device | str) -> Tensor:
    x, skip = _word_range(seed, stream, query, "rademacher", first, n, 128, device)
    bits = (x.unsqueeze(-1) >> torch.arange(32, device=x.device)) & 1
    return (2 * bits - 1).reshape(-1)[skip : skip + n].to(torch.float32)


def _uniform(seed: int, stream: int, query: int, first: int, n: int, device: torch.device | str) -> Tensor:
    x, skip = _word_range(seed, stream, query, "uniform", first, n, 4, device)
    return _unit(x.reshape(-1)[skip : skip + n])


def _gauss16(seed: int, stream: int, query: int, first: int, n: int, device: torch.device | str) -> Tensor:
    """Two normals of one word, "tfz-normal16 v1": radius from its low half, angle from its high half."""
    x, skip = _word_range(seed, stream, query, "gauss16", first, n, 8, device)
    even, odd = _box_muller((x & 0xFFFF) << 16 | 0x8000, x & 0xFFFF0000)
    return torch.stack((even, odd), dim=2).reshape(-1)[skip : skip + n]


_DISTRIBUTIONS = {
    "gaussian": _gaussian,
    "rademacher": _rademacher,
    "uniform": _uniform,
    "gauss16": _gauss16,
}


def sample(
    seed: int,
    stream: int,
    query: int,
    first: int,
    n: int,
    dist: str = "gaussian",
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Elements [first, first+n) of direction (seed, stream, query), float32 values rounded to `dtype`."""
    draw = _DISTRIBUTIONS[dist]
    out = torch.empty(n, dtype=dtype, device=device)
    for at in range(0, n, CHUNK):
        m = min(CHUNK, n - at)
        out[at : at + m] = draw(seed, stream, query, first + at, m, device)
    return out


def rounding_bits(
    seed: int, stream: int, query: int, first: int, n: int, device: torch.device | str = "cpu"
) -> Tensor:
    """The 16 random bits of each element that stochastic rounding adds, int64 [n] in [0, 65536)."""
    x, skip = _word_range(seed, stream, query, "rounding", first, n, 8, device)
    return torch.stack((x & 0xFFFF, x >> 16), dim=2).reshape(-1)[skip : skip + n]


# -- rounding to the storage dtype ------------------------------------------------------------------


def round_rne(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Round to nearest, ties to even (what a plain cast does); float16 overflows to infinity."""
    return x.to(dtype)


def _sr_bfloat16(x: Tensor, r16: Tensor) -> Tensor:
    bits = x.view(torch.int32).to(torch.int64) & _LOW32
    magnitude = (((bits & 0x7FFFFFFF) + r16) >> 16).clamp_max(0x7F7F)
    return magnitude | ((bits >> 16) & 0x8000)


def _sr_float16(x: Tensor, r16: Tensor) -> Tensor:
    bits = x.view(torch.int32).to(torch.int64) & _LOW32
    magnitude = bits & 0x7FFFFFFF
    normal = ((magnitude + (r16 >> 3)) >> 13) - (112 << 10)

    # Below 2^-14 the unit is 2^-24: the 24-bit significand moves right by 126 - exponent, 14 or more places.
    exponent = (magnitude >> 23).clamp_min(1)
    significand = (magnitude & 0x7FFFFF) | ((magnitude >= 0x800000).to(torch.int64) << 23)
    shift = (126 - exponent).clamp(14, 40)  # at 40 places nothing is left to round up
    scaled = torch.where(shift < 16, r16 >> (16 - shift).clamp_min(0), r16 << (shift - 16).clamp_min(0))
    subnormal = (significand + scaled) >> shift
    rounded = torch.where(magnitude < 0x38800000, subnormal, normal).clamp_max(0x7BFF)
    return rounded | ((bits >> 16) & 0x8000)


def round_sr(x: Tensor, dtype: torch.dtype, r16: Tensor) -> Tensor:
    """Stochastic rounding of float32 to bfloat16 or float16 by random bits `r16`; other dtypes: a plain cast.

    On the magnitude, so both signs behave alike.  bfloat16: (bits + r16) >> 16, exact to the 16 dropped bits.
    float16, normal range: (bits + (r16 >> 3)) >> 13, exact to the 13 dropped bits.  float16 below 2^-14: the
    significand is shifted by s = 126 - exponent places and r16 is scaled to them (r16 >> (16-s), or
    r16 << (s-16)); probabilities are then multiples of 2^-16, and magnitudes below 2^-40 become zero.
    A carry past the largest finite value saturates there, and so does a finite value that already lies past
    it; inf and NaN are copied.
    """
    kernel = {torch.bfloat16: _sr_bfloat16, torch.float16: _sr_float16}.get(dtype)
    if kernel is None:
        return x.to(dtype)
    x = x.to(torch.float32).contiguous()
    rounded = kernel(x, r16).to(torch.int32)
    rounded = torch.where(rounded >= 0x8000, rounded - 0x10000, rounded).to(torch.int16).view(dtype)
    return torch.where(torch.isfinite(x), rounded, x.to(dtype))


# -- passes over lists of tensors -------------------------------------------------------------------


def _pieces(tensors: Sequence[Tensor], first: int = 0) -> Iterator[tuple[int, list[Tensor]]]:
    """Equal slices of tensors of one shape, at most CHUNK elements, row-major, and their first index."""
    n = tensors[0].numel()
    if n == 0:
        return
    if all(t.is_contiguous() for t in tensors):
        flat = [t.view(-1) for t in tensors]
        for at in range(0, n, CHUNK):
            yield first + at, [t[at : at + CHUNK] for t in flat]
    elif n <= CHUNK:
        yield first, list(tensors)
    elif tensors[0].shape[0] == 1:
        yield from _pieces([t[0] for t in tensors], first)
    else:
        half = tensors[0].shape[0] // 2
        yield from _pieces([t[:half] for t in tensors], first)
        yield from _pieces([t[half:] for t in tensors], first + half * tensors[0][0].numel())


def _start(firsts: Sequence[int], t: int) -> int:
    return firsts[t] if firsts else 0


def _compute_dtype(param: Tensor) -> torch.dtype:
    return torch.float64 if param.dtype == torch.float64 else torch.float32


def _scalar(value: float, dtype: torch.dtype) -> float:
    """A Python float as the compute dtype holds it."""
    return torch.tensor(value, dtype=torch.float64).to(dtype).item()


def _direction(
    acc: Tensor,
    stream: int,
    first: int,
    seeds: Sequence[int],
    queries: Sequence[int],
    coefs: Sequence[float],
    dists: Sequence[str],
    z_round: torch.dtype | None,
) -> Tensor:
    """acc + sum_k coef_k z_k, one fma per term, in the order of the terms."""
    for seed, query, coef, dist in zip(seeds, queries, coefs, dists, strict=True):
        z = _DISTRIBUTIONS[dist](seed, stream, query, first, acc.numel(), acc.device)
        if z_round is not None:
            z = z.to(z_round)
        acc = _fma(_scalar(coef, acc.dtype), z.to(acc.dtype), acc, acc.dtype)
    return acc


def _store(
    target: Tensor,
    value: Tensor,
    first: int,
    stream: int,
    stochastic: bool,
    rounding_seed: int,
    rounding_query: int,
) -> None:
    """Round the compute-dtype vector `value` to the dtype of `target` and write it there."""
    if stochastic and target.dtype in (torch.bfloat16, torch.float16):
        r16 = rounding_bits(rounding_seed, stream, rounding_query, first, value.numel(), value.device)
        value = round_sr(value, target.dtype, r16)
    target.copy_(round_rne(value, target.dtype).view(target.shape))


@torch.no_grad()
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
    """theta = round(decay*source + sum_k coef_k z_k) in place; `sources` defaults to the parameters.

    acc = decay*source (one rounding, none for decay 1), then acc = fma(coef_k, z_k, acc) term by term, then
    one rounding to the dtype of theta: to nearest even, or stochastic with the bits of
    (rounding_seed, stream, rounding_query). Where `mask` says so, the terms are left out. `firsts`: the index
    of each tensor's first element in its stream, all 0 if empty; the tensors are then shards of larger ones.
    """
    clean_ones = params if sources is None else sources
    for t, (param, source, stream) in enumerate(zip(params, clean_ones, streams, strict=True)):
        dtype = _compute_dtype(param)
        start = _start(firsts, t)
        for first, (target, clean) in _pieces((param, source), start):
            x = clean.reshape(-1).to(dtype)
            decayed = x * _scalar(decay, dtype) if decay != 1.0 else x
            acc = _direction(decayed, stream, first, seeds, queries, coefs, dists, z_round)
            if mask is not None:
                acc = torch.where(masked(mask, t, x, stream, first, start), decayed, acc)
            _store(target, acc, first, stream, stochastic, rounding_seed, rounding_query)


# -- the same calls that the compiled backends answer (zo_native.py) -----------------------------------------


def sample_(out: Tensor, seed: int, stream: int, query: int, first: int, dist: str) -> None:
    """Fill `out` [n] with elements [first, first+n) of a direction."""
    out.copy_(sample(seed, stream, query, first, out.numel(), dist, out.dtype, out.device))


def words_(out: Tensor, seed: int, stream: int, query: int, purpose: str, first_block: int) -> None:
    """Fill int64 `out` [blocks, 4] with raw generator words."""
    out.copy_(words(seed, stream, query, purpose, first_block, out.shape[0], out.device))


def stochastic_round(x: Tensor, dtype: torch.dtype, seed: int, stream: int, query: int, first: int) -> Tensor:
    """float32 `x` rounded stochastically to `dtype` with the rounding bits of elements first, first+1, ..."""
    r16 = rounding_bits(seed, stream, query, first, x.numel(), x.device)
    return round_sr(x.reshape(-1), dtype, r16).view(x.shape)


def moments(
    seed: int,
    stream: int,
    query: int,
    first: int,
    n: int,
    dist: str,
    device: torch.device | str = "cpu",
) -> tuple[float, float]:
    """Sum and sum of squares of elements [first, first+n) in float64, piece by piece."""
    total, squares = 0.0, 0.0
    for at in range(0, n, CHUNK):
        z = sample(seed, stream, query, first + at, min(CHUNK, n - at), dist, torch.float64, device)
        total += z.sum().item()
        squares += z.square().sum().item()
    return total, squares


# -- the passes with state, and the sums and selections, stand in files of their own -------------------------

_HOMES = {
    **dict.fromkeys(("adam_", "hizoo_perturb_", "hizoo_update_", "momentum_", "replay_", "sign_"), "state"),
    **dict.fromkeys(("count_within", "magnitude_bits_", "quantile_abs", "square_sums"), "select"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__package__}.zo_{_HOMES[name]}_reference"), name)
