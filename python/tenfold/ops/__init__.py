"""Kernels as PyTorch ops: functions on tensors; NumPy and CuPy arrays come and go uncopied."""

from .dual import zo_embedding_dual, zo_embedding_perturbed, zo_linear_dual, zo_linear_perturbed
from .logprob import OptionLoss, option_loss, token_logprobs, verbalizer_loss
from .logprob_fused import LinearLoss, linear_loss
from .logprob_losses import linear_ceu, linear_kl, linear_undial, segment_nll
from .logprob_rows import GNBSample, LogProbs, gnb_sample, linear_gnb_sample, linear_logprob, logits_logprob
from .logprob_topk import TopK, linear_topk, linear_topk_kl
from .lowrank import LowRankTerm, lowrank_factor, zo_lowrank_, zo_lowrank_project
from .mmd import (
    coral,
    linear_mmd,
    median_distance,
    mmd,
    weighted_mmd,
)
from .mmd_classes import ContrastiveDiscrepancy, cdd, lmmd
from .mmd_joint import joint_mmd
from .mmd_permutation import MMDTest, mmd_permutation_test
from .sophia import (
    hutchinson_accumulate_,
    hutchinson_probe,
    sophia8_dequantize,
    sophia8_quantize,
    sophia_hessian_,
    sophia_step_,
)
from .vocab_parallel import VocabShard, merge_vocab_shards, vocab_parallel_logprob
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
    "ContrastiveDiscrepancy",
    "GNBSample",
    "LinearLoss",
    "LogProbs",
    "LowRankTerm",
    "MMDTest",
    "MagnitudeMask",
    "Mask",
    "OptionLoss",
    "RandomMask",
    "ReplayPass",
    "Term",
    "TopK",
    "VocabShard",
    "cdd",
    "coral",
    "count_within",
    "gnb_sample",
    "hutchinson_accumulate_",
    "hutchinson_probe",
    "joint_mmd",
    "linear_ceu",
    "linear_gnb_sample",
    "linear_kl",
    "linear_logprob",
    "linear_loss",
    "linear_mmd",
    "linear_topk",
    "linear_topk_kl",
    "linear_undial",
    "lmmd",
    "logits_logprob",
    "lowrank_factor",
    "magnitude_bits",
    "median_distance",
    "merge_vocab_shards",
    "mmd",
    "mmd_permutation_test",
    "option_loss",
    "quantile_abs",
    "random_words",
    "segment_nll",
    "sophia8_dequantize",
    "sophia8_quantize",
    "sophia_hessian_",
    "sophia_step_",
    "stochastic_round",
    "token_logprobs",
    "verbalizer_loss",
    "vocab_parallel_logprob",
    "weighted_mmd",
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
