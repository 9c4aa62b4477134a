"""FMN: attention recorded head by head, inversion, re-steering."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from tenfold.diffusion import tiny_bundle
from tenfold.diffusion.encode import embed_ids, encode, encode_ids, tokenize
from tenfold.diffusion.erase import FMN, Concept, ConceptData, Edit
from tenfold.diffusion.erase.attention import attn_maps, grid_of, record
from tenfold.diffusion.erase.bank import rng_of
from tenfold.diffusion.erase.edit import digest
from tenfold.diffusion.erase.fmn import _Training
from tenfold.diffusion.erase.inversion import denoising_loss, pull_norms, slots_of, start_vectors, usual_norm
from tenfold.ops import attn_column_norm

CONCEPT = Concept("van_gogh", prompts=("a painting of van gogh style", "the church of van gogh style"))
SHORT = {"inversion_steps": 4, "iterations": 5, "pictures": 3, "steps": 3, "batch": 2}
QUICK = FMN.small(**SHORT)


@pytest.fixture(scope="module")
def bundle():
    torch.set_num_threads(1)
    return tiny_bundle()


class Stock:
    """An attention processor of diffusers' old kind that keeps its probabilities [B * heads, n, L]."""

    def __init__(self):
        self.kept = []

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, **unused):
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = (
            attn.head_to_batch_dim(x)
            for x in (attn.to_q(hidden_states), attn.to_k(source), attn.to_v(source))
        )
        probs = attn.get_attention_scores(q, k, attention_mask)
        self.kept.append(probs)
        return attn.to_out[1](attn.to_out[0](attn.batch_to_head_dim(probs @ v)))


def test_recorded_attention_is_what_the_layers_compute():
    bundle = tiny_bundle()
    stock = Stock()
    names = [n for n, m in bundle.unet.named_modules() if n.endswith("attn2")]
    for name in names:
        bundle.unet.get_submodule(name).set_processor(stock)
    z, states = torch.randn(3, 4, 8, 8), torch.randn(3, 77, 32)
    with torch.no_grad(), record(bundle.unet, "attn2") as found:
        bundle.predict(z, 300, states)
    assert sorted(r.name for r in found) == sorted(names)
    assert len(stock.kept) == len(found) > 1
    for r, kept in zip(found, stock.kept, strict=True):
        heads = r.q.shape[1]
        assert heads > 1
        probs = (r.q @ r.k.transpose(-1, -2) * r.scale).softmax(-1)
        assert torch.allclose(probs.flatten(0, 1), kept, atol=1e-6)
        columns = torch.rand(3, 77) < 0.1
        chosen = kept.unflatten(0, (3, heads)) * columns[:, None, None]
        assert torch.allclose(attn_column_norm(r.q, r.k, columns, r.scale), chosen.square().sum(), rtol=1e-5)
    with torch.no_grad(), record(bundle.unet, "attn1", "attn2") as both:
        bundle.predict(z, 300, states)
    assert {r.name.split(".")[-1] for r in both} == {"attn1", "attn2"}
    count = found[0].q.shape[2]
    assert attn_maps(found, count).shape == (3, count, 77)
    assert torch.allclose(attn_maps(found, count).sum(-1), torch.ones(3, count).double())
    assert not any(m._forward_hooks for m in bundle.unet.modules())


def test_a_batch_s_loss_is_the_sum_of_its_pictures():
    """Heads are the inner index: a mask repeated head-major would give pictures each other's columns."""
    made = torch.Generator().manual_seed(0)
    q, k = (torch.randn(3, 4, n, 8, generator=made) for n in (16, 10))
    mask = torch.zeros(3, 10, dtype=torch.bool)
    mask[0, 1], mask[1, 3:5], mask[2, 9] = True, True, True
    whole = attn_column_norm(q, k, mask)
    alone = [attn_column_norm(q[i : i + 1], k[i : i + 1], mask[i : i + 1]) for i in range(3)]
    assert float(whole) == pytest.approx(float(sum(alone)), rel=1e-6)
    probs = (q @ k.transpose(-1, -2) * 8**-0.5).softmax(-1).flatten(0, 1)
    tiled = probs.masked_select(mask[:, None, :].repeat(4, 1, 1))
    assert float(whole) != pytest.approx(float(tiled.square().sum()), rel=1e-3)
    with pytest.raises(ValueError, match="mask: expected"):
        attn_column_norm(q, k, mask[:2])
    q, k = q[:1, :2, :4, :3].double().requires_grad_(), k[:1, :2, :5, :3].double().requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: attn_column_norm(a, b, mask[:1, :5]), (q, k))


def test_grids_of_layers():
    assert grid_of(256, 64, 64) == (16, 16)
    assert grid_of(24, 8, 12) == (4, 6)
    assert grid_of(15, 9, 5) == (5, 3)
    with pytest.raises(ValueError, match="positions: expected a halved grid of 8 x 8, got 17"):
        grid_of(17, 8, 8)


def test_placeholders_stand_in_the_place_of_words(bundle):
    words = "cat dog"
    vectors = start_vectors(bundle, words, None, rng_of(0))
    slots = slots_of(bundle, "an painting of {} style", len(vectors))
    text = tokenize(bundle, ["an painting of cat dog style"])
    with torch.no_grad():
        assert torch.equal(slots.states(bundle, vectors), encode_ids(bundle, text.ids))
    assert slots.places.nonzero()[:, 0].tolist() == [4, 5]
    assert slots.end.nonzero()[:, 0].tolist() == list(range(7, 77))
    more = start_vectors(bundle, words, 6, rng_of(0))
    assert torch.equal(more[:2], vectors)
    assert 0.5 < float(more[2:].std()) < 1.5
    assert torch.equal(start_vectors(bundle, words, 1, rng_of(0)), vectors[:1])
    with pytest.raises(ValueError, match="template: expected at most 75 tokens, got 78"):
        slots_of(bundle, "a painting of {}", 75)


def test_no_special_token_is_among_the_first_embeddings(bundle):
    """The published code starts placeholders at the embeddings of the first and the end token as well."""
    vectors = start_vectors(bundle, "cat", 3, rng_of(0))
    for special in (bundle.tokenizer.bos_token_id, bundle.tokenizer.eos_token_id):
        one = embed_ids(bundle, torch.tensor(special))
        assert not any(torch.equal(v, one) for v in vectors)


def test_lengths_are_pulled():
    vectors = torch.tensor([[3.0, 4.0], [0.0, 0.2]])
    pull_norms(vectors, 1e-3, 0.4)
    assert torch.allclose(vectors.norm(dim=1), torch.tensor([5 + 0.1 * (0.4 - 5), 0.2 + 0.1 * 0.2]))
    pull_norms(vectors, 1.0, 0.4)
    assert torch.allclose(vectors.norm(dim=1), torch.tensor([0.4, 0.4]))


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_the_inversion_s_loss_is_in_the_model_s_own_terms(kind):
    bundle = tiny_bundle(prediction_type=kind)
    made = torch.Generator().manual_seed(0)
    clean, noise = (torch.randn(2, 4, 8, 8, generator=made) for _ in range(2))
    t = torch.tensor([40, 700])
    with torch.no_grad():
        states = encode(bundle, ["a cat", "a cat"])
        found = denoising_loss(bundle, clean, noise, t, states)
        z = bundle.schedule.add_noise(clean, noise, t)
        out = bundle.unet_output(z, t, states)
    a = bundle.schedule.alphas_cumprod[t].view(2, 1, 1, 1)
    wanted = {"epsilon": noise, "sample": clean, "v_prediction": a.sqrt() * noise - (1 - a).sqrt() * clean}
    assert float(found) == pytest.approx(float((out - wanted[kind]).square().mean()), rel=1e-4)
    edit = QUICK.fit(bundle, CONCEPT)
    assert torch.isfinite(torch.tensor(edit.details["losses"])).all()


@pytest.mark.parametrize(
    ("method", "chosen"),
    [(QUICK, lambda n: "attn2" in n), (FMN.object(**SHORT), lambda n: True)],
    ids=["style", "object"],
)
def test_it_trains_what_is_chosen_and_resumes_to_the_same_bits(bundle, method, chosen):
    before = digest(bundle.unet), digest(bundle.text_encoder)
    states, numbers = [], []
    whole = method.fit(
        bundle, CONCEPT, seed=2, on_state=states.append, state_every=3,
        progress=lambda *n: numbers.append(n),
    )  # fmt: skip
    assert set(whole.tensors) == {n for n, _ in bundle.unet.named_parameters() if chosen(n)}
    assert (digest(bundle.unet), digest(bundle.text_encoder)) == before
    assert [n[:2] for n in numbers] == [(i, 9) for i in range(1, 10)]
    for state in states[:-1]:  # in the inversion, and in the training
        again = method.fit(bundle, CONCEPT, seed=2, state=state)
        assert again.details["losses"] == whole.details["losses"]
        assert all(torch.equal(again.tensors[k], v) for k, v in whole.tensors.items())
    with pytest.raises(ValueError, match="state: seed: expected 1, got 2"):
        method.fit(bundle, CONCEPT, seed=1, state=states[0])


def test_attention_to_the_concept_falls_and_elsewhere_less(bundle):
    method = FMN.small(
        lr=3e-3, inversion_steps=0, iterations=40, pictures=4, steps=3, template="a painting of {} style",
        end_tokens=False,
    )  # fmt: skip
    edit = method.fit(bundle, CONCEPT)
    losses = edit.details["losses"]
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    text = ["a painting of van gogh style"]
    z = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))

    def looked(model):
        with torch.no_grad(), record(model.unet, "attn2") as found:
            model.predict(z, 400, encode(model, text))
        maps = torch.stack(
            [(r.q @ r.k.transpose(-1, -2) * r.scale).softmax(-1).mean((0, 1, 2)) for r in found]
        )
        return maps.mean(0)

    before, after = looked(bundle), looked(edit.apply(bundle))
    own = slice(4, 4 + int(tokenize(bundle, ["van gogh"]).lengths))
    assert float(after[own].sum()) < 0.5 * float(before[own].sum())
    assert float(after[own.stop :].sum()) > float(before[own.stop :].sum())


def test_pictures_own_prompts_may_be_the_template(bundle):
    """Each row of a batch then has columns of its own."""
    concept = Concept("Cat", data=ConceptData(("a cat", "the painting of a CAT, a cat"), forget_images=None))
    training = _Training(FMN.small(**SHORT), bundle, concept, 0)
    assert [one.places.nonzero()[:, 0].tolist() for one in training.slots] == [[2], [5]]
    before = encode(bundle, ["a cat", "the painting of a CAT, a cat"])
    for one, states in zip(training.slots, before, strict=True):
        assert torch.allclose(one.states(bundle, training.vectors.detach())[0], states, atol=1e-6)
    with pytest.raises(
        ValueError, match="template: expected one, or prompts that name 'cat', got 'a concat'"
    ):
        _Training(FMN.small(**SHORT), bundle, Concept("cat", data=ConceptData(("a cat", "a concat"))), 0)


def test_pictures_are_the_concept_s_own_where_it_has_some(bundle):
    made = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    data = ConceptData(("a cat", "the cat"), forget_images=made)
    concept = Concept("cat", data=data)
    edit = QUICK.fit(bundle, concept)
    assert edit.details["pictures"] == 2
    assert edit.details["concept"]["data"]["forget_images"] == data.about()["forget_images"]
    other = Concept("cat", data=ConceptData(("a cat", "the cat"), forget_images=1 - made))
    assert QUICK.fit(bundle, other).details["losses"] != edit.details["losses"]
    with pytest.raises(ValueError, match="forget_images: expected pictures"):
        QUICK.fit(bundle, Concept("cat", data=ConceptData(("a cat",), forget_images=made[:1, :, :32])))


def test_saved_edits_apply_to_a_pipeline(bundle, tmp_path):
    edit = QUICK.fit(bundle, CONCEPT)
    edit.save(tmp_path / "fmn")
    pipe = tiny_bundle().to_pipeline()
    before = digest(pipe.unet)
    again = Edit.load(tmp_path / "fmn")
    again.apply(pipe)
    assert digest(pipe.unet) == digest(edit.apply(bundle).unet) != before
    again.undo(pipe)
    assert digest(pipe.unet) == before


def test_not_a_number_stops(bundle):
    for part, name in (("conv_out.bias", "inversion loss"), ("conv_in.bias", "loss")):
        broken = tiny_bundle()
        with torch.no_grad():
            broken.unet.get_parameter(part).fill_(float("nan"))
        method = FMN(**{**vars(QUICK), "inversion_steps": 4 if name != "loss" else 0})
        data = ConceptData(("a cat",), forget_images=torch.rand(1, 3, 64, 64))
        with pytest.raises(RuntimeError, match=f"^{name}: expected a finite number, got nan at iteration 0"):
            method.fit(broken, Concept("cat", data=data))


def test_the_usual_length_is_the_table_s(bundle):
    table = bundle.text_encoder.get_input_embeddings().weight
    assert usual_norm(bundle) == pytest.approx(float(table.norm(dim=1).mean()), rel=1e-5)


def test_bad_settings_are_refused_by_name():
    for settings, message in (
        ({"template": "an image"}, r"template: expected a text with one \{\}"),
        ({"train_method": "attn9"}, "train_method: expected"), ({"clip": 0.0}, "clip: expected"),
        ({"placeholders": 0}, "placeholders: expected"), ({"norm": -1.0}, "norm: expected"),
        ({"iterations": 0}, "iterations: expected"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            FMN(**settings)
    with pytest.raises(TypeError, match="end_tokens: expected True or False"):
        FMN(end_tokens=1)
