"""Every picture is made, says in words what it shows, and keeps what it shows legible on both pages."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from numpy.testing import assert_allclose
from rank_cases import TEAMS, challenge

from tenfold.runs import figures as house
from tenfold.segmentation import drawing, figures, overlays, rank_figures
from tenfold.segmentation.bootstrap import bootstrap_ranking, compare_methods
from tenfold.segmentation.drawing import Picture
from tenfold.segmentation.ranking import consensus, segrap_ranking
from tenfold.segmentation.scores import ScoreTable
from tenfold.segmentation.statistics import significance

TABLE = challenge(gaps=True)
RANKING = segrap_ranking(TABLE, na=0)
BOOT = bootstrap_ranking(RANKING, 60)
VOLUMES = (np.array([10.0, 100, 1, 0, np.nan]), np.array([12.0, 90, 1.1, 0, 3]))

TAUS = {"SegRap": BOOT.tau, "steady": np.ones(5), "none": np.full(3, np.nan)}

PICTURES: dict[str, Callable[[], Picture]] = {
    "box_strip": lambda: figures.box_strip(TABLE, "dsc", order=RANKING.order.tolist()),
    "organ_boxes": lambda: figures.organ_boxes(TABLE, "dsc", TEAMS[0]),
    "heat_map": lambda: figures.heat_map(TABLE, "dsc", TEAMS[1]),
    "podium": lambda: figures.podium(TABLE, "nsd_dm@tolerance", order=RANKING.order.tolist()),
    "bland_altman": lambda: figures.bland_altman(*VOLUMES, organs=["a", "b", "a", "b", "a"]),
    "ranking_heat_map": lambda: rank_figures.ranking_heat_map(RANKING),
    "column_rank_map": lambda: rank_figures.column_rank_map(RANKING, "dsc"),
    "significance_map": lambda: rank_figures.significance_map(significance(TABLE, "dsc", na=0)),
    "blob": lambda: rank_figures.blob(BOOT),
    "rank_lines": lambda: rank_figures.rank_lines([RANKING, *compare_methods(TABLE, na=0)]),
    "tau_violin": lambda: rank_figures.tau_violin(TAUS),
    "overlays": lambda: overlays.overlays([case(), case(plane="coronal", image=None)]),
}  # fmt: skip


def case(plane: str = "axial", image: np.ndarray | str | None = "ramp") -> overlays.Overlay:
    a = np.zeros((8, 20, 24), np.uint8)
    a[2:6, 5:12, 6:15] = 1
    ramp = np.arange(a.size, dtype=np.int16).reshape(a.shape) % 400 - 200
    return overlays.Overlay(
        a, np.roll(a, 2, axis=2), (3.0, 1.0, 1.0), "case_01 · Organ", "DSC 0.78",
        ramp if isinstance(image, str) else image, plane=plane,
    )  # fmt: skip


@pytest.mark.parametrize("name", PICTURES)
def test_pictures(name: str, tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    picture = PICTURES[name]()
    assert dict(matplotlib.rcParams) == before
    assert picture.caption.endswith(".")
    assert picture.alt.endswith(".")
    assert len(picture.alt) > 40
    house.save(picture.figure, tmp_path / name)
    assert (tmp_path / f"{name}.png").stat().st_size > 5000
    svg = (tmp_path / f"{name}.svg").read_text()
    assert svg.count("<path") + svg.count("<use") + svg.count("<image") > 20
    assert {house.INK, house.MUTED} & set(
        re.findall("#[0-9a-f]{6}", svg)
    )  # the house's own colours, or no dark twin


def test_alternatives_tell_the_numbers() -> None:
    assert "UniSeg rank 1, interval" in PICTURES["blob"]().alt
    assert f"{TEAMS[0]} over {TEAMS[3]}" in PICTURES["significance_map"]().alt
    assert "Worst: Organ_" in PICTURES["heat_map"]().alt
    assert "1 without a number" in PICTURES["heat_map"]().caption
    assert "3 coefficients do not exist" in PICTURES["tau_violin"]().caption


def test_bland_altman_by_hand() -> None:
    picture = figures.bland_altman([10, 20, 30], [11, 20, 32], relative=False)
    # differences 1, 0, 2: mean 1, standard deviation 1
    assert picture.alt == "Bland-Altman plot of volumes: bias +1.00 ml, limits -0.96 to +2.96 ml."
    percent = figures.bland_altman([10.0], [30.0])
    assert "bias +100.00 %" in percent.alt
    assert "3 pairs, 2 left out" in PICTURES["bland_altman"]().caption


def test_significance_map_shows_who_beats_whom() -> None:
    found = significance(TABLE, "dsc", na=0)
    axes = rank_figures.significance_map(found).figure.axes[0]
    filled = {
        (int(p.get_y()), int(p.get_x()))
        for p in axes.patches if p.get_facecolor()[:3] == matplotlib.colors.to_rgb(house.SERIES[0])
        and p.get_facecolor()[3] > 0
    }  # fmt: skip
    assert filled == {(int(i), int(j)) for i, j in np.argwhere(found.better)}
    assert filled


def test_blobs_have_the_area_of_their_share() -> None:
    axes = rank_figures.blob(BOOT).figure.axes[0]
    for scatter, t in zip(axes.collections, RANKING.order, strict=True):
        sizes = scatter.get_sizes()
        assert_allclose(sizes / sizes.sum(), BOOT.frequencies[t])


def test_cells_carry_readable_text_whatever_their_colour() -> None:
    colours = matplotlib.colormaps[drawing.COLOUR_MAP]
    for value in np.linspace(0, 1, 64):
        fill = colours(value)
        assert contrast(drawing.cell_text(fill), matplotlib.colors.to_hex(fill)) >= 4.5
    fixed = {drawing.FIXED_DARK, drawing.FIXED_LIGHT, overlays.REFERENCE, overlays.PREDICTION}
    assert not fixed & set(house.DARK)  # the dark page leaves them alone


def contrast(one: str, other: str) -> float:
    def luminance(colour: str) -> float:
        parts = matplotlib.colors.to_rgb(colour)
        return sum(
            w * (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4)
            for w, c in zip((0.2126, 0.7152, 0.0722), parts, strict=True)
        )

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_teams_differ_in_more_than_colour() -> None:
    styles = list(drawing.team_styles([str(t) for t in range(12)]).values())
    assert len({marker for _, marker in styles}) == 12


@pytest.mark.parametrize(
    ("metric", "title"),
    [
        ("dsc", "DSC"), ("nsd_dm@tolerance", "NSD (dm)"), ("hd95_edge_max_mm", "HD95 (edge max), mm"),
        ("nsd_dm@1.0", "NSD (dm@1.0)"),
    ],
)  # fmt: skip
def test_titles_of_metrics(metric: str, title: str) -> None:
    assert drawing.titled(metric) == title


def test_large_maps_are_one_image(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    table = ScoreTable.from_records(
        {"team": "t", "case": f"c{c}", "organ": f"o{o}", "metric": "dsc", "value": random.random()}
        for c in range(60) for o in range(45)
    )  # fmt: skip
    picture = figures.heat_map(table, "dsc", "t")
    house.save(picture.figure, tmp_path / "map")
    svg = (tmp_path / "map.svg").read_text()
    assert "<image" in svg
    assert len(svg) < 400_000


# --- slices


def test_worst_slice() -> None:
    a, b = np.zeros((5, 4, 4)), np.zeros((5, 4, 4))
    assert overlays.worst_slice(a, b) == 2
    a[1, :3], b[1, :3] = 1, 1
    assert overlays.worst_slice(a, b) == 1  # they agree: where the structure is
    b[3, 0, 0] = 1
    assert overlays.worst_slice(a, b) == 3
    assert overlays.worst_slice(a, b, axis=1) == 0


def test_outline_of_a_pixel_and_of_a_ring() -> None:
    lines = overlays.outline(np.pad(np.ones((1, 1)), 1))
    found = {tuple(sorted(map(tuple, line.tolist()))) for line in lines}
    assert found == {((1, 1), (1, 2)), ((2, 1), (2, 2)), ((1, 1), (2, 1)), ((1, 2), (2, 2))}
    ring = np.ones((3, 3))
    ring[1, 1] = 0
    length = sum(np.abs(np.diff(line, axis=0)).sum() for line in overlays.outline(ring))
    assert length == 12 + 4
    assert overlays.outline(np.zeros((3, 3))) == []


def test_outlines_lie_where_the_masks_are() -> None:
    axes = overlays.overlays([case()]).figure.axes[0]
    reference, prediction = axes.collections
    x = np.concatenate([path.vertices[:, 0] for path in reference.get_paths()])
    y = np.concatenate([path.vertices[:, 1] for path in reference.get_paths()])
    assert (x.min(), x.max(), y.min(), y.max()) == (6, 15, 5, 12)
    moved = np.concatenate([path.vertices[:, 0] for path in prediction.get_paths()])
    assert (moved.min(), moved.max()) == (8, 17)
    scaled = overlays.overlays([case(plane="coronal")]).figure.axes[0].collections[0]
    z = np.concatenate([path.vertices[:, 1] for path in scaled.get_paths()])
    assert (z.min(), z.max()) == (6, 18)  # 3 mm slices


def test_refusals() -> None:
    good = case()
    for change, message in (
        ({"prediction": np.zeros((2, 2, 2))}, r"cases\[0\].prediction: expected shape \(8, 20, 24\)"),
        ({"image": np.zeros((2, 2, 2))}, r"cases\[0\].image: expected shape"),
        ({"spacing": (1.0, 0.0, 1.0)}, r"cases\[0\].spacing: expected three positive numbers"),
        ({"plane": "oblique"}, r"cases\[0\].plane: expected one of"),
    ):
        with pytest.raises(ValueError, match=message):
            overlays.overlays([overlays.Overlay(**{**good.__dict__, **change})])
    with pytest.raises(ValueError, match="cases: expected at least one, got none"):
        overlays.overlays([])
    with pytest.raises(ValueError, match="metric: expected one of"):
        figures.box_strip(TABLE, "hd95")
    with pytest.raises(ValueError, match="team: expected one of"):
        figures.heat_map(TABLE, "dsc", "nobody")
    with pytest.raises(ValueError, match="ranking: expected one of a table"):
        rank_figures.ranking_heat_map(consensus([RANKING]))
    with pytest.raises(ValueError, match="volumes: expected millilitres >= 0, got a negative one"):
        figures.bland_altman([-1.0], [1.0])
    with pytest.raises(ValueError, match="volumes: expected at least one pair of volumes, got none"):
        figures.bland_altman([0.0], [0.0])
    with pytest.raises(ValueError, match=r"predicted: expected as many volumes as reference"):
        figures.bland_altman([1.0], [1.0, 2.0])
