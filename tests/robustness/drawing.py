"""What the fuzzers draw: shapes, layouts, dtypes and values, and one argument that is spoilt."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from torch import Tensor

EXAMPLES = int(os.environ.get("TENFOLD_FUZZ_EXAMPLES", "0"))
FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
SPECIALS = (float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1e-41, 3e38, -3e38, 65504.0, 1e-8)


def few(default: int) -> settings:
    """The same examples in every run; without derandomizing them where more are asked for."""
    return settings(
        max_examples=EXAMPLES or default,
        derandomize=EXAMPLES == 0,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink) if EXAMPLES else (Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )


class Draw:
    """Hypothesis' choices; tensors come from a generator that one of them seeds."""

    def __init__(self, data: st.DataObject, hostile: bool = True) -> None:
        self.data = data
        self.hostile = hostile
        self.rng = np.random.default_rng(data.draw(st.integers(0, 2**20), label="seed"))

    def one(self, *options: Any) -> Any:
        return self.data.draw(st.sampled_from(options))

    def often(self, usual: Any, *others: Any) -> Any:
        """Mostly the usual one."""
        return self.one(usual, usual, usual, *others)

    def flag(self) -> bool:
        return bool(self.data.draw(st.booleans()))

    def integer(self, low: int, high: int) -> int:
        return int(self.data.draw(st.integers(low, high)))

    def size(self, low: int = 0, high: int = 33) -> int:
        return int(self.one(*(n for n in (3, 1, 2, 0, 4, 5, 7, 8, 9, 16, 17, 33) if low <= n <= high)))

    def sizes(self, count: int, low: int = 0, high: int = 9) -> tuple[int, ...]:
        return tuple(self.size(low, high) for _ in range(count))

    def dtype(self) -> torch.dtype:
        return self.one(*FLOATS)

    def seed(self) -> int:
        return self.one(1, 0, 2**32, 2**64 - 1)

    def floats(
        self,
        *shape: int,
        dtype: torch.dtype = torch.float32,
        positive: bool = False,
        scale: float | None = None,
        written: bool = False,
        tame: bool = False,
    ) -> Tensor:
        """Normal numbers (or their absolute values), now and then with special ones among them."""
        values = self.rng.standard_normal(shape)
        values = np.abs(values) if positive else values
        values = values * (self.often(1.0, 1e-3, 30.0) if scale is None else scale)
        if self.hostile and not tame and values.size and self.often(False, True):
            flat = values.reshape(-1)
            for _ in range(self.integer(1, 3)):
                flat[self.rng.integers(flat.size)] = self.one(*SPECIALS)
        return self.laid(torch.from_numpy(np.asarray(values)).to(dtype), written)

    def ints(self, *shape: int, low: int, high: int, dtype: torch.dtype = torch.int64) -> Tensor:
        """Integers in [low, high); zeros where there are none."""
        values = self.rng.integers(low, max(high, low + 1), shape)
        return self.laid(torch.from_numpy(np.asarray(values)).to(dtype), False)

    def bools(self, *shape: int) -> Tensor:
        return self.laid(torch.from_numpy(np.asarray(self.rng.integers(0, 2, shape) > 0)), False)

    def laid(self, t: Tensor, written: bool) -> Tensor:
        """The same values behind other strides."""
        how = self.often("plain", "transposed", "strided", "offset", "expanded")
        if t.ndim == 0 or how == "plain":
            return t
        if how == "transposed":
            return t.transpose(0, -1).contiguous().transpose(0, -1)
        if how == "strided":
            wide = torch.zeros((*t.shape[:-1], 2 * t.shape[-1]), dtype=t.dtype)
            wide[..., ::2] = t
            return wide[..., ::2]
        if how == "expanded" and not written and t.shape[0] > 1:
            return t[:1].expand(t.shape)
        flat = torch.zeros(t.numel() + 1, dtype=t.dtype)
        flat[1:] = t.reshape(-1)
        return flat[1:].view(t.shape)

    def spoil(self, arguments: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
        """The arguments with one of them made wrong, or merely odd."""
        name = self.one(*defaults)
        return {**arguments, name: self.spoilt(arguments.get(name, defaults[name]))}

    def spoilt(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self._spoilt_tensor(value)
        if isinstance(value, list) and value and self.flag():
            at = self.integer(0, len(value) - 1)
            return [*value[:at], self.spoilt(value[at]), *value[at + 1 :]]
        if isinstance(value, list):
            return self.one(value[1:], [*value, *value], None, "text", 3, [None], [[]])
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            field = self.one(*value._fields)
            return value._replace(**{field: self.spoilt(getattr(value, field))})
        if isinstance(value, bool):
            return self.one(not value, None, 0, 1)
        if isinstance(value, int):
            return self.one(-1, 0, 1, 2**70, -(2**70), 1.5, float("nan"), "text", None, True, torch.ones(2))
        if isinstance(value, float):
            odd = (float("nan"), float("inf"), -1.0, 0.0, 1e300, -1e300, 5e-324)
            return self.one(*odd, "text", None, 1j, torch.ones(2), 2**2000)
        if isinstance(value, str):
            return self.one("", "nonsense", None, 3, b"linf")
        return self.one(-1, 0, 1.5, float("nan"), "text", [], {}, torch.ones(2), torch.ones(0), object())

    def _spoilt_tensor(self, t: Tensor) -> Any:
        how = self.one(
            "special", "dtype", "shorter", "axis", "flat", "empty", "kind", "sparse", "grad", "out"
        )
        if how == "special" and t.is_floating_point() and t.numel():
            t = t.contiguous().clone()
            t.view(-1)[self.rng.integers(t.numel())] = self.one(*SPECIALS)
            return t
        if how == "out" and not t.is_floating_point() and not t.is_complex() and t.numel():
            t = t.contiguous().clone()
            t.view(-1)[self.rng.integers(t.numel())] = self.one(-1, -100, 127)
            return t
        if how == "dtype":
            other = self.one(torch.int64, torch.uint8, torch.bool, torch.complex64, torch.int8, *FLOATS)
            return (t.real if t.is_complex() and not other.is_complex else t).to(other)
        if how == "shorter" and t.ndim and t.shape[-1]:
            return t[..., :-1]
        if how == "axis":
            return t[None]
        if how == "empty" and t.ndim:
            return t[:0]
        if how == "kind":
            return self.one(None, "text", 3, [], {"a": t}, np.array(["a"]), np.array([object()]), t.tolist())
        if how == "sparse" and t.ndim == 2:
            return t.to_sparse()
        if how == "grad" and t.is_floating_point():
            return t.clone().requires_grad_()
        return t.reshape(-1)
