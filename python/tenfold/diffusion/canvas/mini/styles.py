"""Style filters of the mini canvas: whole batches of pictures, arrays in, arrays out, nothing random.

Each follows the look of a style of UnlearnCanvas by that name. They are written in float32 with additions
in a fixed order, so that a picture is the same in any batch.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from tenfold import _checks
from tenfold.assets import packaged_file

__all__ = ["PHOTO", "STYLES", "apply_style"]

PHOTO = "Seed_Images"
"""The photographs themselves, by the name that UnlearnCanvas gives them."""

Pictures = NDArray[np.float32]
_WHITE = np.float32(255)


def apply_style(pictures: NDArray[np.uint8], style: str) -> NDArray[np.uint8]:
    """Pictures in a style.

    Args:
        pictures: uint8 [B, H, W, 3], sides multiples of 8. style: one of `STYLES`, or `PHOTO`.

    Returns:
        uint8 [B, H, W, 3].

    Raises:
        ValueError: another style, shape or type.
    """
    _checks.choice("style", style, (*STYLES, PHOTO))
    if pictures.dtype != np.uint8 or pictures.ndim != 4 or pictures.shape[3] != 3:
        _checks.fail(ValueError, "pictures", "uint8 [B, H, W, 3]", f"{pictures.dtype} {list(pictures.shape)}")
    if pictures.shape[1] % 8 or pictures.shape[2] % 8:
        _checks.fail(ValueError, "pictures", "sides that are multiples of 8", list(pictures.shape))
    if style == PHOTO:
        return pictures.copy()
    styled = STYLES[style](pictures.astype(np.float32))
    return np.clip(np.rint(styled), 0, 255).astype(np.uint8)


def _luminance(x: Pictures) -> Pictures:
    """[B, H, W] in [0, 1]."""
    weights = np.float32(0.299), np.float32(0.587), np.float32(0.114)
    found: Pictures = (x[..., 0] * weights[0] + x[..., 1] * weights[1] + x[..., 2] * weights[2]) / _WHITE
    return found


def _blur(x: Pictures) -> Pictures:
    """Binomial weights 1, 2, 1 along rows and columns; edges are repeated."""
    for axis in (1, 2):
        low, high = np.roll(x, 1, axis), np.roll(x, -1, axis)
        first: list[slice | int] = [slice(None)] * x.ndim
        last = list(first)
        first[axis], last[axis] = 0, -1
        low[tuple(first)], high[tuple(last)] = x[tuple(first)], x[tuple(last)]
        x = (low + x + x + high) * np.float32(0.25)
    return x


def _slope(luminance: Pictures) -> Pictures:
    """Size of the gradient between neighbours, [B, H, W]."""
    down = np.diff(luminance, axis=1, append=luminance[:, -1:])
    across = np.diff(luminance, axis=2, append=luminance[:, :, -1:])
    return np.sqrt(down * down + across * across)


def _ramp(value: Pictures, *colors: tuple[int, int, int]) -> Pictures:
    """Colours at equal distances, [B, H, W] in [0, 1] -> [B, H, W, 3]."""
    table = np.array(colors, np.float32)
    at = np.clip(value, 0, 1) * np.float32(len(table) - 1)
    low = np.minimum(at.astype(np.int64), len(table) - 2)
    share = (at - low)[..., None].astype(np.float32)
    return table[low] * (1 - share) + table[low + 1] * share


def _bricks(x: Pictures) -> Pictures:
    colors = (60, 25, 12), (165, 78, 42), (236, 190, 150)
    texture = _brick_wall(x.shape[1], x.shape[2])
    return _ramp(_luminance(_blur(x)), *colors) * texture[None, :, :, None]


_WALLS: dict[tuple[int, int], Pictures] = {}


def _brick_wall(height: int, width: int) -> Pictures:
    """scikit-image's photograph of a wall at this size, around 1."""
    if (height, width) not in _WALLS:
        from PIL import Image

        with Image.open(packaged_file("skimage", "data/brick.png")) as image:
            gray = image.convert("L").crop((0, 0, 256, 256)).resize((width, height), Image.Resampling.BOX)
        wall = np.asarray(gray, np.float32)
        _WALLS[height, width] = np.clip(1 + (wall - wall.mean()) / (6 * wall.std()), 0.6, 1.3)
    return _WALLS[height, width]


def _cartoon(x: Pictures) -> Pictures:
    soft = _blur(x)
    flat = np.rint(soft / _WHITE * 3) * (_WHITE / 3)
    gray = _luminance(flat)[..., None] * _WHITE
    vivid = gray + np.float32(2.2) * (flat - gray)
    edges = (_slope(_luminance(soft)) > np.float32(0.09))[..., None]
    return np.where(edges, np.float32(0), vivid)


def _mosaic(x: Pictures) -> Pictures:
    batch, height, width, _ = x.shape
    tall, wide = height // 8, width // 8
    means = x.reshape(batch, 8, tall, 8, wide, 3).mean((2, 4), keepdims=True)
    tiles = np.broadcast_to(means, (batch, 8, tall, 8, wide, 3)).reshape(x.shape).copy()
    tiles[:, ::tall] *= np.float32(0.2)
    tiles[:, :, ::wide] *= np.float32(0.2)
    return tiles


def _neon_lines(x: Pictures) -> Pictures:
    glow = np.clip(_slope(_luminance(x)) * 4, 0, 1)[..., None]
    height = np.linspace(0, 1, x.shape[1], dtype=np.float32)[None, :, None]
    return glow * _ramp(np.broadcast_to(height, x.shape[:3]), (0, 255, 255), (255, 0, 255))


def _on_fire(x: Pictures) -> Pictures:
    return _ramp(_luminance(x), (0, 0, 0), (120, 0, 0), (230, 70, 0), (255, 190, 20), (255, 255, 200))


def _sketch(x: Pictures) -> Pictures:
    ink = np.clip(1 - np.float32(2.5) * _slope(_luminance(x)), 0, 1)[..., None]
    return ink * np.array((248, 245, 236), np.float32)


def _watercolor(x: Pictures) -> Pictures:
    for _ in range(4):
        x = _blur(x)
    return np.float32(95) + x * np.float32(0.62)


def _winter(x: Pictures) -> Pictures:
    return _ramp(_luminance(x), (10, 25, 70), (60, 110, 180), (170, 210, 240), (255, 255, 255))


STYLES: dict[str, Callable[[Pictures], Pictures]] = {
    "Bricks": _bricks,
    "Cartoon": _cartoon,
    "Mosaic": _mosaic,
    "Neon_Lines": _neon_lines,
    "On_Fire": _on_fire,
    "Sketch": _sketch,
    "Watercolor": _watercolor,
    "Winter": _winter,
}
"""Name -> filter of float32 [B, H, W, 3] in 0..255."""
