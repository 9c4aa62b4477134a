"""The compiled generator on every instruction set: known answers, rare words, pieces, offsets, threads."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from tenfold.kernels.zo import zo_reference as ref

from tenfold import _native
from tenfold.ops import random_words, stochastic_round, zo_moments, zo_sample

DISTS = ("gaussian", "rademacher", "uniform")
ALL_ONES = 2**64 - 1


def hexes(x: torch.Tensor) -> str:
    return " ".join(f"{v & 0xFFFFFFFF:08x}" for v in x.view(torch.int32).tolist())


def bits(x: torch.Tensor) -> torch.Tensor:
    return x.view({4: torch.int32, 8: torch.int64, 2: torch.int16}[x.element_size()])


# -- known answers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seed", "stream", "purpose", "query", "block", "expected"),
    [
        (0, 0, 0, 0, 0, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        (ALL_ONES, 2**32 - 1, 0xFF, 2**24 - 1, ALL_ONES, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            0x299F31D0A4093822,
            0x13198A2E,
            3,
            0x707344,
            0x85A308D3243F6A88,
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_philox_known_answers(isa, seed, stream, purpose, query, block, expected):
    # Random123's kat_vectors; a counter of all ones is no purpose that the public function admits.
    out = torch.empty(1, 4, dtype=torch.int64)
    _native.cpu.zo_words(seed, stream, query, purpose, block, 1, out.data_ptr(), 1)
    assert " ".join(f"{w:08x}" for w in out[0].tolist()) == expected


@pytest.mark.parametrize(
    ("stream", "query", "first", "expected"),
    [
        (0, 0, 0, "bf785e5c 3e46ace8 bf9e28d2 3ff6433c bd95e033 3e0e7a13 bf8da734 3ea742fe"),
        (5, 0, 0, "bf81fc64 3f272a0d 3f5784de bf5e7360"),
        (0, 1, 0, "bfd880f6 bf90e657"),
        (0, 0, 2**34, "bfd167ba 3db96ac6"),
    ],
)
def test_gaussian_known_answers(isa, stream, query, first, expected):
    n = len(expected.split())
    assert hexes(zo_sample(42, stream, query, first=first, n=n)) == expected
    # The same elements in the middle of whole registers.
    assert hexes(zo_sample(42, stream, query, first=first, n=500)[:n]) == expected


def test_sums_of_a_million(isa):
    total, squares = zo_moments(42, n=1_000_000)
    assert total == pytest.approx(1149.899133, abs=1e-6)
    assert squares == pytest.approx(998180.745466, abs=1e-6)
    z = zo_sample(42, n=1_000_000).double()
    assert z.sum().item() == pytest.approx(total, abs=1e-8)
    assert (z * z).sum().item() == pytest.approx(squares, abs=1e-7)


def test_rademacher_known_answer(isa):
    signs = "".join("+" if v > 0 else "-" for v in zo_sample(42, n=32, dist="rademacher").tolist())
    assert signs == "+--+-+-++-+++++-----+--++++-+--+"


def test_mask_words_known_answer(isa):
    words = random_words(42, purpose="mask", blocks=1)
    assert words[0].tolist() == [1369655209, 3799427476, 2634282697, 2351043353]


def recovered_rounding_bits(n: int, **where: int) -> list[int]:
    """The 16 bits each element is rounded with, by bisection: 1 + f/2^16 ulp goes up when f + r >= 2^16."""
    low = torch.zeros(n, dtype=torch.int64)
    high = torch.full((n,), 65536)
    while (low < high - 1).any():
        middle = (low + high) // 2
        x = (0x3F800000 + middle).to(torch.int32).view(torch.float32)
        up = stochastic_round(x, torch.bfloat16, 42, **where).float() > 1
        low, high = torch.where(up, low, middle), torch.where(up, middle, high)
    return (65536 - high).tolist()


def test_rounding_bits_known_answer(isa):
    assert recovered_rounding_bits(8) == [24821, 14780, 26393, 33987, 41736, 63878, 15614, 49662]


@pytest.mark.parametrize("first", [0, 1, 2040, 2047, 2**35 + 5])
def test_rounding_bits_of_any_element(isa, first):
    expected = ref.rounding_bits(42, 3, 9, first, 40).tolist()
    assert recovered_rounding_bits(40, stream=3, query=9, first=first) == expected


# -- against the reference ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dist", DISTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_equals_the_reference(isa, dist, dtype):
    first, n = 2**33 + 77, 9001
    got = zo_sample(2**64 - 3, 2**32 - 1, 2**24 - 1, first=first, n=n, dist=dist, dtype=dtype)
    expected = ref.sample(2**64 - 3, 2**32 - 1, 2**24 - 1, first, n, dist, dtype)
    assert got.dtype == dtype
    assert torch.equal(bits(got), bits(expected))


@pytest.mark.parametrize("purpose", list(ref.PURPOSES))
def test_words_equal_the_reference(isa, purpose):
    args = (0x0123456789ABCDEF, 7, 11, purpose, 2**32 - 300, 1400)
    got = random_words(args[0], stream=7, query=11, purpose=purpose, first_block=args[4], blocks=1400)
    assert torch.equal(got, ref.words(*args))


# (block, pair of the block) of seed 42 whose words sit where the transform is delicate; found by search.
RARE = {
    "radius word rounds up to 2^32, u is 1, z is zero": [
        (52825872, 1),
        (59986010, 1),
        (99229795, 1),
        (115543183, 1),
    ],
    "radius word below 64, largest |z|": [(26967075, 0), (61104374, 1), (85359727, 0), (144942243, 0)],
    "angle at a multiple of a quarter turn": [
        (49400121, 1),
        (55639655, 0),
        (93216959, 0),
        (96562145, 1),
        (120405005, 0),
    ],
    "angle where the quarter changes": [
        (71153, 0),
        (22950945, 1),
        (26960074, 1),
        (37285212, 0),
        (94856085, 0),
        (132511598, 0),
    ],
}


@pytest.mark.parametrize("which", list(RARE))
def test_rare_words(isa, which):
    for block, pair in RARE[which]:
        first = 4 * block + 2 * pair
        got = zo_sample(42, first=first, n=2)
        assert hexes(got) == hexes(ref.sample(42, 0, 0, first, 2))
        aligned = first // 2048 * 2048
        assert hexes(zo_sample(42, first=aligned, n=2048)[first - aligned :][:2]) == hexes(got)
        radius_word, angle_word = random_words(42, first_block=block, blocks=1)[0, 2 * pair :][:2].tolist()
        u = min((radius_word + 0.5) * 2.0**-32, 1.0)
        radius, angle = math.sqrt(-2 * math.log(u)), angle_word * 2.0**-32 * 2 * math.pi
        if radius_word < 0xFFFFFF80:  # else u is rounded to one
            assert got[0].item() == pytest.approx(radius * math.cos(angle), abs=1e-6)
            assert got[1].item() == pytest.approx(radius * math.sin(angle), abs=1e-6)
        else:
            assert got.tolist() == [0.0, 0.0]
        assert got.abs().max() <= 6.77


@pytest.mark.parametrize("dist", DISTS)
def test_instruction_sets_agree_on_millions(dist):
    before = _native.cpu.isa_used()
    try:
        results = []
        for name in _native.cpu.isa_available():
            _native.cpu.use_isa(name)
            results.append(zo_sample(7, 3, 5, first=2**35 - 2**20, n=2**21 + 13, dist=dist))
    finally:
        _native.cpu.use_isa(before)
    for other in results[1:]:
        assert torch.equal(bits(other), bits(results[0]))


# -- pieces, offsets, threads -------------------------------------------------------------------------------


@pytest.mark.parametrize("dist", DISTS)
@pytest.mark.parametrize("start", [0, 2**34 - 4000, 2**39 - 5000, 2**61 + 3])
def test_ragged_pieces_equal_the_whole(isa, dist, start):
    # 2^34 Gaussian elements and 2^39 signs are where the block number passes 2^32.
    n = 9000
    whole = zo_sample(9, 1, 2, first=start, n=n, dist=dist)
    cuts = [0, 1, 2, 3, 63, 64, 65, 127, 128, 131, 2047, 2048, 2049, 4000, 4001, 5000, 8191, 8999, 9000]
    pieces = [zo_sample(9, 1, 2, first=start + a, n=b - a, dist=dist) for a, b in itertools.pairwise(cuts)]
    assert torch.equal(bits(torch.cat(pieces)), bits(whole))


@pytest.mark.parametrize("dist", DISTS)
def test_offsets_equal_the_reference(isa, dist):
    for first in (2**32 - 3, 2**32, 2**34 - 50, 2**39 - 50, 2**62 - 1, 2**62):
        assert hexes(zo_sample(5, first=first, n=100, dist=dist)) == hexes(
            ref.sample(5, 0, 0, first, 100, dist)
        )


def test_words_in_pieces():
    whole = random_words(3, first_block=2**32 - 700, blocks=1400)
    parts = [
        random_words(3, first_block=2**32 - 700 + a, blocks=b - a) for a, b in ((0, 1), (1, 513), (513, 1400))
    ]
    assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_thread_count_changes_nothing(isa, threads):
    code = torch.float32, _native.DTYPE_CODES[torch.float32]
    for n in (1, 2048, 2049, 20_000):
        one, many = torch.empty(n, dtype=code[0]), torch.empty(n, dtype=code[0])
        _native.cpu.zo_sample(8, 0, 0, 0, 77, n, code[1], one.data_ptr(), 1)
        _native.cpu.zo_sample(8, 0, 0, 0, 77, n, code[1], many.data_ptr(), threads)
        assert torch.equal(bits(one), bits(many))
    n = 1_300_000  # more than one chunk of the reduction
    assert _native.cpu.zo_moments(8, 0, 0, 0, 77, n, threads) == _native.cpu.zo_moments(8, 0, 0, 0, 77, n, 1)


def test_moments_are_the_same_on_every_instruction_set():
    before = _native.cpu.isa_used()
    try:
        results = set()
        for name in _native.cpu.isa_available():
            _native.cpu.use_isa(name)
            results.add((zo_moments(1, 2, 3, first=5, n=100_003), zo_moments(1, n=3000, dist="uniform")))
    finally:
        _native.cpu.use_isa(before)
    assert len(results) == 1


@pytest.mark.parametrize("dist", DISTS)
def test_moments_equal_sums_of_the_sample(dist):
    for first, n in ((0, 0), (0, 1), (3, 2049), (2047, 2), (100, 1_100_000)):
        z = zo_sample(4, 1, first=first, n=n, dist=dist).double()
        total, squares = zo_moments(4, 1, first=first, n=n, dist=dist)
        assert total == pytest.approx(z.sum().item(), abs=1e-7)
        assert squares == pytest.approx((z * z).sum().item(), rel=1e-12, abs=1e-9)


def test_nothing_is_written_beside_the_output(isa):
    for dtype, code in _native.DTYPE_CODES.items():
        for n in (1, 3, 63, 64, 65, 2047, 2049):
            buffer = torch.full((n + 128,), 7.0, dtype=dtype)
            _native.cpu.zo_sample(1, 0, 0, 0, 5, n, code, buffer[64:].data_ptr(), 2)
            assert (buffer[:64] == 7).all()
            assert (buffer[64 + n :] == 7).all()
            assert torch.equal(buffer[64 : 64 + n], ref.sample(1, 0, 0, 5, n, dtype=dtype))
