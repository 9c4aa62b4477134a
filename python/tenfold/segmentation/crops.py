"""A mask cut to the box around its voxels, which is all of it that memory has to hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from tenfold.segmentation.files import Header

__all__ = ["Crop", "boxed", "common_box", "dice", "joined", "piece_of"]

Corner = tuple[int, int, int]


@dataclass
class Crop:
    """The box of a mask that holds its voxels; everything outside is empty."""

    array: NDArray[np.bool_]
    """bool (z, y, x)."""
    start: Corner
    """Voxel of the volume that `array[0, 0, 0]` is."""
    header: Header
    """Of the whole volume."""
    sha256: str = ""
    """Of the file as it is stored."""

    @cached_property
    def count(self) -> int:
        """Voxels of the mask."""
        return int(np.count_nonzero(self.array))

    @property
    def stop(self) -> Corner:
        """The voxel behind the last one of `array`, on each axis."""
        z, y, x = (a + n for a, n in zip(self.start, self.array.shape, strict=True))
        return z, y, x

    def span(self, start: Corner, stop: Corner) -> NDArray[np.uint8]:
        """The part start..stop of the volume; it holds the whole crop."""
        if (start, stop) == (self.start, self.stop):
            return self.array.view(np.uint8)
        found = np.zeros([b - a for a, b in zip(start, stop, strict=True)], np.uint8)
        inside = zip(self.start, start, self.array.shape, strict=True)
        found[tuple(slice(mine - a, mine - a + n) for mine, a, n in inside)] = self.array
        return found

    def whole(self) -> NDArray[np.uint8]:
        """The mask over the whole volume."""
        return (
            self.span((0, 0, 0), self.header.shape) if self.count else np.zeros(self.header.shape, np.uint8)
        )


Piece = tuple[Corner, NDArray[np.bool_]]


def piece_of(values: NDArray[Any], first: int = 0) -> Piece | None:
    """The box around what is not 0 in slices from `first` on, copied; None if there is nothing."""
    mask = values != 0
    plane = mask.any(axis=0)
    flat = [np.flatnonzero(line) for line in (mask.any(axis=(1, 2)), plane.any(axis=1), plane.any(axis=0))]
    if not flat[1].size:
        return None
    z, y, x = (slice(int(line[0]), int(line[-1]) + 1) for line in flat)
    return (first + z.start, y.start, x.start), mask[z, y, x].copy()


def joined(pieces: list[Piece], header: Header, sha256: str = "") -> Crop:
    """One crop of pieces that lie behind each other; empties the list, so that memory is there once."""
    if not pieces:
        return Crop(np.zeros((0, 0, 0), bool), (0, 0, 0), header, sha256)
    if len(pieces) == 1:
        start, array = pieces.pop()
        return Crop(array, start, header, sha256)
    lows = np.min([start for start, _ in pieces], axis=0)
    highs = np.max([np.add(start, array.shape) for start, array in pieces], axis=0)
    found = np.zeros(highs - lows, bool)
    while pieces:
        start, array = pieces.pop()
        found[tuple(slice(a - b, a - b + n) for a, b, n in zip(start, lows, array.shape, strict=True))] = (
            array
        )
    z, y, x = (int(n) for n in lows)
    return Crop(found, (z, y, x), header, sha256)


def boxed(values: NDArray[Any], header: Header) -> Crop:
    """The crop of a whole volume: what is not 0."""
    piece = piece_of(values)
    return joined([piece] if piece else [], header)


def common_box(crops: Sequence[Crop]) -> tuple[Corner, Corner]:
    """Start and stop of the box around all crops; an empty one if all are empty."""
    filled = [crop for crop in crops if crop.count]
    if not filled:
        return (0, 0, 0), (0, 0, 0)
    lows, highs = zip(*((crop.start, crop.stop) for crop in filled), strict=True)
    (a, b, c), (d, e, f) = np.min(lows, axis=0).tolist(), np.max(highs, axis=0).tolist()
    return (a, b, c), (d, e, f)


def dice(a: Crop, b: Crop) -> float:
    """DSC of two masks of the same volume; 0 if both are empty."""
    start, stop = np.maximum(a.start, b.start), np.minimum(a.stop, b.stop)
    both = 0
    if (start < stop).all():
        parts = [
            crop.array[tuple(slice(p - o, q - o) for p, q, o in zip(start, stop, crop.start, strict=True))]
            for crop in (a, b)
        ]
        both = int(np.count_nonzero(parts[0] & parts[1]))
    return 2 * both / (a.count + b.count) if a.count + b.count else 0.0
