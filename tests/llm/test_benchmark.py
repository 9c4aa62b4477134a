"""The tables' command: planning, settings, cells kept and resumed, and the page with the paper's figures."""

from __future__ import annotations

import csv
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import pytest
import task_files

from tenfold.cli import main
from tenfold.llm import (
    ZOConfig,
    benchmark,
    benchmark_memory,
    benchmark_report,
    engine,
    finetune,
    methods,
    schemes,
    zo_paper,
)
from tenfold.runs import RunFolder

MADE = {"opt": "folder/opt", "roberta": "folder/roberta"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return task_files.write_sst2(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(scope="module")
def opt(tmp_path_factory: pytest.TempPathFactory) -> str:
    return task_files.save_model("opt", tmp_path_factory.mktemp("models") / "opt")


def table(path: Path, name: str) -> list[dict[str, str]]:
    with open(path / "tables" / f"{name}.csv", newline="") as file:
        return list(csv.DictReader(file))


# -- settings ----------------------------------------------------------------------------------------------


def test_the_three_ways_to_run_and_their_defaults() -> None:
    assert ZOConfig().mode == "demo"
    one = ZOConfig(task="rte", data="somewhere", optimizer="zo-adam")
    assert (one.mode, one.scheme, one.seeds, one.restore) == ("task", "ft", [0], "auto")
    tables = ZOConfig(tables="all")
    assert (tables.mode, tables.task, tables.tables) == (
        "tables",
        "sst2",
        "accuracy,alignment,memory,ablations",
    )
    assert benchmark.is_tiny(tables)
    assert {c.job.forwards for c in benchmark.plan(tables, {"opt": "x"}, ["ablations"])} == {400}
    real = ZOConfig(tables="memory", model="folder", data="folder")
    assert not benchmark.is_tiny(real)
    assert real.forwards == 0
    assert not benchmark.is_tiny(ZOConfig(tables="memory", families="smollm2"))


def test_stored_settings_come_back_unchanged() -> None:
    import dataclasses

    for config in (ZOConfig(tables="accuracy", schemes="lora,ft"), ZOConfig(task="cb", data="x", kshot=16)):
        assert dataclasses.replace(config) == config


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tables": "acuracy"}, "tables: expected some of accuracy, alignment"),
        ({"tables": "all", "schemes": "full"}, "schemes: expected some of ft, lora"),
        ({"tables": "all", "optimizers": "zo"}, "optimizers: expected some of none, sgd"),
        ({"tables": "all", "families": "gpt2"}, "families: expected some of roberta"),
        ({"tables": "all", "optimizers": ","}, "optimizers: expected at least one of"),
        ({"tables": "all", "lr": -1.0}, "lr: expected a number > 0"),
        ({"tables": "all", "forwards": -1}, "forwards: expected a whole number >= 0"),
        ({"tables": "all", "seeds": []}, "seeds: expected at least one seed"),
        ({"task": "sst3"}, "task: expected one of"),
        ({"task": "rte"}, "data: expected a folder with the files of rte, got 'reviews'"),
        ({"task": "rte", "data": "x", "scheme": "lorra"}, "scheme: expected one of ft, lora"),
        ({"task": "rte", "data": "x", "optimizer": "sdg"}, "optimizer: expected one of none, sgd"),
        ({"task": "rte", "data": "x", "version": 3}, "version: expected 0 to 1 for rte"),
        ({"task": "rte", "data": "x", "checkpointing": True}, "checkpointing: expected sgd, adam or adamw"),
        ({"task": "rte", "data": "x", "schemes": "ft"}, "schemes: expected it with tables, got 'ft'"),
        ({"tables": "all", "trainable": "full"}, "trainable: expected it without task and tables"),
        ({"scheme": "lora"}, "scheme: expected it with task or tables"),
        ({"forwards": 5}, "forwards: expected it with task or tables"),
        ({"optimizer": "adamw"}, "optimizer: expected one of fzoo, zo-sgd, zo-adam, got 'adamw'"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ZOConfig(**settings)


# -- plans -------------------------------------------------------------------------------------------------


def test_the_accuracy_table_has_every_method_and_scheme_once() -> None:
    cells = benchmark.plan(ZOConfig(tables="accuracy"), MADE, ["accuracy"])
    places = [(cell.job.optimizer, cell.column) for cell in cells if cell.family == "opt"]
    assert len(set(places)) == len(places) == len(cells) / 2
    trained = [name for name in methods.METHODS if name not in ("none", "logreg")]
    assert {(name, scheme) for name in trained for scheme in schemes.SCHEMES} < set(places)
    assert {("none", "-"), ("logreg", "head")} < set(places)
    assert {cell.family for cell in cells} == {"opt", "roberta"}
    assert len({cell.job.key for cell in cells}) == len(cells)


def test_zeroth_order_cells_have_one_budget_of_evaluations_and_first_order_a_sixth_as_steps() -> None:
    cells = benchmark.plan(ZOConfig(tables="accuracy", forwards=120), MADE, ["accuracy"])
    for cell in cells:
        kind = methods.find(cell.job.optimizer).kind
        expected = {"first-order": (20, None), "none": (None, None), "probe": (None, None)}.get(
            kind, (None, 120)
        )
        assert (cell.job.steps, cell.job.forwards) == expected


def test_alignment_compares_the_two_templates_with_everything_else_equal() -> None:
    cells = benchmark.plan(ZOConfig(tables="alignment"), MADE, ["alignment"])
    assert len(cells) == 2 * 3 * 2
    for aligned, bare in zip(cells[::2], cells[1::2], strict=True):
        assert (aligned.job.version, bare.job.version) == (0, 1)
        assert aligned.job.lr == bare.job.lr
        assert aligned.column == "with the template"
    with pytest.raises(ValueError, match="task: expected one with two templates"):
        benchmark.plan(ZOConfig(tables="alignment", task="squad", data="x"), MADE, ["alignment"])


def test_ablations_change_one_thing_each() -> None:
    cells = benchmark.plan(ZOConfig(tables="ablations"), MADE, ["ablations"])
    base = cells[0].job
    assert (base.extra, base.num_queries) == ({}, None)
    for cell in cells[1:]:
        assert (cell.job.extra, cell.job.num_queries) != ({}, None)
        assert (cell.job.lr, cell.job.forwards, cell.job.scheme) == (base.lr, base.forwards, "ft")
    hybrid = next(cell.job.extra["hybrid"] for cell in cells if "hybrid" in cell.job.extra)
    assert isinstance(hybrid["lr"], float)


def test_every_method_has_a_learning_rate_for_every_scheme() -> None:
    for name, method in methods.METHODS.items():
        for scheme in schemes.SCHEMES:
            for tiny in (True, False):
                trained = method.kind not in ("none", "probe")
                assert (benchmark.learning_rate(name, scheme, tiny) > 0) == trained


def test_real_models_begin_with_mezos_pairs() -> None:
    config = ZOConfig(tables="accuracy", model="m", data="d")
    jobs = {c.column: c.job for c in benchmark.plan(config, {"m": "m"}, ["accuracy"])
            if c.job.optimizer == "zo-sgd"}  # fmt: skip
    pairs = {scheme: (job.lr, job.eps) for scheme, job in jobs.items()}
    assert pairs["ft"] == (1e-6, 1e-3)
    assert pairs["lora"] == (5e-5, 1e-2)
    assert pairs["prefix"] == (1e-2, 1e-1)
    assert all((job.forwards, job.steps) == (40_000, None) for job in jobs.values())


@pytest.mark.parametrize(("own", "zo", "steps"), [({}, 40_000, 625), ({"steps": 30}, 60, 10)])
def test_every_method_of_a_real_model_has_the_same_number_of_evaluations(
    own: dict[str, Any], zo: int, steps: int
) -> None:
    config = ZOConfig(tables="accuracy", model="m", data="d", **own)
    for cell in benchmark.plan(config, {"m": "m"}, ["accuracy"]):
        kind = methods.find(cell.job.optimizer).kind
        if kind in ("zo", "forward"):
            assert (cell.job.steps, cell.job.forwards) == (None, zo)
        elif kind == "first-order":
            assert (cell.job.steps, cell.job.forwards) == (steps, None)


@pytest.mark.parametrize(
    ("own", "message"),
    [
        (
            {"tables": "accuracy", "optimizers": "logreg", "schemes": "lora"},
            "optimizers: expected some that fit",
        ),
        ({"tables": "alignment", "optimizers": "logreg"}, "optimizers: expected some that fit"),
        ({"tables": "accuracy,alignment", "task": "squad"}, "task: expected one with two templates"),
        ({"tables": "accuracy,alignment", "version": 0, "kshot": 0, "optimizers": "none,logreg,sgd"}, ""),
    ],
)
def test_the_whole_plan_is_checked_before_the_first_cell(
    own: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "run_swept", lambda *a, **k: pytest.fail("a cell was run"))
    config = ZOConfig(model="m", data="d", **own)
    if not message:
        return benchmark.check_plan(config)
    with pytest.raises(ValueError, match=message):
        benchmark.run(config, RunFolder.create("zo", config, tmp_path / "run"))


def test_the_papers_figures_are_marked() -> None:
    assert zo_paper.accuracy("opt", "zo-sgd", "lora") == (90.1, True)
    assert zo_paper.accuracy("opt", "forward-grad", "ft") == (90.3, False)
    assert zo_paper.accuracy("roberta", "sgd", "ft") == (91.4, True)
    assert zo_paper.accuracy("roberta", "sgd", "lora") == (91.2, False)
    assert zo_paper.accuracy("opt", "fzoo", "ft") is None


# -- runs --------------------------------------------------------------------------------------------------


def settings(opt: str, data: Path, **own: Any) -> ZOConfig:
    given: dict[str, Any] = {
        "tables": "accuracy", "model": opt, "data": str(data), "task": "sst2", "train_size": 48,
        "dev_size": 16, "test_size": 24, "forwards": 12, "batch_size": 8, "max_length": 48,
        "optimizers": "none,sgd,zo-sgd", "schemes": "ft,lora", "memory": False,
    }  # fmt: skip
    return ZOConfig(**(given | own))


def test_a_killed_table_goes_on_with_the_next_cell(
    opt: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, plain, started = settings(opt, data), engine.prepare, []

    def prepare(job: Any) -> Any:
        started.append(job.key)
        if len(started) == 4:
            raise KeyboardInterrupt
        return plain(job)

    monkeypatch.setattr(engine, "prepare", prepare)
    folder = RunFolder.create("zo", config, tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        benchmark.run(config, folder)
    assert len(list((tmp_path / "run" / "results").glob("*.json"))) == 3
    result = finetune(config, tmp_path / "run", resume=True)
    assert len(started) == len(set(started)) + 1 == 6
    assert result.metrics["cells"] == 5
    rows = table(result.path, "accuracy-opt")
    assert [row["optimizer"] for row in rows] == ["no training", "FO-SGD", "ZO-SGD"]
    assert rows[0]["untrained"] != ""
    assert rows[1]["full"] != ""
    runs = table(result.path, "runs")
    assert {row["loss evaluations"] for row in runs if row["optimizer"] == "zo-sgd"} == {"12"}
    page = (result.path / "report.html").read_text()
    assert "OPT-1.3B" in page
    assert "91.1" in page


def test_several_seeds_are_all_run_and_joined(opt: str, data: Path, tmp_path: Path) -> None:
    config = settings(
        opt, data, optimizers="sgd,fzoo", schemes="ft", seeds=[0, 3, 5], test_size=1000, lr=0.05
    )
    result = finetune(config, tmp_path / "run")
    runs = table(result.path, "runs")
    assert [row["seed"] for row in runs] == ["0", "3", "5"] * 2
    found = [100 * float(row["test accuracy"]) for row in runs[:3]]
    mean, sd = table(result.path, "accuracy-opt")[0]["full"].split(" ± ")
    assert float(mean) == pytest.approx(statistics.mean(found), abs=0.06)
    assert float(sd) == pytest.approx(statistics.stdev(found), abs=0.06)
    assert result.metrics["accuracy-opt-sgd-ft/test_accuracy"] == pytest.approx(float(mean) / 100, abs=6e-4)
    page = (result.path / "report.html").read_text()
    stored = json.loads((result.path / "results" / "accuracy-opt-sgd-ft-seed3.json").read_text())
    held = stored["sizes"]["test"]
    assert held < 1000
    assert f"on {held} held-out examples, of 3 runs (mean ± standard deviation" in page
    assert "Methods without back-propagation had 18 evaluations of the loss in each run" in page
    assert "Back-propagation had 2 steps in each run" in page
    assert "1000 examples" not in page


def test_the_interval_is_over_the_examples_there_are(opt: str, data: Path, tmp_path: Path) -> None:
    config = settings(opt, data, tables="", optimizers="", schemes="", optimizer="none", test_size=1000)
    page = (finetune(config, tmp_path / "run").path / "report.html").read_text()
    held = json.loads((tmp_path / "run" / "results" / "sst2-ft-none-seed0.json").read_text())["sizes"]["test"]
    assert f"95 % interval over {held} examples" in page


def test_claims_about_another_task_are_not_made(opt: str, tmp_path: Path) -> None:
    found = {"test": {"loss": 1.0, "accuracy": 0.5}, "before": {"loss": 1.0}, "dev": {"loss": 1.0}}
    config = ZOConfig(tables="accuracy,alignment", model="m", data="d", task="rte")
    cells = [(cell, found) for cell in benchmark.plan(config, {"m": "m"}, ["accuracy", "alignment"])]
    assert benchmark_report._claims(benchmark.Tables(config, cells, [], [], {"m": "m"}, False)) == []


def test_alignment_and_ablations_make_their_tables(
    opt: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = [variant for variant in benchmark.VARIANTS
            if variant[0] in ("ZO-SGD", "one-sided", "hybrid, SGD on the last layer",
                              "block-wise, one block per layer", "sparse, 50 % masked")]  # fmt: skip
    monkeypatch.setattr(benchmark, "VARIANTS", tuple(some))
    config = settings(opt, data, tables="alignment,ablations", optimizers="sgd,zo-sgd")
    result = finetune(config, tmp_path / "run")
    rows = table(result.path, "alignment")
    assert [row["optimizer"] for row in rows] == ["FO-SGD", "ZO-SGD"]
    for row in rows:
        gain = float(row["with the template"]) - float(row["without"])
        assert float(row["gain"]) == pytest.approx(gain, abs=0.11)
    assert rows[1]["paper, with"] == "89.4"
    assert rows[1]["paper checked"] == "no"
    variants = table(result.path, "ablations")
    assert [row["variant"] for row in variants] == [name for name, _ in some]
    assert {name: result.path / "figures" / f"{name}.svg" for name in ("alignment", "ablations")}
    assert all(
        (result.path / "figures" / f"{n}.svg").stat().st_size > 5000 for n in ("alignment", "ablations")
    )


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_memory_table_measures_each_row_in_its_own_process(tmp_path: Path) -> None:
    config = ZOConfig(tables="memory", optimizers="none,zo-sgd,sgd,adam")
    rows = benchmark_memory.measure(
        config, RunFolder.create("zo", config, tmp_path / "run"), {"opt": ""}, True
    )
    by_label = {row["what"]: row["above_model_mib"] for row in rows if row["scheme"] == "ft"}
    weights = 4 * rows[0]["parameters"] / 2**20
    assert by_label["ZO-SGD"] <= by_label["inference, one forward"] + 16
    assert by_label["ZO-SGD, clean copy of the weights"] >= by_label["ZO-SGD"] + 0.7 * weights
    assert by_label["FO-Adam"] >= by_label["FO-SGD"] + 1.5 * weights
    assert by_label["FO-SGD, checkpointing"] < by_label["FO-SGD"]
    assert all(row["ms"] > 0 for row in rows)


def test_a_failing_measurement_is_told(tmp_path: Path) -> None:
    answers = benchmark_memory._ask([{"model": {"family": "gpt2"}, "dtype": "float32", "device": "cpu"}])
    assert "family: expected one of roberta" in next(iter(answers))["error"]


# -- one run -----------------------------------------------------------------------------------------------


def test_one_task_from_the_command_line(
    opt: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    code = main([
        "run", "zo", "--task", "sst2", "--model", opt, "--data", str(data), "--scheme", "lora", "--optimizer",
        "zo-adam", "--steps", "6", "--lr", "1e-2", "--train_size", "48", "--dev_size", "16", "--test_size",
        "24", "--seeds", "[0,1]", "--batch_size", "8", "--out", str(out),
    ])  # fmt: skip
    assert code == 0
    stored = json.loads((out / "metrics.json").read_text())["metrics"]
    assert stored["forwards_per_seed"] == 12
    assert stored["accuracy_after"] == pytest.approx(
        (stored["accuracy_after_seed0"] + stored["accuracy_after_seed1"]) / 2
    )
    for seed in (0, 1):
        assert (out / "checkpoints" / f"sst2-lora-zo-adam-seed{seed}.safetensors").exists()
        assert json.loads((out / "results" / f"sst2-lora-zo-adam-seed{seed}.json").read_text())["steps"] == 6
    assert "Accuracy on held-out examples" in capsys.readouterr().out
    assert len(table(out, "steps")) == 12


def test_a_sweep_chooses_on_dev_and_scores_test_once(
    opt: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored: list[str] = []
    score = engine.Objective.score

    def counted(self: Any, split: str, *rest: Any, **options: Any) -> Any:
        scored.append(split)
        return score(self, split, *rest, **options)

    monkeypatch.setattr(engine.Objective, "score", counted)
    config = ZOConfig(
        task="sst2", model=opt, data=str(data), optimizer="sgd", lr=0.1, steps=4, sweep=[1e-6, 1, 1e9],
        train_size=48, dev_size=16, test_size=24, batch_size=8,
    )  # fmt: skip
    out = finetune(config, tmp_path / "run").path
    tried = {float(row["lr"]): float(row["dev loss"]) for row in table(out, "sweep")}
    assert len(tried) == 3
    best = min(tried, key=lambda lr: tried[lr])
    assert tried[0.1] < tried[1e-7]
    (row,) = table(out, "runs")
    assert float(row["lr"]) == best
    assert scored.count("test") == 1


def test_a_sweep_belongs_to_tasks_and_tables() -> None:
    with pytest.raises(ValueError, match="sweep: expected it with task or tables"):
        ZOConfig(sweep=[1.0])
    for bad in ([0.0], [float("nan")], [1.0, 1.0]):
        with pytest.raises(ValueError, match="sweep: expected"):
            ZOConfig(task="rte", data="x", sweep=bad)


def test_question_answering_is_scored_by_generating(opt: str, tmp_path: Path) -> None:
    home = task_files.write_squad(tmp_path / "tasks")
    config = ZOConfig(
        task="squad", model=opt, data=str(home), optimizer="sgd", lr=0.1, steps=2, train_size=12, dev_size=4,
        test_size=4, batch_size=4, max_length=120,
    )  # fmt: skip
    result = finetune(config, tmp_path / "run")
    assert 0 <= result.metrics["f1_after"] <= 1
    assert "em" in table(result.path, "runs")[0].keys().__str__()


# -- the whole command -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.demo
def test_all_tables_on_the_embedded_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tenfold.llm import families

    plain = families.pretrained
    monkeypatch.setattr(families, "pretrained", lambda *a, **k: plain(*a, **(k | {"steps": 5})))
    config = ZOConfig(tables="all", forwards=10, train_size=64, dev_size=32, test_size=64)
    result = finetune(config, tmp_path / "run")
    for name in ("accuracy-opt", "paper-opt", "alignment", "memory", "ablations", "runs", "curves"):
        assert table(result.path, name)
    assert len(table(result.path, "accuracy-opt")) == len(methods.METHODS)
    assert len(table(result.path, "memory")) >= len(benchmark_memory.ROWS)
    page = (result.path / "report.html").read_text()
    for words in ("Task alignment", "Memory and time", "Block-wise, hybrid, sparse", "RoBERTa-large"):
        assert words in page
