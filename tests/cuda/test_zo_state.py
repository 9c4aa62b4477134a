"""Masks, passes with state, replays, sums and counts on a GPU, or emulated: the bits of the reference."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from tenfold.kernels.zo import zo_reference as ref
from tenfold.kernels.zo.zo_mask import MaskArgs
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
MASKS = ("none", "random", "magnitude", "bits")
CASES = [  # every mask and every dtype
    (torch.float32, "none"),
    (torch.float32, "random"),
    (torch.bfloat16, "none"),
    (torch.bfloat16, "magnitude"),
    (torch.float16, "bits"),
    (torch.float64, "random"),
    (torch.float64, "magnitude"),
]
MIXED = ("gaussian", "rademacher", "gauss16")
SEED = 2**64 - 3
ROUNDING = {"rounding_seed": 77, "rounding_query": 9}
CPU = torch.device("cpu")


def bits(x: Tensor) -> Tensor:
    """The storage as integers, on the CPU; every NaN alike."""
    x = x.detach().cpu().contiguous()
    if x.is_floating_point():
        x = torch.where(x.isnan(), torch.full((), torch.nan, dtype=x.dtype), x)
    return x.view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()])


def assert_same(got: list[Tensor], want: list[Tensor], *where: object) -> None:
    for i, (a, b) in enumerate(zip(got, want, strict=True)):
        assert torch.equal(bits(a), bits(b)), (*where, i, tuple(a.shape))


def tensors(dtype: torch.dtype, device: torch.device, seed: int = 0) -> list[Tensor]:
    """Sizes and layouts that kernels treat apart; the same values on every device."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return (0.02 * torch.randn(*shape, generator=generator, dtype=torch.float64)).to(dtype).to(device)

    special = draw(300)
    special[:6] = torch.tensor([torch.inf, -torch.inf, torch.nan, 0.0, -0.0, 1e-7], dtype=torch.float64)
    return [
        draw(1),
        draw(513),
        draw(4099),
        special,
        draw(0, 3),
        draw(2000)[1:],  # not aligned to 16 bytes
        draw(60, 71).t(),
        draw(7, 10, 3)[:, ::3],
    ]


def states(params: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Positive values; strides of their own."""
    generator = torch.Generator().manual_seed(9)
    drawn = [torch.rand(p.shape, generator=generator, dtype=torch.float64) + 0.1 for p in params]
    return [d.to(dtype).to(p.device) for d, p in zip(drawn, params, strict=True)]


def state_dtypes(dtype: torch.dtype) -> tuple[torch.dtype, ...]:
    return (torch.float64,) if dtype == torch.float64 else (torch.float32, torch.bfloat16)


def mask_of(kind: str, params: list[Tensor]) -> MaskArgs | None:
    if kind == "none":
        return None
    if kind == "random":
        ratios = [(0.5, 0.0, 0.3, 1.0, 0.75)[t % 5] for t in range(len(params))]
        return MaskArgs("random", SEED - 5, 2**24 - 7, ratios, [])
    if kind == "magnitude":
        return MaskArgs("magnitude", 0, 0, [0.01 * (1 + t % 3) for t in range(len(params))], [])
    generator = torch.Generator().manual_seed(3)
    drawn = [torch.randint(0, 256, ((p.numel() + 7) // 8,), generator=generator) for p in params]
    return MaskArgs(
        "bits", 0, 0, [], [d.to(torch.uint8).to(p.device) for d, p in zip(drawn, params, strict=True)]
    )


def terms_of(dists: tuple[str, ...]) -> tuple[list[int], list[int], list[float], list[str]]:
    k = range(len(dists))
    return (
        [SEED - i for i in k],
        [2**24 - 1 - i for i in k],
        [(-1) ** i * 1e-3 * (i + 1) for i in k],
        list(dists),
    )


Run = Callable[[ModuleType, torch.device], list[Tensor]]


def compare(gpu, run: Run, *where: object) -> None:
    assert_same(run(gpu.module, gpu.device), run(ref, CPU), *where)


@pytest.mark.parametrize(("dtype", "kind"), CASES, ids=str)
def test_chain(gpu, kind, dtype):
    def run(module, device):
        params, sources = tensors(dtype, device), tensors(dtype, device, seed=5)
        streams, mask = list(range(len(params))), mask_of(kind, params)
        module.chain_(params, None, streams, *terms_of(MIXED), 0.9, None, True, 77, 3, mask)
        module.chain_(
            params, sources, streams, *terms_of(("gauss16",)), -1.0, torch.bfloat16, False, 77, 3, mask
        )
        return params

    compare(gpu, run)


def test_masked_chains_of_64_terms_and_of_many_tensors(gpu):
    """As many terms as a launch takes; more tensors than one has room for."""

    def run(module, device):
        few = [torch.ones(n, device=device) for n in (4097, 5)]
        many = [torch.ones(1 + i % 9, device=device) for i in range(700)] + few
        dists = ("gaussian", "rademacher") * 32
        for params, terms in ((few, terms_of(dists)), (many, terms_of(("gauss16",)))):
            mask = MaskArgs("random", 1, 2, [0.5] * len(params), [])
            module.chain_(params, None, list(range(len(params))), *terms, 0.5, mask=mask)
        return many

    compare(gpu, run)


def test_every_element_of_a_full_mask_stays_and_none_of_an_empty_one(gpu):
    params = [torch.linspace(-1, 1, 5000, device=gpu.device) for _ in range(2)]
    mask = MaskArgs("random", 1, 2, [1.0, 0.0], [])
    before = params[0].clone()
    gpu.module.chain_(params, None, [0, 1], *terms_of(("gaussian",)), mask=mask)
    assert torch.equal(params[0], before)
    free = [before.clone()]
    gpu.module.chain_(free, None, [1], *terms_of(("gaussian",)))
    assert torch.equal(params[1], free[0])


@pytest.mark.parametrize(("dtype", "kind"), CASES, ids=str)
def test_adam(gpu, kind, dtype):
    for state, variant in itertools.product(state_dtypes(dtype), ("adam", "radazo")):

        def run(module, device, state=state, variant=variant):
            params = tensors(dtype, device)
            means = [torch.zeros(p.shape, dtype=state, device=device) for p in params]
            squares = [torch.zeros_like(p, dtype=state) for p in params]  # keeps strides
            mask = mask_of(kind, params)
            for step in (1, 2):
                terms = terms_of(MIXED[:step])
                scalars = {"lr": 1e-2, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "step": step, "decay": 0.99}
                options = {**scalars, **ROUNDING, "stochastic": step == 2, "variant": variant, "mask": mask}
                module.adam_(params, means, squares, list(range(len(params))), *terms, **options)
            return [*params, *means, *squares]

        compare(gpu, run, state, variant)


@pytest.mark.parametrize(("dtype", "kind"), CASES, ids=str)
def test_momentum(gpu, kind, dtype):
    for state, nesterov in itertools.product(state_dtypes(dtype), (False, True)):

        def run(module, device, state=state, nesterov=nesterov):
            params = tensors(dtype, device)
            buffers = [torch.full(p.shape, torch.nan, dtype=state, device=device) for p in params]
            for first in (True, False):
                scalars = {"lr": 1e-2, "momentum": 0.9, "dampening": 0.0 if nesterov else 0.1, "decay": 0.99}
                options = {
                    "nesterov": nesterov,
                    "first_step": first,
                    "mask": mask_of(kind, params),
                    **ROUNDING,
                }
                terms = terms_of(MIXED[: 2 - first])
                module.momentum_(params, buffers, list(range(len(params))), *terms, **scalars, **options)
            return [*params, *buffers]

        compare(gpu, run, state, nesterov)


@pytest.mark.parametrize(("dtype", "kind"), CASES, ids=str)
def test_sign_and_hizoo(gpu, kind, dtype):
    wide = torch.float64 if dtype == torch.float64 else torch.float32

    def run(module, device):
        params, sources = tensors(dtype, device), tensors(dtype, device, seed=5)
        hessians = states(params, wide)
        streams, mask = list(range(len(params))), mask_of(kind, params)
        options = {**ROUNDING, "mask": mask}
        module.sign_(params, streams, *terms_of(MIXED[:2]), 1e-2, 0.99, stochastic=True, **options)
        for clean, dist in ((None, "gaussian"), (sources, "gauss16")):
            module.hizoo_perturb_(
                params, clean, hessians, streams, 5, 6, 1e-3, dist, stochastic=True, **options
            )
        scalars = {"lr": 1e-2, "smoothing": 0.01, "decay": 0.99, **options}
        module.hizoo_update_(
            params, hessians, streams, *terms_of(MIXED), [0.5, 2.0, 0.0], z_round=torch.float16, **scalars
        )
        module.hizoo_update_(params, hessians, streams, *terms_of(MIXED[:1]), [0.5], restore=1e-3, **scalars)
        return [*params, *hessians]

    compare(gpu, run)


def test_sign_of_zero_is_zero(gpu):
    params = [torch.full((100,), 2.0, device=gpu.device)]
    gpu.module.sign_(params, [0], [1], [0], [0.0], ["gaussian"], 0.5)
    assert torch.equal(params[0].cpu(), torch.full((100,), 2.0))


def replay_arguments(sizes: list[int], masks: list[list[float]]) -> dict[str, object]:
    seeds, queries, coefs, dists = terms_of((MIXED * sum(sizes))[: sum(sizes)])
    passes = range(len(sizes))
    return {
        "seeds": seeds,
        "queries": queries,
        "coefs": coefs,
        "dists": dists,
        "sizes": sizes,
        "decays": [1.0 - 0.01 * (p % 3) for p in passes],
        "rounding_seeds": [SEED - p for p in passes],
        "rounding_queries": [p + 4 for p in passes],
        "mask_seeds": [9 - p % 9 for p in passes],
        "mask_queries": [p + 1 for p in passes],
        "mask_ratios": [ratio for row in masks for ratio in row],
    }


@pytest.mark.parametrize("stochastic", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_replay(gpu, dtype, stochastic):
    """Without masks, with one mask's ratios, and with ratios that change: every way passes share a launch."""
    count = len(tensors(dtype, CPU))
    none, half = [-1.0] * count, [0.5] * count
    other = [0.1 * t for t in range(count)]
    for masks in ([], [none, half, half, none], [half, other, none, other]):

        def run(module, device, masks=masks):
            params = tensors(dtype, device)
            arguments = replay_arguments([1, 2, 3, 1], masks)
            module.replay_(params, list(range(count)), **arguments, stochastic=stochastic)
            return params

        compare(gpu, run, masks)


def test_replay_of_more_passes_and_terms_than_a_launch_holds(gpu):
    def run(module, device):
        params = [torch.ones(700, dtype=torch.bfloat16, device=device), torch.ones(9, device=device)]
        module.replay_(params, [3, 4], **replay_arguments([1] * 70 + [64] * 8, []), stochastic=True)
        return params

    compare(gpu, run)


# -- sums, counts, quantiles ---------------------------------------------------------------------------


@pytest.mark.parametrize("dist", [*MIXED, "uniform"])
@pytest.mark.parametrize("kind", MASKS)
def test_square_sums(gpu, kind, dist):
    results = []
    for module, device in ((gpu.module, gpu.device), (ref, CPU)):
        params = tensors(torch.bfloat16, device) + tensors(torch.float64, device)
        looked_at = params if kind == "magnitude" else ()
        streams, numels = list(range(len(params))), [p.numel() for p in params]
        mask = mask_of(kind, params)
        results.append(module.square_sums(numels, streams, SEED, 2**24 - 1, dist, device, mask, looked_at))
    assert results[0] == results[1]


def test_moments_are_those_of_the_cpu(gpu):
    from tenfold.kernels.zo import zo_native

    from tenfold import _native

    if gpu.name == "triton":
        pytest.skip("not written in Triton")
    threads = torch.get_num_threads()
    for first, n, dist in ((0, 5000, "gaussian"), (2**33 + 77, 9001, "rademacher"), (2049, 3, "gauss16")):
        code = zo_native.PURPOSES[dist]
        want = _native.cpu.zo_moments(SEED, 4, 5, code, first, n, threads)
        assert gpu.module.moments(SEED, 4, 5, first, n, dist, gpu.device) == tuple(want), (first, n, dist)


@pytest.mark.parametrize("dtypes", [DTYPES[:1], DTYPES[1:3], DTYPES], ids=["single", "half", "all"])
def test_counts_bits_and_quantiles(gpu, dtypes):
    got = [t for dtype in dtypes for t in tensors(dtype, gpu.device)]
    want = [t for dtype in dtypes for t in tensors(dtype, CPU)]
    thresholds = [(0.01, 0.02, 0.0, torch.inf)[t % 4] for t in range(len(got))]
    assert gpu.module.count_within(got, thresholds) == ref.count_within(want, thresholds)
    total = sum(t.numel() for t in want)
    for rank in (1, 2, total // 7, total // 2, total - 2 * len(dtypes), total):
        a, b = gpu.module.quantile_abs(got, rank), ref.quantile_abs(want, rank)
        assert a == b or (a != a and b != b), rank
    results = []
    for module, params in ((gpu.module, got), (ref, want)):
        out = [torch.full(((p.numel() + 7) // 8,), 255, dtype=torch.uint8, device=p.device) for p in params]
        module.magnitude_bits_(out, params, thresholds)
        results.append(out)
    assert_same(*results)
