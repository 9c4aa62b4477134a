"""Simplex projection, Adam on it, sampling, nearest tokens, sign steps: every backend against float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from tenfold.kernels.attack import attack_reference
from torch import Tensor

import tenfold
from tenfold import _native
from tenfold._backend import OPS
from tenfold.ops import (
    inverse_norms,
    nearest_token,
    sample_rows,
    sign_step_,
    simplex_project,
    ste_adam_simplex_,
)

TESTED = {
    "sign": "sign_step_",
    "adam": "ste_adam_simplex_",
    "projection": "simplex_project",
    "step": "ste_adam_simplex_",
    "tables": "ste_adam_simplex_",
    "banned": "ste_adam_simplex_",
    "samples": "sample_rows",
    "nearest": "nearest_token",
}
"""What a test is about, by the first of these words in its name."""


@pytest.fixture
def backend(backend: Any, request: pytest.FixtureRequest) -> Any:
    words = request.function.__name__.split("_")
    op = next(op for word, op in TESTED.items() if {word, word + "s"} & set(words))
    if backend.name not in OPS[op]:
        pytest.skip(f"{op} has no {backend.name} kernel")
    return backend


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def oracle(p: Tensor, radius: float = 1.0) -> Tensor:
    """Held, Wolfe and Crowder's sort, in float64."""
    x = p.cpu().double()
    ordered = x.sort(dim=1, descending=True).values
    sums = ordered.cumsum(1) - radius
    support = (ordered - sums / torch.arange(1, x.shape[1] + 1) > 0).sum(1, keepdim=True)
    return (x - sums.gather(1, support - 1) / support).clamp_min(0)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ([1, 1, 0, 0, 0], [0.5, 0.5, 0, 0, 0]),
        ([0.5, 0.5, 0.5, -1, -1], [1 / 3, 1 / 3, 1 / 3, 0, 0]),
        ([7.0] * 11, [1 / 11] * 11),
        ([-math.inf, 0.2, 0.3], [0, 0.45, 0.55]),
        ([-math.inf, -9.0, -math.inf, -8.5], [0, 0.25, 0, 0.75]),
        ([3.0], [1.0]),
        ([1e30, 0.0], [1.0, 0.0]),
    ],
)
def test_projection_fixtures(backend, row, expected):
    for dtype in (torch.float32, torch.float64):
        found = simplex_project(torch.tensor([row], dtype=dtype, device=backend.device)).cpu()
        if row[0] == 1e30:  # the largest number alone; its own rounding is larger than 1
            assert found[0, 1] == 0
            continue
        torch.testing.assert_close(found, torch.tensor([expected], dtype=dtype), atol=2e-7, rtol=0)


@pytest.mark.parametrize("kind", ["early", "late", "few", "far"])
def test_projection_of_a_vocabulary(backend, kind):
    size = 4001 if backend.interpreted else 49408
    p = torch.full((3, size), 1 / size) + 0.01 * normal(3, size).sign()
    if kind == "late":
        p = 0.01 * normal(3, size)
    if kind == "few":
        p = oracle(0.02 * normal(3, size)).float() + 1e-4 * normal(3, size, seed=1)
    if kind == "far":
        p = 30 * normal(3, size) - 200
    found, exact = simplex_project(p.to(backend.device)).cpu(), oracle(p)
    allowed = 2e-5 if kind == "far" else 2e-7  # float32 has steps of 1.5e-5 at 200
    assert float((found.double() - exact).abs().max()) <= allowed
    assert float((found.double().sum(1) - 1).abs().max()) <= 3e-5
    again = simplex_project(found.to(backend.device)).cpu()
    assert float((again - found).abs().max()) <= 1e-6
    if kind != "early":  # no ties: the support is the same
        assert bool(((found > 0) == (exact > 0)).all())


@pytest.mark.parametrize("columns", [1, 2, 15, 16, 17, 33, 1023, 1025, 2100])
def test_projection_of_odd_sizes(backend, columns):
    p = normal(5, columns, seed=columns).double()
    for radius in (1.0, 0.25, 40.0):
        found = simplex_project(p.to(backend.device), radius).cpu()
        torch.testing.assert_close(found, oracle(p, radius), atol=1e-12, rtol=1e-12)


def test_projection_gradient_and_layouts(backend):
    p = (0.3 * normal(3, 7).double()).to(backend.device).requires_grad_()
    assert torch.autograd.gradcheck(simplex_project, (p,))
    wide = normal(7, 40).to(backend.device)
    torch.testing.assert_close(simplex_project(wide.t()), simplex_project(wide.t().contiguous()))
    assert simplex_project(wide[:0]).shape == (0, 40)
    if backend.device.type == "cpu":
        assert isinstance(simplex_project(np.ones((1, 4), np.float32)), np.ndarray)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_projection_refuses_what_has_no_answer(backend, bad):
    p = torch.zeros(3, 20, device=backend.device)
    p[1, 18] = bad
    if backend.device.type == "cpu":
        with pytest.raises(ValueError, match=r"p\[1\]: expected numbers below infinity"):
            simplex_project(p)
        with pytest.raises(ValueError, match=r"p\[0\]: expected numbers"):
            simplex_project(torch.full((1, 3), -math.inf))
    else:
        assert bool(simplex_project(p)[1].isnan().all())
    with pytest.raises(ValueError, match="p: expected a matrix"):
        simplex_project(torch.zeros(2, 0))
    with pytest.raises(ValueError, match="radius: expected"):
        simplex_project(torch.zeros(1, 2), 0.0)
    with pytest.raises(TypeError, match="p: expected dtype"):
        simplex_project(torch.zeros(1, 2).half())


@pytest.mark.parametrize(("rows", "weight_decay"), [(3, 0.0), (3, 0.1), (13, 0.1), (40, 0.1)])
def test_two_hundred_steps_are_adam_and_a_projection(backend, rows, weight_decay):
    size, width, steps = 300, 21, 5 if backend.interpreted else 200
    table = normal(size, width, seed=1)
    start = torch.full((rows, size), 1 / size)
    known = torch.nn.Parameter(start.clone())
    adam = torch.optim.Adam([known], lr=0.01, weight_decay=weight_decay)
    p, m, v = (x.to(backend.device) for x in (start, torch.zeros(rows, size), torch.zeros(rows, size)))
    worst = 0.0
    for step in range(1, steps + 1):
        gradient = 0.3 * normal(rows, width, seed=step)
        ste_adam_simplex_(
            p, m, v, gradient.to(backend.device), table.to(backend.device), lr=0.01,
            weight_decay=weight_decay, step=step,
        )  # fmt: skip
        known.grad = (gradient @ table.t()).clamp(-1, 1)
        adam.step()
        known.data = oracle(known.data).float()
        worst = max(worst, float((p.cpu() - known.data).abs().max()))
    assert worst <= 5e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("rows", [2, 40])
def test_half_precision_tables_do_not_lose_small_gradients(backend, dtype, rows):
    table, gradient = normal(70, 19, seed=1).to(dtype), 1e-7 * normal(rows, 19, seed=2)
    found = []
    for words in (table, table.float()):
        p, m, v = torch.full((rows, 70), 1 / 70), torch.zeros(rows, 70), torch.zeros(rows, 70)
        states = [x.to(backend.device) for x in (p, m, v)]
        ste_adam_simplex_(*states, gradient.to(backend.device), words.to(backend.device), lr=0.01, step=1)
        found.append(states[1].cpu())
    assert float(found[1].abs().max()) > 0
    torch.testing.assert_close(found[0], found[1], rtol=5e-2, atol=1e-9 if dtype == torch.bfloat16 else 1e-10)


def test_banned_tokens_stay_at_zero(backend):
    table, banned = normal(20, 4).to(backend.device), torch.zeros(20, dtype=torch.bool)
    banned[[3, 7]] = True
    p, m, v = (torch.full((2, 20), x, device=backend.device) for x in (0.05, 0.0, 0.0))
    for step in range(1, 4):
        gradient = normal(2, 4, seed=step).to(backend.device)
        ste_adam_simplex_(p, m, v, gradient, table, lr=0.1, step=step, banned=banned.to(backend.device))
    assert bool((p[:, [3, 7]] == 0).all())
    torch.testing.assert_close(p.sum(1).cpu(), torch.ones(2))


def test_a_step_with_wrong_arguments_writes_nothing(backend):
    p, m, v = (torch.full((2, 20), x, device=backend.device) for x in (0.05, 0.0, 0.0))
    table, gradient = normal(20, 4).to(backend.device), normal(2, 4).to(backend.device)
    wrong = [
        ({"table": table[:19]}, ValueError, r"table: expected shape \[20, 4\], got \[19, 4\]"),
        ({"grad_embeds": gradient[:1]}, ValueError, r"grad_embeds: expected shape \[2, 4\]"),
        ({"m": m[:1]}, ValueError, r"m: expected shape \[2, 20\]"),
        ({"v": p}, ValueError, "expected every tensor once"),
        ({"p": p.double()}, TypeError, "p: expected dtype float32"),
        ({"step": 0}, ValueError, "step: expected"),
        ({"betas": (0.9, 1.0)}, ValueError, "betas: expected"),
        ({"banned": torch.zeros(3, dtype=torch.bool, device=p.device)}, ValueError, "banned: expected shape"),
        ({"lr": -1.0}, ValueError, "lr: expected"),
    ]
    if backend.device.type == "cpu":
        bad = gradient.clone()
        bad[1, 2] = math.nan
        wrong.append(({"grad_embeds": bad}, ValueError, r"grad_embeds\[1\]: expected finite"))
    for change, kind, message in wrong:
        given = {"p": p, "m": m, "v": v, "grad_embeds": gradient, "table": table, "lr": 0.1, "step": 1}
        with pytest.raises(kind, match=message):
            ste_adam_simplex_(**(given | change))
    assert bool((p == 0.05).all() and (m == 0).all() and (v == 0).all())


def test_samples_are_the_inverse_of_the_running_sum(backend):
    p = torch.tensor([[0.0, 0.25, 0.0, 0.75, 0.0]], device=backend.device).expand(6, -1)
    u = torch.tensor([0.0, 0.2499, 0.25, 0.5, 0.999999, 1 - 2**-24], device=backend.device)
    assert sample_rows(p, u).tolist() == [1, 1, 3, 3, 3, 3]
    for size in (1, 7, 255, 256, 257, 1000, 5000):
        values = normal(6, size, seed=size).clamp_min(0) + (torch.arange(size) == size // 2)
        points = torch.rand(6, generator=torch.Generator().manual_seed(size), dtype=torch.float64)
        points[0], points[1] = 0, 1 - 2.0**-53
        found = sample_rows(values.to(backend.device), points.to(backend.device)).cpu()
        with tenfold.use_backend("reference"):
            assert torch.equal(found, sample_rows(values, points))
        assert bool((values.gather(1, found[:, None]) > 0).all())


def test_samples_refuse_what_is_no_distribution(backend):
    one = torch.tensor([[0.5, 0.5], [0.0, 0.0]], device=backend.device)
    if backend.device.type == "cpu":
        with pytest.raises(ValueError, match=r"p\[1\]: expected a row with a positive, finite sum"):
            sample_rows(one, torch.tensor([0.1, 0.1]))
        with pytest.raises(ValueError, match="u: expected 2 numbers"):
            sample_rows(one, torch.tensor([0.5, 1.0]))
    with pytest.raises(ValueError, match="u: expected 2 numbers"):
        sample_rows(one, torch.zeros(1, device=backend.device))


@pytest.mark.parametrize("rows", [1, 3, 8, 30])
@pytest.mark.parametrize("metric", ["cos", "l2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_nearest_token_is_the_float64_argmax(backend, rows, metric, dtype):
    size, width = (300, 24) if backend.interpreted else (5000, 43)
    table, q = normal(size, width, seed=4).to(dtype), normal(rows, width, seed=5)
    table[170] = table[40]  # ties go to the lower id
    table[5] = 0
    table[200] = 2 * table[100]
    q[0] = table[170]
    q[-1] = table[200] if rows > 1 else q[-1]
    kept = inverse_norms(table) if metric == "cos" else None
    words, wide = table.double(), q.double()
    if metric == "cos":
        unit = [
            torch.where(x.any(1, keepdim=True), x / x.norm(dim=1, keepdim=True), 0.0) for x in (wide, words)
        ]
        exact = unit[0] @ unit[1].t()
    else:
        exact = -0.5 * torch.cdist(wide, words).square()
    for norms in {None, kept}:
        ids, scores = nearest_token(
            q.to(backend.device), table.to(backend.device),
            None if norms is None else norms.to(backend.device), metric=metric,
        )  # fmt: skip
        assert int(ids[0]) == 40
        if rows > 1 and metric == "cos":
            assert int(ids[-1]) == 100
        best = exact.amax(1)
        torch.testing.assert_close(exact.gather(1, ids.cpu()[:, None])[:, 0], best, atol=1e-11, rtol=1e-12)
        torch.testing.assert_close(scores.cpu().double(), best, atol=2e-5, rtol=1e-5)


def test_nearest_token_of_masks_zeros_and_words_alike(backend):
    table = torch.eye(3, device=backend.device)
    mask = torch.tensor([False, True, True], device=backend.device)
    q = torch.tensor([[1.0, 0.1, 0.0]], device=backend.device)
    for rows in (1, 20):
        assert nearest_token(q.expand(rows, -1), table, mask=mask)[0].tolist() == [1] * rows
        ids, scores = nearest_token(torch.zeros(rows, 3, device=backend.device), table)
        assert (ids.tolist(), scores.tolist()) == ([0] * rows, [0.0] * rows)
        same = torch.ones(500, 3, device=backend.device)
        same[7:, 0] += 1e-4  # within float32's rounding of a cosine of 1
        exact = (same.double() / same.double().norm(dim=1, keepdim=True)) @ torch.tensor(
            [1.0, 1, 1.0002]
        ).double()
        found = nearest_token(torch.tensor([[1.0, 1, 1.0002]]).expand(rows, -1).to(backend.device), same)[0]
        assert found.tolist() == [int(exact.argmax())] * rows
    assert nearest_token(torch.zeros(0, 3, device=backend.device), table)[0].shape == (0,)


def test_nearest_token_refuses(backend):
    table = torch.eye(3, device=backend.device)
    q = torch.ones(2, 3, device=backend.device)
    if backend.device.type == "cpu":
        with pytest.raises(ValueError, match="at least one token"):
            nearest_token(q, table, mask=torch.zeros(3, dtype=torch.bool))
        bad = q.clone()
        bad[1, 0] = math.nan
        with pytest.raises(ValueError, match=r"q\[1\]: expected finite"):
            nearest_token(bad, table)
    with pytest.raises(ValueError, match="metric"):
        nearest_token(q, table, metric="dot")
    with pytest.raises(ValueError, match="table: expected rows of 3 numbers"):
        nearest_token(q, table[:, :2].contiguous())
    with pytest.raises(ValueError, match="inv_norm: expected 3 numbers and metric 'cos'"):
        nearest_token(q, table, torch.ones(3, device=backend.device), metric="l2")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_sign_steps(backend, dtype, norm):
    origin, delta, grad = (normal(3, 5, 7, seed=s).to(dtype) for s in range(3))
    grad[0, 0, :3] = 0
    for eps in (None, 0.25, 100.0):
        for centre in (None, origin) if eps else (None,):
            found, expected = delta.to(backend.device), delta.double()
            sign_step_(
                found, grad.to(backend.device), lr=0.125, eps=eps, norm=norm,
                origin=None if centre is None else centre.to(backend.device),
            )  # fmt: skip
            attack_reference.sign_step_(
                expected, grad.double(), 0.125, eps, norm, None if centre is None else centre.double()
            )
            step = {torch.float32: 1e-6, torch.float64: 1e-12, torch.bfloat16: 2**-8}[dtype]
            torch.testing.assert_close(found.cpu().double(), expected, atol=step, rtol=step)
            if eps is None:
                assert torch.equal(found.cpu()[0, 0, :3], delta[0, 0, :3])
    if backend.device.type == "cpu":
        before = delta.clone()
        grad[1, 1, 1] = math.nan
        with pytest.raises(ValueError, match="grad: expected numbers, got NaN"):
            sign_step_(delta, grad, lr=0.1)
        assert torch.equal(delta, before)
    with pytest.raises(ValueError, match="eps: expected a radius"):
        sign_step_(delta, delta.clone(), lr=0.1, origin=origin)


def test_threads_change_nothing(set_threads, isa):
    p, u = 0.01 * normal(5, 5001), torch.full((5,), 0.5)
    table, q = normal(5001, 30, seed=1), normal(5, 30, seed=2)
    found = []
    for threads in (1, 2, 3):
        set_threads(threads)
        states = [p.clone().clamp_min(0), torch.zeros_like(p), torch.zeros_like(p)]
        ste_adam_simplex_(*states, q, table, lr=0.01, step=1)
        ids, scores = nearest_token(q, table)
        found.append([*states, simplex_project(p), ids, scores, sample_rows(p.clamp_min(0), u)])
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))
    with tenfold.use_backend("reference"):
        assert torch.equal(found[0][4], nearest_token(q, table)[0])


def test_instruction_sets_project_draw_and_choose_alike():
    p, u = 0.01 * normal(5, 5001), torch.full((5,), 0.5)
    table, q = normal(5001, 30, seed=1), normal(5, 30, seed=2)
    found, before = [], _native.cpu.isa_used()
    try:
        for name in _native.cpu.isa_available():
            _native.cpu.use_isa(name)
            drawn = sample_rows(p.clamp_min(0), u)
            found.append([simplex_project(p), drawn, nearest_token(q, table)[0]])
    finally:
        _native.cpu.use_isa(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_a_radius_beyond_the_arithmetic_is_refused():
    with pytest.raises(ValueError, match=r"radius: expected a coefficient that is finite in float32"):
        simplex_project(torch.rand(3, 3), 1e300)
    wide = simplex_project(torch.rand(3, 3, dtype=torch.float64), 1e300)
    torch.testing.assert_close(wide.sum(1), torch.full((3,), 1e300, dtype=torch.float64))


def test_nearest_token_needs_no_memory(peak_bytes):
    table, q = normal(20_000, 256), normal(64, 256, seed=1)
    norms = inverse_norms(table)
    nearest_token(q, table, norms)
    for rows in (5, 64):
        assert peak_bytes(lambda rows=rows: nearest_token(q[:rows], table, norms)) <= 1.2 * 2**20


def test_opcheck():
    p, table, q = normal(3, 20).requires_grad_(), normal(20, 4), normal(3, 4)
    check = torch.library.opcheck
    check(torch.ops.tenfold.simplex_project, (p, 1.0))
    p = simplex_project(p.detach())
    check(torch.ops.tenfold.sample_rows, (p, torch.full((3,), 0.5).double()))
    for rows in (3, 12):
        check(torch.ops.tenfold.nearest_token, (normal(rows, 4), table, None, "cos", None))
    zero = torch.zeros(3, 20)
    check(
        torch.ops.tenfold.ste_adam_simplex_,
        (p, zero, zero.clone(), q, table, 0.01, 0.9, 0.999, 1e-8, 0.1, 1, None),
    )
    check(torch.ops.tenfold.sign_step_, (q, q.clone(), 0.1, 0.2, "l2", None))


def test_compiles_as_one_graph():
    def step(p: Tensor, table: Tensor, q: Tensor) -> Tensor:
        y = simplex_project(p)
        ids, scores = nearest_token(q, table)
        return y.square().sum() + scores.sum() + ids.sum() + sample_rows(y, torch.full((3,), 0.5)).sum()

    given = (normal(3, 20), normal(20, 4), normal(3, 4))
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    assert float(compiled(*given)) == pytest.approx(float(step(*given)), rel=1e-6)


def test_projection_of_what_is_projected(backend):
    """Numbers within rounding of the threshold: its rise must end."""
    for seed in range(3 if backend.interpreted else 60):
        p = normal(8, 64, seed=seed).double().to(backend.device)
        for _ in range(3):
            p = simplex_project(p)
        torch.testing.assert_close(p.sum(1).cpu(), torch.ones(8).double(), atol=1e-12, rtol=0)


@pytest.mark.parametrize("rows", [1, 11])
def test_nearest_where_float32_cannot_tell(backend, rows):
    """The squares of both are large against their distance."""
    q = normal(rows, 768, seed=1)
    table = torch.cat([x + 1e-3 * normal(200, 768, seed=2 + i) for i, x in enumerate(q)])
    exact = -0.5 * (q.double()[:, None] - table.double()).square().sum(2)
    ids, scores = nearest_token(q.to(backend.device), table.to(backend.device), metric="l2")
    assert torch.equal(ids.cpu(), exact.argmax(1))
    torch.testing.assert_close(scores.cpu(), exact.amax(1).float(), rtol=1e-5, atol=0)


def test_nearest_passes_words_that_are_no_numbers(backend):
    q, table = normal(3, 8), normal(40, 8, seed=1)
    table[0], table[7] = math.nan, math.nan
    for metric in ("cos", "l2"):
        want = nearest_token(q[:, :], table[[*range(1, 7), *range(8, 40)]], metric=metric)[1]
        ids, scores = nearest_token(q.to(backend.device), table.to(backend.device), metric=metric)
        torch.testing.assert_close(scores.cpu(), want, rtol=1e-6, atol=1e-6)
        assert not {0, 7} & set(ids.tolist())


def test_adam_and_nearest_take_no_part_in_autocast(backend):
    table, q = normal(60, 32, seed=1).to(backend.device), normal(4, 32).to(backend.device)
    states = [
        torch.full((4, 60), 1 / 60, device=backend.device),
        *torch.zeros(2, 4, 60, device=backend.device),
    ]
    runs = []
    for on in (False, True):
        p, m, v = (t.clone() for t in states)
        with torch.autocast(backend.device.type, torch.bfloat16, enabled=on):
            ste_adam_simplex_(p, m, v, 0.1 * q, table, lr=0.01, step=1)
            found = nearest_token(q, table) if backend.name in OPS["nearest_token"] else ()
        runs.append((p, m, v, *found))
    for a, b in zip(*runs, strict=True):
        assert torch.equal(a, b)
