"""Settings of the workflow ``segrap``."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

__all__ = ["SegrapConfig"]


@dataclass
class SegrapConfig:
    """Score and rank segmentations as SegRap2023 does (arXiv 2312.09576).

    The embedded default predicts 82 structures of six human brains from each other's label maps, in eight
    ways,
    and ranks the eight. With --predictions and --ground_truth it scores yours; with --archive it scores a
    genuine pair of networks on a real CT, and with --train as well, trains a small network on one.
    """

    predictions: str = ""
    """Folder or zip archive: <case>/<Organ>.nii.gz, <case>.nii.gz or <case>.mha, with or without a folder
    for each
    team above; several with commas, each PATH or TEAM=PATH. Left empty: the embedded brains."""

    ground_truth: str = ""
    """Folder or zip archive with the references, in any of the same layouts."""

    task: str = "1"
    """1 (45 organs at risk), 2 (two tumour volumes), or a label table: a CSV with columns id and label, or
    a JSON
    object of name to label."""

    images: str = ""
    """Folder with the CT of each case (<case>/image.nii.gz, <case>.nii.gz or <case>_0000.nii.gz) to draw
    under
    the outlines."""

    cohorts: str = ""
    """CSV with columns case and cohort: means are taken within each cohort first (SegRap2025)."""

    tolerance: float = 1.0
    """Tolerance of the surface Dice in mm, for label tables; tasks 1 and 2 have their own."""

    edge: bool | None = None
    """Also the edge-voxel metrics of MONAI and MedPy. None: only in the embedded default and with
    --archive."""

    keep_going: bool = False
    """Score a structure whose prediction cannot be used 0 and 0, as a missing one, instead of leaving it
    out."""

    reorient: bool = False
    """Flip and exchange axes of predictions that run otherwise than the reference's."""

    empty_distance: Literal["inf", "nan", "diagonal"] = "inf"
    """Distance where one of two masks is empty; diagonal: that of the image."""

    geometry_tolerance: float = 1e-3
    """Largest difference of spacing and origin in mm, and of direction, that is none."""

    workers: int = 0
    """Processes; 0 for one on each usable core."""

    cluster: str = ""
    """Address of a dask scheduler (tcp://host:8786) whose workers see the same files; they do the work
    then."""

    ties: Literal["min", "average"] = "min"
    """Ranks of teams that tie: the best of their places, or the mean."""

    statistical: bool = False
    """Teams without a significant difference on a structure and metric are equal there."""

    bootstrap: int = 1000
    """Resamples of the cases that the ranking is made again on."""

    seed: int = 0
    """Of the resamples and of the training."""

    archive: str = ""
    """Source archive of TotalSegmentator 2.18.0 (totalsegmentator-2.18.0.tar.gz): a real CT, two models'
    labels."""

    train: bool = False
    """With --archive: train a small 3-D UNet on a part of the CT and score it on the rest, slices it never
    saw."""

    train_steps: int = 400
    """Optimizer steps of --train."""

    def __post_init__(self) -> None:
        _check(self)

    @property
    def embedded(self) -> bool:
        """Whether the embedded brains are scored."""
        return not self.predictions and not self.archive

    def resolved(self) -> SegrapConfig:
        """With `edge` filled."""
        edge = not self.predictions if self.edge is None else self.edge
        return dataclasses.replace(self, edge=edge)


def _check(config: SegrapConfig) -> None:
    if bool(config.predictions) != bool(config.ground_truth):
        given, other = (
            ("predictions", "ground_truth") if config.predictions else ("ground_truth", "predictions")
        )
        raise ValueError(f"{other}: expected a folder with --{given}, got nothing")
    if not config.predictions:
        for name, default in (("task", "1"), ("images", "")):
            if getattr(config, name) != default:
                value = getattr(config, name)
                raise ValueError(f"{name}: expected --predictions with it, got only {name}={value!r}")
    if config.predictions and config.archive:
        raise ValueError("archive: expected nothing beside --predictions, got " + repr(config.archive))
    if config.archive and not Path(config.archive).is_file():
        raise ValueError(f"archive: expected a file, got {config.archive!r}")
    if config.train and not config.archive:
        raise ValueError("train: expected --archive with it, got nothing to train on")
    for name in ("tolerance", "geometry_tolerance"):
        value = getattr(config, name)
        if not math.isfinite(value) or value < 0:
            raise ValueError(f"{name}: expected a number >= 0, got {value}")
    for name, low in (("workers", 0), ("bootstrap", 1), ("seed", 0), ("train_steps", 1)):
        value = getattr(config, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            raise ValueError(f"{name}: expected a whole number >= {low}, got {value!r}")
    if config.empty_distance not in ("inf", "nan", "diagonal"):
        raise ValueError(f"empty_distance: expected inf, nan or diagonal, got {config.empty_distance!r}")
    if config.ties not in ("min", "average"):
        raise ValueError(f"ties: expected min or average, got {config.ties!r}")
