"""Nearest centres, k-means and k-center: values from elsewhere, invariants, backends alike, bad input."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from child import example
from tenfold.kernels.distance import distance_reference
from tenfold.kernels.distance import kmeans as seeding

from tenfold.ops import kcenter_greedy, kmeans, nn_assign

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def draw(n, d, dtype=torch.float32, seed=0, offset=0.0):
    return (torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) + offset).to(dtype)


def clusters(n, d, k, seed=0):
    generator = torch.Generator().manual_seed(seed)
    middle = 6 * torch.randn(k, d, generator=generator)
    which = torch.randint(k, (n,), generator=generator)
    return middle[which] + torch.randn(n, d, generator=generator)


@pytest.fixture(autouse=True)
def _written(request):
    """Triton needs a GPU here."""
    if "backend" in request.fixturenames:
        backend = request.getfixturevalue("backend")
        if backend.name == "triton" and backend.device.type == "cpu":
            pytest.skip("interpreted Triton is slow: test_distance_triton.py has it in small")


@pytest.fixture(scope="module")
def digits():
    return torch.from_numpy(pytest.importorskip("sklearn.datasets").load_digits().data).float()


def brute(x, centers, cosine=False):
    """float64, by another way than the reference's."""
    x, centers = x.double().numpy(), centers.double().numpy()
    if cosine:
        x, centers = (a / np.linalg.norm(a, axis=1, keepdims=True) for a in (x, centers))
    return torch.from_numpy(np.stack([((x - c) ** 2).sum(1) for c in centers], 1))


# ---- values from elsewhere ---------------------------------------------------------------------------------


def test_kcenter_on_digits(backend, digits):
    found = kcenter_greedy(digits.to(backend.device), 20, init=0)
    expected = [
        0, 623, 1275, 75, 889, 1643, 683, 1001, 1113, 1290,
        1115, 1512, 1024, 1742, 1727, 673, 1344, 1705, 1660, 717,
    ]  # fmt: skip
    assert found.indices.tolist() == expected
    assert round(float(found.radius[-1].double() ** 2), 2) == 2011


def test_kmeans_on_digits(backend, digits):
    x = digits.to(backend.device)
    found = kmeans(x, 10, init=x[:10], iterations=5)
    assert found.counts.tolist() == [179, 122, 98, 217, 169, 304, 182, 217, 135, 174]
    assert found.inertia == pytest.approx(1226790.12509, rel=1e-7)
    assert (found.iterations, found.moved) == (5, 0)


def test_nearest_of_a_moderate_coreset_on_digits(backend, digits):
    target = torch.from_numpy(pytest.importorskip("sklearn.datasets").load_digits().target)
    chosen = []
    for c in range(10):
        own = (target == c).nonzero()[:, 0]
        rows = digits[own].double().numpy()
        order = np.argsort(np.linalg.norm(rows - np.median(rows, 0), axis=1), kind="stable")
        chosen += own[torch.from_numpy(order)][(len(own) - 10) // 2 :][:10].tolist()
    chosen.sort()
    assert sum(chosen) == 85300
    x = digits.to(backend.device)
    found = nn_assign(x, x[torch.tensor(chosen, device=x.device)]).indices[:, 0].cpu()
    assert int(found.sum()) == 89528
    agree = (target[torch.tensor(chosen)[found.long()]] == target).double().mean()
    assert float(agree) == pytest.approx(0.8797997, abs=1e-7)


def test_kmeans_against_scikit_learn(digits):
    cluster = pytest.importorskip("sklearn.cluster")
    ours = kmeans(digits, 10, init=digits[:10], iterations=300)
    peer = cluster.KMeans(10, init=digits[:10].numpy(), n_init=1, max_iter=300, tol=0, algorithm="lloyd")
    peer.fit(digits.numpy())
    assert ours.labels.tolist() == peer.labels_.tolist()
    assert ours.inertia == pytest.approx(peer.inertia_, rel=1e-6)


# ---- nearest centres ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("n", "m", "d", "k"), [(33, 5, 1, 1), (130, 70, 17, 3), (67, 300, 40, 32), (40, 3, 300, 5)]
)
@pytest.mark.parametrize("metric", ["l2", "cosine"])
@pytest.mark.parametrize("precision", ["f32", "bf16"])
def test_nearest_are_those_of_float64(backend, dtype, n, m, d, k, metric, precision):
    if d == 1 and metric == "cosine":
        d = 2  # on a line all distances are 0 or 4, and rounding would decide
    x, centers = draw(n, d, dtype), draw(m, d, seed=1)
    found = nn_assign(x.to(backend.device), centers.to(backend.device), k, metric=metric, precision=precision)
    near, which = brute(x, centers, metric == "cosine").float().sort(dim=1, stable=True)
    have = min(k, m)
    assert torch.equal(found.indices[:, :have].cpu(), which[:, :have].to(torch.int32))
    torch.testing.assert_close(found.distances_squared[:, :have].cpu(), near[:, :have], rtol=2e-7, atol=1e-30)
    assert (found.indices[:, have:] == -1).all()
    assert torch.isinf(found.distances_squared[:, have:]).all()


def test_wide_rows_with_integer_products(backend):
    """From 64 columns on, k-means and k-center may find candidates by 16-bit products; heavy tails too."""
    x = draw(300, 300)
    x[5] *= 1e4
    x[:, 7] *= 300
    x[9] = 0
    centers = torch.cat((x[40:75] + 0.1, x[5:6], x[9:10]))
    which = brute(x, centers).float().sort(dim=1, stable=True).indices
    for precision in ("f32", "bf16"):
        found = nn_assign(x.to(backend.device), centers.to(backend.device), 3, precision=precision)
        assert torch.equal(found.indices.cpu(), which[:, :3].to(torch.int32))
    want = distance_reference.kcenter(
        [x], 80, torch.tensor([], dtype=torch.int64), torch.tensor([0]), False, 32, True
    )
    got = kcenter_greedy(x.to(backend.device), 80, init=0)
    assert got.indices.tolist() == want.picked.tolist()
    assert got.owner.tolist() == want.owner.tolist()
    lloyd = seeding.lloyd(distance_reference, [x], x[:20].clone(), 3, 0.0)
    labels = kmeans(x.to(backend.device), 20, init=x[:20].to(backend.device), iterations=3).labels
    assert torch.equal(labels.cpu(), lloyd.labels)


@pytest.mark.parametrize("offset", [100.0, 1e4])
def test_offsets_do_not_cost_digits(backend, offset):
    x, centers = draw(150, 24, offset=offset), draw(90, 24, seed=1, offset=offset)
    found = nn_assign(x.to(backend.device), centers.to(backend.device), 2)
    near, which = brute(x, centers).float().sort(dim=1, stable=True)
    assert torch.equal(found.indices.cpu(), which[:, :2].to(torch.int32))
    torch.testing.assert_close(found.distances_squared.cpu(), near[:, :2], rtol=2e-7, atol=0)


def test_ties_go_to_the_smaller_number(backend):
    x = torch.tensor([[0.0, 0.0], [1.0, 1.0]], device=backend.device)
    centers = torch.tensor(
        [[3.0, 4.0], [1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [1.0, 0.0]], device=backend.device
    )
    found = nn_assign(x, centers, 5)
    assert found.indices.tolist() == [[1, 2, 3, 4, 0], [1, 2, 4, 3, 0]]
    assert found.distances_squared.tolist() == [[1, 1, 1, 1, 25], [1, 1, 1, 5, 13]]
    same = nn_assign(torch.ones(70, 9, device=backend.device), torch.ones(333, 9, device=backend.device), 3)
    assert same.indices.tolist() == [[0, 1, 2]] * 70
    assert not same.distances_squared.any()


def test_labels_keep_to_their_own(backend):
    x, centers = draw(90, 6), draw(31, 6, seed=1)
    x_labels, center_labels = torch.arange(90) % 5, torch.arange(31) % 4
    found = nn_assign(
        x.to(backend.device), centers.to(backend.device), 2,
        x_labels=x_labels.to(backend.device), center_labels=center_labels.to(backend.device),
    )  # fmt: skip
    far = brute(x, centers).float()
    far[x_labels[:, None] != center_labels[None]] = torch.inf
    near, which = far.sort(dim=1, stable=True)
    which[torch.isinf(near)] = -1
    assert torch.equal(found.indices.cpu(), which[:, :2].to(torch.int32))
    assert (found.indices[x_labels == 4] == -1).all()
    torch.testing.assert_close(found.distances_squared.cpu(), near[:, :2], rtol=2e-7, atol=0)


def test_rows_of_zeros_stay_zero_with_cosine(backend):
    x = torch.tensor([[0.0, 0.0], [2.0, 0.0]], device=backend.device)
    found = nn_assign(x, torch.tensor([[0.0, 3.0], [0.0, 0.0]], device=backend.device), 2, metric="cosine")
    assert found.indices.tolist() == [[1, 0], [1, 0]]
    assert found.distances_squared.tolist() == [[0, 1], [1, 2]]


# ---- k-center ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("metric", ["l2", "cosine"])
@pytest.mark.parametrize("kind", ["normal", "clusters"])
def test_kcenter_is_the_reference(backend, dtype, metric, kind):
    x = (draw(400, 19) if kind == "normal" else clusters(400, 19, 12)).to(dtype)
    want = distance_reference.kcenter(
        [x], 60, torch.tensor([], dtype=torch.int64), torch.tensor([7]), metric == "cosine", 32, True
    )
    for lookahead, prune in ((32, True), (1, False), (64, True), (5, False)):
        got = kcenter_greedy(
            x.to(backend.device), 60, init=7, metric=metric, lookahead=lookahead, prune=prune
        )
        assert got.indices.tolist() == want.picked.tolist()
        assert got.owner.tolist() == want.owner.tolist()
        torch.testing.assert_close(got.radius.cpu(), want.radius.sqrt(), rtol=2e-7, atol=0)
        torch.testing.assert_close(got.min_distance.cpu(), want.distance.sqrt(), rtol=2e-7, atol=0)


def test_kcenter_is_greedy_in_float64(backend):
    x = clusters(500, 33, 20, seed=3)
    found = kcenter_greedy(x.to(backend.device), 40)
    mean = x.double().mean(0)
    assert int(found.indices[0]) == int((x.double() - mean).square().sum(1).argmax())
    far = brute(x, x[found.indices.cpu()])
    for t in range(1, 40):
        nearest = far[:, :t].min(1).values
        assert float(nearest[found.indices[t]]) >= (1 - 1e-5) * float(nearest.max())
    near, which = far.min(1)
    torch.testing.assert_close(found.min_distance.cpu().double(), near.sqrt(), rtol=1e-6, atol=0)
    assert torch.equal(found.owner.cpu().long(), found.indices.cpu()[which])
    assert (found.radius[1:] <= found.radius[:-1]).all()
    assert float(found.radius[-1]) == float(found.min_distance.max())


def test_kcenter_budgets_and_duplicates(backend):
    x = draw(9, 4)[torch.arange(27) % 9].to(backend.device)
    assert kcenter_greedy(x, 0).indices.tolist() == []
    assert kcenter_greedy(x, 0).radius.tolist() == []
    assert torch.isinf(kcenter_greedy(x, 0).min_distance).all()
    one = kcenter_greedy(x, 1, init=3)
    assert one.indices.tolist() == [3]
    assert one.owner.tolist() == [3] * 27
    every = kcenter_greedy(x, 27, init=3)
    assert sorted(every.indices.tolist()) == list(range(27))
    assert set(every.indices[:9].tolist()) == set(range(9))
    assert every.indices[9:].tolist() == sorted(set(range(27)) - set(every.indices[:9].tolist()))
    assert not every.min_distance.any()
    constant = kcenter_greedy(torch.ones(5, 3, device=backend.device), 5)
    assert constant.indices.tolist() == [0, 1, 2, 3, 4]
    empty = kcenter_greedy(x[:0], 0)
    assert [len(t) for t in empty] == [0, 0, 0, 0]


def test_kcenter_goes_on_from_what_is_there(backend):
    x = draw(200, 8).to(backend.device)
    whole = kcenter_greedy(x, 30, init=5)
    rest = kcenter_greedy(x, 20, init=whole.indices[:10].tolist())
    assert rest.indices.tolist() == whole.indices[10:].tolist()
    assert torch.equal(rest.min_distance, whole.min_distance)
    assert torch.equal(rest.owner, whole.owner)
    none = kcenter_greedy(x, 0, init=[5])
    assert none.owner.tolist() == [5] * 200


def test_random_start_follows_the_seed():
    x = draw(1000, 3)
    starts = {int(kcenter_greedy(x, 1, init="random", seed=s).indices[0]) for s in range(20)}
    assert len(starts) > 15
    again = [int(kcenter_greedy(x, 1, init="random", seed=2**64 - 1).indices[0]) for _ in range(2)]
    assert again[0] == again[1]


# ---- k-means -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_kmeans_is_the_reference(backend, dtype):
    x = clusters(300, 11, 6).to(dtype)
    init = x[:9].float()
    want = seeding.lloyd(distance_reference, [x], init.clone(), 8, 0.0)
    got = kmeans(x.to(backend.device), 9, init=init.to(backend.device), iterations=8)
    assert torch.equal(got.labels.cpu(), want.labels)
    assert torch.equal(got.counts.cpu(), want.counts)
    torch.testing.assert_close(got.centers.cpu(), want.centers, rtol=1e-6, atol=1e-6)
    assert got.inertia == pytest.approx(float(want.distances.double().sum()), rel=1e-6)
    assert got.iterations == want.updates


def test_kmeans_seeds_alike_everywhere(backend):
    x = clusters(400, 7, 25, seed=5)
    want = seeding.plusplus(distance_reference, [x], 25, 11)
    got = kmeans(x.to(backend.device), 25, iterations=0, seed=11)
    assert torch.equal(got.centers.cpu(), x[want])
    assert len(set(want.tolist())) == 25
    assert kmeans(x.to(backend.device), 25, iterations=0, seed=12).centers.cpu().ne(x[want]).any()


def test_seeding_draws_by_squared_distance():
    """Three points at 0, 1, 3: from 0 the next is 1 or 3 with chances 1 : 9."""
    x = torch.tensor([[0.0], [1.0], [3.0]])
    second = {0: [0, 0, 0], 1: [0, 0, 0], 2: [0, 0, 0]}
    for seed in range(3000):
        first, then = seeding.plusplus(distance_reference, [x], 2, seed).tolist()
        second[first][then] += 1
    for first, chances in ((0, (0, 0.1, 0.9)), (1, (0.2, 0, 0.8)), (2, (9 / 13, 4 / 13, 0))):
        total = sum(second[first])
        assert abs(total - 1000) < 5 * 26
        for then, chance in enumerate(chances):
            assert abs(second[first][then] - chance * total) <= 5 * (total * chance * (1 - chance)) ** 0.5


def test_empty_clusters_move_to_the_farthest_rows(backend):
    x = torch.tensor([[0.0], [1.0], [10.0], [11.0], [50.0]], device=backend.device)
    init = torch.tensor([[5.0], [1000.0], [2000.0]], device=backend.device)
    found = kmeans(x, 3, init=init, iterations=1)
    assert found.moved == 2
    assert found.centers[:, 0].tolist() == pytest.approx([11 / 3, 50.0, 11.0])
    settled = kmeans(x, 3, init=init, iterations=20)
    assert int(settled.counts.min()) > 0
    same = kmeans(torch.ones(6, 2, device=backend.device), 3, init=torch.ones(3, 2, device=backend.device))
    assert same.counts.tolist() == [6, 0, 0]
    assert (same.inertia, same.moved) == (0.0, 0)


def test_kmeans_ends_when_nothing_changes(backend):
    x = clusters(200, 5, 4).to(backend.device)
    found = kmeans(x, 4, init=x[:4], iterations=100)
    assert found.iterations < 100
    assert torch.equal(kmeans(x, 4, init=found.centers, iterations=50).centers, found.centers)
    early = kmeans(x, 4, init=x[:4], iterations=100, tol=1e3)
    assert early.iterations == 1
    every = kmeans(x, 200, init=x, iterations=3)
    assert every.inertia == 0.0


# ---- arrays, shards, memory maps, threads ------------------------------------------------------------------


def test_shards_are_one_matrix(backend):
    x = draw(300, 9).to(backend.device)
    pieces = [x[:1], x[1:140], x[140:140], x[140:]]
    for a, b in zip(kcenter_greedy(x, 20), kcenter_greedy(pieces, 20), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(nn_assign(x, x[:50], 3), nn_assign(pieces, x[:50], 3), strict=True):
        assert torch.equal(a, b)
    whole, parts = kmeans(x, 12, iterations=4), kmeans(pieces, 12, iterations=4)
    assert torch.equal(whole.labels, parts.labels)
    torch.testing.assert_close(whole.centers, parts.centers, rtol=1e-6, atol=1e-7)


def test_arrays_come_and_go(tmp_path):
    x = draw(120, 6, torch.float16).numpy()
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    for a, b in zip(kcenter_greedy(x, 9), kcenter_greedy(torch.from_numpy(x), 9), strict=True):
        assert isinstance(a, np.ndarray)
        assert a.tolist() == b.tolist()
    for a, b in zip(kcenter_greedy(mapped, 9), kcenter_greedy([mapped[:50], mapped[50:]], 9), strict=True):
        assert isinstance(a, np.ndarray)
        assert a.tolist() == b.tolist()
    assert isinstance(nn_assign(mapped, mapped[:5]).indices, np.ndarray)
    assert isinstance(kmeans(mapped, 4).centers, np.ndarray)


def test_any_number_of_threads_gives_the_same_bits(set_threads):
    x = clusters(3000, 37, 30)
    results = []
    for threads in (1, 2, 3):
        set_threads(threads)
        found = [*kcenter_greedy(x, 100), *nn_assign(x, x[:77], 4), *kmeans(x, 40, iterations=5)]
        results.append([torch.as_tensor(t) for t in found])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_permuted_rows_give_permuted_results(backend):
    x = draw(250, 12)
    order = torch.randperm(250, generator=torch.Generator().manual_seed(4))
    a = kcenter_greedy(x.to(backend.device), 30)
    b = kcenter_greedy(x[order].to(backend.device), 30)
    assert order[b.indices.cpu()].tolist() == a.indices.tolist()


def test_ops_have_schemas_and_fakes():
    x = draw(40, 5)
    for op, arguments in (
        (torch.ops.tenfold.nn_assign, ([x, x[:3]], x[:7], 2, None, None, False, False, True)),
        (torch.ops.tenfold.kcenter_greedy, ([x], 5, [1], [], False, False, 32, True, True)),
        (torch.ops.tenfold.kmeans, ([x], None, 4, 3, 0.0, 0)),
    ):
        torch.library.opcheck(op, arguments, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize(
    ("name", "printed"),
    [("distance", "tensor(True) (2000, 3) tensor(2000)"), ("coverage", "True 500\ntensor(True)")],
)
def test_examples_of_the_page(name, printed, capsys):
    page = Path(__file__).parents[2] / "docs" / "ops.md"
    if not page.exists():
        pytest.skip("not in a checkout")
    text = page.read_text(encoding="utf-8")
    exec(example(text, name), {})
    assert capsys.readouterr().out.strip().endswith(printed)


def test_float64_goes_through_the_reference():
    x = draw(60, 5).double() + 1e-9
    assert nn_assign(x, x[:3]).distances_squared.dtype == torch.float64
    assert kcenter_greedy(x, 3).radius.dtype == torch.float64
    assert kmeans(x, 3).centers.dtype == torch.float64


# ---- bad input ---------------------------------------------------------------------------------------------

X, V = draw(20, 3), ValueError


def bad(row, value):
    x = X.clone()
    x[row, 1] = value
    return x


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: kcenter_greedy(X, 21), V, r"k: expected an integer in \[0, 20\], got 21"),
        (lambda: kcenter_greedy(X, -1), V, r"k: expected an integer in \[0, 20\], got -1"),
        (lambda: kcenter_greedy(X, 18, init=[0, 1, 2]), V, r"k: expected .* \[0, 17\], got 18"),
        (lambda: kcenter_greedy(X, 2.0), TypeError, "k: expected an integer"),
        (lambda: kcenter_greedy(X, 2, init=20), V, r"init: expected an integer in \[0, 19\], got 20"),
        (lambda: kcenter_greedy(X, 2, init=[4, 5, 4]), V, r"init\[2\]: expected every row once, got row 4"),
        (lambda: kcenter_greedy(X, 2, init="first"), V, "init: expected one of"),
        (lambda: kcenter_greedy(X, 2, metric="l1"), V, "metric: expected one of"),
        (lambda: kcenter_greedy(X, 2, lookahead=0), V, r"lookahead: expected an integer in \[1, 256\]"),
        (lambda: kcenter_greedy(bad(7, torch.nan), 2), V, "x: expected finite values, got nan in row 7"),
        (lambda: kcenter_greedy(bad(0, -torch.inf), 2), V, "x: expected finite values, got -inf in row 0"),
        (lambda: kcenter_greedy([X, bad(3, torch.nan)], 2), V, "x: .* got nan in row 23"),
        (lambda: kcenter_greedy(X[0], 2), V, r"x: expected shape \[N, d\]"),
        (lambda: kcenter_greedy(X[:, :0], 2), V, "x: expected at least one column"),
        (lambda: kcenter_greedy([], 2), V, "x: expected at least one shard"),
        (lambda: kcenter_greedy([X, X[:, :2]], 2), V, r"x\[1\]: expected 3 columns, as x\[0\], got 2"),
        (lambda: kcenter_greedy([X, X.half()], 2), TypeError, r"x\[1\]: expected dtype torch.float32"),
        (lambda: kcenter_greedy(X.long(), 2), TypeError, "x: expected dtype"),
        (lambda: kcenter_greedy("x", 2), TypeError, "x: expected a torch.Tensor"),
        (lambda: nn_assign(X, X, 0), V, r"k: expected an integer in \[1, 32\], got 0"),
        (lambda: nn_assign(X, X[:, :2]), V, "centers: expected 3 columns, as x, got 2"),
        (lambda: nn_assign(X, [X]), TypeError, "centers: expected one tensor or array"),
        (lambda: nn_assign(X, bad(2, torch.inf)), V, "centers: expected finite values, got inf in row 2"),
        (lambda: nn_assign(X, X, precision="fp8"), V, "precision: expected one of"),
        (lambda: nn_assign(X, X, x_labels=torch.zeros(20)), V, "center_labels: expected labels"),
        (
            lambda: nn_assign(X, X, x_labels=torch.zeros(3).long(), center_labels=torch.arange(20)),
            ValueError,
            r"x_labels: expected shape \(20,\)",
        ),
        (
            lambda: nn_assign(X, X, x_labels=torch.zeros(20), center_labels=torch.arange(20)),
            TypeError,
            "x_labels: expected dtype",
        ),
        (lambda: kmeans(X, 21), V, r"num_clusters: expected an integer in \[1, 20\], got 21"),
        (lambda: kmeans(X, 0), V, "num_clusters"),
        (lambda: kmeans(X, 3, init=X[:4]), V, "init: expected 3 centres, one for each cluster, got 4"),
        (lambda: kmeans(X, 3, init="random"), V, "init: expected one of"),
        (lambda: kmeans(X, 3, iterations=-1), V, "iterations"),
        (lambda: kmeans(X, 3, tol=-1.0), V, "tol: expected a finite number >= 0"),
        (lambda: kmeans(X, 3, init=bad(1, torch.nan)[:3]), V, "init: .* got nan in row 1"),
        (lambda: kmeans(bad(19, torch.nan), 3), V, "x: .* got nan in row 19"),
    ],
)  # fmt: skip
def test_bad_input(call, kind, message):
    with pytest.raises(kind, match=message):
        call()


def test_distances_beyond_float32_are_refused(backend):
    x = torch.tensor([[1e25, 0.0], [0.0, 1.0]], device=backend.device)
    with pytest.raises(ValueError, match=r"x: expected squared distances that torch.float32 holds"):
        nn_assign(x, torch.zeros(2, 2, device=backend.device))
    wide = nn_assign(x.double(), torch.zeros(1, 2, device=backend.device, dtype=torch.float64))
    assert wide.distances_squared[1].item() == 1.0
    assert math.isclose(wide.distances_squared[0].item(), 1e50, rel_tol=1e-6)


def test_distances_beyond_float32_write_nowhere_and_are_refused(backend):
    """Once all squared distances of a row overflowed, it had no centre, and k-means added it to memory before
    the sums. Many rows, so that a write there is seen."""
    x = torch.full((4000, 9), 3e38, device=backend.device)
    x[::2] *= -1
    for dtype in (torch.float32, torch.bfloat16):
        centers = torch.zeros(3, 9, dtype=dtype, device=backend.device)
        with pytest.raises(ValueError, match="x: expected squared distances that"):
            kmeans(x.to(dtype), 3, init=centers, iterations=1)
        with pytest.raises(ValueError, match="x: expected squared distances that"):
            nn_assign(x.to(dtype), centers, 2)


@pytest.mark.parametrize("k", [1, 3])
def test_unchecked_values_that_are_not_finite_give_no_centre_that_there_is_not(backend, k):
    """Undefined as the result is: what fills the last panel up was measured, behind the centres' memory (the
    address sanitizer sees it)."""
    centers = torch.full((3, 65), math.nan, device=backend.device)
    for x in (torch.ones(9, 65), torch.full((9, 65), 3e38), torch.full((9, 65), math.nan)):
        found = nn_assign(x.to(backend.device), centers, k, check=False)
        assert bool((found.indices < 3).all())


def test_kcenter_of_rows_that_are_infinitely_far(backend):
    """They belong to no centre; pruning read what stands before the centres' reach (the address sanitizer
    sees it)."""
    x = torch.zeros(40, 9, device=backend.device)
    x[1::2] = 3e38
    x[1::4] *= -1
    found = kcenter_greedy(x, 6, lookahead=1, check=False)
    assert len(set(found.indices.tolist())) == 6
    assert bool(((found.indices >= 0) & (found.indices < 40)).all())
