"""Pickle files of published data sets, read without running what they name.

A pickle is a program: loading one with the standard library runs whatever function it names. DEAP, FACED and
SEED-V are published as pickles of plain containers, numbers and NumPy arrays. This reader knows the few names
that such arrays are made of and refuses every other one before anything is called.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["load_pickle", "loads_pickle"]


def load_pickle(path: Path) -> Any:
    """The value in a pickle file of containers, numbers, strings and NumPy arrays.

    Text of Python 2 is read as Latin-1, as NumPy asks for.

    Raises:
        ValueError: the file names anything else, or is no pickle; the message has the file.
    """
    return loads_pickle(path.read_bytes(), str(path))


def loads_pickle(data: bytes, where: str) -> Any:
    """As :func:`load_pickle`, of bytes; `where` is named in errors."""
    try:
        return _Reader(io.BytesIO(data), encoding="latin1").load()
    except _Refused as refused:
        raise ValueError(f"{where}: expected a pickle of plain data and arrays, got {refused}") from None
    except (
        Exception
    ) as error:  # broken bytes can raise anything: IndexError, KeyError, UnicodeDecodeError ...
        raise ValueError(f"{where}: expected a whole pickle, got {type(error).__name__}: {error}") from error


class _Refused(Exception):
    """What the pickle named."""


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        # NumPy's private modules have had two homes: numpy.core until 1.26, numpy._core from 2.0 on.
        found = _ALLOWED.get((module.replace("numpy.core", "numpy._core", 1), name))
        if found is None:
            raise _Refused(f"the name {module}.{name}")
        return found

    def persistent_load(self, pid: Any) -> Any:
        raise _Refused(f"a reference {pid!r} to something outside")


def _latin1(text: str, encoding: str = "latin1") -> bytes:
    """Bytes of an array in the pickle protocols 0 to 2: `_codecs.encode(text, "latin1")`, no other codec."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise _Refused(f"text in the encoding {encoding!r}")
    return text.encode("latin1")


def _no_bytes(*arguments: Any) -> bytes:
    """`bytes()`, which is how the protocols 0 to 2 write an empty string of bytes."""
    if arguments:
        raise _Refused(f"bytes of {arguments!r}"[:100])
    return b""


def _array(*arguments: Any) -> np.ndarray:
    """NumPy's `_reconstruct`: an empty array, which the pickle then fills. Only of the plain class."""
    if len(arguments) != 3 or arguments[0] is not np.ndarray:
        raise _Refused(f"an array made of {arguments!r}"[:100])
    return np.ndarray.__new__(np.ndarray, (0,), "b")


def _scalar(dtype: np.dtype, data: bytes) -> Any:
    """NumPy's `scalar`, of numbers."""
    if not isinstance(dtype, np.dtype) or dtype.hasobject or not isinstance(data, bytes):
        raise _Refused(f"a scalar of {dtype!r}")
    return np.frombuffer(data, dtype, 1)[0]


def _frombuffer(data: Any, dtype: np.dtype, shape: tuple[int, ...], order: str) -> np.ndarray:
    """NumPy's `_frombuffer` (pickle protocol 5)."""
    if not isinstance(dtype, np.dtype) or dtype.hasobject or order not in ("C", "F"):
        raise _Refused(f"a buffer of {dtype!r}")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if order == "F" else "C")


_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy._core.multiarray", "_reconstruct"): _array,
    ("numpy._core.multiarray", "scalar"): _scalar,
    ("numpy._core.numeric", "_frombuffer"): _frombuffer,
    ("_codecs", "encode"): _latin1,
    ("__builtin__", "bytes"): _no_bytes,
    ("collections", "OrderedDict"): dict,
}
