"""The `.zolog` file: a JSON line that tells what a run is, then 40 bytes for each scalar that it measured.

The format is described to the byte in docs/zolog.md. This module knows bytes and numbers only; what they mean
to an optimizer, `zolog` knows.
"""

from __future__ import annotations

import json
import math
import os
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ._record import Scalar
from ._seeds import splitmix64

FORMAT = "tenfold zolog"
VERSION = 1
RECORD = struct.Struct("<IHHQddfI")
BODY = RECORD.size - 4  # what the checksum of a record covers
MAX_HEADER = 1 << 26  # bytes; one of a model with 10,000 tensors has about 1 MB
MAX_QUERY = 1 << 16

KIND = 0x7F  # bits of `flags` that say what kind of scalar it is; the high byte is the block
GROUP = 0x7F  # kind of a record that tells lr and eps of one more group, `query` being its number
EMPTY = 0x7E  # kind of the record of a step without scalars
HIGH = 0x7D  # kind of a record whose `query` is the block >> 8 of the scalars that follow in the step
LAST = 0x80  # set in the last record of a step

_START = b'{"format": "' + FORMAT.encode() + b'", "version": '
_CRC_TAIL = len(', "crc32": "00000000"}\n')
_FIELDS: dict[str, type | tuple[type, ...]] = {
    "version": int,
    "generator": str,
    "dist": str,
    "z_round": (str, type(None)),
    "restore": str,
    "rounding": str,
    "seed": int,
    "first_step": int,
    "eps": list,
    "optimizer": dict,
    "manifest": list,
    "base_sha256": str,
    "state_sha256": (str, type(None)),
}


class ZOLogError(ValueError):
    """A log that is damaged, torn, of another version, or of other weights than those given."""


class LoggedStep(NamedTuple):
    """One step: its number, the seed of its directions, its scalars, and lr and eps of each group."""

    step: int
    seed: int
    scalars: tuple[Scalar, ...]
    lrs: tuple[float, ...]
    eps: tuple[float, ...]


@dataclass(frozen=True)
class Part:
    """A header and the steps that belong to it. Most logs have one part; an average of runs has several."""

    header: dict[str, Any]
    steps: list[LoggedStep]

    @property
    def first_step(self) -> int:
        return int(self.header["first_step"])

    @property
    def end(self) -> int:
        """The number of the step that would come next."""
        return self.first_step + len(self.steps)


@dataclass(frozen=True)
class Contents:
    """What a log holds.

    Attributes:
        parts: one, or for an average of runs one for each run.
        size: bytes up to the end of the last whole step.
        crc: checksum of the last record (of the header, if there is none), with which the next one starts.
        torn: bytes behind `size`, of a step that was being written when the process died.
    """

    path: Path
    header: dict[str, Any]
    parts: list[Part]
    size: int
    crc: int
    torn: int

    @property
    def averaged(self) -> bool:
        return "average" in self.header

    def single(self) -> Part:
        """The only part; ZOLogError for an average."""
        if self.averaged:
            raise ZOLogError(f"{self.path}: expected the log of one run, got an average of {len(self.parts)}")
        return self.parts[0]


# -- writing ------------------------------------------------------------------------------------------


def encode_header(header: dict[str, Any]) -> bytes:
    """The first line of a log; `header` holds the fields after "format"."""
    fields = {"format": FORMAT, "version": VERSION, **header}
    text = json.dumps(fields, ensure_ascii=True, allow_nan=False)[:-1].encode()
    return text + b', "crc32": "%08x"}\n' % zlib.crc32(text)


def encode_step(step: LoggedStep, eps: Sequence[float], crc: int) -> tuple[bytes, int]:
    """The records of a step, and the checksum of the last one.

    eps: of each group, as the header has it. crc: of the record before.
    """
    lr = step.lrs[0]
    rows = [
        (group, GROUP, step.eps[group], step.lrs[group], step.eps[group])
        for group in range(len(step.lrs))
        if not _told_without(step, group, eps)
    ]
    high = 0
    for scalar in step.scalars:
        if scalar.flags >> 16 != high:
            high = scalar.flags >> 16
            rows.append((high, HIGH, 0.0, lr, step.eps[0]))
        rows.append((scalar.query, scalar.flags & 0xFFFF, scalar.value, lr, step.eps[0]))
    if not step.scalars:
        rows.append((0, EMPTY, 0.0, lr, step.eps[0]))
    out = bytearray()
    for i, (query, flags, value, its_lr, its_eps) in enumerate(rows):
        flags |= LAST if i == len(rows) - 1 else 0
        record = RECORD.pack(step.step, query, flags, step.seed, value, its_lr, _single(its_eps), 0)[:BODY]
        crc = zlib.crc32(record, crc)
        out += record + crc.to_bytes(4, "little")
    return bytes(out), crc


def _told_without(step: LoggedStep, group: int, eps: Sequence[float]) -> bool:
    """Whether a reader knows lr and eps of the group without a record of its own."""
    if group == 0:
        return step.eps[0] == _exact_eps(_single(step.eps[0]), eps[0])
    return step.lrs[group] == step.lrs[0] and step.eps[group] == eps[group] and step.eps[0] == eps[0]


def _single(eps: float) -> float:
    """eps as the four bytes of a record hold it."""
    with suppress(OverflowError):
        return float(struct.unpack("<f", struct.pack("<f", eps))[0])
    return float("inf")


def _exact_eps(single: float, expected: float) -> float:
    """The eps of a record: the one of the header if it is that to float32, else what is written."""
    return expected if single == _single(expected) else single


def write_aside(path: Path, pieces: Iterable[bytes]) -> None:
    """Write a whole file under another name, then rename it; ZOLogError if somebody appends to it."""
    with _held(path):
        _write_aside(path, pieces)


@contextmanager
def _held(path: Path) -> Iterator[None]:
    """Hold the lock of a file, if there is one of this name, while it is replaced."""
    try:
        file = open(path, "r+b")  # noqa: SIM115
    except FileNotFoundError:
        yield
        return
    with file:
        _lock(path, file.fileno())
        yield


def _write_aside(path: Path, pieces: Iterable[bytes]) -> None:
    aside = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with open(aside, "wb") as file:
            file.writelines(pieces)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


class Appender:
    """A log open for appending: one write for each step, flushed to the system before `append` returns.

    fsync: also wait for the disk, so that a step survives a loss of power, not only the end of the process.
    """

    def __init__(self, path: Path, contents: Contents, *, fsync: bool) -> None:
        self.path = path
        self.header = contents.header
        self.next_step = contents.single().end
        self._size = contents.size
        self._crc = contents.crc
        self._before: tuple[int, int] | None = None  # size and checksum before the last step
        self._fsync = fsync
        self._file = open(path, "r+b", buffering=0)  # noqa: SIM115
        try:
            _lock(path, self._file.fileno())
            self._file.truncate(self._size)
            self._file.seek(self._size)
        except BaseException:
            self._file.close()
            raise

    @property
    def closed(self) -> bool:
        return self._file.closed

    def append(self, step: LoggedStep) -> None:
        """Raises ZOLogError if it is not the step that comes next, OSError if it cannot be written; the log
        then ends with the step before."""
        if self.closed:
            raise ZOLogError(f"{self.path}: expected an open log, got one that is closed")
        if step.step != self.next_step:
            raise ZOLogError(f"{self.path}: expected step {self.next_step} next, got {step.step}")
        if any(scalar.query >= MAX_QUERY for scalar in step.scalars):
            raise ZOLogError(f"{self.path}: expected query indices below {MAX_QUERY}, got larger ones")
        data, crc = encode_step(step, self.header["eps"], self._crc)
        try:
            written = self._file.write(data)
            if written != len(data):
                raise OSError(f"{self.path}: expected to write {len(data)} bytes, wrote {written}")
            if self._fsync:
                os.fsync(self._file.fileno())
        except BaseException:
            with suppress(OSError):
                self._file.truncate(self._size)
                self._file.seek(self._size)
            raise
        self._before = self._size, self._crc
        self._size += len(data)
        self._crc = crc
        self.next_step += 1

    def retract(self) -> None:
        """Take back the step appended last: it was not made after all."""
        if self._before is None:
            return
        self._size, self._crc = self._before
        self._before = None
        self._file.truncate(self._size)
        self._file.seek(self._size)
        self.next_step -= 1

    def close(self) -> None:
        self._file.close()


def _lock(path: Path, descriptor: int) -> None:
    """Two processes that append to one log would destroy it, so the second one is refused."""
    try:
        import fcntl
    except ImportError:  # no such locks on this system
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise ZOLogError(f"{path}: expected a log that nobody else writes, got a locked one") from error


# -- reading ------------------------------------------------------------------------------------------


def read(path: str | Path, *, recover: bool = False) -> Contents:
    """Read and check a whole log.

    recover: drop a torn tail (`Contents.torn` tells how many bytes) instead of refusing it. Damage that whole
        records follow is refused in any case.

    Raises ZOLogError, naming the file and the byte, and OSError if it cannot be read.
    """
    path = Path(path)
    with open(path, "rb") as file:
        line = file.readline(MAX_HEADER)
        header = _header(path, line)
        data = file.read()
    crc = zlib.crc32(line)
    rows, torn_why = _records(path, data, len(line), crc, recover)
    headers = header.get("average", [header])
    counts = [h["records"] for h in headers] if "average" in header else [len(rows)]
    if sum(counts) != len(rows):
        raise ZOLogError(f"{path}: expected {sum(counts)} records, got {len(rows)}{torn_why}")
    parts, at = [], 0
    for its_header, count in zip(headers, counts, strict=True):
        parts.append(Part(its_header, list(_steps(path, its_header, rows[at : at + count]))))
        at += count
    size = len(line) + RECORD.size * len(rows)
    if rows:
        crc = rows[-1][7]
    return Contents(path, header, parts, size, crc, len(line) + len(data) - size)


def _header(path: Path, line: bytes) -> dict[str, Any]:
    if not line.startswith(_START[: max(len(line), 1)]):
        raise ZOLogError(f"{path}: expected a .zolog file, got one that starts with {line[:16]!r}")
    if not line.endswith(b"\n"):
        raise ZOLogError(f"{path}: expected a header line of at most {MAX_HEADER} bytes, got no end of line")
    body, tail = line[:-_CRC_TAIL], line[-_CRC_TAIL:]
    if tail != b', "crc32": "%08x"}\n' % zlib.crc32(body):
        raise ZOLogError(f"{path}: expected a header that fits its crc32, got a damaged one")
    try:
        header = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ZOLogError(f"{path}: expected a header in JSON, got {str(error)[:80]}") from error
    if not isinstance(header, dict):
        raise ZOLogError(f"{path}: expected a header with fields, got {header!r:.40}")
    if header.get("version") != VERSION:
        raise ZOLogError(f"{path}: expected version {VERSION}, got {header.get('version')!r:.40}")
    _check_fields(path, header)
    return dict(header)


def _check_fields(path: Path, header: dict[str, Any]) -> None:
    for name, kind in _FIELDS.items():
        value = header.get(name, ...)
        if not isinstance(value, kind) or isinstance(value, bool):
            got = "nothing" if value is ... else f"{value!r:.40}"
            raise ZOLogError(f"{path}: expected a header with a proper '{name}', got {got}")
    if not header["eps"] or not all(isinstance(eps, float) and 0 < eps < math.inf for eps in header["eps"]):
        raise ZOLogError(f"{path}: expected a header with the eps of each group, got {header['eps']!r:.40}")
    if not 0 <= header["first_step"] < 1 << 32 or not 0 <= header["seed"] < 1 << 64:
        raise ZOLogError(f"{path}: expected first_step and seed in range, got others")
    for entry in header["manifest"]:
        if not isinstance(entry, dict) or set(entry) != set(MANIFEST):
            raise ZOLogError(f"{path}: expected a manifest of {', '.join(MANIFEST)}, got {entry!r:.60}")
        _check_entry(path, entry, len(header["eps"]))
    _check_optimizer(path, header["optimizer"], len(header["eps"]))
    if "average" in header:
        parts = header["average"]
        if not isinstance(parts, list) or not parts or not all(isinstance(part, dict) for part in parts):
            raise ZOLogError(f"{path}: expected a list of headers in 'average', got {parts!r:.40}")
        for part in parts:
            _check_fields(path, part)
            if not isinstance(part.get("records"), int) or part["records"] < 0:
                raise ZOLogError(f"{path}: expected the number of records of each run, got none")


def _check_entry(path: Path, entry: dict[str, Any], groups: int) -> None:
    shape, block = entry["shape"], entry["block"]
    good = {
        "stream": _in_range(entry["stream"], 1 << 32),
        "name": isinstance(entry["name"], str),
        "shape": isinstance(shape, list) and all(_in_range(n, 1 << 62) for n in shape),
        "dtype": entry["dtype"] in ("float64", "float32", "bfloat16", "float16"),
        "group": _in_range(entry["group"], groups),
        "block": block is None or _in_range(block, 1 << 24),
        "decays": isinstance(entry["decays"], bool),
        "trainable": isinstance(entry["trainable"], bool),
    }
    for name, fits in good.items():
        if not fits:
            raise ZOLogError(f"{path}: expected a manifest with a proper '{name}', got {entry[name]!r:.40}")


def _check_optimizer(path: Path, described: dict[str, Any], groups: int) -> None:
    kinds = {"class": str, "options": dict, "groups": list}
    for name, kind in kinds.items():
        if not isinstance(described.get(name), kind):
            raise ZOLogError(
                f"{path}: expected an optimizer with a proper '{name}', got {described.get(name)!r:.40}"
            )
    its = described["groups"]
    if len(its) != groups or not all(isinstance(group, dict) for group in its):
        raise ZOLogError(f"{path}: expected an optimizer of {groups} groups, got {its!r:.60}")


def _in_range(value: Any, end: int) -> bool:
    return type(value) is int and 0 <= value < end


MANIFEST = ("stream", "name", "shape", "dtype", "group", "block", "decays", "trainable")
"""Keys of an entry of the manifest: one entry for each parameter of the optimizer, in order."""

Row = tuple[int, int, int, int, float, float, float, int]


def _records(path: Path, data: bytes, start: int, crc: int, recover: bool) -> tuple[list[Row], str]:
    """The records of all whole steps, and why what follows them was dropped."""
    rows: list[Row] = []
    whole = bad = 0  # records up to the end of the last whole step; the first bad record
    good = True
    for i in range(len(data) // RECORD.size):
        at = i * RECORD.size
        row: Row = RECORD.unpack_from(data, at)
        fits = zlib.crc32(data[at : at + BODY], crc) == row[7]
        crc = row[7]
        if not fits and good:
            good, bad = False, i
        elif fits and not good:
            where = start + bad * RECORD.size
            raise ZOLogError(
                f"{path}: expected a record that fits its crc32, got a damaged one at byte {where}"
            )
        if good:
            rows.append(row)
            if row[2] & LAST:
                whole = i + 1
    if whole * RECORD.size == len(data):
        return rows, ""
    why = f"a step that breaks off at byte {start + len(data)}"
    if not good:
        why = f"a record at byte {start + bad * RECORD.size} that does not fit its crc32"
    if not recover:
        raise ZOLogError(f"{path}: expected whole steps, got {why}; recover=True drops it")
    return rows[:whole], f" and {why}"


def _steps(path: Path, header: dict[str, Any], rows: Sequence[Row]) -> Iterator[LoggedStep]:
    eps: list[float] = header["eps"]
    number, at = header["first_step"], 0
    while at < len(rows):
        end = at
        while end < len(rows) and not rows[end][2] & LAST:
            end += 1
        yield _step(path, header["seed"], number, rows[at : end + 1], eps)
        number, at = number + 1, end + 1


def _step(path: Path, seed: int, number: int, rows: Sequence[Row], eps: Sequence[float]) -> LoggedStep:
    seed = splitmix64(seed, number)
    for row in rows:
        if (row[0], row[3]) != (number, seed):
            wanted = f"step {number} with seed {seed}"
            raise ZOLogError(f"{path}: expected {wanted}, got step {row[0]} with seed {row[3]}")
    own = {row[1]: (row[4], row[5]) for row in rows if row[2] & KIND == GROUP}
    if any(group >= len(eps) for group in own):
        raise ZOLogError(f"{path}: expected groups below {len(eps)} in step {number}, got {max(own)}")
    measured = [row for row in rows if row[2] & KIND != GROUP]
    if not measured:
        raise ZOLogError(f"{path}: expected scalars in step {number}, got none")
    lr, first = measured[0][5], _exact_eps(measured[0][6], eps[0])
    told = [own.get(group, (first if group == 0 else eps[group], lr)) for group in range(len(eps))]
    for own_eps, rate in told:  # a replay would find it between two steps, the weights half written
        if not 0 <= rate < math.inf:
            raise ZOLogError(f"{path}: expected a learning rate >= 0 in step {number}, got {rate}")
        if not 0 < own_eps < math.inf:
            raise ZOLogError(f"{path}: expected an eps > 0 in step {number}, got {own_eps}")
    return LoggedStep(
        number,
        seed,
        tuple(_scalars(measured)),
        tuple(lr for _, lr in told),
        tuple(eps for eps, _ in told),
    )


def _scalars(rows: Sequence[Row]) -> Iterator[Scalar]:
    high = 0
    for _, query, flags, _, value, *_ in rows:
        if flags & KIND == HIGH:
            high = query
        elif flags & KIND != EMPTY:
            yield Scalar(query, flags & ~LAST | high << 16, value)
