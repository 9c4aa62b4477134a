"""The mini canvas: pictures, codec, the shipped weights, judges, and what the model draws."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

pytest.importorskip("skimage")
pytest.importorskip("sklearn")

from tenfold.diffusion.bundle import load_bundle
from tenfold.diffusion.canvas.mini import (
    HELD_OUT,
    MINI,
    TRAINING,
    WEIGHTS,
    apply_style,
    cell_pictures,
    mini_bundle,
    mini_judges,
    store,
)
from tenfold.diffusion.canvas.mini.build import Recipe, quality, train_model, world
from tenfold.diffusion.canvas.mini.codec import fitted
from tenfold.diffusion.canvas.mini.model import new_bundle, tokenizer


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_pictures_depend_on_their_number_alone() -> None:
    many = cell_pictures("Cartoon", "Cats")
    assert many.shape == (len(TRAINING), 32, 32, 3)
    assert many.dtype == np.uint8
    assert np.array_equal(many[6:9], cell_pictures("Cartoon", "Cats", [7, 8, 9]))
    assert len({picture.tobytes() for picture in many}) == len(many)


@pytest.mark.parametrize("style", MINI.styles)
def test_styles_are_those_of_the_photographs(style) -> None:
    plain = cell_pictures("Seed_Images", "Coffee", [1, 2, 3])
    before = plain.copy()
    styled = apply_style(plain, style)
    assert np.array_equal(plain, before)
    assert np.array_equal(styled, cell_pictures(style, "Coffee", [1, 2, 3]))
    assert np.array_equal(apply_style(plain[1:2], style), styled[1:2])
    assert np.array_equal(styled, plain) == (style == "Seed_Images")


def test_what_is_no_picture_or_style_is_refused() -> None:
    good = np.zeros((1, 32, 32, 3), np.uint8)
    with pytest.raises(ValueError, match="style: expected"):
        apply_style(good, "Impasto")
    for bad in (good[0], good.astype(np.float32), good[:, :31]):
        with pytest.raises(ValueError, match="pictures: expected"):
            apply_style(bad, "Winter")
    with pytest.raises(ValueError, match="name: expected"):
        cell_pictures("Winter", "Dogs")
    with pytest.raises(ValueError, match="number: expected"):
        cell_pictures("Winter", "Cats", [65])


def test_the_codec_keeps_what_16_components_can() -> None:
    pictures = world(HELD_OUT)[0]
    codec = fitted(pictures * 2 - 1)
    latents = codec.encode(pictures * 2 - 1).latent_dist.mean
    assert latents.shape == (len(pictures), 16, 8, 8)
    assert float(latents.square().mean()) == pytest.approx(1.0, rel=1e-3)
    back = codec.decode(latents).sample
    again = codec.encode(back).latent_dist.mean
    torch.testing.assert_close(again, latents, rtol=1e-3, atol=1e-3)
    psnr = -10 * torch.log10(((back - pictures * 2 + 1) / 2).square().mean())
    assert psnr > 24


def test_packed_weights_are_near() -> None:
    generator = torch.Generator().manual_seed(0)
    state = {
        "kernel": torch.randn(40, 8, 3, 3, generator=generator),
        "bias": torch.randn(40, generator=generator),
        "nothing": torch.zeros(64, 64),
    }
    stored = store.packed(state)
    assert stored["kernel"].dtype == torch.int8
    found = store.unpacked(stored)
    assert found.keys() == state.keys()
    assert torch.equal(found["nothing"], state["nothing"])
    worst = (found["kernel"] - state["kernel"]).flatten(1).abs().amax(1)
    assert bool((worst <= 0.0045 * state["kernel"].flatten(1).abs().amax(1)).all())
    assert torch.equal(store.packed(found)["kernel"], stored["kernel"])


def test_the_shipped_weights_are_checked(tmp_path) -> None:
    about = json.loads((WEIGHTS / store.ABOUT).read_text())
    assert about["bytes"] == (WEIGHTS / store.FILE).stat().st_size < 4_000_000
    folder = tmp_path / "weights"
    shutil.copytree(WEIGHTS, folder)
    assert mini_bundle(folder).name == "canvas"
    data = bytearray((folder / store.FILE).read_bytes())
    data[-1] ^= 1
    (folder / store.FILE).write_bytes(bytes(data))
    with pytest.raises(RuntimeError, match="SHA-256"):
        mini_bundle(folder)
    (folder / store.FILE).unlink()
    with pytest.raises(FileNotFoundError, match=store.FILE):
        mini_judges(folder)


def test_every_prompt_has_words_of_its_own() -> None:
    unknown = tokenizer().unk_token_id
    for style, name in MINI.cells:
        assert unknown not in tokenizer()(MINI.prompt(style, name)).input_ids
    assert unknown in tokenizer()("A Dogs image in Photo style.").input_ids


def test_judges_know_pictures_they_have_not_seen() -> None:
    pictures, styles, objects = world(HELD_OUT)
    for judge, labels in zip(mini_judges(), (styles, objects), strict=True):
        right = (judge.logits(pictures).argmax(1) == labels).float().mean()
        assert right >= 0.99
        assert judge.card.accuracy == pytest.approx(float(right), abs=0.01)
        assert judge.features(pictures[:3]).shape == (3, 192)
        with pytest.raises(ValueError, match="images: expected"):
            judge.logits(pictures[:1] * torch.nan)
        with pytest.raises(ValueError, match="images: expected"):
            judge.logits(pictures[:, :1])


def test_the_model_draws_what_the_prompt_says() -> None:
    """As published for the base model of the benchmark, but easier: the same eight photographs again."""
    found = quality(load_bundle("canvas"), mini_judges(), seeds=(7,))
    assert found["style_accuracy"] >= 0.97
    assert found["object_accuracy"] >= 0.93


def test_a_pipeline_of_diffusers_draws_with_it() -> None:
    pipe = mini_bundle().to_pipeline()
    pipe.set_progress_bar_config(disable=True)
    picture = pipe("A Cats image in Winter style.", num_inference_steps=2, output_type="np").images
    assert picture.shape == (1, 32, 32, 3)
    assert np.isfinite(picture).all()


def test_training_runs_and_repeats() -> None:
    data = world(range(1, 3))
    recipe = Recipe(steps=6, batch=4)
    states = []
    for _ in range(2):
        bundle = new_bundle(1).replace(vae=fitted(data[0] * 2 - 1))
        loss = train_model(bundle, recipe, data, progress=lambda line: None)
        assert np.isfinite(loss)
        states.append(bundle.unet.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(states[0].values(), states[1].values(), strict=True))
