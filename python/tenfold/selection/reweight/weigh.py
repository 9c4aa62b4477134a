"""Weights learned on few rows: Meta-Weight-Net's training, and what V says at its end."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tenfold import _checks
from tenfold.selection.reweight.coreset import Split
from tenfold.selection.reweight.data import Labelled
from tenfold.selection.reweight.meta import MetaWeightNet, WeightNet, sample_cross_entropy
from tenfold.selection.reweight.train import Batches, Clock, Recipe, logits_of

__all__ = ["CURVE", "Learned", "MetaRecipe", "learn_weights"]

CURVE = np.linspace(0.0, 8.0, 81, dtype=np.float32)
"""Losses at which V is drawn."""


@dataclass(frozen=True)
class MetaRecipe:
    """How weights are learned. The defaults are those of CW-ERM's code.

    Attributes:
        epochs, batch, lr, momentum, weight_decay, augment: of the classifier, SGD with the rate cut to a
            tenth at two thirds and at five sixths of the epochs.
        hidden: units of V. meta_lr, meta_weight_decay: of Adam on V. Meta-Weight-Net has 1e-3 and 1e-4.
        meta_batch: meta rows in a step.
        meta_interval: V moves at every so many steps.
        normalise: weights are divided by their mean in each batch.
    """

    epochs: int = 120
    batch: int = 100
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    augment: bool = True
    hidden: int = 100
    meta_lr: float = 1e-5
    meta_weight_decay: float = 0.0
    meta_batch: int = 100
    meta_interval: int = 1
    normalise: bool = False

    def __post_init__(self) -> None:
        self.recipe()
        for name in ("meta_batch", "meta_interval", "hidden"):
            _checks.integer(name, getattr(self, name), 1, 2**31 - 1)
        _checks.real("meta_lr", self.meta_lr, positive=True)
        _checks.real("meta_weight_decay", self.meta_weight_decay, at_least=0.0)

    def recipe(self) -> Recipe:
        """Of the classifier."""
        return Recipe(self.epochs, self.batch, self.lr, self.momentum, self.weight_decay, "step", 0.0,
                      self.augment)  # fmt: skip


@dataclass
class Learned:
    """What was learned on a coreset of m rows of a set of N.

    Attributes:
        weights: float32 [m], V's of each coreset row at the end.
        trajectory: float32 [m], the mean of V's weights after each epoch.
        losses: float32 [m], at the end.
        everywhere: float32 [N], V's weights of all rows by their own loss; empty unless asked for.
        before, after: V at :data:`CURVE` before the first and after the last step.
        history: an entry an epoch: meta_loss, weight (mean).
        seconds: of the training, see :class:`tenfold.selection.reweight.train.Clock`.
    """

    weights: NDArray[np.float32]
    trajectory: NDArray[np.float32]
    losses: NDArray[np.float32]
    everywhere: NDArray[np.float32]
    before: NDArray[np.float32]
    after: NDArray[np.float32]
    history: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0


def learn_weights(
    model: nn.Module, data: Labelled, core: NDArray[np.int64], split: Split | None, recipe: MetaRecipe,
    seed: int, *, device: str = "cpu", everywhere: bool = False, compat: str = "",
) -> Learned:  # fmt: skip
    """Train Meta-Weight-Net on coreset rows.

    Args:
        model: a classifier, trained in place.
        core: rows of the coreset.
        split: positions in the coreset that are trained on, and those that are meta rows. None: all are
            trained on, and `data.x_meta` are the meta rows.
        seed: of V, of the order of rows and of augmentation.
        everywhere: also V's weight of every training row.
        compat: "reference": final weights come from the network in training mode and augmented images, as in
            the published code; otherwise from evaluation mode and images as they are.

    Raises:
        ValueError: the coreset or the meta set is empty. RuntimeError: a loss is not finite.
    """
    _checks.choice("compat", compat, ("", "reference"))
    if not len(core):
        _checks.fail(ValueError, "core", "at least one row", "none")
    chosen = torch.from_numpy(core)
    rows = Batches(data.x[chosen], data.y[core], data, device, recipe.augment)
    train, meta = _parts(data, core, split, device, recipe.augment)
    sgd = recipe.recipe()
    model.to(device).train()
    optimizer = torch.optim.SGD(model.parameters(), sgd.lr, sgd.momentum, weight_decay=sgd.weight_decay)
    reweighter = MetaWeightNet(
        model, optimizer, weight_net=_weight_net(recipe.hidden, seed), lr=recipe.meta_lr,
        weight_decay=recipe.meta_weight_decay, normalise=recipe.normalise, meta_interval=recipe.meta_interval,
    )  # fmt: skip
    before = _curve(reweighter, device)
    generator = torch.Generator().manual_seed(seed)
    clock = Clock(device)
    history: list[dict[str, float]] = []
    total = torch.zeros(len(core), device=device)
    queue: list[torch.Tensor] = []
    for epoch in range(sgd.epochs):
        for group in optimizer.param_groups:
            group["lr"] = sgd.rate(epoch)
        meta_loss, weight, steps = torch.zeros((), device=device), torch.zeros((), device=device), 0
        for at in train.order(sgd.batch, generator):
            if not queue:
                queue = list(meta.order(recipe.meta_batch, generator))
            mine = queue.pop()
            told = reweighter.step(
                (train.take(at, generator), train.labels(at)), (meta.take(mine, generator), meta.labels(mine))
            )
            if told is not None:
                meta_loss, weight, steps = meta_loss + told.meta_loss, weight + told.weights.mean(), steps + 1
        total += reweighter.weights(logits_of(model, rows), rows.y)
        history.append(
            {
                "epoch": epoch,
                "meta_loss": float(meta_loss) / max(steps, 1),
                "weight": float(weight) / max(steps, 1),
            }
        )
    if compat == "reference":
        model.train()
        with torch.no_grad():
            every = torch.arange(len(rows))
            logits = torch.cat([model(rows.take(at, generator)) for at in every.split(recipe.batch)])
    else:
        logits = logits_of(model, rows)
    weights, losses = reweighter.weights(logits, rows.y), sample_cross_entropy(logits, rows.y)
    seconds = clock.seconds
    model.eval()
    spread = np.zeros(0, np.float32)
    if everywhere:
        full = Batches(data.x, data.y, data, device)
        spread = _array(reweighter.weights(logits_of(model, full), full.y))
    return Learned(
        _array(weights), _array(total / sgd.epochs), _array(losses), spread, before,
        _curve(reweighter, device), history, seconds,
    )  # fmt: skip


def _parts(
    data: Labelled, core: NDArray[np.int64], split: Split | None, device: str, augment: bool
) -> tuple[Batches, Batches]:
    if split is None:
        if data.x_meta is None or data.y_meta is None or not len(data.y_meta):
            _checks.fail(ValueError, "meta", "rows whose labels can be trusted", "none")
        meta = Batches(data.x_meta, data.y_meta, data, device, augment)
        return Batches(data.x[torch.from_numpy(core)], data.y[core], data, device, augment), meta
    here, there = core[split.train], core[split.meta]
    first, second = (
        Batches(data.x[torch.from_numpy(rows)], data.y[rows], data, device, augment) for rows in (here, there)
    )
    return first, second


def _weight_net(hidden: int, seed: int) -> WeightNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return WeightNet(hidden)


@torch.no_grad()
def _curve(reweighter: MetaWeightNet, device: str) -> NDArray[np.float32]:
    return _array(reweighter.weight_net(torch.from_numpy(CURVE).to(device)))


def _array(values: torch.Tensor) -> NDArray[np.float32]:
    return values.detach().float().cpu().numpy()
