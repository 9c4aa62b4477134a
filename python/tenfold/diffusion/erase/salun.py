"""SalUn: erase by training the weights that matter for the concept (Fan et al., arXiv 2310.12508).

    saliency   g = | sum over batches of the gradient of the concept's denoising loss |
    mask       the share `density` of the weights with the largest g
    training   forget loss + alpha * retain loss on the masked weights

The published UnlearnCanvas code trains the first batch for ever, never applies its mask, which marks the
smallest g, and steps the model while g is summed; none of this is repeated here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from tenfold import _checks
from tenfold.diffusion.bundle import Bundle
from tenfold.diffusion.erase.concept import Concept
from tenfold.diffusion.erase.from_data import FIRST, FORGET, DataEraser, DataLoop, Drawn
from tenfold.diffusion.erase.masks import MaskedAdam, mask_density, sums_of
from tenfold.ops import saliency_accum_, topk_mask

__all__ = ["SalUn"]

SCOPES = ("unet", "trained")
TEACHERS = ("current", "original")


@dataclass(frozen=True)
class SalUn(DataEraser):
    """Settings of `DataEraser`, and:

    density: share of the weights in the mask; 0 leaves the model as it is, None trains without a mask.
    mask_scope: "unet" ranks all weights of the UNet together, as published; "trained" only those of
        `train_method`.
    mask_guidance: the saliency's prediction is (1 + w) e(c) - w e(""), as in SalUn's published code; 0 is the
        denoising loss itself.
    teacher: whose predictions the concept is led to: of the "current" model, as published, or of the
        "original" one.
    """

    density: float | None = 0.4
    mask_scope: str = "unet"
    mask_guidance: float = 7.5
    teacher: str = "current"

    name: ClassVar[str] = "salun"

    def __post_init__(self) -> None:
        super().__post_init__()
        _checks.choice("mask_scope", self.mask_scope, SCOPES)
        _checks.choice("teacher", self.teacher, TEACHERS)
        _checks.real("mask_guidance", self.mask_guidance, at_least=0.0)
        if self.density is not None and _checks.real("density", self.density, at_least=0.0) > 1:
            _checks.fail(ValueError, "density", "a share in [0, 1]", self.density)

    @classmethod
    def style(cls, **changes: Any) -> SalUn:
        """UnlearnCanvas' setting for a style: pictures of 20 objects, 3 each."""
        return replace(cls(), **changes)

    @classmethod
    def object(cls, **changes: Any) -> SalUn:
        """UnlearnCanvas' setting for an object: pictures in 51 styles, 3 each."""
        return replace(cls(pictures=153), **changes)

    @classmethod
    def small(cls, **changes: Any) -> SalUn:
        """For a model of a few million weights."""
        own = cls(
            lr=1e-3, batch=16, iterations=40, density=0.5, mask_scope="trained", mask_guidance=0.0,
            teacher="original", snr_gamma=5.0, steps=12, guidance=3.0,
        )  # fmt: skip
        return replace(own, **changes)

    def training(self, bundle: Bundle, concept: Concept, seed: int) -> SalUnLoop:
        """See `DataEraser`."""
        return SalUnLoop(self, bundle, concept, seed)


class SalUnLoop(DataLoop):
    """Masks before the first iteration; a state holds them."""

    def __init__(self, method: SalUn, bundle: Bundle, concept: Concept, seed: int):
        super().__init__(method, bundle, concept, seed)
        self.masks: dict[str, Tensor] | None = None
        self.teacher = bundle if method.teacher == "original" else None
        self.optimizers = []
        if method.density is None:
            self.optimizers = [torch.optim.Adam(self.chosen.values(), lr=method.lr)]

    def iterate(self) -> dict[str, float]:
        self._prepare()
        drawn = self.draw(FORGET, self.done, self.latents["forget"])
        forget = self.forget_loss(drawn, self.teacher)
        retain = self.retain_loss(self.done)
        loss = forget + self.method.alpha * retain
        self.descend(loss)
        return {
            "loss": float(loss.detach()),
            "forget": float(forget.detach()),
            "retain": float(retain.detach()),
        }

    def saliency(self) -> dict[str, Tensor]:
        """The absolute value of the summed gradient for each weight that is ranked; nothing is trained."""
        ranked = self.chosen if self.method.mask_scope == "trained" else dict(self.unet.named_parameters())
        for parameter in ranked.values():
            parameter.requires_grad_(True)
        total = {name: sums_of(p) for name, p in ranked.items()}
        for place in range(-(-self.orders[FIRST].count // self.method.batch)):
            drawn = self.draw(FIRST, place, self.latents["forget"])
            loss = self._concept_loss(drawn)
            grads = torch.autograd.grad(loss, list(ranked.values()), allow_unused=True)
            saliency_accum_(list(total.values()), grads)
        for name, parameter in ranked.items():
            parameter.requires_grad_(name in self.chosen)
        return {name: g.abs_() for name, g in total.items()}

    def _concept_loss(self, drawn: Drawn) -> Tensor:
        w = self.method.mask_guidance
        prompts = self.data.forget_prompts
        if not w:
            return self.denoising_loss(drawn, prompts, "saliency loss")
        own = self.student.predict(drawn.z, drawn.t, self.text(prompts, drawn.rows))
        none = self.student.predict(drawn.z, drawn.t, self.states("").expand(len(drawn.z), -1, -1))
        return self.error((1 + w) * own - w * none, drawn.noise, drawn, "saliency loss")

    def _prepare(self) -> None:
        if self.masks is not None or self.method.density is None:
            return
        found = self.saliency()
        bits = dict(zip(found, topk_mask(list(found.values()), self.method.density), strict=True))
        self.density = mask_density(list(bits.values()), list(found.values()))
        self._use({name: bits[name] for name in self.chosen})

    def _use(self, masks: dict[str, Tensor]) -> None:
        self.masks = masks
        self.optimizers = [
            MaskedAdam(list(self.chosen.values()), [masks[n] for n in self.chosen], lr=self.method.lr)
        ]

    def state(self) -> dict[str, Any]:
        """See `Loop`."""
        found = super().state()
        if self.masks is not None:
            found["density"] = self.density
        return {**found, **{f"mask/{name}": bits.cpu() for name, bits in (self.masks or {}).items()}}

    def restore(self, state: Any) -> None:
        """See `Loop`."""
        known = state if isinstance(state, dict) else {}
        masks: dict[str, Any] = {n: known.get(f"mask/{n}") for n in self.chosen}
        lost = sorted(name for name, bits in masks.items() if bits is None)
        if not lost:
            self.density = float(state["density"])
            self._use({name: bits.to(self.original.device) for name, bits in masks.items()})
        super().restore(state)
        if lost and self.method.density is not None:
            _checks.fail(ValueError, f"state: mask/{lost[0]}", "a value", f"none ({len(lost)} missing)")

    def details(self) -> dict[str, Any]:
        """Shares of weights in the mask: of those that were ranked, of those that were trained."""
        if self.masks is None:
            return {}
        own = mask_density(list(self.masks.values()), list(self.chosen.values()))
        return {"mask": {"density": self.density, "trained": own}}
