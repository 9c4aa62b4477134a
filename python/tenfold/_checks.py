"""Argument checks. Every message has one form, the argument first: `NAME: expected WHAT, got WHAT`."""

from __future__ import annotations

import operator
from bisect import bisect_left
from collections.abc import Collection, Iterable, Sequence
from itertools import accumulate
from operator import attrgetter
from typing import Any, NoReturn

import torch
from torch import Tensor

FLOAT_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

_NBYTES, _LAYOUT, _DTYPE = attrgetter("nbytes"), attrgetter("layout"), attrgetter("dtype")
_NESTED, _WATCHED = attrgetter("is_nested"), attrgetter("requires_grad")
_PLAIN = frozenset((Tensor, torch.nn.Parameter))


def fail(kind: type[Exception], name: str, expected: str, got: object) -> NoReturn:
    raise kind(f"{name}: expected {expected}, got {got}")


def integer(name: str, value: Any, low: int, high: int, what: str | None = None) -> int:
    """`value` (an int, or anything with __index__, as NumPy's integers) within [low, high]."""
    expected = what or f"an integer in [{low}, {high}]"
    if isinstance(value, (bool, Tensor)):
        fail(TypeError, name, expected, describe(value))
    if not isinstance(value, (int, torch.SymInt)):
        try:
            value = operator.index(value)
        except TypeError:
            fail(TypeError, name, expected, describe(value))
    if not low <= value <= high:
        fail(ValueError, name, expected, value)
    return value


def seed(name: str, value: Any) -> int:
    return integer(name, value, 0, 2**64 - 1, "an integer in [0, 2^64)")


def query(name: str, value: Any) -> int:
    return integer(name, value, 0, 2**24 - 1, "an integer in [0, 2^24)")


def stream(name: str, value: Any) -> int:
    return integer(name, value, 0, 2**32 - 1, "an integer in [0, 2^32)")


def real(
    name: str,
    value: Any,
    *,
    positive: bool = False,
    at_least: float | None = None,
    below: float | None = None,
) -> float:
    """`value` as a finite float, optionally positive, >= at_least, < below."""
    expected = "a finite number"
    if positive:
        expected += " > 0"
    if at_least is not None:
        expected += f" >= {at_least:g}"
    if below is not None:
        expected += f" < {below:g}"
    if isinstance(value, (bool, complex, str, bytes)):
        fail(TypeError, name, expected, describe(value))
    try:
        number = float(value)
    except OverflowError:
        fail(ValueError, name, expected, "a number beyond float64")
    except (TypeError, ValueError):
        fail(TypeError, name, expected, describe(value))
    bad = not _is_finite(number) or (positive and number <= 0)
    bad = bad or (at_least is not None and number < at_least) or (below is not None and number >= below)
    if bad:
        fail(ValueError, name, expected, number)
    return number


def _is_finite(number: float) -> bool:
    return number == number and number not in (float("inf"), float("-inf"))  # torch.compile traces this


FLOAT32_LIMIT = 3.4028235677973366e38
"""The smallest float64 that rounds to infinity in float32."""


def fits(name: str, value: float, single: bool) -> float:
    """A coefficient that stays finite in the type it is used in: float32 if `single`, else float64."""
    if not _is_finite(value) or (single and abs(value) >= FLOAT32_LIMIT):
        fail(
            ValueError, name, "a coefficient that is finite in " + ("float32" if single else "float64"), value
        )
    return value


def choice(name: str, value: Any, options: Collection[str]) -> str:
    if not isinstance(value, str) or value not in options:
        fail(ValueError, name, "one of " + ", ".join(repr(o) for o in options), repr(value))
    return value


def dtype(name: str, value: Any, allowed: Sequence[torch.dtype] = FLOAT_DTYPES) -> torch.dtype:
    if not isinstance(value, torch.dtype):
        fail(TypeError, name, "a torch.dtype", describe(value))
    if value not in allowed:
        fail(TypeError, name, "one of " + ", ".join(map(str, allowed)), value)
    return value


def tensor(name: str, value: Any, dtypes: Sequence[torch.dtype] = FLOAT_DTYPES) -> Tensor:
    """`value` as a dense (strided, not quantised) tensor of one of `dtypes`."""
    if not isinstance(value, Tensor):
        fail(TypeError, name, "a torch.Tensor (or a NumPy or CuPy array)", describe(value))
    if value.layout != torch.strided:
        fail(TypeError, name, "a dense (strided) tensor", value.layout)
    if not torch.compiler.is_compiling() and (value.is_nested or value.is_neg()):
        fail(TypeError, name, "a plain tensor", "a nested tensor" if value.is_nested else "a negated view")
    if value.is_quantized or value.dtype not in dtypes:
        fail(
            TypeError,
            name,
            "dtype " + " or ".join(str(d).removeprefix("torch.") for d in dtypes),
            value.dtype,
        )
    return value


def sequence(name: str, value: Any, what: str) -> Sequence[Any]:
    """`value` as a list or tuple (anything with a length and an order), but no tensor, array or string."""
    if not isinstance(value, Sequence) or isinstance(value, (Tensor, str, bytes)):
        fail(TypeError, name, f"a list of {what}", describe(value))
    return value


def items(name: str, value: Any, what: str, *, ordered: bool = True) -> list[Any]:
    """The items of a list, tuple, array or tensor of one axis; of anything but a text if not `ordered`."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if not ordered and isinstance(value, Iterable) and not isinstance(value, (str, bytes)):
        return list(value)
    return list(sequence(name, value, what))


def length(name: str, value: Sequence[Any], expected: int, of: str) -> None:
    if len(value) != expected:
        fail(ValueError, name, f"{expected} entries (one for each of {of})", len(value))


def writable(name: str, value: Tensor) -> None:
    """Autograd cannot follow a pass, so in grad mode it must not write what autograd watches."""
    if value.requires_grad and torch.is_grad_enabled():
        raise RuntimeError(
            f"{name}: expected a tensor that may be written in place, got one that requires grad while "
            "gradients are enabled; call under torch.no_grad()"
        )


def memory(**lists: Sequence[Tensor]) -> None:
    """No tensor overlaps itself and no two share memory: a pass would hit an element twice.

    Keywords are the arguments' names.
    """
    if _plainly_apart(lists.values()):
        return
    spans: list[tuple[int, int, int, str, Tensor]] = []
    for name, tensors in lists.items():
        for i, t in enumerate(tensors):
            if t.numel() == 0:
                continue
            if not t.is_contiguous() and _overlaps_itself(t):
                got = f"shape {tuple(t.shape)}, strides {t.stride()}"
                fail(ValueError, f"{name}[{i}]", "a tensor without overlapping memory", got)
            spans.append((*_span(t), len(spans), f"{name}[{i}]", t))
    spans.sort(key=lambda span: span[:3])
    reaching: list[tuple[int, int, int, str, Tensor]] = []  # the spans that end behind the start of the next
    for span in spans:
        reaching = [other for other in reaching if other[1] > span[0]]
        for other in reaching:
            if not _columns_apart(other[4], span[4]):
                first, second = sorted((other, span), key=lambda s: s[2])
                expected = "every tensor once"
                fail(ValueError, second[3], expected, f"one that shares memory with {first[3]}")
        reaching.append(span)


def _plainly_apart(lists: Iterable[Sequence[Tensor]]) -> bool:
    """Whether all tensors are contiguous and lie one behind the other: the usual case, decided quickly."""
    tensors = [t for each in lists for t in each]
    if not all(map(Tensor.is_contiguous, tensors)):
        return False
    spans = [
        span for span in zip(map(Tensor.data_ptr, tensors), map(_NBYTES, tensors), strict=True) if span[1]
    ]
    spans.sort()
    reached = 0
    for start, size in spans:
        if start < reached:
            return False
        reached = start + size
    return True


def are_plain(values: Sequence[Any], dtypes: Sequence[torch.dtype], write: bool) -> bool:
    """Whether all are dense tensors of these dtypes that may be read, or written: decided quickly.

    Looking at every tensor for every possible fault takes longer than the pass over a small one.
    """
    if torch.compiler.is_compiling() or not isinstance(values, (list, tuple)):
        return False
    if not _PLAIN.issuperset(map(type, values)) or not frozenset(dtypes).issuperset(map(_DTYPE, values)):
        return False
    if any(layout is not torch.strided for layout in map(_LAYOUT, values)):
        return False
    if any(map(_NESTED, values)) or any(map(Tensor.is_neg, values)):
        return False
    return not (write and torch.is_grad_enabled() and any(map(_WATCHED, values)))


def separate(name: str, sources: Sequence[Tensor], params: Sequence[Tensor]) -> None:
    """Each source is its param itself, or memory that no param is written to."""
    written = sorted((*_span(p), i) for i, p in enumerate(params) if p.numel())
    ends = list(accumulate((end for _, end, _ in written), max))  # of all spans up to this one
    for k, (source, param) in enumerate(zip(sources, params, strict=True)):
        if source.numel() == 0 or (
            source.data_ptr() == param.data_ptr() and source.stride() == param.stride()
        ):
            continue
        start, end = _span(source)
        for at in range(bisect_left(written, (end,)) - 1, -1, -1):
            if ends[at] <= start:
                break
            if written[at][1] > start:
                got = f"memory shared with params[{written[at][2]}]"
                fail(ValueError, f"{name}[{k}]", "memory of its own", got)


def _columns_apart(a: Tensor, b: Tensor) -> bool:
    """Whether two matrices are different columns of one matrix, as the parts of a fused projection are."""
    if a.ndim != 2 or b.ndim != 2 or a.stride() != b.stride() or a.stride(1) != 1 or a.dtype != b.dtype:
        return False
    row = a.stride(0) * a.element_size()
    if row == 0:
        return False
    offset = (b.data_ptr() - a.data_ptr()) % row
    return offset >= a.shape[1] * a.element_size() and row - offset >= b.shape[1] * b.element_size()


def _span(t: Tensor) -> tuple[int, int]:
    """First byte and the byte after the last."""
    start = t.data_ptr()
    if t.is_contiguous():
        return start, start + t.numel() * t.element_size()
    reach = 1 + sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True))
    return start, start + reach * t.element_size()


def _overlaps_itself(t: Tensor) -> bool:
    reach = 1  # elements that the smaller strides can cover
    for stride_, size in sorted((s, n) for n, s in zip(t.shape, t.stride(), strict=True) if n > 1):
        if stride_ < reach:
            return True
        reach = stride_ * (size - 1) + reach
    return False


def describe(value: object) -> str:
    return f"{type(value).__name__} {value!r}"[:80]
