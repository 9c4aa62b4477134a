"""The modes of `Sophia`, and the checks of its options."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from tenfold import _checks


class Mode(NamedTuple):
    """What tells the modes apart.

    refresh: "call" (estimate_hessian, update_hessian), "step" (every step squares its gradient) or "never".
    denom: how eps enters, "max" or "add".  bs: the factor of rho where the user gives none; None, no factor.
    """

    refresh: str
    denom: str
    eps: float
    bs: int | None


MODES = {
    "paper": Mode("call", "max", 1e-12, None),
    "liuhong99": Mode("call", "add", 1e-15, 5120),
    "soul_legacy": Mode("step", "add", 1e-15, 5120),
    "empirical_fisher": Mode("call", "max", 1e-12, None),
    "sign": Mode("never", "max", 1e-12, None),
}
ESTIMATORS = ("gnb", "hutchinson", "empirical_fisher")
ROUNDINGS = ("nearest", "stochastic", "kahan")
NONFINITE = ("propagate", "skip_element", "error")
HALF = (torch.bfloat16, torch.float16)


def estimator(mode: str, name: str) -> str:
    _checks.choice("estimator", name, ESTIMATORS)
    return "empirical_fisher" if mode == "empirical_fisher" else name


def state_dtype(value: Any) -> torch.dtype | str:
    if value in ("8bit", torch.float32, torch.bfloat16):
        return value
    kind = ValueError if isinstance(value, (str, torch.dtype)) else TypeError
    _checks.fail(kind, "state_dtype", "torch.float32, torch.bfloat16 or '8bit'", repr(value))


def master(value: Any, rounding: str) -> bool:
    if not isinstance(value, bool):
        _checks.fail(TypeError, "master", "a bool", _checks.describe(value))
    if value and rounding != "nearest":
        _checks.fail(ValueError, "rounding", "'nearest' beside master weights", repr(rounding))
    return value


def target(mode: str, rho: Any, wanted: float) -> float | None:
    """The win rate that "auto" aims at, else None."""
    share = _checks.real("target_win_rate", wanted, positive=True, below=1.0)
    if not isinstance(rho, str):
        return None
    _checks.choice("rho", rho, ("auto",))
    if MODES[mode].refresh != "call":
        _checks.fail(ValueError, "rho", f"a number in mode {mode!r}", "'auto'")
    return share


def check_group(group: dict[str, Any], mode: str, states: torch.dtype | str) -> None:
    """Everything in a new group; errors name the argument or the parameter."""
    _checks.real("lr", group["lr"], at_least=0.0)
    betas = group["betas"]
    if not isinstance(betas, (tuple, list)) or len(betas) != 2:
        _checks.fail(ValueError, "betas", "two numbers in [0, 1)", repr(betas))
    for i, beta in enumerate(betas):
        _checks.real(f"betas[{i}]", beta, at_least=0.0, below=1.0)
    for name in ("rho", "weight_decay"):
        _checks.real(name, group[name], at_least=0.0)
    _checks.real("eps", group["eps"], positive=True)
    if group["bs"] is not None:
        if MODES[mode].bs is None:
            _checks.fail(ValueError, "bs", "None but in 'liuhong99' and 'soul_legacy'", repr(group["bs"]))
        _checks.real("bs", group["bs"], positive=True)
    for i, p in enumerate(group["params"]):
        check_param(param_name(group, i), p, states)


def param_name(group: dict[str, Any], i: int) -> str:
    names = group.get("param_names")
    return names[i] if names else f"params[{i}]"


def check_param(name: str, p: Tensor, states: torch.dtype | str) -> None:
    if p.layout != torch.strided:
        _checks.fail(TypeError, name, "a dense (strided) parameter", p.layout)
    if p.dtype not in _checks.FLOAT_DTYPES:
        floats = "a parameter of dtype float32, float64, bfloat16 or float16"
        _checks.fail(TypeError, name, floats, p.dtype)
    if states == "8bit" and (is_dtensor(p) or p.dtype == torch.float64):
        kind = "DTensor" if is_dtensor(p) else "float64"
        _checks.fail(ValueError, "state_dtype", f"a dtype for the {kind} parameter {name}", "'8bit'")


def is_dtensor(t: Tensor) -> bool:
    return hasattr(t, "to_local")  # the type without importing torch.distributed.tensor


def denominator_scale(group: dict[str, Any], mode: str, bs: float | None) -> float:
    """What multiplies h: rho, times the number of predictions where h does not hold it."""
    if MODES[mode].bs is None:
        return float(group["rho"])
    measured = group["measured_bs"] if mode == "liuhong99" else None
    factors = (bs, group["bs"], measured, MODES[mode].bs)
    return float(group["rho"]) * next(float(f) for f in factors if f is not None)
