"""Probing without writing: the closure computes with perturbed weights that are made where they are used."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ._walk import Cell, Walk

_VALUE_GETTERS = ("data", "T", "mT", "H", "mH", "real", "imag")
_ABOUT = {
    "size", "stride", "dim", "ndimension", "numel", "nelement", "storage_offset", "is_contiguous",
    "is_floating_point", "is_complex", "is_signed", "data_ptr", "element_size", "get_device", "is_pinned",
    "is_inference", "is_conj", "is_neg", "is_same_size", "register_hook", "retain_grad", "has_names",
    "requires_grad_", "__hash__", "__len__", "_is_view", "is_tensor", "is_storage", "is_shared",
    "is_distributed",
}  # fmt: skip
_KEPT_BYTES = 4 << 20  # small perturbed copies (norms, biases) stay for the rest of the probe, up to this


def _only_about(func: Callable[..., Any]) -> bool:
    """Whether the function asks about a tensor (shape, dtype, ...), not for its values."""
    name = getattr(func, "__name__", "")
    if name == "__get__":
        return getattr(getattr(func, "__self__", None), "__name__", "") not in _VALUE_GETTERS
    return name in _ABOUT or name == "__set__"


class Substitution(TorchFunctionMode):
    """While active, functions called with certain tensors are given others in their place.

    Args:
        tensors: whose uses to catch, with what `make` needs to know.
        make: from that knowledge to the tensor to use instead.
        special: per function, what to do instead of calling it: a function of (knowledge of the weight,
            arguments after it, keywords), or None from it to go on with a substitute.
    """

    def __init__(
        self,
        tensors: dict[int, Any],
        make: Callable[[Any], Tensor],
        special: Callable[[Callable[..., Any], Any, tuple[Any, ...], dict[str, Any]], Tensor | None],
    ) -> None:
        super().__init__()
        self.tensors = tensors
        self.make = make
        self.special = special
        self.seen: set[int] = set()
        self.made = 0  # elements of substitutes made, kept ones once
        self._kept: dict[int, Tensor] = {}
        self._kept_bytes = 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if not self._uses(args) and not (kwargs and self._uses(tuple(kwargs.values()))):
            return func(*args, **kwargs)
        if _only_about(func):
            return func(*args, **kwargs)
        if func is F.linear or func is F.embedding:
            weight = args[1] if len(args) > 1 else kwargs.get("weight")
            if isinstance(weight, Tensor) and id(weight) in self.tensors:
                self.seen.add(id(weight))
                rest = self._swap(tuple(a for i, a in enumerate(args) if i != 1))
                words = {k: self._swap(v) for k, v in kwargs.items() if k != "weight"}
                out = self.special(func, self.tensors[id(weight)], rest, words)
                if out is not None:
                    self.made += weight.numel()
                    return out
        return func(*self._swap(args), **self._swap(kwargs))

    def _uses(self, values: tuple[Any, ...]) -> bool:
        for value in values:
            if isinstance(value, Tensor):
                if id(value) in self.tensors:
                    return True
            elif isinstance(value, (tuple, list)) and self._uses(tuple(value)):
                return True
        return False

    def _swap(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self._substitute(value) if id(value) in self.tensors else value
        if isinstance(value, dict):
            return {k: self._swap(v) for k, v in value.items()}
        if type(value) in (tuple, list):
            return type(value)(self._swap(v) for v in value)
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*(self._swap(v) for v in value))
        return value

    def _substitute(self, tensor: Tensor) -> Tensor:
        key = id(tensor)
        self.seen.add(key)
        if key in self._kept:
            return self._kept[key]
        made = self.make(self.tensors[key])
        self.made += tensor.numel()
        size = tensor.numel() * tensor.element_size()
        if self._kept_bytes + size <= _KEPT_BYTES:
            self._kept[key] = made
            self._kept_bytes += size
        return made


class Spot:
    """Parameter number k of a cell, seen where the cell stands."""

    def __init__(self, walk: Walk, cell: Cell, k: int) -> None:
        self.walk = walk
        self.cell = cell
        self.k = k
        self.param = cell.params[k]

    def copy(self) -> Tensor:
        """The parameter at its place, in memory of its own; rounded to nearest even."""
        out = torch.empty_like(self.param, requires_grad=False)
        part = self.cell.only(self.k)
        self.walk.write([part], self.cell.place, [out], [self.param.detach()], {"out_rounding": "rne"})
        return out


Shortcut = Callable[[Spot, Any, "tuple[Any, ...]", "dict[str, Any]"], "Tensor | None"]


def perturbed(walk: Walk, twins: dict[Tensor, Tensor], shortcut: Shortcut) -> Substitution:
    """A mode in which the cells' parameters read as the places where the walk stands.

    twins: other tensor objects over the memory of a parameter, and that parameter.
    shortcut: computes a linear layer or an embedding without a perturbed copy, or returns None.
    """
    spots = {id(p): Spot(walk, cell, k) for cell in walk.cells for k, p in enumerate(cell.params)}
    for other, param in twins.items():
        if id(param) in spots:
            spots[id(other)] = spots[id(param)]

    def make(spot: Spot) -> Tensor:
        place = spot.cell.place
        return spot.param.detach() if not place.coefs and place.decay == 1.0 else spot.copy()

    def special(func: Any, spot: Spot, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
        return shortcut(spot, func, args, kwargs)

    return Substitution(spots, make, special)


def plain_shortcut(spot: Spot, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """Linear layers and embeddings along plain directions, by the fused ops.

    None (a perturbed copy is taken) for masks, for places of several directions or with decay.
    """
    cell, (coefs, decay) = spot.cell, spot.cell.place
    if cell.mover is not None or cell.mask is not None or decay != 1.0 or len(coefs) != 1:
        return None
    from tenfold import ops

    ((query, coef),) = coefs.items()
    walk, x = spot.walk, args[0] if args else kwargs["input"]
    common: dict[str, Any] = {
        "seed": walk.seed,
        "queries": [query],
        "coefs": [coef],
        "stream": cell.streams[spot.k],
        "dist": walk.dist,
        "z_round": walk.z_round,
    }
    weight = spot.param.detach()
    if func is F.linear:
        if x.dtype != weight.dtype or x.ndim < 1 or weight.ndim != 2 or _autocast(x.device.type):
            return None
        bias = args[1] if len(args) > 1 else kwargs.get("bias")
        flat = x.reshape(1, -1, x.shape[-1])
        out = ops.zo_linear_perturbed(flat, weight, bias, **common)
        return out.reshape(*x.shape[:-1], weight.shape[0])
    names = ("padding_idx", "max_norm", "norm_type", "scale_grad_by_freq", "sparse")
    options = {**dict(zip(names, args[1:], strict=False)), **kwargs}
    if options.get("max_norm") is not None:
        return None
    return ops.zo_embedding_perturbed(x.unsqueeze(0), weight, **common).squeeze(0)


def _autocast(device: str) -> bool:
    """The fused layer computes in the dtypes it is given, so under autocast the plain one is called."""
    return torch.is_autocast_enabled(device)
