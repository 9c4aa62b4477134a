"""The plain-PyTorch oracle against published and printed known answers, and against exact arithmetic."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from tenfold.kernels.zo import zo_reference as ref


def hexes(x: torch.Tensor) -> list[str]:
    if x.dtype == torch.float32:
        return [f"{v & 0xFFFFFFFF:08x}" for v in x.contiguous().view(torch.int32).tolist()]
    return [f"{v & 0xFFFF:04x}" for v in x.contiguous().view(torch.int16).tolist()]


# -- Philox -----------------------------------------------------------------------------------------

KNOWN = [
    ((0, 0, 0, 0), (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_philox_known_answers(counter, key, expected):
    out = ref.philox4x32_10(*(torch.tensor([c], dtype=torch.int64) for c in counter), *key)
    assert " ".join(f"{w.item():08x}" for w in out) == expected


def test_words_counter_layout():
    block, stream, query = 0x300000007, 9, 0x123456
    counter = (7, 3, stream, (4 << 24) | query)
    expected = ref.philox4x32_10(*(torch.tensor([c]) for c in counter), 0xDDCCBBAA, 0x11223344)
    got = ref.words(0x11223344DDCCBBAA, stream, query, "rounding", block, 1)
    assert got.shape == (1, 4)
    assert got[0].tolist() == [w.item() for w in expected]
    assert torch.equal(got, ref.words(0x11223344DDCCBBAA, stream, query, 4, block, 1))


# -- distributions ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stream", "query", "first", "expected"),
    [
        (0, 0, 0, "bf785e5c 3e46ace8 bf9e28d2 3ff6433c bd95e033 3e0e7a13 bf8da734 3ea742fe"),
        (5, 0, 0, "bf81fc64 3f272a0d 3f5784de bf5e7360"),
        (0, 1, 0, "bfd880f6 bf90e657"),
        (0, 0, 1 << 34, "bfd167ba 3db96ac6"),
    ],
)
def test_gaussian_oracles(stream, query, first, expected):
    z = ref.sample(42, stream, query, first, len(expected.split()), "gaussian")
    assert " ".join(hexes(z)) == expected


def test_gaussian_sums_of_a_million():
    z = ref.sample(42, 0, 0, 0, 1_000_000, "gaussian").double()
    assert z.sum().item() == pytest.approx(1149.899133, abs=2e-6)
    assert (z * z).sum().item() == pytest.approx(998180.745466, abs=2e-6)


def test_gaussian_is_box_muller():
    x = ref.words(7, 3, 1, "gaussian", 0, 20_000)
    u, angle = ref._unit(x[:, 0::2]).double(), x[:, 1::2].double() * (2 * math.pi * 2.0**-32)
    r = (-2 * u.log()).sqrt()
    exact = torch.stack((r * angle.cos(), r * angle.sin()), dim=-1).reshape(-1)
    assert (ref.sample(7, 3, 1, 0, 80_000).double() - exact).abs().max() < 1e-6


def test_rademacher_oracle():
    z = ref.sample(42, 0, 0, 0, 32, "rademacher")
    assert "".join("+" if v > 0 else "-" for v in z.tolist()) == "+--+-+-++-+++++-----+--++++-+--+"
    assert set(z.tolist()) == {-1.0, 1.0}


def test_rounding_bits_and_mask_words_oracles():
    assert ref.rounding_bits(42, 0, 0, 0, 8).tolist() == [
        24821,
        14780,
        26393,
        33987,
        41736,
        63878,
        15614,
        49662,
    ]
    assert ref.words(42, 0, 0, "mask", 0, 1)[0].tolist() == [1369655209, 3799427476, 2634282697, 2351043353]


def test_uniform_is_in_the_open_closed_unit_interval():
    u = ref.sample(1, 2, 3, 0, 10_000, "uniform")
    x = ref.words(1, 2, 3, "uniform", 0, 2_500).reshape(-1)
    assert torch.equal(u, ((x.float().double() + 0.5) * 2.0**-32).float())
    assert u.min() > 0
    assert u.max() <= 1
    assert ref._unit(torch.tensor([0, 2**32 - 1])).tolist() == [2.0**-33, 1.0]


@pytest.mark.parametrize("dist", ["gaussian", "rademacher", "uniform"])
def test_ragged_pieces_equal_the_whole(dist, monkeypatch):
    whole = ref.sample(5, 1, 2, 0, 700, dist)
    cuts = [0, 1, 3, 4, 130, 257, 699, 700]
    pieces = [ref.sample(5, 1, 2, a, b - a, dist) for a, b in itertools.pairwise(cuts)]
    assert torch.equal(torch.cat(pieces), whole)
    monkeypatch.setattr(ref, "CHUNK", 128)
    assert torch.equal(ref.sample(5, 1, 2, 0, 700, dist), whole)
    assert ref.sample(5, 1, 2, 0, 0, dist).numel() == 0


def test_sample_rounds_to_the_dtype_asked_for():
    z = ref.sample(42, 0, 0, 0, 100)
    assert torch.equal(ref.sample(42, 0, 0, 0, 100, dtype=torch.bfloat16), z.bfloat16())
    assert torch.equal(ref.sample(42, 0, 0, 0, 100, dtype=torch.float64), z.double())


# -- exact multiply-add -----------------------------------------------------------------------------


def _nearest_f32(value: Fraction) -> np.float32:
    """Correct rounding of a rational: a search among the float32 neighbours of its float64 approximation."""
    guess = np.float32(float(value))
    near = [np.nextafter(guess, np.float32(-np.inf)), guess, np.nextafter(guess, np.float32(np.inf))]
    finite = [v for v in near if np.isfinite(v)]
    even = lambda v: int(v.view(np.int32)) & 1  # noqa: E731 - the tie-breaker of one expression
    return min(finite, key=lambda v: (abs(Fraction(float(v)) - value), even(v)))


def _hard_f32(rng: np.random.Generator, n: int) -> list[tuple[np.ndarray, ...]]:
    def near_one(size):
        return (1 + rng.integers(-8, 9, size) * 2.0**-23).astype(np.float32)

    a, b = near_one(n), near_one(n)
    cancel = -(a.astype(np.float64) * b).astype(np.float32)
    tiny = (rng.integers(-64, 65, n) * 2.0**-149).astype(np.float32)  # subnormals
    half = np.full(n, 0.5, np.float32)
    big = np.float32(2.0**24) * rng.integers(1, 9, n).astype(np.float32)
    midpoint = np.full(n, 2.0**-40, np.float32) * rng.choice([-1, 1], n).astype(np.float32)
    return [
        (a, b, cancel),
        (tiny, half, (rng.integers(-64, 65, n) * 2.0**-149).astype(np.float32)),
        (near_one(n), midpoint, big + 1),  # just beside a tie of the sum
        (big, np.full(n, 1 + 2.0**-23, np.float32), midpoint),
        (rng.standard_normal(n).astype(np.float32), near_one(n), rng.standard_normal(n).astype(np.float32)),
    ]


def test_fma32_is_correctly_rounded():
    for a, b, c in _hard_f32(np.random.default_rng(0), 400):
        got = ref.fma32(torch.from_numpy(a), torch.from_numpy(b), torch.from_numpy(c)).numpy()
        expected = [
            _nearest_f32(Fraction(float(x)) * Fraction(float(y)) + Fraction(float(w)))
            for x, y, w in zip(a, b, c, strict=True)
        ]
        assert np.array_equal(got, np.array(expected, dtype=np.float32))


def test_float64_roots_are_correctly_rounded():
    torch.manual_seed(0)
    x = torch.cat(
        [
            torch.tensor(
                [0.25 - 2.0**-55, 0.25, 1 - 2.0**-53, 1 + 2.0**-52, 4 - 2.0**-51, 0.0, math.inf]
            ).double(),
            torch.tensor([float.fromhex("0x1.fffffffffffffp-3")], dtype=torch.float64),
            torch.rand(20000, dtype=torch.float64).exp2(),
        ]
    )
    want = torch.tensor([math.sqrt(v) for v in x.tolist()], dtype=torch.float64)  # IEEE 754
    assert torch.equal(ref._sqrt(x), want)


def test_fma32_at_the_edges():
    inf, nan, top = math.inf, math.nan, torch.finfo(torch.float32).max
    t = torch.tensor
    assert ref.fma32(t([top]), t([2.0]), t([0.0])).item() == inf
    assert ref.fma32(t([top]), t([2.0]), t([-top])).item() == top
    assert ref.fma32(t([inf]), t([1.0]), t([-1.0])).item() == inf
    assert math.isnan(ref.fma32(t([inf]), t([1.0]), t([-inf])).item())
    assert math.isnan(ref.fma32(t([0.0]), t([inf]), t([1.0])).item())
    assert math.isnan(ref.fma32(t([nan]), t([1.0]), t([1.0])).item())
    assert math.copysign(1, ref.fma32(t([-0.0]), t([1.0]), t([-0.0])).item()) == -1
    assert ref.fma32(t([0.1], dtype=torch.float64), 1.0, 0.0).item() == np.float32(0.1)


def test_fma64_is_correctly_rounded():
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal(300), 1 + rng.integers(-9, 10, 300) * 2.0**-52
    for c in (-(a * b), rng.standard_normal(300) * 2.0**-50, np.round(a * b * 2**20) / 2**20):
        got = ref.fma64(torch.from_numpy(a), torch.from_numpy(b), torch.from_numpy(c)).tolist()
        exact = [Fraction(x) * Fraction(y) + Fraction(w) for x, y, w in zip(a, b, c, strict=True)]
        assert got == [float(v) for v in exact]  # Fraction -> float rounds to nearest even


# -- stochastic rounding ----------------------------------------------------------------------------


def sr(x: float, r: int, dtype: torch.dtype) -> float:
    return ref.round_sr(torch.tensor([x], dtype=torch.float32), dtype, torch.tensor([r])).item()


def test_sr_bfloat16_oracle():
    assert [sr(1.0039, r, torch.bfloat16) for r in (0, 32768, 65535)] == [1.0, 1.0, 1.0078125]
    assert [sr(-1.0039, r, torch.bfloat16) for r in (0, 32768, 65535)] == [-1.0, -1.0, -1.0078125]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sr_edges(dtype):
    top = torch.finfo(dtype).max
    assert sr(math.inf, 65535, dtype) == math.inf
    assert sr(-math.inf, 0, dtype) == -math.inf
    assert math.isnan(sr(math.nan, 1, dtype))
    assert math.isnan(
        ref.round_sr(torch.tensor([0x7F800001], dtype=torch.int32).view(torch.float32), dtype, 0).item()
    )
    beyond = math.nextafter(torch.finfo(torch.float32).max, 0) if dtype == torch.bfloat16 else 65519.0
    assert sr(beyond, 65535, dtype) == top
    assert sr(-beyond, 65535, dtype) == -top
    assert sr(1e38, 0, torch.float16) == 65504.0
    assert math.copysign(1, sr(-0.0, 0, dtype)) == -1
    assert sr(0.0, 65535, dtype) == 0.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sr_keeps_representable_values(dtype):
    bits = torch.arange(-(2**15), 2**15).to(torch.int16)
    x = bits.view(dtype)
    x = x[torch.isfinite(x)]
    # A bfloat16 value has 16 zero bits to add into.  A float16 value is exact too, for every r.
    for r in (0, 1, 32768, 65535):
        assert torch.equal(
            ref.round_sr(x.float(), dtype, torch.full(x.shape, r)).view(torch.int16), x.view(torch.int16)
        )


@pytest.mark.parametrize(
    ("x", "dtype"),
    [
        (1.00390625 + 1 / 1024, torch.bfloat16),
        (-3.1e-5 * 0.7, torch.float16),  # subnormal in float16
        (5.1e-8, torch.float16),  # below the smallest float16 subnormal
        (0.333333, torch.float16),
        (6.1e-5, torch.float16),  # just under the smallest normal: may carry into it
    ],
)
def test_sr_is_unbiased_over_all_random_bits(x, dtype):
    r = torch.arange(65536)
    value = torch.full((65536,), x, dtype=torch.float32)
    out = ref.round_sr(value, dtype, r).double()
    assert out.unique().numel() == 2
    ulp = (out.max() - out.min()).item()
    assert abs(out.mean().item() - value[0].double().item()) < ulp / 4096


# -- passes -----------------------------------------------------------------------------------------


def chain(params, coefs, *, queries=None, seed=42, streams=None, dists=None, sources=None, **options):
    k = len(coefs)
    ref.chain_(
        params,
        sources,
        streams or list(range(len(params))),
        [seed] * k,
        queries or list(range(k)),
        coefs,
        dists or ["gaussian"] * k,
        **options,
    )


def test_perturb_oracle():
    w = torch.tensor([0.01 * (i - 4) for i in range(8)])
    half = w.bfloat16()
    chain([w], [1e-3])
    assert " ".join(hexes(w)) == "bd27d05b bcf42bac bcadf653 bc045181 b899790a 3c261ea0 3c9ac632 3cf86faa"
    chain([half], [1e-3])
    assert " ".join(hexes(half)) == "bd28 bcf4 bcae bc04 b899 3c26 3c9b 3cf9"


def test_chain_is_a_sum_in_order_with_one_rounding():
    w = torch.linspace(-1, 1, 1000).bfloat16()
    z = [ref.sample(42, 0, k, 0, 1000) for k in range(3)]
    acc = w.float() * torch.tensor(0.9, dtype=torch.float32)
    for coef, zk in zip((1e-2, -3e-3, 5e-3), z, strict=True):
        acc = ref.fma32(coef, zk, acc)
    chain([w], [1e-2, -3e-3, 5e-3], decay=0.9)
    assert torch.equal(w, acc.bfloat16())


def test_chain_with_no_terms_only_decays():
    w = torch.linspace(-1, 1, 9)
    expected = w * torch.tensor(0.75)
    chain([w], [], decay=0.75)
    assert torch.equal(w, expected)


def test_sources_are_read_and_not_written():
    clean = torch.linspace(-1, 1, 500).half()
    kept, live, direct = clean.clone(), torch.zeros(500, dtype=torch.half), clean.clone()
    chain([live], [1e-2], sources=[clean])
    chain([direct], [1e-2])
    assert torch.equal(live, direct)
    assert torch.equal(clean, kept)


def test_z_round_rounds_the_direction_first():
    w = torch.zeros(64)
    chain([w], [0.3], z_round=torch.bfloat16)
    assert torch.equal(w, ref.sample(42, 0, 0, 0, 64).bfloat16().float() * torch.tensor(0.3))


def test_stochastic_store_uses_seed_stream_and_query_of_the_rounding():
    w = torch.linspace(0.5, 1, 300).bfloat16()
    acc = ref.fma32(1e-3, ref.sample(42, 4, 0, 0, 300), w.float())
    chain([w], [1e-3], streams=[4], stochastic=True, rounding_seed=9, rounding_query=2)
    assert torch.equal(w, ref.round_sr(acc, torch.bfloat16, ref.rounding_bits(9, 4, 2, 0, 300)))


def test_float64_math_in_float64():
    w = torch.linspace(-1, 1, 50, dtype=torch.float64)
    z = ref.sample(42, 0, 0, 0, 50).tolist()
    expected = [float(Fraction(1e-3) * Fraction(a) + Fraction(x)) for a, x in zip(z, w.tolist(), strict=True)]
    chain([w], [1e-3])
    assert w.tolist() == expected


@pytest.mark.parametrize("chunk", [128, 1 << 16])
@pytest.mark.parametrize(
    "layout",
    [
        lambda x: x.t().contiguous().t(),
        lambda x: torch.empty(24, 50)[::2, 1:41:2].copy_(x),
        lambda x: torch.empty(1, 12, 40).permute(0, 2, 1)[0].t()[:, :20].copy_(x),
    ],
    ids=["transposed", "strided", "permuted"],
)
def test_order_is_logical_row_major(layout, chunk, monkeypatch):
    monkeypatch.setattr(ref, "CHUNK", chunk)
    x = torch.linspace(-1, 1, 240).view(12, 20)
    strided = layout(x)
    assert not strided.is_contiguous()
    assert torch.equal(strided, x)
    chain([strided], [0.1, 0.2])
    straight = x.clone()
    chain([straight], [0.1, 0.2])
    assert torch.equal(strided, straight)


def test_nan_and_inf_stay_where_they_are():
    w = torch.tensor([1.0, math.nan, math.inf, 2.0])
    clean = torch.tensor([1.0, 0.0, 0.0, 2.0])
    chain([w], [1e-3])
    chain([clean], [1e-3])
    assert torch.isnan(w[1])
    assert w[2] == math.inf
    assert torch.equal(w[[0, 3]], clean[[0, 3]])


def test_empty_and_scalar_tensors():
    chain([], [1.0])
    empty, scalar = torch.empty(0, 3), torch.tensor(0.0)
    chain([empty, scalar], [1.0])
    assert scalar.item() == ref.sample(42, 1, 0, 0, 1).item()


def test_adam_matches_torch_adamw_on_the_same_gradient():
    w = torch.linspace(-1, 1, 200, dtype=torch.float64)
    peer = torch.nn.Parameter(w.clone())
    adamw = torch.optim.AdamW([peer], lr=0.01, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1)
    m, v = torch.zeros_like(w), torch.zeros_like(w)
    for step in range(1, 6):
        z = [ref.sample(step, 0, q, 0, 200).double() for q in range(2)]
        peer.grad = 0.7 * z[0] - 0.2 * z[1]
        adamw.step()
        ref.adam_([w], [m], [v], [0], [step] * 2, [0, 1], [0.7, -0.2], ["gaussian"] * 2,
                  lr=0.01, beta1=0.9, beta2=0.999, eps=1e-8, step=step, decay=1 - 0.01 * 0.1)  # fmt: skip
    assert torch.allclose(w, peer.detach(), rtol=0, atol=1e-12)


def test_adam_in_half_precision_keeps_float32_states():
    w, m, v = torch.ones(100).half(), torch.zeros(100), torch.zeros(100)
    ref.adam_(
        [w],
        [m],
        [v],
        [0],
        [1],
        [0],
        [1000.0],
        ["gaussian"],
        lr=0.01,
        beta1=0.9,
        beta2=0.999,
        eps=1e-8,
        step=1,
    )
    assert m.dtype == v.dtype == torch.float32
    assert torch.isfinite(w).all()
    assert (v > 70_000 * 1e-3).any()
    assert torch.allclose((1 - w.float()), 0.01 * ref.sample(1, 0, 0, 0, 100).sign(), atol=1e-3)
