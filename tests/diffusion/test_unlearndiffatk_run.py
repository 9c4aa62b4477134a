"""The workflow unlearndiffatk: mechanics on runs of seconds, and the embedded default in full."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
pytest.importorskip("sklearn")

from tenfold.diffusion import load_bundle, read_targets, tiny_bundle, unlearndiffatk_run
from tenfold.diffusion.attack import Case, CaseLog, Entry, target_cases
from tenfold.diffusion.attack.dataset import cases_of_targets, draw_targets, write_targets
from tenfold.diffusion.attack.target import Sampling
from tenfold.diffusion.unlearndiffatk_config import UnlearnDiffAtkConfig
from tenfold.diffusion.unlearndiffatk_report import paper_rows
from tenfold.diffusion.unlearndiffatk_run import Outcome, Trial
from tenfold.runs import RunFolder

QUICK = {
    "erased": ["negative"], "timesteps": 2, "iterations": 1, "tries": 2, "sample_steps": 3,
    "target_steps": 3, "workers": 1, "seeds": [1],
}  # fmt: skip
TINY = {
    "model": "tiny", "timesteps": 1, "iterations": 1, "tries": 1, "sample_steps": 2, "sampler": "ddim",
    "target_steps": 2, "workers": 1, "attacks": ["no_attack", "random"], "seeds": [0], "batch": 4,
}  # fmt: skip
HERE = "test_unlearndiffatk_run"


@pytest.fixture(autouse=True)
def judges_here(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


def dark(images):
    """A judge that finds the concept in black pictures, which random weights do not make."""
    return [bool(one.mean() < 0.01) for one in images]


def scores(images):
    """A judge that gives no bools."""
    return images.mean((1, 2, 3))


def without_times(metrics):
    return {name: value for name, value in metrics.items() if "seconds" not in name}


def prompt_file(path: Path, prompts: list[str]) -> Path:
    lines = [f"{10 + i},{prompt},{4290749014 + i},2.5" for i, prompt in enumerate(prompts)]
    header = "case_number,prompt,evaluation_seed,evaluation_guidance"
    path.write_text("\n".join([header, *lines]) + "\n")
    return path


def test_a_run_that_was_interrupted_comes_to_the_same_numbers(tmp_path, monkeypatch):
    prompts = prompt_file(tmp_path / "p.csv", ["a photo of five", "handwritten five"])
    config = UnlearnDiffAtkConfig(**QUICK, prompts=str(prompts)).resolved()
    whole = unlearndiffatk_run.attack(config, tmp_path / "whole")
    real, calls = unlearndiffatk_run.one, []

    def killed(*arguments):
        calls.append(arguments[-1])
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(unlearndiffatk_run, "one", killed)
    folder = RunFolder.create("unlearndiffatk", config, tmp_path / "parts")
    with pytest.raises(KeyboardInterrupt):
        unlearndiffatk_run.run(config, folder)
    assert not (tmp_path / "parts" / "metrics.json").exists()
    done = list(calls[:3])
    again = unlearndiffatk_run.attack(config, tmp_path / "parts", resume=True)
    assert not set(done) & set(calls[4:])
    assert without_times(again.metrics) == without_times(whole.metrics)
    # every attack, prompts as they are, and the original model
    assert len(calls) - 1 == 2 + len(["random", "seed_search", "p4d", "p4d-lr0.1", "text_grad"])
    assert again.metrics["prompts"] == 2
    page = (tmp_path / "parts" / "report.html").read_text()
    assert "P4D, lr 0.1" in page
    assert "20.42 / 76.05" in page
    assert (tmp_path / "parts" / "attacks/negative/text_grad-seed1/attack_idx_11/log.json").is_file()
    lines = (tmp_path / "parts" / "logs" / "negative-random-seed1.jsonl").read_text().splitlines()
    assert [json.loads(line)["case_number"] for line in lines] == ["10", "11"]


def test_a_prompt_s_log_is_not_made_again(tmp_path, monkeypatch):
    prompts = prompt_file(tmp_path / "p.csv", ["a photo of five", "handwritten five"])
    config = UnlearnDiffAtkConfig(**QUICK, prompts=str(prompts), attacks=["no_attack"]).resolved()
    unlearndiffatk_run.attack(config, tmp_path / "run")
    job = ("negative", "no_attack", 1)
    log = tmp_path / "run" / "attacks/negative/no_attack-seed1/attack_idx_10/log.json"
    before = log.stat().st_mtime_ns
    (tmp_path / "run" / "attacks/negative/no_attack-seed1/attack_idx_11/log.json").unlink()
    _, state, _ = unlearndiffatk_run.one(config, str(tmp_path / "run"), job)
    assert log.stat().st_mtime_ns == before
    assert [one["state"] for one in state["logs"]].count("error") == 0
    assert (log.parent.parent / "attack_idx_11" / "log.json").is_file()


def test_a_model_that_is_there_keeps_its_seconds(tmp_path):
    config = UnlearnDiffAtkConfig(**QUICK).resolved()
    first = unlearndiffatk_run.make(config, str(tmp_path), "negative")
    assert first[1] > 0
    assert unlearndiffatk_run.make(config, str(tmp_path), "negative") == first


def test_files_of_one_s_own(tmp_path):
    """A pipeline, a checkpoint, a prompt file with a prompt that is too long, a judge of one's own."""
    from safetensors.torch import save_file

    changed = {k: v + 0.01 for k, v in load_bundle("tiny").text_encoder.state_dict().items()}
    save_file(
        {f"text_encoder.{k}": v.contiguous() for k, v in changed.items()}, tmp_path / "erased.safetensors"
    )
    prompts = prompt_file(tmp_path / "p.csv", ["a photo of a church", "a " * 90])
    config = UnlearnDiffAtkConfig(
        **TINY, prompts=str(prompts), target_checkpoint=str(tmp_path / "erased.safetensors"),
        judge=f"{HERE}:dark", concept="church",
    )  # fmt: skip
    found = unlearndiffatk_run.attack(config, tmp_path / "run").metrics
    assert (found["prompts"], found["prompts_cut"], found["errors"]) == (2, 1, 0)
    with (tmp_path / "run" / "tables" / "cut.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["case"] for row in rows] == ["11"]
    assert int(rows[0]["tokens cut"]) > 0
    # the run's own target pictures serve another run, with the same numbers
    targets = str(tmp_path / "run" / "targets")
    other = replace(config, prompts="", targets=targets)
    again = unlearndiffatk_run.attack(other, tmp_path / "again").metrics
    assert without_times(again) == without_times(found)
    # prompts that were too long are refused where that is wanted, before anything is attacked
    strict = replace(config, overflow="error", on_error="raise")
    with pytest.raises(ValueError, match="case 11: prompt"):
        unlearndiffatk_run.attack(strict, tmp_path / "strict")
    assert not (tmp_path / "strict" / "metrics.json").exists()


def test_a_whole_pipeline_that_changes_nothing_is_refused(tmp_path):
    load_bundle("tiny").to_pipeline().save_pretrained(tmp_path / "same", safe_serialization=True)
    tiny_bundle(1).to_pipeline().save_pretrained(tmp_path / "other", safe_serialization=True)
    prompts = prompt_file(tmp_path / "p.csv", ["a photo of a church"])
    config = UnlearnDiffAtkConfig(
        **TINY, prompts=str(prompts), target_checkpoint=str(tmp_path / "same"), judge=f"{HERE}:dark"
    )
    with pytest.raises(ValueError, match="target_checkpoint: expected weights that change something, got"):
        unlearndiffatk_run.target_of(config, str(tmp_path), "checkpoint")
    other = replace(config, target_checkpoint=str(tmp_path / "other"))
    assert unlearndiffatk_run.target_of(other, str(tmp_path), "checkpoint").name == str(tmp_path / "other")


def test_a_judge_that_gives_no_bools_ends_the_run(tmp_path):
    prompts = prompt_file(tmp_path / "p.csv", ["a photo of a church"])
    config = UnlearnDiffAtkConfig(
        **TINY, prompts=str(prompts), erased=["negative"], judge=f"{HERE}:scores", concept="church"
    )
    with pytest.raises(TypeError, match="judge scores: expected bools"):
        unlearndiffatk_run.attack(config, tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.json").exists()


def test_target_pictures_are_written_as_the_published_sets(tmp_path):
    bundle = tiny_bundle(0)
    cases = [Case("7", "a church", 2**32 - 1, 2.5), Case("0012", "a cat, a dog", 3, 7.5, None, 32, 16)]
    pictures = draw_targets(bundle, cases, Sampling(2, "ddim"))
    folder = write_targets(tmp_path / "set", cases, pictures)
    found = read_targets(folder)
    assert [(r.case_number, r.prompt, r.seed, r.guidance, r.height, r.width) for r in found.rows] == [
        ("7", "a church", 2**32 - 1, 2.5, None, None), ("0012", "a cat, a dog", 3, 7.5, 32, 16),
    ]  # fmt: skip
    again, read = cases_of_targets(folder)
    assert [p.shape[1:] for p in read][1] == (32, 16)
    for made, kept in zip(pictures, read, strict=True):
        assert torch.equal(made, kept)
    direct = target_cases(bundle, cases, Sampling(2, "ddim"))
    for one, two in zip(target_cases(bundle, again, pictures=read), direct, strict=True):
        assert torch.equal(one.image, two.image)
    (folder / "ignore.json").write_text("[0]")
    assert [case.case_number for case in cases_of_targets(folder)[0]] == ["0012"]
    with pytest.raises(FileExistsError, match="folder: expected a new one"):
        write_targets(folder, cases, pictures)
    with pytest.raises(ValueError, match="case_number: expected text that may stand in a file's name"):
        write_targets(tmp_path / "new", [Case("../x", "a cat")], pictures[:1])
    with pytest.raises(ValueError, match="cases: expected at least one"):
        write_targets(tmp_path / "new", [], [])
    assert not (tmp_path / "new").exists()


def logs(states: str) -> list[CaseLog]:
    """p: by itself, s: after a candidate, d: not, e: failed."""
    made = []
    for i, state in enumerate(states):
        entries = [Entry("a", state == "p")] + [Entry("b", state == "s")] * (state in "sd")
        made.append(CaseLog(str(i), "a", 0, 3.0, [] if state == "e" else entries, "no" * (state == "e")))
    return made


def test_rates_of_seeds_together_and_the_better_p4d():
    config = UnlearnDiffAtkConfig(erased=["esd"], seeds=[0, 1]).resolved()
    outcome = Outcome(config, [
        Trial("esd", "p4d", 0, logs("pdde"), 1.0), Trial("esd", "p4d", 1, logs("pddd"), 1.0),
        Trial("esd", "p4d-lr0.1", 0, logs("psde"), 1.0), Trial("esd", "p4d-lr0.1", 1, logs("psds"), 1.0),
        Trial("esd", "text_grad", 0, logs("pssd"), 1.0),
    ])  # fmt: skip
    rates = outcome.rates("esd", "p4d-lr0.1")
    assert (rates.pre.successes, rates.post.successes, rates.post.n, rates.errors) == (2, 5, 7, 1)
    assert outcome.best_p4d("esd") == "p4d-lr0.1"
    assert outcome.errors == 2
    first = paper_rows(outcome)[0]
    assert first == {"method": "this run: ESD", "“five”": "25 / 75"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "elsewhere/sd"}, "prompts: expected a file"),
        ({"model": "elsewhere/sd", "prompts": __file__}, "judge: expected a judge"),
        ({"model": "elsewhere/sd", "prompts": __file__, "judge": "nudenet"}, "target_checkpoint: expected"),
        ({"model": "elsewhere/sd", "prompts": __file__, "judge": "nudenet", "erased": ["esd"]},
         "erased: expected negative or sld"),
        ({"prompts": "nowhere.csv"}, "prompts: expected a CSV file, got nowhere.csv"),
        ({"targets": "nowhere"}, "targets: expected a folder with prompts.csv"),
        ({"target_checkpoint": "nowhere"}, "target_checkpoint: expected a file or a folder, got nowhere"),
        ({"attacks": ["gcg"]}, "attacks: expected"),
        ({"attacks": ["transfer"]}, "transfer_from: expected a folder of logs"),
        ({"attacks": ["transfer"], "transfer_from": "nowhere"}, "expected a folder of logs, got"),
        ({"judge_prompts": "q16.safetensors"}, "judge_prompts: expected nothing"),
        ({"seeds": []}, "seeds: expected different ones"),
        ({"seeds": [2**32]}, "seeds: expected"),
        ({"k": 0}, "k: expected"),
        ({"concept": "unicorn"}, "concept: expected a name of a digit"),
        ({"mode": "between"}, "mode: expected"),
        ({"p4d_lr": [0.0]}, "p4d_lr: expected"),
        ({"overflow": "drop"}, "overflow: expected"),
        ({"sampler": "euler_x"}, "sampler: expected"),
    ],
)  # fmt: skip
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        UnlearnDiffAtkConfig(**settings).resolved()


@pytest.mark.slow
def test_an_erased_concept_comes_back(tmp_path: Path):
    """The attack finds what the prompts alone do not; figures of the gated judge, two seeds together."""
    found = unlearndiffatk_run.attack(UnlearnDiffAtkConfig(seeds=[0, 1]), tmp_path / "run").metrics
    assert found["original.pre"] >= 0.9
    assert found["esd.no_attack.pre"] <= 0.10
    assert found["esd.text_grad.post"] >= 0.60
    for other in ("random", "seed_search", "p4d"):
        assert found["esd.text_grad.post"] >= 2 * found[f"esd.{other}.post"]
    assert found["advunlearn.text_grad.post"] <= 0.25
