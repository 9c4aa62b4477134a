"""Real EEG features of many people that come with a package: eyes open against eyes closed at two sites.

neurokit2's source archive (not its wheel) holds `studies/complexity_eeg/data_complexity.csv`: four complexity
measures per channel of people at five sites. Two sites have both conditions: LEMON (Babayan et al. 2019) and
Wang et al. 2022, about 50 people each, 58 channels in common. Two classes, two domains. No emotion.
"""

from __future__ import annotations

import csv
import io
import os
import tarfile
from collections import defaultdict
from pathlib import Path

import numpy as np

from tenfold import _checks
from tenfold.eeg.corpus import Corpus, Domain

__all__ = ["load_complexity"]

_FILE = "studies/complexity_eeg/data_complexity.csv"
_SITES = {"LEMON": "Lemon", "Wang": "Wang (2022)"}
_MEASURES = ("SFD", "AttEn", "SVDEn", "Hjorth")
_CONDITIONS = ("Eyes-Closed", "Eyes-Open")


def load_complexity(path: str | os.PathLike[str]) -> Corpus:
    """Two domains (sites) of about 100 rows, one per person and condition; 58 channels x 4 measures.

    Args:
        path: neurokit2's source archive (neurokit2-*.tar.gz), or data_complexity.csv taken out of it.

    Raises:
        FileNotFoundError: no such file. ValueError: a file that is not as described; the message names it.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"data: expected a file, got {os.fspath(path)!r}")
    rows = list(csv.DictReader(io.StringIO(_text(file))))
    needed = {"Channel", "Participant", "Condition", "Dataset", *_MEASURES}
    if not rows or not needed <= set(rows[0]):
        got = sorted(rows[0]) if rows else "no rows"
        _checks.fail(ValueError, str(file), f"columns {sorted(needed)}", got)
    values: dict[str, dict[tuple[str, str], dict[str, list[float]]]] = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        measures = [float(row[name]) for name in _MEASURES]
        values[row["Dataset"]][row["Participant"], row["Condition"]][row["Channel"]] = measures
    missing = [site for site in _SITES.values() if site not in values]
    if missing:
        _checks.fail(ValueError, str(file), f"rows of {list(_SITES.values())}", f"none of {missing}")
    every = [set(channels) for site in _SITES.values() for channels in values[site].values()]
    common = set.intersection(*every)
    first = next(iter(values[_SITES["LEMON"]].values()))
    channels = tuple(channel for channel in first if channel in common)
    domains = tuple(_site(name, values[site], channels) for name, site in _SITES.items())
    metadata = {"source": "neurokit2, studies/complexity_eeg", "features": "complexity of the signal, no DE"}
    return Corpus("complexity", domains, _CONDITIONS, channels, _MEASURES, metadata)


def _text(file: Path) -> str:
    if file.suffix == ".csv":
        return file.read_text(encoding="utf-8")
    try:
        with tarfile.open(file) as archive:
            for member in archive:
                if member.name.endswith(_FILE):
                    content = archive.extractfile(member)
                    assert content is not None
                    return content.read().decode("utf-8")
    except tarfile.TarError as error:
        raise ValueError(f"{file}: expected a CSV or an archive, got {error}") from error
    raise ValueError(f"{file}: expected an archive with {_FILE}, got none")


def _site(
    name: str, rows: dict[tuple[str, str], dict[str, list[float]]], channels: tuple[str, ...]
) -> Domain:
    x = np.array([[rows[key][c] for c in channels] for key in rows], dtype=np.float32).reshape(len(rows), -1)
    y = np.array([_CONDITIONS.index(condition) for _, condition in rows], dtype=np.int64)
    people = {person: k for k, person in enumerate(dict.fromkeys(person for person, _ in rows))}
    trial = np.array([people[person] for person, _ in rows], dtype=np.int64)
    return Domain(name, x, y, trial, name)
