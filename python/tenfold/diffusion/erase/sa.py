"""SA: Selective Amnesia, forgetting as continual learning (Heng and Soh, arXiv 2305.10120).

    loss = surrogate loss + alpha * retain loss + lam / 2 * sum over weights F (theta - theta0)^2

The surrogate loss denoises pictures of what the concept is to mean with the concept's own prompts, the retain
loss replays pictures that stay, and elastic weight consolidation (arXiv 1612.00796) holds weights that those
pictures depend on: F is the diagonal of the Fisher information, the mean of squared gradients of the original
model's denoising loss, picture by picture.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from tenfold import _checks
from tenfold.diffusion.bundle import Bundle
from tenfold.diffusion.erase.concept import Concept
from tenfold.diffusion.erase.data import Order
from tenfold.diffusion.erase.from_data import FIRST, FORGET, DataEraser, DataLoop

__all__ = ["SA"]


@dataclass(frozen=True)
class SA(DataEraser):
    """Settings of `DataEraser` (alpha: of the retain loss), and:

    lam: of elastic weight consolidation. fisher_draws: timesteps for each retained picture in F.

    Pictures of what the concept is to mean are those of `ConceptData.pseudo_prompts`, or drawn from them.
    """

    train_method: str = "full"
    epochs: int = 50
    lam: float = 50.0
    fisher_draws: int = 10

    name: ClassVar[str] = "sa"

    def __post_init__(self) -> None:
        super().__post_init__()
        _checks.real("lam", self.lam, at_least=0.0)
        _checks.integer("fisher_draws", self.fisher_draws, 1, 10**6)

    @property
    def parts(self) -> tuple[str, ...]:
        """See `DataEraser`."""
        return ("pseudo", "retain")

    @classmethod
    def style(cls, **changes: Any) -> SA:
        """UnlearnCanvas' setting for a style: pictures of 20 objects, 3 each."""
        return replace(cls(), **changes)

    @classmethod
    def object(cls, **changes: Any) -> SA:
        """UnlearnCanvas' setting for an object: pictures in 51 styles, 3 each."""
        return replace(cls(pictures=153), **changes)

    @classmethod
    def small(cls, **changes: Any) -> SA:
        """For a model of a few million weights."""
        own = cls(
            train_method="xattn", lr=1e-3, batch=16, iterations=40, fisher_draws=1, snr_gamma=5.0, steps=12,
            guidance=3.0,
        )  # fmt: skip
        return replace(own, **changes)

    def training(self, bundle: Bundle, concept: Concept, seed: int) -> SALoop:
        """See `DataEraser`."""
        return SALoop(self, bundle, concept, seed)


class SALoop(DataLoop):
    """F before the first iteration; a state holds it."""

    def __init__(self, method: SA, bundle: Bundle, concept: Concept, seed: int):
        super().__init__(method, bundle, concept, seed)
        self.optimizers = [torch.optim.Adam(self.chosen.values(), lr=method.lr)]
        count = len(self.data.retain_prompts)
        self.orders[FIRST] = Order(count, 1, seed, FIRST, count * method.fisher_draws)
        self.start = {name: p.detach().clone() for name, p in self.chosen.items()}
        self.fisher: dict[str, Tensor] | None = None

    def iterate(self) -> dict[str, float]:
        if self.fisher is None:
            self.fisher = self.information()
        drawn = self.draw(FORGET, self.done, self.latents["pseudo"])
        forget = self.denoising_loss(drawn, self.data.forget_prompts, "surrogate loss")
        retain = self.retain_loss(self.done)
        held = torch.stack(
            [(f * (self.chosen[n] - self.start[n]).square()).sum() for n, f in self.fisher.items()]
        ).sum()
        loss = forget + self.method.alpha * retain + self.method.lam / 2 * held
        self.finite(loss, "loss", drawn.t)
        self.descend(loss)
        parts = {"loss": loss, "forget": forget, "retain": retain, "held": held}
        return {name: float(value.detach()) for name, value in parts.items()}

    def information(self) -> dict[str, Tensor]:
        """F of every trained weight, in the original model."""
        total = {name: torch.zeros_like(p) for name, p in self.chosen.items()}
        weights = list(self.chosen.values())
        draws = self.orders[FIRST].total or 0
        for place in range(draws):
            drawn = self.draw(FIRST, place, self.latents["retain"])
            loss = self.denoising_loss(drawn, self.data.retain_prompts, "Fisher loss")
            grads = torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True)
            for value, grad in zip(total.values(), grads, strict=True):
                value.addcmul_(grad, grad, value=1 / draws)
        return total

    def state(self) -> dict[str, Any]:
        """See `Loop`."""
        return {**super().state(), **{f"fisher/{n}": f.cpu() for n, f in (self.fisher or {}).items()}}

    def restore(self, state: Any) -> None:
        """See `Loop`."""
        super().restore(state)
        lost = sorted(name for name in self.chosen if f"fisher/{name}" not in state)
        if lost:
            _checks.fail(ValueError, f"state: fisher/{lost[0]}", "a value", f"none ({len(lost)} missing)")
        self.fisher = {n: state[f"fisher/{n}"].to(p) for n, p in self.chosen.items()}
