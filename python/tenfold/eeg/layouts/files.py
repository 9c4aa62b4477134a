"""What the layouts share: numbered files, MATLAB files, the mark of simulated data."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tenfold import _checks
from tenfold.eeg.layouts.mat5 import read_arrays

__all__ = [
    "SIMULATED",
    "chosen",
    "in_order",
    "is_simulated",
    "naming",
    "numbered",
    "read_mat",
    "read_mat_array",
    "to_folder",
]

SIMULATED = "SIMULATED.txt"
"""A file of this name beside the data, or one folder up, says that the data are simulated."""


def is_simulated(folder: Path) -> bool:
    """Whether :data:`SIMULATED` lies in the folder or in the one above."""
    return any((place / SIMULATED).exists() for place in (folder, folder.resolve().parent))


def to_folder(path: str | os.PathLike[str]) -> Path:
    """The folder, which must exist."""
    folder = Path(path).expanduser()
    if not folder.is_dir():
        _checks.fail(
            ValueError, "path", "a folder", f"{folder}, a file" if folder.exists() else f"{folder}, none"
        )
    return folder


def numbered(
    folder: Path, pattern: str, example: str, ignore: Sequence[str] = ()
) -> list[tuple[list[int], Path]]:
    """Files whose whole name fits `pattern`, with the numbers of its groups, sorted by these numbers.

    A file that has the pattern's ending but does not fit it is an error: a copy "1_2 (1).mat" must not be
    left out in silence. Hidden files, and those of `ignore`, are passed over.

    Raises:
        ValueError: no file, another file of the same kind, or two files of the same numbers.
    """
    ending = example.rpartition(".")[2]
    found: dict[tuple[int, ...], Path] = {}
    for path in sorted(folder.iterdir()):
        match = re.fullmatch(pattern, path.name)
        if match:
            key = tuple(int(group) for group in match.groups())
            if key in found:
                _checks.fail(
                    ValueError, str(folder), "every number once", f"{found[key].name} and {path.name}"
                )
            found[key] = path
        elif path.suffix == f".{ending}" and not path.name.startswith(".") and path.name not in ignore:
            _checks.fail(ValueError, str(path), f"a name like {example}", path.name)
    if not found:
        _checks.fail(ValueError, str(folder), f"files with names like {example}", "none")
    return [(list(key), found[key]) for key in sorted(found)]


def chosen(subjects: Sequence[int] | None, present: Sequence[int]) -> list[int]:
    """`subjects` in ascending order, or all that are present."""
    if subjects is None:
        return sorted(set(present))
    for subject in _checks.sequence("subjects", subjects, "subject numbers"):
        if subject not in present:
            _checks.fail(ValueError, "subjects", f"some of {sorted(set(present))}", subject)
    return sorted(set(subjects))


def read_mat(path: Path, pattern: str) -> dict[int, np.ndarray]:
    """Arrays of a MATLAB file (version 5 to 7.2) whose names match `pattern`, by the number in the name.

    Args:
        path: the file.
        pattern: of the whole name, with one group, the number.

    Raises:
        ValueError: no MATLAB file, one of version 7.3, two arrays of the same number, or another kind of
            variable of such a name.
    """
    arrays = read_arrays(path, lambda name: re.fullmatch(pattern, name))
    names = {name: int(re.fullmatch(pattern, name)[1]) for name in arrays}  # type: ignore[index]
    by_number: dict[int, str] = {}
    for name, number in sorted(names.items()):
        if number in by_number:
            _checks.fail(ValueError, str(path), "every number once", f"{by_number[number]} and {name}")
        by_number[number] = name
    return {number: arrays[by_number[number]] for number in sorted(by_number)}


def read_mat_array(path: Path, name: str) -> np.ndarray:
    """One array of a MATLAB file; errors as for :func:`read_mat`, and ValueError where it is missing."""
    arrays = read_arrays(path, lambda found: found == name)
    if name not in arrays:
        _checks.fail(ValueError, str(path), f"an array {name}", "none of that name")
    return arrays[name]


def naming(path: Path, array: Any, key: str, shape: tuple[int | None, ...]) -> np.ndarray:
    """`array` as finite float64 of `shape`, where None stands for any length >= 1."""
    wanted = "(" + ", ".join("n" if n is None else str(n) for n in shape) + ")"
    where = f"{path}: {key}"
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu":
        got = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        _checks.fail(ValueError, where, f"an array of numbers {wanted}", got)
    fits = array.ndim == len(shape) and all(
        have == want or (want is None and have >= 1) for have, want in zip(array.shape, shape, strict=True)
    )
    if not fits:
        _checks.fail(ValueError, where, f"shape {wanted}", array.shape)
    if not np.isfinite(array).all():
        _checks.fail(ValueError, where, "finite numbers", "NaN or infinity")
    return array.astype(np.float64, copy=False)


def in_order(
    path: Path, arrays: dict[int, np.ndarray], count: int, name: str
) -> Iterator[tuple[int, np.ndarray]]:
    """(number, array) for 1 to `count`; all must be there."""
    missing = [k for k in range(1, count + 1) if k not in arrays]
    if missing:
        _checks.fail(
            ValueError, str(path), f"arrays {name}1 to {name}{count}", f"none of number {missing[0]}"
        )
    for k in range(1, count + 1):
        yield k, arrays[k]
