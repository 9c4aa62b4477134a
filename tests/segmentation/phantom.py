"""Small head phantoms in the challenge's layouts: 54 parts as cells around seeded points in an ellipsoid."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tenfold.segmentation import TASKS, Header, Task, merge, write_mha, write_nifti

SHAPE = (14, 30, 32)
SPACING = (3.0, 0.54, 0.54)


def header(shape: tuple[int, int, int] = SHAPE, spacing: tuple[float, float, float] = SPACING) -> Header:
    """RAS axes with an origin of its own."""
    affine = np.diag([*spacing[::-1], 1.0])
    affine[:3, 3] = (-8.0, 5.5, -100.0)
    rows = tuple(tuple(float(v) for v in row) for row in affine)
    spacing32 = tuple(float(np.float32(s)) for s in spacing)
    return Header(shape, (spacing32[0], spacing32[1], spacing32[2]), rows)


def label_map(seed: int = 0, shape: tuple[int, int, int] = SHAPE, parts: int = 54) -> NDArray[np.uint8]:
    """Labels 1..parts in an ellipsoid, 0 outside."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij"), -1)
    seeds = rng.uniform(-0.8, 0.8, (parts, 3))
    nearest = ((grid[..., None, :] - seeds) ** 2).sum(-1).argmin(-1) + 1
    return np.where((grid**2).sum(-1) < 0.9, nearest, 0).astype(np.uint8)


def moved(volume: NDArray[np.uint8], rows: int = 1, columns: int = -2) -> NDArray[np.uint8]:
    """Shifted within the slices, zeros outside."""
    found = np.zeros_like(volume)
    h, w = volume.shape[1:]
    found[:, max(rows, 0) : h + min(rows, 0), max(columns, 0) : w + min(columns, 0)] = volume[
        :, max(-rows, 0) : h + min(-rows, 0), max(-columns, 0) : w + min(-columns, 0)
    ]
    return found


def write_organs(
    folder: Path, volume: NDArray[np.uint8], task: Task = TASKS["1"], names: Iterable[str] | None = None,
    head: Header | None = None,
) -> None:  # fmt: skip
    """folder/<Organ>.nii.gz of a label map."""
    folder.mkdir(parents=True, exist_ok=True)
    for organ, mask in zip(task.organs, merge(volume, task), strict=True):
        if names is None or organ in names:
            write_nifti(
                folder / f"{organ}.nii.gz", mask.astype(np.uint8), head or header(volume.shape), level=1
            )


def write_stack(path: Path, volume: NDArray[np.uint8], task: Task = TASKS["1"]) -> None:
    """A 4-D MHA of a label map."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_mha(path, (mask.astype(np.uint8) for mask in merge(volume, task)), header(volume.shape))


def write_map(path: Path, volume: NDArray[np.uint8]) -> None:
    """A label map as NIfTI."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_nifti(path, volume, header(volume.shape), level=1)
