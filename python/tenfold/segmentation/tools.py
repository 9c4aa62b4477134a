"""What `tenfold segrap` does to files besides ranking: convert, prepare, export, train, predict."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from tenfold.segmentation.cases import CaseResult, read_structures
from tenfold.segmentation.crops import Crop
from tenfold.segmentation.files import Place, read_labels, read_volume, write_mha, write_nifti
from tenfold.segmentation.labels import TASKS, Task, check_labels, unmerge
from tenfold.segmentation.layouts import Submission, find_submissions

if TYPE_CHECKING:
    from tenfold.segmentation.training import Case

__all__ = ["ConvertConfig", "NnunetConfig", "PrepareConfig", "TrainConfig"]


@dataclass
class ConvertConfig:
    """Write every case of a folder or archive in another layout."""

    source: str
    """Folder or zip archive, in any layout."""
    out: str
    """Folder to write."""
    to: Literal["organs", "map", "stack"] = "organs"
    """organs: <case>/<Organ>.nii.gz; map: <case>.nii.gz with the disjoint parts; stack: <case>.mha, 4-D."""
    task: str = "1"
    """1 or 2."""


def convert(config: ConvertConfig) -> str:
    """Convert all cases; says how many. ValueError names the case that cannot be."""
    task = _task(config.task)
    (found,) = _one(find_submissions(config.source, task))
    out = Path(config.out)
    for case, files in found.cases.items():
        scratch = CaseResult("", case, [], [], [], {}, 0.0)
        if config.to == "map" and files.volume is not None:
            volume = read_labels(files.volume) if _is_map(files.volume) else None
            if volume is not None:
                check_labels(str(files.volume), volume.array, task)
                write_nifti(out / f"{case}.nii.gz", volume.array, volume.header)
                continue
        crops: dict[str, Crop] = {}
        for organ, mask in read_structures(files, task, scratch):
            if not isinstance(mask, Crop):
                raise ValueError(f"{case}, {organ}: {mask or 'no such file'}")
            crops[organ] = mask
        header = next(iter(crops.values())).header
        if config.to == "organs":
            for organ, crop in crops.items():
                write_nifti(out / case / f"{organ}.nii.gz", crop.whole(), crop.header)
        elif config.to == "stack":
            out.mkdir(parents=True, exist_ok=True)
            write_mha(out / f"{case}.mha", (crop.whole() for crop in crops.values()), header)
        else:
            masks = np.stack([crop.whole().view(bool) for crop in crops.values()])
            try:
                write_nifti(out / f"{case}.nii.gz", unmerge(masks, task), header)
            except ValueError as error:
                raise ValueError(f"{case}: {error}") from error
    return f"{len(found.cases)} cases written to {out}"


def _is_map(place: Place) -> bool:
    from tenfold.segmentation.files import read_header

    return read_header(place).channels == 1


def _one(found: list[Submission]) -> list[Submission]:
    if len(found) != 1:
        raise ValueError(f"source: expected one set of cases, got {', '.join(s.team for s in found)}")
    return found


def _task(name: str) -> Task:
    if name not in TASKS:
        raise ValueError(f"task: expected 1 or 2, got {name!r}")
    return TASKS[name]


@dataclass
class PrepareConfig:
    """Resample, crop and normalise training cases as the challenge's tutorial does."""

    images: str
    """Folder with <case>/image.nii.gz and <case>/image_contrast.nii.gz."""
    labels: str
    """Folder with <case>.nii.gz, one label map each."""
    out: str
    """Folder to write: image, image_contrast, label, way, statistics.json and train, valid, test.csv."""
    seed: int = 2023
    """Of the split: 70 % to train on, 10 % to watch, 20 % to test."""


def prepare(config: PrepareConfig) -> str:
    """Prepare all cases."""
    from tenfold.segmentation.preprocess import prepare_folder

    cases = prepare_folder(Path(config.images), Path(config.labels), Path(config.out), seed=config.seed)
    return f"{len(cases)} cases prepared in {config.out}"


@dataclass
class NnunetConfig:
    """Training data in the layout of nnU-Net."""

    images: str
    """Folder with <case>/image.nii.gz and <case>/image_contrast.nii.gz."""
    labels: str
    """Folder with <case>.nii.gz, one label map each."""
    out: str
    """Folder that Dataset<number>_<name> is written to (nnUNet_raw)."""
    task: str = "1"
    """1 or 2."""
    number: int = 1
    """Number of the data set."""
    name: str = "SegRap2023"
    """Name of the data set."""


def nnunet(config: NnunetConfig) -> str:
    """Export; the folder."""
    from tenfold.segmentation.nnunet import export_nnunet

    paths = Path(config.images), Path(config.labels), Path(config.out)
    return f"written: {export_nnunet(*paths, _task(config.task), config.number, config.name)}"


@dataclass
class TrainConfig:
    """Train the tutorial's 3-D U-Net on prepared cases."""

    data: str
    """Folder that `tenfold segrap prepare` wrote."""
    out: str
    """File to write: weights as safetensors with all that inference needs."""
    task: str = "1"
    """1 or 2."""
    steps: int = 128_000
    """Optimizer steps."""
    batch: int = 4
    """Patches of a step."""
    lr: float | None = None
    """Learning rate; None: 1e-3 for task 1, 1e-4 for task 2."""
    patch: str = "32,128,320"
    """Window (z, y, x)."""
    features: str = "16,32,64,128"
    """Feature maps of each resolution."""
    mirror: bool = False
    """Mirror left to right, exchanging the labels of the sides."""
    device: str = ""
    """cpu or cuda; left empty: cuda if there is one."""
    seed: int = 0
    """Of weights, patches and augmentation."""


def train_network(config: TrainConfig) -> str:
    """Train on the cases of train.csv and write the network."""
    import torch

    from tenfold.runs.progress import Progress
    from tenfold.segmentation.preprocess import MODALITIES
    from tenfold.segmentation.training import Plan, train
    from tenfold.segmentation.unet import Recipe, save_network

    data, task = Path(config.data), _task(config.task)
    features = [int(n) for n in config.features.split(",")]
    if not (data / "statistics.json").is_file():
        raise ValueError(f"data: expected a folder that `tenfold segrap prepare` wrote, got {config.data!r}")
    stored = json.loads((data / "statistics.json").read_text(encoding="utf-8"))
    recipe = Recipe(
        classes=task.highest + 1, channels=len(MODALITIES), features=features,
        dropout=[0.1 * max(i - 1, 0) for i in range(len(features))],
        patch=[int(n) for n in config.patch.split(",")],
        statistics=[stored[name] for name in MODALITIES], task=task.name,
    )  # fmt: skip
    plan = Plan(
        steps=config.steps, batch=config.batch, lr=config.lr or (1e-3 if task.name == "1" else 1e-4),
        foreground=0.2 if task.name == "1" else 0.5, mirror=config.mirror, deep=task.name == "2",
        seed=config.seed,
    )  # fmt: skip
    device = config.device or ("cuda" if torch.cuda.is_available() else "cpu")
    with Progress(plan.steps, "train") as progress:
        network, _ = train(
            _cases(data), recipe, plan, task=task, device=device,
            advance=lambda step, loss: progress.advance(step - progress.done, loss=loss),
        )  # fmt: skip
    save_network(Path(config.out), network.cpu(), recipe)
    return f"written: {config.out} ({json.dumps(asdict(recipe)['patch'])} windows, {recipe.classes} classes)"


def _cases(data: Path) -> list[Case]:
    from tenfold.segmentation.training import Case

    lines = (data / "train.csv").read_text(encoding="utf-8").split()
    found = []
    for line in lines[1:]:
        *images, label = (data / part for part in line.split(","))
        channels = [read_volume(path).array for path in images]
        found.append(Case(np.stack(channels).astype(np.float32), read_labels(label).array))
    return found
