"""The workflow on a few pictures: numbers, files, resume, an eraser of one's own, wrong settings."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
pytest.importorskip("skimage")

from tenfold.diffusion.canvas.answers import AnswerSet
from tenfold.diffusion.canvas.files import read_matrix, read_published_result, read_results
from tenfold.diffusion.canvas.keys import answer_keys, budget_keys
from tenfold.diffusion.canvas.mini import MINI, cell_tensors
from tenfold.diffusion.canvas.ranking import rank_methods, ranks_of
from tenfold.diffusion.canvas.scores import score_tables
from tenfold.diffusion.erase import Edit
from tenfold.diffusion.unlearncanvas_checks import check_cells
from tenfold.diffusion.unlearncanvas_config import UnlearnCanvasConfig
from tenfold.diffusion.unlearncanvas_run import benchmark, one
from tenfold.diffusion.unlearncanvas_sources import distances_of
from tenfold.metrics.features import clip_mmd, frechet_distance
from tenfold.runs import RunFolder

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
QUICK = {
    "methods": ["uce", "seot"], "targets": ["Sketch", "Cats"], "seeds": [188], "steps": 4, "budget": 40,
    "finer": ["Winter/Horses"], "finer_methods": ["uce"], "sequential": ["Bricks", "Cats"],
    "robust": ["Sketch"], "robust_methods": ["uce"], "robust_prompts": 2, "robust_timesteps": 2,
    "robust_iterations": 2, "workers": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return benchmark(UnlearnCanvasConfig(**QUICK), tmp_path_factory.mktemp("runs") / "whole")


def test_a_run_leaves_its_numbers_and_files(whole):
    document = json.loads((whole.path / "metrics.json").read_text())
    assert document["metrics"] == whole.metrics
    scores = [one for one in read_results(whole.path / "results.jsonl") if one.method != "base"]
    assert [(s.method, s.target) for s in scores] == [
        ("uce", "Sketch"), ("uce", "Cats"), ("seot", "Sketch"), ("seot", "Cats")
    ]  # fmt: skip
    for found in scores:
        assert whole.metrics[f"{found.method}.{found.domain}.ua"] == found.ua.value  # one target a domain
        assert found.fid["name"] == "FID[judge-192]"
        assert found.delta["ua"] == pytest.approx(found.ua.value - (1 - whole_share(whole, found)))
    for found in scores:
        files = [
            whole.path / "published" / found.method / d / f"{found.target}.pth" for d in ("style", "object")
        ]
        tables = [read_published_result(f, MINI, d) for f, d in zip(files, ("style", "object"), strict=True)]
        same = score_tables(MINI, *tables, found.target)
        assert (same.ua, same.ira, same.cra) == (found.ua, found.ira, found.cra)
    matrix = read_matrix(whole.path / "matrix_uce.npz")
    assert matrix["shares"].shape == (2, 17)
    assert list(matrix["targets"]) == ["Sketch", "Cats"]
    assert (whole.path / "table.tex").read_text().startswith("\\begin{tabular}")
    assert {"finer.uce.Winter.Horses.ua", "sequential.uce.rebound", "robust.uce.Sketch.post"} <= set(
        whole.metrics
    )
    assert whole.metrics["seot.style.storage_bytes"] == 0  # it acts when pictures are made
    assert whole.metrics["uce.style.ua"] == 1.0


def whole_share(run, found):
    """C of the target on the base model, from the lines of the base."""
    base = [one for one in read_results(run.path / "results.jsonl") if one.method == "base"]
    own = next(one for one in base if one.target == found.target)
    return getattr(own, found.domain)[found.target]


def test_the_page_says_what_it_is(whole):
    page = (whole.path / "report.html").read_text()
    assert "no numbers of Stable Diffusion" in page
    assert "FID[judge-192]" in page
    assert "target (s*, o*): UA = share" in page
    for name in ("matrix", "radar", "ranking", "scatter", "sequential", "robust", "finer", "drawn-style"):
        assert (whole.path / "figures" / f"{name}.svg").is_file()


def test_a_killed_run_goes_on_to_the_same_numbers(whole, tmp_path, monkeypatch):
    config = UnlearnCanvasConfig(**QUICK).resolved()
    calls = []

    def dies(*arguments):
        calls.append(arguments)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return one(*arguments)

    monkeypatch.setattr("tenfold.diffusion.unlearncanvas_run.one", dies)
    with pytest.raises(KeyboardInterrupt):
        benchmark(config, tmp_path / "run")
    monkeypatch.undo()
    again = benchmark(config, tmp_path / "run", resume=True)
    assert len(calls) == 4
    same = {k: v for k, v in whole.metrics.items() if not k.endswith(("seconds", "mean_rank"))}
    assert {k: v for k, v in again.metrics.items() if not k.endswith(("seconds", "mean_rank"))} == same


def test_an_eraser_of_ones_own(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    lines = (EXAMPLES / "my_eraser.py").read_text().splitlines()
    assert len([line for line in lines if line.strip()]) <= 30
    config = UnlearnCanvasConfig(
        methods=["uce", "my_eraser:Shift"], targets=["Sketch"], seeds=[188], steps=4, budget=40, finer=[],
        sequential=[], robust=[], workers=1,
    )  # fmt: skip
    found = benchmark(config, tmp_path / "run")
    assert found.metrics["shift.style.ua"] >= 0.75
    assert (found.path / "edits" / "shift" / "Sketch" / "edit.json").is_file()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"methods": ["uze"]}, "methods: expected"),
        ({"methods": []}, "methods: expected at least one eraser"),
        ({"methods": ["uce", "uce"]}, "methods: expected different ones"),
        ({"methods": ["nothing:Here"]}, "methods: expected module:attribute"),
        ({"targets": ["Scetch"]}, "targets: expected a style or an object of mini .closest: Sketch"),
        ({"targets": ["Cats", "cats"]}, "targets: expected each once"),
        ({"targets": ["Seed_Images"]}, "targets: expected styles and objects that are unlearned"),
        ({"settings": {"uce": {"lamb": 1}}}, "settings.uce: expected settings of uce: lam"),
        ({"settings": {"shs": {"lr": 1}}}, "settings: expected names of"),
        ({"budget": 5}, "budget: expected"),
        ({"finer": ["Winter"]}, 'finer: expected "Style/Object"'),
        ({"canvas": "unlearncanvas"}, "style_judge: expected a folder"),
        ({"data": "nowhere"}, "data: expected a folder of pictures"),
        ({"features": "os:getcwd"}, "feature_name: expected a name"),
        ({"seeds": [1, 1]}, "seeds: expected each once"),
        ({"steps": 0}, "steps: expected an integer in"),
        ({"guidance": float("nan")}, "guidance: expected a finite number"),
        ({"sampling": "reference", "steps": 5}, "steps: expected None beside sampling=reference"),
        ({"per_cell": 49}, "per_cell: expected at most 48"),
        ({"finer": ["Seed_Images/Cats"]}, "finer: expected a style that can become photographs"),
        ({"finer": ["Winter/Cats", "winter/cats"]}, "finer: expected each once"),
        ({"style_judge": "nowhere"}, "style_judge: expected a folder"),
        ({"feature_name": " "}, "feature_name: expected a text of one line"),
        ({"model": ""}, "model: expected canvas, a folder"),
        ({"transfer": {"adain": "."}}, "data: expected the data set"),
    ],
)
def test_wrong_settings_are_told(settings, message):
    with pytest.raises(ValueError, match=message):
        UnlearnCanvasConfig(**settings).resolved()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"methods": "uce"}, "methods: expected a list of names, got str"),
        ({"targets": [3]}, "targets: expected a list of names, got int 3"),
        ({"seeds": 3}, "seeds: expected a list of integers"),
        ({"settings": {"uce": 3}}, "settings.uce: expected {setting: value}"),
        ({"steps": "x"}, "steps: expected an integer"),
        ({"budget": True}, "budget: expected an integer"),
    ],
)
def test_settings_of_other_types_are_told(settings, message):
    with pytest.raises(TypeError, match=message):
        UnlearnCanvasConfig(**settings).resolved()


def test_what_cannot_be_scored_is_told_before_the_hours_it_takes():
    """Each of these ended a run when all models were made."""
    alone = {"finer": [], "sequential": [], "robust": []}
    with pytest.raises(ValueError, match="budget: expected enough for pictures of every style, got 16: none"):
        UnlearnCanvasConfig(targets=["Sketch"], budget=16, **alone).resolved()
    grid = UnlearnCanvasConfig().grid()
    only = next(f"{k.style}/{k.object}" for k in budget_keys(grid, 9, seeds=[188]) if k.style == "Winter")
    asked = SimpleNamespace(targets=[], sequential=[], finer=[only], budget=9, seeds=[188], cra="all")
    with pytest.raises(ValueError, match=f"pictures of its style, got 9: .*{only}"):
        check_cells(asked, grid)
    objects = list(grid.objects)
    with pytest.raises(ValueError, match="sequential: expected an object that is kept"):
        UnlearnCanvasConfig(sequential=objects).resolved()
    kept = UnlearnCanvasConfig(targets=["Sketch", "Cats"], budget=40, seeds=[188]).resolved()
    assert kept.budget == 40


class Mine:
    """An eraser with settings that are called as presets are."""

    def __init__(self, style="a"):
        self.style = style

    style = "a"
    fit = staticmethod(lambda bundle, concept, *, seed=0: None)


UCE = type("UCE", (Mine,), {})
Löscher = type("Löscher", (Mine,), {})


def test_erasers_of_ones_own_have_names_of_their_own(monkeypatch):
    here = __name__
    monkeypatch.setitem(sys.modules, here, sys.modules[__name__])
    made = UnlearnCanvasConfig(methods=[f"{here}:Mine"], preset="published")
    assert isinstance(made.method(f"{here}:Mine", "style"), Mine)
    with pytest.raises(ValueError, match="robust_methods: expected one eraser of the name 'uce'"):
        UnlearnCanvasConfig(methods=["uce"], robust_methods=[f"{here}:UCE"])
    with pytest.raises(ValueError, match="methods: expected a class named in ASCII letters"):
        UnlearnCanvasConfig(methods=[f"{here}:Löscher"])
    only_elsewhere = UnlearnCanvasConfig(methods=["sa"], settings={"uce": {"lam": 0.5}})
    assert only_elsewhere.resolved().method("uce", "style").lam == 0.5


def test_ranks_share_places_and_know_what_is_better():
    values = np.array([[90.0, 5.0], [95.0, 7.0], [95.0, 5.0]])
    found = ranks_of(values, ["style_ua", "fid"])
    assert found.tolist() == [[3, 1.5], [1.5, 3], [1.5, 1.5]]


def test_ranking_names_who_is_beaten(whole):
    scores = [one for one in read_results(whole.path / "results.jsonl") if one.method != "base"]
    ranked = rank_methods(scores)
    assert {one.method for one in ranked} == {"uce", "seot"}
    assert ranked[0].mean_rank <= ranked[1].mean_rank
    assert all(one.interval[0] <= one.interval[1] for one in ranked)
    with pytest.raises(ValueError, match="the same targets"):
        rank_methods(scores[:3])


def test_a_leader_board_never_mixes_conventions(whole, tmp_path):
    import shutil

    from tenfold import cli
    from tenfold.diffusion.unlearncanvas_board import boards

    copies = {name: shutil.copytree(whole.path, tmp_path / name) for name in ("renamed", "excluded")}
    for name, path in copies.items():
        lines = (path / "results.jsonl").read_text().replace('"uce"', '"<script>alert(1)</script>"')
        lines = lines.replace('"seot"', '"other"')
        if name == "excluded":
            lines = lines.replace('"seed_images": "include"', '"seed_images": "exclude"')
        (path / "results.jsonl").write_text(lines)
        document = json.loads((path / "metrics.json").read_text())
        if name == "excluded":
            document["config"]["seed_images"] = "exclude"
        (path / "metrics.json").write_text(json.dumps(document))
    found = boards([whole.path, *copies.values()])
    assert [len(one.ranked) for one in found] == [4, 2]
    assert [one.settings["seed_images"] for one in found] == ["include", "exclude"]
    assert found[0].published == {}
    out = tmp_path / "board.html"
    runs = [str(whole.path), *map(str, copies.values())]
    assert cli.main(["unlearncanvas", "board", *runs, "--out", str(out)]) == 0
    page = out.read_text()
    assert "<script>alert" not in page
    assert 'href="renamed/report.html"' in page
    with pytest.raises(ValueError, match="each method once among runs scored alike"):
        boards([whole.path, whole.path])
    with pytest.raises(FileNotFoundError, match=r"a finished run with metrics\.json"):
        boards([tmp_path])
    assert cli.main(["unlearncanvas", "board", str(whole.path), "--out", str(tmp_path / "board.txt")]) == 2


def test_a_board_refuses_what_is_no_run_and_says_where(whole, tmp_path):
    import shutil

    from tenfold.diffusion.unlearncanvas_board import boards, leader_board

    folder = shutil.copytree(whole.path, tmp_path / "50 % #1?é")
    page = leader_board([folder], tmp_path / "board.html").read_text()
    assert 'href="50%20%25%20%231%3F%C3%A9/report.html"' in page
    kept = {name: (folder / name).read_text() for name in ("metrics.json", "results.jsonl")}
    document = json.loads(kept["metrics.json"])
    for change, message in (
        ({"config": None}, r"metrics\.json: expected the numbers of a run"),
        ({"metrics": {}}, r"metrics\.json: expected the numbers of a run"),
        ({"name": "zo"}, "expected a run of unlearncanvas, got 'zo'"),
        ({"config": document["config"] | {"cra": "exclude_target"}}, "expected the conventions of the run"),
    ):
        (folder / "metrics.json").write_text(json.dumps(document | change))
        with pytest.raises(ValueError, match=message):
            boards([folder])
    (folder / "metrics.json").write_text("[]")
    with pytest.raises(ValueError, match="expected a run of unlearncanvas, got None"):
        boards([folder])
    (folder / "metrics.json").write_text(kept["metrics.json"])
    (folder / "results.jsonl").write_text("")
    with pytest.raises(ValueError, match="expected scores of edited models, got none"):
        boards([folder])
    other = json.loads(kept["metrics.json"])
    other["config"]["targets"].reverse()
    (folder / "metrics.json").write_text(json.dumps(other))
    lines = kept["results.jsonl"].replace('"uce"', '"mine"').replace('"seot"', '"yours"').splitlines()
    (folder / "results.jsonl").write_text("\n".join(reversed(lines)) + "\n")
    assert [len(one.ranked) for one in boards([whole.path, folder])] == [4]  # the order says nothing


def test_pictures_of_any_shape_style_transfer_and_one_method(tmp_path, monkeypatch):
    """A data set of oblong pictures, some grey; results of a method that does nothing, and of the truth."""
    from PIL import Image

    from tenfold.diffusion.canvas.dataset import SPLITS
    from tenfold.diffusion.canvas.mini import MINI, cell_pictures

    monkeypatch.setitem(SPLITS, "train", (1, 2))
    data, numbers = tmp_path / "data", (1, 2, 3, 4, 5, 19, 20)
    for style, thing in MINI.cells:
        (data / style / thing).mkdir(parents=True)
        for number, picture in zip(numbers, cell_pictures(style, thing, list(numbers)), strict=True):
            image = Image.fromarray(picture).resize((48, 40) if number % 2 else (32, 56))
            image = image.convert("L") if thing == "Coins" and style == "Sketch" else image
            image.save(data / style / thing / f"{number}.jpg")
    for method, source in (("nothing", "Seed_Images"), ("Truth", None)):
        for style in MINI.styles[:-1]:
            (tmp_path / method / style).mkdir(parents=True)
            for thing in MINI.objects:
                for number in (19, 20):
                    for reference in (1, 2):
                        name = f"{thing}_test{number}_ref{reference}.jpg"
                        target = tmp_path / method / style / name
                        target.symlink_to(data / (source or style) / thing / f"{number}.jpg")
    settings = {
        "methods": ["salun"], "settings": {"salun": {"iterations": 2}}, "targets": ["Sketch"], "seeds": [188],
        "steps": 2, "budget": 20, "finer": [], "sequential": [], "robust": [], "workers": 1,
        "data": str(data), "per_cell": 1, "transfer_kind": "gram", "transfer_features": f"{__name__}:maps",
        "transfer": {m: str(tmp_path / m) for m in ("nothing", "Truth")},
    }  # fmt: skip
    monkeypatch.setitem(sys.modules, __name__, sys.modules[__name__])
    found = benchmark(UnlearnCanvasConfig(**settings), tmp_path / "run")
    assert found.metrics["transfer.Truth.gram"] == 0
    assert found.metrics["transfer.nothing.gram"] > 1e-6
    assert {"fid.salun.style", "kid.salun.style", "cmmd.salun.style", "cmmd.base"} <= set(found.metrics)
    page = (found.path / "report.html").read_text()
    assert "One way to unlearn 1 concept" in page
    assert "Style transfer" in page
    assert "CMMD[judge-192]" in page
    rows = (found.path / "tables" / "transfer_concepts.csv").read_text().splitlines()
    assert len(rows) == 1 + 2 * (8 + 8)
    (data / "Winter" / "Cats" / "3.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"expected the picture .*Winter/Cats/3.jpg"):
        benchmark(UnlearnCanvasConfig(**settings), tmp_path / "again")
    (tmp_path / "Truth" / "Winter" / "Cats_test20_ref2.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"expected the result .*Cats_test20_ref2.jpg"):
        benchmark(UnlearnCanvasConfig(**settings | {"features": ""}), tmp_path / "third")


FEATURES = {
    "good": lambda x: x.flatten(1)[:, ::97], "half": lambda x: x.flatten(1)[:, ::97].half(),
    "zero": lambda x: torch.zeros(len(x), 4), "nan": lambda x: torch.full((len(x), 4), float("nan")),
    "bytes": lambda x: torch.zeros(len(x), 4, dtype=torch.uint8), "few": lambda x: torch.zeros(1, 4),
    "none": lambda x: None, "maps": lambda x: x,
}  # fmt: skip


def test_distances_of_features(monkeypatch):
    """Grey pictures too; what are no features is refused, not averaged away."""
    for name, function in FEATURES.items():
        monkeypatch.setattr(sys.modules[__name__], f"features_{name}", function, raising=False)
    monkeypatch.setitem(sys.modules, __name__, sys.modules[__name__])
    keys = answer_keys(MINI, seeds=[1])
    draw = torch.Generator().manual_seed(0)
    grey = torch.randint(0, 256, (72, 1, 32, 32), dtype=torch.uint8, generator=draw)
    answers = AnswerSet(MINI, keys, images=grey)

    def distances(name):
        config = UnlearnCanvasConfig(features=f"{__name__}:features_{name}", feature_name="mine")
        return distances_of(config, MINI, answers, "Sketch")

    found = distances("good")
    assert {key: (one["name"], one["n"]) for key, one in found.items()} == {
        "fid": ("FID[mine]", 64), "kid": ("KID[mine]", 64), "cmmd": ("CMMD[mine]", 64)
    }  # fmt: skip
    chosen = torch.cat([cell_tensors(*cell, 5, first=49) for cell in MINI.cells if cell[0] != "Sketch"])
    rows = [i for i, key in enumerate(keys) if key.style != "Sketch"]
    pair = FEATURES["good"](chosen), FEATURES["good"](grey[rows].expand(-1, 3, -1, -1) / 255)
    assert found["cmmd"]["value"] == pytest.approx(float(clip_mmd(*pair)), rel=1e-6)
    assert found["fid"]["value"] == pytest.approx(float(frechet_distance(*pair)), rel=1e-6)
    assert distances("half")["fid"]["value"] == pytest.approx(found["fid"]["value"], rel=1e-3)
    assert set(distances("zero")) == {"fid", "kid"}  # zeros have no direction
    with pytest.raises(ValueError, match=r"features: .*:features_nan: expected finite features"):
        distances("nan")
    for name in ("bytes", "few", "none", "maps"):
        with pytest.raises(TypeError, match=r"expected floating-point \[64, D\]"):
            distances(name)


class Fails:
    """Diverges on Cats until it is mended."""

    mended = False

    def fit(self, bundle, concept, *, seed=0):
        weight = bundle.unet.state_dict()["conv_out.bias"].clone()
        if concept.name == "Cats" and not Fails.mended:
            weight[0] = float("nan")
        return Edit("weights", "unet", {"conv_out.bias": weight})


def test_a_model_that_fails_stops_the_run_or_is_recorded(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, __name__, sys.modules[__name__])
    monkeypatch.setattr(Fails, "mended", False)
    settings = {
        "methods": ["uce", f"{__name__}:Fails"], "targets": ["Sketch", "Cats"], "seeds": [188], "steps": 2,
        "budget": 24, "finer": [], "sequential": ["Cats"], "sequential_methods": [f"{__name__}:Fails"],
        "robust": [], "workers": 1,
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"sequential, .*:Fails: conv_out.bias: expected finite values"):
        benchmark(UnlearnCanvasConfig(**settings), tmp_path / "stop")
    config = UnlearnCanvasConfig(**settings, on_error="record")
    found = benchmark(config, tmp_path / "record")
    assert found.metrics["failures"] == 2
    assert "uce.style.ua" in found.metrics
    assert not [name for name in found.metrics if name.startswith(("fails.", "sequential."))]
    page = (found.path / "report.html").read_text()
    assert "What was not made" in page
    assert "ValueError: conv_out.bias: expected finite values" in page
    monkeypatch.setattr(Fails, "mended", True)
    again = benchmark(config, tmp_path / "record", resume=True)
    assert again.metrics["failures"] == 0
    assert again.metrics["fails.object.ua"] < 0.5  # it changed nothing
    assert "sequential.fails.rebound" in again.metrics
    assert "What was not made" not in (found.path / "report.html").read_text()
    with pytest.raises(FileExistsError, match="expected a new or empty folder"):
        benchmark(config, tmp_path / "record")
    with pytest.raises(ValueError, match=r"config: expected the settings of the run .*got steps=3"):
        benchmark(dataclasses.replace(config, steps=3), tmp_path / "record", resume=True)


def test_a_method_without_a_targets_model_is_in_no_table(tmp_path, monkeypatch):
    """Its other models are made all the same. What becomes of failures may change while a run is resumed."""
    monkeypatch.setitem(sys.modules, __name__, sys.modules[__name__])
    monkeypatch.setattr(Fails, "mended", False)
    both = ["uce", f"{__name__}:Fails"]
    config = UnlearnCanvasConfig(
        methods=both, targets=["Cats"], seeds=[188], steps=1, budget=24, finer=["Winter/Horses"],
        finer_methods=both, sequential=["Sketch"], sequential_methods=both, robust=["Sketch"],
        robust_methods=both, robust_prompts=1, robust_timesteps=1, robust_iterations=1, workers=1,
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"Fails, Cats: conv_out.bias: expected finite values"):
        benchmark(config, tmp_path / "run")
    assert "on_error: stop" in (tmp_path / "run" / "config.yaml").read_text()
    found = benchmark(dataclasses.replace(config, on_error="record"), tmp_path / "run", resume=True)
    assert "on_error: record" in (tmp_path / "run" / "config.yaml").read_text()
    assert found.metrics["failures"] == 1
    for label in ("fails", "uce"):
        assert (found.path / "judged" / label / "Winter__Horses.json").is_file()
        assert (found.path / "edits" / label / "Sketch").is_dir()
    tasks = [
        name.split(".") for name in found.metrics if name.startswith(("finer.", "sequential.", "robust."))
    ]
    assert {(task[0], task[1]) for task in tasks} == {
        ("finer", "uce"), ("sequential", "uce"), ("robust", "uce")
    }  # fmt: skip


def test_a_run_in_which_nothing_was_made_has_no_numbers(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, __name__, sys.modules[__name__])
    monkeypatch.setattr(Fails, "mended", False)
    config = UnlearnCanvasConfig(
        methods=[f"{__name__}:Fails"], targets=["Cats"], seeds=[188], steps=1, budget=24, finer=[],
        sequential=[], robust=[], workers=1, on_error="record",
    )  # fmt: skip
    with pytest.raises(RuntimeError, match="methods: expected one that made all models, got none"):
        benchmark(config, tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.json").exists()


def maps(pictures):
    """Feature maps for losses of style transfer: the picture and its half."""
    return [pictures, pictures[:, :, ::2, ::2]]


@pytest.mark.slow
def test_the_default_keeps_what_the_page_says(tmp_path):
    config = UnlearnCanvasConfig().resolved()
    found = benchmark(config, tmp_path / "run").metrics
    assert found["base.style"] >= 0.97
    assert found["base.object"] >= 0.93
    for method in config.methods:
        assert found[f"{method}.style.ua"] >= 0.85
        assert found[f"{method}.object.ua"] >= 0.85
    assert found["salun.style.ira"] >= 0.9
    for key in ("style.ira", "style.cra", "object.ira", "object.cra"):
        base = found["base.object" if key in ("style.cra", "object.ira") else "base.style"]
        assert found[f"uce.{key}"] >= base - 0.05


@pytest.mark.slow
def test_uce_over_all_styles_and_objects(tmp_path):
    """The mini canvas' sixteen targets, 72 pictures a model."""
    config = UnlearnCanvasConfig(
        methods=["uce"], targets=["all"], seeds=[188], finer=[], sequential=[], robust=[], features=""
    )
    found = benchmark(config, tmp_path / "run").metrics
    assert found["targets"] == 16
    assert found["uce.style.ua"] >= 0.95
    assert found["uce.object.ua"] >= 0.90
    for key in ("style.ira", "style.cra", "object.ira", "object.cra"):
        base = found["base.object" if key in ("style.cra", "object.ira") else "base.style"]
        assert found[f"uce.{key}"] >= base - 0.05


def test_the_config_is_written_whole(tmp_path):
    folder = RunFolder.create("unlearncanvas", UnlearnCanvasConfig(**QUICK).resolved(), tmp_path / "run")
    assert "feature_name: judge-192" in (folder.path / "config.yaml").read_text()
