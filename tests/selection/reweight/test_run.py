"""The workflow cwerm: what a run leaves, resuming, variants, and the acceptance of its embedded default."""

from __future__ import annotations

import csv
import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tenfold.selection import Selection
from tenfold.selection.reweight import CwermConfig, arms, expected, report, reweight, run, tables
from tenfold.selection.reweight.run import Outcome, Weighed, Weighing

TINY = CwermConfig(
    settings=["symmetric:0.4", "clean"], epochs=1, meta_epochs=2, seeds=[0, 1], ratios=[0.05], workers=1
)


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "_held", {})


@pytest.fixture
def numbers_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pictures and no page, which take most of a small run's time."""
    monkeypatch.setattr(report, "write", lambda outcome, folder: tables.numbers(outcome))


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return reweight(TINY, tmp_path_factory.mktemp("run") / "a").path


def test_what_a_run_leaves(made: Path) -> None:
    assert {p.stem for p in (made / "figures").glob("*.png")} == {
        "accuracy", "learning", "ratios", "samples", "time", "weights-symmetric-0.4", "weights-clean",
    }  # fmt: skip
    numbers = json.loads((made / "metrics.json").read_text())["metrics"]
    trainings = rows(made / "tables" / "trainings.csv")
    mine = [float(r["accuracy"]) for r in trainings
            if (r["problem"], r["method"], r["coreset"]) == ("clean", "cw-erm", "0.1")]  # fmt: skip
    assert len(mine) == 2
    assert numbers["clean/cw-erm.accuracy"] == pytest.approx(np.mean(mine))
    base = [float(r["accuracy"]) for r in trainings
            if (r["problem"], r["method"]) == ("clean", "erm")]  # fmt: skip
    assert numbers["clean/cw-erm.gain"] == pytest.approx(np.mean(mine) - np.mean(base))
    assert numbers["trainings"] == len(trainings)


def test_every_table_of_methods_has_the_controls(made: Path) -> None:
    for name in ("methods", "methods-clean"):
        methods = [r["method"] for r in rows(made / "tables" / f"{name}.csv")]
        for wanted in ("ERM", "CW-ERM", "CW-ERM: constant mean(w)", "CW-ERM: w shuffled"):
            assert wanted in methods
        assert "Label-aware, normalised: w shuffled" in methods
    swept = {r["method"]: r for r in rows(made / "tables" / "ratios.csv")}
    assert {"ERM", "CW-ERM: constant mean(w)", "CW-ERM: w shuffled"} <= set(swept)
    assert set(swept["CW-ERM"]) == {"method", "5 %", "10 %"}
    paper = {r["method"]: r for r in rows(made / "tables" / "paper.csv")}
    assert paper["CW-ERM"]["cifar10 PRN18 ViT"] == "94.9 (54.7 min)"
    assert paper["CW-ERM: constant mean(w)"]["cifar10 PRN18 ViT"] == "not reported"


def test_weights_and_coresets_are_files_for_any_loader(made: Path) -> None:
    core = Selection.load(made / "coresets" / "symmetric-0.4-seed0.npz")
    assert len(core) == 100
    assert (np.load(made / "coreset_indices" / "idx_digits_pixels_100-clean-seed0.npy")
            == Selection.load(made / "coresets" / "clean-seed0.npz").indices).all()  # fmt: skip
    w = Selection.load(made / "weights" / "symmetric-0.4-seed0-cw-erm.npz")
    assert len(w) == 1000
    assert w.weights is not None
    assert core.weights is not None
    np.testing.assert_array_equal(w.weights[core.indices], core.weights)  # nearest to itself
    assert len(list(w.sampler(weighted=True))) == 1000


def test_kept_networks_predict_what_was_scored(made: Path) -> None:
    from safetensors.torch import load_file

    tensors = load_file(made / "checkpoints" / "symmetric-0.4-seed0.safetensors")
    own = {n.removeprefix("cw-erm/"): t for n, t in tensors.items() if n.startswith("cw-erm/")}
    data, _ = run.problem_of(TINY.resolved(), 0, 0)
    model = run.make_model("mlp", data.shape, 10, 5)
    model.load_state_dict(own)
    accuracy = float((model(data.x_test).argmax(1).numpy() == data.y_test).mean())
    (told,) = [r for r in rows(made / "tables" / "trainings.csv")
               if (r["problem"], r["method"], r["coreset"], r["seed"])
               == ("symmetric:0.4", "cw-erm", "0.1", "0")]  # fmt: skip
    assert accuracy == float(told["accuracy"])


def test_the_page_says_what_the_controls_say(made: Path) -> None:
    page = (made / "report.html").read_text()
    for said in ("What explains the gain", "constant control", "Time saved", "The paper has no control",
                 "prefer wrong labels" if _inverted(made) else "AUC"):  # fmt: skip
        assert said in page


def _inverted(made: Path) -> bool:
    return any(float(r["AUC"]) < 0.45 for r in rows(made / "tables" / "weights-symmetric-0.4.csv"))


def test_an_interrupted_run_goes_on_to_the_same_numbers(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, numbers_alone: None
) -> None:
    calls: list[str] = []
    real_weigh, real_train = run.weigh, run.train

    def weigh(config: Any, features: str, job: Any) -> Any:
        calls.append(run.weighing_key(config, job[1]))
        return real_weigh(config, features, job)

    def train(config: Any, states: Path, job: Any) -> Any:
        if len(calls) == 20:
            raise KeyboardInterrupt
        calls.append(run.training_key(config, job[1]))
        return real_train(config, states, job)

    monkeypatch.setattr(run, "weigh", weigh)
    monkeypatch.setattr(run, "train", train)
    with pytest.raises(KeyboardInterrupt):
        reweight(TINY, tmp_path / "part")
    first, calls[:] = set(calls), []
    monkeypatch.setattr(
        run, "train", lambda c, s, j: (calls.append(run.training_key(c, j[1])), real_train(c, s, j))[1]
    )
    again = reweight(TINY, tmp_path / "part", resume=True).metrics
    assert not first & set(calls)
    whole = json.loads((made / "metrics.json").read_text())["metrics"]
    for name, value in whole.items():
        if "seconds" not in name and "speedup" not in name:
            assert again[name] == value, name


def test_all_modes_meta_rows_trajectory_and_given_weights(tmp_path: Path) -> None:
    g = np.random.default_rng(0)
    w = g.random(1000).astype(np.float32)
    np.save(tmp_path / "w.npy", w)
    config = replace(
        TINY, settings=["flip:0.3"], methods=["classwise", "function", "label-aware"], seeds=[0], ratios=[],
        weights="trajectory", save="none",
    )  # fmt: skip
    given = replace(config, given_weights=str(tmp_path / "w.npy"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "write", lambda outcome, folder: tables.numbers(outcome))
        numbers = reweight(given, tmp_path / "a").metrics
    for name in ("classwise", "function", "label-aware", "given", "given-constant", "given-shuffled"):
        assert 0 < numbers[f"flip-0.3/{name}.accuracy"] <= 1
    clean = replace(config, methods=["cw-erm"], meta="clean", meta_rows=40, meta_lr=1e-3)
    result = reweight(clean, tmp_path / "b")
    assert {int(r["rows"]) for r in rows(result.path / "tables" / "trainings.csv")} == {960}
    assert "put aside beforehand" in (result.path / "report.html").read_text()
    assert not (result.path / "weights").exists()
    short = replace(given, meta="clean", meta_rows=40)
    with pytest.raises(ValueError, match="given_weights: expected 960 entries"):
        reweight(short, tmp_path / "c")


def test_what_the_published_code_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {}
    real = run.learn_weights

    def learn(model: Any, data: Any, core: Any, split: Any, *rest: Any, **options: Any) -> Any:
        seen[options["compat"]] = split
        return real(model, data, core, split, *rest, **options)

    monkeypatch.setattr(run, "learn_weights", learn)
    config = replace(TINY, settings=["clean"], methods=["cw-erm"], seeds=[0], ratios=[], save="none")
    with monkeypatch.context() as patch:
        patch.setattr(report, "write", lambda outcome, folder: tables.numbers(outcome))
        reweight(config, tmp_path / "a")
    page = (reweight(replace(config, compat="reference"), tmp_path / "b").path / "report.html").read_text()
    assert not set(seen[""].train.tolist()) & set(seen[""].meta.tolist())
    assert seen["reference"].train.tolist() == seen["reference"].meta.tolist()
    assert "Meta rows are the training rows themselves" in page


def test_controls_have_the_same_scale_or_the_same_weights() -> None:
    config = TINY.resolved()
    w = np.random.default_rng(0).random(1000).astype(np.float32)
    weighed = {Weighing(0, 0, 0.1): Weighed({}, {"w-nn": w, "w-label_aware": w})}
    outcome = Outcome(config, config.problems(), weighed)

    def of(name: str) -> Any:
        return outcome.weights_of(arms.ARMS[name], 0, 0)

    assert of("erm") is None
    assert (of("cw-erm") == w).all()
    assert set(of("cw-erm-constant").tolist()) == {float(np.float32(w.mean(dtype=np.float64)))}
    assert sorted(of("cw-erm-shuffled").tolist()) == sorted(w.tolist())
    assert (of("erm-quarter") == np.float32(0.25)).all()
    assert not (of("cw-erm-shuffled") == w).all()
    assert of("label-aware-normalised").mean() == pytest.approx(1, abs=1e-5)


def test_area_under_the_curve() -> None:
    from sklearn.metrics import roc_auc_score

    g = np.random.default_rng(0)
    scores, right = g.integers(0, 5, 200) / 4, g.random(200) < 0.4
    assert tables.auc(scores, right) == pytest.approx(roc_auc_score(right, scores))
    assert np.isnan(tables.auc(scores, np.ones(200, bool)))


def test_intervals_are_students() -> None:
    found = tables.interval(np.array([0.01, 0.03, 0.02]))
    assert (found.mean, found.low) == (pytest.approx(0.02), pytest.approx(0.02 - 4.302653 * 0.01 / 3**0.5))
    assert found.told() == "+2.0 (-0.5 to +4.5)"
    assert "one seed" in tables.interval(np.array([0.01])).told()


def test_a_coreset_that_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, numbers_alone: None
) -> None:
    """Rows are numbered as the data are; those that a problem has not are left out, and that is noted."""
    wanted = np.random.default_rng(0).permutation(1000)[:60]
    np.save(tmp_path / "idx_digits_pixels_60.npy", wanted)
    config = replace(
        TINY, settings=["clean", "longtail:10"], methods=["cw-erm"], seeds=[0], ratios=None, save="none",
        coreset=str(tmp_path / "idx_digits_pixels_60.npy"),
    ).resolved()  # fmt: skip
    state, arrays = run.weigh(config, "", (0, Weighing(0, 0, 0.1)))[1:]
    assert arrays["core"].tolist() == sorted(wanted.tolist())
    assert not state["notes"]
    _, rows = run.problem_of(config, 1, 0)
    state, arrays = run.weigh(config, "", (0, Weighing(1, 0, 0.1)))[1:]
    assert rows[arrays["core"]].tolist() == sorted(set(wanted.tolist()) & set(rows.tolist()))
    left = 60 - len(arrays["core"])
    assert state["notes"] == [f"{left} rows of the given coreset are no training rows of this problem"]
    np.save(tmp_path / "idx_digits_pixels_60.npy", [1000])
    with pytest.raises(ValueError, match="coreset: expected row numbers below 1000"):
        reweight(config, tmp_path / "a")


def test_expectations_are_of_the_embedded_default_alone() -> None:
    """Bounds that hold and bounds that do not, and none for a run with other settings."""
    config = CwermConfig(seeds=[0], ratios=[]).resolved()
    outcome = Outcome(config, config.problems())
    purities = {"purity": {"data": 0.64, "moderate": 0.75, "random": 0.6}}
    seconds = {"seconds": {"select": 0.1, "learn": 0.8, "carry-nn": 0.1}}
    for k in range(3):
        outcome.weighed[Weighing(k, 0, 0.1)] = Weighed({**purities, **seconds}, {})
    outcome.weighed[Weighing(0, 0, 1.0, True)] = Weighed({"seconds": {"learn": 6.0}}, {})
    accuracy = {"erm": 0.8, "cw-erm": 0.84, "cw-erm-constant": 0.86, "c-moderate": 0.7, "c-random": 0.6,
                "label-aware-normalised": 0.85}  # fmt: skip
    for k in range(3):
        for arm in config.arms(k):
            value = accuracy.get(arm.name, 0.5)
            key = (k, 0, 0.1, arm.name)
            outcome.trials[key] = run.Trial(*key, value, 1.0, 1, 1, [], np.ones(1, bool), [1.0])
    found = {check.what: check for check in expected.checks(outcome)}
    assert [round(check.found, 6) for check in found.values()] == [4, 2, 10, 11, 5, 5, 4, 6]
    assert [check.holds for check in found.values()] == [True, False, True, False, True, False, False, True]
    assert found["CW-ERM above ERM, 40 % noise"].row() == {
        "what": "CW-ERM above ERM, 40 % noise", "expected": "at least 3 points", "found": "4.0 points",
        "holds": "yes",
    }  # fmt: skip
    outcome.config = replace(config, epochs=1)
    assert not expected.checks(outcome)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"ratio": 0.001}, "coreset of ratio 0.001: expected at least 2 of 1000 rows, 1 of them to be meta"),
        ({"ratios": [0.0005]}, "coreset of ratio 0.0005: expected at least 2 of 1000"),
        ({"meta_rows": 50}, "coreset of ratio 0.05: expected at least 51 of 1000 rows, 50 of them"),
    ],
)
def test_coresets_that_cannot_be_parted(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        reweight(replace(TINY, **changed), tmp_path / "a")


def test_files_that_are_none(tmp_path: Path) -> None:
    """Each is refused before anything is trained, and its name is in the message."""
    for number, (name, content, message) in enumerate((
        ("given_weights", b"junk", "given_weights: expected an array in"),
        ("given_weights", pickle.dumps([1.0] * 1000), "given_weights: expected an array in"),
        ("features", b"junk", "rows.npy: expected arrays of NumPy"),
        ("coreset", b"junk", "rows.npy: expected a NumPy array"),
        ("coreset", [], "coreset: expected at least one row"),
        ("coreset", [5], "coreset given: expected at least 2 of 1000 rows"),
    )):  # fmt: skip
        path = tmp_path / "rows.npy"
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            np.save(path, np.array(content, np.int64))
        config = replace(TINY, seeds=[0], ratios=[], **{name: str(path)})
        with pytest.raises(ValueError, match=message):
            reweight(config, tmp_path / str(number))


@pytest.mark.slow
def test_the_embedded_default_shows_what_it_should(tmp_path: Path) -> None:
    """40 % symmetric noise, the memorising regime, and clean labels: three seeds, with every control."""
    result = reweight(CwermConfig(ratios=[]), tmp_path / "a")
    m = result.metrics
    noise, memory = "symmetric-0.4", "symmetric-0.4-wd0-epochs100"
    assert m[f"{noise}/cw-erm.gain"] >= 0.03
    assert abs(m[f"{noise}/cw-erm.gain_over_constant"]) <= 0.015
    assert m[f"{noise}/c-moderate.accuracy"] - m[f"{noise}/c-random.accuracy"] >= 0.08
    assert m[f"{noise}.purity.coreset"] - m[f"{noise}.purity.data"] >= 0.12
    assert m["reweighting.speedup"] >= 5
    assert m[f"{noise}/label-aware-normalised.gain"] >= 0.03
    assert m[f"{memory}/label-aware-normalised.gain"] >= 0.10
    assert abs(m["clean/cw-erm.gain"]) <= 0.007
    assert m["expectations"] == m["expectations.met"] == 8
    page = (result.path / "report.html").read_text()
    assert "8 of 8 hold" in page
    assert "explained by the constant control" in page
    assert f"Minus the constant control: {100 * m[f'{noise}/cw-erm.gain_over_constant']:+.1f}" in page


@pytest.mark.slow
def test_cifar_like_images_end_to_end(tmp_path: Path) -> None:
    """Images of CIFAR's shape: features of ResNet-18, ResNet-20, augmentation, bfloat16, checkpoints."""
    import torch
    from safetensors.torch import save_file

    from tenfold.selection.transfer.networks import build

    g = np.random.default_rng(0)
    y = g.integers(0, 3, 90)
    x = (g.integers(0, 60, (90, 32, 32, 3)) + 60 * y[:, None, None, None]).astype(np.uint8)
    np.savez(tmp_path / "a.npz", x=x[:60], y=y[:60], x_test=x[60:], y_test=y[60:], y_true=y[:60],
             mean=[0.5] * 3, std=[0.25] * 3)  # fmt: skip
    config = CwermConfig(
        dataset="arrays", data=str(tmp_path / "a.npz"), settings=["symmetric:0.2"], methods=["cw-erm"],
        model="resnet20", meta_model="resnet20", augment=True, ratio=0.3, epochs=3, meta_epochs=2, batch=20,
        extractor="resnet18", cache=str(tmp_path / "kept"), seeds=[0], precision="bfloat16", watch=True,
        checkpoint_every=1, workers=1, extractor_weights=str(tmp_path / "0.safetensors"),
    )  # fmt: skip
    chosen = []
    for seed in range(2):
        torch.manual_seed(seed)
        state = build("resnet18", 5).state_dict()
        save_file({k: v.contiguous() for k, v in state.items()}, tmp_path / f"{seed}.safetensors")
        own = replace(config, extractor_weights=str(tmp_path / f"{seed}.safetensors"))
        result = reweight(own, tmp_path / f"run{seed}")
        assert result.metrics["extract_seconds"] > 0
        assert 0 < result.metrics["symmetric-0.2/cw-erm.accuracy"] <= 1
        (core,) = (result.path / "coresets").glob("*.npz")
        chosen.append(Selection.load(core).indices.tolist())
        assert (result.path / "figures" / "curves.png").exists()
        assert not list((result.path).rglob("*.part.safetensors"))
    assert len(list((tmp_path / "kept").glob("*.npy"))) == 2
    assert chosen[0] != chosen[1]  # each run took the features of its own weights
