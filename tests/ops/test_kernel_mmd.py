"""Polynomial and Gaussian MMD against whole kernel matrices, their gradients, and bad input."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from tenfold.kernels.moments import poly_reference
from torch import Tensor

from tenfold.ops import mmd2_poly, mmd2_rbf


def points(n: int, m: int, d: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(n)
    x = torch.randn(n, d, dtype=torch.float64, generator=draw)
    return x.to(dtype), (1.2 * torch.randn(m, d, dtype=torch.float64, generator=draw) + 0.2).to(dtype)


def estimate(kxx: Tensor, kyy: Tensor, kxy: Tensor, biased: bool) -> Tensor:
    if biased:
        return kxx.mean() + kyy.mean() - 2 * kxy.mean()
    n, m = len(kxx), len(kyy)
    own = (kxx.sum() - kxx.trace()) / (n * (n - 1)) + (kyy.sum() - kyy.trace()) / (m * (m - 1))
    return own - 2 * kxy.mean()


def poly(x: Tensor, y: Tensor, degree: int, gamma: float, coef: float, biased: bool) -> Tensor:
    k = [(a @ b.T * gamma + coef) ** degree for a, b in ((x, x), (y, y), (x, y))]
    return estimate(*k, biased)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(("n", "m"), [(2, 3), (600, 1030)])
@pytest.mark.parametrize("degree", [1, 3, 4])
def test_poly(n: int, m: int, degree: int, biased: bool) -> None:
    x, y = points(n, m, 7)
    leaves = [x.requires_grad_(), y.requires_grad_()]
    expected = poly(x, y, degree, 0.3, 0.5, biased)
    wanted = torch.autograd.grad(expected, leaves)
    found = mmd2_poly(x, y, degree=degree, gamma=0.3, coef=0.5, biased=biased)
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-11, abs=1e-12)
    for ours, theirs in zip(torch.autograd.grad(3 * found, leaves), wanted, strict=True):
        assert torch.allclose(ours, 3 * theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("biased", [False, True])
def test_rbf(biased: bool) -> None:
    x, y = points(40, 50, 6)
    leaves = [x.requires_grad_(), y.requires_grad_()]
    distances = [torch.cdist(a, b).square() for a, b in ((x, x), (y, y), (x, y))]
    expected = estimate(*(torch.exp(-d / 8) + torch.exp(-d / 18) for d in distances), biased)
    found = mmd2_rbf(x, y, sigma=[2.0, 3.0], biased=biased)
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-10)
    assert all(bool(torch.isfinite(g).all()) for g in torch.autograd.grad(found, leaves))
    small = [v.detach()[:4].clone().requires_grad_() for v in (x, y)]
    assert torch.autograd.gradcheck(partial(mmd2_rbf, sigma=2.0, biased=biased), small)


def test_float32_is_close() -> None:
    x, y = points(700, 600, 64)
    exact = float(mmd2_poly(x, y))
    assert float(mmd2_poly(x.float(), y.float())) == pytest.approx(exact, rel=1e-4)


def test_torch_contracts() -> None:
    x, y = (v.requires_grad_() for v in points(4, 5, 3))
    torch.library.opcheck(torch.ops.tenfold.mmd2_poly.default, (x, y, 3, 0.5, 1.0, False))
    assert torch.autograd.gradcheck(mmd2_poly, (x, y))
    first = torch.autograd.grad(mmd2_poly(x, y), x, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="differentiated once"):
        first.sum().backward()
    assert isinstance(mmd2_poly(x.detach().numpy(), y.detach().numpy()), np.ndarray)


def test_one_pass_serves_all_subsets() -> None:
    x, y = points(560, 700, 9)
    draw = torch.Generator().manual_seed(1)
    picks = [torch.stack([torch.randperm(n, generator=draw)[:50] for _ in range(6)]) for n in (560, 700)]
    kernel = poly_reference.Poly(3, 1 / 9, 1.0)
    found = poly_reference.subset_mmd2(x, y, (picks[0], picks[1]), kernel)
    for value, i, j in zip(found, *picks, strict=True):
        assert float(value) == pytest.approx(float(poly(x[i], y[j], 3, 1 / 9, 1.0, False)), rel=1e-9)


def test_bad_input() -> None:
    x, y = points(4, 5, 3)
    for call in (mmd2_poly, partial(mmd2_rbf, sigma=1.0, biased=False)):
        with pytest.raises(ValueError, match="y: expected 3 dimensions"):
            call(x, y[:, :2])
        with pytest.raises(ValueError, match="x: expected at least 2 rows"):
            call(x[:1], y)
        with pytest.raises(ValueError, match="x: expected finite"):
            call(x / 0, y)
        with pytest.raises(ValueError, match="x: expected features of a floating dtype"):
            call(x.to(torch.uint8), y)
    with pytest.raises(ValueError, match="degree"):
        mmd2_poly(x, y, degree=0)
    with pytest.raises(ValueError, match="sigma"):
        mmd2_rbf(x, y, sigma=-1.0)
