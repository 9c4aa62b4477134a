"""EDiff: erase as a problem on two levels (EraseDiff, Wu et al., "Erasing Undesirable Influence in Diffusion
Models", arXiv 2401.05779), solved as BOME does (Liu et al., arXiv 2209.08709).

    min over theta of  L(theta)      subject to  f(theta) <= min f             L retain loss, f forget loss

One iteration:

    inner   phi = theta, then K steps of an Adam of its own on f(phi): how low f can be from here
    gap     q = f(theta) - f(phi), both on the same pictures, noise and timesteps; phi counts as a constant
    outer   theta steps along  grad L + lam grad f  where q > 0, and along grad L alone where the constraint
            holds already

phi is thrown away after it has been asked, theta goes on from where it was, and the next iteration from the
new theta. lam is fixed (UnlearnCanvas: 0.1), or the least that lets f fall at the rate eta whatever L wants:

    lam = max(0, eta - <grad L, grad f> / |grad f|^2)

The published code puts theta back to where the epoch began after each of its K inner passes, so that all
outer passes but the last are lost; shares one Adam between both levels; and subtracts a constant mean of f,
so that the inner level reaches the outer one through that Adam's moments only.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from tenfold import _checks
from tenfold.diffusion.bundle import Bundle
from tenfold.diffusion.erase.concept import Concept
from tenfold.diffusion.erase.from_data import FORGET, INNER, DataEraser, DataLoop

__all__ = ["EDiff", "multiplier"]


@dataclass(frozen=True)
class EDiff(DataEraser):
    """Settings of `DataEraser` (alpha has no part), and:

    inner_steps: K. inner_lr: of the inner level; None is `lr`.
    lam: the multiplier; None is found in each iteration from `eta`.
    """

    lr: float = 5e-5
    epochs: int = 5
    inner_steps: int = 2
    inner_lr: float | None = None
    lam: float | None = 0.1
    eta: float = 0.5

    name: ClassVar[str] = "ediff"

    def __post_init__(self) -> None:
        super().__post_init__()
        _checks.integer("inner_steps", self.inner_steps, 1, 10**6)
        _checks.real("eta", self.eta, positive=True)
        if self.inner_lr is not None:
            _checks.real("inner_lr", self.inner_lr, positive=True)
        if self.lam is not None:
            _checks.real("lam", self.lam, at_least=0.0)

    @classmethod
    def style(cls, **changes: Any) -> EDiff:
        """UnlearnCanvas' setting for a style: pictures of 20 objects, 3 each."""
        return replace(cls(), **changes)

    @classmethod
    def object(cls, **changes: Any) -> EDiff:
        """UnlearnCanvas' setting for an object: pictures in 51 styles, 3 each."""
        return replace(cls(pictures=153), **changes)

    @classmethod
    def small(cls, **changes: Any) -> EDiff:
        """For a model of a few million weights."""
        own = cls(
            lr=1e-3, batch=16, iterations=60, inner_steps=1, lam=None, snr_gamma=5.0, steps=12, guidance=3.0
        )
        return replace(own, **changes)

    def training(self, bundle: Bundle, concept: Concept, seed: int) -> EDiffLoop:
        """See `DataEraser`."""
        return EDiffLoop(self, bundle, concept, seed)


class EDiffLoop(DataLoop):
    """Both levels in one iteration: a state needs neither phi nor the inner Adam."""

    def __init__(self, method: EDiff, bundle: Bundle, concept: Concept, seed: int):
        super().__init__(method, bundle, concept, seed)
        self.optimizers = [torch.optim.Adam(self.chosen.values(), lr=method.lr)]
        self.below = copy.deepcopy(self.unet)
        names = dict(self.below.named_parameters())
        self.phi = {name: names[name] for name in self.chosen}

    def iterate(self) -> dict[str, float]:
        least = self._descend_below()
        drawn = self.draw(FORGET, self.done, self.latents["forget"])
        forget = self.forget_loss(drawn)
        gap = float(forget.detach()) - least
        retain = self.retain_loss(self.done)
        weights = list(self.chosen.values())
        keep = torch.autograd.grad(retain, weights, allow_unused=True, materialize_grads=True)
        erase = torch.autograd.grad(forget, weights, allow_unused=True, materialize_grads=True)
        lam = self._multiplier(keep, erase) if gap > 0 else 0.0
        for parameter, g, h in zip(weights, keep, erase, strict=True):
            parameter.grad = g + lam * h
        self.optimizers[0].step()
        self.optimizers[0].zero_grad(set_to_none=True)
        kept, gone = float(retain.detach()), float(forget.detach())
        return {"loss": kept + lam * gap, "forget": gone, "retain": kept, "gap": gap, "lam": lam}

    def _descend_below(self) -> float:
        """f of the outer pictures after K steps of phi from theta, on pictures of its own."""
        method = self.method
        with torch.no_grad():
            for name, parameter in self.phi.items():
                parameter.copy_(self.chosen[name])
        above, self.student = self.student, self.student.replace(unet=self.below)
        try:
            rate = method.lr if method.inner_lr is None else method.inner_lr
            optimizer = torch.optim.Adam(self.phi.values(), lr=rate)
            for k in range(method.inner_steps):
                place = self.done * method.inner_steps + k
                loss = self.forget_loss(self.draw(INNER, place, self.latents["forget"]))
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
            with torch.no_grad():
                found = self.forget_loss(self.draw(FORGET, self.done, self.latents["forget"]))
        finally:
            self.student = above
        return float(found)

    def _multiplier(self, keep: tuple[Tensor, ...], erase: tuple[Tensor, ...]) -> float:
        return multiplier(keep, erase, self.method.eta) if self.method.lam is None else self.method.lam


def multiplier(keep: tuple[Tensor, ...], erase: tuple[Tensor, ...], eta: float) -> float:
    """max(0, eta - <keep, erase> / |erase|^2) of two gradients; 0 where `erase` vanishes."""
    square = sum(float(h.double().square().sum()) for h in erase)
    product = sum(float((g.double() * h.double()).sum()) for g, h in zip(keep, erase, strict=True))
    return max(0.0, eta - product / square) if square > 0 else 0.0
