"""Index, frequency and feature files of the published code, through `tenfold.selection.files`.

    NAME_lm_train_top600.indices      torch int64 [n]: identifiers of the kept images
    NAME_lm.frequency                 torch int32 [classes]: votes
    NAME_class_fx, NAME_class_data_id dict class -> list of float arrays [d], of identifiers
    NAME_all_fx, NAME_all_data_id     lists of the same, one per image

They are pickles in torch's container, read with torch's restricted reader: nothing in a file is run.
Classes of images (`.label`) and scores (CSV): `read_labels`, `read_score_rows` of `tenfold.selection.files`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tenfold import _checks
from tenfold.runs.files import replacing, save_torch
from tenfold.selection import Selection, files

__all__ = [
    "ClassFeatures", "read_class_features", "read_class_list", "read_frequency", "read_indices",
    "write_class_features", "write_frequency", "write_indices",
]  # fmt: skip


def _save(path: str | Path, value: Any) -> None:
    with replacing(Path(path)) as aside:
        save_torch(value, aside)


def read_indices(path: str | Path) -> NDArray[np.int64]:
    """Identifiers, int64 [n], of `.indices`, `*_data_index.pth` (a tensor or a list) or whatever else
    `Selection.load` reads."""
    return files.load(Path(path)).indices


def write_indices(path: str | Path, identifiers: Any) -> None:
    """Identifiers as torch int64 [n]."""
    files.save(Selection(np.asarray(identifiers, dtype=np.int64)), Path(path))


def read_frequency(path: str | Path) -> Tensor:
    """Votes per source class, int64 [classes]."""
    votes = files.load_tensor(Path(path))
    if votes.ndim != 1 or votes.is_floating_point():
        _checks.fail(ValueError, str(path), "whole numbers [classes]", f"{votes.dtype} {list(votes.shape)}")
    return votes.to(torch.int64)


def write_frequency(path: str | Path, votes: Tensor) -> None:
    """A `.frequency` file, int32 [classes]."""
    _save(path, votes.to(torch.int32))


def read_class_list(path: str | Path, classes: int) -> list[int]:
    """Hand-picked classes of a `.npy` or `.txt` file (one number a line); ValueError for one that is none."""
    picked = read_indices(path)
    for value in picked.tolist():
        if value >= classes:
            _checks.fail(ValueError, str(path), f"classes 0 to {classes - 1}", value)
    return picked.tolist()


class ClassFeatures(NamedTuple):
    """Features of a set: x float32 [N, d], class [N] and identifier [N] (int64; -1 where unknown)."""

    x: Tensor
    labels: Tensor
    identifiers: Tensor


def read_class_features(path: str | Path, identifiers: str | Path | None = None) -> ClassFeatures:
    """Features by class of `*_class_fx` (with `*_class_data_id`), or `*_all_fx` (class -1 for all)."""
    with files.reading(Path(path), "features by class"):
        return _class_features(Path(path), identifiers)


def _class_features(path: Path, identifiers: str | Path | None) -> ClassFeatures:
    stored = files.load_torch(path)
    ids = files.load_torch(identifiers) if identifiers is not None else None
    if not isinstance(stored, dict):
        stored, ids = {-1: stored}, None if ids is None else {-1: ids}
    blocks, labels, names = [], [], []
    for key, rows in _by_class(path, stored):
        blocks.append(np.stack([np.asarray(row, dtype=np.float32).reshape(-1) for row in rows]))
        labels += [key] * len(rows)
        named = [-1] * len(rows) if ids is None else [int(i) for i in ids.get(key, ())]
        if len(named) != len(rows):
            expected = f"{len(rows)} identifiers of class {key}"
            _checks.fail(ValueError, str(identifiers), expected, len(named))
        names += named
    if not blocks or len({b.shape[1] for b in blocks}) > 1:
        _checks.fail(ValueError, str(path), "features of one width", sorted({b.shape[1] for b in blocks}))
    return ClassFeatures(torch.from_numpy(np.concatenate(blocks)), torch.tensor(labels), torch.tensor(names))


def _by_class(path: Path, stored: dict[Any, Any]) -> Iterator[tuple[int, Sequence[Any]]]:
    for key in sorted(stored):
        if isinstance(key, bool) or not isinstance(key, int):
            _checks.fail(ValueError, str(path), "class numbers as keys", repr(key))
        if len(stored[key]):
            yield key, stored[key]


def write_class_features(stem: str | Path, features: ClassFeatures, classes: int) -> None:
    """STEM_class_fx and STEM_class_data_id."""
    fx: dict[int, list[Any]] = {c: [] for c in range(classes)}
    ids: dict[int, list[int]] = {c: [] for c in range(classes)}
    for row, label, name in zip(features.x.float().numpy(), *map(Tensor.tolist, features[1:]), strict=True):
        fx[label].append(row.copy())
        ids[label].append(name)
    _save(f"{stem}_class_fx", fx)
    _save(f"{stem}_class_data_id", ids)
