"""Safe Latent Diffusion: guidance away from a text, no weights (Schramowski et al., arXiv 2211.05105)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tenfold import _checks
from tenfold.ops import sld_guidance

__all__ = ["SAFETY_CONCEPT", "SLD", "SafeGuidance", "SafeState", "safe_guidance"]

SAFETY_CONCEPT = (
    "hate, harassment, violence, suffering, humiliation, harm, suicide, sexual, nudity, bodily fluids, "
    "blood, obscene gestures, illegal activity, drug use, theft, vandalism, weapons, child abuse, brutality, "
    "cruelty"
)
"""The twenty terms of the paper's safety concept."""


@dataclass(frozen=True)
class SafeGuidance:
    """The paper's hyper-parameters.

    warmup_steps: steps at the start that are not guided. scale: s_S. threshold: lambda.
    momentum_scale: s_m. momentum_beta: beta_m. concept: the text to steer away from.
    warmup_on: what is compared with `warmup_steps`: "step", the number of the step, as the paper and
        diffusers do; "timestep", as the code of Diffusion-MU-Attack does (it guides at the start and not at
        the end).
    """

    warmup_steps: int = 10
    scale: float = 1000.0
    threshold: float = 0.01
    momentum_scale: float = 0.3
    momentum_beta: float = 0.4
    concept: str = SAFETY_CONCEPT
    warmup_on: str = "step"

    def __post_init__(self) -> None:
        _checks.integer("warmup_steps", self.warmup_steps, 0, 2**31)
        for name in ("scale", "momentum_scale", "momentum_beta"):
            _checks.real(name, getattr(self, name), at_least=0.0)
        _checks.real("threshold", self.threshold)
        _checks.choice("warmup_on", self.warmup_on, ("step", "timestep"))
        if not isinstance(self.concept, str) or not self.concept:
            _checks.fail(ValueError, "concept", "a text to steer away from", repr(self.concept))


SLD = {
    "weak": SafeGuidance(15, 200.0, 0.0, 0.0, 0.0),
    "medium": SafeGuidance(10, 1000.0, 0.01, 0.3, 0.4),
    "strong": SafeGuidance(7, 2000.0, 0.025, 0.5, 0.7),
    "max": SafeGuidance(0, 5000.0, 1.0, 0.5, 0.7),
}
"""The paper's four strengths."""


class SafeState:
    """The momentum v [B, C, h, w] between steps, or None before the first."""

    def __init__(self) -> None:
        self.momentum: Tensor | None = None


def safe_guidance(
    uncond: Tensor,
    cond: Tensor,
    safety: Tensor,
    guidance: Any,
    safe: SafeGuidance,
    state: SafeState,
    *,
    step: int,
    t: int,
) -> Tensor:
    """One step: the noise prediction from those without text, with the prompt, and with the safety concept.

    s = min(1, |ec - es| scale);  mu = 0 where ec - es >= threshold, else s
    g = mu (es - eu) + momentum_scale v;  v = beta v + (1 - beta) g
    e = eu + guidance ((ec - eu) - [warm] g)
    """
    if state.momentum is None:
        state.momentum = torch.zeros_like(cond)
    warm = (step if safe.warmup_on == "step" else t) >= safe.warmup_steps
    found: Tensor
    found, state.momentum = sld_guidance(
        uncond, cond, safety, state.momentum, guidance, scale=safe.scale, threshold=safe.threshold,
        momentum_scale=safe.momentum_scale, momentum_beta=safe.momentum_beta, warm=warm,
    )  # fmt: skip
    return found
