"""NumPy files whose header is believed only as far as their bytes go.

`numpy.load` makes an array of the size that a header claims and then reads into it, so that a damaged file
of a hundred bytes asks for a terabyte. Pickled objects are refused.
"""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
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
        return head.shaped(np.fromfile(file, head.dtype, head.items))


def read_npz(source: str | Path | IO[bytes], names: Collection[str] | None = None) -> dict[str, NDArray[Any]]:
    """The arrays of a .npz file by name, those of `names` that it has or all; errors as `read_npy`."""
    where = str(source) if isinstance(source, (str, Path)) else "file"
    with _opened(source, where) as archive:
        return {
            name: _member(archive, f"{name}.npy", f"{where}: {name}.npy")
            for name in dict.fromkeys(_names(archive))
            if names is None or name in names
        }


def array_names(path: str | Path) -> list[str]:
    """Names of the arrays of a .npz file, sorted; errors as `read_npy`."""
    with _opened(path, str(path)) as archive:
        return sorted(_names(archive))


@contextmanager
def _opened(source: str | Path | IO[bytes], where: str) -> Iterator[zipfile.ZipFile]:
    """The archive; whatever is wrong with it, here or in the block, is a ValueError."""
    try:
        with zipfile.ZipFile(source) as archive:
            yield archive
    except MemoryError:
        raise
    except Exception as error:  # zlib.error, BadZipFile, struct.error, NotImplementedError, RuntimeError ...
        if isinstance(error, (OSError, ValueError)) and where in str(error):
            raise
        raise ValueError(f"{where}: expected a .npz file, got a damaged one ({error})") from error


def _names(archive: zipfile.ZipFile) -> list[str]:
    return [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]


class _Header(NamedTuple):
    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[Any]

    @property
    def items(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.items * self.dtype.itemsize

    def shaped(self, flat: NDArray[Any]) -> NDArray[Any]:
        return flat.reshape(self.shape, order="F" if self.fortran else "C")


def _header(file: IO[bytes], where: str) -> _Header:
    try:
        version = npy.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"version {version}")
        header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        found = _Header(*header(file))
    except OSError:
        raise
    except Exception as error:  # a header is a Python literal, which can fail in many ways
        raise ValueError(f"{where}: expected a NumPy array, got a damaged header ({error})") from error
    if found.dtype.hasobject:
        raise ValueError(f"{where}: expected numbers or text, got pickled objects, which may run code")
    return found


def _believe(head: _Header, held: int, where: str) -> None:
    if any(n < 0 for n in head.shape) or head.nbytes > held:
        raise ValueError(f"{where}: expected {list(head.shape)} of {head.dtype}, got {held} bytes")


def _member(archive: zipfile.ZipFile, name: str, where: str) -> NDArray[Any]:
    """Read by the piece: the size that an archive claims for a member may be wrong as well."""
    with archive.open(name) as file:
        head = _header(file, where)
        data = bytearray()
        while len(data) < head.nbytes and (piece := file.read(min(_CHUNK, head.nbytes - len(data)))):
            data += piece
    _believe(head, len(data), where)
    if not head.nbytes:
        return np.empty(head.shape, head.dtype)
    return head.shaped(np.frombuffer(data, head.dtype, head.items))
