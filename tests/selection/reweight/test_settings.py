"""Problems, methods with their controls, and what a config refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tenfold.selection.reweight import ARMS, CwermConfig, load
from tenfold.selection.reweight.arms import DEFAULT, with_controls
from tenfold.selection.reweight.settings import parse_setting, problem


def test_problems_in_words() -> None:
    one = parse_setting("symmetric:0.4+wd=0+epochs=100")
    assert (one.noise, one.rate, one.weight_decay, one.epochs, one.factor) == ("symmetric", 0.4, 0.0, 100, 1)
    assert one.slug == "symmetric-0.4-wd0-epochs100"
    assert one.title == "40 % symmetric label noise, no weight decay, 100 epochs"
    assert parse_setting("clean").title == "clean labels"
    both = parse_setting("flip:0.2+longtail:50")
    assert (both.noise, both.factor, both.slug) == ("flip", 50, "flip-0.2-longtail-50")


NONE = (
    *("", "noise:0.4", "symmetric", "symmetric:1", "symmetric:x", "clean+flip:0.1", "wd=-1", "epochs=0"),
    *("flip:0.1+flip2:0.1", "longtail:0.5", "longtail:nan"),
)


@pytest.mark.parametrize("text", NONE)
def test_problems_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="settings: expected"):
        parse_setting(text)


def test_a_problem_is_the_same_whoever_asks() -> None:
    data = load("digits")
    setting = parse_setting("symmetric:0.4+longtail:5")
    (a, rows), (b, again) = (problem(data, setting, 3, 50) for _ in range(2))
    assert (a.y == b.y).all()
    assert (rows == again).all()
    assert a.true_y is not None
    assert (a.true_y == data.y[rows]).all()
    assert 0.2 < (a.y != a.true_y).mean() < 0.5
    assert a.y_meta is not None
    assert len(a.y_meta) == 50
    c, _ = problem(data, setting, 4)
    assert not np.array_equal(a.y, c.y)


def test_trusted_rows_leave_the_training_set() -> None:
    data = load("digits")
    made, rows = problem(data, parse_setting("symmetric:0.4"), 0, 60)
    assert len(made.y) == len(rows) == 940
    assert made.x_meta is not None
    kept = {tuple(r) for r in made.x.tolist()}
    assert not kept & {tuple(r) for r in made.x_meta.tolist()}
    lookup = {tuple(r): int(y) for r, y in zip(data.x.tolist(), data.y, strict=True)}
    assert [lookup[tuple(r)] for r in made.x_meta.tolist()] == made.y_meta.tolist()  # right labels


def test_every_weighted_method_has_its_controls() -> None:
    names = with_controls(list(DEFAULT))
    for name in names:
        arm = ARMS[name]
        if arm.source and not arm.control:
            assert f"{name}-shuffled" in names
            assert arm.normalise or f"{name}-constant" in names
    assert with_controls(["classwise"]) == ["erm", "classwise", "classwise-constant", "classwise-shuffled"]
    assert with_controls(["erm", "c-random"]) == ["erm", "c-random"]


def test_what_is_left_open_is_filled() -> None:
    config = CwermConfig().resolved()
    assert (config.model, config.extractor, config.ratio) == ("mlp", "pixels", 0.1)
    assert (config.epochs, config.batch) == (60, 32)
    assert config.resolved() == config
    assert len(config.problems()) == 3
    assert "w-erm" in [a.name for a in config.arms(0)]
    assert "w-erm" not in [a.name for a in config.arms(1)]
    named = CwermConfig(methods=["w-erm"], settings=["clean", "flip:0.1"]).resolved()
    assert "w-erm" in [a.name for a in named.arms(1)]


def test_settings_of_the_paper(tmp_path: Path) -> None:
    weights = tmp_path / "w.safetensors"
    weights.touch()
    config = CwermConfig(dataset="cifar10", data=str(tmp_path), extractor_weights=str(weights)).resolved()
    assert (config.model, config.meta_model, config.extractor) == ("preactresnet18", "resnet32", "resnet50")
    assert (config.ratio, config.epochs, config.batch, config.augment) == (0.01, 100, 128, True)
    assert (config.lr, config.weight_decay, config.clamp, config.meta_epochs, config.meta_lr) == (
        0.1, 5e-4, 5.0, 120, 1e-5,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"dataset": "cifar10"}, "data: expected where the files of cifar10 are"),
        ({"data": "x"}, "data: expected nothing for digits"),
        ({"methods": ["none"]}, "methods: expected one of"),
        ({"methods": ["erm", "erm"]}, "methods: expected each name once"),
        ({"settings": ["clean", "clean"]}, "settings: expected each problem once"),
        ({"settings": ["fog:1"]}, "settings: expected clean, KIND:RATE"),
        ({"ratio": 0.0}, r"ratio: expected a share in \(0, 1\]"),
        ({"ratios": [2.0]}, r"ratio: expected a share in \(0, 1\]"),
        ({"seeds": []}, "seeds: expected different"),
        ({"seeds": [1, 1]}, "seeds: expected different"),
        ({"model": "vgg"}, "model: expected one of"),
        ({"neighbours": 33}, "neighbours: expected an integer"),
        ({"meta_lr": 0.0}, "meta_lr: expected a finite number > 0"),
        ({"device": "tpu"}, "device: expected cpu or cuda"),
        ({"compat": "other"}, "compat: expected one of"),
    ],
)
def test_what_a_config_refuses(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CwermConfig(**changed)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"extractor": "resnet50"}, ValueError, "extractor: expected pixels for digits"),
        ({"extractor": "clip"}, ValueError, "extractor: expected one of"),
        ({"methods": ["given"]}, ValueError, "given_weights: expected a file of weights"),
        ({"meta": "given"}, ValueError, "meta: expected split or clean"),
        ({"given_weights": "nowhere.npy"}, FileNotFoundError, "given_weights: expected a file"),
        (
            {"dataset": "cifar10", "data": "x"},
            ValueError,
            "extractor_weights: expected the .safetensors file",
        ),
    ],
)
def test_what_does_not_go_together(changed: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        CwermConfig(**changed).resolved()
