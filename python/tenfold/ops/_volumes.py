"""Label volumes as tensors: any integer dtype, any strides, NumPy arrays with axes turned round included."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tenfold import _arrays, _checks

LABEL_DTYPES = (
    torch.uint8, torch.int8, torch.uint16, torch.int16, torch.uint32, torch.int32, torch.int64, torch.bool
)  # fmt: skip


class Volume(NamedTuple):
    """`data` shares the caller's memory; `flips` are the axes along which it runs backwards."""

    data: Tensor
    flips: list[int]


class _Writable:
    """The memory of a read-only array for torch, which only reads it here."""

    def __init__(self, array: np.ndarray[Any, Any]) -> None:
        interface = dict(array.__array_interface__)
        interface["data"] = (interface["data"][0], False)
        self.__array_interface__ = interface
        self.keep = array


def volume(name: str, value: Any, ndims: Sequence[int] | None = None, *, floats: bool = False) -> Volume:
    """`value` as a label volume, without a copy unless it is of a floating-point dtype and not `floats`.

    Raises:
        TypeError: neither tensor nor array, or a dtype without labels.
        ValueError: a number of axes that is not in `ndims`; floating-point values that are not whole.
    """
    flips: list[int] = []
    if isinstance(value, np.ndarray):
        value, flips = _from_numpy(name, value)
    data = _arrays.as_tensor(name, value, write=False)
    if data.dtype.is_floating_point and not floats:
        data = _whole_numbers(name, data)
    data = _checks.tensor(name, data, (*LABEL_DTYPES, *_checks.FLOAT_DTYPES) if floats else LABEL_DTYPES)
    if ndims is not None and data.ndim not in ndims:
        _checks.fail(ValueError, name, " or ".join(f"{n}-D" for n in ndims) + " labels", tuple(data.shape))
    return Volume(data, flips)


def pair(target: Any, pred: Any, ndims: Sequence[int] | None = None) -> tuple[Volume, Volume]:
    """Both volumes, of one shape on one device."""
    a, b = volume("target", target, ndims), volume("pred", pred, ndims)
    if a.data.shape != b.data.shape:
        expected = f"the shape of target, {tuple(a.data.shape)}"
        _checks.fail(ValueError, "pred", expected, tuple(b.data.shape))
    if a.data.device != b.data.device:
        _checks.fail(ValueError, "pred", f"the device of target, {a.data.device}", b.data.device)
    return a, b


def _from_numpy(name: str, array: np.ndarray[Any, Any]) -> tuple[Tensor, list[int]]:
    if array.dtype.kind not in "biuf" or not array.dtype.isnative or array.dtype == np.uint64:
        expected = "labels of a native integer dtype up to int64, or bool"
        _checks.fail(TypeError, name, expected, array.dtype)
    flips = [axis for axis, stride in enumerate(array.strides) if stride < 0 and array.size]
    if flips:
        array = array[tuple(slice(None, None, -1 if axis in flips else 1) for axis in range(array.ndim))]
    if any(stride % array.itemsize for stride in array.strides) or not array.flags.aligned:
        array = array.copy()  # a field of a structure: torch counts strides in elements
    if not array.flags.writeable:
        array = np.asarray(_Writable(array))
    return torch.from_numpy(array), flips


def _whole_numbers(name: str, data: Tensor) -> Tensor:
    whole = data.to(torch.int64)
    if not bool((whole == data).all()):
        bad = data[whole != data].reshape(-1)[0].item()
        _checks.fail(ValueError, name, "whole numbers as labels", bad)
    return whole


def is_number(value: Any) -> bool:
    """Whether `value` is one number, NumPy's and tensors without axes included."""
    return isinstance(value, (int, float)) or getattr(value, "ndim", None) == 0


def spacing(value: Any, ndim: int) -> list[float]:
    """Positive finite numbers in mm, one for each axis, or one for all."""
    if isinstance(value, (Tensor, np.ndarray)):
        value = value.tolist()
    if isinstance(value, (int, float)):
        value = [value] * ndim
    value = _checks.sequence("spacing", value, f"{ndim} numbers")
    _checks.length("spacing", value, ndim, "the axes")
    return [_checks.real(f"spacing[{i}]", s, positive=True) for i, s in enumerate(value)]


def threads(value: int | None) -> int:
    """The number of threads to use; 0 stands for torch's own number, which is asked for when an op runs."""
    return 0 if value is None else _checks.integer("num_threads", value, 1, 4096)
