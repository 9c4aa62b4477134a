"""What the figures of this package share: their result, colours of teams, colours that stay on dark pages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec

import numpy as np
from numpy.typing import NDArray

from tenfold.runs import figures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "Picture",
    "cell_text",
    "joined",
    "labels",
    "painted",
    "robust_limits",
    "styled",
    "team_styles",
    "titled",
]

MARKERS = "osD^vPX<>ph*"
COLOUR_MAP = "cividis"  # reads the same with and without colour vision
FIXED_DARK, FIXED_LIGHT = "#000001", "#fefefe"
"""Text on a colour map: the dark page exchanges black and white but no colour map, and leaves these."""

P = ParamSpec("P")


class Picture(NamedTuple):
    """A figure with what is said of it: `folder.write_figure(name, *picture)`."""

    figure: Figure
    caption: str
    alt: str


def styled(make: Callable[P, Picture]) -> Callable[P, Picture]:
    """Draw in the house style, whatever matplotlib's own settings are."""

    @wraps(make)
    def inside(*args: P.args, **kwargs: P.kwargs) -> Picture:
        with figures.style():
            return make(*args, **kwargs)

    return inside


def team_styles(teams: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Team -> colour and marker. Markers differ for the first twelve, so that colour is never needed
    alone."""
    return {
        team: (figures.SERIES[i % len(figures.SERIES)], MARKERS[i % len(MARKERS)])
        for i, team in enumerate(teams)
    }


def titled(metric: str) -> str:
    """A metric as it is read: "nsd_dm@tolerance" is NSD (dm), "hd95_edge_max_mm" is HD95 (edge max), mm."""
    stem, _, rest = metric.removesuffix("@tolerance").removesuffix("_mm").partition("_")
    convention = f" ({rest.replace('_', ' ')})" if rest else ""
    return stem.upper() + convention + (", mm" if metric.endswith("_mm") else "")


def joined(names: Sequence[str]) -> str:
    """A, B and C."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def labels(names: Sequence[str], limit: int = 18) -> list[str]:
    """Names that fit on an axis: long ones lose their middle."""
    return [name if len(name) <= limit else f"{name[: limit - 6]}…{name[-5:]}" for name in names]


def robust_limits(values: NDArray[np.float64], larger_better: bool) -> tuple[float, float]:
    """Ends of a colour scale that outliers do not stretch: scores from a low percentile to 1, distances
    from 0."""
    finite = values[np.isfinite(values)]
    if finite.size == 0:
        return 0.0, 1.0
    if larger_better and finite.max() <= 1 and finite.min() >= 0:
        return min(0.9, float(np.floor(np.quantile(finite, 0.05) * 20) / 20)), 1.0
    low, high = (float(q) for q in np.quantile(finite, [0.0 if not larger_better else 0.05, 0.95]))
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def painted(
    axes: Any,
    values: NDArray[np.float64],
    low: float,
    high: float,
    *,
    text: str | None = None,
    turned: bool = False,
) -> Any:
    """Cells of a colour map, row 0 on top, missing ones hatched; `text` is the format of numbers in the
    cells.

    `turned`: large values dark. Many cells are drawn as one image inside the vector drawing.
    """
    rows, columns = values.shape
    name = COLOUR_MAP + ("_r" if turned else "")
    masked = np.ma.masked_invalid(values)
    if rows * columns > 900:  # one image of as many pixels, drawn sharp
        mesh = axes.imshow(
            masked, cmap=name, vmin=low, vmax=high, extent=(0, columns, rows, 0), aspect="auto",
            interpolation="none",
        )  # fmt: skip
    else:
        mesh = axes.pcolormesh(
            masked, cmap=name, vmin=low, vmax=high, edgecolors=figures.PAPER, linewidth=0.6
        )
    for r, c in np.argwhere(~np.isfinite(values)):
        axes.add_patch(_hatched(c, r))
    axes.set(xlim=(0, columns), ylim=(rows, 0))
    axes.grid(False)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    if text is not None:
        for (r, c), value in np.ndenumerate(values):
            if np.isfinite(value):
                colour = cell_text(mesh.cmap(mesh.norm(value)))
                axes.text(
                    c + 0.5, r + 0.5, format(value, text), ha="center", va="center", color=colour, fontsize=8
                )
    return mesh


def cell_text(fill: tuple[float, float, float, float]) -> str:
    """The colour of text on a cell, by WCAG's relative luminance."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in fill[:3]]
    return FIXED_DARK if 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] > 0.18 else FIXED_LIGHT


def _hatched(x: float, y: float) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((x, y), 1, 1, facecolor="none", edgecolor=figures.MUTED, hatch="////", linewidth=0)
