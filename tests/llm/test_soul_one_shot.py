"""Influence unlearning in the workflow: its direction against dense algebra, alphas, state, bad input."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from soul_tiny import make_rows, make_subject
from tiny_models import make_llama

from tenfold.llm.unlearn import one_shot
from tenfold.llm.unlearn.subject import Subject
from tenfold.llm.unlearn.trainer import Job, train
from tenfold.runs import RunFolder


def make_job(**own: Any) -> Job:
    settings: dict[str, Any] = {
        "key": "iu", "method": "iu", "optimizer": "diag", "lr": 0.5, "options": {"damp": 0.5, "rows": 6},
    }  # fmt: skip
    return Job(**(settings | own))


def flat(tensors: Any) -> torch.Tensor:
    return torch.cat([t.detach().double().reshape(-1) for t in tensors])


def gradient(subject: Subject, names: list[str]) -> torch.Tensor:
    """Of the mean negative log-likelihood per label over sets, by the plain model."""
    total, count = torch.zeros((), dtype=torch.float64), 0
    for name in names:
        for row in subject.rows(name):
            logp = subject.model(torch.tensor([row.ids])).logits[0].double().log_softmax(-1)
            for t in range(1, len(row.ids)):
                if row.labels[t] != -100:
                    total, count = total - logp[t - 1, row.ids[t]], count + 1
    grads = torch.autograd.grad(total / count, list(subject.parameters.values()))
    return flat(grads)


def norms_alone(trainable: str = "last-1") -> Subject:
    """Of which only the norms of the last block are trained, so that a matrix of all of them is small."""
    subject = Subject(make_llama(), 0, trainable)
    subject.parameters = {n: p for n, p in subject.parameters.items() if "norm" in n}
    for name, p in subject.model.named_parameters():
        p.requires_grad_(name in subject.parameters)
    for seed, (name, count) in enumerate({"forget": 4, "retain": 6}.items()):
        subject.add(name, make_rows(count, seed))
    return subject


def test_the_fisher_step_is_that_of_dense_algebra() -> None:
    subject = norms_alone()
    found = one_shot.direction(subject, make_job(optimizer="woodfisher"), None)
    v = gradient(subject, ["forget", "retain"]) - gradient(subject, ["retain"])
    rows = []
    for row in subject.rows("retain"):
        subject.add("one", [row])
        rows.append(gradient(subject, ["one"]))
    g = torch.stack(rows)
    fisher = g.T @ g / len(g) + 0.5 * torch.eye(g.shape[1], dtype=torch.float64)
    wanted = torch.linalg.solve(fisher, v)
    torch.testing.assert_close(flat(found.x), wanted, rtol=1e-3, atol=1e-3 * float(wanted.abs().max()))


@pytest.mark.parametrize("solver", ["cg", "lissa"])
def test_products_with_the_hessian_of_the_retain_loss(solver: str) -> None:
    subject = norms_alone()
    job = make_job(
        optimizer=solver, options={"damp": 0.5, "rows": 6, "iterations": 60, "scale": 2.0, "depth": 400}
    )
    found = one_shot.direction(subject, job, None)
    assert found.converged
    # (H + damp) x = v, H by differences of the plain model's gradient
    parameters = list(subject.parameters.values())
    v = gradient(subject, ["forget", "retain"]) - gradient(subject, ["retain"])
    size, sides = 1e-3 / float(flat(found.x).norm()), []
    for by in (size, -2 * size):
        with torch.no_grad():
            for p, x in zip(parameters, found.x, strict=True):
                p.add_(x, alpha=by)
        sides.append(gradient(subject, ["retain"]))
    product = (sides[0] - sides[1]) / (2 * size) + 0.5 * flat(found.x)
    assert float((product - v).norm() / v.norm()) < 0.05


def test_the_diagonal_is_that_of_sampled_labels() -> None:
    subject = make_subject()
    found = one_shot.direction(subject, make_job(), None)
    again = one_shot.direction(subject, make_job(), None)
    assert all(torch.equal(a, b) for a, b in zip(found.x, again.x, strict=True))
    v = gradient(subject, ["forget", "retain"]) - gradient(subject, ["retain"])
    # v / (h + damp), h >= 0: same signs, and no longer than v / damp
    x = flat(found.x)
    big = v.abs() > 1e-3 * v.abs().max()
    assert bool((x[big].sign() == v[big].sign()).all())
    assert bool((x.abs()[big] <= v.abs()[big] / 0.5 * 1.001).all())
    assert float(x.norm()) < 0.9999 * float(v.norm()) / 0.5
    other = one_shot.direction(subject, make_job(seed=1), None)
    assert not all(torch.equal(a, b) for a, b in zip(found.x, other.x, strict=True))


@pytest.mark.parametrize("trainable", ["full", "last-2", "lora"])
@pytest.mark.parametrize("solver", one_shot.SOLVERS)
def test_a_small_step_changes_the_losses_as_predicted(trainable: str, solver: str) -> None:
    subject = make_subject(trainable)
    options = {"damp": 1.0, "rows": 4, "iterations": 3, "depth": 3, "scale": 500.0}
    alpha = 1e-3 if solver == "woodfisher-legacy" else 1e-2  # no inverse makes its step long
    history = train(subject, make_job(optimizer=solver, lr=alpha, options=options))
    (row,) = history.steps
    for part in ("forget", "retain"):
        change = row[part] - row[f"{part}_before"]
        assert change == pytest.approx(row[f"{part}_predicted"], rel=0.1, abs=2e-6)
    if solver != "woodfisher-legacy":
        assert row["forget"] > row["forget_before"]
        assert row["slope"] > 0


def test_one_direction_serves_all_alphas_and_a_resumed_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder.create("soul", make_job(), tmp_path / "run")
    first = make_subject()
    train(first, make_job(), folder)
    monkeypatch.setattr(one_shot, "influence_direction", lambda *_, **__: pytest.fail("solved again"))
    resumed = RunFolder.create("soul", make_job(), tmp_path / "run", resume=True)
    larger = make_subject()
    start = flat(larger.weights().values())
    train(larger, make_job(key="iu-1", lr=1.0), resumed)  # another alpha along the direction that is kept
    step = flat(first.weights().values()) - start
    torch.testing.assert_close(flat(larger.weights().values()) - start, 2 * step, rtol=1e-4, atol=1e-6)
    again = make_subject()  # a run that is done is read
    history = train(again, make_job(), resumed)
    assert torch.equal(flat(again.weights().values()), flat(first.weights().values()))
    assert history.steps[0]["alpha"] == 0.5
    with pytest.raises(ValueError, match="job: expected the settings that iu was begun with, got lr=3"):
        train(make_subject(), make_job(lr=3.0), resumed)


def test_bad_input(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = make_subject()
    before = flat(subject.weights().values())
    for own, message in (
        ({"optimizer": "adamw"}, "solver: expected one of diag"),
        ({"options": {"beta": 1.0}}, r"options: expected .* for iu, got \['beta'\]"),
        ({"options": {"damp": 0.0}}, "damp: expected a number > 0, got 0"),
        ({"options": {"rows": 1.5}}, "rows: expected a whole number >= 1, got 1.5"),
        ({"optimizer": "woodfisher-legacy"}, "damp: expected 1 with woodfisher-legacy, got 0.5"),
    ):
        with pytest.raises(ValueError, match=message):
            train(subject, make_job(**own))
    with pytest.raises(RuntimeError, match="scale: expected more than half the largest eigenvalue"):
        train(make_subject("full"), make_job(optimizer="lissa", options={"scale": 0.5, "depth": 8}))
    monkeypatch.setattr(one_shot, "MOST_BYTES", 100)
    with pytest.raises(ValueError, match="rows: expected gradients of at most"):
        train(subject, make_job(optimizer="woodfisher"))
    with pytest.raises(RuntimeError, match="loss: expected a finite number"):
        train(subject, make_job(lr=1e38))
    assert torch.equal(flat(subject.weights().values()), before)
    without = Subject(make_llama(), 0, "last-1")
    without.add("forget", make_rows(3, 0))
    with pytest.raises(ValueError, match="retain: expected at least one row for iu"):
        train(without, make_job())


def test_what_is_stored_of_a_job_holds_its_options() -> None:
    assert dataclasses.asdict(make_job())["options"] == {"damp": 0.5, "rows": 6}
