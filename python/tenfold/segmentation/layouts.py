"""Where the volumes of a challenge lie: folders, zip archives, label maps, 4-D stacks, one team or several.

What is understood, each under a folder or inside a zip archive, with or without a folder for each team:

    <case>/<Organ>.nii.gz          the challenge's own: a mask for each structure
    <case>.nii.gz                  a label map (<case>_cropped.nii.gz as well), or a 4-D stack
    <case>.mha                     a 4-D stack with a channel for each structure, or a label map
"""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tenfold._reading import reading
from tenfold.segmentation.files import Place, ending
from tenfold.segmentation.labels import Task

__all__ = ["CaseFiles", "Submission", "find_submissions", "match_cases"]


@dataclass(frozen=True)
class CaseFiles:
    """The files of one case: either `organs` or `volume`."""

    case: str
    """Name of the case."""
    organs: dict[str, Place] = field(default_factory=dict)
    """Structure -> its mask."""
    volume: Place | None = None
    """A label map or a 4-D stack of all structures."""

    def stamps(self) -> list[list[int]]:
        """Size and time of every file: what tells whether a case has to be scored again."""
        places = [self.volume] if self.volume else [self.organs[name] for name in sorted(self.organs)]
        return [place.stamp() for place in places if place]


@dataclass
class Submission:
    """The cases of one team (or the references), and what was odd about their names."""

    team: str
    cases: dict[str, CaseFiles]
    notes: list[str] = field(default_factory=list)


def find_submissions(root: str | Path, task: Task, name: str = "") -> list[Submission]:
    """Every team below `root`, by name; a single one is called `name`, or as the folder.

    Raises:
        FileNotFoundError: there is no `root`.
        ValueError: it holds no volume, or two files for one case or structure (names that differ by case).
    """
    root = Path(root)
    if not root.exists():
        raise FileNotFoundError(f"{root}: expected a folder or a zip archive, got nothing")
    entries = sorted(_entries(root), key=lambda e: e[0])
    if not entries:
        raise ValueError(f"{root}: expected volumes (.nii.gz, .nii, .mha, .mhd), got none")
    groups = _grouped(root, _without_common(entries, task), task)
    if len(groups) == 1:
        label = next(iter(groups))
        groups = {name or label or _stem(root): groups[label]}
    return [_submission(root, team, files, task) for team, files in groups.items()]


Entry = tuple[tuple[str, ...], Place]


def _entries(root: Path) -> Iterator[Entry]:
    """(folders and name below the root, place) of every volume."""
    if root.is_file():
        if not zipfile.is_zipfile(root):
            raise ValueError(f"{root}: expected a folder or a zip archive, got another file")
        with reading(root, "a whole zip archive"), zipfile.ZipFile(root) as archive:
            names = [info.filename for info in archive.infolist() if not info.is_dir()]
        for name in names:
            parts = tuple(part for part in re.split(r"[/\\]", name) if part not in ("", ".", ".."))
            if not _wanted(parts):
                continue
            if name.startswith("/") or "\\" in name or ".." in name.split("/"):
                raise ValueError(f"{root}: expected names inside the archive, got {name!r}")
            yield parts, Place(root, name)
        return
    for folder, folders, names in os.walk(root, followlinks=True):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        for name in names:
            path = Path(folder) / name
            parts = path.relative_to(root).parts
            if _wanted(parts):
                yield parts, Place(path)


def _wanted(parts: tuple[str, ...]) -> bool:
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in parts)
    return bool(parts) and not hidden and bool(ending(parts[-1]))


def _bare(name: str) -> str:
    """The file name without its ending."""
    return name[: len(name) - len(ending(name))]


def _stem(root: Path) -> str:
    return (
        _bare(root.name) if ending(root.name) else root.stem if root.suffix == ".zip" else root.resolve().name
    )


def _is_organ(parts: tuple[str, ...], task: Task) -> bool:
    return len(parts) > 1 and task.find(_bare(parts[-1])) is not None


def _without_common(entries: list[Entry], task: Task) -> list[Entry]:
    """Without the folders that all share above the cases (archives often hold one folder with everything)."""
    depth = min(len(parts) - (2 if _is_organ(parts, task) else 1) for parts, _ in entries)
    first = entries[0][0]
    common = 0
    while common < depth and all(parts[common] == first[common] for parts, _ in entries):
        common += 1
    return [(parts[common:], place) for parts, place in entries]


def _grouped(root: Path, entries: list[Entry], task: Task) -> dict[str, list[tuple[str, str, Place]]]:
    """Team -> (case, structure or nothing, place)."""
    found: dict[str, list[tuple[str, str, Place]]] = {}
    folders = {parts[:-1] for parts, _ in entries if _is_organ(parts, task)}
    for parts, place in entries:
        if parts[:-1] in folders:  # every file beside masks of structures is one, or something unknown
            team, case, organ = "/".join(parts[:-2]), parts[-2], _bare(parts[-1])
        else:
            team, case, organ = "/".join(parts[:-1]), _bare(parts[-1]).removesuffix("_cropped"), ""
        found.setdefault(team, []).append((case, organ, place))
    if len(found) > 1 and "" in found:
        others = ", ".join(sorted(t for t in found if t)[:3])
        raise ValueError(f"{root}: expected cases, or a folder for each team, got both ({others})")
    return dict(sorted(found.items()))


def _submission(root: Path, team: str, files: Iterable[tuple[str, str, Place]], task: Task) -> Submission:
    cases: dict[str, CaseFiles] = {}
    notes: list[str] = []
    spelled: dict[str, str] = {}
    for case, name, place in files:
        if spelled.setdefault(case.lower(), case) != case:
            raise ValueError(f"{root}: expected each case once, got {spelled[case.lower()]!r} and {case!r}")
        if not name:
            if case in cases:
                other = cases[case].volume or next(iter(cases[case].organs.values()))
                raise ValueError(f"{root}: expected one volume of case {case!r}, got {other} and {place}")
            cases[case] = CaseFiles(case, volume=place)
            continue
        organ = task.find(name)
        if organ is None:
            notes.append(f"{case}: {place.name} is no structure of {task.title}; left out")
            continue
        if organ != name:
            notes.append(f"{case}: {place.name} is taken for {organ}")
        known = cases.setdefault(case, CaseFiles(case))
        if known.volume is not None or organ in known.organs:
            other = known.volume or known.organs[organ]
            raise ValueError(
                f"{root}: expected one file for {organ} of case {case!r}, got {other} and {place}"
            )
        known.organs[organ] = place
    return Submission(team, dict(sorted(cases.items())), notes)


def match_cases(reference: Submission, other: Submission) -> tuple[dict[str, CaseFiles | None], list[str]]:
    """Case of the reference -> files of `other` (None where it has none), and what to warn about."""
    lower = {case.lower(): files for case, files in other.cases.items()}
    found: dict[str, CaseFiles | None] = {}
    notes = list(other.notes)
    for case in reference.cases:
        files = lower.pop(case.lower(), None)
        found[case] = files
        if files is not None and files.case != case:
            notes.append(f"{case}: found under the name {files.case}")
    notes += [f"{files.case}: no such case among the references; left out" for files in lower.values()]
    return found, notes
