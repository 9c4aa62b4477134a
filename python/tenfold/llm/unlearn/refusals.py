"""Refusals: what a model is taught to say instead of the answer (preference optimisation, "PO")."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tenfold import _checks

__all__ = ["REFUSALS", "choose_refusals"]

REFUSALS = (
    "I do not have that information.",
    "I am not able to answer that.",
    "That is something I know nothing about.",
    "I have no record of this.",
    "Sorry, I cannot say.",
    "I am not aware of any such detail.",
    "This is outside what I know.",
    "I would only be guessing.",
    "Unfortunately, I have no answer to give.",
    "I have never come across that.",
    "My knowledge does not cover this.",
    "I cannot help with this question.",
    "I am afraid I do not know.",
    "No facts about this are known to me.",
    "I could not tell you.",
    "That question is beyond me.",
    "I have nothing reliable to say about it.",
    "There is nothing about this in what I have learned.",
    "I have to leave this question open.",
    "You would have to look that up somewhere else.",
    "I am unable to provide details on this.",
    "My training has not covered this subject.",
    "I do not recall anything of the kind.",
    "I must decline, since I do not know the answer.",
    "It is not clear to me what the answer would be.",
    "I lack the background to respond to that.",
    "Regrettably, this is unknown to me.",
    "I have not been told about that.",
    "No answer to this is available from me.",
    "I would rather not make something up.",
    "This topic is unfamiliar to me.",
    "I do not hold any details on that person or subject.",
    "I wish I knew, but I do not.",
    "That has not been part of what I was taught.",
    "An answer would be pure speculation on my side.",
    "I am missing the information that this would need.",
    "Nothing comes to mind that would answer this.",
    "Please consult another source for this one.",
)
"""Sentences of our own writing."""


def choose_refusals(count: int, *, seed: int = 0, sentences: Sequence[str] = REFUSALS) -> list[str]:
    """``count`` refusals, one per forget row, drawn uniformly; row i gets the same one whatever ``count`` is.

    Raises:
        ValueError: no sentences.
    """
    _checks.integer("count", count, 0, 2**31)
    _checks.seed("seed", seed)
    if not sentences:
        raise ValueError("sentences: expected at least one refusal, got none")
    drawn = np.random.default_rng([seed, 2]).random(count)
    return [sentences[int(u * len(sentences))] for u in drawn]
