"""The unlearning methods by name: what each needs, and SOUL's names for them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

__all__ = ["METHODS", "SOUL_NAMES", "Method", "find", "reads_distribution"]


@dataclass(frozen=True)
class Method:
    """One method.

    Attributes:
        title: as it is written in the literature, with the paper's arXiv id.
        retain: what its retain term is unless told otherwise: ``"nll"``, ``"kl"``, ``"activation"``,
            ``"none"``.
        gamma: weight of the retain term unless told otherwise.
        sets: further sets of rows beside ``forget`` and ``retain``: ``"refusal"``, ``"random"``.
        reference: what is remembered of the model before unlearning: ``"nll"`` (one number per row),
            ``"hidden"`` (hidden states at the labelled positions), or nothing.
        defaults: the method's own numbers.
    """

    title: str
    paper: str
    retain: str = "nll"
    gamma: float = 1.0
    sets: tuple[str, ...] = ()
    reference: tuple[str, ...] = ()
    defaults: dict[str, Any] = field(default_factory=dict)


METHODS: dict[str, Method] = {
    "teach": Method("fine-tuning", "", retain="none"),
    "ga": Method("GA", "2401.06121", retain="none"),
    "graddiff": Method("GradDiff", "2401.06121"),
    "po": Method("PO", "2401.06121", sets=("refusal",)),
    "npo": Method("NPO", "2404.05868", reference=("nll",), defaults={"beta": 0.1, "per": "sequence"}),
    "dpo": Method("IdkDPO", "2401.06121", sets=("refusal",), reference=("nll",), defaults={"beta": 0.1}),
    "simnpo": Method("SimNPO", "2410.07163", defaults={"beta": 4.5, "delta": 0.0}),
    "kl": Method("KL", "2404.18239", retain="kl", reference=("hidden",)),
    "rl": Method("RL", "2404.18239", sets=("random",), retain="none"),
    "wga": Method("WGA", "2502.19301", defaults={"beta": 1.0}),
    "satimp": Method("SatImp", "2505.11953", defaults={"beta1": 5.0, "beta2": 1.0}),
    "undial": Method("UNDIAL", "2402.10052", reference=("hidden",), defaults={"beta": 10.0}),
    "ceu": Method("CE-U", "2503.01224", retain="none", defaults={"skip": 1}),
    "rmu": Method("RMU", "2403.03218", retain="activation", defaults={"coefficient": 20.0, "block": None}),
    "pdu": Method("PDU", "2506.05314", defaults={"bound": 0.5, "dual_step_size": 1.0}),
    "ft": Method("FT", "2404.18239"),
    "iu": Method(
        "IU", "2304.04934", defaults={"damp": 1e-3, "rows": 32, "iterations": 10, "scale": 10.0, "depth": 30}
    ),
    "l1": Method("l1-sparse FT", "2304.04934", defaults={"alpha": 1e-6}),
}
"""Name -> method; ``teach`` is the opposite, training on the rows called ``forget``; ``iu`` is one step
along an influence function and has a solver in the place of an optimizer. In SimNPO's paper the
forget term weighs 0.125 where the retain term weighs 1."""

SOUL_NAMES: dict[str, tuple[str, dict[str, Any]]] = {
    "GA": ("ga", {}),
    "GA+FT": ("graddiff", {}),
    "GA+KL": ("graddiff", {"retain_loss": "kl"}),
    "GA_FT_epoch": ("graddiff", {"ramp": True}),
    "GA_KL_epoch": ("graddiff", {"retain_loss": "kl", "ramp": True}),
    "CL": ("po", {"retain_loss": "none"}),
    "CL+FT": ("po", {}),
    "CL+KL": ("po", {"retain_loss": "kl"}),
    "CL_FT_epoch": ("po", {"ramp": True}),
    "NPO": ("npo", {}),
    "KL": ("kl", {}),
    "RL": ("rl", {}),
    "FT": ("ft", {}),
    "l1sparse": ("l1", {}),
    "l1_sparse": ("l1", {}),
}
"""Name in SOUL's configuration files -> our method and settings."""


def find(name: str) -> Method:
    """The method of that name.

    Raises:
        ValueError: an unknown name.
    """
    if name not in METHODS:
        raise ValueError(f"method: expected one of {', '.join(METHODS)}, got {name!r}")
    return METHODS[name]


def reads_distribution(name: str, retain_loss: str | None) -> list[str]:
    """Sets of whose rows a method compares whole distributions: ``"forget"``, ``"retain"``, both or none.

    ``retain_loss`` as in :class:`tenfold.llm.unlearn.objective.Objective`; None for the method's own.
    """
    known = find(name)
    forget = ["forget"] if "hidden" in known.reference else []
    return forget + (["retain"] if (retain_loss or known.retain) == "kl" else [])
