"""The reader of MATLAB files against scipy's, and files that end a process which reads them with scipy."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import scipy.io

from tenfold.eeg.layouts.mat5 import read_arrays

TYPES = ("f8", "f4", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", ">f8", ">i2")
SHAPES = ((3, 4), (2, 3, 4), (1, 1), (0, 3), (1, 3))


@pytest.mark.parametrize("packed", [False, True])
def test_as_scipy_reads_it(packed: bool, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        f"a{i}_{k}": rng.integers(0, 100, shape).astype(kind)
        for i, kind in enumerate(TYPES)
        for k, shape in enumerate(SHAPES)
    }
    others = {"text": "abc", "cells": np.array(["a", 1], object), "complex": np.ones((2, 2)) * 1j}
    scipy.io.savemat(tmp_path / "a.mat", arrays | others | {"s": {"x": 1}}, do_compression=packed)
    theirs = scipy.io.loadmat(tmp_path / "a.mat")
    found = read_arrays(tmp_path / "a.mat", arrays.__contains__)
    assert list(found) == list(arrays)
    for name, array in found.items():
        assert (array.dtype, array.shape) == (theirs[name].dtype, theirs[name].shape)
        assert np.array_equal(array, theirs[name])
        assert array.flags.writeable
    for name in ("text", "cells", "complex", "s"):
        with pytest.raises(ValueError, match=rf"a\.mat: {name}: expected an array of numbers"):
            read_arrays(tmp_path / "a.mat", name.__eq__)


def damaged(tmp_path: Path, old: bytes, new: bytes) -> Path:
    """A file of one array, with some of its packed bytes exchanged."""
    scipy.io.savemat(tmp_path / "a.mat", {"x1": np.arange(12.0).reshape(3, 4)}, do_compression=True)
    data = (tmp_path / "a.mat").read_bytes()
    inside = zlib.decompress(data[136:])
    assert inside.count(old) == 1
    packed = zlib.compress(inside.replace(old, new))
    (tmp_path / "a.mat").write_bytes(data[:128] + struct.pack("<II", 15, len(packed)) + packed)
    return tmp_path / "a.mat"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (struct.pack("<II", 9, 96), struct.pack("<II", 41, 96)),  # a type that there is not: scipy crashes
        (struct.pack("<II", 9, 96), struct.pack("<II", 9, 2**31)),
        (struct.pack("<ii", 3, 4), struct.pack("<ii", 3, -4)),
        (struct.pack("<ii", 3, 4), struct.pack("<ii", 2**30, 2**30)),
        (struct.pack("<II", 5, 8), struct.pack("<II", 5, 2**31)),
    ],
)
def test_damaged_files(old: bytes, new: bytes, tmp_path: Path) -> None:
    path = damaged(tmp_path, old, new)
    with pytest.raises(ValueError, match=r"a\.mat: expected a whole MATLAB file, got a damaged one"):
        read_arrays(path, "x1".__eq__)
    (tmp_path / "b.mat").write_bytes(path.read_bytes()[:-3])
    with pytest.raises(ValueError, match=r"b\.mat: expected a whole MATLAB file, got a damaged one"):
        read_arrays(tmp_path / "b.mat", "x1".__eq__)


@pytest.mark.parametrize("written", ["4", "hdf5"])
def test_files_of_other_versions(written: str, tmp_path: Path) -> None:
    path = tmp_path / "a.mat"
    if written == "4":
        scipy.io.savemat(path, {"x1": np.ones((2, 2))}, format="4")
        told = "expected a MATLAB file of version 5 to 7.2, got another file"
    else:
        path.write_bytes(b"MATLAB 7.3 MAT-file".ljust(124) + struct.pack("<H", 0x0200) + b"IM" + bytes(384))
        told = "expected a MATLAB file of version 5 to 7.2, got 7.3"
    with pytest.raises(ValueError, match=rf"a\.mat: {told}"):
        read_arrays(path, "x1".__eq__)


def big_endian(name: str, kind: int, dtype: str, array: np.ndarray, packed: bool) -> bytes:
    """A variable as a machine of the other byte order writes it, short parts in their tags."""

    def part(code: int, data: bytes) -> bytes:
        if len(data) <= 4:
            return struct.pack(">HH", len(data), code) + data.ljust(4, b"\0")
        return struct.pack(">II", code, len(data)) + data + bytes(-len(data) % 8)

    codes = {"f8": 9, "i2": 3, "u1": 2}
    body = struct.pack(">IIII", 6, 8, kind, 0) + part(5, struct.pack(f">{array.ndim}i", *array.shape))
    body += part(1, name.encode()) + part(codes[dtype], array.astype(f">{dtype}").tobytes("F"))
    element = struct.pack(">II", 14, len(body)) + body
    data = zlib.compress(element)
    return struct.pack(">II", 15, len(data)) + data if packed else element


@pytest.mark.parametrize("packed", [False, True])
def test_files_of_the_other_byte_order(packed: bool, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    head = b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack(">H", 0x0100) + b"MI"
    arrays = {"one": ("u1", np.array([[7]])), "abcde": ("i2", rng.integers(-9, 9, (2, 3, 2)))}
    arrays |= {"wide": ("f8", rng.integers(0, 99, (3, 2))), "none": ("f8", np.zeros((0, 3)))}
    stored = (big_endian(name, 6, dtype, array, packed) for name, (dtype, array) in arrays.items())
    (tmp_path / "a.mat").write_bytes(head + b"".join(stored))
    theirs, found = scipy.io.loadmat(tmp_path / "a.mat"), read_arrays(tmp_path / "a.mat", arrays.__contains__)
    for name, (_, array) in arrays.items():
        assert np.array_equal(found[name], array)
        assert np.array_equal(found[name], theirs[name])
        assert found[name].shape == array.shape
