"""The Triton kernels, through the interpreter where there is no GPU: the same bits as the reference.

What this shows without a GPU: the kernels' own arithmetic, traversal, tables and rounding.  The interpreter
of Triton 3.9 computes tl.fma with one rounding; older ones with two, where a fixture in tests/conftest.py
gives them the exact fma that compiled code has.  NumPy's square root and division are the IEEE ones, so
equality is of bits, not of tolerances.  What it cannot show: the compiler.
tests/cuda/test_compile.py counts the operations in the PTX, and the tests marked gpu in tests/cuda compare
the compiled kernels with the same reference.  Rounding to bfloat16 is the one place where the interpreted
kernel differs from the compiled one (integer arithmetic instead of the hardware's conversion).
"""

from __future__ import annotations

import pytest
import torch
from tenfold.kernels.zo import zo_reference as ref
from torch import Tensor

pytest.importorskip("triton")

from tenfold.kernels.zo import zo_triton

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _cannot_run() -> str | None:
    if DEVICE.type == "cuda" or zo_triton.INTERPRETED:
        return None
    return "no GPU, and Triton was imported without its interpreter"


pytestmark = [
    pytest.mark.skipif(_cannot_run() is not None, reason=str(_cannot_run())),
    pytest.mark.filterwarnings(
        "ignore:overflow encountered in cast:RuntimeWarning"
    ),  # NumPy: float16 infinity
]

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
DISTS = ("gaussian", "rademacher", "uniform", "gauss16")
SEED = 2**64 - 3


def bits(x: Tensor) -> Tensor:
    x = x.detach().cpu().contiguous()
    whole = torch.where(x.isnan(), torch.full((), torch.nan, dtype=x.dtype), x)
    return whole.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()])


def weights(dtype: torch.dtype, seed: int = 0) -> list[Tensor]:
    """Sizes and layouts that the launcher or the kernel treats apart, on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(1,), (5, 7), (0,), (4096,), (2051,), (9, 11), (300,)]
    drawn = [(0.02 * torch.randn(s, generator=generator, dtype=torch.float64)).to(dtype) for s in shapes]
    drawn[4] = drawn[4][3:]  # not aligned to 16 bytes
    drawn[5] = drawn[5].t()
    drawn[6][:6] = torch.tensor([torch.inf, -torch.inf, torch.nan, 0.0, -0.0, 1e-7], dtype=torch.float64).to(
        dtype
    )
    return drawn


def there(tensors: list[Tensor]) -> list[Tensor]:
    """Copies on the device under test, strides kept."""
    return [t.clone(memory_format=torch.preserve_format).to(DEVICE) for t in tensors]


def terms_of(dists: tuple[str, ...]) -> tuple[list[int], list[int], list[float], list[str]]:
    k = range(len(dists))
    return [SEED - i for i in k], [2**24 - 1 - i for i in k], [1e-3 * (i + 1) for i in k], list(dists)


def assert_same(got: list[Tensor], want: list[Tensor], *where: object) -> None:
    for i, (a, b) in enumerate(zip(got, want, strict=True)):
        assert torch.equal(bits(a), bits(b)), (*where, i)


# -- generation ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dist", DISTS)
def test_samples_equal_the_reference(dist):
    for first, n in ((0, 1), (5, 700), (2**32 - 3, 1001), (2**40 + 4093, 2000)):
        got = zo_triton.sample(SEED, 2**32 - 1, 2**24 - 1, first, n, dist, device=DEVICE)
        want = ref.sample(SEED, 2**32 - 1, 2**24 - 1, first, n, dist)
        assert torch.equal(bits(got), bits(want)), (first, n)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_samples_are_rounded_to_the_dtype(dtype):
    got = zo_triton.sample(1, 2, 3, 4, 3000, dtype=dtype, device=DEVICE)
    assert torch.equal(bits(got), bits(ref.sample(1, 2, 3, 4, 3000, dtype=dtype)))


def test_known_answers():
    """zo.md 3.1: seed 42, stream 0, query 0."""
    got = zo_triton.sample(42, 0, 0, 0, 4, device=DEVICE).cpu().view(torch.int32).tolist()
    assert [f"{b & 0xFFFFFFFF:08x}" for b in got] == ["bf785e5c", "3e46ace8", "bf9e28d2", "3ff6433c"]
    signs = zo_triton.sample(42, 0, 0, 0, 32, "rademacher", device=DEVICE).tolist()
    assert "".join("+" if s > 0 else "-" for s in signs) == "+--+-+-++-+++++-----+--++++-+--+"


@pytest.mark.parametrize(("seed", "stream", "query", "words"), [
    (0, 0, 0, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
])  # fmt: skip
def test_philox_known_answer(seed, stream, query, words):
    """Random123's vector for counter 0 and key 0."""
    got = zo_triton.words(seed, stream, query, 0, 0, 1, DEVICE)[0].tolist()
    assert " ".join(f"{w:08x}" for w in got) == words


def test_words_equal_the_reference():
    for first, blocks in ((0, 1), (2**32 - 5, 300), (2**40 + 255, 257)):
        got = zo_triton.words(SEED, 2**32 - 1, 2**24 - 1, "mask", first, blocks, DEVICE)
        assert torch.equal(got.cpu(), ref.words(SEED, 2**32 - 1, 2**24 - 1, "mask", first, blocks))


def test_samples_write_only_their_span():
    buffer = torch.full((3000,), 7.0, device=DEVICE)
    zo_triton.sample_(buffer[100:2100], 1, 2, 3, 77, "gaussian")
    want = torch.full((3000,), 7.0)
    want[100:2100] = ref.sample(1, 2, 3, 77, 2000)
    assert torch.equal(bits(buffer), bits(want))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_stochastic_rounding_of_any_float(dtype):
    """Random bit patterns: subnormals, overflow, infinities and NaN among them."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-(2**31), 2**31, (5000,), generator=generator).to(torch.int32).view(torch.float32)
    x[:6] = torch.tensor([torch.inf, -torch.inf, torch.nan, -0.0, 3.4e38, 2.0**-24])
    got = zo_triton.stochastic_round(x.to(DEVICE), dtype, SEED, 4, 5, 13)
    assert torch.equal(bits(got), bits(ref.stochastic_round(x, dtype, SEED, 4, 5, 13)))


# -- passes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dists", [("gaussian",), ("rademacher",), DISTS], ids=["gaussian", "rademacher", "mixed"]
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_chain_equals_the_reference(dtype, dists):
    stochastic = dtype != torch.float32
    got, want = there(weights(dtype)), weights(dtype)
    options = {"decay": 0.9, "stochastic": stochastic, "rounding_seed": 77, "rounding_query": 3}
    streams = [2**32 - 1 - i for i in range(len(got))]
    zo_triton.chain_(got, None, streams, *terms_of(dists), **options)
    ref.chain_(want, None, streams, *terms_of(dists), **options)
    assert_same(got, want)


@pytest.mark.parametrize("z_round", [torch.bfloat16, torch.float16], ids=str)
def test_chain_with_a_rounded_direction(z_round):
    for dtype, stochastic in ((torch.float32, False), (torch.bfloat16, True)):
        got, want = there(weights(dtype)[:4]), weights(dtype)[:4]
        options = {"z_round": z_round, "stochastic": stochastic}
        zo_triton.chain_(got, None, list(range(len(got))), *terms_of(("gaussian",)), **options)
        ref.chain_(want, None, list(range(len(want))), *terms_of(("gaussian",)), **options)
        assert_same(got, want, dtype, stochastic)


def test_chain_takes_mixed_dtypes_and_sources():
    got = there([w for dtype in DTYPES for w in weights(dtype)[1:6]])
    want = [w for dtype in DTYPES for w in weights(dtype)[1:6]]
    sources = [w for dtype in DTYPES for w in weights(dtype, seed=5)[1:6]]
    held = there(sources)
    zo_triton.chain_(got, held, list(range(len(got))), *terms_of(("gaussian",)))
    ref.chain_(want, sources, list(range(len(want))), *terms_of(("gaussian",)))
    assert_same(got, want)
    assert_same(held, sources)


def test_chain_of_64_terms():
    got, want = [torch.ones(50, device=DEVICE)], [torch.ones(50)]
    for module, where in ((zo_triton, got), (ref, want)):
        module.chain_(where, None, [0], *terms_of(("gaussian", "rademacher") * 32))
    assert_same(got, want)


def test_many_tensors_find_their_rows():
    """More rows than a power of two, sizes around a tile: the binary search meets every boundary."""
    sizes = [1, 2, 3, 1, 1024, 1025, 1, 2048, 2049, 1, 4]
    want = [torch.full((n,), 1.0 + i) for i, n in enumerate(sizes)]
    got = there(want)
    zo_triton.chain_(got, None, list(range(len(got))), *terms_of(("gaussian",)))
    ref.chain_(want, None, list(range(len(want))), *terms_of(("gaussian",)))
    assert_same(got, want)


def test_a_new_tensor_at_an_old_address_gets_its_own_stream():
    """The table of tensors is kept between calls: it must not be taken for another list's."""
    param = torch.ones(100, device=DEVICE)
    for stream in (1, 2, 1):
        for n in (100, 60):
            param.fill_(1.0)
            want = [torch.ones(n)]
            zo_triton.chain_([param[:n]], None, [stream], *terms_of(("gaussian",)))
            ref.chain_(want, None, [stream], *terms_of(("gaussian",)))
            assert_same([param[:n]], want, stream, n)
            assert torch.equal(param[n:].cpu(), torch.ones(100 - n))


def test_terms_in_memory_may_change_between_calls():
    got, want = [torch.ones(300, device=DEVICE)], [torch.ones(300)]
    table = zo_triton.terms_table([1], [0], [0.0], ["gaussian"], device=DEVICE)
    for seed, coef, dist, decay in ((2**63 + 1, 0.5, "rademacher", 1.0), (9, -0.25, "gaussian", 0.5)):
        table.copy_(zo_triton.terms_table([seed], [4], [coef], [dist], decay, device=DEVICE))
        zo_triton.chain_table_(got, None, [3], table)
        ref.chain_(want, None, [3], [seed], [4], [coef], [dist], decay)
        assert_same(got, want, seed)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_adam_equals_the_reference(dtype):
    state = torch.float64 if dtype == torch.float64 else torch.float32
    runs = []
    for module, params in ((zo_triton, there(weights(dtype))), (ref, weights(dtype))):
        means = [torch.zeros(p.shape, dtype=state, device=p.device) for p in params]
        squares = [torch.zeros_like(p, dtype=state) for p in params]  # keeps strides: not those of the means
        for step in (1, 2):
            scalars = {"lr": 1e-2, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "step": step, "decay": 0.99}
            places = list(range(len(params)))
            module.adam_(
                params, means, squares, places, *terms_of(("gaussian",)), **scalars, stochastic=step == 2
            )
        runs.append([*params, *means, *squares])
    assert_same(*runs)


def test_empty_lists_and_tensors():
    zo_triton.chain_([], None, [], *terms_of(("gaussian",)))
    empty = torch.empty(0, 3, device=DEVICE)
    zo_triton.chain_([empty], None, [0], *terms_of(("gaussian",)))
    assert zo_triton.sample(1, 2, 3, 4, 0, device=DEVICE).shape == (0,)
    assert zo_triton.words(1, 2, 3, 4, 5, 0, DEVICE).shape == (0, 4)
