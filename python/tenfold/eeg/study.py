"""What decides whether the reconstruction of MS-DCDA works: one change at a time, then some together.

Run with ``tenfold run msdcda --study``. What was found, and how, is on the documentation's page of the system.
"""

from __future__ import annotations

from tenfold.eeg.methods import Method, variant

__all__ = ["STUDY"]

STUDY: dict[str, Method] = {
    "ensemble-only": variant("ensemble branch alone", "one branch of all sources", individual=False),
}
"""Name -> variant."""
