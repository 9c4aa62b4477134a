"""Concepts of a canvas of styles and objects, worded as its pictures are asked for."""

from __future__ import annotations

from typing import Any

from tenfold import _checks
from tenfold.diffusion.erase.concept import Concept
from tenfold.diffusion.erase.data import ConceptData

__all__ = ["canvas_concept"]


def canvas_concept(canvas: Any, *targets: str, instead: str | None = None, **options: Any) -> Concept:
    """The concept that one style or object of a canvas is, or several together.

    Its prompts are all of the canvas' that name a target; the anchor of each names `instead` in its place;
    what is retained are the prompts without a target, and the empty one. `data` has the same, for erasers
    that learn from pictures.

    Args:
        canvas: has `styles`, `objects`, `photo` (the style of photographs), `prompt(style, object)` and
            `find(name) -> ("style" or "object", name)`.
        targets: names of styles or objects. instead: the photographs for a style and the next object that is
            no target for an object, if None.
        options: of `ConceptData` (forget_images, retain_images, steps, guidance, sampler); pictures are in
            the order of the prompts.

    Raises:
        ValueError: no target, one named twice, an unknown name; `instead` is a target or of the other kind.
    """
    if not targets:
        _checks.fail(ValueError, "targets", "styles or objects", "none")
    found = [canvas.find(name) for name in targets]
    if len(set(found)) != len(found):
        _checks.fail(ValueError, "targets", "different ones", list(targets))
    styles = list(dict.fromkeys((*canvas.styles, canvas.photo)))
    others = {kind_name: _instead(canvas, styles, found, kind_name, instead) for kind_name in found}
    pairs, retain = {}, []
    for style in styles:
        for thing in canvas.objects:
            prompt = canvas.prompt(style, thing)
            gone = [one for one in (("style", style), ("object", thing)) if one in others]
            if not gone:
                retain.append(prompt)
                continue
            new = {kind: others[kind, name] for kind, name in gone}
            pairs[prompt] = canvas.prompt(new.get("style", style), new.get("object", thing))
    if not retain:
        _checks.fail(ValueError, "targets", "some prompts to keep", "none left")
    data = ConceptData(tuple(pairs), tuple(pairs.values()), tuple(retain), **options)
    name = ", ".join(name.replace("_", " ") for _, name in found)
    return Concept(name, tuple(pairs), tuple(pairs.values()), ("", *retain), data)


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
