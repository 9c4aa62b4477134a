"""Published figures that a run is read against.

Of MS-DCDA (arXiv 2408.10235) the abstract alone was at hand: neither the tables of its baselines nor standard
deviations, nor which of the protocols its figures were made with.
"""

from __future__ import annotations

__all__ = ["HEADLINE", "MS_MDA"]

HEADLINE = {
    ("seed", "cross-subject"): 90.84,
    ("seed-iv", "cross-subject"): 78.49,
    ("seed", "cross-session"): 95.82,
    ("seed-iv", "cross-session"): 82.25,
}
"""Accuracy of MS-DCDA in %, from its abstract."""

MS_MDA = {
    ("seed", "cross-subject"): 80.33,
    ("seed-iv", "cross-subject"): 61.06,
    ("seed", "cross-session"): 87.20,
    ("seed-iv", "cross-session"): 64.04,
}
"""Accuracy of MS-MDA in %, every subject or session the target once, batch 128 (its repository's README)."""
