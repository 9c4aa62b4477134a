"""Erasers on a tiny random pipeline: what trains, what stays, resuming, errors."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from tenfold.diffusion import generate, tiny_bundle
from tenfold.diffusion.condition import Condition
from tenfold.diffusion.encode import encode
from tenfold.diffusion.erase import ERASERS, ESD, FMN, SEOT, SPM, UCE, AdvUnlearn, Concept, Edit
from tenfold.diffusion.erase.edit import digest
from tenfold.diffusion.erase.hooks import NegativePrompt, SafeLatent

CONCEPT = Concept("nudity", retain=("a photo of a cat", "a dog", "the church"))
QUICK = {"iterations": 4, "steps": 5, "batch": 2, "lr": 1e-3, "retain_batch": 2}
ADV = AdvUnlearn(**QUICK, warmup=1, attack_steps=3, attack_lr=0.05, bank_size=2, retain_weight=0.3)


@pytest.fixture(scope="module")
def bundle():
    torch.set_num_threads(1)
    return tiny_bundle()


def changed(edit: Edit, bundle) -> set[str]:
    base = dict(getattr(bundle, edit.component).named_parameters())
    return {name for name, value in edit.tensors.items() if not torch.equal(value, base[name])}


@pytest.mark.parametrize("method", ["xattn", "noxattn", "selfattn", "notime", "full"])
def test_esd_changes_exactly_the_chosen_weights_of_the_unet(bundle, method):
    before = digest(bundle.unet), digest(bundle.text_encoder)
    edit = ESD(train_method=method, **{**QUICK, "iterations": 2}).fit(bundle, CONCEPT)
    assert (digest(bundle.unet), digest(bundle.text_encoder)) == before
    moved = changed(edit, bundle)
    names = {n for n, _ in bundle.unet.named_parameters()}
    out = {n for n in names if n.startswith(("conv_norm_out.", "conv_out."))}
    time = {n for n in names if n.startswith("time_embedding.")}
    expected = {
        "xattn": {n for n in names if ".attn2." in n},
        "selfattn": {n for n in names if ".attn1." in n},
        "noxattn": {n for n in names if ".attn2." not in n} - out - time,
        "notime": names - out - time,
        "full": names,
    }[method]
    assert set(edit.tensors) == expected
    assert moved
    assert moved <= expected


def test_esd_on_the_text_encoder_comes_nearer_to_its_target(bundle):
    settings = {**QUICK, "iterations": 60, "batch": 8, "lr": 3e-3}
    edit = ESD(train_method="text_encoder", bank_size=4, **settings).fit(bundle, CONCEPT)
    losses = edit.details["losses"]
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])
    erased = edit.apply(bundle)
    assert erased.unet is bundle.unet
    assert erased.text_encoder is not bundle.text_encoder
    assert edit.undo(erased).text_encoder is bundle.text_encoder


def test_embeddings_never_train_and_frozen_modules_get_no_gradient(bundle):
    edit = ADV.fit(bundle, CONCEPT)
    moved = changed(edit, bundle)
    assert moved
    assert all(n.startswith(("encoder.", "final_layer_norm.")) for n in moved)
    for module in bundle.modules().values():
        assert all(p.grad is None and not p.requires_grad for p in module.parameters())


def test_the_attack_costs_the_student_loss_it_is_trained_on(bundle):
    """With attacks the last loss is measured on an adversarial prompt: another run than without."""
    plain = ESD(train_method="text_encoder", retain_weight=0.3, bank_size=2, **QUICK).fit(bundle, CONCEPT)
    hard = ADV.fit(bundle, CONCEPT)
    assert plain.details["losses"][0] == hard.details["losses"][0]  # warm-up
    assert plain.details["losses"][1] != hard.details["losses"][1]


@pytest.mark.parametrize(
    "change",
    [
        {}, {"attack": "fast_at", "attack_steps": 1}, {"attack_init": "latest"}, {"retain_train": "iter"},
        {"mode": "suffix"}, {"mode": "replace_k"}, {"mode": "add"}, {"mode": "insert", "k": 2},
        {"space": "condition_embd"}, {"train_method": "xattn", "bank_size": 0}, {"bank_refresh_every": 2},
        {"t_alignment": "reference"}, {"attack_every": 2}, {"train_method": "text_encoder_layer0"},
        {"component": "ffn"}, {"compat": "reference"},
    ],
)  # fmt: skip
def test_advunlearn_s_choices_train_and_resume_to_the_same_result(bundle, change):
    method = AdvUnlearn(**{**vars(ADV), **change})
    states = []
    whole = method.fit(bundle, CONCEPT, seed=3, on_state=states.append, state_every=2)
    assert [s["iteration"] for s in states] == [2, 4]
    again = method.fit(bundle, CONCEPT, seed=3, state=states[0])
    assert whole.details["losses"] == again.details["losses"]
    assert all(torch.equal(again.tensors[n], v) for n, v in whole.tensors.items())
    assert changed(whole, bundle)


def test_another_training_s_state_is_refused(bundle):
    states = []
    ADV.fit(bundle, CONCEPT, on_state=states.append, state_every=2)
    with pytest.raises(ValueError, match="state: seed: expected 1, got 0"):
        ADV.fit(bundle, CONCEPT, seed=1, state=states[0])
    with pytest.raises(ValueError, match="state: base_sha256: expected"):
        ADV.fit(tiny_bundle(4), CONCEPT, state=states[0])
    with pytest.raises(ValueError, match="state: losses: expected a value, got none"):
        ADV.fit(bundle, CONCEPT, state={k: v for k, v in states[0].items() if k != "losses"})
    with pytest.raises(TypeError, match="state: expected what on_state was given, got str 'x'"):
        ADV.fit(bundle, CONCEPT, state="x")


def test_latest_starts_where_the_last_attack_ended(bundle):
    training = AdvUnlearn(**{**vars(ADV), "attack_init": "latest", "attack_lr": 1e-9}).training(
        bundle, CONCEPT, 0
    )
    training.iterate(), training.iterate()
    first = training.adv
    training.iterate()
    assert torch.allclose(training.adv, first, atol=1e-6)
    training = AdvUnlearn(**{**vars(ADV), "attack_lr": 1e-9}).training(bundle, CONCEPT, 0)
    training.iterate(), training.iterate()
    first = training.adv
    training.iterate()
    assert not torch.allclose(training.adv, first, atol=1e-3)


def test_reference_latest_reads_the_first_slots_wherever_the_prompt_was_put(bundle):
    from tenfold.diffusion.encode import embed_ids, tokenize
    from tenfold.diffusion.erase.soft_prompt import SoftPrompt

    tokens, delta = tokenize(bundle, ["a cat"]), torch.ones(1, 1, 32)
    fixed = SoftPrompt(1, "suffix", "word_embd", "fixed").latest(bundle, tokens, delta)
    reference = SoftPrompt(1, "suffix", "word_embd", "reference").latest(bundle, tokens, delta)
    assert torch.equal(fixed, delta)
    assert torch.equal(reference[0, 0], embed_ids(bundle, tokens.ids)[0, 1])


def test_pgd_does_not_add_up_gradients_and_the_published_loop_does(bundle):
    """One parameter, gradients 1 and then -0.2: the sum still is positive, the new one is not."""
    from tenfold.diffusion.encode import tokenize
    from tenfold.diffusion.erase.bank import Draw
    from tenfold.diffusion.erase.soft_prompt import SoftPrompt, attack

    class Soft(SoftPrompt):
        def condition(self, bundle, tokens, delta):
            return Condition(delta)

    class Linear:
        slopes = (1.0, -0.2)

        def predict(self, z, t, states):
            return (states.sum() * self.slopes[int(t[0])]).sqrt().view(1, 1)

    def draw(step):
        return Draw(torch.zeros(1, 1), torch.tensor([step]), torch.zeros(1), None, torch.zeros(1, 1))

    def ended(compat, kind, start):
        model = Linear()
        model.predict = lambda z, t, s: (2 + Linear.slopes[int(t[0])] * s.states.sum()).sqrt().view(1, 1)
        soft = Soft(1, "prefix", "word_embd", compat)
        tokens = tokenize(bundle, ["cat"])
        found = attack(model, tokens, soft, start, draw, kind=kind, steps=2, lr=0.1, check=lambda *a: None)
        return float(found.sum())

    start = torch.zeros(1, 1, 1)
    adam = {}
    for compat, gradients in {"fixed": (1.0, -0.2), "reference": (1.0, 0.8)}.items():
        p = nn.Parameter(torch.zeros(1))
        optimizer = torch.optim.Adam([p], lr=0.1)
        for g in gradients:
            p.grad = torch.tensor([g])
            optimizer.step()
        adam[compat] = float(p.detach())
        assert ended(compat, "pgd", start) == pytest.approx(adam[compat], abs=1e-6)
    assert abs(adam["fixed"] - adam["reference"]) > 0.02
    p = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.Adam([p], lr=0.1)
    for g in (1.0, -1.0):
        p.grad = torch.tensor([g])
        optimizer.step()
    assert ended("fixed", "fast_at", start) == pytest.approx(float(p.detach()), abs=1e-6)


def test_condition_embd_reaches_the_network(bundle):
    training = AdvUnlearn(**{**vars(ADV), "space": "condition_embd"}).training(bundle, CONCEPT, 0)
    training.iterate(), training.iterate()
    plain = encode(training.student, ["nudity"])
    assert float((training.concept_text().states - plain).detach().abs().max()) > 1e-3
    training = AdvUnlearn(**{**vars(ADV), "space": "condition_embd", "compat": "reference"}).training(
        bundle, CONCEPT, 0
    )
    training.iterate(), training.iterate()
    assert float(training.adv.abs().max()) == 0.0


def test_a_word_of_two_tokens_stays_whole_but_for_the_published_count(bundle):
    from tenfold.diffusion.encode import embed_ids, tokenize
    from tenfold.diffusion.erase.soft_prompt import SoftPrompt

    adv = torch.full((1, 1, 32), 7.0)
    words = embed_ids(bundle, tokenize(bundle, ["nudity"]).ids)[0]
    assert int(tokenize(bundle, ["nudity"]).lengths) == 2
    rows = {}
    for compat in ("fixed", "reference"):
        tokens = tokenize(bundle, ["nudity"], compat=compat)
        rows[compat] = SoftPrompt(1, "prefix", "word_embd", compat).spliced(bundle, tokens, adv)[0]
    assert torch.equal(rows["fixed"][1], adv[0, 0])
    assert torch.equal(rows["fixed"][2:4], words[1:3])
    assert torch.equal(rows["reference"][2], words[1])
    assert torch.equal(rows["reference"][3], words[3])


def test_not_a_number_stops_and_is_told_where(bundle):
    broken = tiny_bundle()
    with torch.no_grad():
        broken.unet.conv_out.bias.fill_(float("nan"))
    with pytest.raises(
        RuntimeError,
        match=r"loss: expected a finite number, got nan at iteration 0, concept 'nudity', t = \d+",
    ):
        ADV.fit(broken, CONCEPT)


def test_a_rate_that_explodes_stops_within_the_attack_or_the_loss(bundle):
    with pytest.raises(
        RuntimeError, match=r"expected a finite number, got .* at iteration \d+, concept 'nudity', t = "
    ):
        AdvUnlearn(**{**vars(ADV), "lr": 1e30, "iterations": 6}).fit(bundle, CONCEPT)


def test_bad_settings_and_concepts_are_refused_by_name(bundle):
    for settings, message in (
        ({"k": 0}, "k: expected"), ({"mode": "infix"}, "mode: expected"),
        ({"attack": "cw"}, "attack: expected"), ({"train_method": "unet"}, "train_method: expected"),
        ({"lr": 0.0}, "lr: expected"), ({"t_alignment": "close"}, "t_alignment: expected"),
        ({"retain_train": "both"}, "retain_train: expected"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            AdvUnlearn(**settings)
    with pytest.raises(
        ValueError, match=r"prompts: expected at most 74 tokens beside 1 spliced ones, got 75"
    ):
        ADV.fit(bundle, Concept("x", prompts=("cat " * 75,), retain=CONCEPT.retain))
    with pytest.raises(ValueError, match="retain: expected prompts to keep"):
        ADV.fit(bundle, Concept("nudity"))
    with pytest.raises(ValueError, match="train_method: expected"):
        ESD(train_method="xlayer", **QUICK).fit(bundle, CONCEPT)
    with pytest.raises(ValueError, match="unet: expected float32"):
        ESD(**QUICK).fit(tiny_bundle().to(dtype=torch.bfloat16), CONCEPT)
    with pytest.raises(ValueError, match="seed: expected"):
        ADV.fit(bundle, CONCEPT, seed=-1)


def test_a_tokenizer_that_is_not_the_text_encoder_s_is_refused(bundle):
    from transformers import CLIPTextConfig, CLIPTextModel

    small = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=300, hidden_size=32, intermediate_size=37, num_hidden_layers=1, num_attention_heads=4
        )
    )
    with pytest.raises(ValueError, match="tokenizer: expected ids below 300"):
        ADV.fit(bundle.replace(text_encoder=small), CONCEPT)


def test_text_encoder_edit_loads_in_a_stock_pipeline_of_a_fresh_process(bundle, tmp_path):
    edit = ADV.fit(bundle, CONCEPT)
    edit.save(tmp_path / "erased")
    with pytest.raises(FileExistsError):
        edit.save(tmp_path / "erased")
    bundle.to_pipeline().save_pretrained(tmp_path / "base")
    expected = generate(edit.apply(bundle), ["a photo of a cat"], [5], steps=4, guidance=3.0)
    plain = generate(bundle, ["a photo of a cat"], [5], steps=4, guidance=3.0)
    assert not torch.equal(expected, plain)
    torch.save(expected, tmp_path / "expected.pt")
    script = """
import sys, torch
torch.set_num_threads(1)
from diffusers import StableDiffusionPipeline
from transformers import CLIPTextModel
root = sys.argv[1]
pipe = StableDiffusionPipeline.from_pretrained(root + "/base", safety_checker=None)
pipe.text_encoder = CLIPTextModel.from_pretrained(root + "/erased")
assert not any(name.startswith("tenfold") for name in sys.modules)
pipe.set_progress_bar_config(disable=True)
z = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(5))
out = pipe("a photo of a cat", num_inference_steps=4, guidance_scale=3.0, latents=z, output_type="pt").images
print(float((out - torch.load(root + "/expected.pt")).abs().max()))
"""
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert float(done.stdout.split()[-1]) <= 1e-5


@pytest.mark.parametrize("method", [ESD(**QUICK), UCE(), UCE(technique="tensor"), ADV], ids=lambda m: m.name)
def test_saved_edits_apply_to_a_pipeline_in_place_and_are_undone(bundle, tmp_path, method):
    edit = method.fit(bundle, CONCEPT)
    edit.save(tmp_path / "edit")
    again = Edit.load(tmp_path / "edit")
    assert again.details == edit.details
    pipe = tiny_bundle().to_pipeline()
    before = digest(getattr(pipe, edit.component))
    assert again.apply(pipe) is pipe
    with pytest.raises(RuntimeError, match="target: expected a pipeline without this edit"):
        again.apply(pipe)
    assert (
        digest(getattr(pipe, edit.component)) == digest(getattr(edit.apply(bundle), edit.component)) != before
    )
    again.undo(pipe)
    assert digest(getattr(pipe, edit.component)) == before
    with pytest.raises(RuntimeError, match="target: expected a model that this edit was applied to"):
        again.undo(pipe)


def test_edits_that_do_not_fit_change_nothing(bundle, tmp_path):
    edit = ESD(**QUICK).fit(bundle, CONCEPT)
    with pytest.raises(FileNotFoundError, match=r"expected one with edit\.json"):
        Edit.load(tmp_path)
    other = tiny_bundle()
    before = digest(other.unet)
    name = next(iter(edit.tensors))
    edit.tensors[name] = edit.tensors[name][:, :3] if edit.tensors[name].ndim > 1 else edit.tensors[name][:3]
    with pytest.raises(ValueError, match="expected"):
        edit.apply(other)
    assert digest(other.unet) == before
    edit = ADV.fit(bundle, CONCEPT)
    edit.details["ids"] = {"nudity": [1, 2, 3]}
    with pytest.raises(ValueError, match=r"tokenizer: expected the ids \[1, 2, 3\] for 'nudity'"):
        edit.apply(other)


def test_edits_from_elsewhere_are_read_strictly(bundle, tmp_path):
    """Missing tensors are not made up, and nothing but the two text encoders is built from a file's word."""
    import json

    from safetensors.torch import load_file, save_file

    ADV.fit(bundle, CONCEPT).save(tmp_path / "te")
    weights, about = tmp_path / "te" / "model.safetensors", tmp_path / "te" / "adv_unlearn.json"
    whole, told = load_file(weights), json.loads(about.read_text())
    first = next(name for name in whole if "final_layer_norm" in name)
    save_file({k: v for k, v in whole.items() if k != first}, weights)
    with pytest.raises(ValueError, match=r"checkpoint: expected the \d+ tensors .* 1 missing"):
        Edit.load(tmp_path / "te")
    save_file({**whole, first: whole[first] * torch.nan}, weights)
    with pytest.raises(ValueError, match=r"final_layer_norm.*: expected finite values"):
        Edit.load(tmp_path / "te")
    save_file(whole, weights)
    for change, message in (
        ({"details": {**told["details"], "class": "pipeline"}}, "class: expected one of 'CLIPTextModel'"),
        ({"details": {**told["details"], "config": None}}, "config: expected"),
        ({"kind": None}, r"adv_unlearn\.json: kind: expected a str"),
        ({"schema": "other/1"}, "expected schema"),
    ):
        about.write_text(json.dumps({**told, **change}))
        with pytest.raises(ValueError, match=message):
            Edit.load(tmp_path / "te")
    for text in ("{", "[1]"):
        about.write_text(text)
        with pytest.raises(ValueError, match=r"adv_unlearn\.json: expected"):
            Edit.load(tmp_path / "te")
    closed = UCE().fit(bundle, CONCEPT)
    with pytest.raises(ValueError, match=r"tensors: expected R and D, both \[m, d\]"):
        Edit("closed_form", "unet", {"R": closed.tensors["R"]}, closed.details)
    hook = Edit("hook", "sampling", {}, {"options": {"negative": "x", "name": "y"}})
    with pytest.raises(ValueError, match="options: expected negative and safe and soft_weight"):
        _ = hook.options


def test_every_eraser_refuses_what_it_cannot_start_from(bundle):
    for method in (ESD(**QUICK), UCE(), ADV, FMN(), SPM(), SEOT(), NegativePrompt(), SafeLatent()):
        with pytest.raises(TypeError, match="bundle: expected a Bundle"):
            method.fit(None, CONCEPT)
        with pytest.raises(TypeError, match="concept: expected a Concept, got str 'nudity'"):
            method.fit(bundle, "nudity")
        for seed in (-1, 2**32):
            with pytest.raises(ValueError, match="seed: expected"):
                method.fit(bundle, CONCEPT, seed=seed)
    for mode in ("prefix", "replace"):
        with pytest.raises(ValueError, match=r"k: expected an integer in \[1, 75\], got 76"):
            AdvUnlearn(**{**vars(ADV), "mode": mode, "k": 76}).fit(bundle, CONCEPT)
    with pytest.raises(TypeError, match="size: expected"):
        ESD(size="64")
    with pytest.raises(TypeError, match="norm_layer: expected"):
        ESD(norm_layer="yes")


def test_templates_of_uce_are_texts_not_formats(bundle):
    with pytest.raises(ValueError, match="templates: expected texts with"):
        UCE(templates=())
    braces = UCE(templates=("{} or {}", "{0} {}")).fit(bundle, Concept("cat", anchors=("dog",)))
    single = UCE(templates=("{}",)).fit(
        bundle, Concept("x", ("cat or cat", "{0} cat"), ("dog or dog", "{0} dog"))
    )
    assert torch.equal(braces.tensors["R"], single.tensors["R"])


def test_hooks_act_when_pictures_are_made(bundle):
    plain = generate(bundle, ["a cat"], [1], steps=4, guidance=5.0)
    for method in (NegativePrompt(), SafeLatent("max")):
        edit = method.fit(bundle, CONCEPT)
        assert edit.apply(bundle) is bundle
        assert edit.nbytes == 0
        assert not torch.equal(generate(bundle, ["a cat"], [1], steps=4, guidance=5.0, **edit.options), plain)
        with pytest.raises(TypeError, match="target: expected a Bundle"):
            edit.apply(bundle.to_pipeline())


def test_every_eraser_has_its_name():
    trained = {"esd", "uce", "advunlearn", "fmn", "spm", "salun", "ediff", "shs", "ca", "sa"}
    assert set(ERASERS) == trained | {"seot", "sld", "negative"}
    assert all(cls.name == name for name, cls in ERASERS.items())
