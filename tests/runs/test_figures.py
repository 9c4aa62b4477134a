from __future__ import annotations

import re
from pathlib import Path

import matplotlib
import pytest
from PIL import Image

from tenfold import runs
from tenfold.runs import figures


def luminance(colour: str) -> float:
    """Relative luminance as WCAG 2 defines it."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("colour", [figures.INK, figures.MUTED, *figures.SERIES])
def test_colours_stand_out_on_both_pages(colour: str) -> None:
    assert contrast(colour, figures.PAPER) >= 4.5
    assert contrast(figures.DARK[colour], figures.DARK[figures.PAPER]) >= 4.5


def test_style_ends_with_its_block() -> None:
    before = matplotlib.rcParams["axes.spines.top"]
    with runs.style():
        assert matplotlib.rcParams["axes.spines.top"] is False
    assert matplotlib.rcParams["axes.spines.top"] == before


def test_save_and_dark_twin(tmp_path: Path) -> None:
    with runs.style():
        fig, ax = runs.figure(4, 2)
        ax.plot([1, 2])
        ax.set_title("Title")
    figures.save(fig, tmp_path / "curve")
    assert {path.name for path in tmp_path.iterdir()} == {"curve.png", "curve.svg"}
    assert Image.open(tmp_path / "curve.png").size == (600, 300)
    light = (tmp_path / "curve.svg").read_text()
    dark = figures.dark_svg(light)
    used = {colour for colour in figures.DARK if colour in light}
    assert {figures.INK, figures.GRID, figures.SERIES[0]} <= used
    for colour in used:
        assert colour not in dark
        assert figures.DARK[colour] in dark


def test_black_that_matplotlib_leaves_out_is_light_in_the_dark_twin(tmp_path: Path) -> None:
    figures.save(matplotlib.figure.Figure(figsize=(2, 1)), tmp_path / "plain")
    dark = figures.dark_svg((tmp_path / "plain.svg").read_text())
    assert re.search(r'<svg fill="#e9ebee"', dark)


def test_same_figure_same_svg(tmp_path: Path) -> None:
    texts = []
    for turn in ("one", "two"):
        with runs.style():
            fig, ax = runs.figure(2, 2)
            ax.plot([1, 3, 2])
        figures.save(fig, tmp_path / turn / "curve")
        texts.append((tmp_path / turn / "curve.svg").read_text())
    assert texts[0] == texts[1]
