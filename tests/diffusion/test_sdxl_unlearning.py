"""Erasing and attacking with two text encoders: an SDXL of random weights, encoders of different widths."""

from __future__ import annotations

import copy
import gc
import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
from safetensors.torch import save_file

from tenfold.diffusion import Bundle, apply_text_encoder, start_noise, tiny_bundle, tokenize
from tenfold.diffusion.attack import P4D, Case, Sampling, Target, TextGrad, target_cases
from tenfold.diffusion.attack.gradient import Text, loss_gradient
from tenfold.diffusion.encode import (
    Condition,
    condition,
    condition_embeds,
    condition_ids,
    embed_ids,
    end_positions,
    no_text,
    splice,
    splice_ids,
    word_table,
)
from tenfold.diffusion.erase import ESD, UCE, AdvUnlearn, Concept, Edit, Live, Walk
from tenfold.diffusion.erase.bank import rng_of
from tenfold.diffusion.erase.edit import digest
from tenfold.diffusion.sampling import both
from tenfold.diffusion.tiny import tiny_unet

CONCEPT = Concept("nudity", retain=("a photo of a cat", "a dog", "the church"))
QUICK = {"iterations": 3, "steps": 4, "batch": 2, "lr": 1e-3, "retain_batch": 2, "retain_weight": 0.3}
ADV = AdvUnlearn(**QUICK, warmup=1, attack_steps=2, attack_lr=0.05, bank_size=2)
FAST = Sampling(steps=2, sampler="ddim")
LATENTS = (4, 8, 8)


def small_sdxl() -> Bundle:
    """Widths 32 and 48, two layers and three, pooled text of 24."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    first = tiny_bundle(0)
    padded = tiny_bundle(0).tokenizer
    padded.pad_token = "!"
    config = {**first.text_encoder.config.to_dict(), "hidden_size": 48, "num_hidden_layers": 3}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        second = CLIPTextModelWithProjection(CLIPTextConfig(**config))
        unet = tiny_unet(
            cross_attention_dim=32 + 48, addition_embed_type="text_time", addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=24 + 6 * 8,
        )  # fmt: skip
    return first.replace(unet=unet, name="xl", text_encoder_2=second, tokenizer_2=padded).freeze()


@pytest.fixture(scope="module")
def sdxl() -> Bundle:
    return small_sdxl()


@pytest.fixture(scope="module")
def cases(sdxl) -> list[Case]:
    found = [Case("0", "a cat", seed=3), Case("1", "a photo of the dog", seed=4)]
    return target_cases(sdxl, found, FAST)


def same(one, other) -> None:
    assert torch.equal(one.states, other.states)
    assert torch.equal(one.pooled, other.pooled)


def drawn(pipe, latents):
    pipe.set_progress_bar_config(disable=True)
    options = {"height": 64, "width": 64, "num_inference_steps": 2, "output_type": "np"}
    return torch.from_numpy(pipe(["nudity"], latents=latents, **options).images)


def changed(before, after) -> set[str]:
    return {name for name, p in after.named_parameters() if not torch.equal(p, before.get_parameter(name))}


def test_predictions_are_the_stock_pipelines(sdxl):
    pipe, calls = sdxl.to_pipeline(), []
    pipe.unet.register_forward_hook(
        lambda module, args, kwargs, out: calls.append((args, kwargs, out[0])), with_kwargs=True
    )
    try:
        drawn(pipe, start_noise(LATENTS, [1]))
    finally:
        pipe.unet._forward_hooks.clear()
        pipe.unet._forward_hooks_with_kwargs.clear()
    assert len(calls) == 2
    text = both(no_text(sdxl), condition(sdxl, ["nudity"]))
    for (z, t), kwargs, out in calls:
        assert kwargs["added_cond_kwargs"].keys() == {"text_embeds", "time_ids"}
        torch.testing.assert_close(text.states, kwargs["encoder_hidden_states"], rtol=0, atol=1e-6)
        torch.testing.assert_close(text.pooled, kwargs["added_cond_kwargs"]["text_embeds"], rtol=0, atol=1e-6)
        torch.testing.assert_close(sdxl.predict(z, t, text), out, rtol=0, atol=1e-5)
        assert not torch.equal(out[0], out[1])


def test_embeddings_are_both_encoders_and_padding_stays_the_seconds(sdxl):
    tokens = tokenize(sdxl, ["a cat", "a photo of the dog"])
    embeds = embed_ids(sdxl, tokens.ids)
    assert embeds.shape == (2, 77, 80)
    same(condition_embeds(sdxl, tokens.ids, embeds), condition_ids(sdxl, tokens.ids))
    with pytest.raises(RuntimeError, match="both encoders"):
        condition_embeds(sdxl, tokens.ids, embeds[..., :32])


@pytest.mark.parametrize(("mode", "whole"), [("prefix", "dog a church"), ("suffix", "a church dog")])
def test_spliced_tokens_are_read_as_the_text_they_make(sdxl, mode, whole):
    tokens = tokenize(sdxl, ["a church"])
    extra = tokenize(sdxl, ["dog"]).ids[:, 1:2]
    ids = splice_ids(tokens.ids, extra, tokens.lengths, mode)
    embeds = splice(embed_ids(sdxl, tokens.ids), embed_ids(sdxl, extra), tokens.lengths, mode)
    end = end_positions(tokens.lengths, 1, mode)
    same(condition_embeds(sdxl, ids, embeds, end=end), condition(sdxl, [whole]))


def test_an_end_token_put_in_does_not_end_the_prompt(sdxl):
    """The second encoder reads on behind it, and the pooled text is that of the prompt's own end."""
    tokens = tokenize(sdxl, ["a church"])
    extra = torch.full((1, 1), sdxl.tokenizer.eos_token_id)
    ids = splice_ids(tokens.ids, extra, tokens.lengths)
    embeds = splice(embed_ids(sdxl, tokens.ids), embed_ids(sdxl, extra), tokens.lengths)
    end = end_positions(tokens.lengths, 1)
    read = condition_embeds(sdxl, ids, embeds, end=end)
    same(read, condition_ids(sdxl, ids, end=end))
    early = condition_embeds(sdxl, ids, embeds)
    assert torch.equal(read.states[:, :2, 32:], early.states[:, :2, 32:])
    assert not torch.allclose(read.states[:, 2:, 32:], early.states[:, 2:, 32:], atol=1e-3)
    assert not torch.allclose(read.pooled, early.pooled, atol=1e-3)


def test_the_table_of_both_encoders(sdxl):
    own = sdxl.replace(text_encoder=small_sdxl().text_encoder)
    table = word_table(own)
    first, second = (e.get_input_embeddings().weight for e in (own.text_encoder, own.text_encoder_2))
    assert torch.equal(table, torch.cat([first, second], 1))
    assert word_table(own) is table
    with torch.no_grad():
        first[0] += 1
    assert torch.equal(word_table(own)[0, :32], first[0])


def test_a_freed_encoders_address_is_not_its_table(sdxl):
    """The allocator gives a freed table's memory to the next one; here both lie in one array."""
    rows = sdxl.text_encoder_2.get_input_embeddings().weight.numpy().copy()

    def second():
        encoder = copy.deepcopy(sdxl.text_encoder_2)
        encoder.set_input_embeddings(nn.Embedding.from_pretrained(torch.from_numpy(rows)))
        return encoder

    own = sdxl.replace(text_encoder=small_sdxl().text_encoder, text_encoder_2=second())
    table = word_table(own)
    rows += 1
    other = own.replace(text_encoder_2=second())
    del own
    gc.collect()
    assert torch.equal(word_table(other)[:, 32:], torch.from_numpy(rows))
    assert torch.equal(word_table(other)[:, 32:], table[:, 32:] + 1)


def test_attack_gradient_against_finite_differences(cases):
    """In float64, in each encoder's part of the extra tokens' embeddings by itself."""
    bundle = small_sdxl().to(dtype=torch.float64)
    text = Text.of(bundle, [case.prompt for case in cases], 2, "error")
    extra, t = torch.tensor([[40, 300], [7, 12]]), torch.tensor([500, 100])
    x0 = torch.stack([case.image for case in cases]).double()
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    z = bundle.schedule.add_noise(x0, noise, t)
    embeds = embed_ids(bundle, extra)

    def both_of(at):
        return loss_gradient(bundle, text, at, extra, "prefix", z, t, noise, "l2")

    losses, found = both_of(embeds)
    step = torch.randn(embeds.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for part in (slice(0, 32), slice(32, 80)):
        along = torch.zeros_like(step)
        along[..., part] = step[..., part]
        up, down = (both_of(embeds + sign * 1e-5 * along)[0] for sign in (1, -1))
        slopes = (up - down) / 2e-5
        assert slopes.abs().min() > 1e-7 * losses.max()
        torch.testing.assert_close((found.double() * along).sum((1, 2)), slopes, rtol=1e-4, atol=0)


def test_draws_lead_away_from_zeros(sdxl):
    """What SDXL's pipeline takes for no text is also what the concept is led away to."""
    live = Live(sdxl, sdxl, (("nudity",), ("a dog",)), Walk(4, 3.0, "exact", LATENTS))
    draw = live.concept(rng_of(0, 1), 0, 2)
    zeros, pooled = torch.zeros(2, 77, 80), torch.zeros(2, 24)
    torch.testing.assert_close(draw.e0, sdxl.predict(draw.z, draw.t, zeros, pooled), rtol=0, atol=1e-5)
    text = condition(sdxl, ["nudity"]).expand(2)
    torch.testing.assert_close(draw.ep, sdxl.predict(draw.z, draw.t, text), rtol=0, atol=1e-5)
    assert not torch.allclose(draw.e0, draw.ep, atol=1e-4)


def expected_of(sdxl, part: str) -> set[str]:
    """Layers and final norms that the UNet reads."""
    layers = {"text_encoder": range(1), "text_encoder_2": range(3)}[part]
    starts = [f"encoder.layers.{i}." for i in layers]
    if part == "text_encoder_2":
        starts = [f"text_model.{start}" for start in (*starts, "final_layer_norm.")]
    names = [name for name, _ in getattr(sdxl, part).named_parameters()]
    return {name for name in names if name.startswith(tuple(starts))}


@pytest.mark.parametrize(
    ("method", "parts"),
    [
        (ADV, ("text_encoder", "text_encoder_2")),
        (AdvUnlearn(**{**vars(ADV), "encoders": "text_encoder"}), ("text_encoder",)),
        (AdvUnlearn(**{**vars(ADV), "encoders": "text_encoder_2", "mode": "suffix"}), ("text_encoder_2",)),
        (AdvUnlearn(**{**vars(ADV), "space": "condition_embd"}), ("text_encoder", "text_encoder_2")),
        (ESD(train_method="text_encoder", **QUICK), ("text_encoder", "text_encoder_2")),
        (ESD(train_method="xattn", **QUICK), ("unet",)),
    ],
    ids=["both", "first", "second", "states", "esd-te", "esd-x"],
)
def test_what_trains_changes_and_nothing_else(sdxl, method, parts):
    before = digest(*sdxl.modules().values())
    edit = method.fit(sdxl, CONCEPT, seed=1)
    assert digest(*sdxl.modules().values()) == before
    assert edit.parts == parts
    after = edit.apply(sdxl)
    for name, module in sdxl.modules().items():
        found = changed(module, getattr(after, name))
        if name not in parts:
            assert getattr(after, name) is module
        elif name == "unet":
            assert found == {n for n, _ in module.named_parameters() if "attn2" in n}
        else:
            assert found == expected_of(sdxl, name)
    undone = edit.undo(after)
    assert all(getattr(undone, name) is module for name, module in sdxl.modules().items())


def test_a_training_goes_on_to_the_same_bits(sdxl):
    states: list = []
    whole = ADV.fit(sdxl, CONCEPT, on_state=states.append, state_every=2)
    again = ADV.fit(sdxl, CONCEPT, state=states[0])
    assert states[0]["iteration"] == 2
    assert whole.tensors.keys() == again.tensors.keys()
    assert all(torch.equal(whole.tensors[name], again.tensors[name]) for name in whole.tensors)


SCRIPT = """
import sys, numpy, torch
from diffusers import StableDiffusionXLPipeline
from transformers import CLIPTextModel, CLIPTextModelWithProjection

base, adv, second, out = sys.argv[1:]
torch.set_num_threads(1)
options = {"height": 64, "width": 64, "num_inference_steps": 2, "output_type": "np"}
latents = torch.load(f"{out}/latents.pt", weights_only=True)

def draw(name, **parts):
    pipe = StableDiffusionXLPipeline.from_pretrained(base, **parts)
    pipe.set_progress_bar_config(disable=True)
    numpy.save(f"{out}/{name}.npy", pipe(["nudity"], latents=latents, **options).images)

draw("adv", text_encoder=CLIPTextModel.from_pretrained(adv, subfolder="text_encoder"),
     text_encoder_2=CLIPTextModelWithProjection.from_pretrained(adv, subfolder="text_encoder_2"))
draw("second", text_encoder_2=CLIPTextModelWithProjection.from_pretrained(second))
assert not any(name.startswith("tenfold") for name in sys.modules)
"""


def test_saved_encoders_load_in_a_stock_pipeline_in_a_fresh_process(sdxl, tmp_path):
    import numpy

    edits = {"adv": ADV.fit(sdxl, CONCEPT)}
    edits["second"] = AdvUnlearn(**{**vars(ADV), "encoders": "text_encoder_2"}).fit(sdxl, CONCEPT)
    sdxl.to_pipeline().save_pretrained(tmp_path / "base", safe_serialization=True)
    latents = start_noise(LATENTS, [5])
    torch.save(latents, tmp_path / "latents.pt")
    folders = [str(edit.save(tmp_path / name)) for name, edit in edits.items()]
    assert sorted(p.name for p in (tmp_path / "adv").rglob("*.safetensors")) == ["model.safetensors"] * 2
    subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "base"), *folders, str(tmp_path)], check=True
    )
    plain = drawn(sdxl.to_pipeline(), latents)
    for name, edit in edits.items():
        told = torch.from_numpy(numpy.load(tmp_path / f"{name}.npy"))
        ours = drawn(edit.apply(sdxl).to_pipeline(), latents)
        torch.testing.assert_close(told, ours, rtol=0, atol=1e-5)
        assert not torch.allclose(told, plain, rtol=0, atol=1e-4)
        for part in edit.parts:
            place = tmp_path / name / part if len(edit.parts) == 2 else tmp_path / name
            put = getattr(apply_text_encoder(sdxl, place), part)
            assert digest(put) == digest(getattr(edit.apply(sdxl), part))
        again = Edit.load(tmp_path / name)
        assert again.component == edit.component
        assert again.tensors.keys() == edit.tensors.keys()
        assert all(torch.equal(again.tensors[k], edit.tensors[k]) for k in edit.tensors)


def test_an_edit_of_a_pipeline_in_place(sdxl, tmp_path):
    """Both encoders, and the UNet's cross attention from its own file."""
    pipe, latents = small_sdxl().to_pipeline(), start_noise(LATENTS, [5])
    plain = drawn(pipe, latents)
    for method in (ADV, ESD(train_method="xattn", **QUICK)):
        edit = method.fit(sdxl, CONCEPT)
        edit.save(tmp_path / method.name)
        again = Edit.load(tmp_path / method.name)
        again.apply(pipe)
        expected = drawn(edit.apply(sdxl).to_pipeline(), latents)
        torch.testing.assert_close(drawn(pipe, latents), expected, rtol=0, atol=1e-5)
        assert not torch.allclose(expected, plain, rtol=0, atol=1e-4)
        with pytest.raises(RuntimeError, match="got one that it is applied to"):
            again.apply(pipe)
        again.undo(pipe)
        assert torch.equal(drawn(pipe, latents), plain)
    broken = Edit.load(tmp_path / "advunlearn")
    broken.details["ids"] = {"nudity": [1, 2]}
    with pytest.raises(ValueError, match="tokenizer: expected the ids"):
        broken.apply(pipe)


@pytest.mark.parametrize(
    "attack", [TextGrad(k=2, timesteps=2, iterations=3), P4D(k=2, timesteps=2, iterations=3, lr=1.0)],
    ids=lambda attack: attack.name,
)  # fmt: skip
def test_attacks_find_the_same_whatever_the_batch(sdxl, cases, attack):
    erased = ESD(train_method="text_encoder", **QUICK).fit(sdxl, CONCEPT).apply(sdxl)
    before = digest(*erased.modules().values())

    def told(batch):
        logs = attack.run(
            Target(erased, sdxl), cases, lambda images: [False] * len(images), sampling=FAST, batch=batch
        )
        assert all(log.state == "defended" and len(log.entries) == 3 for log in logs)
        return [[(entry.prompt, entry.ids) for entry in log.entries] for log in logs]

    together = told(2)
    assert told(1) == together
    assert digest(*erased.modules().values()) == before
    assert all(p.grad is None for module in erased.modules().values() for p in module.parameters())
    moved = {tuple(ids) for entries in together for _, ids in entries[1:]}
    assert len(moved) > 1


def test_two_vocabularies_are_refused_by_name(sdxl, cases):
    from tenfold.diffusion.tiny import tiny_tokenizer

    other = tiny_tokenizer()
    other.add_tokens(["unheard"])
    strange = sdxl.replace(tokenizer_2=other)
    for read in (condition, lambda *a: condition_ids(a[0], tokenize(*a).ids)):
        condition(sdxl, ["a cat"])  # a pair that was compared already says nothing of another
        with pytest.raises(
            ValueError, match="tokenizer_2: expected the vocabulary of tokenizer, got another"
        ):
            read(strange, ["a cat"])
    with pytest.raises(ValueError, match="tokenizer_2: expected the vocab"):
        UCE().fit(strange, CONCEPT)
    grown = sdxl.replace(tokenizer_2=copy.deepcopy(sdxl.tokenizer_2))
    condition(grown, ["a cat"])
    grown.tokenizer_2.add_tokens(["unheard"])
    with pytest.raises(ValueError, match="tokenizer_2: expected the vocab"):
        condition(grown, ["a cat"])
    longer = small_sdxl()
    longer.text_encoder_2.resize_token_embeddings(600, mean_resizing=False)
    for bundle, name in (
        (strange, "tokenizer_2: expected the vocab"),
        (longer, "text_encoder_2: expected a t"),
    ):
        if bundle is longer:
            with pytest.raises(ValueError, match=name):
                word_table(bundle)
        for method in (ADV, ESD(**QUICK)):
            with pytest.raises(ValueError, match=name):
                method.fit(bundle, CONCEPT)
        for target in (Target(bundle, sdxl), Target(sdxl, bundle)):
            if target.bundle is bundle:
                with pytest.raises(ValueError, match=name):
                    TextGrad(k=1).run(target, cases, lambda images: [False] * len(images))
            with pytest.raises(ValueError, match=name):
                P4D(k=1).run(target, cases, lambda images: [False] * len(images))


def test_texts_with_and_without_pooled_text_are_not_put_together(sdxl):
    read = condition(sdxl, ["a cat"])
    bare = Condition(read.states)
    for parts in ([read, bare], [bare, read, read]):
        with pytest.raises(ValueError, match="parts: expected pooled text in all or in none, got "):
            Condition.cat(parts)
    assert Condition.cat([bare, bare]).pooled is None
    assert len(Condition.cat([read, read]).pooled) == 2


@pytest.mark.parametrize("component", ["text_encoder", "text_encoder_2", "text_encoders"])
def test_an_edit_of_part_of_an_encoder_is_kept_as_that(sdxl, tmp_path, component):
    """Without the class of an encoder in its details an edit is not one of all its weights."""
    name = (
        "text_model.final_layer_norm.weight" if component == "text_encoder_2" else "final_layer_norm.weight"
    )
    if component == "text_encoders":
        name = f"text_encoder.{name}"
    value = torch.full((48 if component == "text_encoder_2" else 32,), 2.0)
    edit = Edit("weights", component, {name: value}, {"eraser": "own"})
    edit.save(tmp_path / "edit")
    assert sorted(p.name for p in (tmp_path / "edit").iterdir()) == ["edit.json", "edit.safetensors"]
    again = Edit.load(tmp_path / "edit")
    assert again.tensors.keys() == {name}
    before, after = sdxl.modules(), again.apply(sdxl).modules()
    part = "text_encoder_2" if component == "text_encoder_2" else "text_encoder"
    own = name.removeprefix("text_encoder.")
    assert changed(before[part], after[part]) == {own}
    assert torch.equal(after[part].get_parameter(own), value)


def test_a_named_class_asks_for_all_weights(sdxl, tmp_path):
    about = {"class": "CLIPTextModel", "config": json.loads(sdxl.text_encoder.config.to_json_string(False))}
    edit = Edit("weights", "text_encoder", {"final_layer_norm.weight": torch.ones(32)}, about)
    with pytest.raises(
        ValueError, match=r"tensors: expected all parameters of text_encoder.* got \d+ missing"
    ):
        edit.save(tmp_path / "edit")
    assert not list(tmp_path.iterdir())


def test_a_pipeline_with_the_second_encoder_alone(sdxl, tmp_path):
    """As SDXL's refiner: a checkpoint has one place to go."""
    state = {k: v + 0.5 for k, v in sdxl.text_encoder_2.state_dict().items()}
    save_file(state, tmp_path / "second.safetensors")
    pipe = SimpleNamespace(text_encoder=None, text_encoder_2=copy.deepcopy(sdxl.text_encoder_2))
    assert apply_text_encoder(pipe, tmp_path / "second.safetensors") is pipe
    for name, value in pipe.text_encoder_2.state_dict().items():
        assert torch.equal(value, state[name])
    save_file(sdxl.text_encoder.state_dict(), tmp_path / "first.safetensors")
    with pytest.raises(ValueError, match="checkpoint: expected"):
        apply_text_encoder(pipe, tmp_path / "first.safetensors")


def test_what_cannot_train_is_named(sdxl, tmp_path):
    with pytest.raises(ValueError, match="encoders: expected 'text_encoder' for a model with one"):
        AdvUnlearn(**{**vars(ADV), "encoders": "text_encoder_2"}).fit(tiny_bundle(0), CONCEPT)
    with pytest.raises(ValueError, match="encoders: expected one of"):
        AdvUnlearn(encoders="first")
    with pytest.raises(ValueError, match="layers below 1, which the UNet reads of the first encoder"):
        AdvUnlearn(**{**vars(ADV), "train_method": "text_encoder_layer1"}).fit(sdxl, CONCEPT)
    edit = AdvUnlearn(**{**vars(ADV), "train_method": "text_encoder_layer2", "encoders": "text_encoder_2"})
    after = edit.fit(sdxl, CONCEPT).apply(sdxl)
    assert all("encoder.layers.2." in name for name in changed(sdxl.text_encoder_2, after.text_encoder_2))
    after.text_encoder_2.save_pretrained(tmp_path / "second")
    alike = sdxl.replace(text_encoder=after.text_encoder_2)
    with pytest.raises(ValueError, match="part: expected text_encoder or text_encoder_2, got None"):
        apply_text_encoder(alike, tmp_path / "second")
    assert (
        apply_text_encoder(alike, tmp_path / "second", part="text_encoder_2").text_encoder
        is alike.text_encoder
    )
    with pytest.raises(TypeError, match="Bundle or pipeline with a text_encoder_2"):
        ADV.fit(sdxl, CONCEPT).apply(tiny_bundle(0))
