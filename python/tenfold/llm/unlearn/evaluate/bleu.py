"""Sentence BLEU (Papineni et al., 2002), as sacrebleu's ``corpus_bleu`` of one pair gives it by default.

Tokens of mteval-v13a, n-grams up to four, zero counts smoothed by halving ("exp"), in percent.
"""

from __future__ import annotations

import math
import re
from collections import Counter

__all__ = ["sentence_bleu", "tokens_13a"]

_ORDER = 4
_SPLITS = (
    (re.compile(r"([\{-\~\[-\` -\&\(-\+\:-\@\/])"), r" \1 "),  # symbols, but ' , - .
    (re.compile(r"([^0-9])([\.,])"), r"\1 \2 "),  # a full stop or comma not behind a digit
    (re.compile(r"([\.,])([^0-9])"), r" \1 \2"),  # or not in front of one
    (re.compile(r"([0-9])(-)"), r"\1 \2 "),  # a dash behind a digit
)
_ENTITIES = (("<skipped>", ""), ("-\n", ""), ("\n", " "), ("&quot;", '"'), ("&amp;", "&"), ("&lt;", "<"),
             ("&gt;", ">"))  # fmt: skip


def tokens_13a(text: str) -> list[str]:
    """Tokens of a text as mteval-v13a splits them; case is kept."""
    for entity, character in _ENTITIES:
        text = text.replace(entity, character)
    text = f" {text} "
    for pattern, spaced in _SPLITS:
        text = pattern.sub(spaced, text)
    return text.split()


def sentence_bleu(target: str, prediction: str) -> float:
    """BLEU in [0, 100] of one prediction; 0 where not even a word is shared."""
    wanted, said = tokens_13a(target.rstrip()), tokens_13a(prediction.rstrip())
    if not said:
        return 0.0
    logs, halvings = 0.0, 0
    for n in range(1, _ORDER + 1):
        total = len(said) - n + 1
        if total < 1:
            return 0.0  # fewer than four tokens have no four-gram, and no effective order is asked for
        found = _grams(said, n) & _grams(wanted, n)
        matches = found.total()
        if not matches:
            if n == 1:
                return 0.0
            halvings += 1
        logs += math.log(matches / total if matches else 1 / (2**halvings * total))
    brevity = min(0.0, 1 - len(wanted) / len(said))
    return 100 * math.exp(brevity + logs / _ORDER)


def _grams(tokens: list[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))
