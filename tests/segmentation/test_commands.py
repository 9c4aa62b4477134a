"""`tenfold segrap ...` and `tenfold run segrap` on small phantoms: layouts, faults, every command."""

from __future__ import annotations

import csv
import json
import shutil
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from phantom import header, label_map, moved, write_map, write_organs, write_stack

from tenfold import cli
from tenfold.segmentation import TASKS, write_nifti
from tenfold.segmentation.files import read_header, read_labels, read_masks

OARS, GTVS = TASKS["1"], TASKS["2"]
Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Run `tenfold ARGUMENTS` in an empty folder: (exit code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)

    def called(*arguments: object) -> tuple[int, str, str]:
        code = cli.main([str(a) for a in arguments])
        return code, *capsys.readouterr()

    return called


@pytest.fixture(scope="module")
def tumours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three cases of task 2: gt, and predictions as organs, maps, stacks, archive and teams."""
    root = tmp_path_factory.mktemp("tumours")
    for i in range(3):
        target, pred = label_map(i, parts=2), moved(label_map(i, parts=2), 1, -1)
        write_organs(root / "gt" / f"c{i}", target, GTVS)
        write_organs(root / "organs" / f"c{i}", pred, GTVS)
        write_map(root / "maps" / f"c{i}.nii.gz", pred)
        write_stack(root / "stacks" / f"c{i}.mha", pred, GTVS)
        write_map(root / "teams" / "alpha" / f"c{i}.nii.gz", pred)
        write_map(root / "teams" / "beta" / f"c{i}.nii.gz", moved(label_map(i, parts=2), 3, 0))
        write_map(root / "teams" / "gamma" / f"c{i}.nii.gz", target)
    with zipfile.ZipFile(root / "archive.zip", "w") as archive:
        for path in sorted((root / "organs").rglob("*.gz")):
            archive.write(path, f"results/{path.relative_to(root / 'organs')}")
    return root


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def evaluate(call: Call, root: Path, pred: str, out: Path, *more: object) -> tuple[int, str, str]:
    return call("segrap", "evaluate", "--predictions", root / pred, "--ground_truth", root / "gt",
                "--task", 2, "--workers", 1, "--out", out, *more)  # fmt: skip


def test_the_other_tasks_masks_are_recognised(call: Call, tumours: Path) -> None:
    folders = ["--predictions", tumours / "organs", "--ground_truth", tumours / "gt", "--out", "out"]
    code, _, err = call("segrap", "evaluate", *folders)
    assert code == 2
    assert "got folders c0, c1, c2; they are masks of " in err
    assert "(--task 2)" in err
    assert not Path("out").exists()


def test_a_finished_run_is_still_flagged(call: Call, tumours: Path, tmp_path: Path) -> None:
    shutil.copytree(tumours / "maps", tmp_path / "fewer")
    (tmp_path / "fewer" / "c1.nii.gz").unlink()
    settings = ("--predictions", "fewer", "--ground_truth", tumours / "gt", "--task", 2, "--workers", 1)
    assert call("segrap", "evaluate", *settings, "--out", "out")[0] == 1
    code, out, _ = call("segrap", "evaluate", "--out", "out", "--resume")
    assert code == 1
    assert "has already finished" in out


def test_a_team_without_a_path_is_refused(call: Call, tumours: Path) -> None:
    code, _, err = call("segrap", "evaluate", "--predictions", f"A={tumours / 'organs'},B=",
                        "--ground_truth", tumours / "gt", "--task", 2, "--out", "out")  # fmt: skip
    assert code == 2
    assert "predictions: expected TEAM=PATH, got 'B='" in err


def test_a_prediction_that_lies_otherwise_is_named(call: Call, tumours: Path, tmp_path: Path) -> None:
    shutil.copytree(tumours / "maps", tmp_path / "turned")
    path = tmp_path / "turned" / "c1.nii.gz"
    volume, head = read_labels(path).array, read_header(path)
    affine = np.array(head.affine)
    affine[:, 0] *= -1
    rows_ = tuple(tuple(float(v) for v in row) for row in affine)
    write_nifti(path, volume, replace(head, affine=rows_), level=1)
    code, _, err = call("segrap", "evaluate", "--predictions", "turned", "--ground_truth", tumours / "gt",
                        "--task", 2, "--workers", 1, "--out", "out")  # fmt: skip
    assert code == 0
    assert "note: turned: c1: axes in another direction; compared voxel by voxel" in err


def test_what_is_not_there_is_named(call: Call, tmp_path: Path) -> None:
    (tmp_path / "latin.csv").write_bytes(b"team,case,metric,value\n\xff\xfe,c1,dsc,0.5\n")
    for arguments, words in (
        (("rank", "nope.csv"), "tables: expected CSV files, got no nope.csv"),
        (("rank", tmp_path), f"tables: expected CSV files, got {tmp_path}, a folder"),
        (("rank", "latin.csv"), "latin.csv: expected a CSV file in UTF-8"),
        (("train", "--data", "nope", "--out", "w"), "data: expected a folder that `tenfold segrap prepare`"),
        (("evaluate", "--out", "nope", "--resume"), "out: expected the folder of a run, got nope"),
    ):
        code, _, err = call("segrap", *arguments)
        assert code == 2
        assert words in err


def test_every_layout_gives_the_same_files(call: Call, tumours: Path, tmp_path: Path) -> None:
    found = {}
    for pred in ("organs", "archive.zip", "stacks", "maps"):
        code, out, err = evaluate(call, tumours, pred, tmp_path / pred)
        assert code == 0, err
        assert "DSC: 0.8" in out
        found[pred] = (tmp_path / pred / "tables" / "segrap.csv").read_bytes()
    assert set(found.values()) == {found["organs"]}
    lines = found["organs"].decode().splitlines()
    assert lines[0] == "Name,GTVp_DSC,GTVnd_DSC,GTVp_NSD,GTVnd_NSD"
    assert [line.split(",")[0] for line in lines[1:]] == ["c0", "c1", "c2"]
    assert all(len(value.split(".")[1]) <= 4 for value in lines[1].split(",")[1:])
    document = json.loads((tmp_path / "organs" / "metrics.json").read_text())
    per_case = rows(tmp_path / "organs" / "tables" / "per_case.csv")
    assert len(per_case) == document["metrics"]["rows"] == 6
    assert float(lines[1].split(",")[1]) == round(float(per_case[0]["dsc"]), 4)
    named = json.loads((tmp_path / "organs" / "run.json").read_text())
    assert len(named["sha256"]) == 12
    assert named["tolerances_mm"] == {"GTVp": 1.0, "GTVnd": 1.0}


def test_several_teams(call: Call, tumours: Path, tmp_path: Path) -> None:
    code, out, _ = evaluate(call, tumours, "teams", tmp_path / "out")
    assert code == 0
    assert "DSC, gamma: 1" in out
    assert sorted(p.name for p in (tmp_path / "out" / "tables").glob("segrap-*")) == [
        "segrap-alpha.csv", "segrap-beta.csv", "segrap-gamma.csv",
    ]  # fmt: skip
    named = f"first={tumours / 'maps'},second={tumours / 'stacks'}"
    assert call("segrap", "evaluate", "--predictions", named, "--ground_truth", tumours / "gt", "--task", 2,
                "--workers", 1, "--out", tmp_path / "named")[0] == 0  # fmt: skip
    teams = {row["team"] for row in rows(tmp_path / "named" / "tables" / "per_case.csv")}
    assert teams == {"first", "second"}


def test_the_whole_workflow_ranks_and_draws(call: Call, tumours: Path, tmp_path: Path) -> None:
    image = np.full((14, 30, 32), 40, np.int16)
    (tmp_path / "ct").mkdir()
    write_nifti(tmp_path / "ct" / "c0.nii.gz", image, header())
    write_nifti(tmp_path / "ct" / "c1.nii.gz", image[1:], header((13, 30, 32)))
    code, out, err = call(
        "run", "segrap", "--predictions", tumours / "teams", "--ground_truth", tumours / "gt", "--task", 2,
        "--images", tmp_path / "ct", "--workers", 1, "--bootstrap", 50, "--out", tmp_path / "out",
    )  # fmt: skip
    assert code == 0, err
    assert "First: gamma" in out
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "arXiv 2312.09576" in page
    numbers = json.loads((tmp_path / "out" / "metrics.json").read_text())["metrics"]
    assert (numbers["gamma.rank"], numbers["gamma.dsc"], numbers["alpha.rank"]) == (1.0, 1.0, 2.0)
    figures = {p.stem for p in (tmp_path / "out" / "figures").glob("*.png")}
    assert {"worst", "blob", "significance-dsc", "podium-nsd", "volumes", "stability"} <= figures


def _damaged(root: Path, tmp_path: Path) -> Path:
    """Predictions of ten cases, nine of them wrong, each in another way."""
    gt, pred = tmp_path / "gt", tmp_path / "pred"
    for i in range(10):
        target = label_map(i, parts=2)
        write_map(gt / f"c{i}.nii.gz", target)
        write_map(pred / f"c{i}.nii.gz", moved(target, 1, -1))
    (pred / "c1.nii.gz").write_bytes((pred / "c1.nii.gz").read_bytes()[:-200])
    write_nifti(pred / "c2.nii.gz", moved(label_map(2, parts=2))[:-2], header((12, 30, 32)))
    write_nifti(pred / "c3.nii.gz", moved(label_map(3, parts=2)), header(spacing=(3.0, 0.54, 0.6)))
    write_map(pred / "c4.nii.gz", np.where(label_map(4, parts=2) == 2, 7, 1).astype(np.uint8))
    bad = label_map(5, parts=2).astype(np.float32)
    bad[3, 4, 5] = np.nan
    write_nifti(pred / "c5.nii.gz", bad, header())
    (pred / "c6.nii.gz").unlink()
    write_nifti(pred / "c7.nii.gz", label_map(7, parts=2) * np.float32(0.5), header())
    (pred / "c8.nii.gz").write_text("not a volume")
    rotated = header().matrix
    rotated[:3, :3] = rotated[:3, [1, 0, 2]]
    turned = replace(header(), affine=tuple(tuple(map(float, row)) for row in rotated))
    write_nifti(pred / "c9.nii.gz", moved(label_map(9, parts=2), 1, -1), turned)
    return tmp_path


def test_what_is_wrong_is_named_and_the_rest_scored(call: Call, tumours: Path, tmp_path: Path) -> None:
    root = _damaged(tumours, tmp_path)
    code, _, err = evaluate(call, root, "pred", tmp_path / "out")
    assert code == 1
    said = {line.split(",")[0].removeprefix("pred: ").split(":")[0]: line for line in err.splitlines()
            if line.startswith("pred: ")}  # fmt: skip
    for case, text in {
        "c1": "cut off", "c2": "expected shape (14, 30, 32) (z, y, x), got (12, 30, 32)",
        "c3": "expected spacing (3, 0.54, 0.54) mm (z, y, x), got (3, 0.54, 0.6)",
        "c4": "expected labels up to 2, got 7", "c5": "expected finite values, got nan",
        "c6": "no prediction; scored 0 and 0", "c7": "expected whole numbers, got 0.5", "c8": "got damaged",
    }.items():  # fmt: skip
        assert text in said[case], said.get(case)
        assert f"{case}.nii.gz" in said[case] or case == "c6"
    assert set(said) == {f"c{i}" for i in range(1, 9)}
    found = {(r["case"], r["organ"]): r for r in rows(tmp_path / "out" / "tables" / "per_case.csv")}
    assert 0.8 < float(found["c0", "GTVp"]["dsc"]) < 1
    assert found["c6", "GTVp"]["dsc"] == "0.0"
    assert found["c1", "GTVp"]["dsc"] == ""
    assert found["c9", "GTVp"]["flags"] == "geometry"  # scored voxel by voxel, and noted
    assert 0.8 < float(found["c9", "GTVp"]["dsc"]) < 1
    notes = [r["what"] for r in rows(tmp_path / "out" / "tables" / "faults.csv") if r["kind"] == "note"]
    assert notes == ["pred: c9: axes in another direction; compared voxel by voxel"]
    code, _, _ = evaluate(call, root, "pred", tmp_path / "zero", "--keep_going")
    assert code == 1
    zeros = {(r["case"], r["organ"]): r for r in rows(tmp_path / "zero" / "tables" / "per_case.csv")}
    assert all(zeros[f"c{i}", "GTVnd"]["dsc"] == "0.0" for i in range(1, 9))
    assert zeros["c0", "GTVp"] == found["c0", "GTVp"]


def test_what_cannot_be_asked(call: Call, tumours: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    gt = tumours / "gt"
    for arguments, said in {
        (
            "--predictions",
            gt,
            "--ground_truth",
            tumours / "teams",
        ): "expected the cases of one reference",
        ("--predictions", tmp_path / "none", "--ground_truth", gt): "expected a folder or a zip archive",
        ("--predictions", tmp_path / "empty", "--ground_truth", gt): "expected volumes",
        ("--predictions", gt, "--ground_truth", gt, "--task", "3"): "task: expected 1, 2 or a file",
        ("--predictions", gt, "--ground_truth", gt, "--tolerance", -1): "tolerance: expected a number >= 0",
        ("--predictions", gt, "--ground_truth", gt, "--workers", -1): "workers: expected a whole number >= 0",
        ("--ground_truth", gt): "predictions",
    }.items():
        code, _, err = call("segrap", "evaluate", "--task", 2, *arguments, "--out", tmp_path / "out")
        assert code == 2
        assert said in err
        assert len([line for line in err.splitlines() if "error" in line]) == 1
        assert not (tmp_path / "out").exists()


def test_an_interrupted_evaluation_goes_on(
    call: Call, tumours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module: Any = sys.modules["tenfold.segmentation.evaluate"]  # the package has a function of this name
    assert evaluate(call, tumours, "organs", tmp_path / "whole")[0] == 0
    real, count = module.score_case, []

    def one_then_stop(job: Any) -> Any:
        count.append(job.case)
        if len(count) == 2:
            raise KeyboardInterrupt
        return real(job)

    monkeypatch.setattr(module, "score_case", one_then_stop)
    code, _, err = evaluate(call, tumours, "organs", tmp_path / "out")
    assert code == 130
    assert f"go on with: tenfold segrap evaluate --out {tmp_path / 'out'} --resume" in err
    code, _, err = call("segrap", "evaluate", "--out", tmp_path / "out", "--resume")
    assert code == 0, err
    assert count == ["c0", "c1", "c1", "c2"]  # c0 came from the state
    for name in ("per_case", "segrap", "summary"):
        one, other = ((tmp_path / o / "tables" / f"{name}.csv").read_bytes() for o in ("whole", "out"))
        assert one == other


@pytest.mark.slow
def test_two_workers_and_a_cluster_write_the_same_tables(call: Call, tumours: Path, tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed")
    assert evaluate(call, tumours, "teams", tmp_path / "1")[0] == 0
    assert evaluate(call, tumours, "teams", tmp_path / "2", "--workers", 2)[0] == 0
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        address = cluster.scheduler_address
        assert evaluate(call, tumours, "teams", tmp_path / "3", "--cluster", address)[0] == 0
    for table in sorted((tmp_path / "1" / "tables").glob("*.csv")):
        for other in ("2", "3"):
            assert table.read_bytes() == (tmp_path / other / "tables" / table.name).read_bytes()


def test_converting_there_and_back(call: Call, tmp_path: Path) -> None:
    volume = label_map(4)
    write_map(tmp_path / "maps" / "c1.nii.gz", volume)
    for source, target in (("maps", "organs"), ("organs", "stack"), ("stack", "map")):
        code, out, err = call("segrap", "convert", "--source", source, "--out", target, "--to", target)
        assert code == 0, err
        assert f"1 cases written to {target}" in out
    assert len(list((tmp_path / "organs" / "c1").glob("*.nii.gz"))) == 45
    assert len(list(read_masks(tmp_path / "stack" / "c1.mha"))) == 45
    back = read_labels(tmp_path / "map" / "c1.nii.gz")
    np.testing.assert_array_equal(back.array, volume)
    np.testing.assert_allclose(back.header.matrix, header().matrix, atol=1e-6)
    brain = next(read_masks(tmp_path / "organs" / "c1" / "Brain.nii.gz")).whole()
    brain[:] = 0  # the brain stem outside of the brain
    write_nifti(tmp_path / "organs" / "c1" / "Brain.nii.gz", brain, header())
    code, _, err = call("segrap", "convert", "--source", "organs", "--out", "other", "--to", "map")
    assert code == 2
    assert "c1: masks: expected structures that overlap as their parts do, got" in err
    assert not (tmp_path / "other").exists()


@pytest.fixture
def training(tmp_path: Path) -> Path:
    """Four cases of two modalities with a label map: bright tumours in a body, of task 2."""
    rng = np.random.default_rng(0)
    head = header((10, 40, 44), (3.0, 1.5, 1.5))
    for i in range(4):
        label = label_map(i, (10, 40, 44), parts=2)
        body = np.where(label > 0, 40 + 200 * label.astype(np.int16), -1000).astype(np.int16)
        for name in ("image", "image_contrast"):
            noise = rng.integers(-20, 20, body.shape).astype(np.int16)
            path = tmp_path / "images" / f"c{i}" / f"{name}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_nifti(path, body + noise, head, level=1)
        (tmp_path / "labels").mkdir(exist_ok=True)
        write_nifti(tmp_path / "labels" / f"c{i}.nii.gz", label, head, level=1)
    return tmp_path


def test_exporting_for_nnunet(call: Call, training: Path) -> None:
    code, out, err = call("segrap", "nnunet", "--images", "images", "--labels", "labels", "--out", "raw",
                          "--task", 2, "--number", 7)  # fmt: skip
    assert code == 0, err
    folder = training / "raw" / "Dataset007_SegRap2023"
    assert str(folder.relative_to(training)) in out
    stored = json.loads((folder / "dataset.json").read_text())
    assert stored["channel_names"] == {"0": "CT", "1": "CT"}
    assert stored["labels"] == {"background": 0, "GTVp": 1, "GTVnd": 2}
    assert (stored["numTraining"], stored["file_ending"]) == (4, ".nii.gz")
    assert sorted(p.name for p in (folder / "imagesTr").iterdir())[:2] == ["c0_0000.nii.gz", "c0_0001.nii.gz"]
    np.testing.assert_array_equal(
        read_labels(folder / "labelsTr" / "c3.nii.gz").array, label_map(3, (10, 40, 44), parts=2)
    )
    (training / "labels" / "c2.nii.gz").unlink()
    code, _, err = call("segrap", "nnunet", "--images", "images", "--labels", "labels", "--out", "raw2")
    assert code == 2
    assert "c2.nii.gz" in err
    assert not (training / "raw2").exists()


def test_from_training_data_to_the_container(call: Call, training: Path) -> None:
    code, out, err = call("segrap", "prepare", "--images", "images", "--labels", "labels", "--out", "ready")
    assert code == 0, err
    assert "4 cases prepared in ready" in out
    assert [len((training / "ready" / f"{part}.csv").read_text().split()) - 1
            for part in ("train", "valid", "test")] == [2, 1, 1]  # fmt: skip
    code, out, err = call(
        "segrap", "train", "--data", "ready", "--out", "net/weights.safetensors", "--task", 2, "--steps", 30,
        "--batch", 1, "--patch", "8,32,32", "--features", "8,16,16", "--lr", 0.01, "--device", "cpu",
    )  # fmt: skip
    assert code == 0, err
    for name, file in (("head-neck-ct", "image"), ("head-neck-contrast-enhanced-ct", "image_contrast")):
        folder = training / "input" / "images" / name
        folder.mkdir(parents=True)
        shutil.copy(training / "images" / "c0" / f"{file}.nii.gz", folder / "case-9.nii.gz")
    arguments = ["segrap", "container", "--model", "net/weights.safetensors", "--input", "input",
                 "--output", "output", "--device", "cpu"]  # fmt: skip
    code, out, err = call(*arguments)
    assert code == 0, err
    path = training / "output" / "images" / "gross-tumor-volume-segmentation" / "case-9.mha"
    assert str(path.relative_to(training)) in out
    assert read_header(path).channels == 2
    assert read_header(path).dtype == "|u1"
    np.testing.assert_allclose(
        read_header(path).matrix, header((10, 40, 44), (3.0, 1.5, 1.5)).matrix, atol=1e-4
    )
    found = [crop.whole() for crop in read_masks(path)]
    target = label_map(0, (10, 40, 44), parts=2)
    for label, mask in enumerate(found, 1):
        assert 2 * (mask & (target == label)).sum() / (mask.sum() + (target == label).sum()) > 0.7
    shutil.copy(training / "images" / "c1" / "image.nii.gz", training / "input" / "images" / "head-neck-ct")
    code, _, err = call(*arguments)
    assert code == 2
    assert "head-neck-ct: expected one volume, got 2" in err


@pytest.mark.parametrize(("name", "value"), [("task", "2"), ("images", "ct")])
def test_settings_of_predictions_are_refused_without_them(call: Call, name: str, value: str) -> None:
    code, _, error = call("run", "segrap", f"--{name}", value)
    assert code == 2
    assert f"{name}: expected --predictions with it, got only {name}='{value}'" in error
