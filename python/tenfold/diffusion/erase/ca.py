"""CA: concept ablation, the variant that a model teaches itself (Kumari et al., arXiv 2303.13516).

    loss = || e(x_t, t, c) - sg e(x_t, t, a) ||^2     x a picture of the anchor a, c the same with the concept

Pictures are the model's own of the anchors ("a painting of a lake"); what is ablated is the difference that
the concept makes ("a painting of a lake, in the style of Van Gogh"). Cross attention's keys and values train.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from tenfold import _checks
from tenfold.diffusion.bundle import Bundle
from tenfold.diffusion.erase.bank import rng_of
from tenfold.diffusion.erase.concept import Concept
from tenfold.diffusion.erase.data import ConceptData
from tenfold.diffusion.erase.from_data import FORGET, DataEraser, DataLoop

__all__ = ["CA", "ablation_data"]


@dataclass(frozen=True)
class CA(DataEraser):
    """Settings of `DataEraser` (alpha has no part), and:

    weight_decay: of AdamW. prior_weight: of the retain loss; 0 leaves it out, as UnlearnCanvas does.

    Pictures are those of `ConceptData.pseudo_prompts`, or drawn from them.
    """

    train_method: str = "xattn_kv"
    lr: float = 8e-6
    iterations: int | None = 1000
    weight_decay: float = 0.01
    prior_weight: float = 0.0
    pictures: int = 200

    name: ClassVar[str] = "ca"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("weight_decay", "prior_weight"):
            _checks.real(name, getattr(self, name), at_least=0.0)

    @property
    def parts(self) -> tuple[str, ...]:
        """See `DataEraser`."""
        return ("pseudo", "retain") if self.prior_weight else ("pseudo",)

    @classmethod
    def style(cls, **changes: Any) -> CA:
        """UnlearnCanvas' setting for a style: 200 paintings."""
        return replace(cls(), **changes)

    @classmethod
    def object(cls, **changes: Any) -> CA:
        """UnlearnCanvas' setting for an object: 80 pictures, 2000 steps."""
        return replace(cls(iterations=2000, pictures=80), **changes)

    @classmethod
    def small(cls, **changes: Any) -> CA:
        """For a model of a few million weights."""
        own = cls(lr=5e-4, batch=16, iterations=40, snr_gamma=5.0, steps=12, guidance=3.0)
        return replace(own, **changes)

    def training(self, bundle: Bundle, concept: Concept, seed: int) -> CALoop:
        """See `DataEraser`."""
        return CALoop(self, bundle, concept, seed)


class CALoop(DataLoop):
    """The forget loss on pictures of the anchors."""

    def __init__(self, method: CA, bundle: Bundle, concept: Concept, seed: int):
        super().__init__(method, bundle, concept, seed)
        self.optimizers = [
            torch.optim.AdamW(self.chosen.values(), lr=method.lr, weight_decay=method.weight_decay)
        ]

    def iterate(self) -> dict[str, float]:
        loss = self.forget_loss(self.draw(FORGET, self.done, self.latents["pseudo"]))
        numbers = {"forget": float(loss.detach())}
        if self.method.prior_weight:
            retain = self.retain_loss(self.done)
            numbers["retain"] = float(retain.detach())
            loss = loss + self.method.prior_weight * retain
        self.descend(loss)
        return {"loss": float(loss.detach()), **numbers}


_STYLE = (
    "{caption}, in the style of {name}",
    "{name} inspired painting, {caption}",
    "in {name}'s style, {caption}",
)


def ablation_data(
    name: str, captions: Sequence[str], *, anchor: str | None = None, seed: int = 0, **options: Any
) -> ConceptData:
    """Pairs of captions with and without a concept, as concept ablation writes them.

    Args:
        name: the concept in words; underscores become blanks.
        captions: of the anchor: "a painting of a lake" for a style, "a photo of a cat on a chair" for an
            object whose `anchor` is "cat".
        anchor: the general word that an object's name takes the place of; None, the concept is a style: each
            caption gets one of three phrases at random, with the name doubled half the time.
        options: of `ConceptData` (pseudo_images, retain_prompts, ...).

    Raises:
        ValueError: a caption without the anchor.
    """
    name = " ".join(name.replace("_", " ").split())
    rng = rng_of(_checks.integer("seed", seed, 0, 2**32 - 1), 0xCA)
    own = []
    for caption in captions:
        if anchor is None:
            phrase = _STYLE[int(rng.integers(len(_STYLE)))]
            own.append(phrase.format(caption=caption, name=" ".join([name] * int(rng.integers(1, 3)))))
        elif anchor not in caption:
            _checks.fail(ValueError, "captions", f"texts with {anchor!r}", repr(caption))
        else:
            own.append(caption.replace(anchor, name))
    return ConceptData(tuple(own), tuple(captions), **options)
