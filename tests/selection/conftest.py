"""Data that the tests of selectors share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from tenfold.selection import Recorder


@dataclass(frozen=True)
class Everything:
    """Enough for any method: features, labels, logits, scores, records of a run, a validation set."""

    X: np.ndarray
    y: np.ndarray
    logits: np.ndarray
    scores: np.ndarray
    dynamics: Recorder
    validation: tuple

    def fit(self, selector, **replaced):
        names = ("X", "y", "logits", "scores", "dynamics", "validation")
        given = {name: getattr(self, name) for name in names}
        if selector.scores_suffice:
            given.pop("scores")  # make them instead
        given.update(replaced)
        return selector.fit(given.pop("X"), given.pop("y"), **given)


def make_everything(n: int, classes: int = 3, d: int = 5, seed: int = 0, X=None) -> Everything:
    draw = np.random.default_rng(seed)
    y = np.arange(n) % classes
    y[: n // 4] = 0  # classes of different sizes
    if X is None:
        X = (draw.normal(size=(n, d)) + 2 * np.eye(classes, d)[y]).astype(np.float32)
    logits = (draw.normal(size=(n, classes)) + np.eye(classes)[y]).astype(np.float32)
    recorder = Recorder(n)
    for _ in range(4):
        noisy = torch.from_numpy(logits + draw.normal(size=logits.shape).astype(np.float32))
        recorder.update(torch.arange(n), noisy, torch.from_numpy(y))
    held = slice(0, max(1, n // 2))
    scores = draw.random(n)
    return Everything(X, y, logits, scores, recorder, (X[held], logits[held], y[held]))


@pytest.fixture
def everything() -> Everything:
    return make_everything(60)


@pytest.fixture(scope="session")
def digits() -> tuple[np.ndarray, np.ndarray]:
    """The 1,797 digits that scikit-learn brings: integers 0 .. 16, [N, 64]."""
    datasets = pytest.importorskip("sklearn.datasets")
    X, y = datasets.load_digits(return_X_y=True)
    return X.astype(np.float32), y
