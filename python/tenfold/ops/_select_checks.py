"""Checks and layouts that the ops of data selection share: rows in shards, labels, budgets."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tenfold import _arrays, _checks

LABEL_DTYPES = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def matrix(name: str, value: Any, what: str = "[N, d]", columns: int | None = None) -> Tensor:
    """`value` as rows of floating numbers, detached; a read-only array is viewed, not copied."""
    found = _checks.tensor(name, _view(name, value)).detach()
    if found.ndim != 2 or (columns is not None and found.shape[1] != columns):
        expected = f"shape {what}" + (f" with {columns} columns" if columns is not None else "")
        _checks.fail(ValueError, name, expected, tuple(found.shape))
    return found


def _view(name: str, value: Any) -> Tensor:
    """Without a copy also for a memory map that may not be written."""
    if isinstance(value, Tensor) or type(value).__module__.partition(".")[0] != "numpy":
        return _arrays.as_tensor(name, value, write=False)
    kind = getattr(value.dtype, "name", "")
    if kind == "bfloat16":  # of the package ml_dtypes
        value = value.view("uint16")
    if any(s < 0 for s in value.strides):
        _checks.fail(ValueError, name, "an array without negative strides", value.strides)
    if value.dtype.byteorder == ">":
        _checks.fail(TypeError, name, "an array in the machine's byte order", value.dtype)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not writable.*")  # nothing here writes to it
        try:
            found = torch.from_numpy(value)
        except TypeError:
            _checks.fail(TypeError, name, "an array whose dtype torch has", value.dtype)
    return found.view(torch.bfloat16) if kind == "bfloat16" else found


def shards(name: str, value: Any, what: str) -> list[Tensor]:
    """Rows as one matrix, or a list of matrices of equal width, dtype and device that stand for their rows
    one behind the other."""
    if not isinstance(value, (list, tuple)):
        return [matrix(name, value, what)]
    if not value:
        _checks.fail(ValueError, name, "at least one shard", "an empty list")
    found = [matrix(f"{name}[{i}]", shard, what) for i, shard in enumerate(value)]
    first = found[0]
    for i, shard in enumerate(found):
        if (shard.shape[1], shard.dtype, shard.device) != (first.shape[1], first.dtype, first.device):
            expected = f"{first.shape[1]} columns of {first.dtype} on {first.device} like {name}[0]"
            _checks.fail(ValueError, f"{name}[{i}]", expected, f"{tuple(shard.shape)} of {shard.dtype}")
    return found


def kind_of(value: Any) -> Any:
    """As _arrays.kind_of, for shards that of the first."""
    return _arrays.kind_of(value[0] if isinstance(value, (list, tuple)) and value else value)


def labels(name: str, value: Any, rows: int, device: torch.device, of: str) -> Tensor:
    """Class numbers [rows] as int64 on `device`."""
    found = _checks.tensor(name, _view(name, value), LABEL_DTYPES)
    per_row(name, found, rows, device, of)
    return found.to(torch.int64)


def per_row(name: str, found: Tensor, rows: int, device: torch.device, of: str) -> None:
    if found.shape != (rows,):
        _checks.fail(ValueError, name, f"shape [{rows}], one entry for each row of {of}", tuple(found.shape))
    if found.device != device:
        _checks.fail(ValueError, name, f"a tensor on {device} like {of}", found.device)


def within(name: str, found: Tensor, classes: int) -> None:
    """Raises unless every label lies in [0, classes); waits for a GPU."""
    bad = (found < 0) | (found >= classes)
    if bool(bad.any()):
        row = int(bad.to(torch.uint8).argmax())
        _checks.fail(ValueError, name, f"labels in [0, {classes})", f"{int(found[row])} in row {row}")


def finite(name: str, found: Tensor) -> None:
    """Raises unless every entry of a matrix is finite, naming the first row; waits for a GPU."""
    from tenfold.kernels.scores.scores_reference import first_not_finite

    first = int(first_not_finite(found))
    if first < found.shape[0]:
        _checks.fail(ValueError, name, "finite entries", f"{bad_entry(found[first])} in row {first}")


def bad_entry(row: Tensor) -> float:
    return float(row[~row.isfinite()][0])


def budget(name: str, value: Any, most: int, of: str) -> int:
    """How many to select: an integer in [0, most]."""
    return _checks.integer(name, value, 0, most, f"an integer in [0, {most}], the number of {of}")


def split_budget(total: int, sizes: Sequence[int]) -> list[int]:
    """`total` in proportion to sizes, rounded by largest remainder, the smaller index first among equals."""
    whole = sum(sizes)
    if whole == 0:
        return [0] * len(sizes)
    shares = [total * n // whole for n in sizes]
    order = sorted(range(len(sizes)), key=lambda c: (-(total * sizes[c] % whole), c))
    for c in order[: total - sum(shares)]:
        shares[c] += 1
    return shares
