"""Settings of the workflow ``dp4tl``."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field, replace
from typing import Literal

from tenfold import _checks
from tenfold.selection.transfer.attack import Attack
from tenfold.selection.transfer.methods import DEFAULT, METHODS
from tenfold.selection.transfer.networks import ARCHITECTURES
from tenfold.selection.transfer.published import read_published
from tenfold.selection.transfer.recipe import FINETUNE_FF, FINETUNE_LP, PRETRAIN, SCRATCH, Recipe
from tenfold.selection.transfer.tasks import FASHION

__all__ = ["EMBEDDED", "DP4TLConfig"]

EMBEDDED = ("digits", "mnist", "mnist-fashion")
"""Sources that need no path."""

SMALL = Recipe(
    epochs=8, batch=64, optimizer="adam", lr=3e-3, weight_decay=0.0, scheduler="cosine", augment=False
)
"""Pretraining in the embedded tasks."""
SMALL_TUNE = replace(FINETUNE_FF, lr=3e-3, epochs=60, augment=False)
"""Fine-tuning, and training from scratch, in the embedded tasks: the published settings (1e-4, 200 epochs)
move a network of this size too little in one batch per epoch. The linear probe has the published settings."""


@dataclass
class DP4TLConfig:
    """Prune a source by what a target needs of it, pretrain on the rest, transfer, and compare with controls.

    A surrogate trained on the source says which source classes the target's images look like; the others are
    dropped. The embedded default prunes 60 classes of digits for the digits of other writers.
    """

    source: str = "digits"
    """digits, mnist, mnist-fashion, or a path: a folder per class, .npz, .beton, hf:NAME."""

    target: str = ""
    """Path of the target, with splits train and test (or val). Not for the embedded tasks."""

    target_split: Literal["", "test", "val"] = ""
    """Which split is tested on. Left empty: test, or val where there is no test."""

    fashion: str = FASHION
    """mnist-fashion: folder of Fashion-MNIST's IDX files."""

    methods: list[str] = field(default_factory=list)
    """What is compared. Empty: the usual ten. Also ffmm, cmt, cmt-median, fm-reverse, grand, margin,
    ssp-hard, ssp-easy, classes, file."""

    ratios: list[float] = field(default_factory=lambda: [0.4, 0.6, 0.8])
    """Shares of the source that are pruned."""

    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    """Each draws the shots, the order of the images and the networks' first weights."""

    draws: int = 2
    """Random prunings per seed."""

    surrogate: str = ""
    """Architecture of the surrogate. Left empty: small, or resnet18 for a path."""

    surrogate_weights: str = ""
    """A .safetensors file for the surrogate instead of training it. torchvision's names fit."""

    surrogate_settings: str = ""
    """Settings file (JSON) of the published code for the surrogate's training. Left empty: rn18_16."""

    model: str = ""
    """Architecture that is pretrained and transferred. Left empty: cnn, or resnet50 for a path."""

    pretrain: str = ""
    """Settings file (JSON) of the published code for pretraining. Left empty: its settings for 16 epochs."""

    finetune: list[str] = field(default_factory=list)
    """Settings files (JSON) for linear probe, fine-tuning, training from scratch; one of each at most."""

    evaluate: list[Literal["lp", "ff"]] = field(default_factory=lambda: ["lp", "ff"])
    """lp: linear probe of the frozen network. ff: fine-tuning of all of it."""

    head: Literal["new", "compat"] = "new"
    """Head for the target: a new one, or (compat) the source's with all its outputs, as published."""

    adversarial: Literal["none", "pgd", "pgd-compat"] = "none"
    """Attack the images of pretraining (3/255, 3 steps)."""

    shots: int | None = None
    """Labelled target images per class for the transfer; 0 for all. Left open: 5, or all for a path."""

    epochs: int = 0
    """Epochs of pretraining instead of the recipe's. 0: the recipe's."""

    clusters: int = 0
    """Pseudo-classes of fm-kmeans. 0: 120 for the embedded tasks, else min(2000, images / 50)."""

    unlabelled: Literal["", "pca", "surrogate"] = ""
    """Features of methods without labels: 32 principal components of the pixels, or the surrogate's (then it
    should be a self-supervised one). Left empty: pca for the embedded tasks."""

    coreset_ratio: float = 0.8
    """ffmm and cmt: share of each class that is left out of its mean."""

    grand_models: int = 5
    """grand: networks that the score is averaged over."""

    grand_epochs: int = 1
    """grand: epochs these are trained for."""

    scores: str = ""
    """file: CSV of in-domain scores, identifier in column 1 and score in column 3."""

    classes: str = ""
    """classes: .npy or text file of hand-picked class numbers."""

    cache: str = ""
    """Folder that keeps the surrogate's features of the source (memory-mapped). Left empty: in memory."""

    amp: Literal["none", "fp16", "bf16"] = "none"
    """Arithmetic of networks. fp16 needs CUDA; the published code has it."""

    device: str = "cpu"
    """cpu or cuda."""

    workers: int = 0
    """Trainings side by side; 0 for one on each usable core (on a GPU: one)."""

    readers: int = 0
    """Processes that read images, for each training."""

    save: Literal["none", "first"] = "none"
    """Weights of the pretrained networks to keep: none, or those of the first seed."""

    def __post_init__(self) -> None:
        _check(self)

    @property
    def embedded(self) -> bool:
        """Whether the task comes with the library."""
        return self.source in EMBEDDED

    def resolved(self) -> DP4TLConfig:
        """With everything named that was left open."""
        small = self.embedded
        return dataclasses.replace(
            self,
            methods=list(self.methods) or list(DEFAULT),
            surrogate=self.surrogate or ("small" if small else "resnet18"),
            model=self.model or ("cnn" if small else "resnet50"),
            shots=(5 if small else 0) if self.shots is None else self.shots,
            clusters=self.clusters or (120 if small else 0),
            unlabelled=self.unlabelled or ("pca" if small else "surrogate"),
        )

    def recipe(self, what: Literal["surrogate", "pretrain", "lp", "ff", "scratch"]) -> Recipe:
        """The recipe of a training, from its settings file where one is named."""
        if what == "surrogate":
            found = SMALL if self.embedded else PRETRAIN
            if self.surrogate_settings:
                found = read_published(self.surrogate_settings).recipe
            elif self.embedded:
                found = replace(found, epochs=5)
        elif what == "pretrain":
            found = read_published(self.pretrain).recipe if self.pretrain else SMALL
            if not self.pretrain and not self.embedded:
                found = PRETRAIN
            if self.epochs:
                found = stretched(found, self.epochs)
            if self.adversarial != "none":
                found = replace(found, attack=Attack(compat=self.adversarial == "pgd-compat"))
        else:
            found = {"lp": FINETUNE_LP, "ff": FINETUNE_FF, "scratch": SCRATCH}[what]
            for path in self.finetune:
                given = read_published(path)
                if what in (given.method if given.kind == "finetune" else "", given.kind):
                    found = given.recipe
            if self.embedded and not self.finetune:
                found = found if what == "lp" else SMALL_TUNE
        return replace(found, amp=self.amp)


def stretched(recipe: Recipe, epochs: int) -> Recipe:
    """The recipe over another number of epochs: peak, ramp and warm-up keep their place in proportion."""
    share = epochs / recipe.epochs
    start = round(recipe.ramp[0] * share)
    turning = recipe.scheduler in ("cyclic", "cosine_with_warmup") and epochs == 1  # no room for a rise
    return replace(
        recipe, epochs=epochs,
        peak_epoch=min(max(1, round(recipe.peak_epoch * share)), max(1, epochs - 1)),
        warmup_epochs=min(max(1, round(recipe.warmup_epochs * share)), max(1, epochs - 1)),
        ramp=(start, max(start + 1, round(recipe.ramp[1] * share))),
        scheduler="cosine" if turning else recipe.scheduler,
    )  # fmt: skip


def _check(c: DP4TLConfig) -> None:
    if c.embedded and c.target:
        _checks.fail(ValueError, "target", f"nothing, for {c.source} has its own", repr(c.target))
    if not c.embedded and not c.target:
        _checks.fail(
            ValueError, "target", f"the path of the target (or a source of {', '.join(EMBEDDED)})", "nothing"
        )
    for name, known in (
        ("target_split", ("", "test", "val")), ("head", ("new", "compat")), ("save", ("none", "first")),
        ("adversarial", ("none", "pgd", "pgd-compat")), ("amp", ("none", "fp16", "bf16")),
        ("unlabelled", ("", "pca", "surrogate")),
    ):  # fmt: skip
        _checks.choice(name, getattr(c, name), known)
    for name in c.methods:
        _checks.choice("methods", name, tuple(METHODS))
    for name in ("surrogate", "model"):
        if getattr(c, name):
            _checks.choice(name, getattr(c, name), ARCHITECTURES)
    for name, given in (
        ("methods", c.methods),
        ("ratios", c.ratios),
        ("seeds", c.seeds),
        ("evaluate", c.evaluate),
    ):
        if len(set(given)) < len(given) or (not given and name != "methods"):
            _checks.fail(ValueError, name, "different entries, at least one", given)
    for ratio in c.ratios:
        if not 0 < _checks.real("ratios", ratio) < 1:
            _checks.fail(ValueError, "ratios", "shares between 0 and 1", ratio)
    for seed in c.seeds:
        _checks.integer("seeds", seed, 0, 2**31 - 1)
    for kind in c.evaluate:
        _checks.choice("evaluate", kind, ("lp", "ff"))
    for name, low, high in (
        ("draws", 1, 1000), ("epochs", 0, 1 << 20), ("clusters", 0, 1 << 30), ("grand_models", 1, 1000),
        ("grand_epochs", 1, 1 << 20), ("workers", 0, 4096), ("readers", 0, 4096),
    ):  # fmt: skip
        _checks.integer(name, getattr(c, name), low, high)
    if c.shots is not None:
        _checks.integer("shots", c.shots, 0, 1 << 30)
    if not 0 <= _checks.real("coreset_ratio", c.coreset_ratio) < 1:
        _checks.fail(ValueError, "coreset_ratio", "a share in [0, 1)", c.coreset_ratio)
    for method, name in (("file", "scores"), ("classes", "classes")):
        if method in c.methods and not getattr(c, name):
            _checks.fail(ValueError, name, f"a file, for the method {method}", "nothing")
    if c.amp == "fp16" and not c.device.startswith("cuda"):
        _checks.fail(ValueError, "amp", "none or bf16 on the CPU", "fp16")
    if c.device != "cpu":
        import torch

        if not c.device.startswith("cuda") or not torch.cuda.is_available():
            found = "that" if torch.cuda.is_available() else "no CUDA device that torch finds"
            _checks.fail(ValueError, "device", "cpu or cuda", f"{c.device!r} ({found})")
