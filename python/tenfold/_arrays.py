"""NumPy and CuPy arrays in and out of ops, through DLPack, without a copy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import _checks


def as_tensor(name: str, value: Any, *, write: bool = True) -> Tensor:
    """The tensor itself, or a view of an array's memory.

    Raises:
        TypeError: `value` is neither a tensor nor an array that speaks DLPack, or its dtype has no
            counterpart.
        ValueError: the array has negative strides, or is read-only where it would be written.
    """
    if isinstance(value, Tensor):
        return value
    if not hasattr(value, "__dlpack__"):
        _checks.fail(TypeError, name, "a torch.Tensor, NumPy array or CuPy array", type(value).__name__)
    strides = getattr(value, "strides", None) or ()
    if any(s < 0 for s in strides):
        _checks.fail(ValueError, name, "an array without negative strides", strides)
    flags = getattr(value, "flags", None)
    if flags is not None and not getattr(flags, "writeable", True):
        if write:
            _checks.fail(ValueError, name, "a writable array", "a read-only one")
        value = value.copy()  # DLPack hands out writable memory only
    try:
        tensor = torch.from_dlpack(value)
    except (BufferError, RuntimeError, TypeError) as error:
        expected = "an array whose dtype and layout torch can share"
        _checks.fail(TypeError, name, expected, f"{getattr(value, 'dtype', type(value).__name__)} ({error})")
    if tensor.data_ptr() % tensor.element_size():
        _checks.fail(ValueError, name, "an array aligned to its items", f"address {tensor.data_ptr():#x}")
    return tensor


def kind_of(value: Any) -> Callable[[Tensor], Any]:
    """A function that turns a result tensor into what `value` is: tensor, NumPy array or CuPy array."""
    module = type(value).__module__.partition(".")[0]
    if module == "numpy":
        return _to_numpy
    if module == "cupy":
        return _to_cupy
    return lambda result: result


def _to_numpy(result: Tensor) -> Any:
    if result.dtype == torch.bfloat16:
        _checks.fail(TypeError, "dtype", "a dtype that NumPy has, for a NumPy argument", result.dtype)
    return result.detach().numpy()


def _to_cupy(result: Tensor) -> Any:
    import cupy

    return cupy.from_dlpack(result.detach())
