"""Zeroth-order optimizers, which train with forward passes only, and Sophia, which is second-order.

The optimizers follow `torch.optim`: parameter groups, `state_dict`, learning-rate schedulers.  `step` of a
zeroth-order one takes a closure that returns the loss and calls it at perturbed weights; no gradient is
computed or stored.
"""

from __future__ import annotations

from ._options import Blocks, Common, HybridFirstOrder, MagnitudeSparsity, RandomSparsity
from ._rebuild import from_hyperparameters
from ._record import FLAG_CHOICE as FLAG_CHOICE
from ._record import FLAG_CURVATURE as FLAG_CURVATURE
from ._record import FLAG_GRAD as FLAG_GRAD
from ._record import FLAG_SKIPPED as FLAG_SKIPPED
from ._record import Scalar, StepRecord
from ._seeds import splitmix64
from ._sophia_callback import SophiaCallback
from .adam import RAdaZO, ZOAdam
from .conservative import ZOSGDConservative
from .forward_grad import ForwardGrad
from .fzoo import FZOO
from .hizoo import HiZOO
from .lozo import LOZO
from .muon import ZOMuon
from .sgd import ZOSGD, SparseMeZO, ZOSGDMomentum, ZOSGDSign
from .sophia import Sophia, SophiaG, SophiaH

__all__ = [
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
    "Sophia",
    "SophiaCallback",
    "SophiaG",
    "SophiaH",
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
