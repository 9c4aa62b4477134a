from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import make_llama, sentences

from tenfold.llm import prompts, training
from tenfold.llm.data import Example
from tenfold.llm.scorer import Scorer, trainable_depth, trainable_parameters
from tenfold.llm.training import Phase, Task, train
from tenfold.runs import RunFolder


@dataclasses.dataclass
class Settings:
    seed: int = 0


PHASE = Phase(
    key="seed0", label="toy", optimizer="fzoo", steps=12, batch_size=8, lr=2e-2, eps=1e-3, num_queries=4,
    weight_decay=0.0, restore="arithmetic", seed=0, eval_every=3, select=True,
)  # fmt: skip
OPTIMIZERS = {
    "fzoo": PHASE,
    "zo-sgd": dataclasses.replace(PHASE, optimizer="zo-sgd", num_queries=2, lr=5e-3),
    "zo-adam": dataclasses.replace(PHASE, optimizer="zo-adam", num_queries=2, lr=1e-2),
}


def make_task(tokenizer: Any, trainable: str = "last-block") -> Task:
    model = make_llama()
    rows = [Example(text, label) for text, label in sentences(60)]
    parts = {"train": rows[:24], "dev": rows[24:40], "test": rows[40:]}
    data = {name: prompts.encode(part, tokenizer, "{text} It was", 64) for name, part in parts.items()}
    options = prompts.option_ids(tokenizer, [" terrible", " great"])
    scorer = Scorer(model, 0, options, depth=trainable_depth(trainable, 3))
    kept = {name: scorer.remember(part) for name, part in data.items()} if scorer.depth else {}
    return Task(scorer, trainable_parameters(model, trainable), data, kept)


def make_folder(path: Path, resume: bool = False) -> RunFolder:
    return RunFolder.create("toy", Settings(), path, resume)


def losses(trained: training.Trained) -> list[float]:
    return [row["loss"] for row in (*trained.history.steps, *trained.history.dev)]


@pytest.mark.parametrize("phase", OPTIMIZERS.values(), ids=list(OPTIMIZERS))
def test_training_lowers_the_dev_loss_and_keeps_the_best_step(
    tokenizer: Any, tmp_path: Path, phase: Phase
) -> None:
    task = make_task(tokenizer)
    phase = dataclasses.replace(phase, steps=60)
    trained = train(task, phase, make_folder(tmp_path / "run"), save_seconds=60, deadline=None)
    dev = {int(row["step"]): row["loss"] for row in trained.history.dev}
    assert dev[trained.history.best_step] == min(dev.values()) == trained.history.best_loss < dev[0] - 0.02
    loss, _ = task.loss_and_accuracy("dev", task.evaluate("dev"))
    assert loss == pytest.approx(trained.history.best_loss, abs=1e-6)  # the chosen weights are in the model
    assert torch.equal(trained.test_logits, task.evaluate("test"))


@pytest.mark.parametrize("trainable", ["last-block", "full"])
@pytest.mark.parametrize("phase", OPTIMIZERS.values(), ids=list(OPTIMIZERS))
def test_a_killed_run_goes_on_to_the_same_numbers(
    tokenizer: Any, tmp_path: Path, phase: Phase, trainable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(
        make_task(tokenizer, trainable), phase, make_folder(tmp_path / "a"), save_seconds=60, deadline=None
    )
    task, real_step = make_task(tokenizer, trainable), training._step

    def killed(*arguments: Any) -> dict[str, float]:
        if arguments[-1] == 7:
            raise KeyboardInterrupt
        return real_step(*arguments)

    monkeypatch.setattr(training, "_step", killed)
    with pytest.raises(KeyboardInterrupt):
        train(task, phase, make_folder(tmp_path / "b"), save_seconds=0, deadline=None)
    monkeypatch.setattr(training, "_step", real_step)
    fresh = make_task(tokenizer, trainable)  # a new process knows nothing but the folder
    resumed = train(fresh, phase, make_folder(tmp_path / "b", resume=True), save_seconds=60, deadline=None)
    assert losses(resumed) == losses(whole)
    assert resumed.history.best_step == whole.history.best_step
    assert resumed.history.forwards == whole.history.forwards
    assert torch.equal(resumed.test_logits, whole.test_logits)


def test_a_finished_phase_is_not_run_again(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = train(make_task(tokenizer), PHASE, make_folder(tmp_path / "a"), save_seconds=60, deadline=None)
    monkeypatch.setattr(training, "_step", None)
    task = make_task(tokenizer)
    again = train(task, PHASE, make_folder(tmp_path / "a", resume=True), save_seconds=60, deadline=None)
    assert losses(again) == losses(first)
    assert torch.equal(again.test_logits, first.test_logits)
    assert torch.equal(task.evaluate("test"), first.test_logits)  # with its weights


def test_the_deadline_ends_training(tokenizer: Any, tmp_path: Path) -> None:
    trained = train(make_task(tokenizer), PHASE, make_folder(tmp_path / "a"), save_seconds=60, deadline=0.0)
    assert trained.history.stopped_early
    assert trained.history.steps == []


def test_seeds_differ(tokenizer: Any, tmp_path: Path) -> None:
    runs = [
        train(
            make_task(tokenizer),
            dataclasses.replace(PHASE, seed=seed),
            make_folder(tmp_path / str(seed)),
            save_seconds=60,
            deadline=None,
        )
        for seed in (0, 1)
    ]
    assert losses(runs[0]) != losses(runs[1])


def test_batches_cover_each_epoch_once() -> None:
    seen = [training.batch_of_step(20, 6, 3, step) for step in range(6)]
    assert all(len(set(seen[i] + seen[i + 1] + seen[i + 2])) == 18 for i in (0, 3))
    assert seen[0] != seen[3]
    assert seen == [training.batch_of_step(20, 6, 3, step) for step in range(6)]
    assert seen[0] != training.batch_of_step(20, 6, 4, 0)


def test_packing_keeps_keys_types_and_tensors() -> None:
    tensors: dict[str, torch.Tensor] = {}
    value = {"state": {0: {"m": torch.ones(2), "step": 3}}, "betas": (0.9, 0.999), "names": ["a", None]}
    packed = training.pack(value, tensors)
    back = training.unpack(packed, tensors)
    assert torch.equal(back["state"][0].pop("m"), torch.ones(2))
    assert back == {"state": {0: {"step": 3}}, "betas": (0.9, 0.999), "names": ["a", None]}


def test_wrong_weights_are_refused_before_anything_is_written(tokenizer: Any) -> None:
    task = make_task(tokenizer)
    before = task.weights()
    wrong = {name: tensor + 1 for name, tensor in before.items()}
    last = list(wrong)[-1]
    wrong[last] = torch.zeros(3)
    with pytest.raises(ValueError, match=f"weights: expected {last} of shape"):
        task.put(wrong)
    assert all(torch.equal(task.parameters[name], before[name]) for name in before)
