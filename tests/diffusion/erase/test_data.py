"""Pictures of a concept: checks, drawing by the model, the order they are visited in."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from tenfold.diffusion.erase import Concept, ConceptData
from tenfold.diffusion.erase.data import Order


def test_every_item_is_visited_once_in_an_epoch():
    """The published loaders are restarted at every step and give the same first batch for ever."""
    order = Order(count=7, batch=4, seed=3, salt=1, total=14)
    batches = list(order)
    assert [len(b) for b in batches] == [4, 4, 4, 2]
    flat = np.concatenate(batches)
    assert np.array_equal(np.bincount(flat, minlength=7), np.full(7, 2))
    assert sorted(flat[:7]) == list(range(7))
    assert not np.array_equal(flat[:7], flat[7:])  # another order in the next epoch
    assert np.array_equal(Order(7, 4, 3, 1, 14).rows(2), batches[2])  # a function of the place
    assert not np.array_equal(Order(7, 4, 4, 1, 14).rows(0), batches[0])
    assert len(Order(3, 8, 0, 0).rows(5)) == 8  # without an end, and a batch of more than an epoch


def test_a_model_draws_the_pictures_that_are_not_given(tiny):
    given = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    data = ConceptData(("a cat", "the cat"), ("a dog",), ("a church",), given, steps=2)
    assert data.pseudo_prompts == ("a dog", "a dog")
    full = data.filled(tiny, seed=5)
    assert full.pseudo_images is None
    assert data.filled(tiny, parts=("pseudo",)).pseudo_images.shape == (2, 3, 64, 64)
    assert full.forget_images is given
    assert full.retain_images.shape == (1, 3, 64, 64)
    assert torch.equal(full.retain_images, data.filled(tiny, seed=5, batch=1).retain_images)
    assert not torch.equal(full.retain_images, data.filled(tiny, seed=6).retain_images)
    with pytest.raises(ValueError, match=r"forget_images: expected pictures \[3, 64, 64\]"):
        ConceptData(("a",), ("",), (), given[:1, :, :32]).filled(tiny)


def test_a_concept_without_pictures_says_what_to_draw():
    concept = Concept("cat", ("cat", "kitten"), ("dog", "puppy"), ("a church",))
    data = concept.pictures(3, steps=4)
    assert data.forget_prompts == ("cat", "kitten", "cat")
    assert data.pseudo_prompts == ("dog", "puppy", "dog")
    assert data.retain_prompts == ("a church",) * 3
    assert data.steps == 4
    assert Concept("cat", data=data).pictures(99) is data
    assert Concept("cat").pictures(2).retain_prompts == ()


def test_data_is_told_apart_by_its_bytes():
    images = torch.rand(1, 3, 8, 8)
    first = Concept("cat", data=ConceptData(("a",), ("b",), (), images))
    same = Concept("cat", data=ConceptData(("a",), ("b",), (), images.clone()))
    other = Concept("cat", data=ConceptData(("a",), ("b",), (), images.flip(3)))
    assert repr(first) == repr(same) != repr(other)
    assert json.loads(json.dumps(first.about())) == same.about() != other.about()
    assert "data" not in Concept("cat").about()


@pytest.mark.parametrize(
    ("wrong", "kind", "match"),
    [
        ({"forget_prompts": ()}, ValueError, "forget_prompts: expected texts of the concept"),
        ({"forget_prompts": (1,)}, TypeError, "forget_prompts: expected texts, got int 1"),
        ({"pseudo_prompts": ("a", "b", "c")}, ValueError, "pseudo_prompts: expected 1 or 2 texts, got 3"),
        ({"forget_images": torch.rand(1, 3, 8, 8)}, ValueError, r"forget_images: expected \[2, c, H, W\]"),
        ({"forget_images": torch.rand(2, 3, 8, 8) + 1}, ValueError, r"values in 0\.\.1"),
        ({"forget_images": torch.full((2, 3, 8, 8), torch.nan)}, ValueError, r"values in 0\.\.1, got nan"),
        ({"forget_images": torch.zeros(2, 3, 8, 8, dtype=torch.uint8)}, TypeError, "forget_images"),
        ({"steps": 0}, ValueError, "steps"),
    ],
)
def test_bad_data_is_refused_by_name(wrong, kind, match):
    with pytest.raises(kind, match=match):
        ConceptData(**{"forget_prompts": ("a", "b"), **wrong})


def test_a_concept_s_data_is_a_concept_data():
    with pytest.raises(TypeError, match="data: expected a ConceptData"):
        Concept("cat", data={"forget": []})
