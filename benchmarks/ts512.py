"""The label volumes of the benchmark ids that end in ts512: 120 x 512 x 512 voxels with 61 structures.

Made from `example_seg_fast_force_split.nii.gz` of TotalSegmentator's source archive (Wasserthal et al., arXiv
2208.05868; Apache-2.0), enlarged by nearest indices; the prediction is the same, moved by 2 and 3 voxels. The
environment variable TENFOLD_TOTALSEGMENTATOR names the archive (totalsegmentator-2.18.0.tar.gz) or its
folder. Without it a seeded volume of the same size and number of structures takes its place, and the
benchmark's note says so.
"""

from __future__ import annotations

import gzip
import os
import struct
import tarfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

FILE = "tests/reference_files/example_seg_fast_force_split.nii.gz"
VARIABLE = "TENFOLD_TOTALSEGMENTATOR"
SHAPE = (120, 512, 512)
SPACING = (2.8, 303 / 512, 366 / 512)
STRUCTURES = 61
DTYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4"}
"""NIfTI-1 codes of data types."""

Labels = np.ndarray[Any, np.dtype[np.uint8]]


def read_nifti_labels(data: bytes) -> Labels:
    """The voxels (z, y, x) of a little-endian NIfTI-1 file of whole numbers below 256."""
    sizes = struct.unpack("<8h", data[40:56])
    if sizes[0] != 3:
        raise ValueError(f"{FILE}: expected 3 axes, got {sizes[0]}")
    code, offset = struct.unpack("<h", data[70:72])[0], int(struct.unpack("<f", data[108:112])[0])
    shape = sizes[1:4]
    count = shape[0] * shape[1] * shape[2]
    voxels = np.frombuffer(data, np.dtype("<" + DTYPES[code]), count, offset)
    return voxels.astype(np.uint8).reshape(shape[::-1])


def from_archive(place: str, file: str = FILE) -> Labels:
    """A label map (z, y, x) of TotalSegmentator's source archive, or of the folder it was unpacked to."""
    path = Path(place)
    if path.is_dir():
        return read_nifti_labels(gzip.decompress((path / file).read_bytes()))
    with tarfile.open(path) as archive:
        for member in archive:
            if member.name.endswith(file):
                found = archive.extractfile(member)
                assert found is not None
                return read_nifti_labels(gzip.decompress(found.read()))
    raise ValueError(f"{VARIABLE}: expected an archive with {file}, got {place}")


def _seeded() -> Labels:
    """Ellipsoids of many sizes in a body, as many as the real volume has structures, a quarter its size."""
    rng = np.random.default_rng(512)
    shape = (112, 101, 122)
    z, y, x = np.ogrid[: shape[0], : shape[1], : shape[2]]
    out = np.zeros(shape, np.uint8)
    for label in range(1, STRUCTURES + 1):
        centre = rng.uniform(0.15, 0.85, 3) * shape
        radii = rng.uniform(0.02, 0.03 + 0.3 * (label / STRUCTURES - 1) ** 2, 3) * shape + 1.5
        inside = sum(((a - c) / r) ** 2 for a, c, r in zip((z, y, x), centre, radii, strict=True)) < 1
        out[inside] = label
    return out


def enlarged(small: Labels, shape: tuple[int, ...]) -> Labels:
    """Nearest voxels: index floor((k + 1/2) n_in / n_out) along each axis."""
    at = [np.floor((np.arange(n) + 0.5) * m / n).astype(int) for n, m in zip(shape, small.shape, strict=True)]
    return np.ascontiguousarray(small[np.ix_(*at)])


def moved(target: Labels) -> Labels:
    """pred[k, j, i] = target[k, j - 2, i + 3], 0 outside."""
    pred = np.zeros_like(target)
    pred[:, 2:, :-3] = target[:, :-2, 3:]
    return pred


def present(*volumes: Labels) -> list[int]:
    """The labels above 0 that any of the volumes has, in order."""
    counts = sum(np.bincount(v.reshape(-1), minlength=256) for v in volumes)
    return [int(label) for label in np.flatnonzero(counts) if label]


@lru_cache(maxsize=2)
def volumes(tiny: bool = False) -> tuple[Labels, Labels, str]:
    """Target, prediction, and what they are; uint8 (z, y, x)."""
    place = os.environ.get(VARIABLE)
    small = from_archive(place) if place else _seeded()
    shape = (12, 40, 48) if tiny else SHAPE
    target = enlarged(small, shape)
    name = (
        "TotalSegmentator example_seg_fast_force_split"
        if place
        else "seeded ellipsoids (no real volume given)"
    )
    structures = len(present(target))
    size = " x ".join(map(str, shape))
    note = f"{name}, {size}, {structures} structures, target against itself moved by 2 and 3 voxels"
    return target, moved(target), note
