"""Norms of directions, quantiles and counts of |theta|, against plain PyTorch and the reference."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor

import tenfold
from tenfold import _native
from tenfold.ops import (
    BitMask,
    MagnitudeMask,
    RandomMask,
    count_within,
    magnitude_bits,
    quantile_abs,
    zo_direction_norm,
    zo_moments,
    zo_sample,
)


@pytest.fixture(autouse=True)
def best_isa_afterwards():
    before = _native.cpu.isa_used()
    yield
    _native.cpu.use_isa(before)


def tensors(*dtypes: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    out = [torch.randn(37, 83, generator=generator).t(), torch.randn(5000, generator=generator)]
    out += [torch.zeros(11), torch.empty(0), torch.randn(9001, generator=generator)[::3]]
    return [t.to(dtypes[i % len(dtypes)]) for i, t in enumerate(out)]


def sorted_magnitudes(params: list[Tensor]) -> Tensor:
    return torch.cat([t.reshape(-1).double().abs() for t in params]).sort().values


LISTS = {
    "float32": (torch.float32,),
    "bfloat16": (torch.bfloat16,),
    "mixed": (torch.float32, torch.bfloat16, torch.float16),
    "with float64": (torch.float64, torch.float32, torch.float16),
}


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("name", list(LISTS))
def test_quantiles_are_order_statistics(name, backend):
    params = tensors(*LISTS[name])
    order = sorted_magnitudes(params)
    with tenfold.use_backend(backend):
        for q in (0.0, 1e-4, 0.07, 0.25, 0.5, 0.7, 0.999, 1.0):
            rank = max(1, math.ceil(Fraction(q) * len(order)))
            assert quantile_abs(params, q) == order[rank - 1].item(), q


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_quantiles_with_infinities_nan_zeros_and_subnormals(dtype):
    x = torch.tensor([math.nan, -math.inf, 3.0, -0.0, 1e-40, -math.nan, 2.0], dtype=dtype)
    assert quantile_abs([x], 0) == 0.0
    assert quantile_abs([x], 0.57) == 3.0
    assert quantile_abs([x], 0.7) == math.inf
    assert math.isnan(quantile_abs([x], 1.0))


def test_quantile_of_one_element_and_of_nothing():
    assert quantile_abs([torch.tensor(-2.5)], 0.3) == 2.5
    with pytest.raises(ValueError, match="params: expected at least one element"):
        quantile_abs([torch.empty(0)], 0.5)
    for q in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="q: expected"):
            quantile_abs([torch.ones(3)], q)


@pytest.mark.parametrize("isa", _native.cpu.isa_available())
def test_counts_and_bits(isa, set_threads):
    _native.cpu.use_isa(isa)
    set_threads(2)
    params = [*tensors(*LISTS["with float64"]), torch.full((100000,), 0.25)]
    bounds = [0.5, 0.1, 0.0, 1.0, 0.7, 0.25]
    counts = count_within(params, bounds)
    want = [(t.to(torch.float64).abs() <= float(np.float32(b) if t.dtype != torch.float64 else b))
            for t, b in zip(params, bounds, strict=True)]  # fmt: skip
    assert counts == [int(w.sum()) for w in want]
    for got, inside in zip(magnitude_bits(params, bounds), want, strict=True):
        packed = np.packbits(inside.reshape(-1).numpy(), bitorder="little")
        assert torch.equal(got, torch.from_numpy(packed))
    with tenfold.use_backend("reference"):
        assert count_within(params, bounds) == counts


def test_counting_reads_nan_as_large_and_checks_its_arguments():
    assert count_within([torch.tensor([math.nan, math.inf, 1.0])], 3e38) == [1]
    assert count_within([], 1.0) == []
    with pytest.raises(ValueError, match="thresholds"):
        count_within([torch.ones(2)], [1.0, 2.0])
    with pytest.raises(ValueError, match=r"thresholds\[0\]"):
        count_within([torch.ones(2)], [-1.0])


@pytest.mark.parametrize("dist", ["gaussian", "rademacher", "gauss16"])
def test_the_norm_of_a_direction(dist, set_threads):
    numels, streams = [1, 2048, 0, 5000, 3_000_001], [9, 8, 7, 6, 5]
    z = [
        zo_sample(3, s, 4, n=n, dist=dist, dtype=torch.float64) for s, n in zip(streams, numels, strict=True)
    ]
    exact = math.sqrt(math.fsum(x.square().sum().item() for x in z))
    got = {}
    for isa in _native.cpu.isa_available():
        _native.cpu.use_isa(isa)
        for threads in (1, 3):
            set_threads(threads)
            got[isa, threads] = zo_direction_norm(numels, streams, 3, 4, dist)
    with tenfold.use_backend("reference"):
        got["reference"] = zo_direction_norm(numels, streams, 3, 4, dist)
    assert len(set(got.values())) == 1, got
    assert got["reference"] == pytest.approx(exact, rel=1e-13)
    if dist == "rademacher":
        assert got["reference"] == math.sqrt(sum(numels))


def test_scaled_by_its_norm_a_direction_lies_on_the_sphere():
    d, streams = 20000, [1]
    z = zo_sample(3, 1, 4, n=d, dtype=torch.float64)
    scaled = z * (math.sqrt(d) / zo_direction_norm([d], streams, 3, 4))
    assert scaled.norm().item() == pytest.approx(math.sqrt(d), rel=1e-12)


def test_norms_of_masked_directions():
    params = tensors(torch.float32, torch.bfloat16, torch.float64)
    streams = list(range(len(params)))
    kept = magnitude_bits(params, 0.5)
    for mask in (RandomMask(1, 2, 0.3), MagnitudeMask(0.5), BitMask(kept)):
        got = zo_direction_norm(params, streams, 3, 4, mask=mask)
        with tenfold.use_backend("reference"):
            assert zo_direction_norm(params, streams, 3, 4, mask=mask) == got
    by_bits = zo_direction_norm(params, streams, 3, 4, mask=BitMask(kept))
    assert by_bits == zo_direction_norm(params, streams, 3, 4, mask=MagnitudeMask(0.5))
    numels = [p.numel() for p in params]
    half = RandomMask(1, 2, 0.3)
    assert zo_direction_norm(numels, streams, 3, 4, mask=half) == zo_direction_norm(
        params, streams, 3, 4, mask=half
    )
    with pytest.raises(TypeError, match="mask"):
        zo_direction_norm(numels, streams, 3, 4, mask=MagnitudeMask(0.5))


def test_moments_of_gauss16():
    z = zo_sample(5, 1, 2, first=7, n=30000, dist="gauss16", dtype=torch.float64)
    total, squares = zo_moments(5, 1, 2, first=7, n=30000, dist="gauss16")
    assert total == pytest.approx(z.sum().item(), abs=1e-8)
    assert squares == pytest.approx(z.square().sum().item(), rel=1e-12)
