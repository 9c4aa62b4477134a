"""Runs of the engine on tiny models: what is trained, chosen, scored, counted, kept and resumed."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import task_files
import torch

from tenfold.llm import engine, linear_probe, methods, models, schemes
from tenfold.llm.engine import Job, run_job
from tenfold.llm.objective import Objective
from tenfold.runs import RunFolder


@dataclasses.dataclass
class Settings:
    seed: int = 0


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return task_files.write_sst2(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(scope="module")
def opt(tmp_path_factory: pytest.TempPathFactory) -> str:
    return task_files.save_model("opt", tmp_path_factory.mktemp("models") / "opt")


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.create("test", Settings(), tmp_path / "run")


def job(opt: str, data: Path, **own: Any) -> Job:
    settings: dict[str, Any] = {
        "key": "one", "model": opt, "task": "sst2", "data": str(data), "lr": 3e-3, "steps": 12, "looks": 3,
        "train_size": 64, "dev_size": 24, "test_size": 30, "max_length": 48,
    }  # fmt: skip
    return Job(**(settings | own))


def test_back_propagation_learns_and_the_step_is_chosen_on_dev(
    opt: str, data: Path, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored: list[str] = []
    plain = Objective.score
    monkeypatch.setattr(Objective, "score", lambda self, s: scored.append(s) or plain(self, s))  # type: ignore[func-returns-value]
    found = run_job(job(opt, data, optimizer="adam", lr=1e-2, steps=30), folder)
    assert scored == ["dev"] * 4 + ["test"]
    losses = [row["loss"] for row in found["evals"]]
    assert found["dev"]["loss"] == min(losses) < losses[0] - 0.05
    assert found["test"]["accuracy"] > 0.6
    assert (found["steps"], found["queries"], found["backwards"]) == (30, 30, 30)


def test_the_weights_of_the_best_look_are_the_ones_tested_and_kept(
    opt: str, data: Path, folder: RunFolder
) -> None:
    found = run_job(job(opt, data, optimizer="sgd", lr=2.0, steps=9, scheme="lora", keep=True), folder)
    losses = [row["loss"] for row in found["evals"]]
    assert found["best_step"] == found["evals"][losses.index(min(losses))]["step"]
    adapted, objective, _ = engine.prepare(job(opt, data, scheme="lora"))
    adapted.detach()
    again = schemes.load_adapter(adapted.model, folder.path / "checkpoints" / "one.safetensors")
    objective.adapted = again
    assert objective.score("test") == pytest.approx(found["test"], rel=1e-5)


def test_zeroth_order_training_lowers_the_dev_loss(opt: str, data: Path, folder: RunFolder) -> None:
    found = run_job(job(opt, data, optimizer="fzoo", lr=1e-2, steps=25), folder)
    assert found["dev"]["loss"] < found["before"]["loss"]
    assert found["queries"] == 25 * 9
    assert found["trainable"] == found["parameters"]
    assert all(found["step_ms"][part] > 0 for part in ("forwards", "passes", "rest"))
    assert found["step_ms"]["backwards"] == 0


def test_a_budget_of_forwards(opt: str, data: Path, folder: RunFolder) -> None:
    for key, optimizer, queries, steps in (("a", "zo-sgd", None, 10), ("b", "fzoo", 4, 4)):
        found = run_job(
            job(opt, data, key=key, optimizer=optimizer, steps=None, forwards=20, num_queries=queries), folder
        )
        assert found["steps"] == steps
        assert found["queries"] in (20, 20)
        assert len(found["evals"]) == 4


def no_choice(running: Any) -> None:
    """A look at dev that keeps nothing: the last weights stay."""
    row = {"step": len(running.history.steps), "forwards": 0, "train_seconds": 0.0, "loss": 1.0}
    running.history.dev.append(row)


def test_evaluations_are_counted_as_they_are_made(
    opt: str, data: Path, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    plain = Objective.loss
    monkeypatch.setattr(Objective, "loss", lambda self, batch: calls.append(1) or plain(self, batch))  # type: ignore[func-returns-value]
    hybrid = {"hybrid": {"last": 1, "optimizer": "sgd", "lr": 0.01}}
    blocks = {"blocks": {"level": "block"}}
    for key, optimizer, extra, backwards in (
        ("a", "zo-sgd", hybrid, 4), ("b", "zo-sgd", blocks, 0), ("c", "zo-cons", {}, 0),
        ("d", "hizoo", {}, 0), ("e", "adam", {}, 4), ("f", "forward-grad", {}, 0),
    ):  # fmt: skip
        calls.clear()
        settings = job(opt, data, key=key, optimizer=optimizer, lr=1e-3, steps=4, extra=extra)
        found = run_job(settings, folder)
        assert (found["queries"], found["backwards"]) == (len(calls), backwards), key


@pytest.mark.parametrize("scheme", schemes.SCHEMES)
@pytest.mark.parametrize("optimizer", ["adamw", "zo-sgd", "zo-adam"])
def test_every_scheme_trains_its_own_tensors_only(
    scheme: str, optimizer: str, opt: str, data: Path, folder: RunFolder
) -> None:
    adapted, _, _ = engine.prepare(job(opt, data, scheme=scheme))
    before = {n: p.detach().clone() for n, p in adapted.model.named_parameters()}
    seen: dict[str, Any] = {}
    original = engine._result

    def look(running: Any, test: Any) -> Any:
        seen.update({n: p.detach().clone() for n, p in running.adapted.model.named_parameters()})
        return original(running, test)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "_result", look)
        patch.setattr(engine, "_look", no_choice)
        run_job(job(opt, data, scheme=scheme, optimizer=optimizer, steps=2, lr=1e-2), folder)
    moved = {name for name in before if not torch.equal(before[name], seen[name])}
    assert moved <= set(adapted.parameters)
    assert moved


def test_checkpointed_back_propagation_takes_the_same_steps(opt: str, data: Path, folder: RunFolder) -> None:
    losses = []
    for key, on in (("a", False), ("b", True)):
        found = run_job(job(opt, data, key=key, optimizer="sgd", lr=0.1, steps=4, checkpointing=on), folder)
        losses.append([row["loss"] for row in found["curve"]])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize("optimizer", ["adam", "zo-adam", "fzoo"])
def test_a_killed_run_goes_on_to_the_same_numbers(
    optimizer: str, opt: str, data: Path, tmp_path: Path
) -> None:
    settings = job(opt, data, optimizer=optimizer, steps=8, scheme="lora", looks=4)
    whole = run_job(settings, RunFolder.create("test", Settings(), tmp_path / "whole"))
    folder = RunFolder.create("test", Settings(), tmp_path / "cut")
    plain, calls = engine._step, []

    def killed(running: Any) -> Any:
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return plain(running)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "_step", killed)
        with pytest.raises(KeyboardInterrupt):
            run_job(settings, folder, save_seconds=0.0)
    again = run_job(settings, RunFolder.create("test", Settings(), tmp_path / "cut", resume=True))
    assert again["test"] == whole["test"]
    assert [row["loss"] for row in again["curve"]] == [row["loss"] for row in whole["curve"]]
    assert [row["loss"] for row in again["evals"]] == [row["loss"] for row in whole["evals"]]


def test_the_log_of_a_killed_run_is_that_of_a_whole_one(opt: str, data: Path, tmp_path: Path) -> None:
    from tenfold.optim import zolog

    settings = job(opt, data, optimizer="zo-sgd", steps=6, lr=1e-3, looks=1, log=True)
    run_job(settings, RunFolder.create("test", Settings(), tmp_path / "whole"))
    plain, calls = engine._step, []

    def killed(running: Any) -> Any:
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return plain(running)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "_step", killed)
        with pytest.raises(KeyboardInterrupt):
            run_job(settings, RunFolder.create("test", Settings(), tmp_path / "cut"), save_seconds=0.0)
    run_job(settings, RunFolder.create("test", Settings(), tmp_path / "cut", resume=True))
    logs = [tmp_path / name / "logs" / "one.zolog" for name in ("whole", "cut")]
    assert logs[0].read_bytes() == logs[1].read_bytes()
    base = schemes.attach(engine.load_any_model(opt, torch.float32), "ft").model
    zolog.replay(base, logs[1])
    assert zolog.info(logs[1])["steps"] == 6


def test_a_finished_run_is_not_run_again_and_another_is_refused(
    opt: str, data: Path, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = job(opt, data, steps=2)
    first = run_job(settings, folder)
    monkeypatch.setattr(engine, "prepare", lambda job: pytest.fail("was run again"))
    assert run_job(settings, folder)["test"] == first["test"]
    with pytest.raises(ValueError, match=r"job: expected the settings that one was begun with, got lr=0.5"):
        run_job(dataclasses.replace(settings, lr=0.5), folder)


def test_the_results_file_holds_what_the_protocol_asks_for(opt: str, data: Path, folder: RunFolder) -> None:
    run_job(job(opt, data, steps=3, optimizer="zo-sgd", lr=1e-4), folder)
    stored = json.loads((folder.path / "results" / "one.json").read_text())
    assert stored["job"]["optimizer"] == "zo-sgd"
    assert stored["job"]["seed"] == 0
    assert {"torch", "tenfold"} <= set(stored["versions"])
    assert all({"step", "loss", "accuracy"} <= set(row) for row in stored["evals"])
    assert set(stored["step_ms"]) == {"forwards", "backwards", "passes", "rest"}
    assert stored["queries"] == 6
    assert stored["peak_bytes"] > 0
    assert "RSS" in stored["peak_method"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_first_run_of_a_process_has_the_memory_of_later_ones(
    opt: str, data: Path, tmp_path: Path
) -> None:
    """Imports are no memory of a run: measured in a fresh process, the same run three times."""
    settings = [
        dataclasses.asdict(job(opt, data, key=key, optimizer=optimizer, steps=2, lr=1e-4))
        for key, optimizer in (("a", "sgd"), ("b", "zo-sgd"), ("c", "sgd"))
    ]
    program = (
        "import dataclasses, json, sys\n"
        "from tenfold.llm.engine import Job, run_job\n"
        "from tenfold.runs import RunFolder\n"
        "@dataclasses.dataclass\n"
        "class Settings:\n"
        "    seed: int = 0\n"
        f"folder = RunFolder.create('test', Settings(), {str(tmp_path / 'run')!r})\n"
        "print([run_job(Job(**s), folder)['peak_bytes'] / 2**20 for s in json.load(sys.stdin)])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=json.dumps(settings),
        capture_output=True,
        text=True,
        check=True,
    )
    peaks = json.loads(done.stdout.splitlines()[-1])
    assert max(peaks) < 40
    assert peaks[0] < peaks[2] + 12


def test_without_training_the_model_is_scored_as_it_is(opt: str, data: Path, folder: RunFolder) -> None:
    found = run_job(job(opt, data, optimizer="none", steps=None), folder)
    assert (found["steps"], found["trainable"]) == (0, 0)
    assert found["before"] == found["dev"]


def test_linear_probing_through_the_engine(opt: str, data: Path, folder: RunFolder) -> None:
    settings = job(opt, data, optimizer="logreg", scheme="head", steps=None)
    found = run_job(settings, folder)
    _, objective, _ = engine.prepare(settings)
    probe = linear_probe.fit_cv(*objective.features("train"), 2)
    features, labels = objective.features("test")
    accuracy = float((probe.scores(features).argmax(1) == labels).double().mean())
    assert found["test"]["accuracy"] == pytest.approx(accuracy)
    assert found["penalty"] == probe.penalty
    assert found["trainable"] == 2 * (32 + 1)


def test_the_logistic_regression_is_at_its_optimum() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 5, generator=generator)
    y = (x @ torch.tensor([1.0, -2.0, 0.5, 0, 0]) + torch.randn(200, generator=generator) > 0).long()
    probe = linear_probe.fit(x, y, 2, 0.1)
    weight = probe.weight.clone().requires_grad_(True)
    z = (x.double() - probe.mean) / probe.scale
    loss = torch.nn.functional.cross_entropy(z @ weight.T + probe.bias, y) + 0.05 * weight.square().sum()
    (gradient,) = torch.autograd.grad(loss, weight)
    assert float(gradient.abs().max()) < 1e-5
    chosen = linear_probe.fit_cv(x, y, 2)
    assert chosen.penalty in linear_probe.PENALTIES
    assert float((chosen.scores(x).argmax(1) == y).double().mean()) > 0.85
    for bad in ((x, y, 1), (x, y + 1, 2), (x[:50], y, 2)):
        with pytest.raises(ValueError, match=r"(features|labels): expected"):
            linear_probe.fit(*bad, 0.1)


def test_masked_models_run_too(data: Path, tmp_path: Path, folder: RunFolder) -> None:
    roberta = task_files.save_model("roberta", tmp_path / "roberta")
    for scheme in schemes.SCHEMES:
        found = run_job(
            job(roberta, data, key=scheme, scheme=scheme, optimizer="adam", lr=1e-2, steps=6), folder
        )
        assert found["dev"]["loss"] < found["before"]["loss"]


def test_bfloat16_weights_train(opt: str, data: Path, folder: RunFolder) -> None:
    for key, optimizer, lr in (("a", "fzoo", 1e-2), ("b", "adamw", 2e-3)):
        settings = job(opt, data, key=key, optimizer=optimizer, dtype="bfloat16", lr=lr, steps=20, looks=5)
        found = run_job(settings, folder)
        assert found["dev"]["loss"] < found["before"]["loss"]


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"optimizer": "zo-sdg"}, "optimizer: expected one of none, sgd"),
        ({"scheme": "lorra"}, "scheme: expected one of ft, lora"),
        ({"task": "sst3"}, "task: expected one of"),
        ({"steps": None}, "steps: expected steps or forwards"),
        ({"steps": 0}, "steps: expected a whole number"),
        ({"batch_size": 65}, "batch_size: expected at most the 64 training examples"),
        ({"checkpointing": True}, "checkpointing: expected back-propagation"),
        ({"optimizer": "logreg", "steps": None}, "scheme: expected head with logreg"),
        ({"version": 7}, "version: expected 0 to 1 for sst2"),
        ({"model": "no/such/folder/here"}, "model: expected 'smollm2', a folder"),
    ],
)
def test_bad_requests_are_named(
    own: dict[str, Any], message: str, opt: str, data: Path, folder: RunFolder
) -> None:
    with pytest.raises(ValueError, match=message):
        run_job(job(opt, data, **own), folder)
    assert not (folder.path / "results").exists()


def test_every_method_has_a_title_and_a_known_kind() -> None:
    assert {m.kind for m in methods.METHODS.values()} == {"none", "first-order", "probe", "forward", "zo"}
    assert len({m.title for m in methods.METHODS.values()}) == len(methods.METHODS)
    with pytest.raises(ValueError, match="optimizer: expected one that takes steps, got 'none'"):
        methods.make("none", {}, torch.nn.Identity(), lr=1.0)


def test_the_smollm2_name_still_means_the_embedded_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "load_model", lambda name, dtype: (name, dtype))
    assert engine.load_any_model("smollm2", torch.float32) == ("smollm2", torch.float32)
