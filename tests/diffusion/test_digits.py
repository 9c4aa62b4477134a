"""The digits world: language, judge, the trained model, and that its script trains."""

import json

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("sklearn")

from tenfold.diffusion import load_bundle
from tenfold.diffusion.digits import (
    NAMES,
    WEIGHTS,
    DigitJudge,
    digit_agreement,
    digit_name,
    digit_of,
    digit_pictures,
    digits_described,
    gate_distance,
    load_digits,
    name_prompts,
    pixel_frechet,
    read_digits,
    retain_prompts,
    state_of,
)
from tenfold.diffusion.digits.vocabulary import DESCRIPTORS, random_prompt, words
from tenfold.diffusion.encode import tokenize
from tenfold.diffusion.judges import verdict_of


@pytest.fixture(scope="module")
def digits():
    return load_bundle("digits")


def test_vocabulary(digits):
    assert len(words()) == len(set(words())) == len(digits.tokenizer) == 474
    assert sum(p.numel() for p in digits.text_encoder.parameters()) == 32_832
    assert sum(p.numel() for p in digits.unet.parameters()) == 271_937
    ids, lengths = tokenize(digits, ["a photo of FIVE", "horse"])
    assert lengths.tolist() == [4, 1]
    assert digits.tokenizer.decode(ids[0, 1:5]) == "a photo of five"
    assert ids[1, 1] == digits.tokenizer.unk_token_id


def test_prompts_are_true_and_short():
    draw = np.random.default_rng(0)
    empty = 0
    for i in range(2000):
        prompt = random_prompt(i % 10, draw)
        empty += not prompt
        assert i % 10 in digits_described(prompt)
        assert len(prompt.split()) <= 14
    assert 150 < empty < 250
    assert digits_described("middle hooked") == {5}
    assert digits_described("a photo of") == set(range(10))
    assert all(set(of) <= set("0123456789") for of in DESCRIPTORS.values())


def test_prompt_lists():
    assert len(set(name_prompts(5))) == 40
    kept = retain_prompts("five")
    assert len(kept) == len(set(kept)) == 48
    assert not any(name in prompt.split() for prompt in kept for name in NAMES[5])
    assert {digit_of(d) for d in ("funf", 5, "5", "five")} == {5}
    with pytest.raises(ValueError, match="digit: expected 0 to 9"):
        digit_of("ten")
    assert digit_name("cinco") == "cinco"
    for wrong in ("5", "ten", "Five", 5):
        with pytest.raises(ValueError, match="concept: expected a name of a digit"):
            digit_name(wrong)
    with pytest.raises(ValueError, match="exclude: expected a digit that is left, got all ten"):
        digit_agreement(load_digits(), exclude=range(10))


def test_the_judge_reads_real_digits_and_refuses_junk():
    real = digit_pictures()
    read, _, accepted = read_digits(real.test)
    assert float((read == real.test_digits).float().mean()) >= 0.985
    assert float(accepted.float().mean()) == pytest.approx(0.99, abs=0.005)
    assert 3.2 < gate_distance() < 3.7
    draw = torch.Generator().manual_seed(0)
    noise = torch.rand((200, 1, 8, 8), generator=draw)
    shuffled = real.test.flatten(1)[:, torch.randperm(64, generator=draw)].view(-1, 1, 8, 8)
    for junk in (noise, shuffled, torch.zeros(2, 1, 8, 8), torch.ones(2, 1, 8, 8)):
        assert not bool(read_digits(junk)[2].any())
    closed = verdict_of(DigitJudge("one", gate=False), noise)
    assert float(closed.success.float().mean()) > 0.8  # what the gate is there for
    assert not bool(verdict_of(DigitJudge("one"), noise).success.any())


def test_the_judge_asks_for_digits():
    with pytest.raises(ValueError, match=r"images: expected \[B, 1, 8, 8\]"):
        read_digits(torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match="finite"):
        read_digits(torch.full((1, 1, 8, 8), float("nan")))
    assert len(verdict_of(DigitJudge(3), torch.zeros(0, 1, 8, 8))) == 0


def test_the_shipped_model_draws_what_it_is_asked(digits):
    found = digit_agreement(digits, per_digit=10, guidance=3.0, seed=50)
    assert found.mean >= 0.93
    assert found.ungated >= found.mean
    assert found.images.shape == (100, 1, 8, 8)
    part = digit_agreement(digits, exclude=["five"], per_digit=2)
    assert sorted(part.by_digit) == [d for d in range(10) if d != 5]


def test_the_provenance_names_the_shipped_file(tmp_path):
    about = json.loads((WEIGHTS / "digits.json").read_text())
    assert about["quality"]["agreement_g3"] >= 0.93
    for name in ("digits.json", "digits.safetensors"):
        (tmp_path / name).write_bytes((WEIGHTS / name).read_bytes())
    assert torch.equal(
        state_of(load_digits(tmp_path))["unet.conv_in.weight"], load_digits().unet.conv_in.weight
    )
    content = bytearray((tmp_path / "digits.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "digits.safetensors").write_bytes(content)
    with pytest.raises(RuntimeError, match="expected SHA-256"):
        load_digits(tmp_path)
    (tmp_path / "digits.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"digits\.json"):
        load_digits(tmp_path)


def test_a_saved_pipeline_of_pixels_loads(digits, tmp_path):
    from tenfold.diffusion import generate, start_noise
    from tenfold.diffusion.pipeline import PixelDiffusionPipeline

    digits.to_pipeline().save_pretrained(tmp_path, safe_serialization=True)
    again = load_bundle(tmp_path)
    ours = generate(again, ["five"], [1], steps=5, guidance=3.0)
    pipe = PixelDiffusionPipeline.from_pretrained(tmp_path)
    pipe.set_progress_bar_config(disable=True)
    noise = start_noise((1, 8, 8), [1])
    theirs = pipe(["five"], num_inference_steps=5, guidance_scale=3.0, latents=noise, output_type="pt").images
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_frechet_distance():
    draw = torch.Generator().manual_seed(0)
    a = torch.rand((4000, 1, 2, 2), generator=draw)
    assert pixel_frechet(a, a) == pytest.approx(0, abs=1e-9)
    assert pixel_frechet(a, a + 0.5) == pytest.approx(4.0, rel=1e-6)  # four pixels, each moved by 1
    wide = (a - a.mean(0)) * 3 + a.mean(0)
    spread = torch.cov((a.flatten(1).double() * 2 - 1).T).trace()
    assert pixel_frechet(a, wide) == pytest.approx(float(4 * spread), rel=1e-5)  # (3 - 1)^2 tr
    with pytest.raises(ValueError, match="others: expected finite pixels"):
        pixel_frechet(a, a * float("nan"))
    with pytest.raises(ValueError, match="at least two pictures"):
        pixel_frechet(a[:1], a)


def test_the_script_trains(tmp_path):
    from tenfold.diffusion.digits.build import Recipe, train_text, train_unet
    from tenfold.diffusion.digits.model import new_bundle
    from tenfold.diffusion.digits.store import write

    states = []
    for _ in range(2):
        bundle = new_bundle(3)
        recipe = Recipe(seed=3, text_steps=60, text_batch=32, unet_steps=6, unet_batch=8)
        first = train_text(bundle, Recipe(seed=3, text_steps=1, text_batch=32), lambda line: None)
        bundle = new_bundle(3)
        assert train_text(bundle, recipe, lambda line: None) < first - 0.1
        assert np.isfinite(train_unet(bundle, recipe, lambda line: None))
        states.append(state_of(bundle))
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    write(tmp_path, states[0], {"recipe": {}})
    assert torch.equal(load_digits(tmp_path).unet.conv_in.bias, states[0]["unet.conv_in.bias"])
