"""What decides whether the reconstruction of MS-DCDA works: one change at a time, then some together.

Run with ``tenfold run msdcda --study``; the system's page in the documentation says what was found, and how.
"""

from __future__ import annotations

from tenfold.eeg.methods import Method, variant

__all__ = ["STUDY"]

STUDY: dict[str, Method] = {
    "ensemble-only": variant("ensemble branch alone", "one branch of all sources", individual=False),
}
"""Name -> variant."""
