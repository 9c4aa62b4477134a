"""The compiled overlap kernels behind the signatures of overlap_reference.py: tensors to raw pointers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tenfold.kernels.overlap import overlap_reference
from torch import Tensor

from tenfold import _native

SIGNED = (torch.int8, torch.int16, torch.int32, torch.int64)

Labels = tuple[int, int, bool, list[int], list[int]]


def pool(threads: int) -> int:
    """How many threads 0, or a number, stands for."""
    return threads or torch.get_num_threads()


def labels(volume: Tensor, flips: Sequence[int]) -> Labels:
    """A volume as the doors take it: the axes in `flips` are walked from their end."""
    address, strides = volume.data_ptr(), list(volume.stride())
    for axis in flips:
        address += (volume.shape[axis] - 1) * strides[axis] * volume.element_size()
        strides[axis] = -strides[axis]
    return address, volume.element_size(), volume.dtype in SIGNED, list(volume.shape), strides


def counts(
    target: Tensor,
    pred: Tensor,
    num_labels: int,
    flip_target: Sequence[int],
    flip_pred: Sequence[int],
    boxes: bool,
    threads: int,
    clamp: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """See overlap_reference.counts; with `clamp`, labels of num_labels - 1 and more count as that."""
    joint = torch.zeros(num_labels, num_labels, dtype=torch.int64)
    box_target, box_pred = (
        torch.zeros(num_labels if boxes else 0, 2 * target.ndim, dtype=torch.int64) for _ in range(2)
    )
    places = (box_target.data_ptr(), box_pred.data_ptr()) if boxes else (0, 0)
    views = labels(target, flip_target), labels(pred, flip_pred)
    if not _native.cpu.overlap_counts(*views, num_labels, joint.data_ptr(), *places, clamp, pool(threads)):
        most = 2**63 - 1 if clamp else num_labels
        fail_outside("target", target, flip_target, most)
        fail_outside("pred", pred, flip_pred, most)
    return joint, box_target, box_pred


def fail_outside(name: str, volume: Tensor, flips: Sequence[int], num_labels: int) -> None:
    """ValueError with the first label outside [0, num_labels), if there is one."""
    overlap_reference.refuse_outside(name, overlap_reference.unflipped(volume, flips), num_labels)


def label_lut(volume: Tensor, lut: Tensor, flips: Sequence[int], threads: int) -> Tensor:
    """See overlap_reference.label_lut."""
    words = torch.empty(volume.shape, dtype=torch.int64)
    table = lut.contiguous()
    view = labels(volume, flips)
    if not _native.cpu.label_lut(view, table.data_ptr(), table.numel(), words.data_ptr(), pool(threads)):
        fail_outside("volume", volume, flips, lut.numel())
    return words


def pack_bits(masks: Tensor, threads: int) -> Tensor:
    """See overlap_reference.pack_bits."""
    flat = masks.flatten(1)
    if flat.shape[1] > 1 and flat.stride(1) != 1:
        flat = flat.contiguous()
    words = torch.empty(flat.shape[0], (flat.shape[1] + 63) // 64, dtype=torch.int64)
    sizes = (*flat.shape, flat.stride(0))
    _native.cpu.pack_bits(flat.data_ptr(), words.data_ptr(), *sizes, False, pool(threads))
    return words


def unpack_bits(words: Tensor, count: int, threads: int) -> Tensor:
    """See overlap_reference.unpack_bits."""
    words = words.contiguous()
    masks = torch.empty(words.shape[0], count, dtype=torch.bool)
    sizes = (words.shape[0], count, count)
    _native.cpu.pack_bits(masks.data_ptr(), words.data_ptr(), *sizes, True, pool(threads))
    return masks


def multihot_counts(a: Tensor, b: Tensor, threads: int) -> Tensor:
    """See overlap_reference.multihot_counts."""
    return _bit_counts(a, b, a.shape[0], a.shape[1], False, pool(threads))


def lut_counts(a: Tensor, b: Tensor, channels: int, threads: int) -> Tensor:
    """See overlap_reference.lut_counts."""
    return _bit_counts(a, b, channels, a.numel(), True, pool(threads))


def _bit_counts(a: Tensor, b: Tensor, channels: int, words: int, owners: bool, threads: int) -> Tensor:
    a, b = a.contiguous(), b.contiguous()
    out = torch.zeros(channels, 3, dtype=torch.int64)
    _native.cpu.bit_counts(
        a.data_ptr(),
        b.data_ptr(),
        channels,
        words,
        out.data_ptr(),
        owners,
        pool(threads),
    )
    return out
