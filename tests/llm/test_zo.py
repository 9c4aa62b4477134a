"""The workflow from end to end on a tiny model, through the same door as the command."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_models import make_llama

from tenfold.llm import ZOConfig, finetune, load_trained, memory, models, zo, zo_report
from tenfold.runs import RunFolder


def make_config(model_folder: Path, data_file: Path, **own: Any) -> ZOConfig:
    settings: dict[str, Any] = {
        "model": str(model_folder), "data": str(data_file), "steps": 20, "lr": 2e-2, "num_queries": 4,
        "batch_size": 16, "train_size": 40, "dev_size": 20, "test_size": 40, "eval_every": 5, "seeds": [0, 1],
        "full_steps": 2, "memory": False,
    }  # fmt: skip
    return ZOConfig(**(settings | own))


@pytest.fixture(scope="module")
def result(model_folder: Path, data_file: Path, tmp_path_factory: pytest.TempPathFactory) -> zo.Result:
    return finetune(make_config(model_folder, data_file), tmp_path_factory.mktemp("runs") / "run")


def table(result: zo.Result, name: str) -> list[dict[str, str]]:
    with open(result.path / "tables" / f"{name}.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_numbers(result: zo.Result) -> None:
    stored = json.loads((result.path / "metrics.json").read_text())["metrics"]
    assert stored == pytest.approx(result.metrics)
    assert stored["accuracy_after"] == pytest.approx(
        (stored["accuracy_after_seed0"] + stored["accuracy_after_seed1"]) / 2
    )
    assert stored["accuracy_gain"] == pytest.approx(stored["accuracy_after"] - stored["accuracy_before"])
    assert stored["loss_after"] < stored["loss_before"]
    assert stored["forwards_per_seed"] == 20 * 5
    assert stored["full_forwards"] == 2 * 5
    for prefix in ("", "full_"):
        assert sum(stored[f"{prefix}{part}_share"] for part in ("forward", "pass", "rest")) == pytest.approx(
            1
        )
    assert stored["trained_parameters"] < stored["parameters"]


def test_tables_and_pictures(result: zo.Result) -> None:
    assert len(table(result, "steps")) == 2 * 20 + 2
    assert [int(row["step"]) for row in table(result, "dev")] == 2 * [0, 5, 10, 15, 20]
    for name in ("accuracy", "loss", "time"):
        assert (result.path / "figures" / f"{name}.png").stat().st_size > 2000
    page = (result.path / "report.html").read_text(encoding="utf-8")
    assert "without back-propagation" in page
    assert "arXiv 2402.11592" in page


def test_a_checkpoint_brings_the_trained_model_back(result: zo.Result, model_folder: Path) -> None:
    model, tokenizer = models.load(str(model_folder))
    names = load_trained(model, result.path / "checkpoints" / "last-block-seed0.safetensors")
    assert names
    assert all(name.startswith("model.layers.2.") for name in names)
    rows = tokenizer([f"{row['example']} It was" for row in table(result, "examples")]).input_ids
    with torch.no_grad():
        logits = torch.cat([model(torch.tensor([row])).logits[:, -1] for row in rows])
    two = logits[:, tokenizer.convert_tokens_to_ids(["terrible", "great"])].softmax(1)
    for chances, row in zip(two, table(result, "examples"), strict=True):
        assert row["after"] == f"{('terrible', 'great')[int(chances.argmax())]} ({100 * chances.max():.0f} %)"


def test_a_checkpoint_of_another_model_is_refused(result: zo.Result) -> None:
    checkpoint = result.path / "checkpoints" / "last-block-seed0.safetensors"
    other = make_llama(width=16)
    before = [parameter.clone() for parameter in other.parameters()]
    with pytest.raises(ValueError, match=r"model: expected a tensor model.layers.2"):
        load_trained(other, checkpoint)
    assert all(torch.equal(a, b) for a, b in zip(before, other.parameters(), strict=True))


def test_a_killed_run_resumes_to_the_same_numbers(
    result: zo.Result, model_folder: Path, data_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the second seed, before its first state was saved."""
    from tenfold.llm import training

    config, real_step = make_config(model_folder, data_file), training._step

    def killed(*arguments: Any) -> dict[str, float]:
        if arguments[1].key == "seed1" and arguments[-1] == 3:
            raise KeyboardInterrupt
        return real_step(*arguments)

    monkeypatch.setattr(training, "_step", killed)
    with pytest.raises(KeyboardInterrupt):
        finetune(config, tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.json").exists()
    monkeypatch.setattr(training, "_step", real_step)
    state = RunFolder.create("zo", config, tmp_path / "run", True).load_state("kept")
    assert state is not None
    resumed = finetune(config, tmp_path / "run", resume=True).metrics
    assert resumed["kept_seconds"] == state[0]["seconds"] > 0
    for name, value in result.metrics.items():
        if not any(word in name for word in ("seconds", "_ms", "ms_", "share")):
            assert resumed[name] == value, name


@pytest.mark.parametrize(
    ("own", "forwards", "passes"),
    [
        ({"trainable": "full"}, 20, 5),
        ({"optimizer": "zo-sgd", "num_queries": 1, "lr": 1e-3}, 8, 3),
        ({"optimizer": "zo-adam", "num_queries": 2, "lr": 1e-3}, 16, 6),
    ],
)
def test_other_ways_to_train(
    model_folder: Path, data_file: Path, tmp_path: Path, own: dict[str, Any], forwards: int, passes: int
) -> None:
    config = make_config(model_folder, data_file, seeds=[3], steps=4, full_steps=0, **own)
    result = finetune(config, tmp_path / "run")
    assert result.metrics["forwards_per_seed"] == forwards
    assert "full_accuracy" not in result.metrics
    assert [float(row["passes a step"]) for row in table(result, "time")] == [passes]
    page = (result.path / "report.html").read_text(encoding="utf-8")
    assert ("GB/s" in page) == (config.optimizer != "zo-adam")
    assert "seeds 3" not in page
    assert ("for each of" not in page) or config.num_queries > 1


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ((0.127, 2.127, -100.0), ["fell by 100.0 points", "rose from 0.127 to 2.127"]),
        ((1.181, 1.1812, 0.0), ["did not change", "stayed at 1.181"]),
        ((1.2, 0.5, 24.2), ["rose by 24.2 points", "fell from 1.200 to 0.500"]),
    ],
)
def test_the_words_follow_the_numbers(numbers: tuple[float, float, float], said: list[str]) -> None:
    before, after, gain = numbers
    assert [zo_report._change(gain, 1, " points"), zo_report._from_to(before, after)] == said


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ({}, "it keeps nothing but the weights"),
        ({"optimizer": "zo-adam"}, "it keeps two moments in float32 for every parameter."),
        ({"restore": "exact"}, "it keeps a clean copy of every weight."),
    ],
)
def test_the_memory_words_follow_the_settings_and_the_numbers(own: dict[str, Any], said: str) -> None:
    above = {"forward": 30, "zo": 40, "adam": 2000, "adam-ckpt": 500}
    rows = [memory.Measured(mode, mib, mib, 500, 0, 1, "") for mode, mib in above.items()]
    text = zo_report._memory_words(SimpleNamespace(config=ZOConfig(**own), memory=rows))
    assert said in text
    assert "500 MiB, 75 % less" in text


def test_cuda_is_refused_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="device: expected cpu here, got 'cuda'"):
        ZOConfig(device="cuda")


def test_a_filled_config_keeps_its_values() -> None:
    changed = dataclasses.replace(ZOConfig(), optimizer="zo-sgd", preset="long")
    assert (changed.lr, changed.trainable) == (ZOConfig().lr, "last-block")
    assert "keep every value of theirs" in str(ZOConfig.__doc__)


def test_bfloat16_weights_still_learn(model_folder: Path, data_file: Path, tmp_path: Path) -> None:
    config = make_config(
        model_folder, data_file, seeds=[0], steps=40, full_steps=0, dtype="bfloat16", eps=3e-2
    )
    losses = [float(row["loss"]) for row in table(finetune(config, tmp_path / "run"), "dev")]
    assert min(losses) < losses[0] - 0.02


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ({"optimizer": "adamw"}, "optimizer: expected one of fzoo, zo-sgd, zo-adam, got 'adamw'"),
        ({"preset": "huge"}, "preset: expected one of default, quick, long, got 'huge'"),
        ({"template": "It was"}, "template: expected '{text}' exactly once"),
        ({"verbalizers": [" great", " not good"]}, "verbalizers: expected words of one token each"),
        ({"trainable": "last-9"}, "trainable: expected 'last-block', 'last-1' to 'last-3' or 'full'"),
        ({"num_queries": 1}, "num_queries: expected at least 2 for fzoo"),
        ({"seeds": []}, "seeds: expected at least one seed"),
        ({"seeds": 3}, "seeds: expected at least one seed in a list, got 3"),
        ({"seeds": [2**43]}, "seeds: expected seeds below"),
        ({"weight_decay": -1.0}, "weight_decay: expected a number >= 0, got -1.0"),
        ({"weight_decay": float("nan")}, "weight_decay: expected a number >= 0, got nan"),
        ({"trainable": "last"}, "trainable: expected 'last-block', 'last-N'"),
        ({"trainable": "full"}, "full_steps: expected 0 with trainable=full, got 2"),
        ({"dev_size": 0}, "dev_size: expected a whole number >= 2, got 0"),
        ({"verbalizers": " great"}, "verbalizers: expected at least two answer words in a list"),
        ({"seeds": [1, 1]}, "seeds: expected different seeds"),
        ({"eps": 0.0}, "eps: expected a number > 0, got 0.0"),
        ({"lr": float("nan")}, "lr: expected a number > 0, got nan"),
        ({"steps": 0}, "steps: expected a whole number >= 1, got 0"),
        ({"batch_size": 64}, "batch_size: expected at most train_size=40, got 64"),
        ({"test_size": 4000}, "data: expected at least 2000 more examples of label 0 for the test split"),
        ({"model": "no/such/model"}, "model: expected 'smollm2', a folder"),
        ({"data": "no/such.tsv"}, "data: expected 'reviews'"),
        ({"device": "tpu"}, "device: expected one of cpu, cuda, got 'tpu'"),
    ],
)
def test_bad_settings(
    model_folder: Path, data_file: Path, tmp_path: Path, own: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        finetune(make_config(model_folder, data_file, **own), tmp_path / "run")


def test_presets_fill_what_is_left_open() -> None:
    default, long = ZOConfig(), ZOConfig(preset="long")
    assert (default.trainable, default.seeds, default.test_size) == ("last-block", [0, 1, 2], 500)
    assert (long.trainable, long.full_steps) == ("full", 0)
    assert (ZOConfig(preset="quick").steps, ZOConfig(preset="quick", steps=7).steps) == (40, 7)
    assert ZOConfig(optimizer="zo-sgd").num_queries == 1


def test_the_stored_settings_are_complete_and_give_the_same_run(result: zo.Result) -> None:
    import yaml

    stored = yaml.safe_load((result.path / "config.yaml").read_text())
    assert [name for name, value in stored.items() if value is None] == ["max_minutes"]
    assert dataclasses.asdict(ZOConfig(**stored)) == stored
