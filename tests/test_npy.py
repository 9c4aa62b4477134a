"""Files of NumPy: what is asked for is read, and nothing else."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest

from tenfold._npy import array_names, read_npy, read_npz

ARRAYS = {
    "numbers": np.arange(24.0).reshape(2, 3, 4),
    "columns": np.asfortranarray(np.arange(12).reshape(3, 4)),
    "texts": np.array(["a", "bcd"]),
    "none": np.zeros((0, 3)),
    "one": np.array(7),
    "fields": np.array([(1, 2.5)], dtype=[("a", "i2"), ("b", "f8")]),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_an_array_comes_back(name: str, tmp_path: Path) -> None:
    path, expected = tmp_path / "a.npy", ARRAYS[name]
    np.save(path, expected)
    found = read_npy(path)
    assert (found.dtype, found.flags.writeable) == (expected.dtype, True)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_archive_comes_back(save, tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    save(path, **ARRAYS)
    found = read_npz(path)
    assert found.keys() == ARRAYS.keys()
    for name, expected in ARRAYS.items():
        assert (found[name].dtype, found[name].flags.writeable) == (expected.dtype, True)
        np.testing.assert_array_equal(found[name], expected)


def test_members_nobody_asks_for_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, features=ARRAYS["numbers"], paths=np.array([Path("a")], dtype=object))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("README.txt", "notes")
        archive.mkdir("folder") if hasattr(archive, "mkdir") else archive.writestr("folder/", "")
    assert array_names(path) == ["features", "paths"]
    assert list(read_npz(path, ["features", "absent"])) == ["features"]
    with pytest.raises(ValueError, match=r"paths\.npy: expected numbers or text, got pickled objects"):
        read_npz(path)


@pytest.mark.parametrize("save", [np.save, np.savez, np.savez_compressed])
def test_an_array_that_claims_more_than_there_is(save, tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.save(path, np.zeros(9))
    data = path.read_bytes().replace(b"(9,), }  ", b"(9999,), }")[: path.stat().st_size]
    path.write_bytes(data)
    if save is not np.save:
        with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
            archive.writestr("a.npy", data)
        path = tmp_path / "a.npz"
    with pytest.raises(ValueError, match=r"expected \[9999\] of float64, got \d+ bytes"):
        read_npy(path) if save is np.save else read_npz(path)


def test_a_flipped_bit_in_an_archive_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, a=ARRAYS["numbers"])
    data = bytearray(path.read_bytes())
    data[data.index(ARRAYS["numbers"].tobytes()) + 5] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="Bad CRC-32"):
        read_npz(path)
