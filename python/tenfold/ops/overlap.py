"""Overlap counts: everything that Dice, Jaccard, precision, recall and volumes are made of, in one pass.

The joint histogram of two label volumes is counted along runs of equal pairs, so that a volume costs little
more than reading it once; structures that overlap are packed into bits and counted by words.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tenfold import _arrays, _checks
from tenfold._backend import OPS, chosen_backend

from . import _volumes

MAX_LABELS = 4096

OPS |= dict.fromkeys(
    ("overlap_counts", "label_lut", "pack_bits", "unpack_bits", "multihot_counts", "lut_counts"),
    ("cpu", "cuda", "reference"),
)

_LIBRARY = torch.library.Library("tenfold", "FRAGMENT")
_LIBRARY.define(
    "overlap_counts(Tensor target, Tensor pred, SymInt num_labels, int[] flip_target, int[] flip_pred, "
    "bool boxes, int threads) -> (Tensor, Tensor, Tensor)"
)


def _kernels(op: str, device: torch.device) -> Any:
    """The module that implements `op` for the chosen backend; they share their signatures."""
    backend = chosen_backend(op, device.type)
    if backend == "reference":
        from tenfold.kernels.overlap import overlap_reference as module
    elif backend == "cuda":
        from tenfold.kernels.overlap import overlap_cuda as module
    else:
        from tenfold.kernels.overlap import overlap_native as module
    return module


def _overlap_counts(
    target: Tensor,
    pred: Tensor,
    num_labels: int,
    flip_target: list[int],
    flip_pred: list[int],
    boxes: bool,
    threads: int,
) -> tuple[Tensor, Tensor, Tensor]:
    found: tuple[Tensor, Tensor, Tensor] = _kernels("overlap_counts", target.device).counts(
        target, pred, num_labels, flip_target, flip_pred, boxes, threads
    )
    return found


def _overlap_counts_fake(
    target: Tensor, pred: Tensor, num_labels: int, flip_target: Any, flip_pred: Any, boxes: bool, threads: int
) -> tuple[Tensor, Tensor, Tensor]:
    rows = num_labels if boxes else 0
    counts = target.new_empty((num_labels, num_labels), dtype=torch.int64)
    box = target.new_empty((rows, 2 * target.ndim), dtype=torch.int64)
    return counts, box, torch.empty_like(box)


def _label_lut(volume: Tensor, lut: Tensor, flips: list[int], threads: int) -> Tensor:
    found: Tensor = _kernels("label_lut", volume.device).label_lut(volume, lut, flips, threads)
    return found


def _pack_bits(masks: Tensor, threads: int) -> Tensor:
    found: Tensor = _kernels("pack_bits", masks.device).pack_bits(masks, threads)
    return found


def _unpack_bits(words: Tensor, count: int, threads: int) -> Tensor:
    found: Tensor = _kernels("unpack_bits", words.device).unpack_bits(words, count, threads)
    return found


def _multihot_counts(a: Tensor, b: Tensor, threads: int) -> Tensor:
    found: Tensor = _kernels("multihot_counts", a.device).multihot_counts(a, b, threads)
    return found


def _lut_counts(a: Tensor, b: Tensor, channels: int, threads: int) -> Tensor:
    found: Tensor = _kernels("lut_counts", a.device).lut_counts(a, b, channels, threads)
    return found


def _counts_of(a: Tensor, channels: int) -> Tensor:
    return a.new_empty((channels, 3), dtype=torch.int64)


def _register(schema: str, kernel: Any, fake: Any) -> None:
    name = schema.partition("(")[0]
    if "overlap_counts" not in name:
        _LIBRARY.define(schema)
    for device in ("CPU", "CUDA"):
        _LIBRARY.impl(name, kernel, device)
    torch.library.register_fake(f"tenfold::{name}", fake, lib=_LIBRARY)


_register("overlap_counts(", _overlap_counts, _overlap_counts_fake)
_register(
    "label_lut(Tensor volume, Tensor lut, int[] flips, int threads) -> Tensor",
    _label_lut,
    lambda volume, lut, flips, threads: volume.new_empty(volume.shape, dtype=torch.int64),
)
_register(
    "pack_bits(Tensor masks, int threads) -> Tensor",
    _pack_bits,
    lambda masks, threads: masks.new_empty(
        (masks.shape[0], (masks[0].numel() + 63) // 64 if masks.shape[0] else 0), dtype=torch.int64
    ),
)
_register(
    "unpack_bits(Tensor words, SymInt count, int threads) -> Tensor",
    _unpack_bits,
    lambda words, count, threads: words.new_empty((words.shape[0], count), dtype=torch.bool),
)
_register(
    "multihot_counts(Tensor a, Tensor b, int threads) -> Tensor",
    _multihot_counts,
    lambda a, b, threads: _counts_of(a, a.shape[0]),
)
_register(
    "lut_counts(Tensor a, Tensor b, SymInt channels, int threads) -> Tensor",
    _lut_counts,
    lambda a, b, channels, threads: _counts_of(a, channels),
)


def overlap_counts(
    target: Any, pred: Any, num_labels: int, *, boxes: bool = False, num_threads: int | None = None
) -> Any:
    """The joint histogram of two label volumes, and on request the box around each label.

    Args:
        target, pred: tensors (or NumPy or CuPy arrays) of one shape: uint8, int8, uint16, int16, uint32,
            int32, int64 or bool, also of different dtypes; any strides, read-only and reversed arrays
            included, without a copy. Floating-point arrays of whole numbers are converted.
        num_labels: K, 1 to 4096; labels are 0 .. K - 1.
        boxes: also return boxes.
        num_threads: default `torch.get_num_threads()`. Results do not depend on it.

    Returns:
        counts, int64 [K, K]: voxels with the row's label in `target` and the column's in `pred`. Label l
        has `counts[l].sum()` voxels in `target`, `counts[:, l].sum()` in `pred`, `counts[l, l]` in both.
        With `boxes` the triple (counts, box_target, box_pred), int64 [K, 2 * ndim]: first indices of every
        axis, then last indices plus one; all 0 for a label that is absent. Of the kind that `target` is.

    Raises:
        TypeError: an argument of the wrong kind or dtype.
        ValueError: shapes or devices that differ, a label outside [0, K) (with its value and first place),
            a value that is no whole number.

    On a GPU the call waits for the stream to see whether a label was wrong, except while a CUDA graph is
    captured: then wrong labels are not counted and nothing is raised.
    """
    a, b = _volumes.pair(target, pred, range(1, 9))
    num_labels = _checks.integer("num_labels", num_labels, 1, MAX_LABELS)
    back = _arrays.kind_of(target)
    counts, box_target, box_pred = torch.ops.tenfold.overlap_counts(
        a.data, b.data, num_labels, a.flips, b.flips, boxes, _volumes.threads(num_threads)
    )
    return (back(counts), back(box_target), back(box_pred)) if boxes else back(counts)


# ---- structures that overlap ------------------------------------------------------------------------------


def label_lut(volume: Any, lut: Any, *, num_threads: int | None = None) -> Any:
    """Which structures own each voxel: lut[label], an int64 word of up to 64 owner bits.

    Args:
        volume: labels, as `overlap_counts`.
        lut: int64 [K] (or a list of integers in [0, 2^64)): bit c of entry l is set when label l belongs to
            structure c. Bit 63 is the sign bit of the result.

    Returns:
        int64 words of the shape of `volume`.

    Raises:
        TypeError, ValueError: an argument of the wrong kind; a label that the table does not have.
    """
    v = _volumes.volume("volume", volume, range(1, 9))
    table = _words("lut", lut, v.data.device)
    if table.ndim != 1 or table.numel() == 0:
        _checks.fail(ValueError, "lut", "one word for each label", tuple(table.shape))
    threads = _volumes.threads(num_threads)
    return _arrays.kind_of(volume)(torch.ops.tenfold.label_lut(v.data, table, v.flips, threads))


def labels_of_owners(words: Any, lut: Any) -> Any:
    """The label of each voxel from its owner word: the inverse of `label_lut` with the same table.

    Returns:
        int64 labels of the shape of `words`; of several labels with the same owners the lowest.

    Raises:
        ValueError: words that no label has, listed with how many voxels have them.
    """
    data = _words("words", words, None)
    table = _words("lut", lut, data.device)
    order = table.argsort(stable=True)
    flat = data.reshape(-1).contiguous()
    at = torch.searchsorted(table[order], flat).clamp_(max=table.numel() - 1)
    found = order[at]
    wrong = table[found] != flat
    if bool(wrong.any()):
        values, counts = flat[wrong].unique(return_counts=True)
        listed = [f"{_owners(v)} ({n} voxels)" for v, n in zip(values.tolist(), counts.tolist(), strict=True)]
        got = "; ".join(listed[:8]) + (f"; and {len(listed) - 8} more" if len(listed) > 8 else "")
        _checks.fail(ValueError, "words", "owners that a label has", got)
    return _arrays.kind_of(words)(found.reshape(data.shape))


def _owners(word: int) -> str:
    return "owners {" + ", ".join(str(bit) for bit in range(64) if word >> bit & 1) + "}"


def owner_words(masks: Any) -> Any:
    """int64 [...] of up to 64 masks [C, ...]: bit c is set where mask c is."""
    data = _masks("masks", masks)
    if data.shape[0] > 64:
        _checks.fail(ValueError, "masks", "at most 64 masks", data.shape[0])
    words = torch.zeros(data.shape[1:], dtype=torch.int64, device=data.device)
    for c, mask in enumerate(data):
        words |= mask.to(torch.int64) << c
    return _arrays.kind_of(masks)(words)


def pack_bits(masks: Any, *, num_threads: int | None = None) -> Any:
    """Masks [C, ...] as one bit per voxel: int64 [C, ceil(N / 64)], voxel i is bit i % 64 of word i // 64.

    Non-zero is set; NumPy and CuPy arrays as everywhere.

    Raises:
        TypeError, ValueError: no masks of an integer dtype or bool with an axis of channels.
    """
    packed = torch.ops.tenfold.pack_bits(_masks("masks", masks), _volumes.threads(num_threads))
    return _arrays.kind_of(masks)(packed)


def unpack_bits(words: Any, shape: Any, *, num_threads: int | None = None) -> Any:
    """The masks, bool [C, ...] with the axes of `shape`, that `pack_bits` packed.

    Raises:
        TypeError, ValueError: words that are not int64 [C, ceil(N / 64)].
    """
    data = _words("words", words, None)
    sizes = [
        _checks.integer(f"shape[{i}]", n, 0, 2**40)
        for i, n in enumerate(_checks.items("shape", shape, "integers"))
    ]
    count = 1
    for size in sizes:
        count *= size
    if data.ndim != 2 or data.shape[1] != (count + 63) // 64:
        _checks.fail(ValueError, "words", f"shape [C, {(count + 63) // 64}]", tuple(data.shape))
    masks = torch.ops.tenfold.unpack_bits(data, count, _volumes.threads(num_threads))
    return _arrays.kind_of(words)(masks.reshape(data.shape[0], *sizes))


def multihot_counts(a: Any, b: Any, *, num_threads: int | None = None) -> Any:
    """int64 [C, 3]: voxels in both, in a, in b, of every channel of two sets of masks that may overlap.

    Args:
        a, b: both packed by `pack_bits` (int64 [C, words]), or both masks [C, ...] of bool or uint8.

    Raises:
        TypeError, ValueError: arguments of the wrong kind, or shapes that differ.
    """
    left, right = (_packed(name, x, num_threads) for name, x in (("a", a), ("b", b)))
    if left.shape != right.shape:
        _checks.fail(ValueError, "b", f"the shape of a, {tuple(left.shape)}", tuple(right.shape))
    return _arrays.kind_of(a)(torch.ops.tenfold.multihot_counts(left, right, _volumes.threads(num_threads)))


def owner_counts(a: Any, b: Any, num_owners: int, *, num_threads: int | None = None) -> Any:
    """int64 [num_owners, 3]: voxels in both, in a, in b, of each owner bit of two volumes of owner words.

    Args:
        a, b: int64 of one shape, from `label_lut` or `owner_words`.
        num_owners: 1 to 64.

    Raises:
        TypeError, ValueError: arguments of the wrong kind, or shapes that differ.
    """
    left, right = _words("a", a, None), _words("b", b, None)
    if left.shape != right.shape:
        _checks.fail(ValueError, "b", f"the shape of a, {tuple(left.shape)}", tuple(right.shape))
    num_owners = _checks.integer("num_owners", num_owners, 1, 64)
    counts = torch.ops.tenfold.lut_counts(left, right, num_owners, _volumes.threads(num_threads))
    return _arrays.kind_of(a)(counts)


def _words(name: str, value: Any, device: torch.device | None) -> Tensor:
    """int64 words of a tensor, an array, or a list of integers below 2^64."""
    if isinstance(value, (list, tuple)):
        words = [_checks.integer(f"{name}[{i}]", w, -(2**63), 2**64 - 1) for i, w in enumerate(value)]
        value = torch.tensor([w - 2**64 if w >= 2**63 else w for w in words], dtype=torch.int64)
    if str(getattr(value, "dtype", "")) == "uint64":
        value = value.view("int64")
    data = _checks.tensor(name, _arrays.as_tensor(name, value, write=False), (torch.int64,))
    return data if device is None else data.to(device)


def _masks(name: str, value: Any) -> Tensor:
    v = _volumes.volume(name, value)
    data = v.data.flip(v.flips) if v.flips else v.data
    if data.ndim < 2:
        _checks.fail(ValueError, name, "masks [C, ...]", tuple(data.shape))
    return data if data.dtype in (torch.bool, torch.uint8) else data != 0


def _packed(name: str, value: Any, num_threads: int | None) -> Tensor:
    if str(getattr(value, "dtype", "")).rpartition(".")[2] == "int64":
        data = _words(name, value, None)
        if data.ndim != 2:
            _checks.fail(ValueError, name, "packed masks [C, words]", tuple(data.shape))
        return data
    packed: Tensor = torch.ops.tenfold.pack_bits(_masks(name, value), _volumes.threads(num_threads))
    return packed
