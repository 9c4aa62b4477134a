"""Train the small 3-D U-Net on patches: Dice + cross-entropy in one fused pass, state kept for resuming."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tenfold.nn import DeepSupervisionLoss, DiceCELoss
from tenfold.segmentation.labels import Task, swap_labels
from tenfold.segmentation.unet import Recipe, UNet3D

__all__ = ["Case", "Plan", "train"]


@dataclass
class Case:
    """One volume to train on."""

    image: NDArray[np.float32]
    """[C, z, y, x], normalised."""
    label: NDArray[Any]
    """[z, y, x], classes from 0."""


@dataclass
class Plan:
    """How to train; the defaults are the tutorial's for organs at risk where it names them."""

    steps: int = 128_000
    """Optimizer steps."""
    batch: int = 4
    """Patches of a step."""
    lr: float = 1e-3
    """Of Adam."""
    weight_decay: float = 1e-5
    """Of Adam."""
    halve_every: int = 3000
    """Steps after which the learning rate is halved."""
    foreground: float = 0.2
    """Share of patches that are centred on a voxel of the foreground."""
    gamma: bool = True
    """Change the contrast of half of the patches by a power in [0.7, 1.5]."""
    noise: float = 0.05
    """Deviation of the noise that half of the patches get."""
    mirror: bool = False
    """Mirror half of the patches left to right and exchange the labels of the sides."""
    deep: bool = False
    """Losses on coarser outputs as well, weights 1/2^i."""
    save_every: int = 200
    """Steps between saved states."""
    seed: int = 0
    """Of weights, patches and augmentation."""


@dataclass
class Store:
    """Where the state of an interrupted training is kept: key-less `load` and `save` of (data, tensors)."""

    load: Callable[[], tuple[Any, dict[str, Tensor]] | None]
    save: Callable[[Any, dict[str, Tensor]], None]


def train(
    cases: Sequence[Case], recipe: Recipe, plan: Plan, *, task: Task | None = None, device: str = "cpu",
    store: Store | None = None, advance: Callable[[int, float], None] = lambda step, loss: None,
) -> tuple[UNet3D, list[float]]:  # fmt: skip
    """Train a new network; returns it, ready for inference, and the loss of each step.

    Args:
        cases: at least one, each with the recipe's channels and labels below its classes.
        task: needed with `plan.mirror`: which labels are each other's sides.
        store: for resuming; a resumed run draws the same patches and dropout, so it ends at the same weights.
        advance: told the number of steps done and the last loss.

    Raises ValueError for what does not fit, RuntimeError if a loss is not finite.
    """
    _check(cases, recipe, plan, task)
    torch.manual_seed(plan.seed)
    network = UNet3D(recipe, plan.deep).to(device)
    optimizer = torch.optim.Adam(network.parameters(), lr=plan.lr, weight_decay=plan.weight_decay)
    loss_of: Any = DiceCELoss(to_onehot_y=True, softmax=True)
    loss_of = DeepSupervisionLoss(loss_of, weight_mode="pymic") if plan.deep else loss_of
    losses: list[float] = []
    saved = store.load() if store else None
    if saved is not None:
        losses = list(saved[0]["losses"])
        _put(network, optimizer, saved[1])
    swap = _swap_table(task, recipe.classes) if plan.mirror and task is not None else None
    network.train()
    for step in range(len(losses), plan.steps):
        for group in optimizer.param_groups:
            group["lr"] = plan.lr * 0.5 ** (step // plan.halve_every)
        torch.manual_seed(plan.seed * 1_000_003 + step)  # dropout of this step
        images, labels = _batch(cases, recipe, plan, step, swap)
        outputs = network(images.to(device))
        loss = loss_of(outputs, labels[:, None].to(device))
        if not torch.isfinite(loss):
            raise RuntimeError(
                f"loss: expected a finite number at step {step + 1}, got {float(loss.detach())}"
            )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        advance(step + 1, losses[-1])
        if store and (step + 1) % plan.save_every == 0:
            store.save({"losses": losses}, _state(network, optimizer))
    return network.eval(), losses


def _check(cases: Sequence[Case], recipe: Recipe, plan: Plan, task: Task | None) -> None:
    recipe.check()
    if not cases:
        raise ValueError("cases: expected at least one, got none")
    for i, case in enumerate(cases):
        if case.image.ndim != 4 or case.image.shape[0] != recipe.channels:
            raise ValueError(
                f"cases[{i}].image: expected [{recipe.channels}, z, y, x], got {case.image.shape}"
            )
        if case.label.shape != case.image.shape[1:]:
            raise ValueError(f"cases[{i}].label: expected {case.image.shape[1:]}, got {case.label.shape}")
        if int(case.label.max()) >= recipe.classes:
            raise ValueError(
                f"cases[{i}].label: expected labels below {recipe.classes}, got {case.label.max()}"
            )
    if plan.mirror and task is None:
        raise ValueError(
            "task: expected one with mirror, which must exchange the labels of the sides, got None"
        )


def _swap_table(task: Task, classes: int) -> NDArray[np.int64]:
    table = np.arange(classes)
    for label, other in swap_labels(task).items():
        table[label] = other
    return table


def _batch(
    cases: Sequence[Case], recipe: Recipe, plan: Plan, step: int, swap: NDArray[np.int64] | None
) -> tuple[Tensor, Tensor]:
    images, labels = [], []
    for i in range(plan.batch):
        rng = np.random.default_rng([plan.seed, step, i])
        image, label = _patch(cases[int(rng.integers(len(cases)))], recipe.patch, plan.foreground, rng)
        if plan.gamma and rng.random() < 0.5:
            low, high = float(image.min()), float(image.max())
            image = ((image - low) / max(high - low, 1e-6)) ** rng.uniform(0.7, 1.5) * (high - low) + low
        if plan.noise and rng.random() < 0.5:
            image = image + rng.normal(0, plan.noise, image.shape)
        if swap is not None and rng.random() < 0.5:
            image, label = image[..., ::-1], swap[label[..., ::-1]]
        images.append(torch.from_numpy(np.ascontiguousarray(image, np.float32)))
        labels.append(torch.from_numpy(np.ascontiguousarray(label, np.int64)))
    return torch.stack(images), torch.stack(labels)


def _patch(
    case: Case, patch: Sequence[int], foreground: float, rng: np.random.Generator
) -> tuple[NDArray[Any], NDArray[Any]]:
    """A window at random, or around a voxel of a class drawn evenly; what lies outside is padded."""
    size = case.label.shape
    if rng.random() < foreground and case.label.any():
        value = rng.choice(np.unique(case.label)[1:] if not case.label.min() else np.unique(case.label))
        where = np.flatnonzero(case.label == value)
        middle = np.unravel_index(int(where[rng.integers(len(where))]), size)
        start = [
            min(max(int(m) - p // 2, 0), max(n - p, 0)) for m, p, n in zip(middle, patch, size, strict=True)
        ]
    else:
        start = [int(rng.integers(max(n - p, 0) + 1)) for p, n in zip(patch, size, strict=True)]
    inner = tuple(slice(s, s + p) for s, p in zip(start, patch, strict=True))
    image, label = case.image[:, inner[0], inner[1], inner[2]], case.label[inner]
    short = [(0, p - n) for p, n in zip(patch, label.shape, strict=True)]
    if any(after for _, after in short):
        image = np.pad(image, [(0, 0), *short], constant_values=float(case.image.min()))
        label = np.pad(label, short)
    return image, label


def _state(network: UNet3D, optimizer: torch.optim.Adam) -> dict[str, Tensor]:
    found = {f"net/{name}": tensor for name, tensor in network.state_dict().items()}
    for i, state in enumerate(optimizer.state_dict()["state"].values()):
        found |= {f"adam/{i}/{name}": value for name, value in state.items()}
    return found


def _put(network: UNet3D, optimizer: torch.optim.Adam, tensors: dict[str, Tensor]) -> None:
    network.load_state_dict({n.removeprefix("net/"): t for n, t in tensors.items() if n.startswith("net/")})
    whole = optimizer.state_dict()
    states: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("adam/"):
            _, index, part = name.split("/")
            states.setdefault(int(index), {})[part] = tensor
    optimizer.load_state_dict({"state": states, "param_groups": whole["param_groups"]})
