"""The states of `Sophia`: making them, and taking those of a `state_dict`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tenfold import _checks

from ._sophia_options import HALF, MODES, is_dtensor, param_name

if TYPE_CHECKING:
    from .sophia import Sophia

MOMENTS = ("exp_avg", "hessian")
COUNTER = 1 << 24  # values of the counter of rounding bits
BLOCK = 256  # elements that share a scale in 8 bits


def local(t: Tensor) -> Tensor:
    """This rank's part of a DTensor; any other tensor as it is."""
    if type(t) is Tensor or not is_dtensor(t):
        return t
    part = t.to_local()  # type: ignore[attr-defined]
    return part.wait() if hasattr(part, "wait") else part


def wanted(optimizer: Sophia) -> tuple[str, ...]:
    return MOMENTS[:1] if MODES[optimizer.mode].refresh == "never" else MOMENTS


def dtype_of(optimizer: Sophia, p: Tensor) -> torch.dtype | str:
    return torch.float64 if p.dtype == torch.float64 else optimizer.state_dtype


def ensure(optimizer: Sophia, p: Tensor) -> dict[str, Any]:
    """The state of a parameter, made of zeros at its first gradient."""
    state = optimizer.state[p]
    if state:
        return state
    step_on = p.device if p.device.type == "cuda" else torch.device("cpu")  # counts without a synchronisation
    state["step"] = torch.zeros((), dtype=torch.float32, device=step_on)
    for name in wanted(optimizer):
        _store(optimizer, p, state, name, None)
    _round_off(optimizer, p, state)
    return state


def _store(optimizer: Sophia, p: Tensor, state: dict[str, Any], name: str, value: Tensor | None) -> None:
    """`value` (None: zeros) as the moment `name`, in the optimizer's dtype."""
    dtype = dtype_of(optimizer, p)
    if dtype != "8bit":
        assert isinstance(dtype, torch.dtype)
        # a DTensor has DTensors as states, so that distributed checkpoints can reshard them
        fresh = torch.zeros_like(p, dtype=dtype, requires_grad=False)
        state[name] = fresh if value is None else fresh.copy_(value)
        return
    if value is None:
        state[name] = torch.zeros(p.shape, dtype=torch.uint8, device=p.device)
        state[f"{name}_scale"] = torch.zeros(-(-p.numel() // BLOCK), dtype=torch.float32, device=p.device)
        return
    from tenfold.ops import sophia8_quantize

    state[name], state[f"{name}_scale"] = sophia8_quantize(value.to(p.device, torch.float32), name)


def as_float(state: dict[str, Any], name: str) -> Tensor:
    """A moment as numbers, whatever it is stored as."""
    value = state[name]
    if value.dtype != torch.uint8:
        return value
    from tenfold.ops import sophia8_dequantize

    return sophia8_dequantize(value, state[f"{name}_scale"], name)


def rounding_of(optimizer: Sophia, streams: list[int]) -> dict[str, Any]:
    """Key and counter of the bits that round a refreshed Hessian in few bits."""
    return {"seed": optimizer.seed, "step": optimizer.num_refreshes % COUNTER, "streams": streams}


def _round_off(optimizer: Sophia, p: Tensor, state: dict[str, Any]) -> None:
    if p.dtype not in HALF:
        return
    if optimizer.master:
        state.setdefault("master", p.detach().to(torch.float32, copy=True))
    elif optimizer.rounding == "kahan":
        state.setdefault("compensation", torch.zeros_like(p, requires_grad=False))


# -- state_dict -----------------------------------------------------------------------------------------


def _pairs(optimizer: Sophia, state_dict: dict[str, Any]) -> list[tuple[str, Tensor, dict[str, Any]]]:
    """(name, parameter, saved state) for every parameter that has one in `state_dict`."""
    pairs = []
    for group, saved in zip(optimizer.param_groups, state_dict["param_groups"], strict=False):
        for i, (p, key) in enumerate(zip(group["params"], saved["params"], strict=False)):
            state = state_dict["state"].get(key)
            if state:
                pairs.append((param_name(group, i), p, state))
    return pairs


def check_loaded(optimizer: Sophia, state_dict: dict[str, Any]) -> None:
    for name, p, state in _pairs(optimizer, state_dict):
        for moment in MOMENTS:
            value = state.get(moment)
            if moment == "exp_avg" and not isinstance(value, Tensor):
                got = f"the keys {sorted(state)}"
                _checks.fail(ValueError, "state_dict", f"an exp_avg for {name}", got)
            if value is not None and value.shape != p.shape:
                expected = f"{moment} of shape {tuple(p.shape)} for {name}"
                _checks.fail(ValueError, "state_dict", expected, tuple(value.shape))


def steps_of(state_dict: dict[str, Any]) -> int:
    """The most steps that any parameter of a state has made."""
    return max((int(state["step"]) for state in state_dict["state"].values() if "step" in state), default=0)


@torch.no_grad()
def take_loaded(optimizer: Sophia, state_dict: dict[str, Any]) -> None:
    """Undo torch's cast of loaded states to the parameter's dtype; bring them into the optimizer's own."""
    for _, p, saved in _pairs(optimizer, state_dict):
        state: dict[str, Any] = optimizer.state[p]
        state.clear()
        step_on = p.device if p.device.type == "cuda" else torch.device("cpu")
        step = torch.as_tensor(saved.get("step", 0.0), dtype=torch.float32)
        state["step"] = step.reshape(()).to(step_on, copy=True)
        for moment in wanted(optimizer):
            _take(optimizer, p, state, saved, moment)
        for name in ("master", "compensation"):
            if name in saved:
                state[name] = saved[name].to(p.device, copy=True)
        _round_off(optimizer, p, state)


def _take(optimizer: Sophia, p: Tensor, state: dict[str, Any], saved: dict[str, Any], moment: str) -> None:
    scale = f"{moment}_scale"
    if moment in saved and scale in saved and dtype_of(optimizer, p) == "8bit":
        state[moment] = saved[moment].to(p.device, copy=True)
        state[scale] = saved[scale].to(p.device, copy=True)
        return
    _store(optimizer, p, state, moment, as_float(saved, moment) if moment in saved else None)
