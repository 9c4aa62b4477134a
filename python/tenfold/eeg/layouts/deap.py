"""DEAP (Koelstra et al., IEEE Trans. Affective Computing 3(1), 2012): 32 people, 40 music videos, ratings.

    data_preprocessed_python/s01.dat .. s32.dat    pickled {"data": (40, 40, 8064), "labels": (40, 4)}

Of the 40 channels the first 32 are EEG, at 128 Hz, filtered to 4-45 Hz by those who published it: there is no
delta band. Each trial is 3 s of rest and 60 s of video. Ratings go from 1 to 9.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tenfold import _checks
from tenfold.eeg.corpus import Corpus, Domain
from tenfold.eeg.features import BANDS
from tenfold.eeg.layouts.extraction import Extraction, extract
from tenfold.eeg.layouts.files import chosen, is_simulated, naming, numbered, to_folder
from tenfold.eeg.montage import DEAP_CHANNELS
from tenfold.eeg.unpickle import load_pickle

__all__ = ["DEAP_BANDS", "RATINGS", "load_deap"]

RATINGS = ("valence", "arousal", "dominance", "liking")
"""Columns of the ratings."""

DEAP_BANDS = {name: BANDS[name] for name in ("theta", "alpha", "beta")} | {"gamma": (31.0, 45.0)}
"""The part of :data:`tenfold.eeg.BANDS` that the published filter has left."""

FS, BASELINE_S = 128.0, 3.0


def load_deap(
    path: str | os.PathLike[str],
    *,
    target: str = "valence",
    threshold: float = 5.0,
    extraction: Extraction | None = None,
    subjects: Sequence[int] | None = None,
) -> Corpus:
    """DEAP's preprocessed EEG, its features computed here: 32 channels x 4 bands, one row per second.

    Args:
        path: folder `data_preprocessed_python`.
        target: one of :data:`RATINGS`.
        threshold: a trial is "high" if its rating is at least this much, else "low".
        extraction: how features are computed.
        subjects: numbers of the subjects to load; None for all.

    Returns:
        Domains "subject S" of one session. The 3 s before each video are filtered with it and left out.

    Raises:
        ValueError: files that are not as described; the message names the file.
        RuntimeError: scipy is not installed.
    """
    _checks.choice("target", target, RATINGS)
    threshold = _checks.real("threshold", threshold)
    how = extraction or Extraction()
    folder = to_folder(path)
    files = numbered(folder, r"s(\d+)\.dat", "s01.dat")
    wanted = chosen(subjects, [subject for (subject,), _ in files])
    domains = [
        _domain(file, subject, RATINGS.index(target), threshold, how)
        for (subject,), file in files
        if subject in wanted
    ]
    metadata = how.metadata(1.0, DEAP_BANDS) | {
        "target": f"{target} >= {threshold:g}",
        "source": f"DEAP, {folder.name}",
        "simulated": is_simulated(folder),
    }
    classes = (f"low {target}", f"high {target}")
    return Corpus("DEAP", tuple(domains), classes, DEAP_CHANNELS, tuple(DEAP_BANDS), metadata)


def _domain(file: Path, subject: int, column: int, threshold: float, how: Extraction) -> Domain:
    held = load_pickle(file)
    if not isinstance(held, dict) or not {"data", "labels"} <= set(held):
        got = sorted(map(str, held)) if isinstance(held, dict) else type(held).__name__
        _checks.fail(ValueError, str(file), "a dictionary of data and labels", got)
    data = naming(file, held["data"], "data", (None, None, None))
    if data.shape[1] < len(DEAP_CHANNELS):
        _checks.fail(ValueError, f"{file}: data", f"at least {len(DEAP_CHANNELS)} channels", data.shape[1])
    ratings = naming(file, held["labels"], "labels", (len(data), len(RATINGS)))
    if ratings.min() < 1 or ratings.max() > 9:
        got = f"{ratings.min():g} to {ratings.max():g}"
        _checks.fail(ValueError, f"{file}: labels", "ratings from 1 to 9", got)
    trials = [(k, trial[: len(DEAP_CHANNELS)]) for k, trial in enumerate(data, 1)]
    try:
        x, trial = extract(trials, FS, 1.0, how, bands=DEAP_BANDS, drop_s=BASELINE_S)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    high = (ratings[:, column] >= threshold).astype(np.int64)
    return Domain(f"subject {subject}", x, high[trial - 1], trial, str(subject))
