"""Every public op on drawn and on spoilt arguments: the backends agree, or all of them refuse by name.

Never a crash, another exception, a write into what is only read, or a half-done write on refusal.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
import re
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import recipes_language
import recipes_pictures
import recipes_samples
import recipes_zo
import torch
from drawing import Draw, few
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import tenfold
from tenfold import ops

RECIPES: dict[str, Callable[[Draw], dict[str, Any]]] = {
    name: recipe
    for module in (recipes_zo, recipes_language, recipes_pictures, recipes_samples)
    for name, recipe in vars(module).items()
    if inspect.isfunction(recipe) and not name.startswith("_") and hasattr(ops, name)
}
NAMES = [name for name in ops.__all__ if inspect.isfunction(getattr(ops, name))]

WRITTEN = {
    "exp_avgs", "exp_avg_sqs", "momentum_buffers", "params", "hessians", "sums", "acc", "weights",
    "delta", "p", "m", "v", "state", "stats",
}  # fmt: skip
"""What ops that end in "_" (and dynamics_update) may write."""

TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


def test_every_public_op_has_a_recipe() -> None:
    assert sorted(NAMES) == sorted(set(NAMES) & set(RECIPES))


@dataclasses.dataclass
class Outcome:
    value: Any = None
    error: Exception | None = None
    arguments: Any = None


def attempt(name: str, backend: str, arguments: dict[str, Any]) -> Outcome:
    """One call on copies of the arguments; what it gave or raised, and the arguments afterwards."""
    mine = clone(arguments)
    torch.manual_seed(0)
    with tenfold.use_backend(backend), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            value = getattr(ops, name)(**mine)
            if isinstance(value, Iterator):
                value = [clone(v) for v in value]
        except Exception as error:
            return Outcome(error=error, arguments=mine)
    return Outcome(value, None, mine)


def clone(value: Any) -> Any:
    """A copy that keeps strides."""
    if isinstance(value, Tensor):
        if value.layout != torch.strided or value.requires_grad or not value.numel():
            return value.detach().clone().requires_grad_(value.requires_grad)
        base = torch.as_strided(value, (_reach(value),), (1,)).clone()
        return torch.as_strided(base, value.shape, value.stride(), 0)
    if isinstance(value, dict):
        return {k: clone(v) for k, v in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(clone, value))
    if isinstance(value, (list, tuple)):
        return type(value)(map(clone, value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.replace(
            value, **{f.name: clone(getattr(value, f.name)) for f in dataclasses.fields(value)}
        )
    return copy.copy(value) if isinstance(value, np.ndarray) else value


def _reach(t: Tensor) -> int:
    return 1 + sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True))


def leaves(value: Any) -> Iterator[Any]:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = [getattr(value, f.name) for f in dataclasses.fields(value)]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for each in value:
            yield from leaves(each)
    else:
        yield value


def same_bits(a: Any, b: Any) -> bool:
    pairs = list(zip(leaves(a), leaves(b), strict=True))
    return all(_same(x, y) for x, y in pairs)


def _same(x: Any, y: Any) -> bool:
    if not isinstance(x, Tensor) or not isinstance(y, Tensor):
        return True
    if x.layout != torch.strided:
        return x.shape == y.shape
    return x.dtype == y.dtype and x.shape == y.shape and bool(((x == y) | ((x != x) & (y != y))).all())


def check_error(name: str, error: Exception, arguments: dict[str, Any]) -> None:
    """Of a documented class, and it begins with the name of an argument."""
    # PyTorch itself speaks where an op says that there is no second derivative or a scale is beyond memory.
    kinds = (ValueError, TypeError, IndexError, RuntimeError)
    assert isinstance(error, kinds), f"{name} raised {error!r}"
    known = "|".join(map(re.escape, inspect.signature(getattr(ops, name)).parameters))
    form = rf"(tenfold\.\w+: )?([^:]*\W)?({known})\b[^:]*: (expected|the|.*second derivative)"
    assert re.match(form, str(error)), f"{name} raised {error!r}, which names no argument"


def _late(name: str, error: Exception | None) -> bool:
    """Found after writing, as is documented."""
    return name == "ste_adam_simplex_" and str(error).startswith("p[")


def check_equal(name: str, ours: Outcome, reference: Outcome, arguments: dict[str, Any]) -> None:
    if is_extreme(arguments):  # inf - inf here is inf - huge there: that both return the same shapes is all
        shapes = [[getattr(x, "shape", None) for x in leaves(o.value)] for o in (ours, reference)]
        assert shapes[0] == shapes[1] or name in LENGTH_VARIES, f"{name}: shapes {shapes[0]} and {shapes[1]}"
        return
    kinds = {x.dtype for x in leaves(arguments) if isinstance(x, Tensor) and x.dtype in TOLERANCE}
    loosest = max((TOLERANCE[k] for k in kinds), default=2e-5)
    loosest = max(loosest, ILL_CONDITIONED.get(name, 0.0))
    for a, b in zip(leaves(ours.value), leaves(reference.value), strict=True):
        if name in NEAR_TIES:
            a, b = (
                x[:1] if isinstance(x, Tensor) and x.is_floating_point() and x.ndim == 1 else None
                for x in (a, b)
            )
        close(name, a, b, loosest)
    for a, b in zip(leaves(ours.arguments), leaves(reference.arguments), strict=True):
        close(name, a, b, loosest)


NEAR_TIES = {
    "fl_greedy",
    "graphcut_greedy",
    "logdet_greedy",
    "herding",
    "nearest_token",
    "edt",
    "mmd_permutation_test",
    "ssdt_joint",
    "ssdt_separable",
}
"""Where values that differ in the last bit decide which index (or how many steps) comes back, only the first
floating values are compared."""

ILL_CONDITIONED = {"mmd": 1e-3, "mmd2_rbf": 1e-3, "ste_adam_simplex_": 0.25}
"""A bandwidth may be that of a cluster far from the centre, whose distances float32 norms and products hold
to a few digits only. Adam's first step is lr times a gradient's sign; near 0 a sum's order decides it."""

LENGTH_VARIES = {"fl_greedy", "omp_factored", "craig", "moderate_select"}
"""How many picks come back depends on the values."""


def is_extreme(arguments: dict[str, Any]) -> bool:
    """Values that are not finite, or whose squares swamp float32 sums."""
    tensors = [x for x in leaves(arguments) if isinstance(x, Tensor) and x.layout == torch.strided]
    floats = [torch.view_as_real(x) if x.is_complex() else x for x in tensors]
    floats = [x.detach() for x in floats if x.is_floating_point() and x.numel()]
    return any(not bool((x.abs() < 1e4).all()) for x in floats)


def close(name: str, a: Any, b: Any, tolerance: float) -> None:
    if isinstance(a, float):
        a, b = torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64)
    if not isinstance(a, Tensor):
        if not callable(a) and not isinstance(a, np.ndarray):
            assert a == b or a is b or a != a, f"{name}: {a!r} and {b!r}"
        return
    assert a.dtype == b.dtype, f"{name}: {a.dtype} and {b.dtype}"
    assert a.shape == b.shape, f"{name}: shapes {a.shape} and {b.shape}"
    if a.layout != torch.strided or not a.numel():
        return
    if not (a.is_floating_point() or a.is_complex()):
        assert torch.equal(a, b), f"{name}: {a} and {b}"
        return
    a, b = a.detach(), b.detach()
    wide = torch.complex128 if a.is_complex() else torch.float64
    a, b = a.to(wide), b.to(wide)
    finite = b[torch.isfinite(b)].abs()
    size = max(1.0, float(finite.max()) if finite.numel() else 0.0)
    torch.testing.assert_close(
        a, b, rtol=tolerance, atol=tolerance * size, equal_nan=True, msg=lambda m: f"{name}: {m}\n{a}\n{b}"
    )


@pytest.mark.parametrize("spoil", [False, True], ids=["drawn", "spoilt"])
@pytest.mark.parametrize("name", NAMES)
def test_op(name: str, spoil: bool) -> None:
    @few(12)
    @given(st.data())
    def run(data: st.DataObject) -> None:
        draw_and_check(name, spoil, data)

    run()


def draw_and_check(name: str, spoil: bool, data: st.DataObject) -> None:
    d = Draw(data)
    arguments = RECIPES[name](d)
    if spoil:
        arguments = d.spoil(arguments, defaults(name))
    check(name, arguments)


HARMLESS = {"device", "generator", "group", "predict", "check"}
"""Arguments that PyTorch itself reads, and `check`, without which NaN and infinity are undefined."""


def defaults(name: str) -> dict[str, Any]:
    parameters = inspect.signature(getattr(ops, name)).parameters
    return {key: p.default for key, p in parameters.items() if key not in HARMLESS}


def check(name: str, arguments: dict[str, Any]) -> None:
    ours, reference = (attempt(name, backend, arguments) for backend in ("auto", "reference"))
    in_place = name.endswith("_") or name == "dynamics_update"
    for outcome in (ours, reference):
        if outcome.error is not None:
            check_error(name, outcome.error, arguments)
        for key, value in arguments.items():
            late = _late(name, outcome.error)
            if (outcome.error is not None and not late) or not in_place or key not in WRITTEN:
                assert same_bits(value, outcome.arguments[key]), (
                    f"{name} wrote into {key} ({outcome.error!r})"
                )
    if ours.error is not None or reference.error is not None:
        if any(_late(name, o.error) for o in (ours, reference)) and is_extreme(arguments):
            return  # whether a sum of numbers as large as these is infinite depends on its order
        kinds = [type(o.error).__name__ for o in (ours, reference)]
        assert kinds[0] == kinds[1], f"{name}: native {ours.error!r}, reference {reference.error!r}"
        return
    check_equal(name, ours, reference, arguments)
