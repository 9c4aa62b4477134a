"""What an optimizer tells of itself and takes back: options, state, parameters."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from tenfold import _checks

from . import _blocks
from ._helpers import _dtype_name, _mask_from_json, _mask_to_json, _plain
from ._manifest import Slot
from ._options import HybridFirstOrder, MagnitudeSparsity, RandomSparsity
from ._shards import fsdp_modules, reshard

_KEY = "zo"  # where `state_dict` holds what torch's own keys have no place for
_COUNTERS = ("num_steps", "num_skipped", "_nonfinite_in_a_row")
_SCALAR_OPTIONS = (
    "seed",
    "num_queries",
    "dist",
    "one_sided",
    "restore",
    "rounding",
    "max_nonfinite",
    "maximize",
    "max_projected_grad",
    "aggregate",
    "compat",
    "parallel",
)
_SAVED_OPTIONS = tuple(name for name in _SCALAR_OPTIONS if name != "parallel")  # that is the process's own


def _counted(value: Any) -> Any:
    return torch.tensor(value) if isinstance(value, int) else value


class Saving(Optimizer):
    """The part of `ZerothOrder` that writes it down and reads it again."""

    first_order: Optimizer | None
    z_round: torch.dtype | None
    max_projected_grad: float | None
    mask: RandomSparsity | MagnitudeSparsity | None
    blocks: _blocks.Blocks | None
    hybrid: HybridFirstOrder | None
    group: Any
    parallel: str | None
    _fixed: tuple[str, ...]
    _own: tuple[str, ...]
    _module: torch.nn.Module | None
    _slots: dict[Tensor, Slot]
    _names: dict[Tensor, str]
    _limits: dict[Tensor, float]
    _limits_from: int
    _parallel: Any

    def named_slots(self) -> list[tuple[str | None, int, tuple[int, ...], torch.dtype]]:
        """Name (where known), stream, shape and dtype of every parameter, in the order of the groups."""
        names: dict[Tensor, str] = {}
        if self._module is not None:
            reshard(fsdp_modules(self._module))  # or it would show the gathered parameters
            names = {p: name for name, p in self._module.named_parameters()}
        return [
            (names.get(p, self._names.get(p)), slot.stream, tuple(p.shape), p.dtype)
            for p, slot in self._slots.items()
        ]

    def hyperparameters(self) -> dict[str, Any]:
        """All that `from_hyperparameters` needs to make this optimizer again, as plain JSON.

        Raises ValueError for hybrid optimizers, and for blocks or hybrids whose modules are not in `streams`.
        """
        if self.hybrid is not None:
            _checks.fail(ValueError, "hybrid", "None: a callable cannot be written down", "HybridFirstOrder")
        options = {name: getattr(self, name) for name in (*_SCALAR_OPTIONS, *self._own)}
        if options["max_projected_grad"] is None:
            del options["max_projected_grad"]  # as before there was one
        options["z_round"] = _dtype_name(self.z_round)
        options["mask"] = _mask_to_json(self.mask)
        options["blocks"] = self._blocks_to_json()
        options = {name: value for name, value in options.items() if name not in type(self)._fixed}
        groups = [
            {
                "count": len(group["params"]),
                **{k: _plain(v) for k, v in group.items() if k in self.defaults},
            }
            for group in self.param_groups
        ]
        streams = self._module is not None
        return {"class": type(self).__name__, "options": options, "groups": groups, "streams": streams}

    def _blocks_to_json(self) -> dict[str, Any] | None:
        if self.blocks is None:
            return None
        module_names = {} if self._module is None else {m: n for n, m in self._module.named_modules()}
        model = self.blocks.model
        modules = [model] if isinstance(model, torch.nn.Module) else list(model)
        missing = [m for m in modules if m not in module_names]
        if missing:
            got = f"{type(missing[0]).__name__} outside of it"
            _checks.fail(ValueError, "blocks", "modules of the module given as streams", got)
        named: Any = [module_names[m] for m in modules]
        return {
            "model": named[0] if isinstance(model, torch.nn.Module) else named,
            "level": self.blocks.level,
            "order": self.blocks.order,
            "reuse_prefix": self.blocks.reuse_prefix,
        }

    # -- saving ----------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """As in torch.optim, with seed, step counter, streams and probe options under the key "zo"."""
        saved = {name: getattr(self, name) for name in (*_COUNTERS, *_SAVED_OPTIONS, *self._own)}
        saved["z_round"] = _dtype_name(self.z_round)
        saved["mask"] = _mask_to_json(self.mask)
        saved["limits"] = [self._limits.get(p) for p in self._slots] if self._limits else None
        saved["limits_from"] = self._limits_from
        saved["blocks"] = self.blocks is not None and [self.blocks.level, self.blocks.order]
        saved["slots"] = [list(slot) for slot in self._slots.values()]
        saved["class"] = type(self).__name__
        saved["shapes"] = [list(p.shape) for p in self._slots]
        if self.first_order is not None:
            saved["first_order"] = self.first_order.state_dict()
        found = super().state_dict()
        # step counts as tensors, as in torch's own: torch.distributed.checkpoint loads those in place only
        states = {i: {k: _counted(v) for k, v in state.items()} for i, state in found["state"].items()}
        return {**found, "state": states, _KEY: saved}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As in torch.optim; the run continues to the same bits.  All options take the saved values, but for
        `parallel` and `group`, which belong to the process.

        Raises ValueError if the dict lacks the key "zo" or belongs to other parameters, or if one has
        blocks or a hybrid part and the other has not: modules are not saved.
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
        own_blocks = self.blocks is not None and [self.blocks.level, self.blocks.order]
        if own_blocks != saved["blocks"]:
            _checks.fail(ValueError, "state_dict", f"blocks {own_blocks}", saved["blocks"])
        if ("first_order" in saved) != (self.first_order is not None):
            _checks.fail(ValueError, "state_dict", "a hybrid part where the optimizer has one", "another")
        super().load_state_dict(state_dict)
        self._keep_state_dtypes(state_dict)
        own = (*_COUNTERS, *_SAVED_OPTIONS, *self._own)
        self.__dict__.update({name: saved[name] for name in own if name != "max_projected_grad"})
        self.max_projected_grad = saved.get("max_projected_grad")
        if self._parallel is not None:
            self._parallel.check_again()
        self.z_round = None if saved["z_round"] is None else getattr(torch, saved["z_round"])
        self.mask = _mask_from_json(saved["mask"])
        limits = saved["limits"] or []
        self._limits = {p: v for p, v in zip(self._slots, limits, strict=False) if v is not None}
        self._limits_from = saved["limits_from"]
        self._slots = {p: Slot(*slot) for p, slot in zip(self._slots, saved["slots"], strict=True)}
        if self.first_order is not None:
            self.first_order.load_state_dict(copy.deepcopy(saved["first_order"]))

    def _keep_state_dtypes(self, state_dict: dict[str, Any]) -> None:
        """Undo torch's cast of loaded states to the dtype of the parameter: moments stay in their own."""
        saved_ids = [i for group in state_dict["param_groups"] for i in group["params"]]
        params = [p for group in self.param_groups for p in group["params"]]
        for saved_id, p in zip(saved_ids, params, strict=True):
            for key, value in state_dict["state"].get(saved_id, {}).items():
                if isinstance(value, Tensor):
                    counts = value.ndim == 0 and value.dtype == torch.int64
                    self.state[p][key] = int(value) if counts else value.to(p.device, copy=True)

    def __getstate__(self) -> dict[str, Any]:
        """For deep copies and pickles: all but what belongs to one process or one step."""
        fresh: dict[str, Any] = {
            "_copies": {},
            "_prefix": None,
            "_log": None,
            "_attached": None,
            "_parallel": None,
            "group": None,
        }
        torchs = ("_optimizer", "_zero_grad", "_patch", "_warned", "step")
        own = {name: value for name, value in self.__dict__.items() if not name.startswith(torchs)}
        return {**super().__getstate__(), **own, **fresh}
