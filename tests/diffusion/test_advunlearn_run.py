"""The workflow advunlearn: mechanics on a run of seconds, and the embedded default in full."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
pytest.importorskip("sklearn")

from tenfold.diffusion import advunlearn_run
from tenfold.diffusion.advunlearn_config import AdvUnlearnConfig
from tenfold.runs import RunFolder
from tenfold.runs import folder as run_folder

QUICK = {
    "erased": ["advunlearn", "esd"], "esd_iterations": 2, "iterations": 3, "warmup": 1, "attack_steps": 2,
    "bank_size": 1, "batch": 2, "train_steps": 3, "try_timesteps": 1, "try_iterations": 1, "tries": 1,
    "sample_steps": 3, "workers": 1,
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def without_times(metrics):
    return {name: value for name, value in metrics.items() if "seconds" not in name}


def test_a_run_that_was_interrupted_comes_to_the_same_numbers(tmp_path, monkeypatch):
    config = AdvUnlearnConfig(**QUICK).resolved()
    whole = advunlearn_run.erase(config, tmp_path / "whole")
    real, calls = advunlearn_run.one, []

    def killed(*arguments):
        calls.append(arguments[-1])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(advunlearn_run, "one", killed)
    folder = RunFolder.create("advunlearn", config, tmp_path / "parts")
    with pytest.raises(KeyboardInterrupt):
        advunlearn_run.run(config, folder)
    assert not (tmp_path / "parts" / "metrics.json").exists()
    done = list(calls)
    again = advunlearn_run.erase(config, tmp_path / "parts", resume=True)
    assert not set(done[:2]) & set(calls[3:])
    assert without_times(again.metrics) == without_times(whole.metrics)
    page = (tmp_path / "parts" / "report.html").read_text()
    assert "garbage truck" in page
    assert "AdvUnlearn" in page
    assert (tmp_path / "parts" / "models" / "advunlearn-seed0" / "model.safetensors").is_file()
    with (tmp_path / "parts" / "tables" / "models.csv").open() as file:
        assert [row["model"] for row in csv.DictReader(file)] == ["before", "ESD", "AdvUnlearn"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "elsewhere/sd"}, "retain: expected a file"),
        ({"retain": "nowhere.csv"}, "retain: expected a CSV file, got nowhere.csv"),
        ({"erased": ["sa"]}, "erased: expected"),
        ({"seeds": []}, "seeds: expected different ones"),
        ({"seeds": [-1]}, "seeds: expected"),
        ({"k": 0}, "k: expected"),
        ({"concept": "unicorn"}, "concept: expected a name of a digit"),
        ({"mode": "between"}, "mode: expected"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        AdvUnlearnConfig(**settings).resolved()


def test_a_concept_that_is_no_digit_is_refused_before_anything_runs(tmp_path):
    with pytest.raises(ValueError, match="concept: expected a name of a digit"):
        advunlearn_run.erase(AdvUnlearnConfig(concept="eleven", **QUICK), tmp_path / "run")


def test_a_missing_package_is_missed_at_the_beginning(tmp_path, monkeypatch):
    found = run_folder.find_spec
    monkeypatch.setattr(run_folder, "find_spec", lambda name: None if name == "joblib" else found(name))
    with pytest.raises(ModuleNotFoundError, match="joblib"):
        advunlearn_run.erase(AdvUnlearnConfig(**QUICK), tmp_path / "run")
    assert not (tmp_path / "run" / "models").exists()


def test_a_numeral_is_no_word_of_the_model(tmp_path):
    with pytest.raises(
        ValueError, match="concept: expected a name of a digit, as 'five' or 'cinco', got '5'"
    ):
        advunlearn_run.erase(AdvUnlearnConfig(concept="5", **QUICK), tmp_path / "run")


def test_a_model_that_is_there_keeps_its_seconds(tmp_path):
    """Killed between the model and its results: the seconds of training are those of the training."""
    config = AdvUnlearnConfig(**QUICK).resolved()
    first, _ = advunlearn_run.one(config, str(tmp_path), ("esd", 0))
    again, _ = advunlearn_run.one(config, str(tmp_path), ("esd", 0))
    assert first["train_seconds"] > 0
    assert again["train_seconds"] == first["train_seconds"]


def test_prompts_that_name_no_guidance_take_the_setting(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text("case_number,prompt,evaluation_seed,evaluation_guidance\n3,five,7,\n4,five,8,0\n")
    config = AdvUnlearnConfig(**QUICK, attack_prompts=str(path), guidance=2.0).resolved()
    assert [(c.case_number, c.seed, c.guidance) for c in advunlearn_run.cases_of(config)] == [
        ("3", 7, 2.0), ("4", 8, 0.0),
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("concept", ["five", "three"])
def test_the_effect_that_the_paper_claims(tmp_path: Path, concept: str):
    """Two seeds together; figures of the gated judge."""
    erased = ["esd", "advunlearn", "no-retain"] if concept == "five" else ["esd", "advunlearn"]
    found = advunlearn_run.erase(
        AdvUnlearnConfig(concept=concept, seeds=[0, 1], erased=erased), tmp_path / "run"
    ).metrics
    esd, adv = found["esd.text_grad.post"], found["advunlearn.text_grad.post"]
    assert found["base.pre"] >= 0.9
    assert found["base.retained"] >= 0.93
    assert found["esd.pre"] <= 0.10
    assert esd >= 0.60
    assert esd >= 2 * found["esd.random.post"]
    assert adv <= 0.25
    assert adv <= esd / 3
    assert found["advunlearn.retained"] >= max(0.90, found["base.retained"] - 0.05)
    if concept == "five":
        assert found["no-retain.retained"] <= found["advunlearn.retained"] - 0.2
