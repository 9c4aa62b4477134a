"""Erasure without weights: guidance away from a text while pictures are made."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from tenfold import _checks
from tenfold.diffusion.erase.concept import Concept, check_fit, check_words
from tenfold.diffusion.erase.edit import Edit
from tenfold.diffusion.sld import SLD as STRENGTHS

if TYPE_CHECKING:
    from tenfold.diffusion.bundle import Bundle

__all__ = ["NegativePrompt", "SafeLatent"]


@dataclass(frozen=True)
class NegativePrompt:
    """The concept's prompts, joined by commas, in the place of the empty prompt."""

    name: ClassVar[str] = "negative"

    def fit(self, bundle: Bundle, concept: Concept, *, seed: int = 0, progress: Any = None) -> Edit:
        """An edit whose `options` have the negative prompt."""
        check_fit(bundle, concept, seed)
        text = ", ".join(concept.prompts)
        check_words(bundle, (text,))
        return hook_edit(self.name, {}, concept, seed, {"negative": text})


@dataclass(frozen=True)
class SafeLatent:
    """Safe Latent Diffusion (arXiv 2211.05105) with the concept's prompts as what to steer away from.

    strength: "weak", "medium", "strong" or "max".
    """

    strength: str = "medium"

    name: ClassVar[str] = "sld"

    def __post_init__(self) -> None:
        _checks.choice("strength", self.strength, STRENGTHS)

    def fit(self, bundle: Bundle, concept: Concept, *, seed: int = 0, progress: Any = None) -> Edit:
        """An edit whose `options` have the guidance."""
        check_fit(bundle, concept, seed)
        text = ", ".join(concept.prompts)
        check_words(bundle, (text,))
        guidance = replace(STRENGTHS[self.strength], concept=text)
        return hook_edit(self.name, {"strength": self.strength}, concept, seed, {"safe": asdict(guidance)})


def hook_edit(
    name: str, settings: dict[str, Any], concept: Concept, seed: int, options: dict[str, Any]
) -> Edit:
    details = {
        "eraser": name,
        "settings": settings,
        "concept": concept.about(),
        "seed": seed,
        "options": options,
    }
    return Edit("hook", "sampling", {}, details)
