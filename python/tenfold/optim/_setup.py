"""What a zeroth-order optimizer is made of: options, parameters in cells, blocks, a first-order tail."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from tenfold import _checks

from . import _blocks, _shards
from ._helpers import _listed, _named
from ._manifest import Slot, manifest
from ._options import DEFAULTS, HybridFirstOrder, MagnitudeSparsity, RandomSparsity, checked
from ._record import StepRecord
from ._saving import Saving
from ._shards import is_sharded, local
from ._walk import Cell, Mover

_NOTHING_TRAINABLE = "params: expected at least one tensor with requires_grad=True, got none"


class Setup(Saving):
    """The part of `ZerothOrder` that takes options and parameters, and sorts them."""

    last_step: StepRecord | None
    first_order: Optimizer | None

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

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if state.get("_layout") is not None:
            self._set_blocks()
        if state.get("parallel") is not None:
            from ._parallel import make

            self._parallel = make(self.parallel, self.group)

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

    def _label(self, p: Tensor) -> str:
        """The name of a parameter, or its place in the list where it has none."""
        p = self._twins.get(p, p)
        if p in self._names:
            return self._names[p]
        named = () if self._module is None else self._module.named_parameters()
        number = next((i for i, own in enumerate(self._slots) if own is p), 0)
        return next((name for name, own in named if own is p), f"params[{number}]")

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
    def _num_blocks(self) -> int:
        return 1 if self._layout is None else len(self._layout.owners)
