"""Block-wise steps on any model, and the activations that they need not compute again."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from tenfold.ops import zo_sample
from tenfold.optim import FZOO, LOZO, ZOSGD, Blocks, HiZOO, ZOAdam, splitmix64
from tenfold.optim._blocks import chain_of

pytestmark = pytest.mark.filterwarnings("ignore::tenfold.PerformanceWarning")
MODES = ["arithmetic", "exact", "dual"]


def counted(model: nn.Module) -> list[int]:
    """How often layers of the model's chain are computed."""
    count = [0]
    for layer in chain_of(model):
        forward = layer.forward

        def call(*args, forward=forward, **kwargs):
            count[0] += 1
            return forward(*args, **kwargs)

        layer.forward = call
    return count


@pytest.mark.parametrize("order", ["coordinate", "simultaneous"])
@pytest.mark.parametrize("family", ["opt", "llama", "mistral", "roberta"])
def test_kept_activations_change_no_loss_and_save_forwards(language_model, family, order):
    found = {}
    for reuse in (False, True):
        model, closure = language_model(family)
        chain = chain_of(model)
        count = counted(model)
        opt = ZOSGD(
            model.parameters(),
            lr=1e-3,
            restore="exact",
            streams=model,
            blocks=Blocks(model, order=order, reuse_prefix=reuse),
        )
        for _ in range(2):
            count[0] = 0
            opt.step(closure)
        found[reuse] = (opt.last_step.losses, [p.detach().clone() for p in model.parameters()], count[0])
        assert len(chain) == 2
    assert found[True][0] == found[False][0]
    assert all(torch.equal(a, b) for a, b in zip(found[True][1], found[False][1], strict=True))
    assert found[True][2] < found[False][2]


@pytest.mark.parametrize("layers", [8, 16])
def test_about_half_of_the_layers_need_not_be_computed(tagger, layers):
    model, closure = tagger(layers=layers)
    count = counted(model)
    blocks = Blocks(list(model.layers))
    opt = ZOSGD([p for layer in model.layers for p in layer.parameters()], lr=0.01, blocks=blocks)
    opt.step(closure)
    count[0] = 0
    opt.step(closure)
    # block b: layers b-1 (for its output), b, ... in the first probe, b, b+1, ... in the second
    expected = sum(2 * (layers - b) + (b > 0) for b in range(layers))
    assert count[0] == expected
    assert count[0] / (2 * layers * layers) == pytest.approx(0.5, abs=1 / layers)


@pytest.mark.parametrize("restore", MODES)
@pytest.mark.parametrize("order", ["coordinate", "simultaneous"])
@pytest.mark.parametrize("one_sided", [False, True])
def test_a_block_wise_step_by_hand(restore, order, one_sided):
    parts = [torch.tensor([1.0, -2.0]), torch.tensor([0.5]), torch.tensor([0.3, 0.1, 2.0])]
    parts = [p.double() for p in parts]

    class Three(nn.Module):
        def __init__(self, values):
            super().__init__()
            self.weight = nn.Parameter(values)

    modules = [Three(p.clone()) for p in parts]

    def loss_of(values):
        return (torch.cat(values) ** 4).sum() + torch.cat(values).sum() ** 2

    opt = ZOSGD(
        [m.weight for m in modules],
        lr=0.01,
        eps=1e-3,
        restore=restore,
        one_sided=one_sided,
        weight_decay=0.1,
        blocks=Blocks(modules, order=order),
    )
    opt.step(lambda: loss_of([m.weight * 1.0 for m in modules]))
    start, seed = list(parts), splitmix64(0, 0)
    now, losses = list(parts), []
    for b, part in enumerate(start):
        base = list(now) if order == "coordinate" else list(start)
        z = zo_sample(seed, b, 0, n=part.numel()).double()

        def at(scale, base=base, b=b, z=z, part=part):
            return loss_of([*base[:b], part + scale * z, *base[b + 1 :]]).item()

        if one_sided:
            found = [at(0.0), at(1e-3)]
            g = (found[1] - found[0]) / 1e-3
            losses += found if order == "coordinate" or b == 0 else found[1:]
        else:
            found = [at(1e-3), at(-1e-3)]
            g = (found[0] - found[1]) / 2e-3
            losses += found
        now[b] = (1 - 0.001) * part - 0.01 * g * z
    assert opt.last_step.losses == pytest.approx(losses, rel=1e-9)
    for m, expected in zip(modules, now, strict=True):
        assert torch.allclose(m.weight, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("level", "count"), [("block", 6), ("mlp-attn", 6), ("linear", 10)], ids=["block", "mlp-attn", "linear"]
)
def test_levels(tagger, level, count):
    model, closure = tagger()
    opt = ZOSGD(model.parameters(), lr=0.01, streams=model, blocks=Blocks(model, level=level))
    opt.step(closure)
    assert opt._num_blocks == count
    assert len(opt.last_step.losses) == 2 * count
    assert len(opt.last_step.projected_grads) == count
    assert {s.block for s in opt.last_step.scalars} == set(range(count))


def test_attention_and_the_rest_of_a_layer_are_two_blocks(language_model):
    for family in ("opt", "llama", "mistral", "roberta"):
        model, _ = language_model(family)
        whole = ZOSGD(model.parameters(), blocks=Blocks(model))._num_blocks
        halves = ZOSGD(model.parameters(), blocks=Blocks(model, level="mlp-attn"))._num_blocks
        assert halves == whole + 2  # one more for each of the two layers


def test_equal_blocks_have_directions_of_their_own(tagger):
    n = 64 * 64
    directions = []
    for compat in (None, "zo-llm"):
        model, _ = tagger(width=64, layers=2)
        before = [layer[1].weight.detach().clone() for layer in model.layers]
        opt = ZOSGD(
            model.parameters(),
            lr=1.0,
            restore="exact",
            streams=model,
            compat=compat,
            blocks=Blocks(model, order="simultaneous"),
        )
        losses = itertools.cycle((1e-3, -1e-3))
        opt.step(lambda losses=losses: next(losses))
        a, b = (
            (layer[1].weight.detach() - w).flatten() for layer, w in zip(model.layers, before, strict=True)
        )
        directions.append(torch.dot(a, b).item() / (a.norm() * b.norm()).item())
    assert abs(directions[0]) < 4 / n**0.5
    assert directions[1] == pytest.approx(1.0, abs=1e-5)  # the published code draws the same for both


@pytest.mark.parametrize("order", ["coordinate", "simultaneous"])
@pytest.mark.parametrize("restore", ["auto", "exact", "dual"])
def test_an_interrupt_in_any_block_restores_all_of_them(tagger, order, restore):
    for call in range(12):
        model, closure = tagger()
        before = [p.detach().clone() for p in model.parameters()]
        opt = ZOSGD(model.parameters(), lr=0.1, restore=restore, blocks=Blocks(model, order=order))
        left = itertools.count()

        def interrupted(left=left, call=call, closure=closure):
            if next(left) == call:
                raise KeyboardInterrupt
            return closure()

        with pytest.raises(KeyboardInterrupt):
            opt.step(interrupted)
        assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
        assert all("forward" not in layer.__dict__ for layer in model.layers)


@pytest.mark.parametrize(
    ("optimizer", "options"), [(FZOO, {}), (LOZO, {}), (ZOAdam, {}), (HiZOO, {}), (ZOSGD, {"dist": "sphere"})]
)
@pytest.mark.parametrize("restore", MODES)
def test_other_optimizers_train_block_wise(tagger, optimizer, options, restore):
    model, closure = tagger()
    first = closure().item()
    blocks = Blocks(model, order="simultaneous")
    opt = optimizer(model.parameters(), lr=1e-3, restore=restore, streams=model, blocks=blocks, **options)
    for _ in range(15):
        opt.step(closure)
    assert closure().item() < first


def test_parameters_outside_of_the_listed_modules_are_a_block_of_their_own(tagger):
    model, closure = tagger()
    opt = ZOSGD(model.parameters(), lr=0.01, streams=model, blocks=Blocks(list(model.layers)))
    assert opt._num_blocks == 5
    assert opt._layout.block_of[model.embed.weight] == 0
    opt.step(closure)


def test_layers_that_do_not_feed_one_another(tagger):
    model, _ = tagger()
    ids = torch.randint(0, 11, (3, 5))

    def closure():
        x = model.embed(ids)
        return sum(layer(x + i) for i, layer in enumerate(model.layers)).sum()

    opt = ZOSGD(model.parameters(), lr=0.01, blocks=Blocks(model))
    with pytest.raises(
        ValueError, match=r"^blocks: expected layers that feed one another.*reuse_prefix=False"
    ):
        opt.step(closure)
    ZOSGD(model.parameters(), lr=0.01, blocks=Blocks(model, reuse_prefix=False)).step(closure)


def test_micro_batches_have_activations_of_their_own(tagger):
    found = []
    for reuse in (False, True):
        model, _ = tagger()
        batches = [torch.arange(10).view(2, 5) % 11, torch.arange(5).view(1, 5) + 3]
        opt = ZOSGD(model.parameters(), lr=0.01, streams=model, blocks=Blocks(model, reuse_prefix=reuse))
        for _ in range(2):
            opt.step(lambda model=model, batches=batches: sum(model(ids).square().sum() for ids in batches))
        found.append(opt.last_step.losses)
    assert found[0] == found[1]


def test_activations_do_not_outlive_the_step(tagger):
    model, _ = tagger()
    last = model.layers[-1]
    opt = ZOSGD(last.parameters(), lr=0.0, streams=model, blocks=Blocks(list(model.layers)))
    for shift in range(3):
        ids = (torch.arange(15).view(3, 5) + shift) % 11
        opt.step(lambda ids=ids: model(ids).square().sum())
        with torch.no_grad():
            now = model(ids).square().sum().item()
        assert opt.last_step.losses[0] == pytest.approx(now, rel=1e-2)
        assert opt.last_step.losses[0] != now


def test_bad_blocks(tagger):
    model, _ = tagger()
    with pytest.raises(ValueError, match=r"^order: expected one of"):
        Blocks(model, order="random")
    with pytest.raises(ValueError, match=r"^level: expected one of"):
        Blocks(model, level="head")
    with pytest.raises(TypeError, match=r"^blocks"):
        Blocks(3)
    with pytest.raises(TypeError, match=r"^blocks\[1\]: expected a torch.nn.Module"):
        Blocks([model, "layer"])
    with pytest.raises(ValueError, match=r"^blocks: expected a module with a list of layers"):
        ZOSGD(model.parameters(), blocks=Blocks(model.embed))
    with pytest.raises(ValueError, match=r"^blocks: expected modules that hold trainable parameters"):
        ZOSGD([nn.Parameter(torch.ones(3))], blocks=Blocks(model))
    with pytest.raises(ValueError, match=r"^blocks: expected order='simultaneous'.*ZOAdam"):
        ZOAdam(model.parameters(), blocks=Blocks(model))
    with pytest.raises(TypeError, match=r"^blocks: expected Blocks or None"):
        ZOSGD(model.parameters(), blocks=model)
