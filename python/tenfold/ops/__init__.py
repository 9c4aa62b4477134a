"""Kernels as PyTorch ops: functions on tensors; NumPy and CuPy arrays come and go uncopied."""

from .dual import zo_embedding_dual, zo_embedding_perturbed, zo_linear_dual, zo_linear_perturbed
from .logprob import OptionLoss, option_loss, token_logprobs, verbalizer_loss
from .logprob_losses import linear_ceu, linear_kl, linear_undial, segment_nll
from .logprob_rows import GNBSample, LogProbs, gnb_sample, linear_gnb_sample, linear_logprob, logits_logprob
from .lowrank import LowRankTerm, lowrank_factor, zo_lowrank_, zo_lowrank_project
from .overlap import overlap_counts
from .softdice import SoftOverlap, soft_overlap
from .softdice_losses import dice_ce_loss, dice_loss, generalized_dice_loss, tversky_loss
from .sophia import (
    hutchinson_accumulate_,
    hutchinson_probe,
    sophia8_dequantize,
    sophia8_quantize,
    sophia_hessian_,
    sophia_step_,
)
from .surface import SurfaceMetrics, surface_metrics
from .zo import (
    BitMask,
    MagnitudeMask,
    Mask,
    RandomMask,
    Term,
    random_words,
    stochastic_round,
    zo_chain_,
    zo_moments,
    zo_perturb_,
    zo_restore_update_,
    zo_sample,
)
from .zo_select import count_within, magnitude_bits, quantile_abs, zo_direction_norm
from .zo_state import (
    ReplayPass,
    zo_adam_,
    zo_hizoo_perturb_,
    zo_hizoo_update_,
    zo_momentum_,
    zo_replay_,
    zo_sign_,
)

__all__ = [
    "BitMask",
    "GNBSample",
    "LogProbs",
    "LowRankTerm",
    "MagnitudeMask",
    "Mask",
    "OptionLoss",
    "RandomMask",
    "ReplayPass",
    "SoftOverlap",
    "SurfaceMetrics",
    "Term",
    "count_within",
    "dice_ce_loss",
    "dice_loss",
    "generalized_dice_loss",
    "gnb_sample",
    "hutchinson_accumulate_",
    "hutchinson_probe",
    "linear_ceu",
    "linear_gnb_sample",
    "linear_kl",
    "linear_logprob",
    "linear_undial",
    "logits_logprob",
    "lowrank_factor",
    "magnitude_bits",
    "option_loss",
    "overlap_counts",
    "quantile_abs",
    "random_words",
    "segment_nll",
    "soft_overlap",
    "sophia8_dequantize",
    "sophia8_quantize",
    "sophia_hessian_",
    "sophia_step_",
    "stochastic_round",
    "surface_metrics",
    "token_logprobs",
    "tversky_loss",
    "verbalizer_loss",
    "zo_adam_",
    "zo_chain_",
    "zo_direction_norm",
    "zo_embedding_dual",
    "zo_embedding_perturbed",
    "zo_hizoo_perturb_",
    "zo_hizoo_update_",
    "zo_linear_dual",
    "zo_linear_perturbed",
    "zo_lowrank_",
    "zo_lowrank_project",
    "zo_moments",
    "zo_momentum_",
    "zo_perturb_",
    "zo_replay_",
    "zo_restore_update_",
    "zo_sample",
    "zo_sign_",
]
