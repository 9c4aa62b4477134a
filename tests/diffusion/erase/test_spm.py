"""SPM: adapters beside and in the weights, their files, transport by prompt, training."""

from __future__ import annotations

import math

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tenfold.diffusion import generate, tiny_bundle
from tenfold.diffusion.encode import encode, tokenize
from tenfold.diffusion.erase import SPM, Concept, Edit, read_spm, write_spm
from tenfold.diffusion.erase.bank import rng_of
from tenfold.diffusion.erase.edit import digest
from tenfold.diffusion.erase.lowrank import (
    LowRank,
    adapters,
    layers_of,
    tensors_of,
    transformer_layers,
)
from tenfold.diffusion.erase.spm import anchor_states, cosine_with_restarts, spm_target
from tenfold.diffusion.erase.transport import Transport, multipliers
from tenfold.diffusion.tiny import tiny_unet

CONCEPT = Concept("van_gogh_style", prompts=("van gogh style",))
QUICK = SPM(lr=1e-2, iterations=6, warmup=2, cycles=1, batch=2, steps=5)
PROMPTS = ["a painting of van gogh style", "a dog", "a church"]


@pytest.fixture(scope="module")
def bundle():
    torch.set_num_threads(1)
    return tiny_bundle()


@pytest.fixture(scope="module")
def edit(bundle):
    return QUICK.fit(bundle, CONCEPT)


def random_layers(unet, rank: int = 2, size: float = 0.3, paths=None) -> dict[str, LowRank]:
    made = torch.Generator().manual_seed(1)
    found = {}
    for path, module in (paths or transformer_layers(unet)).items():
        w = module.weight
        down = torch.randn(rank, *w.shape[1:], generator=made) * size
        up = torch.randn(w.shape[0], rank, *[1] * (w.ndim - 2), generator=made) * size
        found[path] = LowRank(down, up, 0.5)
    return found


def test_adapters_stand_at_every_linear_layer_and_convolution_of_the_transformers(bundle):
    found = transformer_layers(bundle.unet)
    ends = {path.split("transformer_blocks.0.")[-1] for path in found if "transformer_blocks" in path}
    attention = {f"attn{i}.{end}" for i in (1, 2) for end in ("to_q", "to_k", "to_v", "to_out.0")}
    assert ends == attention | {"ff.net.0.proj", "ff.net.2"}
    assert {path.split(".")[-1] for path in found if "transformer_blocks" not in path} == {
        "proj_in",
        "proj_out",
    }
    assert not any("resnets" in path or "conv_in" in path for path in found)


@pytest.mark.parametrize("linear", [False, True])
def test_merged_weights_compute_what_adapters_do(bundle, linear):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = tiny_unet(use_linear_projection=linear)
    convs = {n: m for n, m in unet.named_modules() if n.endswith(("resnets.0.conv1", "conv_in"))}
    layers = random_layers(unet) | random_layers(unet, paths=convs)
    tensors = tensors_of(layers)
    z, states = torch.randn(3, 4, 8, 8), torch.randn(3, 77, 32)
    model = bundle.replace(unet=unet.eval().requires_grad_(False))
    with torch.no_grad():
        plain = model.predict(z, 500, states)
        with adapters(unet, layers_of(unet, tensors)):
            beside = model.predict(z, 500, states)
        edit = Edit("lowrank", "unet", tensors, {"transport": "merge"})
        merged = edit.apply(model).predict(z, 500, states)
        assert torch.equal(model.predict(z, 500, states), plain)
    assert float((beside - plain).norm()) > 0.05 * float(plain.norm())
    assert torch.allclose(merged, beside, rtol=1e-4, atol=1e-5)


def test_each_row_has_its_own_strength(bundle):
    layers = random_layers(bundle.unet)
    z, states = torch.randn(2, 4, 8, 8), torch.randn(2, 77, 32)
    m = torch.tensor([0.0, 0.7])
    with torch.no_grad():
        with adapters(bundle.unet, layers, lambda rows: m.repeat(rows // 2)):
            mixed = bundle.predict(torch.cat([z, z]), 300, torch.cat([states, states]))
        with adapters(bundle.unet, layers, lambda rows: 0.7):
            strong = bundle.predict(z, 300, states)
        plain = bundle.predict(z, 300, states)
    assert torch.allclose(mixed[0], plain[0], atol=1e-5)
    assert torch.allclose(mixed[3], strong[1], atol=1e-5)
    assert not torch.allclose(mixed[1], plain[1], atol=1e-3)


def test_files_have_the_published_layout_and_come_back(bundle, edit, tmp_path):
    file = write_spm(edit, tmp_path / "spm.safetensors")
    with safe_open(file, framework="pt") as opened:
        assert opened.metadata() == {"prompts": "van gogh style", "rank": "1", "alpha": "1.0"}
        keys = set(opened.keys())
    stem = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
    assert {f"{stem}.lora_down.weight", f"{stem}.lora_up.weight", f"{stem}.alpha"} <= keys
    assert len(keys) == 3 * len(transformer_layers(bundle.unet))
    found = read_spm(file)
    assert found.details["erased"] == ["van gogh style"]
    assert all(torch.equal(found.tensors[k], v) for k, v in edit.tensors.items())
    with pytest.raises(FileExistsError):
        write_spm(edit, file)
    edit.save(tmp_path / "edit")
    again = Edit.load(tmp_path / "edit")
    assert again.details == edit.details
    assert all(torch.equal(again.tensors[k], v) for k, v in edit.tensors.items())
    assert read_spm(tmp_path / "edit" / "edit.safetensors").details["erased"] == ["van gogh style"]


def test_files_of_other_kinds_are_refused_by_name(bundle, edit, tmp_path):
    tensors = load_file(write_spm(edit, tmp_path / "spm.safetensors"))
    first = next(k for k in tensors if k.endswith("attn2_to_k.lora_up.weight"))
    for changed, message in (
        (
            {**tensors, "lora_te_text.lora_up.weight": tensors[first].clone()},
            "tensors: expected keys lora_unet_",
        ),
        (
            {**tensors, "lora_unet_nowhere.alpha": torch.tensor(1.0)},
            "unet: expected a layer lora_unet_nowhere",
        ),
        ({k: v for k, v in tensors.items() if k != first}, "expected lora_down and lora_up, got one of them"),
        ({**tensors, first: tensors[first][:-1]}, "attn2.to_k: expected down"),
    ):
        save_file(changed, tmp_path / "x.safetensors", {"prompts": "x"})
        with pytest.raises(ValueError, match=message):
            read_spm(tmp_path / "x.safetensors").apply(bundle)
    save_file(tensors, tmp_path / "bare.safetensors")
    with pytest.raises(ValueError, match="expected prompts in the metadata"):
        read_spm(tmp_path / "bare.safetensors")
    merged = read_spm(tmp_path / "bare.safetensors", transport="merge").apply(bundle)
    assert digest(merged.unet) == digest(edit.merged().apply(bundle).unet)
    with pytest.raises(ValueError, match="transport: expected one of"):
        Edit("lowrank", "unet", tensors, {"transport": "always"})


def test_strength_follows_tokens_and_states(bundle):
    erased = ("van gogh style", "nudity")
    states = encode(bundle, PROMPTS)
    tokens = multipliers(bundle, PROMPTS, states, erased, "tokenuni")
    assert tokens.tolist() == [1.0, 0.0, 0.0]
    half = multipliers(bundle, ["a nu thing"], encode(bundle, ["a nu thing"]), erased, "tokenuni")
    assert half.tolist() == [0.5] if _pieces(bundle, "a nu thing") & _pieces(bundle, "nudity") else [0.0]
    near = multipliers(bundle, None, states, erased, "clipcos")
    both = encode(bundle, list(erased)).flatten(1)
    expected = torch.stack([torch.cosine_similarity(states.flatten(1), e[None]) for e in both]).max(0).values
    assert torch.allclose(near, expected, atol=1e-6)
    top = multipliers(bundle, PROMPTS, states, erased)
    assert torch.equal(top, torch.maximum(tokens, near))
    assert float(multipliers(bundle, ["nudity"], encode(bundle, ["nudity"]), erased)[0]) == pytest.approx(1.0)
    with pytest.raises(ValueError, match="texts: expected what the prompts say, got states only"):
        multipliers(bundle, None, states, erased)


def _pieces(bundle, text: str) -> set[int]:
    tokens = tokenize(bundle, [text])
    return set(tokens.ids[0, 1 : 1 + int(tokens.lengths[0])].tolist())


def test_pictures_are_made_at_their_own_prompt_s_strength(bundle):
    layers = random_layers(bundle.unet, size=0.15)
    tensors = tensors_of(layers)
    hook = Transport(tensors, ("van gogh style",), "tokenuni")
    plain = generate(bundle, PROMPTS, [1, 2, 3], steps=3, guidance=4.0)
    found = generate(bundle, PROMPTS, [1, 2, 3], steps=3, guidance=4.0, hooks=(hook,))
    merged = Edit("lowrank", "unet", tensors, {"transport": "merge"}).apply(bundle)
    whole = generate(merged, PROMPTS, [1, 2, 3], steps=3, guidance=4.0)
    assert torch.allclose(found[0], whole[0], atol=1e-4)
    assert torch.allclose(found[1:], plain[1:], atol=1e-5)
    assert float((whole[1:] - plain[1:]).abs().max()) > 1e-2
    alone = generate(bundle, PROMPTS[:1], [1], steps=3, guidance=4.0, hooks=(hook,))
    assert torch.allclose(alone[0], found[0], atol=1e-5)
    said = generate(
        bundle, encode(bundle, PROMPTS), [1, 2, 3], steps=3, guidance=4.0, hooks=(hook,), texts=PROMPTS
    )
    assert torch.allclose(said, found, atol=1e-5)
    with pytest.raises(ValueError, match="texts: expected what the prompts say"):
        generate(bundle, encode(bundle, PROMPTS), [1, 2, 3], steps=3, hooks=(hook,))
    with pytest.raises(ValueError, match="texts"):
        generate(bundle, encode(bundle, PROMPTS), [1, 2, 3], steps=3, hooks=(hook,), texts=PROMPTS[:2])
    assert torch.equal(
        generate(bundle, PROMPTS, [1, 2, 3], steps=3, guidance=4.0), plain
    )  # nothing stays behind


def test_an_edit_acts_on_a_bundle_by_its_options_and_on_a_pipeline_merged(bundle, edit):
    assert edit.apply(bundle) is bundle
    assert edit.undo(bundle) is bundle
    (hook,) = edit.options["hooks"]
    assert hook.erased == ("van gogh style",)
    assert edit.merged().options == {}
    pipe = tiny_bundle().to_pipeline()
    with pytest.raises(TypeError, match=r"target: expected a Bundle .* or merged\(\)\.apply\(pipe\)"):
        edit.apply(pipe)
    before = digest(pipe.unet)
    merged = edit.merged()
    merged.apply(pipe)
    assert digest(pipe.unet) == digest(merged.apply(bundle).unet) != before
    merged.undo(pipe)
    assert digest(pipe.unet) == before
    other = tiny_bundle()
    with torch.random.fork_rng(devices=[]):
        other = other.replace(unet=tiny_unet(block_out_channels=(8, 32)))
    with pytest.raises(ValueError, match="expected down"):
        edit.apply(other)


def test_training_comes_nearer_to_its_target_and_leaves_the_model():
    bundle = tiny_bundle()
    with torch.no_grad():  # random weights hardly heed the text
        for name, p in bundle.unet.named_parameters():
            if name.endswith(("attn2.to_v.weight", "attn2.to_out.0.weight", "proj_out.weight")):
                p.mul_(4)
    before = digest(bundle.unet)
    method = SPM(lr=2e-2, iterations=80, warmup=0, cycles=1, batch=8, steps=4, anchor_strength=0.0)
    edit = method.fit(bundle, CONCEPT)
    losses = edit.details["losses"]
    assert sum(losses[-15:]) < 0.5 * sum(losses[:15])
    assert digest(bundle.unet) == before
    assert all(p.grad is None for p in bundle.unet.parameters())
    assert all(int(v.shape[0]) == 1 for k, v in edit.tensors.items() if k.endswith("lora_down.weight"))


def test_anchors_hold_what_is_not_the_concept(bundle):
    base = SPM(lr=3e-2, iterations=40, warmup=0, batch=4, steps=4)
    free, held = (SPM(**{**vars(base), "anchor_strength": s}).fit(bundle, CONCEPT) for s in (0.0, 1000.0))
    concept = encode(bundle, ["van gogh style"])[0]
    anchors = anchor_states(concept, 8, rng_of(99))
    z = torch.randn(8, 4, 8, 8, generator=torch.Generator().manual_seed(0))

    def moved(edit):
        with torch.no_grad():
            after = edit.merged().apply(bundle).predict(z, 400, anchors)
            return float((after - bundle.predict(z, 400, anchors)).norm())

    assert moved(held) < 0.3 * moved(free)


def test_a_stopped_training_goes_on_to_the_same_bits(bundle, edit):
    states = []
    numbers = []
    whole = QUICK.fit(
        bundle, CONCEPT, on_state=states.append, state_every=2, progress=lambda *n: numbers.append(n)
    )
    assert [n[:2] for n in numbers] == [(i, 6) for i in range(1, 7)]
    assert set(numbers[0][2]) == {"loss", "anchor"}
    assert all(torch.equal(whole.tensors[k], v) for k, v in edit.tensors.items())
    for state in states[:-1]:
        again = QUICK.fit(bundle, CONCEPT, state=state)
        assert again.details["losses"] == whole.details["losses"]
        assert all(torch.equal(again.tensors[k], v) for k, v in whole.tensors.items())
    with pytest.raises(ValueError, match="state: seed: expected 1, got 0"):
        QUICK.fit(bundle, CONCEPT, seed=1, state=states[0])
    with pytest.raises(ValueError, match="state: losses: expected a value"):
        QUICK.fit(bundle, CONCEPT, state={k: v for k, v in states[0].items() if k != "losses"})
    with pytest.raises(TypeError, match="state: expected what on_state was given"):
        QUICK.fit(bundle, CONCEPT, state=[])


def test_not_a_number_stops(bundle):
    broken = tiny_bundle()
    with torch.no_grad():
        broken.unet.conv_out.bias.fill_(float("nan"))
    with pytest.raises(
        RuntimeError, match=r"loss: expected a finite number, got nan at iteration 0, concept"
    ):
        QUICK.fit(broken, CONCEPT)


@pytest.mark.parametrize("kind", ["v_prediction", "sample"])
def test_the_target_is_the_same_whatever_the_model_predicts(bundle, kind):
    """The same noise prediction behind another parametrisation (float64)."""
    model = tiny_bundle().to(dtype=torch.float64)
    other = tiny_bundle(prediction_type=kind).to(dtype=torch.float64)

    class Wrapped(torch.nn.Module):
        config = model.unet.config

        def forward(self, z, t, encoder_hidden_states, return_dict):
            noise = model.unet(z, t, encoder_hidden_states=encoder_hidden_states, return_dict=False)[0]
            return (other.schedule.from_noise(noise, z, t),)

    made = torch.Generator().manual_seed(0)
    z = torch.randn(3, 4, 8, 8, generator=made, dtype=torch.float64)
    t = torch.tensor([31, 400, 958])
    cond, empty = (encode(model, [text]).expand(3, -1, -1) for text in ("van gogh style", ""))
    with torch.no_grad():
        expected = spm_target(model, z, t, cond, empty, 1.5)
        found = spm_target(other.replace(unet=Wrapped()), z, t, cond, empty, 1.5)
    assert torch.allclose(found, expected, rtol=1e-6, atol=1e-6)
    trained = QUICK.fit(tiny_bundle(prediction_type=kind), CONCEPT)
    assert all(math.isfinite(x) for x in trained.details["losses"])
    weighted = SPM(**{**vars(QUICK), "snr_gamma": 5.0}).fit(tiny_bundle(prediction_type=kind), CONCEPT)
    first, other = trained.details["losses"][0], weighted.details["losses"][0]
    assert other < first or other == pytest.approx(first)  # weights are 1 at most


def test_anchors_are_as_long_as_the_concept_and_away_from_it():
    concept = torch.randn(7, 16, generator=torch.Generator().manual_seed(0))
    found = anchor_states(concept, 200, rng_of(1))
    lengths = found.flatten(1).norm(dim=1) / concept.norm()
    assert 0.8 <= float(lengths.min()) < 0.85
    assert 1.15 < float(lengths.max()) <= 1.2
    assert abs(float(torch.cosine_similarity(found.flatten(1), concept.flatten()[None]).mean())) < 0.05


def test_the_rate_rises_and_falls_as_published():
    """Figures of a cosine schedule with three hard restarts, 500 of 3000 iterations warm-up."""
    rate = [cosine_with_restarts(i, 3000, 500, 3) for i in range(3001)]
    assert rate[0] == 0.0
    assert rate[250] == 0.5
    assert rate[500] == 1.0
    assert rate[500 + 1250] == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.5)))
    assert rate[1333] < 1e-5 < 0.999 < rate[1334]
    assert rate[3000] == 0.0


def test_bad_settings_are_refused_by_name(bundle):
    for settings, message in (
        ({"rank": 0}, "rank: expected"), ({"lr": 0.0}, "lr: expected"), ({"steps": 1}, "steps: expected"),
        ({"transport": "x"}, "transport: expected"), ({"match": ("",)}, "match: expected texts"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            SPM(**settings)
    with pytest.raises(ValueError, match="unet: expected float32 weights"):
        QUICK.fit(tiny_bundle().to(dtype=torch.bfloat16), CONCEPT)
