"""Data selection: distances, coverage and scores, each from a module of its own."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

from .harness import Case

PARTS = ("distance", "coverage", "scores")


def cases() -> list[Case]:
    """All cases of the family."""
    found: list[Case] = []
    for part in PARTS:
        if find_spec(f"{__package__}.{part}") is not None:
            found += import_module(f".{part}", __package__).cases()
    return found
