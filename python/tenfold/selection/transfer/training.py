"""The training loop of surrogates, pretraining, fine-tuning and linear probes; accuracy; features."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tenfold import _checks
from tenfold.selection.transfer.attack import perturb
from tenfold.selection.transfer.augment import View
from tenfold.selection.transfer.checkpoint import Checkpoint
from tenfold.selection.transfer.images import Images
from tenfold.selection.transfer.networks import head_of
from tenfold.selection.transfer.recipe import Recipe

__all__ = ["Fitted", "accuracy", "fit", "hits", "outputs", "probe", "view_of"]


@dataclass
class Fitted:
    """What a training took: optimiser steps, processor seconds of this process, loss of each epoch, and the
    best and last test accuracy (NaN without a test set)."""

    steps: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)
    best: float = float("nan")
    last: float = float("nan")


def fit(
    network: nn.Module, images: Images, recipe: Recipe, *, seed: int = 0, view: View | None = None,
    device: str = "cpu", test: Images | None = None, checkpoint: Checkpoint | None = None, workers: int = 0,
    after_epoch: Callable[[int, nn.Module], None] | None = None, until: int | None = None,
) -> Fitted:  # fmt: skip
    """Train `network` in place with cross-entropy over all of its outputs; only what requires grad moves.

    Args:
        network: on any device; moved to `device`.
        images: what is trained on; order, crops and flips depend on `seed` and the epoch.
        recipe: settings. Where images are in memory already, sizes and crops of it do not apply.
        view: mean and standard deviation of the inputs.
        test: scored after each epoch, if given.
        checkpoint: written after each epoch; if it is there, training goes on from it to the same weights.
        workers: processes that read images.
        after_epoch: called with the number of epochs done and the network.
        until: stop after that many epochs of the recipe's.

    With torch.distributed started, each rank takes its share of every epoch and `recipe.batch` images of it
    per step, and gradients are averaged (DistributedDataParallel).

    Raises:
        ValueError: no images, or fp16 without CUDA.
        RuntimeError: the loss is not finite.
    """
    if not len(images):
        _checks.fail(ValueError, "images", "at least one image", "none")
    _check_amp(recipe, device)
    rank, world = _place()
    view = replace(
        view or view_of(images),
        crop="random" if recipe.augment else "centre",
        share=1.0,
        flip=0.5 * recipe.augment,
    )
    network.to(device)
    moving = [p for p in network.parameters() if p.requires_grad]
    optimizer = recipe.make_optimizer(moving)
    mine = -(-len(images) // world)
    scheduler = recipe.make_scheduler(optimizer, -(-mine // recipe.batch))
    scaler = torch.amp.GradScaler("cuda", enabled=recipe.amp == "fp16")
    done = Fitted()
    first = checkpoint.load(network, optimizer, scheduler, scaler, done) if checkpoint is not None else 0
    called: nn.Module = nn.parallel.DistributedDataParallel(network) if world > 1 else network
    noise = torch.Generator()
    for epoch in range(first, min(recipe.epochs, until or recipe.epochs)):
        started = time.process_time()
        network.train(recipe.train_mode)
        noise.manual_seed(seed * 1_000_003 + epoch)
        order = _shuffled(len(images), seed, epoch, rank, world)
        sized = view.at(recipe.resolution_at(epoch))
        total = torch.zeros((), device=device)
        for x, y, _ in images.batches(
            sized, recipe.batch, order=order, seed=seed, epoch=epoch, workers=workers
        ):
            x, y = x.to(device, non_blocking=True), y.to(device, non_blocking=True)
            if recipe.attack is not None:
                x = perturb(network, x, y, recipe.attack, sized, noise)
            optimizer.zero_grad(set_to_none=True)
            with _autocast(recipe, device):
                loss = F.cross_entropy(called(x), y, label_smoothing=recipe.label_smoothing)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            scheduler.step()
            total += loss.detach() * len(y)
            done.steps += 1
        mean = float(total) / max(len(order), 1)
        if not np.isfinite(mean):
            _checks.fail(RuntimeError, "loss", "a finite number", f"{mean} in epoch {epoch}")
        done.losses.append(mean)
        done.seconds += time.process_time() - started
        if test is not None:
            done.last = accuracy(network, test, recipe, view=view, device=device, workers=workers)
            done.best = done.last if np.isnan(done.best) else max(done.best, done.last)
        if checkpoint is not None and rank == 0:
            checkpoint.save(network, optimizer, scheduler, scaler, done, epoch + 1)
        if after_epoch is not None:
            after_epoch(epoch + 1, network)
    return done


def view_of(images: Images) -> View:
    """The normalisation of images that come without one: ImageNet's; none for images in memory."""
    return View(mean=(0.0,), std=(1.0,)) if images.pixels is not None else View()


def _shuffled(count: int, seed: int, epoch: int, rank: int, world: int) -> Tensor:
    """The images of an epoch in random order; each rank takes as many (some come twice, if need be)."""
    order = np.random.default_rng([seed, epoch]).permutation(count)
    if world > 1:
        order = np.resize(order, -(-count // world) * world)[rank::world]
    return torch.from_numpy(order)


def _place() -> tuple[int, int]:
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def _check_amp(recipe: Recipe, device: str) -> None:
    if recipe.amp == "fp16" and not device.startswith("cuda"):
        _checks.fail(ValueError, "amp", "none or bf16 on the CPU", "fp16")


def _autocast(recipe: Recipe, device: str) -> Any:
    if recipe.amp == "none":
        return contextlib.nullcontext()
    dtype = torch.float16 if recipe.amp == "fp16" else torch.bfloat16
    return torch.autocast(device.partition(":")[0], dtype)


def outputs(
    network: nn.Module, images: Images, view: View, *, batch: int = 512, device: str = "cpu",
    workers: int = 0,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:  # fmt: skip
    """(features [B, d], logits [B, C], positions [B]) of all images, in order, in evaluation mode, float32,
    on the CPU."""
    network.to(device).eval()
    head = head_of(network)
    with torch.no_grad():
        for x, _, at in images.batches(view, batch, workers=workers):
            features = network.features(x.to(device))  # type: ignore[operator]
            yield features.float().cpu(), head(features).float().cpu(), at


def accuracy(network: nn.Module, images: Images, recipe: Recipe, **options: Any) -> float:
    """Share of images whose class has the largest logit; options as of :func:`hits`."""
    return float(hits(network, images, recipe, **options).double().mean())


def hits(
    network: nn.Module, images: Images, recipe: Recipe, *, view: View | None = None, device: str = "cpu",
    workers: int = 0,
) -> Tensor:  # fmt: skip
    """Whether each image's class has the largest logit, bool [N]: evaluation mode, the recipe's test view."""
    view = replace(view or view_of(images), crop="centre", share=recipe.test_share, flip=0.0).at(
        recipe.test_resolution
    )
    network.to(device).eval()
    right = torch.zeros(len(images), dtype=torch.bool)
    with torch.no_grad(), _autocast(recipe, device):
        for x, y, at in images.batches(view, recipe.test_batch, workers=workers):
            x = x.to(device)
            logits = network(x)
            if recipe.test_flip:
                logits = logits + network(x.flip(3))
            right[at] = logits.argmax(1).cpu() == y
    return right


def probe(features: Tensor, labels: Tensor, head: nn.Linear, recipe: Recipe, *, seed: int = 0) -> Fitted:
    """Train a head on fixed features: a linear probe without augmentation, where the network never changes,
    so that its features are computed once. The course is that of :func:`fit`."""
    rows = Images(
        labels, tuple(map(str, range(head.out_features))), pixels=features[:, :, None, None].contiguous()
    )
    flat = nn.Sequential(nn.Flatten(), head)
    return fit(flat, rows, replace(recipe, augment=False, attack=None), seed=seed)
