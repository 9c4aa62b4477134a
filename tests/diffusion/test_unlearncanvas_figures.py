"""Figures of the published size, 51 styles x 20 objects x 10 methods, from made-up numbers: nothing overlaps,
nothing is left out without a word."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("diffusers")

from matplotlib.backends.backend_agg import FigureCanvasAgg

from tenfold.diffusion import unlearncanvas_figures as figures
from tenfold.diffusion.attack.asr import Rate
from tenfold.diffusion.canvas.scores import Costs, Score
from tenfold.diffusion.canvas.vocabulary import UNLEARNCANVAS
from tenfold.runs import style
from tenfold.runs.figures import DARK

METHODS = ("esd", "fmn", "uce", "ca", "salun", "seot", "spm", "ediff", "shs", "advunlearn")


def made_up(method, i, domain, target, draw):
    """Retained shares fall with the method's number i."""
    shares = {
        "style": dict(zip(UNLEARNCANVAS.styles, draw.uniform(0.6 - 0.03 * i, 1, 51), strict=True)),
        "object": dict(zip(UNLEARNCANVAS.objects, draw.uniform(0.7 - 0.03 * i, 1, 20), strict=True)),
    }
    shares[domain][target] = float(draw.uniform(0, 0.4))
    n = 100 if domain == "style" else 255
    seen = round(n * (1 - shares[domain][target]))
    means = [float(np.mean(list(shares[d].values()))) for d in ("style", "object")]
    return Score(
        method, target, domain, Rate(seen, n), *means, (0.5, 0.9), (0.5, 0.9), **shares, chance=0.1,
        seen_instead={"Seed_Images": seen // 2, "Red_Blue_Ink": seen // 4, "Glowing_Sunset": seen // 8},
        costs=Costs(10.0 * (i + 1), (5 + i) * 10**9, i * 7 * 10**8),
        fid={"name": "FID[x]", "value": 50 + 10.0 * i, "n": 5000},
    )  # fmt: skip


@pytest.fixture(scope="module")
def scores():
    draw = np.random.default_rng(0)
    return [made_up(m, i, *one, draw) for i, m in enumerate(METHODS) for one in UNLEARNCANVAS.targets]


@pytest.fixture(scope="module")
def outcome():
    draw = np.random.default_rng(1)
    base = [made_up("base", 0, *one, draw) for one in UNLEARNCANVAS.targets]
    config = SimpleNamespace(targets=[t for _, t in UNLEARNCANVAS.targets], canvas="unlearncanvas")
    return SimpleNamespace(config=config, canvas=UNLEARNCANVAS, base_scores=lambda: base)


def drawn(picture):
    """The figure, and the boxes of all texts that are seen on it, by their words."""
    figure = picture.figure
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    texts = [text for legend in figure.legends for text in legend.get_texts()]
    for axis in figure.axes:
        texts += [*axis.texts, axis.xaxis.label, axis.yaxis.label, axis.title, axis._left_title]
        for one, limits in ((axis.xaxis, axis.get_xlim()), (axis.yaxis, axis.get_ylim())):
            ticks = [t for t in one.get_major_ticks() if min(limits) <= t.get_loc() <= max(limits)]
            texts += [t.label1 for t in ticks]
    boxes = [(t.get_text(), t.get_window_extent(canvas.get_renderer())) for t in texts if t.get_text()]
    return figure, boxes


def overlapping(boxes):
    """Pairs of texts that touch by more than a pixel each way."""
    found = []
    for (a, x), (b, y) in itertools.combinations(boxes, 2):
        wide = min(x.x1, y.x1) - max(x.x0, y.x0)
        high = min(x.y1, y.y1) - max(x.y0, y.y0)
        if wide > 1 and high > 1:
            found.append((a, b))
    return found


@pytest.mark.parametrize("change", [False, True])
def test_heat_maps_have_a_row_and_a_column_for_each(scores, outcome, change):
    with style():
        own = [one for one in scores if one.method == "uce"]
        found = figures.heat(outcome, own)
        assert list(found) == ["matrix-uce", "matrix-uce-change"]
        figure, boxes = drawn(found["matrix-uce-change" if change else "matrix-uce"])
    assert overlapping(boxes) == []
    words = [text for text, _ in boxes]
    assert {"Abstractionism", "Seed Images", "Waterfalls"} <= set(words)
    assert words.count("Van Gogh") == 2  # of the row and of the column
    assert len(figure.axes) == (2 if change else 3)  # the base model's row stands above, and the colours
    width, height = figure.bbox.width, figure.bbox.height
    assert all(b.x0 > -1 and b.y0 > -1 and b.x1 < width + 1 and b.y1 < height + 1 for _, b in boxes)


def test_names_of_the_radar_stand_off_its_rim(scores):
    with style():
        figure, boxes = drawn(figures.radar(scores))
    assert overlapping(boxes) == []
    assert [text for text, _ in boxes if text in METHODS] == list(METHODS)
    axis = figure.axes[0].bbox
    middle, radius = ((axis.x0 + axis.x1) / 2, (axis.y0 + axis.y1) / 2), axis.width / 2
    names = [(text, box) for text, box in boxes if text not in METHODS]
    assert len(names) == 10
    for text, box in names:
        nearest = [
            np.clip(m, low, high)
            for m, (low, high) in zip(middle, (box.intervalx, box.intervaly), strict=True)
        ]
        assert np.hypot(*(np.array(nearest) - middle)) > radius, text


def test_the_scatter_shows_both_retained_accuracies(scores, outcome):
    with style():
        figure, boxes = drawn(figures.scatter(outcome, scores))
    assert overlapping(boxes) == []
    assert {axis.get_ylabel() for axis in figure.axes} == {"IRA, %", "CRA, %"}
    assert all(len(axis.lines) >= len(METHODS) - 1 for axis in figure.axes)


def test_bars_of_many_targets_are_of_all_of_them(scores):
    with style():
        figure, boxes = drawn(figures.confusion(scores))
        few, _ = drawn(figures.confusion(scores[:3]))
    assert overlapping(boxes) == []
    rows = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert rows == [f"{m}, {domain}s" for m in METHODS for domain in ("style", "object")]
    own = [one for one in scores if (one.method, one.domain) == ("esd", "style")]
    asked = sum(one.ua.n - one.ua.successes for one in own) / sum(one.ua.n for one in own)
    assert figure.axes[0].patches[0].get_width() == pytest.approx(asked)
    assert len(few.axes[0].get_yticklabels()) == 3


def test_costs_have_a_unit_that_can_be_read(scores):
    with style():
        figure, boxes = drawn(figures.costs(scores))
    assert "Kept beyond the base model, GiB" in [axis.get_title(loc="left") for axis in figure.axes]
    assert overlapping(boxes) == []
    width = figure.bbox.width
    assert all(box.x1 < width + 1 for _, box in boxes)


def test_text_on_colours_of_a_map_stays_on_a_dark_page():
    assert not {figures.ON_DARK, figures.ON_LIGHT} & set(DARK)


def test_one_method_that_kept_nothing(outcome):
    """No stretch from worst to best, storage of zero everywhere, nothing seen instead."""
    draw = np.random.default_rng(0)
    one = made_up("seot", 0, "style", "Monet", draw)
    with style():
        for picture in (
            figures.radar([one]),
            figures.costs([one]),
            figures.confusion([one]),
            figures.scatter(outcome, [one]),
        ):
            drawn(picture)
