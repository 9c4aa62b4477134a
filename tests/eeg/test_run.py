"""The whole run on a toy corpus: its folder, its page, going on after an interruption, wrong settings."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tenfold.eeg import Corpus, figures, run, tables
from tenfold.eeg.run import Outcome, adapt, restore, scaled_fold
from tenfold.eeg.run_config import MsdcdaConfig
from tenfold.eeg.train import predict
from tenfold.runs import folder

NAMES = ["source-only", "dan", "ms-mda", "ms-dcda"]


@pytest.fixture
def config(toy: Callable[..., Corpus], monkeypatch: pytest.MonkeyPatch) -> MsdcdaConfig:
    monkeypatch.setattr(run, "load_corpus", lambda config: toy())
    monkeypatch.setattr(run, "_held", {})
    return MsdcdaConfig(
        methods=NAMES, steps=25, batch=8, seeds=[0, 1], workers=1, targets=[1, 2], embedding="pca"
    )


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_what_a_run_leaves(config: MsdcdaConfig, tmp_path: Path) -> None:
    result = adapt(config, tmp_path / "a")
    out = result.path
    document = json.loads((out / "metrics.json").read_text())
    assert document["metrics"]["trainings"] == 2 * 2 * 4
    table = rows(out / "tables" / "trainings.csv")
    assert len(table) == 16
    mine = [float(r["accuracy"]) for r in table if r["method"] == "dan"]
    assert document["metrics"]["dan.accuracy"] == pytest.approx(np.mean(mine))
    base = [float(r["accuracy"]) for r in table if r["method"] == "source-only"]
    assert document["metrics"]["dan.gain"] == pytest.approx(np.mean(mine) - np.mean(base))
    confusion = rows(out / "tables" / "confusion-ms-dcda.csv")
    assert sum(int(r[c]) for r in confusion for c in "abc") == 2 * 2 * 36
    page = (out / "report.html").read_text()
    for said in ("MS-DCDA, reconstructed", "last iterate", "abstract was at hand", "transductive"):
        assert said in page
    assert {p.stem for p in (out / "figures").glob("*.png")} == {
        "accuracy", "confusion", "course", "embedding", "features",
    }  # fmt: skip
    assert {p.stem for p in (out / "checkpoints").iterdir()} == set(NAMES)


def test_an_interrupted_run_goes_on_to_the_same_numbers(
    config: MsdcdaConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(config, methods=["source-only", "ms-dcda"], steps=12, embedding="none")
    whole = adapt(config, tmp_path / "whole").metrics
    made: list[str] = []
    real = run.one

    def counted(settings: MsdcdaConfig, job: run.Job) -> Any:
        if len(made) == 3:
            raise KeyboardInterrupt
        made.append(job.key)
        return real(settings, job)

    monkeypatch.setattr(run, "one", counted)
    with pytest.raises(KeyboardInterrupt):
        adapt(config, tmp_path / "part")
    first, made[:] = set(made), []
    monkeypatch.setattr(run, "one", lambda c, job: (made.append(job.key), real(c, job))[1])
    again = adapt(config, tmp_path / "part", resume=True).metrics
    assert len(made) == 5
    assert not first & set(made)
    for name, value in whole.items():
        if not name.endswith(".seconds"):
            assert again[name] == value, name


def test_saved_weights_predict_what_was_scored(config: MsdcdaConfig, tmp_path: Path) -> None:
    config = config.resolved()
    outcome = Outcome(config, run.load_corpus(config), [], [1])
    job = run.Job("ms-dcda", 1, 0, keep=True)
    trial = run._take(outcome, run.one(config, job))
    fold = scaled_fold(config, 1)
    label = predict(restore(outcome, trial.key), fold.target.x)[0].argmax(1)
    assert float(torch.eq(label, fold.target.y).double().mean()) == trial.scores.accuracy


def test_oracle_selection_says_so_on_the_page(config: MsdcdaConfig, tmp_path: Path) -> None:
    small = replace(config, select="oracle", methods=["source-only"], targets=[0], seeds=[0], steps=12)
    page = (adapt(small, tmp_path / "a").path / "report.html").read_text()
    assert "Selected on target labels" in page
    assert "last iterate" not in page


def test_collapsed_methods_are_named_and_left_out(config: MsdcdaConfig, tmp_path: Path) -> None:
    """At this learning rate nothing is learned."""
    small = replace(config, methods=["source-only", "dan"], seeds=[0], steps=2, lr=1e-12)
    result = adapt(small, tmp_path / "a")
    assert result.metrics["dan.collapsed"] == 2
    assert "dan.gain" not in result.metrics
    page = (result.path / "report.html").read_text()
    assert "Collapsed:" in page
    assert "Gain over" not in page


def test_maps_of_channels(
    config: MsdcdaConfig, toy: Callable[..., Corpus], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = toy(width=10, channels=("Fz", "C3", "C4", "Pz", "Oz"))
    monkeypatch.setattr(run, "load_corpus", lambda config: corpus)
    small = replace(config, methods=["source-only"], targets=[0], seeds=[0], steps=12)
    out = adapt(small, tmp_path / "a").path
    assert (out / "figures" / "scalp.png").exists()
    lobes = {r["lobe"]: r["channels"] for r in rows(out / "tables" / "lobes.csv")}
    assert lobes == {"frontal": "1", "central": "2", "parietal": "1", "occipital": "1"}


def test_subjects_are_averaged_over_sessions_and_seeds(toy: Callable[..., Corpus]) -> None:
    corpus = toy()
    config = MsdcdaConfig(methods=["dan"], seeds=[0, 1])
    domains = [replace(d, subject=f"s{k // 2}", session=k % 2 + 1) for k, d in enumerate(corpus.domains)]
    made = run.folds(corpus.with_domains(domains), "cross-session")
    outcome = Outcome(config, corpus, made, [0, 1, 2, 3])
    scores = {
        "macro_f1": 0.0, "confusion": [[0]], "source_accuracy": 1.0, "collapsed": False, "margin": 0.0,
        "compactness": 0.0, "a_distance": 0.0, "seconds": 0.0,
    }  # fmt: skip
    for k, seed, value in (
        (0, 0, 0.1),
        (0, 1, 0.3),
        (1, 0, 0.5),
        (1, 1, 0.7),
        (2, 0, 1),
        (2, 1, 1),
        (3, 0, 0),
        (3, 1, 0),
    ):
        trial = run.Trial("dan", k, seed, run.Scores(accuracy=value, **scores), [], [], [], [])
        outcome.trials.append(trial)
    assert outcome.by_subject("dan").tolist() == pytest.approx([0.4, 0.5])
    s = tables.summary(outcome, "dan")
    assert (s.mean, s.over_targets) == (pytest.approx(0.45), pytest.approx(0.1 / 2**0.5))
    assert s.over_seeds == pytest.approx(0.1 / 2**0.5)  # means over folds: 0.4 and 0.5


def test_what_a_config_refuses() -> None:
    for name, value, message in (
        ("dataset", "seed", "data: expected where the files of seed are"),
        ("data", "nowhere.dat", "data: expected the file vowel.dat"),
        ("methods", ["dan", "none"], "methods: expected one of"),
        ("methods", ["dan", "dan"], "methods: expected each name once"),
        ("seeds", [1, 1], "seeds: expected different"),
        ("seeds", [], "seeds: expected different"),
        ("steps", 0, "steps: expected an integer"),
        ("targets", [-1], "targets: expected an integer"),
        ("device", "tpu", "device: expected cpu or cuda"),
    ):
        with pytest.raises(ValueError, match=message):
            MsdcdaConfig(**{name: value})


def test_a_target_that_is_not_there(config: MsdcdaConfig, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"targets: expected numbers of the 4 folds, from 0, got 7"):
        adapt(replace(config, targets=[7]), tmp_path / "a")


def test_a_missing_package_is_missed_at_the_beginning(
    config: MsdcdaConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = folder.find_spec
    monkeypatch.setattr(folder, "find_spec", lambda name: None if name == "sklearn" else found(name))
    with pytest.raises(ModuleNotFoundError, match="sklearn"):
        adapt(replace(config, embedding="tsne"), tmp_path / "a")
    assert not (tmp_path / "a" / "state" / "dan-fold1-seed0.safetensors").exists()


def test_methods_are_named_once_resolved() -> None:
    assert MsdcdaConfig(ablations=True).resolved().methods[-1] == "fixed-tau"
    config = MsdcdaConfig(methods=["dan"], ablations=True).resolved()
    assert config.methods[0] == "dan"
    assert config.resolved() == config


@pytest.mark.slow
def test_processes_side_by_side_give_the_same(written: Any, tmp_path: Path) -> None:
    """Simulated files in SEED's layout, two subjects: one process against two."""
    folder = str(written("seed")["features"])
    base = MsdcdaConfig(
        dataset="seed", data=folder, methods=["source-only", "ms-dcda"], steps=4, batch=8, seeds=[0],
        embedding="none", targets=[0, 1],
    )  # fmt: skip
    one, two = (adapt(replace(base, workers=w), tmp_path / str(w)) for w in (1, 2))
    for name, value in one.metrics.items():
        if not name.endswith(".seconds"):
            assert two.metrics[name] == pytest.approx(value, abs=1e-9), name
    assert "SIMULATED DATA" in (one.path / "report.html").read_text()


def test_choices_that_the_vowels_have_not_are_refused() -> None:
    for name, value in (("subjects", [1]), ("raw", True), ("label", "valence"), ("threshold", 3.0)):
        with pytest.raises(ValueError, match=f"{name}: expected nothing, for vowel"):
            MsdcdaConfig(**{name: value})


def test_features_shrunk_to_a_point_are_drawn_as_one() -> None:
    """t-SNE divides by their spread, and ends the process."""
    assert not figures._plane(np.full((40, 32), 7.0, np.float32), "tsne").any()
    assert figures._plane(np.eye(40, 32, dtype=np.float32), "pca").any()
