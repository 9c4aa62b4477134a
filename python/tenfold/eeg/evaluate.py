"""Scores of a trained network on its target and its sources. The target's labels are used here alone."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tenfold import _checks
from tenfold.eeg.methods import Method
from tenfold.eeg.protocols import Fold
from tenfold.eeg.train import Trained, predict

__all__ = [
    "Scores", "collapse_threshold", "compactness", "confusion_matrix", "evaluate", "macro_f1", "margin",
    "occlusion", "proxy_a_distance", "saliency",
]  # fmt: skip


@dataclass
class Scores:
    """What one training came to.

    Attributes:
        accuracy, macro_f1: on the target, in [0, 1].
        confusion: [C][C] counts, rows are true classes.
        source_accuracy: on the sources' rows, each source through its own branch where it has one.
        collapsed: the source accuracy is below :func:`collapse_threshold`: the network learned nothing, and
            its target accuracy says nothing about adaptation.
        margin: mean distance between the centres of the target's classes, in the 32 features.
        compactness: mean distance of the target's rows to the centre of their class.
        a_distance: proxy A-distance between sources and target, 2 (1 - 2 err).
        seconds: processor time of the training.
    """

    accuracy: float
    macro_f1: float
    confusion: list[list[int]]
    source_accuracy: float
    collapsed: bool
    margin: float
    compactness: float
    a_distance: float
    seconds: float

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def evaluate(trained: Trained, fold: Fold, method: Method) -> Scores:
    """All scores of a trained network on the (scaled) fold it was trained on.

    Raises:
        ValueError: a target without labels.
    """
    y = fold.target.y
    if y is None:
        _checks.fail(ValueError, f"{fold.target.name}: y", "labels to score with", None)
    y = y.cpu()
    p, z = (t.cpu() for t in predict(trained, fold.target.x))
    label, classes = p.argmax(1), p.shape[1]
    confusion = confusion_matrix(y, label, classes)
    source = source_accuracy(trained, fold, method)
    source_z = torch.cat([predict(trained, d.x)[1].cpu() for d in fold.sources])
    return Scores(
        accuracy=float((label == y).double().mean()),
        macro_f1=macro_f1(confusion), confusion=confusion.tolist(),
        source_accuracy=source, collapsed=source < collapse_threshold(classes),
        margin=margin(z, y, classes), compactness=compactness(z, y, classes),
        a_distance=proxy_a_distance(source_z, z), seconds=trained.seconds,
    )  # fmt: skip


def collapse_threshold(classes: int) -> float:
    """Twice the accuracy of chance; for two classes, where that would be 1, halfway between chance and 1."""
    chance = 1.0 / classes
    return min(2 * chance, (1 + chance) / 2)


def confusion_matrix(y: Tensor, label: Tensor, classes: int) -> Tensor:
    """int64 [C, C]: rows are true classes, columns predictions."""
    return torch.bincount(y * classes + label, minlength=classes * classes).view(classes, classes)


def macro_f1(confusion: Tensor) -> float:
    """Mean over the classes that occur (truly or predicted) of 2 TP / (2 TP + FP + FN)."""
    right = confusion.diagonal().double()
    total = (confusion.sum(0) + confusion.sum(1)).double()
    there = total > 0
    return float((2 * right[there] / total[there]).mean())


@torch.no_grad()
def source_accuracy(trained: Trained, fold: Fold, method: Method) -> float:
    """Mean over sources of the accuracy through the branch trained on that source (else the prediction)."""
    own = trained.network.branches >= len(fold.sources) and method.heads != "one"
    values = []
    for j, domain in enumerate(fold.sources):
        assert domain.y is not None
        scores = trained.network(domain.x)[1][j] if own else predict(trained, domain.x)[0]
        values.append(float((scores.argmax(1) == domain.y).double().mean()))
    return sum(values) / len(values)


def _centres(z: Tensor, y: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Centres of the classes that occur, and each row's index into them."""
    onehot = F.one_hot(y, classes).to(torch.float64)
    count = onehot.sum(0)
    there = count > 0
    return (onehot.T @ z.double())[there] / count[there, None], (there.cumsum(0) - 1)[y]


def margin(z: Tensor, y: Tensor, classes: int) -> float:
    """Mean Euclidean distance between class centres; 0 for a single class. z [n, d], y int64 [n]."""
    centres, _ = _centres(z, y, classes)
    count = len(centres)
    return 0.0 if count < 2 else float(torch.cdist(centres, centres).sum() / (count * (count - 1)))


def compactness(z: Tensor, y: Tensor, classes: int) -> float:
    """Mean Euclidean distance of the rows to their class's centre (small is compact)."""
    centres, index = _centres(z, y, classes)
    return float((z.double() - centres[index]).norm(dim=1).mean())


def proxy_a_distance(source: Tensor, target: Tensor, parts: int = 5, ridge: float = 1e-3) -> float:
    """2 (1 - 2 err): err is the balanced error of a linear classifier that tells source from target rows.

    0: nothing tells them apart; 2: everything does. Least squares with both sides weighted alike, features
    standardised, err over `parts` cross-validation parts in a fixed order (Ben-David et al. 2006); errors
    above one half, which chance gives, count as one half.
    """
    for name, rows in (("source", source), ("target", target)):
        if len(rows) < parts:
            _checks.fail(ValueError, name, f"at least {parts} rows", len(rows))
    z = torch.cat((source, target)).double()
    z = (z - z.mean(0)) / z.std(0, unbiased=False).clamp_min(1e-9)
    z = torch.cat((z, z.new_ones(len(z), 1)), 1)
    side = torch.cat((z.new_ones(len(source)), -z.new_ones(len(target))))
    generator = torch.Generator().manual_seed(0)
    part = torch.cat([torch.randperm(len(rows), generator=generator) % parts for rows in (source, target)])
    wrong = torch.zeros_like(side)
    for k in range(parts):
        fit = part != k
        weight = torch.where(side > 0, 0.5 / (side[fit] > 0).sum(), 0.5 / (side[fit] < 0).sum())[fit]
        a = z[fit] * weight[:, None]
        w = torch.linalg.solve(a.T @ z[fit] + ridge * torch.eye(z.shape[1], dtype=z.dtype), a.T @ side[fit])
        wrong[~fit] = (z[~fit] @ w * side[~fit] <= 0).double()
    error = min(0.5, float((wrong[side > 0].mean() + wrong[side < 0].mean()) / 2))
    return 2 * (1 - 2 * error)


def saliency(trained: Trained, x: Tensor) -> Tensor:
    """Mean |d log p(predicted class) / d feature| over rows, [d]: what the prediction is sensitive to."""
    rows = x.detach().clone().requires_grad_(True)
    _, logits = trained.network(rows)
    p = (trained.weights[:, None, None] * logits.softmax(2)).sum(0)
    (gradient,) = torch.autograd.grad(p.max(1).values.clamp_min(1e-12).log().sum(), rows)
    return gradient.abs().mean(0)


def occlusion(trained: Trained, x: Tensor, y: Tensor, groups: Tensor) -> Tensor:
    """Accuracy lost when the columns of a group are put to their mean, [number of groups].

    Args:
        x: [n, d], y: int64 [n].
        groups: int64 [d], the group (channel) of each column, from 0.
    """
    whole = (predict(trained, x)[0].argmax(1) == y).double().mean()
    mean, lost = x.mean(0), []
    for group in range(int(groups.max()) + 1):
        without = torch.where(groups == group, mean, x)
        lost.append(whole - (predict(trained, without)[0].argmax(1) == y).double().mean())
    return torch.stack(lost)
