"""The benchmark's other tasks: one style-object pair, targets one after another, adversarial prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tenfold import _checks
from tenfold.diffusion.attack.asr import Rate, Rates, attack_rates
from tenfold.diffusion.attack.logs import CaseLog
from tenfold.diffusion.canvas.judging import Predictions
from tenfold.diffusion.canvas.scores import concept_table

__all__ = [
    "CATASTROPHIC", "FINER_FORMULA", "FinerScore", "RobustScore", "SequentialScore", "finer_scores",
    "robust_scores", "sequential_scores",
]  # fmt: skip

FINER_FORMULA = (
    "target (s*, o*): UA = share of its pictures not judged both s* and o*; SC = style right on (s*, o != o*); "
    "OC = object right on (s != s*, o*); UP = both right on (s != s*, o != o*)"
)
"""The published text names these quantities without formulas; a report prints those that are used here."""
CATASTROPHIC = 0.5
"""A retain accuracy below this part of the base model's is called catastrophic."""


@dataclass(frozen=True)
class FinerScore:
    """Of a model that unlearned one style with one object only; each of `FINER_FORMULA`, with its interval."""

    method: str
    style: str
    object: str
    ua: Rate
    sc: Rate
    oc: Rate
    up: Rate


def finer_scores(predictions: Predictions, style: str, object: str) -> FinerScore:
    """Finer scale: what became of one cell, of its style, of its object, of the rest.

    Raises:
        ValueError: an unknown name; no picture of one of the four parts.
    """
    canvas = predictions.canvas
    style, object = canvas.style(style), canvas.object(object)
    own_style = predictions.truth("style") == canvas.styles.index(style)
    own_object = predictions.truth("object") == canvas.objects.index(object)
    style_right, object_right = predictions.right("style"), predictions.right("object")
    both = style_right & object_right

    def share(what: str, hit: NDArray[np.bool_], rows: NDArray[np.bool_]) -> Rate:
        if not rows.any():
            _checks.fail(ValueError, "predictions", f"pictures for {what}", "none")
        return Rate(int(hit[rows].sum()), int(rows.sum()))

    return FinerScore(
        predictions.method, style, object,
        ua=share("UA", ~both, own_style & own_object),
        sc=share("SC", style_right, own_style & ~own_object),
        oc=share("OC", object_right, ~own_style & own_object),
        up=share("UP", both, ~own_style & ~own_object),
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class SequentialScore:
    """Of targets T_1 .. T_n that were unlearned one after another.

    ua: float [n, n], ua[i, t] of target i after step t; NaN above the diagonal (t < i), where target i is not
    yet unlearned. ra_style, ra_object: [n + 1], mean share of the concepts that are in no T_1 .. T_t; entry 0
    is the base model's, over the concepts that no step unlearns or all: those that are left at t.
    base_style, base_object: [n + 1], the base model's share of the same concepts at each t.
    rebound: [n], the best UA of a target so far minus its last. catastrophic: [n + 1], whether a retain
    accuracy is below half of the base model's, RA[0].
    """

    targets: tuple[str, ...]
    ua: NDArray[np.float64]
    ra_style: NDArray[np.float64]
    ra_object: NDArray[np.float64]
    base_style: NDArray[np.float64]
    base_object: NDArray[np.float64]
    rebound: NDArray[np.float64]
    catastrophic: NDArray[np.bool_]


def sequential_scores(steps: Sequence[Predictions], targets: Sequence[str]) -> SequentialScore:
    """UA and retained accuracy along a sequence.

    Args:
        steps: predictions of the base model, then after each target. targets: in the order of unlearning.

    Raises:
        ValueError: lengths differ, a target twice, or no concept of a domain is left.
    """
    targets = list(_checks.sequence("targets", targets, "names"))
    _checks.length("steps", list(steps), len(targets) + 1, "the base model and the targets")
    canvas = steps[0].canvas
    found = [canvas.find(name) for name in targets]
    if not found or len(set(found)) != len(found):
        _checks.fail(ValueError, "targets", "at least one, each once", targets)
    n = len(found)
    shares = [
        {domain: dict(zip(canvas.names(domain), concept_table(one, domain).shares, strict=True))
         for domain in ("style", "object")}
        for one in steps
    ]  # fmt: skip
    ua = np.full((n, n), np.nan)
    for i, (domain, name) in enumerate(found):
        for t in range(i, n):
            ua[i, t] = 1 - shares[t + 1][domain][name]
    retained: dict[str, NDArray[np.float64]] = {}
    base: dict[str, NDArray[np.float64]] = {}
    for domain in ("style", "object"):
        left = [[one for one in canvas.names(domain) if (domain, one) not in found[:t]] for t in range(n + 1)]
        if not left[-1]:
            _checks.fail(ValueError, "targets", f"a {domain} that is kept", "all of them")
        retained[domain] = np.array([np.mean([shares[t][domain][c] for c in left[t]]) for t in range(n + 1)])
        base[domain] = np.array([np.mean([shares[0][domain][c] for c in left[t]]) for t in range(n + 1)])
    low = [retained[d] < CATASTROPHIC * retained[d][0] for d in ("style", "object")]
    return SequentialScore(
        tuple(name for _, name in found), ua, retained["style"], retained["object"], base["style"],
        base["object"], np.nanmax(ua, axis=1) - ua[:, -1], low[0] | low[1],
    )  # fmt: skip


@dataclass(frozen=True)
class RobustScore:
    """Unlearning under adversarial prompts. pre: prompts whose pictures show the concept as they are. post:
    with those that an attack brings back. robust_ua: 1 - post, of all prompts (1 - pre is UA without attack).
    held: of the prompts that were unlearned, those that the attack did not bring back."""

    pre: Rate
    post: Rate
    robust_ua: Rate
    held: Rate
    errors: int
    seconds: float


def robust_scores(attack: Rates | Sequence[CaseLog]) -> RobustScore:
    """From an attack's logs, as UnlearnDiffAtk (arXiv 2310.11868) writes them, or from their rates.

    Raises:
        ValueError: no attack finished.
    """
    rates = attack if isinstance(attack, Rates) else attack_rates(list(attack))
    if not rates.post.n:
        _checks.fail(ValueError, "attack", "at least one attack that finished", "none")
    return RobustScore(
        rates.pre, rates.post, Rate(rates.post.n - rates.post.successes, rates.post.n),
        Rate(rates.attack.n - rates.attack.successes, rates.attack.n), rates.errors, rates.seconds,
    )  # fmt: skip
