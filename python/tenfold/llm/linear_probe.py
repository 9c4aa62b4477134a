"""Multinomial logistic regression with cross-validated weight decay: the linear probe of hidden states."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Probe", "fit", "fit_cv"]

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)


class Probe(NamedTuple):
    """weight: float64 [C, H]. bias: float64 [C]. mean, scale: float64 [H], of the features. penalty: chosen.

    The score of features x is ((x - mean) / scale) weight^T + bias.
    """

    weight: Tensor
    bias: Tensor
    mean: Tensor
    scale: Tensor
    penalty: float

    def scores(self, features: Tensor) -> Tensor:
        """Logits [N, C], float64, of features [N, H]."""
        return F.linear((features.double() - self.mean) / self.scale, self.weight, self.bias)

    @property
    def size(self) -> int:
        """Number of fitted scalars."""
        return self.weight.numel() + self.bias.numel()


def fit(features: Tensor, labels: Tensor, classes: int, penalty: float) -> Probe:
    """Minimise mean cross-entropy + penalty/2 |W|^2 (features standardised, bias free) by L-BFGS in float64.

    Args:
        features: [N, H].  labels: int64 [N], 0 to classes - 1.  penalty: > 0.

    Raises:
        ValueError: shapes that do not fit, fewer than two classes, labels out of range.
    """
    if features.ndim != 2 or labels.shape != features.shape[:1]:
        raise ValueError(
            f"features: expected [N, H] with N labels, got {tuple(features.shape)} and {tuple(labels.shape)}"
        )
    if classes < 2 or not len(labels) or not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise ValueError(f"labels: expected 0 to classes - 1 = {classes - 1}, got {labels.tolist()[:8]}")
    x = features.detach().double().cpu()
    mean, scale = x.mean(0), x.std(0, correction=0).clamp_min(1e-6)
    x = (x - mean) / scale
    weight = torch.zeros(classes, x.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS(
        [weight, bias], max_iter=100, tolerance_grad=1e-6, line_search_fn="strong_wolfe"
    )

    def closure() -> float:
        solver.zero_grad()
        loss = F.cross_entropy(F.linear(x, weight, bias), labels.cpu())
        loss = loss + 0.5 * penalty * weight.square().sum()
        loss.backward()
        return float(loss.detach())

    with torch.enable_grad():
        solver.step(closure)
    return Probe(weight.detach(), bias.detach(), mean, scale, penalty)


def fit_cv(
    features: Tensor,
    labels: Tensor,
    classes: int,
    *,
    penalties: Sequence[float] = PENALTIES,
    folds: int = 5,
    seed: int = 0,
) -> Probe:
    """:func:`fit` with the penalty of the smallest cross-validated cross-entropy, on all rows.

    Raises:
        ValueError: as `fit`; fewer rows than folds.
    """
    if len(labels) < folds:
        raise ValueError(f"features: expected at least {folds} rows, got {len(labels)}")
    fold = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed)) % folds
    held_out: dict[float, float] = {}
    for penalty in penalties:
        total = 0.0
        for k in range(folds):
            probe = fit(features[fold != k], labels[fold != k], classes, penalty)
            total += float(
                F.cross_entropy(probe.scores(features[fold == k]), labels[fold == k], reduction="sum")
            )
        held_out[penalty] = total
    return fit(features, labels, classes, min(held_out, key=lambda penalty: held_out[penalty]))
