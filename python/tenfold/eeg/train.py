"""Training of one fold: one optimiser step per iteration, a fixed length, the last iterate is the result.

Nothing is chosen by the target's labels: they are not even here, for :func:`train` takes them away first.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tenfold import _checks
from tenfold.eeg.corpus import Domain
from tenfold.eeg.methods import Batch, Method, RunState, dann
from tenfold.eeg.network import Discriminator, Network
from tenfold.eeg.protocols import Fold

__all__ = ["Settings", "Trained", "predict", "train"]

WATCH = 10  # steps between two entries of a history


@dataclass(frozen=True)
class Settings:
    """How long, how fast, on how many rows.

    Attributes:
        steps: optimiser steps.
        batch: rows of each source in a step (fewer where a source has fewer).
        target_batch: rows of the target in a step; None: as `batch`.
        lr: of Adam.
        bn: see :class:`tenfold.eeg.network.Network`.
        sampler: "shuffle": every domain's rows in turn, shuffled anew when all have been seen; "class-aware":
            the same classes in all domains, the target's by its current pseudo-labels (CAN).
        relabel: steps between two labellings of the whole target, for "class-aware" and `labels="cluster"`.
        seed: of weights, rows and everything else.
    """

    steps: int = 300
    batch: int = 32
    target_batch: int | None = None
    lr: float = 1e-3
    bn: str = "shared"
    sampler: str = "shuffle"
    relabel: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "relabel"):
            _checks.integer(name, getattr(self, name), 1, 2**31 - 1)
        if self.target_batch is not None:
            _checks.integer("target_batch", self.target_batch, 1, 2**31 - 1)
        _checks.real("lr", self.lr, positive=True)
        _checks.choice("sampler", self.sampler, ("shuffle", "class-aware"))
        _checks.seed("seed", self.seed)


@dataclass
class Trained:
    """A trained network.

    Attributes:
        network: in evaluation mode.
        history: every tenth step, "step" and the parts of the loss.
        weights: [J], how branches count in a prediction; sums to 1.
        seconds: processor time of the training.
    """

    network: Network
    history: list[dict[str, float]]
    weights: Tensor
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)


def train(
    fold: Fold, classes: int, method: Method, settings: Settings,
    select: Callable[[Trained], float] | None = None,
) -> Trained:  # fmt: skip
    """Train `method` on a fold whose features have been scaled.

    The same seed gives the same first weights of the extractor and the same rows to every method.

    Args:
        fold: sources with labels, and the target, whose labels are not looked at.
        classes: C.
        method: the loss and its options.
        settings: length, rates, batches, seed.
        select: a figure of merit, asked every tenth step: the weights for which it is largest are the result.
            None: the last weights.

    Raises:
        ValueError: a source without labels, a batch of one row (batch normalisation needs two).
        RuntimeError: a loss that is not finite; the message names method, fold and step.
    """
    target = fold.target.without_labels()
    _check(fold, settings)
    device = target.x.device
    began = time.process_time()
    torch.manual_seed(settings.seed)
    net = Network(target.x.shape[1], classes, method.branches(len(fold.sources)), bn=settings.bn).to(device)
    run = RunState()
    parameters = list(net.parameters())
    if method.loss is dann:
        run.discriminator = Discriminator().to(device)
        parameters += run.discriminator.parameters()
    optimizer = torch.optim.Adam(parameters, lr=settings.lr, fused=True)
    rows = _Rows(fold.sources, target, classes, settings)
    history = []
    needs_labels = method.options.labels == "cluster" or settings.sampler == "class-aware"
    pseudo = None
    net.train()
    best: tuple[float, int, Any] = (-math.inf, 0, None)
    for step in range(settings.steps):
        run.step = step
        if needs_labels and step % settings.relabel == 0:
            pseudo = label_target(net, rows, method, run)
        batch = rows.take(step, pseudo)
        optimizer.zero_grad(set_to_none=True)
        made = method.loss(net, batch, method.options, run)
        made.total.backward()
        optimizer.step()
        if step % WATCH == 0 or step == settings.steps - 1:
            history.append(_entry(step, made.total, made.parts, f"{fold.name}, {method.title}"))
            if select is not None:
                net.eval()
                now = Trained(net, [], branch_weights(net, method, run))
                best = max(best, (select(now), step, copy.deepcopy(now)), key=lambda entry: entry[0])
                net.train()
    net.eval()
    trained = Trained(net, history, branch_weights(net, method, run)) if select is None else best[2]
    trained.history, trained.seconds = history, time.process_time() - began
    trained.notes = _collapse(history)
    return trained


def _check(fold: Fold, settings: Settings) -> None:
    for domain in fold.sources:
        if domain.y is None:
            _checks.fail(ValueError, f"{domain.name}: y", "labels of every source", None)
    least = min(len(d) for d in (*fold.sources, fold.target))
    if min(least, settings.batch, settings.target_batch or settings.batch) < 2:
        _checks.fail(ValueError, "batch", "at least two rows of every domain", 1)


def _entry(step: int, total: Tensor, parts: dict[str, Any], where: str) -> dict[str, float]:
    loss = float(total.detach())
    if not math.isfinite(loss):
        raise RuntimeError(f"loss: expected a finite number, got {loss} ({where}, step {step})")
    return {"step": step, "loss": loss, **{name: float(value) for name, value in parts.items()}}


def _collapse(history: list[dict[str, float]]) -> list[str]:
    """An adaptive width makes MMD free of scale: features may shrink to a point without its noticing."""
    widths = [entry["width"] for entry in history if "width" in entry]
    if widths and widths[-1] < 1e-3 * widths[0]:
        return [f"features shrank: mean squared distance from {widths[0]:.3g} to {widths[-1]:.3g}"]
    return []


class _Rows:
    """Which rows every step sees. Drawn from a generator of its own, so that methods see the same."""

    def __init__(self, sources: tuple[Domain, ...], target: Domain, classes: int, settings: Settings):
        self.generator = torch.Generator().manual_seed(settings.seed + 1)
        self.classes, self.settings = classes, settings
        self.sources, self.target = sources, target
        size = min(settings.batch, *(len(d) for d in sources))
        aim = settings.target_batch or settings.batch
        self.x = torch.cat([d.x for d in sources])
        self.y = torch.cat([_labels(d) for d in sources])
        self.starts = [sum(len(d) for d in sources[:k]) for k in range(len(sources))]
        self.size = size
        self.target_size = min(aim, len(target))
        if settings.sampler == "shuffle":
            drawn = [self._turns(len(d), size) + s for d, s in zip(sources, self.starts, strict=True)]
            self.plan = torch.stack(drawn, 1)  # [steps, S, B]
        self.target_plan = self._turns(len(target), self.target_size)

    def _turns(self, count: int, size: int) -> Tensor:
        """[steps, size]: rows 0 .. count - 1 in random order, over and over."""
        need = self.settings.steps * size
        turns = [torch.randperm(count, generator=self.generator) for _ in range(-(-need // count))]
        return torch.cat(turns)[:need].view(self.settings.steps, size)

    def take(self, step: int, pseudo: Tensor | None) -> Batch:
        """The rows of a step."""
        if self.settings.sampler == "shuffle":
            index, aim = self.plan[step], self.target_plan[step]
        else:
            index, aim = self._class_aware(step, pseudo)
        return Batch(
            self.x[index], self.y[index], self.target.x[aim], step / self.settings.steps,
            None if pseudo is None else pseudo[aim],
        )  # fmt: skip

    def _class_aware(self, step: int, pseudo: Tensor | None) -> tuple[Tensor, Tensor]:
        """As many rows of each of the classes that the target's labels hold, in every domain."""
        assert pseudo is not None
        present = [c for c in range(self.classes) if bool((pseudo == c).any())]
        if not present:
            present = list(range(self.classes))
        order = torch.randperm(len(present), generator=self.generator).tolist()
        per = max(2, self.size // len(present))
        chosen = [present[i] for i in order[: max(1, self.size // per)]]
        index = torch.stack(
            [
                torch.cat([self._some(self.y[s : s + len(d)] == c, per) for c in chosen]) + s
                for d, s in zip(self.sources, self.starts, strict=True)
            ]
        )
        found = [self._some(pseudo == c, per) for c in chosen if bool((pseudo == c).any())]
        return index, torch.cat(found) if found else self.target_plan[step]

    def _some(self, mask: Tensor, count: int) -> Tensor:
        """`count` rows of a mask, with repetition where there are fewer; any rows if there are none."""
        rows = mask.nonzero()[:, 0]
        if not len(rows):
            rows = torch.arange(len(mask), device=mask.device)
        order = torch.cat(
            [torch.randperm(len(rows), generator=self.generator) for _ in range(-(-count // len(rows)))]
        )
        return rows[order[:count]]


def _labels(domain: Domain) -> Tensor:
    assert domain.y is not None
    return domain.y


@torch.no_grad()
def label_target(net: Network, rows: _Rows, method: Method, run: RunState) -> Tensor:
    """Labels of all target rows, -1 where they are not to be trusted, int64 [n].

    "cluster": spherical k-means over the features of all branches side by side, begun at the centres of the
    sources' classes (CAN, arXiv 1901.00976). Else the arg max of the mean prediction.
    """
    net.eval()
    z, logits = net(rows.target.x)
    if method.options.labels == "cluster":
        source_z, _ = net(rows.x)
        points = F.normalize(z.transpose(0, 1).flatten(1), dim=1)
        origin = F.normalize(source_z.transpose(0, 1).flatten(1), dim=1)
        score, label = spherical_kmeans(points, _centres(origin, rows.y, net.classes))
    else:
        score, label = logits.softmax(2).mean(0).max(1)
    net.train()
    return torch.where(score >= method.options.confidence, label, -1)


def spherical_kmeans(points: Tensor, centres: Tensor, rounds: int = 50) -> tuple[Tensor, Tensor]:
    """Cosine to the own centre [n] and cluster [n] of unit rows `points` [n, d], begun at unit `centres`.

    A cluster that loses all its rows keeps its centre.
    """
    label = (points @ centres.T).argmax(1)
    for _ in range(rounds):
        moved = _centres(points, label, len(centres))
        centres = torch.where(moved.square().sum(1, keepdim=True) > 0, moved, centres)
        again = (points @ centres.T).argmax(1)
        if bool((again == label).all()):
            break
        label = again
    return (points @ centres.T).max(1).values, label


def _centres(points: Tensor, label: Tensor, classes: int) -> Tensor:
    return F.normalize(F.one_hot(label, classes).to(points.dtype).T @ points, dim=1)


def branch_weights(net: Network, method: Method, run: RunState) -> Tensor:
    """How much each branch counts in a prediction, [J]."""
    j = net.branches
    device = net.b2.device
    if method.heads == "options" and method.options.predict == "ensemble":
        return F.one_hot(torch.tensor(j - 1, device=device), j).float()
    if method.heads != "one" and method.options.predict == "weighted" and run.discrepancy is not None:
        return (-run.discrepancy / method.options.temperature).softmax(0)
    return torch.full((j,), 1.0 / j, device=device)


@torch.no_grad()
def predict(trained: Trained, x: Tensor) -> tuple[Tensor, Tensor]:
    """Class probabilities [n, C], and features [n, 32] (the branches' weighted mean), of rows x [n, d]."""
    z, logits = trained.network(x)
    w = trained.weights[:, None, None]
    return (w * logits.softmax(2)).sum(0), (w * z).sum(0)
