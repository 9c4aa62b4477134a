"""Simulated files in the layouts of the published sets. SIMULATED: for tests of formats, never for results.

The signals have a 1/f spectrum, an alpha rhythm whose frequency and strength are the subject's, and beta and
gamma power that depends on the class. A linear classifier tells the classes apart across subjects with little
effort, so an accuracy on such data says nothing about a method. Every folder gets a file SIMULATED.txt, which
the loaders see: a corpus read from it says `simulated` in its metadata, and reports must say so too.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tenfold import _checks
from tenfold.eeg.features import BANDS
from tenfold.eeg.layouts.deap import BASELINE_S
from tenfold.eeg.layouts.faced import CLIPS, EMOTIONS
from tenfold.eeg.layouts.files import SIMULATED
from tenfold.eeg.layouts.seed import SEED_IV_LABELS, SEED_LABELS
from tenfold.eeg.montage import SEED_CHANNELS
from tenfold.runs.files import replacing, write_text

__all__ = ["NOTE", "simulate"]

NOTE = "SIMULATED data in the layout of {name}, made for tests of file formats. No accuracy is a result.\n"

Rng = np.random.Generator
Write = Callable[[Path, int, float, int], dict[str, Path]]

SEED_V_LABELS = ((4, 1, 3, 2, 0) * 3, *((2, 1, 3, 0, 4, 4, 0, 3, 2, 1, 3, 4, 1, 2, 0),) * 2)
"""Classes of the 15 clips of SEED-V's three sessions."""


def simulate(
    name: str, folder: str | os.PathLike[str], *, subjects: int = 2, seconds: float = 8.0, seed: int = 0
) -> dict[str, Path]:
    """Write a small simulated set.

    Args:
        name: ``"seed"``, ``"seed-iv"``, ``"seed-v"``, ``"deap"`` or ``"faced"``.
        folder: where to; it is made if need be, and must be empty.
        subjects: how many, >= 1; all sessions and trials of the layout are written for each.
        seconds: length of a trial, >= 4. SEED-IV's and SEED-V's windows of 4 s need a multiple of it.
        seed: of the random numbers.

    Returns:
        ``{"features": folder, "raw": folder}``, of these what the layout has.

    Raises:
        ValueError: bad arguments, or a folder with something in it. RuntimeError: scipy is not installed.
    """
    write = _WRITERS[_checks.choice("name", name, _WRITERS)]
    subjects = _checks.integer("subjects", subjects, 1, 200)
    seconds = _checks.real("seconds", seconds, at_least=4.0)
    seed = _checks.seed("seed", seed)
    top = Path(folder)
    if top.exists() and any(top.iterdir()):
        _checks.fail(ValueError, "folder", "an empty or new folder", top)
    top.mkdir(parents=True, exist_ok=True)
    write_text(top / SIMULATED, NOTE.format(name=name))  # first: no file is ever there without it
    return write(top, subjects, seconds, seed)


def _eeg(rng: Rng, subject: Rng, channels: int, seconds: float, fs: float, kind: float) -> np.ndarray:
    """[channels, samples] in microvolts; `kind` in [0, 1] is the class's place on a scale."""
    samples = round(seconds * fs)
    frequencies = np.fft.rfftfreq(samples, 1 / fs)
    shape = 1 / np.maximum(frequencies, 0.5)
    alpha, strength = subject.uniform(9, 12), subject.uniform(0.5, 2)
    shape += strength * np.exp(-0.5 * (frequencies - alpha) ** 2) / 3
    shape[(frequencies > 14) & (frequencies < 50)] *= 1 + 2 * kind
    spectrum = shape * (
        rng.standard_normal((channels, len(shape))) + 1j * rng.standard_normal((channels, len(shape)))
    )
    signal = np.fft.irfft(spectrum, samples, axis=1)
    return 20 * signal / signal.std()


def _entropies(rng: Rng, subject: Rng, channels: int, windows: int, kind: float) -> np.ndarray:
    """[channels, windows, bands] of the size that differential entropies have."""
    means = np.array([7.0, 6.0, 6.0, 5.0, 4.0]) + subject.standard_normal((channels, 1, len(BANDS)))
    means[..., 3:] += kind
    return means + 0.3 * rng.standard_normal((channels, windows, len(BANDS)))


def _trials(seed: int, subject: int, session: int, labels: tuple[int, ...]) -> Any:
    """(number, generator, the subject's generator, place of the class on a scale of 0 to 1) per trial."""
    highest = max(labels)
    for number, label in enumerate(labels, 1):
        one = np.random.default_rng([seed, subject, session, number])
        yield number, one, np.random.default_rng([seed, subject]), label / highest


def _write_seeds(
    top: Path,
    name: str,
    folders: tuple[str, str],
    labels: tuple[tuple[int, ...], ...],
    window_s: float,
    subjects: int,
    seconds: float,
    seed: int,
) -> dict[str, Path]:
    features, raw = (top / folder for folder in folders)
    windows = int(seconds / window_s)
    for place in (features, raw):
        write_text(place / SIMULATED, NOTE.format(name=name))
    for subject in range(1, subjects + 1):
        for session, of_session in enumerate(labels, 1):
            within = "" if name == "seed" else f"{session}/"  # SEED: sessions are the ranks of the dates
            file = f"{within}{subject}_2013{9 + session:02d}{10 + subject % 18:02d}.mat"
            published: dict[str, Any] = {"SIMULATED": NOTE.format(name=name)}
            signals: dict[str, Any] = dict(published)
            for number, rng, own, kind in _trials(seed, subject, session, of_session):
                de = _entropies(rng, own, len(SEED_CHANNELS), windows, kind)
                published[f"de_movingAve{number}"] = de
                published[f"de_LDS{number}"] = de + 0.01
                signals[f"sim_eeg{number}"] = _eeg(rng, own, len(SEED_CHANNELS), seconds, 200.0, kind)
            _save_mat(features / file, published)
            _save_mat(raw / file, signals)
    return {"features": features, "raw": raw}


def _write_seed(top: Path, subjects: int, seconds: float, seed: int) -> dict[str, Path]:
    labels = (tuple(v + 1 for v in SEED_LABELS),) * 3
    folders = ("ExtractedFeatures", "Preprocessed_EEG")
    found = _write_seeds(top, "seed", folders, labels, 1.0, subjects, seconds, seed)
    for place in found.values():
        _save_mat(place / "label.mat", {"label": np.array([SEED_LABELS])})
    return found


def _write_seed_iv(top: Path, subjects: int, seconds: float, seed: int) -> dict[str, Path]:
    folders = ("eeg_feature_smooth", "eeg_raw_data")
    return _write_seeds(top, "seed-iv", folders, SEED_IV_LABELS, 4.0, subjects, seconds, seed)


def _write_seed_v(top: Path, subjects: int, seconds: float, seed: int) -> dict[str, Path]:
    place = top / "EEG_DE_features"
    write_text(place / SIMULATED, NOTE.format(name="seed-v"))
    for subject in range(1, subjects + 1):
        data: dict[int, np.ndarray] = {}
        label: dict[int, np.ndarray] = {}
        for session, labels in enumerate(SEED_V_LABELS, 1):
            for number, rng, own, kind in _trials(seed, subject, session, labels):
                de = _entropies(rng, own, len(SEED_CHANNELS), int(seconds / 4), kind)
                clip = len(data)
                data[clip] = de.transpose(1, 0, 2).reshape(de.shape[1], -1)
                label[clip] = np.full(de.shape[1], float(labels[number - 1]))
        with replacing(place / f"{subject}_123.npz") as aside, aside.open("wb") as file:
            np.savez(file, data=np.array(pickle.dumps(data)), label=np.array(pickle.dumps(label)))
    return {"features": place}


def _write_deap(top: Path, subjects: int, seconds: float, seed: int) -> dict[str, Path]:
    place = top / "data_preprocessed_python"
    write_text(place / SIMULATED, NOTE.format(name="deap"))
    for subject in range(1, subjects + 1):
        labels = tuple(np.random.default_rng([seed, subject, 9]).permutation([0, 1] * 20).tolist())
        trials = [
            _eeg(rng, own, 40, BASELINE_S + seconds, 128.0, kind)
            for _, rng, own, kind in _trials(seed, subject, 1, labels)
        ]
        ratings = 3.0 + 4.0 * np.array(labels)[:, None] + np.linspace(-1, 1, 4)
        held = {"data": np.stack(trials).astype(np.float32), "labels": ratings}
        _save_pickle(place / f"s{subject:02d}.dat", held)
    return {"raw": place}


def _write_faced(top: Path, subjects: int, seconds: float, seed: int) -> dict[str, Path]:
    features, raw = top / "EEG_Features" / "DE", top / "Processed_data"
    for place in (features, raw):
        write_text(place / SIMULATED, NOTE.format(name="faced"))
    labels = tuple(np.repeat(np.arange(len(EMOTIONS)), (3, 3, 3, 3, 4, 3, 3, 3, 3)).tolist())
    assert len(labels) == CLIPS
    for subject in range(subjects):
        trials = list(_trials(seed, subject, 1, labels))
        de = [_entropies(rng, own, 32, int(seconds), kind) for _, rng, own, kind in trials]
        signals = [_eeg(rng, own, 32, seconds, 250.0, kind) for _, rng, own, kind in trials]
        _save_pickle(features / f"sub{subject:03d}.pkl.pkl", np.stack(de))
        _save_pickle(raw / f"sub{subject:03d}.pkl", np.stack(signals))
    return {"features": features, "raw": raw}


_WRITERS: dict[str, Write] = {
    "seed": _write_seed,
    "seed-iv": _write_seed_iv,
    "seed-v": _write_seed_v,
    "deap": _write_deap,
    "faced": _write_faced,
}


def _save_mat(path: Path, arrays: dict[str, Any]) -> None:
    try:
        from scipy.io import savemat
    except ImportError as error:
        raise RuntimeError("MATLAB files: expected scipy, got none; pip install scipy") from error
    with replacing(path) as aside, aside.open("wb") as file:
        savemat(file, arrays)


def _save_pickle(path: Path, held: Any) -> None:
    with replacing(path) as aside, aside.open("wb") as file:
        pickle.dump(held, file, protocol=2)
