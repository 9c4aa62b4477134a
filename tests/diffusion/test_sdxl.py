"""Two text encoders: an SDXL of random weights against the stock pipeline."""

import json

import pytest
import torch

pytest.importorskip("diffusers")

from tenfold.diffusion import Bundle, encode_embeds, generate, load_bundle, start_noise, tiny_bundle
from tenfold.diffusion.encode import condition, encode, no_text, tokenize
from tenfold.diffusion.tiny import tiny_unet


@pytest.fixture(scope="module")
def sdxl():
    first, second = tiny_bundle(0), tiny_bundle(1, projection=True)
    padded = second.tokenizer
    padded.pad_token = "!"
    torch.manual_seed(0)
    unet = tiny_unet(
        cross_attention_dim=64,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24 + 6 * 8,
    )
    return Bundle(
        unet,
        first.text_encoder,
        first.tokenizer,
        first.vae,
        first.schedule,
        "xl",
        second.text_encoder,
        padded,
    ).freeze()


def test_pictures_are_the_stock_pipelines(sdxl):
    ours = generate(sdxl, ["a cat", "nudity"], [1, 2], steps=3)
    pipe = sdxl.to_pipeline()
    pipe.set_progress_bar_config(disable=True)
    noise = start_noise((4, 8, 8), [1, 2])
    found = pipe(
        ["a cat", "nudity"], height=64, width=64, guidance_scale=7.5, num_inference_steps=3, latents=noise,
        output_type="np",
    ).images  # fmt: skip
    theirs = torch.from_numpy(found).permute(0, 3, 1, 2)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_what_no_text_is_comes_from_the_pipeline(sdxl, tmp_path):
    """Zeros, or the states of the empty prompt: as `force_zeros_for_empty_prompt` says, there and back."""
    pipe = sdxl.to_pipeline()
    assert pipe.config.force_zeros_for_empty_prompt
    pipe.register_to_config(force_zeros_for_empty_prompt=False)
    bundle = Bundle.from_pipeline(pipe)
    again = bundle.replace(name="other").to_pipeline()
    assert again.config.force_zeros_for_empty_prompt is False
    empty, said = condition(sdxl, [""]), no_text(bundle)
    assert torch.equal(said.states, empty.states)
    assert torch.equal(said.pooled, empty.pooled)
    assert not no_text(sdxl).states.any()
    ours = generate(bundle, ["a cat"], [1], steps=2)
    again.set_progress_bar_config(disable=True)
    found = again(
        ["a cat"], height=64, width=64, guidance_scale=7.5, num_inference_steps=2,
        latents=start_noise((4, 8, 8), [1]), output_type="np",
    ).images  # fmt: skip
    torch.testing.assert_close(ours, torch.from_numpy(found).permute(0, 3, 1, 2), rtol=0, atol=1e-5)
    assert not torch.allclose(generate(sdxl, ["a cat"], [1], steps=2), ours, atol=1e-2)
    again.save_pretrained(tmp_path / "pipe", safe_serialization=True)
    assert load_bundle(tmp_path / "pipe").force_zeros_for_empty_prompt is False
    index = tmp_path / "pipe" / "model_index.json"
    told = json.loads(index.read_text())
    index.write_text(json.dumps({**told, "force_zeros_for_empty_prompt": "no"}))
    with pytest.raises(TypeError, match="force_zeros_for_empty_prompt: expected true or false, got"):
        load_bundle(tmp_path / "pipe")


def test_a_saved_folder_loads(sdxl, tmp_path):
    sdxl.to_pipeline().save_pretrained(tmp_path, safe_serialization=True)
    again = load_bundle(tmp_path)
    assert again.is_sdxl
    for name, module in sdxl.modules().items():
        held, read = module.state_dict(), again.modules()[name].state_dict()
        assert held.keys() == read.keys()
        assert all(torch.equal(held[key], read[key]) for key in held)
    # weights lie elsewhere in memory, and products round by where they lie
    expected = generate(sdxl, ["a cat"], [3], steps=2)
    torch.testing.assert_close(generate(again, ["a cat"], [3], steps=2), expected, rtol=0, atol=1e-5)


def test_candidates_are_judged_by_their_ids_too(sdxl):
    from tenfold.diffusion.attack import Case, RandomTokens, Sampling, Target

    cases = [Case("0", "a cat"), Case("1", "a dog", seed=1)]
    sampling = Sampling(steps=2, sampler="ddim")
    logs = RandomTokens(k=3, tries=2).run(
        Target(sdxl), cases, lambda images: [False] * len(images), sampling=sampling
    )
    tried = [entry for log in logs for entry in log.entries[1:]]
    assert any(entry.roundtrip is False for entry in tried)
    assert all(entry.success_ids is False for entry in tried)


def test_what_two_encoders_give(sdxl):
    states, pooled = encode(sdxl, ["a cat"], pooled=True)
    assert states.shape == (1, 77, 64)
    assert pooled.shape == (1, 24)
    z = start_noise((4, 8, 8), [1])
    assert sdxl.predict(z, 5, states, pooled).shape == z.shape
    with pytest.raises(TypeError, match="pooled: expected the pooled text"):
        sdxl.predict(z, 5, states)
    with pytest.raises(RuntimeError, match="embeds: expected the word embeddings of both encoders"):
        encode_embeds(sdxl, tokenize(sdxl, ["a cat"]).ids, torch.zeros(1, 77, 32))


def test_uce_edits_the_states_of_both_encoders(sdxl, tmp_path):
    """The cross attention reads both encoders' states side by side; the edit leads the whole of them over."""
    from tenfold.diffusion.erase import UCE, Concept, Edit

    method = UCE(lam=0.1, erase_scale=1.0, templates=("{}",), keep=(), rows="last")
    edit = method.fit(sdxl, Concept("nudity", anchors=("a cat",)))
    width = sum(encoder.config.hidden_size for encoder in (sdxl.text_encoder, sdxl.text_encoder_2))
    assert edit.tensors["R"].shape[1] == width == 64
    tokens = tokenize(sdxl, ["nudity", "a cat"])
    states = encode(sdxl, ["nudity", "a cat"]).double()
    old, new = (row[int(n) :] for row, n in zip(states, tokens.lengths, strict=True))
    rows = min(len(old), len(new))
    old, new, ridge = old[:rows], new[:rows], 0.1 * torch.eye(width, dtype=torch.float64)
    changed = edit.apply(sdxl)
    before, after = dict(sdxl.unet.named_parameters()), dict(changed.unet.named_parameters())
    for name in edit.details["layers"]:
        w = before[name].double()
        expected = torch.linalg.solve(old.T @ old + ridge, (new.T @ old + ridge).T @ w.T).T
        torch.testing.assert_close(after[name].double(), expected, rtol=0, atol=1e-6)
        assert (after[name] - before[name]).norm() > 0.05 * before[name].norm(), name
    edit.save(tmp_path / "edit")
    pipe = sdxl.to_pipeline()
    Edit.load(tmp_path / "edit").apply(pipe)
    names = dict(pipe.unet.named_parameters())
    assert all(torch.equal(names[name], after[name]) for name in edit.details["layers"])
    from_pipe = Bundle.from_pipeline(pipe)
    assert from_pipe.is_sdxl
    assert torch.equal(
        generate(from_pipe, ["nudity"], [3], steps=2), generate(changed, ["nudity"], [3], steps=2)
    )
    edit_undone = edit.undo(changed)
    assert torch.equal(edit_undone.unet.conv_in.weight, sdxl.unet.conv_in.weight)


@pytest.mark.parametrize("name", ["SalUn", "FMN"])
def test_trainings_say_what_takes_two_encoders(sdxl, name):
    from tenfold.diffusion import erase

    method = getattr(erase, name).small()
    expected = r"one text encoder \(esd, advunlearn, uce, negative and sld take two\), got one with two"
    with pytest.raises(ValueError, match=expected):
        method.fit(sdxl, erase.Concept("nudity"))


def test_hooks_act_on_two_encoders(sdxl):
    from tenfold.diffusion import erase

    plain = generate(sdxl, ["a cat"], [3], steps=2)
    for method in (erase.NegativePrompt(), erase.SafeLatent("max")):  # "max" has no warm-up
        edit = method.fit(sdxl, erase.Concept("nudity"))
        changed = generate(sdxl, ["a cat"], [3], steps=2, **edit.options)
        assert not torch.allclose(changed, plain, atol=1e-4), edit.options
