"""Kernels as PyTorch ops: functions on tensors; NumPy and CuPy arrays come and go uncopied."""

from .zo import (
    Term,
    random_words,
    stochastic_round,
    zo_adam_,
    zo_chain_,
    zo_moments,
    zo_perturb_,
    zo_restore_update_,
    zo_sample,
)

__all__ = [
    "Term",
    "random_words",
    "stochastic_round",
    "zo_adam_",
    "zo_chain_",
    "zo_moments",
    "zo_perturb_",
    "zo_restore_update_",
    "zo_sample",
]
