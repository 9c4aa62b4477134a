"""SEED-V, DEAP and FACED are written (SIMULATED) and read back; then their files are spoilt one by one."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tenfold.eeg import Corpus
from tenfold.eeg.features import band_differential_entropy, to_rows
from tenfold.eeg.layouts import Extraction, load
from tenfold.eeg.layouts.deap import DEAP_BANDS
from tenfold.eeg.simulate import simulate
from tenfold.eeg.smoothing import lds_smooth

PLAIN = Extraction(smoothing="none")
Labels = Callable[[Corpus, str], list[int]]
LAYOUTS = ("seed", "seed-iv", "seed-v", "deap", "faced")


def test_seed_v(written: Callable[[str], dict[str, Path]], labels: Labels) -> None:
    folder = written("seed-v")["features"]
    corpus = load("seed-v", folder)
    assert corpus.subjects == tuple(map(str, range(1, 12)))  # 2 before 10
    assert labels(corpus, "subject 11, session 1")[:5] == [4, 1, 3, 2, 0]
    assert labels(corpus, "subject 11, session 3")[:5] == [2, 1, 3, 0, 4]
    with np.load(folder / "11_123.npz") as held:
        data = pickle.loads(held["data"].tobytes())
    domain = corpus["subject 11, session 2"]
    assert np.array_equal(domain.x[domain.trial == 4], data[18].astype(np.float32))
    assert np.bincount(domain.y).tolist() == [6] * 5


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda d, c: d.pop(44),
            r"1_123\.npz: data: expected clips 0 to 44 by their numbers, got 44 of them",
        ),
        (lambda d, c: d.update({3: d[3][:, :309]}), r"data\[3\]: expected shape \(n, 310\), got \(2, 309\)"),
        (lambda d, c: c.update({3: np.array([2.0, 1.0])}), r"label\[3\]: expected one class of 0 to 4"),
        (
            lambda d, c: c.update({3: np.array([7.0, 7.0])}),
            r"label\[3\]: expected one class of 0 to 4 .* got \[7\.0\]",
        ),
        (lambda d, c: c.update({3: np.array([2.0])}), r"label\[3\]: expected shape \(2\), got \(1,\)"),
        (
            lambda d, c: c.update({3: np.zeros(2)}),
            r"session 1: expected as many clips of each class, got \{0: 4, 1",
        ),
        (lambda d, c: d.update({3: Path("x")}), r"data: expected a pickle of plain data .* the name pathlib"),
    ],
)
def test_spoilt_seed_v(
    change: Callable[[Any, Any], Any], said: str, copy: Callable[[str, str], Path]
) -> None:
    folder = copy("seed-v", "features")
    with np.load(folder / "1_123.npz") as held:
        data, label = (pickle.loads(held[key].tobytes()) for key in ("data", "label"))
    change(data, label)
    np.savez(folder / "1_123.npz", data=np.array(pickle.dumps(data)), label=np.array(pickle.dumps(label)))
    with pytest.raises(ValueError, match=said):
        load("seed-v", folder)


def test_seed_v_archives(copy: Callable[[str, str], Path]) -> None:
    file = copy("seed-v", "features") / "1_123.npz"
    np.savez(file, data=np.array({"a": 1}, dtype=object), label=np.zeros(3))
    with pytest.raises(
        ValueError, match=r"1_123\.npz: expected an archive of pickled bytes, got .*pickled objects"
    ):
        load("seed-v", file.parent)
    np.savez(file, data=np.array(pickle.dumps({})))
    with pytest.raises(
        ValueError, match=r"1_123\.npz: (data: expected clips|expected the arrays data and label)"
    ):
        load("seed-v", file.parent)
    file.write_bytes(b"PK nothing")
    with pytest.raises(ValueError, match=r"1_123\.npz: expected an archive"):
        load("seed-v", file.parent)


def test_deap(written: Callable[[str], dict[str, Path]], labels: Labels) -> None:
    folder = written("deap")["raw"]
    how = Extraction(ratio=0.1, causal=True)
    corpus = load("deap", folder, extraction=how)
    with (folder / "s02.dat").open("rb") as file:
        held = pickle.load(file, encoding="latin1")
    domain = corpus["subject 2"]
    assert (len(domain), corpus.width, corpus.channels[3], corpus.bands) == (
        160,
        128,
        "F7",
        tuple(DEAP_BANDS),
    )
    assert labels(corpus, "subject 2") == (held["labels"][:, 0] >= 5).astype(int).tolist()
    # The first 3 s are filtered with the rest, then left out; rows are one second.
    de = band_differential_entropy(held["data"][6, :32], 128.0, 1.0, bands=DEAP_BANDS, causal=True)
    rows = lds_smooth(to_rows(de[:, 3:]), np.zeros(4, np.int64), ratio=0.1, causal=True)
    assert np.allclose(domain.x[domain.trial == 7], rows, atol=1e-5)
    assert corpus.metadata["target"] == "valence >= 5"
    assert "causal filter" in corpus.metadata["de"]
    fields = {"smoothing": "none"}
    liking = load("deap", folder, target="liking", threshold=3.5, subjects=[1], extraction=fields)
    assert liking.metadata["smoothing"] == "none"
    assert liking.classes == ("low liking", "high liking")
    assert liking.subjects == ("1",)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda h: h.pop("labels"), r"s02\.dat: expected a dictionary of data and labels, got \['data'\]"),
        (lambda h: h.update(labels=h["labels"] + 5), r"s02\.dat: labels: expected ratings from 1 to 9, got"),
        (
            lambda h: h.update(labels=h["labels"][:9]),
            r"s02\.dat: labels: expected shape \(40, 4\), got \(9, 4\)",
        ),
        (
            lambda h: h.update(data=h["data"][:, :20]),
            r"s02\.dat: data: expected at least 32 channels, got 20",
        ),
        (
            lambda h: h.update(data=h["data"][..., :384]),
            r"s02\.dat: trial 1: expected at least 4 s, got 3 s",
        ),
        (lambda h: h.update(more=Path("x")), r"s02\.dat: expected a pickle of plain data and arrays"),
    ],
)
def test_spoilt_deap(change: Callable[[Any], Any], said: str, copy: Callable[[str, str], Path]) -> None:
    file = copy("deap", "raw") / "s02.dat"
    with file.open("rb") as opened:
        held = pickle.load(opened, encoding="latin1")
    change(held)
    file.write_bytes(pickle.dumps(held, 2))
    with pytest.raises(ValueError, match=said):
        load("deap", file.parent, subjects=[2], extraction=PLAIN)


def test_faced(written: Callable[[str], dict[str, Path]], labels: Labels) -> None:
    folder = written("faced")["features"]
    corpus = load("faced", folder)
    with (folder / "sub001.pkl.pkl").open("rb") as file:
        held = pickle.load(file)
    domain = corpus["subject 1"]
    assert (corpus.subjects, corpus.width, len(corpus.classes)) == (("0", "1"), 150, 9)
    assert np.array_equal(domain.x[domain.trial == 20], to_rows(held[19, :30]).astype(np.float32))
    expected = [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3 + [4] * 4 + [5] * 3 + [6] * 3 + [7] * 3 + [8] * 3
    assert labels(corpus, "subject 1") == expected
    valence = load("faced", folder, target="valence")
    assert labels(valence, "subject 0") == [0] * 12 + [1] * 4 + [2] * 12
    assert valence.classes == ("negative", "neutral", "positive")


def test_faced_raw(written: Callable[[str], dict[str, Path]]) -> None:
    folder = written("faced")["raw"]
    corpus = load(
        "faced", folder, raw=True, subjects=[1], extraction=Extraction(window_s=2.0, smoothing="none")
    )
    with (folder / "sub001.pkl").open("rb") as file:
        held = pickle.load(file)
    domain = corpus["subject 1"]
    expected = to_rows(band_differential_entropy(held[27, :30], 250.0, 2.0))
    assert np.allclose(domain.x[domain.trial == 28], expected, atol=1e-5)
    assert (len(domain), corpus.metadata["window_s"]) == (56, 2.0)


def test_spoilt_faced(copy: Callable[[str, str], Path]) -> None:
    folder = copy("faced", "features")
    (folder / "sub001.pkl").write_bytes(pickle.dumps(np.zeros((28, 32, 4, 5))))
    with pytest.raises(ValueError, match=r"expected every number once, got sub001\.pkl and sub001\.pkl\.pkl"):
        load("faced", folder)
    (folder / "sub001.pkl.pkl").unlink()
    (folder / "sub001.pkl").write_bytes(pickle.dumps(np.zeros((27, 32, 4, 5))))
    with pytest.raises(
        ValueError, match=r"sub001\.pkl: the array: expected shape \(28, n, n, 5\), got \(27, 32"
    ):
        load("faced", folder)
    (folder / "sub001.pkl").write_bytes(pickle.dumps(np.zeros((28, 29, 4, 5))))
    with pytest.raises(ValueError, match=r"sub001\.pkl: expected at least 30 channels, got 29"):
        load("faced", folder)


def test_what_a_set_has_not(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"raw: expected published features, which seed-v has, got a wish for raw"
    ):
        load("seed-v", tmp_path, raw=True)
    with pytest.raises(ValueError, match="raw: expected raw EEG, which deap has, got a wish for published"):
        load("deap", tmp_path, raw=False)
    with pytest.raises(ValueError, match="extraction: expected None with published features"):
        load("seed", tmp_path, extraction=PLAIN)
    with pytest.raises(ValueError, match=r"name: expected one of 'seed', .* got 'dreamer'"):
        load("dreamer", tmp_path)
    with pytest.raises(ValueError, match=r"feature: expected one of 'de_LDS', .* got 'dasm_LDS'"):
        load("seed", tmp_path, feature="dasm_LDS")
    with pytest.raises(ValueError, match=r"target: expected one of 'valence', .* got 'joy'"):
        load("deap", tmp_path, target="joy")
    with pytest.raises(
        ValueError, match=r"ratio: expected a number with causal=True and smoothing='lds', got None"
    ):
        Extraction(causal=True)
    with pytest.raises(
        ValueError, match=r"option of seed: expected one of 'feature', 'subjects', got 'target'"
    ):
        load("seed", tmp_path, target="valence")
    with pytest.raises(ValueError, match=r"option of complexity: expected one of , got 'subjects'"):
        load("complexity", tmp_path, subjects=[1])
    with pytest.raises(ValueError, match=r"extraction: expected one of 'definition', .* got 'bands'"):
        load("deap", tmp_path, extraction={"bands": 4})
    with pytest.raises(TypeError, match=r"extraction: expected an Extraction or its fields by name, got str"):
        load("deap", tmp_path, extraction="gaussian")


@pytest.mark.parametrize(
    ("name", "kind", "missing"),
    [
        ("seed", "features", ""),
        ("seed", "raw", "bandpass"),
        ("faced", "raw", "bandpass"),
        ("seed-v", "", ""),
    ],
)
def test_without_scipy(
    name: str,
    kind: str,
    missing: str,
    written: Callable[[str], dict[str, Path]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The band-pass needs it; published features do not."""
    folders = written(name)
    for module in ("scipy", "scipy.io", "scipy.signal"):
        monkeypatch.setitem(sys.modules, module, None)
    if not missing:
        assert load(name, folders["features"], subjects=[1]).subjects == ("1",)  # also from MATLAB files
        return
    with pytest.raises(RuntimeError, match=f"{missing}: expected scipy, got none; pip install scipy"):
        load(name, folders[kind], raw=kind == "raw", subjects=[1])


@pytest.mark.parametrize("name", LAYOUTS)
def test_empty_and_missing_folders(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected (files with names like|folders 1, 2, 3)"):
        load(name, tmp_path)
    with pytest.raises(ValueError, match=r"path: expected a folder, got .*none, none"):
        load(name, tmp_path / "none")


def test_a_subject_that_is_not_there(written: Callable[[str], dict[str, Path]]) -> None:
    for name in LAYOUTS:
        folder = next(iter(written(name).values()))
        with pytest.raises(ValueError, match=r"subjects: expected some of \[.*\], got 99"):
            load(name, folder, subjects=[99])


def test_simulated_files_are_labelled_and_repeat(tmp_path: Path) -> None:
    first = simulate("seed-v", tmp_path / "a", subjects=1, seed=3)["features"]
    again = simulate("seed-v", tmp_path / "b", subjects=1, seed=3)["features"]
    other = simulate("seed-v", tmp_path / "c", subjects=1, seed=4)["features"]
    assert "SIMULATED" in (first / "SIMULATED.txt").read_text()
    assert "SIMULATED" in (tmp_path / "a" / "SIMULATED.txt").read_text()
    x = [load("seed-v", folder).domains[0].x for folder in (first, again, other)]
    assert np.array_equal(x[0], x[1])
    assert not np.array_equal(x[0], x[2])
    with pytest.raises(ValueError, match="folder: expected an empty or new folder"):
        simulate("seed-v", tmp_path / "a")
    (first / "SIMULATED.txt").unlink()
    assert load("seed-v", first).simulated  # the folder above says so as well
    (tmp_path / "a" / "SIMULATED.txt").unlink()
    assert not load("seed-v", first).simulated
