"""The training loop: schedules, resumption, probes, attacks, head-only training, settings files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tenfold.selection.transfer import networks, training
from tenfold.selection.transfer.attack import Attack, perturb
from tenfold.selection.transfer.augment import View
from tenfold.selection.transfer.checkpoint import Checkpoint
from tenfold.selection.transfer.images import Images
from tenfold.selection.transfer.published import read_mapping, read_published
from tenfold.selection.transfer.recipe import FINETUNE_FF, FINETUNE_LP, PRETRAIN, Recipe

QUICK = Recipe(
    epochs=4, batch=8, optimizer="adam", lr=0.01, weight_decay=0.0, scheduler="cosine", augment=False
)


def blobs(count: int = 30, classes: int = 3, seed: int = 0) -> Images:
    """Images whose class is the place of a bright square."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % classes
    x = 0.2 * torch.rand(count, 1, 8, 8, generator=generator)
    for i, c in enumerate(y.tolist()):
        x[i, 0, 2 * c : 2 * c + 3, 2:5] += 0.7
    return Images(y, tuple("abcdefgh"[:classes]), pixels=x)


def small(classes: int = 3, seed: int = 0, name: str = "small") -> nn.Module:
    torch.manual_seed(seed)
    return networks.build(name, classes, channels=1, side=8)


def test_it_learns_and_counts() -> None:
    images, network = blobs(), small()
    done = training.fit(network, images, replace(QUICK, epochs=20), test=blobs(30, seed=1))
    assert done.steps == 20 * 4 == replace(QUICK, epochs=20).steps(30)
    assert done.losses[-1] < 0.3 * done.losses[0]
    assert done.last == training.accuracy(network, blobs(30, seed=1), QUICK)
    assert done.best >= done.last > 0.9
    features, logits, at = next(training.outputs(network, images, View(), batch=30))
    assert features.shape == (30, 32)
    assert at.tolist() == list(range(30))
    network.eval()
    torch.testing.assert_close(logits, network(images.pixels).detach())


@pytest.mark.parametrize("scheduler", ["cyclic", "cosine", "cosine_with_warmup", "step", "constant"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_an_interrupted_training_goes_on_to_the_same_weights(
    tmp_path: Path, scheduler: Any, optimizer: Any
) -> None:
    recipe = replace(
        QUICK, scheduler=scheduler, optimizer=optimizer, peak_epoch=1, warmup_epochs=2, step_epochs=2
    )
    whole, part = small(), small()
    first = training.fit(whole, blobs(), recipe, seed=5)
    file = Checkpoint(tmp_path / "a.safetensors")

    def stop(epoch: int, network: nn.Module) -> None:
        if epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        training.fit(part, blobs(), recipe, seed=5, checkpoint=file, after_epoch=stop)
    again = small(seed=9)  # other weights, which the checkpoint replaces
    second = training.fit(again, blobs(), recipe, seed=5, checkpoint=file)
    assert second.steps == first.steps
    assert second.losses == first.losses
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_the_published_cycle() -> None:
    """From 1e-4 to 0.5 at the start of epoch 2 and back at the end, momentum the other way."""
    weight = nn.Parameter(torch.zeros(1))
    optimizer = PRETRAIN.make_optimizer([weight])
    schedule = PRETRAIN.make_scheduler(optimizer, 10)
    rates, momenta = [], []
    for _ in range(160):
        rates.append(optimizer.param_groups[0]["lr"])
        momenta.append(optimizer.param_groups[0]["momentum"])
        optimizer.step()
        schedule.step()
    steps = np.arange(160)
    expected = np.interp(steps, [0, 20, 160], [1e-4, 0.5, 1e-4])
    np.testing.assert_allclose(rates, expected, rtol=1e-6)
    np.testing.assert_allclose(momenta, np.interp(steps, [0, 20, 160], [0.9, 0.8, 0.9]), rtol=1e-6)
    assert [PRETRAIN.resolution_at(e) for e in (0, 11, 12, 13, 15)] == [160, 160, 192, 192, 192]
    long = replace(PRETRAIN, epochs=88, ramp=(65, 76))
    assert {long.resolution_at(e) for e in range(66, 76)} == {160, 192}


def test_a_probe_is_training_of_the_head_alone() -> None:
    """On stored features, or through the whole network: the same weights."""
    images, recipe = blobs(20), replace(FINETUNE_LP, epochs=5, batch=8)
    network = small()
    training.fit(network, images, QUICK)
    x = torch.cat([f for f, _, _ in training.outputs(network, images, View())])
    torch.manual_seed(3)
    head = networks.replace_head(network, 3)
    alone = nn.Linear(32, 3)
    alone.load_state_dict(head.state_dict())
    training.probe(x, images.labels, alone, recipe, seed=4)
    before = {k: v.clone() for k, v in network.state_dict().items() if not k.startswith("fc")}
    network.requires_grad_(False)
    head.requires_grad_(True)
    training.fit(network, images, recipe, seed=4)
    torch.testing.assert_close(head.weight, alone.weight)
    assert all(torch.equal(network.state_dict()[k], v) for k, v in before.items())


def test_attacks_stay_near_and_raise_the_loss() -> None:
    images, network = blobs(), small()
    training.fit(network, images, replace(QUICK, epochs=8))
    assert images.pixels is not None
    view = View(mean=(0.3,), std=(0.25,))
    x = view.normalised(images.pixels)
    loss = nn.CrossEntropyLoss()
    for compat in (False, True):
        attack = Attack(0.1, 3, compat)
        network.train()
        buffers = {k: v.clone() for k, v in network.named_buffers()}
        moved = perturb(network, x, images.labels, attack, view, torch.Generator().manual_seed(0))
        assert network.training
        pixels, original = moved * 0.25 + 0.3, images.pixels
        assert float((pixels - original).abs().max()) <= 0.1 + 1e-6
        assert float(pixels.min()) >= -1e-6
        assert float(pixels.max()) <= 1 + 1e-6
        changed = any(not torch.equal(v, buffers[k]) for k, v in network.named_buffers())
        assert changed == compat
        network.load_state_dict(buffers, strict=False)
        network.eval()
        assert loss(network(moved), images.labels) > loss(network(x), images.labels)
    done = training.fit(small(), images, replace(QUICK, attack=Attack(0.05)))
    assert done.losses[-1] < done.losses[0]


def test_a_compat_start_is_small_in_pixels() -> None:
    """The published start is uniform within epsilon in normalised units: epsilon times std in pixels."""

    class Blind(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.zeros(len(x), 3) + 0 * x.sum()  # no gradient: only the start is left

    x = torch.zeros(64, 1, 4, 4) + 0.5
    view = View(mean=(0.0,), std=(0.25,))
    y, generator = torch.zeros(64, dtype=torch.int64), torch.Generator().manual_seed(0)
    far = {
        c: perturb(Blind(), x / 0.25, y, Attack(0.1, 1, c), view, generator) * 0.25 - x for c in (True, False)
    }
    assert 0.024 < float(far[True].abs().max()) <= 0.0251
    assert 0.098 < float(far[False].abs().max()) <= 0.1001


def settings(**changed: Any) -> dict[str, Any]:
    document: dict[str, Any] = {
        "network": {"architecture": "resnet18", "blurpool": 0},
        "dataset": {
            "train_path": "train.beton", "val_path": "val.beton", "num_workers": 12, "in_memory": 0,
            "prune": 0,
            "indices": {"training": None, "testing": None},
        },
        "train": {
            "seed": 43856, "epoch": 16, "batch_size": 1024, "label_smoothing": 0.0,
            "scheduler_type": "cyclic",
            "optimizer": {"lr": 0.5, "weight_decay": 5e-05, "momentum": 0.9},
            "scheduler": {"step": {"step_ratio": None, "step_size": None}, "cyclic": {"lr_peak_epoch": 2}},
            "resolution": {"min_res": 160, "max_res": 192, "end_ramp": 13, "start_ramp": 11},
        },
        "validation": {"batch_size": 512, "resolution": 256, "lr_tta": 0},
        "logging": {"save_intermediate_frequency": None},
    }  # fmt: skip
    for key, value in changed.items():
        node = document
        *path, last = key.split("__")
        for part in path:
            node = node[part]
        node[last] = value
    return document


def test_published_settings_are_taken_unchanged(tmp_path: Path) -> None:
    file = tmp_path / "rn18_16.json"
    file.write_text(json.dumps(settings()))
    found = read_published(file)
    assert found.kind == "pretrain"
    assert found.recipe == PRETRAIN
    assert (found.seed, found.workers, found.train_indices) == (43856, 12, None)
    (tmp_path / "adv_imagenet").mkdir()
    attacked = tmp_path / "adv_imagenet" / "rn18.json"
    attacked.write_text(json.dumps(settings()))
    assert read_published(attacked).recipe.attack == Attack(3 / 255, 3)
    document = settings(network__finetune_method="ff", train__scheduler_type="cosine", train__epoch=200)
    document["train"] |= {"batch_size": 128, "progressive_resize": 0, "static_resolution": {"res": 224}}
    document["train"]["optimizer"] = {"lr": 1e-4, "weight_decay": 0.0}
    del document["train"]["resolution"], document["dataset"]["val_path"], document["validation"]
    document["dataset"]["test_path"] = "test.beton"
    document["test"] = {"batch_size": 1024, "resolution": 224, "lr_tta": 0}
    file.write_text(json.dumps(document))
    found = read_published(file)
    assert (found.kind, found.method) == ("finetune", "ff")
    assert replace(found.recipe, ramp=FINETUNE_FF.ramp) == FINETUNE_FF
    document["network"]["finetune_method"] = "lp"
    document["train"] |= {"epoch": 50}
    document["train"]["optimizer"]["lr"] = 0.01
    file.write_text(json.dumps(document))
    assert replace(read_published(file).recipe, ramp=FINETUNE_LP.ramp) == FINETUNE_LP


def test_wrong_settings_are_named(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    for changed, said in (
        ({"train__epochs": 3}, "expected keys of the published scripts, got 'train.epochs'"),
        ({"train__epoch": None}, "expected a value of train.epoch, got none"),
        ({"train__optimizer__type": "Lion"}, "train.optimizer.type: expected one of 'SGD'"),
        ({"train__scheduler_type": "linear"}, "scheduler: expected one of"),
        ({"train__epoch": 2}, "peak_epoch: expected an epoch between 0 and 2, got 2"),
    ):
        file.write_text(json.dumps(settings(**changed)))
        with pytest.raises(ValueError, match=said):
            read_published(file)
    file.write_text("{")
    with pytest.raises(ValueError, match="expected JSON"):
        read_published(file)
    cfg = {
        "source_train_label_path": "a", "source_val_label_path": "b", "architecture": "resnet18",
        "pretrained_ckpt": "c", "retain_class_nums": "50,100,950",
    }  # fmt: skip
    file.write_text(json.dumps({"cfg": cfg}))
    assert read_mapping(file).retained == (50, 100, 950)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="images: expected at least one image"):
        training.fit(small(), blobs().subset([]), QUICK)
    with pytest.raises(ValueError, match="amp: expected none or bf16 on the CPU, got fp16"):
        training.fit(small(), blobs(), replace(QUICK, amp="fp16"))
    broken = blobs()
    assert broken.pixels is not None
    broken.pixels[3, 0, 0, 0] = float("nan")
    with pytest.raises(RuntimeError, match="loss: expected a finite number"):
        training.fit(small(), broken, QUICK)
    with pytest.raises(ValueError, match="resolution: expected one that grows"):
        Recipe(resolution=200)
    assert training.fit(small(), blobs(), replace(QUICK, amp="bf16")).losses[-1] < 2
