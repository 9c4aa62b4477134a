"""docs/systems/cwerm.md: its examples run, its commands are settings, its tables name what there is."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from child import example

from tenfold.selection.reweight import ARMS, CwermConfig, features_of, load, make_model
from tenfold.selection.reweight.config import _PRESETS

PAGE = Path(__file__).parents[3] / "docs" / "systems" / "cwerm.md"
pytestmark = pytest.mark.skipif(not PAGE.exists(), reason="not in a checkout")


def test_the_loop() -> None:
    data = load("digits")
    y = torch.from_numpy(data.y)
    batches = [(data.x[i : i + 30], y[i : i + 30]) for i in (0, 30, 60)]
    trusted = [(data.x[200:230], y[200:230])] * 3
    given: dict[str, Any] = {
        "model": make_model("mlp", data.shape, 10, 0), "loader": batches, "meta_loader": trusted,
        "x_all": data.x, "y_all": y,
    }  # fmt: skip
    before = [p.clone() for p in given["model"].parameters()]
    exec(example(PAGE.read_text(encoding="utf-8"), "loop"), given)
    assert given["w"].shape == (1000,)
    assert ((given["w"] > 0) & (given["w"] < 1)).all()
    assert not torch.equal(before[0], next(given["model"].parameters()))


def test_the_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    data = load("digits")
    text = (
        example(PAGE.read_text(encoding="utf-8"), "parts")
        .replace("MetaRecipe()", "MetaRecipe(epochs=2)")
        .replace("Recipe(), s", "Recipe(2), s")
    )
    assert text.count("2)") == 2  # two epochs of each instead of all
    given: dict[str, Any] = {
        "features": features_of(data, "pixels"), "y": data.y, "data": data, "rng": np.random.default_rng(0),
        "model": make_model("mlp", data.shape, 10, 0), "fresh_model": make_model("mlp", data.shape, 10, 1),
    }  # fmt: skip
    exec(text, given)
    assert given["w"].mean() == pytest.approx(1, abs=1e-5)
    assert given["fitted"].accuracy > 0.5


def commands() -> list[str]:
    lines = re.findall(
        r"tenfold run cwerm[^\n`#]*", PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    )
    return sorted({line.strip() for line in lines})


@pytest.mark.parametrize("line", commands())
def test_commands_are_settings(line: str, tmp_path: Path) -> None:
    """With the files that they name put in place, for a config looks whether they are there."""
    from tenfold.cli.run import _parse
    from tenfold.workflows import WORKFLOWS

    words = shlex.split(line)[3:]
    for k, word in enumerate(words):
        if word.endswith((".safetensors", ".npz", ".npy")):
            words[k] = str(tmp_path / word)
            (tmp_path / word).touch()
    values = _parse(WORKFLOWS["cwerm"], words)
    for name in ("config", "out", "resume"):
        values.pop(name)
    if "cuda" in words and not torch.cuda.is_available():
        values["device"] = "cpu"
    CwermConfig(**values).resolved()


def test_there_are_commands() -> None:
    assert len(commands()) > 8


def test_tables_name_what_there_is() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for name, arm in ARMS.items():
        if not arm.control and not arm.normalise:
            assert re.search(rf"^\| [^|]*`{name}`", text, re.M), name
    for name in _PRESETS:
        assert f"`{name}`" in text, name
