"""SuppressEOT (SEOT): a concept is taken out of every prompt that names it while the picture is made."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

from tenfold import _checks
from tenfold.diffusion.bundle import Bundle
from tenfold.diffusion.encode import count_tokens
from tenfold.diffusion.erase.concept import Concept, check_fit, check_words, words_of
from tenfold.diffusion.erase.edit import Edit
from tenfold.diffusion.erase.hooks import hook_edit
from tenfold.diffusion.erase.soft_weight import SoftWeight

__all__ = ["SEOT"]


@dataclass(frozen=True)
class SEOT:
    """Soft weighting and inner updates (arXiv 2402.05375); the fields are those of `SoftWeight`, the defaults
    UnlearnCanvas' own for 50 steps.

    template: a phrase with {} for the concept's words: prompts that contain it are changed. "{} style" takes
    the word "style" too, as published for styles.
    """

    template: str = "{}"
    alpha: float = 1.0
    start: float = 0.2
    stop: float = 0.4
    inner_steps: int = 10
    step_size: float = 20.0
    retain: float = 1.0
    erase: float = -0.5
    self_retain: float = 1.0
    self_erase: float = -0.5
    map_size: int | None = None
    compare: str = "edited"
    rows: int = 1

    name: ClassVar[str] = "seot"

    def __post_init__(self) -> None:
        if not isinstance(self.template, str) or "{}" not in self.template:
            _checks.fail(ValueError, "template", "a text with {}", _checks.describe(self.template))
        self._hook(("x",))

    @classmethod
    def style(cls, **changes: Any) -> SEOT:
        """UnlearnCanvas' setting for a style."""
        return replace(cls(template="{} style"), **changes)

    @classmethod
    def small(cls, **changes: Any) -> SEOT:
        """For a model of a few million weights, whose walks have few steps."""
        return replace(cls(start=0.0, inner_steps=0), **changes)

    def _hook(self, phrases: tuple[str, ...]) -> SoftWeight:
        settings = asdict(self)
        del settings["template"]
        return SoftWeight(phrases, **settings)

    def fit(self, bundle: Bundle, concept: Concept, *, seed: int = 0, progress: Any = None) -> Edit:
        """An edit whose `options` take the concept out of prompts. Nothing is trained.

        Raises:
            ValueError: an SDXL model; a phrase without tokens, or one that does not fit the context.
        """
        check_fit(bundle, concept, seed)
        if bundle.is_sdxl:
            _checks.fail(ValueError, "bundle", "a model with one text encoder", "one with two (SDXL)")
        phrases = tuple(self.template.replace("{}", words) for words in words_of(concept))
        check_words(bundle, phrases)
        if not all(count_tokens(bundle, phrases)):
            _checks.fail(ValueError, "concept", "words with tokens", list(phrases))
        options = {"soft_weight": asdict(self._hook(phrases))}
        return hook_edit(self.name, asdict(self), concept, seed, options)
