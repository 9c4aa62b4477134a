"""Kernels as PyTorch ops: functions on tensors; NumPy and CuPy arrays come and go uncopied."""

from .dual import zo_embedding_dual, zo_embedding_perturbed, zo_linear_dual, zo_linear_perturbed
from .logprob import OptionLoss, option_loss, token_logprobs, verbalizer_loss
from .lowrank import LowRankTerm, lowrank_factor, zo_lowrank_, zo_lowrank_project
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
    "LowRankTerm",
    "OptionLoss",
    "Term",
    "lowrank_factor",
    "option_loss",
    "random_words",
    "stochastic_round",
    "token_logprobs",
    "verbalizer_loss",
    "zo_adam_",
    "zo_chain_",
    "zo_embedding_dual",
    "zo_embedding_perturbed",
    "zo_linear_dual",
    "zo_linear_perturbed",
    "zo_lowrank_",
    "zo_lowrank_project",
    "zo_moments",
    "zo_perturb_",
    "zo_restore_update_",
    "zo_sample",
]
