"""Pickle files of published data sets, read without running what they name.

A pickle is a program: loading one with the standard library runs whatever function it names. DEAP, FACED and
SEED-V are published as pickles of plain containers, numbers and NumPy arrays. This reader knows the few names
that such arrays are made of and refuses every other one before anything is called. NumPy's own ways of
filling an array and a dtype from a pickle trust what they are given, and damaged bytes end the process there;
so the state of both is checked here first.
"""

from __future__ import annotations

import io
import math
import pickle
import re
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
        return _plain(_Reader(io.BytesIO(data), encoding="latin1").load(), {})
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


class _DType:
    """`dtype("f8", ...)`, and the state that tells its byte order."""

    def __init__(self, code: Any, *_: Any) -> None:
        if not isinstance(code, str) or not re.fullmatch(r"[?biufcSUO]\d{0,9}", code):
            raise _Refused(f"the dtype {code!r}"[:100])
        self.made = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        order = state[1] if isinstance(state, tuple) and len(state) == 8 else None
        if order not in ("<", ">", "=", "|") or state[2:5] != (None, None, None):
            raise _Refused(f"a dtype in the state {state!r}"[:100])
        self.made = self.made.newbyteorder(order)


class _Array(np.ndarray):
    """An array that looks at its state before NumPy fills it."""

    def __setstate__(self, state: Any) -> None:
        shape, dtype, fortran, data = (
            state[-4:] if isinstance(state, tuple) and len(state) > 3 else (None,) * 4
        )
        data = data.encode("latin1") if isinstance(data, str) else data
        if not _is_shape(shape) or not isinstance(dtype, _DType):
            raise _Refused(f"an array in the state {state!r}"[:100])
        items = math.prod(shape)
        size, kind = (items, list) if dtype.made.hasobject else (items * dtype.made.itemsize, bytes)
        if type(data) is not kind or len(data) != size:
            raise _Refused(f"an array {shape} of {dtype.made} without its data")
        super().__setstate__((1, shape, dtype.made, bool(fortran), data))  # type: ignore[arg-type]


def _is_shape(shape: Any) -> bool:
    return isinstance(shape, tuple) and len(shape) <= 32 and all(type(n) is int and n >= 0 for n in shape)


_NDARRAY = object()  # what `_reconstruct` is given; the class itself could be called with anything


def _array(*arguments: Any) -> np.ndarray:
    """NumPy's `_reconstruct`: an empty array, which the pickle then fills. Only of the plain class."""
    if len(arguments) != 3 or arguments[0] is not _NDARRAY:
        raise _Refused(f"an array made of {arguments!r}"[:100])
    return _Array((0,), "b")


def _scalar(dtype: Any, data: Any) -> Any:
    """NumPy's `scalar`, of numbers; its bytes are text in pickles of Python 2."""
    data = data.encode("latin1") if isinstance(data, str) else data
    if not isinstance(dtype, _DType) or dtype.made.hasobject or not isinstance(data, bytes):
        raise _Refused(f"a scalar of {dtype!r}"[:100])
    return np.frombuffer(data, dtype.made, 1)[0]


def _frombuffer(data: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    """NumPy's `_frombuffer` (pickle protocol 5)."""
    good = isinstance(data, (bytes, bytearray)) and _is_shape(shape) and order in ("C", "F")
    if not good or not isinstance(dtype, _DType) or dtype.made.hasobject:
        raise _Refused(f"a buffer of {dtype!r}"[:100])
    return np.frombuffer(data, dtype.made).reshape(shape, order="F" if order == "F" else "C")


def _plain(value: Any, seen: dict[int, Any]) -> Any:
    """The value with arrays of NumPy's class; `seen` keeps what is held in several places one thing."""
    if type(value) not in (list, tuple, dict, _Array):
        return value.made if isinstance(value, _DType) else value
    if id(value) in seen:
        return seen[id(value)]
    if isinstance(value, tuple):
        seen[id(value)] = tuple(_plain(v, seen) for v in value)
    else:
        seen[id(value)] = value.view(np.ndarray) if isinstance(value, _Array) else value
    if isinstance(value, list):
        value[:] = [_plain(v, seen) for v in value]
    elif isinstance(value, dict):
        value.update({k: _plain(v, seen) for k, v in value.items()})
    elif isinstance(value, _Array) and value.dtype.hasobject:
        for at in np.ndindex(value.shape):
            seen[id(value)][at] = _plain(value[at], seen)
    return seen[id(value)]


_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): _DType,
    ("numpy._core.multiarray", "_reconstruct"): _array,
    ("numpy._core.multiarray", "scalar"): _scalar,
    ("numpy._core.numeric", "_frombuffer"): _frombuffer,
    ("_codecs", "encode"): _latin1,
    ("__builtin__", "bytes"): _no_bytes,
    ("collections", "OrderedDict"): dict,
}
