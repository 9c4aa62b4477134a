"""Label tables: unions of parts, their inverse, sides, names."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tenfold.segmentation import TASKS, load_task, merge, swap_labels, unmerge
from tenfold.segmentation.labels import owners

OARS = TASKS["1"]


def test_the_table_of_the_challenge() -> None:
    assert len(OARS.organs) == len(set(OARS.csv_order)) == 45
    assert sorted(OARS.organs) == sorted(OARS.csv_order)
    assert {label for parts in OARS.parts.values() for label in parts} == set(range(1, 55))
    assert OARS.parts["MiddleEar_R"] == (19, 17, 21, 25, 29, 31)
    assert OARS.organs[0] == "Brain"
    assert OARS.organs[3:7] == ("TemporalLobe_L", "TemporalLobe_R", "Hippocampus_L", "Hippocampus_R")
    assert OARS.organs[-1] == "Trachea"
    assert [OARS.tolerance_of(o) for o in ("Larynx", "OralCavity", "Eye_L")] == [2.0, 3.0, 1.0]


def test_every_part_has_owners_of_its_own() -> None:
    assert len(set(owners(OARS).tolist())) == 55


@pytest.mark.parametrize("seed", range(5))
def test_merging_can_be_undone(seed: int) -> None:
    rng = np.random.default_rng(seed)
    volume = rng.integers(0, 55, rng.integers(1, 20, 3)).astype(np.uint8)
    masks = merge(volume)
    assert masks.shape == (45, *volume.shape)
    np.testing.assert_array_equal(unmerge(masks), volume)
    np.testing.assert_array_equal(masks[0], np.isin(volume, range(1, 10)))


def test_structures_that_do_not_fit_are_named_with_their_voxels() -> None:
    volume = np.zeros((2, 3, 4), np.uint8)
    masks = merge(volume)
    masks[1, 0, 0, :3] = True  # brain stem without brain
    with pytest.raises(ValueError, match=r"masks: expected .* got BrainStem in 3 voxels"):
        unmerge(masks)
    with pytest.raises(ValueError, match=r"masks: expected 45 channels in front, got shape \(2, 3, 4\)"):
        unmerge(volume)


@pytest.mark.parametrize(("value", "said"), [(55, "labels up to 54, got 55"), (-1, "labels >= 0, got -1")])
def test_unknown_labels(value: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        merge(np.array([[[0, value]]], np.int16))


def test_sides() -> None:
    swap = swap_labels()
    assert all(swap[swap[label]] == label for label in swap)
    assert [swap[label] for label in (4, 6, 8, 10, 12, 30, 32, 36, 44)] == [5, 7, 9, 11, 13, 31, 33, 37, 45]
    assert not {1, 2, 3, 34, 35, 46, 54} & set(swap)
    assert OARS.partner("Eye_L") == "Eye_R"
    assert OARS.partner("Larynx_Glottic") is None


def test_names_of_any_case_and_of_2025() -> None:
    assert OARS.find("Brainstem") == "BrainStem"
    assert TASKS["2"].find("GTVnx") == "GTVp"
    assert OARS.find("liver") is None


def test_label_tables(tmp_path: Path) -> None:
    csv = tmp_path / "brain.csv"
    csv.write_text("id,label,hemisphere\n1,cuneus,L\n2,cuneus,R\n9,stem,B\n")
    task = load_task(str(csv), tolerance=2.5)
    assert dict(task.parts) == {"cuneus_L": (1,), "cuneus_R": (2,), "stem": (9,)}
    assert task.tolerance_of("stem") == 2.5
    assert task.partner("cuneus_L") == "cuneus_R"
    other = tmp_path / "ct.json"
    other.write_text(json.dumps({"background": 0, "liver": 5, "lung": [1, 2]}))
    assert dict(load_task(str(other)).parts) == {"liver": (5,), "lung": (1, 2)}


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.csv", "number,name\n1,x\n", "expected columns id and label"),
        ("a.csv", "id,label\n1,x\n2,x\n", "expected every structure once, got 'x' again"),
        ("a.csv", "id,label\n0,x\n", r"expected labels >= 1, got \[0\]"),
        ("a.json", "[1]", "expected an object of name to label"),
        ("a.json", '{"x": 1.5}', "expected whole numbers"),
    ],
)
def test_broken_tables(tmp_path: Path, name: str, text: str, said: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=said):
        load_task(str(tmp_path / name))


def test_no_such_task() -> None:
    with pytest.raises(ValueError, match="task: expected 1, 2 or a file with a label table, got '3'"):
        load_task("3")
