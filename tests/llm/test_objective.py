"""Losses and scores of the engine against direct computations from the model's own logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import task_files
import torch
import torch.nn.functional as F

from tenfold.llm import models, schemes, tasks
from tenfold.llm.engine import load_any_model
from tenfold.llm.objective import Objective, _portions

CAUSAL = ("opt", "llama", "mistral")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    task_files.write_sst2(folder)
    task_files.write_copa(folder)
    task_files.write_squad(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("models")
    return {f: task_files.save_model(f, root / f, seed=2) for f in ("roberta", *CAUSAL)}


def make(folder: str, data: Path, task: str, scheme: str = "ft", **options: Any) -> Objective:
    tokenizer = models.load_tokenizer(folder)
    model = load_any_model(folder, torch.float32)
    mask_token = tokenizer.mask_token if schemes.is_masked(model) else None
    home = data / "squad" if task == "squad" else data
    splits = tasks.load(task, home, train=12, dev=4, test=6, mask_token=mask_token)
    adapted = schemes.attach(model, scheme)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(7)
        for parameter in adapted.parameters.values():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return Objective(adapted, splits, task=task, tokenizer=tokenizer, max_length=96, **options)


def log_probabilities(objective: Objective, row: list[int], count: int) -> torch.Tensor:
    """log p of the last ``count`` tokens of one row, by the model itself."""
    model = objective.adapted.model
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([row])).logits[0].log_softmax(-1)
    at = torch.arange(len(row) - count, len(row))
    return logits[at - 1, torch.tensor(row)[at]]


@pytest.mark.parametrize("family", CAUSAL)
def test_words_are_scored_as_the_whole_rows_would_be(
    family: str, folders: dict[str, str], data: Path
) -> None:
    objective = make(folders[family], data, "sst2")
    assert objective.form == "words"
    rows = tasks.encode(objective.examples["train"], objective.tokenizer, 96)
    scores = torch.stack([log_probabilities(objective, row, 1)[0] for row in rows.ids]).view(-1, 2)
    expected = F.cross_entropy(scores, torch.tensor(rows.labels))
    ours = objective.loss(objective.batch("train", range(12)))
    torch.testing.assert_close(ours.detach(), expected, rtol=1e-5, atol=1e-6)
    assert objective.score("train") == {
        "loss": pytest.approx(float(expected), rel=1e-5),
        "accuracy": pytest.approx(float((scores.argmax(1) == torch.tensor(rows.labels)).double().mean())),
    }


def test_a_masked_model_is_read_at_its_mask(folders: dict[str, str], data: Path) -> None:
    objective = make(folders["roberta"], data, "sst2")
    rows = tasks.encode_masked(objective.examples["dev"], objective.tokenizer, 96)
    losses = []
    for row, at, label in zip(rows.ids, rows.mask_at, rows.labels, strict=True):
        with torch.no_grad():
            logits = objective.adapted.model(input_ids=torch.tensor([row])).logits[0, at, rows.options]
        losses.append(-logits.log_softmax(0)[label])
    assert objective.mean_loss("dev") == pytest.approx(float(torch.stack(losses).mean()), rel=1e-5)


def test_training_on_the_right_option_is_its_mean_negative_log_likelihood(
    folders: dict[str, str], data: Path
) -> None:
    objective = make(folders["opt"], data, "copa")
    assert objective.form == "lm"
    rows = tasks.encode(objective.examples["dev"], objective.tokenizer, 96, only_correct=True)
    pieces = [log_probabilities(objective, r, n) for r, n in zip(rows.ids, rows.option_len, strict=True)]
    expected = -float(torch.cat(pieces).mean())
    assert float(objective.loss(objective.batch("dev", range(4)))) == pytest.approx(expected, rel=1e-5)
    assert objective.mean_loss("dev") == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("scheme", ["ft", "lora", "prefix", "prompt"])
@pytest.mark.parametrize("family", CAUSAL)
def test_prompts_computed_once_give_the_same_option_scores(
    family: str, scheme: str, folders: dict[str, str], data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective = make(folders[family], data, "copa", scheme)
    rows = objective._all_rows("test")
    assert objective._shares_prompts(rows)
    assert len(set(rows.option_len)) > 1
    shared = objective.option_sums(rows)
    monkeypatch.setattr(objective, "_shares_prompts", lambda rows: False)
    assert shared == pytest.approx(objective.option_sums(rows), rel=1e-4)
    if scheme == "ft":
        direct = [
            float(log_probabilities(objective, r, n).sum())
            for r, n in zip(rows.ids, rows.option_len, strict=True)
        ]
        assert shared == pytest.approx(direct, rel=1e-4)


@pytest.mark.parametrize("task", ["sst2", "copa", "squad"])
def test_the_plain_loss_is_the_same_number(task: str, folders: dict[str, str], data: Path) -> None:
    objective = make(folders["llama"], data, task)
    batch = objective.batch("train", [3, 1, 4])
    fused = objective.loss(batch)
    objective.plain = True
    torch.testing.assert_close(objective.loss(batch), fused, rtol=1e-5, atol=1e-6)


def test_the_plain_choice_loss_over_rows_is_the_same_number(
    folders: dict[str, str], data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tenfold.llm.objective._common_words", lambda rows: None)
    objective = make(folders["llama"], data, "sst2")
    assert objective.form == "options"
    batch = objective.batch("train", [3, 1, 4, 0])
    fused = objective.loss(batch)
    objective.plain = True
    torch.testing.assert_close(objective.loss(batch), fused, rtol=1e-5, atol=1e-6)
    assert objective.score("dev")["loss"] == pytest.approx(objective.mean_loss("dev"), rel=1e-5)


def test_calibration_divides_by_the_score_behind_the_domain_string(
    folders: dict[str, str], data: Path
) -> None:
    objective = make(folders["opt"], data, "sst2", calibrate=True)
    rows = objective._all_rows("test")
    domain = tasks.encode(objective.examples["test"], objective.tokenizer, 96, calibrate=True)
    scores = [
        float(log_probabilities(objective, r, 1)[0] - log_probabilities(objective, d, 1)[0])
        for r, d in zip(rows.ids, domain.ids, strict=True)
    ]
    chosen = [int(scores[i + 1] > scores[i]) for i in range(0, len(scores), 2)]
    right = [a == b for a, b in zip(chosen, rows.labels, strict=True)]
    assert objective.score("test")["accuracy"] == pytest.approx(sum(right) / len(right))


def test_answers_are_generated_and_compared_with_the_gold_ones(
    folders: dict[str, str], data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective = make(folders["opt"], data, "squad", max_new_tokens=4)
    found = objective.score("test")
    assert set(found) == {"loss", "f1", "em"}
    made = objective.answers("test")
    prompts = tasks.encode_prompts(objective.examples["test"], objective.tokenizer, 96, max_new_tokens=4)
    ids = torch.tensor([prompts[0]])
    alone = objective.adapted.greedy(
        ids, torch.ones_like(ids), max_new=4, stop={objective.tokenizer.eos_token_id}
    )
    assert made[0] == tasks.first_line(objective.tokenizer.decode(alone[0], skip_special_tokens=True))
    gold = [example.answers[0].upper() + "." for example in objective.examples["test"]]
    monkeypatch.setattr(objective, "answers", lambda split: gold)
    assert objective.score("test")["em"] == 1.0


def test_features_are_the_states_that_answer(folders: dict[str, str], data: Path) -> None:
    objective = make(folders["opt"], data, "sst2", "head")
    features, labels = objective.features("dev")
    weight, _ = objective.adapted.head()
    assert objective.word_ids is not None
    logits = F.linear(features, weight.detach()[objective.word_ids])
    assert float(F.cross_entropy(logits, labels)) == pytest.approx(objective.mean_loss("dev"), rel=1e-5)
    with pytest.raises(ValueError, match="task: expected one with answer words of one token"):
        make(folders["opt"], data, "copa", "head").features("dev")


def test_portions_hold_every_index_once_within_the_limit() -> None:
    sizes = [5, 900, 3, 40, 40, 700, 2]
    groups = _portions(sizes, 1000)
    assert sorted(i for group in groups for i in group) == list(range(7))
    assert all(len(g) == 1 or len(g) * max(sizes[i] for i in g) <= 1000 for g in groups)
