"""Weighted training, networks, and the learning of weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tenfold.ops import weighted_cross_entropy
from tenfold.selection.reweight import (
    Labelled,
    MetaRecipe,
    Recipe,
    fit,
    learn_weights,
    load,
    make_model,
    split_meta,
)
from tenfold.selection.reweight.models import CifarResNet
from tenfold.selection.reweight.train import Batches, _augmented

SHORT = Recipe(epochs=3, batch=32, augment=False)


@pytest.fixture(scope="module")
def digits() -> Labelled:
    return load("digits")


def network(data: Labelled, seed: int = 0) -> torch.nn.Module:
    return make_model("mlp", data.shape, len(data.classes), seed)


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(
        torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


def test_weights_of_1_are_erm_bit_for_bit(digits: Labelled) -> None:
    plain = fit(network(digits), digits, SHORT, 0)
    ones = fit(network(digits), digits, SHORT, 0, weights=np.ones(1000, np.float32))
    assert same(plain.model, ones.model)
    assert (plain.correct == ones.correct).all()
    half = fit(network(digits), digits, SHORT, 0, weights=np.full(1000, 0.5, np.float32))
    assert not same(plain.model, half.model)


def test_the_loss_is_the_op_of_that_name(digits: Labelled) -> None:
    """One step of plain SGD from zero momentum moves by the gradient of `weighted_cross_entropy`."""
    w = np.random.default_rng(0).random(1000).astype(np.float32)
    recipe = Recipe(1, 1000, 0.1, 0.0, 0.0, clamp=0.0, augment=False)
    moved = fit(network(digits), digits, recipe, 0, weights=w).model
    start = network(digits)
    loss = weighted_cross_entropy(start(digits.x), torch.from_numpy(digits.y), torch.from_numpy(w))
    loss.backward()
    for before, after in zip(start.parameters(), moved.parameters(), strict=True):
        torch.testing.assert_close(after, before - 0.1 * before.grad, rtol=1e-5, atol=1e-7)


def test_rows_of_weight_0_are_not_there(digits: Labelled) -> None:
    """With every batch the whole set, half of the rows at weight 2 and the others at 0 is the first half."""
    recipe = Recipe(4, 1000, 0.1, weight_decay=0.0, augment=False)
    w = np.repeat(np.float32([2, 0]), 500)
    weighted = fit(network(digits), digits, recipe, 0, weights=w).model
    alone = fit(network(digits), digits, recipe, 0, rows=np.arange(500)).model
    for a, b in zip(weighted.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_gradients_are_clamped(digits: Labelled) -> None:
    w = np.full(1000, 1e4, np.float32)
    recipe = Recipe(1, 1000, 1.0, 0.0, 0.0, clamp=5.0, augment=False)
    start = network(digits)
    moved = fit(network(digits), digits, recipe, 0, weights=w).model
    change = max(
        (a - b).detach().abs().max().item()
        for a, b in zip(start.parameters(), moved.parameters(), strict=True)
    )
    assert change == pytest.approx(5.0, rel=1e-5)


def test_rates() -> None:
    cosine = Recipe(epochs=100, lr=0.1)
    assert cosine.rate(0) == 0.1
    assert cosine.rate(50) == pytest.approx(0.05)
    step = Recipe(epochs=120, lr=0.1, schedule="step")
    assert [round(step.rate(e), 6) for e in (0, 79, 80, 99, 100, 119)] == [0.1, 0.1, 0.01, 0.01, 0.001, 0.001]


def test_an_interrupted_training_goes_on_to_the_same_bits(digits: Labelled, tmp_path: Path) -> None:
    whole = fit(network(digits), digits, Recipe(epochs=6, batch=64, augment=False), 0)
    place = tmp_path / "part.safetensors"

    class Stop(Exception):
        pass

    stopping = network(digits)
    stopping.register_forward_hook(_after(4 * 16 + 3, Stop))
    with pytest.raises(Stop):
        fit(stopping, digits, Recipe(epochs=6, batch=64, augment=False), 0, checkpoint=place, every=2)
    assert place.exists()
    again = fit(
        network(digits), digits, Recipe(epochs=6, batch=64, augment=False), 0, checkpoint=place, every=2
    )
    assert same(whole.model, again.model)
    assert again.steps == whole.steps
    assert [e["loss"] for e in again.curve] == [e["loss"] for e in whole.curve]
    assert not place.exists()


def _after(calls: int, error: type[Exception]):
    left = [calls]

    def hook(*_) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise error

    return hook


def test_what_training_refuses(digits: Labelled) -> None:
    for weights, message in (
        (np.full(1000, -1.0), r"weights: expected finite numbers >= 0, got -1.0 at 0"),
        (np.zeros(1000), "weights: expected a weight above 0, got zeros only"),
        (np.ones(999), "weights: expected 1000 entries"),
        (np.full(1000, np.nan), "weights: expected finite numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            fit(network(digits), digits, SHORT, 0, weights=weights)
    with pytest.raises(ValueError, match="rows: expected at least one row"):
        fit(network(digits), digits, SHORT, 0, rows=np.zeros(0, int))
    with pytest.raises(RuntimeError, match="loss: expected a finite value, got nan in epoch 0"):
        fit(network(digits), digits, Recipe(1, 32, 1e38, clamp=0, augment=False), 0)


def test_augmentation_is_a_crop_with_zeros_and_a_flip() -> None:
    x = torch.arange(1, 2 * 3 * 10 * 12 + 1, dtype=torch.float32).reshape(2, 3, 10, 12)
    seen = set()
    for seed in range(40):
        g, twin = (torch.Generator().manual_seed(seed) for _ in range(2))
        top, left = (torch.randint(0, 9, (2,), generator=twin) for _ in range(2))
        turned = torch.rand(2, generator=twin) < 0.5
        found = _augmented(x, g)
        for i in range(2):
            t, k = int(top[i]), int(left[i])
            wanted = F.pad(x[i], (4, 4, 4, 4))[:, t : t + 10, k : k + 12]
            assert torch.equal(found[i], wanted.flip(2) if turned[i] else wanted)
            seen.add(bool(turned[i]))
    assert seen == {True, False}


def test_images_are_normalised_as_told() -> None:
    x = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    data = Labelled(
        "x", x, np.zeros(4, int), x, np.zeros(4, int), ("a",), None, (0.5, 0.4, 0.3), (0.2, 0.1, 0.3)
    )
    found = Batches(x, data.y, data, "cpu").take(torch.tensor([2]))[0]
    wanted = (x[2].float() / 255 - torch.tensor(data.mean)[:, None, None]) / torch.tensor(data.std)[
        :, None, None
    ]
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_sizes_of_the_networks() -> None:
    """The papers' 0.27, 0.46, 0.85 million; PreActResNet-18 with the BatchNorm before its classifier."""
    for name, classes, count in (
        ("resnet20", 10, 269_722), ("resnet32", 10, 464_154), ("resnet56", 10, 853_018),
        ("preactresnet18", 10, 11_172_170), ("preactresnet18", 100, 11_218_340),
    ):  # fmt: skip
        model = make_model(name, (3, 32, 32), classes, 0)
        assert sum(p.numel() for p in model.parameters()) == count, name
        if name != "resnet56":
            assert model.eval()(torch.zeros(2, 3, 32, 32)).shape == (2, classes)


def test_shortcuts_of_option_a_have_no_parameters() -> None:
    """Every second pixel, zero channels on both sides: with the block's second BatchNorm at 0 that is all."""
    block = CifarResNet(10, 20).layers[3].eval()
    torch.nn.init.zeros_(block.bn2.weight)
    x = torch.rand(2, 16, 8, 8)
    found = block(x)
    assert torch.equal(found[:, 8:24], x[:, :, ::2, ::2])
    assert not found[:, :8].any()
    assert not found[:, 24:].any()


def test_weights_of_a_network_depend_on_its_seed_alone() -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    a, b, c = (make_model("resnet20", (3, 32, 32), 10, seed) for seed in (0, 0, 1))
    assert same(a, b)
    assert not same(a, c)
    assert torch.equal(state, torch.get_rng_state())


def test_networks_that_are_refused() -> None:
    with pytest.raises(ValueError, match=r"model: expected mlp for inputs of shape \(64,\)"):
        make_model("resnet20", (64,), 10, 0)
    with pytest.raises(ValueError, match="model: expected one of"):
        make_model("vgg", (3, 32, 32), 10, 0)
    with pytest.raises(ValueError, match="depth: expected 6n"):
        CifarResNet(10, 21)


META = MetaRecipe(epochs=4, batch=20, augment=False)


def test_learning_is_repeated_to_the_bit(digits: Labelled) -> None:
    core = np.arange(60)
    split = split_meta(digits.y[core], 10, np.random.default_rng(0))
    a, b = (learn_weights(network(digits), digits, core, split, META, 3, everywhere=True) for _ in range(2))
    assert (a.weights == b.weights).all()
    assert a.everywhere.shape == (1000,)
    np.testing.assert_allclose(a.everywhere[core], a.weights, rtol=1e-5)
    assert len(a.history) == 4
    assert ((a.weights > 0) & (a.weights < 1)).all()
    assert not (a.trajectory == a.weights).all()
    c = learn_weights(network(digits), digits, core, split, META, 4)
    assert not (a.weights == c.weights).all()


def test_meta_rows_do_not_train_the_classifier(digits: Labelled) -> None:
    """With V held nearly still, other labels of the meta rows leave the network as it is."""
    core = np.arange(60)
    split = split_meta(digits.y[core], 10, np.random.default_rng(0))
    other = digits.y.copy()
    other[core[split.meta]] = (other[core[split.meta]] + 1) % 10
    changed = Labelled("x", digits.x, other, digits.x_test, digits.y_test, digits.classes, digits.true_y)
    still = MetaRecipe(epochs=4, batch=20, augment=False, meta_lr=1e-30)
    a, b = network(digits), network(digits)
    learn_weights(a, digits, core, split, still, 3)
    learn_weights(b, changed, core, split, still, 3)
    assert same(a, b)


def test_given_meta_rows(digits: Labelled) -> None:
    with pytest.raises(ValueError, match="meta: expected rows whose labels can be trusted"):
        learn_weights(network(digits), digits, np.arange(60), None, META, 0)
    with pytest.raises(ValueError, match="core: expected at least one row"):
        learn_weights(network(digits), digits, np.arange(0), None, META, 0)
