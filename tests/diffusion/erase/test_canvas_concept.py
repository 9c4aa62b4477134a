"""Concepts of a canvas: prompts, what stands in, what is kept."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

pytest.importorskip("diffusers")

from tenfold.diffusion.erase import canvas_concept
from tenfold.diffusion.erase.concept import words_of


class Canvas:
    styles = ("Mosaic", "Van_Gogh", "Photos")
    objects = ("Cats", "Dogs", "Trees")
    photo = "Photos"

    def prompt(self, style, thing):
        said = "Photo" if style == self.photo else style.replace("_", " ")
        return f"A {thing} image in {said} style."

    def find(self, name):
        for kind, names in (("style", self.styles), ("object", self.objects)):
            for one in names:
                if one.replace("_", " ").lower() == name.replace("_", " ").lower():
                    return kind, one
        raise ValueError(f"name: expected a style or object, got {name}")


def test_a_style_becomes_the_photograph_of_the_same_object():
    found = canvas_concept(Canvas(), "van gogh", steps=7)
    assert found.name == "Van Gogh"
    assert found.prompts == tuple(f"A {o} image in Van Gogh style." for o in Canvas.objects)
    assert found.anchors == tuple(f"A {o} image in Photo style." for o in Canvas.objects)
    assert len(found.retain) == 1 + 2 * 3
    assert found.retain[0] == ""
    assert not set(found.retain) & set(found.prompts)
    assert found.data.forget_prompts == found.prompts
    assert found.data.pseudo_prompts == found.anchors
    assert found.data.retain_prompts == found.retain[1:]
    assert found.data.steps == 7


def test_an_object_becomes_the_next_in_every_style():
    found = canvas_concept(Canvas(), "Trees")
    assert found.pairs[0] == ("A Trees image in Mosaic style.", "A Cats image in Mosaic style.")
    assert len(found.prompts) == 3
    assert len(found.retain) == 1 + 3 * 2
    other = canvas_concept(Canvas(), "Trees", instead="dogs")
    assert other.anchors[0] == "A Dogs image in Mosaic style."


def test_several_targets_are_one_concept():
    found = canvas_concept(Canvas(), "Mosaic", "Trees")
    assert found.name == "Mosaic, Trees"
    pairs = dict(found.pairs)
    assert pairs["A Trees image in Mosaic style."] == "A Cats image in Photo style."
    assert pairs["A Cats image in Mosaic style."] == "A Cats image in Photo style."
    assert pairs["A Trees image in Photo style."] == "A Cats image in Photo style."
    assert len(pairs) == 3 + 3 - 1
    assert len(found.retain) == 1 + 2 * 2
    two = canvas_concept(Canvas(), "Cats", "Dogs")
    assert set(dict(two.pairs).values()) == {Canvas().prompt(s, "Trees") for s in Canvas.styles}
    photos = canvas_concept(Canvas(), "Photos", "Mosaic")
    assert set(photos.anchors) == {Canvas().prompt("Van_Gogh", o) for o in Canvas.objects}


def test_what_cannot_be_a_target_is_refused():
    canvas = Canvas()
    for arguments, options, message in (
        ((), {}, "targets: expected styles or objects"),
        (("Cats", "cats"), {}, "targets: expected different ones"),
        (("Rust",), {}, "name: expected a style or object, got Rust"),
        (("Cats",), {"instead": "Mosaic"}, "instead: expected one more object, no target"),
        (("Cats",), {"instead": "cats"}, "instead: expected one more object, no target"),
        (("Cats", "Dogs", "Trees"), {}, "targets: expected another object in the place of Cats"),
    ):
        with pytest.raises(ValueError, match=message):
            canvas_concept(canvas, *arguments, **options)


def pictures(style: str, thing: str, count: int) -> torch.Tensor:
    """Pictures that say which they are."""
    value = (sum(map(ord, style + thing)) % 97) / 100
    return torch.stack([torch.full((1, 2, 2), value + i / 1e4) for i in range(count)])


def test_pictures_of_cells():
    found = canvas_concept(Canvas(), "Trees", images=pictures, per_cell=2, retain="anchors")
    data = found.data
    assert data.forget_prompts == tuple(p for p in found.prompts for _ in range(2))
    assert data.pseudo_prompts == data.retain_prompts == tuple(p for p in found.anchors for _ in range(2))
    assert torch.equal(data.forget_images[:2], pictures("Mosaic", "Trees", 2))
    assert torch.equal(data.pseudo_images[:2], pictures("Mosaic", "Cats", 2))
    with pytest.raises(ValueError, match=r"images: expected 2 pictures of \('Mosaic', 'Cats'\), got 1"):
        canvas_concept(Canvas(), "Mosaic", images=lambda s, o, n: torch.zeros(1, 1, 2, 2), per_cell=2)
    with pytest.raises(ValueError, match="retain: expected one of 'all', 'others', 'anchors'"):
        canvas_concept(Canvas(), "Mosaic", retain="some")


def test_retained_cells_are_drawn_evenly_and_by_the_seed():
    def draw(seed: int):
        return canvas_concept(Canvas(), "Mosaic", per_cell=5, images=pictures, retain="others", seed=seed)

    data = draw(0).data
    counts = Counter(data.retain_prompts)
    assert sum(counts.values()) == 15  # of six cells
    assert set(counts.values()) == {2, 3}
    assert len(data.retain_images.flatten(1).unique(dim=0)) == 15  # none twice
    assert data.retain_prompts == draw(0).data.retain_prompts != draw(1).data.retain_prompts


def test_the_published_canvas_has_the_published_numbers_of_texts():
    from tenfold.diffusion.canvas.vocabulary import UNLEARNCANVAS

    style, thing = (canvas_concept(UNLEARNCANVAS, name) for name in ("van gogh", "Dogs"))
    assert (len(style.prompts), len(style.retain)) == (20, 1001)
    assert (len(thing.prompts), len(thing.retain)) == (51, 970)
    assert words_of(style) == ("Van Gogh",)
    assert style.pairs[0] == (
        "A Architectures image in Van Gogh style.",
        "A Architectures image in Photo style.",
    )
