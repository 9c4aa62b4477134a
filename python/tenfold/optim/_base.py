"""What the zeroth-order optimizers share: checking, probing, restoring, counting, replaying, saving."""

from __future__ import annotations

import math
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from tenfold import _checks
from tenfold._backend import PerformanceWarning

from . import _blocks, _dual, _masks, _shards
from ._aggregate import gram, least_squares
from ._helpers import (
    Closure,
    Evaluate,
    Values,
    _all_finite,
    _listed,
    _loss,
    _mean,
    _named,
    _Retraced,
    _skipped,
    _values,
    spend,
)
from ._manifest import Slot, manifest
from ._options import DEFAULTS, HybridFirstOrder, MagnitudeSparsity, RandomSparsity, checked
from ._record import FLAG_GRAD, FLAG_SKIPPED, Scalar, StepRecord
from ._saving import Saving
from ._seeds import splitmix64
from ._shards import fsdp_modules, is_sharded, local, reshard
from ._shortcuts import Matrix
from ._walk import Cell, Coefs, Mover, Place, Walk, interrupts_deferred

_NOTHING_TRAINABLE = "params: expected at least one tensor with requires_grad=True, got none"
_COPY_BYTES = 12 << 20  # restore="auto" takes clean copies of up to so many trainable bytes
_MAX_REMADE = 4  # and of more where a probe makes perturbed weights more than so many times over


_OURS = tuple(f"{folder}{os.sep}" for folder in (*torch.__path__, Path(__file__).parents[1]))


def _level_of_caller() -> int:
    """The `stacklevel` for a warning to name the line outside of torch and of this library that led to it."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_OURS):
        level, frame = level + 1, frame.f_back
    return level


class Probe(NamedTuple):
    """One evaluation of the closure: at clean + sum_i coefs[i] * eps * z_i, of one block or (None) of all."""

    coefs: Coefs
    block: int | None = None


class _Restart(Exception):
    """No error: the step begins anew, with clean copies."""


class ZerothOrder(Saving):
    """Base of the optimizers that estimate the gradient from losses at perturbed weights.

    The directions z_i of step t come from the counter-based generator of `tenfold.ops.zo_sample` with the key
    splitmix64(seed, t), the query index i, and one stream per parameter; they are never stored.

    A step is `_measure`, which calls the closure at probes and condenses the losses to scalars, and `_apply`,
    a function of weights, state, step number, hyper-parameters and scalars alone, so that a log of the
    scalars replays a run.
    """

    last_step: StepRecord | None
    first_order: Optimizer | None

    _step_supports_amp_scaling = True  # a GradScaler leaves all to `step`, which refuses it
    _max_queries = 1 << 24  # the query index has 24 bits in the counter
    _defaults: dict[str, Any] = {}  # of options, where a class has its own  # noqa: RUF012
    _fixed: tuple[str, ...] = ()  # options that a class sets itself and does not take
    _own: tuple[str, ...] = ()  # names of its own options that are not per group
    _per_eps = True  # projected gradients are differences divided by eps
    _chained = True  # the update is a sum of directions with decay: one `zo_chain_`
    _plain_only = False  # knows no sphere, masks, least squares (directions are of another kind)
    _static = True  # where to probe does not depend on losses of the same step (blocks aside)
    _shardable = True  # each element is updated by itself
    _fixed_masks = False  # magnitude masks as stored bits even where the clean weights can be read

    def __init__(
        self, params: Any, defaults: dict[str, Any], common: dict[str, Any], own: dict[str, Any] | None = None
    ) -> None:
        for name in common:
            if name not in DEFAULTS or name in self._fixed:
                raise TypeError(f"{type(self).__name__}() got an unexpected keyword argument '{name}'")
        options = checked({**DEFAULTS, **self._defaults, **common}, self._max_queries)
        self._check_class(options)
        self.num_queries: int = options["num_queries"]
        self.dist: str = options["dist"]
        self.one_sided: bool = options["one_sided"]
        self.seed: int = options["seed"]
        self.restore: str = options["restore"]
        self.rounding: str = options["rounding"]
        self.z_round: torch.dtype | None = options["z_round"]
        self.max_nonfinite: int = options["max_nonfinite"]
        self.maximize: bool = options["maximize"]
        self.max_projected_grad: float | None = options["max_projected_grad"]
        self.mask: RandomSparsity | MagnitudeSparsity | None = options["mask"]
        self.blocks: _blocks.Blocks | None = options["blocks"]
        self.hybrid: HybridFirstOrder | None = options["hybrid"]
        self.aggregate: str = options["aggregate"]
        self.compat: str | None = options["compat"]
        self.group = options["group"]
        self.parallel: str | None = options["parallel"]
        for name, value in (own or {}).items():
            setattr(self, name, value)
        self.num_steps = 0
        self.num_skipped = 0
        self.last_step = None
        self.first_order = None
        self._nonfinite_in_a_row = 0
        self._module = options["streams"]
        if self.compat == "mezo" and self._module is None:
            _checks.fail(ValueError, "streams", "a module with compat='mezo', for the names", None)
        by_name = self.compat == "mezo"
        self._manifest = None if self._module is None else manifest(self._module, by_name=by_name)
        self._slots: dict[Tensor, Slot] = {}
        self._names: dict[Tensor, str] = {}
        self._twins: dict[Tensor, Tensor] = {}  # other tensors over the memory of a parameter
        self._copies: dict[Tensor, Tensor] = {}
        self._limits: dict[Tensor, float] = {}  # masked shares or thresholds, per parameter
        self._limits_from = -1  # the step they are of
        self._reached: bool = False  # whether a dual probe was seen to reach the parameters
        self._copy_always = False  # what "auto" found out
        self._told_of_copies = False
        self._told_of_backward = False
        self._tail: set[Tensor] = set()
        self._sharded = False
        self._layout: _blocks.Layout | None = None
        self._prefix: _blocks.Prefix | None = None
        self._log: Any = None
        self._attached: Any = None
        self._parallel: Any = None
        shared = {"eps": options["eps"], "weight_decay": options["weight_decay"]}
        super().__init__(_listed(params), {**shared, **defaults})
        if not any(p.requires_grad for p in self._slots):
            raise ValueError(_NOTHING_TRAINABLE)
        self._set_hybrid()
        self._set_blocks()
        if self.parallel is not None:
            from ._parallel import make

            self._parallel = make(self.parallel, self.group)

    def _check_class(self, options: dict[str, Any]) -> None:
        """Raise for common options that this class cannot combine with."""
        name = type(self).__name__
        blocks = options["blocks"]
        if blocks is not None and blocks.order == "coordinate" and not self._chained:
            got = f"order='coordinate' with {name}"
            _checks.fail(ValueError, "blocks", "order='simultaneous' (the update needs its state)", got)
        if self._plain_only:
            if options["dist"] != "gaussian":
                _checks.fail(ValueError, "dist", f"'gaussian' with {name}", repr(options["dist"]))
            if options["mask"] is not None:
                _checks.fail(ValueError, "mask", f"None with {name}", type(options["mask"]).__name__)
            if options["aggregate"] != "mean":
                _checks.fail(ValueError, "aggregate", f"'mean' with {name}", repr(options["aggregate"]))
            if options["z_round"] is not None:
                _checks.fail(ValueError, "z_round", f"None with {name}", options["z_round"])

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
        slots, twins = self._new_slots(named)
        names = {p: name for name, p in reversed(named)}
        kept = [p if names[p] is None else (names[p], p) for p in slots]
        super().add_param_group({**param_group, "params": kept})
        self._slots.update(slots)
        self._sharded = any(is_sharded(p) for p in self._slots)
        self._twins.update(twins)
        self._names.update({p: name for p in slots if (name := names[p]) is not None})
        if self._layout is not None:
            self._set_blocks()

    def _new_slots(
        self, named: list[tuple[str | None, Tensor]]
    ) -> tuple[dict[Tensor, Slot], dict[Tensor, Tensor]]:
        """Slots of the parameters of a new group; the same tensor, or view of its memory, only once."""
        slots: dict[Tensor, Slot] = {}
        twins: dict[Tensor, Tensor] = {}
        views: dict[Any, Tensor] = {}
        for name, p in named:
            ordinal = len(self._slots) + len(slots)
            label = name or f"params[{ordinal}]"
            _checks.tensor(label, p)
            if is_sharded(p):
                self._check_sharded(label, p)
            view = (local(p).data_ptr() or id(p), p.dtype, p.shape, p.stride())
            if view not in views:
                views[view] = p
                slots[p] = self._slot(label, ordinal, p)
            elif views[view] is not p:
                twins[p] = views[view]
        _checks.memory(params=[local(p) for p in (*self._slots, *slots)])
        return slots, twins

    def _check_sharded(self, label: str, p: Tensor) -> None:
        """Raise for DTensors that this optimizer cannot move."""
        if not self._shardable:
            name = type(self).__name__
            _checks.fail(TypeError, label, f"a tensor that is not sharded with {name}", "a DTensor")
        _shards.check(label, p)
        if self.restore == "dual":
            _checks.fail(ValueError, "restore", "'exact' or 'arithmetic' with DTensors", "'dual'")
        if self.parallel != "data":
            _checks.fail(ValueError, "parallel", "'data' with DTensors", repr(self.parallel))
        if self._module is None:
            _checks.fail(ValueError, "streams", "the module that holds the parameters, with DTensors", None)
        if self.hybrid is not None:
            _checks.fail(ValueError, "hybrid", "None with DTensors", "HybridFirstOrder")

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

    def _trainable(self) -> list[Tensor]:
        """The parameters that zeroth-order steps move, over all groups."""
        every = (p for group in self.param_groups for p in group["params"])
        return [p for p in every if p.requires_grad and p not in self._tail]

    def _cells(self) -> list[Cell]:
        """The trainable parameters of all groups, sorted into cells."""
        cells: list[Cell] = []
        if self._layout is not None and any(p not in self._layout.block_of for p in self._trainable()):
            self._set_blocks()  # parameters have thawed since
        blocks = {} if self._layout is None else self._layout.block_of
        for group in self.param_groups:
            self._check_group(group)
            of_group: dict[Any, Cell] = {}
            for p in group["params"]:
                if not p.requires_grad or p in self._tail:
                    continue
                slot = self._slots[p]
                decays = self.compat != "zo-llm" and (slot.decays or group["weight_decay"] == 0)
                key = p.device, decays, blocks.get(p, 0), self._kind(p)
                if key not in of_group:
                    of_group[key] = Cell(group, *key, mover=self._mover(key[-1]))
                of_group[key].params.append(p)
                of_group[key].streams.append(slot.stream)
                of_group[key].firsts.append(_shards.first(p))
            cells.extend(of_group.values())
        if not cells:
            raise ValueError(_NOTHING_TRAINABLE)
        return cells

    def _kind(self, p: Tensor) -> str:
        """What kind of direction a parameter gets; "plain" is one number per element."""
        return "plain"

    def _mover(self, kind: str) -> Mover | None:
        """How the weights of a kind other than "plain" are written."""
        return None

    def _matrix(self, spot: _dual.Spot) -> Matrix | None:
        """What computes with a matrix at a dual probe, without a perturbed copy; None takes copies."""
        return _dual.plain_matrix(spot)

    # -- blocks and hybrid -----------------------------------------------------------------------------

    def _set_blocks(self) -> None:
        if self.blocks is None:
            return
        self._layout = _blocks.layout(self.blocks, self._trainable())
        self._prefix = None
        if self.blocks.reuse_prefix and len(self._layout.chain) > 1:
            self._prefix = _blocks.Prefix(self._layout)
        if self.compat == "zo-llm":
            for p, stream in _blocks.restart_streams(self._layout, list(self._slots)).items():
                self._slots[p] = self._slots[p]._replace(stream=stream)

    def _set_hybrid(self) -> None:
        if self.hybrid is None:
            return
        if self.maximize:
            _checks.fail(ValueError, "maximize", "False in a hybrid optimizer (negate the loss)", True)
        model = self.hybrid.model or self._module
        if model is None:
            _checks.fail(ValueError, "hybrid", "a model, its own or streams=", None)
        behind = _blocks.tail(model, self.hybrid.last)
        tail = [p for p in self._slots if p in behind and p.requires_grad]
        if not tail:
            _checks.fail(ValueError, "hybrid", "trainable parameters in the last layers", "none")
        if len(tail) == sum(p.requires_grad for p in self._slots):
            _checks.fail(ValueError, "hybrid", "trainable parameters before the last layers", "none")
        self.first_order = self.hybrid.optimizer(tail)
        self._tail = set(tail)

    @property
    def _adaptive(self) -> bool:
        """Whether where to probe depends on losses of the same step."""
        return self.blocks is not None and self.blocks.order == "coordinate"

    def _agreed(self, losses: Sequence[float | None]) -> list[float]:
        """The losses that all ranks go on with."""
        if self._parallel is not None:
            losses = self._parallel.mean(losses) if self.parallel == "data" else self._parallel.gather(losses)
        return [float("nan") if loss is None else loss for loss in losses]

    @property
    def _num_blocks(self) -> int:
        return 1 if self._layout is None else len(self._layout.owners)

    # -- a step ----------------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Tensor:  # type: ignore[override]
        """Probe, restore, update; `last_step` then tells what happened.

        closure: returns the loss as a real one-element tensor or a number.  It is called without gradients,
            two times per query, or once more than there are queries when one-sided, and must see the same
            batch each time, with dropout off (that of an attached model is).  A batch too large for one
            forward pass may be fed in pieces: a closure that returns the sum (or mean) of their losses is the
            same objective.

        Returns the mean of all losses of the step, a float64 scalar on the CPU.

        A loss or projected gradient that is not finite leaves the weights restored and counts in
        `num_skipped`.  An exception out of the closure (Ctrl-C too) restores the weights and is raised again;
        that step does not count.  Restored means bit for bit, but with restore="arithmetic" up to the
        rounding of the passes back.

        Raises:
            TypeError: closure is missing, or its loss is complex or not a scalar.
            ValueError: a group's lr, eps or weight decay is out of range, or no parameter is trainable.
            RuntimeError: `max_nonfinite` steps in a row were not finite; or, with restore="dual", the closure
                does not reach the parameters through torch functions; or, without closure, a parameter has a
                gradient: something besides the attached model's loss was differentiated.
        """
        if self.__dict__.pop("found_inf", None) is not None:
            self.__dict__.pop("grad_scale", None)
            raise RuntimeError(
                "step: expected no GradScaler, got one; losses of probes need no scaling: call "
                "optimizer.step(closure) itself, or attach the model with scaler=True"
            )
        attached = None if callable(closure) else self._attached
        if not callable(closure) and (closure is not None or attached is None):
            _checks.fail(TypeError, "closure", "a callable that returns the loss", type(closure).__name__)
        if attached is not None:
            self._check_no_gradients()
        if self._parallel is not None:
            self._parallel.agree(self)
        # In a closure a call of an attached model is no call of a loop: it must not probe once more.
        plain = nullcontext() if closure is None or self._attached is None else self._attached.evaluation()
        told = self._told_of_backward or bool(self._tail)
        bare = [] if told else [p for p in self._trainable() if p.grad is None]
        with plain:
            try:
                loss = self._step(closure, attached)
            except _Restart:
                self._copy_always = True
                loss = self._step(closure, attached)
        if any(p.grad is not None for p in bare):
            self._tell_of_backward()
        return loss

    def _tell_of_backward(self) -> None:
        self._told_of_backward = True
        warnings.warn(
            "step: the closure calls backward(), at every probe and to no use; let it return the loss alone. "
            "In Lightning: automatic_optimization = False, self.optimizers().step(closure) in training_step",
            PerformanceWarning,
            stacklevel=_level_of_caller(),
        )

    def _check_no_gradients(self) -> None:
        """A term that a loop adds to the loss of an attached model would be lost: it leaves gradients."""
        for p in self._trainable():
            if p.grad is not None and not self._attached.expected(p):
                raise RuntimeError(
                    f"{self._label(p)}.grad: expected None where steps follow from the losses of an attached "
                    "model, got a gradient: a term added to the loss outside of the model does not count "
                    "(give attach a loss= that holds it, or step a closure), or zero_grad() was left out"
                )

    def _step(self, closure: Closure | None, attached: Any) -> Tensor:
        walk, logged, before = self._walk(), False, self.last_step
        try:
            started, copying = perf_counter(), walk.seconds
            taken = None if attached is None else self._taken(walk, attached)
            tail = self._first_order_gradients(closure) if self._tail else True
            if taken is not None:
                scalars = self._scalars(walk, taken)
            else:
                assert closure is not None
                scalars = self._measure(walk, lambda: self._evaluate(walk, closure))
            forward = perf_counter() - started - (walk.seconds - copying)
            finite = tail and self._finite(walk, scalars)
            if not finite:
                scalars = [*scalars[: self._useful(scalars)], _skipped(len(walk.losses))]
            with interrupts_deferred():
                skipped = any(s.kind == FLAG_SKIPPED for s in scalars)
                if self._log is not None:  # first: a log that cannot be written leaves the weights alone
                    self._log.append(self._record(walk, scalars, skipped, forward))
                    logged = True
                self._apply(walk, scalars)
                if self._tail and not skipped:
                    self._first_order_step()
                record = self._record(walk, scalars, skipped, forward)
                self._count(record, finite)
        except BaseException:
            if logged and self.last_step is before:
                self._log.retract()
            walk.abort()
            raise
        if self._nonfinite_in_a_row >= self.max_nonfinite:
            raise RuntimeError(
                f"closure: expected finite losses, got {list(record.losses)} in step {self.num_steps - 1}, "
                f"number {self._nonfinite_in_a_row} in a row that is not finite; the weights are restored"
            )
        return torch.tensor(_mean(walk.losses), dtype=torch.float64)

    def _record(self, walk: Walk, scalars: list[Scalar], skipped: bool, forward: float) -> StepRecord:
        return StepRecord(
            step=self.num_steps,
            seed=walk.seed,
            projected_grads=tuple(s.value for s in scalars if s.kind == FLAG_GRAD),
            losses=tuple(walk.losses),
            skipped=skipped,
            passes=walk.passes,
            seconds={"forward": forward, "passes": walk.seconds},
            scalars=tuple(scalars),
            lrs=tuple(float(group["lr"]) for group in self.param_groups),
            eps=tuple(float(group["eps"]) for group in self.param_groups),
        )

    def _walk(self, *, replay: bool = False) -> Walk:
        """The way through this step's probes, starting at the weights as they are."""
        cells = self._cells()
        if self._prefix is not None:
            self._prefix.clear()  # the batch is another one
        way = self._way_back(cells)
        if replay and way == "exact":
            way = "dual"  # the same weights, and no probe needs them perturbed
        started = perf_counter()
        clean = self._fresh_copies(cells) if way == "exact" else None
        walk = Walk(
            cells,
            splitmix64(self.seed, self.num_steps),
            dist=self.dist,
            rounding=self.rounding,
            z_round=self.z_round,
            clean=clean,
            dual=way == "dual",
            seconds=perf_counter() - started,
        )
        if self._sharded:
            assert self._module is not None
            modules = fsdp_modules(self._module)
            walk.changed = lambda: reshard(modules)
            walk.changed()
        self._set_masks(walk)
        self._set_unit(walk)
        self._prepare(walk)
        if walk.dual and not replay:
            walk.probing = lambda: _dual.perturbed(walk, self._twins, self._matrix)
        return walk

    def _prepare(self, walk: Walk) -> None:
        """Make states and factors that probes need."""

    def _way_back(self, cells: list[Cell]) -> str:
        """ "arithmetic", "exact" or "dual"."""
        if self.restore != "auto":
            return self.restore
        if self._sharded:
            return "exact"
        size = sum(p.numel() * p.element_size() for cell in cells for p in cell.params)
        return "exact" if size <= _COPY_BYTES or self._copy_always else "dual"

    def _fresh_copies(self, cells: list[Cell]) -> dict[Tensor, Tensor]:
        """Clean copies of all trainable tensors; the values are taken anew each step, the memory is kept."""
        old = self._copies
        self._copies = {}
        for p in (p for cell in cells for p in cell.params):
            copy, here = old.get(p), local(p)
            if copy is None or (copy.shape, copy.dtype, copy.device) != (here.shape, p.dtype, here.device):
                copy = torch.empty_like(here, requires_grad=False)
            self._copies[p] = copy.copy_(here)
        return self._copies

    def _set_masks(self, walk: Walk) -> None:
        """Tell the cells which elements move in this step."""
        option = self.mask
        if option is None:
            return
        params = [p.detach() for cell in walk.cells for p in cell.params]
        keys = [p for cell in walk.cells for p in cell.params]
        first = _masks.window(option, self.num_steps)
        if self._limits_from != first or any(p not in self._limits for p in keys):
            if isinstance(option, RandomSparsity):
                values = _masks.shares(option, params, self.compat, self._parallel)
            else:
                values = _masks.thresholds(option, params, self._parallel)
            self._limits = dict(zip(keys, values, strict=True))
            self._limits_from = first
        for cell in walk.cells:
            limits = [self._limits[p] for p in cell.params]
            if isinstance(option, RandomSparsity):
                cell.mask = _masks.random_mask(option, self.seed, self.num_steps, limits)
            else:
                fixed = walk.arithmetic or self.num_queries > 64 or self._fixed_masks
                cell.mask = _masks.magnitude_mask(cell.tensors(), limits, fixed=fixed)

    def _set_unit(self, walk: Walk) -> None:
        """Scale directions: to the sphere, or up where a random mask has thinned them out."""
        if isinstance(self.mask, RandomSparsity) and self.mask.rescale:
            scale = 1.0 / math.sqrt(1.0 - self.mask.ratio)
            walk.unit = lambda query, block: scale
        if self.dist == "sphere":
            known: dict[tuple[int, int], float] = {}

            def unit(query: int, block: int) -> float:
                if (query, block) not in known:
                    known[query, block] = self._sphere(walk, query, block)
                return known[query, block]

            walk.unit = unit

    def _sphere(self, walk: Walk, query: int, block: int) -> float:
        """sqrt(d)/norm(z) over the tensors of a block."""
        from tenfold.ops import zo_direction_norm

        squares, d = [], 0
        for cell in walk.cells:
            if cell.block == block:
                numels = [p.numel() for p in cell.params]
                norm = zo_direction_norm(numels, cell.streams, walk.seed, query, device=cell.device)
                squares.append(norm * norm)
                d += sum(numels)
        total = math.fsum(squares)
        return math.sqrt(d / total) if total > 0 else 1.0

    # -- measuring -------------------------------------------------------------------------------------

    def _targets(self) -> list[Coefs]:
        """Where one block is probed, in the order of its losses, in units of eps; {} is clean."""
        if self.one_sided:
            return [{}, *({i: 1.0} for i in range(self.num_queries))]
        return [{i: sign} for i in range(self.num_queries) for sign in (1.0, -1.0)]

    def _plan(self) -> list[Probe]:
        """All evaluations of a step whose probes do not depend on its losses (`_adaptive` is False).

        Blocks that are probed at the same weights share the loss at the clean ones.
        """
        if self._layout is None:
            return [Probe(target) for target in self._targets()]
        targets = self._targets()
        again = targets[1:] if targets[0] == {} else targets
        return [
            Probe(target, block)
            for block in range(self._num_blocks)
            for target in (again if block else targets)
        ]

    def _measure(self, walk: Walk, evaluate: Evaluate, known: Values | None = None) -> list[Scalar]:
        """Stand at the probes, call `evaluate` at each, and say what the losses mean for the update.

        known: in a replay, the values measured then, by (kind, block).
        """
        if not self._adaptive:
            losses = self._losses(walk, evaluate, self._plan())
            return self._scalars(walk, losses) if known is None else []
        scalars: list[Scalar] = []
        for block in range(self._num_blocks):
            losses = self._losses(walk, evaluate, [Probe(t, block) for t in self._targets()])
            found = self._scalars_of_block(walk, losses, block) if known is None else []
            values = _values(found) if known is None else known
            scalars += found
            if any(s.kind == FLAG_SKIPPED for s in found) or not self._finite(walk, found, [block]):
                return [*scalars[: self._useful(scalars)], _skipped(len(walk.losses))]
            for cell in walk.cells:
                if cell.block == block:
                    cell.rest = Place(self._coefficients(walk, cell, values), cell.decay)
        return scalars

    def _useful(self, scalars: list[Scalar]) -> int:
        """How many scalars come before the first that is not finite, or tells of a step not made."""
        for k, s in enumerate(scalars):
            if not math.isfinite(s.value) or s.kind == FLAG_SKIPPED:
                return k
        return len(scalars)

    def _losses(self, walk: Walk, evaluate: Evaluate, plan: Sequence[Probe]) -> list[float]:
        """The losses of these probes, agreed on by all ranks; `walk.losses` gets them too."""
        found: list[Tensor | float | None] = []
        for probe in plan:
            if self._parallel is not None and not self._mine(probe):
                found.append(None)
                walk.turn += 1  # ranks must round alike
                continue
            spend(walk)
            if probe.coefs or walk.turn:
                walk.to(probe.coefs, probe.block)
            with nullcontext() if self._prefix is None else self._prefix.evaluation(probe.block or 0):
                found.append(evaluate())
        losses = [None if loss is None else float(loss) for loss in found]
        agreed = self._agreed(losses)
        walk.losses += agreed
        return agreed

    def _mine(self, probe: Probe) -> bool:
        return bool(not probe.coefs or self._parallel.mine(next(iter(probe.coefs))))

    def _evaluate(self, walk: Walk, closure: Closure) -> Tensor | float:
        """One call of the closure, which sees the weights where the walk stands.

        Dual probes compute eagerly: a compiled graph would be traced with the substitution in it, and meet it
        once more when it runs.
        """
        stance = torch.compiler.set_stance("force_eager") if walk.dual else nullcontext()
        with stance, walk.probing() as mode:
            loss = _loss(closure)
        if walk.dual and not self._reached:
            self._check_reached(walk, mode)
            self._reached = True
        if walk.dual and mode.largest is not None and self.restore == "auto" and not self._told_of_copies:
            self._told_of_copies = True
            self._tell_of_copy(mode.largest)
        return loss

    def _tell_of_copy(self, copied: _dual.Copied) -> None:
        """A probe that takes memory for a whole tensor is not what "auto" promises."""
        params = [*self._slots, *self._twins]
        name = self._label(next(p for p in params if id(p) == copied.key))
        warnings.warn(
            f"restore: 'auto' makes a perturbed copy of {name} ({copied.nbytes} bytes) at each probe for "
            f"{copied.function}; linear layers, embeddings, products with the weight, rows picked by index "
            "and the losses of tenfold.ops need none, unless under autocast, with a random mask or along "
            "several directions at once; choose restore='arithmetic' for probes without copies, or 'dual' or "
            "'exact' to say so yourself",
            PerformanceWarning,
            stacklevel=_level_of_caller(),
        )

    def _check_reached(self, walk: Walk, mode: _dual.Substitution) -> None:
        """After the first dual probe: is this a closure that dual probing serves?"""
        params = [p for cell in walk.cells for p in cell.params]
        twins = {p: other for other, p in self._twins.items()}
        unseen = [p for p in params if id(p) not in mode.seen and id(twins.get(p)) not in mode.seen]
        if self.restore == "dual":
            if len(unseen) == len(params):
                raise RuntimeError(
                    "closure: expected one that uses the parameters through torch functions on this thread "
                    "with restore='dual', got one that does not; use restore='exact'"
                )
            if unseen:
                warnings.warn(
                    f"restore: with 'dual' the closure does not reach {self._label(unseen[0])} through torch "
                    "functions; if it uses it otherwise, its probes are wrong: choose restore='exact'",
                    RuntimeWarning,
                    stacklevel=_level_of_caller(),
                )
            return
        if unseen:
            name = self._label(unseen[0])
            reason = f"the closure does not reach {name} through torch functions"
        elif mode.made > _MAX_REMADE * sum(p.numel() for p in params):
            reason = "the closure uses each weight many times"
        else:
            return
        warnings.warn(
            f"restore: 'auto' takes clean copies of the trainable parameters from now on, because {reason}; "
            "choose restore='exact', 'dual' or 'arithmetic' to say so yourself",
            RuntimeWarning,
            stacklevel=_level_of_caller(),
        )
        raise _Restart

    def _label(self, p: Tensor) -> str:
        """The name of a parameter, or its place in the list where it has none."""
        p = self._twins.get(p, p)
        if p in self._names:
            return self._names[p]
        named = () if self._module is None else self._module.named_parameters()
        number = next((i for i, own in enumerate(self._slots) if own is p), 0)
        return next((name for name, own in named if own is p), f"params[{number}]")

    def _taken(self, walk: Walk, attached: Any) -> list[float]:
        """The losses that were measured while the attached model ran."""
        if self._adaptive or self._tail or not self._static:
            what = "a hybrid step" if self._tail else "probes that depend on losses"
            _checks.fail(TypeError, "closure", "a callable that returns the loss", f"None with {what}")
        losses = [float(loss) for loss in attached.take()]
        walk.turn += sum(1 for probe in self._plan() if probe.coefs)
        if self._parallel is not None:
            losses = [float(loss) for loss in self._parallel.mean(losses)]
        walk.losses += losses
        return losses

    def _scalars(self, walk: Walk, losses: list[float]) -> list[Scalar]:
        """What the losses of `_plan` mean for the update, block by block."""
        targets = self._targets()
        shared = losses[:1] if targets[0] == {} else []
        each = len(targets) - len(shared)
        scalars: list[Scalar] = []
        for block in range(self._num_blocks):
            start = len(shared) + block * each
            scalars += self._scalars_of_block(walk, [*shared, *losses[start : start + each]], block)
        return scalars

    def _scalars_of_block(self, walk: Walk, losses: list[float], block: int) -> list[Scalar]:
        projected = self._projected(losses, float(self.param_groups[0]["eps"]))
        if projected is None:
            return [_skipped(len(walk.losses))]
        projected = [self._clipped(g) for g in projected]
        if self.aggregate == "least_squares" and all(map(math.isfinite, projected)):
            projected = self._least_squares(walk, projected)
        return [Scalar(i, FLAG_GRAD | block << 8, g) for i, g in enumerate(projected)]

    def _clipped(self, g: float) -> float:
        """Within the bound; what is not finite stays so."""
        bound = self.max_projected_grad
        return g if bound is None or not math.isfinite(g) else max(-bound, min(bound, g))

    def _projected(self, losses: list[float], eps: float) -> list[float] | None:
        """The factors g_i of the update direction (1/q) sum_i g_i z_i; None: nothing to update by."""
        if self.one_sided:
            return [(loss - losses[0]) / eps for loss in losses[1:]]
        return [(plus - minus) / (2 * eps) for plus, minus in zip(losses[::2], losses[1::2], strict=True)]

    def _least_squares(self, walk: Walk, projected: list[float]) -> list[float]:
        # A group's probes stand eps/eps_0 times as far, its estimate is eps_0/eps times as long: both cancel
        products, d = torch.zeros(len(projected), len(projected), dtype=torch.float64), 0
        for cell in walk.cells:
            scale = [walk.unit(i, cell.block) for i in range(len(projected))]
            unit = torch.tensor(scale, dtype=torch.float64)
            own = gram(cell.params, cell.streams, walk.seed, len(projected), walk.dist, walk.z_round)
            products += unit[:, None] * own * unit
            d += sum(p.numel() for p in cell.params)
        return least_squares(projected, products, d)

    # -- updating --------------------------------------------------------------------------------------

    def _coefficients(self, walk: Walk, cell: Cell, values: Values) -> Coefs:
        """What multiplies each direction in the update of a cell."""
        scale = cell.lr if self.maximize else -cell.lr
        return {i: scale * g / self.num_queries for i, g in self._gradient(walk, cell, values).items()}

    def _gradient(self, walk: Walk, cell: Cell, values: Values) -> Coefs:
        """The projected gradients of a cell, for its own eps and directions."""
        ratio = float(self.param_groups[0]["eps"]) / cell.eps if self._per_eps else 1.0
        grads = values.get((FLAG_GRAD, cell.block), [])
        return {i: g * ratio * walk.unit(i, cell.block) for i, g in enumerate(grads)}

    def _finite(self, walk: Walk, scalars: list[Scalar], blocks: list[int] | None = None) -> bool:
        """Whether losses, scalars and what becomes of them are finite, also in float32."""
        values = _values(scalars)
        cells = [cell for cell in walk.cells if blocks is None or cell.block in blocks]
        coefs = [self._coefficients(walk, cell, values).values() for cell in cells]
        return _all_finite(walk.losses, (s.value for s in scalars), *coefs)

    def _apply(self, walk: Walk, scalars: Sequence[Scalar]) -> None:
        """From the last probe to the new weights: a function of weights, state and scalars only."""
        if any(s.kind == FLAG_SKIPPED for s in scalars):
            walk.to({})
        else:
            values = _values(scalars)
            updates = {cell: self._coefficients(walk, cell, values) for cell in walk.cells}
            self._update(walk, updates, values)
        walk.landed = True

    def _update(self, walk: Walk, updates: dict[Cell, Coefs], values: Values) -> None:
        """Move weights and state by the estimated gradient."""
        if self._forgets_mask():
            walk.to({})
            for cell in walk.cells:
                cell.mask = None
        walk.land(updates)

    def _forgets_mask(self) -> bool:
        """The benchmark's code leaves the mask out of updates from several queries."""
        return self.compat == "zo-llm" and self.mask is not None and self.num_queries > 1

    def _count(self, record: StepRecord, finite: bool) -> None:
        self.last_step = record
        self.num_steps += 1
        self.num_skipped += record.skipped
        self._nonfinite_in_a_row = 0 if finite else self._nonfinite_in_a_row + 1

    # -- in loops written for back-propagation -----------------------------------------------------------

    def attach(
        self,
        model: torch.nn.Module,
        *,
        loss: Callable[[Any], Tensor] | None = None,
        scaler: bool = False,
    ) -> Any:
        """Let loops of `model(batch)`, `loss.backward()` and `optimizer.step()` train by this optimizer.

        Serves `transformers.Trainer`, accelerate and plain loops; see `tenfold.optim._attach.attach`, which
        documents arguments, limits and errors.  Returns a handle whose `remove()` undoes it.
        """
        from ._attach import attach

        return attach(self, model, loss=loss, scaler=scaler)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As in torch.optim; also forgets what the backward passes of an attached model left."""
        super().zero_grad(set_to_none)
        if self._attached is not None:
            self._attached.forget()

    # -- hybrid: the layers that learn by back-propagation -----------------------------------------------

    def _first_order_gradients(self, closure: Closure | None) -> bool:
        """Gradients of the tail at the clean weights; whether they are finite."""
        assert self.first_order is not None
        assert closure is not None
        rest = [p for p in self._slots if p not in self._tail and p.requires_grad]
        self.first_order.zero_grad(set_to_none=True)
        for p in rest:
            p.requires_grad_(False)
        try:
            with torch.enable_grad():
                loss = closure()
                if not isinstance(loss, Tensor) or not loss.requires_grad:
                    got = "a number" if not isinstance(loss, Tensor) else "a tensor without"
                    _checks.fail(TypeError, "closure", "a loss with a gradient in a hybrid step", got)
                loss.backward()
        finally:
            for p in rest:
                p.requires_grad_(True)
        grads = [p.grad for p in self._tail if p.grad is not None]
        return all(bool(torch.isfinite(grad).all()) for grad in grads)

    def _first_order_step(self) -> None:
        assert self.first_order is not None
        self.first_order.step()
        self.first_order.zero_grad(set_to_none=True)

    # -- replaying -------------------------------------------------------------------------------------

    @torch.no_grad()
    def replay_step(self, scalars: Sequence[Scalar], lrs: Sequence[float], eps: Sequence[float]) -> None:
        """Make a recorded step again: the same weights, state and counters, bit for bit, without losses.

        Starts from the weights that the step started from, and includes the roundings of the probes where
        restore="arithmetic" has them.

        Args:
            scalars, lrs, eps: of its `StepRecord`; one step size and probe distance per group.

        Raises ValueError for other than one number per group, and for hybrid optimizers, whose first-order
        gradients no log holds.
        """
        if self._tail:
            _checks.fail(ValueError, "hybrid", "None in a replay", "HybridFirstOrder")
        for name, numbers_ in (("lrs", lrs), ("eps", eps)):
            _checks.length(name, list(numbers_), len(self.param_groups), "the groups")
        scalars = [Scalar(*s) for s in scalars]
        before = [(group["lr"], group["eps"]) for group in self.param_groups]
        for group, lr, distance in zip(self.param_groups, lrs, eps, strict=True):
            group["lr"], group["eps"] = lr, distance
        try:
            walk = self._walk(replay=True)
            with interrupts_deferred():
                self._retrace(walk, scalars)
                self._apply(walk, scalars)
                skipped = any(s.kind == FLAG_SKIPPED for s in scalars)
                self._count(self._record(walk, list(scalars), skipped, 0.0), True)
        finally:
            for group, (lr, distance) in zip(self.param_groups, before, strict=True):
                group["lr"], group["eps"] = lr, distance

    def _retrace(self, walk: Walk, scalars: Sequence[Scalar]) -> None:
        """Go to all the places of the recorded step, without a look at the loss."""
        walk.budget = next((int(s.value) for s in scalars if s.kind == FLAG_SKIPPED), -1)
        prefix, self._prefix = self._prefix, None
        ranks, self._parallel = self._parallel, None
        try:
            self._measure(walk, lambda: 0.0, _values(scalars))
        except _Retraced:
            pass
        finally:
            self._prefix, self._parallel = prefix, ranks
        walk.losses.clear()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if state.get("_layout") is not None:
            self._set_blocks()
        if state.get("parallel") is not None:
            from ._parallel import make

            self._parallel = make(self.parallel, self.group)
