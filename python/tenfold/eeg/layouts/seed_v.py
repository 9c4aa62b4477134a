"""SEED-V (Liu et al., IEEE TCDS 14(2), 2022): three sessions of 15 film clips, five emotions.

    EEG_DE_features/{subject}_123.npz    data, label: pickled dictionaries inside an archive of NumPy
                                         data[0 .. 44]: (windows, 310), label[0 .. 44]: (windows,)

Clips 0 to 14 are session 1, 15 to 29 session 2, 30 to 44 session 3. Windows are 4 s long, columns channel by
channel. The raw EEG is published as Neuroscan recordings (.cnt), which are not read here.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tenfold import _checks
from tenfold._npy import array_names, read_npz
from tenfold.eeg.corpus import Corpus, Domain
from tenfold.eeg.features import BANDS
from tenfold.eeg.layouts.files import chosen, is_simulated, naming, numbered, to_folder
from tenfold.eeg.montage import SEED_CHANNELS
from tenfold.eeg.unpickle import loads_pickle

__all__ = ["load_seed_v"]

CLASSES = ("disgust", "fear", "sad", "neutral", "happy")
_SESSIONS, _CLIPS = 3, 15


def load_seed_v(path: str | os.PathLike[str], *, subjects: Sequence[int] | None = None) -> Corpus:
    """SEED-V's published differential entropy: 62 channels x 5 bands, one row per 4 s.

    Args:
        path: folder `EEG_DE_features`.
        subjects: numbers of the subjects to load; None for all that are there (the release has been described
            with 16 and with 20).

    Returns:
        Domains "subject S, session D", sorted by session and subject; trials are numbered from 1 within a
        session.

    Raises:
        ValueError: files that are not as described: a clip of more than one class, classes that are not
            spread evenly over a session, other shapes, or a pickle that holds more than arrays; the message
            names the file.
    """
    folder = to_folder(path)
    files = numbered(folder, r"(\d+)_123\.npz", "1_123.npz")
    wanted = chosen(subjects, [subject for (subject,), _ in files])
    domains = [
        domain for (subject,), file in files if subject in wanted for domain in _subject(file, subject)
    ]
    domains.sort(key=lambda domain: (domain.session, int(domain.subject)))
    metadata = {
        "features": "differential entropy, as published",
        "de": "as published",
        "smoothing": "lds (as published), offline",
        "window_s": 4.0,
        "source": f"SEED-V, {folder.name}",
        "simulated": is_simulated(folder),
    }
    return Corpus("SEED-V", tuple(domains), CLASSES, SEED_CHANNELS, tuple(BANDS), metadata)


def _subject(file: Path, subject: int) -> list[Domain]:
    data, label = _dictionaries(file)
    domains = []
    for session in range(1, _SESSIONS + 1):
        clips = range((session - 1) * _CLIPS, session * _CLIPS)
        rows = [naming(file, data[k], f"data[{k}]", (None, len(SEED_CHANNELS) * len(BANDS))) for k in clips]
        lengths = [len(r) for r in rows]
        classes = [_class(file, k, label[k], n) for k, n in zip(clips, lengths, strict=True)]
        counts = Counter(classes)
        if sorted(counts) != list(range(len(CLASSES))) or len(set(counts.values())) != 1:
            _checks.fail(
                ValueError,
                f"{file}: session {session}",
                "as many clips of each class",
                dict(sorted(counts.items())),
            )
        trial = np.repeat(np.arange(1, _CLIPS + 1, dtype=np.int64), lengths)
        y = np.repeat(np.array(classes, dtype=np.int64), lengths)
        x = np.concatenate(rows).astype(np.float32)
        domains.append(Domain(f"subject {subject}, session {session}", x, y, trial, str(subject), session))
    return domains


def _dictionaries(file: Path) -> list[dict[int, Any]]:
    """`data` and `label`."""
    try:
        pickles = {key: array.tobytes() for key, array in read_npz(file, ("data", "label")).items()}
    except (ValueError, OSError) as error:
        raise ValueError(f"{file}: expected an archive of pickled bytes, got {error}") from error
    found = []
    for key in ("data", "label"):
        if key not in pickles:
            _checks.fail(ValueError, str(file), "the arrays data and label", array_names(file))
        value = loads_pickle(pickles[key], f"{file}: {key}")
        count = _SESSIONS * _CLIPS
        if not isinstance(value, dict) or sorted(value, key=str) != sorted(range(count), key=str):
            got = f"{len(value)} of them" if isinstance(value, dict) else type(value).__name__
            _checks.fail(ValueError, f"{file}: {key}", f"clips 0 to {count - 1} by their numbers", got)
        found.append(value)
    return found


def _class(file: Path, clip: int, label: Any, rows: int) -> int:
    values = naming(file, np.asarray(label).reshape(-1), f"label[{clip}]", (rows,))
    if (values != values[0]).any() or values[0] not in range(len(CLASSES)):
        expected = f"one class of 0 to {len(CLASSES) - 1} for the whole clip"
        _checks.fail(ValueError, f"{file}: label[{clip}]", expected, sorted(set(values.tolist())))
    return int(values[0])
