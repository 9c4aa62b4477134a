"""How much surface passes through a lattice point, for each way its neighbours can be set.

A lattice point lies between 8 voxels (4 pixels in 2-D). Which of them are set makes a code, and each code
stands for a piece of the surface that marching cubes would draw there. The pieces of all 256 codes follow
from 14 of them by the 48 symmetries of the cube and by swapping inside and outside.

The codes and the pieces are those of surface-distance (Apache-2.0, https://github.com/google-deepmind/
surface-distance), whose definition of the normalised surface distance the field uses: Nikolov et al.,
"Deep learning to achieve clinically applicable segmentation of head and neck anatomy for radiotherapy"
(arXiv 1809.04430).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import permutations, product
from math import sqrt

Normals = tuple[tuple[int, int, int], ...]

# code -> the normals of its pieces in eighths of a voxel face, signs left out: only lengths count
REPRESENTATIVES: dict[int, Normals] = {
    0: (),
    1: ((1, 1, 1),),
    3: ((2, 2, 0), (2, 2, 0)),
    6: ((1, 1, 1), (1, 1, 1)),
    7: ((1, 1, 1), (2, 2, 2), (4, 0, 0)),
    15: ((4, 0, 0), (4, 0, 0)),
    22: ((1, 1, 1),) * 3,
    23: ((1, 1, 1), (1, 1, 1), (2, 2, 2), (2, 2, 2)),
    24: ((1, 1, 1), (1, 1, 1)),
    25: ((0, 2, 2), (0, 2, 2), (1, 1, 1)),
    27: ((0, 2, 2), (1, 1, 1), (2, 0, 2), (3, 3, 3)),
    30: ((1, 1, 1), (1, 1, 1), (2, 2, 2), (4, 0, 0)),
    60: ((2, 2, 0),) * 4,
    105: ((1, 1, 1),) * 4,
}


def _images(code: int, normals: Normals) -> Iterator[tuple[int, Normals]]:
    """The code and its normals under every permutation of axes and reflection, inside and outside."""
    corners = [bits for bits in product((0, 1), repeat=3) if code >> _place(bits) & 1]
    for order in permutations(range(3)):
        turned = tuple(sorted((n[order[0]], n[order[1]], n[order[2]]) for n in normals))
        for mirror in product((0, 1), repeat=3):
            image = 0
            for bits in corners:
                image |= 1 << _place([bits[order[axis]] ^ mirror[axis] for axis in range(3)])
            yield image, turned
            yield 255 - image, turned


def _place(bits: Sequence[int]) -> int:
    """Bit of the code for the voxel (a - 1 + i, b - 1 + j, c - 1 + k) of the lattice point (a, b, c)."""
    i, j, k = bits
    return 7 - (4 * i + 2 * j + k)


@lru_cache(maxsize=1)
def all_normals() -> tuple[Normals, ...]:
    """The normals of each of the 256 codes."""
    table: dict[int, Normals] = {}
    for code, normals in REPRESENTATIVES.items():
        for image, turned in _images(code, normals):
            table.setdefault(image, turned)
    return tuple(table[code] for code in range(256))


def area_table(spacing: Sequence[float]) -> list[float]:
    """Surface of each of 256 codes in the square of spacing's unit (3-D), or its unit (2-D).

    In 2-D the four pixels count twice: code 17 * c for the pixel code c, as if the picture were extruded.
    """
    if len(spacing) == 2:
        return _length_table(*spacing)
    s0, s1, s2 = spacing
    faces = (s1 * s2, s0 * s2, s0 * s1)
    out = []
    for normals in all_normals():
        area = 0.0
        for n in normals:
            x, y, z = (n[axis] / 8 * faces[axis] for axis in range(3))
            area += sqrt(x * x + y * y + z * z)
        out.append(area)
    return out


def _length_table(s0: float, s1: float) -> list[float]:
    corner = 0.5 * sqrt(s0 * s0 + s1 * s1)
    lengths = {0b0011: s1, 0b1100: s1, 0b0101: s0, 0b1010: s0, 0b0110: 2 * corner, 0b1001: 2 * corner}
    out = [0.0] * 256
    for code in range(1, 15):
        out[17 * code] = lengths.get(code, corner)
    return out
