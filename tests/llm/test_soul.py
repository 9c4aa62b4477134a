"""The workflow from end to end on a tiny model, through the same door as the command."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from soul_tiny import save_byte_model

from tenfold.llm import models, zo
from tenfold.llm.unlearn import fused, soul, soul_task, teach
from tenfold.llm.unlearn.methods import METHODS, SOUL_NAMES
from tenfold.llm.unlearn.soul import Attempt, choose, unlearn
from tenfold.llm.unlearn.soul_config import SoulConfig
from tenfold.llm.unlearn.trainer import History, Job
from tenfold.runs import RunFolder


@pytest.fixture(scope="module")
def byte_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_byte_model(tmp_path_factory.mktemp("model"))


def make_config(byte_model: Path, **own: Any) -> SoulConfig:
    settings: dict[str, Any] = {
        "model": str(byte_model), "method": "graddiff,npo", "optimizer": "adamw,sophia,soul-legacy,sign",
        "trainable": "last-2", "epochs": 1.0, "batch_size": 10, "lr": [1e-3, 1e-2], "teach_epochs": 1.0,
        "limit": 3, "max_new_tokens": 4, "max_length": 300, "full_evaluation": "adamw,sophia",
    }  # fmt: skip
    return SoulConfig(**(settings | own))


@pytest.fixture(scope="module")
def result(byte_model: Path, tmp_path_factory: pytest.TempPathFactory) -> soul.Result:
    return unlearn(make_config(byte_model), tmp_path_factory.mktemp("runs") / "run")


def table(result: soul.Result, name: str) -> list[dict[str, str]]:
    with open(result.path / "tables" / f"{name}.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_numbers_and_tables(result: soul.Result) -> None:
    stored = json.loads((result.path / "metrics.json").read_text())["metrics"]
    assert stored == pytest.approx(result.metrics)
    runs = table(result, "runs")
    assert len(runs) == 2 * 4 * 2
    assert sum(row["chosen"] == "yes" for row in runs) == 8
    for name in ("graddiff-adamw", "npo-sign"):
        fell = stored["forget_prob_before"] / stored[f"{name}.forget_prob"]
        assert stored[f"{name}.forget_fall"] == pytest.approx(fell)
    assert stored["graddiff-sign.win_rate"] == 0
    assert "graddiff-sophia.evaluation.forget_quality" in stored
    assert [row["model"] for row in table(result, "evaluation")][:2] == [
        "taught",
        "never taught the two authors",
    ]
    assert len(table(result, "steps")) == 16 * 2


def test_the_page_shows_pictures_answers_and_what_it_cannot_show(result: soul.Result) -> None:
    page = (result.path / "report.html").read_text(encoding="utf-8")
    for words in ("can and cannot show", "sign-momentum", "arXiv 2404.18239", "Forgetting against keeping"):
        assert words in page
    for name in ("tradeoff", "win-rate", "training"):
        assert (result.path / "figures" / f"{name}.png").stat().st_size > 2000


def test_a_checkpoint_brings_the_unlearned_model_back(result: soul.Result, byte_model: Path) -> None:
    model = models.load_model(str(byte_model))
    names = zo.load_trained(model, result.path / "checkpoints" / "graddiff-sophia.safetensors")
    assert names
    assert all(name.startswith(("model.layers.1.", "model.layers.2.")) for name in names)
    logs = json.loads((result.path / "evaluation" / "graddiff-sophia" / "TOFU_EVAL.json").read_text())
    assert logs["forget_Q_A_Prob"]["agg_value"] == pytest.approx(
        result.metrics["graddiff-sophia.evaluation.forget_prob"]
    )


def test_an_interrupted_run_goes_on_to_the_same_numbers(
    result: soul.Result, byte_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    attempts = iter(range(100))
    whole = soul.attempt

    def dies(*args: Any) -> Any:
        if next(attempts) == 5:
            raise Killed
        return whole(*args)

    monkeypatch.setattr(soul, "attempt", dies)
    with pytest.raises(Killed):
        unlearn(make_config(byte_model), tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.json").exists()
    monkeypatch.setattr(soul, "attempt", whole)
    resumed = unlearn(make_config(byte_model), tmp_path / "run", resume=True)
    same = {k: v for k, v in result.metrics.items() if "seconds" not in k}
    assert {k: v for k, v in resumed.metrics.items() if "seconds" not in k} == same


def test_a_method_that_loses_its_loss_overwrites_nothing(
    byte_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(byte_model, method="graddiff", optimizer="adamw", lr=[1e6])
    loss = fused.loss

    def spoiled(method: str, *args: Any, **kwargs: Any) -> Any:
        value, parts = loss(method, *args, **kwargs)
        return value * (float("nan") if method == "graddiff" else 1.0), parts

    monkeypatch.setattr(fused, "loss", spoiled)
    with pytest.raises(RuntimeError, match="expected a finite number"):
        unlearn(config, tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.json").exists()
    assert not (tmp_path / "run" / "checkpoints").exists()


def _attempt(optimizer: str, lr: float, forget: float, retain: float, seed: int = 0) -> Attempt:
    job = Job(key=f"{optimizer}{lr}{seed}", method="npo", optimizer=optimizer, lr=lr, seed=seed)
    return Attempt(job, History(), {"forget": forget, "retain": retain})


def test_the_chosen_run_forgets_most_of_those_that_keep_enough() -> None:
    tried = [
        _attempt("adamw", 1.0, 0.5, 0.85),
        _attempt("adamw", 2.0, 0.2, 0.73),
        _attempt("adamw", 3.0, 0.0, 0.6),
        _attempt("sign", 1.0, 0.1, 0.5),
        _attempt("sign", 2.0, 0.0, 0.3),
        _attempt("sign", 3.0, 0.0, 0.9, seed=1),
    ]
    chosen = choose(tried, 0.9)
    assert chosen["npo-adamw"] is tried[1]
    assert chosen["npo-sign"] is tried[3]  # none keeps enough: the one that keeps most, of the first seed


def test_the_cache_is_found_by_what_was_taught(tmp_path: Path) -> None:
    from soul_tiny import make_subject

    folder = RunFolder.create("soul", Job(key="x", method="teach"), tmp_path / "run")
    settings: dict[str, Any] = {"model": "tiny", "label": "a", "folder": folder, "cache": tmp_path / "cache"}
    first, cached = teach.taught(make_subject(), ["forget", "retain"], epochs=2.0, **settings)
    assert not cached
    again, cached = teach.taught(make_subject(), ["forget", "retain"], epochs=2.0, **settings)
    assert cached
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())
    _, cached = teach.taught(
        make_subject(), ["forget", "retain"], epochs=2.0, **(settings | {"model": "other", "label": "b"})
    )
    assert not cached
    assert len(list((tmp_path / "cache" / "soul").glob("*.safetensors"))) == 2


# -- settings ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"method": "graddif"}, "method: expected one of"),
        ({"optimizer": "adam"}, "optimizer: expected one of"),
        ({"task": "tofuu", "data": "x"}, "task: expected one of"),
        ({"task": "tofu"}, "data: expected the files of tofu"),
        ({"lr": [0.0]}, "lr: expected numbers > 0"),
        ({"rho": "-1"}, "rho: expected 'auto' or a number > 0"),
        ({"method": "npo,npo"}, "method: expected each name once"),
        ({"options": {"beta": 0.2}}, "options: expected one method"),
        ({"seeds": [1, 1]}, "seeds: expected different seeds"),
        ({"soul_config": "nowhere.json"}, "soul_config: expected a JSON file"),
        ({"lr": []}, r"lr: expected numbers > 0, got \[\]"),
        ({"gamma": -1.0}, "gamma: expected a number >= 0, got -1.0"),
        ({"clip": float("nan")}, "clip: expected a number >= 0"),
        ({"weight_decay": -0.1}, "weight_decay: expected a number >= 0"),
        ({"epochs": 0.0}, "epochs: expected a number > 0"),
        ({"teach_epochs": -1.0}, "teach_epochs: expected a number > 0"),
        ({"limit": 0}, "limit: expected a whole number >= 1"),
        ({"max_length": 1}, "max_length: expected a whole number >= 2"),
        ({"seeds": [-1]}, "seeds: expected whole numbers in"),
        ({"trainable": "last-x"}, "trainable: expected 'full', 'last-N' or 'lora'"),
        ({"template": "no place"}, "template: expected 'llama'"),
        ({"full_evaluation": "adam"}, "full_evaluation: expected best, all or names of adamw"),
        ({"method": "npo", "options": {"gamma": 1.0}}, "options: expected beta, per for npo, got 'gamma'"),
        ({"method": "npo", "options": {"beta": 0.0}}, "options: expected a number > 0 as beta"),
        ({"save_seconds": -1.0}, "save_seconds: expected a number >= 0"),
    ],
)
def test_wrong_settings_are_named(own: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SoulConfig(**own)


def test_filled_settings_stay_when_a_config_is_read_again() -> None:
    import dataclasses

    config = SoulConfig(preset="quick", batch_size=3)
    assert (config.batch_size, config.methods, config.retain_model) == (3, ["npo"], False)
    assert SoulConfig(**dataclasses.asdict(config)) == config
    everything = SoulConfig(tables=True)
    assert {"npo", "rmu", "pdu", "undial"} <= set(everything.methods)


@pytest.mark.parametrize("sophia", [True, False])
def test_souls_configuration_files_are_read(tmp_path: Path, sophia: bool) -> None:
    stored: dict[str, Any] = {
        "overall": {"model_name": "some/model", "seed": 3},
        "unlearn": {"unlearn_method": "GA+FT", "num_epochs": 5, "lr": 5e-6, "weight_decay": 0.1,
                    "gradient_accumulation_steps": 4, "task_name": "tofu", "GA+FT": {"gamma": 2}},
        "dataset": {"forget_dataset_name": "Tofu_forget05", "batch_size": 1, "forget_ratio": 20,
                    "dataset_seed": 1001, "self_retain": False},
    }  # fmt: skip
    if sophia:
        stored["unlearn"] |= {"sophia": True, "sophia_params": {"rho": 0.05}}
    path = tmp_path / "SO_GradDiff.json"
    path.write_text(json.dumps(stored))
    config = SoulConfig(soul_config=str(path), data="TOFU")
    assert config.method == "graddiff"
    assert config.optimizer == ("soul-legacy" if sophia else "adamw")
    assert (config.rho, config.gamma, config.epochs, config.accumulation) == (
        "0.05" if sophia else "",
        2,
        5,
        4,
    )
    assert (config.task, config.forget, config.model, config.seeds) == ("tofu", "forget05", "some/model", [3])
    assert (config.forget_ratio, config.dataset_seed, config.self_retain) == (20, 1001, False)
    assert (config.template, config.max_length) == ("question", 512)
    for name, data, template, length in (
        ("locuslab/tofu_ft_llama2-7b", "Tofu_forget05", "soul_legacy", 512),
        ("some/llama", "HP", "question", 1024),
    ):
        stored["overall"]["model_name"] = name
        stored["dataset"]["forget_dataset_name"] = data
        path.write_text(json.dumps(stored))
        config = SoulConfig(soul_config=str(path), data="TOFU")
        assert (config.template, config.max_length) == (template, length)
    assert SoulConfig(soul_config=str(path), data="TOFU", template="llama").template == "llama"
    stored["unlearn"]["unlearn_method"] = "GA+XX"
    path.write_text(json.dumps(stored))
    with pytest.raises(ValueError, match=r"soul_config: expected one of GA, GA\+FT"):
        SoulConfig(soul_config=str(path), data="TOFU")
    assert {"GA+FT", "CL+FT", "KL", "NPO", "RL", "FT", "l1_sparse"} <= set(SOUL_NAMES)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "soul_config: expected a JSON object, got list"),
        ({"unlearn": []}, "soul_config: expected an object under 'unlearn', got list"),
        ({"unlearn": {"unlearn_method": "GA", "lr": "x"}}, "soul_config: expected a number as 'lr', got 'x'"),
        (
            {"unlearn": {"unlearn_method": "GA", "sophia": True, "sophia_params": {"betas_low": 0.8}}},
            "soul_config: expected betas 0.9 and 0.95",
        ),
    ],
)
def test_a_malformed_configuration_file_is_named(tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        SoulConfig(soul_config=str(path), data="TOFU")


# -- real data in its published files ------------------------------------------------------------------------


def _tofu_folder(folder: Path) -> Path:
    from test_unlearn_data import write

    for config in (
        "forget10", "retain90", "forget10_perturbed", "retain_perturbed", "real_authors_perturbed",
        "world_facts_perturbed",
    ):  # fmt: skip
        write(folder, config, 4)
    return folder


def test_a_tofu_task_and_the_evaluation_of_what_it_saved(byte_model: Path, tmp_path: Path) -> None:
    data = _tofu_folder(tmp_path)
    shared: dict[str, Any] = {
        "task": "tofu", "data": str(data), "model": str(byte_model), "max_new_tokens": 4, "limit": 2,
    }  # fmt: skip
    config = SoulConfig(
        **shared, method="graddiff,po", optimizer="adamw", lr=[1e-2], trainable="full", epochs=2.0
    )
    found = unlearn(config, tmp_path / "run")
    key = "graddiff-adamw-lr0.01-seed0"
    assert found.metrics[f"{key}.forget_prob"] != found.metrics["before.forget_prob"]
    saved = found.path / "checkpoints" / key
    again = unlearn(SoulConfig(**shared, evaluate=str(saved)), tmp_path / "again")
    assert again.metrics["model.forget_prob"] == pytest.approx(found.metrics[f"{key}.forget_prob"], rel=1e-5)
    adapter = SoulConfig(**shared, method="po", optimizer="sophia", lr=[1e-2], trainable="lora", epochs=2.0)
    tuned = unlearn(adapter, tmp_path / "lora")
    key = "po-sophia-lr0.01-seed0"
    file = tuned.path / "checkpoints" / key / "adapter.safetensors"
    again = unlearn(SoulConfig(**shared, evaluate=str(file)), tmp_path / "adapted")
    assert again.metrics["model.forget_prob"] == pytest.approx(tuned.metrics[f"{key}.forget_prob"], rel=1e-5)


def test_influence_unlearning_of_a_task_scores_every_alpha(byte_model: Path, tmp_path: Path) -> None:
    config = SoulConfig(
        task="tofu", data=str(_tofu_folder(tmp_path)), model=str(byte_model), max_new_tokens=2, limit=2,
        method="iu", solver="woodfisher", alpha=[0.01, 5.0], curvature_rows=3, damp=1.0, trainable="lora",
        save=False,
    )  # fmt: skip
    found = unlearn(config, tmp_path / "run")
    small, large = table(found, "steps")
    assert (small["alpha"], large["alpha"]) == ("0.01", "5.0")
    for part in ("forget", "retain"):
        change = float(small[part]) - float(small[f"{part}_before"])
        assert change == pytest.approx(float(small[f"{part}_predicted"]), rel=0.5, abs=1e-5)
    told = [found.metrics[f"iu-woodfisher-alpha{alpha}-seed0.forget_prob"] for alpha in ("0.01", "5")]
    assert len({*told, found.metrics["before.forget_prob"]}) == 3


def test_copyright(byte_model: Path, tmp_path: Path) -> None:
    forget, retain = tmp_path / "hp.jsonl", tmp_path / "c4.jsonl"
    forget.write_text(
        "".join(
            json.dumps({"prompt": f"Go on: part {i}", "response": f"the end {i}"}) + "\n" for i in range(4)
        )
    )
    retain.write_text("".join(json.dumps({"text": f"weather report {i}"}) + "\n" for i in range(4)))
    config = SoulConfig(
        task="copyright", data=str(forget), retain=str(retain), model=str(byte_model), method="po",
        optimizer="sign", lr=[1e-3], epochs=1.0, max_new_tokens=4, limit=2,
    )  # fmt: skip
    found = unlearn(config, tmp_path / "run").metrics
    assert found["before.retain_perplexity"] > 1
    assert any(name.startswith("po-sign") and "bleu" in name for name in found)
    with pytest.raises(ValueError, match="retain: expected at least one row, got an empty set"):
        unlearn(SoulConfig(task="copyright", data=str(forget), model=str(byte_model)), tmp_path / "none")
    retain.write_text(json.dumps({"text": "a"}) + "\n{broken\n")
    with pytest.raises(ValueError, match="line 2"):
        unlearn(config, tmp_path / "broken")
    assert not (tmp_path / "broken" / "metrics.json").exists()


def _copyright_files(folder: Path, answer: str = "the end") -> tuple[Path, Path]:
    forget, retain = folder / "hp.jsonl", folder / "c4.jsonl"
    rows = [{"prompt": f"Go on: part {i}", "response": f"{answer} {i}"} for i in range(6)]
    forget.write_text("".join(json.dumps(row) + "\n" for row in rows))
    retain.write_text("".join(json.dumps({"text": f"weather report {i}"}) + "\n" for i in range(4)))
    return forget, retain


def test_rows_of_forget_ratio_are_those_of_the_published_code(tmp_path: Path) -> None:
    import random

    forget, retain = _copyright_files(tmp_path)
    settings: dict[str, Any] = {"task": "copyright", "data": str(forget), "retain": str(retain)}
    drawn = random.Random(1000).sample(range(6), 2)
    for ratio in (2.0, 0.4):
        data = soul_task.load(SoulConfig(**settings, forget_ratio=ratio)).data
        assert [row.index for row in data.forget] == drawn
        assert {row.index for row in data.forget_eval} == set(drawn)
        assert len(data.retain) == 4
    data = soul_task.load(SoulConfig(**settings, forget_ratio=2.0, self_retain=True)).data
    assert {row.index for row in data.retain} == set(range(6)) - set(drawn)
    with pytest.raises(ValueError, match="forget_ratio: expected 1 to 6 rows, got 7"):
        soul_task.load(SoulConfig(**settings, forget_ratio=7.0))


def test_rows_too_long_are_counted_and_told(byte_model: Path, tmp_path: Path) -> None:
    forget, retain = _copyright_files(tmp_path, "a rather long way to the end")
    lines = forget.read_text().splitlines(keepends=True)
    lines[2] = json.dumps({"prompt": "Go on. " * 9, "response": "so"}) + "\n"
    forget.write_text("".join(lines))
    config = SoulConfig(
        task="copyright", data=str(forget), retain=str(retain), model=str(byte_model), method="dpo",
        optimizer="adamw", lr=[1e-3], epochs=1.0, max_new_tokens=2, limit=1, max_length=48,
    )  # fmt: skip
    found = unlearn(config, tmp_path / "run")
    assert found.metrics["forget_truncated"] == 6
    assert found.metrics["forget_unlabelled"] == 1
    page = (tmp_path / "run" / "report.html").read_text()
    assert "1 rows of forget are longer than 48 tokens and were left out" in page
    assert "forget_unlabelled: 1 rows" in (tmp_path / "run" / "log.txt").read_text()


def test_refusals_stand_beside_the_answers_that_they_replace() -> None:
    from tenfold.llm.unlearn.data import Encoded

    sets = {name: [Encoded([1], [1], i) for i in rows] for name, rows in
            (("forget", (0, 2, 3)), ("refusal", (0, 1, 3)), ("retain", (0, 1)))}  # fmt: skip
    soul._keep_pairs(sets)
    assert [[row.index for row in sets[name]] for name in sets] == [[0, 3], [0, 3], [0, 1]]


def test_ascent_needs_no_retain_rows_but_curvature_of_them_does(byte_model: Path, tmp_path: Path) -> None:
    forget, _ = _copyright_files(tmp_path)
    settings: dict[str, Any] = {
        "task": "copyright", "data": str(forget), "model": str(byte_model), "method": "ga", "lr": [1e-3],
        "epochs": 1.0, "max_new_tokens": 2, "limit": 1, "save": False,
    }  # fmt: skip
    with pytest.raises(ValueError, match="hessian_source: expected 'forget' without retain rows"):
        unlearn(SoulConfig(**settings, optimizer="sophia"), tmp_path / "none")
    found = unlearn(
        SoulConfig(**settings, optimizer="adamw,sophia", hessian_source="forget"), tmp_path / "run"
    )
    assert any(name.startswith("ga-sophia") for name in found.metrics)


def test_options_from_the_command_line_are_floats(byte_model: Path, tmp_path: Path) -> None:
    forget, retain = _copyright_files(tmp_path)
    config = SoulConfig(
        task="copyright", data=str(forget), retain=str(retain), model=str(byte_model), method="rmu",
        options={"block": 1.0}, optimizer="sign", lr=[1e-3], epochs=1.0, max_new_tokens=2, limit=1,
    )  # fmt: skip
    assert unlearn(config, tmp_path / "run").metrics


def test_states_are_saved_as_often_as_asked(
    byte_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[bool] = []
    from tenfold.llm.unlearn import trainer

    whole = trainer._save
    monkeypatch.setattr(
        trainer,
        "_save",
        lambda running, folder, done: (saved.append(done), whole(running, folder, done=done)),
    )
    forget, retain = _copyright_files(tmp_path)
    settings: dict[str, Any] = {
        "task": "copyright", "data": str(forget), "retain": str(retain), "model": str(byte_model),
        "optimizer": "sign", "lr": [1e-3], "epochs": 2.0, "max_new_tokens": 2, "limit": 1, "save": False,
    }  # fmt: skip
    unlearn(SoulConfig(**settings, save_seconds=0.0), tmp_path / "often")
    assert saved == [False, False, False, True]  # 2 epochs of 6 rows in steps of 4
    saved.clear()
    unlearn(SoulConfig(**settings, save_seconds=1e9), tmp_path / "once")
    assert saved == [True]


def test_toxicity(byte_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forget, retain, prompts = (tmp_path / name for name in ("pku.jsonl", "c4.jsonl", "rtp.jsonl"))
    row = {
        "response_0": "be rude",
        "response_1": "be kind",
        "is_response_0_safe": False,
        "is_response_1_safe": True,
    }
    forget.write_text("".join(json.dumps({"prompt": f"Say {i}", **row}) + "\n" for i in range(4)))
    retain.write_text("".join(json.dumps({"text": f"weather report {i}"}) + "\n" for i in range(4)))
    prompts.write_text("".join(json.dumps({"prompt": {"text": f"You are {i}"}}) + "\n" for i in range(3)))
    monkeypatch.setattr(soul_task, "profanity_scorer", lambda: lambda texts: [0.25 for _ in texts])
    settings: dict[str, Any] = {
        "task": "toxicity", "data": str(forget), "retain": str(retain), "model": str(byte_model),
        "method": "npo", "optimizer": "sign", "lr": [1e-3], "epochs": 1.0, "max_new_tokens": 4, "limit": 2,
    }  # fmt: skip
    asked: list[str] = []
    whole = soul_task.evaluate_toxicity

    def evaluate(*args: Any, template: str, **own: Any) -> Any:
        asked.append(template)
        return whole(*args, template=template, **own)

    monkeypatch.setattr(soul_task, "evaluate_toxicity", evaluate)
    found = unlearn(SoulConfig(**settings, test=str(prompts)), tmp_path / "run").metrics
    assert asked == ["none", "none"]  # prompts to be continued as they stand
    scores = {name: value for name, value in found.items() if name.endswith("toxicity")}
    assert set(scores.values()) == {0.25}
    assert len({name.split(".")[0] for name in scores}) == 2  # before and after
    with pytest.raises(ValueError, match="test: expected a file of prompts with toxicity"):
        unlearn(SoulConfig(**settings), tmp_path / "none")


@pytest.mark.slow  # half a minute
def test_tables_hold_every_method_under_every_optimizer(byte_model: Path, tmp_path: Path) -> None:
    config = make_config(byte_model, tables=True, method="", optimizer="", lr=[1e-3], max_new_tokens=2)
    found = unlearn(config, tmp_path / "run")
    methods = [name for name in METHODS if name != "teach"]
    optimizers = ["adamw", "sophia", "soul-legacy", "sign"]
    assert len(table(found, "runs")) == len(methods) * len(optimizers)
    for method in methods:
        for optimizer in optimizers:
            assert 0 <= found.metrics[f"{method}-{optimizer}.forget_prob"] <= 1


@pytest.mark.demo
@pytest.mark.slow
def test_the_real_model_forgets_two_authors_and_keeps_the_others(tmp_path: Path) -> None:
    metrics = unlearn(SoulConfig(preset="quick", cache=str(tmp_path / "cache")), tmp_path / "run").metrics
    assert metrics["parameters"] == 134_515_008
    assert metrics["npo-sophia.forget_fall"] >= 5
    assert metrics["npo-sophia.retain_kept"] >= 0.8
    assert metrics["facts_prob_before"] > 0.9
    assert 0.1 <= metrics["npo-sophia.win_rate"] <= 0.5
