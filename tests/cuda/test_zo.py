"""The zeroth-order kernels on a GPU, or their CUDA source on the host, equal the reference bit for bit."""

from __future__ import annotations

import itertools

import pytest
import torch
from tenfold.kernels.zo import zo_native
from tenfold.kernels.zo import zo_reference as ref
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
DISTS = ("gaussian", "rademacher", "uniform", "gauss16")
SEED = 2**64 - 3


def bits(x: Tensor) -> Tensor:
    """The storage as integers, on the CPU; every NaN alike, since their payloads are not promised."""
    x = x.detach().cpu().contiguous()
    whole = torch.where(x.isnan(), torch.full((), torch.nan, dtype=x.dtype), x)
    return whole.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()])


def assert_same(got: list[Tensor], want: list[Tensor], *where: object) -> None:
    for i, (a, b) in enumerate(zip(got, want, strict=True)):
        assert torch.equal(bits(a), bits(b)), (*where, i, tuple(a.shape))


def tensors(dtype: torch.dtype, device: torch.device, seed: int = 0) -> list[Tensor]:
    """One tensor for every size and layout that a kernel treats apart; same values on every device."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int, scale: float = 0.02) -> Tensor:
        return (scale * torch.randn(*shape, generator=generator, dtype=torch.float64)).to(dtype).to(device)

    flat = [draw(n) for n in (1, 3, 7, 8, 511, 512, 513, 4095, 4096, 4097, 9001)]
    special = draw(300)
    special[:6] = torch.tensor([torch.inf, -torch.inf, torch.nan, 0.0, -0.0, 3e38], dtype=torch.float64).to(
        dtype
    )
    return [
        *flat,
        special,
        draw(0),
        draw(0, 5),
        draw(1)[0],
        draw(4000)[1:],  # not aligned to 16 bytes
        draw(200, scale=1e-7),  # float16 subnormals
        draw(60, 71).t(),
        draw(70, 100)[:, ::3],
        draw(4, 3, 50, 20).permute(2, 0, 3, 1),
        draw(2, 5, 6, 7).to(memory_format=torch.channels_last),
        draw(3, 1, 4).transpose(0, 2),
    ]


def terms_of(dists: tuple[str, ...]) -> tuple[list[int], list[int], list[float], list[str]]:
    k = range(len(dists))
    return [SEED - i for i in k], [2**24 - 1 - i for i in k], [1e-3 * (i + 1) for i in k], list(dists)


# -- generation ------------------------------------------------------------------------------------


SPANS = ((0, 1), (0, 4096), (5, 1000), (2**32 - 3, 1001), (2**34 + 5, 9000), (2**40 + 4093, 5000))


@pytest.mark.parametrize("dist", DISTS)
def test_samples(gpu, dist):
    for dtype, (first, n) in itertools.product(DTYPES, SPANS):
        out = torch.full((n,), torch.nan, dtype=dtype, device=gpu.device)
        gpu.module.sample_(out, SEED, 2**32 - 1, 2**24 - 1, first, dist)
        want = ref.sample(SEED, 2**32 - 1, 2**24 - 1, first, n, dist, dtype)
        assert torch.equal(bits(out), bits(want)), (dtype, first, n)


def test_samples_into_the_middle_of_a_buffer(gpu):
    for dtype in DTYPES:
        for shift, n in ((1, 4097), (3, 511), (8, 4096)):
            buffer = torch.full((n + 20,), 7.0, dtype=dtype, device=gpu.device)
            gpu.module.sample_(buffer[shift : shift + n], 1, 2, 3, 10, "gaussian")
            want = torch.full((n + 20,), 7.0, dtype=dtype)
            want[shift : shift + n] = ref.sample(1, 2, 3, 10, n, dtype=dtype)
            assert torch.equal(bits(buffer), bits(want)), (dtype, shift, n)


def test_known_answers(gpu):
    """zo.md 3.1: seed 42, stream 0, query 0, first elements, as bits."""
    out = torch.empty(8, device=gpu.device)
    gpu.module.sample_(out, 42, 0, 0, 0, "gaussian")
    hexes = [f"{b & 0xFFFFFFFF:08x}" for b in out.cpu().view(torch.int32).tolist()]
    assert hexes == [
        "bf785e5c",
        "3e46ace8",
        "bf9e28d2",
        "3ff6433c",
        "bd95e033",
        "3e0e7a13",
        "bf8da734",
        "3ea742fe",
    ]
    gpu.module.sample_(out, 42, 0, 0, 2**34, "gaussian")
    hexes = [f"{b & 0xFFFFFFFF:08x}" for b in out.cpu().view(torch.int32).tolist()]
    assert hexes[:2] == ["bfd167ba", "3db96ac6"]
    signs = torch.empty(32, device=gpu.device)
    gpu.module.sample_(signs, 42, 0, 0, 0, "rademacher")
    assert "".join("+" if s > 0 else "-" for s in signs.tolist()) == "+--+-+-++-+++++-----+--++++-+--+"


def test_words(gpu):
    for first, blocks, purpose in ((0, 1, "gaussian"), (2**32 - 5, 700, "rounding"), (2**40, 257, "mask")):
        out = torch.empty(blocks, 4, dtype=torch.int64, device=gpu.device)
        gpu.module.words_(out, SEED, 2**32 - 1, 2**24 - 1, purpose, first)
        assert torch.equal(out.cpu(), ref.words(SEED, 2**32 - 1, 2**24 - 1, purpose, first, blocks))


def test_stochastic_rounding(gpu):
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-(2**31), 2**31, (20000,), generator=generator).to(torch.int32).view(torch.float32)
    for dtype, first in itertools.product((torch.bfloat16, torch.float16), (0, 13)):
        got = gpu.module.stochastic_round(x.to(gpu.device), dtype, SEED, 4, 5, first)
        assert torch.equal(bits(got), bits(ref.stochastic_round(x, dtype, SEED, 4, 5, first)))


# -- passes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dists", [("gaussian",), ("rademacher",), DISTS], ids=["gaussian", "rademacher", "mixed"]
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_chain(gpu, dtype, dists):
    for z_round, stochastic in itertools.product((None, torch.bfloat16, torch.float16), (False, True)):
        got, want = tensors(dtype, gpu.device), tensors(dtype, torch.device("cpu"))
        streams = list(range(len(got)))
        options = {"z_round": z_round, "stochastic": stochastic, "rounding_seed": 77, "rounding_query": 3}
        for decay in (1.0, 0.9):
            gpu.module.chain_(got, None, streams, *terms_of(dists), decay=decay, **options)
            ref.chain_(want, None, streams, *terms_of(dists), decay=decay, **options)
        assert_same(got, want, z_round, stochastic)


def test_chain_from_sources(gpu):
    """Sources are read, in whatever layout, and not written."""
    for dtype in DTYPES:
        got, want = tensors(dtype, gpu.device), tensors(dtype, torch.device("cpu"))
        sources = tensors(dtype, gpu.device, seed=5)
        plain = [s.cpu() for s in sources]
        sources[-1] = sources[-1].contiguous()
        streams = [2**32 - 1 - i for i in range(len(got))]
        gpu.module.chain_(got, sources, streams, *terms_of(("gaussian",)))
        ref.chain_(want, plain, streams, *terms_of(("gaussian",)))
        assert_same(got, want, dtype)
        assert_same(sources, plain, dtype)


def test_chain_of_64_terms(gpu):
    got = [torch.ones(5000, device=gpu.device), torch.ones(33, dtype=torch.bfloat16, device=gpu.device)]
    want = [t.cpu() for t in got]
    terms = terms_of(("gaussian", "rademacher") * 32)
    for module, where in ((gpu.module, got), (ref, want)):
        module.chain_(where, None, [0, 1], *terms, 0.5)
    assert_same(got, want)


def _chain_from_memory(gpu, params, terms, z_round=None, stochastic=False) -> None:
    """The chain of each kind of kernel that reads its terms from memory when it runs."""
    streams = list(range(len(params)))
    if gpu.name == "triton":
        gpu.module.chain_table_(params, None, streams, terms, None, z_round, stochastic)
        return
    module, where = zo_native._module(params[0])
    views = [zo_native._view(p) for p in params]
    dtype, rounding = zo_native.DTYPE_CODES[params[0].dtype], zo_native._code(z_round)
    n_terms = terms.shape[0] - 1
    module.zo_chain_from_memory(
        views, [], streams, terms.data_ptr(), n_terms, dtype, rounding, stochastic, *where
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_chain_with_terms_in_memory(gpu, dtype):
    zo_triton = pytest.importorskip("tenfold.kernels.zo.zo_triton")
    got, want = tensors(dtype, gpu.device), tensors(dtype, torch.device("cpu"))
    for z_round, stochastic in ((None, True), (torch.bfloat16, False)):
        options = {"decay": 0.75, "rounding_seed": SEED, "rounding_query": 11}
        table = zo_triton.terms_table(*terms_of(DISTS), **options, device=gpu.device)
        _chain_from_memory(gpu, got, table, z_round, stochastic)
        streams = list(range(len(want)))
        ref.chain_(want, None, streams, *terms_of(DISTS), **options, z_round=z_round, stochastic=stochastic)
    assert_same(got, want)


def test_chain_of_no_terms_decays(gpu):
    got = [torch.arange(100.0, device=gpu.device)]
    gpu.module.chain_(got, None, [0], [], [], [], [], 0.25)
    assert torch.equal(got[0].cpu(), 0.25 * torch.arange(100.0))


def test_many_tensors(gpu):
    """More than one launch has room for; sizes around a tile."""
    generator = torch.Generator().manual_seed(1)
    sizes = [1 + int(torch.randint(0, 40, (), generator=generator)) for _ in range(800)] + [
        4096,
        1,
        4097,
        8192,
    ]
    want = [torch.randn(n, generator=generator) for n in sizes]
    got = [w.to(gpu.device) for w in want]
    streams = list(range(len(sizes)))
    gpu.module.chain_(got, None, streams, *terms_of(("gaussian",)))
    ref.chain_(want, None, streams, *terms_of(("gaussian",)))
    assert_same(got, want)


def test_nothing_is_written_beside_a_tensor(gpu):
    for dtype in DTYPES:
        for shift, n in ((0, 4097), (1, 511), (8, 4096), (5, 3)):
            buffer = torch.full((n + 20,), 7.0, dtype=dtype, device=gpu.device)
            gpu.module.chain_(
                [buffer[shift : shift + n]], None, [0], *terms_of(("rademacher",)), stochastic=True
            )
            outside = torch.cat((buffer[:shift], buffer[shift + n :])).cpu()
            assert torch.equal(outside, torch.full_like(outside, 7.0)), (dtype, shift, n)
            assert (
                not torch.equal(buffer[shift : shift + n].cpu(), torch.full((n,), 7.0, dtype=dtype)) or n < 8
            )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_adam(gpu, dtype):
    state = torch.float64 if dtype == torch.float64 else torch.float32
    runs = []
    for module, device in ((gpu.module, gpu.device), (ref, torch.device("cpu"))):
        params = tensors(dtype, device)
        means = [torch.zeros(p.shape, dtype=state, device=device) for p in params]
        squares = [torch.zeros_like(p, dtype=state) for p in params]  # keeps strides: not those of the means
        for step in (1, 2):
            module.adam_(
                params,
                means,
                squares,
                list(range(len(params))),
                *terms_of(("gaussian", "rademacher")),
                lr=1e-2,
                beta1=0.9,
                beta2=0.999,
                eps=1e-8,
                step=step,
                decay=0.99,
                stochastic=step == 2,
                rounding_seed=8,
                rounding_query=9,
            )
        runs.append([*params, *means, *squares])
    assert_same(*runs)


def test_empty_lists_and_tensors(gpu):
    none: list[Tensor] = []
    gpu.module.chain_(none, None, [], *terms_of(("gaussian",)))
    empty = torch.empty(0, device=gpu.device)
    gpu.module.chain_([empty], None, [0], *terms_of(("gaussian",)))
    gpu.module.sample_(empty, 1, 2, 3, 4, "gaussian")


def test_too_many_dimensions_to_address_is_an_error_before_any_write(gpu):
    if gpu.name == "triton":
        pytest.skip("Triton works on a contiguous copy")
    shape = (2,) * 11
    scattered = torch.ones(shape, device=gpu.device).permute(*range(10, -1, -1))
    scattered = torch.as_strided(scattered, shape, scattered.stride())
    plain = torch.ones(10, device=gpu.device)
    with pytest.raises(RuntimeError, match="8 dimensions"):
        gpu.module.chain_([plain, scattered], None, [0, 1], *terms_of(("gaussian",)))
    assert torch.equal(plain.cpu(), torch.ones(10))
