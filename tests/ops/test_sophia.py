"""Sophia passes on every backend: published values, the edges of the formula, statistics, Hutchinson."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tenfold._backend import OPS
from tenfold.ops import (
    hutchinson_accumulate_,
    hutchinson_probe,
    sophia_hessian_,
    sophia_step_,
)


@pytest.fixture(autouse=True)
def _written_for(request: pytest.FixtureRequest) -> None:
    """Skips backends that the family is not written for; forcing one raises."""
    if "backend" in request.fixturenames:
        name = request.getfixturevalue("backend").name
        if name not in OPS["sophia_step_"]:
            pytest.skip(f"the Sophia passes are not written for {name}")


START = [0.5, -0.25, 0.1, 0.0, 2.0]


def _f32(values: list[float], backend: Any) -> Tensor:
    return torch.tensor(values, device=backend.device)


def _zeros(*like: Tensor, dtype: torch.dtype | None = None) -> list[Tensor]:
    return [torch.zeros_like(t, dtype=dtype) for t in like]


def _one(backend: Any, p: float, g: float, m: float, h: float, **options: Any) -> tuple[float, ...]:
    """A single element after a step: (p, m, h)."""
    t = [_f32([v], backend) for v in (p, g, m, h)]
    settings = {"lr": 0.1, "beta1": 0.5, "weight_decay": 0.0} | options
    sophia_step_([t[0]], [t[1]], [t[2]], [t[3]], **settings)
    return t[0].item(), t[2].item(), t[3].item()


# -- values that come from elsewhere ------------------------------------------------------------------------


def test_the_authors_sophiag_over_two_steps(backend: Any) -> None:
    """Hessian, two steps and win rate of the published code, worked out by hand (relative 1e-6)."""
    p, m, h = (
        _f32(START, backend),
        torch.zeros(5, device=backend.device),
        torch.zeros(5, device=backend.device),
    )
    stats = torch.zeros(6, dtype=torch.float64, device=backend.device)
    sophia_hessian_([h], [_f32([1e-2, 0.1, 0, 0, 3e-2], backend)], beta2=0.99)
    g = _f32([1e-3, -2e-2, 0, 5e-6, 1e-4], backend)
    options = {"lr": 0.1, "beta1": 0.965, "denom_scale": 0.04 * 500, "weight_decay": 0.1, "eps": 1e-15}
    sophia_step_([p], [g], [m], [h], denom="add", stats=stats, **options)
    torch.testing.assert_close(
        p, _f32([0.395, -0.2125, 0.099, -0.1, 1.9780556], backend), rtol=1e-6, atol=1e-9
    )
    assert stats[0].item() == 2
    assert stats[5].item() == 5
    sophia_step_([p], [g], [m], [h], denom="add", **options)
    expected = _f32([0.29105002, -0.14160001, 0.09801, -0.199, 1.9544543], backend)
    torch.testing.assert_close(p, expected, rtol=1e-6, atol=1e-9)
    expected = _f32([6.8775e-5, -1.3755e-3, 0, 3.43875e-7, 6.8775e-6], backend)
    torch.testing.assert_close(m, expected, rtol=1e-6, atol=1e-12)


def test_the_published_soul_optimizer_over_two_steps(backend: Any) -> None:
    """Hessian from every gradient, momentum averaged twice (arXiv 2404.18239's code), relative 1e-6."""
    p, m, h = (
        _f32(START, backend),
        torch.zeros(5, device=backend.device),
        torch.zeros(5, device=backend.device),
    )
    g = _f32([1e-3, -2e-2, 0, 5e-6, 0.5], backend)
    options = {"lr": 0.1, "beta1": 0.9**2, "denom_scale": 5120 * 0.04, "weight_decay": 0.1, "eps": 1e-15}
    sophia_step_([p], [g], [m], [h], denom="add", hessian_beta2=0.95, **options)
    expected = _f32([0.395, -0.15472656, 0.099, -0.1, 1.976289], backend)
    torch.testing.assert_close(p, expected, rtol=1e-6, atol=1e-9)
    sophia_step_([p], [g], [m], [h], denom="add", hessian_beta2=0.95, **options)
    expected = _f32([0.29105002, -0.06706653, 0.09801, -0.199, 1.9530816], backend)
    torch.testing.assert_close(p, expected, rtol=1e-6, atol=1e-9)
    expected = _f32([3.439e-4, -6.878e-3, 0, 1.7195e-6, 0.17195], backend)
    torch.testing.assert_close(m, expected, rtol=1e-6, atol=1e-12)
    expected = _f32([9.75e-8, 3.9e-5, 0, 2.4375e-12, 2.4375e-2], backend)
    torch.testing.assert_close(h, expected, rtol=1e-6, atol=1e-18)


def test_a_hundred_steps_of_the_authors_expression(backend: Any) -> None:
    """With decay and refreshes, against the published SophiaG written with torch's own operations."""
    generator = torch.Generator().manual_seed(3)
    shapes = [(33, 7), (129,)]
    p = [torch.randn(s, generator=generator).to(backend.device) for s in shapes]
    m, h = _zeros(*p), _zeros(*p)
    q, mq, hq = [t.clone() for t in p], _zeros(*p), _zeros(*p)
    lr, b1, b2, rho, bs, wd = 1e-3, 0.965, 0.99, 0.04, 480, 0.1
    steps = 100 if not backend.interpreted else 12
    for step in range(steps):
        g = [torch.randn(s, generator=generator).to(backend.device) * 1e-2 for s in shapes]
        sophia_step_(
            p, g, m, h, lr=lr, beta1=b1, denom_scale=rho * bs, weight_decay=wd, eps=1e-15, denom="add",
            maximize=True,
        )  # fmt: skip
        for x, grad, a, b in zip(q, g, mq, hq, strict=True):
            x.mul_(1 - lr * wd)
            a.mul_(b1).add_(-grad, alpha=1 - b1)
            ratio = (a.abs() / (rho * bs * b + 1e-15)).clamp(None, 1)
            x.addcmul_(a.sign(), ratio, value=-lr)
        if step % 10 == 9:
            sophia_hessian_(h, g, beta2=b2)
            for grad, b in zip(g, hq, strict=True):
                b.mul_(b2).addcmul_(grad, grad, value=1 - b2)
    for a, b in zip([*p, *m, *h], [*q, *mq, *hq], strict=True):
        torch.testing.assert_close(a, b, rtol=3e-5, atol=1e-6)


# -- edges ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("denom", ["max", "add"])
def test_edges_of_the_denominator(backend: Any, denom: str) -> None:
    still = _one(backend, 1.0, 0.0, 0.0, 0.0, denom=denom)
    assert still == (1.0, 0.0, 0.0)
    signed = [_one(backend, 1.0, s * 1e-3, 0.0, 0.0, denom=denom)[0] for s in (1, -1)]
    assert signed == pytest.approx([0.9, 1.1])
    below_zero = [_one(backend, 1.0, s * 1e-3, 0.0, -5.0, denom=denom)[0] for s in (1, -1)]
    assert below_zero == pytest.approx([0.9, 1.1])
    inside = _one(backend, 1.0, 2e-3, 0.0, 1.0, denom=denom, denom_scale=4e-3)[0]
    assert inside == pytest.approx(1.0 - 0.1 * 0.25)


def test_nonfinite_gradients(backend: Any) -> None:
    inf, nan = float("inf"), float("nan")
    p, m, _ = _one(backend, 1.0, inf, 0.25, 1.0)
    assert p == pytest.approx(0.9)
    assert m == inf
    p, m, _ = _one(backend, 1.0, nan, 0.25, 1.0)
    assert p != p
    assert m != m
    for bad in (inf, -inf, nan):
        kept = _one(
            backend, 1.0, bad, 0.25, 2.0, nonfinite="skip_element", weight_decay=0.5, hessian_beta2=0.5
        )
        assert kept == (1.0, 0.25, 2.0)


def test_nonfinite_error_writes_nothing(backend: Any) -> None:
    p, g, m, h = (_f32([1.0, 2.0], backend) for _ in range(4))
    g[1] = float("nan")
    with pytest.raises(RuntimeError, match=r"grads\[0\]: expected finite gradients, got 1"):
        sophia_step_([p], [g], [m], [h], lr=0.1, beta1=0.5, nonfinite="error")
    for t in (p, m, h):
        assert t.tolist() == [1.0, 2.0]
    g[1] = 1.0
    sophia_step_([p], [g], [m], [h], lr=0.1, beta1=0.5, nonfinite="error")
    assert p[0].item() < 1.0


def test_statistics(backend: Any) -> None:
    stats = torch.full((6,), 100.0, dtype=torch.float64, device=backend.device)
    p, m = _f32([1.0] * 6, backend), _f32([0.0] * 6, backend)
    g = _f32([1e-3, 0.0, float("nan"), 1.0, -1e-3, 1e-12], backend)
    h = _f32([1.0, 1.0, 1.0, 0.1, 0.0, 1.0], backend)
    sophia_step_([p], [g], [m], [h], lr=0.1, beta1=0.5, nonfinite="skip_element", stats=stats)
    # m: 5e-4 (win), 0 (win), skipped, .5 (clipped), -5e-4 (clipped), 5e-13 (win, moves nothing)
    got = (stats - 100.0).tolist()
    assert got[0] == 3
    assert got[1] == 4
    assert got[2] == pytest.approx(2.0 + 2.5e-7, rel=1e-9)
    assert got[3:] == [1, 3, 6]


def test_found_inf_and_inv_scale(backend: Any) -> None:
    before = [_f32(v, backend) for v in ([1.0, 2.0], [0.5, 0.5], [0.25, 0.5])]
    stats = torch.zeros(6, dtype=torch.float64, device=backend.device)
    g = _f32([64.0, float("inf")], backend)
    for flag in (1.0, 0.0):
        p, m, h = (t.clone() for t in before)
        found, inverse = _f32([flag], backend), _f32([1 / 64], backend)
        options = {"lr": 0.1, "beta1": 0.5, "hessian_beta2": 0.5, "inv_scale": inverse, "found_inf": found}
        sophia_step_([p], [g], [m], [h], stats=stats, nonfinite="error" if flag else "propagate", **options)
        sophia_hessian_([h], [g], beta2=0.5, inv_scale=inverse, found_inf=found)
        if flag:
            for t, was in zip((p, m, h), before, strict=True):
                assert torch.equal(t, was)
            assert stats.tolist() == [0] * 6
    assert m[0].item() == 0.75
    assert h[0].item() == 0.5 * (0.5 * 0.25 + 0.5) + 0.5
    assert stats[3].item() == 1


def test_sign_mode_needs_no_hessian(backend: Any) -> None:
    p, m = _f32([1.0, 1.0, 1.0], backend), torch.zeros(3, device=backend.device)
    sophia_step_([p], [_f32([3.0, -1e-9, 0.0], backend)], [m], None, lr=0.25, beta1=0.0)
    assert p.tolist() == [0.75, 1.25, 1.0]


def test_missing_gradients_are_left_out(backend: Any) -> None:
    p, m, h = ([_f32([1.0], backend) for _ in range(3)] for _ in range(3))
    g = [None, _f32([1.0], backend), None]
    sophia_step_(p, g, m, h, lr=0.1, beta1=0.5, rounding="stochastic")
    assert [t.item() != 1.0 for t in p] == [False, True, False]
    sophia_hessian_(h, g, beta2=0.5, scale=3.0)
    assert [t.item() for t in h] == [1.0, 2.0, 1.0]
    sophia_step_(p, [None] * 3, m, h, lr=0.1, beta1=0.5)


def test_empty_lists_and_tensors(backend: Any) -> None:
    sophia_step_([], [], [], [], lr=0.1, beta1=0.5)
    sophia_hessian_([], [], beta2=0.5)
    empty = [torch.zeros(0, 3, device=backend.device) for _ in range(4)]
    stats = torch.zeros(6, dtype=torch.float64, device=backend.device)
    sophia_step_([empty[0]], [empty[1]], [empty[2]], [empty[3]], lr=0.1, beta1=0.5, stats=stats)
    sophia_hessian_([empty[0]], [empty[1]], beta2=0.5)
    assert stats.tolist() == [0] * 6


# -- Hutchinson ----------------------------------------------------------------------------------------------


def test_hutchinson_on_a_quadratic(backend: Any) -> None:
    """0.5 p^T A p, A = [[2, -1], [-1, 3]]: signs give (1, 2) or (3, 4), and the mean is the diagonal."""
    a = torch.tensor([[2.0, -1.0], [-1.0, 3.0]], device=backend.device)
    total = torch.zeros(2, device=backend.device)
    seen = []
    probes = 200 if not backend.interpreted else 25
    for k in range(probes):
        (u,) = hutchinson_probe([total], seed=11, index=k)
        assert set(u.tolist()) <= {-1.0, 1.0}
        one = torch.zeros(2, device=backend.device)
        hutchinson_accumulate_([one], [u], [a @ u])
        seen.append(tuple(one.tolist()))
        hutchinson_accumulate_([total], [u], [a @ u], 1 / probes)
    assert set(seen) == {(1.0, 2.0), (3.0, 4.0)}
    assert abs(seen.count((1.0, 2.0)) - probes / 2) < 4 * (probes / 4) ** 0.5
    torch.testing.assert_close(total, _f32([2.0, 3.0], backend), rtol=0, atol=4 / probes**0.5)


def test_hvp_source_may_make_h_negative(backend: Any) -> None:
    h = _f32([1.0, 1.0], backend)
    u, hvp = _f32([1.0, -1.0], backend), _f32([4.0, 8.0], backend)
    sophia_hessian_([h], [hvp], beta2=0.5, scale=2.0, source="hvp", probes=[u])
    assert h.tolist() == [0.5 + 4.0, 0.5 - 8.0]


def test_probes_do_not_depend_on_how_the_list_is_cut(backend: Any) -> None:
    like = [torch.zeros(n, device=backend.device) for n in (130, 7)]
    whole = hutchinson_probe(like, seed=5, index=2, dist="gaussian")
    part = hutchinson_probe(like[1:], seed=5, index=2, dist="gaussian", streams=[1])
    assert torch.equal(whole[1], part[0])
    assert not torch.equal(whole[0][:7], whole[1])
