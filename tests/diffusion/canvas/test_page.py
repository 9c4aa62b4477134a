"""docs/canvas.md: its examples run as they stand, one after another, and it names everything public."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("diffusers")
pytest.importorskip("skimage")

from tenfold.diffusion import canvas

PAGE = Path(__file__).parents[3] / "docs" / "canvas.md"
pytestmark = pytest.mark.skipif(not PAGE.exists(), reason="not in a checkout")


def test_examples_run_as_they_stand(tmp_path, monkeypatch, capsys):
    text = PAGE.read_text(encoding="utf-8")
    examples = re.findall(r"<!-- run: (\w+) -->\n```python\n(.*?)```", text, re.DOTALL)
    assert [name for name, _ in examples] == [
        "prompts", "data", "answers", "scores", "distances", "tasks", "transfer"
    ]  # fmt: skip
    assert len(examples) == len(re.findall(r"```python", text))
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for name, code in examples:
        exec(compile(code, f"canvas.md, {name}", "exec"), names)
    said = capsys.readouterr().out
    assert re.search(r"^UA 1\.00 ", said, re.M)  # four steps are enough to see Winter go
    assert names["winter"].shape == (3, 3, 64, 64)
    assert (names["strict"].seed_images, names["one"].seed_images) == ("exclude", "include")
    assert (tmp_path / "tree" / "metadata.jsonl").is_file()
    assert "Statistics(mean=" in said


def test_everything_public_is_named():
    text = PAGE.read_text(encoding="utf-8")
    named = set(re.findall(r"^\.\. (?:auto|py:)(?:function|class|data):: (\w+)", text, re.M))
    assert named == set(canvas.__all__)
    assert "\ncanvas\n" in (PAGE.parent / "index.md").read_text(encoding="utf-8")
