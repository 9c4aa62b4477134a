"""Concepts of a canvas of styles and objects, worded as its pictures are asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tenfold import _checks
from tenfold.diffusion.erase.concept import Concept
from tenfold.diffusion.erase.data import ConceptData

__all__ = ["RETAIN", "CellPictures", "canvas_concept", "pair_concept"]

RETAIN = ("all", "others", "anchors")
CellPictures = Callable[[str, str, int], Tensor]
"""(style, object, n) -> float [n, c, H, W] in 0..1, pictures of a cell."""
_SALT = 0xCE11

Cell = tuple[str, str]


def canvas_concept(
    canvas: Any,
    *targets: str,
    instead: str | None = None,
    images: CellPictures | None = None,
    per_cell: int = 1,
    retain: str = "all",
    seed: int = 0,
    **options: Any,
) -> Concept:
    """The concept that one style or object of a canvas is, or several together.

    Its prompts are all of the canvas' that name a target; the anchor of each names `instead` in its place;
    what is retained are the prompts without a target, and the empty one. `data` has the same, for erasers
    that learn from pictures: UnlearnCanvas (arXiv 2402.11846) gives them 3 `per_cell` and retains "anchors".

    Args:
        canvas: has `styles`, `objects`, `photo` (the style of photographs), `prompt(style, object)` and
            `find(name) -> ("style" or "object", name)`.
        targets: names of styles or objects. instead: the photographs for a style and the next object that is
            no target for an object, if None.
        images: pictures of a cell, that is, of a style and an object; None, the model draws them.
        per_cell: pictures of each cell of a target.
        retain: pictures that stay: "all", one of each cell without a target; "others", as many as of the
            targets, drawn from these cells evenly; "anchors", of what the targets are to become.
        seed: of that draw.
        options: of `ConceptData` (steps, guidance, sampler).

    Raises:
        ValueError: no target, one named twice, an unknown name; `instead` is a target or of the other kind.
    """
    _checks.choice("retain", retain, RETAIN)
    _checks.integer("per_cell", per_cell, 1, 10**6)
    if not targets:
        _checks.fail(ValueError, "targets", "styles or objects", "none")
    found = [canvas.find(name) for name in targets]
    if len(set(found)) != len(found):
        _checks.fail(ValueError, "targets", "different ones", list(targets))
    styles = list(dict.fromkeys((*canvas.styles, canvas.photo)))
    others = {kind_name: _instead(canvas, styles, found, kind_name, instead) for kind_name in found}
    anchors: dict[Cell, Cell] = {}
    rest: list[Cell] = []
    for cell in ((style, thing) for style in styles for thing in canvas.objects):
        new = tuple(
            others.get((kind, name), name) for kind, name in zip(("style", "object"), cell, strict=True)
        )
        if new == cell:
            rest.append(cell)
        else:
            anchors[cell] = (new[0], new[1])
    name = ", ".join(name.replace("_", " ") for _, name in found)
    return _concept(canvas, name, anchors, rest, images, per_cell, retain, seed, options)


def pair_concept(
    canvas: Any,
    style: str,
    object: str,
    *,
    images: CellPictures | None = None,
    per_cell: int = 1,
    retain: str = "all",
    seed: int = 0,
    **options: Any,
) -> Concept:
    """The concept that one object in one style is: its cell becomes the object's photographs, every other
    cell is kept, those of the style and of the object too. Arguments as `canvas_concept`.

    Raises:
        ValueError: an unknown name, or the style of the photographs.
    """
    _checks.choice("retain", retain, RETAIN)
    _checks.integer("per_cell", per_cell, 1, 10**6)
    cell = (canvas.style(style), canvas.object(object))
    if cell[0] == canvas.photo:
        _checks.fail(ValueError, "style", "a style that can become photographs", style)
    rest = [one for one in ((s, o) for s in canvas.styles for o in canvas.objects) if one != cell]
    name = " ".join(part.replace("_", " ") for part in cell)
    anchors = {cell: (str(canvas.photo), cell[1])}
    return _concept(canvas, name, anchors, rest, images, per_cell, retain, seed, options)


def _concept(
    canvas: Any,
    name: str,
    anchors: dict[Cell, Cell],
    rest: list[Cell],
    images: CellPictures | None,
    per_cell: int,
    retain: str,
    seed: int,
    options: dict[str, Any],
) -> Concept:
    """anchors: each erased cell with what it becomes. rest: the cells that stay."""
    if not rest:
        _checks.fail(ValueError, "targets", "some prompts to keep", "none left")
    own = [cell for cell in anchors for _ in range(per_cell)]
    pseudo = [anchors[cell] for cell in own]
    kept = {"all": rest, "others": _drawn(rest, len(own), seed), "anchors": pseudo}[retain]

    def texts(cells: Sequence[Cell]) -> tuple[str, ...]:
        return tuple(canvas.prompt(*cell) for cell in cells)

    if images is not None:
        sets = {"forget_images": own, "retain_images": kept, "pseudo_images": pseudo}
        options = {**options, **{name: _pictures(images, cells) for name, cells in sets.items()}}
    data = ConceptData(texts(own), texts(pseudo), texts(kept), **options)
    return Concept(name, texts(list(anchors)), texts(list(anchors.values())), ("", *texts(rest)), data)


def _drawn(cells: list[Cell], count: int, seed: int) -> list[Cell]:
    """`count` cells, none more than once oftener than another."""
    rng = np.random.default_rng([seed, _SALT])
    rounds = [rng.permutation(len(cells)) for _ in range(-(-count // len(cells)))]
    return [cells[i] for i in np.concatenate(rounds)[:count]]


def _pictures(images: CellPictures, cells: list[Cell]) -> Tensor:
    """[len(cells), c, H, W]: where a cell comes for the n-th time, its n-th picture."""
    counts = {cell: cells.count(cell) for cell in cells}
    found = {cell: images(*cell, count) for cell, count in counts.items()}
    for cell, count in counts.items():
        if len(found[cell]) != count:
            _checks.fail(ValueError, "images", f"{count} pictures of {cell}", len(found[cell]))
    rows = {cell: iter(pictures) for cell, pictures in found.items()}
    return torch.stack([next(rows[cell]) for cell in cells])


def _instead(
    canvas: Any,
    styles: list[str],
    targets: list[tuple[str, str]],
    target: tuple[str, str],
    instead: str | None,
) -> str:
    kind, name = target
    if instead is not None:
        other, new = canvas.find(instead)
        if other != kind or (other, new) in targets:
            _checks.fail(ValueError, "instead", f"one more {kind}, no target", instead)
        return str(new)
    if kind == "style" and ("style", canvas.photo) not in targets:
        return str(canvas.photo)
    order = styles if kind == "style" else list(canvas.objects)
    at = order.index(name)
    following = [one for one in (*order[at + 1 :], *order[:at]) if (kind, one) not in targets]
    if not following:
        _checks.fail(ValueError, "targets", f"another {kind} in the place of {name}", "none left")
    return str(following[0])
