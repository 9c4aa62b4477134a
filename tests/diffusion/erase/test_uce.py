"""UCE against dense solves, its texts, and what can be done with closed-form edits."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from tenfold.diffusion import tiny_bundle
from tenfold.diffusion.encode import encode
from tenfold.diffusion.erase import UCE, Concept, Edit, joined, uce_factors
from tenfold.diffusion.erase.closed import closed_value, composed, inverted, shortened
from tenfold.diffusion.erase.uce import OBJECT_TEMPLATES, cross_attention_matrices

SCALES = {"lam": 0.5, "erase_scale": 0.7, "retain_scale": 0.3}


@pytest.fixture(scope="module")
def bundle():
    torch.set_num_threads(1)
    return tiny_bundle()


def rows(seed: int = 0, dtype=torch.float64):
    made = torch.Generator().manual_seed(seed)
    w, old, new, keep = (
        torch.randn(n, 48, generator=made, dtype=torch.float64).to(dtype) for n in (64, 14, 14, 108)
    )
    return w, old, new, keep


def dense(w, old, new, keep, lam, erase_scale, retain_scale):
    """The normal equations as the paper has them, in float64."""
    w, old, new, keep = (x.double() for x in (w, old, new, keep))
    gram = lam * torch.eye(w.shape[1]).double() + erase_scale * old.T @ old + retain_scale * keep.T @ keep
    right = lam * w + erase_scale * (new @ w.T).T @ old + retain_scale * (w @ keep.T) @ keep
    return torch.linalg.solve(gram, right.T).T


def test_factors_give_the_dense_solution():
    w, old, new, keep = rows()
    expected = dense(w, old, new, keep, **SCALES)
    right, left = uce_factors(old, new, keep, **SCALES)
    assert float((closed_value(w, right, left) - expected).abs().max()) < 1e-10
    w, old, new, keep = rows(dtype=torch.float32)
    expected = dense(w, old, new, keep, **SCALES)
    found = closed_value(w, *uce_factors(old, new, keep, **SCALES))
    assert found.dtype == torch.float32
    assert float((found - expected).norm() / expected.norm()) < 2e-6


def test_nothing_to_change_changes_nothing_to_the_bit():
    w, old, _, keep = rows(1, torch.float32)
    assert torch.equal(closed_value(w, *uce_factors(old, old, keep, **SCALES)), w)


def test_kept_rows_move_less_the_more_they_count():
    w, old, new, keep = rows(2)
    keep = keep[:20]  # fewer than columns: else nothing could be erased
    moved = []
    for scale in (1e-2, 1.0, 1e2, 1e4, 1e6):
        change = closed_value(w, *uce_factors(old, new, keep, **{**SCALES, "retain_scale": scale})) - w
        moved.append(float((change @ keep.T).norm() / (w @ keep.T).norm()))
    assert moved == sorted(moved, reverse=True)
    assert moved[-1] < 1e-4


def test_rows_that_count_several_times_are_rows_given_several_times():
    _, old, new, keep = rows(3)
    weight = torch.tensor([3.0, *[1.0] * 9])
    repeated = torch.cat([keep[:1], keep[:1], keep[:10]])
    a, _ = uce_factors(old, new, keep[:10], **SCALES, keep_weight=weight)
    b, _ = uce_factors(old, new, repeated, **SCALES)
    assert torch.allclose(a, b, rtol=1e-12, atol=1e-14)
    with pytest.raises(ValueError, match="keep_weights: expected"):
        uce_factors(old, new, keep[:10], **SCALES, keep_weight=weight[1:])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_are_rounded_once(dtype):
    """Text states with CLIP's outliers (28 and -33 in every first token): products of them in half precision
    are what turns a model's pictures black."""
    made = torch.Generator().manual_seed(4)
    w = (torch.randn(40, 64, generator=made) * 0.05).to(dtype)
    states = torch.randn(60, 12, 64, generator=made)
    states[:, 0] = states[0, 0]
    states[:, 0, 5], states[:, 0, 9] = 28.0, -33.0
    states = states.to(dtype)
    old, new, keep = states[0, 2:], states[1, 2:], states[2:].flatten(0, 1)
    scales = {"lam": 1.0, "erase_scale": 0.05, "retain_scale": 0.1}
    expected = dense(w, old, new, keep, **scales)
    found = closed_value(w, *uce_factors(old, new, keep, **scales)).double()
    ulp = torch.nextafter(found.to(dtype).abs(), torch.tensor(torch.inf, dtype=dtype)).double() - found.abs()
    assert bool(((found - expected).abs() <= ulp).all())
    assert float((found - w.double()).abs().max()) > 1e-3


def test_a_singular_system_is_told_by_its_pivot():
    _, old, new, keep = rows(5)
    with pytest.raises(RuntimeError, match=r"lam: expected a positive definite .* pivot .* lam = 0"):
        uce_factors(old[:5], new[:5], keep[:10], **{**SCALES, "lam": 0.0})
    whole, _ = uce_factors(old, new, keep, **{**SCALES, "lam": 0.0})  # rows that span all columns will do
    assert bool(whole.isfinite().all())


def test_edits_compose_invert_and_shorten():
    w, old, new, keep = rows(6)
    first = uce_factors(old[:6], new[:6], keep, **SCALES)
    second = uce_factors(old[6:], new[6:], keep, **SCALES)
    step = closed_value(closed_value(w, *first), *second)
    assert torch.allclose(closed_value(w, *composed([first, second])), step, rtol=1e-11, atol=1e-12)
    assert torch.allclose(closed_value(closed_value(w, *first), *inverted(*first)), w, atol=1e-12)
    right, left, error = shortened(*first, 0.0)
    assert len(right) == 6
    assert error < 1e-12
    assert torch.allclose(closed_value(w, right, left), closed_value(w, *first), atol=1e-11)
    twice = (torch.cat([first[0], first[0]]), torch.cat([first[1], -0.5 * first[1]]))  # rank 6 in 12 rows
    right, left, error = shortened(*twice, 1e-9)
    assert len(right) == 6
    assert torch.allclose(closed_value(w, right, left), closed_value(w, *twice), atol=1e-10)
    right, left, error = shortened(*first, 0.8)
    full, part = first[1].T @ first[0], left.T @ right
    assert 0 < len(right) < 6
    assert error == pytest.approx(float((full - part).norm() / full.norm()), rel=1e-6)
    assert shortened(first[0], 0 * first[1], 0.1)[0].shape == (0, 48)
    with pytest.raises(RuntimeError, match="edit: expected one that has an inverse"):
        inverted(torch.eye(3).double()[:1], -torch.eye(3).double()[:1])


def cell(style: str) -> tuple[str, ...]:
    return tuple(f"a {thing} painting of {style}" for thing in ("cat", "dog"))


def test_the_bundle_s_own_prompts_are_edited_as_they_are(bundle):
    concept = Concept("Truck", cell("truck"), cell("garbage"), retain=("", *cell("church")))
    found = UCE.small().fit(bundle, concept)
    plain = UCE.small(templates=("{}",)).fit(bundle, concept)
    assert torch.equal(found.tensors["R"], plain.tensors["R"])
    bare = UCE().fit(bundle, Concept("cat"))
    generic = UCE(templates=OBJECT_TEMPLATES).fit(bundle, Concept("cat"))
    assert torch.equal(bare.tensors["R"], generic.tensors["R"])
    old, new = (encode(bundle, list(cell(s)))[:, 5:] for s in ("truck", "garbage"))
    edited = found.apply(bundle)
    for name, w in cross_attention_matrices(bundle.unet).items():
        after = dict(edited.unet.named_parameters())[name]
        gap = (new - old) @ w.T
        left = new @ w.T - old @ after.T
        assert float(left.norm()) < 0.3 * float(gap.norm())
        kept = encode(bundle, list(cell("church")))
        assert float((kept @ (after - w).T).norm()) < 0.1 * float((kept @ w.T).norm())


def test_a_guide_stands_in_as_it_is(bundle):
    concept = Concept("cat", retain=("a dog",))
    guided = UCE(guide="a painting", templates=("a {}", "the {}")).fit(bundle, concept)
    prompts = Concept("x", ("a cat", "the cat"), ("a painting",), retain=("a dog",))
    same = UCE(templates=("{}",)).fit(bundle, prompts)
    assert torch.equal(guided.tensors["R"], same.tensors["R"])
    assert torch.equal(guided.tensors["D"], same.tensors["D"])
    with pytest.raises(TypeError, match="guide: expected a text or None"):
        UCE(guide=3)
    with pytest.raises(ValueError, match="templates: expected one of 'bundle'"):
        UCE(templates="canvas")


def test_published_settings():
    style, thing = UCE.style(), UCE.object(guide="A Dogs image")
    assert (style.lam, style.erase_scale, style.retain_scale) == (1.0, 0.05, 0.1)
    assert (thing.lam, thing.erase_scale, thing.retain_scale) == (10.0, 0.01, 0.1)
    assert "art by {}" in style.templates
    assert thing.guide == "A Dogs image"


def test_the_first_token_is_kept_once_with_its_count(bundle):
    concept = Concept("cat", retain=("a dog", "the church", "a painting of garbage"))
    old = encode(bundle, ["cat"])[0]
    keep = encode(bundle, list(concept.retain)).flatten(0, 1)
    method = UCE(templates=("{}",), keep=())
    found = method.fit(bundle, concept).tensors
    expected, _ = uce_factors(
        old[1:], encode(bundle, [""])[0][1:], keep, lam=1.0, erase_scale=0.05, retain_scale=0.1
    )
    assert torch.allclose(found["R"].double(), expected, rtol=1e-4, atol=1e-7)
    assert method._keep(bundle, concept, old)[0].shape[0] == 1 + 3 * 76


def test_truncated_edits_are_smaller_and_say_what_they_left_out(bundle):
    concept = Concept("cat", anchors=("dog",), retain=("a church",))
    whole, short = (UCE(truncate=t).fit(bundle, concept) for t in (0.0, 1e-3))
    assert short.nbytes < 0.3 * whole.nbytes
    assert short.details["rank"] == len(short.tensors["R"])
    assert 0 < short.details["left_out"] < 3e-2
    name = next(iter(cross_attention_matrices(bundle.unet)))
    a, b = (dict(e.apply(bundle).unet.named_parameters())[name] for e in (whole, short))
    w = dict(bundle.unet.named_parameters())[name]
    assert float((a - b).norm()) < 0.05 * float((a - w).norm())


def test_edits_undo_bit_for_bit_and_invert_to_a_rounding(bundle, tmp_path):
    one = UCE(erase_scale=1.0).fit(bundle, Concept("cat", anchors=("dog",), retain=("a church",)))
    two = UCE(erase_scale=1.0).fit(bundle, Concept("garbage", anchors=("truck",), retain=("a church",)))
    both = one.compose(two)
    both.save(tmp_path / "both")
    stepped = two.apply(one.apply(bundle)).unet
    merged = Edit.load(tmp_path / "both").apply(bundle).unet
    back = one.inverse().apply(one.apply(bundle)).unet
    for name, w in cross_attention_matrices(bundle.unet).items():
        a, b, c = (dict(u.named_parameters())[name] for u in (stepped, merged, back))
        assert torch.allclose(a, b, atol=2e-7)
        assert not torch.equal(a, w)
        step = torch.nextafter(w.abs().max(), torch.tensor(torch.inf)) - w.abs().max()
        assert float((c - w).abs().max()) <= float(step)
    pipe = tiny_bundle().to_pipeline()
    one.apply(pipe)
    one.undo(pipe)
    assert all(
        torch.equal(p, q) for p, q in zip(pipe.unet.parameters(), bundle.unet.parameters(), strict=True)
    )
    with pytest.raises(ValueError, match="edits: expected closed forms on the same layers"):
        one.compose(UCE(technique="tensor").fit(bundle, Concept("cat")))
    with pytest.raises(ValueError, match="kind: expected a closed form, got weights"):
        UCE(technique="tensor").fit(bundle, Concept("cat")).inverse()


def test_texts_are_kept_beside_the_concept_s(bundle):
    bare = Concept("cat", anchors=("dog",))
    told = Concept("cat", anchors=("dog",), retain=("", "a church"))
    assert torch.equal(
        UCE(keep=("", "a church")).fit(bundle, bare).tensors["R"], UCE(keep=()).fit(bundle, told).tensors["R"]
    )
    assert torch.equal(UCE().fit(bundle, told).tensors["R"], UCE(keep=()).fit(bundle, told).tensors["R"])
    assert not torch.equal(UCE().fit(bundle, bare).tensors["R"], UCE(keep=()).fit(bundle, bare).tensors["R"])
    with pytest.raises(TypeError, match="keep: expected texts"):
        UCE(keep=(3,))


def test_joined_concepts_are_erased_together(bundle):
    """What one becomes may name the other: then it becomes what the other says."""
    cat = Concept(
        "cat", ("a cat photo", "a cat painting"), ("a dog photo", "a dog painting"), ("a church", "van")
    )
    art = Concept(
        "painting",
        ("a cat painting", "a dog painting"),
        ("a cat photo", "a dog photo"),
        ("van", "a cat photo"),
    )
    both = joined(cat, art)
    assert both.name == "cat, painting"
    assert dict(both.pairs) == {
        "a cat photo": "a dog photo", "a cat painting": "a dog photo", "a dog painting": "a dog photo",
    }  # fmt: skip
    assert both.retain == ("a church", "van")
    edit = UCE.small().fit(bundle, both)
    assert edit.details["rows"] == len(edit.tensors["R"])
    with pytest.raises(ValueError, match="anchors: expected texts that are not erased themselves"):
        joined(Concept("a", ("cat",), ("dog",)), Concept("b", ("dog",), ("cat",)))
    with pytest.raises(ValueError, match="concepts: expected one or more"):
        joined()


def test_rows_are_those_of_the_words_that_differ():
    from tenfold.diffusion.erase.uce import aligned_rows, last_rows

    start, end, image, style, cats, sea, horses = 90, 91, 1, 2, 3, 4, 5
    old = [start, cats, image, style, end, end, end, end]
    assert aligned_rows(old, [start, horses, image, style, end, end, end, end], 3, 3) == (
        [1, 2, 3, 4, 5, 6, 7], [1, 2, 3, 4, 5, 6, 7]
    )  # fmt: skip
    # a concept of two words and an anchor of one: both words become it, what follows keeps its partner
    ours, theirs = aligned_rows([start, cats, sea, image, style, end, end, end],
                                [start, horses, image, style, end, end, end, end], 4, 3)  # fmt: skip
    assert (ours, theirs) == ([1, 2, 3, 4, 5, 6, 7], [1, 1, 2, 3, 4, 5, 6])
    assert aligned_rows(old, old, 3, 3) == ([], [])
    # the words in front that are common keep their states: attention is causal, they are the same
    assert aligned_rows([start, image, cats, end, end], [start, image, sea, end, end], 2, 2)[0] == [2, 3, 4]
    assert last_rows(old, old, 3, 3) == ([3, 4, 5, 6, 7], [3, 4, 5, 6, 7])


def test_a_concept_in_front_is_erased_only_where_its_own_word_is():
    pytest.importorskip("skimage")
    from tenfold.diffusion.canvas import answer_set, judge_answers, score
    from tenfold.diffusion.canvas.mini import MINI, mini_bundle, mini_judges
    from tenfold.diffusion.erase import UCE, canvas_concept

    bundle, judges = mini_bundle(), mini_judges()
    concept = canvas_concept(MINI, "Horses")
    found = []
    for kind in ("aligned", "last"):
        edit = UCE.small(rows=kind).fit(bundle, concept)
        cells = [cell for cell in MINI.cells if cell[1] == "Horses" or cell[0] == "Winter"]
        cells += [cell for cell in MINI.cells if cell[0] != "Winter" and cell[1] == "Coffee"]
        rows = answer_set(
            bundle, MINI, edit=edit, target="Horses", cells=list(dict.fromkeys(cells)), seeds=[188]
        )
        found.append(score(judge_answers(rows, *judges)).ua.value)
    assert found[0] == 1.0
    assert found[1] < 0.5


def test_unknown_keywords_are_refused():
    from tenfold.diffusion.erase import SEOT, UCE, Concept, NegativePrompt, SafeLatent

    for eraser in (UCE(), SEOT(), NegativePrompt(), SafeLatent()):
        with pytest.raises(TypeError, match="sead"):
            eraser.fit(None, Concept("dog"), sead=1)
