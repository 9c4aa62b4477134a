"""AdvUnlearn: erasure against an attacker (Zhang et al., arXiv 2405.15234).

    upper level   min over theta of  L_esd(theta; c*) + gamma L_retain(theta)
    lower level   c* = the soft prompt that makes the current model imitate the original one on the concept

The text encoder is what is trained by default: it then drops into any pipeline that shares it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from tenfold import _checks
from tenfold.diffusion.bundle import Bundle
from tenfold.diffusion.condition import Condition
from tenfold.diffusion.encode import MODES
from tenfold.diffusion.erase.bank import Draw, rng_of
from tenfold.diffusion.erase.concept import Concept
from tenfold.diffusion.erase.soft_prompt import ATTACKS, INITS, SPACES, SoftPrompt, attack
from tenfold.diffusion.erase.training import ATTACK, ESD, INIT, Training

__all__ = ["AdvUnlearn"]


@dataclass(frozen=True)
class AdvUnlearn(ESD):
    """Settings of `ESD`, and of the attack within.

    warmup: iterations on the concept alone, before the first attack.
    attack: "pgd", or "fast_at" (signs of gradients). attack_steps, attack_lr: of Adam on the soft prompt.
        The fast
        variant of the paper is one step: `attack="fast_at", attack_steps=1`.
    attack_init: "random" words, or the "latest" soft prompt. attack_every: iterations that one soft prompt
        serves.
    attack_batch: latents in a step of the attack; 0 for `batch`.
    k, mode: embeddings and where they go (`splice`). space: "word_embd", or "condition_embd", a delta on
        all text states of the concept.
    """

    train_method: str = "text_encoder"
    retain_weight: float = 0.3
    warmup: int = 200
    attack: str = "pgd"
    attack_steps: int = 30
    attack_lr: float = 1e-3
    attack_init: str = "random"
    attack_every: int = 1
    attack_batch: int = 0
    k: int = 1
    mode: str = "prefix"
    space: str = "word_embd"

    name: ClassVar[str] = "advunlearn"

    def __post_init__(self) -> None:
        super().__post_init__()
        _checks.choice("attack", self.attack, ATTACKS)
        _checks.choice("attack_init", self.attack_init, INITS)
        _checks.choice("space", self.space, SPACES)
        known = (*MODES, *(f"{mode}_k" for mode in MODES if mode not in ("per_k_words", "add")))
        _checks.choice("mode", self.mode, known)
        for name, low in (
            ("warmup", 0), ("attack_steps", 1), ("attack_every", 1), ("attack_batch", 0), ("k", 1),
        ):  # fmt: skip
            _checks.integer(name, getattr(self, name), low, 10**7)
        _checks.real("attack_lr", self.attack_lr, positive=True)

    @property
    def room(self) -> int:
        """See `ESD`."""
        return 0 if self.space == "condition_embd" or self.mode in ("add", "replace", "replace_k") else self.k

    def training(self, bundle: Bundle, concept: Concept, seed: int) -> AdvTraining:
        """See `ESD`."""
        if self.space == "word_embd" and self.mode != "add":
            _checks.integer("k", self.k, 1, bundle.context - 2)
        return AdvTraining(self, bundle, concept, seed)


class AdvTraining(Training):
    """The loop with the lower level in it."""

    def __init__(self, method: Any, bundle: Bundle, concept: Concept, seed: int):
        super().__init__(method, bundle, concept, seed)
        self.soft = SoftPrompt(method.k, method.mode, method.space, method.compat)

    def choose(self, iteration: int) -> None:
        """A new concept prompt and, after the warm-up, a new attack on it."""
        m = self.method
        if iteration % m.attack_every:
            return
        super().choose(iteration)
        if iteration < m.warmup:
            return
        tokens = self.tokens[self.prompt]
        start = self.soft.start(self.student, tokens, rng_of(self.seed, iteration, INIT))
        if m.attack_init == "latest" and self.adv is not None and self.adv.shape == start.shape:
            start = self.soft.latest(self.student, tokens, self.adv)
        self.adv = attack(
            self.student, tokens, self.soft, start, self._draw, kind=m.attack, steps=m.attack_steps,
            lr=m.attack_lr, check=self._check,
        )  # fmt: skip

    def concept_text(self) -> Condition:
        """The concept with the soft prompt, which gets no gradient."""
        if self.adv is None:
            return super().concept_text()
        return self.soft.condition(self.student, self.tokens[self.prompt], self.adv)

    def _draw(self, step: int) -> Draw:
        count = self.method.attack_batch or self.method.batch
        drawn: Draw = self.source.concept(rng_of(self.seed, self.done, ATTACK, step), self.prompt, count)
        return drawn

    def _check(self, loss: Tensor, drawn: Draw, step: int) -> None:
        self.finite(loss, drawn, f"attack loss (step {step})")
