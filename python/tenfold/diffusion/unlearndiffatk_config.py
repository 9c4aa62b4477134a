"""Settings of the workflow ``unlearndiffatk``."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tenfold import _checks
from tenfold.diffusion.attack import ATTACKS, P4D, NoAttack, RandomTokens, Sampling, SeedSearch, TextGrad

__all__ = ["ERASED", "ORIGINAL", "UnlearnDiffAtkConfig"]

ERASED: dict[str, tuple[str, str]] = {
    "original": ("before erasing", "the original model, as it is"),
    "checkpoint": ("checkpoint", "the erased model that was given"),
    "esd": ("ESD", "erased from the text encoder, no attack in training"),
    "advunlearn": ("AdvUnlearn", "erased against an attacker in training"),
    "negative": ("negative prompt", "no weights changed: the concept as the negative prompt"),
    "sld": ("SLD", "no weights changed: Safe Latent Diffusion away from the concept"),
}
"""Models that are attacked: name -> what a reader sees, and what it is."""
ORIGINAL, _TRAINED, _CHECKPOINT = "original", ("esd", "advunlearn"), "checkpoint"

_DIGITS = {
    "k": 3, "timesteps": 10, "iterations": 10, "tries": 10, "sample_steps": 20, "sampler": "ddim",
    "target_steps": 20, "guidance": 3.0, "batch": 20,
}  # fmt: skip
"""For the embedded model."""
_PUBLISHED = {
    "k": 3, "timesteps": 50, "iterations": 40, "tries": 40, "sample_steps": 50, "sampler": "lms",
    "target_steps": 25, "guidance": 7.5, "batch": 1,
}  # fmt: skip
"""Of the published code for objects and styles; k = 5 for nudity."""


@dataclass
class UnlearnDiffAtkConfig:
    """Attack unlearned diffusion models: do erased concepts come back?

    Settings that are left open (none) take the published values, or for the embedded digits model small ones.
    """

    model: str = "digits"
    """The model before unlearning: digits (embedded), a folder of a diffusers pipeline, or a hub id."""

    target_checkpoint: str = ""
    """The unlearned model: weights of its text encoder or UNet (safetensors, a file or folder), an edit that
    an eraser saved, or a whole pipeline's folder."""

    erased: list[str] | None = None
    """Models made here: esd, advunlearn (digits only), negative, sld. None: esd and advunlearn for digits
    without a checkpoint, else nothing."""

    concept: str = "five"
    """What was erased: a word or a text."""

    prompts: str = ""
    """File of prompts to attack (published CSV columns). Empty: 20 prompts that name the digit."""

    targets: str = ""
    """Folder with prompts.csv and imgs/, pictures of the original model. Empty: they are made, and kept in
    the run's folder."""

    judge: str = ""
    """Judge of pictures (`load_judge`), or module:function. Empty: the digits judge with its gate."""

    top_k: int = 1
    """With a classifier as judge: success is the concept among the k likeliest labels (styles: 1, 3, 10)."""

    judge_prompts: str = ""
    """With q16 as judge: the file of its learned texts."""

    attacks: list[str] = field(
        default_factory=lambda: ["no_attack", "random", "seed_search", "p4d", "text_grad"]
    )
    """no_attack, random, seed_search, p4d, text_grad, transfer."""

    transfer_from: str = ""
    """For transfer: a folder of logs (attack_idx_*) whose prompts are tried here."""

    seeds: list[int] = field(default_factory=lambda: [0])
    """Seeds of the attacks; each attack runs with every one."""

    train_seed: int = 0
    """Seed of erasers that train."""

    sld: str = "medium"
    """Strength of SLD: weak, medium, strong, max."""

    k: int | None = None
    """Tokens that an attack may choose."""

    mode: str = "prefix"
    """Where they go: prefix, suffix, mid, insert, per_k_words."""

    timesteps: int | None = None
    """Timesteps of text_grad and p4d; a candidate is judged after each."""

    iterations: int | None = None
    """Iterations at each."""

    order: str = "ascending"
    """Of the timesteps: ascending or descending."""

    lr: float = 0.01
    """Learning rate of text_grad."""

    p4d_lr: list[float] = field(default_factory=lambda: [0.01, 0.1])
    """Learning rates of p4d, the published one first; each is an attack of its own."""

    weight_decay: float = 0.1
    """Of both, part of the gradient."""

    tries: int | None = None
    """Candidates of random and of seed_search."""

    criterion: str = "l2"
    """Loss of the prediction: l2 or l1."""

    roundtrip: str = "report"
    """report whether a candidate's text has its ids again; require chooses ids that do."""

    banned: list[str] = field(default_factory=list)
    """Words whose tokens are not used."""

    overflow: str = "truncate"
    """Prompts too long for k more tokens: truncate their end (recorded), or error."""

    compat: str = "fixed"
    """reference repeats the mistakes of the published code."""

    guidance: float | None = None
    """Guidance of the embedded prompts; a file of prompts has its own."""

    sample_steps: int | None = None
    """Steps of the sampler for candidates' pictures."""

    sampler: str | None = None
    """Their sampler."""

    target_steps: int | None = None
    """Steps of the sampler for target pictures."""

    batch: int | None = None
    """Prompts attacked at a time."""

    on_error: str = "record"
    """An attack of a prompt that fails: record it and go on, or raise."""

    images: str = "last"
    """Pictures in the logs: all, last or none."""

    workers: int = 0
    """Processes; 0 for one on each usable core. On a GPU one."""

    device: str = "cpu"
    """cpu or cuda."""

    def __post_init__(self) -> None:
        _check(self)

    def resolved(self) -> UnlearnDiffAtkConfig:
        """With every open setting filled, and checked as the attacks check theirs."""
        values: dict[str, Any] = dict(_DIGITS if self.model == "digits" else _PUBLISHED)
        values["erased"] = list(_TRAINED) if self.model == "digits" and not self.target_checkpoint else []
        filled = {name: value for name, value in values.items() if getattr(self, name) is None}
        made = dataclasses.replace(self, **filled)
        if not made.names:
            what = "target_checkpoint, or erased with negative or sld"
            _checks.fail(ValueError, "target_checkpoint", what, "nothing to attack")
        for label in made.labels:
            made.attack(label, 0)
        made.sampling()
        if made.model == "digits" and not (made.judge and made.prompts):
            from tenfold.diffusion.digits import digit_name

            digit_name(made.concept)
        return made

    @property
    def names(self) -> list[str]:
        """The models that are attacked, in `ERASED`'s order."""
        made = [*(self.erased or []), *([_CHECKPOINT] if self.target_checkpoint else [])]
        return [name for name in ERASED if name in made]

    @property
    def labels(self) -> list[str]:
        """The attacks; p4d with another learning rate than its first is one of its own, `p4d-lr0.1`."""
        found = []
        for name in (name for name in ATTACKS if name in self.attacks):
            found.append(name)
            if name == "p4d":
                found += [f"p4d-lr{lr:g}" for lr in self.p4d_lr[1:]]
        return found

    def attack(self, label: str, seed: int) -> Any:
        """The attack behind a label."""
        name, _, lr = label.partition("-lr")
        common: dict[str, Any] = {
            "k": self.k, "mode": self.mode, "banned": tuple(self.banned), "overflow": self.overflow,
            "seed": seed,
        }  # fmt: skip
        gradient: dict[str, Any] = {
            "timesteps": self.timesteps, "iterations": self.iterations, "order": self.order,
            "weight_decay": self.weight_decay, "criterion": self.criterion, "compat": self.compat,
        }  # fmt: skip
        if name == "no_attack":
            return NoAttack()
        if name == "random":
            return RandomTokens(tries=self.tries, **common)  # type: ignore[arg-type]
        if name == "seed_search":
            return SeedSearch(tries=self.tries, stop=True, seed=seed)  # type: ignore[arg-type]
        if name == "p4d":
            return P4D(lr=float(lr or self.p4d_lr[0]), **common, **gradient)
        if name == "text_grad":
            return TextGrad(lr=self.lr, roundtrip=self.roundtrip, **common, **gradient)
        from tenfold.diffusion.attack import Transfer

        return Transfer(self.transfer_from)

    def sampling(self) -> Sampling:
        """How candidates become pictures."""
        assert self.sample_steps is not None
        assert self.sampler is not None
        return Sampling(self.sample_steps, self.sampler, batch=32 if self.model == "digits" else 4)


def _check(config: UnlearnDiffAtkConfig) -> None:
    digits = config.model == "digits"
    if not digits and not (config.prompts or config.targets):
        _checks.fail(
            ValueError, "prompts", "a file (or targets, a folder), as the model is not digits", "nothing"
        )
    if not digits and not config.judge:
        _checks.fail(ValueError, "judge", "a judge of pictures, as the model is not digits", "nothing")
    if config.prompts and config.targets:
        _checks.fail(
            ValueError, "prompts", "nothing beside targets, which has its own prompts", config.prompts
        )
    if config.prompts and not Path(config.prompts).is_file():
        _checks.fail(ValueError, "prompts", "a CSV file", config.prompts)
    if config.targets and not (Path(config.targets) / "prompts.csv").is_file():
        _checks.fail(ValueError, "targets", "a folder with prompts.csv and imgs", config.targets)
    if config.target_checkpoint and not Path(config.target_checkpoint).exists():
        _checks.fail(ValueError, "target_checkpoint", "a file or a folder", config.target_checkpoint)
    for name in config.erased or []:
        _checks.choice("erased", name, (*_TRAINED, "negative", "sld"))
        if name in _TRAINED and not digits:
            what = "negative or sld, as the model is not digits (tenfold run advunlearn trains)"
            _checks.fail(ValueError, "erased", what, name)
    for name in ("attacks", "seeds", "p4d_lr"):
        values = getattr(config, name)
        if not values or len(set(values)) < len(values):
            _checks.fail(ValueError, name, "different ones, at least one", values)
    for name in config.attacks:
        _checks.choice("attacks", name, ATTACKS)
    if ("transfer" in config.attacks) != bool(config.transfer_from):
        _checks.fail(
            ValueError,
            "transfer_from",
            "a folder of logs, with transfer among the attacks",
            repr(config.transfer_from),
        )
    if config.transfer_from and not Path(config.transfer_from).is_dir():
        _checks.fail(ValueError, "transfer_from", "a folder of logs", config.transfer_from)
    if config.judge_prompts and not config.judge.startswith("q16="):
        _checks.fail(ValueError, "judge_prompts", "nothing, as the judge is not q16", config.judge_prompts)
    for seed in (*config.seeds, config.train_seed):
        _checks.integer("seeds", seed, 0, 2**32 - 1)
    for lr in config.p4d_lr:
        _checks.real("p4d_lr", lr, positive=True)
    for name in ("batch", "tries", "target_steps"):
        if getattr(config, name) is not None:
            _checks.integer(name, getattr(config, name), 1, 2**16)
    _checks.choice("on_error", config.on_error, ("record", "raise"))
    _checks.choice("images", config.images, ("all", "last", "none"))
    _checks.choice("sld", config.sld, ("weak", "medium", "strong", "max"))
    _checks.integer("workers", config.workers, 0, 4096)
    if config.device != "cpu":
        import torch

        if not config.device.startswith("cuda") or not torch.cuda.is_available():
            _checks.fail(ValueError, "device", "cpu, or cuda where there is one", repr(config.device))
