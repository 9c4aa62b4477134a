"""NumPy files whose header is believed only as far as their bytes go.

`numpy.load` makes an array of the size that a header claims and then reads into it, so that a damaged file
of a hundred bytes asks for a terabyte. Pickled objects are refused.
"""

from __future__ import annotations

import io
import math
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

__all__ = ["read_npy", "read_npz"]


def read_npy(path: str | Path) -> NDArray[Any]:
    """The array of a .npy file.

    Raises:
        ValueError: no such file format, objects, or a file that ends before the array does.
        OSError: it cannot be read.
    """
    return _array(Path(path).read_bytes(), str(path))


def read_npz(source: str | Path | IO[bytes]) -> dict[str, NDArray[Any]]:
    """The arrays of a .npz file by name; errors as `read_npy`."""
    where = str(source) if isinstance(source, (str, Path)) else "file"
    try:
        with zipfile.ZipFile(source) as archive:
            return {
                name.removesuffix(".npy"): _array(archive.read(name), f"{where}: {name}")
                for name in archive.namelist()
            }
    except (OSError, ValueError):
        raise
    except Exception as error:  # zlib.error, BadZipFile, struct.error, NotImplementedError, RuntimeError ...
        raise ValueError(f"{where}: expected a .npz file, got a damaged one ({error})") from error


def _array(data: bytes, where: str) -> NDArray[Any]:
    file = io.BytesIO(data)
    try:
        version = npy.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"version {version}")
        header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran, dtype = header(file)
    except Exception as error:  # a header is a Python literal, which can fail in many ways
        raise ValueError(f"{where}: expected a NumPy array, got a damaged header ({error})") from error
    if dtype.hasobject:
        raise ValueError(f"{where}: expected numbers or text, got pickled objects, which may run code")
    count = math.prod(shape)
    if any(n < 0 for n in shape) or count * dtype.itemsize > len(data) - file.tell():
        raise ValueError(f"{where}: expected {list(shape)} of {dtype}, got {len(data) - file.tell()} bytes")
    if not count * dtype.itemsize:
        return np.empty(shape, dtype)
    found = np.frombuffer(data, dtype, count, file.tell())
    return found.reshape(shape, order="F" if fortran else "C").copy()
