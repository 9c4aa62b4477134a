"""Arrays of numbers in MATLAB files of version 5 to 7.2, believed only as far as their bytes go.

`scipy.io.loadmat` takes type codes as indices without a look, and a damaged file ends the process there.
Format: MathWorks, MAT-File Format (level 5).
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["read_arrays"]

_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_MATRIX, _COMPRESSED = 14, 15
_NUMERIC = range(6, 16)  # classes of arrays: double, single and the integers
_NAMED = range(1, 16)  # those whose headers are alike: also cells, structures, text and sparse matrices
_HEADER = 128


def read_arrays(path: Path, wanted: Callable[[str], Any]) -> dict[str, np.ndarray]:
    """The arrays whose name is `wanted`, in the type they are stored in and the file's order.

    Raises:
        ValueError: another kind of file, a damaged one, or a wanted variable that is no array of real
            numbers; the message names the file. OSError: it cannot be read.
    """
    data = memoryview(path.read_bytes())
    order = {b"IM": "<", b"MI": ">"}.get(bytes(data[126:_HEADER]))
    if order is None:
        raise ValueError(f"{path}: expected a MATLAB file of version 5 to 7.2, got another file")
    (version,) = struct.unpack(f"{order}H", data[124:126])
    if version == 0x0200:
        raise ValueError(
            f"{path}: expected a MATLAB file of version 5 to 7.2, got 7.3 (HDF5); save it with -v7"
        )
    if version != 0x0100:
        raise ValueError(f"{path}: expected a MATLAB file of version 5 to 7.2, got {version:#x}")
    found = {}
    try:
        for element in _elements(data[_HEADER:], order):
            name, kind, shape = _described(element)
            if not wanted(name):
                continue
            if kind not in _NUMERIC:
                raise ValueError(f"{path}: {name}: expected an array of numbers, got another variable")
            found[name] = _numbers(element, name, shape)
    except (struct.error, zlib.error, _Damaged) as error:
        raise ValueError(f"{path}: expected a whole MATLAB file, got a damaged one ({error})") from error
    return found


class _Damaged(Exception):
    """What is wrong."""


class _Element:
    """What stands in an element of the file, read front to back, inflated on the way if it is compressed."""

    def __init__(self, data: memoryview, order: str, packed: bool) -> None:
        self.order = order
        self._left: Any = data
        self._inflate = zlib.decompressobj() if packed else None

    def take(self, count: int) -> bytes:
        if self._inflate is None:
            found, self._left = bytes(self._left[:count]), self._left[count:]
        else:
            found = self._inflate.decompress(self._left, count) if count else b""
            self._left = self._inflate.unconsumed_tail if count else self._left
        if len(found) != count:
            raise _Damaged(f"{len(found)} of {count} bytes")
        return found

    def tag(self) -> tuple[int, int, bytes]:
        """Type and length of the next part, and its content where it stands in the tag itself."""
        first, second = struct.unpack(f"{self.order}II", raw := self.take(8))
        if first >> 16:
            return first & 0xFFFF, first >> 16, raw[4:]
        return first, second, b""

    def part(self) -> tuple[int, bytes]:
        """Type and content of the next part; a header's parts are short."""
        kind, size, small = self.tag()
        if size > (4 if small else 4096):
            raise _Damaged(f"a part of {size} bytes in a header")
        return kind, (small or self.take(size + -size % 8))[:size]

    def end(self) -> None:
        """The checksum, which stands behind what was read."""
        if self._inflate is not None:
            self._inflate.decompress(self._left, 16)
            if not self._inflate.eof:
                raise _Damaged("more behind an array than it holds, or no checksum")


def _elements(data: memoryview, order: str) -> Iterator[_Element]:
    """The variables of a file, each behind its first tag."""
    while len(data):
        kind, size = struct.unpack(f"{order}II", data[:8])
        if size > len(data) - 8:
            raise _Damaged(f"{len(data) - 8} of {size} bytes")
        element = _Element(data[8 : 8 + size], order, kind == _COMPRESSED)
        if (element.tag()[0] if kind == _COMPRESSED else kind) != _MATRIX:
            raise _Damaged(f"an element of type {kind}")
        yield element
        data = data[8 + size :]


def _described(element: _Element) -> tuple[str, int, tuple[int, ...]]:
    """(name, class, shape); a class of -1 for complex numbers."""
    (flag,) = struct.unpack(f"{element.order}I", element.part()[1][:4])
    if flag & 0xFF not in _NAMED:
        return "", flag & 0xFF, ()
    sizes, name = element.part()[1], element.part()[1]
    shape = struct.unpack(f"{element.order}{len(sizes) // 4}i", sizes)
    return name.decode("latin1"), -1 if flag >> 11 & 1 else flag & 0xFF, shape


def _numbers(element: _Element, name: str, shape: tuple[int, ...]) -> np.ndarray:
    stored, size, small = element.tag()
    if stored not in _NUMBERS or min(shape, default=0) < 0:
        raise _Damaged(f"{name} is of type {stored} and shape {shape}")
    dtype = np.dtype(element.order + _NUMBERS[stored])
    if size != math.prod(shape) * dtype.itemsize or (small and size > 4):
        raise _Damaged(f"{name} of shape {shape} has {size} bytes")
    content = small[:size] if small else element.take(size)
    element.end()
    return np.frombuffer(content, dtype).reshape(shape, order="F").copy(order="F")
