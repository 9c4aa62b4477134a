"""Weighted empirical risk minimisation: SGD, cosine or steps, clamped gradients, a fixed length.

The loss of a batch is mean_i(w_i CE_i), weights as they are given: nothing is normalised here. Without
weights it is the mean cross-entropy; with weights that are all 1 the trained network has the same bits.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from tenfold import _checks
from tenfold._reading import reading
from tenfold.runs.files import read_safetensors, replacing
from tenfold.selection.result import checked_weights
from tenfold.selection.reweight.data import Labelled

__all__ = ["Batches", "Clock", "Fitted", "Recipe", "fit", "logits_of"]


@dataclass(frozen=True)
class Recipe:
    """How a network is trained. The defaults are CW-ERM's for CIFAR.

    Attributes:
        epochs, batch, lr, momentum, weight_decay: of SGD without nesterov.
        schedule: "cosine": lr (1 + cos(pi epoch / epochs)) / 2, epoch by epoch; "step": times 0.1 at 80 and
            100 of 120 epochs, or at the same shares of others.
        clamp: limit of each element of the gradient; 0 for none.
        augment: random crops with a border of 4 pixels, and flips; images only.
        precision: "float32", or "bfloat16" autocast.
    """

    epochs: int = 100
    batch: int = 128
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: str = "cosine"
    clamp: float = 5.0
    augment: bool = True
    precision: str = "float32"

    def __post_init__(self) -> None:
        for name in ("epochs", "batch"):
            _checks.integer(name, getattr(self, name), 1, 2**31 - 1)
        _checks.real("lr", self.lr, positive=True)
        _checks.real("momentum", self.momentum, at_least=0.0, below=1.0)
        for name in ("weight_decay", "clamp"):
            _checks.real(name, getattr(self, name), at_least=0.0)
        _checks.choice("schedule", self.schedule, ("cosine", "step"))
        _checks.choice("precision", self.precision, ("float32", "bfloat16"))

    def rate(self, epoch: int) -> float:
        """Learning rate of an epoch, from 0."""
        if self.schedule == "cosine":
            return self.lr * (1 + math.cos(math.pi * epoch / self.epochs)) / 2
        drops = sum(epoch >= round(self.epochs * share) for share in (80 / 120, 100 / 120))
        return float(self.lr * 0.1**drops)


class Clock:
    """Processor seconds on the CPU; on a GPU, seconds until its work is done."""

    def __init__(self, device: str):
        self._device = torch.device(device)
        self._start = self._now()

    def _now(self) -> float:
        if self._device.type != "cuda":
            return time.process_time()
        torch.cuda.synchronize(self._device)
        return time.perf_counter()

    @property
    def seconds(self) -> float:
        """Since it was made."""
        return self._now() - self._start


class Batches:
    """Rows of a set on a device, normalised and, where asked for, augmented."""

    def __init__(self, x: Tensor, y: NDArray[np.int64], data: Labelled, device: str, augment: bool = False):
        self.x, self.y = x.to(device), torch.from_numpy(y).to(device)
        self.device = device
        self.images = x.dtype == torch.uint8
        self.augment = augment and x.ndim == 4
        if self.images:
            self.scale = 255 * torch.tensor(data.std, device=device)[:, None, None]
            self.shift = 255 * torch.tensor(data.mean, device=device)[:, None, None]

    def __len__(self) -> int:
        return len(self.y)

    def take(self, rows: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Inputs of `rows`; augmented if a generator is given and augmentation is on."""
        x = self.x[rows.to(self.device)]
        if self.images:
            x = (x.float() - self.shift) / self.scale
        return _augmented(x, generator) if self.augment and generator is not None else x

    def labels(self, rows: Tensor) -> Tensor:
        """Their labels."""
        return self.y[rows.to(self.device)]

    def order(self, batch: int, generator: torch.Generator) -> Iterator[Tensor]:
        """All rows in a random order, in groups; the last one may be smaller."""
        yield from torch.randperm(len(self), generator=generator).split(batch)


def _augmented(x: Tensor, generator: torch.Generator) -> Tensor:
    """Each image cropped from its own with four pixels of zeros around, half of them mirrored."""
    n, _, height, width = x.shape
    top, left = (torch.randint(0, 9, (n,), generator=generator).to(x.device) for _ in range(2))
    turned = (torch.rand(n, generator=generator) < 0.5).to(x.device)
    rows = top[:, None] + torch.arange(height, device=x.device)
    columns = torch.arange(width, device=x.device).expand(n, -1)
    columns = left[:, None] + torch.where(turned[:, None], width - 1 - columns, columns)
    padded = F.pad(x, (4, 4, 4, 4)).permute(0, 2, 3, 1)
    which = torch.arange(n, device=x.device)[:, None, None]
    return padded[which, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


@dataclass
class Fitted:
    """A trained network.

    Attributes:
        model: in evaluation mode.
        correct: bool [T], which test rows it gets right.
        curve: one entry an epoch: loss (weighted, mean over the epoch's batches), and the accuracy on the
            test set where it was asked for.
        steps: optimiser steps. seconds: see :class:`Clock`; tests on the way are not in it.
    """

    model: nn.Module
    correct: NDArray[np.bool_]
    curve: list[dict[str, float]] = field(default_factory=list)
    steps: int = 0
    seconds: float = 0.0

    @property
    def accuracy(self) -> float:
        """Share of the test set, last epoch."""
        return float(self.correct.mean())


def fit(
    model: nn.Module, data: Labelled, recipe: Recipe, seed: int, *, rows: NDArray[np.int64] | None = None,
    weights: NDArray[np.float32] | None = None, device: str = "cpu", watch: bool = False,
    checkpoint: Path | None = None, every: int = 0,
) -> Fitted:  # fmt: skip
    """Train `model` on the training rows of `data` and test it once, after the last epoch.

    Args:
        model: any classifier of inputs of `data`; trained in place.
        seed: of the order of rows and of augmentation.
        rows: train on these alone.
        weights: [N] >= 0, one for each training row; None: plain ERM.
        watch: also test after each epoch, for the curve; nothing is chosen by it.
        checkpoint: .safetensors file to keep the state in, every `every` epochs; one that is there is gone on
            from, to the same numbers.

    Raises:
        ValueError: weights are negative, not finite, all zero, or of another number.
        RuntimeError: the loss is not finite; the epoch is named.
    """
    if weights is not None:
        weights = checked_weights("weights", weights, len(data.y))
    every_row = np.arange(len(data.y)) if rows is None else np.asarray(rows, dtype=np.int64)
    if not len(every_row):
        _checks.fail(ValueError, "rows", "at least one row to train on", "none")
    at = torch.from_numpy(every_row)
    batches = Batches(data.x[at], data.y[every_row], data, device, recipe.augment)
    w = None if weights is None else torch.from_numpy(weights[every_row]).to(device)
    model.to(device).train()
    optimizer = torch.optim.SGD(
        model.parameters(), recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay, fused=True
    )
    generator = torch.Generator().manual_seed(seed)
    made = Fitted(model, np.zeros(0, bool))
    first = _load_checkpoint(checkpoint, made, optimizer, generator)
    for epoch in range(first, recipe.epochs):
        clock = Clock(device)
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate(epoch)
        total = torch.zeros((), device=device)
        count = 0
        for chosen in batches.order(recipe.batch, generator):
            loss = _step(model, optimizer, batches, chosen, w, recipe, generator)
            total += loss
            count += 1
        made.steps += count
        mean = float(total / count)
        made.seconds += clock.seconds
        if not math.isfinite(mean):
            raise RuntimeError(f"loss: expected a finite value, got {mean} in epoch {epoch}")
        entry = {"epoch": float(epoch), "loss": mean}
        if watch:
            entry["accuracy"] = float(_correct(model, data, device).mean())
            model.train()
        made.curve.append(entry)
        if checkpoint is not None and every and (epoch + 1) % every == 0 and epoch + 1 < recipe.epochs:
            _save_checkpoint(checkpoint, made, optimizer, generator, epoch + 1)
    made.correct = _correct(model, data, device)
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
    return made


def _step(
    model: nn.Module, optimizer: torch.optim.Optimizer, batches: Batches, rows: Tensor,
    weights: Tensor | None, recipe: Recipe, generator: torch.Generator,
) -> Tensor:  # fmt: skip
    x, y = batches.take(rows, generator), batches.labels(rows)
    if recipe.precision == "bfloat16":
        with torch.autocast(torch.device(batches.device).type, torch.bfloat16):
            logits = model(x).float()
    else:
        logits = model(x)
    if weights is None:
        loss = F.cross_entropy(logits, y)
    else:  # mean_i w_i CE_i, in operations in which weights of 1 change no bit of the gradient
        losses = F.cross_entropy(logits, y, reduction="none")
        loss = (weights[rows.to(weights.device)] * losses).mean()
    parameters = optimizer.param_groups[0]["params"]
    for parameter in parameters:
        parameter.grad = None
    loss.backward()
    if recipe.clamp:
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.clamp_(-recipe.clamp, recipe.clamp)
    optimizer.step()
    return loss.detach()


@torch.no_grad()
def logits_of(model: nn.Module, batches: Batches, size: int = 1000) -> Tensor:
    """Logits [n, C] of all rows in evaluation mode, without augmentation; the mode is put back."""
    before = model.training
    model.eval()
    found = [model(batches.take(rows)).float() for rows in torch.arange(len(batches)).split(size)]
    model.train(before)
    return torch.cat(found)


def _correct(model: nn.Module, data: Labelled, device: str) -> NDArray[np.bool_]:
    model.eval()
    test = Batches(data.x_test, data.y_test, data, device)
    found: NDArray[np.bool_] = (logits_of(model, test).argmax(1) == test.y).cpu().numpy()
    return found


def _save_checkpoint(
    path: Path, made: Fitted, optimizer: torch.optim.Optimizer, generator: torch.Generator, epoch: int
) -> None:
    from safetensors.torch import save_file

    tensors = {f"model.{name}": t.detach().contiguous() for name, t in made.model.state_dict().items()}
    for k, parameter in enumerate(optimizer.param_groups[0]["params"]):
        buffer = optimizer.state.get(parameter, {}).get("momentum_buffer")
        if buffer is not None:
            tensors[f"momentum.{k}"] = buffer.contiguous()
    tensors["generator"] = generator.get_state()
    told = {"epoch": epoch, "curve": made.curve, "steps": made.steps, "seconds": made.seconds}
    with replacing(path) as aside:
        save_file(tensors, aside, metadata={"state": json.dumps(told)})


def _load_checkpoint(
    path: Path | None, made: Fitted, optimizer: torch.optim.Optimizer, generator: torch.Generator
) -> int:
    """Epochs that are done."""
    if path is None or not path.exists():
        return 0
    with reading(path, "a checkpoint of this training"):
        return _put_back(*read_safetensors(path), made, optimizer, generator)


def _put_back(
    tensors: dict[str, Tensor],
    metadata: dict[str, str],
    made: Fitted,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
) -> int:
    told: dict[str, Any] = json.loads(metadata["state"])
    own = {n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")}
    made.model.load_state_dict(own)
    for k, parameter in enumerate(optimizer.param_groups[0]["params"]):
        if f"momentum.{k}" in tensors:
            optimizer.state[parameter]["momentum_buffer"] = tensors[f"momentum.{k}"].to(parameter.device)
    generator.set_state(tensors["generator"])
    made.curve, made.steps, made.seconds = told["curve"], told["steps"], told["seconds"]
    return int(told["epoch"])
