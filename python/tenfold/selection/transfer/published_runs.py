"""Single trainings from settings files of the published code: pretraining, transfer, training from scratch.

Each writes a folder: network.safetensors, metrics.json (accuracies by epoch, steps, seconds), and, while it
runs, epochs.safetensors to go on from after an interruption.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tenfold import _checks
from tenfold.runs.files import replacing, write_json
from tenfold.selection.transfer import training
from tenfold.selection.transfer.checkpoint import Checkpoint
from tenfold.selection.transfer.images import Images, load_images
from tenfold.selection.transfer.index_files import read_indices
from tenfold.selection.transfer.networks import build, head_of, load_weights, replace_head
from tenfold.selection.transfer.published import Settings, read_published
from tenfold.selection.transfer.work import view_for_recipe

__all__ = ["Trained", "finetune", "pretrain"]


@dataclass
class Trained:
    """A finished training: its network, test accuracy after the last and in the best epoch, and cost."""

    network: nn.Module
    path: Path
    last: float
    best: float
    images: int
    steps: int
    seconds: float


def pretrain(
    settings: str | Path, out: str | Path, *, train_path: str | None = None, val_path: str | None = None,
    indices: str | Path | None = None, val_indices: str | Path | None = None, classes: int | None = None,
    epochs: int | None = None, compat: bool = False, amp: str = "none", device: str = "cpu",
    workers: int | None = None, say: Callable[[str], None] = print,
) -> Trained:  # fmt: skip
    """Train a network on a source, or on the part of it that an index file names.

    Args:
        settings: JSON file of the published code (imagenet_train_from_scratch/..., adv_...,
            downstream_train_from_scratch/...).
        out: folder. If it holds an interrupted training, that goes on.
        train_path, val_path: instead of the paths in the file; anything `load_images` takes.
        indices, val_indices: index files with identifiers of the images to use.
        classes: outputs of the network; by default as many as the training images have names of.
        epochs: instead of the file's.
        compat: attack as the published code does (see `Attack`).
        amp: "fp16" on CUDA is what the published code does.
        device, workers: where, and how many processes read images (by default as the file says).
        say: is told a line per epoch.

    Raises:
        ValueError, FileNotFoundError, TypeError: an argument or a file is wrong (named).
    """
    found = _adjusted(read_published(settings), epochs, amp, compat)
    if found.kind == "finetune":
        _checks.fail(
            ValueError, "settings", "a file for training from first weights", f"{settings} (finetune)"
        )
    images = load_images(train_path or found.train_path, "train")
    test = load_images(val_path or found.test_path, "val" if found.kind == "pretrain" else "test")
    chosen, held = indices or found.train_indices, val_indices or found.test_indices
    count = classes or max(len(images.classes), len(test.classes))
    images = images if chosen is None else images.with_identifiers(read_indices(chosen))
    test = test if held is None else test.with_identifiers(read_indices(held))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(found.seed)
        network = build(found.architecture, count, blurpool=found.blurpool)
    return _trained(network, images, test, found, Path(out), device, workers, say)


def finetune(
    settings: str | Path, out: str | Path, *, weights: str | Path, train_path: str | None = None,
    test_path: str | None = None, source_classes: int = 1000, compat_head: bool = False,
    epochs: int | None = None, amp: str = "none", device: str = "cpu", workers: int | None = None,
    say: Callable[[str], None] = print,
) -> Trained:  # fmt: skip
    """Transfer a pretrained network to a target: linear probe or fine-tuning, as the settings file says.

    Args:
        settings: JSON file of the published code (imagenet_transfer_to_downstream/...).
        out: folder.
        weights: .safetensors of the pretrained network.
        train_path, test_path: instead of the paths in the file.
        source_classes: outputs of the pretrained network.
        compat_head: keep the pretrained head with all its outputs and train it on the first ones, as the
            published code does; else a new head with one output per target class.
        epochs, amp, device, workers, say: as in :func:`pretrain`.
    """
    found = _adjusted(read_published(settings), epochs, amp, False)
    if found.kind != "finetune":
        _checks.fail(ValueError, "settings", "a file for transfer (network.finetune_method)", str(settings))
    images = load_images(train_path or found.train_path, "train")
    test = load_images(test_path or found.test_path, "test")
    network = build(found.architecture, source_classes, blurpool=found.blurpool)
    load_weights(network, weights)
    if not compat_head:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(found.seed)
            replace_head(network, max(len(images.classes), len(test.classes)))
    if found.method == "lp":
        network.requires_grad_(False)
        head_of(network).requires_grad_(True)
    return _trained(network, images, test, found, Path(out), device, workers, say)


def _adjusted(found: Settings, epochs: int | None, amp: str, compat: bool) -> Settings:
    from tenfold.selection.transfer.config import stretched

    recipe = found.recipe if epochs is None else stretched(found.recipe, epochs)
    if compat and recipe.attack is not None:
        recipe = replace(recipe, attack=replace(recipe.attack, compat=True))
    changed: Any = amp
    return replace(found, recipe=replace(recipe, amp=changed))


def _trained(
    network: nn.Module, images: Images, test: Images, found: Settings, out: Path, device: str,
    workers: int | None, say: Callable[[str], None],
) -> Trained:  # fmt: skip
    recipe, began = found.recipe, time.monotonic()
    course: list[dict[str, float]] = []
    epochs = Checkpoint(out / "epochs.safetensors")
    readers = found.workers if workers is None else workers

    def told(epoch: int, network: nn.Module) -> None:
        right = training.accuracy(network, test, recipe, device=device, workers=readers)
        course.append({"epoch": epoch, "accuracy": right})
        say(f"epoch {epoch}/{recipe.epochs}: {100 * right:.2f} % of {len(test):,} test images")

    done = training.fit(
        network, images, recipe, seed=found.seed, view=view_for_recipe(images, recipe), device=device,
        checkpoint=epochs, workers=readers, after_epoch=told,
    )  # fmt: skip
    network.cpu().eval()
    from safetensors.torch import save_file

    with replacing(out / "network.safetensors") as aside:
        save_file({k: v.contiguous() for k, v in network.state_dict().items()}, aside)
    last = course[-1]["accuracy"] if course else training.accuracy(network, test, recipe, workers=readers)
    best = max([last, *(entry["accuracy"] for entry in course)])
    write_json(
        out / "metrics.json",
        {"schema": "tenfold.training/1", "kind": found.kind, "architecture": found.architecture,
         "images": len(images), "steps": done.steps, "losses": done.losses, "epochs": course, "last": last,
         "best": best, "processor_seconds": done.seconds, "seconds": time.monotonic() - began},
    )  # fmt: skip
    epochs.path.unlink(missing_ok=True)
    return Trained(network, out, last, best, len(images), done.steps, done.seconds)
