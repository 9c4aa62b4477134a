from __future__ import annotations

import collections
import os
import pickle
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tenfold.eeg.unpickle import load_pickle, loads_pickle

PLAIN = {
    "data": np.arange(24.0).reshape(2, 3, 4),
    "fortran": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
    "big-endian": np.arange(3, dtype=">i4"),
    "empty": np.zeros((0, 5)),
    "scalar": np.float64(0.1),
    "int": np.int64(-3),
    0: [1, 2.5, "text", None, True, (b"bytes",)],
    "objects": np.array([np.arange(2), "a"], dtype=object),
    "dtype": np.dtype(">f4"),
}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_data_and_arrays(protocol: int, tmp_path: Path) -> None:
    path = tmp_path / "s01.dat"
    path.write_bytes(pickle.dumps(PLAIN, protocol))
    got = load_pickle(path)
    assert list(got) == list(PLAIN)
    for key in ("data", "fortran", "big-endian", "empty"):
        assert np.array_equal(got[key], PLAIN[key])
        assert got[key].dtype.newbyteorder("=") == PLAIN[key].dtype.newbyteorder("=")
    assert (got["scalar"], got["int"], got[0]) == (0.1, -3, PLAIN[0])
    assert got["objects"][0].tolist() == [0, 1]
    assert got["dtype"] == np.dtype(">f4")
    assert loads_pickle(pickle.dumps(collections.OrderedDict(a=1), protocol), "x") == {"a": 1}


def test_arrays_of_python_2_and_old_numpy() -> None:
    """Protocol 2 as Python 2 wrote it: byte strings, numpy.core."""
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntU\x01btR"
        b"(I1\n(I2\ntcnumpy\ndtype\n(U\x02f8I0\nI1\ntR(I3\nU\x01<NNNI-1\nI-1\nI0\ntb"
        b"I00\nU\x10" + np.array([1.5, -2.0], dtype="<f8").tobytes() + b"tb."
    )
    got = loads_pickle(b"\x80\x02" + array, "old")
    assert got.tolist() == [1.5, -2.0]
    scalar = (
        b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(U\x02f8I0\nI1\ntR(I3\nU\x01<NNNI-1\nI-1\nI0\ntb"
        b"U\x08" + np.array(1.5, dtype="<f8").tobytes() + b"tR."
    )
    assert loads_pickle(b"\x80\x02" + scalar, "old") == 1.5


class Calls:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize(
    ("function", "arguments", "named"),
    [
        (os.system, ("touch touched",), r"\w+.system"),
        (eval, ("open('touched', 'w')",), "__builtin__.eval"),
        (subprocess.check_call, (["touch", "touched"],), "commands.check_call"),
        (np.fromfile, ("touched",), "numpy.fromfile"),
        (np.memmap, ("touched", "u1", "w+", 0, (4,)), "numpy.memmap"),
    ],
)
def test_nothing_is_called(
    function: Any, arguments: tuple[Any, ...], named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = pickle.dumps({"data": Calls(function, *arguments)}, 2)
    with pytest.raises(ValueError, match=rf"bad\.pkl: expected a pickle of plain data .* the name {named}"):
        loads_pickle(data, "bad.pkl")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"c_codecs\nencode\n(Vabc\nVzip\ntR.", "text in the encoding 'zip'"),
        (b"Pabc\n.", "a reference 'abc' to something outside"),
        (b"cbuiltins\ngetattr\n(cnumpy\nndarray\nVdump\ntR.", "the name builtins.getattr"),
        (b"c__builtin__\nbytes\n(I9999999999\ntR.", "bytes of"),
        (pickle.dumps(np.ma.masked_array([1.0], [True])), "the name numpy.ma"),
        (pickle.dumps(Path("x")), "the name pathlib"),
        (b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\ndtype\n(I0\ntVb\ntR.", "an array made of"),
        (pickle.dumps(PLAIN)[:-40], "expected a whole pickle"),
        (b"", "expected a whole pickle, got EOFError"),
        (b"hello", "expected a whole pickle"),
    ],
)
def test_other_bytes_are_refused(data: bytes, said: str) -> None:
    with pytest.raises(ValueError, match=rf"x\.pkl: .*{said}"):
        loads_pickle(data, "x.pkl")


def array_with(state: bytes) -> bytes:
    """An array whose pickle fills it with `state`."""
    return b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntVb\ntR" + state + b"b."


@pytest.mark.parametrize(
    "state",
    [
        b"(I1\n(I2\ntVf8\nI00\nC\x10" + bytes(16) + b"t",  # a dtype that is none
        b"(I1\n(I2\ntcnumpy\ndtype\n(Vf8\ntR(I3\nV<\nNN(I1\ntI-1\nI-1\nI0\ntbI00\nC\x10" + bytes(16) + b"t",
        b"(I1\n(I3\ntcnumpy\ndtype\n(Vf8\ntRI00\nC\x10" + bytes(16) + b"t",  # too few bytes
        b"(I1\n(I-2\ntcnumpy\ndtype\n(Vf8\ntRI00\nC\x10" + bytes(16) + b"t",
        b"(I1\n(I2\ntcnumpy\ndtype\n(VO8\ntRI00\nC\x10" + bytes(16) + b"t",  # bytes as objects
        b"(I1\n(I1\nI2\nI3\nI4\ntcnumpy\ndtype\n(Vf8\ntR(I1\ntC\x01xt",
        b"N",
    ],
)
def test_states_that_numpy_would_believe(state: bytes) -> None:
    """Found by fuzzing: some of them end the process in NumPy's own reader."""
    with pytest.raises(ValueError, match=r"x\.pkl: expected a"):
        loads_pickle(array_with(state), "x.pkl")


def test_what_is_held_twice_stays_one_thing() -> None:
    array, rows = np.arange(3), [1, 2]
    held: list[Any] = [array, (array, rows), {"a": array, "b": rows}]
    held.append(held)
    got = loads_pickle(pickle.dumps(held), "x")
    assert type(got[0]) is np.ndarray
    assert got[0] is got[1][0] is got[2]["a"]
    assert got[1][1] is got[2]["b"]
    assert got[3] is got
