"""Complexity of resting EEG, eyes open or closed, at two sites: real features of 102 people.

Not emotion, but many people, two sites with different amplifiers, and free: `studies/complexity_eeg/
data_complexity.csv` of NeuroKit2 (MIT; Makowski et al.) holds four measures of complexity per person,
condition and channel, of five public data sets. Two of these have both conditions: LEMON (Babayan et al.,
Scientific Data 6, 2019) and Wang et al. (Scientific Data 9, 2022). The file is in the source archive only,
not in the wheel: pip download --no-deps --no-binary neurokit2 neurokit2==0.2.13
"""

from __future__ import annotations

import csv
import io
import os
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from tenfold import _checks
from tenfold._reading import reading
from tenfold.eeg.corpus import Corpus, Domain

__all__ = ["SITES", "load_complexity"]

SITES = ("Lemon", "Wang (2022)")
MEASURES = ("SFD", "AttEn", "SVDEn", "Hjorth")
CONDITIONS = ("Eyes-Closed", "Eyes-Open")
_INSIDE = "studies/complexity_eeg/data_complexity.csv"
_COLUMNS = {"Channel", *MEASURES, "Participant", "Condition", "Dataset"}

Recording = dict[str, list[float]]
"""Channel -> measures."""


def load_complexity(path: str | os.PathLike[str]) -> Corpus:
    """Two domains, one per site: a row per person and condition, four measures of each channel of both sites.

    Args:
        path: the archive neurokit2-0.2.13.tar.gz, the folder it unpacks to, or data_complexity.csv itself.

    Returns:
        x float32 [101, 232] per domain, column = channel * 4 + measure; y 0 eyes closed, 1 eyes open; a
        trial is a person.

    Raises:
        ValueError: a file that is not as described; the message names it.
    """
    with reading(Path(path).name, "a table or an archive with it"):
        where, text = _text(Path(path).expanduser())
    found = _recordings(where, csv.DictReader(io.StringIO(text, newline="")))
    for site in SITES:
        if {condition for _, condition in found[site]} != set(CONDITIONS):
            _checks.fail(ValueError, where, f"recordings of both conditions at {site}", len(found[site]))
    everywhere = [set(recording) for site in SITES for recording in found[site].values()]
    first = next(iter(found[SITES[0]].values()))
    channels = [name for name in first if all(name in names for names in everywhere)]
    domains = tuple(_domain(site, found[site], channels) for site in SITES)
    metadata = {
        "features": "complexity of resting EEG",
        "smoothing": "none",
        "source": "NeuroKit2 0.2.13, studies/complexity_eeg (LEMON; Wang et al. 2022)",
    }
    return Corpus("complexity", domains, ("eyes closed", "eyes open"), tuple(channels), MEASURES, metadata)


def _text(path: Path) -> tuple[str, str]:
    """What to call the file in errors, and its content."""
    if path.is_dir():
        path = path / _INSIDE
    if not path.is_file():
        _checks.fail(ValueError, "path", f"an archive, a folder or a file with {Path(_INSIDE).name}", path)
    if not tarfile.is_tarfile(path):
        return str(path), path.read_text(encoding="utf-8")
    with tarfile.open(path) as archive:
        for member in archive:
            if member.isfile() and member.name.endswith(f"/{_INSIDE}"):
                held = archive.extractfile(member)
                assert held is not None  # a file has content
                return f"{path}: {member.name}", held.read().decode("utf-8")
    _checks.fail(ValueError, str(path), f"an archive with {_INSIDE}", "none of that name")


def _recordings(where: str, rows: csv.DictReader[str]) -> dict[str, dict[tuple[str, str], Recording]]:
    """Site -> (participant, condition) -> recording."""
    if not set(rows.fieldnames or ()) >= _COLUMNS:
        _checks.fail(ValueError, where, f"the columns {sorted(_COLUMNS)}", rows.fieldnames)
    found: dict[str, dict[tuple[str, str], Recording]] = {site: {} for site in SITES}
    for line, row in enumerate(rows, 2):
        if row["Dataset"] not in SITES:
            continue
        recording = found[row["Dataset"]].setdefault((row["Participant"], row["Condition"]), {})
        channel = row["Channel"].upper()  # both CPz and Cpz are there
        if channel in recording:
            _checks.fail(ValueError, f"{where}, line {line}", "a channel once per recording", channel)
        try:
            recording[channel] = [float(row[measure]) for measure in MEASURES]
        except ValueError as error:
            raise ValueError(f"{where}, line {line}: expected numbers, got {error}") from error
    return found


def _domain(site: str, found: dict[tuple[str, str], Recording], channels: Iterable[str]) -> Domain:
    people = {person: k for k, person in enumerate(dict.fromkeys(person for person, _ in found))}
    x = [[value for name in channels for value in recording[name]] for recording in found.values()]
    y = [CONDITIONS.index(condition) for _, condition in found]
    trial = [people[person] for person, _ in found]
    return Domain(site, np.array(x, np.float32), np.array(y, np.int64), np.array(trial, np.int64))
