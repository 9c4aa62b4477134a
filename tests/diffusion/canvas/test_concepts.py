"""A style or an object of a canvas as a concept."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from tenfold.diffusion.canvas.concepts import anchor_cell, cells_of, concept_of
from tenfold.diffusion.erase.from_data import check_pairs


@dataclass(frozen=True)
class Board:
    styles: tuple[str, ...] = ("Winter", "Van_Gogh")
    objects: tuple[str, ...] = ("Cats", "Dogs", "Sea")
    photo: str = "Seed_Images"

    def prompt(self, style: str, object: str) -> str:
        words = "Photo" if style == self.photo else style.replace("_", " ")
        return f"A {object} image in {words} style."

    def find(self, name: str) -> tuple[str, str]:
        for kind, names in (("style", (*self.styles, self.photo)), ("object", self.objects)):
            if name in names:
                return kind, name
        raise ValueError(name)


def pictures(style: str, thing: str, count: int) -> torch.Tensor:
    """Pictures that say which they are."""
    value = (sum(map(ord, style + thing)) % 97) / 100
    return torch.stack([torch.full((1, 2, 2), value + i / 1e4) for i in range(count)])


def test_a_style_becomes_photographs_of_the_same_objects():
    concept = concept_of(Board(), "Van_Gogh", images=pictures, per_cell=2)
    assert concept.name == "Van_Gogh"
    assert concept.prompts == tuple(f"A {o} image in Van Gogh style." for o in ("Cats", "Dogs", "Sea"))
    assert concept.anchors == tuple(f"A {o} image in Photo style." for o in ("Cats", "Dogs", "Sea"))
    assert len(concept.retain) == 6
    assert not any("Van Gogh" in text for text in concept.retain)
    data = concept.data
    assert data.forget_prompts == tuple(p for p in concept.prompts for _ in range(2))
    assert data.pseudo_prompts == tuple(p for p in concept.anchors for _ in range(2))
    assert torch.equal(data.forget_images[2:4], pictures("Van_Gogh", "Dogs", 2))
    assert torch.equal(data.pseudo_images[4:], pictures("Seed_Images", "Sea", 2))
    assert set(data.retain_prompts) <= set(concept.retain)
    check_pairs(concept, data)


def test_an_object_becomes_the_next_in_the_same_style():
    concept = concept_of(Board(), "Sea", retain="anchors", per_cell=1)
    assert concept.prompts[0] == "A Sea image in Winter style."
    assert concept.anchors[0] == "A Cats image in Winter style."  # the list goes round
    assert concept.data.retain_prompts == concept.data.pseudo_prompts
    assert concept.data.forget_images is None
    assert len(concept.prompts) == 3  # photographs are a style too
    assert len(concept.retain) == 6
    check_pairs(concept, concept.data)


def test_retained_cells_are_drawn_evenly_and_by_the_seed():
    draws = [concept_of(Board(), "Winter", per_cell=5, images=pictures, seed=s).data for s in (0, 0, 1)]
    counts = Counter(draws[0].retain_prompts)
    assert sum(counts.values()) == 15
    assert set(counts.values()) == {2, 3}  # fifteen of six cells
    assert draws[0].retain_prompts == draws[1].retain_prompts != draws[2].retain_prompts
    assert len(draws[0].retain_images.flatten(1).unique(dim=0)) == 15  # none twice


def test_cells_and_anchors():
    assert cells_of(Board(), "Dogs") == [("Winter", "Dogs"), ("Van_Gogh", "Dogs"), ("Seed_Images", "Dogs")]
    assert anchor_cell(Board(), "Seed_Images", ("Seed_Images", "Dogs")) == ("Winter", "Dogs")
    with pytest.raises(ValueError, match="retain: expected one of 'others', 'anchors'"):
        concept_of(Board(), "Dogs", retain="all")
    with pytest.raises(ValueError, match=r"images: expected 2 pictures of \('Winter', 'Cats'\), got 1"):
        concept_of(Board(), "Winter", images=lambda s, o, n: torch.zeros(1, 1, 2, 2), per_cell=2)
