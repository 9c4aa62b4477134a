"""Kernels as PyTorch ops: functions on tensors; NumPy and CuPy arrays come and go uncopied."""

from .logprob import OptionLoss, option_loss, token_logprobs, verbalizer_loss
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
    "OptionLoss",
    "Term",
    "option_loss",
    "random_words",
    "stochastic_round",
    "token_logprobs",
    "verbalizer_loss",
    "zo_adam_",
    "zo_chain_",
    "zo_moments",
    "zo_perturb_",
    "zo_restore_update_",
    "zo_sample",
]
