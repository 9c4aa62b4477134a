"""Features as shards: one tensor or array, or a list of them; memory maps are read where they lie."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tenfold import _arrays, _checks
from tenfold._backend import PerformanceWarning

LARGE = 64 << 20
"""Bytes copied without a word."""


class Features(NamedTuple):
    """Rows of one dtype and device; `kind` turns a result into what was given."""

    shards: list[Tensor]
    rows: int
    width: int
    kind: Callable[[Tensor], Any]

    @property
    def device(self) -> torch.device:
        return self.shards[0].device

    @property
    def dtype(self) -> torch.dtype:
        return self.shards[0].dtype


class _Writable:
    """The memory of a read-only array for torch, which only reads it here."""

    def __init__(self, array: np.ndarray[Any, Any]) -> None:
        interface = dict(array.__array_interface__)
        interface["data"] = (interface["data"][0], False)
        self.__array_interface__ = interface
        self.keep = array


def features(name: str, value: Any) -> Features:
    """[N, d] in float32, bfloat16, float16 or float64, or a list of such shards with one d.

    Raises:
        TypeError: neither tensor, array nor list of them, or another dtype.
        ValueError: not two axes; shards that differ in width, dtype or device.
    """
    pieces = list(value) if isinstance(value, (list, tuple)) else [value]
    if not pieces:
        _checks.fail(ValueError, name, "at least one shard", "an empty list")
    shards = [_matrix(f"{name}[{i}]" if len(pieces) > 1 else name, piece) for i, piece in enumerate(pieces)]
    head = shards[0]
    for i, shard in enumerate(shards):
        where = f"{name}[{i}]"
        if shard.shape[1] != head.shape[1]:
            _checks.fail(ValueError, where, f"{head.shape[1]} columns, as {name}[0]", shard.shape[1])
        if shard.dtype != head.dtype:
            _checks.fail(TypeError, where, f"dtype {head.dtype}, as {name}[0]", shard.dtype)
        if shard.device != head.device:
            _checks.fail(ValueError, where, f"device {head.device}, as {name}[0]", shard.device)
    rows = sum(len(s) for s in shards)
    if rows >= 2**31:
        _checks.fail(ValueError, name, "fewer than 2^31 rows", rows)
    return Features(shards, rows, head.shape[1], _arrays.kind_of(pieces[0]))


def _matrix(name: str, value: Any) -> Tensor:
    if isinstance(value, np.ndarray) and not value.flags.writeable:
        value = np.asarray(_Writable(value))
    tensor = _checks.tensor(name, _arrays.as_tensor(name, value, write=False)).detach()
    if tensor.ndim != 2:
        _checks.fail(ValueError, name, "shape [N, d]", tuple(tensor.shape))
    if tensor.shape[1] == 0:
        _checks.fail(ValueError, name, "at least one column", tuple(tensor.shape))
    if not tensor.is_contiguous():
        if tensor.nbytes > LARGE:
            warnings.warn(
                f"{name}: {tensor.nbytes >> 20} MiB are copied, because rows do not lie one behind the other",
                PerformanceWarning,
                stacklevel=5,
            )
        tensor = tensor.contiguous()
    return tensor


def labels(name: str, value: Any, count: int, of: str) -> Tensor:
    """int64 [count], an integer for each row of `of`."""
    tensor = _checks.tensor(
        name,
        _arrays.as_tensor(name, value, write=False),
        (torch.int64, torch.int32, torch.int16, torch.uint8),
    )
    if tensor.shape != (count,):
        _checks.fail(ValueError, name, f"shape ({count},), one for each row of {of}", tuple(tensor.shape))
    return tensor.to(torch.int64)


def rows_of(name: str, value: Any, rows: int) -> list[int]:
    """Different row numbers in [0, rows)."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    numbers = [
        _checks.integer(f"{name}[{i}]", row, 0, rows - 1)
        for i, row in enumerate(_checks.sequence(name, value, "row numbers"))
    ]
    seen: set[int] = set()
    for i, row in enumerate(numbers):
        if row in seen:
            _checks.fail(ValueError, f"{name}[{i}]", "every row once", f"row {row} again")
        seen.add(row)
    return numbers
