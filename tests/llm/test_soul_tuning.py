"""How learning rates are chosen, what several seeds say, and evaluations that keep what does not change."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from soul_tiny import make_byte_tokenizer, make_rows, make_subject, save_byte_model
from tiny_models import make_llama

from tenfold.llm import models
from tenfold.llm.unlearn import data as rows_of
from tenfold.llm.unlearn import one_shot, soul, soul_seeds, tuning
from tenfold.llm.unlearn.evaluate import evaluate_tofu, token_scores
from tenfold.llm.unlearn.kept_scores import KeptScores
from tenfold.llm.unlearn.soul import Attempt, unlearn
from tenfold.llm.unlearn.soul_config import ALPHAS, TRIED, SoulConfig
from tenfold.llm.unlearn.subject import Subject
from tenfold.llm.unlearn.trainer import History, Job


def make_config(model: Path, **own: Any) -> SoulConfig:
    settings: dict[str, Any] = {
        "model": str(model), "method": "npo,iu", "optimizer": "adamw,sign", "select": "tuning",
        "seeds": [0, 1],
        "solver": "diag,woodfisher", "alpha": [1.0, 3.0], "curvature_rows": 4, "damp": 1.0,
        "trainable": "last-2",
        "epochs": 1.0,
        "batch_size": 10, "teach_epochs": 1.0, "limit": 2, "max_new_tokens": 2, "max_length": 300,
        "retain_model": False, "full_evaluation": "adamw",
    }  # fmt: skip
    return SoulConfig(**(settings | own))


@pytest.fixture(scope="module")
def byte_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_byte_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def result(byte_model: Path, tmp_path_factory: pytest.TempPathFactory) -> soul.Result:
    return unlearn(make_config(byte_model), tmp_path_factory.mktemp("runs") / "run")


def table(result: soul.Result, name: str) -> list[dict[str, str]]:
    with open(result.path / "tables" / f"{name}.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# -- tuning --------------------------------------------------------------------------------------------------


def test_other_rows_are_forgotten_and_the_reported_ones_kept() -> None:
    data = rows_of.load_mini_tofu()
    other = tuning.other_roles(data)
    assert len(other.forget) == len(data.forget)
    assert len(other.retain) == len(data.retain)
    assert not {row.question for row in other.forget} & {row.question for row in data.forget}
    assert {row.question for row in data.forget} <= {row.question for row in other.retain}
    assert len({row.question for row in other.forget + other.retain}) == len(data.forget + data.retain)
    with pytest.raises(ValueError, match="select: expected at least 40 retain rows"):
        tuning.other_roles(dataclasses.replace(data, retain=data.forget))


def test_tuning_runs_choose_and_reported_runs_have_other_seeds(result: soul.Result) -> None:
    runs = table(result, "runs")
    tuned = [row for row in runs if row["split"] == "tuning"]
    shown = [row for row in runs if row["split"] == "reported"]
    assert len(tuned) == 2 * 2 + 2 * 2  # two optimizers at two rates, two solvers at two alphas
    assert len(shown) == 4 * 2  # the chosen one of each, with two seeds
    assert {row["seed"] for row in tuned} == {"1000"}
    assert {row["seed"] for row in shown} == {"0", "1"}
    assert {row["chosen by"] for row in runs} == {"tuning"}
    for row in shown:
        mine = [t for t in tuned if (t["method"], t["optimizer"]) == (row["method"], row["optimizer"])]
        (best,) = [t for t in mine if t["chosen"] == "yes"]
        assert best["lr or alpha"] == row["lr or alpha"]
        keeping = [t for t in mine if float(t["keeps %"]) >= 100 * tuning.TUNING_KEPT]
        if keeping:
            assert float(best["forget prob"]) == min(float(t["forget prob"]) for t in keeping)


def test_seeds_and_influence_are_in_numbers_tables_and_page(result: soul.Result) -> None:
    seeds = {(row["method"], row["optimizer"]): row for row in table(result, "seeds")}
    runs = [row for row in table(result, "runs") if row["split"] == "reported"]
    mine = [float(r["forget prob"]) for r in runs if (r["method"], r["optimizer"]) == ("NPO", "AdamW")]
    row = seeds["NPO", "AdamW"]
    assert float(row["forget prob"]) == pytest.approx(sum(mine) / 2)
    assert float(row["forget prob +-"]) == pytest.approx(12.706 * abs(mine[0] - mine[1]) / 2, rel=1e-4)
    assert [r["optimizer"] for r in table(result, "comparison")] == ["sign-momentum"]
    for solver in ("diag", "woodfisher"):
        told = result.metrics
        assert told[f"iu-{solver}.lr"] in (1.0, 3.0)
        assert told[f"iu-{solver}.forget"] > told[f"iu-{solver}.forget_before"]
    page = (result.path / "report.html").read_text(encoding="utf-8")
    for words in (
        "Over several seeds",
        "One step of influence unlearning",
        "two other authors",
        "WoodFisher",
    ):
        assert words in page


def test_a_killed_run_with_tuning_and_influence_goes_on_to_the_same_numbers(
    result: soul.Result, byte_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    step, calls = one_shot.step, iter(range(100))

    def dies(*args: Any) -> Any:
        found = step(*args)
        if next(calls) in (1, 4):  # in the tuning of an alpha, its direction solved; in a reported run
            raise Killed
        return found

    monkeypatch.setattr(one_shot, "step", dies)
    for resume in (False, True):
        with pytest.raises(Killed):
            unlearn(make_config(byte_model), tmp_path / "run", resume=resume)
    monkeypatch.setattr(one_shot, "step", step)
    resumed = unlearn(make_config(byte_model), tmp_path / "run", resume=True)

    def plain(found: soul.Result) -> dict[str, float]:
        return {k: v for k, v in found.metrics.items() if "seconds" not in k}

    assert plain(resumed) == plain(result)


def test_how_a_learning_rate_is_chosen() -> None:
    config = SoulConfig()
    assert config.select == "tried"
    for method, rates in TRIED.items():
        assert all(config.rates(optimizer, method) == [lr] for optimizer, lr in rates.items())
        assert {config.selection(optimizer, method) for optimizer in rates} == {"tried"}
    assert config.selection("adamw", "simnpo") == "shown"  # nobody tuned it
    assert SoulConfig(lr=[1e-4, 1e-3]).selection("adamw", "npo") == "shown"
    assert SoulConfig(lr=[1e-4]).selection("adamw", "npo") == "given"
    (job,) = soul.jobs(SoulConfig(method="npo", optimizer="sign", retain_ratio=3))
    assert (job.lr, job.retain_ratio) == (TRIED["npo"]["sign"], 3)
    long = SoulConfig(preset="long", method="npo,iu")
    assert (long.seeds, long.selection("sophia", "npo"), long.selection("diag", "iu")) == (
        [0, 1, 2], "tuning", "tuning",
    )  # fmt: skip
    assert long.rates("diag", "iu") == list(ALPHAS)
    assert soul.tuned_names(SoulConfig(method="iu", solver="cg,diag")) == ["iu-cg", "iu-diag"]
    assert soul.tuned_names(SoulConfig(method="iu", alpha=[2.0])) == []
    for own, message in (
        ({"seeds": [1000]}, "tuning_seed: expected none of seeds"),
        ({"solver": "newton"}, "solver: expected one of diag"),
        ({"alpha": [-1.0]}, "alpha: expected numbers > 0"),
        ({"damp": 0.0}, "damp: expected a number > 0"),
        ({"select": "seen"}, "select: expected one of"),
        ({"curvature_rows": 0}, "curvature_rows: expected a whole number"),
        ({"retain_ratio": 0}, "retain_ratio: expected a whole number"),
    ):
        with pytest.raises(ValueError, match=message):
            SoulConfig(**own)


def test_intervals_are_students() -> None:
    mean, half = soul_seeds.interval([1.0, 2.0, 3.0])
    assert (mean, half) == (2.0, pytest.approx(4.303 / math.sqrt(3)))
    assert math.isnan(soul_seeds.interval([1.0])[1])
    with pytest.raises(ValueError, match="values: expected at least one"):
        soul_seeds.interval([])


def test_differences_are_taken_seed_by_seed() -> None:
    def made(optimizer: str, seed: int, forget: float) -> Attempt:
        job = Job(key=f"{optimizer}{seed}", method="npo", optimizer=optimizer, lr=1.0, seed=seed)
        return Attempt(job, History(), {"forget": forget, "retain": 0.8})

    attempts = [made("adamw", s, f) for s, f in enumerate((0.3, 0.4, 0.5))]
    attempts += [made("sophia", s, f) for s, f in enumerate((0.2, 0.31, 0.39))]
    outcome = soul.Outcome(
        SoulConfig(), "x", 1, 1, False, {}, {"forget": 0.9, "retain": 0.9}, attempts=attempts,
        chosen={"npo-adamw": attempts[0], "npo-sophia": attempts[3]},
    )  # fmt: skip
    (row,) = soul_seeds.comparison_rows(outcome)
    assert row["forget prob, minus AdamW's"] == pytest.approx(-0.1)
    assert row["forget prob: differs"] == "yes"  # though the seeds differ more than the optimizers
    assert row["keeps, points: differs"] == "no"


# -- sets that change roles, and scores that are kept -----------------------------------------------------


def test_sets_change_places_and_back() -> None:
    subject = make_subject()
    subject.add("other-forget", make_rows(4, 9))
    first, second = subject.rows("forget"), subject.rows("other-forget")
    loss = subject.nll("other-forget")[0]
    subject.exchange("other-")
    assert subject.rows("forget") is second
    assert torch.equal(subject.nll("forget")[0], loss)
    subject.exchange("other-")
    assert subject.rows("forget") is first
    assert subject.rows("other-forget") is second


@pytest.mark.parametrize("trainable", ["last-2", "full", "lora"])
def test_kept_scores_are_those_of_the_model(trainable: str) -> None:
    subject = make_subject(trainable)
    score = KeptScores(subject)
    rows = [*subject.rows("forget"), *make_rows(5, 11)]
    for turn in range(2):
        for moments in (False, True):
            wanted = token_scores(subject.model, rows, pad_id=0, eos_id=5, moments=moments)
            found = score(subject.model, rows, pad_id=0, eos_id=5, moments=moments, tokens=40)
            for a, b in zip(wanted, found, strict=True):
                torch.testing.assert_close(a.logp, b.logp, rtol=1e-4, atol=1e-5)
                torch.testing.assert_close(a.variance, b.variance, rtol=1e-3, atol=1e-4)
                assert torch.equal(a.greedy, b.greedy)
                assert a.ends == b.ends
        if turn == 0:  # the trained blocks change; what is kept does not
            subject.put({name: t + 0.05 * torch.randn_like(t) for name, t in subject.weights().items()})
    with pytest.raises(ValueError, match="model: expected that of the subject"):
        score(make_llama(seed=1), rows, pad_id=0)


def test_an_evaluation_with_kept_scores_has_the_same_figures(byte_model: Path) -> None:
    data = rows_of.load_mini_tofu()
    tokenizer, model = make_byte_tokenizer(), models.load_model(str(byte_model))
    subject = Subject(model, tokenizer.pad_token_id, "last-1")
    settings: dict[str, Any] = {"generate": False, "limit": 4, "max_length": 300}
    wanted = evaluate_tofu(model, tokenizer, data, **settings).metrics
    found = evaluate_tofu(model, tokenizer, data, score=KeptScores(subject), **settings).metrics
    assert found == pytest.approx(wanted, rel=1e-3, abs=1e-6)
    assert json.dumps(sorted(found)) == json.dumps(sorted(wanted))


def test_what_is_frozen_is_shared_with_the_untouched_copy() -> None:
    subject = make_subject("last-1")
    copied = soul.untouched(subject)
    mine = dict(subject.model.named_parameters())
    for name, parameter in copied.named_parameters():
        assert (parameter is mine[name]) == (name not in subject.parameters)
    subject.put({name: torch.zeros_like(t) for name, t in subject.weights().items()})
    assert all(bool(copied.get_parameter(name).any()) for name in subject.parameters)
