"""SalUn, EDiff, SHS and concept ablation step by step against loops written out, and published mistakes."""

from __future__ import annotations

import copy

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from tenfold.diffusion import tiny_bundle
from tenfold.diffusion.encode import encode
from tenfold.diffusion.erase import CA, SA, SHS, Concept, ConceptData, EDiff, SalUn
from tenfold.diffusion.erase.ediff import EDiffLoop, multiplier
from tenfold.diffusion.erase.from_data import FIRST, FORGET, INNER, RETAIN
from tenfold.diffusion.erase.masks import unpack_mask
from tenfold.diffusion.erase.shs import turn_away
from tenfold.ops import topk_mask

QUICK = {"iterations": 3, "batch": 2, "lr": 1e-3}
DATA = ConceptData(
    forget_prompts=("a cat van gogh style", "a dog van gogh style", "a church van gogh style"),
    pseudo_prompts=("a photo of a cat", "a photo of a dog", "a photo of a church"),
    retain_prompts=("a truck", "a tench", "a garbage truck", "a parachute"),
    forget_images=torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0)),
    retain_images=torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(1)),
    pseudo_images=torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(2)),
)
CONCEPT = Concept("Van_Gogh", ("van gogh style",), data=DATA)


@pytest.fixture(scope="module")
def bundle():
    torch.set_num_threads(1)
    return tiny_bundle()


class Plain:
    """The two losses of a UNet, written out."""

    def __init__(self, loop):
        self.loop, self.bundle = loop, loop.original
        self.clean = {
            part: self.bundle.encode_images(getattr(DATA, f"{part}_images")).detach() for part in loop.latents
        }

    def forget(self, unet, stream, place, part="forget"):
        drawn = self.loop.draw(stream, place, self.clean[part])
        rows = drawn.rows.tolist()
        own = encode(self.bundle, [DATA.forget_prompts[i] for i in rows]).detach()
        pseudo = encode(self.bundle, [DATA.pseudo_prompts[i] for i in rows]).detach()
        model = self.bundle.replace(unet=unet)
        target = model.predict(drawn.z, drawn.t, pseudo).detach()
        return (model.predict(drawn.z, drawn.t, own) - target).square().mean()

    def noise(self, unet, stream, place, part, prompts):
        drawn = self.loop.draw(stream, place, self.clean[part])
        states = encode(self.bundle, [prompts[i] for i in drawn.rows]).detach()
        found = self.bundle.replace(unet=unet).predict(drawn.z, drawn.t, states)
        return (found - drawn.noise).square().mean()

    def retain(self, unet, place):
        return self.noise(unet, RETAIN, place, "retain", DATA.retain_prompts)


def student(bundle, part: str = ".attn2."):
    unet = copy.deepcopy(bundle.unet)
    return unet, {n: p.requires_grad_() for n, p in unet.named_parameters() if part in n}


def same(edit, chosen) -> None:
    assert set(edit.tensors) == set(chosen)
    for name, value in edit.tensors.items():
        torch.testing.assert_close(value, chosen[name].detach(), rtol=1e-5, atol=1e-7)


def test_salun_is_two_losses_on_masked_weights(bundle):
    """The published code compares a name with tensors, so that its mask is never applied."""
    method = SalUn(**QUICK, alpha=0.5, density=0.3)
    plain = Plain(method.training(bundle, CONCEPT, 0))
    unet, chosen = student(bundle)
    everything = dict(unet.named_parameters())
    for parameter in everything.values():
        parameter.requires_grad_()
    total = {n: torch.zeros_like(p) for n, p in everything.items()}
    for place, count in ((0, 2), (1, 1)):  # three pictures in batches of two
        drawn = plain.loop.draw(FIRST, place, plain.clean["forget"])
        assert len(drawn.rows) == count
        own = encode(bundle, [DATA.forget_prompts[i] for i in drawn.rows]).detach()
        none = encode(bundle, [""] * count).detach()
        model = bundle.replace(unet=unet)
        guided = 8.5 * model.predict(drawn.z, drawn.t, own) - 7.5 * model.predict(drawn.z, drawn.t, none)
        loss = -(guided - drawn.noise).square().mean()
        grads = torch.autograd.grad(loss, list(everything.values()), allow_unused=True)
        for value, grad in zip(total.values(), grads, strict=True):
            value += 0 if grad is None else grad
    flat = torch.cat([g.abs().flatten() for g in total.values()])
    threshold = flat.sort(descending=True).values[round(0.3 * len(flat)) - 1]
    masks = {n: total[n].abs() >= threshold for n in chosen}
    optimizer = torch.optim.Adam(chosen.values(), lr=method.lr)
    for i in range(3):
        loss = plain.forget(unet, FORGET, i) + 0.5 * plain.retain(unet, i)
        optimizer.zero_grad()
        loss.backward()
        for name, parameter in chosen.items():
            parameter.grad *= masks[name]
        optimizer.step()
    edit = method.fit(bundle, CONCEPT)
    same(edit, chosen)
    base = dict(bundle.unet.named_parameters())
    for name, value in edit.tensors.items():
        assert torch.equal(value[~masks[name]], base[name][~masks[name]])
    inside = torch.cat([(edit.tensors[n] != base[n])[masks[n]] for n in chosen])
    assert inside.float().mean() > 0.99
    size = len(flat)
    assert edit.details["mask"]["density"] == pytest.approx(0.3, abs=1 / size)
    applied = sum(int(m.sum()) for m in masks.values()) / sum(m.numel() for m in masks.values())
    assert edit.details["mask"]["trained"] == pytest.approx(applied)


def test_the_mask_is_of_the_largest_gradients_of_the_model_as_it_was(bundle):
    """The published masks mark the smallest, of a model that is trained meanwhile, and without guidance."""
    loop = SalUn(**QUICK, mask_scope="trained").training(bundle, CONCEPT, 0)
    before = {n: p.detach().clone() for n, p in loop.unet.named_parameters()}
    found = loop.saliency()
    assert all(torch.equal(p, before[n]) for n, p in loop.unet.named_parameters())
    assert set(found) == set(loop.chosen)
    loop.iterate()
    chosen = torch.cat([unpack_mask(loop.masks[n], g).flatten() for n, g in found.items()])
    values = torch.cat([g.flatten() for g in found.values()])
    assert int(chosen.sum()) == round(0.4 * len(values))
    assert values[chosen].min() >= values[~chosen].max()
    other = SalUn(**QUICK, mask_scope="trained", mask_guidance=0.0).training(bundle, CONCEPT, 0).saliency()
    ratio = torch.cat([other[n].flatten() for n in found]) / values
    assert ratio.std() / ratio.mean() > 0.1  # not the same ranking by another scale


def test_an_empty_mask_leaves_the_model_as_it_is(bundle):
    edit = SalUn(**QUICK, density=0.0).fit(bundle, CONCEPT)
    base = dict(bundle.unet.named_parameters())
    assert all(torch.equal(value, base[name]) for name, value in edit.tensors.items())
    full = SalUn(**QUICK, density=1.0).fit(bundle, CONCEPT)
    none = SalUn(**QUICK, density=None).fit(bundle, CONCEPT)
    same(full, none.tensors)


@pytest.mark.parametrize("lam", [0.3, None])
def test_ediff_is_the_two_levels_written_out(bundle, lam):
    """The published code throws all outer passes but the last away and shares an Adam between the levels."""
    method = EDiff(**QUICK, lam=lam, eta=0.7, inner_steps=2, inner_lr=5e-3)
    plain = Plain(method.training(bundle, CONCEPT, 0))
    unet, chosen = student(bundle)
    outer = torch.optim.Adam(chosen.values(), lr=method.lr)
    lams = []
    for i in range(3):
        below = copy.deepcopy(unet)
        phi = [p for n, p in below.named_parameters() if n in chosen]
        inner = torch.optim.Adam(phi, lr=5e-3)
        for k in range(2):
            inner.zero_grad()
            plain.forget(below, INNER, 2 * i + k).backward()
            inner.step()
        least = float(plain.forget(below, FORGET, i).detach())
        forget, retain = plain.forget(unet, FORGET, i), plain.retain(unet, i)
        keep = torch.autograd.grad(retain, list(chosen.values()))
        erase = torch.autograd.grad(forget, list(chosen.values()))
        dot = sum((g * h).sum() for g, h in zip(keep, erase, strict=True))
        square = sum((h * h).sum() for h in erase)
        weight = max(0.0, 0.7 - float(dot / square)) if lam is None else lam
        lams.append(weight if float(forget.detach()) > least else 0.0)
        for p, g, h in zip(chosen.values(), keep, erase, strict=True):
            p.grad = g + lams[-1] * h
        outer.step()
    numbers = []
    edit = method.fit(bundle, CONCEPT, progress=lambda *found: numbers.append(found[2]))
    assert [n["lam"] for n in numbers] == pytest.approx(lams, rel=1e-4)
    assert any(lams)
    same(edit, chosen)


def test_ediff_keeps_every_outer_step_and_an_adam_for_each_level(bundle):
    states = []
    method = EDiff(**QUICK)
    method.fit(bundle, CONCEPT, on_state=states.append, state_every=1)
    base = dict(bundle.unet.named_parameters())
    for before, after in zip([None, *states], states, strict=False):
        for name in (k for k in after if k.startswith("param/")):
            was = base[name.removeprefix("param/")] if before is None else before[name]
            step = (after[name] - was).abs().max()
            assert 0 < step <= 3.2 * method.lr  # one step of Adam on from there, not from the start
    steps = {int(v) for k, v in states[-1].items() if k.endswith("/step")}
    assert steps == {3}  # K = 2 inner steps each are not in it


def test_ediff_leaves_the_concept_alone_where_the_constraint_holds(bundle, monkeypatch):
    monkeypatch.setattr(EDiffLoop, "_descend_below", lambda self: 1e9)
    method = EDiff(**QUICK, lam=0.5)
    plain = Plain(method.training(bundle, CONCEPT, 0))
    unet, chosen = student(bundle)
    optimizer = torch.optim.Adam(chosen.values(), lr=method.lr)
    for i in range(3):
        optimizer.zero_grad()
        plain.retain(unet, i).backward()
        optimizer.step()
    same(method.fit(bundle, CONCEPT), chosen)


def test_the_multiplier_is_the_least_that_lets_the_forget_loss_fall():
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        keep = tuple(torch.randn(5, generator=generator) for _ in range(3))
        erase = tuple(torch.randn(5, generator=generator) for _ in range(3))
        lam = multiplier(keep, erase, 0.5)
        square = sum(float((h * h).sum()) for h in erase)
        falls = sum(float(((g + lam * h) * h).sum()) for g, h in zip(keep, erase, strict=True))
        assert falls >= 0.5 * square * (1 - 1e-5)
        assert lam == 0 or falls == pytest.approx(0.5 * square, rel=1e-5)
    assert multiplier(keep, tuple(torch.zeros(5) for _ in range(3)), 0.5) == 0


def test_shs_cuts_the_most_sensitive_weights_of_cross_attention(bundle):
    method = SHS(**QUICK, sparsity=0.8, cut_batches=2, cut_std=0.02)
    loop = method.training(bundle, CONCEPT, 0)
    plain = Plain(loop)
    unet = copy.deepcopy(bundle.unet).requires_grad_()
    names = dict(unet.named_parameters())
    total = {n: torch.zeros_like(p) for n, p in names.items()}
    for place in range(2):
        loss = plain.noise(unet, FIRST, place, "forget", DATA.forget_prompts)
        for value, grad in zip(total.values(), torch.autograd.grad(loss, list(names.values())), strict=True):
            value += grad.abs()
    scores = {n: (total[n] * p).abs().detach() for n, p in names.items()}
    flat = torch.cat([s.flatten() for s in scores.values()])
    threshold = flat.sort(descending=True).values[round(0.2 * len(flat)) - 1]
    loop.cut()
    base, drawn = dict(bundle.unet.named_parameters()), []
    for name, now in loop.unet.named_parameters():
        gone = (scores[name] >= threshold) & (".attn2." in name)
        assert torch.equal(now[~gone], base[name][~gone]), name
        if name.endswith(".bias"):
            assert not now[gone].any()
        else:
            drawn.append(now[gone].detach())
            assert (now[gone] != base[name][gone]).all()
    values = torch.cat(drawn)
    assert values.std() == pytest.approx(0.02, rel=0.1)
    assert values.mean().abs() < 0.002
    assert (
        loop.cut_weights
        == sum(int((scores[n] >= threshold).sum()) for n in scores if ".attn2." in n)
        >= len(values)
    )


def test_shs_repairs_with_both_losses(bundle):
    method = SHS(**QUICK, sparsity=1.0, alpha=0.4)  # nothing is cut
    plain = Plain(method.training(bundle, CONCEPT, 0))
    unet, chosen = student(bundle, "")
    optimizer = torch.optim.Adam(chosen.values(), lr=method.lr)
    for i in range(3):
        optimizer.zero_grad()
        (0.4 * plain.forget(unet, FORGET, i) + plain.retain(unet, i)).backward()
        optimizer.step()
    edit = method.fit(bundle, CONCEPT)
    assert edit.details["cut_weights"] == 0
    assert set(edit.tensors) == set(dict(bundle.unet.named_parameters()))
    # Adam divides by gradients of 1e-8 here and there: those weights may differ by a step.
    far = torch.cat([(edit.tensors[n] - chosen[n].detach()).abs().flatten() for n in chosen])
    assert (far > 1e-6).float().mean() < 0.01


def test_gradients_that_would_bring_the_concept_back_are_turned_away():
    """Against a search: gradient episodic memory takes the least |g + v m|^2 over v >= margin."""
    g, m = [torch.tensor([1.0, -2.0, 0.5])], [torch.tensor([-0.5, 1.5, 2.0])]
    product = float((g[0] * m[0]).sum())
    assert product < 0
    turned = turn_away(g, m, 0.1)[0]
    grid = torch.linspace(0.1, 3, 2901)
    norms = (g[0] + grid[:, None] * m[0]).square().sum(1)
    torch.testing.assert_close(turned, g[0] + grid[norms.argmin()] * m[0], rtol=0, atol=3e-3)
    assert float((turned * m[0]).sum()) >= -1e-3
    torch.testing.assert_close(turn_away(g, m, 2.0)[0], g[0] + 2.0 * m[0])
    assert turn_away(m, m, 0.5) is m


def test_projection_acts_in_the_iterations_it_is_asked_for(bundle):
    settings = {**QUICK, "sparsity": 0.9, "train_method": "xattn", "margin": 1e4}
    plain = SHS(**settings).fit(bundle, CONCEPT)
    turned = SHS(**settings, project_every=1).fit(bundle, CONCEPT)
    assert any(not torch.equal(turned.tensors[n], v) for n, v in plain.tensors.items())


def test_ca_is_the_forget_loss_on_pictures_of_the_anchor(bundle):
    method = CA(**QUICK, weight_decay=0.1)
    plain = Plain(method.training(bundle, CONCEPT, 0))
    assert set(plain.clean) == {"pseudo"}
    unet, every = student(bundle)
    chosen = {n: p for n, p in every.items() if n.endswith(("to_k.weight", "to_v.weight"))}
    optimizer = torch.optim.AdamW(chosen.values(), lr=method.lr, weight_decay=0.1)
    for i in range(3):
        optimizer.zero_grad()
        plain.forget(unet, FORGET, i, "pseudo").backward()
        optimizer.step()
    same(method.fit(bundle, CONCEPT), chosen)


def test_sa_holds_weights_that_retained_pictures_depend_on(bundle):
    method = SA(**QUICK, train_method="xattn", lam=30.0, alpha=0.5, fisher_draws=2)
    loop = method.training(bundle, CONCEPT, 0)
    plain = Plain(loop)
    unet, chosen = student(bundle)
    fisher = {n: torch.zeros_like(p) for n, p in chosen.items()}
    for place in range(8):  # four pictures, twice each
        loss = plain.noise(unet, FIRST, place, "retain", DATA.retain_prompts)
        for f, grad in zip(fisher.values(), torch.autograd.grad(loss, list(chosen.values())), strict=True):
            f += grad**2 / 8
    start = {n: p.detach().clone() for n, p in chosen.items()}
    optimizer = torch.optim.Adam(chosen.values(), lr=method.lr)
    for i in range(3):
        loss = plain.noise(unet, FORGET, i, "pseudo", DATA.forget_prompts) + 0.5 * plain.retain(unet, i)
        loss = loss + 15.0 * sum((fisher[n] * (p - start[n]) ** 2).sum() for n, p in chosen.items())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    same(method.fit(bundle, CONCEPT), chosen)
    free, bound = (SA(**QUICK, train_method="xattn", lam=lam).fit(bundle, CONCEPT) for lam in (0.0, 1e9))

    def held(edit) -> float:
        return sum(float((fisher[n] * (v - start[n]) ** 2).sum()) for n, v in edit.tensors.items())

    assert held(bound) < 0.5 * held(free)


def test_masks_may_be_read_from_bits_of_another_shape_only_by_mistake():
    bits = topk_mask([torch.rand(9)], 0.5)[0]
    with pytest.raises(ValueError, match=r"mask: expected uint8 \[1\], got torch.uint8 \[2\]"):
        unpack_mask(bits, torch.zeros(8))
