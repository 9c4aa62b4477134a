"""SHS: cut the weights that carry the concept, then repair (Scissorhands, Wu and Harandi, arXiv 2401.06187).

sensitivity   s = | w * sum over batches of |gradient of the concept's denoising loss| |   (SNIP, arXiv
              1810.02340)
cut           the share 1 - sparsity of the UNet's weights with the largest s; those of them in cross
              attention start anew, weights from N(0, 0.02^2), biases from 0
repair        alpha * forget loss + retain loss on all weights; with `project_every`, gradients that would
              bring the concept back are turned away (gradient episodic memory, arXiv 1706.08840)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from tenfold import _checks
from tenfold.diffusion.bundle import Bundle
from tenfold.diffusion.erase.bank import rng_of
from tenfold.diffusion.erase.concept import Concept
from tenfold.diffusion.erase.from_data import FIRST, FORGET, DataEraser, DataLoop
from tenfold.diffusion.erase.masks import sums_of, unpack_mask
from tenfold.ops import saliency_accum_, topk_mask

__all__ = ["SHS", "turn_away"]

_CUT = 1 << 16  # place of the draws for weights that start anew


@dataclass(frozen=True)
class SHS(DataEraser):
    """Settings of `DataEraser` (alpha: of the forget loss), and:

    sparsity: share of the UNet's weights that are not cut. cut_batches: batches for the sensitivity.
    cut_std: standard deviation of weights that start anew.
    project_every: iterations between projections; 0, none. margin: of the projection, see `turn_away`.
    """

    train_method: str = "full"
    alpha: float = 0.1
    sparsity: float = 0.99
    cut_batches: int = 1
    cut_std: float = 0.02
    project_every: int = 0
    margin: float = 0.5

    name: ClassVar[str] = "shs"

    def __post_init__(self) -> None:
        super().__post_init__()
        if _checks.real("sparsity", self.sparsity, at_least=0.0) > 1:
            _checks.fail(ValueError, "sparsity", "a share in [0, 1]", self.sparsity)
        _checks.integer("cut_batches", self.cut_batches, 1, 10**6)
        _checks.integer("project_every", self.project_every, 0, 10**9)
        for name in ("cut_std", "margin"):
            _checks.real(name, getattr(self, name), at_least=0.0)

    @classmethod
    def style(cls, **changes: Any) -> SHS:
        """UnlearnCanvas' setting for a style: pictures of 20 objects, 3 each."""
        return replace(cls(), **changes)

    @classmethod
    def object(cls, **changes: Any) -> SHS:
        """UnlearnCanvas' setting for an object: pictures in 51 styles, 3 each."""
        return replace(cls(pictures=153), **changes)

    @classmethod
    def small(cls, **changes: Any) -> SHS:
        """For a model of a few million weights."""
        own = cls(
            lr=3e-4, batch=16, iterations=40, alpha=1.0, sparsity=0.97, snr_gamma=5.0, steps=12, guidance=3.0
        )
        return replace(own, **changes)

    def training(self, bundle: Bundle, concept: Concept, seed: int) -> SHSLoop:
        """See `DataEraser`."""
        return SHSLoop(self, bundle, concept, seed)


class SHSLoop(DataLoop):
    """The cut is made before the first iteration: a state holds the weights after it."""

    def __init__(self, method: SHS, bundle: Bundle, concept: Concept, seed: int):
        super().__init__(method, bundle, concept, seed)
        self.optimizers = [torch.optim.Adam(self.chosen.values(), lr=method.lr)]
        self.orders[FIRST] = replace(self.orders[FIRST], total=None)
        names = dict(self.unet.named_parameters())
        self.attention = {n: p for n, p in names.items() if ".attn2." in n}
        self.parameters = {n: p for n, p in names.items() if n in self.chosen or n in self.attention}
        self.cut_weights = 0
        self.memory: list[Tensor] | None = None

    def iterate(self) -> dict[str, float]:
        if self.done == 0:
            self.cut()
            self._remember()
        forget = self.forget_loss(self.draw(FORGET, self.done, self.latents["forget"]))
        retain = self.retain_loss(self.done)
        loss = self.method.alpha * forget + retain
        self.optimizers[0].zero_grad(set_to_none=True)
        loss.backward()
        if self.method.project_every and self.done % self.method.project_every == 0:
            self._project()
        self.optimizers[0].step()
        return {
            "loss": float(loss.detach()),
            "forget": float(forget.detach()),
            "retain": float(retain.detach()),
        }

    def sensitivity(self) -> dict[str, Tensor]:
        """|w * sum |gradient|| of every weight of the UNet."""
        weights = dict(self.unet.named_parameters())
        total = [sums_of(p) for p in weights.values()]
        for place in range(self.method.cut_batches):
            saliency_accum_(total, self._gradient(place, list(weights.values())), mode="abs")
        return {n: (p.detach() * g).abs() for (n, p), g in zip(weights.items(), total, strict=True)}

    def cut(self) -> None:
        """Let the most sensitive weights of cross attention start anew."""
        found = self.sensitivity()
        bits = topk_mask(list(found.values()), 1 - self.method.sparsity)
        rng = rng_of(self.seed, _CUT)
        with torch.no_grad():
            for (name, values), mask in zip(found.items(), bits, strict=True):
                if name not in self.attention:
                    continue
                new = torch.zeros_like(values)
                if name.endswith(".weight"):
                    draws = rng.standard_normal(tuple(values.shape), dtype=np.float32)
                    new = torch.from_numpy(draws).to(values) * self.method.cut_std
                gone = unpack_mask(mask, values)
                self.cut_weights += int(gone.sum())
                self.attention[name].copy_(torch.where(gone, new, self.attention[name]))

    def _gradient(self, place: int, weights: list[Tensor]) -> list[Tensor | None]:
        """Of the denoising loss of concept pictures. Passes over the set go on where one ends."""
        before = [w.requires_grad for w in weights]
        for w in weights:
            w.requires_grad_(True)
        drawn = self.draw(FIRST, place, self.latents["forget"])
        loss = self.denoising_loss(drawn, self.data.forget_prompts, "sensitivity loss")
        grads = torch.autograd.grad(loss, weights, allow_unused=True)
        for w, had in zip(weights, before, strict=True):
            w.requires_grad_(had)
        return list(grads)

    def _remember(self) -> None:
        if self.method.project_every:
            grads = self._gradient(0, list(self._projected().values()))
            self.memory = [-g for g in grads if g is not None]

    def _projected(self) -> dict[str, Tensor]:
        return {n: p for n, p in self.attention.items() if n in self.chosen}

    def _project(self) -> None:
        weights = list(self._projected().values())
        if self.memory is None or not weights:
            return
        turned = turn_away([w.grad for w in weights if w.grad is not None], self.memory, self.method.margin)
        for w, g in zip(weights, turned, strict=True):
            w.grad = g

    def state(self) -> dict[str, Any]:
        """See `Loop`."""
        found = {**super().state(), "cut_weights": self.cut_weights}
        for i, part in enumerate(self.memory or ()):
            found[f"memory/{i}"] = part.cpu()
        return found

    def restore(self, state: Any) -> None:
        """See `Loop`."""
        super().restore(state)
        self.cut_weights = int(state["cut_weights"])
        if self.method.project_every:
            kept = [state[f"memory/{i}"] for i in range(len(self._projected()))]
            self.memory = [part.to(self.original.device) for part in kept]

    def details(self) -> dict[str, Any]:
        """How many weights started anew."""
        return {"cut_weights": self.cut_weights}


def turn_away(grads: list[Tensor], memory: list[Tensor], margin: float, eps: float = 1e-3) -> list[Tensor]:
    """g + v m where <g, m> < 0, else g: the nearest gradient whose step does not raise the remembered loss.

    With one memory the quadratic program of gradient episodic memory has the solution
    v = max(margin, -<g, m> / (|m|^2 + eps)).
    """
    product = sum(float((g.double() * m.double()).sum()) for g, m in zip(grads, memory, strict=True))
    if product >= 0:
        return grads
    square = sum(float(m.double().square().sum()) for m in memory)
    v = max(margin, -product / (square + eps))
    return [g + v * m for g, m in zip(grads, memory, strict=True)]
