"""Attacks on unlearned diffusion models, all behind one call.

    target = Target(erased, original)
    cases = target_cases(original, [Case("0", "a photo of five", seed=7, guidance=3.0)])
    logs = TextGrad(k=3).run(target, cases, judge)
    attack_rates(logs).post

`ATTACKS` maps names to classes: a frozen dataclass of settings with `run(target, cases, judge, ...)`.
"""

from __future__ import annotations

from tenfold.diffusion.attack.asr import (
    Rate,
    Rates,
    attack_rates,
    average_minutes,
    published_rates,
    style_rates,
    wilson,
)
from tenfold.diffusion.attack.base import CaseError, run_attack, settings_of
from tenfold.diffusion.attack.logs import CaseLog, Entry, LogFolder, read_published, write_jsonl
from tenfold.diffusion.attack.p4d import P4D
from tenfold.diffusion.attack.search import NoAttack, RandomTokens, SeedSearch, Transfer
from tenfold.diffusion.attack.target import Case, Sampling, Shot, Target, shots, target_cases
from tenfold.diffusion.attack.text_grad import TextGrad

__all__ = [
    "ATTACKS",
    "P4D",
    "Case",
    "CaseError",
    "CaseLog",
    "Entry",
    "LogFolder",
    "NoAttack",
    "RandomTokens",
    "Rate",
    "Rates",
    "Sampling",
    "SeedSearch",
    "Shot",
    "Target",
    "TextGrad",
    "Transfer",
    "attack_rates",
    "average_minutes",
    "published_rates",
    "read_published",
    "run_attack",
    "settings_of",
    "shots",
    "style_rates",
    "target_cases",
    "wilson",
    "write_jsonl",
]

ATTACKS = {attack.name: attack for attack in (NoAttack, RandomTokens, SeedSearch, P4D, TextGrad, Transfer)}
"""Name -> class."""
