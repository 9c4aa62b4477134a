"""Factored last-layer gradients against dense ones, and the selections made with them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tenfold.kernels.scores import fgrad_native, fgrad_reference
from tenfold.kernels.scores.nnls import nnls
from torch.utils._python_dispatch import TorchDispatchMode

from tenfold.ops import craig, fgrad_gram, fgrad_mv, fgrad_rmv, fgrad_sqdist, glister, omp_factored


def factors(n: int, classes: int, width: int, dtype: torch.dtype = torch.float32, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    z = 2 * torch.randn(n, classes, generator=generator)
    labels = torch.randint(classes, (n,), generator=generator)
    e = torch.softmax(z, 1) - torch.nn.functional.one_hot(labels, classes)
    h = torch.randn(n, width, generator=generator).clamp_min(0)
    return e.to(dtype), h.to(dtype)


def dense(e: torch.Tensor, h: torch.Tensor, bias: bool = True) -> torch.Tensor:
    """[N, C (d + bias)] in float64."""
    lead = torch.ones(h.shape[0], int(bias), dtype=torch.float64)
    inputs = torch.cat([lead, h.double().cpu()], 1)
    return (e.double().cpu()[:, :, None] * inputs[:, None]).flatten(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_products_are_the_dense_ones(dtype, bias):
    e, h = factors(20, 5, 9, dtype)
    f, g = factors(13, 5, 9, dtype, seed=1)
    a, b = dense(e, h, bias), dense(f, g, bias)
    matrix = torch.randn(5, 9 + bias, generator=torch.Generator().manual_seed(2))
    weights = torch.rand(20, generator=torch.Generator().manual_seed(3))
    tolerance = 1e-11 if dtype == torch.float64 else 1e-5
    flat = matrix.double().flatten()
    for got, want in (
        (fgrad_gram(e, h, f, g, bias=bias), a @ b.T),
        (fgrad_gram(e, h, bias=bias), a @ a.T),
        (fgrad_sqdist(e, h, f, g, bias=bias), torch.cdist(a, b).square()),
        (fgrad_mv(e, h, matrix, bias=bias), a @ flat),
        (fgrad_rmv(e, h, weights, bias=bias).flatten(), weights.double() @ a),
        (fgrad_rmv(e, h, bias=bias).flatten(), a.mean(0)),
    ):
        torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=tolerance)
        assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert fgrad_sqdist(e, h, bias=bias).diagonal().abs().max() <= 1e-12


def test_products_of_arrays_and_of_nothing():
    e, h = factors(6, 3, 4)
    assert isinstance(fgrad_gram(e.numpy(), h.numpy()), np.ndarray)
    assert fgrad_gram(e[:0], h[:0], e, h).shape == (0, 6)
    assert fgrad_mv(e[:0], h[:0], torch.zeros(3, 5)).shape == (0,)
    assert fgrad_rmv(e[:0], h[:0]).abs().sum() == 0
    torch.testing.assert_close(
        fgrad_gram(e.T.contiguous().T, h[:, ::2]), fgrad_gram(e, h[:, ::2].contiguous())
    )


# ---- orthogonal matching pursuit -------------------------------------------------------------------------


def plain_omp(a: np.ndarray, b: np.ndarray, k: int, lam: float) -> tuple[list[int], np.ndarray, list[float]]:
    """GradMatch as published, on dense gradients: [N, D], [D]."""
    optimize = pytest.importorskip("scipy.optimize")
    picks: list[int] = []
    x, residual, norms = np.zeros(0), b.copy(), []
    free = np.ones(len(a), dtype=bool)
    for t in range(k):
        c = a @ residual
        j = int(np.where(free, c, -np.inf).argmax())
        picks.append(j)
        free[j] = False
        g = a[picks]
        x = (
            np.array([c[j] / (g @ g.T)[0, 0]])
            if t == 0
            else np.linalg.solve(g @ g.T + lam * np.eye(t + 1), g @ b)
        )
        residual = b - g.T @ x
        norms.append(float(np.linalg.norm(residual)))
    g = a[picks]
    return picks, optimize.nnls(g @ g.T + lam * np.eye(k), g @ b)[0], norms


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("lam", [1.0, 0.01])
def test_omp_is_the_published_one(backend, bias, lam):
    e, h = factors(150, 6, 20)
    k = 25
    a = dense(e, h, bias).numpy()
    picks, weights, norms = plain_omp(a, a.mean(0), k, lam)
    found = omp_factored(e.to(backend.device), h.to(backend.device), k, lam=lam, bias=bias)
    kept = weights > 0
    assert found.indices.tolist() == np.array(picks)[kept].tolist()
    np.testing.assert_allclose(found.weights.cpu().numpy(), weights[kept], rtol=2e-5, atol=1e-7)
    np.testing.assert_allclose(found.residual.cpu().numpy(), norms, rtol=1e-6)
    rest = a.mean(0) - weights @ a[picks]
    assert float(found.final) == pytest.approx(np.linalg.norm(rest), rel=1e-6)


def test_omp_of_a_target(backend):
    e, h = factors(90, 4, 7)
    goal = dense(*factors(40, 4, 7, seed=5)).mean(0).view(4, 8).float()
    picks, weights, _ = plain_omp(dense(e, h).numpy(), goal.double().flatten().numpy(), 10, 0.5)
    found = omp_factored(
        e.to(backend.device), h.to(backend.device), 10, target=goal.to(backend.device), lam=0.5
    )
    assert found.indices.tolist() == np.array(picks)[weights > 0].tolist()
    np.testing.assert_allclose(found.weights.cpu().numpy(), weights[weights > 0], rtol=1e-5)


def test_omp_comes_nearer_with_each_pick(backend):
    e, h = factors(80, 5, 6)
    found = omp_factored(e.to(backend.device), h.to(backend.device), 30, lam=0.0)
    assert (found.residual.diff() <= 1e-9).all()
    assert (found.weights > 0).all()
    e, h = e.half().to(backend.device), h.half().to(backend.device)
    half = omp_factored(e, h, 5)
    exact = omp_factored(e.float(), h.float(), 5)
    assert half.indices.tolist() == exact.indices.tolist()


def test_omp_without_kept_columns(backend, monkeypatch):
    """Where columns of inner products would need too much room, the residual is kept instead."""
    e, h = (t.to(backend.device) for t in factors(120, 5, 6))
    usual = omp_factored(e, h, 20)
    monkeypatch.setattr(fgrad_reference, "KEPT_BYTES", 0)
    spare = omp_factored(e, h, 20)
    assert usual.indices.tolist() == spare.indices.tolist()
    torch.testing.assert_close(usual.weights, spare.weights, rtol=1e-6, atol=1e-9)


class _Waits(TorchDispatchMode):
    """Counts values that the host reads one by one: each waits for a GPU."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.overloadpacket.__name__ == "_local_scalar_dense"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kept", [64 << 20, 0])
def test_the_pursuit_does_not_wait_for_the_device(monkeypatch, kept):
    monkeypatch.setattr(fgrad_reference, "KEPT_BYTES", kept)
    e, h = factors(90, 2, 3)
    goal, q = fgrad_reference.start(e, h, None, True)
    with _Waits() as seen:
        fgrad_reference._pursue(e, h, goal, q, 8, 1.0, True, fgrad_reference.column)
    assert seen.count == 0
    with _Waits() as seen:
        float(goal[0, 0])
    assert seen.count == 1


def test_omp_with_duplicates_constants_and_edges(backend):
    e, h = (t.to(backend.device) for t in factors(10, 3, 4))
    twice, same = torch.cat([e, e]), torch.cat([h, h])
    found = omp_factored(twice, same, 20, lam=0.0)  # of rank 10 at most
    assert found.final <= 1e-6
    assert found.weights.isfinite().all()
    constant = omp_factored(e[:1].expand(6, 3), h[:1].expand(6, 4), 6, lam=0.0)
    assert constant.indices.tolist() == [0]
    assert float(constant.weights) == pytest.approx(1.0, rel=1e-6)
    nothing = omp_factored(torch.zeros_like(e), h, 3)
    assert nothing.indices.numel() == 0
    assert nothing.residual.tolist() == [0.0] * 3
    for k in (0, 1, 10):
        assert omp_factored(e, h, k).residual.shape == (k,)
    empty = omp_factored(e[:0], h[:0], 0)
    assert empty.indices.shape == (0,)


def test_omp_of_factors_that_are_not_finite(backend):
    e, h = factors(9, 3, 4)
    target = fgrad_reference.rmv(e, h, torch.full((9,), 1 / 9), True).to(backend.device)
    for bad in (torch.nan, torch.inf, -torch.inf):
        for rows in (slice(0, 9), slice(4, 5)):
            worse = e.clone()
            worse[rows] = bad
            for goal in (None, target):
                arguments = (worse.to(backend.device), h.to(backend.device), 9)
                found = omp_factored(*arguments, target=goal, check=False)
                assert found.residual.shape == (9,)
                assert found.weights.isfinite().all()


def test_omp_of_nan_picks_rows_that_there_are(isa, monkeypatch):
    e, h = factors(9, 3, 4)
    picked = []

    def finish(indices, *rest):
        picked.append(indices.tolist())
        return fgrad_reference.finish(indices, *rest)

    monkeypatch.setattr(fgrad_native, "finish", finish)
    for bad in (torch.nan, torch.inf, -torch.inf):
        for rows in (slice(0, 9), slice(4, 5)):
            worse = e.clone()
            worse[rows] = bad
            found = omp_factored(worse, h, 9, check=False)
            assert sorted(picked.pop()) == list(range(9))
            assert found.residual.shape == (9,)


def test_omp_threads(set_threads):
    e, h = factors(700, 20, 33)
    found = []
    for threads in (1, 2, 3):
        set_threads(threads)
        found.append(omp_factored(e, h, 12))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_rows_in_another_order_give_the_same_samples(backend):
    e, h = (t.to(backend.device) for t in factors(200, 6, 9))
    order = torch.randperm(200, generator=torch.Generator().manual_seed(1)).to(backend.device)
    plain, shuffled = omp_factored(e, h, 15), omp_factored(e[order], h[order], 15)
    assert order[shuffled.indices].tolist() == plain.indices.tolist()


def test_nnls_is_scipy_s():
    optimize = pytest.importorskip("scipy.optimize")
    generator = np.random.default_rng(0)
    for size in (1, 2, 5, 30):
        for scale in (1e-6, 1.0, 1e6):
            g = generator.normal(size=(size, size + 3))
            a = scale * (g @ g.T + 0.1 * np.eye(size))
            b = scale * generator.normal(size=size)
            got, want = nnls(a, b), optimize.nnls(a, b)[0]
            assert (got >= 0).all()
            np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-9 * max(1.0, want.max()))
    assert nnls(np.eye(3), -np.ones(3)).tolist() == [0.0, 0.0, 0.0]
    assert nnls(np.zeros((0, 0)), np.zeros(0)).shape == (0,)


# ---- CRAIG and GLISTER -----------------------------------------------------------------------------------


def plain_craig(a: torch.Tensor, k: int) -> tuple[list[int], list[float], list[int]]:
    """Naive greedy on dense distances."""
    d = torch.cdist(a, a)
    s = d.max() - d
    best, picks, gains = torch.zeros(len(a), dtype=torch.float64), [], []
    for _ in range(k):
        gain = (s - best[:, None]).clamp_min(0).sum(0)
        gain[picks] = -1.0
        j = int(gain.argmax())
        picks.append(j)
        gains.append(float(gain[j]))
        best = torch.maximum(best, s[:, j])
    counts = torch.bincount(d[:, picks].argmin(1), minlength=k)
    return picks, gains, counts.tolist()


def test_craig_is_naive_greedy():
    e, h = factors(300, 5, 8)
    picks, gains, counts = plain_craig(dense(e, h), 30)
    found = craig(e, h, 30)
    assert found.indices.tolist() == picks
    np.testing.assert_allclose(found.gains.numpy(), gains, rtol=1e-7, atol=1e-7)
    assert found.weights.tolist() == counts
    assert found.weights.sum() == 300
    assert (found.gains.diff() <= 1e-6).all()
    assert float(found.objective) == pytest.approx(sum(gains))


def test_craig_of_the_digits():
    """Gradients of one output with error 1 are the pixels themselves; integers, so exact."""
    datasets = pytest.importorskip("sklearn.datasets")
    x = torch.from_numpy(datasets.load_digits().data).float()
    found = craig(torch.ones(len(x), 1), x, 10, distance="sqeuclidean")
    assert found.indices.tolist() == [945, 392, 1507, 793, 1417, 1039, 97, 1107, 1075, 867]
    assert float(found.objective) == 8994542
    assert found.weights.tolist() == [165, 201, 185, 203, 162, 181, 196, 168, 176, 160]


def test_craig_by_class():
    e, h = factors(100, 4, 6)
    labels = torch.arange(100) % 3
    labels[labels == 1] = 5
    found = craig(e, h, 20, labels=labels)
    assert torch.bincount(labels[found.indices]).tolist() == [7, 0, 7, 0, 0, 6]
    assert found.weights.sum() == 100
    group = (labels == 2).nonzero()[:, 0]
    assert found.indices[7:14].tolist() == group[craig(e[group], h[group], 7).indices].tolist()
    assert craig(e, h, 0).indices.shape == (0,)
    assert len(set(craig(e[:5], h[:5], 5).indices.tolist())) == 5
    same = craig(e[:1].expand(6, 4), h[:1].expand(6, 6), 3)
    assert same.indices.tolist() == [0, 1, 2]
    assert same.weights.tolist() == [6.0, 0.0, 0.0]


def test_glister_by_dense_gradients():
    e, h = factors(120, 4, 6)
    _, vh = factors(30, 4, 6, seed=9)
    generator = torch.Generator().manual_seed(4)
    z, y = torch.randn(30, 4, generator=generator), torch.randint(4, (30,), generator=generator)
    eta, k, rounds = 0.3, 11, 4
    found = glister(e, h, z, vh, y, k, rounds=rounds, eta=eta)
    a, inputs = dense(e, h), torch.cat([torch.ones(30, 1), vh], 1).double()
    picks: list[int] = []
    move = torch.zeros(4, 7, dtype=torch.float64)
    for size in (3, 3, 3, 2):
        p = torch.softmax(z.double() - eta * inputs @ move.T, 1) - torch.nn.functional.one_hot(y, 4)
        gain = a @ (p.T @ inputs / 30).flatten()
        gain[picks] = -torch.inf
        picks += gain.argsort(descending=True)[:size].tolist()
        move = a[picks].sum(0).view(4, 7)
    assert found.indices.tolist() == picks
    assert found.gains.shape == (11,)
    assert glister(e, h, z, vh, y, 0).indices.shape == (0,)
    assert sorted(glister(e[:7], h[:7], z, vh, y, 7).indices.tolist()) == list(range(7))


# ---- errors and machinery --------------------------------------------------------------------------------


def test_bad_input():
    e, h = factors(8, 3, 4)
    nan = h.clone()
    nan[5, 1] = torch.nan
    z, y = torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64)
    for call, error, message in (
        (lambda: fgrad_gram(e, h[:3]), ValueError, "hidden: expected 8 rows"),
        (lambda: fgrad_gram(e, h, e[:, :2], h), ValueError, "other_errors: expected shape"),
        (lambda: fgrad_gram(e, h, e), TypeError, "other_hidden: expected"),
        (lambda: fgrad_mv(e, h, torch.zeros(3, 4)), ValueError, r"matrix: expected shape \(3, 5\)"),
        (lambda: fgrad_rmv(e, h, torch.zeros(7)), ValueError, "weights: expected shape"),
        (lambda: fgrad_rmv(e.long(), h), TypeError, "errors: expected dtype"),
        (lambda: omp_factored(e, h, 9), ValueError, r"k: expected an integer in \[0, 8\]"),
        (lambda: omp_factored(e, h, -1), ValueError, "k: expected"),
        (lambda: omp_factored(e, h, 2, lam=-1.0), ValueError, "lam: expected a finite number >= 0"),
        (lambda: omp_factored(e, nan, 2), ValueError, "hidden: expected finite entries, got nan in row 5"),
        (lambda: omp_factored(e, h, 2, target=torch.zeros(3, 4)), ValueError, "target: expected shape"),
        (lambda: craig(e, h, 9), ValueError, "k: expected"),
        (lambda: craig(e, nan, 2), ValueError, "hidden: expected finite"),
        (lambda: craig(e, h, 2, distance="cosine"), ValueError, "distance: expected one of"),
        (lambda: craig(e, h, 2, labels=torch.zeros(3)), TypeError, "labels: expected dtype"),
        (lambda: glister(e, h, z, torch.zeros(2, 4), y, 9), ValueError, "k: expected"),
        (lambda: glister(e, h, z, torch.zeros(2, 4), y + 3, 2), ValueError, "val_labels: expected labels"),
        (lambda: glister(e, h, z[:0], torch.zeros(0, 4), y[:0], 2), ValueError, "at least one validation"),
        (lambda: glister(e, h, z, torch.zeros(2, 4), y, 2, eta=0.0), ValueError, "eta"),
        (lambda: glister(e, h, z, torch.zeros(2, 4), y, 2, rounds=0), ValueError, "rounds"),
    ):
        with pytest.raises(error, match=message):
            call()


def test_torch_machinery(inductor):
    e, h = factors(8, 3, 4)
    ops = torch.ops.tenfold
    labels = torch.zeros(8, dtype=torch.int64)
    for op, arguments in (
        (ops.fgrad_gram, (e, h, e[:3], h[:3], True)),
        (ops.fgrad_sqdist, (e, h, e[:3], h[:3], False)),
        (ops.fgrad_mv, (e, h, torch.randn(3, 5), True)),
        (ops.fgrad_rmv, (e, h, torch.rand(8), True)),
        (ops.omp_factored, (e, h, 3, None, 1.0, True)),
        (ops.craig, (e, h, 3, True, False)),
        (ops.glister, (e, h, e, h, labels, 3, 2, 0.1, True)),
    ):
        torch.library.opcheck(op.default, arguments)
    compiled = torch.compile(lambda a, b: fgrad_gram(a, b) * 2, fullgraph=True, backend=inductor)
    torch.testing.assert_close(compiled(e, h), fgrad_gram(e, h) * 2)
