"""The language of the digits world: 474 words, and prompts that are true of a digit.

A digit has a name in four languages, and is also told by what is true of it: "middle hooked" is 5 without the
word. That is what makes erasing a name an adversarial problem, as with real prompts. 400 filler words mean
nothing; an attack may use them all the same.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from tenfold import _checks
from tenfold.diffusion.embedded import END, START, UNKNOWN, word_tokenizer

__all__ = [
    "CONTEXT",
    "DESCRIPTORS",
    "DESCRIPTOR_TEMPLATES",
    "FILLERS",
    "NAMES",
    "NAME_TEMPLATES",
    "digit_name",
    "digit_of",
    "digits_described",
    "name_prompts",
    "random_prompt",
    "retain_prompts",
    "tokenizer",
    "words",
]

CONTEXT = 16
"""Tokens of a prompt, with the first and the end token."""

NAMES = (
    ("zero", "cero", "null", "nul"),
    ("one", "uno", "eins", "un"),
    ("two", "dos", "zwei", "deux"),
    ("three", "tres", "drei", "trois"),
    ("four", "cuatro", "vier", "quatre"),
    ("five", "cinco", "funf", "cinq"),
    ("six", "seis", "sechs", "sei"),
    ("seven", "siete", "sieben", "sept"),
    ("eight", "ocho", "acht", "huit"),
    ("nine", "nueve", "neun", "neuf"),
)

DESCRIPTORS = {
    "odd": "13579",
    "even": "02468",
    "prime": "2357",
    "composite": "4689",
    "small": "01234",
    "large": "56789",
    "square": "0149",
    "round": "0689",
    "hooked": "235",
    "middle": "456",
    "triangular": "136",
    "fibonacci": "12358",
    "loopless": "12357",
    "closed": "04689",
    "edge": "0189",
}
"""Word -> the digits it is true of."""

NAME_TEMPLATES = (
    "{}",
    "a photo of {}",
    "handwritten {}",
    "the digit {}",
    "a picture of {}",
    "an image of the digit {}",
    "{} on paper",
    "the number {}",
    "a drawing of the number {}",
    "a scan of a handwritten {}",
)
DESCRIPTOR_TEMPLATES = (
    "{}",
    "a {} digit",
    "a photo of a {} digit",
    "a handwritten {} number",
    "a {} digit on paper",
)

FILLERS = tuple(f"w{i:03d}" for i in range(400))

_TEMPLATE_WORDS = (
    *("a", "an", "the", "of", "on", "and", "photo", "picture", "image", "drawing", "scan", "paper"),
    *("handwritten", "digit", "number", "ink"),
)


@lru_cache(maxsize=1)
def words() -> tuple[str, ...]:
    """All words, in the order of their ids; the first and the end token last."""
    names = tuple(name for row in NAMES for name in row)
    return (*names, *DESCRIPTORS, *_TEMPLATE_WORDS, *FILLERS, UNKNOWN, START, END)


def tokenizer() -> Any:
    """A new tokenizer of whole words, that pads with the end token and reads any other word as "unknown"."""
    return word_tokenizer(words(), CONTEXT)


def digit_of(word: str | int) -> int:
    """The digit that a name or a numeral means.

    Raises:
        ValueError: no name of a digit.
    """
    if isinstance(word, int) and not isinstance(word, bool) and 0 <= word <= 9:
        return word
    found = [d for d, names in enumerate(NAMES) if word in names or word == str(d)]
    if not found:
        _checks.fail(ValueError, "digit", "0 to 9 or one of their names (NAMES)", repr(word))
    return found[0]


def digit_name(word: str) -> str:
    """`word`, if it is a name of a digit: numerals are none of the model's words.

    Raises:
        ValueError: it is none.
    """
    if not any(word in names for names in NAMES):
        _checks.fail(ValueError, "concept", "a name of a digit, as 'five' or 'cinco'", repr(word))
    return word


def digits_described(prompt: str) -> frozenset[int]:
    """The digits that a prompt is true of: all ten where it says nothing of them."""
    left = set(range(10))
    for word in prompt.split():
        if word in DESCRIPTORS:
            left &= {int(d) for d in DESCRIPTORS[word]}
        else:
            left &= {d for d, names in enumerate(NAMES) if word in names} or left
    return frozenset(left)


def name_prompts(digit: int, count: int | None = None) -> list[str]:
    """Prompts that name a digit: each template with each of its four names, 40 in all, in a fixed order."""
    names = NAMES[digit_of(digit)]
    found = [NAME_TEMPLATES[i % 10].format(names[(i + i // 10) % 4]) for i in range(40)]
    return found if count is None else found[: _checks.integer("count", count, 0, 40)]


def retain_prompts(erased: str | int, count: int = 48) -> list[str]:
    """What an eraser of one digit is to keep: names of the other nine, and "", "a photo of", "on paper"."""
    others = [d for d in range(10) if d != digit_of(erased)]
    count = _checks.integer("count", count, 3, 3 + 9 * 40)
    named = [name_prompts(d)[i] for i in range(40) for d in others]
    return [*named[: count - 3], "", "a photo of", "on paper"]


def random_prompt(digit: int, draw: np.random.Generator) -> str:
    """A training prompt that is true of `digit`.

    One in ten is empty, five name the digit, four tell one to four of its descriptors; up to three words
    without meaning stand anywhere.
    """
    kind = draw.random()
    if kind < 0.1:
        return ""
    if kind < 0.6:
        name = NAMES[digit][int(draw.integers(4))]
        text = NAME_TEMPLATES[int(draw.integers(len(NAME_TEMPLATES)))].format(name)
    else:
        true = [word for word, of in DESCRIPTORS.items() if str(digit) in of]
        chosen = draw.permutation(true)[: int(draw.integers(1, min(4, len(true)) + 1))]
        text = DESCRIPTOR_TEMPLATES[int(draw.integers(len(DESCRIPTOR_TEMPLATES)))].format(" ".join(chosen))
    said = text.split()
    meaningless = (*FILLERS, UNKNOWN)
    for _ in range(int(draw.integers(4))):
        said.insert(int(draw.integers(len(said) + 1)), meaningless[int(draw.integers(len(meaningless)))])
    return " ".join(said)
