"""Settings of the workflow ``advunlearn``."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tenfold import _checks
from tenfold.diffusion.erase.advunlearn import AdvUnlearn
from tenfold.diffusion.erase.soft_prompt import ATTACKS, INITS, SPACES
from tenfold.diffusion.erase.training import ESD

__all__ = ["ERASED", "AdvUnlearnConfig"]

ERASED: dict[str, tuple[str, str]] = {
    "esd": ("ESD", "the concept is erased, no attack in training"),
    "advunlearn": ("AdvUnlearn", "erased against an attacker in training"),
    "fast": ("fast AdvUnlearn", "the attacker takes one signed step"),
    "no-retain": ("AdvUnlearn without retained prompts", "nothing holds the other concepts"),
}
"""Erased models: name -> what a reader sees, and what it is."""

_DIGITS = {
    "train_method": "text_encoder", "lr": 1e-3, "esd_iterations": 60, "iterations": 120, "warmup": 20,
    "batch": 8, "bank_size": 32, "retain_weight": 1.0, "retain_batch": 8, "train_steps": 20,
    "attack_steps": 10, "attack_lr": 0.05, "fast_lr": 0.5, "try_timesteps": 10, "try_iterations": 10,
    "tries": 10, "sample_steps": 20, "sampler": "ddim", "guidance": 3.0,
}  # fmt: skip
"""For the embedded model, chosen on "five"."""
_PUBLISHED = {
    "train_method": "text_encoder", "lr": 1e-5, "esd_iterations": 1000, "iterations": 1000, "warmup": 200,
    "batch": 1, "bank_size": 64, "retain_weight": 0.3, "retain_batch": 5, "train_steps": 50,
    "attack_steps": 30, "attack_lr": 1e-3, "fast_lr": 1e-3, "try_timesteps": 50, "try_iterations": 40,
    "tries": 40, "sample_steps": 50, "sampler": "lms", "guidance": 7.5,
}  # fmt: skip
"""Of AdvUnlearn's README, but for the bank of walks."""


@dataclass
class AdvUnlearnConfig:
    """Erase a concept from a text-to-image model, with an attacker in training or without; attack the result.

    Settings that are left open (none) take the published values, or for the embedded digits model small ones.
    """

    model: str = "digits"
    """digits (embedded), a folder of a diffusers pipeline, or a hub id."""

    concept: str = "five"
    """What is erased: a word or a text."""

    prompts: list[str] = field(default_factory=list)
    """Texts that mean it. None: the concept itself."""

    retain: str = ""
    """File of prompts to keep (CSV with a column prompt). Empty: the embedded set, for digits only."""

    attack_prompts: str = ""
    """File of prompts to attack (published CSV columns). Empty: 20 prompts that name the digit."""

    judge: str = ""
    """Judge of pictures (`load_judge`), or module:function. Empty: the digits judge with its gate."""

    erased: list[str] = field(default_factory=lambda: list(ERASED))
    """Models to make: esd, advunlearn, fast, no-retain."""

    seeds: list[int] = field(default_factory=lambda: [0])
    """Seeds of training and attack; every model is made with each."""

    train_method: str | None = None
    """Weights that train: text_encoder, text_encoder_layer0, xattn, noxattn, full, ..."""

    encoders: str = "both"
    """Which of SDXL's text encoders train: both, text_encoder or text_encoder_2."""

    lr: float | None = None
    """Learning rate of Adam."""

    esd_iterations: int | None = None
    """Iterations of ESD."""

    iterations: int | None = None
    """Iterations of AdvUnlearn."""

    warmup: int | None = None
    """Of these, the ones before the first attack."""

    batch: int | None = None
    """Latents in a step."""

    bank_size: int | None = None
    """Walks of the concept that are made once; 0 walks anew for every draw, as published."""

    retain_weight: float | None = None
    """Weight of the term that keeps retained prompts."""

    retain_batch: int | None = None
    """Retained prompts in a step."""

    train_steps: int | None = None
    """DDIM steps of the walks in training."""

    attack: str = "pgd"
    """Attack in training: pgd or fast_at."""

    attack_steps: int | None = None
    """Its steps."""

    attack_lr: float | None = None
    """Its learning rate."""

    fast_lr: float | None = None
    """Learning rate of the one step of `fast`."""

    attack_init: str = "random"
    """Where it starts: random or latest."""

    k: int = 1
    """Embeddings that it may choose."""

    mode: str = "prefix"
    """Where they go: prefix, suffix, mid, insert, per_k_words, replace, add."""

    space: str = "word_embd"
    """word_embd, or condition_embd for a delta on all text states."""

    t_alignment: str = "exact"
    """exact or reference."""

    compat: str = "fixed"
    """reference repeats the mistakes of the published code."""

    try_k: int = 3
    """Tokens of the attacks on finished models."""

    try_timesteps: int | None = None
    """Timesteps of text_grad."""

    try_iterations: int | None = None
    """Iterations at each."""

    tries: int | None = None
    """Random prefixes per prompt."""

    sample_steps: int | None = None
    """Steps of the sampler for pictures."""

    sampler: str | None = None
    """Sampler of pictures."""

    guidance: float | None = None
    """Guidance of pictures whose prompt names none."""

    state_every: int = 20
    """Iterations after which a training's state is kept, for an interrupted run to go on from."""

    workers: int = 0
    """Processes; 0 for one on each usable core. On a GPU one."""

    device: str = "cpu"
    """cpu or cuda."""

    def __post_init__(self) -> None:
        _check(self)

    def resolved(self) -> AdvUnlearnConfig:
        """With every open setting filled, and checked as the erasers check theirs."""
        values = _DIGITS if self.model == "digits" else _PUBLISHED
        filled: dict[str, Any] = {
            name: value for name, value in values.items() if getattr(self, name) is None
        }
        made = dataclasses.replace(self, **{**filled, "erased": [m for m in ERASED if m in self.erased]})
        for name in made.erased:
            made.method(name)
        if made.model == "digits":
            from tenfold.diffusion.digits import digit_name

            digit_name(made.concept)
        return made

    def method(self, name: str) -> Any:
        """The eraser of a model."""
        common: dict[str, Any] = {
            "train_method": self.train_method, "encoders": self.encoders, "lr": self.lr, "batch": self.batch,
            "bank_size": self.bank_size, "retain_batch": self.retain_batch,
            "retain_weight": 0.0 if name == "no-retain" else self.retain_weight,
            "steps": self.train_steps, "t_alignment": self.t_alignment, "compat": self.compat,
        }  # fmt: skip
        if name == "esd":
            return ESD(iterations=self.esd_iterations, **common)  # type: ignore[arg-type]
        fast = name == "fast"
        common |= {
            "iterations": self.iterations, "warmup": self.warmup,
            "attack": "fast_at" if fast else self.attack, "attack_steps": 1 if fast else self.attack_steps,
            "attack_lr": self.fast_lr if fast else self.attack_lr, "attack_init": self.attack_init,
            "k": self.k, "mode": self.mode, "space": self.space,
        }  # fmt: skip
        return AdvUnlearn(**common)


def _check(config: AdvUnlearnConfig) -> None:
    if config.model != "digits":
        for name in ("retain", "attack_prompts", "judge"):
            if not getattr(config, name):
                _checks.fail(ValueError, name, "a file (or a judge), as the model is not digits", "nothing")
    for name in ("retain", "attack_prompts"):
        path = getattr(config, name)
        if path and not Path(path).is_file():
            _checks.fail(ValueError, name, "a CSV file", path)
    for name in ("erased", "seeds"):
        values = getattr(config, name)
        if not values or len(set(values)) < len(values):
            _checks.fail(ValueError, name, "different ones, at least one", values)
    for name in config.erased:
        _checks.choice("erased", name, ERASED)
    for seed in config.seeds:
        _checks.integer("seeds", seed, 0, 2**32 - 1)
    _checks.choice("attack", config.attack, ATTACKS)
    _checks.choice("attack_init", config.attack_init, INITS)
    _checks.choice("space", config.space, SPACES)
    _checks.integer("workers", config.workers, 0, 4096)
    _checks.integer("state_every", config.state_every, 1, 10**9)
    _checks.integer("try_k", config.try_k, 1, 2**16)
    if config.device != "cpu":
        import torch

        if not config.device.startswith("cuda") or not torch.cuda.is_available():
            _checks.fail(ValueError, "device", "cpu, or cuda where there is one", repr(config.device))
