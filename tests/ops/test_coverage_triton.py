"""Coverage in Triton's interpreter: small problems, against the reference in float64."""

from __future__ import annotations

import os

import pytest
import torch
from tenfold.kernels.coverage import coverage_device, coverage_reference, coverage_rounds
from tenfold.kernels.coverage.problem import KINDS, Similarity, Wanted
from torch.utils._python_dispatch import TorchDispatchMode

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


def test_duplicates_have_distance_zero_and_near_points_their_own(launch):
    """norms - 2 products leaves 1e-7 of the norms, a distance of 1e-3 where there is none."""
    x = gaussian(40, 35, 3)
    near = x + 1e-3 * gaussian(40, 35, 4)
    z = torch.cat((x, x, near))
    values = coverage_device.Values(launch, Similarity(points=z, kind="euclidean", rows=120))
    which = torch.arange(40)
    got = -values.single(which)
    assert torch.equal(got[which, which + 40], torch.zeros(40))
    want = (x - near).double().norm(dim=1)
    assert torch.allclose(got[which, which + 80].double(), want, rtol=1e-4)


@pytest.mark.parametrize("optimizer", ["lazy", "naive"])
@pytest.mark.parametrize("kind", ["sqeuclidean", "rbf"])
def test_rounds_choose_as_the_reference(launch, monkeypatch, optimizer, kind):
    """With a few candidates per round, so that some rounds take none; ties, a start, costs and a budget."""
    monkeypatch.setattr(coverage_rounds, "EVALUATED", 5)
    monkeypatch.setattr(coverage_rounds, "LAUNCHED", 4)
    x = torch.randint(0, 4, (50, 3), generator=torch.Generator().manual_seed(5)).float()
    if kind == "rbf":  # an exponential in float32 need not keep ties of the points
        x += 0.05 * torch.rand(x.shape, generator=torch.Generator().manual_seed(7))
    s = Similarity(points=x, kind=kind, gamma=0.3, rows=50)
    costs = 1.0 + torch.rand(50, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    for wanted in (
        Wanted(50, optimizer),
        Wanted(9, optimizer, initial=(3, 40), weights=torch.arange(50).double()),
        Wanted(50, optimizer, costs=costs, budget=12.0),
    ):
        want = coverage_reference.fl_greedy(s, wanted)
        got = coverage_device.fl_greedy(launch, s, wanted)
        if kind == "sqeuclidean":  # integers: no rounding
            assert torch.equal(got.indices, want.indices)
            assert torch.equal(got.owner, want.owner)
        assert len(set(got.indices.tolist())) == len(got.indices) == len(want.indices)
        assert got.objective == pytest.approx(want.objective, rel=1e-5)
        assert torch.allclose(got.gains, want.gains, rtol=1e-4, atol=1e-4 * want.objective)


class _Waits(TorchDispatchMode):
    """Counts what would wait for a GPU: values that the host reads, and shapes that depend on values."""

    OPS = ("_local_scalar_dense", "nonzero", "masked_select")
    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.overloadpacket.__name__ in self.OPS
        return func(*args, **(kwargs or {}))


def test_rounds_do_not_wait_for_the_device(launch, monkeypatch):
    monkeypatch.setattr(coverage_rounds, "EVALUATED", 5)
    s = Similarity(points=gaussian(60, 4, 7), kind="sqeuclidean", rows=60)
    wanted = Wanted(6, costs=torch.ones(60, dtype=torch.float64), budget=4.0)
    state = coverage_device.State(coverage_device.Values(launch, s), wanted)
    rounds = coverage_rounds.Rounds(state, 60, wanted)
    with monkeypatch.context() as patch:
        patch.setattr(launch.__class__, "gains", lambda *args: torch.rand(args[2].shape).double())
        patch.setattr(launch.__class__, "values", lambda *args: torch.rand(1, 60))
        patch.setattr(launch.__class__, "take", lambda *args: None)
        patch.setattr(torch.Tensor, "tolist", None)
        with _Waits() as seen:
            rounds.round()
    assert seen.count == 0
    with _Waits() as seen:
        int(state.taken)
    assert seen.count == 1
