"""Index, label, frequency and feature files of the published code.

    NAME_lm_train_top600.indices      torch int64 [n]: identifiers of the kept images
    NAME.label                        torch int64 [N, 2]: class and identifier of every image
    NAME_lm.frequency                 torch int32 [classes]: votes
    NAME_class_fx, NAME_class_data_id dict class -> list of float arrays [d], of identifiers
    NAME_all_fx, NAME_all_data_id     lists of the same, one per image

They are pickles in torch's container. They are read with torch's restricted reader (weights_only), which
knows tensors, plain containers and, here, NumPy arrays: nothing in a file is run.
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
from tenfold.runs.files import replacing

__all__ = [
    "ClassFeatures", "read_class_features", "read_class_list", "read_frequency", "read_indices",
    "read_labels", "read_score_csv", "write_class_features", "write_frequency", "write_indices",
    "write_labels",
]  # fmt: skip


def _load(path: Path) -> Any:
    """What torch.save wrote, of tensors, containers and NumPy arrays only."""
    if not path.exists():
        raise FileNotFoundError(f"path: expected a file, got {path}, which is not there")
    try:
        with torch.serialization.safe_globals(_numpy_names()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken or hostile pickle can raise anything
        reason = str(error).partition("\n")[0][:200]
        raise ValueError(
            f"{path}: expected tensors, arrays and plain containers saved by torch, got "
            f"{type(error).__name__}: {reason}"
        ) from error


def _numpy_names() -> list[Any]:
    """The names that pickled NumPy arrays and numbers are made of, under NumPy 1's and 2's module names."""
    home: Any = getattr(np, "_core", None) or np.core
    reconstruct, scalar = home.multiarray._reconstruct, home.multiarray.scalar
    kinds = [np.float16, np.float32, np.float64, np.int32, np.int64, np.uint8]
    names: list[Any] = [np.ndarray, np.dtype, *{type(np.dtype(kind)) for kind in kinds}]
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        names += [(reconstruct, f"{module}._reconstruct"), (scalar, f"{module}.scalar")]
    return names


def _save(path: str | Path, value: Any) -> None:
    with replacing(Path(path)) as aside:
        torch.save(value, aside)


def read_indices(path: str | Path) -> Tensor:
    """Identifiers, int64 [n], of `.indices`, `*_data_index.pth` (a tensor or a list), `.npy` or `.npz`
    (an array `indices`)."""
    path = Path(path)
    if path.suffix in (".npy", ".npz"):
        found = np.load(path, allow_pickle=False)
        value = torch.from_numpy(np.asarray(found["indices"] if path.suffix == ".npz" else found))
    else:
        value = torch.as_tensor(_load(path))
    return _whole(path, value, 1)


def _whole(path: Path, value: Any, dimensions: int, columns: int = 0) -> Tensor:
    shape = "[n]" if dimensions == 1 else f"[n, {columns}]"
    if not isinstance(value, Tensor) or value.ndim != dimensions or (columns and value.shape[1] != columns):
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        _checks.fail(ValueError, str(path), f"whole numbers of shape {shape}", got)
    if value.is_floating_point() and len(value):
        _checks.fail(ValueError, str(path), "whole numbers", value.dtype)
    return value.to(torch.int64)


def write_indices(path: str | Path, identifiers: Any) -> None:
    """Identifiers as int64 [n]."""
    _save(path, torch.as_tensor(np.asarray(identifiers, dtype=np.int64)))


def read_labels(path: str | Path) -> tuple[Tensor, Tensor]:
    """(class, identifier) of every image, int64 [N] each, of a `.label` file."""
    value = _whole(Path(path), _load(Path(path)), 2, 2)
    return value[:, 0].clone(), value[:, 1].clone()


def write_labels(path: str | Path, labels: Tensor, identifiers: Tensor) -> None:
    """A `.label` file."""
    _save(path, torch.stack([labels.to(torch.int64), identifiers.to(torch.int64)], 1))


def read_frequency(path: str | Path) -> Tensor:
    """Votes per source class, int64 [classes]."""
    return _whole(Path(path), _load(Path(path)), 1)


def write_frequency(path: str | Path, votes: Tensor) -> None:
    """A `.frequency` file, int32 [classes]."""
    _save(path, votes.to(torch.int32))


def read_class_list(path: str | Path, classes: int) -> list[int]:
    """Hand-picked classes of a `.npy` (or text: one number a line) file; ValueError for one that is none."""
    path = Path(path)
    if path.suffix == ".npy":
        values = np.load(path, allow_pickle=False).reshape(-1)
    else:
        values = np.array([line for line in path.read_text().split() if line], dtype=np.int64)
    if not np.issubdtype(values.dtype, np.integer):
        _checks.fail(ValueError, str(path), "whole numbers", values.dtype)
    picked = [int(value) for value in values]
    for value in picked:
        if not 0 <= value < classes:
            _checks.fail(ValueError, str(path), f"classes 0 to {classes - 1}", value)
    if len(set(picked)) < len(picked):
        _checks.fail(ValueError, str(path), "each class once", "repeated classes")
    return picked


def read_score_csv(path: str | Path) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """(identifiers, scores) from columns 1 and 3 of a CSV with a head line: influence or memorisation."""
    import csv

    identifiers, scores = [], []
    with Path(path).open(newline="", encoding="utf-8") as file:
        rows = csv.reader(file)
        head = next(rows, [])
        if len(head) < 3:
            _checks.fail(ValueError, str(path), "at least three columns (identifier, any, score)", len(head))
        for number, row in enumerate(rows, 2):
            one, score = _entry(f"{path}: line {number}", row)
            identifiers.append(one)
            scores.append(score)
    made = np.array(scores, dtype=np.float64)
    if not np.isfinite(made).all():
        _checks.fail(ValueError, str(path), "finite scores", made[~np.isfinite(made)][0])
    return np.array(identifiers, dtype=np.int64), made


def _entry(where: str, row: list[str]) -> tuple[int, float]:
    try:
        return int(row[0]), float(row[2])
    except (IndexError, ValueError):
        _checks.fail(ValueError, where, "a whole number in column 1, a number in column 3", row)


class ClassFeatures(NamedTuple):
    """Features of a set: x float32 [N, d], class [N] and identifier [N] (int64; -1 where unknown)."""

    x: Tensor
    labels: Tensor
    identifiers: Tensor


def read_class_features(path: str | Path, identifiers: str | Path | None = None) -> ClassFeatures:
    """Features by class of `*_class_fx` (with `*_class_data_id`), or `*_all_fx` (class -1 for all)."""
    path = Path(path)
    stored = _load(path)
    ids = _load(Path(identifiers)) if identifiers is not None else None
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
