"""SEED and SEED-IV are written (SIMULATED) and read back; then their files are spoilt one by one."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io as scipy_io

from tenfold.eeg import Corpus, folds
from tenfold.eeg.features import band_differential_entropy, to_rows
from tenfold.eeg.layouts import Extraction, load
from tenfold.eeg.layouts.seed import SEED_IV_LABELS

PLAIN = Extraction(smoothing="none")
Labels = Callable[[Corpus, str], list[int]]


def rewrite_mat(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    held = {k: v for k, v in scipy_io.loadmat(path).items() if not k.startswith("__")}
    change(held)
    scipy_io.savemat(path, held)


def test_seed_features(written: Callable[[str], dict[str, Path]], labels: Labels) -> None:
    folder = written("seed")["features"]
    corpus = load("seed", folder)
    assert [d.name for d in corpus.domains] == [
        f"subject {s}, session {d}" for d in (1, 2, 3) for s in (1, 2)
    ]
    assert (len(corpus.channels), len(corpus.bands), corpus.width, len(corpus.classes)) == (62, 5, 310, 3)
    assert corpus.simulated
    assert corpus.metadata["smoothing"] == "lds (as published), offline"
    held = scipy_io.loadmat(folder / "2_20131112.mat")  # the second date
    domain = corpus["subject 2, session 2"]
    for k in (1, 9, 15):
        rows = domain.x[domain.trial == k].numpy()
        assert np.array_equal(rows, to_rows(held[f"de_LDS{k}"]).astype(np.float32))
        assert rows[2, 57 * 5 + 3] == np.float32(held[f"de_LDS{k}"][57, 2, 3])
    assert labels(corpus, "subject 2, session 2") == [2, 1, 0, 0, 1, 2, 0, 1, 2, 2, 1, 0, 1, 2, 0]
    other = load("seed", folder, feature="de_movingAve", subjects=[2])
    assert other.subjects == ("2",)
    moved = domain.x - other["subject 2, session 2"].x
    assert np.allclose(moved, 0.01, atol=1e-5)


def test_seed_in_three_folders_is_the_same(copy: Callable[[str, str], Path]) -> None:
    folder = copy("seed", "features")
    flat = load("seed", folder)
    for file in folder.glob("[0-9]*.mat"):
        place = folder / str(int(file.stem.split("_")[1][4:6]) - 9)  # the months are 10, 11, 12
        place.mkdir(exist_ok=True)
        file.rename(place / file.name)
    foldered = load("seed", folder)
    assert [d.name for d in foldered.domains] == [d.name for d in flat.domains]
    assert all(np.array_equal(a.x, b.x) for a, b in zip(flat.domains, foldered.domains, strict=True))


def test_subjects_are_sorted_by_number_and_sessions_by_date(copy: Callable[[str, str], Path]) -> None:
    """Subject 10 comes after 2; dates decide, whatever the order of names."""
    folder = copy("seed", "features")
    for file in list(folder.glob("1_*.mat")):
        file.rename(folder / file.name.replace("1_", "10_", 1))
    rewrite_mat(folder / "2_20131212.mat", lambda held: held.update(de_LDS1=np.full((62, 4, 5), 7.0)))
    (folder / "2_20131212.mat").rename(folder / "2_20120101.mat")
    corpus = load("seed", folder)
    assert [d.subject for d in corpus.domains[:2]] == ["2", "10"]
    assert float(corpus["subject 2, session 1"].x[:4].mean()) == 7.0
    found = folds(corpus, "cross-session")
    assert len(found) == 6
    assert [d.session for d in found[0].sources] == [2, 3]


def test_seed_raw(written: Callable[[str], dict[str, Path]], labels: Labels) -> None:
    folder = written("seed")["raw"]
    corpus = load("seed", folder, raw=True, subjects=[1], extraction=PLAIN)
    held = scipy_io.loadmat(folder / "1_20131011.mat")
    domain = corpus["subject 1, session 1"]
    expected = to_rows(band_differential_entropy(held["sim_eeg12"], 200.0, 1.0))
    assert np.allclose(domain.x[domain.trial == 12], expected, atol=1e-5)
    assert labels(corpus, "subject 1, session 1")[:4] == [2, 1, 0, 0]
    assert corpus.metadata["smoothing"] == "none"
    assert corpus.metadata["de"].startswith("gaussian, bits, offline filter, bands delta 1-4 Hz")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda h: h.pop("de_LDS7"),
            r"1_20131111\.mat: expected arrays de_LDS1 to de_LDS15, got none of number 7",
        ),
        (
            lambda h: h.update(de_LDS3=np.zeros((61, 4, 5))),
            r"mat: de_LDS3: expected shape \(62, n, 5\), got \(61, 4",
        ),
        (lambda h: h.update(de_LDS3=np.full((62, 4, 5), np.nan)), r"mat: de_LDS3: expected finite numbers"),
        (lambda h: h.update(de_LDS3="text"), r"mat: de_LDS3: expected an array of numbers"),
        (
            lambda h: h.update(de_LDS03=h["de_LDS3"]),
            r"mat: expected every number once, got de_LDS03 and de_LDS3",
        ),
    ],
)
def test_spoilt_arrays(change: Callable[[Any], Any], said: str, copy: Callable[[str, str], Path]) -> None:
    folder = copy("seed", "features")
    rewrite_mat(folder / "1_20131111.mat", change)
    with pytest.raises(ValueError, match=said):
        load("seed", folder)


def test_spoilt_folders(copy: Callable[[str, str], Path]) -> None:
    folder = copy("seed", "features")
    extra = folder / "1_20131011 (1).mat"
    extra.write_bytes(b"")
    with pytest.raises(ValueError, match=r"\(1\)\.mat: expected a name like 1_20131027\.mat, got 1_2013"):
        load("seed", folder)
    extra.unlink()
    kept = (folder / "1_20131111.mat").read_bytes()
    for content in (
        b"MATLAB 7.3 MAT-file, Platform: GLNXA64" + bytes(86) + b"\x00\x02IM" + bytes(64),
        b"",
        kept[:999],
    ):
        (folder / "1_20131111.mat").write_bytes(content)
        with pytest.raises(
            ValueError, match=r"1_20131111\.mat: expected a(rrays de_LDS1| MATLAB file| whole MATLAB file)"
        ):
            load("seed", folder)
    (folder / "1_20131111.mat").unlink()
    with pytest.raises(ValueError, match=r"expected 3 files of each subject .*, got 2 of subject 1"):
        load("seed", folder)
    scipy_io.savemat(folder / "label.mat", {"label": np.ones((1, 15))})
    with pytest.raises(ValueError, match=r"label\.mat: label: expected \[1, 0, -1, .*, got \[1\.0, 1\.0"):
        load("seed", folder)
    scipy_io.savemat(folder / "label.mat", {"other": np.ones((1, 15))})
    with pytest.raises(ValueError, match=r"label\.mat: expected an array label, got none of that name"):
        load("seed", folder)


def test_seed_iv(written: Callable[[str], dict[str, Path]], labels: Labels) -> None:
    corpus = load("seed-iv", written("seed-iv")["features"])
    assert corpus.sessions == (1, 2, 3)
    for session in (1, 2, 3):
        found = labels(corpus, f"subject 1, session {session}")
        assert tuple(found) == SEED_IV_LABELS[session - 1]
        assert np.bincount(found).tolist() == [6, 6, 6, 6]
    assert labels(corpus, "subject 1, session 2")[:6] == [2, 1, 3, 0, 0, 2]
    assert len(corpus.domains[0]) == 24 * 2
    assert corpus.metadata["window_s"] == 4.0


def test_seed_iv_raw(written: Callable[[str], dict[str, Path]]) -> None:
    folder = written("seed-iv")["raw"]
    how = Extraction("spectral-shifted", smoothing="moving-average", window=3)
    corpus = load("seed-iv", folder, raw=True, extraction=how)
    held = scipy_io.loadmat(next((folder / "3").glob("*.mat")))
    domain = corpus["subject 1, session 3"]
    assert len(domain) == 24 * 2
    de = to_rows(band_differential_entropy(held["sim_eeg10"], 200.0, 4.0, definition="spectral-shifted"))
    assert np.allclose(domain.x[domain.trial == 10], de.mean(axis=0), atol=1e-5)
    assert corpus.metadata["smoothing"] == "moving-average (3 rows), offline"


def test_seed_iv_needs_its_folders(copy: Callable[[str, str], Path]) -> None:
    folder = copy("seed-iv", "features")
    first = next((folder / "1").glob("*.mat"))
    shutil.copy(first, folder / "1" / "1_20140101.mat")
    with pytest.raises(
        ValueError, match=r"copy/1: expected one file of each subject in a session, got 1_2013"
    ):
        load("seed-iv", folder)
    with pytest.raises(ValueError, match=r"copy/1: expected folders 1, 2, 3 \(the sessions\), got none"):
        load("seed-iv", folder / "1")
