"""The two-sample test: its statistics against a plain loop, its level, its power."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import tenfold
from tenfold.ops import mmd, mmd_permutation_test
from tenfold.ops.mmd import median_distance


def sample(seed: int, n: int, d: int = 3, shift: float = 0.0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) + shift


def loop(x: Tensor, y: Tensor, resamples: int, seed: int, **options: Any) -> tuple[float, float, list[float]]:
    """Deal the points out and compute each MMD from the beginning."""
    generator = torch.Generator().manual_seed(seed)
    pooled, n = torch.cat((x, y)), len(x)
    values = [mmd(x, y, **options).item()]
    for _ in range(resamples):
        order = torch.randperm(len(pooled), generator=generator)
        values.append(mmd(pooled[order[:n]], pooled[order[n:]], **options).item())
    as_large = sum(v >= values[0] - 1e-12 for v in values[1:])
    return values[0], (1 + as_large) / (1 + resamples), values[1:]


@pytest.mark.parametrize(("n", "m"), [(30, 30), (20, 33)])
@pytest.mark.parametrize("estimator", ["unbiased", "biased"])
@pytest.mark.parametrize("kernels", [1, 5])
def test_is_the_plain_loop(n: int, m: int, estimator: str, kernels: int) -> None:
    x, y = sample(1, n).double(), sample(2, m, shift=0.4).double()
    base = float(median_distance(torch.cat((x, y))))
    options = {"estimator": estimator, "kernels": kernels}
    found = mmd_permutation_test(
        x, y, n_resamples=60, generator=torch.Generator().manual_seed(3), bandwidth="median", **options
    )
    statistic, pvalue, values = loop(x, y, 60, 3, bandwidth=base, **options)
    assert found.statistic == pytest.approx(statistic, rel=1e-9)
    assert found.pvalue == pvalue
    assert torch.allclose(found.null_distribution, torch.tensor(values, dtype=torch.float64), atol=1e-9)


def test_every_backend_gives_the_same(backend: Any) -> None:
    if backend.name not in ("cpu", "cuda", "triton", "reference"):
        pytest.skip(f"mmd is not written for {backend.name}")
    x, y = sample(1, 20), sample(2, 33, shift=0.4)
    with tenfold.use_backend("auto"):
        wanted = mmd_permutation_test(
            x.double(), y.double(), n_resamples=40, generator=torch.Generator().manual_seed(3)
        )
    found = mmd_permutation_test(
        x.to(backend.device),
        y.to(backend.device),
        n_resamples=40,
        generator=torch.Generator().manual_seed(3),
    )
    assert found.statistic == pytest.approx(wanted.statistic, rel=1e-4, abs=1e-6)
    assert found.pvalue == wanted.pvalue
    assert torch.allclose(found.null_distribution.cpu(), wanted.null_distribution, atol=2e-6)


def test_resamples_in_several_walks_are_one_sequence(monkeypatch: pytest.MonkeyPatch) -> None:
    from tenfold.ops import mmd_permutation

    x, y = sample(1, 20), sample(2, 33)
    one = mmd_permutation_test(x, y, n_resamples=50, generator=torch.Generator().manual_seed(3))
    monkeypatch.setattr(mmd_permutation, "COLUMNS", 7)
    many = mmd_permutation_test(x, y, n_resamples=50, generator=torch.Generator().manual_seed(3))
    assert torch.allclose(one.null_distribution, many.null_distribution, atol=1e-7)
    assert one.pvalue == many.pvalue


def test_finds_a_difference_and_no_difference_in_equal_samples() -> None:
    x = sample(1, 60)
    assert mmd_permutation_test(x, sample(2, 60, shift=1.0), n_resamples=199).pvalue == 1 / 200
    same = mmd_permutation_test(x, x, n_resamples=99, bandwidth="mean", estimator="biased")
    assert abs(same.statistic) < 1e-6  # all resamples are as large
    assert same.pvalue == 1.0
    shapes = mmd_permutation_test(x, sample(2, 60) * 2.5, n_resamples=199)  # equal means, another spread
    assert shapes.pvalue == 1 / 200


def test_ties_count_against_the_difference() -> None:
    """Two points on each side: six deals, two of which give the observed split."""
    x, y = torch.tensor([[0.0], [0.1]]), torch.tensor([[5.0], [5.1]])
    found = mmd_permutation_test(x, y, n_resamples=3000, generator=torch.Generator().manual_seed(0))
    assert found.pvalue == pytest.approx(1 / 3, abs=0.03)


@pytest.mark.slow
@pytest.mark.parametrize(("n", "m"), [(25, 25), (15, 30)])
def test_keeps_its_level(n: int, m: int) -> None:
    """p-values of equal distributions: each at most as frequent as it says (binomial, five deviations)."""
    trials = 2000
    generator = torch.Generator().manual_seed(7)
    pvalues = torch.tensor(
        [
            mmd_permutation_test(
                sample(2 * k, n), sample(2 * k + 1, m), n_resamples=99, generator=generator
            ).pvalue
            for k in range(trials)
        ]
    )
    for level in (0.01, 0.05, 0.1, 0.25, 0.5, 0.9):
        share = (pvalues <= level + 1e-9).double().mean().item()
        assert share == pytest.approx(level, abs=5 * (level * (1 - level) / trials) ** 0.5), level


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda x: mmd_permutation_test(x[:1], x), ValueError, "x: expected shape"),
        (lambda x: mmd_permutation_test(x[None], x[None]), ValueError, "x: expected shape"),
        (lambda x: mmd_permutation_test(x, x * float("nan")), ValueError, "y: expected finite points"),
        (lambda x: mmd_permutation_test(x, x, bandwidth="tllib"), ValueError, "bandwidth: expected one of"),
        (lambda x: mmd_permutation_test(x, x, estimator="linear"), ValueError, "estimator: expected one of"),
        (lambda x: mmd_permutation_test(x, x, n_resamples=0), ValueError, "n_resamples: expected"),
        (lambda x: mmd_permutation_test(x, x.double()), TypeError, "y: expected the dtype of x"),
    ],
)
def test_wrong_arguments(call: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        call(sample(1, 8))
