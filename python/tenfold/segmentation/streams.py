"""Bytes of a volume file as they come: in a folder or a zip archive, compressed or not, hashed on the way.

A mask of 54 million voxels compresses to a hundred kilobytes, so reading one is inflating zeros. It is done
in pieces of a megabyte: the memory is used again and again, which is three times as fast as one large piece
whose pages the system has to hand out first. ISA-L inflates twice as fast as zlib; it is used if the package
`isal` is installed.
"""

from __future__ import annotations

import hashlib
import struct
import zipfile
import zlib
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

from tenfold._reading import out_of_memory

__all__ = ["PIECE", "Place", "Stream", "inflater"]

PIECE = 1 << 20
"""Bytes that are read or inflated at a time."""


@cache
def inflater() -> ModuleType:
    """The module that inflates: `isal.isal_zlib` if it is installed, else `zlib`."""
    try:
        from isal import isal_zlib
    except ImportError:
        return zlib
    return isal_zlib


@dataclass(frozen=True)
class Place:
    """A file: on disk, or a member of a zip archive."""

    path: Path
    """The file, or the archive."""
    member: str = ""
    """Name inside the archive; empty for a file on disk."""

    def __str__(self) -> str:
        return f"{self.path}:{self.member}" if self.member else str(self.path)

    @property
    def name(self) -> str:
        """The file's name without its folder."""
        return (self.member or str(self.path)).replace("\\", "/").rpartition("/")[2]

    def open(self) -> BinaryIO:
        """The bytes from the beginning."""
        if not self.member:
            return self.path.open("rb")
        try:
            with zipfile.ZipFile(self.path) as archive:
                file: Any = archive.open(self.member)  # keeps the archive open until it is closed itself
        except (
            Exception
        ) as error:  # a damaged archive raises what its bytes lead to, OSErrors without a name too
            if isinstance(error, OSError) and error.filename is not None:
                raise
            raise ValueError(f"{self}: expected a readable member of a zip archive, got {error}") from error
        return file

    def stamp(self) -> list[int]:
        """Size and time of the last change: what tells whether the file is still the same."""
        if self.member:
            with zipfile.ZipFile(self.path) as archive:
                info = archive.getinfo(self.member)
                return [info.file_size, info.CRC]
        found = self.path.stat()
        return [found.st_size, found.st_mtime_ns]


class Stream:
    """Reads a file front to back; `inflate` switches to inflating what follows."""

    def __init__(self, place: Place):
        self.place = place
        self._file = place.open()
        self._hash = hashlib.sha256()
        self._pending = b""
        self._window = 0
        self._inflate: Any = None

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def inflate(self, window: int) -> None:
        """From here on the bytes are compressed: `window` 31 for gzip, 15 for zlib."""
        self._window = window
        self._inflate = inflater().decompressobj(window)

    def read(self, count: int) -> bytes:
        """Exactly `count` bytes; ValueError names the file if it ends before or is damaged."""
        parts: list[bytes] = []
        missing = count
        while missing:
            part = self._some(missing)
            if not part:
                whole = "a whole file" if self._inflate is None else "a whole compressed file"
                raise ValueError(f"{self.place}: expected {whole}, got one that is cut off")
            parts.append(part)
            missing -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def line(self) -> bytes:
        """Up to and with the next newline; at most 64 KiB."""
        while (end := self._pending.find(b"\n")) < 0 and len(self._pending) < 1 << 16:
            more = self._raw()
            if not more:
                break
            self._pending += more
        cut = end + 1 if end >= 0 else len(self._pending)
        found, self._pending = self._pending[:cut], self._pending[cut:]
        return found

    def finish(self) -> str:
        """Read to the end, where the checksum is; the SHA-256 of the file as it is stored."""
        while self._some(PIECE):
            pass
        if self._inflate is not None and not self._inflate.eof:
            raise ValueError(f"{self.place}: expected a whole compressed file, got one that is cut off")
        while self._raw():
            pass
        return self._hash.hexdigest()

    def _raw(self) -> bytes:
        try:
            piece = self._file.read(PIECE)
        except (zipfile.BadZipFile, zlib.error, EOFError, struct.error, OSError) as error:
            if not self.place.member:
                raise
            raise ValueError(
                f"{self.place}: expected a readable member of a zip archive, got {error}"
            ) from error
        self._hash.update(piece)
        return piece

    def _some(self, most: int) -> bytes:
        """Between 1 and `most` bytes, or none at the end."""
        if self._inflate is None:
            data = self._pending or self._raw()
            self._pending = data[most:]
            return data[:most]
        while True:
            if self._inflate.eof and not self._next_member():
                return b""
            data = self._inflate.unconsumed_tail or self._pending or self._raw()
            self._pending = b"" if not self._inflate.unconsumed_tail else self._pending
            try:
                found = self._inflate.decompress(data, most)
            except Exception as error:  # zlib.error and ISA-L's own
                if out_of_memory(error):
                    raise
                raise ValueError(
                    f"{self.place}: expected compressed data, got damaged ones ({error})"
                ) from error
            if found:
                return bytes(found)
            if not data and not self._inflate.eof:
                return b""

    def _next_member(self) -> bool:
        """Whether another gzip member follows; padding with zeros behind the last one is allowed."""
        rest: bytes = self._inflate.unused_data or self._raw()
        if self._window != 31 or not rest.strip(b"\0"):
            return False
        with suppress(AttributeError):
            rest = rest.lstrip(b"\0")
        self._pending = rest
        self.inflate(31)
        return True
