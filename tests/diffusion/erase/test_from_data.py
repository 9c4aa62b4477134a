"""Erasers that learn from pictures, on a tiny random pipeline: what trains, resuming, what is refused."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from tenfold.diffusion import tiny_bundle
from tenfold.diffusion.encode import encode
from tenfold.diffusion.erase import CA, SA, SHS, Concept, ConceptData, EDiff, Edit, SalUn, ablation_data
from tenfold.diffusion.erase.edit import digest
from tenfold.diffusion.erase.from_data import FIRST, FORGET, DataLoop
from tenfold.diffusion.erase.target import snr_weight
from tenfold.diffusion.schedule import Schedule

QUICK = {"iterations": 4, "batch": 2, "lr": 1e-3}
METHODS = [
    SalUn(**QUICK), SalUn(**QUICK, density=None, teacher="original"),
    SalUn(**QUICK, mask_scope="trained", mask_guidance=0.0, train_method="full"),
    EDiff(**QUICK), EDiff(**QUICK, lam=None, inner_steps=1, inner_lr=1e-2),
    SHS(**QUICK, sparsity=0.9),
    SHS(**QUICK, sparsity=0.5, project_every=2, train_method="xattn", cut_batches=4),
    SHS(**QUICK, sparsity=0.9, train_method="noxattn"),
    SA(**QUICK, fisher_draws=2), CA(**QUICK), CA(**QUICK, prior_weight=1.0, snr_gamma=5.0),
]  # fmt: skip


def images(count: int, seed: int) -> torch.Tensor:
    return torch.rand(count, 3, 64, 64, generator=torch.Generator().manual_seed(seed))


DATA = ConceptData(
    forget_prompts=("a cat van gogh style", "a dog van gogh style", "a church van gogh style"),
    pseudo_prompts=("a photo of a cat", "a photo of a dog", "a photo of a church"),
    retain_prompts=("a truck", "a tench", "a garbage truck", "a parachute", "a painting"),
    forget_images=images(3, 0),
    retain_images=images(5, 1),
    pseudo_images=images(3, 2),
)
CONCEPT = Concept("Van_Gogh", ("van gogh style",), data=DATA)


@pytest.fixture(scope="module")
def bundle():
    torch.set_num_threads(1)
    return tiny_bundle()


def moved(edit: Edit, bundle) -> set[str]:
    base = dict(bundle.unet.named_parameters())
    return {name for name, value in edit.tensors.items() if not torch.equal(value, base[name])}


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_each_trains_what_it_says_and_resumes_to_the_same_bits(bundle, method):
    before = digest(bundle.unet), digest(bundle.text_encoder), digest(bundle.vae)
    states, numbers = [], []
    whole = method.fit(
        bundle, CONCEPT, seed=3, on_state=states.append, state_every=2,
        progress=lambda done, total, found: numbers.append((done, total, found)),
    )  # fmt: skip
    assert (digest(bundle.unet), digest(bundle.text_encoder), digest(bundle.vae)) == before
    assert [s["iteration"] for s in states] == [2, 4]
    assert [(d, t) for d, t, _ in numbers] == [(i, 4) for i in range(1, 5)]
    assert all(np.isfinite(list(found.values())).all() for _, _, found in numbers)
    again = method.fit(bundle, CONCEPT, seed=3, state=states[0])
    assert again.details == whole.details
    assert all(torch.equal(again.tensors[n], v) for n, v in whole.tensors.items())
    names = {n for n, _ in bundle.unet.named_parameters()}
    attention = {n for n in names if ".attn2." in n}
    allowed = {
        "xattn": attention,
        "xattn_kv": {n for n in attention if n.endswith(("to_k.weight", "to_v.weight"))},
        "full": names,
        "noxattn": names,  # SHS cuts cross attention whatever it repairs
    }[method.train_method]
    assert set(whole.tensors) <= allowed
    assert moved(whole, bundle) & attention
    other = method.fit(bundle, CONCEPT, seed=4)
    assert any(not torch.equal(other.tensors[n], v) for n, v in whole.tensors.items())
    assert all(p.grad is None and not p.requires_grad for p in bundle.unet.parameters())


@pytest.mark.parametrize("method", [SalUn, EDiff, SHS, CA], ids=lambda m: m.name)
def test_the_concept_comes_nearer_to_what_it_is_to_mean(bundle, method):
    """On fixed pictures, noise and timesteps, before and after."""
    settings = {"iterations": 30, "batch": 3, "lr": 5e-3, "train_method": "xattn"}
    settings |= (
        {"lam": 2.0, "inner_steps": 1}
        if method is EDiff
        else {"alpha": 1.0, "sparsity": 1.0}
        if method is SHS
        else {}
    )
    eraser = method(**settings)
    loop = eraser.training(bundle, CONCEPT, 0)
    latents = loop.latents.get("forget", loop.latents.get("pseudo"))
    fixed = loop.draw(FIRST, 0, latents)

    def loss(student) -> float:
        loop.student = student
        with torch.no_grad():
            return float(loop.forget_loss(fixed))

    start = loss(bundle)
    end = loss(eraser.fit(bundle, CONCEPT).apply(bundle))
    assert end < 0.5 * start


@pytest.mark.parametrize(
    "method", [SalUn(batch=2), EDiff(batch=2, epochs=2), SHS(batch=2), CA(batch=2, iterations=None)]
)
def test_every_picture_of_the_concept_is_visited_once_in_an_epoch(bundle, monkeypatch, method):
    """The published loaders begin anew at every step: always the same first batch."""
    seen: list[int] = []
    plain = DataLoop.draw

    def spy(self, stream, place, latents):
        drawn = plain(self, stream, place, latents)
        if stream == FORGET:
            seen.extend(drawn.rows.tolist())
            assert torch.equal(drawn.clean, latents[torch.from_numpy(drawn.rows)])
        return drawn

    monkeypatch.setattr(DataLoop, "draw", spy)
    method.fit(bundle, CONCEPT)
    visits = seen if method.name != "ediff" else _outer(seen)
    assert np.bincount(visits, minlength=3).tolist() == [2, 2, 2]


def _outer(seen: list[int]) -> list[int]:
    """EDiff asks both levels about the same pictures: each batch comes twice in a row."""
    batches = [seen[0:4], seen[4:8], seen[8:12]]
    assert all(b[:2] == b[2:] for b in batches)
    return [row for b in batches for row in b[:2]]


class Told(nn.Module):
    """A UNet that answers with v or a clean sample where another answers with noise."""

    def __init__(self, unet, schedule: Schedule):
        super().__init__()
        self.inner, self.schedule = unet, schedule
        self.config = unet.config

    def forward(self, z, t, **options):
        noise = self.inner(z, t, **options)[0]
        return (self.schedule.from_noise(noise, z, t),)


@pytest.mark.parametrize("kind", ["v_prediction", "sample"])
@pytest.mark.parametrize("method", [m for m in METHODS if m.train_method != "noxattn"], ids=lambda m: m.name)
def test_what_the_unet_s_output_means_changes_nothing(bundle, method, kind):
    schedule = Schedule.scaled_linear(kind)
    other = bundle.replace(unet=Told(copy.deepcopy(bundle.unet), schedule), schedule=schedule)
    found = []
    for model in (bundle, other):
        loop = method.training(model, CONCEPT, 1)
        found.append(loop.iterate())
    for name, value in found[0].items():
        # A clean sample at high noise loses digits of the noise: 1 / sqrt(abar) is up to 14.
        assert found[1][name] == pytest.approx(value, rel=2e-4, abs=1e-6), name


@pytest.mark.gpu
@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_a_gpu_does_the_same(bundle, method):
    states, numbers = [], []
    on = tiny_bundle().to("cuda")
    edit = method.fit(on, CONCEPT, seed=3, progress=lambda *found: numbers.append(found[2]),
                      on_state=states.append, state_every=2)  # fmt: skip
    loop = method.training(bundle, CONCEPT, 3)
    for name, value in loop.iterate().items():
        assert numbers[0][name] == pytest.approx(value, rel=1e-3, abs=1e-5), name
    assert all(v.device.type == "cpu" for v in edit.tensors.values())
    again = method.fit(on, CONCEPT, seed=3, state=states[0])
    assert again.details["losses"] == pytest.approx(edit.details["losses"], rel=1e-3)


def test_min_snr_weights():
    bundle = tiny_bundle()
    t = torch.tensor([0, 100, 500, 999])
    weight = snr_weight(bundle, t, torch.zeros(4, 1, 1, 1), 5.0).flatten()
    snr = bundle.schedule.alphas_cumprod[t] / (1 - bundle.schedule.alphas_cumprod[t])
    assert torch.allclose(weight, torch.tensor([5.0 / s if s > 5 else 1.0 for s in snr]))
    assert snr_weight(bundle, t, t, None) is None


def test_a_concept_without_pictures_has_them_drawn(bundle):
    concept = Concept("cat", ("a cat",), ("a dog",), ("a truck", "a church"))
    edit = SalUn(**QUICK, pictures=3, steps=2).fit(bundle, concept)
    assert moved(edit, bundle)
    loop = CA(**QUICK, pictures=2, steps=2).training(bundle, concept, 0)
    assert loop.data.forget_images is None
    assert loop.data.pseudo_images.shape == (2, 3, 64, 64)


@pytest.mark.slow
@pytest.mark.parametrize(
    "method", [SalUn.small(), EDiff.small(), SHS.small(), CA.small(), SA.small()], ids=lambda m: m.name
)
def test_a_trained_model_forgets_a_digit_and_keeps_the_others(digits, method):
    """The embedded model of handwritten digits: fives become sixes."""
    from tenfold.diffusion import generate
    from tenfold.diffusion.digits import name_prompts, read_digits

    model, concept = digits
    asked = [(d, p) for d in range(10) for p in name_prompts(d)[1::4]]
    erased = method.fit(model, concept).apply(model)
    drawn = generate(
        erased, [p for _, p in asked], range(1000, 1000 + len(asked)), steps=20, guidance=3.0, batch=100
    )
    read, _, accepted = read_digits(drawn)
    wanted = torch.tensor([d for d, _ in asked])
    hit = (read == wanted) & accepted
    assert hit[wanted == 5].float().mean() <= 0.1
    assert hit[wanted != 5].float().mean() >= 0.9


@pytest.fixture(scope="module")
def digits():
    pytest.importorskip("sklearn")
    from tenfold.diffusion import load_bundle
    from tenfold.diffusion.digits import name_prompts

    model = load_bundle("digits")
    others = [name_prompts(d)[i] for i in range(0, 40, 2) for d in range(10) if d != 5]
    data = ConceptData(
        tuple(name_prompts(5)), tuple(name_prompts(6)), tuple(others), steps=20, guidance=3.0
    ).filled(model, parts=("forget", "retain", "pseudo"), seed=1)
    return model, Concept("five", data=data)


def test_a_saved_edit_is_the_trained_model(bundle, tmp_path):
    edit = SalUn(**QUICK).fit(bundle, CONCEPT)
    read = Edit.load(edit.save(tmp_path / "edit"))
    z, t, states = torch.zeros(1, 4, 8, 8), torch.tensor([7]), encode(bundle, ["a cat"])
    with torch.no_grad():
        one, two = (e.apply(bundle).predict(z, t, states) for e in (edit, read))
        assert torch.equal(one, two)
        assert not torch.equal(one, bundle.predict(z, t, states))
    assert read.details["concept"]["data"]["forget_prompts"] == list(DATA.forget_prompts)


def test_not_a_number_stops_and_is_told_where(bundle):
    broken = bundle.replace(unet=copy.deepcopy(bundle.unet))
    with torch.no_grad():
        broken.unet.conv_out.bias[0] = torch.nan
    for method, name in (
        (SalUn(**QUICK), "saliency loss"), (SalUn(**QUICK, density=None), "forget loss"),
        (EDiff(**QUICK), "forget loss"), (SHS(**QUICK), "sensitivity loss"), (CA(**QUICK), "forget loss"),
    ):  # fmt: skip
        match = rf"{name}: expected a finite number, got nan at iteration 0, concept 'Van_Gogh', t = \d+"
        with pytest.raises(RuntimeError, match=match):
            method.fit(broken, CONCEPT)
    with pytest.raises(RuntimeError, match=r"loss: expected a finite number, got (nan|inf) at iteration \d"):
        SalUn(iterations=30, batch=2, lr=1e19, density=None).fit(bundle, CONCEPT)


def test_a_prompt_that_still_names_the_concept_is_no_anchor(bundle):
    """Objects are published with such anchors: nothing is ablated."""
    dogs = Concept("Dogs", data=ConceptData(
        ("in an image of Dogs's style, a dog", "An image of Dogs"), ("a dog", "a photo of dogs"),
        ("a cat",), DATA.forget_images[:2], DATA.retain_images[:1],
    ))  # fmt: skip
    same = Concept("x", data=ConceptData(("a cat",), ("a cat",), ("a dog",)))
    for method in (CA(**QUICK), SalUn(**QUICK), EDiff(**QUICK), SHS(**QUICK)):
        with pytest.raises(
            ValueError, match=r"pseudo_prompts: expected texts without 'Dogs', .* 'a photo of dogs'"
        ):
            method.fit(bundle, dogs)
        with pytest.raises(ValueError, match=r"pseudo_prompts: expected .*, got 'a cat' for 'a cat'"):
            method.fit(bundle, same)


def test_captions_for_ablation():
    styled = ablation_data("Van_Gogh", ["a lake"] * 60, seed=1)
    assert set(styled.forget_prompts) == {
        "a lake, in the style of Van Gogh", "a lake, in the style of Van Gogh Van Gogh",
        "Van Gogh inspired painting, a lake", "Van Gogh Van Gogh inspired painting, a lake",
        "in Van Gogh's style, a lake", "in Van Gogh Van Gogh's style, a lake",
    }  # fmt: skip
    assert set(styled.pseudo_prompts) == {"a lake"}
    thing = ablation_data("grumpy cat", ["a photo of a cat", "one cat on a mat"], anchor="cat")
    assert thing.forget_prompts == ("a photo of a grumpy cat", "one grumpy cat on a mat")
    with pytest.raises(ValueError, match="captions: expected texts with 'cat', got 'a dog'"):
        ablation_data("grumpy cat", ["a dog"], anchor="cat")


@pytest.mark.parametrize("method", [SalUn, EDiff, SHS, CA, SA], ids=lambda m: m.name)
def test_bad_settings_are_refused_by_name(bundle, method):
    for wrong, kind, match in (
        ({"train_method": "text_encoder"}, ValueError, "train_method: expected one of 'xattn'"),
        ({"batch": 0}, ValueError, "batch"), ({"epochs": 1.5}, TypeError, "epochs"),
        ({"lr": 0.0}, ValueError, "lr"), ({"alpha": -1.0}, ValueError, "alpha"),
        ({"snr_gamma": 0.0}, ValueError, "snr_gamma"), ({"sampler": "no"}, ValueError, "sampler"),
        ({"iterations": 0}, ValueError, "iterations"), ({"pictures": 0}, ValueError, "pictures"),
    ):  # fmt: skip
        with pytest.raises(kind, match=match):
            method(**wrong)
    with pytest.raises(TypeError, match="bundle: expected a Bundle"):
        method(**QUICK).fit(None, CONCEPT)
    if method is not CA:
        with pytest.raises(ValueError, match="retain: expected prompts to keep, got none"):
            method(**QUICK).fit(bundle, Concept("a", data=ConceptData(("x",), ("y",))))
    half = tiny_bundle().to(dtype=torch.float16)
    with pytest.raises(ValueError, match="unet: expected float32 weights"):
        method(**QUICK).fit(half, CONCEPT)
    for own in (method.style(batch=7), method.object(batch=7), method.small(batch=7)):
        assert own.batch == 7


def test_own_settings_are_refused_by_name():
    for make, match in (
        (lambda: SalUn(density=1.5), r"density: expected a share in \[0, 1\], got 1.5"),
        (lambda: SalUn(mask_scope="all"), "mask_scope"),
        (lambda: SalUn(teacher="me"), "teacher"),
        (lambda: EDiff(inner_steps=0), "inner_steps"),
        (lambda: EDiff(lam=-1.0), "lam"),
        (lambda: SHS(sparsity=1.2), r"sparsity: expected a share in \[0, 1\], got 1.2"),
        (lambda: SHS(project_every=-1), "project_every"),
        (lambda: CA(prior_weight=-1.0), "prior_weight"),
        (lambda: SA(lam=-1.0), "lam"),
        (lambda: SA(fisher_draws=0), "fisher_draws"),
    ):
        with pytest.raises(ValueError, match=match):
            make()


def test_another_training_s_state_is_refused(bundle):
    states = []
    SalUn(**QUICK).fit(bundle, CONCEPT, on_state=states.append, state_every=2)
    with pytest.raises(ValueError, match="state: seed: expected 1, got 0"):
        SalUn(**QUICK).fit(bundle, CONCEPT, seed=1, state=states[0])
    flipped = Concept("Van_Gogh", ("van gogh style",), data=ConceptData(
        DATA.forget_prompts, DATA.pseudo_prompts, DATA.retain_prompts, DATA.forget_images.flip(3),
        DATA.retain_images,
    ))  # fmt: skip
    with pytest.raises(ValueError, match="state: concept: expected"):
        SalUn(**QUICK).fit(bundle, flipped, state=states[0])
    name = next(k for k in states[0] if k.startswith("mask/"))
    with pytest.raises(ValueError, match=r"state: mask/.*: expected a value, got none"):
        SalUn(**QUICK).fit(bundle, CONCEPT, state={k: v for k, v in states[0].items() if k != name})
