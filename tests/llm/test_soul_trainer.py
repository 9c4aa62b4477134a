"""The training loop of unlearning on tiny models: what a step is, reference values, resuming, bad input."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from soul_tiny import make_rows, make_subject
from tiny_models import make_llama

from tenfold import ops
from tenfold.llm.unlearn import curvature, fused, methods, trainer
from tenfold.llm.unlearn.losses import Head, labelled, sequence_nll
from tenfold.llm.unlearn.objective import Objective
from tenfold.llm.unlearn.subject import Subject
from tenfold.llm.unlearn.trainer import Job, learning_rate, steps_of, train
from tenfold.runs import RunFolder


def make_job(**own: Any) -> Job:
    settings: dict[str, Any] = {
        "key": "job", "method": "graddiff", "optimizer": "adamw", "lr": 3e-3, "steps": 6, "batch_size": 2,
        "every": 3, "hessian_batch": 4,
    }  # fmt: skip
    return Job(**(settings | own))


def make_folder(path: Path) -> RunFolder:
    return RunFolder.create("soul", make_job(), path)


# -- subject -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trainable", ["full", "last-1", "last-2", "lora"])
def test_log_likelihoods_are_those_of_the_plain_model(trainable: str) -> None:
    subject, plain = make_subject(trainable), make_llama()
    total, count = subject.nll("forget", size=4)
    for i, row in enumerate(subject.rows("forget")):
        with torch.no_grad():
            logp = plain(torch.tensor([row.ids])).logits[0].double().log_softmax(-1)
        at = [t for t in range(1, len(row.ids)) if row.labels[t] != -100]
        assert float(total[i]) == pytest.approx(-sum(float(logp[t - 1, row.ids[t]]) for t in at), rel=1e-4)
        assert int(count[i]) == len(at)


def test_joined_sets_keep_the_states_of_their_parts() -> None:
    subject = make_subject()
    subject.join("all", ["forget", "retain"])
    parts = torch.cat([subject.nll(name)[0] for name in ("forget", "retain")])
    torch.testing.assert_close(subject.nll("all")[0], parts, rtol=1e-5, atol=1e-5)


def test_weights_of_another_shape_are_refused_before_anything_is_written() -> None:
    subject = make_subject()
    weights = subject.weights()
    name, *_ = list(weights)
    changed = {key: tensor + 1 for key, tensor in weights.items()} | {name: torch.zeros(3)}
    with pytest.raises(ValueError, match="weights: expected"):
        subject.put(changed)
    assert all(torch.equal(weights[key], tensor) for key, tensor in subject.weights().items())


# -- objective -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in methods.METHODS if name not in ("teach", "iu")])
def test_every_method_has_a_finite_loss_with_gradients(name: str) -> None:
    subject = make_subject()
    objective = Objective(subject, name)
    loss, parts = objective.loss([0, 3], [1, 5] if objective.needs_retain else [])
    loss.backward()
    assert math.isfinite(float(loss.detach()))
    assert parts
    squares = [float(p.grad.square().sum()) for p in subject.parameters.values() if p.grad is not None]
    assert sum(squares) > 0 or name == "kl"  # KL to the reference is 0 at the reference, and so is its slope


def test_at_the_start_npo_is_at_its_known_value_and_kl_at_zero() -> None:
    subject = make_subject()
    loss, parts = Objective(subject, "npo", retain_loss="kl").loss([0, 1, 2], [0, 1])
    assert parts["forget"] == pytest.approx(2 / 0.1 * math.log(2), rel=1e-5)
    assert parts["retain"] == pytest.approx(0, abs=1e-6)
    assert float(loss.detach()) == pytest.approx(parts["forget"], rel=1e-5)


def test_the_reference_is_that_of_the_model_before_and_is_kept() -> None:
    subject = make_subject()
    before = subject.nll("forget")[0]
    objective = Objective(subject, "npo", gamma=0.0)
    with torch.no_grad():
        for parameter in subject.parameters.values():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    _, parts = objective.loss([0, 1], [0])
    shift = (subject.nll("forget")[0] - before)[:2]
    by_hand = float((-20 * torch.nn.functional.logsigmoid(0.1 * shift)).mean())
    assert parts["forget"] == pytest.approx(by_hand, rel=1e-4)


def test_kl_from_kept_states_is_that_of_a_copied_model() -> None:
    subject, copied = make_subject("full"), make_subject("full")
    objective = Objective(subject, "graddiff", retain_loss="kl")
    with torch.no_grad():
        for parameter in subject.parameters.values():
            parameter.mul_(1.05)
    _, parts = objective.loss([0], [2, 4])
    batch = subject.batch("retain", [2, 4])
    with torch.no_grad():
        now, then = (s.labelled(batch).hidden.double() @ s.head.weight.double().T for s in (subject, copied))
    log_p, log_ref = now.log_softmax(-1), then.log_softmax(-1)
    assert parts["retain"] == pytest.approx(
        float((log_ref.exp() * (log_ref - log_p)).sum(-1).mean()), rel=1e-4
    )


def test_what_is_missing_or_unknown_is_named() -> None:
    subject = Subject(make_llama(), 0, "last-1")
    subject.add("forget", make_rows(4, 0))
    with pytest.raises(ValueError, match="retain: expected at least one row for graddiff"):
        Objective(subject, "graddiff")
    with pytest.raises(ValueError, match="refusal: expected a set of rows for po"):
        Objective(subject, "po", retain_loss="none")
    with pytest.raises(ValueError, match="method: expected one of"):
        Objective(subject, "gradiff")
    with pytest.raises(ValueError, match=r"options: expected \['beta', 'per'\] for npo, got \['gamma'\]"):
        Objective(subject, "npo", retain_loss="none", options={"gamma": 1})
    with pytest.raises(ValueError, match="retain_loss: expected one of"):
        Objective(subject, "ga", retain_loss="mse")
    with pytest.raises(ValueError, match="forget: expected at least one row, got none"):
        subject.add("forget", [])


# -- steps ---------------------------------------------------------------------------------------------------


def test_steps_and_learning_rates() -> None:
    job = make_job(steps=None, epochs=5, batch_size=1, accumulation=4, lr=1.0)
    assert steps_of(job, 400) == 500
    assert steps_of(make_job(steps=None, epochs=0.1), 4) == 1
    rates = [learning_rate(make_job(lr=1.0, warmup=0.2), step, 10) for step in range(10)]
    assert rates == pytest.approx([0.5, 1.0, 1.0, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8])
    assert learning_rate(make_job(lr=1.0, schedule="hf"), 0, 10) == 0.0
    assert learning_rate(make_job(lr=1.0, schedule="constant"), 9, 10) == 1.0


def test_micro_batches_are_one_batch() -> None:
    """Gradients of micro-batches of equal token counts average to that of the whole batch."""
    rows = [row for row in make_rows(40, 5) if sum(label != -100 for label in row.labels) == 3][:8]
    found = []
    for batch_size, accumulation in ((4, 1), (2, 2), (1, 4)):
        subject = Subject(make_llama(), 0, "last-1")
        subject.add("forget", rows)
        job = make_job(method="ga", batch_size=batch_size, accumulation=accumulation, steps=2)
        train(subject, job)
        found.append(torch.cat([w.flatten() for w in subject.weights().values()]))
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[2], found[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("optimizer", curvature.OPTIMIZERS)
def test_every_optimizer_makes_the_forget_answers_less_likely(optimizer: str) -> None:
    subject = make_subject()
    before = float(subject.nll("forget")[0].mean())
    history = train(subject, make_job(optimizer=optimizer, lr=1e-2))
    assert float(subject.nll("forget")[0].mean()) > before + 0.05
    assert len(history.steps) == 6
    refreshed = [row["step"] for row in history.steps if row.get("refreshed")]
    known = {"liuhong99": [3, 6], "adamw": [], "sign": [], "soul-legacy": []}
    assert refreshed == known.get(optimizer, [1, 4])
    if optimizer != "adamw":
        assert all(0 <= row["win_rate"] <= 1 for row in history.steps)
        assert all(row["update_rms"] <= 1 + 1e-6 for row in history.steps)
    if optimizer == "sign":
        assert all(row["win_rate"] == 0 for row in history.steps)


def test_the_sampled_gradient_does_not_depend_on_how_rows_are_split() -> None:
    """B times the mean gradient is a sum: one part or two give the same, with the same draws."""
    gradients = []
    for parts in ([("retain", [0, 1, 2, 3])], [("retain", [0, 1]), ("retain", [2, 3])]):
        subject = make_subject()
        count = curvature.accumulate_sampled(subject, parts, seed=3)
        assert count == sum(
            sum(label != -100 for label in subject.rows("retain")[i].labels) for i in range(4)
        )
        gradients.append(
            torch.cat([p.grad.flatten() for p in subject.parameters.values() if p.grad is not None])
        )
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-5)


def test_curvature_is_that_of_capped_logits() -> None:
    """As of Gemma: labels are drawn from, and gradients taken of, cap tanh(z / cap)."""
    subject = make_subject("last-1")
    subject.model.config.final_logit_softcapping = 0.5
    chosen = [("retain", [0, 1, 2])]
    count = curvature.accumulate_sampled(subject, chosen, seed=3)
    found = [p.grad.clone() for p in subject.parameters.values() if p.grad is not None]
    rows, head = subject.labelled(subject.batch(*chosen[0])), subject.head
    logits = 0.5 * torch.tanh((rows.hidden @ head.weight.T) / 0.5)
    tokens = ops.gnb_sample(logits.detach(), seed=3).tokens
    loss = torch.nn.functional.cross_entropy(logits, tokens, reduction="sum")
    expected = torch.autograd.grad(loss, list(subject.parameters.values()))
    assert count == len(tokens)
    for got, want in zip(found, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)
    mean, _ = curvature.mean_loss(subject, chosen[0], second=True)
    torch.testing.assert_close(mean, torch.nn.functional.cross_entropy(logits, rows.targets))


def test_decay_spares_norms() -> None:
    subject = make_subject("full")
    groups = curvature.parameter_groups(subject.model, subject.parameters, 0.5)
    assert [group["weight_decay"] for group in groups] == [0.5, 0.0]
    assert all(p.dim() == 1 for p in groups[1]["params"])
    assert all(p.dim() == 2 for p in groups[0]["params"])


def test_pdus_multiplier_moves_with_the_retain_loss() -> None:
    history = train(make_subject(), make_job(method="pdu", gamma=1.0, options={"bound": 0.0}, steps=2))
    first = history.steps[0]["retain"]
    assert history.dual == pytest.approx(1.0 + first + history.steps[1]["retain"], rel=1e-6)


# -- resuming ------------------------------------------------------------------------------------------------


class _Killed(BaseException):
    pass


@pytest.mark.parametrize(
    ("optimizer", "method"),
    [("adamw", "npo"), ("sophia", "graddiff"), ("soul-legacy", "pdu"), ("liuhong99", "po"), ("sign", "rmu")],
)
def test_a_run_that_was_killed_goes_on_to_the_same_bits(
    optimizer: str, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(optimizer=optimizer, method=method)
    whole = make_subject()
    history = train(whole, job)

    step = trainer._step

    def dies(running: Any, steps: int) -> dict[str, float]:
        if len(running.history.steps) == 4:
            raise _Killed
        return step(running, steps)

    monkeypatch.setattr(trainer, "_step", dies)
    with pytest.raises(_Killed):
        train(make_subject(), job, make_folder(tmp_path / "run"), save_seconds=0)
    monkeypatch.setattr(trainer, "_step", step)
    resumed = make_subject()
    folder = RunFolder.create("soul", make_job(), tmp_path / "run", resume=True)
    went_on = train(resumed, job, folder)
    assert all(torch.equal(tensor, resumed.weights()[name]) for name, tensor in whole.weights().items())
    without = [{k: v for k, v in row.items() if k != "seconds"} for row in history.steps]
    assert [{k: v for k, v in row.items() if k != "seconds"} for row in went_on.steps] == without
    again = make_subject()  # a finished run is read, not trained
    train(again, job, folder)
    assert all(torch.equal(tensor, again.weights()[name]) for name, tensor in whole.weights().items())
    with pytest.raises(ValueError, match=r"job: expected the settings that job was begun with, got lr=1.0"):
        train(make_subject(), make_job(optimizer=optimizer, method=method, lr=1.0), folder)


# -- what goes wrong -----------------------------------------------------------------------------------------


def _poison(monkeypatch: pytest.MonkeyPatch, steps: set[int]) -> None:
    loss = Objective.loss
    calls = iter(range(1000))

    def poisoned(self: Objective, *args: Any) -> Any:
        total, parts = loss(self, *args)
        return (total * float("nan") if next(calls) in steps else total), parts

    monkeypatch.setattr(Objective, "loss", poisoned)


def test_a_loss_that_is_not_finite_ends_the_run_and_writes_no_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    _poison(monkeypatch, {0})
    subject = make_subject()
    before = subject.weights()
    with pytest.raises(RuntimeError, match=r"loss: expected a finite number, got nan in step 1 of graddiff"):
        train(subject, make_job())
    assert all(torch.equal(before[name], tensor) for name, tensor in subject.weights().items())


def test_skipped_steps_are_counted_and_several_in_a_row_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    _poison(monkeypatch, {1, 3})
    history = train(make_subject(), make_job(nonfinite="skip"))
    assert history.skipped == 2
    assert [row["step"] for row in history.steps if row.get("skipped")] == [2, 4]
    _poison(monkeypatch, {1, 2, 3})
    with pytest.raises(RuntimeError, match="in step 4 of graddiff"):
        train(make_subject(), make_job(nonfinite="skip"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("optimizer", "sgd"), ("method", "forget"), ("lr", -1.0), ("every", 0), ("batch_size", 0),
        ("hessian_source", "all"), ("schedule", "cosine"), ("nonfinite", "ignore"), ("steps", 0),
        ("clip", -1.0), ("gamma", math.nan),
    ],
)  # fmt: skip
def test_settings_out_of_range_are_named(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name}: expected"):
        train(make_subject(), make_job(**{name: value}))


def test_sequence_sums_of_left_padded_rows() -> None:
    subject = make_subject("full")
    batch = subject.batch("forget", [0, 1, 2])
    assert bool((batch.labels[batch.mask == 0] == -100).all())
    hidden = subject.hidden(batch)
    tokens = subject.tokens(batch)
    total, count = sequence_nll(tokens)
    rows = labelled(hidden, batch.labels)
    logits = (rows.hidden @ Head(subject.head.weight).weight.T).log_softmax(-1)
    each = -logits.gather(1, rows.targets[:, None])[:, 0]
    torch.testing.assert_close(
        total, torch.zeros(3).index_add(0, rows.sequence, each.detach()).to(total), rtol=1e-4, atol=1e-4
    )
    assert count.tolist() == [int((batch.labels[i, 1:] != -100).sum()) for i in range(3)]


@pytest.mark.parametrize("trainable", ["full", "last-2"])
@pytest.mark.parametrize("name", fused.FUSED)
def test_both_terms_in_one_call_are_those_of_two(
    name: str, trainable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = make_subject(trainable)
    objective = Objective(subject, name, gamma=0.7, forget_weight=0.3)
    # weights apart from those that the reference was made with
    with torch.no_grad():
        for parameter in subject.parameters.values():
            parameter += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    parameters = list(subject.parameters.values())

    def run() -> tuple[torch.Tensor, dict[str, float], list[torch.Tensor]]:
        loss, parts = objective.loss([1, 4, 2], [0, 3, 5])
        return loss.detach(), parts, list(torch.autograd.grad(loss, parameters, allow_unused=True))

    assert objective._fused
    one = run()
    monkeypatch.setattr(Objective, "_fused", False)
    two = run()
    torch.testing.assert_close(one[0], two[0], rtol=2e-6, atol=2e-6)
    assert one[1] == pytest.approx(two[1], rel=1e-6)
    for a, b in zip(one[2], two[2], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-6)
