"""Sliding-window inference slab by slab: labels of a volume without the logits of the whole volume.

Windows are visited in the order of their first slice. As soon as no later window reaches a slice, its classes
are compared and its logits forgotten, so that C x patch x Y x X logits are held instead of C x Z x Y x X: for
126 x 1024 x 1024 voxels with patches of 28 slices, a quarter or less of them.

Placement and weights are those of nnU-Net (arXiv 1809.10486) or of PyMIC. Weights are float32 and
at most 1: in float16 a Gaussian's corners vanish, and 0 / 0 is no label.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from tenfold import _checks

PROFILES = ("nnunet", "pymic")
Predict = Callable[[Tensor], Tensor]


def window_starts(size: Sequence[int], patch: Sequence[int], *, step: float = 0.5) -> list[list[int]]:
    """First voxels of the windows along each axis, evenly spaced, the last one ending with the volume.

    n = ceil((size - patch) / (patch step)) + 1 windows, as nnU-Net places them; a window larger than the
    volume starts at 0.

    Args:
        size, patch: of the volume and of the window, per axis.
        step: the largest distance of neighbours, as a share of the window, in (0, 1].
    """
    step = _checks.real("step", step, positive=True)
    if step > 1:
        _checks.fail(ValueError, "step", "a number in (0, 1]", step)
    size, patch = _sizes("size", size), _sizes("patch", patch)
    _checks.length("patch", patch, len(size), "the axes of size")
    starts = []
    for n, p in zip(size, patch, strict=True):
        room = max(0, n - p)
        count = room + 1 if p * step <= 1 else -(-room // (p * step)) + 1
        apart = room / (count - 1) if count > 1 else 0.0
        starts.append([round(apart * i) for i in range(int(count))])
    return starts


def gaussian_weights(
    patch: Sequence[int], *, sigma_scale: float = 0.125, device: torch.device | str = "cpu"
) -> Tensor:
    """A Gaussian about the middle of a window, sigma = patch * sigma_scale, the largest entry 1, float32.

    Entries that are zero get the smallest that is not, so that every voxel has a weight.
    """
    scale = _checks.real("sigma_scale", sigma_scale, positive=True)
    patch = _sizes("patch", patch)
    weights = torch.ones([1] * len(patch), dtype=torch.float64)
    for axis, n in enumerate(patch):
        at = torch.arange(n, dtype=torch.float64) - (n - 1) / 2
        line = torch.exp(-0.5 * (at / (scale * n)) ** 2)
        if not bool(torch.isfinite(line).all()) or not float(line.max()) > 0:
            _checks.fail(
                ValueError, "sigma_scale", "a share of the patch that is not lost in rounding", scale
            )
        weights = weights * line.reshape([-1 if k == axis else 1 for k in range(len(patch))])
    found = (weights / weights.max()).float()
    return torch.where(found == 0, found[found > 0].min(), found).to(device)


def mirrored(
    predict: Predict,
    axes: Iterable[int] = (0, 1, 2),
    *,
    left_right_axis: int | None = None,
    swap: Iterable[tuple[int, int]] = (),
) -> Predict:
    """The mean of a network's logits over all mirrorings along `axes`, left and right put back in place.

    Mirroring across the mid-sagittal plane turns a left parotid into a right one. A network that was trained
    with sides calls it right, and averaging over mirrorings then mixes the sides. With `left_right_axis` and
    `swap` the channels of a pair change places.

    Args:
        predict: [B, channels, spatial...] -> logits [B, C, spatial...].
        axes: spatial axes, 0 the first.
        left_right_axis: the one among them whose mirroring exchanges the sides.
        swap: pairs of classes that are left and right of each other.
    """
    chosen = [
        _checks.integer("axes", a, 0, 9) for a in _checks.items("axes", axes, "integers", ordered=False)
    ]
    pairs = [_pair(pair) for pair in _checks.items("swap", swap, "pairs of classes", ordered=False)]
    if pairs and left_right_axis is None:
        _checks.fail(ValueError, "left_right_axis", "an axis, as there are pairs to swap", None)

    def run(x: Tensor) -> Tensor:
        total: Tensor | None = None
        flips = [c for k in range(len(chosen) + 1) for c in itertools.combinations(chosen, k)]
        for flip in flips:
            dims = [2 + a for a in flip]
            logits = predict(x.flip(dims) if dims else x)
            logits = logits.flip(dims) if dims else logits
            if left_right_axis in flip and pairs:
                logits = logits.index_select(1, _exchanged(logits.shape[1], pairs, logits.device))
            total = logits if total is None else total + logits
        assert total is not None
        return total / len(flips)

    return run


def _pair(pair: Any) -> tuple[int, int]:
    pair = _checks.items("swap", pair, "two classes")
    _checks.length("swap", pair, 2, "the sides")
    first, second = (_checks.integer("swap", c, 0, 2**31 - 1) for c in pair)
    return first, second


def _sizes(name: str, sizes: Any) -> list[int]:
    """Positive integers, one for each axis."""
    return [_checks.integer(name, n, 1, 2**31 - 1) for n in _checks.items(name, sizes, "integers")]


def _exchanged(classes: int, pairs: Sequence[tuple[int, int]], device: torch.device) -> Tensor:
    order = list(range(classes))
    for a, b in pairs:
        if not (0 <= a < classes and 0 <= b < classes):
            _checks.fail(ValueError, "swap", f"classes in [0, {classes})", (a, b))
        order[a], order[b] = b, a
    return torch.tensor(order, device=device)


@torch.no_grad()
def sliding_window(
    image: Tensor,
    predict: Predict,
    patch: Sequence[int],
    *,
    step: float | None = None,
    sigma_scale: float = 0.125,
    profile: str = "nnunet",
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """Labels of a volume by overlapping windows, with no more logits in memory than one row of windows needs.

    Args:
        image: [channels, z, y, x], on any device.
        predict: a window [1, channels, patch...] -> logits [1, C, patch...].
        patch: size of the window, per axis. A smaller volume is padded with zeros at its end.
        step: distance of neighbours as a share of the window; by default 0.5, with profile="pymic" 1.
        sigma_scale: of the Gaussian weights.
        profile: placement of the windows. "nnunet": evenly spaced (`window_starts`). "pymic": multiples of
            the stride, the last ones moved back to end with the volume.
        dtype: of the sums of logits.
        device: where windows are predicted and summed; that of image by default.

    Returns:
        Labels [z, y, x] on the CPU, uint8 with at most 256 classes, else int16; the lowest of equals.

    Raises:
        TypeError, ValueError: wrong kinds, shapes or options, also of what `predict` returns.
    """
    slabs = sliding_window_slabs(
        image,
        predict,
        patch,
        step=step,
        sigma_scale=sigma_scale,
        profile=profile,
        dtype=dtype,
        device=device,
    )
    found = []
    for _, logits in slabs:
        wide = logits.shape[0] > 256
        found.append(logits.argmax(0).to(torch.int16 if wide else torch.uint8).cpu())
    return torch.cat(found)


@torch.no_grad()
def sliding_window_slabs(
    image: Tensor,
    predict: Predict,
    patch: Sequence[int],
    *,
    step: float | None = None,
    sigma_scale: float = 0.125,
    profile: str = "nnunet",
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """The slabs of `sliding_window` as they are done: (first slice, mean of logits [C, slices, y, x]).

    The logits are a view of memory that the next slab overwrites. Arguments as `sliding_window`.
    """
    _checks.choice("profile", profile, PROFILES)
    _checks.tensor("image", image)
    if image.ndim != 4 or 0 in image.shape:
        _checks.fail(ValueError, "image", "shape [channels, z, y, x], not empty", tuple(image.shape))
    shape = tuple(_sizes("patch", patch))
    _checks.length("patch", shape, 3, "the spatial axes")
    _checks.dtype("dtype", dtype)
    where = image.device if device is None else torch.device(device)
    step = (
        (0.5 if profile == "nnunet" else 1.0) if step is None else _checks.real("step", step, positive=True)
    )
    if step > 1:
        _checks.fail(ValueError, "step", "a number in (0, 1]", step)
    size = image.shape[1:]
    starts = window_starts(size, shape, step=step) if profile == "nnunet" else _strided(size, shape, step)
    weights = gaussian_weights(shape, sigma_scale=sigma_scale, device=where).to(dtype)
    wide = [max(n, p) for n, p in zip(size[1:], shape[1:], strict=True)]
    totals: Tensor | None = None
    done = 0
    for k, z in enumerate(starts[0]):
        for y, x in itertools.product(starts[1], starts[2]):
            logits = predict(_window(image, (z, y, x), shape, where))
            _check_logits(logits, shape, totals)
            if totals is None:
                totals = torch.zeros((logits.shape[1] + 1, shape[0], *wide), dtype=dtype, device=where)
            place = totals[:, :, y : y + shape[1], x : x + shape[2]]
            place[:-1].addcmul_(logits[0].to(dtype), weights)
            place[-1] += weights
        assert totals is not None
        until = starts[0][k + 1] if k + 1 < len(starts[0]) else size[0]
        ready = until - done
        slab = totals[:-1, :ready, : size[1], : size[2]]
        slab /= totals[-1, :ready, : size[1], : size[2]]
        yield done, slab
        if until < size[0]:
            totals[:, : shape[0] - ready] = totals[:, ready:].clone()
            totals[:, shape[0] - ready :] = 0
        done = until


def _strided(size: Sequence[int], patch: Sequence[int], step: float) -> list[list[int]]:
    starts = []
    for n, p in zip(size, patch, strict=True):
        stride = max(1, round(p * step))
        last = max(0, n - p)
        starts.append(sorted({min(at, last) for at in range(0, last + stride, stride)}))
    return starts


def _window(image: Tensor, start: Sequence[int], patch: Sequence[int], device: torch.device) -> Tensor:
    part = image
    for axis, (first, n) in enumerate(zip(start, patch, strict=True), 1):
        part = part.narrow(axis, first, min(n, image.shape[axis] - first))
    missing = [n - m for n, m in zip(patch, part.shape[1:], strict=True)]
    part = part.to(device)
    if any(missing):
        part = torch.nn.functional.pad(part, [v for m in reversed(missing) for v in (0, m)])
    return part[None]


def _check_logits(logits: Tensor, patch: Sequence[int], totals: Tensor | None) -> None:
    classes = None if totals is None else totals.shape[0] - 1
    good = logits.ndim == 5 and logits.shape[0] == 1 and tuple(logits.shape[2:]) == tuple(patch)
    if not good or (classes is not None and logits.shape[1] != classes):
        what = f"logits [1, {classes or 'C'}, {', '.join(map(str, patch))}]"
        _checks.fail(ValueError, "predict", what, tuple(logits.shape))
