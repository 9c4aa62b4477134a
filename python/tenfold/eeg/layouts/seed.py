"""SEED (Zheng, Lu, IEEE TAMD 7(3), 2015) and SEED-IV (Zheng et al., IEEE Trans. Cybernetics 49(3), 2019).

15 subjects, three sessions each; 62 channels at 200 Hz; 15 film clips a session in SEED, 24 in SEED-IV.

    SEED      ExtractedFeatures/{subject}_{date}.mat     de_LDS1 .. de_LDS15, each (62, windows, 5)
              Preprocessed_EEG/{subject}_{date}.mat      xyz_eeg1 .. xyz_eeg15, each (62, samples)
              label.mat beside them                      label (1, 15) of -1, 0, 1
    SEED-IV   eeg_feature_smooth/{session}/{subject}_{date}.mat     de_LDS1 .. de_LDS24
              eeg_raw_data/{session}/{subject}_{date}.mat           xyz_eeg1 .. xyz_eeg24

SEED's 45 files lie in one folder; a subject's sessions are then the ranks of the dates in their names. Three
folders 1, 2, 3 are taken as well, as code that grew around the set wants them.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path

import numpy as np

from tenfold import _checks
from tenfold.eeg.corpus import Corpus, Domain
from tenfold.eeg.features import BANDS, to_rows
from tenfold.eeg.layouts.extraction import Extraction, extract
from tenfold.eeg.layouts.files import (
    chosen,
    in_order,
    is_simulated,
    naming,
    numbered,
    read_mat,
    read_mat_array,
    to_folder,
)
from tenfold.eeg.montage import SEED_CHANNELS

__all__ = [
    "FEATURES",
    "SEED_IV_LABELS",
    "SEED_LABELS",
    "load_seed",
    "load_seed_iv",
    "load_seed_iv_raw",
    "load_seed_raw",
]

FEATURES = ("de_LDS", "de_movingAve", "psd_LDS", "psd_movingAve")
"""Published features of 62 channels and 5 bands: differential entropy or power, smoothed in two ways."""

FS = 200.0

SEED_LABELS = (1, 0, -1, -1, 0, 1, -1, 0, 1, 1, 0, -1, 0, 1, -1)
"""Of the 15 clips, the same in every session: 1 positive, 0 neutral, -1 negative."""

SEED_IV_LABELS = (
    (1, 2, 3, 0, 2, 0, 0, 1, 0, 1, 2, 1, 1, 1, 2, 3, 2, 2, 3, 3, 0, 3, 0, 3),
    (2, 1, 3, 0, 0, 2, 0, 2, 3, 3, 2, 3, 2, 0, 1, 1, 2, 1, 0, 3, 0, 1, 3, 1),
    (1, 2, 2, 1, 3, 3, 3, 1, 1, 2, 1, 0, 2, 3, 3, 0, 2, 3, 0, 0, 2, 0, 1, 0),
)
"""Of the 24 clips of the three sessions: 0 neutral, 1 sad, 2 fear, 3 happy."""


@dataclass(frozen=True)
class _Set:
    """labels: class numbers of the clips per session."""

    name: str
    classes: tuple[str, ...]
    labels: tuple[tuple[int, ...], ...]
    window_s: float
    flat: bool
    """Whether all files may lie in one folder."""


_SEED = _Set("SEED", ("negative", "neutral", "positive"), (tuple(v + 1 for v in SEED_LABELS),) * 3, 1.0, True)
_SEED_IV = _Set("SEED-IV", ("neutral", "sad", "fear", "happy"), SEED_IV_LABELS, 4.0, False)


def load_seed(
    path: str | os.PathLike[str], *, feature: str = "de_LDS", subjects: Sequence[int] | None = None
) -> Corpus:
    """SEED's published features: 62 channels x 5 bands, one row per second; negative, neutral, positive.

    Args:
        path: folder `ExtractedFeatures`, or one with the folders 1, 2, 3.
        feature: one of :data:`FEATURES`.
        subjects: numbers of the subjects to load; None for all.

    Returns:
        Domains "subject S, session D", sorted by session and subject; trial numbers are those of the clips.

    Raises:
        ValueError: files or arrays that are not as described; the message names the file.
        RuntimeError: scipy is not installed.
    """
    return _load(_SEED, path, subjects, feature, None)


def load_seed_raw(
    path: str | os.PathLike[str],
    *,
    extraction: Extraction | None = None,
    subjects: Sequence[int] | None = None,
) -> Corpus:
    """SEED's preprocessed EEG (folder `Preprocessed_EEG`), its features computed here; 1 s per row.

    Otherwise as :func:`load_seed`.
    """
    return _load(_SEED, path, subjects, "", extraction or Extraction())


def load_seed_iv(
    path: str | os.PathLike[str], *, feature: str = "de_LDS", subjects: Sequence[int] | None = None
) -> Corpus:
    """SEED-IV's published features: 62 channels x 5 bands, one row per 4 s; neutral, sad, fear, happy.

    Args:
        path: folder `eeg_feature_smooth`, with the folders 1, 2, 3.

    Otherwise as :func:`load_seed`.
    """
    return _load(_SEED_IV, path, subjects, feature, None)


def load_seed_iv_raw(
    path: str | os.PathLike[str],
    *,
    extraction: Extraction | None = None,
    subjects: Sequence[int] | None = None,
) -> Corpus:
    """SEED-IV's EEG (folder `eeg_raw_data`, with folders 1, 2, 3), its features computed here; 4 s per row.

    Otherwise as :func:`load_seed`.
    """
    return _load(_SEED_IV, path, subjects, "", extraction or Extraction())


def _load(
    of: _Set,
    path: str | os.PathLike[str],
    subjects: Sequence[int] | None,
    feature: str,
    extraction: Extraction | None,
) -> Corpus:
    if extraction is None:
        _checks.choice("feature", feature, FEATURES)
    folder = to_folder(path)
    _check_labels(of, folder)
    files = _sessions(of, folder)
    wanted = chosen(subjects, [subject for _, subject, _ in files])
    domains = tuple(
        _domain(of, file, subject, session, feature, extraction)
        for session, subject, file in files
        if subject in wanted
    )
    if extraction is None:
        kind = {"de": "differential entropy", "psd": "power spectral density"}[feature.partition("_")[0]]
        smoothing = "lds" if feature.endswith("LDS") else "moving-average"
        metadata = {
            "features": f"{kind} ({feature}), as published",
            "de": "as published" if feature.startswith("de") else "none",
            "smoothing": f"{smoothing} (as published), offline",
            "window_s": of.window_s,
        }
    else:
        metadata = extraction.metadata(of.window_s, BANDS)
    metadata |= {"source": f"{of.name}, {folder.name}", "simulated": is_simulated(folder)}
    return Corpus(of.name, domains, of.classes, SEED_CHANNELS, tuple(BANDS), metadata)


def _check_labels(of: _Set, folder: Path) -> None:
    """The published lists against themselves and, for SEED, against label.mat where there is one."""
    for session, labels in enumerate(of.labels, 1):
        counts = Counter(labels)
        if len(set(counts.values())) != 1 or sorted(counts) != list(range(len(of.classes))):
            _checks.fail(RuntimeError, f"{of.name}, session {session}", "as many clips of each class", counts)
    file = folder / "label.mat"
    if of.flat and file.exists():
        label = read_mat_array(file, "label").ravel()
        if label.tolist() != list(SEED_LABELS):
            _checks.fail(ValueError, f"{file}: label", f"{list(SEED_LABELS)}", label.tolist())


def _sessions(of: _Set, folder: Path) -> list[tuple[int, int, Path]]:
    """(session, subject, file), sorted."""
    pattern, example = r"(\d+)_(\d+)\.mat", "1_20131027.mat"
    inner = [(n, folder / str(n)) for n in range(1, len(of.labels) + 1) if (folder / str(n)).is_dir()]
    if inner:
        return [
            (session, subject, file)
            for session, place in inner
            for (subject, _), file in _once(numbered(place, pattern, example, ["label.mat"]))
        ]
    if not of.flat:
        _checks.fail(ValueError, str(folder), "folders 1, 2, 3 (the sessions)", "none of them")
    found = numbered(folder, pattern, example, ["label.mat"])
    ranked: list[tuple[int, int, Path]] = []
    counts: dict[int, int] = {}
    for subject, files in groupby(found, key=lambda entry: entry[0][0]):  # by date within a subject
        mine = [file for _, file in files]
        counts[subject] = len(mine)
        ranked += [(rank, subject, file) for rank, file in enumerate(mine, 1)]
    usual = max(counts.values())
    for subject, count in counts.items():
        if count != usual or count > len(of.labels):
            expected = f"{min(usual, len(of.labels))} files of each subject (its sessions, by date)"
            _checks.fail(ValueError, str(folder), expected, f"{count} of subject {subject}")
    return sorted(ranked)


def _once(found: list[tuple[list[int], Path]]) -> list[tuple[list[int], Path]]:
    """Within a session a subject has one file."""
    for (before, first), (after, second) in pairwise(found):
        if before[0] == after[0]:
            expected = "one file of each subject in a session"
            _checks.fail(ValueError, str(first.parent), expected, f"{first.name} and {second.name}")
    return found


def _domain(
    of: _Set, file: Path, subject: int, session: int, feature: str, extraction: Extraction | None
) -> Domain:
    labels = of.labels[session - 1]
    channels, bands = len(SEED_CHANNELS), len(BANDS)
    if extraction is None:
        arrays = in_order(file, read_mat(file, rf"{feature}(\d+)"), len(labels), feature)
        rows = [to_rows(naming(file, array, f"{feature}{k}", (channels, None, bands))) for k, array in arrays]
        x = np.concatenate(rows).astype(np.float32)
        trial = np.repeat(np.arange(1, len(labels) + 1), [len(r) for r in rows])
    else:
        arrays = in_order(file, read_mat(file, r"\w*eeg_?(\d+)"), len(labels), "..._eeg")
        trials = [(k, naming(file, array, f"..._eeg{k}", (channels, None))) for k, array in arrays]
        try:
            x, trial = extract(trials, FS, of.window_s, extraction)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error
    y = np.array(labels, dtype=np.int64)[trial - 1]
    return Domain(f"subject {subject}, session {session}", x, y, trial, str(subject), session)
