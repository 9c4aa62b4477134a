"""A genuine pair of networks on a real CT, out of the source archive of TotalSegmentator 2.18.0 (Apache-2.0).

    pip download --no-deps --no-binary :all: TotalSegmentator==2.18.0
    tenfold run segrap --archive totalsegmentator-2.18.0.tar.gz

Members of the archive are read; nothing of it is installed or run. The reference is what the full model gives
on a piece of a CT, the prediction what its fast model gives. With training, a small U-Net learns the fast
model's labels on the rest of the same CT, and labels the piece, which it has not seen.
"""

from __future__ import annotations

import ast
import tarfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tenfold import ops
from tenfold._reading import reading
from tenfold.runs import RunFolder, figure, style
from tenfold.runs.files import replacing
from tenfold.segmentation.files import Place, Volume, read_labels, read_volume, write_nifti
from tenfold.segmentation.labels import Task
from tenfold.segmentation.layouts import CaseFiles, Submission
from tenfold.segmentation.segrap_config import SegrapConfig

__all__ = ["MEMBERS", "extract", "label_names", "pair_task", "source", "train_and_predict"]

MEMBERS = ("example_ct", "example_ct_sm", "example_seg", "example_seg_fast", "example_seg_fast_force_split")
"""Volumes of the archive's tests/reference_files that are used."""

TOLERANCE = 3.0
"""mm: one voxel."""

CASE = "example"


def extract(archive: Path, folder: Path) -> dict[str, Path]:
    """Copy `MEMBERS` out of the archive; name -> file. ValueError if it is no such archive or lacks one."""
    contents = {}
    with reading(archive, "a tar archive"), tarfile.open(archive) as tar:
        names = {
            Path(n).name: n for n in tar.getnames() if "/tests/reference_files/" in n and n.count("/") == 3
        }
        for member in MEMBERS:
            if f"{member}.nii.gz" not in names:
                raise ValueError(f"{archive}: expected tests/reference_files/{member}.nii.gz, got none")
            content = tar.extractfile(names[f"{member}.nii.gz"])
            if content is None:
                raise ValueError(f"{archive}: expected {member}.nii.gz as a file, got something else")
            contents[folder / f"{member}.nii.gz"] = content.read()
    for path, volume in contents.items():  # a disk that is full is no fault of the archive
        with replacing(path) as aside:
            aside.write_bytes(volume)
    return {member: folder / f"{member}.nii.gz" for member in MEMBERS}


NAMES = "/totalsegmentator/map_to_binary.py"
"""Member of the archive that holds a literal `class_map = {"total": {label: name, ...}, ...}`."""


def label_names(archive: Path) -> dict[int, str]:
    """Label -> structure, read from the archive's table (nothing is run). ValueError if there is none."""
    with reading(archive, f"an archive with {NAMES[1:]}"):
        with tarfile.open(archive) as tar:
            members = [n for n in tar.getnames() if n.endswith(NAMES) and n.count("/") == 2]
            content = tar.extractfile(members[0]) if members else None
            text = content.read().decode("utf-8") if content else ""
        for node in ast.parse(text).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "class_map":
                table = ast.literal_eval(node.value)["total"]
                return {int(label): str(name) for label, name in table.items()}
    raise ValueError(f"{archive}: expected a class_map in {NAMES[1:]}, got none")


def pair_task(files: dict[str, Path], names: dict[int, str]) -> Task:
    """Every label that the reference or the fast model has."""
    present = {
        int(v)
        for name in ("example_seg", "example_seg_fast")
        for v in np.unique(read_labels(files[name]).array)
    }
    parts = {names.get(label, f"label_{label}"): (label,) for label in sorted(present - {0})}
    return Task("ct", f"{len(parts)} structures of a CT", parts, tolerance=TOLERANCE, official=False)


def source(config: SegrapConfig, folder: RunFolder) -> Any:
    """What the workflow compares; trains first if the settings say so."""
    from tenfold.segmentation.segrap import Source

    files = extract(Path(config.archive), folder.path / "volumes")
    reference = Submission("full model", {CASE: CaseFiles(CASE, volume=Place(files["example_seg"]))})
    teams = [Submission("fast model", {CASE: CaseFiles(CASE, volume=Place(files["example_seg_fast"]))})]
    about = {"fast model": "TotalSegmentator's fast model on the same CT"}
    if config.train:
        path = train_and_predict(config, folder, files)
        teams.append(Submission("small U-Net", {CASE: CaseFiles(CASE, volume=Place(path))}))
        about["small U-Net"] = (
            f"{config.train_steps} steps on the fast model's labels of the other slices of this one CT"
        )
    task = pair_task(files, label_names(Path(config.archive)))
    lead = "the labels that TotalSegmentator's full model gives on a real CT, against those of other networks"
    return Source(task, reference, teams, lead, {CASE: files["example_ct_sm"]}, about)


def train_and_predict(config: SegrapConfig, folder: RunFolder, files: dict[str, Path]) -> Path:
    """Train on the slices outside of the piece, label the piece; the label map's file."""
    from tenfold.segmentation.training import Case, Plan, Store, train
    from tenfold.segmentation.unet import Recipe, save_network

    path = folder.path / "predictions" / "small-unet" / f"{CASE}.nii.gz"
    if path.exists():
        return path
    ct, labels = read_volume(files["example_ct"]), read_labels(files["example_seg_fast_force_split"])
    piece = read_volume(files["example_ct_sm"])
    start, stop = piece_slices(ct, piece)
    known = np.unique(labels.array)  # classes are the labels in order: 0, 1, ...
    rest = np.ones(len(ct.array), bool)
    rest[start:stop] = False
    classes = np.searchsorted(known, labels.array).astype(np.int64)
    scale, statistics = _scaling(ct.array[rest], labels.array[rest])
    patch = [min(most, -(-n // 8) * 8) for most, n in zip((24, 64, 64), piece.array.shape, strict=True)]
    recipe = Recipe(
        classes=len(known), channels=1, features=[8, 16, 32, 64], dropout=[0.0] * 4, patch=patch,
        spacing=[3.0, 3.0, 3.0], statistics=[asdict(statistics)], task="ct",
    )  # fmt: skip
    cases = [
        Case(scale(ct.array[part])[None], classes[part])
        for part in (slice(0, start), slice(stop, None))
        if len(ct.array[part]) >= 8
    ]
    plan = Plan(steps=config.train_steps, batch=1, lr=3e-3, foreground=0.7, halve_every=10**9,
                seed=config.seed, save_every=50)  # fmt: skip
    store = Store(
        lambda: folder.load_state("training"),
        lambda data, tensors: folder.save_state("training", data, tensors),
    )
    with folder.progress(plan.steps, "train") as progress:

        def advance(step: int, loss: float) -> None:
            progress.advance(step - progress.done, loss=loss)

        network, losses = train(cases, recipe, plan, store=store, advance=advance)
    save_network(folder.path / "checkpoints" / "small-unet.safetensors", network, recipe)
    _draw(folder, losses)
    image = torch.from_numpy(scale(piece.array)[None])
    found = ops.keep_largest(ops.sliding_window(image, network, recipe.patch)).numpy()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_nifti(path, known[found].astype(np.uint8), piece.header)
    return path


def piece_slices(ct: Volume, piece: Volume) -> tuple[int, int]:
    """The slices of `ct` that `piece` is, by their origins; checked against the voxels."""
    step = ct.header.spacing[0]
    start = round((piece.header.matrix[2, 3] - ct.header.matrix[2, 3]) / step)
    stop = start + len(piece.array)
    if start < 0 or stop > len(ct.array):
        raise ValueError(f"example_ct_sm: expected a piece of example_ct, got slices {start} to {stop}")
    return start, stop


def _scaling(ct: NDArray[Any], labels: NDArray[Any]) -> Any:
    from tenfold.segmentation.preprocess import statistics_of

    found = statistics_of([(np.rint(ct), labels)])

    def scale(volume: NDArray[Any]) -> NDArray[np.float32]:
        return ((np.clip(volume, found.p005, found.p995) - found.mean) / found.std).astype(np.float32)

    return scale, found


def _draw(folder: RunFolder, losses: list[float]) -> None:
    with style():
        fig, axes = figure(7.0, 3.0)
        width = max(1, len(losses) // 50)
        smooth = np.convolve(losses, np.ones(width) / width, "valid")
        axes.plot(np.arange(len(smooth)) + width, smooth)
        axes.set(xlabel="step", ylabel="Dice + cross-entropy", title="Training of the small U-Net")
    folder.write_figure(
        "training", fig, f"Mean of {width} steps.",
        f"A curve that falls from {smooth[0]:.2f} to {smooth[-1]:.2f} over {len(losses)} steps.",
    )  # fmt: skip
