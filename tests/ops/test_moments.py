"""Moments and the Frechet distance: oracles of the published expressions, few rows, shards, bad input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from tenfold.ops import Moments, frechet_distance, moments_merge, moments_update


def features(n: int, d: int, seed: int, shift: float = 0.0) -> Tensor:
    """Correlated rows with a falling spectrum."""
    draw = torch.Generator().manual_seed(seed)
    mix = torch.randn(d, d, dtype=torch.float64, generator=draw) / d**0.5
    scale = torch.linspace(1.0, 0.05, d, dtype=torch.float64)
    return torch.randn(n, d, dtype=torch.float64, generator=draw) * scale @ mix + shift


def published(x: Tensor, y: Tensor) -> tuple[float, float]:
    """(FID by the eigenvalues of S1 S2 as torch-fidelity and TorchMetrics have it, the trace)."""
    a, b = (np.cov(v.numpy(), rowvar=False) for v in (x, y))
    gap = x.mean(0).numpy() - y.mean(0).numpy()
    root = np.sqrt(np.linalg.eigvals(a @ b).astype(complex)).real.sum()
    trace = float(np.trace(a) + np.trace(b))
    return float(gap @ gap) + trace - 2 * float(root), trace


def nuclear(x: Tensor, y: Tensor) -> tuple[float, float]:
    """The same by the singular values of the centred rows' product."""
    a, b = ((v - v.mean(0)) / (len(v) - 1) ** 0.5 for v in (x, y))
    gap = x.mean(0) - y.mean(0)
    trace = float(a.square().sum() + b.square().sum())
    return float(gap @ gap) + trace - 2 * float(torch.linalg.svdvals(a @ b.T).sum()), trace


def test_full_rank_meets_the_published_expression() -> None:
    x, y = features(400, 48, 1), features(300, 48, 2, 0.1)
    expected, trace = published(x, y)
    found = frechet_distance(x, y, diagnostics=True)
    assert found.route == "cholesky"
    assert found.rank == 48
    assert abs(float(found.value) - expected) <= 1e-8 * trace
    assert found.trace == pytest.approx(trace, rel=1e-12)


@pytest.mark.parametrize(("n", "m"), [(20, 20), (20, 31), (31, 20), (20, 500), (500, 20), (2, 2), (64, 64)])
def test_few_rows_meet_the_nuclear_norm(n: int, m: int) -> None:
    x, y = features(n, 64, 3), features(m, 64, 4, 0.2)
    expected, trace = nuclear(x, y)
    found = frechet_distance(x, y, diagnostics=True)
    assert found.route == "rows"
    assert found.rank <= min(n, m) - 1
    assert abs(float(found.value) - expected) <= 1e-10 * trace


def test_singular_covariances_alone_are_close() -> None:
    x, y = features(20, 64, 3), features(25, 64, 4, 0.2)
    expected, trace = nuclear(x, y)
    found = frechet_distance(moments_update(x), moments_update(y), diagnostics=True)
    assert found.route in ("eigh", "cholesky")
    assert abs(float(found.value) - expected) <= 1e-6 * trace


@pytest.mark.parametrize("n", [30, 200])
def test_symmetric_zero_and_shift(n: int) -> None:
    x, y = features(n, 48, 5), features(n + 3, 48, 6, 0.3)
    _, trace = nuclear(x, y)
    assert abs(float(frechet_distance(x, y) - frechet_distance(y, x))) <= 1e-12 * trace
    assert float(frechet_distance(x, x.clone())) <= 1e-12 * trace
    again = x[torch.randperm(n, generator=torch.Generator().manual_seed(0))]
    assert float(frechet_distance(x, again)) <= 1e-8 * trace
    moved = frechet_distance(x + 3.0, y + 3.0)
    assert abs(float(moved - frechet_distance(x, y))) <= 1e-12 * trace


def test_shards_are_one_pass() -> None:
    x = features(2500, 300, 7, 100.0)
    whole = moments_update(x)
    parts = [moments_update(p) for p in x.split([1, 999, 0, 1500])]
    merged = parts[0]
    for part in parts[1:]:
        merged = moments_merge(merged, part)
    stream = moments_update(x[1000:], moments_update(x[:1000]))
    exact = (x - x.mean(0)).T @ (x - x.mean(0))
    for found in (whole, merged, stream):
        assert found.n == 2500
        assert torch.allclose(found.mean, x.mean(0), rtol=1e-13, atol=0)
        assert float((found.scatter - exact).abs().max()) <= 1e-12 * float(exact.trace())
        assert torch.allclose(found.scatter, found.scatter.T, rtol=1e-12, atol=1e-10)
    assert torch.allclose(whole.covariance, torch.cov(x.T), atol=1e-12)


def test_half_strided_and_numpy_input() -> None:
    x, y = features(90, 32, 8), features(80, 32, 9)
    x16 = x.half()
    assert float(frechet_distance(x16, y)) == pytest.approx(
        float(frechet_distance(x16.double(), y)), rel=1e-12
    )
    strided = torch.stack((x, x), 2)[:, :, 0]
    assert float(frechet_distance(strided, y)) == pytest.approx(float(frechet_distance(x, y)), rel=1e-12)
    found = frechet_distance(x.numpy(), y.numpy())
    assert isinstance(found, np.ndarray)
    assert float(found) == pytest.approx(float(frechet_distance(x, y)), rel=1e-12)
    pair = frechet_distance((x.mean(0), torch.cov(x.T)), moments_update(y))
    assert float(pair) == pytest.approx(float(frechet_distance(x, y)), rel=1e-9)


def test_meets_torchmetrics_and_scipy() -> None:
    fid = pytest.importorskip("torchmetrics.image.fid")
    linalg = pytest.importorskip("scipy.linalg")
    x, y = features(300, 40, 10), features(260, 40, 11, 0.1)
    s, t = torch.cov(x.T), torch.cov(y.T)
    ours = float(frechet_distance(x, y))
    assert float(fid._compute_fid(x.mean(0), s, y.mean(0), t)) == pytest.approx(ours, rel=1e-9)
    root = float(np.trace(linalg.sqrtm((s @ t).numpy())).real)
    gap = x.mean(0) - y.mean(0)
    assert float(gap @ gap + s.trace() + t.trace()) - 2 * root == pytest.approx(ours, rel=1e-9)


@pytest.mark.parametrize(
    ("x", "match"),
    [
        (torch.zeros(1, 8), "x: expected at least 2 rows"),
        (torch.full((4, 8), float("nan")), "x: expected finite entries"),
        (torch.zeros(4, 8, dtype=torch.uint8), "x: expected features of a floating dtype"),
        (torch.zeros(4), r"x: expected shape \[N, D\]"),
        (
            Moments(1, torch.zeros(8).double(), torch.zeros(8, 8).double()),
            "x: expected moments of at least 2",
        ),
        ((torch.zeros(8), torch.zeros(7, 8)), "x: expected shapes"),
    ],
)
def test_bad_features(x: object, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        frechet_distance(x, torch.rand(5, 8))


def test_other_bad_input() -> None:
    with pytest.raises(ValueError, match="y: expected 8 dimensions"):
        frechet_distance(torch.rand(5, 8), torch.rand(5, 7))
    with pytest.raises(TypeError, match=r"x: expected a torch\.Tensor"):
        frechet_distance("x", torch.rand(5, 7))
    with pytest.raises(ValueError, match="x: expected 8 dimensions"):
        moments_update(torch.rand(5, 7), moments_update(torch.rand(5, 8)))
    with pytest.raises(TypeError, match="b: expected Moments"):
        moments_merge(moments_update(torch.rand(5, 8)), 3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="b: expected moments"):
        moments_merge(moments_update(torch.rand(5, 8)), moments_update(torch.rand(5, 7)))


def test_pairs_and_moments_of_other_dtypes() -> None:
    x = torch.randn(9, 4)
    with pytest.raises(ValueError, match=r"x\[0\]: expected a floating dtype"):
        frechet_distance((torch.zeros(4, dtype=torch.int64), torch.eye(4)), x)
    found = moments_update(x)
    single = Moments(found.n, found.mean.float(), found.scatter.float())
    with pytest.raises(TypeError, match=r"state.mean: expected dtype float64"):
        moments_update(x, single)
