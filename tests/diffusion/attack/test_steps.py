"""The attack's inner steps against float64 oracles and fixtures."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tenfold.diffusion.attack.steps import (
    bisection_project,
    eps_mse_rows,
    inverse_norms,
    nearest_token,
    sample_rows,
    simplex_project,
    ste_adam_simplex_,
)


def oracle_projection(p: Tensor) -> Tensor:
    """Held, Wolfe and Crowder's sort, in float64."""
    x = p.double()
    ordered = x.sort(dim=1, descending=True).values
    sums = ordered.cumsum(1) - 1
    counts = torch.arange(1, x.shape[1] + 1, dtype=torch.float64)
    support = (ordered - sums / counts > 0).sum(1, keepdim=True)
    theta = sums.gather(1, support - 1) / support
    return (x - theta).clamp_min(0)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ([1, 1, 0, 0, 0], [0.5, 0.5, 0, 0, 0]),
        ([0.5, 0.5, 0.5, -1, -1], [1 / 3, 1 / 3, 1 / 3, 0, 0]),
        ([7.0] * 11, [1 / 11] * 11),
        ([-math.inf, 0.2, 0.3], [0, 0.45, 0.55]),
    ],
)
def test_projection_fixtures(row: list[float], expected: list[float]) -> None:
    found = simplex_project(torch.tensor([row], dtype=torch.float32))
    torch.testing.assert_close(found, torch.tensor([expected]).float(), atol=2e-7, rtol=0)


@pytest.mark.parametrize("late", [False, True])
def test_projection_of_a_whole_vocabulary(late: bool) -> None:
    g = torch.Generator().manual_seed(3)
    vocabulary = 49408
    p = torch.full((5, vocabulary), 1 / vocabulary)
    p += 0.01 * (torch.randn(p.shape, generator=g) if late else torch.randn(p.shape, generator=g).sign())
    found = simplex_project(p)
    exact = oracle_projection(p)
    assert float((found.double() - exact).abs().max()) <= 2e-7
    assert float((found.double().sum(1) - 1).abs().max()) <= 3e-5
    assert float((simplex_project(found) - found).abs().max()) <= 1e-6
    if late:  # no ties: the support is the same
        assert bool(((found > 0) == (exact > 0)).all())


def test_projection_refuses_what_has_no_answer() -> None:
    with pytest.raises(ValueError, match=r"p\[1\]: expected numbers below infinity"):
        simplex_project(torch.tensor([[0.0, 1.0], [math.nan, 1.0]]))
    with pytest.raises(ValueError, match="expected a matrix"):
        simplex_project(torch.zeros(2, 0))
    with pytest.raises(ValueError, match="radius"):
        simplex_project(torch.zeros(1, 2), 0.0)
    assert simplex_project(torch.zeros(0, 3)).shape == (0, 3)


def test_the_published_bisection_loses_mass() -> None:
    g = torch.Generator().manual_seed(0)
    p = torch.full((2, 49408), 1 / 49408) + 0.01 * torch.randn(2, 49408, generator=g).sign()
    lost = 1 - bisection_project(p).double().sum(1)
    assert bool((lost.abs() > 0.01).all())
    assert float((1 - simplex_project(p).double().sum(1)).abs().max()) <= 3e-5
    few = torch.tensor([[0.4, 0.1, 0.9]])  # and agrees where probabilities are large
    torch.testing.assert_close(bisection_project(few), simplex_project(few), atol=3e-5, rtol=0)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_two_hundred_steps_are_adam_and_a_projection(weight_decay: float) -> None:
    g = torch.Generator().manual_seed(1)
    rows, vocabulary, width = 3, 300, 16
    table = torch.randn(vocabulary, width, generator=g)
    p = torch.full((rows, vocabulary), 1 / vocabulary)
    m, v = torch.zeros_like(p), torch.zeros_like(p)
    known = torch.nn.Parameter(p.clone())
    adam = torch.optim.Adam([known], lr=0.01, weight_decay=weight_decay)
    worst = 0.0
    for step in range(1, 201):
        gradient = 0.3 * torch.randn(rows, width, generator=g)
        ste_adam_simplex_(p, m, v, gradient, table, lr=0.01, weight_decay=weight_decay, step=step)
        known.grad = (gradient @ table.t()).clamp(-1, 1)
        adam.step()
        known.data = oracle_projection(known.data).float()
        worst = max(worst, float((p - known.data).abs().max()))
    assert worst <= 5e-6


def test_banned_tokens_stay_at_zero() -> None:
    g = torch.Generator().manual_seed(1)
    table, banned = torch.randn(20, 4, generator=g), torch.zeros(20, dtype=torch.bool)
    banned[[3, 7]] = True
    p, m, v = torch.full((2, 20), 0.05), torch.zeros(2, 20), torch.zeros(2, 20)
    for step in range(1, 30):
        ste_adam_simplex_(p, m, v, torch.randn(2, 4, generator=g), table, lr=0.1, step=step, banned=banned)
    assert bool((p[:, [3, 7]] == 0).all())
    torch.testing.assert_close(p.sum(1), torch.ones(2))


def test_half_precision_tables_do_not_lose_small_gradients() -> None:
    g = torch.Generator().manual_seed(1)
    table = torch.randn(50, 8, generator=g)
    gradient = 1e-7 * torch.randn(2, 8, generator=g)
    states = []
    for dtype in (torch.float32, torch.float16):
        p, m, v = torch.full((2, 50), 0.02), torch.zeros(2, 50), torch.zeros(2, 50)
        ste_adam_simplex_(p, m, v, gradient, table.to(dtype), lr=0.01, step=1)
        states.append(m)
    torch.testing.assert_close(states[0], states[1], rtol=5e-2, atol=1e-11)


def test_samples_are_the_inverse_of_the_running_sum() -> None:
    p = torch.tensor([[0.0, 0.25, 0.0, 0.75, 0.0]]).expand(6, -1)
    u = torch.tensor([0.0, 0.2499, 0.25, 0.5, 0.999999, 1 - 2**-24])
    assert sample_rows(p, u).tolist() == [1, 1, 3, 3, 3, 3]
    g = torch.Generator().manual_seed(0)
    p = simplex_project(0.1 * torch.randn(1, 40, generator=g)).expand(20_000, -1)
    counts = torch.bincount(sample_rows(p, torch.rand(20_000, generator=g)), minlength=40) / 20_000
    assert float((counts - p[0]).abs().max()) < 0.02
    assert bool((counts[p[0] == 0] == 0).all())


def test_samples_refuse_what_is_no_distribution() -> None:
    with pytest.raises(ValueError, match=r"p\[1\]: expected a row with a positive, finite sum"):
        sample_rows(torch.tensor([[0.5, 0.5], [0.0, 0.0]]), torch.tensor([0.1, 0.1]))
    with pytest.raises(ValueError, match="u: expected"):
        sample_rows(torch.tensor([[0.5, 0.5]]), torch.tensor([1.0]))


@pytest.mark.parametrize("metric", ["cos", "l2"])
def test_nearest_token_is_the_float64_argmax(metric: str) -> None:
    g = torch.Generator().manual_seed(4)
    table, q = torch.randn(2000, 24, generator=g), torch.randn(300, 24, generator=g)
    table[700] = table[40]  # ties go to the lower id
    q[0] = table[700]
    table[5] = 0
    ids, scores = nearest_token(q, table, inverse_norms(table) if metric == "cos" else None, metric=metric)
    if metric == "cos":
        exact = torch.nn.functional.cosine_similarity(
            q.double()[:, None], table.double()[None], dim=2, eps=0
        ).nan_to_num(0)
    else:
        exact = -0.5 * torch.cdist(q.double(), table.double()).square()
    assert ids[0] == 40
    assert torch.equal(ids, exact.argmax(1))
    torch.testing.assert_close(scores.double(), exact.amax(1), atol=1e-4, rtol=1e-4)


def test_nearest_token_with_a_mask_zeros_and_nan() -> None:
    table = torch.eye(3)
    mask = torch.tensor([False, True, True])
    assert nearest_token(torch.tensor([[1.0, 0.1, 0.0]]), table, mask=mask)[0].tolist() == [1]
    assert nearest_token(torch.zeros(1, 3), table)[1].tolist() == [0.0]
    with pytest.raises(ValueError, match="at least one token"):
        nearest_token(torch.ones(1, 3), table, mask=torch.zeros(3, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"q\[0\]: expected finite numbers"):
        nearest_token(torch.full((1, 3), math.nan), table)


@pytest.mark.parametrize("criterion", ["l1", "l2"])
def test_losses_are_means_of_each_picture(criterion: str) -> None:
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(3, 4, 5, 5, generator=g), torch.randn(3, 4, 5, 5, generator=g)
    known = torch.nn.L1Loss() if criterion == "l1" else torch.nn.MSELoss()
    expected = torch.stack([known(x, y) for x, y in zip(a, b, strict=True)])
    torch.testing.assert_close(eps_mse_rows(a, b, criterion), expected)
    with pytest.raises(ValueError, match="criterion"):
        eps_mse_rows(a, b, "l3")
