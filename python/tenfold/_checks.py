"""Argument checks. Every message has one form: `NAME: expected WHAT, got WHAT`, so that a reader always finds the argument first."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

FLOAT_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def fail(kind: type[Exception], name: str, expected: str, got: object) -> NoReturn:
    raise kind(f"{name}: expected {expected}, got {got}")


def integer(name: str, value: Any, low: int, high: int, what: str | None = None) -> int:
    """`value` as int within [low, high]."""
    expected = what or f"an integer in [{low}, {high}]"
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
        fail(TypeError, name, expected, _describe(value))
    if not low <= value <= high:
        fail(ValueError, name, expected, value)
    return value  # type: ignore[return-value]


def seed(name: str, value: Any) -> int:
    return integer(name, value, 0, 2**64 - 1, "an integer in [0, 2^64)")


def query(name: str, value: Any) -> int:
    return integer(name, value, 0, 2**24 - 1, "an integer in [0, 2^24)")


def stream(name: str, value: Any) -> int:
    return integer(name, value, 0, 2**32 - 1, "an integer in [0, 2^32)")


def real(name: str, value: Any, *, positive: bool = False, at_least: float | None = None, below: float | None = None) -> float:
    """`value` as a finite float, optionally positive, >= at_least, < below."""
    expected = "a finite number"
    if positive:
        expected += " > 0"
    if at_least is not None:
        expected += f" >= {at_least:g}"
    if below is not None:
        expected += f" < {below:g}"
    if isinstance(value, (bool, complex)):
        fail(TypeError, name, expected, _describe(value))
    try:
        number = float(value)
    except (TypeError, ValueError):
        fail(TypeError, name, expected, _describe(value))
    bad = not math.isfinite(number) or (positive and number <= 0)
    bad = bad or (at_least is not None and number < at_least) or (below is not None and number >= below)
    if bad:
        fail(ValueError, name, expected, number)
    return number


def choice(name: str, value: Any, options: Collection[str]) -> str:
    if not isinstance(value, str) or value not in options:
        fail(ValueError, name, "one of " + ", ".join(repr(o) for o in options), repr(value))
    return value


def dtype(name: str, value: Any, allowed: Sequence[torch.dtype] = FLOAT_DTYPES) -> torch.dtype:
    if not isinstance(value, torch.dtype):
        fail(TypeError, name, "a torch.dtype", _describe(value))
    if value not in allowed:
        fail(TypeError, name, "one of " + ", ".join(map(str, allowed)), value)
    return value


def tensor(name: str, value: Any, dtypes: Sequence[torch.dtype] = FLOAT_DTYPES) -> Tensor:
    """`value` as a dense (strided, not quantised) tensor of one of `dtypes`."""
    if not isinstance(value, Tensor):
        fail(TypeError, name, "a torch.Tensor (or a NumPy or CuPy array)", _describe(value))
    if value.layout != torch.strided:
        fail(TypeError, name, "a dense (strided) tensor", value.layout)
    if value.is_quantized or value.dtype not in dtypes:
        fail(TypeError, name, "dtype " + " or ".join(str(d).removeprefix("torch.") for d in dtypes), value.dtype)
    return value


def length(name: str, value: Sequence[Any], expected: int, of: str) -> None:
    if len(value) != expected:
        fail(ValueError, name, f"{expected} entries (one for each of {of})", len(value))


def writable(name: str, value: Tensor) -> None:
    """A leaf that autograd watches must not be written in grad mode."""
    if value.requires_grad and value.is_leaf and torch.is_grad_enabled():
        raise RuntimeError(
            f"{name}: expected a tensor that may be written in place, got a leaf that requires grad while gradients are enabled; "
            "call under torch.no_grad()"
        )


def memory(name: str, tensors: Sequence[Tensor]) -> None:
    """No tensor overlaps itself (expanded, or overlapping strides) and no two share memory: a pass would hit an element twice."""
    spans = []
    for i, t in enumerate(tensors):
        if t.numel() == 0:
            continue
        dense = t.is_contiguous()
        if not dense and _overlaps_itself(t):
            fail(ValueError, f"{name}[{i}]", "a tensor without overlapping memory", f"shape {tuple(t.shape)}, strides {t.stride()}")
        extent = t.numel() if dense else 1 + sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True))
        start = t.data_ptr()
        spans.append((start, start + extent * t.element_size(), i))
    spans.sort()
    for (_, end, i), (start, _, j) in zip(spans, spans[1:], strict=False):
        if start < end:
            a, b = sorted((i, j))
            raise ValueError(f"{name}: expected every tensor once, got {name}[{a}] and {name}[{b}] that share memory")


def _overlaps_itself(t: Tensor) -> bool:
    reach = 1  # elements that the smaller strides can cover
    for stride_, size in sorted((s, n) for n, s in zip(t.shape, t.stride(), strict=True) if n > 1):
        if stride_ < reach:
            return True
        reach = stride_ * (size - 1) + reach
    return False


def _describe(value: object) -> str:
    return f"{type(value).__name__} {value!r}"[:80]
