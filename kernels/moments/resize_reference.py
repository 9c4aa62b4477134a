"""Resizing of pictures as Pillow, clean-fid, OpenCV and TensorFlow 1 do it: weights, then two passes.

Pillow's filters widen with the step, so that a smaller picture averages all that it covers. Its uint8 pass
has weights of 22 binary digits and rounds after each axis; with `quantize=False` rows stay float32, as in
Pillow's mode "F", which clean-fid uses (Parmar, Zhang and Zhu, arXiv 2104.11222). Rows come first, as in
Pillow until its pull request 9549 of 2026, which takes columns first at some sizes where the height shrinks:
what the first pass cuts off at 0 and 255 then differs, by some 30 levels at hard edges with bicubic.
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

PIECE = 2**18
"""Values of pictures, before or after, whichever are more, that are worked on at a time on the CPU: their
int32 sums stay in its caches."""

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


@lru_cache(maxsize=64)
def _columns(old: int, new: int, filter: str, mode: str, quantize: bool) -> tuple[Tensor, Tensor]:
    """int64 [K, new], where the k-th weight of each place lies, and the weights [K, new], 0 behind the last:
    int32 with `quantize`, else float64."""
    found = taps(old, new, filter, mode)
    most = max(len(weights) for _, weights in found)
    places = [[min(first + k, old - 1) for first, _ in found] for k in range(most)]
    at = torch.tensor(places, device="cpu")  # kept for later calls, whatever device is torch's default now
    rows = [[w[k] if k < len(w) else 0.0 for _, w in found] for k in range(most)]
    if quantize:
        return at, torch.tensor([[whole(w) for w in row] for row in rows], dtype=torch.int32, device="cpu")
    return at, torch.tensor(rows, dtype=torch.float64, device="cpu")


def _along(x: Tensor, new: int, filter: str, mode: str, quantize: bool) -> Tensor:
    """x [old, ...] along its first axis: uint8, or float32 without `quantize`. Weights are added in order, in
    int32, which holds 255 x 2^22 and the overshoot, or float64."""
    at, weights = (t.to(x.device) for t in _columns(x.shape[0], new, filter, mode, quantize))
    flat = x.reshape(x.shape[0], -1)
    out = torch.zeros(new, flat.shape[1], dtype=weights.dtype, device=x.device)
    if quantize:
        out += 1 << (BITS - 1)
    for places, row in zip(at, weights, strict=True):
        out.addcmul_(flat.index_select(0, places).to(out.dtype), row[:, None])
    out = (out >> BITS).clamp_(0, 255).to(torch.uint8) if quantize else out.float()
    return out.view(new, *x.shape[1:])


def resize(x: Tensor, size: tuple[int, int], filter: str, mode: str, quantize: bool) -> Tensor:
    """x: uint8 [B, H, W, C]. Returns float32 [B, C, h, w] in 0..255."""
    height, width = size
    out = x.new_empty((x.shape[0], x.shape[3], height, width), dtype=torch.float32)
    most = max(x.shape[1:].numel(), height * width * x.shape[3])
    pieces = max(1, PIECE // most) if x.device.type == "cpu" else len(x)
    if not len(x):
        return out
    for given, found in zip(x.split(pieces), out.split(pieces), strict=True):
        across = _along(given.permute(2, 1, 0, 3).contiguous(), width, filter, mode, quantize)  # [w, H, B, C]
        down = _along(across.transpose(0, 1).contiguous(), height, filter, mode, quantize)  # [h, w, B, C]
        found.copy_(down.permute(2, 3, 0, 1))
    return out
