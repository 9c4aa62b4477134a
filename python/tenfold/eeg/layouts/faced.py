"""FACED (Chen et al., Scientific Data 10, 740, 2023): 123 people, 28 film clips, nine emotions.

    EEG_Features/DE/sub000.pkl.pkl .. sub122.pkl.pkl    pickled (28, 32, 30, 5): clip, channel, second, band
    Processed_data/sub000.pkl .. sub122.pkl             pickled (28, 32, 7500): 30 s at 250 Hz

The double ending is that of the release; a single one is taken as well. The first 30 of the 32 channels are
EEG, the last two the mastoids.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tenfold import _checks
from tenfold.eeg.corpus import Corpus, Domain
from tenfold.eeg.features import BANDS, to_rows
from tenfold.eeg.layouts.extraction import Extraction, extract
from tenfold.eeg.layouts.files import chosen, is_simulated, naming, numbered, to_folder
from tenfold.eeg.montage import FACED_CHANNELS
from tenfold.eeg.unpickle import load_pickle

__all__ = ["EMOTIONS", "VALENCES", "load_faced", "load_faced_raw"]

EMOTIONS = (
    *("anger", "disgust", "fear", "sadness"),
    "neutral",
    *("amusement", "inspiration", "joy", "tenderness"),
)
VALENCES = ("negative", "neutral", "positive")
TARGETS = ("emotion", "valence")

FS = 250.0
CLIPS = 28
_EMOTION_OF_CLIP = np.repeat(np.arange(9), (3, 3, 3, 3, 4, 3, 3, 3, 3))
_VALENCE_OF_CLIP = np.repeat(np.arange(3), (12, 4, 12))


def load_faced(
    path: str | os.PathLike[str], *, target: str = "emotion", subjects: Sequence[int] | None = None
) -> Corpus:
    """FACED's published differential entropy: 30 channels x 5 bands, one row per second.

    Args:
        path: folder `EEG_Features/DE`.
        target: ``"emotion"`` (nine classes) or ``"valence"`` (negative, neutral, positive).
        subjects: numbers of the subjects to load, from 0; None for all.

    Returns:
        Domains "subject S" of one session; trials are the clips, from 1.

    Raises:
        ValueError: files that are not as described; the message names the file.
    """
    metadata = {
        "features": "differential entropy, as published",
        "de": "as published",
        "smoothing": "none",
        "window_s": 1.0,
    }

    def read(file: Path, held: Any) -> tuple[np.ndarray, np.ndarray]:
        clips = naming(file, held, "the array", (CLIPS, None, None, len(BANDS)))
        rows = [to_rows(clip) for clip in _eeg(file, clips)]
        trial = np.repeat(np.arange(1, CLIPS + 1, dtype=np.int64), clips.shape[2])
        return np.concatenate(rows).astype(np.float32), trial

    return _load(path, target, subjects, metadata, read)


def load_faced_raw(
    path: str | os.PathLike[str],
    *,
    target: str = "emotion",
    extraction: Extraction | None = None,
    subjects: Sequence[int] | None = None,
) -> Corpus:
    """FACED's preprocessed EEG (folder `Processed_data`), its features computed here; 1 s per row.

    Otherwise as :func:`load_faced`.
    """
    how = extraction or Extraction()

    def read(file: Path, held: Any) -> tuple[np.ndarray, np.ndarray]:
        clips = _eeg(file, naming(file, held, "the array", (CLIPS, None, None)))
        try:
            return extract(list(enumerate(clips, 1)), FS, 1.0, how)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error

    return _load(path, target, subjects, how.metadata(1.0, BANDS), read)


def _load(
    path: str | os.PathLike[str],
    target: str,
    subjects: Sequence[int] | None,
    metadata: dict[str, Any],
    read: Callable[[Path, Any], tuple[np.ndarray, np.ndarray]],
) -> Corpus:
    _checks.choice("target", target, TARGETS)
    of_clip, classes = (_EMOTION_OF_CLIP, EMOTIONS) if target == "emotion" else (_VALENCE_OF_CLIP, VALENCES)
    folder = to_folder(path)
    files = numbered(folder, r"sub(\d+)\.pkl(?:\.pkl)?", "sub000.pkl")
    wanted = chosen(subjects, [subject for (subject,), _ in files])
    domains = []
    for (subject,), file in files:
        if subject in wanted:
            x, trial = read(file, load_pickle(file))
            y = of_clip[trial - 1].astype(np.int64)
            domains.append(Domain(f"subject {subject}", x, y, trial, str(subject)))
    metadata = metadata | {"source": f"FACED, {folder.name}", "simulated": is_simulated(folder)}
    return Corpus("FACED", tuple(domains), classes, FACED_CHANNELS, tuple(BANDS), metadata)


def _eeg(file: Path, clips: np.ndarray) -> np.ndarray:
    """Without the mastoids."""
    if clips.shape[1] < len(FACED_CHANNELS):
        _checks.fail(ValueError, str(file), f"at least {len(FACED_CHANNELS)} channels", clips.shape[1])
    return clips[:, : len(FACED_CHANNELS)]
