"""Label volumes for tests: blobs, noise, empty and full ones, in any dtype and layout."""

from __future__ import annotations

import numpy as np
import torch

DTYPES = (np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32, np.int64)


def blocks(rng, shape, labels, side=4, density=0.5):
    """Cubes of random labels."""
    small = [-(-n // side) for n in shape]
    out = rng.integers(0, labels, small) * (rng.random(small) < density)
    for axis, n in enumerate(shape):
        out = np.repeat(out, side, axis).take(range(n), axis)
    return out


def draw(rng, shape, labels):
    """One of: sparse voxels, noise, blocks, blocks in one half, empty, full."""
    kind = rng.integers(0, 7)
    if kind == 0:
        return (rng.random(shape) < 0.03) * rng.integers(1, labels, shape)
    if kind == 1:
        return rng.integers(0, labels, shape)
    if kind == 2:
        return np.full(shape, rng.integers(0, 2))
    out = blocks(rng, shape, labels, int(rng.integers(2, 7)))
    if kind == 3:
        out = np.where(np.arange(shape[-1]) * 2 < shape[-1], out, 0)
    return out


def arrange(rng, values, dtype=None):
    """The same values in a random dtype and layout: C, Fortran, reversed, strided, read-only."""
    out = values.astype(rng.choice(DTYPES) if dtype is None else dtype)
    kind = rng.integers(0, 5)
    if kind == 0:
        return np.asfortranarray(out)
    if kind == 1:
        turn = tuple(slice(None, None, -1 if rng.random() < 0.5 else 1) for _ in out.shape)
        return out[turn].copy()[turn]
    if kind == 2:
        wide = np.zeros([2 * n + 1 for n in out.shape], out.dtype)
        part = tuple(slice(1, 2 * n + 1, 2) for n in out.shape)
        wide[part] = out
        return wide[part]
    if kind == 3:
        out.flags.writeable = False
    return out


def at(device, array):
    """The array itself for the CPU; for a GPU a tensor of its values and, but for reversed axes, strides."""
    if device.type == "cpu":
        return array
    forward = array[tuple(slice(None, None, -1 if s < 0 else 1) for s in array.strides)]
    backwards = [axis for axis, s in enumerate(array.strides) if s < 0]
    source = torch.from_numpy(np.flip(forward, backwards).copy())
    strides = [s // array.itemsize for s in forward.strides]
    return torch.empty_strided(array.shape, strides, dtype=source.dtype, device=device).copy_(source)


def host(result):
    """A result as a NumPy array."""
    return result.cpu().numpy() if isinstance(result, torch.Tensor) else result


def box(low, size, shape=(20, 20, 20)):
    """A mask: a box from `low`, `size` voxels along each axis."""
    out = np.zeros(shape, bool)
    out[tuple(slice(a, a + n) for a, n in zip(low, size, strict=True))] = True
    return out


def ball(shape, centre, radius, spacing=(1, 1, 1)):
    """A mask: voxels whose distance in mm from the voxel `centre` is at most `radius`."""
    at = np.indices(shape)
    square = sum(((x - c) * s) ** 2 for x, c, s in zip(at, centre, spacing, strict=True))
    return square <= radius**2 + 1e-9
