"""What the zeroth-order optimizers share: checking, probing, restoring, counting, saving."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tenfold import _checks

from ._manifest import Slot, manifest
from ._seeds import splitmix64
from ._walk import Cell, Coefs, Walk, interrupts_deferred

Closure = Callable[[], "Tensor | float"]

_Z_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_F32_MAX = torch.finfo(torch.float32).max
_NOTHING_TRAINABLE = "params: expected at least one tensor with requires_grad=True, got none"
_KEY = "zo"  # where `state_dict` holds what torch's own keys have no place for
_SAVED = (
    "seed",
    "num_steps",
    "num_skipped",
    "num_queries",
    "dist",
    "one_sided",
    "restore",
    "rounding",
    "z_round",
    "max_nonfinite",
    "maximize",
    "_nonfinite_in_a_row",
)


@dataclass(frozen=True)
class StepRecord:
    """What one step did.

    Attributes:
        step: its number, from 0.
        seed: the seed of its directions.
        projected_grads: the q factors g_i of the update direction (1/q) sum_i g_i z_i, for the first group
            (where estimates divide by eps, a group with another eps has them scaled by eps_0/eps).  Empty if
            there was nothing to update by.
        losses: every loss evaluated, in order: L(+), L(-) for each query; one-sided L(theta), then one each.
        skipped: True if the weights were only restored.
        passes: how many times the trainable weights were passed over: probes, restores and the update.
        seconds: wall time on the host in "forward" (the closure) and in "passes" (over the weights); work
            queued on a GPU counts where the host waits for it.
    """

    step: int
    seed: int
    projected_grads: tuple[float, ...]
    losses: tuple[float, ...]
    skipped: bool
    passes: int
    seconds: dict[str, float]


class ZerothOrder(Optimizer):
    """Base of the optimizers that estimate the gradient from losses at perturbed weights.

    The directions z_i of step t come from the counter-based generator of `tenfold.ops.zo_sample` with the key
    splitmix64(seed, t), the query index i, and one stream per parameter; they are never stored.
    """

    last_step: StepRecord | None
    _max_queries = 1 << 24  # the query index has 24 bits in the counter

    def __init__(
        self,
        params: Any,
        defaults: dict[str, Any],
        *,
        num_queries: int,
        dist: str,
        one_sided: bool,
        seed: int,
        restore: str,
        rounding: str,
        z_round: torch.dtype | None,
        streams: nn.Module | None,
        max_nonfinite: int,
        maximize: bool,
    ) -> None:
        self.num_queries = _checks.integer("num_queries", num_queries, 1, self._max_queries)
        self.dist = _checks.choice("dist", dist, ("gaussian", "rademacher"))
        self.one_sided = bool(one_sided)
        self.seed = _checks.seed("seed", seed)
        self.restore = _checks.choice("restore", restore, ("arithmetic", "exact"))
        self.rounding = _checks.choice("rounding", rounding, ("rne", "sr"))
        self.z_round = None if z_round is None else _checks.dtype("z_round", z_round, _Z_DTYPES)
        self.max_nonfinite = _checks.integer("max_nonfinite", max_nonfinite, 1, 1 << 31)
        self.maximize = bool(maximize)
        self.num_steps = 0
        self.num_skipped = 0
        self.last_step = None
        self._nonfinite_in_a_row = 0
        if streams is not None and not isinstance(streams, nn.Module):
            _checks.fail(TypeError, "streams", "a torch.nn.Module or None", type(streams).__name__)
        self._manifest = None if streams is None else manifest(streams)
        self._slots: dict[Tensor, Slot] = {}
        self._copies: dict[Tensor, Tensor] = {}
        super().__init__(_listed(params), defaults)
        if not any(p.requires_grad for p in self._slots):
            raise ValueError(_NOTHING_TRAINABLE)

    # -- parameters ------------------------------------------------------------------------------------

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As in torch.optim.  Tied weights count once; parameters given earlier keep their directions.

        Raises ValueError or TypeError, before anything is added, for dtypes other than float32, bfloat16,
        float16 and float64, for sparse or overlapping storage (numbering parameters over all groups), for
        parameters missing from the `streams` module, and for option values out of range.
        """
        if not isinstance(param_group, dict):
            _checks.fail(TypeError, "param_group", "a dict", type(param_group).__name__)
        self._check_group({**self.defaults, **param_group})
        named = _named(param_group["params"])
        slots = self._new_slots(named)
        names = {p: name for name, p in reversed(named)}
        kept = [p if names[p] is None else (names[p], p) for p in slots]
        super().add_param_group({**param_group, "params": kept})
        self._slots.update(slots)

    def _new_slots(self, named: list[tuple[str | None, Tensor]]) -> dict[Tensor, Slot]:
        """Slots of the parameters of a new group; the same tensor, or view of its memory, only once."""
        slots: dict[Tensor, Slot] = {}
        views = set()
        for name, p in named:
            ordinal = len(self._slots) + len(slots)
            label = name or f"params[{ordinal}]"
            _checks.tensor(label, p)
            view = (p.data_ptr() or id(p), p.dtype, p.shape, p.stride())
            if view not in views:
                views.add(view)
                slots[p] = self._slot(label, ordinal, p)
        _checks.memory(params=[*self._slots, *slots])
        return slots

    def _slot(self, label: str, ordinal: int, p: Tensor) -> Slot:
        if self._manifest is None:
            return Slot(ordinal, True)
        if p not in self._manifest:
            _checks.fail(ValueError, "streams", "a module that holds every parameter", f"one without {label}")
        return self._manifest[p]

    def _check_group(self, group: dict[str, Any]) -> None:
        """Raise for option values of one group that are out of range; called again at every step."""
        _checks.real("lr", group["lr"], at_least=0.0)
        _checks.real("eps", group["eps"], positive=True)
        _checks.real("weight_decay", group["weight_decay"], at_least=0.0)

    def _cells(self) -> list[Cell]:
        """The trainable parameters of all groups, sorted into cells."""
        cells: list[Cell] = []
        for group in self.param_groups:
            self._check_group(group)
            of_group: dict[tuple[torch.device, bool], Cell] = {}
            for p in group["params"]:
                if not p.requires_grad:
                    continue
                slot = self._slots[p]
                key = p.device, slot.decays or group["weight_decay"] == 0
                cell = of_group.setdefault(key, Cell(group, *key))
                cell.params.append(p)
                cell.streams.append(slot.stream)
            cells.extend(of_group.values())
        if not cells:
            raise ValueError(_NOTHING_TRAINABLE)
        return cells

    # -- a step ----------------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Tensor:  # type: ignore[override]
        """Probe, restore, update; `last_step` then tells what happened.

        closure: returns the loss as a real one-element tensor or a number.  It is called without gradients,
            two times per query, or once more than there are queries when one-sided, and must see the same
            batch each time, with dropout off.

        Returns the mean of all losses of the step, a float64 scalar on the CPU.

        A loss or projected gradient that is not finite leaves the weights restored and counts in
        `num_skipped`.  An exception out of the closure (Ctrl-C too) restores the weights and is raised again;
        that step does not count.  Restored means bit for bit with restore="exact", and up to the rounding of
        the passes back with restore="arithmetic".

        Raises:
            TypeError: closure is missing, or its loss is complex or not a scalar.
            ValueError: a group's lr, eps or weight decay is out of range, or no parameter is trainable.
            RuntimeError: `max_nonfinite` steps in a row were not finite.
        """
        if not callable(closure):
            _checks.fail(TypeError, "closure", "a callable that returns the loss", type(closure).__name__)
        walk = self._walk()
        try:
            started, copying = perf_counter(), walk.seconds
            losses = self._probe(walk, closure)
            forward = perf_counter() - started - (walk.seconds - copying)
            projected = {cell: self._projected(losses, cell.group) for cell in walk.cells}
            updates = {cell: self._coefficients(cell, g) for cell, g in projected.items()}
            finite = _all_finite(losses, *projected.values(), *(u.values() for u in updates.values()))
            skipped = not finite or None in projected.values()
            with interrupts_deferred():
                if skipped:
                    walk.to({})
                else:
                    self._update(walk, updates)
                self._count(
                    StepRecord(
                        step=self.num_steps,
                        seed=walk.seed,
                        projected_grads=tuple(projected[walk.cells[0]] or ()),
                        losses=tuple(losses),
                        skipped=skipped,
                        passes=walk.passes,
                        seconds={"forward": forward, "passes": walk.seconds},
                    ),
                    finite,
                )
        except BaseException:
            walk.to({})
            raise
        if self._nonfinite_in_a_row >= self.max_nonfinite:
            raise RuntimeError(
                f"closure: expected finite losses, got {losses} in step {self.num_steps - 1}, "
                f"number {self._nonfinite_in_a_row} in a row that is not finite; the weights are restored"
            )
        return torch.tensor(sum(losses) / len(losses), dtype=torch.float64)

    def _walk(self) -> Walk:
        """The way through this step's probes, starting at the weights as they are."""
        cells = self._cells()
        started = perf_counter()
        clean = self._fresh_copies(cells) if self.restore == "exact" else None
        copying = perf_counter() - started
        return Walk(
            cells,
            splitmix64(self.seed, self.num_steps),
            dist=self.dist,
            rounding=self.rounding,
            z_round=self.z_round,
            clean=clean,
            seconds=copying,
        )

    def _fresh_copies(self, cells: list[Cell]) -> dict[Tensor, Tensor]:
        """Clean copies of all trainable tensors; the values are taken anew each step, the memory is kept."""
        old = self._copies
        self._copies = {}
        for p in (p for cell in cells for p in cell.params):
            copy = old.get(p)
            if copy is None or (copy.shape, copy.dtype, copy.device) != (p.shape, p.dtype, p.device):
                copy = torch.empty_like(p, requires_grad=False)
            self._copies[p] = copy.copy_(p)
        return self._copies

    def _probe(self, walk: Walk, closure: Closure) -> list[float]:
        """The losses of the step, in the order of `StepRecord.losses`."""
        losses = [_loss(closure)] if self.one_sided else []
        for query in range(self.num_queries):
            for sign in (1.0,) if self.one_sided else (1.0, -1.0):
                walk.to({query: sign})
                losses.append(_loss(closure))
        return [float(loss) for loss in losses]

    def _projected(self, losses: list[float], group: dict[str, Any]) -> list[float] | None:
        """The factors g_i of the update direction (1/q) sum_i g_i z_i; None: nothing to update by."""
        eps = float(group["eps"])
        if self.one_sided:
            return [(loss - losses[0]) / eps for loss in losses[1:]]
        return [(plus - minus) / (2 * eps) for plus, minus in zip(losses[::2], losses[1::2], strict=True)]

    def _coefficients(self, cell: Cell, projected: list[float] | None) -> Coefs:
        """What multiplies each direction in the update."""
        scale = cell.lr if self.maximize else -cell.lr
        return {i: scale * g / self.num_queries for i, g in enumerate(projected or ())}

    def _update(self, walk: Walk, updates: dict[Cell, Coefs]) -> None:
        """From the last probe to the new weights."""
        walk.land(updates)

    def _count(self, record: StepRecord, finite: bool) -> None:
        self.last_step = record
        self.num_steps += 1
        self.num_skipped += record.skipped
        self._nonfinite_in_a_row = 0 if finite else self._nonfinite_in_a_row + 1

    # -- saving ----------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """As in torch.optim, with seed, step counter, streams and probe options under the key "zo"."""
        saved = {name: getattr(self, name) for name in _SAVED}
        saved["z_round"] = None if self.z_round is None else str(self.z_round).removeprefix("torch.")
        saved["slots"] = [list(slot) for slot in self._slots.values()]
        saved["class"] = type(self).__name__
        saved["shapes"] = [list(p.shape) for p in self._slots]
        return {**super().state_dict(), _KEY: saved}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As in torch.optim; the run continues to the same bits.  All options take the saved values.

        Raises ValueError if the dict lacks the key "zo" or belongs to other parameters.
        """
        if _KEY not in state_dict:
            _checks.fail(ValueError, "state_dict", f"the key '{_KEY}'", sorted(state_dict))
        saved = state_dict[_KEY]
        if saved["class"] != type(self).__name__:
            _checks.fail(ValueError, "state_dict", f"the state of {type(self).__name__}", saved["class"])
        shapes = [list(p.shape) for p in self._slots]
        if len(shapes) == len(saved["shapes"]) and shapes != saved["shapes"]:
            k = next(i for i, shape in enumerate(shapes) if shape != saved["shapes"][i])
            _checks.fail(ValueError, "state_dict", f"shape {shapes[k]} for parameter {k}", saved["shapes"][k])
        if len(saved["slots"]) != len(self._slots):
            _checks.fail(ValueError, "state_dict", f"{len(self._slots)} parameters", len(saved["slots"]))
        super().load_state_dict(state_dict)
        self._keep_state_dtypes(state_dict)
        self.__dict__.update({name: saved[name] for name in _SAVED})
        self.z_round = None if saved["z_round"] is None else getattr(torch, saved["z_round"])
        self._slots = {p: Slot(*slot) for p, slot in zip(self._slots, saved["slots"], strict=True)}

    def _keep_state_dtypes(self, state_dict: dict[str, Any]) -> None:
        """Undo torch's cast of loaded states to the dtype of the parameter: moments stay in their own."""
        saved_ids = [i for group in state_dict["param_groups"] for i in group["params"]]
        params = [p for group in self.param_groups for p in group["params"]]
        for saved_id, p in zip(saved_ids, params, strict=True):
            for key, value in state_dict["state"].get(saved_id, {}).items():
                if isinstance(value, Tensor):
                    self.state[p][key] = value.to(p.device, copy=True)

    def __getstate__(self) -> dict[str, Any]:
        own = (*_SAVED, "last_step", "_manifest", "_slots")
        return {**super().__getstate__(), **{name: self.__dict__[name] for name in own}, "_copies": {}}


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


def _all_finite(*collections: Iterable[float] | None) -> bool:
    """Whether all numbers are finite, and stay so in float32."""
    return all(abs(v) <= _F32_MAX for values in collections if values is not None for v in values)


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
