"""From the challenge's files to what a network is trained on, and back: statistics, resampling, body crop.

As the challenge's tutorial does it: resample to 3 x 1 x 1 mm (z, y, x; cubic for images, nearest for
labels), cut
to the largest component above -500 HU, clip to the percentiles 0.5 and 99.5 of the foreground, subtract
its mean
and divide by its deviation. What is needed for the way back is kept with each case.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tenfold import ops
from tenfold._reading import reading
from tenfold.ops.intensity import IntensityHistogram
from tenfold.runs.files import write_json, write_text
from tenfold.segmentation.files import (
    Header,
    compare,
    read_labels,
    read_volume,
    reoriented,
    write_nifti,
)

__all__ = [
    "MODALITIES", "Statistics", "Way", "body_box", "crop_and_scale", "prepare_case", "prepare_folder",
    "restore", "split_cases", "statistics_of",
]  # fmt: skip

MODALITIES = ("image", "image_contrast")
"""Non-contrast and contrast-enhanced CT, by the names of their files."""

SPACING = (3.0, 1.0, 1.0)
"""Of the resampled volumes in mm, (z, y, x)."""

BODY = -500
"""HU above which a voxel may be body."""


@dataclass(frozen=True)
class Statistics:
    """Intensities of the foreground of all training cases of one modality."""

    median: float
    mean: float
    std: float
    min: float
    max: float
    p995: float
    p005: float


def statistics_of(pairs: Iterable[tuple[NDArray[Any], NDArray[Any]]]) -> Statistics:
    """Of all voxels of images whose label is not 0; `pairs` are (image, label map), one case at a time.

    Exact and in bounded memory for whole numbers within [-32768, 65535], which CT is: counted, not collected.
    ValueError for other values, or if there is no foreground.
    """
    counted = IntensityHistogram()
    for image, label in pairs:
        if image.shape != label.shape:
            raise ValueError(f"label: expected the image's shape {image.shape}, got {label.shape}")
        whole = np.rint(image).astype(np.int32)
        if image.dtype.kind == "f" and image.size and np.abs(whole - image).max() > 1e-3:
            raise ValueError("image: expected whole numbers (HU), got fractions")
        counted.update(whole, label != 0)
    if not len(counted):
        raise ValueError("label: expected at least one voxel of foreground, got none")
    found = counted.statistics()
    names = ("median", "mean", "std", "min", "max", "percentile_99_5", "percentile_00_5")
    return Statistics(*(float(found[name]) for name in names))


@dataclass(frozen=True)
class Way:
    """How a case was changed: all that the way back needs."""

    raw: Header
    resampled_shape: tuple[int, int, int]
    box: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
    """Kept part of the resampled volume, (z, y, x)."""

    def to_json(self) -> dict[str, Any]:
        """Plain data; `from_json` reads it."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Way:
        """The record of `to_json`."""
        raw = dict(data["raw"])
        raw["affine"] = tuple(map(tuple, raw["affine"]))
        raw |= {name: tuple(raw[name]) for name in ("shape", "spacing")}
        z, y, x = (tuple(part) for part in data["box"])
        return cls(Header(**raw), tuple(data["resampled_shape"]), (z, y, x))


def resampled_shape(header: Header, spacing: Sequence[float]) -> tuple[int, int, int]:
    """round(shape * old / new) on each axis."""
    z, y, x = (
        max(1, round(n * old / new))
        for n, old, new in zip(header.shape, header.spacing, spacing, strict=True)
    )
    return z, y, x


def resample(array: NDArray[Any], shape: tuple[int, int, int], order: int) -> NDArray[Any]:
    """Spline of `order` (0 or 3) over voxels as cells, edges repeated, no smoothing; cubic stays in range."""
    if array.shape == shape:
        return array
    from scipy.ndimage import zoom

    scale = [new / old for new, old in zip(shape, array.shape, strict=True)]
    if order == 0:
        return np.asarray(zoom(array, scale, order=0, mode="nearest", grid_mode=True))
    found = zoom(array.astype(np.float32), scale, order=order, mode="nearest", grid_mode=True)
    return np.clip(found, array.min(), array.max())


def body_box(ct: NDArray[Any]) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """Box (z, y, x) of the largest 26-connected component above -500 HU; the whole volume if there is
    none."""
    if not (ct > BODY).any():
        z, y, x = ((0, n) for n in ct.shape)
    else:
        z, y, x = ((part.start, part.stop) for part in ops.body_box(ct, BODY))
    return z, y, x


def crop_and_scale(
    volumes: Sequence[NDArray[Any]], header: Header, statistics: Sequence[Statistics],
    spacing: Sequence[float] = SPACING, labels: NDArray[Any] | None = None,
) -> tuple[NDArray[np.float32], NDArray[Any] | None, Way]:  # fmt: skip
    """Channels [C, z, y, x], the labels on the same grid, and the way back. The first volume decides the
    box."""
    shape = resampled_shape(header, spacing)
    moved = [resample(volume, shape, 3) for volume in volumes]
    box = body_box(moved[0])
    inner = tuple(slice(*part) for part in box)
    channels = [
        (np.clip(volume[inner], s.p005, s.p995) - s.mean) / max(s.std, 1e-6)
        for volume, s in zip(moved, statistics, strict=True)
    ]
    kept = None if labels is None else resample(labels, shape, 0)[inner]
    return np.stack(channels).astype(np.float32), kept, Way(header, shape, box)


def restore(labels: NDArray[Any], way: Way) -> NDArray[Any]:
    """A label map of the network's grid on the raw grid of the case, nearest label, 0 outside the box."""
    expected = tuple(stop - start for start, stop in way.box)
    if labels.shape != expected:
        raise ValueError(f"labels: expected shape {expected} (the kept box), got {labels.shape}")
    full = np.zeros(way.resampled_shape, labels.dtype)
    full[tuple(slice(*part) for part in way.box)] = labels
    return resample(full, way.raw.shape, 0)


def read_case(folder: Path, modalities: Sequence[str] = MODALITIES) -> tuple[list[NDArray[Any]], Header]:
    """The images of `folder`/<modality>.nii.gz on one grid. ValueError if they do not lie over each other."""
    volumes = []
    first: Header | None = None
    for name in modalities:
        volume = read_volume(folder / f"{name}.nii.gz")
        if first is not None:
            array, header = reoriented(volume.array, volume.header, first)
            errors, _ = compare(first, header)
            if errors:
                raise ValueError(f"{folder / name}.nii.gz: {'; '.join(errors)}")
            volume.array = array
        first = first or volume.header
        volumes.append(volume.array)
    if first is None:
        raise ValueError("modalities: expected at least one, got none")
    return volumes, first


def prepare_case(
    folder: Path, label: Path, out: Path, statistics: Sequence[Statistics],
    modalities: Sequence[str] = MODALITIES, spacing: Sequence[float] = SPACING,
) -> Way:  # fmt: skip
    """Write image, image_contrast and label of one case below `out`, and `out`/way/<case>.json."""
    volumes, header = read_case(folder, modalities)
    labels = read_labels(label)
    errors, _ = compare(header, labels.header)
    if errors:
        raise ValueError(f"{label}: {'; '.join(errors)}")
    channels, kept, way = crop_and_scale(volumes, header, statistics, spacing, labels.array)
    assert kept is not None
    at = np.diag([*spacing[::-1], 1.0])
    rows = tuple(tuple(float(v) for v in row) for row in at)
    z, y, x = kept.shape
    grid = Header((z, y, x), (spacing[0], spacing[1], spacing[2]), rows)
    for name, channel in zip(modalities, channels, strict=True):
        write_nifti(out / name / f"{folder.name}.nii.gz", channel, grid, level=1)
    write_nifti(out / "label" / f"{folder.name}.nii.gz", kept, grid, level=1)
    write_json(out / "way" / f"{folder.name}.json", way.to_json())
    return way


def prepare_folder(
    root: Path, labels: Path, out: Path, modalities: Sequence[str] = MODALITIES,
    spacing: Sequence[float] = SPACING, seed: int = 2023,
) -> list[str]:  # fmt: skip
    """All cases of `root`/<case>/ with `labels`/<case>.nii.gz; statistics.json and train, valid, test.csv
    as well.

    Statistics are taken over the training cases of the split alone, so that nothing of the test cases leaks.
    Returns the names of the cases. ValueError names what is missing.
    """
    cases = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not cases:
        raise ValueError(f"{root}: expected a folder for each case, got none")
    without = [case for case in cases if not (labels / f"{case}.nii.gz").is_file()]
    if without:
        raise ValueError(
            f"{labels}: expected a label map for each case, got none for {', '.join(without[:3])}"
        )
    parts = split_cases(cases, seed)
    statistics = []
    for name in modalities:
        pairs = (
            (read_volume(root / case / f"{name}.nii.gz").array, read_labels(labels / f"{case}.nii.gz").array)
            for case in parts["train"]
        )
        statistics.append(statistics_of(pairs))
    write_json(out / "statistics.json", {n: asdict(s) for n, s in zip(modalities, statistics, strict=True)})
    for case in cases:
        prepare_case(root / case, labels / f"{case}.nii.gz", out, statistics, modalities, spacing)
    for part, names in parts.items():
        lines = [",".join((*modalities, "label"))]
        lines += [",".join(f"{folder}/{case}.nii.gz" for folder in (*modalities, "label")) for case in names]
        write_text(out / f"{part}.csv", "\n".join(lines) + "\n")
    return cases


def split_cases(cases: Sequence[str], seed: int = 2023) -> dict[str, list[str]]:
    """70 % to train on, 10 % to watch, 20 % to test; at least one to train on."""
    order = sorted(cases)
    random.Random(seed).shuffle(order)
    train, valid = max(1, int(0.7 * len(order))), int(0.8 * len(order))
    return {"train": order[:train], "valid": order[train:valid], "test": order[max(train, valid) :]}


def load_way(path: Path) -> Way:
    """The record beside a prepared case."""
    with reading(path, "the record of a prepared case"):
        return Way.from_json(json.loads(path.read_text(encoding="utf-8")))
