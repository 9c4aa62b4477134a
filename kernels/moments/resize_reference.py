"""Resizing of pictures as Pillow, clean-fid, OpenCV and TensorFlow 1 do it: weights, then two passes.

Pillow's filters widen with the step, so that a smaller picture averages all that it covers. Its uint8 pass
has weights of 22 binary digits and rounds after each axis; with `quantize=False` rows stay float32, as in
Pillow's mode "F", which clean-fid uses (Parmar, Zhang and Zhu, arXiv 2104.11222). Rows come first, as in
Pillow until its pull request 9549 of 2026, which takes columns first where the height shrinks much more.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

MODES = ("pil", "cv2", "tf1")
FILTERS = ("bilinear", "bicubic")
BITS = 22
"""Binary digits behind the point of Pillow's weights: 32 less 8 for the pixel and 2 for overshoot."""

Taps = tuple[tuple[int, tuple[float, ...]], ...]
"""For each place of the output: the first place of the input, and weights from there on."""


def _bilinear(x: float) -> float:
    return max(0.0, 1.0 - abs(x))


def _bicubic(x: float) -> float:
    """Keys' cubic with a = -1/2."""
    x, a = abs(x), -0.5
    if x < 1.0:
        return ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    return (((x - 5.0) * x + 8.0) * x - 4.0) * a if x < 2.0 else 0.0


@lru_cache(maxsize=64)
def taps(old: int, new: int, filter: str, mode: str) -> Taps:
    """The weights of one axis."""
    if mode == "pil":
        return tuple(_pil_taps(old, new, filter, at) for at in range(new))
    return tuple(_two_taps(old, new, mode, at) for at in range(new))


def _pil_taps(old: int, new: int, filter: str, at: int) -> tuple[int, tuple[float, ...]]:
    scale = old / new
    wide = max(scale, 1.0)
    kernel, reach = (_bilinear, 1.0) if filter == "bilinear" else (_bicubic, 2.0)
    centre, support, narrow = (at + 0.5) * scale, reach * wide, 1.0 / wide
    first = max(0, int(centre - support + 0.5))
    last = min(old, int(centre + support + 0.5))
    weights = [kernel((x - centre + 0.5) * narrow) for x in range(first, last)]
    total = 0.0
    for weight in weights:
        total += weight
    return first, tuple(w / total if total else w for w in weights)


def _two_taps(old: int, new: int, mode: str, at: int) -> tuple[int, tuple[float, ...]]:
    """Two neighbours, whatever the step: pixels are skipped. TensorFlow 1 lets corners, not centres, meet."""
    place = (at + 0.5) * old / new - 0.5 if mode == "cv2" else at * (old / new)
    place = min(max(place, 0.0), old - 1.0)
    first = min(int(place), max(old - 2, 0))
    share = place - first
    return first, (1.0 - share, share) if old > 1 else (1.0,)


def whole(weight: float) -> int:
    """A weight in units of 2^-22, rounded away from zero at a half, as Pillow has it."""
    return int(math.copysign(math.floor(abs(weight) * (1 << BITS) + 0.5), weight))


@lru_cache(maxsize=16)
def _matrix(old: int, new: int, filter: str, mode: str, quantize: bool) -> Tensor:
    """[new, old] float64; with `quantize` of whole numbers, so that products with pixels are exact."""
    out = torch.zeros(new, old, dtype=torch.float64)
    for at, (first, weights) in enumerate(taps(old, new, filter, mode)):
        row = [float(whole(w)) for w in weights] if quantize else list(weights)
        out[at, first : first + len(row)] = torch.tensor(row, dtype=torch.float64)
    return out


def resize(x: Tensor, size: tuple[int, int], filter: str, mode: str, quantize: bool) -> Tensor:
    """x: uint8 [B, H, W, C]. Returns float32 [B, C, h, w] in 0..255."""
    planes = x.permute(0, 3, 1, 2).double()
    across, down = (
        _matrix(old, new, filter, mode, quantize).to(x.device)
        for old, new in ((x.shape[2], size[1]), (x.shape[1], size[0]))
    )
    planes = _rounded(planes @ across.T, quantize)
    return _rounded(down @ planes, quantize).float()


def _rounded(values: Tensor, quantize: bool) -> Tensor:
    """What an axis leaves: a byte, or a float32."""
    if not quantize:
        return values.float().double()
    return values.add_(2.0 ** (BITS - 1)).mul_(2.0**-BITS).floor_().clamp_(0.0, 255.0)
