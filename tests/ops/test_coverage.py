"""Subsets by facility location, graph cut, log-determinant and herding: published definitions, brute force,
other packages, and the corners."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tenfold.kernels.coverage.problem import KINDS

from tenfold.ops import fl_greedy, graphcut_greedy, herding, logdet_greedy

OPTIMIZERS = ("lazy", "naive", "stochastic", "lazier")


@pytest.fixture
def backend(backend):
    if backend.name == "triton" and backend.device.type == "cpu":
        pytest.skip("minutes in Triton's interpreter; test_coverage_triton.py has smaller problems")
    return backend


def exact(backend):
    """Whether sums have one order, so that lazy gains are naive ones to the bit."""
    return backend.name != "triton"


@pytest.fixture(scope="module")
def digits():
    """Integers 0 .. 16: every distance is exact in float32, and so is every comparison."""
    x, y = pytest.importorskip("sklearn.datasets").load_digits(return_X_y=True)
    return torch.from_numpy(x).float(), torch.from_numpy(y).long()


def gaussian(n, d, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def matrix_of(x, kind, gamma=None):
    """[N, N] float64 as the documentation defines the kinds."""
    x = x.double()
    cosine = torch.nn.functional.normalize(x, eps=1e-300) @ torch.nn.functional.normalize(x, eps=1e-300).T
    square = (x[:, None] - x[None]).square().sum(-1)
    if kind == "sqeuclidean":
        return square.max() - square
    if kind == "euclidean":
        return square.max().sqrt() - square.sqrt()
    if kind == "cosine01":
        return 0.5 + 0.5 * cosine
    if kind == "cosine2":
        return cosine.square()
    if kind == "rbf":
        return torch.exp(-(gamma or 1.0 / x.shape[1]) * square)
    return x @ x.T


def cover_of(s, chosen):
    """f of a subset of the columns of s."""
    return float(s[:, chosen].amax(1).clamp_min(0.0).sum())


def is_greedy(s, picks, gains, before=(), tolerance=1e-5):
    """Whether in every step the pick's gain is, to `tolerance`, the largest, and is what is said."""
    current = torch.zeros(len(s), dtype=torch.float64)
    for j in before:
        current = torch.maximum(current, s[:, j])
    free = torch.ones(s.shape[1], dtype=torch.bool)
    free[list(before)] = False
    for j, gain in zip(picks.tolist(), gains.tolist(), strict=True):
        all_gains = (s - current[:, None]).clamp_min(0.0).sum(0)
        best = float(all_gains[free].max())
        assert free[j]
        assert float(all_gains[j]) >= best - tolerance * max(best, 1e-3 * abs(float(s.sum())) / len(s))
        assert gain == pytest.approx(float(all_gains[j]), rel=tolerance, abs=tolerance * len(s))
        current = torch.maximum(current, s[:, j])
        free[j] = False


# ---- values that are known -------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["lazy", "naive"])
def test_facility_location_of_digits(backend, digits, optimizer):
    x = digits[0].to(backend.device)
    got = fl_greedy(x, 10, optimizer=optimizer)
    assert got.indices.tolist() == [945, 392, 1507, 793, 1417, 1039, 97, 1107, 1075, 867]
    assert got.counts.tolist() == [165, 201, 185, 203, 162, 181, 196, 168, 176, 160]
    assert got.objective == pytest.approx(8994542, rel=1e-6)
    assert float(got.gains.sum()) == pytest.approx(8994542, rel=1e-6)


def test_graph_cut_of_digits(backend, digits):
    got = graphcut_greedy(digits[0].to(backend.device), 8)
    assert got.indices.tolist() == [424, 148, 615, 1747, 1030, 1766, 818, 768]


def test_herding_of_digits(backend, digits):
    x, y = digits
    got = herding(x.to(backend.device), [8, *[0] * 9], labels=y.to(backend.device))
    assert got.indices.tolist() == [1039, 335, 642, 1335, 1464, 1563, 1667, 571]
    assert float(got.errors[-1]) == pytest.approx(3.1940120, rel=1e-6)


# ---- definitions -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "d", "k"), [(1, 1, 1), (70, 3, 20), (131, 17, 9), (257, 65, 40)])
def test_lazy_is_naive_is_greedy(backend, kind, n, d, k):
    x = gaussian(n, d, n)
    s = matrix_of(x, kind)
    got = fl_greedy(x.to(backend.device), k, kind=kind)
    naive = fl_greedy(x.to(backend.device), k, kind=kind, optimizer="naive")
    if exact(backend):
        assert torch.equal(got.indices, naive.indices)
        assert torch.equal(got.gains, naive.gains)
        assert torch.equal(got.counts, naive.counts)
        assert bool((got.gains.diff() <= 0).all())
    is_greedy(s, got.indices.cpu(), got.gains.cpu())
    assert got.objective == pytest.approx(cover_of(s, got.indices.cpu()), rel=1e-5)
    assert int(got.counts.sum()) == n
    assert len(set(got.indices.tolist())) == k


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_dtypes(backend, kind, dtype):
    x = gaussian(150, 20, 1).to(dtype)
    got = fl_greedy(x.to(backend.device), 12, kind=kind)
    is_greedy(matrix_of(x, kind), got.indices.cpu(), got.gains.cpu())


@pytest.mark.parametrize("kind", ["sqeuclidean", "rbf", "inner"])
def test_weights_of_rows(backend, kind):
    x = gaussian(90, 6, 2)
    w = torch.rand(90, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    w[::7] = 0.0
    got = fl_greedy(x.to(backend.device), 10, kind=kind, sample_weights=w.to(backend.device))
    is_greedy(matrix_of(x, kind).clamp_min(0.0) * w[:, None], got.indices.cpu(), got.gains.cpu())
    doubled = fl_greedy(torch.cat((x, x)).to(backend.device), 10, kind=kind)
    plain = fl_greedy(x.to(backend.device), 10, kind=kind, sample_weights=2.0 * torch.ones(90))
    assert torch.equal(doubled.indices, plain.indices)
    assert doubled.objective == pytest.approx(plain.objective, rel=1e-5)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_initial_subset(backend, optimizer):
    x = gaussian(100, 5, 3)
    whole = fl_greedy(x.to(backend.device), 12)
    start = whole.indices[:4]
    rest = fl_greedy(x.to(backend.device), 8, initial=start, optimizer=optimizer, epsilon=1e-300)
    assert torch.equal(rest.indices, whole.indices[4:])
    assert torch.equal(rest.gains, whole.gains[4:])
    assert torch.equal(rest.counts, whole.counts[4:])
    assert rest.objective == pytest.approx(whole.objective, rel=1e-12)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_costs_and_budget(backend, optimizer):
    x = gaussian(60, 4, 4)
    s = matrix_of(x, "sqeuclidean")
    costs = 0.2 + torch.rand(60, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    got = fl_greedy(
        x.to(backend.device), costs=costs.to(backend.device), budget=3.0, optimizer=optimizer, epsilon=1e-300
    )
    current, left, free = torch.zeros(60, dtype=torch.float64), 3.0, torch.ones(60, dtype=torch.bool)
    for j in got.indices.tolist():
        ratio = (s - current[:, None]).clamp_min(0.0).sum(0) / costs
        allowed = free & (costs <= left)
        assert allowed[j]
        assert float(ratio[j]) >= (1 - 1e-5) * float(ratio[allowed].max())
        current = torch.maximum(current, s[:, j])
        left -= float(costs[j])
        free[j] = False
    assert not bool((free & (costs <= left)).any())


def test_a_bound_leaves_far_points_uncovered(backend):
    x = torch.cat((gaussian(40, 2, 5), 50.0 + gaussian(30, 2, 6)))
    got = fl_greedy(x.to(backend.device), 2, bound=60.0)
    assert sorted(bool(j >= 40) for j in got.indices.tolist()) == [False, True]
    s = (60.0 - (x[:, None] - x[None]).double().square().sum(-1)).clamp_min(0.0)
    is_greedy(s, got.indices.cpu(), got.gains.cpu())


@pytest.mark.parametrize("optimizer", ["stochastic", "lazier"])
def test_stochastic(backend, optimizer):
    x = gaussian(400, 8, 7)
    s = matrix_of(x, "sqeuclidean")
    greedy = fl_greedy(x.to(backend.device), 20)
    first = fl_greedy(x.to(backend.device), 20, optimizer=optimizer, epsilon=0.1, seed=1)
    again = fl_greedy(x.to(backend.device), 20, optimizer=optimizer, epsilon=0.1, seed=1)
    other = fl_greedy(x.to(backend.device), 20, optimizer=optimizer, epsilon=0.1, seed=2)
    assert torch.equal(first.indices, again.indices)
    assert not torch.equal(first.indices, other.indices)
    assert first.objective == pytest.approx(cover_of(s, first.indices.cpu()), rel=1e-5)
    assert len(set(first.indices.tolist())) == 20
    for found in (first, other):
        assert 0.95 * greedy.objective <= found.objective <= 1.02 * greedy.objective
    same = fl_greedy(x.to(backend.device), 20, optimizer=optimizer, epsilon=1e-300, seed=3)
    assert torch.equal(same.indices, greedy.indices)


def test_stochastic_draws_the_same_on_every_backend(backend, digits):
    x = digits[0][:300].to(backend.device)
    found = [fl_greedy(x, 15, optimizer=o, epsilon=0.05, seed=5).indices for o in ("stochastic", "lazier")]
    assert torch.equal(*found)
    want = [114, 130, 13, 90, 65, 246, 299, 159, 124, 214, 52, 228, 281, 126, 40]
    assert found[0].tolist() == want


# ---- similarities that are given -------------------------------------------------------------------------


def test_a_matrix(backend):
    x = gaussian(120, 6, 8)
    s = matrix_of(x, "sqeuclidean").float()
    want = fl_greedy(x.to(backend.device), 15)
    for given in (s, s.T.contiguous().T, s.double()):
        got = fl_greedy(k=15, similarity=given.to(backend.device))
        assert torch.equal(got.indices, want.indices)
        assert torch.equal(got.counts, want.counts)
        assert got.objective == pytest.approx(want.objective, rel=1e-5)


def test_a_matrix_of_rows_and_other_candidates(backend):
    s = gaussian(90, 35, 9)
    s[5] = -1.0
    got = fl_greedy(k=12, similarity=s.to(backend.device))
    is_greedy(s.double(), got.indices.cpu(), got.gains.cpu())
    assert got.objective == pytest.approx(cover_of(s.double(), got.indices.cpu()), rel=1e-6)
    assert int(got.counts.sum()) == 90


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_sparse_is_dense_with_zeros(backend, optimizer):
    sparse = pytest.importorskip("scipy.sparse")
    rng = np.random.default_rng(0)
    s = (rng.random((200, 80)) * (rng.random((200, 80)) < 0.1)).astype(np.float32)
    s[17] = 0.0
    s[:, 11] = 0.0
    options = {"optimizer": optimizer, "epsilon": 0.05, "k": 60}
    want = fl_greedy(similarity=torch.from_numpy(s).to(backend.device), **options)
    device = backend.device
    csr = torch.from_numpy(s).to_sparse_csr().to(device)
    got = fl_greedy(similarity=csr, **options)
    assert torch.equal(got.indices, want.indices)
    assert torch.equal(got.counts, want.counts)
    assert got.objective == pytest.approx(want.objective, rel=1e-12)
    if device.type == "cpu":
        for given in (sparse.csr_matrix(s), sparse.coo_matrix(s)):
            found = fl_greedy(similarity=given, **options)
            assert isinstance(found.indices, np.ndarray)
            assert found.indices.tolist() == want.indices.tolist()


@pytest.mark.parametrize("kind", ["sqeuclidean", "cosine01", "rbf"])
def test_neighbors(backend, kind):
    x = gaussian(110, 5, 10)
    s = matrix_of(x, kind)
    top = s.topk(7, dim=1)
    near = torch.zeros_like(s).scatter(1, top.indices, top.values)
    got = fl_greedy(x.to(backend.device), 14, kind=kind, neighbors=7)
    is_greedy(near, got.indices.cpu(), got.gains.cpu())
    assert got.objective == pytest.approx(cover_of(near, got.indices.cpu()), rel=1e-5)
    whole = fl_greedy(x.to(backend.device), 14, kind=kind, neighbors=110)
    assert whole.indices.tolist() == fl_greedy(x.to(backend.device), 14, kind=kind).indices.tolist()


def test_neighbors_of_equal_similarity_are_the_smallest(backend):
    x = torch.zeros(9, 2)
    got = fl_greedy(x.to(backend.device), 3, kind="rbf", neighbors=4)
    assert got.indices.tolist() == [0, 1, 2]
    assert got.gains.tolist() == [9.0, 0.0, 0.0]


# ---- graph cut, log-determinant, herding -----------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lam", [0.0, 1.0, 4.0])
def test_graph_cut(backend, kind, lam):
    x = gaussian(140, 9, 11)
    s = matrix_of(x, kind)
    got = graphcut_greedy(x.to(backend.device), 30, kind=kind, lam=lam)
    gain = lam * s.sum(0) - s.diagonal()
    free = torch.ones(140, dtype=torch.bool)
    slack = 2e-5 * float(s.abs().sum(0).max())
    for j, said in zip(got.indices.tolist(), got.gains.tolist(), strict=True):
        assert free[j]
        assert float(gain[j]) >= float(gain[free].max()) - slack
        assert said == pytest.approx(float(gain[j]), abs=slack)
        gain = gain - 2.0 * s[j]
        free[j] = False
    start = got.indices[:6]
    rest = graphcut_greedy(x.to(backend.device), 24, kind=kind, lam=lam, initial=start)
    assert torch.equal(rest.indices, got.indices[6:])


def test_graph_cut_of_a_matrix(backend):
    s = matrix_of(gaussian(60, 4, 12), "cosine01")
    want = graphcut_greedy(gaussian(60, 4, 12).to(backend.device), 20)
    for given in (s, s.float(), s.to_sparse_csr()):
        got = graphcut_greedy(k=20, similarity=given.to(backend.device))
        assert torch.equal(got.indices, want.indices)
        assert torch.allclose(got.gains, want.gains, atol=1e-3)


@pytest.mark.parametrize("kind", ["rbf", "cosine01", "cosine2", "inner"])
@pytest.mark.parametrize("ridge", [0.0, 0.1])
def test_log_determinant(backend, kind, ridge):
    x = gaussian(130, 24, 13)
    s = matrix_of(x, kind) + ridge * torch.eye(130, dtype=torch.float64)
    got = logdet_greedy(x.to(backend.device), 20, kind=kind, ridge=ridge)
    chosen: list[int] = []
    for j, said in zip(got.indices.tolist(), got.gains.tolist(), strict=True):
        before = torch.logdet(s[chosen][:, chosen]) if chosen else torch.tensor(0.0, dtype=torch.float64)
        gains = torch.full((130,), -math.inf, dtype=torch.float64)
        for c in range(130):
            if c not in chosen:
                gains[c] = torch.logdet(s[[*chosen, c]][:, [*chosen, c]]) - before
        assert float(gains[j]) >= float(gains.max()) - 1e-4
        assert said == pytest.approx(float(gains[j]), abs=1e-4)
        chosen.append(j)
    rest = logdet_greedy(x.to(backend.device), 15, kind=kind, ridge=ridge, initial=got.indices[:5])
    assert torch.equal(rest.indices, got.indices[5:])
    assert torch.allclose(rest.gains, got.gains[5:], atol=1e-6)


def test_duplicates_come_last_in_log_determinants(backend):
    x = gaussian(12, 4, 14)
    x[7:] = x[2]
    got = logdet_greedy(x.to(backend.device), 12, gamma=0.5)
    assert sorted(got.indices[:7].tolist()) == [0, 1, 2, 3, 4, 5, 6]
    assert got.indices[7:].tolist() == [7, 8, 9, 10, 11]
    assert bool(torch.isinf(got.gains[7:]).all())
    assert bool(torch.isfinite(got.gains[:7]).all())


def test_herding(backend):
    x = 3.0 + gaussian(90, 7, 15)
    got = herding(x.to(backend.device), 25)
    z = x.double()
    chosen: list[int] = []
    for t, (j, error) in enumerate(zip(got.indices.tolist(), got.errors.tolist(), strict=True), 1):
        missing = t * z.mean(0) - z[chosen].sum(0)
        away = (missing - z).norm(dim=1)
        away[chosen] = math.inf
        assert float(away[j]) <= (1 + 1e-5) * float(away.min()) + 1e-6
        chosen.append(j)
        assert error == pytest.approx(float((z[chosen].mean(0) - z.mean(0)).norm()), rel=1e-4, abs=1e-6)
    everything = herding(x.to(backend.device), 90)
    assert sorted(everything.indices.tolist()) == list(range(90))
    assert float(everything.errors[-1]) == pytest.approx(0.0, abs=1e-5)


def test_herding_shares_out_the_budget(backend, digits):
    x, y = digits[0][:101].to(backend.device), digits[1][:101].to(backend.device)
    got = herding(x, 37, labels=y)
    counts = torch.bincount(y.cpu(), minlength=10)
    shares = torch.bincount(y[got.indices].cpu(), minlength=10)
    assert int(shares.sum()) == 37
    assert bool(((shares - counts * 37 / 101).abs() < 1).all())
    one = y == 4
    alone = herding(x[one], int(shares[4]))
    inside = got.indices[y[got.indices] == 4]
    assert torch.equal(torch.nonzero(one)[:, 0][alone.indices], inside)


# ---- corners ---------------------------------------------------------------------------------------------

ALL = (fl_greedy, graphcut_greedy, logdet_greedy, herding)


@pytest.mark.parametrize("op", ALL)
def test_budgets(backend, op):
    x = gaussian(33, 4, 16).to(backend.device)
    assert len(op(x, 0).indices) == 0
    assert len(op(x, 1).indices) == 1
    whole = op(x, 33)
    assert sorted(whole.indices.tolist()) == list(range(33))
    assert whole.indices.dtype == torch.int64
    assert whole.indices.device == x.device
    assert whole[1].dtype == torch.float64
    for k in (34, -1):
        with pytest.raises(ValueError, match=rf"k: expected an integer in \[0, 33\].*, got {k}"):
            op(x, k)
    empty = op(x[:0], 0)
    assert len(empty.indices) == len(empty[1]) == 0


@pytest.mark.parametrize("op", ALL)
@pytest.mark.parametrize("value", [0.0, 7.0, -1e4])
def test_constant_features_are_taken_in_order(backend, op, value):
    x = torch.full((20, 3), value, device=backend.device)
    assert op(x, 20).indices.tolist() == list(range(20))


@pytest.mark.parametrize("kind", KINDS)
def test_duplicates(backend, kind):
    x = gaussian(30, 4, 17)
    x = torch.cat((x, x, x)).to(backend.device)
    got = fl_greedy(x, 90, kind=kind)
    assert sorted(got.indices.tolist()) == list(range(90))
    assert bool((got.gains.diff() <= (0.0 if exact(backend) else 1e-5 * got.objective)).all())
    first = fl_greedy(x[:30], 10, kind=kind)
    assert got.indices[0] == first.indices[0]
    assert torch.allclose(got.gains[:10], 3.0 * first.gains, rtol=1e-4)


def test_far_from_the_origin(backend):
    """Distances of float32 points at an offset keep the digits that the points have."""
    x = gaussian(100, 6, 18)
    far = x + 1000.0
    got = fl_greedy(far.to(backend.device), 20)
    is_greedy(matrix_of(far, "sqeuclidean"), got.indices.cpu(), got.gains.cpu())


def test_results_do_not_depend_on_threads(backend, set_threads):
    x = gaussian(2100, 16, 19).to(backend.device)  # three pieces of the rows
    found = []
    for threads in (1, 2):
        set_threads(threads)
        found.append(
            (fl_greedy(x, 20), graphcut_greedy(x, 20), logdet_greedy(x, 20), herding(x, 20),
             fl_greedy(x, 20, optimizer="lazier"))
        )  # fmt: skip
    for one, two in zip(*found, strict=True):
        assert torch.equal(one[0], two[0])
        assert torch.equal(one[1], two[1])


def test_rows_may_be_permuted(backend):
    x = gaussian(200, 10, 20)
    order = torch.randperm(200, generator=torch.Generator().manual_seed(3))
    for op in ALL:
        options = {"kind": "inner"} if op is logdet_greedy else {}  # the rbf of every point with itself is 1
        plain = op(x.to(backend.device), 9, **options).indices.cpu()
        moved = op(x[order].to(backend.device), 9, **options).indices.cpu()
        assert torch.equal(order[moved], plain)


def test_arrays_come_back_as_they_went():
    x = gaussian(40, 4, 21)
    for op in ALL:
        got = op(x.numpy(), 5)
        assert isinstance(got.indices, np.ndarray)
        assert isinstance(got[1], np.ndarray)
        assert got.indices.tolist() == op(x, 5).indices.tolist()
    read_only = x.numpy().copy()
    read_only.setflags(write=False)
    assert len(fl_greedy(read_only, 3).indices) == 3
    assert len(fl_greedy(x.T.contiguous().T, 3).indices) == 3


BAD = [
    (lambda x: fl_greedy(), TypeError, "similarity: expected either x or similarity, got none"),
    (lambda x: fl_greedy(x, 3, similarity=x @ x.T), TypeError, "similarity: expected either x or"),
    (lambda x: fl_greedy(x), TypeError, "k: expected an integer"),
    (lambda x: fl_greedy(x, 2.5), TypeError, "k: expected an integer"),
    (lambda x: fl_greedy(x[0], 2), ValueError, r"x: expected shape \[N, d\]"),
    (lambda x: fl_greedy(x.long(), 2), TypeError, "x: expected dtype float32"),
    (lambda x: fl_greedy([[1.0]], 1), TypeError, "x: expected a torch.Tensor"),
    (lambda x: fl_greedy(x, 2, kind="l2"), ValueError, "kind: expected one of"),
    (lambda x: fl_greedy(x, 2, gamma=1.0), ValueError, "gamma: expected None unless kind is 'rbf'"),
    (lambda x: fl_greedy(x, 2, kind="rbf", gamma=0.0), ValueError, "gamma: expected a finite number > 0"),
    (lambda x: fl_greedy(x, 2, bound=-1.0), ValueError, "bound: expected a finite number >= 0"),
    (lambda x: fl_greedy(x, 2, kind="inner", bound=1.0), ValueError, "bound: expected None unless"),
    (lambda x: fl_greedy(x, 2, optimizer="fast"), ValueError, "optimizer: expected one of"),
    (lambda x: fl_greedy(x, 2, epsilon=1.0), ValueError, "epsilon: expected a finite number > 0 < 1"),
    (lambda x: fl_greedy(x, 2, initial=[3, 4, 3]), ValueError, r"initial\[2\]: .* distinct indices, got 3"),
    (lambda x: fl_greedy(x, 2, initial=[20]), ValueError, r"initial\[0\]: expected an integer in \[0, 19\]"),
    (lambda x: fl_greedy(x, 19, initial=[0, 1]), ValueError, r"k: expected an integer in \[0, 18\]"),
    (lambda x: fl_greedy(x, 2, costs=torch.ones(20)), TypeError, "budget: expected costs and a budget"),
    (lambda x: fl_greedy(x, 2, budget=2.0), TypeError, "costs: expected costs and a budget"),
    (lambda x: fl_greedy(x, 2, costs=torch.zeros(20), budget=1.0), ValueError, "costs: .* > 0, got 0.0 at 0"),
    (lambda x: fl_greedy(x, 2, costs=torch.ones(20), budget=0.0), ValueError, "budget: expected a finite"),
    (lambda x: fl_greedy(x, 2, sample_weights=torch.ones(3)), ValueError, r"sample_weights: .* \[20\]"),
    (lambda x: fl_greedy(x, 2, sample_weights=-torch.ones(20)), ValueError, "weights: .*got -1.0 at 0"),
    (lambda x: fl_greedy(x, 2, sample_weights=torch.zeros(20)), ValueError, "sample_weights: .*got all 0"),
    (lambda x: fl_greedy(x, 2, neighbors=0), ValueError, r"neighbors: expected an integer in \[1, 20\]"),
    (lambda x: fl_greedy(k=2, similarity=x @ x.T, neighbors=3), ValueError, "neighbors: expected None"),
    (lambda x: fl_greedy(k=2, similarity=x @ x.T, gamma=3.0), ValueError, "gamma: expected None with"),
    (lambda x: fl_greedy(k=2, similarity=x[0]), ValueError, r"similarity: expected shape \[M, N\]"),
    (lambda x: graphcut_greedy(k=2, similarity=x), ValueError, r"similarity: expected shape \[N, N\]"),
    (lambda x: graphcut_greedy(k=2, similarity=x @ x.T + torch.arange(20)), ValueError, "a symmetric matrix"),
    (lambda x: graphcut_greedy(x, 2, lam=-1.0), ValueError, "lam: expected a finite number >= 0"),
    (lambda x: logdet_greedy(x, 2, kind="sqeuclidean"), ValueError, "kind: expected a positive semidefinite"),
    (lambda x: logdet_greedy(x, 2, ridge=-1.0), ValueError, "ridge: expected a finite number >= 0"),
    (lambda x: herding(x, 2, labels=torch.zeros(3).long()), ValueError, r"labels: expected shape \[20\]"),
    (lambda x: herding(x, 2, labels=torch.full((20,), -1)), ValueError, "labels: .* classes >= 0, got -1"),
    (lambda x: herding(x, [21], labels=torch.zeros(20).long()), ValueError, r"k\[0\]: expected an integer"),
    (lambda x: herding(x, [1, 1, 1], labels=torch.arange(20) % 2), ValueError, "k: expected 2 entries"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "kind", "message"), BAD, ids=range(len(BAD)))
def test_bad_input(call, kind, message):
    with pytest.raises(kind, match=message):
        call(gaussian(20, 3, 22))


@pytest.mark.parametrize("op", ALL)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_not_finite(op, value):
    x = gaussian(9000, 2, 23)
    x[8123, 1] = value
    with pytest.raises(ValueError, match="x: expected finite values, got NaN or infinity in row 8123"):
        op(x, 3)
    s = matrix_of(gaussian(12, 2, 23), "rbf")
    s[7, 3] = s[3, 7] = value
    if op is not herding:
        with pytest.raises(ValueError, match=r"similarity: .*got NaN or infinity in row 3"):
            op(k=3, similarity=s)


def test_bad_sparse_input():
    indptr, indices, values = torch.tensor([0, 1, 3]), torch.tensor([0, 0, 1]), torch.ones(3)

    def raises(message, *parts):
        with pytest.raises((ValueError, TypeError), match=message):
            fl_greedy(k=1, similarity=parts)

    assert fl_greedy(k=1, similarity=(indptr, indices, values)).indices.tolist() == [0]
    raises("every entry once, got", torch.tensor([0, 1, 3]), torch.tensor([0, 1, 1]), values)
    raises(r"similarity.indptr: expected ascending", torch.tensor([0, 2, 1]), indices, values)
    raises(r"similarity.indices: expected columns in \[0, 2\)", indptr, indices + 1, values)
    raises("similarity: expected shapes", indptr, indices, values[:2])
    raises("similarity.indices: expected dtype int64", indptr, indices.double(), values)
    raises("finite values, got NaN or infinity at 2", indptr, indices, values / torch.tensor([1.0, 1.0, 0.0]))
    raises("indptr, indices, values", indptr, indices)
    with pytest.raises(ValueError, match="a symmetric matrix"):
        graphcut_greedy(k=1, similarity=(indptr, indices, values))


# ---- other packages --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def apricot_picks(digits):
    """{kind: (ranking, gains)} of 25 from 500 digits; numba compiles for ten seconds."""
    apricot = pytest.importorskip("apricot")
    x = digits[0][:500].double().numpy()
    found = {}
    for metric, kind in (("euclidean", "sqeuclidean"), ("cosine", "cosine2")):
        selection = apricot.FacilityLocationSelection(25, metric=metric, optimizer="lazy").fit(x)
        found[kind] = selection.ranking.tolist(), selection.gains
    return found


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sqeuclidean", "cosine2"])
def test_agrees_with_apricot(backend, digits, apricot_picks, kind):
    x = digits[0][:500]
    ranking, gains = apricot_picks[kind]
    got = fl_greedy(x.to(backend.device), 25, kind=kind)
    s = matrix_of(x, kind)
    ours, theirs = (cover_of(s, r) for r in (got.indices.cpu(), ranking))
    assert ours == pytest.approx(theirs, rel=1e-6)
    if kind == "sqeuclidean":
        assert got.indices.tolist() == ranking
        assert np.allclose(got.gains.cpu(), gains, rtol=1e-6)


def test_agrees_with_submodlib(backend):
    submodlib = pytest.importorskip("submodlib")
    x = gaussian(150, 8, 24)
    s = matrix_of(x, "rbf")
    k = 15
    matrix, products = s.float().numpy(), (x @ x.T).numpy()
    facility = submodlib.FacilityLocationFunction(n=150, mode="dense", sijs=matrix, separate_rep=False)
    cut = submodlib.GraphCutFunction(n=150, mode="dense", lambdaVal=1.0, separate_rep=False, ggsijs=matrix)
    volume = submodlib.LogDeterminantFunction(n=150, mode="dense", lambdaVal=0.1, sijs=products)
    ours = (
        fl_greedy(x.to(backend.device), k, kind="rbf"),
        graphcut_greedy(x.to(backend.device), k, kind="rbf"),
        logdet_greedy(x.to(backend.device), k, kind="inner", ridge=0.1),
    )
    for function, found in zip((facility, cut, volume), ours, strict=True):
        options = {"optimizer": "NaiveGreedy", "stopIfZeroGain": False, "stopIfNegativeGain": False}
        theirs = function.maximize(budget=k, **options, verbose=False, show_progress=False)
        assert found.indices.tolist() == [j for j, _ in theirs]
        assert np.allclose(found.gains.cpu(), [g for _, g in theirs], rtol=1e-3, atol=1e-3)
