"""Zeroth-order optimizers: training with forward passes only, at the memory of inference.

The optimizers follow `torch.optim`: parameter groups, `state_dict`, learning-rate schedulers.  `step` takes a
closure that returns the loss and calls it at perturbed weights; no gradient is computed or stored.
"""

from __future__ import annotations

from ._options import Blocks, Common, HybridFirstOrder, MagnitudeSparsity, RandomSparsity
from ._rebuild import from_hyperparameters
from ._record import FLAG_CHOICE, FLAG_CURVATURE, FLAG_GRAD, FLAG_SKIPPED, Scalar, StepRecord
from ._seeds import splitmix64
from .adam import RAdaZO, ZOAdam
from .conservative import ZOSGDConservative
from .forward_grad import ForwardGrad
from .fzoo import FZOO
from .hizoo import HiZOO
from .lozo import LOZO
from .muon import ZOMuon
from .sgd import ZOSGD, SparseMeZO, ZOSGDMomentum, ZOSGDSign

__all__ = [
    "FLAG_CHOICE",
    "FLAG_CURVATURE",
    "FLAG_GRAD",
    "FLAG_SKIPPED",
    "FZOO",
    "LOZO",
    "ZOSGD",
    "Blocks",
    "Common",
    "ForwardGrad",
    "HiZOO",
    "HybridFirstOrder",
    "MagnitudeSparsity",
    "RAdaZO",
    "RandomSparsity",
    "Scalar",
    "SparseMeZO",
    "StepRecord",
    "ZOAdam",
    "ZOMuon",
    "ZOSGDConservative",
    "ZOSGDMomentum",
    "ZOSGDSign",
    "from_hyperparameters",
    "splitmix64",
]
