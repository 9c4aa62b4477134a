"""Coverage in Triton's interpreter: small problems, against the reference in float64."""

from __future__ import annotations

import os

import pytest
import torch
from tenfold.kernels.coverage import coverage_device, coverage_reference
from tenfold.kernels.coverage.problem import KINDS, Similarity, Wanted

import tenfold
from tenfold.ops import fl_greedy, graphcut_greedy, logdet_greedy

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="compiled here: tests/cuda/test_coverage.py"
)


@pytest.fixture(scope="module")
def launch():
    from tenfold.kernels.coverage import coverage_triton

    return coverage_triton.Triton()


def gaussian(n, d, seed):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "d"), [(1, 1), (131, 35)])
def test_values_and_gains(launch, kind, n, d):
    s = Similarity(points=gaussian(n, d, n), kind=kind, gamma=0.5 / d, rows=n)
    want, values = coverage_reference.Values(s), coverage_device.Values(launch, s)
    assert values.floor == pytest.approx(want.floor, rel=1e-5)
    which = torch.arange(0, n, 3)
    expected = want(which)
    assert torch.allclose(values(which), expected, atol=2e-5 * float(expected.abs().max()))
    state = coverage_device.State(values, Wanted(1, weights=torch.rand(n).double()))
    state.take(n // 2)
    better = (expected - state.current.double()).clamp_min(0.0) @ state.weights.double()
    got = torch.tensor(state.gains(which.tolist()), dtype=torch.float64)
    assert torch.allclose(got, values.scale * better, atol=2e-5 * float(expected.abs().sum(1).max()))


def test_matrix_and_lists(launch):
    s = gaussian(30, 1100, 1)
    s[s < 1.0] = 0.0
    current, weights = torch.rand(1100), torch.rand(1100)
    which = torch.tensor([29, 0, 7])
    want = (s[which] - current).clamp_min(0.0).double() @ weights.double()
    assert torch.allclose(launch.matrix_gains(s, which, current, weights), want, rtol=1e-5)
    half = s.bfloat16()
    rounded = (half[which].float() - current).clamp_min(0.0).double() @ weights.double()
    assert torch.allclose(launch.matrix_gains(half, which, current, weights), rounded, rtol=1e-5)
    csr = s.to_sparse_csr()
    parts = csr.crow_indices(), csr.col_indices(), csr.values()
    assert torch.allclose(launch.lists_gains(parts, which, current, weights), want, rtol=1e-5)


@pytest.mark.parametrize("kind", ["sqeuclidean", "cosine01"])
def test_the_ops(kind):
    x = gaussian(90, 6, 2)
    with tenfold.use_backend("triton"):
        got = fl_greedy(x, 8, kind=kind), graphcut_greedy(x, 8, kind=kind), logdet_greedy(x, 8)
    with tenfold.use_backend("reference"):
        want = fl_greedy(x, 8, kind=kind), graphcut_greedy(x, 8, kind=kind), logdet_greedy(x, 8)
    for found, expected in zip(got, want, strict=True):
        assert torch.equal(found.indices, expected.indices)
        assert torch.allclose(found.gains, expected.gains, rtol=1e-4, atol=1e-3)
    assert torch.equal(got[0].counts, want[0].counts)
