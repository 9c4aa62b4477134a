"""Evaluation of unlearned models.

evaluate_tofu(model, tokenizer, data, reference=...)     TOFU's and SOUL's figures
evaluate_copyright(...), evaluate_toxicity(...), evaluate_muse(...), text_perplexity(...)
membership, extraction_strength, rouge_l, sentence_bleu, ks_2samp, ...    the parts, to be called alone
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tenfold.llm.unlearn.evaluate.attacks import few_shot_template, quantised, relearn
    from tenfold.llm.unlearn.evaluate.bleu import sentence_bleu
    from tenfold.llm.unlearn.evaluate.generation import generate
    from tenfold.llm.unlearn.evaluate.gibberish import base_logprobs, repetition
    from tenfold.llm.unlearn.evaluate.logs import read_log, write_logs
    from tenfold.llm.unlearn.evaluate.memorisation import exact_memorisation, extraction_strength
    from tenfold.llm.unlearn.evaluate.mia import membership, min_k, min_k_plus_plus, privleak
    from tenfold.llm.unlearn.evaluate.muse import evaluate_muse
    from tenfold.llm.unlearn.evaluate.rouge import rouge_l
    from tenfold.llm.unlearn.evaluate.scores import mean_nll, perplexity, token_scores
    from tenfold.llm.unlearn.evaluate.statistics import auc, harmonic_mean, ks_2samp
    from tenfold.llm.unlearn.evaluate.texts import (
        evaluate_copyright,
        evaluate_toxicity,
        profanity_scorer,
        text_perplexity,
    )
    from tenfold.llm.unlearn.evaluate.tofu import TofuResult, evaluate_tofu
    from tenfold.llm.unlearn.evaluate.truth import forget_quality, model_utility, truth_ratio

_HOMES = {
    "attacks": ("few_shot_template", "quantised", "relearn"),
    "bleu": ("sentence_bleu",),
    "generation": ("generate",),
    "gibberish": ("base_logprobs", "repetition"),
    "logs": ("read_log", "write_logs"),
    "mia": ("membership", "min_k", "min_k_plus_plus", "privleak"),
    "memorisation": ("exact_memorisation", "extraction_strength"),
    "muse": ("evaluate_muse",),
    "rouge": ("rouge_l",),
    "scores": ("mean_nll", "perplexity", "token_scores"),
    "statistics": ("auc", "harmonic_mean", "ks_2samp"),
    "texts": ("evaluate_copyright", "evaluate_toxicity", "profanity_scorer", "text_perplexity"),
    "tofu": ("TofuResult", "evaluate_tofu"),
    "truth": ("forget_quality", "model_utility", "truth_ratio"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "TofuResult",
    "auc",
    "base_logprobs",
    "evaluate_copyright",
    "evaluate_muse",
    "evaluate_tofu",
    "evaluate_toxicity",
    "exact_memorisation",
    "extraction_strength",
    "few_shot_template",
    "forget_quality",
    "generate",
    "harmonic_mean",
    "ks_2samp",
    "mean_nll",
    "membership",
    "min_k",
    "min_k_plus_plus",
    "model_utility",
    "perplexity",
    "privleak",
    "profanity_scorer",
    "quantised",
    "read_log",
    "relearn",
    "repetition",
    "rouge_l",
    "sentence_bleu",
    "text_perplexity",
    "token_scores",
    "truth_ratio",
    "write_logs",
]


def __getattr__(name: str) -> Any:
    if name in _HOME_OF:
        return getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
