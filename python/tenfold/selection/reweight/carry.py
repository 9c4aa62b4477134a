"""Weights of a coreset carried to every sample."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from tenfold import _checks
from tenfold.ops import nn_assign
from tenfold.selection.result import checked_weights

__all__ = ["MODES", "Broadcast", "broadcast", "constant", "normalised", "shuffled"]

MODES = ("nn", "classwise", "function", "label_aware")


@dataclass(frozen=True)
class Broadcast:
    """Weights float32 [N], and notes on what did not go as the mode says."""

    weights: NDArray[np.float32]
    notes: list[str] = field(default_factory=list)


def broadcast(
    core_weights: ArrayLike,
    features: ArrayLike,
    core: ArrayLike,
    mode: str = "nn",
    *,
    labels: ArrayLike | None = None,
    function_weights: ArrayLike | None = None,
    neighbours: int = 5,
    normalise: bool = False,
    compat: str = "",
) -> Broadcast:
    """The weight of every sample from those of a coreset.

    Args:
        core_weights: [m] >= 0, not all zero.
        features: [N, d] of all samples. core: [m], their rows that are the coreset.
        mode: "nn": the weight of the nearest coreset sample, whatever its label (CW-ERM, arXiv 2403.12166).
            "classwise": of the nearest with the same label; a label that the coreset has not falls back to
            the nearest of all, with a note. "label_aware": the weight as in "nn" times the share of the
            `neighbours` nearest coreset samples that carry the sample's label. "function":
            `function_weights`, V's weights of each sample's own loss.
        labels: [N], for classwise and label_aware.
        normalise: divide by the mean, so that the loss keeps its scale.
        compat: "reference": classwise gives labels that the coreset has not the weight 0, as the published
            code does.
    """
    _checks.choice("mode", mode, MODES)
    _checks.choice("compat", compat, ("", "reference"))
    rows = np.asarray(core, dtype=np.int64)
    if not len(rows):
        _checks.fail(ValueError, "core", "at least one row", "none")
    w = checked_weights("core_weights", core_weights, len(rows))
    notes: list[str] = []
    if mode == "function":
        if function_weights is None:
            _checks.fail(TypeError, "function_weights", "V's weights of all samples", None)
        found = checked_weights("function_weights", function_weights, len(np.asarray(features)))
    else:
        found = _carried(w, features, rows, mode, labels, neighbours, compat, notes)
    return Broadcast(normalised(found) if normalise else found, notes)


def _carried(
    w: NDArray[np.float32], features: ArrayLike, rows: NDArray[np.int64], mode: str,
    labels: ArrayLike | None, neighbours: int, compat: str, notes: list[str],
) -> NDArray[np.float32]:  # fmt: skip
    x = torch.from_numpy(np.ascontiguousarray(np.asarray(features, dtype=np.float32)))
    if len(rows) and int(rows.max()) >= len(x):
        _checks.fail(ValueError, "core", f"rows below {len(x)}", int(rows.max()))
    centres = x[torch.from_numpy(rows)]
    if mode == "nn":
        return w[_nearest(x, centres, 1)[:, 0]]
    if labels is None:
        _checks.fail(TypeError, "labels", f"the labels of all samples, for {mode}", None)
    y = np.asarray(labels, dtype=np.int64)
    _checks.length("labels", y.tolist(), len(x), "the rows of features")
    if mode == "classwise":
        return _classwise(w, x, centres, y, rows, compat, notes)
    k = min(_checks.integer("neighbours", neighbours, 1, 32), len(rows))
    near = _nearest(x, centres, k)
    share = (y[rows][near] == y[:, None]).mean(1)
    return (w[near[:, 0]] * share).astype(np.float32)


def _classwise(
    w: NDArray[np.float32], x: torch.Tensor, centres: torch.Tensor, y: NDArray[np.int64],
    rows: NDArray[np.int64], compat: str, notes: list[str],
) -> NDArray[np.float32]:  # fmt: skip
    indices, _ = nn_assign(x, centres, x_labels=torch.from_numpy(y), center_labels=torch.from_numpy(y[rows]))
    at = np.asarray(indices, dtype=np.int64)[:, 0]
    alone = at < 0
    found = w[np.where(alone, 0, at)]
    if alone.any():
        missing = sorted(set(y[alone].tolist()))
        told = f"labels {missing[:10]} are not in the coreset: {int(alone.sum())} samples"
        if compat == "reference":
            found[alone] = 0.0
            notes.append(f"{told} have the weight 0, as in the published code")
        else:
            found[alone] = w[_nearest(x[torch.from_numpy(alone)], centres, 1)[:, 0]]
            notes.append(f"{told} have the weight of the nearest of all")
    return found


def _nearest(x: torch.Tensor, centres: torch.Tensor, k: int) -> NDArray[np.int64]:
    """[N, k] positions in the coreset, nearest first."""
    indices, _ = nn_assign(x, centres, k)
    return np.asarray(indices, dtype=np.int64)


def normalised(weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """w / mean(w)."""
    mean = float(np.mean(weights, dtype=np.float64))
    if not mean > 0:
        _checks.fail(ValueError, "weights", "a weight above 0", "zeros only")
    return (weights / mean).astype(np.float32)


def constant(weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """The first control: every sample has the mean weight. What is left of an effect is the loss's scale."""
    return np.full(len(weights), np.mean(weights, dtype=np.float64), np.float32)


def shuffled(weights: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """The second control: the same weights, given to other samples."""
    return rng.permutation(weights)
