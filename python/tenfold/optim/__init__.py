"""Zeroth-order optimizers: training with forward passes only, at the memory of inference.

The optimizers follow `torch.optim`: parameter groups, `state_dict`, learning-rate schedulers.  `step` takes a
closure that returns the loss and calls it at perturbed weights; no gradient is computed or stored.
"""

from __future__ import annotations

from ._base import StepRecord
from ._seeds import splitmix64
from .adam import ZOAdam
from .fzoo import FZOO
from .sgd import ZOSGD

__all__ = ["FZOO", "ZOSGD", "StepRecord", "ZOAdam", "splitmix64"]
