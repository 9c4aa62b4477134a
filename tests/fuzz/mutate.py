"""Mutations that get past a file's packing: what a gzip, zip, safetensors or JSON file holds is changed and
packed again, so that the reader behind the checksum, the length or the parser is what meets it."""

from __future__ import annotations

import gzip
import io
import json
import random
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

Change = Callable[[bytes, int], bytes]

RECORD = 40
"""Bytes of a record of a .zolog file, its CRC last."""

ODD = (None, True, 0, -1, 1.5, 2**63, 1e308, float("nan"), "", "x", "../x", [], {}, [[]], [None], {"a": 1})


def mutated(data: bytes, size: int, seed: int, change: Change) -> bytes:
    """`data` with what it holds changed by `change(bytes, size)`, the fuzzer's own; now and then as it is."""
    rng = random.Random(seed)
    if rng.random() < 0.25:
        return change(data, size)
    try:
        return inside(data, size, rng, change)[:size]
    except Exception:  # a mutant is seldom a whole file
        return change(data, size)


def inside(data: bytes, size: int, rng: random.Random, change: Change) -> bytes:
    if data[:2] == b"\x1f\x8b":
        return gzip.compress(inside(gzip.decompress(data), size, rng, change), 1, mtime=0)
    if data[:4] == b"PK\x03\x04":
        return _in_zip(data, size, rng, change)
    if data[8:9] == b"{":
        return _in_safetensors(data, size, rng, change)
    if data.startswith(b'{"format": "tenfold zolog"'):
        return _in_zolog(data, size, rng, change)
    if data[:1] in b"{[" and rng.random() < 0.02:
        at = rng.randrange(len(data) + 1)
        return data[:at] + b"[" * 3000 + data[at:]
    if data[:1] in b"{[" and rng.random() < 0.6:
        return json.dumps(odd(json.loads(data), rng)).encode()
    return change(data, size)


def _in_zip(data: bytes, size: int, rng: random.Random, change: Change) -> bytes:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        held = {name: archive.read(name) for name in archive.namelist()}
    chosen = rng.choice(list(held))
    held[chosen] = inside(held[chosen], size, rng, change)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in held.items():
            archive.writestr(name, content)
    return out.getvalue()


def _in_safetensors(data: bytes, size: int, rng: random.Random, change: Change) -> bytes:
    (length,) = struct.unpack("<Q", data[:8])
    head = json.loads(data[8 : 8 + length])
    told = head.get("__metadata__")
    if told and rng.random() < 0.7:
        name = rng.choice(list(told))
        told[name] = inside(told[name].encode(), size, rng, change).decode("utf-8", "replace")
    else:
        head = odd(head, rng)
    text = json.dumps(head).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def _in_zolog(data: bytes, size: int, rng: random.Random, change: Change) -> bytes:
    line, _, records = data.partition(b"\n")
    head = json.loads(line)
    del head["crc32"]
    if rng.random() < 0.6:
        head = odd(head, rng)
    else:
        records = change(records, size)
    body = json.dumps(head).encode()[:-1]
    crc = zlib.crc32(body)
    out = body + b', "crc32": "%08x"}\n' % crc
    crc = zlib.crc32(out)
    for at in range(0, len(records) - RECORD + 1, RECORD):
        part = records[at : at + RECORD - 4]
        crc = zlib.crc32(part, crc)
        out += part + struct.pack("<I", crc)
    return out


def odd(value: Any, rng: random.Random) -> Any:
    """A JSON value with one of its parts replaced, left out or doubled."""
    if not isinstance(value, (dict, list)) or not value or rng.random() < 0.1:
        return rng.choice(ODD)
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = rng.choice(keys)
    how = rng.random()
    if how < 0.15:
        del value[key]
    elif how < 0.3 and isinstance(value, list):
        value.insert(key, value[key])
    elif how < 0.3:
        value[rng.choice(keys)] = value[key]
    else:
        value[key] = odd(value[key], rng)
    return value
