"""How long, how fast and on what a network is trained: optimiser, learning rate, resolution, views.

Defaults are those of the published pretraining on ImageNet with ResNet-18 (DP4TL, arXiv 2310.08782, after
FFCV's recipe): SGD, one cycle of the learning rate, 16 epochs, images of 160 pixels growing to 192.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch

from tenfold import _checks
from tenfold.selection.transfer.attack import Attack

__all__ = ["FINETUNE_FF", "FINETUNE_LP", "PRETRAIN", "SCRATCH", "Recipe"]

BASE_RATE = 1e-4
"""Where the cyclic learning rate begins and ends, in the published code."""


@dataclass(frozen=True)
class Recipe:
    """One training.

    Attributes:
        epochs, batch: the last batch of an epoch may be smaller; it counts as a step.
        optimizer, lr, momentum, weight_decay: momentum of SGD alone. With the cyclic schedule SGD's momentum
            moves between 0.9 and 0.8 against the rate, as torch's CyclicLR does by itself.
        scheduler: per step. "cyclic": from 1e-4 up to lr at `peak_epoch`, down to 1e-4 at the end;
            "cosine": to 0; "cosine_with_warmup": linear from warmup_factor lr over `warmup_epochs` times a
            cosine over the other epochs (torch's chained schedulers); "step": times `step_ratio` every
            `step_epochs`; "constant".
        label_smoothing: of the cross-entropy.
        resolution, max_resolution, ramp: side of training images: `resolution` until epoch ramp[0], then
            linear to `max_resolution` at ramp[1], rounded to multiples of 32.
        augment: random crops and flips; else the central square.
        test_resolution, test_share, test_flip: of test images; test_flip adds the logits of the mirror image.
        train_mode: False keeps batch normalisation at its running statistics (linear probes).
        attack: adversarial training.
        amp: arithmetic of the forward pass. "fp16" needs CUDA and scales the loss.
    """

    epochs: int = 16
    batch: int = 1024
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: float = 0.5
    momentum: float = 0.9
    weight_decay: float = 5e-5
    scheduler: Literal["cyclic", "cosine", "cosine_with_warmup", "step", "constant"] = "cyclic"
    peak_epoch: int = 2
    warmup_epochs: int = 10
    warmup_factor: float = 1e-3
    step_epochs: int = 30
    step_ratio: float = 0.1
    label_smoothing: float = 0.0
    resolution: int = 160
    max_resolution: int = 192
    ramp: tuple[int, int] = (11, 13)
    augment: bool = True
    test_resolution: int = 256
    test_share: float = 224 / 256
    test_flip: bool = False
    test_batch: int = 512
    train_mode: bool = True
    attack: Attack | None = None
    amp: Literal["none", "fp16", "bf16"] = "none"

    def __post_init__(self) -> None:
        for name in ("epochs", "batch", "test_batch", "step_epochs"):
            _checks.integer(name, getattr(self, name), 1, 1 << 31)
        _checks.choice("optimizer", self.optimizer, ("sgd", "adam", "adamw"))
        schedulers = ("cyclic", "cosine", "cosine_with_warmup", "step", "constant")
        _checks.choice("scheduler", self.scheduler, schedulers)
        _checks.choice("amp", self.amp, ("none", "fp16", "bf16"))
        _checks.real("lr", self.lr, positive=True)
        _checks.real("momentum", self.momentum, at_least=0.0, below=1.0)
        _checks.real("weight_decay", self.weight_decay, at_least=0.0)
        _checks.real("label_smoothing", self.label_smoothing, at_least=0.0, below=1.0)
        if self.scheduler == "cyclic" and not 0 < self.peak_epoch < self.epochs:
            _checks.fail(ValueError, "peak_epoch", f"an epoch between 0 and {self.epochs}", self.peak_epoch)
        if self.scheduler == "cosine_with_warmup" and not 0 < self.warmup_epochs < self.epochs:
            _checks.fail(ValueError, "warmup_epochs", f"between 0 and {self.epochs}", self.warmup_epochs)
        if self.resolution > self.max_resolution or self.ramp[0] >= self.ramp[1]:
            got = f"{self.resolution} to {self.max_resolution} over epochs {self.ramp[0]} to {self.ramp[1]}"
            _checks.fail(ValueError, "resolution", "one that grows over a positive time", got)

    def resolution_at(self, epoch: int) -> int:
        """Side of the training images of an epoch."""
        if epoch <= self.ramp[0]:
            return self.resolution
        if epoch >= self.ramp[1]:
            return self.max_resolution
        now = np.interp(epoch, self.ramp, (self.resolution, self.max_resolution))
        return round(float(now) / 32) * 32

    def steps(self, count: int) -> int:
        """Optimiser steps for `count` images."""
        return self.epochs * -(-count // self.batch)

    def make_optimizer(self, parameters: Any) -> torch.optim.Optimizer:
        """The optimiser over `parameters`."""
        if self.optimizer == "sgd":
            return torch.optim.SGD(
                parameters, lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay
            )
        kind = torch.optim.Adam if self.optimizer == "adam" else torch.optim.AdamW
        return kind(parameters, lr=self.lr, weight_decay=self.weight_decay)

    def make_scheduler(self, optimizer: torch.optim.Optimizer, steps_per_epoch: int) -> Any:
        """torch's scheduler, to be stepped once per batch."""
        from torch.optim import lr_scheduler as lr

        total = self.epochs * steps_per_epoch
        if self.scheduler == "cyclic":
            up = self.peak_epoch * steps_per_epoch
            sgd = self.optimizer == "sgd"
            return lr.CyclicLR(
                optimizer, BASE_RATE, max(self.lr, BASE_RATE), up, total - up, cycle_momentum=sgd
            )
        if self.scheduler == "cosine":
            return lr.CosineAnnealingLR(optimizer, total)
        if self.scheduler == "cosine_with_warmup":
            warm = self.warmup_epochs * steps_per_epoch
            first = lr.LinearLR(optimizer, self.warmup_factor, total_iters=warm)
            return lr.ChainedScheduler([first, lr.CosineAnnealingLR(optimizer, total - warm)])
        if self.scheduler == "step":
            return lr.StepLR(optimizer, self.step_epochs * steps_per_epoch, self.step_ratio)
        return lr.StepLR(optimizer, total + 1, 1.0)


PRETRAIN = Recipe()
FINETUNE_LP = Recipe(
    epochs=50, batch=128, optimizer="adam", lr=0.01, weight_decay=0.0, scheduler="cosine", resolution=224,
    max_resolution=224, augment=False, test_resolution=224, test_batch=1024, train_mode=False,
)  # fmt: skip
"""Linear probe: only the head, the network in evaluation mode, no augmentation."""
FINETUNE_FF = replace(FINETUNE_LP, epochs=200, lr=1e-4, augment=True, train_mode=True)
"""Full fine-tuning. Food101, StanfordCars, SUN397 and Waterbirds use SGD, 0.1, weight decay 5e-4 instead."""
SCRATCH = replace(FINETUNE_FF, optimizer="sgd", lr=0.1, weight_decay=5e-4)
"""Training on the target alone."""
