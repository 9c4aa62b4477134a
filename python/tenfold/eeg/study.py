"""What decides whether the reconstruction of MS-DCDA works: choices added one by one, and taken back.

Run with ``tenfold run msdcda --study``; the system's page in the documentation says what was found, and how.

The choices of `REVISED` were found on the embedded vowels, with the labels of eight of the 15 speakers as
targets (:data:`CHOSEN_ON`) and one seed. On those eight its accuracy is therefore favoured; on the others it
is not.
"""

from __future__ import annotations

from typing import Any

from tenfold.eeg.methods import METHODS, REVISED, Method, variant

__all__ = ["CHOSEN_ON", "STUDY"]

CHOSEN_ON = ("vowel", tuple(range(8)))
"""Data set and numbers of the targets whose labels the choices of REVISED were found with."""


def _revised(title: str, about: str, **changed: Any) -> Method:
    return variant(title, about, **{**REVISED, **changed})


STUDY: dict[str, Method] = {
    "ensemble-decides": variant(
        "first + ensemble decides", "labels and prediction of the ensemble branch",
        predict="ensemble", labels="ensemble",
    ),
    "warm-up": variant("first + warm-up", "class-wise terms after 30 % of the steps", warm=0.3),
    "revised-no-warm-up": _revised("revised, no warm-up", "class-wise terms from the start", warm=0.0),
    "revised-mean": _revised(
        "revised, all branches decide", "labels and prediction of the mean", predict="mean", labels="argmax"
    ),
    "revised-no-halves": _revised("revised, branches alike", "the ensemble is one in 15", share="branches"),
    "revised-all-rows": _revised("revised, no threshold", "every predicted class counts", confidence=0.0),
    "revised-no-cdd": _revised(
        "revised without CDD", "coarse term alone", intra=0.0, inter=0.0, tau="none"
    ),
    "revised-ensemble-only": _revised(
        "revised, ensemble alone", "no branch of its own for a source", individual=False
    ),
    "revised-fixed-tau": _revised("revised, fixed tau", "weight stays 0.5", tau="fixed"),
}  # fmt: skip
"""Name -> variant."""

assert not set(STUDY) & set(METHODS)
