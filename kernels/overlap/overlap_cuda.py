"""The CUDA overlap kernels behind the signatures of overlap_reference.py.

Labels are checked by the kernel, which raises a flag in memory. Reading that flag waits for the stream; while
a CUDA graph is captured it is not read, and voxels with wrong labels are left out of the counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import torch
from tenfold.kernels.overlap.overlap_native import fail_outside, labels
from torch import Tensor

from tenfold import _native


def module(device: torch.device) -> tuple[ModuleType, int]:
    """The compiled module and the handle of the current stream."""
    assert _native.cuda is not None
    return _native.cuda, torch.cuda.current_stream(device).cuda_stream


def _raised(flag: Tensor) -> bool:
    if flag.is_cuda and torch.cuda.is_current_stream_capturing():
        return False
    return bool(flag.item())


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
    """See overlap_native.counts."""
    del threads
    kernels, stream = module(target.device)
    joint = target.new_zeros(num_labels, num_labels, dtype=torch.int64)
    both = target.new_zeros(2, num_labels if boxes else 0, 2 * target.ndim, dtype=torch.int64)
    both[..., : target.ndim] = 2**63 - 1
    flag = target.new_zeros((), dtype=torch.int32)
    places = (both[0].data_ptr(), both[1].data_ptr()) if boxes else (0, 0)
    views = labels(target, flip_target), labels(pred, flip_pred)
    kernels.overlap_counts(*views, num_labels, joint.data_ptr(), *places, clamp, flag.data_ptr(), stream)
    if _raised(flag):
        most = 2**63 - 1 if clamp else num_labels
        fail_outside("target", target, flip_target, most)
        fail_outside("pred", pred, flip_pred, most)
    present = both[..., target.ndim :] > 0
    both[..., : target.ndim] = torch.where(present, both[..., : target.ndim], 0)
    return joint, both[0].clone(), both[1].clone()


def label_lut(volume: Tensor, lut: Tensor, flips: Sequence[int], threads: int) -> Tensor:
    """See overlap_reference.label_lut."""
    del threads
    kernels, stream = module(volume.device)
    words = volume.new_empty(volume.shape, dtype=torch.int64)
    table = lut.contiguous()
    flag = volume.new_zeros((), dtype=torch.int32)
    view = labels(volume, flips)
    kernels.label_lut(view, table.data_ptr(), table.numel(), words.data_ptr(), flag.data_ptr(), stream)
    if _raised(flag):
        fail_outside("volume", volume, flips, lut.numel())
    return words


def pack_bits(masks: Tensor, threads: int) -> Tensor:
    """See overlap_reference.pack_bits."""
    del threads
    kernels, stream = module(masks.device)
    flat = masks.flatten(1)
    if flat.shape[1] > 1 and flat.stride(1) != 1:
        flat = flat.contiguous()
    words = masks.new_empty(flat.shape[0], (flat.shape[1] + 63) // 64, dtype=torch.int64)
    kernels.pack_bits(flat.data_ptr(), words.data_ptr(), *flat.shape, flat.stride(0), False, stream)
    return words


def unpack_bits(words: Tensor, count: int, threads: int) -> Tensor:
    """See overlap_reference.unpack_bits."""
    del threads
    kernels, stream = module(words.device)
    words = words.contiguous()
    masks = words.new_empty(words.shape[0], count, dtype=torch.bool)
    kernels.pack_bits(masks.data_ptr(), words.data_ptr(), words.shape[0], count, count, True, stream)
    return masks


def multihot_counts(a: Tensor, b: Tensor, threads: int) -> Tensor:
    """See overlap_reference.multihot_counts."""
    del threads
    return _bit_counts(a, b, a.shape[0], a.shape[1], False)


def lut_counts(a: Tensor, b: Tensor, channels: int, threads: int) -> Tensor:
    """See overlap_reference.lut_counts."""
    del threads
    return _bit_counts(a, b, channels, a.numel(), True)


def _bit_counts(a: Tensor, b: Tensor, channels: int, words: int, owners: bool) -> Tensor:
    kernels, stream = module(a.device)
    a, b = a.contiguous(), b.contiguous()
    out = a.new_zeros(channels, 3)
    kernels.bit_counts(a.data_ptr(), b.data_ptr(), channels, words, out.data_ptr(), owners, stream)
    return out
