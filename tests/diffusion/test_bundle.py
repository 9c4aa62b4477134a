"""Pipelines seen as components, and back."""

import pytest
import torch

pytest.importorskip("diffusers")

from tenfold.diffusion import Bundle, generate, load_bundle, start_noise, tiny_bundle
from tenfold.diffusion.schedule import Schedule

SAMPLERS = ("ddim", "lms", "pndm", "euler", "dpm")


def picture_of(pipe, prompt, seed, steps):
    pipe.set_progress_bar_config(disable=True)
    latents = start_noise(pipe_shape(pipe), [seed])
    found = pipe([prompt], num_inference_steps=steps, latents=latents, output_type="np").images
    return torch.from_numpy(found).permute(0, 3, 1, 2)


def pipe_shape(pipe):
    config = pipe.unet.config
    return (config.in_channels, config.sample_size, config.sample_size)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_generate_draws_what_the_stock_pipeline_draws(tiny, sampler):
    ours = generate(tiny, ["a cat"], [7], steps=4, sampler=sampler)
    theirs = picture_of(tiny.to_pipeline(sampler), "a cat", 7, 4)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
def test_generate_of_other_predictions(prediction):
    bundle = tiny_bundle(1, prediction_type=prediction)
    theirs = picture_of(bundle.to_pipeline(), "a dog", 3, 4)
    torch.testing.assert_close(generate(bundle, ["a dog"], [3], steps=4), theirs, rtol=0, atol=1e-6)


def test_a_saved_folder_loads_to_the_same_pictures(tiny, tmp_path):
    tiny.to_pipeline().save_pretrained(tmp_path, safe_serialization=True)
    again = load_bundle(tmp_path)
    expected = generate(tiny, ["a cat"], [1], steps=3)
    assert torch.equal(generate(again, ["a cat"], [1], steps=3), expected)
    assert not any(p.requires_grad for m in again.modules().values() for p in m.parameters())


def test_pickled_weights_are_refused(tiny, tmp_path):
    tiny.to_pipeline().save_pretrained(tmp_path, safe_serialization=True)
    weights = next((tmp_path / "unet").glob("*.safetensors"))
    torch.save(tiny.unet.state_dict(), weights.with_suffix(".bin"))
    weights.unlink()
    with pytest.raises(FileNotFoundError, match="unet: expected safetensors weights"):
        load_bundle(tmp_path)


@pytest.mark.parametrize("part", ["unet", "text_encoder", "vae"])
def test_weights_that_are_missing_are_not_made_up(tiny, tmp_path, part):
    from safetensors.torch import load_file, save_file

    tiny.to_pipeline().save_pretrained(tmp_path, safe_serialization=True)
    file = next((tmp_path / part).glob("*.safetensors"))
    state = load_file(file)
    key = next(k for k in state if "norm" in k)
    save_file({k: v for k, v in state.items() if k != key}, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=rf"{part}: expected all weights of .* got 1 missing: {key}"):
        load_bundle(tmp_path)
    save_file({**state, key: state[key].repeat(2)}, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=rf"{part}: expected weights in .* as its config.json says, got: .+"):
        load_bundle(tmp_path)


def test_an_index_that_is_none_names_the_file(tiny, tmp_path):
    for text in ("{", "[1]"):
        (tmp_path / "model_index.json").write_text(text)
        with pytest.raises(ValueError, match=r"model_index\.json: expected"):
            load_bundle(tmp_path)
    for wrong in (None, "", 3):
        with pytest.raises(TypeError, match="name_or_path: expected a name, a folder or a hub id"):
            load_bundle(wrong)
    tiny.to_pipeline().save_pretrained(tmp_path / "pipe", safe_serialization=True)
    index = tmp_path / "pipe" / "model_index.json"
    index.write_text(index.read_text().replace("CLIPTokenizer", "pipeline"))  # a function, no tokenizer
    assert load_bundle(tmp_path / "pipe").tokenizer.vocab_size == tiny.tokenizer.vocab_size


def test_folders_that_are_no_pipeline(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"model_index\.json"):
        load_bundle(tmp_path)
    (tmp_path / "model_index.json").write_text('{"_class_name": "X", "unet": ["diffusers", "UNet2DModel"]}')
    with pytest.raises(ValueError, match="expected a pipeline with a text_encoder"):
        load_bundle(tmp_path)
    with pytest.raises(FileNotFoundError, match="a folder of a pipeline or a hub id"):
        load_bundle("/nowhere/at/all")


def test_from_pipeline_shares_and_replace_exchanges_one(tiny):
    pipe = tiny.to_pipeline()
    seen = Bundle.from_pipeline(pipe)
    assert seen.unet is tiny.unet
    assert seen.vae is tiny.vae
    assert seen.latent_shape() == (4, 8, 8)
    other = tiny_bundle(5).text_encoder
    changed = seen.replace(text_encoder=other)
    assert changed.text_encoder is other
    assert changed.unet is tiny.unet
    assert seen.text_encoder is not other
    with pytest.raises(TypeError, match="pipe: expected a pipeline with a unet"):
        Bundle.from_pipeline(object())


def test_sizes(tiny):
    assert tiny.latent_shape(64, 128) == (4, 8, 16)
    assert tiny.picture_shape(64, 128) == (3, 64, 128)
    with pytest.raises(ValueError, match="height: expected a multiple of 8, got 65"):
        tiny.latent_shape(65, 64)


def test_images_to_latents_are_the_vae_mean_scaled(tiny):
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    mean = tiny.vae.encode(images * 2 - 1).latent_dist.mean
    torch.testing.assert_close(tiny.encode_images(images), mean * 0.18215)


def test_schedule_matches_stable_diffusion():
    schedule = Schedule.scaled_linear()
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).square()
    torch.testing.assert_close(schedule.alphas_cumprod.double(), (1 - betas).cumprod(0), rtol=1e-4, atol=1e-6)
    lms = schedule.scheduler("lms")
    lms.set_timesteps(50)
    assert float(lms.init_noise_sigma) == pytest.approx(14.6146, abs=1e-3)
    assert schedule.ddim_times(50)[:3] == [981, 961, 941]
    assert schedule.ddim_times(50)[-1] == 1
    with pytest.raises(ValueError, match="timesteps in"):
        schedule.abar(1000, torch.zeros(1, 1))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_noise_and_output_are_inverse(prediction):
    schedule = Schedule.scaled_linear(prediction)
    draw = torch.Generator().manual_seed(0)
    z0, e = (torch.randn(3, 4, 8, 8, generator=draw) for _ in range(2))
    t = torch.tensor([3, 500, 900])
    z = schedule.add_noise(z0, e, t)
    torch.testing.assert_close(schedule.to_noise(schedule.from_noise(e, z, t), z, t), e, rtol=1e-3, atol=1e-3)
    if prediction == "sample":
        torch.testing.assert_close(schedule.from_noise(e, z, t), z0, rtol=1e-3, atol=1e-3)
