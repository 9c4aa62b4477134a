"""The pictures: 1,797 handwritten digits of 8 x 8 pixels that come with scikit-learn (UCI, CC BY 4.0)."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

__all__ = ["TRAIN_SHARE", "Pictures", "digit_pictures"]

TRAIN_SHARE = 0.7
"""Of the pictures; the model and the judge are trained on the same ones and never see the others."""

_SPLIT_SEED = 0


class Pictures(NamedTuple):
    """train, test: float32 [n, 1, 8, 8] in [0, 1]. train_digits, test_digits: int64 [n]."""

    train: Tensor
    train_digits: Tensor
    test: Tensor
    test_digits: Tensor


@lru_cache(maxsize=1)
def digit_pictures() -> Pictures:
    """The pictures, parted once for all."""
    from sklearn.datasets import load_digits

    data = load_digits()
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(data.target))
    images = torch.from_numpy(data.images[order]).float().div_(16).unsqueeze(1)
    digits = torch.from_numpy(data.target[order]).long()
    n = int(TRAIN_SHARE * len(order))
    return Pictures(images[:n], digits[:n], images[n:], digits[n:])
