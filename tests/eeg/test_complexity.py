from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from tenfold.eeg import folds
from tenfold.eeg.layouts import load

HEADER = "Channel,SFD,AttEn,SVDEn,Hjorth,Participant,Condition,Dataset"
INSIDE = "studies/complexity_eeg/data_complexity.csv"


def table() -> list[str]:
    """Site s, person p, condition c (0 closed), channel k, measure m: 1000 s + 100 p + 10 c + k + m / 10."""
    lines = [HEADER]
    for s, (site, channels) in enumerate(
        [("Lemon", ["Cz", "CPz", "Oz"]), ("Wang (2022)", ["O1", "Cpz", "Cz"])]
    ):
        for p in range(3):
            for c, condition in enumerate(["Eyes-Closed", "Eyes-Open"][: 1 if p == 2 else 2]):
                for k, channel in enumerate(channels):
                    measures = [str(1000 * s + 100 * p + 10 * c + k + m / 10) for m in range(4)]
                    lines.append(",".join([channel, *measures, f"sub-{p}", condition, site]))
    lines.append("Cz,1,2,3,4,sub-9,Eyes-Closed,SRM")  # a data set of one condition
    return lines


def write(folder: Path, lines: list[str]) -> Path:
    path = folder / INSIDE
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path


def test_two_sites(tmp_path: Path) -> None:
    path = write(tmp_path / "neurokit2-0.2.13", table())
    corpus = load("complexity", path)
    assert (corpus.subjects, corpus.channels, corpus.bands) == (
        ("Lemon", "Wang (2022)"), ("CZ", "CPZ"), ("SFD", "AttEn", "SVDEn", "Hjorth"),
    )  # fmt: skip
    lemon, wang = corpus.domains
    assert lemon.y is not None
    assert lemon.y.tolist() == [0, 1, 0, 1, 0]
    assert lemon.trial.tolist() == [0, 0, 1, 1, 2]
    measures = np.arange(4) / 10
    assert np.allclose(lemon.x[1], [*(10 + measures), *(11 + measures)])
    assert np.allclose(wang.x[2], [*(1102 + measures), *(1101 + measures)])  # Cz is its third channel
    assert [fold.target.name for fold in folds(corpus)] == ["Lemon", "Wang (2022)"]


def test_from_the_folder_and_from_the_archive(tmp_path: Path) -> None:
    path = write(tmp_path / "neurokit2-0.2.13", table())
    archive = tmp_path / "neurokit2-0.2.13.tar.gz"
    with tarfile.open(archive, "w:gz") as opened:
        member = tarfile.TarInfo(f"neurokit2-0.2.13/{INSIDE}")
        member.size = path.stat().st_size
        opened.addfile(member, io.BytesIO(path.read_bytes()))
    expected = load("complexity", path)
    for source in (tmp_path / "neurokit2-0.2.13", archive):
        found = load("complexity", source)
        assert all(np.array_equal(a.x, b.x) for a, b in zip(found.domains, expected.domains, strict=True))
    with tarfile.open(archive, "w:gz"):
        pass
    with pytest.raises(ValueError, match=r"tar\.gz: expected an archive with studies/complexity_eeg"):
        load("complexity", archive)


def test_spoilt_files(tmp_path: Path) -> None:
    lines = table()
    with pytest.raises(
        ValueError, match=r"path: expected an archive, a folder or a file with data_complexity.csv"
    ):
        load("complexity", tmp_path)
    with pytest.raises(ValueError, match=r"csv: expected the columns \['AttEn', 'Channel'"):
        load("complexity", write(tmp_path, [lines[0].replace("SFD", "X"), *lines[1:]]))
    with pytest.raises(ValueError, match=r"csv, line 3: expected a channel once per recording, got CZ"):
        load("complexity", write(tmp_path, [*lines[:2], lines[1], *lines[2:]]))
    with pytest.raises(ValueError, match=r"csv, line 2: expected numbers, got could not convert"):
        load("complexity", write(tmp_path, [lines[0], lines[1].replace("0.1", "many"), *lines[2:]]))
    with pytest.raises(
        ValueError, match=r"csv: expected recordings of both conditions at Wang \(2022\), got 3"
    ):
        load("complexity", write(tmp_path, [line for line in lines if not line.endswith("Open,Wang (2022)")]))
