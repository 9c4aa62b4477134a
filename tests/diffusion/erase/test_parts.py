"""Parts of erasing: targets, choices of weights, closed form, walks."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from tenfold.diffusion import tiny_bundle
from tenfold.diffusion.encode import encode
from tenfold.diffusion.erase import (
    AdvUnlearn,
    Bank,
    Concept,
    Edit,
    Live,
    Walk,
    esd_loss,
    esd_target,
    trainable,
    uce_factors,
)
from tenfold.diffusion.erase.bank import rng_of
from tenfold.diffusion.erase.trainable import layer_numbers
from tenfold.diffusion.sampling import partial_ddim

RETAIN = ("a photo of a cat", "a dog", "the church")


def test_target_by_hand():
    e0, ep = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 1.0])
    assert torch.equal(esd_target(e0, ep, 1.0), torch.tensor([-1.0, 3.0]))
    assert torch.equal(esd_target(e0, ep, 0.0), e0)
    assert float(esd_loss(torch.tensor([0.0, 0.0]), e0, ep, 1.0)) == 5.0
    with pytest.raises(ValueError, match="target: expected"):
        esd_loss(torch.zeros(3), e0, ep)


@pytest.mark.parametrize("kind", ["v_prediction", "sample"])
def test_the_target_is_the_same_whatever_the_model_predicts(kind):
    """A combination whose weights sum to 1, of the same noise prediction behind another parametrisation."""
    model = tiny_bundle().to(dtype=torch.float64)
    other = tiny_bundle(prediction_type=kind).to(dtype=torch.float64)

    class Wrapped(torch.nn.Module):
        config = model.unet.config

        def forward(self, z, t, **options):
            return (other.schedule.from_noise(model.unet(z, t, **options)[0], z, t),)

    z = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    t = torch.tensor([31, 400, 958])
    cond, empty = (encode(model, [text]).expand(3, -1, -1) for text in ("van gogh style", ""))
    with torch.no_grad():
        targets = [
            esd_target(one.predict(z, t, empty), one.predict(z, t, cond), 1.5)
            for one in (model, other.replace(unet=Wrapped()))
        ]
    assert torch.allclose(targets[1], targets[0], rtol=1e-6, atol=1e-6)
    assert not torch.allclose(targets[0], model.predict(z, t, cond), atol=1e-3)


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        ("0", [0]), ("01", [0, 1]), ("012", [0, 1, 2]), ("01234567891011", list(range(12))), ("0_11", [0,
        11]), ("01_1011", [0, 1, 10, 11]), ("012_91011", [0, 1, 2, 9, 10, 11]), ("11", [11]), ("10", [10]),
    ],
)  # fmt: skip
def test_layer_numbers_of_the_published_names(name, numbers):
    assert layer_numbers(f"text_encoder_layer{name}") == numbers


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        block = lambda: nn.ModuleDict({"self_attn": nn.Linear(2, 2), "mlp": nn.Linear(2, 2)})  # noqa: E731
        self.embeddings = nn.Embedding(3, 2)
        self.encoder = nn.ModuleDict({"layers": nn.ModuleList([block() for _ in range(12)])})
        self.final_layer_norm = nn.LayerNorm(2)


def test_layers_of_the_text_encoder():
    model = Encoder()
    layers = lambda **k: sorted({int(n.split(".")[2]) for n in trainable(model, **k) if "layers" in n})  # noqa: E731
    assert layers(method="text_encoder_layer01") == [0, 1]
    assert layers(method="text_encoder_layer01", compat="reference") == [0, 1, 10, 11]
    assert layers(method="text_encoder") == list(range(12))
    assert "final_layer_norm.weight" in trainable(model, "text_encoder")
    assert "final_layer_norm.weight" not in trainable(model, "text_encoder_layer0")
    assert "final_layer_norm.weight" in trainable(model, "text_encoder_layer0", norm_layer=True)
    only = set(trainable(model, "text_encoder_layer3", component="attn"))
    assert only == {"encoder.layers.3.self_attn.weight", "encoder.layers.3.self_attn.bias"}
    with pytest.raises(ValueError, match="layers below 12"):
        trainable(model, "text_encoder_layer13")
    with pytest.raises(ValueError, match="rising numbers"):
        trainable(model, "text_encoder_layer02")


def test_sets_of_stable_diffusion_s_unet_have_the_published_sizes():
    """Parameters in millions, on the meta device."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768, sample_size=64)
    size = {
        m: sum(p.numel() for p in trainable(unet, m).values()) / 1e6 for m in ("xattn", "selfattn", "full")
    }
    assert size["xattn"] == pytest.approx(43.96, abs=0.01)
    assert size["selfattn"] == pytest.approx(49.57, abs=0.01)
    assert size["full"] == pytest.approx(859.5, abs=0.1)
    layers = {n.rsplit(".attn2.", 1)[0] for n in trainable(unet, "xlayer")}
    assert layers == {f"up_blocks.2.attentions.{i}.transformer_blocks.0" for i in (0, 2)}
    layers = {n.rsplit(".attn1.", 1)[0] for n in trainable(unet, "selflayer")}
    assert layers == {f"down_blocks.{i}.attentions.0.transformer_blocks.0" for i in (1, 2)}


def test_closed_form_equals_the_dense_solution():
    g = torch.Generator().manual_seed(0)
    for m, p, d in ((3, 5, 8), (20, 4, 8), (2, 0, 6)):
        old, new, keep = (torch.randn(n, d, generator=g, dtype=torch.float64) for n in (m, m, p))
        w = torch.randn(7, d, generator=g, dtype=torch.float64)
        lam, se, sp = 0.7, 0.3, 0.2
        right, left = uce_factors(old, new, keep, lam=lam, erase_scale=se, retain_scale=sp)
        found = w + (w @ left.T) @ right
        mat1 = lam * w + se * (new @ w.T).T @ old + sp * (w @ keep.T) @ keep
        mat2 = lam * torch.eye(d, dtype=torch.float64) + se * old.T @ old + sp * keep.T @ keep
        dense = torch.linalg.solve(mat2.T, mat1.T).T
        assert float((found - dense).abs().max()) <= 1e-12


def test_closed_form_maps_erased_states_to_their_anchors_and_keeps_the_rest():
    eye = torch.eye(6, dtype=torch.float64)
    old, new, keep = eye[:2], eye[2:4], eye[4:]
    right, left = uce_factors(old, new, keep, lam=1e-9, erase_scale=1.0, retain_scale=1.0)
    w = torch.randn(5, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    edited = w + (w @ left.T) @ right
    assert torch.allclose(old @ edited.T, new @ w.T, atol=1e-6)
    assert torch.allclose(keep @ edited.T, keep @ w.T, atol=1e-6)
    with pytest.raises(RuntimeError, match="lam: expected a positive definite system"):
        uce_factors(old, new, keep[:0], lam=0.0, erase_scale=1.0, retain_scale=1.0)
    with pytest.raises(ValueError, match="new, keep"):
        uce_factors(old, new[:1], keep, lam=1.0, erase_scale=1.0, retain_scale=1.0)


def test_uce_rewrites_the_concept_and_spares_retained_prompts():
    from tenfold.diffusion.encode import encode
    from tenfold.diffusion.erase import UCE

    bundle = tiny_bundle()
    concept = Concept("tench", anchors=("a cat",), retain=("a photo of a dog", "the church"))
    method = UCE(lam=1e-3, erase_scale=1.0, retain_scale=1.0, templates=("{}",))
    erased = method.fit(bundle, concept).apply(bundle)
    name = next(n for n, _ in bundle.unet.named_parameters() if n.endswith("attn2.to_v.weight"))
    before, after = (b.unet.get_parameter(name).detach() for b in (bundle, erased))
    states = encode(bundle, ["tench", "a cat"])
    old, new = states[0, 1:76], states[1, 2:77]  # from the last content token on, as many rows of each
    wanted = new @ before.T
    assert float((old @ after.T - wanted).norm()) < 0.5 * float((old @ before.T - wanted).norm())
    kept = encode(bundle, ["the church"])[0]
    moved = (kept @ (after - before).T).norm() / (kept @ before.T).norm()
    assert float(moved) < 0.05


class Counted:
    """Calls of a module's forward."""

    def __init__(self, module):
        self.calls, self.rows = 0, 0
        self.handle = module.register_forward_hook(self.hook)

    def hook(self, module, args, output):
        self.calls += 1
        self.rows += args[0].shape[0]


@pytest.mark.parametrize("alignment", ["exact", "reference"])
def test_bank_holds_what_walks_and_the_original_model_give(alignment):
    bundle = tiny_bundle()
    walk = Walk(5, 3.0, alignment, bundle.latent_shape())
    text = (("nudity", "a cat"), RETAIN)
    bank = Bank(bundle, text, walk, size=2, retain_size=1, seed=4, batch=3)
    noise = torch.from_numpy(rng_of(4, 1 << 20).standard_normal((4, *walk.shape), dtype=np.float32))
    z, t, e0, ep = bank._concept
    from tenfold.diffusion.encode import encode

    states, empty = encode(bundle, ["nudity", "nudity", "a cat", "a cat"]), encode(bundle, [""])
    for segment in range(5):
        walked = partial_ddim(
            bundle.predict, bundle.schedule, noise, segment, states, empty.expand(4, -1, -1), steps=5,
            guidance=3.0, alignment=alignment,
        )  # fmt: skip
        assert torch.allclose(z[:, segment], walked, atol=1e-4)
        with torch.no_grad():
            expected = bundle.predict(z[:, segment], t[:, segment], states)
            plain = bundle.predict(z[:, segment], t[:, segment], empty.expand(4, -1, -1))
        assert torch.allclose(ep[:, segment], expected, atol=1e-5)
        assert torch.allclose(e0[:, segment], plain, atol=1e-5)
        low, high = (200 * segment, 200 * segment + 200) if alignment == "reference" else (
            max(200 * segment - 99, 0), 200 * segment + 101
        )  # fmt: skip
        assert int(t[:, segment].min()) >= low
        assert int(t[:, segment].max()) < high


class NoisyZero(nn.Module):
    """Predicts the noise as if all clean latents were zero: those of a walk are noise of its level alone."""

    config = SimpleNamespace(sample_size=8, in_channels=4)

    def __init__(self, schedule):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.level = (1 - schedule.alphas_cumprod).sqrt().float()

    def forward(self, z, t, encoder_hidden_states, return_dict):
        return (z / self.level[t.long()].view(-1, 1, 1, 1),)


@pytest.mark.parametrize("make", [Live, Bank])
def test_latents_are_as_noisy_as_the_timestep_drawn_for_them_says(make):
    bundle = tiny_bundle()
    unet = NoisyZero(bundle.schedule)
    bundle = bundle.replace(unet=unet, vae=None)
    text, walk = (("cat",), ("dog",)), Walk(20, 3.0, "exact", (4, 8, 8))
    if make is Live:
        source = Live(bundle, bundle, text, walk)
    else:
        source = Bank(bundle, text, walk, size=4, retain_size=1, seed=0)
    seen = set()
    for i in range(40):
        drawn = source.concept(rng_of(0, i), 0, 2)
        for z, t in zip(drawn.z, drawn.t.tolist(), strict=True):
            low, high = (float(unet.level[min(max(t + away, 0), 999)]) for away in (-26, 26))
            assert 0.8 * low < float(z.std()) < 1.2 * high, t
            seen.add(t)
    assert min(seen) < 150
    assert max(seen) > 850


def test_calls_with_a_bank():
    """After the bank is built no draw walks: per iteration 30 attack steps, the erasing and the "
    "retaining step."""
    bundle = tiny_bundle()
    settings = {"iterations": 3, "warmup": 0, "attack_steps": 30, "steps": 50, "retain_batch": 3}
    training = AdvUnlearn(bank_size=1, **settings).training(bundle, Concept("nudity", retain=RETAIN), 0)
    training._refresh()
    counted = Counted(bundle.unet)
    training.iterate()
    assert counted.calls == 32


def test_calls_of_walks_as_published():
    """Without a bank a draw walks 25.48 calls on average, and asks the original model once."""
    calls = []

    class Unet(nn.Module):
        config = SimpleNamespace(sample_size=2, in_channels=1)

        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def forward(self, z, t, encoder_hidden_states, return_dict):
            calls.append(len(z))
            return (0.1 * z,)

    bundle = tiny_bundle().replace(unet=Unet(), vae=None)
    live = Live(bundle, bundle, (("cat",), ("dog",)), Walk(50, 3.0, "reference", (1, 2, 2)))
    for i in range(600):
        live.concept(rng_of(0, i), 0, 1)
    assert (len(calls) - 600) / 600 == pytest.approx(25.48, rel=0.05)
    drawn = live.concept(rng_of(0, 7), 0, 1)
    kept = live.retain(rng_of(0, 8), [0], drawn)
    assert torch.equal(kept.t, drawn.t)
    assert torch.equal(kept.segment, drawn.segment)
    assert kept.e0 is None


def test_a_concept_has_texts():
    assert Concept("van gogh").prompts == ("van gogh",)
    assert Concept("x", ("a", "b"), ("c",)).pairs == [("a", "c"), ("b", "c")]
    for arguments in (("",), ("x", (" ",)), ("x", ("a", "b"), ("c", "d", "e"))):
        with pytest.raises(ValueError, match="expected"):
            Concept(*arguments)
    with pytest.raises(TypeError, match="retain"):
        Concept("x", retain="a cat")


def test_an_edit_without_its_weights(tmp_path):
    Edit("weights", "unet", {"a.weight": torch.ones(2, 2)}, {}).save(tmp_path / "edit")
    (tmp_path / "edit" / "edit.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"folder: expected edit\.safetensors in "):
        Edit.load(tmp_path / "edit")
