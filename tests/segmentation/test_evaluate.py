"""Scoring cases: the same scores from every layout, and faults that cost what they touch and nothing else."""

from __future__ import annotations

import math
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from oracle import measure_masks
from phantom import header, label_map, moved, write_map, write_organs, write_stack

from tenfold.segmentation import TASKS, Evaluation, Options, evaluate, find_submissions, write_nifti
from tenfold.segmentation.evaluate import Store

OARS, GTVS = TASKS["1"], TASKS["2"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("segrap")
    for i in range(2):
        target, pred = label_map(i), moved(label_map(i))
        write_organs(root / "gt" / f"c{i}", target)
        write_map(root / "gt-maps" / f"c{i}_cropped.nii.gz", target)
        write_organs(root / "organs" / f"c{i}", pred)
        write_map(root / "maps" / f"c{i}.nii.gz", pred)
        write_stack(root / "stacks" / f"c{i}.mha", pred)
    with zipfile.ZipFile(root / "archive.zip", "w") as archive:
        for path in sorted((root / "organs").rglob("*.gz")):
            archive.write(path, f"results/{path.relative_to(root / 'organs')}")
    return root


def scored(root: Path, pred: str, gt: str = "gt", task: Any = OARS, **options: Any) -> Evaluation:
    (reference,) = find_submissions(root / gt, task)
    teams = find_submissions(root / pred, task, "us")
    return evaluate(teams, reference, task, Options(**options), workers=1)


@pytest.fixture(scope="module")
def plain(data: Path) -> Evaluation:
    return scored(data, "organs", edge=True)


@pytest.mark.parametrize("pred", ["organs", "maps", "stacks", "archive.zip"])
@pytest.mark.parametrize("gt", ["gt", "gt-maps"])
def test_every_layout_gives_the_same_rows(data: Path, plain: Evaluation, pred: str, gt: str) -> None:
    found = scored(data, pred, gt, edge=True)
    assert found.rows == plain.rows
    assert not found.flagged
    assert len(found.files) == len({str(p) for f in found.jobs for p in _places(f.target) + _places(f.pred)})


def _places(files: Any) -> list[Any]:
    return [files.volume] if files.volume else list(files.organs.values())


def test_rows_hold_what_the_oracle_finds(plain: Evaluation) -> None:
    target, pred = label_map(0), moved(label_map(0))
    checked = 0
    for row in plain.rows[:45]:
        a, b = (np.isin(v, OARS.parts[row["organ"]]) for v in (target, pred))
        assert row["dsc"] == (2 * (a & b).sum() / (a.sum() + b.sum()) if a.any() else 1.0)
        assert row["ml_target"] == pytest.approx(a.sum() * 3.0 * 0.54**2 / 1000)
        if a.any():
            oracle = measure_masks(a, b, header().spacing, OARS.tolerance_of(row["organ"]), edge=True)
            assert {name: row[name] for name in oracle} == pytest.approx(oracle, abs=1e-12)
            checked += 1
    assert checked > 40


def test_empty_masks(tmp_path: Path) -> None:
    full, empty = np.ones((3, 4, 5), np.uint8), np.zeros((3, 4, 5), np.uint8)
    two = 2 * full
    for name, gt, pred in (
        ("both", empty, empty),
        ("gt", full, empty),
        ("pred", empty, full),
        ("other", two, full),
    ):
        write_map(tmp_path / "gt" / f"{name}.nii.gz", gt)
        write_map(tmp_path / "pred" / f"{name}.nii.gz", pred)
    rows = {(r["case"], r["organ"]): r for r in scored(tmp_path, "pred", task=GTVS).rows}
    both, one, none = rows["both", "GTVp"], rows["gt", "GTVp"], rows["pred", "GTVp"]
    assert (both["dsc"], both["nsd_dm"], both["hd95_dm"], both["flags"]) == (1, 1, 0, "empty_target_pred")
    assert (one["dsc"], one["nsd_dm"], one["hd95_dm"], one["flags"]) == (0, 0, math.inf, "empty_pred")
    assert (none["dsc"], none["nsd_dm"], none["rvd"], none["flags"]) == (0, 0, math.inf, "empty_target")
    far = {r["case"]: r for r in scored(tmp_path, "pred", task=GTVS, empty_distance="diagonal").rows}
    assert far["gt"]["hd_dm"] in (0.0, pytest.approx(np.linalg.norm((9, 4 * 0.54, 5 * 0.54))))


def test_a_missing_mask_and_a_missing_case_are_zero(data: Path, plain: Evaluation, tmp_path: Path) -> None:
    shutil.copytree(data / "organs" / "c0", tmp_path / "pred" / "c0")
    (tmp_path / "pred" / "c0" / "Eye_L.nii.gz").unlink()
    shutil.copytree(data / "gt", tmp_path / "gt")
    found = scored(tmp_path, "pred")
    assert found.faults == [
        "us: c0, Eye_L: no prediction; scored 0 and 0",
        "us: c1: no prediction; scored 0 and 0",
    ]
    eye = next(r for r in found.rows if r["organ"] == "Eye_L")
    assert (eye["dsc"], eye["nsd_dm"], eye["flags"]) == (0, 0, "missing")
    assert all(r["dsc"] == 0 and r["flags"] == "missing" for r in found.rows if r["case"] == "c1")
    rest = [(r["organ"], r["dsc"]) for r in found.rows[:45] if r["organ"] != "Eye_L"]
    assert rest == [(r["organ"], r["dsc"]) for r in plain.rows[:45] if r["organ"] != "Eye_L"]


def _break(path: Path, how: str) -> None:
    volume = (moved(label_map(0)) > 0).astype(np.float32)
    head = header()
    if how == "truncated":
        path.write_bytes(path.read_bytes()[:60])
    elif how == "shape":
        write_nifti(path, volume[:-1].astype(np.uint8), header((13, 30, 32)))
    elif how == "spacing":
        write_nifti(path, volume.astype(np.uint8), header(spacing=(3.0, 0.54, 0.6)))
    elif how == "nan":
        volume[3, 4, 5] = np.nan
        write_nifti(path, volume, head)
    elif how == "fractions":
        write_nifti(path, volume * 0.5, head)
    elif how == "negative":
        write_nifti(path, -volume.astype(np.int16), head)
    elif how == "no permission":
        path.unlink()
        path.mkdir()
    else:
        path.write_text("not a volume")


FAULTS = {
    "truncated": "cut off", "shape": r"expected shape \(14, 30, 32\)", "spacing": "expected spacing",
    "nan": "finite values, got nan", "fractions": "whole numbers, got 0.5", "negative": "values >= 0, got -1",
    "text": "compressed",
}  # fmt: skip


@pytest.mark.parametrize("how", FAULTS)
@pytest.mark.parametrize("keep_going", [False, True])
def test_a_fault_is_named_and_costs_only_its_structure(
    data: Path, plain: Evaluation, tmp_path: Path, how: str, keep_going: bool
) -> None:
    import re

    shutil.copytree(data / "organs", tmp_path / "pred")
    shutil.copytree(data / "gt", tmp_path / "gt")
    _break(tmp_path / "pred" / "c0" / "Parotid_L.nii.gz", how)
    found = scored(tmp_path, "pred", keep_going=keep_going)
    (fault,) = found.faults
    end = "scored 0 and 0" if keep_going else "not scored"
    assert re.fullmatch(rf"us: c0, Parotid_L: .*{FAULTS[how]}.*; {end}", fault), fault
    row = next(r for r in found.rows if r["case"] == "c0" and r["organ"] == "Parotid_L")
    assert row["flags"].split()[0] == "failed"
    assert row.get("dsc") == (0 if keep_going else None)
    others = {(r["case"], r["organ"]): r["dsc"] for r in plain.rows}
    assert all(others[r["case"], r["organ"]] == r["dsc"] for r in found.rows if r is not row)


@pytest.mark.parametrize("side", ["gt-maps", "maps"])
def test_an_unknown_label_in_a_map(data: Path, tmp_path: Path, side: str) -> None:
    for name in ("gt-maps", "maps"):
        shutil.copytree(data / name, tmp_path / name)
    bad = label_map(0)
    bad[0, 0, 0] = 55
    path = next((tmp_path / side).glob("c0*"))
    write_map(path, bad)
    found = scored(tmp_path, "maps", "gt-maps")
    (fault,) = found.faults
    assert fault.startswith("us: c0, all 45 structures: ")
    assert "expected labels up to 54, got 55 (1 voxel beyond)" in fault
    assert path.name in found.faults[0]
    assert all("dsc" in r for r in found.rows if r["case"] == "c1")


def test_a_stack_with_too_few_channels(data: Path, tmp_path: Path) -> None:
    shutil.copytree(data / "gt", tmp_path / "gt")
    write_stack(tmp_path / "pred" / "c0.mha", (label_map(0) > 0).astype(np.uint8), GTVS)
    found = scored(tmp_path, "pred")
    assert "expected 45 channels, got 2" in found.faults[0]


def test_a_missing_reference_is_not_scored(data: Path, tmp_path: Path) -> None:
    shutil.copytree(data / "organs" / "c0", tmp_path / "pred" / "c0")
    shutil.copytree(data / "gt" / "c0", tmp_path / "gt" / "c0")
    (tmp_path / "gt" / "c0" / "Lens_R.nii.gz").unlink()
    found = scored(tmp_path, "pred", keep_going=True)
    assert found.faults == ["us: c0, Lens_R: no reference; not scored"]


def test_another_origin_is_noted_and_scored(data: Path, plain: Evaluation, tmp_path: Path) -> None:
    shutil.copytree(data / "gt-maps", tmp_path / "gt")
    head = header()
    rows = [list(row) for row in head.affine]
    rows[0][3] = 0.0
    for i in range(2):
        path = tmp_path / "pred" / f"c{i}.nii.gz"
        write_nifti(path, moved(label_map(i)), replace(head, affine=tuple(map(tuple, rows))))
    found = scored(tmp_path, "pred")
    assert not found.flagged
    assert (
        found.notes[0] == "us: c0: origin (0, 5.5, -100) instead of (-8, 5.5, -100); compared voxel by voxel"
    )
    assert [r["dsc"] for r in found.rows] == [r["dsc"] for r in plain.rows]
    assert all("geometry" in r["flags"] for r in found.rows)


@pytest.mark.parametrize("kind", ["maps", "organs"])
def test_flipped_axes_are_turned_back_on_request(
    data: Path, plain: Evaluation, tmp_path: Path, kind: str
) -> None:
    shutil.copytree(data / "gt", tmp_path / "gt")
    head = header()
    matrix = head.matrix @ np.array([[-1, 0, 0, 31], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    turned = replace(head, affine=tuple(tuple(map(float, row)) for row in matrix))
    for i in range(2):
        volume = np.ascontiguousarray(moved(label_map(i))[..., ::-1])
        if kind == "maps":
            (tmp_path / "pred").mkdir(exist_ok=True)
            write_nifti(tmp_path / "pred" / f"c{i}.nii.gz", volume, turned)
        else:
            write_organs(tmp_path / "pred" / f"c{i}", volume, head=turned)
    wrong = scored(tmp_path, "pred")
    assert "axes in another direction" in wrong.notes[0]
    found = scored(tmp_path, "pred", reorient=True)
    assert [r["dsc"] for r in found.rows] == [r["dsc"] for r in plain.rows]
    assert not found.notes


@pytest.mark.parametrize("layout", ["maps", "organs"])
def test_exchanged_sides_are_flagged(tmp_path: Path, layout: str) -> None:
    from tenfold.segmentation import swap_labels

    volume = label_map(3)
    table = np.arange(55)
    for label, other in swap_labels().items():
        table[label] = other
    swapped = table[volume].astype(np.uint8)
    if layout == "maps":
        write_map(tmp_path / "gt" / "c.nii.gz", volume)
        write_map(tmp_path / "pred" / "c.nii.gz", swapped)
    else:
        write_organs(tmp_path / "gt" / "c", volume)
        write_organs(tmp_path / "pred" / "c", swapped)
    rows = {r["organ"]: r for r in scored(tmp_path, "pred").rows}
    for organ, row in rows.items():
        sided = OARS.partner(organ) is not None and row["ml_target"] > 0 and row["ml_pred"] > 0
        assert ("swapped" in row["flags"]) == sided, organ
    assert rows["Brain"]["dsc"] == 1


def test_finished_cases_are_taken_from_the_store_unless_their_files_change(
    data: Path, tmp_path: Path
) -> None:
    shutil.copytree(data / "organs", tmp_path / "pred")
    kept: dict[str, Any] = {}
    (reference,) = find_submissions(data / "gt", OARS)
    counts = []

    def go() -> Evaluation:
        counts.clear()
        store = Store(kept.get, kept.__setitem__)
        teams = find_submissions(tmp_path / "pred", OARS, "us")
        return evaluate(teams, reference, OARS, Options(), workers=1, store=store, advance=counts.append)

    first = go()
    assert len(counts) == 2
    assert go().rows == first.rows
    assert counts == []
    (tmp_path / "pred" / "c1" / "Brain.nii.gz").unlink()
    assert len(go().faults) == 1
    assert len(counts) == 1


@pytest.mark.slow
def test_two_processes_give_the_same(data: Path, plain: Evaluation) -> None:
    (reference,) = find_submissions(data / "gt", OARS)
    teams = find_submissions(data / "organs", OARS, "us")
    found = evaluate(teams, reference, OARS, Options(edge=True), workers=2)
    assert found.rows == plain.rows


@pytest.mark.slow
def test_a_cluster_gives_the_same(data: Path, plain: Evaluation) -> None:
    distributed = pytest.importorskip("distributed")
    (reference,) = find_submissions(data / "gt", OARS)
    teams = find_submissions(data / "organs", OARS, "us")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        found = evaluate(teams, reference, OARS, Options(edge=True), cluster=cluster.scheduler_address)
    assert found.rows == plain.rows


def test_no_cluster_there(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed")
    from tenfold.runs import executor

    monkeypatch.setattr(executor, "CONNECT", 0.5)
    with pytest.raises(RuntimeError, match="cluster: expected a dask scheduler at"):
        list(executor.run_jobs(len, ["a"], cluster="tcp://127.0.0.1:9"))


def test_the_same_team_twice(data: Path) -> None:
    (reference,) = find_submissions(data / "gt", OARS)
    teams = find_submissions(data / "organs", OARS, "us") * 2
    with pytest.raises(ValueError, match="teams: expected different names, got us, us"):
        evaluate(teams, reference, OARS, Options())


def test_the_challenges_table_by_hand() -> None:
    from tenfold.segmentation.tables import challenge_rows

    def row(case: str, organ: str, dsc: float, nsd: float, flags: str = "") -> dict[str, Any]:
        return {"team": "us", "case": case, "organ": organ, "dsc": dsc, "nsd_dm": nsd, "flags": flags}

    rows = [
        row("c2", "GTVp", 0.87654321, 1.0), row("c2", "GTVnd", 1.0, 1.0, "empty_target_pred"),
        row("c1", "GTVp", 0.5, 2 / 3), row("c1", "GTVnd", 0.0, 0.0, "empty_target"),
    ]  # fmt: skip
    found = challenge_rows(Evaluation(GTVS, Options(), ["us"], rows, [], []), "us")
    assert found == [  # by name; a column that the rule for empty masks alone fills holds whole numbers
        {"Name": "c1", "GTVp_DSC": "0.5", "GTVnd_DSC": "0", "GTVp_NSD": "0.6667", "GTVnd_NSD": "0"},
        {"Name": "c2", "GTVp_DSC": "0.8765", "GTVnd_DSC": "1", "GTVp_NSD": "1.0", "GTVnd_NSD": "1"},
    ]
