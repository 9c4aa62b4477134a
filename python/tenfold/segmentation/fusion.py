"""Label fusion: the structures of one brain predicted from the label maps of others.

What the embedded default compares. There is no image: atlases are laid over the target by the outline of its
grey matter alone (the union of its labels), and vote. Each predictor sees that outline and the other donors'
labels, never the target's own.

Multi-atlas label fusion: Heckemann et al. 2006 (doi 10.1016/j.neuroimage.2006.05.061); weights by overlap:
Artaechevarria et al. 2009 (doi 10.1109/TMI.2009.2014372).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from tenfold.ops import edt, keep_largest

__all__ = [
    "PREDICTORS", "Affine", "align_box", "align_moments", "dense", "fit_outline", "predict", "vote", "warp",
]  # fmt: skip

Labels = NDArray[np.uint8]

PREDICTORS: dict[str, str] = {
    "vote-clean": "as vote-fitted, then smoothed in the outline, the largest part of each structure kept",
    "vote-weighted": "five atlases fitted, votes weighted by how well each one's outline overlaps",
    "vote-fitted": "five atlases fitted to the outline by gradient descent, majority vote",
    "vote-moments": "five atlases laid over the outline by its mean and covariance, majority vote",
    "one-fitted": "the atlas whose outline overlaps best after fitting",
    "one-moments": "the atlas whose outline overlaps best, laid over by mean and covariance",
    "one-box": "the atlas whose bounding box is most alike, stretched to the target's",
    "vote-mirrored": "as vote-moments from mirrored atlases, the sides of their labels not exchanged",
}
"""Predictor -> what it does."""


@dataclass(frozen=True)
class Affine:
    """Voxel (z, y, x) of the target -> `matrix` @ voxel + `offset` of the atlas."""

    matrix: NDArray[np.float64]
    offset: NDArray[np.float64]


def align_box(atlas: Labels, target: NDArray[np.bool_]) -> Affine:
    """The bounding box of the atlas stretched to that of the target."""
    (low, high), (low_t, high_t) = _box(atlas != 0), _box(target)
    scale = (high - low) / (high_t - low_t)
    return Affine(np.diag(scale), low - scale * low_t)


def align_moments(atlas: Labels, target: NDArray[np.bool_]) -> Affine:
    """The affine map that turns the target's mean and covariance into the atlas's with least movement.

    It is the optimal transport between normal distributions, a symmetric matrix: axes are neither
    exchanged nor
    flipped.
    """
    mean_t, cov_t = _moments(target)
    mean_a, cov_a = _moments(atlas != 0)
    root = _root(cov_t)
    back = np.linalg.inv(root)
    matrix = back @ _root(root @ cov_a @ root) @ back
    return Affine(matrix, mean_a - matrix @ mean_t)


def _box(mask: NDArray[np.bool_]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    inside = [np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis))) for axis in range(3)]
    return np.array([float(i[0]) for i in inside]), np.array([float(i[-1]) for i in inside])


def _moments(mask: NDArray[np.bool_]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    where = np.argwhere(mask).astype(np.float64)
    return where.mean(0), np.cov(where.T)


def _root(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    values, vectors = np.linalg.eigh(matrix)
    return np.asarray((vectors * np.sqrt(values)) @ vectors.T)


def fit_outline(atlas: Labels, target: NDArray[np.bool_], start: Affine, steps: int = 25) -> Affine:
    """Improve `start` by gradient descent (Adam) on the soft Dice of the two blurred outlines.

    Both are looked at in blocks of `BLOCK` voxels along each axis. Deterministic.
    """
    blurred_a, blurred_t = _blurred(atlas != 0), _blurred(target)
    axes = [torch.arange(n, dtype=torch.float32) * BLOCK + (BLOCK - 1) / 2 for n in blurred_t.shape]
    points = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
    seen = blurred_t.reshape(-1) > 0.02
    points, wanted = points[seen], blurred_t.reshape(-1)[seen]
    middle = points.mean(0)
    matrix, offset = (torch.tensor(part, dtype=torch.float32) for part in (start.matrix, start.offset))
    first = points @ matrix.T + offset
    relative = (points - middle) / 50  # so that one step size suits turning and moving
    size = torch.tensor(blurred_a.shape, dtype=torch.float32)
    change = torch.zeros(3, 4, requires_grad=True)
    mean, square = torch.zeros(3, 4), torch.zeros(3, 4)
    for step in range(1, steps + 1):
        places = first + 50 * (relative @ change[:, :3].T + change[:, 3])
        blocks = (places - (BLOCK - 1) / 2) / BLOCK
        grid = (2 * blocks / (size - 1) - 1).flip(-1)[None, None, None]
        found = F.grid_sample(blurred_a[None, None], grid, align_corners=True).reshape(-1)
        loss = 1 - 2 * (found * wanted).sum() / (found.square().sum() + wanted.square().sum())
        (gradient,) = torch.autograd.grad(loss, change)
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.999 * square + 0.001 * gradient.square()
        scale = (square / (1 - 0.999**step)).sqrt() + 1e-8
        with torch.no_grad():
            change -= 0.01 * (mean / (1 - 0.9**step)) / scale
    turned = change.detach().double().numpy()
    moved = start.offset + 50 * turned[:, 3] - turned[:, :3] @ middle.double().numpy()
    return Affine(start.matrix + turned[:, :3], moved)


BLOCK = 3
"""Voxels along each axis that are one block while fitting."""


def _blurred(mask: NDArray[np.bool_]) -> torch.Tensor:
    """Means of blocks, then of 3 x 3 x 3 blocks around each: about a Gaussian of 2.6 voxels."""
    padded = np.pad(mask, [(0, -n % BLOCK) for n in mask.shape]).astype(np.float32)
    sizes = [part for n in padded.shape for part in (n // BLOCK, BLOCK)]
    blocks = torch.from_numpy(padded.reshape(sizes).mean((1, 3, 5)))
    return F.avg_pool3d(blocks[None, None], 3, stride=1, padding=1)[0, 0]


def warp(atlas: Labels, affine: Affine, shape: tuple[int, ...]) -> Labels:
    """The atlas over a target grid of `shape`, nearest label; 0 outside."""
    size, target = np.array(atlas.shape, float), np.array(shape, float)
    to_unit = np.diag(2 / (size - 1))
    matrix = to_unit @ affine.matrix @ np.diag((target - 1) / 2)
    offset = to_unit @ (affine.matrix @ ((target - 1) / 2) + affine.offset) - 1
    theta = np.concatenate([matrix[::-1, ::-1], offset[::-1, None]], 1)
    grid = F.affine_grid(torch.tensor(theta, dtype=torch.float32)[None], [1, 1, *shape], align_corners=True)
    stored = torch.from_numpy(atlas.astype(np.float32))[None, None]
    found = F.grid_sample(stored, grid, mode="nearest", align_corners=True)
    return np.asarray(found[0, 0].to(torch.uint8).numpy())


def vote(maps: Sequence[Labels], weights: Sequence[float] | None = None) -> Labels:
    """At each voxel the label with the largest sum of weights; of equal ones, that of the first map."""
    weights = weights or [1.0] * len(maps)
    best, found = np.zeros(maps[0].shape, np.float32), maps[0].copy()
    for i, mine in enumerate(maps):
        score = np.zeros(mine.shape, np.float32)
        for j, other in enumerate(maps):
            score += np.float32(weights[j]) * (mine == other) if i != j else np.float32(weights[j])
        better = score > best
        best[better], found[better] = score[better], mine[better]
    return found


def dense(atlas: Labels) -> Labels:
    """Every voxel with the nearest label: what an outline that is filled from the atlas needs."""
    _, where = edt(atlas != 0, 1.0, return_indices=True)
    return np.asarray(atlas[tuple(where)])


def predict(atlases: Sequence[Labels], target: NDArray[np.bool_]) -> dict[str, Labels]:
    """The label maps of all `PREDICTORS` for a target of which only the outline is known.

    Args:
        atlases: label maps of the other brains, each (z, y, x), axes running as the target's, the last one
            from
            one side of the head to the other.
        target: bool, the union of the structures to find.
    """
    low, high = _box(target)
    inner = tuple(slice(int(a), int(b) + 1) for a, b in zip(low, high, strict=True))
    outline = target[inner]
    filled = [dense(atlas) for atlas in atlases]
    moments = [align_moments(atlas, outline) for atlas in atlases]
    fitted = [fit_outline(a, outline, m) for a, m in zip(atlases, moments, strict=True)]
    by_moments = [_inside(f, m, outline) for f, m in zip(filled, moments, strict=True)]
    by_fit = [_inside(f, m, outline) for f, m in zip(filled, fitted, strict=True)]
    overlaps = [
        [_overlap(a, m, outline) for a, m in zip(atlases, maps, strict=True)] for maps in (moments, fitted)
    ]
    alike = int(np.argmin([_shape_difference(atlas, outline) for atlas in atlases]))
    voted = vote(by_fit)
    small = {
        "vote-clean": clean(voted, outline),
        "vote-weighted": vote(by_fit, [o**4 for o in overlaps[1]]),
        "vote-fitted": voted,
        "vote-moments": vote(by_moments),
        "one-fitted": by_fit[int(np.argmax(overlaps[1]))],
        "one-moments": by_moments[int(np.argmax(overlaps[0]))],
        "one-box": _inside(filled[alike], align_box(atlases[alike], outline), outline),
        "vote-mirrored": vote([_mirrored(a, f, outline) for a, f in zip(atlases, filled, strict=True)]),
    }
    found = {}
    for name, labels in small.items():
        found[name] = np.zeros(target.shape, np.uint8)
        found[name][inner] = labels
    return found


def _inside(filled: Labels, affine: Affine, outline: NDArray[np.bool_]) -> Labels:
    return np.where(outline, warp(filled, affine, outline.shape), np.uint8(0))


def _mirrored(atlas: Labels, filled: Labels, outline: NDArray[np.bool_]) -> Labels:
    atlas, filled = atlas[..., ::-1].copy(), filled[..., ::-1].copy()
    return _inside(filled, align_moments(atlas, outline), outline)


def _overlap(atlas: Labels, affine: Affine, outline: NDArray[np.bool_], every: int = 2) -> float:
    """Dice of the two outlines, looked at on every second voxel along each axis."""
    b = outline[::every, ::every, ::every]
    a = warp(atlas, Affine(affine.matrix * every, affine.offset), b.shape) != 0
    return float(2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b)))


def _shape_difference(atlas: Labels, outline: NDArray[np.bool_]) -> float:
    (low, high), (low_t, high_t) = _box(atlas != 0), _box(outline)
    return float(np.abs(np.log((high - low) / (high_t - low_t))).sum())


def clean(labels: Labels, outline: NDArray[np.bool_]) -> Labels:
    """Smooth by a vote of each voxel and its six neighbours, keep the largest part of each structure, fill
    again."""
    smooth = vote([labels, *(_shifted(labels, axis, step) for axis in range(3) for step in (-1, 1))])
    smooth = np.where(outline & (smooth == 0), labels, smooth)
    kept = np.asarray(keep_largest(np.where(outline, smooth, np.uint8(0))))
    return np.where(outline, dense(kept), np.uint8(0))


def _shifted(labels: Labels, axis: int, step: int) -> Labels:
    found = np.roll(labels, step, axis)
    edge = [slice(None)] * 3
    edge[axis] = slice(0, 1) if step > 0 else slice(-1, None)
    found[tuple(edge)] = 0
    return found
