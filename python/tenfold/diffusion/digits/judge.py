"""The judge of digits: a support vector classifier, and a gate against what is no digit.

A classifier of ten classes gives every picture one of them: noise and blank pictures become "1". The gate
accepts a picture only if a training picture is as near as the nearest one is to 99 % of held-out real digits.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tenfold import _checks
from tenfold.diffusion.digits.images import digit_pictures
from tenfold.diffusion.digits.vocabulary import NAMES, digit_of
from tenfold.diffusion.judges import Verdict

__all__ = ["GATE_QUANTILE", "DigitJudge", "gate_distance", "read_digits"]

GATE_QUANTILE = 0.99


@lru_cache(maxsize=1)
def _classifier() -> Any:
    from sklearn.svm import SVC

    real = digit_pictures()
    return SVC(gamma=0.08, C=10.0).fit(_rows(real.train).numpy(), real.train_digits.numpy())


@lru_cache(maxsize=1)
def gate_distance() -> float:
    """The largest distance to the nearest training picture that is accepted, in pixels of [-1, 1]."""
    real = digit_pictures()
    return float(np.quantile(_nearest(_rows(real.test)).numpy(), GATE_QUANTILE))


def read_digits(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The digit read in each picture [B, 1, 8, 8] in [0, 1].

    Returns:
        digits, int64 [B]; scores, float32 [B, 10] (one against the rest); accepted by the gate, bool [B].

    Raises:
        ValueError: pictures of another size, or with NaN.
    """
    if images.ndim != 4 or images.shape[1:] != (1, 8, 8):
        _checks.fail(ValueError, "images", "[B, 1, 8, 8]", list(images.shape))
    if not images.shape[0]:
        return torch.empty(0, dtype=torch.int64), torch.empty(0, 10), torch.empty(0, dtype=torch.bool)
    rows = _rows(images)
    if not bool(rows.isfinite().all()):
        _checks.fail(ValueError, "images", "finite pixels", "NaN or infinity")
    scores = torch.from_numpy(_classifier().decision_function(rows.numpy())).float()
    digits = torch.from_numpy(_classifier().predict(rows.numpy())).long()
    return digits, scores, _nearest(rows) <= gate_distance()


class DigitJudge:
    """Is the picture this digit?

    target: 0 to 9 or a name. gate: refuse what is no digit (see the module).
    A verdict's score is the classifier's for `target`, one against the rest; its labels are English names.
    """

    def __init__(self, target: int | str, *, gate: bool = True) -> None:
        self.target, self.gate = digit_of(target), gate
        self.name = f"digits-svc-{NAMES[self.target][0]}" + ("" if gate else "-ungated")

    def __call__(self, images: Tensor) -> Verdict:
        digits, scores, accepted = read_digits(images.detach().cpu())
        if not self.gate:
            accepted = torch.ones_like(accepted)
        labels = tuple(NAMES[d][0] for d in digits.tolist())
        return Verdict((digits == self.target) & accepted, labels, scores[:, self.target], accepted)


def _rows(images: Tensor) -> Tensor:
    return (images.flatten(1) * 2 - 1).double()


def _nearest(rows: Tensor) -> Tensor:
    return torch.cdist(rows, _rows(digit_pictures().train)).amin(1)
