"""Overlap and surface metrics of one structure in NumPy and SciPy: what the kernels are tested against.

Definitions: surface elements and their areas as in surface-distance (Nikolov et al., arXiv 1809.04430), which
the challenge uses; edge voxels as in MONAI and MedPy. Conventions are part of every name.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

__all__ = ["area_table", "measure_masks"]

# Surface elements between eight voxels: one representative code of each class under reflection,
# permutation of axes and complement, and the components of its normals in eighths (only their sizes matter
# for the area).
_CLASSES = {
    1: ("111",), 3: ("220", "220"), 6: ("111", "111"), 7: ("111", "222", "400"), 15: ("400", "400"),
    22: ("111", "111", "111"), 23: ("111", "111", "222", "222"), 24: ("111", "111"),
    25: ("022", "022", "111"), 27: ("022", "111", "202", "333"), 30: ("111", "111", "222", "400"),
    60: ("220",) * 4, 105: ("111",) * 4,
}  # fmt: skip


@cache
def _normals() -> dict[int, list[tuple[int, int, int]]]:
    corners = list(itertools.product((0, 1), repeat=3))
    found: dict[int, list[tuple[int, int, int]]] = {}
    for code, normals in _CLASSES.items():
        held = {c for c in corners if code & 1 << (7 - (4 * c[0] + 2 * c[1] + c[2]))}
        for order in itertools.permutations(range(3)):
            turned = [(int(n[order[0]]), int(n[order[1]]), int(n[order[2]])) for n in normals]
            for flips in itertools.product((0, 1), repeat=3):
                moved = {tuple(c[axis] ^ flip for axis, flip in zip(order, flips, strict=True)) for c in held}
                value = sum(1 << (7 - (4 * a + 2 * b + c)) for a, b, c in moved)
                found[value] = found[255 - value] = turned
    return found


def area_table(spacing: Sequence[float]) -> NDArray[np.float64]:
    """Area in mm^2 of the surface element of each of the 256 codes, for `spacing` (z, y, x) in mm."""
    s0, s1, s2 = map(float, spacing)
    table = np.zeros(256)
    for code, normals in _normals().items():
        for n0, n1, n2 in normals:
            sides = n0 / 8 * s1 * s2, n1 / 8 * s0 * s2, n2 / 8 * s0 * s1
            table[code] += np.sqrt(sides[0] ** 2 + sides[1] ** 2 + sides[2] ** 2)
    return table


def _codes(mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Codes of the lattice points between voxels, one more than voxels along each axis."""
    padded = np.pad(mask, 1)
    shape = [n + 1 for n in mask.shape]
    codes = np.zeros(shape, np.uint8)
    for corner in itertools.product((0, 1), repeat=3):
        weight = 1 << (7 - (4 * corner[0] + 2 * corner[1] + corner[2]))
        part = padded[tuple(slice(c, c + n) for c, n in zip(corner, shape, strict=True))]
        codes += part.astype(np.uint8) * np.uint8(weight)
    return codes


def _edge(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Voxels of the mask with one of six neighbours outside of it."""
    padded = np.pad(mask, 1)
    inner = mask.copy()
    for axis in range(3):
        for at in (0, 2):
            where = [slice(1, -1)] * 3
            where[axis] = slice(at, at + mask.shape[axis])
            inner &= padded[tuple(where)]
    return mask & ~inner


def _distances(
    a: NDArray[np.bool_], b: NDArray[np.bool_], spacing: Sequence[float]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """From each true element of `a` to the nearest of `b`, and back."""
    from scipy.ndimage import distance_transform_edt

    to_b = distance_transform_edt(~b, sampling=spacing)[a]
    to_a = distance_transform_edt(~a, sampling=spacing)[b]
    return to_b, to_a


def _weighted_percentile(distances: NDArray[np.float64], areas: NDArray[np.float64], percent: float) -> float:
    order = np.lexsort((areas, distances))
    share = np.cumsum(areas[order]) / areas.sum()
    at = min(int(np.searchsorted(share, percent / 100)), len(order) - 1)
    return float(distances[order][at])


def measure_masks(
    target: NDArray[np.generic], pred: NDArray[np.generic], spacing: Sequence[float], tolerance: float, *,
    edge: bool = False,
) -> dict[str, float]:  # fmt: skip
    """Everything about one structure: names as in `tenfold.segmentation.scoring`, without empty masks.

    Both masks (z, y, x) must hold at least one voxel; anything that is not 0 belongs to them.
    """
    a, b = np.asarray(target) != 0, np.asarray(pred) != 0
    either = np.argwhere(a | b)
    box = tuple(slice(lo, hi + 1) for lo, hi in zip(either.min(0), either.max(0), strict=True))
    a, b = a[box], b[box]
    table = area_table(spacing)
    codes = [_codes(mask) for mask in (a, b)]
    surfaces = [(c != 0) & (c != 255) for c in codes]
    areas = [table[c[s]] for c, s in zip(codes, surfaces, strict=True)]
    there, back = _distances(surfaces[0], surfaces[1], spacing)
    total = areas[0].sum() + areas[1].sum()
    found = {
        "nsd_dm": float((areas[0][there <= tolerance].sum() + areas[1][back <= tolerance].sum()) / total),
        "hd95_dm": max(_weighted_percentile(there, areas[0], 95), _weighted_percentile(back, areas[1], 95)),
        "hd_dm": float(max(there.max(), back.max())),
        "asd_dm_target": float((there * areas[0]).sum() / areas[0].sum()),
        "asd_dm_pred": float((back * areas[1]).sum() / areas[1].sum()),
        "assd_dm": float(((there * areas[0]).sum() + (back * areas[1]).sum()) / total),
    }
    if edge:
        there, back = _distances(_edge(a), _edge(b), spacing)
        both = np.concatenate([there, back])
        found |= {
            "nsd_edge": float((both <= tolerance).mean()),
            "hd95_edge_max": float(max(np.percentile(there, 95), np.percentile(back, 95))),
            "hd95_edge_pooled": float(np.percentile(both, 95)),
            "assd_edge": float(both.mean()),
        }
    return found
