"""Overlap counts in plain PyTorch: the oracle and the fallback.

The joint histogram of two label volumes holds every count that Dice, Jaccard, precision, recall, volumes and
volume similarity are made of: |A| and |B| are sums of a row and a column, |A and B| is an entry of the
diagonal.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

CHUNK = 1 << 24


def unflipped(volume: Tensor, flips: Sequence[int]) -> Tensor:
    """The volume as its owner sees it: `flips` lists the axes that were turned to share its memory."""
    if not flips:
        return volume
    if volume.dtype in (torch.uint16, torch.uint32):
        volume = volume.long()  # torch does not flip these
    return volume.flip(list(flips))


def first_outside(volume: Tensor, num_labels: int) -> tuple[list[int], int] | None:
    """Index and value of the first label (row-major) outside [0, num_labels), or None."""
    wide = volume.long()  # comparisons are not written for every unsigned dtype
    outside = ((wide < 0) | (wide >= num_labels)).reshape(-1)
    if not bool(outside.any()):
        return None
    at = int(outside.to(torch.uint8).argmax())
    place = [int(x) for x in torch.unravel_index(torch.tensor(at), volume.shape)]
    return place, int(wide.reshape(-1)[at])


def refuse_outside(name: str, volume: Tensor, num_labels: int) -> None:
    """ValueError with the first label outside [0, num_labels), if there is one."""
    found = first_outside(volume, num_labels)
    if found:
        raise ValueError(f"{name}: expected labels in [0, {num_labels}), got {found[1]} at {found[0]}")


def counts(
    target: Tensor,
    pred: Tensor,
    num_labels: int,
    flip_target: Sequence[int],
    flip_pred: Sequence[int],
    boxes: bool,
    threads: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Joint histogram [K, K] int64 and, with `boxes`, half-open boxes [K, 2 * ndim] of both volumes.

    Row = label in target, column = label in pred; a box is lo of every axis, then hi; all 0 where the label
    is absent. ValueError for a label outside [0, K).
    """
    del threads
    target, pred = unflipped(target, flip_target), unflipped(pred, flip_pred)
    refuse_outside("target", target, num_labels)
    refuse_outside("pred", pred, num_labels)
    joint = torch.zeros(num_labels * num_labels, dtype=torch.int64, device=target.device)
    flat_target, flat_pred = target.reshape(-1), pred.reshape(-1)
    for start in range(0, flat_target.numel(), CHUNK):
        rows = flat_target[start : start + CHUNK].long()
        pairs = rows * num_labels + flat_pred[start : start + CHUNK].long()
        joint += torch.bincount(pairs, minlength=joint.numel())
    joint = joint.reshape(num_labels, num_labels)
    if not boxes:
        empty = joint.new_empty(0, 2 * target.ndim)
        return joint, empty, empty.clone()
    return joint, label_boxes(target, num_labels), label_boxes(pred, num_labels)


def label_boxes(volume: Tensor, num_labels: int) -> Tensor:
    """int64 [num_labels, 2 * ndim]: lo.., hi.. of the voxels of each label, half-open; 0 where absent."""
    labels = volume.long().reshape(-1)
    out = torch.zeros(num_labels, 2 * volume.ndim, dtype=torch.int64, device=volume.device)
    if labels.numel() == 0:
        return out
    for axis, size in enumerate(volume.shape):
        shape = [1] * volume.ndim
        shape[axis] = size
        at = torch.arange(size, device=volume.device).reshape(shape).expand(volume.shape).reshape(-1)
        low = torch.full((num_labels,), size, device=volume.device).scatter_reduce(0, labels, at, "amin")
        high = torch.zeros(num_labels, dtype=torch.int64, device=volume.device)
        high = high.scatter_reduce(0, labels, at + 1, "amax")
        out[:, axis] = torch.where(high > 0, low, 0)
        out[:, volume.ndim + axis] = high
    return out


def label_lut(volume: Tensor, lut: Tensor, flips: Sequence[int], threads: int) -> Tensor:
    """int64 words: lut[label] of each voxel. ValueError for a label that the table does not have."""
    del threads
    volume = unflipped(volume, flips)
    found = first_outside(volume, lut.numel())
    if found:
        raise ValueError(f"volume: expected labels in [0, {lut.numel()}), got {found[1]} at {found[0]}")
    return lut[volume.long()]


def pack_bits(masks: Tensor, threads: int) -> Tensor:
    """bool [C, ...] -> int64 [C, ceil(N / 64)]: voxel i (row-major) is bit i % 64 of word i // 64."""
    del threads
    channels = masks.shape[0]
    flat = (masks != 0).flatten(1).to(torch.int64)
    words = (flat.shape[1] + 63) // 64
    flat = torch.nn.functional.pad(flat, (0, 64 * words - flat.shape[1])).reshape(channels, words, 64)
    shifts = torch.arange(64, device=masks.device)
    return (flat << shifts).sum(2)  # disjoint bits: the sum is their union, bit 63 the sign


def unpack_bits(words: Tensor, count: int, threads: int) -> Tensor:
    """int64 [C, W] -> bool [C, count], the inverse of pack_bits."""
    del threads
    shifts = torch.arange(64, device=words.device)
    return ((words[:, :, None] >> shifts) & 1).bool().flatten(1)[:, :count].contiguous()


def multihot_counts(a: Tensor, b: Tensor, threads: int) -> Tensor:
    """int64 [C, 3] of packed masks: |A and B|, |A|, |B| of each channel."""
    del threads
    columns = [popcount(x).sum(1) for x in (a & b, a, b)]
    return torch.stack(columns, 1)


def popcount(words: Tensor) -> Tensor:
    """Set bits of each int64 word."""
    return sum(((words >> shift) & 1 for shift in range(64)), torch.zeros_like(words))


def lut_counts(a: Tensor, b: Tensor, channels: int, threads: int) -> Tensor:
    """int64 [channels, 3] of owner words (one per voxel): voxels with bit c in both, in a, in b."""
    del threads
    a, b = a.reshape(-1), b.reshape(-1)
    rows = [[int(((w >> c) & 1).sum()) for w in (a & b, a, b)] for c in range(channels)]
    return torch.tensor(rows, dtype=torch.int64, device=a.device).reshape(channels, 3)
