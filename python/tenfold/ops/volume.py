"""What comes after a segmentation network: labels at the size of the image, components, holes, boxes,
percentiles."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tenfold import _arrays, _checks
from tenfold._backend import OPS, chosen_backend

from . import _volumes

OPS |= {"resample_argmax": ("cpu", "triton", "reference")}

WIDER = {torch.uint16: torch.int32, torch.uint32: torch.int64}
"""What the kernels take for a dtype that they do not have."""
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool)
CONNECTIVITIES = {3: (6, 18, 26), 2: (4, 8)}
_AS_3D = {4: 6, 8: 26}

_LIBRARY = torch.library.Library("tenfold", "FRAGMENT")
_LIBRARY.define("resample_argmax(Tensor logits, SymInt[] size, bool align_corners, bool wide) -> Tensor")


class Components(NamedTuple):
    """What `connected_components` finds, N components.

    labels: int32 of the volume's shape, 0 where it is 0, else 1 .. N in the order of first voxels (z, y, x).

    values, sizes: int64 [N], the value of the volume and the number of voxels of each.

    boxes: int64 [N, 2 nd], first and behind-the-last index per axis: z0, y0, x0, z1, y1, x1.
    """

    labels: Any
    values: Any
    sizes: Any
    boxes: Any


def resample_argmax(
    logits: Any, size: Sequence[int], *, align_corners: bool = False, dtype: torch.dtype | None = None
) -> Any:
    """The class with the largest logit after linear interpolation to `size`, with no class ever resampled
    whole.

    As `F.interpolate(mode="trilinear")` of every class and an argmax, in memory of a few rows.

    Args:
        logits: [C, z, y, x] or [C, y, x]; float32, bfloat16, float16 or float64.
        size: of the result, per spatial axis.
        align_corners: whether the corner voxels' centres coincide, instead of the volumes' corners.
        dtype: torch.uint8 or torch.int16; by default the first with at most 256 classes.

    Returns:
        Labels of shape `size`. Of equal logits the lowest class; NaN never wins.

    Raises:
        TypeError, ValueError: wrong kinds, shapes, or more classes than the dtype counts.
    """
    kind = _arrays.kind_of(logits)
    logits = _checks.tensor("logits", _arrays.as_tensor("logits", logits, write=False))
    if logits.ndim not in (3, 4) or 0 in logits.shape:
        _checks.fail(ValueError, "logits", "shape [C, z, y, x] or [C, y, x], not empty", tuple(logits.shape))
    sizes = [_checks.integer("size", n, 1, 2**31 - 1) for n in _checks.items("size", size, "integers")]
    _checks.length("size", sizes, logits.ndim - 1, "the spatial axes")
    classes = logits.shape[0]
    if dtype is None:
        dtype = torch.uint8 if classes <= 256 else torch.int16
    _checks.dtype("dtype", dtype, (torch.uint8, torch.int16))
    most = 256 if dtype == torch.uint8 else 2**15
    if classes > most:
        _checks.fail(ValueError, "logits", f"at most {most} classes with {dtype}", classes)
    volume = logits if logits.ndim == 4 else logits[:, None]
    full = [1, *sizes] if logits.ndim == 3 else sizes
    found = torch.ops.tenfold.resample_argmax(volume, full, bool(align_corners), dtype == torch.int16)
    return kind(found.reshape(sizes))


def connected_components(volume: Any, *, connectivity: int = 26, multilabel: bool = False) -> Components:
    """Connected components of a volume or image of integers.

    Args:
        volume: [z, y, x] or [y, x], integers or bool, on the CPU.
        connectivity: 6, 18 or 26 (faces, edges, corners); 4 or 8 for images, where 6 and 26 mean these.
        multilabel: whether voxels must have equal values to be connected; else all but 0 is one.

    Raises:
        TypeError, ValueError: wrong kinds, shapes or devices.
    """
    kind = _arrays.kind_of(volume)
    volume, connectivity = _volume(volume, connectivity)
    labels = torch.empty(volume.shape, dtype=torch.int32)
    table = _table(volume, connectivity, multilabel, labels)
    boxes = table[:, 2:] if volume.ndim == 3 else table[:, (3, 4, 6, 7)]
    return Components(kind(labels), kind(table[:, 0]), kind(table[:, 1]), kind(boxes.contiguous()))


def keep_largest(
    volume: Any,
    *,
    classes: Iterable[int] | None = None,
    connectivity: int = 26,
    multilabel: bool = True,
    min_size: int = 0,
    largest_only: bool = True,
) -> Any:
    """A copy of the volume in which every value keeps its largest component (the first of equals).

    Args:
        volume: [z, y, x] or [y, x], integers or bool, on the CPU.
        classes: values to treat; the others stay as they are. None: all.
        connectivity: as `connected_components`.
        multilabel: False treats everything but 0 as one structure.
        min_size: components of fewer voxels go as well.
        largest_only: False clears only what is smaller than `min_size`.

    Raises:
        TypeError, ValueError: wrong kinds, shapes or devices.
    """
    from tenfold.kernels.volume import volume_native

    kind, given = _arrays.kind_of(volume), volume
    volume, connectivity = _volume(volume, connectivity)
    chosen = _classes(classes, volume)
    least = _checks.integer("min_size", min_size, 0, 2**63 - 1)
    out = volume.clone(memory_format=torch.contiguous_format)
    volume_native.keep_largest_(
        _as_3d(out), connectivity, bool(multilabel), chosen, bool(largest_only), least
    )
    return kind(out.to(_own_dtype(given)))


def fill_holes(volume: Any, *, classes: Iterable[int] | None = None) -> Any:
    """A copy in which zeros that one value shuts in have that value.

    A hole is a component of zeros (faces touching) that neither reaches the border nor touches a second
    value.

    Args:
        volume: [z, y, x] or [y, x], integers or bool, on the CPU.
        classes: values whose holes are filled. None: all.

    Raises:
        TypeError, ValueError: wrong kinds, shapes or devices.
    """
    from tenfold.kernels.volume import volume_native

    kind, given = _arrays.kind_of(volume), volume
    volume, _ = _volume(volume, None)
    chosen = _classes(classes, volume)
    out = volume.clone(memory_format=torch.contiguous_format)
    volume_native.fill_holes_(_as_3d(out), chosen)
    return kind(out.to(_own_dtype(given)))


def body_box(ct: Any, threshold: float = -500, *, connectivity: int = 26) -> tuple[slice, ...]:
    """The box of the largest connected component above a threshold: the patient in a CT, without the table.

    Args:
        ct: [z, y, x] or [y, x] in Hounsfield units, integers or floats, on the CPU.
        threshold: voxels above it count.
        connectivity: as `connected_components`.

    Returns:
        One slice per axis; the whole volume where nothing is above the threshold.

    Raises:
        TypeError, ValueError: wrong kinds, shapes or devices.
    """
    ct = _checks.tensor(
        "ct", _arrays.as_tensor("ct", ct, write=False), (*INTEGERS[:-1], *_checks.FLOAT_DTYPES)
    )
    above, connectivity = _volume(ct > _checks.real("threshold", threshold), connectivity, "ct")
    table = _table(above, connectivity, False, None)
    if not len(table):
        return tuple(slice(0, n) for n in ct.shape)
    row = table[table[:, 1].argmax()].tolist()
    axes = range(3 - ct.ndim, 3)
    return tuple(slice(row[2 + k], row[5 + k]) for k in axes)


# ---- checks ----------------------------------------------------------------------------------------------


def _volume(volume: Any, connectivity: int | None, name: str = "volume") -> tuple[Tensor, int]:
    data, flips = _volumes.volume(name, volume, floats=True)
    volume = _checks.tensor(name, data.to(WIDER[data.dtype]) if data.dtype in WIDER else data, INTEGERS)
    volume = volume.flip(flips) if flips else volume
    if volume.ndim not in (2, 3):
        _checks.fail(ValueError, name, "shape [z, y, x] or [y, x]", tuple(volume.shape))
    if volume.device.type != "cpu":
        _checks.fail(ValueError, name, "a tensor on the CPU", volume.device)
    if volume.shape[-1] >= 2**31:
        _checks.fail(ValueError, name, "fewer than 2^31 voxels along x", volume.shape[-1])
    allowed = CONNECTIVITIES[volume.ndim] if volume.ndim == 3 else (4, 8, 6, 26)
    if connectivity is None:
        return volume, 6
    connectivity = _checks.integer("connectivity", connectivity, 0, 26)
    if connectivity not in allowed:
        _checks.fail(ValueError, "connectivity", f"one of {CONNECTIVITIES[volume.ndim]}", connectivity)
    return volume, _AS_3D.get(connectivity, connectivity)


def _own_dtype(value: Any) -> torch.dtype:
    found: torch.dtype = getattr(torch, str(value.dtype).rpartition(".")[2])
    return found


def _as_3d(volume: Tensor) -> Tensor:
    return volume if volume.ndim == 3 else volume[None]


def _table(volume: Tensor, connectivity: int, multilabel: bool, labels: Tensor | None) -> Tensor:
    """int64 [N, 8], a row per component: value, voxels, box."""
    from tenfold.kernels.volume import volume_native

    flat = _as_3d(volume.contiguous())
    table = volume_native.components(
        flat, connectivity, bool(multilabel), None if labels is None else _as_3d(labels)
    )
    if volume.dtype == torch.uint8:  # the kernels take integers for signed
        table[:, 0] &= 0xFF
    return table


def _classes(classes: Iterable[int] | None, volume: Tensor) -> list[int] | None:
    """Values as the kernels see them."""
    if classes is None:
        return None
    chosen = [
        _checks.integer("classes", c, -(2**63), 2**63 - 1)
        for c in _checks.items("classes", classes, "integers", ordered=False)
    ]
    return [c - 256 if c > 127 else c for c in chosen] if volume.dtype == torch.uint8 else chosen


# ---- registration ----------------------------------------------------------------------------------------


def _kernels(device: torch.device) -> ModuleType:
    backend = chosen_backend("resample_argmax", device.type)
    if backend == "reference":
        from tenfold.kernels.volume import volume_reference as module
    elif backend == "triton":
        from tenfold.kernels.volume import volume_triton as module
    else:
        from tenfold.kernels.volume import volume_native as module
    return module


def _resample(logits: Tensor, size: Sequence[int], align_corners: bool, wide: bool) -> Tensor:
    dtype = torch.int16 if wide else torch.uint8
    found: Tensor = _kernels(logits.device).resample_argmax(logits, tuple(size), align_corners, dtype)
    return found


def _resample_fake(logits: Tensor, size: Sequence[int], align_corners: bool, wide: bool) -> Tensor:
    return logits.new_empty(list(size), dtype=torch.int16 if wide else torch.uint8)


for _device in ("CPU", "CUDA"):
    _LIBRARY.impl("resample_argmax", _resample, _device)
torch.library.register_fake("tenfold::resample_argmax", _resample_fake, lib=_LIBRARY)
