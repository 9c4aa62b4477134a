"""One rounding per multiply-add and correct conversions, on every instruction set, against exact rationals.

The baseline build has no fma instruction and emulates it through float64; the kernels are driven through the
binding with weights and states chosen so that a second rounding, or a wrong one, would show.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction

import numpy as np
import pytest
import torch
from tenfold.kernels.zo import zo_reference as ref

from tenfold import _native
from tenfold.ops import zo_sample

N = 1024
SEED, STREAM, QUERY = 11, 2, 1
GAUSSIAN, RADEMACHER = 0, 1
NO_ROUNDING, TO_BF16 = -1, _native.DTYPE_CODES[torch.bfloat16]


def nearest_f32(value: Fraction) -> float:
    """Round to nearest even by integer arithmetic; the result is finite or infinite as IEEE 754 says."""
    if value == 0:
        return 0.0
    magnitude = abs(value)
    exponent = magnitude.numerator.bit_length() - magnitude.denominator.bit_length()
    if Fraction(2) ** exponent > magnitude:
        exponent -= 1
    unit = Fraction(2) ** (max(exponent, -126) - 23)
    steps = round(magnitude / unit)  # Python rounds halves to even
    result = float(steps * unit) if steps * unit < 2**128 else math.inf
    return math.copysign(result, value)


def exact_fma(a, b, c) -> torch.Tensor:
    triples = zip(*(np.broadcast_to(v, N).tolist() for v in (a, b, c)), strict=True)
    return torch.tensor([nearest_f32(Fraction(x) * Fraction(y) + Fraction(w)) for x, y, w in triples])


def view(t: torch.Tensor) -> tuple[int, int, tuple[int, ...], tuple[int, ...]]:
    return t.data_ptr(), t.numel(), (), ()


def run_chain(
    weights: torch.Tensor, coef: float, dist: int = GAUSSIAN, z_round: int = NO_ROUNDING, stochastic=False
) -> torch.Tensor:
    out = weights.clone()
    code = _native.DTYPE_CODES[out.dtype]
    _native.cpu.zo_chain(
        [view(out)], [], [STREAM], [(SEED, QUERY, coef, dist)], 1.0, code, z_round, stochastic, 5, 6, 1
    )
    return out


@contextmanager
def using(isa: str) -> Iterator[None]:
    before = _native.cpu.isa_used()
    _native.cpu.use_isa(isa)
    try:
        yield
    finally:
        _native.cpu.use_isa(before)


def bits(x: torch.Tensor) -> torch.Tensor:
    return x.view(torch.int32 if x.element_size() == 4 else torch.int16)


def f32(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float32)


def hard_weights(z: np.ndarray, coef: float) -> dict[str, np.ndarray]:
    """Weights for which coef*z + weight is hard to round."""
    rng = np.random.default_rng(0)
    product = z.astype(np.float64) * float(np.float32(coef))
    ulps = rng.integers(-4, 5, N)
    near = f32(-product)
    # Powers of two of which the product is about half an ulp, and their neighbours.
    scale = 2.0 ** (np.floor(np.log2(np.abs(product))) + rng.integers(22, 27, N))
    return {
        "cancellation": (near.view(np.int32) + ulps.astype(np.int32)).view(np.float32),
        "around a tie": f32(scale * rng.choice([-1.0, 1.0], N) * (1 + rng.integers(0, 3, N) * 2.0**-23)),
        "ordinary": f32(rng.standard_normal(N)),
        "far below": f32(product * 2.0**-40 * rng.standard_normal(N)),
        "far above": f32(product * 2.0**50 * rng.standard_normal(N)),
    }


@pytest.mark.parametrize("coef", [1e-3, -0.7310585, 1 + 2.0**-23, 3.0e18])
def test_fma_of_a_pass_is_exact(isa, coef):
    z = zo_sample(SEED, STREAM, QUERY, n=N)
    for name, weights in hard_weights(z.numpy(), coef).items():
        got = run_chain(torch.from_numpy(weights), coef)
        expected = exact_fma(np.float32(coef), z.numpy(), weights)
        assert torch.equal(got, expected), name


def test_exact_ties_go_to_even(isa):
    # z is +-1 here and the product exact, so weight +- coef is a tie by construction.
    z = zo_sample(SEED, STREAM, QUERY, n=N, dist="rademacher")
    weights = f32((1 + np.arange(N) * 2.0**-23) * 2.0 ** (np.arange(N) % 5))
    for coef in (2.0**-24, 2.0**-23, 2.0**-24 * (1 + 2.0**-23), 2.0**-24 * (1 - 2.0**-24)):
        expected = exact_fma(np.float32(coef), z.numpy(), weights)
        for z_round in (NO_ROUNDING, TO_BF16):  # the add of signs, and the general multiply-add
            assert torch.equal(run_chain(torch.from_numpy(weights), coef, RADEMACHER, z_round), expected)


def test_subnormal_results_round_once(isa):
    rng = np.random.default_rng(1)
    z = zo_sample(SEED, STREAM, QUERY, n=N)
    tiny = (rng.integers(-64, 65, N) * 2.0**-149).astype(np.float32)
    for coef in (2.0**-149, 3 * 2.0**-149, 2.0**-140, 1.1754942e-38, 2.0**-127):
        got = run_chain(torch.from_numpy(tiny), coef)
        assert torch.equal(got, exact_fma(np.float32(coef), z.numpy(), tiny))
        assert (got.abs() < 2.0**-120).all()


def test_overflow_and_infinities(isa):
    top = torch.finfo(torch.float32).max
    sign = zo_sample(SEED, STREAM, QUERY, n=N, dist="rademacher")
    weights = sign * top
    for z_round in (NO_ROUNDING, TO_BF16):
        # Half an ulp past the largest finite number is the tie that becomes infinite; anything less does not.
        assert torch.equal(run_chain(weights, 2.0**103, RADEMACHER, z_round), sign * math.inf)
        less = float(np.nextafter(np.float32(2.0**103), np.float32(0)))
        assert torch.equal(run_chain(weights, less, RADEMACHER, z_round), weights)
        assert torch.equal(run_chain(sign * math.inf, 1.0, RADEMACHER, z_round), sign * math.inf)
        assert torch.isnan(run_chain(torch.full((N,), math.nan), 1.0, RADEMACHER, z_round)).all()
    z = zo_sample(SEED, STREAM, QUERY, n=N)
    got = run_chain(torch.zeros(N), 3.0e38)
    assert torch.equal(got, exact_fma(np.float32(3.0e38), z.numpy(), np.zeros(N)))
    assert torch.isinf(got).any()


def test_fma_of_the_adam_states_is_exact(isa):
    # m = fma(beta1, m, (1-beta1) g) with g = +-coef: any m against two addends.
    beta1, beta2, coef = 0.9, 0.999, 0.3
    g = zo_sample(SEED, STREAM, QUERY, n=N, dist="rademacher").numpy() * np.float32(coef)
    addend = np.float32(1 - beta1) * g
    rng = np.random.default_rng(2)
    near = f32(-addend.astype(np.float64) / np.float64(np.float32(beta1)))
    cancelling = (near.view(np.int32) + rng.integers(-4, 5, N).astype(np.int32)).view(np.float32)
    for m in (cancelling, f32(rng.standard_normal(N)), f32(addend * 2.0 ** rng.integers(-30, 30, N))):
        v = f32(rng.random(N))
        theta, mean, square = (torch.from_numpy(x.copy()) for x in (np.ones(N, np.float32), m, v))
        scalars = [beta1, beta2, 1 - beta1, 1 - beta2, 1.0, 1e-8, -0.1]
        views = [[view(t)] for t in (theta, mean, square)]
        terms = [(SEED, QUERY, coef, RADEMACHER)]
        _native.cpu.zo_adam(*views, [STREAM], terms, scalars, 1.0, 0, NO_ROUNDING, False, 0, 0, 1)
        assert torch.equal(mean, exact_fma(np.float32(beta1), m, addend))
        gg = (np.float32(1 - beta2) * g) * g
        assert torch.equal(square, exact_fma(np.float32(beta2), v, gg))


def test_float64_weights_use_an_exact_float64_fma(isa):
    z = zo_sample(SEED, STREAM, QUERY, n=N).tolist()
    coef = 0.1
    weights = [-(coef * a) for a in z]
    got = run_chain(torch.tensor(weights, dtype=torch.float64), coef).tolist()
    assert got == [float(Fraction(coef) * Fraction(a) + Fraction(w)) for a, w in zip(z, weights, strict=True)]
    assert any(v != 0 for v in got)  # two roundings would cancel to zero


# -- conversions --------------------------------------------------------------------------------------------

HALF = (torch.bfloat16, torch.float16)


def every_pattern(dtype: torch.dtype) -> torch.Tensor:
    return torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal to the bit, any NaN being equal to any other."""
    nan = torch.isnan(a)
    return torch.equal(nan, torch.isnan(b)) and torch.equal(bits(a)[~nan], bits(b)[~nan])


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize(
    "coef", [0.0, 2.0**-9, 3 * 2.0**-12, 2.0**-25, 2.0**-134, 17.0, 2.0**119, 3.3e38, 65504 * 2.0**-11]
)
def test_every_half_width_value_through_a_pass(dtype, coef):
    """All 65,536 bit patterns widened, moved by an amount that makes ties and overflows, and narrowed."""
    weights = every_pattern(dtype)
    infinite, nan = torch.isinf(weights), torch.isnan(weights)
    for dist, name in ((RADEMACHER, "rademacher"), (GAUSSIAN, "gaussian")):
        for stochastic in (False, True):
            expected = weights.clone()
            rounding = {"stochastic": stochastic, "rounding_seed": 5, "rounding_query": 6}
            ref.chain_([expected], None, [STREAM], [SEED], [QUERY], [coef], [name], **rounding)
            for isa in _native.cpu.isa_available():
                with using(isa):
                    got = run_chain(weights, coef, dist, stochastic=stochastic)
                assert same(got, expected), (isa, name, stochastic)
                assert torch.equal(torch.isnan(got), nan)
                assert torch.equal(bits(got)[infinite], bits(weights)[infinite])


@pytest.mark.parametrize("dtype", HALF)
def test_every_half_width_value_through_the_strided_path(isa, dtype):
    weights = every_pattern(dtype)
    spread = torch.zeros(2**16, 2, dtype=dtype)
    spread[:, 0] = weights
    strided = (spread.data_ptr(), 2**16, (2**16,), (2,))
    code = _native.DTYPE_CODES[dtype]
    for stochastic in (False, True):
        _native.cpu.zo_chain(
            [strided],
            [view(weights)],
            [STREAM],
            [(SEED, QUERY, 2.0**-9, GAUSSIAN)],
            1.0,
            code,
            NO_ROUNDING,
            stochastic,
            5,
            6,
            2,
        )
        assert same(spread[:, 0].contiguous(), run_chain(weights, 2.0**-9, stochastic=stochastic))
        assert (spread[:, 1] == 0).all()


@pytest.mark.parametrize("dtype", HALF)
def test_stochastic_rounding_of_any_float(isa, dtype):
    generator = torch.Generator().manual_seed(3)
    patterns = torch.randint(-(2**31), 2**31, (40_000,), generator=generator).to(torch.int32)
    # Half of them in the exponents where half precision is subnormal or overflows.
    patterns[::2] = patterns[::2] & -0x3F800001 | 0x33000000
    x = patterns.view(torch.float32)
    out = torch.empty(x.shape, dtype=dtype)
    _native.cpu.zo_stochastic_round(
        x.data_ptr(), x.numel(), out.data_ptr(), _native.DTYPE_CODES[dtype], 9, 8, 7, 1234, 2
    )
    assert same(out, ref.stochastic_round(x, dtype, 9, 8, 7, 1234))
    assert not torch.isinf(out[torch.isfinite(x)]).any()


@pytest.mark.parametrize("dtype", HALF)
def test_samples_round_to_nearest_even(isa, dtype):
    z = zo_sample(3, n=50_000)
    assert torch.equal(bits(zo_sample(3, n=50_000, dtype=dtype)), bits(z.to(dtype)))


def test_flushing_denormals_does_not_change_the_generator(isa):
    """MXCSR is the caller's; a direction holds no subnormal on the way, so it must not notice."""
    z = zo_sample(6, n=20_000)
    if not torch.set_flush_denormal(True):
        pytest.skip("this CPU cannot flush subnormals to zero")
    try:
        flushed = zo_sample(6, n=20_000)
    finally:
        torch.set_flush_denormal(False)
    assert torch.equal(z, flushed)
