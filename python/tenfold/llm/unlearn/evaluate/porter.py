"""Porter's stemmer (Program 14(3), 1980) with the extensions of NLTK, as ROUGE-L is usually computed.

Extensions: a few irregular words, ``-ies`` and ``-ied`` of four-letter words, ``y`` after a consonant only,
``-bli``, ``-alli``, ``-fulli``, ``-logi``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import TypeAlias

__all__ = ["stem"]

Rule: TypeAlias = "tuple[str, str, Callable[[str], bool]]"

_IRREGULAR = {
    "skies": "sky", "dying": "die", "lying": "lie", "tying": "tie", "innings": "inning", "inning": "inning",
    "outings": "outing", "outing": "outing", "cannings": "canning", "canning": "canning", "sky": "sky",
    "news": "news", "howe": "howe", "proceed": "proceed", "exceed": "exceed", "succeed": "succeed",
}  # fmt: skip


@lru_cache(maxsize=65536)
def stem(word: str) -> str:
    """Stem of a word in lower case."""
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if len(word) <= 2:
        return word
    for step in (_plurals, _past, _final_y, _double_suffixes, _suffixes, _endings, _final_e, _final_ll):
        word = step(word)
    return word


def _consonant(word: str, i: int) -> bool:
    if word[i] in "aeiou":
        return False
    return word[i] != "y" or i == 0 or not _consonant(word, i - 1)


def _measure(word: str) -> int:
    """Porter's m: how often a consonant follows a vowel."""
    kinds = [_consonant(word, i) for i in range(len(word))]
    return sum(not before and after for before, after in pairwise(kinds))


def _vowel(word: str) -> bool:
    return any(not _consonant(word, i) for i in range(len(word)))


def _double_consonant(word: str) -> bool:
    return len(word) >= 2 and word[-1] == word[-2] and _consonant(word, len(word) - 1)


def _short(word: str) -> bool:
    """Consonant, vowel, consonant other than w, x, y; or two letters, vowel and consonant."""
    if len(word) == 2:
        return not _consonant(word, 0) and _consonant(word, 1)
    at = len(word) - 1
    return (
        len(word) >= 3
        and _consonant(word, at)
        and not _consonant(word, at - 1)
        and _consonant(word, at - 2)
        and word[-1] not in "wxy"
    )


def _some(word: str) -> bool:
    return _measure(word) > 0


def _more(word: str) -> bool:
    return _measure(word) > 1


def _first(word: str, rules: Sequence[Rule]) -> str:
    """The first rule whose ending fits decides, whether or not its condition holds."""
    for ending, instead, holds in rules:
        if word.endswith(ending):
            front = word[: len(word) - len(ending)]
            return front + instead if holds(front) else word
    return word


def _always(_: str) -> bool:
    return True


def _plurals(word: str) -> str:
    if word.endswith("ies") and len(word) == 4:
        return word[:-1]
    return _first(word, [("sses", "ss", _always), ("ies", "i", _always), ("ss", "ss", _always),
                         ("s", "", _always)])  # fmt: skip


def _past(word: str) -> str:
    if word.endswith("ied"):
        return word[:-1] if len(word) == 4 else word[:-2]
    if word.endswith("eed"):
        return word[:-1] if _some(word[:-3]) else word
    for ending in ("ed", "ing"):
        front = word[: -len(ending)]
        if word.endswith(ending) and _vowel(front):
            break
    else:
        return word
    if front.endswith(("at", "bl", "iz")):
        return front + "e"
    if _double_consonant(front):
        return front if front[-1] in "lsz" else front[:-1]
    return front + "e" if _measure(front) == 1 and _short(front) else front


def _final_y(word: str) -> str:
    front = word[:-1]
    return (
        front + "i" if word.endswith("y") and len(front) > 1 and _consonant(front, len(front) - 1) else word
    )


def _double_suffixes(word: str) -> str:
    if word.endswith("alli") and _some(word[:-4]):
        return _double_suffixes(word[:-2])
    return _first(
        word,
        [
            *((ending, instead, _some) for ending, instead in _STEP_2),
            ("logi", "log", lambda front: _some(front + "l")),
        ],
    )


_STEP_2 = (
    ("ational", "ate"), ("tional", "tion"), ("enci", "ence"), ("anci", "ance"), ("izer", "ize"),
    ("bli", "ble"), ("alli", "al"), ("entli", "ent"), ("eli", "e"), ("ousli", "ous"), ("ization", "ize"),
    ("ation", "ate"),
    ("ator", "ate"), ("alism", "al"), ("iveness", "ive"), ("fulness", "ful"), ("ousness", "ous"),
    ("aliti", "al"), ("iviti", "ive"), ("biliti", "ble"), ("fulli", "ful"),
)  # fmt: skip
_STEP_3 = (
    ("icate", "ic"), ("ative", ""), ("alize", "al"), ("iciti", "ic"), ("ical", "ic"), ("ful", ""),
    ("ness", ""),
)  # fmt: skip
_STEP_4 = (
    "al", "ance", "ence", "er", "ic", "able", "ible", "ant", "ement", "ment", "ent", "ion", "ou", "ism",
    "ate", "iti", "ous", "ive", "ize",
)  # fmt: skip


def _suffixes(word: str) -> str:
    return _first(word, [(ending, instead, _some) for ending, instead in _STEP_3])


def _endings(word: str) -> str:
    def after_s_or_t(front: str) -> bool:
        return _more(front) and front[-1] in "st"

    return _first(word, [(ending, "", after_s_or_t if ending == "ion" else _more) for ending in _STEP_4])


def _final_e(word: str) -> str:
    front = word[:-1]
    if word.endswith("e") and (_more(front) or (_measure(front) == 1 and not _short(front))):
        return front
    return word


def _final_ll(word: str) -> str:
    return word[:-1] if word.endswith("ll") and _more(word[:-1]) else word
