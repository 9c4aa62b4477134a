"""Small functions of the optimizers' base: losses, scalars, and the `params` argument."""

from __future__ import annotations

import numbers
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tenfold import _checks

from ._options import MagnitudeSparsity, RandomSparsity
from ._record import FLAG_SKIPPED, Scalar
from ._walk import Walk

Closure = Callable[[], "Tensor | float"]
Evaluate = Callable[[], "Tensor | float"]
Values = dict[tuple[int, int], list[float]]  # (kind, block) -> values in the order of the queries

_F32_MAX = torch.finfo(torch.float32).max
_OURS = tuple(f"{folder}{os.sep}" for folder in (*torch.__path__, Path(__file__).parents[1]))

# -- small helpers ------------------------------------------------------------------------------------


class _Retraced(Exception):
    """No error: the recorded step went no further."""


def spend(walk: Walk) -> None:
    """Before an evaluation: a replay of a step that stopped stops there too."""
    if walk.budget == 0:
        raise _Retraced
    walk.budget -= 1


def _skipped(evaluated: int) -> Scalar:
    return Scalar(0, FLAG_SKIPPED, float(evaluated))


def _values(scalars: Iterable[Scalar]) -> Values:
    values: Values = {}
    for s in sorted(scalars, key=lambda s: s.query):
        if s.kind != FLAG_SKIPPED:
            values.setdefault((s.kind, s.block), []).append(s.value)
    return values


def _dtype_name(dtype: torch.dtype | None) -> str | None:
    return None if dtype is None else str(dtype).removeprefix("torch.")


def _plain(value: Any) -> Any:
    """A group's value as JSON has it."""
    if isinstance(value, Tensor):
        return float(value)
    return list(value) if isinstance(value, tuple) else value


def _mask_to_json(mask: RandomSparsity | MagnitudeSparsity | None) -> dict[str, Any] | None:
    return None if mask is None else {"class": type(mask).__name__, **mask.__dict__}


def _mask_from_json(saved: dict[str, Any] | None) -> RandomSparsity | MagnitudeSparsity | None:
    if saved is None:
        return None
    options = {name: value for name, value in saved.items() if name != "class"}
    return RandomSparsity(**options) if saved["class"] == "RandomSparsity" else MagnitudeSparsity(**options)


# -- losses -------------------------------------------------------------------------------------------


def _loss(closure: Closure) -> Tensor | float:
    """One call of the closure, checked.  A GPU loss is cloned and read later: the host need not wait yet."""
    value = closure()
    if isinstance(value, Tensor):
        if value.numel() != 1 or value.is_complex():
            got = f"a {value.dtype} tensor of shape {tuple(value.shape)}"
            _checks.fail(TypeError, "closure", "a real scalar loss", got)
        return float(value) if value.device.type == "cpu" else value.detach().clone()
    if not isinstance(value, numbers.Real):
        _checks.fail(TypeError, "closure", "a real scalar loss", type(value).__name__)
    return float(value)


def _mean(losses: list[float]) -> float:
    return sum(losses) / len(losses) if losses else float("nan")


def _all_finite(*collections: Iterable[float]) -> bool:
    """Whether all numbers are finite, and stay so in float32."""
    return all(abs(v) <= _F32_MAX for values in collections for v in values)


# -- the `params` argument ----------------------------------------------------------------------------


def _listed(params: Any) -> list[Any]:
    """The `params` argument of an optimizer as a list of tensors, pairs or groups."""
    if isinstance(params, (Tensor, set)):
        _checks.fail(TypeError, "params", "an ordered iterable of tensors or dicts", type(params).__name__)
    listed = list(params)
    if not listed:
        _checks.fail(ValueError, "params", "at least one tensor", "an empty list")
    return listed


def _named(params: Any) -> list[tuple[str | None, Tensor]]:
    """The parameters of a group with their names, where (name, tensor) pairs were given."""
    if isinstance(params, set):
        _checks.fail(TypeError, "params", "an ordered collection", "a set")
    listed = [params] if isinstance(params, Tensor) else list(params)
    named = [item if isinstance(item, tuple) else (None, item) for item in listed]
    if len({name is None for name, _ in named}) > 1:
        _checks.fail(ValueError, "params", "(name, tensor) pairs throughout or nowhere", "a mixture")
    return named


def level_of_caller() -> int:
    """The `stacklevel` for a warning to name the line outside of torch and of this library that led to it."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_OURS):
        level, frame = level + 1, frame.f_back
    return level
