"""Coverage on a GPU, or its CUDA source on the host: against the reference, and as the CPU kernels choose."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch
from tenfold.kernels.coverage import coverage_cuda, coverage_device, coverage_reference
from tenfold.kernels.coverage.problem import KINDS, Similarity, Wanted

import tenfold
from tenfold.ops import fl_greedy, graphcut_greedy, herding, logdet_greedy


@pytest.fixture
def kernels(gpu: Any, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module with the reference's functions; the emulated kernels where there is no GPU."""
    if gpu.name == "triton":
        from tenfold.kernels.coverage import coverage_triton

        return coverage_triton
    if gpu.name == "emulated":
        built = request.getfixturevalue("emulated_cuda")
        monkeypatch.setattr(coverage_cuda, "module", lambda device: (built, 0))
    return coverage_cuda


def launch(kernels: ModuleType) -> Any:
    return kernels.Cuda() if kernels is coverage_cuda else kernels.Triton()


def gaussian(n: int, d: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "d"), [(1, 1), (128, 16), (141, 5), (300, 37)])
def test_values_and_gains(gpu, kernels, kind, n, d):
    x = gaussian(n, d, n)
    s = Similarity(points=x.to(gpu.device), kind=kind, gamma=0.5 / d, rows=n)
    want = coverage_reference.Values(Similarity(points=x, kind=kind, gamma=0.5 / d, rows=n))
    values = coverage_device.Values(launch(kernels), s)
    assert values.floor == pytest.approx(want.floor, rel=1e-5)
    which = torch.arange(0, n, 3)
    expected = want(which)
    got = values(which.to(gpu.device)).cpu()
    assert torch.allclose(got, expected, atol=2e-5 * float(expected.abs().max()))
    state = coverage_device.State(values, Wanted(1, weights=torch.rand(n).double().to(gpu.device)))
    state.take(n // 2)
    covered = state.current.cpu().double()
    better = (expected - covered).clamp_min(0.0) @ state.weights.cpu().double()
    assert torch.allclose(
        torch.tensor(state.gains(which.tolist()), dtype=torch.float64),
        values.scale * better,
        atol=2e-5 * float(expected.abs().sum(1).max()),
    )


@pytest.mark.parametrize("kind", KINDS)
def test_lazy_is_naive(gpu, kernels, kind):
    """To the bit in CUDA, whose sums have one order; Triton's picks may differ where gains are equal."""
    x = gaussian(230, 19, 1)
    s = Similarity(points=x.to(gpu.device), kind=kind, gamma=0.02, rows=230)
    lazy, naive = (kernels.fl_greedy(s, Wanted(12, optimizer)) for optimizer in ("lazy", "naive"))
    want = coverage_reference.fl_greedy(Similarity(points=x, kind=kind, gamma=0.02, rows=230), Wanted(12))
    if kernels is coverage_cuda:
        assert torch.equal(lazy.indices, naive.indices)
        assert torch.equal(lazy.gains, naive.gains)
    for found in (lazy, naive):
        assert found.objective == pytest.approx(want.objective, rel=1e-5)
        assert torch.allclose(found.gains, want.gains, rtol=1e-4, atol=1e-5 * want.objective)
        assert len(set(found.indices.tolist())) == 12


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_matrix_and_lists(gpu, kernels, dtype):
    s = gaussian(4200, 40, 2)
    s[s < 1.0] = 0.0
    s = s.to(dtype)
    want = coverage_reference.fl_greedy(Similarity(dense=s.T.contiguous(), rows=4200), Wanted(9))
    dense = Similarity(dense=s.T.contiguous().to(gpu.device), rows=4200)
    csr = s.T.float().to_sparse_csr()
    parts = [t.to(gpu.device) for t in (csr.crow_indices(), csr.col_indices(), csr.values())]
    for given in (dense, Similarity(sparse=tuple(parts), rows=4200)):
        for optimizer in ("lazy", "naive"):
            got = kernels.fl_greedy(given, Wanted(9, optimizer))
            assert torch.equal(got.indices, want.indices)
            assert torch.equal(got.owner, want.owner)
            assert got.objective == pytest.approx(want.objective, rel=1e-6)


def test_the_largest_distance(gpu, kernels):
    for n, d in ((2, 1), (150, 3), (900, 6)):
        x = torch.cat((gaussian(n, d, 3), 0.01 * gaussian(n, d, 4)))
        s = Similarity(points=x.to(gpu.device), kind="sqeuclidean", rows=2 * n)
        got = -coverage_device.Values(launch(kernels), s).floor
        assert got == pytest.approx(float(torch.cdist(x.double(), x.double()).square().max()), rel=1e-5)


def test_the_other_choices(gpu, kernels):
    x = gaussian(200, 11, 5)
    here, there = (Similarity(points=p, kind="cosine01", rows=200) for p in (x, x.to(gpu.device)))
    want = coverage_reference.graphcut_greedy(here, 15, 1.5, (3,))
    got = kernels.graphcut_greedy(there, 15, 1.5, (3,))
    assert torch.equal(got[0], want[0])
    assert torch.allclose(got[1], want[1], atol=1e-3)
    here, there = (Similarity(points=p, kind="rbf", gamma=0.1, rows=200) for p in (x, x.to(gpu.device)))
    want = coverage_reference.logdet_greedy(here, 15, 0.0, ())
    got = kernels.logdet_greedy(there, 15, 0.0, ())
    assert torch.equal(got[0], want[0])
    assert torch.allclose(got[1], want[1], atol=1e-4)
    want = coverage_reference.herding(x, 15)
    got = kernels.herding(x.to(gpu.device), 15)
    assert torch.equal(got[0], want[0])
    rows, columns, values = kernels.nearest(there, 5)
    expected = coverage_reference.nearest(here, 5)
    assert torch.equal(rows.cpu(), expected[0])
    assert torch.equal(columns.cpu(), expected[1])
    assert torch.allclose(values.cpu().double(), expected[2], atol=1e-5)


# ---- on a GPU only ---------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("op", [fl_greedy, graphcut_greedy, logdet_greedy, herding])
def test_integers_are_chosen_as_on_the_cpu(real_gpu, op):
    x = torch.randint(0, 17, (3000, 24), generator=torch.Generator().manual_seed(6)).float()
    want = op(x, 25, **({"kind": "inner", "ridge": 1.0} if op is logdet_greedy else {}))
    with tenfold.use_backend(real_gpu.name):
        got = op(
            x.to(real_gpu.device), 25, **({"kind": "inner", "ridge": 1.0} if op is logdet_greedy else {})
        )
    assert got.indices.device.type == "cuda"
    if op in (fl_greedy, herding):
        assert torch.equal(got.indices.cpu(), want.indices)
    assert torch.allclose(got[1].cpu(), want[1], rtol=1e-4)


@pytest.mark.gpu
def test_a_large_set(real_gpu):
    x = gaussian(60_000, 32, 7)
    with tenfold.use_backend(real_gpu.name):
        got = fl_greedy(x.to(real_gpu.device), 50)
        again = fl_greedy(x.to(real_gpu.device), 50)
    assert torch.equal(got.indices, again.indices)
    assert torch.equal(got.gains, again.gains)
    covered = torch.cdist(x.double()[got.indices.cpu()], x.double()).square().amin(0)
    bound = got.gains[0].item()  # what one pick covers
    assert got.objective > bound
    start = torch.cdist(x.double()[got.indices.cpu()[:1]], x.double()).square()[0]
    assert got.objective - bound == pytest.approx(float(start.sum() - covered.sum()), rel=1e-3)
    assert int(got.counts.sum()) == 60_000


@pytest.mark.gpu
def test_runs_on_the_current_stream(real_gpu):
    x = gaussian(5000, 16, 8).to(real_gpu.device)
    with tenfold.use_backend(real_gpu.name):
        want = fl_greedy(2 * x, 10)
        stream = torch.cuda.Stream(real_gpu.device)
        stream.wait_stream(torch.cuda.current_stream(real_gpu.device))
        with torch.cuda.stream(stream):
            torch.cuda._sleep(20_000_000)
            got = fl_greedy(x.mul_(2), 10)
        stream.synchronize()
    assert torch.equal(got.indices, want.indices)
