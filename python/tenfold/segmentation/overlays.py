"""Pictures of cases: the outlines of reference and prediction on a slice of the image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tenfold._checks import choice, fail
from tenfold.runs import figures
from tenfold.segmentation.drawing import FIXED_DARK, FIXED_LIGHT, Picture, styled

__all__ = ["SOFT_TISSUE", "Overlay", "outline", "overlays", "shades", "worst_slice"]

REFERENCE, PREDICTION = "#58c8ff", "#ff9a1f"
"""Light blue and orange: bright on a grey image on any page, and apart for every kind of colour vision. The
reference is drawn wide below a thin prediction, so that colour is not needed to tell them apart."""

SOFT_TISSUE = (-160.0, 240.0)
"""Hounsfield units from black to white."""

_PLANES = ("axial", "coronal", "sagittal")


@dataclass(frozen=True)
class Overlay:
    """One structure of one case. Arrays are (z, y, x), `spacing` in mm in that order."""

    reference: NDArray[Any]
    """Not zero: the structure."""
    prediction: NDArray[Any]
    spacing: tuple[float, float, float]
    title: str
    """Case and structure."""
    note: str = ""
    """Its scores, below the title."""
    image: NDArray[Any] | None = None
    window: tuple[float, float] | None = SOFT_TISSUE
    """Values drawn black and white; None: the first and last percent of what is shown."""
    plane: str = "axial"


@styled
def overlays(
    cases: Sequence[Overlay], *, columns: int = 3, margin_mm: float = 15.0, behind: str = ""
) -> Picture:
    """A panel for each case: the slice on which reference and prediction differ most, cut around both.

    `behind` is a sentence for the caption that says what the images are.
    ValueError for no case, arrays of different shapes or of other than three axes, spacing that is not
    positive.
    """
    if not cases:
        fail(ValueError, "cases", "at least one", "none")
    for k, case in enumerate(cases):
        _check(f"cases[{k}]", case)
    across = min(columns, len(cases))
    down = -(-len(cases) // across)
    size = (2.75 * across + 0.3, 3.15 * down + 0.4)
    figure, panels = figures.figure(*size, nrows=down, ncols=across, squeeze=False)
    flat = list(panels.flat)
    told = []
    for axes, case in zip(flat, cases, strict=False):
        told.append(_panel(axes, case, margin_mm))
    for axes in flat[len(cases) :]:
        axes.set_visible(False)
    figure.legend(handles=_key(), loc="outside upper left", ncols=2, fontsize=9)
    return Picture(
        figure,
        "The slice on which reference and prediction differ most. Wide light blue line: the reference; thin "
        "orange line: the prediction. The bar is 10 mm." + (f" {behind}" if behind else ""),
        "Outlines of reference and prediction on slices. " + " ".join(told),
    )


def shades(labels: NDArray[Any]) -> NDArray[np.float32]:
    """An image of a label map for the window (0, 1): background 0, each label a grey."""
    values = np.modf(np.asarray(labels) * 0.6180339887)[0] * 0.4 + 0.3
    return np.where(np.asarray(labels) != 0, values, 0).astype(np.float32)


def worst_slice(reference: NDArray[Any], prediction: NDArray[Any], axis: int = 0) -> int:
    """The slice along `axis` with the most voxels in one of the two only.

    If they agree, the one with the most voxels; if both are empty, the middle one.
    """
    a, b = np.asarray(reference) != 0, np.asarray(prediction) != 0
    others = tuple(k for k in range(a.ndim) if k != axis)
    for mask in (a ^ b, a):
        area = mask.sum(axis=others)
        if area.any():
            return int(area.argmax())
    return a.shape[axis] // 2


def outline(mask: NDArray[Any]) -> list[NDArray[np.float64]]:
    """The border of a 2-D mask along the edges of its pixels: lines of (row, column) corners.

    Pixel (r, c) spans r..r+1 and c..c+1. Edges in a row are joined into one line.
    """
    inside = np.pad(np.asarray(mask) != 0, 1)
    lines = []
    for turned in (False, True):
        grid = inside.T if turned else inside
        edge = grid[1:, 1:-1] != grid[:-1, 1:-1]  # between row r-1 and r of the mask
        ends = np.diff(np.pad(edge, ((0, 0), (1, 1))).astype(np.int8), axis=1)
        rows, starts = np.nonzero(ends == 1)
        stops = np.nonzero(ends == -1)[1]
        for row, start, stop in zip(rows, starts, stops, strict=True):
            line = np.array([[row, start], [row, stop]], dtype=np.float64)
            lines.append(line[:, ::-1] if turned else line)
    return lines


def _panel(axes: Any, case: Overlay, margin_mm: float) -> str:
    from matplotlib.patheffects import Normal, Stroke

    axis = _PLANES.index(case.plane)
    place = worst_slice(case.reference, case.prediction, axis)
    a = np.asarray(np.take(case.reference, place, axis=axis)) != 0
    b = np.asarray(np.take(case.prediction, place, axis=axis)) != 0
    size = tuple(s for k, s in enumerate(case.spacing) if k != axis)
    rows, columns = _window(a | b, size, margin_mm)
    extent = (columns[0] * size[1], columns[1] * size[1], rows[1] * size[0], rows[0] * size[0])
    if case.image is None:
        axes.set_facecolor("#5c6670")
    else:
        part = np.asarray(
            np.take(case.image, place, axis=axis)[slice(*rows), slice(*columns)], dtype=np.float32
        )
        low, high = case.window if case.window is not None else _percentiles(part)
        axes.imshow(
            part, cmap="gray", vmin=low, vmax=high, extent=extent, interpolation="nearest", aspect="equal"
        )
    for mask, colour, width in ((a, REFERENCE, 3.0), (b, PREDICTION, 1.3)):
        lines = _lines(outline(mask), size, colour, width)
        lines.set_path_effects([Stroke(linewidth=width + 1.0, foreground=FIXED_DARK, alpha=0.6), Normal()])
        axes.add_collection(lines)
    axes.set(xlim=extent[:2], ylim=extent[2:], aspect="equal", xticks=[], yticks=[])
    if case.plane != "axial":
        axes.invert_yaxis()  # slices are counted upwards, from the feet
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    _bar(axes)
    axes.set_title(case.title + (f"\n{case.note}" if case.note else ""), fontsize=8.5, fontweight="normal")
    left = " ".join(case.note.split())
    return f"{case.title}, {case.plane} slice {place}{f' ({left})' if left else ''}."


def _lines(found: Sequence[NDArray[np.float64]], size: Sequence[float], colour: str, width: float) -> Any:
    from matplotlib.collections import LineCollection

    scaled = [line[:, ::-1] * (size[1], size[0]) for line in found]
    return LineCollection(scaled, colors=colour, linewidths=width, capstyle="projecting")


def _window(
    mask: NDArray[np.bool_], size: Sequence[float], margin_mm: float
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Rows and columns to show: a square in mm around the mask, or all if there is none."""
    if not mask.any():
        return (0, mask.shape[0]), (0, mask.shape[1])
    spans = []
    for axis in (0, 1):
        at = np.flatnonzero(mask.any(axis=1 - axis))
        spans.append((at[0] * size[axis], (at[-1] + 1) * size[axis]))
    side = max(high - low for low, high in spans) / 2 + margin_mm
    found = []
    for axis, (low, high) in enumerate(spans):
        middle = (low + high) / 2
        first = max(0, int(np.floor((middle - side) / size[axis])))
        last = min(mask.shape[axis], int(np.ceil((middle + side) / size[axis])))
        found.append((first, last))
    return found[0], found[1]


def _percentiles(part: NDArray[np.float32]) -> tuple[float, float]:
    low, high = (float(v) for v in np.nanpercentile(part, [1, 99]))
    return (low, high) if high > low else (low - 1, low + 1)


def _bar(axes: Any) -> None:
    """Ten millimetres, in the lower left corner."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    x, y = left + 0.05 * (right - left), bottom + 0.05 * (top - bottom)
    for width, colour in ((4.0, FIXED_DARK), (2.2, FIXED_LIGHT)):
        axes.plot([x, x + 10], [y, y], color=colour, linewidth=width, solid_capstyle="butt")


def _key() -> list[Any]:
    from matplotlib.lines import Line2D
    from matplotlib.patheffects import Normal, Stroke

    handles = []
    for label, colour, width in (("reference", REFERENCE, 3.0), ("prediction", PREDICTION, 1.3)):
        line = Line2D([], [], color=colour, linewidth=width, label=label)
        line.set_path_effects([Stroke(linewidth=width + 1.0, foreground=FIXED_DARK, alpha=0.6), Normal()])
        handles.append(line)
    return handles


def _check(name: str, case: Overlay) -> None:
    shape = np.shape(case.reference)
    if len(shape) != 3 or 0 in shape:
        fail(ValueError, f"{name}.reference", "three axes (z, y, x), none empty", f"shape {shape}")
    for argument in ("prediction", "image"):
        value = getattr(case, argument)
        if value is not None and np.shape(value) != shape:
            fail(ValueError, f"{name}.{argument}", f"shape {shape}", np.shape(value))
    if len(case.spacing) != 3 or not all(np.isfinite(s) and s > 0 for s in case.spacing):
        fail(ValueError, f"{name}.spacing", "three positive numbers", case.spacing)
    choice(f"{name}.plane", case.plane, _PLANES)
