"""Influence unlearning: solvers against dense algebra, and what a step does to a model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))

from sophia_cases import same_bits, weights

from tenfold.optim import influence
from tenfold.optim.influence import cg, diag, influence_unlearn, lissa, woodfisher

SIZE, SAMPLES = 6, 40


def sample(seed: int = 0, damp: float = 1.0) -> tuple[list[list[Tensor]], list[Tensor], Tensor, Tensor]:
    """Gradients and v as lists of a [2, 2] and a [2], the Fisher matrix and the dense solution."""
    generator = torch.Generator().manual_seed(seed)
    g = torch.randn(SAMPLES, SIZE, generator=generator, dtype=torch.float64)
    v = torch.randn(SIZE, generator=generator, dtype=torch.float64)
    fisher = g.T @ g / SAMPLES
    x = torch.linalg.solve(fisher + damp * torch.eye(SIZE, dtype=torch.float64), v)
    return [parts(row) for row in g], parts(v), fisher, x


def parts(flat: Tensor) -> list[Tensor]:
    return [flat[:4].reshape(2, 2), flat[4:]]


def joined(x: list[Tensor]) -> Tensor:
    return torch.cat([t.reshape(-1) for t in x])


def error(x: list[Tensor], wanted: Tensor) -> float:
    return float((joined(x) - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("form", ["gram", "stream"])
@pytest.mark.parametrize("damp", [1.0, 1e-3, 10.0])
def test_woodfisher_is_the_dense_solution(form: str, damp: float) -> None:
    gradients, v, _, wanted = sample(damp=damp)
    solution = woodfisher(gradients, v, damp=damp, form=form)
    assert error(solution.x, wanted) < 1e-8
    assert solution.residual < 1e-8
    assert [t.shape for t in solution.x] == [t.shape for t in v]
    again = woodfisher(lambda: iter(gradients), v, damp=damp, form=form)
    assert same_bits(solution.x, again.x)


def test_the_recursion_in_circulation_only_scales_the_first_gradient() -> None:
    gradients, v, _, wanted = sample()
    x = joined(woodfisher(gradients, v, legacy=True).x)
    assert error(parts(x), wanted) == pytest.approx(1.18, abs=0.01)
    change, first = x - joined(v), joined(gradients[0])
    assert abs(float(change @ first / (change.norm() * first.norm()))) == pytest.approx(1.0, abs=1e-12)


def test_woodfisher_in_other_dtypes() -> None:
    gradients, v, _, wanted = sample()
    single = [[t.float() for t in row] for row in gradients], [t.float() for t in v]
    assert error([t.double() for t in woodfisher(*single).x], wanted) < 1e-5
    kept = woodfisher(*single, store=torch.bfloat16)
    assert 1e-5 < error([t.double() for t in kept.x], wanted) < 0.02


@pytest.mark.parametrize("damp", [0.5, 1.0, 20.0])
def test_all_solvers_share_one_damped_system(damp: float) -> None:
    _, v, fisher, wanted = sample(damp=damp)

    def product(x: list[Tensor]) -> list[Tensor]:
        return parts(fisher @ joined(x))

    found = cg(product, v, damp=damp, rtol=1e-10)
    assert error(found.x, wanted) < 1e-8
    assert found.converged
    assert found.iterations <= SIZE + 1
    assert found.residual <= 1e-10
    series = lissa(product, v, damp=damp, scale=20.0, rtol=1e-9, depth=5000)
    assert error(series.x, wanted) < 1e-6
    assert series.converged
    h = parts(fisher.diagonal())
    only = diag(v, h, damp=damp)
    assert torch.allclose(joined(only.x), joined(v) / (fisher.diagonal() + damp))


def test_conjugate_gradients_stop_at_negative_curvature() -> None:
    matrix = torch.diag(torch.tensor([3.0, -2.0, 1.0], dtype=torch.float64))
    v = [torch.ones(3, dtype=torch.float64)]
    found = cg(lambda x: [matrix @ x[0]], v, damp=0.5)
    assert not found.converged
    assert found.x[0].isfinite().all()
    assert cg(lambda x: [matrix @ x[0]], v, damp=2.5).converged
    assert not cg(lambda x: [matrix.abs() @ x[0]], v, damp=0.0, maxiter=1).converged


def test_nothing_to_solve() -> None:
    zero = [torch.zeros(3)]
    assert cg(lambda x: x, zero).x[0].tolist() == [0, 0, 0]
    assert woodfisher([[torch.ones(3)]], zero).residual == 0


def test_bad_input() -> None:
    gradients, v, fisher, _ = sample()

    def product(x: list[Tensor]) -> list[Tensor]:
        return parts(fisher @ joined(x))

    with pytest.raises(ValueError, match="damp: expected a finite number > 0"):
        woodfisher(gradients, v, damp=0.0)
    with pytest.raises(ValueError, match="gradients: expected at least one, got none"):
        woodfisher([], v)
    with pytest.raises(ValueError, match=r"gradients\[1\]\[0\]: expected shape \(2, 2\) as v\[0\]"):
        woodfisher([gradients[0], gradients[1][::-1]], v)
    with pytest.raises(ValueError, match="damp: expected 1 for the legacy recursion"):
        woodfisher(gradients, v, damp=2.0, legacy=True)
    with pytest.raises(ValueError, match="form: expected one of 'gram', 'stream'"):
        woodfisher(gradients, v, form="dense")
    with pytest.raises(TypeError, match="v: expected a list of tensors"):
        cg(product, v[0])
    with pytest.raises(ValueError, match="hvp: expected 2 entries"):
        cg(lambda x: x[:1], v)
    with pytest.raises(RuntimeError, match="scale: expected more than half the largest eigenvalue"):
        lissa(product, v, scale=0.1)
    with pytest.raises(ValueError, match=r"hessian\[0\]: expected shape"):
        diag(v, v[::-1])


# -- models -----------------------------------------------------------------------------------------------


def trained() -> tuple[nn.Module, list[Any], list[Any]]:
    """Logistic regression at the minimum of its full loss (with a ridge in the data), and its two sets."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(60, 4, generator=generator, dtype=torch.float64)
    noise = 1.5 * torch.randn(60, generator=generator, dtype=torch.float64)
    y = (x[:, 0] + noise > 0).to(torch.int64)
    model = nn.Linear(4, 2, dtype=torch.float64)
    for p in model.parameters():
        p.data.zero_()
    fit(model, [(x, y)])
    return model, [(x[:10], y[:10])], [(x[10:30], y[10:30]), (x[30:], y[30:])]


def loss(model: nn.Module, batch: Any) -> tuple[Tensor, int]:
    return nn.functional.cross_entropy(model(batch[0]), batch[1]), len(batch[1])


def mean_loss(model: nn.Module, batches: list[Any]) -> Tensor:
    pairs = [loss(model, b) for b in batches]
    return sum(value * n for value, n in pairs) / sum(n for _, n in pairs)


def fit(model: nn.Module, batches: list[Any]) -> None:
    opt = torch.optim.LBFGS(
        model.parameters(), max_iter=200, tolerance_grad=1e-10, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        opt.zero_grad()
        value = mean_loss(model, batches)
        value.backward()
        return value

    opt.step(closure)
    model.zero_grad()


@pytest.mark.parametrize(
    ("solver", "options"),
    [("cg", {}), ("lissa", {"scale": 1.0, "rtol": 1e-8, "depth": 100_000})],
)
def test_one_step_goes_where_retraining_without_the_forget_set_goes(solver: str, options: Any) -> None:
    model, forget, retain = trained()
    start = joined(weights(model))
    report = influence_unlearn(model, forget, retain, solver=solver, damp=1e-4, loss=loss, **options)
    moved = joined(weights(model)) - start
    again, _, _ = trained()
    fit(again, retain)
    there = joined(weights(again)) - start
    assert float(nn.functional.cosine_similarity(moved, there, dim=0)) > 0.98
    assert 0.7 < float(moved.norm() / there.norm()) < 1.1
    assert report.converged
    assert report.residual < 1e-4
    assert report.update_norm == pytest.approx(float(moved.norm()), rel=1e-6)
    assert report.forget_after > report.forget_before
    assert report.retain_after < report.retain_before
    assert report.forget_after == pytest.approx(mean_loss(model, forget).item())


@pytest.mark.parametrize("solver", ["cg", "woodfisher", "diag"])
def test_small_steps_change_losses_as_predicted(solver: str) -> None:
    model, forget, retain = trained()
    singles = [(x[i : i + 1], y[i : i + 1]) for x, y in retain for i in range(len(y))]
    options: Any = {"hessian": [torch.ones_like(p) for p in model.parameters()]} if solver == "diag" else {}
    report = influence_unlearn(model, forget, singles, solver=solver, alpha=1e-3, loss=loss, **options)
    change = report.forget_after - report.forget_before
    assert change == pytest.approx(report.forget_predicted, rel=1e-2)
    assert change > 0
    assert report.retain_after - report.retain_before == pytest.approx(report.retain_predicted, rel=1e-2)
    # at the minimum of the full loss the two gradients cancel
    assert 10 * report.forget_predicted == pytest.approx(-50 * report.retain_predicted, rel=1e-4)
    assert report.slope > 0


def test_a_solver_of_your_own_and_chosen_parameters() -> None:
    model, forget, retain = trained()
    before = model.weight.detach().clone()
    grads = [p.grad for p in model.parameters()]
    seen: list[int] = []

    def solver(v: list[Tensor]) -> list[Tensor]:
        seen.append(len(v))
        return v

    report = influence_unlearn(
        model, forget, retain, solver=solver, params=[model.bias], alpha=0.5, loss=loss
    )
    assert seen == [1]
    assert torch.equal(model.weight, before)
    assert report.slope == pytest.approx((report.update_norm / 0.5) ** 2)
    assert [p.grad for p in model.parameters()] == grads


def test_a_direction_changes_nothing_and_serves_several_steps() -> None:
    model, forget, retain = trained()
    before = weights(model)
    found = influence.influence_direction(model, forget, retain, damp=0.1, loss=loss)
    assert same_bits(weights(model), before)
    assert found.forget_slope > 0
    for alpha in (0.5, 2.0):
        stepped, _, _ = trained()
        report = influence_unlearn(stepped, forget, retain, damp=0.1, alpha=alpha, loss=loss)
        moved = joined(weights(stepped)) - joined(before)
        assert torch.allclose(moved, alpha * joined(found.x), rtol=1e-6, atol=1e-12)
        assert report.forget_predicted == pytest.approx(alpha * found.forget_slope)
        assert report.slope == pytest.approx(found.slope)


def test_curvature_of_a_part_of_the_retain_batches() -> None:
    model, forget, retain = trained()
    part = influence.influence_direction(model, forget, retain, damp=0.1, curvature=retain[:1], loss=loss)
    whole = influence.influence_direction(model, forget, retain, damp=0.1, loss=loss)
    assert part.forget_loss == whole.forget_loss  # the gradients are of all rows in both
    assert not torch.allclose(joined(part.x), joined(whole.x), rtol=1e-3)


def test_a_step_that_is_not_finite_is_not_made() -> None:
    model, forget, retain = trained()
    before = weights(model)
    with pytest.raises(RuntimeError, match="solver: expected a finite step"):
        influence_unlearn(
            model, forget, retain, solver=lambda v: [t / torch.zeros_like(t) for t in v], loss=loss
        )
    with pytest.raises(ValueError, match="forget: expected at least one batch, got none"):
        influence_unlearn(model, [], retain, loss=loss)
    for name, sets in (("forget", (iter(forget), retain)), ("retain", (forget, iter(retain)))):
        with pytest.raises(TypeError, match=f"{name}: expected batches that can be gone through"):
            influence_unlearn(model, *sets, loss=loss)
    for solver in ("cg", "woodfisher"):
        lost = [(forget[0][0] * float("nan"), forget[0][1])]
        with pytest.raises(RuntimeError, match="solver: expected a finite step"):
            influence_unlearn(model, lost, retain, solver=solver, loss=loss)
    with pytest.raises(ValueError, match="hessian: expected a diagonal for solver 'diag'"):
        influence_unlearn(model, forget, retain, solver="diag", loss=loss)
    with pytest.raises(ValueError, match="solver: expected one of 'cg'"):
        influence_unlearn(model, forget, retain, solver="newton", loss=loss)
    with pytest.raises(ValueError, match="params: expected at least one parameter"):
        influence_unlearn(model, forget, retain, params=[], loss=loss)
    assert same_bits(weights(model), before)


def test_a_causal_language_model() -> None:
    pytest.importorskip("transformers")
    from sophia_cases import causal_batch, causal_model

    model = causal_model()
    last = [p for n, p in model.named_parameters() if "layers.1" in n]
    report = influence.influence_unlearn(
        model,
        [causal_batch(0)],
        [causal_batch(k) for k in (1, 2)],
        params=last,
        damp=1.0,
        alpha=0.1,
        maxiter=20,
    )
    assert report.forget_after - report.forget_before == pytest.approx(report.forget_predicted, rel=0.1)
    assert report.forget_predicted > 0
