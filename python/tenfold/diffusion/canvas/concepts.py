"""A style or an object of a canvas as a `Concept` that any eraser takes: prompts, anchors, pictures.

A cell is a style and an object. The concept is the cells of the target: a style with every object, an object
in every style. Each of them is to become another cell, the same object as a photograph or the next object of
the list in the same style, as UnlearnCanvas has it (arXiv 2402.11846).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from tenfold import _checks
from tenfold.diffusion.erase.concept import Concept
from tenfold.diffusion.erase.data import ConceptData

__all__ = ["RETAIN", "Cell", "CellPictures", "anchor_cell", "cells_of", "concept_of"]

Cell = tuple[str, str]
"""(style, object)."""
CellPictures = Callable[[str, str, int], Tensor]
"""(style, object, n) -> float [n, c, H, W] in 0..1, pictures of a cell."""
RETAIN = ("others", "anchors")
_SALT = 0xCE11


class _Canvas(Protocol):
    """What is needed of a canvas."""

    @property
    def styles(self) -> Sequence[str]: ...

    @property
    def objects(self) -> Sequence[str]: ...

    @property
    def photo(self) -> str: ...

    def prompt(self, style: str, object: str) -> str: ...

    def find(self, name: str) -> tuple[str, str]: ...


def cells_of(canvas: _Canvas, target: str) -> list[Cell]:
    """The cells that show a style or an object.

    Raises:
        ValueError: no name of either.
    """
    kind, name = canvas.find(target)
    if kind == "style":
        return [(name, thing) for thing in canvas.objects]
    return [(style, name) for style in _styles(canvas)]


def anchor_cell(canvas: _Canvas, target: str, cell: Cell) -> Cell:
    """What a cell of the target is to become: a photograph of its object, or the next object in its style. Of
    photographs themselves: the first style."""
    kind, name = canvas.find(target)
    style, thing = cell
    if kind == "style":
        other = canvas.photo if name != canvas.photo else next(s for s in canvas.styles if s != name)
        return other, thing
    objects = list(canvas.objects)
    return style, objects[(objects.index(name) + 1) % len(objects)]


def concept_of(
    canvas: _Canvas,
    target: str,
    *,
    images: CellPictures | None = None,
    per_cell: int = 3,
    retain: str = "others",
    seed: int = 0,
    **options: Any,
) -> Concept:
    """A style or an object as a `Concept`: its `prompts` are those of its cells, `anchors` what each is to
    become, `retain` the prompts of all other cells; `data` has pictures of them.

    Args:
        canvas: styles, objects, photo (the style of photographs), prompt(style, object), find(name).
        target: a style or an object.
        images: pictures of a cell; None, the model draws them.
        per_cell: pictures of each cell of the target, 3 in UnlearnCanvas.
        retain: what stays is learned from as many pictures of cells without the target: "others", drawn from
            all of them; "anchors", the cells that the target is to become, as UnlearnCanvas has it.
        seed: of the draw.
        options: of `ConceptData` (steps, guidance, sampler).

    Raises:
        ValueError: no such style or object.
    """
    _checks.choice("retain", retain, RETAIN)
    _checks.integer("per_cell", per_cell, 1, 10**6)
    own = cells_of(canvas, target)
    anchors = [anchor_cell(canvas, target, cell) for cell in own]
    rest = [(s, o) for s in _styles(canvas) for o in canvas.objects if (s, o) not in set(own)]
    forget, pseudo = (_repeat(cells, per_cell) for cells in (own, anchors))
    kept = pseudo if retain == "anchors" else _drawn(rest, len(forget), seed)
    data = ConceptData(
        tuple(canvas.prompt(*cell) for cell in forget),
        tuple(canvas.prompt(*cell) for cell in pseudo),
        tuple(canvas.prompt(*cell) for cell in kept),
        _pictures(images, forget),
        _pictures(images, kept),
        _pictures(images, pseudo),
        **options,
    )
    return Concept(
        canvas.find(target)[1],
        tuple(canvas.prompt(*cell) for cell in own),
        tuple(canvas.prompt(*cell) for cell in anchors),
        tuple(canvas.prompt(*cell) for cell in rest),
        data,
    )


def _styles(canvas: _Canvas) -> list[str]:
    """The styles with the photographs."""
    styles = list(canvas.styles)
    return styles if canvas.photo in styles else [*styles, canvas.photo]


def _repeat(cells: list[Cell], count: int) -> list[Cell]:
    return [cell for cell in cells for _ in range(count)]


def _drawn(cells: list[Cell], count: int, seed: int) -> list[Cell]:
    """`count` cells, none more than once oftener than another."""
    rng = np.random.default_rng([seed, _SALT])
    rounds = [rng.permutation(len(cells)) for _ in range(-(-count // len(cells)))]
    return [cells[i] for i in np.concatenate(rounds)[:count]]


def _pictures(images: CellPictures | None, cells: list[Cell]) -> Tensor | None:
    """The n-th time that a cell is named its n-th picture is taken."""
    if images is None or not cells:
        return None
    found = {cell: images(*cell, cells.count(cell)) for cell in dict.fromkeys(cells)}
    taken: dict[Cell, int] = {}
    rows = []
    for cell in cells:
        place = taken.get(cell, 0)
        if len(found[cell]) != cells.count(cell):
            _checks.fail(ValueError, "images", f"{cells.count(cell)} pictures of {cell}", len(found[cell]))
        rows.append(found[cell][place])
        taken[cell] = place + 1
    return torch.stack(rows)
