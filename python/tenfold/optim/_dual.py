"""Probing without writing: the closure computes with perturbed weights that are made where they are used."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ._shortcuts import Matrix, PlainMatrix, View, alias, compute
from ._walk import Cell, Walk

_VALUE_GETTERS = ("data", "T", "mT", "H", "mH", "real", "imag")
_ABOUT = {
    "size", "stride", "dim", "ndimension", "numel", "nelement", "storage_offset", "is_contiguous",
    "is_floating_point", "is_complex", "is_signed", "data_ptr", "element_size", "get_device", "is_pinned",
    "is_inference", "is_conj", "is_neg", "is_same_size", "register_hook", "retain_grad", "has_names",
    "requires_grad_", "__hash__", "__len__", "_is_view", "is_tensor", "is_storage", "is_shared",
    "is_distributed", "new_empty", "new_zeros", "new_ones", "new_full", "new_tensor",
}  # fmt: skip
_KEPT_BYTES = 4 << 20  # small perturbed copies (norms, biases) stay for the rest of the probe, up to this


def _only_about(func: Callable[..., Any]) -> bool:
    """Whether the function asks about a tensor (shape, dtype, ...), not for its values."""
    name = getattr(func, "__name__", "")
    if name == "__get__":
        return getattr(getattr(func, "__self__", None), "__name__", "") not in _VALUE_GETTERS
    return name in _ABOUT or name == "__set__"


class Copied(NamedTuple):
    """A substitute too large to keep: made whole, and again for every use."""

    key: int  # of the tensor
    nbytes: int
    function: str


class Substitution(TorchFunctionMode):
    """While active, functions called with certain tensors are given others in their place.

    Args:
        tensors: whose uses to catch, by id, with what `make` and `matrix` need to know.
        make: from that knowledge to the tensor to use instead.
        matrix: from that knowledge to what computes with the tensor without making it, or None; without
            `matrix`, every use is given a substitute.
    """

    def __init__(
        self,
        tensors: dict[int, Any],
        make: Callable[[Any], Tensor],
        matrix: Callable[[Any], Matrix | None] | None = None,
    ) -> None:
        super().__init__()
        self.tensors = tensors
        self.make = make
        self.matrix = matrix
        self.seen: set[int] = set()
        self.made = 0  # elements of substitutes made, kept ones once
        self.largest: Copied | None = None  # of the substitutes that were not kept
        self._function = ""  # that asks now
        self._kept: dict[int, Tensor] = {}
        self._kept_bytes = 0
        self._aliases: dict[int, tuple[int, bool]] = {}  # id of a view -> id of its tensor, whether flipped
        self._alive: list[Tensor] = []  # the views, so that no other tensor gets their ids
        self._matrices: dict[int, Matrix | None] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if not self._uses(args) and not (kwargs and self._uses(tuple(kwargs.values()))):
            return func(*args, **kwargs)
        if _only_about(func):
            return func(*args, **kwargs)
        self._function = getattr(func, "__name__", str(func))
        if self.matrix is not None:
            view = self._alias(func, args, kwargs)
            if view is not None:
                return view
            out = compute(func, args, kwargs, self._look, self._swap)
            if out is not None:
                return out
        return func(*self._swap(args), **self._swap(kwargs))

    def _caught(self, value: Any) -> bool:
        return id(value) in self.tensors or id(value) in self._aliases

    def _uses(self, values: tuple[Any, ...]) -> bool:
        for value in values:
            if isinstance(value, Tensor):
                if self._caught(value):
                    return True
            elif isinstance(value, (tuple, list)) and self._uses(tuple(value)):
                return True
        return False

    def _origin(self, tensor: Tensor) -> tuple[int, bool]:
        """The id of the tensor that a caught one is a view of, and whether it is the transpose."""
        key = id(tensor)
        return (key, False) if key in self.tensors else self._aliases[key]

    def _alias(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
        if not args or not isinstance(args[0], Tensor) or not self._caught(args[0]):
            return None
        found = alias(func, args, kwargs)
        if found is None:
            return None
        view, flips = found
        key, flipped = self._origin(args[0])
        self._aliases[id(view)] = key, flipped != flips
        self._alive.append(view)
        return view

    def _look(self, value: Any) -> View | None:
        """What serves uses of a caught matrix without a copy."""
        if not isinstance(value, Tensor) or not self._caught(value):
            return None
        key, flipped = self._origin(value)
        if key in self._kept:
            return None
        if key not in self._matrices:
            assert self.matrix is not None
            self._matrices[key] = self.matrix(self.tensors[key])
        found = self._matrices[key]
        if found is None:
            return None
        return View(found, flipped, lambda elements: self._used(key, elements))

    def _used(self, key: int, elements: int) -> None:
        self.seen.add(key)
        self.made += elements

    def _swap(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self._substitute(value) if self._caught(value) else value
        if isinstance(value, dict):
            return {k: self._swap(v) for k, v in value.items()}
        if type(value) in (tuple, list):
            return type(value)(self._swap(v) for v in value)
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*(self._swap(v) for v in value))
        return value

    def _substitute(self, tensor: Tensor) -> Tensor:
        key, flipped = self._origin(tensor)
        self.seen.add(key)
        made = self._kept.get(key)
        if made is None:
            made = self.make(self.tensors[key])
            self.made += tensor.numel()
            self._keep(key, tensor, made)
        return made.t() if flipped else made

    def _keep(self, key: int, tensor: Tensor, made: Tensor) -> None:
        size = tensor.numel() * tensor.element_size()
        if self._kept_bytes + size <= _KEPT_BYTES:
            self._kept[key] = made
            self._kept_bytes += size
        elif made.data_ptr() != tensor.data_ptr() and (self.largest is None or size > self.largest.nbytes):
            self.largest = Copied(key, size, self._function)


class Spot:
    """Parameter number k of a cell, seen where the cell stands."""

    def __init__(self, walk: Walk, cell: Cell, k: int) -> None:
        self.walk = walk
        self.cell = cell
        self.k = k
        self.param = cell.params[k]

    @property
    def clean(self) -> bool:
        place = self.cell.place
        return not place.coefs and place.decay == 1.0

    def copy(self) -> Tensor:
        """The parameter at its place, in memory of its own; rounded to nearest even."""
        out = torch.empty_like(self.param, requires_grad=False)
        part = self.cell.only(self.k)
        self.walk.write([part], self.cell.place, [out], [self.param.detach()], {"out_rounding": "rne"})
        return out

    def vectors(self) -> dict[int, Tensor]:
        """Copies of all vectors of the cell (biases, norms), by number: one call for all of them.

        Empty where they are too many to keep, or their directions are no plain ones.
        """
        numbers = [k for k, p in enumerate(self.cell.params) if p.ndim < 2]
        params = [self.cell.params[k].detach() for k in numbers]
        size = sum(p.numel() * p.element_size() for p in params)
        if self.cell.mover is not None or self.cell.mask is not None or size > _KEPT_BYTES // 2:
            return {}
        outs = [torch.empty_like(p) for p in params]
        streams = [self.cell.streams[k] for k in numbers]
        part = dataclasses.replace(self.cell, params=params, streams=streams, firsts=[0] * len(params))
        self.walk.write([part], self.cell.place, outs, params, {"out_rounding": "rne"})
        return dict(zip(numbers, outs, strict=True))


def perturbed(
    walk: Walk, twins: dict[Tensor, Tensor], matrix: Callable[[Spot], Matrix | None]
) -> Substitution:
    """A mode in which the cells' parameters read as the places where the walk stands.

    twins: other tensor objects over the memory of a parameter, and that parameter.
    matrix: what computes with a parameter at its place without a perturbed copy, or None.
    """
    spots = {id(p): Spot(walk, cell, k) for cell in walk.cells for k, p in enumerate(cell.params)}
    for other, param in twins.items():
        if id(param) in spots:
            spots[id(other)] = spots[id(param)]

    ready: dict[Cell, dict[int, Tensor]] = {}

    def make(spot: Spot) -> Tensor:
        if spot.clean:
            return spot.param.detach()
        if spot.param.ndim >= 2:
            return spot.copy()
        if spot.cell not in ready:
            ready[spot.cell] = spot.vectors()
        copy = ready[spot.cell].get(spot.k)
        return spot.copy() if copy is None else copy

    def found(spot: Spot) -> Matrix | None:
        return None if spot.clean or spot.param.ndim != 2 else matrix(spot)

    return Substitution(spots, make, found)


def plain_matrix(spot: Spot) -> Matrix | None:
    """A matrix along one plain direction.

    None (perturbed copies are taken) for masks other than by magnitude, for places of several directions or
    with decay.
    """
    from tenfold.ops import MagnitudeMask

    cell, (coefs, decay) = spot.cell, spot.cell.place
    if cell.mover is not None or decay != 1.0 or len(coefs) != 1:
        return None
    threshold = None
    if cell.mask is not None:
        mask = cell.only(spot.k).mask
        if not isinstance(mask, MagnitudeMask):
            return None
        (threshold,) = mask.threshold if not isinstance(mask.threshold, float) else (mask.threshold,)
    ((query, coef),) = coefs.items()
    return PlainMatrix(
        spot.param.detach(),
        seed=spot.walk.seed,
        stream=cell.streams[spot.k],
        query=query,
        coef=coef,
        dist=spot.walk.dist,
        z_round=spot.walk.z_round,
        threshold=threshold,
    )
