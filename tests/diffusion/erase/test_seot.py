"""SEOT: where words stand, soft weighting, inner updates on attention maps; hooks of `generate`."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from tenfold.diffusion import generate, tiny_bundle
from tenfold.diffusion.encode import encode, tokenize
from tenfold.diffusion.erase import SEOT, Concept, Edit, SoftWeight
from tenfold.diffusion.erase.concept import words_of
from tenfold.diffusion.erase.soft_weight import _Walk, find_tokens, soft_weighted
from tenfold.diffusion.sampling import Batch, Step

CONCEPT = Concept("van_gogh", prompts=("a painting of van gogh style",))
PROMPTS = ["a painting of van gogh style", "a photo of a cat", "van gogh"]


@pytest.fixture(scope="module")
def bundle():
    torch.set_num_threads(1)
    return tiny_bundle()


def test_phrases_are_found_whatever_their_tokens_and_places(bundle):
    """Fixed indices and one token a word would miss all of these."""
    texts = ["a cat", "a photo of nudity, a cat and nudity", "the cat of the dog cat", "nu", ""]
    found, end = find_tokens(bundle, texts, ["nudity", "cat"])
    tokens = tokenize(bundle, texts)
    assert end.tolist() == (tokens.lengths + 1).tolist()
    for row, text, length in zip(found, texts, tokens.lengths.tolist(), strict=True):
        said = bundle.tokenizer.decode(tokens.ids[texts.index(text)][row]).split()
        words = text.replace(",", " ").split()
        assert sorted("".join(said)) == sorted("".join(w for w in words if w in ("nudity", "cat")))
        assert not row[0]
        assert not row[1 + length :].any()
    assert found.sum(1).tolist() == [1, 5, 2, 0, 0]


def test_words_of_a_concept():
    assert words_of(Concept("Van_Gogh", ("A Dogs image in Van Gogh style.",))) == ("Van Gogh",)
    assert words_of(Concept("nudity", ("naked", "nude"))) == ("naked", "nude")
    assert words_of(Concept("Winter")) == ("Winter",)
    assert words_of(Concept("cat, van_gogh", ("a cat", "van gogh style"))) == ("cat", "van gogh")


def test_soft_weighting_takes_away_what_rows_share():
    states = torch.randn(12, 16, generator=torch.Generator().manual_seed(0))
    rows = torch.zeros(12, dtype=torch.bool)
    rows[3:10] = True
    found = soft_weighted(states, rows, 0.4)
    assert torch.equal(found[~rows], states[~rows])
    u, s, v = torch.linalg.svd(states[rows].double(), full_matrices=False)
    expected = u @ torch.diag(s * torch.exp(-0.4 * s)) @ v
    assert torch.allclose(found[rows].double(), expected, atol=1e-6)
    assert torch.allclose(soft_weighted(states, rows, 0.0), states, atol=1e-5)
    shared = torch.ones(7, 16) * 3 + 0.1 * states[rows]
    left = soft_weighted(torch.cat([shared, states]), torch.arange(19) < 7, 1.0)[:7]
    assert float(left.mean(0).norm()) < 1e-3 * float(shared.mean(0).norm())


def test_prompts_without_the_concept_are_left_to_the_bit(bundle):
    edit = SEOT().fit(bundle, CONCEPT)
    assert edit.apply(bundle) is bundle
    assert edit.nbytes == 0
    plain = generate(bundle, PROMPTS, [1, 2, 3], steps=5, guidance=4.0)
    found = generate(bundle, PROMPTS, [1, 2, 3], steps=5, guidance=4.0, **edit.options)
    assert torch.equal(found[1], plain[1])
    assert float((found[0] - plain[0]).abs().max()) > 1e-3
    assert float((found[2] - plain[2]).abs().max()) > 1e-3
    alone = generate(bundle, PROMPTS[2:], [3], steps=5, guidance=4.0, **edit.options)
    assert torch.allclose(alone[0], found[2], atol=1e-4)
    with pytest.raises(TypeError, match="target: expected a Bundle"):
        edit.apply(bundle.to_pipeline())


def test_pictures_do_not_depend_on_which_others_are_changed(bundle):
    hook = SEOT(start=0.0).fit(bundle, CONCEPT).options["hooks"]
    one, other = (
        generate(bundle, [PROMPTS[0], text, text], [1, 2, 3], steps=5, guidance=4.0, hooks=hook)[0]
        for text in ("a photo of a cat", "van gogh cat")
    )
    assert torch.equal(one, other)
    several = generate(
        bundle,
        PROMPTS,
        [1, 2, 3],
        steps=5,
        guidance=4.0,
        hooks=SEOT(start=0.0, rows=8).fit(bundle, CONCEPT).options["hooks"],
    )
    alone = generate(bundle, PROMPTS, [1, 2, 3], steps=5, guidance=4.0, hooks=hook)
    assert torch.allclose(several, alone, atol=1e-4)


def test_saved_hooks_do_the_same(bundle, tmp_path):
    edit = SEOT.style(alpha=0.5, map_size=4).fit(bundle, CONCEPT)
    edit.save(tmp_path / "seot")
    again = Edit.load(tmp_path / "seot")
    assert again.options["hooks"] == edit.options["hooks"]
    assert again.options["hooks"][0].phrases == ("van gogh style",)


def batch_of(bundle, texts, steps):
    states, empty = encode(bundle, texts), encode(bundle, [""])
    return Batch(bundle, tuple(texts), states, empty, torch.full((len(texts),), 3.0), "ddim", steps)


def acted(bundle, soft, texts, number, steps=10, z=None):
    states = encode(bundle, texts)
    z = (
        torch.randn(len(texts), *bundle.latent_shape(), generator=torch.Generator().manual_seed(0))
        if z is None
        else z
    )
    with soft.begin(batch_of(bundle, texts, steps)) as act, torch.no_grad():
        return states, act(Step(number, 500, z, z), states)


def test_weights_act_from_start_and_updates_until_stop(bundle):
    soft = SoftWeight(("van gogh",), start=0.2, stop=0.4)
    changed = []
    for number in range(6):
        states, found = acted(bundle, soft, PROMPTS, number)
        assert torch.equal(found[1], states[1])
        changed.append(found[0])
    plain, weighted = encode(bundle, PROMPTS)[0], changed[5]
    place, end = find_tokens(bundle, PROMPTS[:1], ["van gogh"])
    rows = place[0] | (torch.arange(77) >= end[0])
    assert int(rows.nonzero()[0]) == 4
    assert torch.allclose(weighted, soft_weighted(plain, rows, 1.0), atol=1e-6)
    assert torch.equal(changed[1], plain)
    assert torch.equal(changed[4], weighted)
    assert not torch.equal(changed[2], weighted)
    assert not torch.equal(changed[2], changed[3])
    off = SoftWeight(("van gogh",), start=0.2, stop=0.4, retain=0, erase=0, self_retain=0, self_erase=0)
    assert torch.equal(acted(bundle, off, PROMPTS, 2)[1][0], weighted)


def test_updates_lower_the_loss_and_have_the_published_size(bundle):
    """One update is a step of 20 sqrt(r) down the gradient, r from 1 to 0.1 along the walk."""
    texts = PROMPTS[:1]
    one = SoftWeight(("van gogh",), start=0.0, inner_steps=1)
    states, found = acted(bundle, one, texts, 3)
    z = torch.randn(1, *bundle.latent_shape(), generator=torch.Generator().manual_seed(0))
    place, end = find_tokens(bundle, texts, one.phrases)
    walk = _Walk(one, batch_of(bundle, texts, 10), torch.tensor([0]), place, end)
    from tenfold.diffusion.erase.attention import record

    with record(bundle.unet, "attn1", "attn2") as recorded:
        before = walk._maps(recorded, z, 500, states)
        masks = walk._masks(before[0], z)

        def loss(at):
            return walk._loss(before, walk._maps(recorded, z, 500, at), masks)

        moving = walk.weighted.clone().requires_grad_()
        (slope,) = torch.autograd.grad(loss(moving), moving)
        r = 1 - 0.9 * 3 / 9
        assert torch.allclose(found, walk.weighted - 20 * r**0.5 * slope, atol=1e-5)
        ten = SoftWeight(("van gogh",), start=0.0)
        after = acted(bundle, ten, texts, 0)[1]
        assert float(loss(after)) < float(loss(walk.weighted))


def test_the_loss_is_the_sum_of_distances_of_maps(bundle):
    """Against loops over tokens and positions, as published."""
    texts = PROMPTS[:1]
    soft = SoftWeight(("van gogh",))
    place, end = find_tokens(bundle, texts, soft.phrases)
    walk = _Walk(soft, batch_of(bundle, texts, 10), torch.tensor([0]), place, end)
    made = torch.Generator().manual_seed(0)
    cross = [torch.rand(1, 16, 77, generator=made, dtype=torch.float64) for _ in range(2)]
    own = [torch.rand(1, 16, 16, generator=made, dtype=torch.float64) for _ in range(2)]
    masks = walk._masks(cross[0], torch.zeros(1, 4, 8, 8))
    found = float(walk._loss((cross[0], own[0]), (cross[1], own[1]), masks))

    def far(a, b):
        return float(1 - torch.cosine_similarity(a, b, dim=0))

    expected = 0.0
    for token in range(1, int(end)):
        gone = bool(place[0, token])
        expected += (-0.5 if gone else 1.0) * far(cross[0][0, :, token], cross[1][0, :, token])
        large = torch.nn.functional.interpolate(
            cross[0][0, :, token].view(1, 1, 4, 4), size=(64, 64), mode="bilinear"
        )
        kept = (large >= large.max() * (0.85 if gone else 0.95)).double()
        small = torch.nn.functional.interpolate(kept, size=(4, 4), mode="bilinear").flatten()
        for j in range(16):
            if small[j] > 0:
                expected += (-0.5 if gone else 1.0) * far(own[0][0, :, j], own[1][0, :, j])
    assert found == pytest.approx(expected, rel=1e-10)
    assert float(masks[0].sum()) > 0


@pytest.mark.parametrize("sampler", ["ddim", "lms"])
def test_maps_before_may_come_from_a_walk_of_the_original_prompt(bundle, sampler):
    from tenfold.diffusion.erase import soft_weight

    seen = []

    class Spy(soft_weight._Original):
        def step(self, step):
            read = super().step(step)
            seen.append((step.number, step.z[self.touched], read))
            return read

    big = {"start": 0.2, "stop": 0.6, "step_size": 1e5}
    soft = SoftWeight(("van gogh",), compare="original", rows=2, **big)
    walked = {}

    class Watch:
        @contextmanager
        def begin(self, batch):
            yield self.act

        def act(self, step, states):
            walked[step.number] = step.z[[0, 2]]
            return states

    options = {"steps": 10, "guidance": 4.0, "sampler": sampler}
    generate(bundle, PROMPTS, [1, 2, 3], hooks=[Watch()], **options)
    before = soft_weight._Original
    soft_weight._Original = Spy
    try:
        found = generate(bundle, PROMPTS, [1, 2, 3], hooks=[soft], **options)
    finally:
        soft_weight._Original = before
    assert [number for number, _, _ in seen] == list(range(6))
    for number, edited, original in seen:
        assert torch.allclose(original, walked[number], rtol=1e-4, atol=1e-4)
        apart = float((edited - original).abs().max())
        assert apart < 1e-5 if number <= 2 else apart > 1e-4
    same = generate(bundle, PROMPTS, [1, 2, 3], hooks=[SoftWeight(("van gogh",), **big)], **options)
    assert float((found - same).abs().max()) > 1e-5


@pytest.mark.parametrize("size", [(64, 64), (64, 96), (128, 64)])
def test_maps_of_any_size(bundle, size):
    edit = SEOT().fit(bundle, CONCEPT)
    options = {"height": size[0], "width": size[1], "steps": 5, "guidance": 3.0}
    plain = generate(bundle, PROMPTS[:1], [1], **options)
    found = generate(bundle, PROMPTS[:1], [1], **options, **edit.options)
    assert found.shape == plain.shape
    assert not torch.equal(found, plain)
    wrong = SoftWeight(("van gogh",), start=0.0, map_size=5)
    with pytest.raises(ValueError, match=r"map_size: expected one of \[\d+.*\], got 5"):
        generate(bundle, PROMPTS[:1], [1], **options, hooks=(wrong,))


@pytest.mark.parametrize("kind", ["v_prediction", "sample"])
def test_models_of_any_prediction(kind):
    bundle = tiny_bundle(prediction_type=kind)
    edit = SEOT().fit(bundle, CONCEPT)
    found = generate(bundle, PROMPTS, [1, 2, 3], steps=5, guidance=3.0, **edit.options)
    assert bool(found.isfinite().all())


def test_bad_settings_and_concepts_are_refused_by_name(bundle):
    for settings, message in (
        ({"template": "x"}, r"template: expected a text with \{\}"), ({"start": -0.1}, "start: expected"),
        ({"inner_steps": -1}, "inner_steps: expected"), ({"map_size": 0}, "map_size: expected"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            SEOT(**settings)
    with pytest.raises(ValueError, match="phrases: expected texts to take out"):
        SoftWeight(())
    with pytest.raises(ValueError, match="texts: expected what the prompts say, got states only"):
        generate(bundle, encode(bundle, ["a cat"]), [0], steps=2, hooks=(SoftWeight(("cat",)),))
    broken = tiny_bundle()
    with torch.no_grad():
        broken.unet.conv_in.bias.fill_(float("nan"))
    with pytest.raises(RuntimeError, match="soft_weight: expected finite gradients"):
        generate(broken, ["a cat"], [0], steps=2, hooks=(SoftWeight(("cat",), start=0.0, stop=1.0),))


def test_hooks_are_opened_for_each_batch_and_closed(bundle):
    seen = []

    class Hook:
        @contextmanager
        def begin(self, batch):
            seen.append(("open", batch.texts, len(batch.states), batch.steps))
            yield self.act
            seen.append(("closed",))

        def act(self, step, states):
            seen.append((step.number, int(step.t), list(step.z.shape)))
            return states

    plain = generate(bundle, PROMPTS, [1, 2, 3], steps=2, guidance=2.0, batch=2)
    found = generate(bundle, PROMPTS, [1, 2, 3], steps=2, guidance=2.0, batch=2, hooks=[Hook()])
    assert torch.equal(plain, found)
    one = [(0, 501, [2, 4, 8, 8]), (1, 1, [2, 4, 8, 8])]
    assert seen[:4] == [("open", tuple(PROMPTS[:2]), 2, 2), *one, ("closed",)]
    assert seen[4] == ("open", tuple(PROMPTS[2:]), 1, 2)
    assert len(seen) == 8
    with pytest.raises(TypeError, match="hooks: expected"):
        generate(bundle, PROMPTS[:1], [1], steps=2, hooks=Hook())
    other = encode(bundle, ["a dog"])

    class Swap(Hook):
        def act(self, step, states):
            return other.expand_as(states)

    swapped = generate(bundle, PROMPTS[:1], [1], steps=3, guidance=2.0, hooks=[Swap()])
    assert torch.allclose(swapped, generate(bundle, ["a dog"], [1], steps=3, guidance=2.0), atol=1e-5)


def test_an_attack_s_target_passes_hooks_on(bundle):
    from tenfold.diffusion.attack.target import Case, Sampling, Target, shots

    edit = SEOT().fit(bundle, CONCEPT)
    target = Target(edit.apply(bundle), bundle, **edit.options)
    cases = [Case("0", PROMPTS[0], 1), Case("1", PROMPTS[1], 2)]
    sampling = Sampling(steps=3, sampler="ddim")

    def judge(images):
        return [False] * len(images)

    found = shots(target, judge, cases, [c.prompt for c in cases], sampling)
    ids = shots(target, judge, cases, tokenize(bundle, [c.prompt for c in cases]).ids, sampling)
    plain = shots(Target(bundle), judge, cases, [c.prompt for c in cases], sampling)
    assert torch.equal(found[0].picture, ids[0].picture)
    assert not torch.equal(found[0].picture, plain[0].picture)
    assert torch.equal(found[1].picture, plain[1].picture)
