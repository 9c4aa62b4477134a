"""Finding cases: folders, archives, teams, names."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from tenfold.segmentation import TASKS, Submission, find_submissions
from tenfold.segmentation.layouts import match_cases

OARS, GTVS = TASKS["1"], TASKS["2"]


def touch(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return root


def only(found: list[Submission]) -> Submission:
    (one,) = found
    return one


def test_a_folder_of_masks(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "c1/Brain.nii.gz",
        "c1/Eye_L.nii.gz",
        "c2/Brain.nii.gz",
        "c1/image.nii.gz",
        ".x/Brain.nii.gz",
    )
    found = only(find_submissions(tmp_path, OARS))
    assert {case: sorted(files.organs) for case, files in found.cases.items()} == {
        "c1": ["Brain", "Eye_L"], "c2": ["Brain"],
    }  # fmt: skip
    assert found.team == tmp_path.name
    assert found.notes == [
        "c1: image.nii.gz is no structure of SegRap2023 task 1: 45 organs at risk; left out"
    ]


def test_a_single_case_keeps_its_folder(tmp_path: Path) -> None:
    touch(tmp_path, "c1/Brain.nii.gz")
    assert list(only(find_submissions(tmp_path, OARS)).cases) == ["c1"]


def test_maps_and_stacks(tmp_path: Path) -> None:
    touch(tmp_path, "c1_cropped.nii.gz", "c2.nii", "c3.mha", "readme.txt")
    found = only(find_submissions(tmp_path, OARS))
    assert sorted(found.cases) == ["c1", "c2", "c3"]
    assert all(files.volume for files in found.cases.values())


def test_teams(tmp_path: Path) -> None:
    touch(tmp_path, "beta/c1/GTVp.nii.gz", "beta/c1/GTVnd.nii.gz", "alpha/c1.mha", "alpha/c2.mha")
    found = find_submissions(tmp_path, GTVS)
    assert [(s.team, sorted(s.cases)) for s in found] == [("alpha", ["c1", "c2"]), ("beta", ["c1"])]


def test_an_archive_with_folders_above(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "ours.zip", "w") as archive:
        for name in ("out/final/c1/Brain.nii.gz", "out/final/c2/Brain.nii.gz", "__MACOSX/out/._Brain.nii.gz"):
            archive.writestr(name, b"")
    found = only(find_submissions(tmp_path / "ours.zip", OARS))
    assert found.team == "ours"
    assert sorted(found.cases) == ["c1", "c2"]
    assert found.cases["c1"].organs["Brain"].member == "out/final/c1/Brain.nii.gz"


def test_names_in_an_archive_that_nobody_reads(tmp_path: Path) -> None:
    names = (
        "c1/Brain.nii.gz",
        "__MACOSX/._a\\b",
        "__MACOSX\\c1\\Brain.nii.gz",
        "notes\\x.txt",
        "/y.txt",
        "../z.txt",
    )
    with zipfile.ZipFile(tmp_path / "ours.zip", "w") as archive:
        for name in names:
            archive.writestr(name, b"")
    assert list(only(find_submissions(tmp_path / "ours.zip", OARS)).cases) == ["c1"]


def test_names_of_another_case_and_of_2025(tmp_path: Path) -> None:
    touch(tmp_path, "c1/gtvnx.nii.gz", "c1/GTVnd.nii.gz")
    found = only(find_submissions(tmp_path, GTVS, "us"))
    assert sorted(found.cases["c1"].organs) == ["GTVnd", "GTVp"]
    assert found.notes == ["c1: gtvnx.nii.gz is taken for GTVp"]
    assert found.team == "us"


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["c1/Brain.nii.gz", "C1/Brain.nii.gz"], "expected each case once, got 'C1' and 'c1'"),
        (["c1/Brain.nii.gz", "c1/brain.nii.gz"], "expected one file for Brain of case 'c1'"),
        (["c1.nii.gz", "c1.mha"], "expected one volume of case 'c1'"),
        (["c1.nii.gz", "c1_cropped.nii.gz"], "expected one volume of case 'c1'"),
        (["notes.txt"], r"expected volumes \(\.nii\.gz, \.nii, \.mha, \.mhd\), got none"),
        (["c1.nii.gz", "team/c1.nii.gz"], "expected cases, or a folder for each team, got both"),
    ],
)
def test_what_is_ambiguous_or_empty(tmp_path: Path, names: list[str], said: str) -> None:
    touch(tmp_path, *names)
    with pytest.raises(ValueError, match=said):
        find_submissions(tmp_path, OARS)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="expected a folder or a zip archive, got nothing"):
        find_submissions(tmp_path / "x", OARS)
    (tmp_path / "x").write_text("no archive")
    with pytest.raises(ValueError, match="expected a folder or a zip archive, got another file"):
        find_submissions(tmp_path / "x", OARS)


def test_matching_cases(tmp_path: Path) -> None:
    touch(tmp_path, "gt/c1.nii.gz", "gt/c2.nii.gz", "pred/C1.nii.gz", "pred/c9.nii.gz")
    reference, other = (only(find_submissions(tmp_path / name, OARS)) for name in ("gt", "pred"))
    matched, notes = match_cases(reference, other)
    assert matched["c2"] is None
    assert matched["c1"] is not None
    assert notes == ["c1: found under the name C1", "c9: no such case among the references; left out"]
