"""Figures of a run: one house style, PNG and SVG, and the dark twin of an SVG for the report.

The style draws in a handful of named colours. Each has a partner for dark pages, so that the dark twin is the
same drawing with the colours exchanged: no second plot, and a plain SVG file on disk.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tenfold.runs.files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["DARK", "INK", "MUTED", "SERIES", "dark_svg", "figure", "save", "style"]

INK, MUTED, GRID, PAPER = "#1c2024", "#5a6169", "#dfe2e6", "#ffffff"
SERIES = ("#1f5fa8", "#b8500b", "#0b7467", "#a02c68", "#7a6200", "#5b4bb0")
"""Colours of the first, second, ... series: blue, orange, teal, magenta, gold, violet."""

DARK = {
    INK: "#e9ebee",
    MUTED: "#a6adb5",
    GRID: "#363c43",
    PAPER: "#1b1f24",
    "#1f5fa8": "#7db4ee",
    "#b8500b": "#f2a15c",
    "#0b7467": "#55c7b4",
    "#a02c68": "#ea92bd",
    "#7a6200": "#dcc04a",
    "#5b4bb0": "#b3a6f5",
    "#000000": "#e9ebee",
}
"""Light colour -> its partner on a dark page."""


@contextmanager
def style() -> Iterator[None]:
    """matplotlib's parameters for the house style while the block runs."""
    import matplotlib
    from cycler import cycler

    parameters: Any = {
        "axes.axisbelow": True,
        "axes.edgecolor": MUTED,
        "axes.facecolor": PAPER,
        "axes.grid": True,
        "axes.labelcolor": INK,
        "axes.prop_cycle": cycler(color=SERIES),
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.titlecolor": INK,
        "axes.titlelocation": "left",
        "axes.titlesize": 11,
        "axes.titleweight": "bold",
        "figure.facecolor": PAPER,
        "font.size": 10,
        "grid.color": GRID,
        "grid.linewidth": 0.8,
        "legend.edgecolor": GRID,
        "legend.facecolor": PAPER,
        "legend.frameon": False,
        "legend.labelcolor": INK,
        "lines.linewidth": 1.8,
        "text.color": INK,
        "xtick.color": MUTED,
        "xtick.labelcolor": INK,
        "ytick.color": MUTED,
        "ytick.labelcolor": INK,
    }
    with matplotlib.rc_context(parameters):
        yield


def figure(width: float = 7.0, height: float = 3.6, **subplots: Any) -> tuple[Figure, Any]:
    """A figure of `width` by `height` inches with axes as `Figure.subplots(**subplots)` gives them.

    It belongs to no window and to no global state of pyplot. Draw inside `style()`.
    """
    from matplotlib.figure import Figure

    made = Figure(figsize=(width, height), layout="constrained")
    return made, made.subplots(**subplots)


def save(fig: Figure, stem: Path) -> None:
    """Write `stem`.png (150 dots per inch, white) and `stem`.svg (no background, text as outlines)."""
    import matplotlib

    with matplotlib.rc_context({"svg.fonttype": "path", "svg.hashsalt": stem.name}):
        with replacing(stem.with_name(stem.name + ".png")) as aside:
            fig.savefig(aside, format="png", dpi=150, facecolor=PAPER)
        with replacing(stem.with_name(stem.name + ".svg")) as aside:
            fig.savefig(aside, format="svg", facecolor="none", metadata={"Date": None})


def dark_svg(svg: str) -> str:
    """The drawing with each colour exchanged for its dark partner; colours of images and colour maps stay."""
    svg = re.sub("|".join(DARK), lambda match: DARK[match.group()], svg)
    # matplotlib leaves black unwritten, being SVG's default
    return re.sub(r"<svg\b", f'<svg fill="{DARK[INK]}"', svg, count=1)
