"""Training data in the layout of nnU-Net."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from tenfold.runs.files import write_json
from tenfold.segmentation.labels import TASKS, Task
from tenfold.segmentation.preprocess import MODALITIES

__all__ = ["export_nnunet"]


def export_nnunet(
    root: Path, labels: Path, out: Path, task: Task = TASKS["1"], number: int = 1, name: str = "SegRap2023"
) -> Path:
    """Write `out`/Dataset<number>_<name>/ with imagesTr, labelsTr and dataset.json, for nnU-Net 1 and 2.

    Both modalities are called CT. The published baseline called them non_contrast_CT and contrast_CT, which
    made nnU-Net normalise each image by itself, as it does with what is no CT.

    Args:
        root: <case>/image.nii.gz and <case>/image_contrast.nii.gz.
        labels: <case>.nii.gz, one label map for each case.

    Files are linked where the file system allows it, else copied. ValueError names what is missing.
    """
    if not 1 <= number <= 999:
        raise ValueError(f"number: expected 1 to 999, got {number}")
    cases = sorted(path.name for path in root.iterdir() if (path / f"{MODALITIES[0]}.nii.gz").is_file())
    if not cases:
        raise ValueError(f"{root}: expected <case>/{MODALITIES[0]}.nii.gz, got none")
    wanted = []
    folder = out / f"Dataset{number:03d}_{name}"
    for case in cases:
        for i, modality in enumerate(MODALITIES):
            wanted.append(
                (root / case / f"{modality}.nii.gz", folder / "imagesTr" / f"{case}_{i:04d}.nii.gz")
            )
        wanted.append((labels / f"{case}.nii.gz", folder / "labelsTr" / f"{case}.nii.gz"))
    absent = [str(source) for source, _ in wanted if not source.is_file()]
    if absent:
        raise ValueError(f"root: expected all files of each case, got none at {', '.join(absent[:3])}")
    for source, target in wanted:
        _link(source, target)
    names = {"background": 0, **{f"part_{i:02d}": i for i in range(1, task.highest + 1)}}
    if all(len(parts) == 1 for parts in task.parts.values()):
        names = {"background": 0, **{organ: parts[0] for organ, parts in task.parts.items()}}
    write_json(
        folder / "dataset.json",
        {
            "channel_names": {"0": "CT", "1": "CT"}, "modality": {"0": "CT", "1": "CT"}, "labels": names,
            "numTraining": len(cases), "file_ending": ".nii.gz", "name": name, "description": task.title,
            "training": [
                {"image": f"./imagesTr/{case}.nii.gz", "label": f"./labelsTr/{case}.nii.gz"} for case in cases
            ],
            "test": [], "numTest": 0,
        },
    )  # fmt: skip
    return folder


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
