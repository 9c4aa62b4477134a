"""NumPy files whose header is believed only as far as their bytes go.

`numpy.load` makes an array of the size that a header claims and then reads into it, so that a damaged file
of a hundred bytes asks for a terabyte. Pickled objects are refused.
"""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

__all__ = ["array_names", "read_npy", "read_npz"]

_CHUNK = 2**20


def read_npy(path: str | Path) -> NDArray[Any]:
    """The array of a .npy file.

    Raises:
        ValueError: no such file format, objects, or a file that ends before the array does.
        OSError: it cannot be read.
    """
    with Path(path).open("rb") as file:
        head = _header(file, str(path))
        _believe(head, os.fstat(file.fileno()).st_size - file.tell(), str(path))
        if not head.nbytes:
            return np.empty(head.shape, head.dtype)
        return head.shaped(np.fromfile(file, head.dtype, head.count))


def read_npz(source: str | Path | IO[bytes], names: Collection[str] | None = None) -> dict[str, NDArray[Any]]:
    """The arrays of a .npz file by name, of these names alone (as far as it has them); errors as `read_npy`."""
    where = str(source) if isinstance(source, (str, Path)) else "file"
    with _opened(source, where) as archive:
        return {
            name: _member(archive, f"{name}.npy", f"{where}: {name}")
            for name in _names(archive)
            if names is None or name in names
        }


def array_names(path: str | Path) -> list[str]:
    """Names of the arrays of a .npz file, sorted; errors as `read_npy`."""
    with _opened(path, str(path)) as archive:
        return sorted(_names(archive))


class _opened:
    """An archive; whatever fails inside for its sake is a ValueError that names it."""

    def __init__(self, source: str | Path | IO[bytes], where: str) -> None:
        self._source, self._where = source, where

