"""Sophia ops refuse what would read or write wrong memory or mean nothing, before anything is written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tenfold.ops import (
    hutchinson_accumulate_,
    hutchinson_probe,
    sophia8_dequantize,
    sophia8_quantize,
    sophia_hessian_,
    sophia_step_,
)

N = 300
NAN, INF = float("nan"), float("inf")
F64, BF16, U8 = torch.float64, torch.bfloat16, torch.uint8


def _step_arguments() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    lists = {
        name: [torch.rand(N, generator=generator), torch.rand(3, 5, generator=generator)]
        for name in ("params", "grads", "exp_avgs", "hessians")
    }
    return {**lists, "lr": 0.1, "beta1": 0.5, "stats": torch.zeros(6, dtype=F64)}


def _hessian_arguments() -> dict[str, Any]:
    step = _step_arguments()
    return {"hessians": step["hessians"], "grads": step["grads"], "beta2": 0.5}


def _tensors(arguments: dict[str, Any]) -> list[Tensor]:
    found = []
    for value in arguments.values():
        found += [t for t in (value if isinstance(value, list) else [value]) if isinstance(t, Tensor)]
    return found


def _refused(
    op: Callable[..., None], arguments: dict[str, Any], error: type[Exception], start: str, place: int
) -> None:
    """The message has the form of all messages, and no tensor that was given has changed."""
    before = [t.clone() for t in _tensors(arguments)]
    positional = [arguments.pop(k) for k in list(arguments)[:place]]
    with pytest.raises(error, match=rf"^{start}.*: expected .*, got ") as caught:
        op(*positional, **arguments)
    assert caught.type is error
    after = _tensors(dict(enumerate(positional)) | arguments)
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))


def _with(name: str, i: int, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(arguments: dict[str, Any]) -> None:
        arguments[name][i] = value(arguments) if callable(value) else value

    return change


def _set(**values: Any) -> Callable[[dict[str, Any]], None]:
    def change(arguments: dict[str, Any]) -> None:
        for name, value in values.items():
            arguments[name] = value(arguments) if callable(value) else value

    return change


def _codes(arguments: dict[str, Any]) -> None:
    """Turns the states into 8-bit ones with their scales."""
    for name, kind in (("exp_avgs", "exp_avg"), ("hessians", "hessian")):
        pairs = [sophia8_quantize(t, kind) for t in arguments[name]]
        arguments[name] = [c for c, _ in pairs]
        arguments[name.removesuffix("s") + "_scales"] = [s for _, s in pairs]


def _both(*changes: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, Any]], None]:
    def change(arguments: dict[str, Any]) -> None:
        for each in changes:
            each(arguments)

    return change


def _like(name: str, dtype: torch.dtype) -> Callable[[dict[str, Any]], list[Tensor]]:
    return lambda arguments: [torch.zeros_like(t, dtype=dtype) for t in arguments[name]]


def _strided(arguments: dict[str, Any]) -> Tensor:
    return torch.zeros(2 * N, dtype=U8)[::2]


STEP: dict[str, tuple[Callable[[dict[str, Any]], None], type[Exception], str]] = {
    "params kind": (_set(params=3), TypeError, "params"),
    "params entry": (_with("params", 0, "x"), TypeError, r"params\[0\]"),
    "params dtype": (_with("params", 0, torch.ones(N, dtype=torch.int32)), TypeError, r"params\[0\]"),
    "grads count": (_set(grads=lambda a: a["grads"][:1]), ValueError, "grads"),
    "grads shape": (_with("grads", 1, torch.ones(5, 3)), ValueError, r"grads\[1\]"),
    "grads dtype": (_with("grads", 1, torch.ones(3, 5, dtype=BF16)), TypeError, r"grads\[1\]"),
    "grads shared": (_with("grads", 0, lambda a: a["params"][0]), ValueError, r"grads\[0\]"),
    "exp_avgs count": (_set(exp_avgs=lambda a: a["exp_avgs"][:1]), ValueError, "exp_avgs"),
    "exp_avgs shape": (_with("exp_avgs", 0, torch.ones(N + 1)), ValueError, r"exp_avgs\[0\]"),
    "exp_avgs dtype": (_with("exp_avgs", 0, torch.ones(N, dtype=F64)), TypeError, r"exp_avgs\[0\]"),
    "exp_avgs shared": (_with("exp_avgs", 0, lambda a: a["params"][0]), ValueError, ""),
    "hessians count": (_set(hessians=lambda a: a["hessians"][:1]), ValueError, "hessians"),
    "hessians shape": (_with("hessians", 0, torch.ones(N + 1)), ValueError, r"hessians\[0\]"),
    "hessians dtype": (_with("hessians", 0, torch.ones(N, dtype=BF16)), TypeError, r"hessians\[0\]"),
    "hessians missing": (_set(hessians=None, hessian_beta2=0.9), ValueError, "hessians"),
    "lr kind": (_set(lr="1"), TypeError, "lr"),
    "lr negative": (_set(lr=-1.0), ValueError, "lr"),
    "lr nan": (_set(lr=NAN), ValueError, "lr"),
    "lr too large": (_set(lr=1e39), ValueError, "lr"),
    "beta1 one": (_set(beta1=1.0), ValueError, "beta1"),
    "beta1 negative": (_set(beta1=-0.1), ValueError, "beta1"),
    "denom_scale": (_set(denom_scale=-1.0), ValueError, "denom_scale"),
    "denom_scale inf": (_set(denom_scale=INF), ValueError, "denom_scale"),
    "weight_decay": (_set(weight_decay=-0.1), ValueError, "weight_decay"),
    "decay too large": (_set(lr=1e30, weight_decay=1e30), ValueError, "1 - lr"),
    "eps zero": (_set(eps=0.0), ValueError, "eps"),
    "eps lost": (_set(eps=1e-60), ValueError, "eps"),
    "denom": (_set(denom="mul"), ValueError, "denom"),
    "hessian_beta2": (_set(hessian_beta2=1.0), ValueError, "hessian_beta2"),
    "maximize": (_set(maximize=1), TypeError, "maximize"),
    "inv_scale kind": (_set(inv_scale=2.0), TypeError, "inv_scale"),
    "inv_scale dtype": (_set(inv_scale=torch.ones(1, dtype=F64)), TypeError, "inv_scale"),
    "inv_scale shape": (_set(inv_scale=torch.ones(2)), ValueError, "inv_scale"),
    "found_inf shape": (_set(found_inf=torch.ones(0)), ValueError, "found_inf"),
    "masters dtype": (_set(masters=_like("params", BF16)), TypeError, r"masters\[0\]"),
    "masters shared": (_set(masters=lambda a: list(a["params"])), ValueError, ""),
    "masters kahan": (
        _set(
            masters=_like("params", torch.float32),
            compensations=_like("params", torch.float32),
            rounding="kahan",
        ),
        ValueError,
        "rounding",
    ),
    "compensations missing": (_set(rounding="kahan"), ValueError, "compensations"),
    "compensations unwanted": (
        _set(compensations=_like("params", torch.float32)),
        ValueError,
        "compensations",
    ),
    "compensations dtype": (
        _set(compensations=_like("params", BF16), rounding="kahan"),
        TypeError,
        r"compensations\[0\]",
    ),
    "scales unwanted": (_set(exp_avg_scales=_like("exp_avgs", torch.float32)), ValueError, "exp_avg_scales"),
    "scales missing": (_both(_codes, _set(hessian_scales=None)), ValueError, "hessian_scales"),
    "scales shape": (
        _both(_codes, _with("exp_avg_scales", 0, torch.ones(1))),
        ValueError,
        r"exp_avg_scales\[0\]",
    ),
    "scales dtype": (
        _both(_codes, _with("hessian_scales", 0, torch.ones(2, dtype=F64))),
        TypeError,
        r"hessian_scales\[0\]",
    ),
    "codes strided": (_both(_codes, _with("exp_avgs", 0, _strided)), ValueError, r"exp_avgs\[0\]"),
    "codes and floats": (_both(_codes, _with("exp_avgs", 1, torch.ones(3, 5))), TypeError, ""),
    "rounding": (_set(rounding="up"), ValueError, "rounding"),
    "seed kind": (_set(seed=1.5), TypeError, "seed"),
    "seed range": (_set(seed=2**64), ValueError, "seed"),
    "step range": (_set(step=2**24), ValueError, "step"),
    "streams count": (_set(streams=[0]), ValueError, "streams"),
    "streams range": (_set(streams=[0, 2**32]), ValueError, r"streams\[1\]"),
    "nonfinite": (_set(nonfinite="ignore"), ValueError, "nonfinite"),
    "stats dtype": (_set(stats=torch.zeros(6)), TypeError, "stats"),
    "stats shape": (_set(stats=torch.zeros(5, dtype=F64)), ValueError, "stats"),
    "stats strided": (_set(stats=torch.zeros(12, dtype=F64)[::2]), ValueError, "stats"),
}


@pytest.mark.parametrize("case", list(STEP))
def test_step(case: str) -> None:
    change, error, start = STEP[case]
    arguments = _step_arguments()
    change(arguments)
    _refused(sophia_step_, arguments, error, start, 4)


HESSIAN: dict[str, tuple[Callable[[dict[str, Any]], None], type[Exception], str]] = {
    "hessians kind": (_set(hessians=3), TypeError, "hessians"),
    "hessians dtype": (_with("hessians", 0, torch.ones(N).half()), TypeError, r"hessians\[0\]"),
    "grads count": (_set(grads=[]), ValueError, "grads"),
    "grads shape": (_with("grads", 0, torch.ones(2)), ValueError, r"grads\[0\]"),
    "grads dtype": (_with("grads", 0, torch.ones(N, dtype=F64)), TypeError, r"grads\[0\]"),
    "grads shared": (_with("grads", 0, lambda a: a["hessians"][0]), ValueError, r"grads\[0\]"),
    "beta2": (_set(beta2=1.0), ValueError, "beta2"),
    "scale": (_set(scale=-1.0), ValueError, "scale"),
    "scale inf": (_set(scale=INF), ValueError, "scale"),
    "source": (_set(source="fisher"), ValueError, "source"),
    "probes missing": (_set(source="hvp"), ValueError, "probes"),
    "probes unwanted": (_set(probes=_like("grads", torch.float32)), ValueError, "probes"),
    "probes dtype": (_set(source="hvp", probes=_like("grads", F64)), TypeError, r"probes\[0\]"),
    "probes shared": (_set(source="hvp", probes=lambda a: list(a["hessians"])), ValueError, r"probes\[0\]"),
    "inv_scale": (_set(inv_scale=torch.ones(2)), ValueError, "inv_scale"),
    "inv_scale kind": (_set(inv_scale=2.0), TypeError, "inv_scale"),
    "found_inf": (_set(found_inf=torch.ones(1).int()), TypeError, "found_inf"),
    "scales unwanted": (_set(hessian_scales=_like("hessians", torch.float32)), ValueError, "hessian_scales"),
    "seed": (_set(seed=-1), ValueError, "seed"),
    "step": (_set(step=-1), ValueError, "step"),
    "streams": (_set(streams=[1]), ValueError, "streams"),
}


@pytest.mark.parametrize("case", list(HESSIAN))
def test_hessian(case: str) -> None:
    change, error, start = HESSIAN[case]
    arguments = _hessian_arguments()
    change(arguments)
    _refused(sophia_hessian_, arguments, error, start, 2)


def test_weights_that_require_grad() -> None:
    arguments = _step_arguments()
    arguments["params"][0].requires_grad_()
    with pytest.raises(RuntimeError, match=r"params\[0\]"):
        sophia_step_(**arguments)


@pytest.mark.parametrize(
    ("call", "error", "start"),
    [
        (lambda: sophia8_quantize(torch.ones(3, dtype=F64), "hessian"), TypeError, "x"),
        (lambda: sophia8_quantize(torch.ones(3), "h"), ValueError, "kind"),
        (lambda: sophia8_quantize(torch.ones(3), "hessian", seed=-1), ValueError, "seed"),
        (lambda: sophia8_quantize(torch.ones(3), "hessian", seed=1, step=-1), ValueError, "step"),
        (lambda: sophia8_quantize(torch.ones(3), "hessian", seed=1, stream=2**32), ValueError, "stream"),
        (lambda: sophia8_dequantize(torch.ones(3), torch.ones(1), "hessian"), TypeError, "codes"),
        (lambda: sophia8_dequantize(torch.ones(3, dtype=U8), torch.ones(2), "hessian"), ValueError, "scales"),
        (lambda: sophia8_dequantize(torch.ones(3, dtype=U8), torch.ones(1), "h"), ValueError, "kind"),
        (lambda: hutchinson_probe([torch.ones(3)], seed=-1), ValueError, "seed"),
        (lambda: hutchinson_probe([torch.ones(3)], seed=1, dist="uniform"), ValueError, "dist"),
        (lambda: hutchinson_probe([torch.ones(3)], seed=1, streams=[0, 1]), ValueError, "streams"),
        (lambda: hutchinson_probe([torch.ones(3).int()], seed=1), TypeError, "like"),
    ],
)
def test_the_rest(call: Callable[[], Any], error: type[Exception], start: str) -> None:
    with pytest.raises(error, match=rf"^{start}.*: expected .*, got "):
        call()


@pytest.mark.parametrize(
    ("change", "error", "start"),
    [
        (_set(scale=-1.0), ValueError, "scale"),
        (_set(hvps=[None]), ValueError, "hvps"),
        (_set(probes=lambda a: [torch.ones(2)]), ValueError, "probes"),
        (_set(sums=lambda a: a["sums"][:0]), ValueError, "hvps"),
    ],
)
def test_accumulate(change: Callable[[dict[str, Any]], None], error: type[Exception], start: str) -> None:
    arguments = {name: [torch.ones(3), torch.ones(4)] for name in ("sums", "probes", "hvps")}
    change(arguments)
    _refused(hutchinson_accumulate_, arguments, error, start, 3)
