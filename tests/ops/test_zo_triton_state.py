"""Masks, passes with state, replays, sums and counts in Triton, interpreted where there is no GPU.

See test_zo_triton.py for what that shows, and tests/cuda/test_zo_state.py for more sizes on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from tenfold.kernels.zo import zo_reference as ref
from tenfold.kernels.zo.zo_mask import MaskArgs
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
    pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:divide by zero encountered:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning"),
]

CASES = [  # every mask and every dtype
    (torch.float32, "none"),
    (torch.float32, "random"),
    (torch.bfloat16, "magnitude"),
    (torch.float16, "bits"),
    (torch.float64, "random"),
]
MIXED = ("gaussian", "rademacher", "gauss16")
SEED = 2**64 - 3
ROUNDING = {"rounding_seed": 77, "rounding_query": 9}


def bits(x: Tensor) -> Tensor:
    x = x.detach().cpu().contiguous()
    if x.is_floating_point():
        x = torch.where(x.isnan(), torch.full((), torch.nan, dtype=x.dtype), x)
    return x.view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()])


def weights(dtype: torch.dtype, device: torch.device, seed: int = 0) -> list[Tensor]:
    """An aligned tensor with infinities and NaN, one that is not contiguous, an empty one."""
    generator = torch.Generator().manual_seed(seed)
    drawn = [0.02 * torch.randn(n, generator=generator, dtype=torch.float64) for n in ((700,), (9, 11))]
    drawn[0][:6] = torch.tensor([torch.inf, -torch.inf, torch.nan, 0.0, -0.0, 1e-7])
    first, second = (d.to(dtype).to(device) for d in drawn)
    return [first, second.t(), first[:0]]


def mask_of(kind: str, params: list[Tensor]) -> MaskArgs | None:
    if kind == "none":
        return None
    if kind == "random":
        return MaskArgs("random", SEED - 5, 2**24 - 7, [0.5, 0.3, 1.0], [])
    if kind == "magnitude":
        return MaskArgs("magnitude", 0, 0, [0.01, 0.02, 0.0], [])
    filled = [torch.arange((p.numel() + 7) // 8) * 37 % 256 for p in params]
    return MaskArgs(
        "bits", 0, 0, [], [f.to(torch.uint8).to(p.device) for f, p in zip(filled, params, strict=True)]
    )


def terms_of(dists: tuple[str, ...]) -> tuple[list[int], list[int], list[float], list[str]]:
    k = range(len(dists))
    coefs = [(-1) ** i * 1e-3 * (i + 1) for i in k]
    return [SEED - i for i in k], [2**24 - 1 - i for i in k], coefs, list(dists)


def compare(run: Callable[[ModuleType, torch.device], list[Tensor]]) -> None:
    got, want = run(zo_triton, DEVICE), run(ref, torch.device("cpu"))
    for i, (a, b) in enumerate(zip(got, want, strict=True)):
        assert torch.equal(bits(a), bits(b)), i


def state_of(dtype: torch.dtype, kind: str) -> torch.dtype:
    """float64 for float64 tensors, else either of the two."""
    if dtype == torch.float64:
        return dtype
    return torch.float32 if kind in ("none", "bits") else torch.bfloat16


@pytest.mark.parametrize(("dtype", "kind"), CASES, ids=str)
def test_chain(dtype, kind):
    def run(module, device):
        params, sources = weights(dtype, device), weights(dtype, device, seed=5)
        mask = mask_of(kind, params)
        module.chain_(params, None, [1, 2, 3], *terms_of(MIXED[:2]), 0.9, None, True, 77, 3, mask)
        module.chain_(params, sources, [1, 2, 3], *terms_of(MIXED[2:]), -1.0, torch.bfloat16, mask=mask)
        return params

    compare(run)


@pytest.mark.parametrize("variant", ["adam", "radazo"])
@pytest.mark.parametrize(("dtype", "kind"), CASES, ids=str)
def test_adam(dtype, kind, variant):
    def run(module, device):
        params = weights(dtype, device)
        means = [torch.full(p.shape, 0.01, dtype=state_of(dtype, kind), device=device) for p in params]
        squares = [torch.full_like(p, 1e-4, dtype=state_of(dtype, kind)) for p in params]  # keeps strides
        scalars = {"lr": 1e-2, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "step": 2, "decay": 0.99}
        options = {**scalars, **ROUNDING, "stochastic": True, "variant": variant}
        options["mask"] = mask_of(kind, params)
        module.adam_(params, means, squares, [1, 2, 3], *terms_of(MIXED[2:]), **options)
        return [*params, *means, *squares]

    compare(run)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize(("dtype", "kind"), CASES, ids=str)
def test_momentum(dtype, kind, nesterov):
    def run(module, device):
        params = weights(dtype, device)
        buffers = [torch.full(p.shape, torch.nan, dtype=state_of(dtype, kind), device=device) for p in params]
        scalars = {"lr": 1e-2, "momentum": 0.9, "dampening": 0.0 if nesterov else 0.1, "decay": 0.99}
        options = {**scalars, **ROUNDING, "nesterov": nesterov, "mask": mask_of(kind, params)}
        for first in (True, False):
            module.momentum_(params, buffers, [1, 2, 3], *terms_of(MIXED[1:2]), first_step=first, **options)
        return [*params, *buffers]

    compare(run)


@pytest.mark.parametrize(("dtype", "kind"), CASES, ids=str)
def test_sign_and_hizoo(dtype, kind):
    wide = torch.float64 if dtype == torch.float64 else torch.float32

    def run(module, device):
        params, sources = weights(dtype, device), weights(dtype, device, seed=5)
        # Drawn on the CPU: a GPU divides by a number as a product with its reciprocal, to other bits.
        hessians = [(0.1 + torch.arange(p.numel(), dtype=wide) / 99).view(p.shape).to(device) for p in params]
        options = {**ROUNDING, "mask": mask_of(kind, params)}
        module.sign_(params, [1, 2, 3], *terms_of(MIXED[1:2]), 1e-2, 0.99, stochastic=True, **options)
        drawn = 5, 6, 1e-3, "gauss16"
        module.hizoo_perturb_(params, sources, hessians, [1, 2, 3], *drawn, stochastic=True, **options)
        scalars = {"lr": 1e-2, "smoothing": 0.01, "decay": 0.99, **options}
        module.hizoo_update_(params, hessians, [1, 2, 3], *terms_of(MIXED[:2]), [0.5, 2.0], **scalars)
        module.hizoo_update_(
            params, hessians, [1, 2, 3], *terms_of(MIXED[1:2]), [0.5], restore=1e-3, **scalars
        )
        return [*params, *hessians]

    compare(run)


@pytest.mark.parametrize(
    "ratios", [[], [-1.0] * 3 + [0.5] * 3, [0.5, 0.1, 0.2, 0.3, 0.4, 0.0]], ids=["none", "one", "two"]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_replay(dtype, ratios):
    def run(module, device):
        params = weights(dtype, device)
        seeds, queries, coefs, dists = terms_of(MIXED)
        columns = [1, 2], [1.0, 0.9], [SEED, 5], [6, 7], [8, 9], [10, 11], ratios
        module.replay_(params, [1, 2, 3], seeds, queries, coefs, dists, *columns, stochastic=True)
        return params

    compare(run)


@pytest.mark.parametrize(
    ("kind", "dist"),
    [
        pytest.param("none", "rademacher", marks=pytest.mark.slow),
        pytest.param("bits", "rademacher", marks=pytest.mark.slow),
        ("magnitude", "rademacher"),
    ],
)
def test_square_sums(kind, dist):
    results = []
    for module, device in ((zo_triton, DEVICE), (ref, torch.device("cpu"))):
        params = [torch.linspace(-0.1, 0.1, 2100, device=device)]
        looked_at = params if kind == "magnitude" else ()
        mask = mask_of(kind, params)
        results.append(module.square_sums([2100], [3], SEED, 2**24 - 1, dist, device, mask, looked_at))
    assert results[0] == results[1]


@pytest.mark.slow
@pytest.mark.parametrize("dist", ["gaussian", "uniform", "gauss16"])
def test_square_sums_of_other_distributions(dist):
    results = []
    for module, device in ((zo_triton, DEVICE), (ref, torch.device("cpu"))):
        mask = MaskArgs("random", 5, 6, [0.3], [])
        results.append(module.square_sums([2100], [3], SEED, 2**24 - 1, dist, device, mask))
    assert results[0] == results[1]


@pytest.mark.parametrize("dtypes", [(torch.float32, torch.bfloat16), (torch.float16, torch.float64)], ids=str)
def test_counts_bits_and_quantiles(dtypes):
    got = [t for dtype in dtypes for t in weights(dtype, DEVICE)]
    want = [t for dtype in dtypes for t in weights(dtype, torch.device("cpu"))]
    thresholds = [0.01, 0.02, 0.0, torch.inf, 0.005, 1.0]
    assert zo_triton.count_within(got, thresholds) == ref.count_within(want, thresholds)
    total = sum(t.numel() for t in want)
    for rank in (1, total // 3, total - 3, total):
        a, b = zo_triton.quantile_abs(got, rank), ref.quantile_abs(want, rank)
        assert a == b or (a != a and b != b), rank
    results = []
    for module, params in ((zo_triton, got), (ref, want)):
        out = [torch.full(((p.numel() + 7) // 8,), 255, dtype=torch.uint8, device=p.device) for p in params]
        module.magnitude_bits_(out, params, thresholds)
        results.append(out)
    assert all(torch.equal(bits(a), bits(b)) for a, b in zip(*results, strict=True))
