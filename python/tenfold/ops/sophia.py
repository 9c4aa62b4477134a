"""Sophia passes: the clipped second-order step, its diagonal Hessian, 8-bit states, Hutchinson probes.

Method: Sophia, Liu et al., "A scalable stochastic second-order optimizer for language model pre-training"
(arXiv 2305.14342); its use for unlearning: SOUL, Jia et al. (arXiv 2404.18239). A pass reads and writes every
weight and state once. The results of an element depend on the element alone: not on how a list is split, nor
on chunks, threads or instruction sets, down to the bits of stochastic rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tenfold import _checks
from tenfold._backend import OPS, chosen_backend
from tenfold.kernels.sophia.sophia8_reference import blocks_of
from tenfold.kernels.sophia.sophia_reference import Rounding, State, StepArgs

from . import _sophia_checks as check
from . import zo
from .zo import _LIBRARY

DENOMINATORS = ("max", "add")
ROUNDINGS = ("nearest", "stochastic", "kahan")
NONFINITE = ("propagate", "skip_element", "error")
SOURCES = ("gnb", "hvp")
KINDS = ("exp_avg", "hessian")

_BACKENDS = ("cpu", "cuda", "triton", "reference")
OPS |= dict.fromkeys(("sophia_step_", "sophia_hessian_", "sophia8_quantize", "sophia8_dequantize"), _BACKENDS)

for _schema in (
    "sophia_step_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avgs, Tensor(c!)[] hessians, "
    "Tensor(d!)[] exp_avg_scales, Tensor(e!)[] hessian_scales, Tensor(f!)[] masters, "
    "Tensor(g!)[] compensations, Tensor(h!)[] stats, Tensor? inv_scale, Tensor? found_inf, SymInt[] streams, "
    "float lr, float beta1, float denom_scale, float weight_decay, float eps, str denom, "
    "float? hessian_beta2, bool maximize, str rounding, SymInt seed, SymInt step, str nonfinite) -> ()",
    "sophia_hessian_(Tensor(a!)[] hessians, Tensor[] grads, Tensor[] probes, Tensor(b!)[] hessian_scales, "
    "Tensor? inv_scale, Tensor? found_inf, SymInt[] streams, float keep, float weight, SymInt seed, "
    "SymInt step) -> ()",
    "sophia8_quantize(Tensor x, str kind, SymInt? seed, SymInt step, SymInt stream) -> (Tensor, Tensor)",
    "sophia8_dequantize(Tensor codes, Tensor scales, str kind) -> Tensor",
):
    _LIBRARY.define(_schema)


# ---- the dispatcher's side: check what would read or write wrong memory, choose the backend, call it -------


def _kernels(op: str, device: torch.device) -> Any:
    backend = chosen_backend(op, device.type)
    if backend == "reference":
        from tenfold.kernels.sophia import sophia_reference as module
    elif backend == "triton":
        from tenfold.kernels.sophia import sophia_triton as module
    else:
        from tenfold.kernels.sophia import sophia_native as module
    return module


def _sophia_step_(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    hessians: list[Tensor],
    exp_avg_scales: list[Tensor],
    hessian_scales: list[Tensor],
    masters: list[Tensor],
    compensations: list[Tensor],
    stats: list[Tensor],
    inv_scale: Tensor | None,
    found_inf: Tensor | None,
    streams: list[int],
    lr: float,
    beta1: float,
    denom_scale: float,
    weight_decay: float,
    eps: float,
    denom: str,
    hessian_beta2: float | None,
    maximize: bool,
    rounding: str,
    seed: int,
    step: int,
    nonfinite: str,
) -> None:
    state = State(exp_avgs, hessians, exp_avg_scales, hessian_scales, masters, compensations)
    usual = check.step(params, grads, state, stats, inv_scale, found_inf, streams, hessian_beta2, rounding)
    if nonfinite == "error":
        check.all_finite(grads, inv_scale, found_inf)
    args = StepArgs(
        lr=lr,
        beta1=beta1,
        denom_scale=denom_scale,
        decay=1.0 - lr * weight_decay,
        shrink=-lr * weight_decay,
        eps=eps,
        add=denom == "add",
        maximize=maximize,
        skip=nonfinite == "skip_element",
        hessian_beta2=hessian_beta2,
    )
    written = [*params, *exp_avgs, *masters, *compensations]
    if hessian_beta2 is not None:
        written += hessians
    with check.contiguous(written, usual) as dense:
        inner = State(
            dense(exp_avgs),
            dense(hessians),
            exp_avg_scales,
            hessian_scales,
            dense(masters),
            dense(compensations),
        )
        _kernels("sophia_step_", params[0].device).step_(
            dense(params),
            dense(grads),
            inner,
            streams,
            args,
            Rounding(rounding, zo._unsigned(seed), step),
            inv_scale,
            found_inf,
            stats[0] if stats else None,
        )
    zo._written([*written, *exp_avg_scales, *stats, *(hessian_scales if hessian_beta2 is not None else ())])


def _sophia_hessian_(
    hessians: list[Tensor],
    grads: list[Tensor],
    probes: list[Tensor],
    hessian_scales: list[Tensor],
    inv_scale: Tensor | None,
    found_inf: Tensor | None,
    streams: list[int],
    keep: float,
    weight: float,
    seed: int,
    step: int,
) -> None:
    usual = check.hessian(hessians, grads, probes, hessian_scales, inv_scale, found_inf, streams)
    with check.contiguous(hessians, usual) as dense:
        _kernels("sophia_hessian_", hessians[0].device).hessian_(
            dense(hessians),
            dense(grads),
            dense(probes),
            hessian_scales,
            streams,
            keep,
            weight,
            Rounding("nearest", zo._unsigned(seed), step),
            inv_scale,
            found_inf,
        )
    zo._written([*hessians, *hessian_scales])


def _sophia8_quantize(
    x: Tensor, kind: str, seed: int | None, step: int, stream: int
) -> tuple[Tensor, Tensor]:
    x = x.contiguous()
    codes, scales = _quantize_meta(x, kind, seed, step, stream)
    rounding = None if seed is None else Rounding("stochastic", zo._unsigned(seed), step)
    kernels = _kernels("sophia8_quantize", x.device)
    kernels.quantize(x, codes, scales, kind == "hessian", rounding, stream)
    return codes, scales


def _quantize_meta(x: Tensor, kind: str, seed: int | None, step: int, stream: int) -> tuple[Tensor, Tensor]:
    codes = torch.empty(x.shape, dtype=torch.uint8, device=x.device)
    return codes, x.new_empty(blocks_of(x.numel()), dtype=torch.float32)


def _sophia8_dequantize(codes: Tensor, scales: Tensor, kind: str) -> Tensor:
    check.scales("scales", scales, codes)
    codes = codes.contiguous()
    out = _dequantize_meta(codes, scales, kind)
    _kernels("sophia8_dequantize", codes.device).dequantize(codes, scales, out, kind == "hessian")
    return out


def _dequantize_meta(codes: Tensor, scales: Tensor, kind: str) -> Tensor:
    return torch.empty(codes.shape, dtype=torch.float32, device=codes.device)


zo._register("sophia_step_", _sophia_step_, zo._writes_only)
zo._register("sophia_hessian_", _sophia_hessian_, zo._writes_only)
zo._register("sophia8_quantize", _sophia8_quantize, _quantize_meta)
zo._register("sophia8_dequantize", _sophia8_dequantize, _dequantize_meta)


# ---- the public side ---------------------------------------------------------------------------------------


def sophia_step_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    exp_avgs: Sequence[Tensor],
    hessians: Sequence[Tensor] | None,
    *,
    lr: float,
    beta1: float,
    denom_scale: float = 1.0,
    weight_decay: float = 0.0,
    eps: float = 1e-12,
    denom: str = "max",
    hessian_beta2: float | None = None,
    maximize: bool = False,
    inv_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    masters: Sequence[Tensor] | None = None,
    compensations: Sequence[Tensor] | None = None,
    exp_avg_scales: Sequence[Tensor] | None = None,
    hessian_scales: Sequence[Tensor] | None = None,
    rounding: str = "nearest",
    seed: int = 0,
    step: int = 0,
    streams: Sequence[int] | None = None,
    nonfinite: str = "propagate",
    stats: Tensor | None = None,
) -> None:
    """One Sophia step for every tensor, in place, one read and one write of weights and states.

    Per element, in float32 (float64 for float64 tensors), with g = grad * inv_scale (negated to maximize):

        h = hessian_beta2 * h + (1 - hessian_beta2) * g^2      where hessian_beta2 is given
        m = beta1 * m + (1 - beta1) * g
        d = max(denom_scale * h, eps)                          denom "max" (arXiv 2305.14342)
        d = max(denom_scale * h, 0) + eps                      denom "add" (the authors' code)
        u = clip(m / d, -1, 1)                                 sign(m) where hessians is None
        theta = (1 - lr * weight_decay) * theta - lr * u

    m = h = 0 gives u = 0; h <= 0 with m != 0 gives u = sign(m). With denom "add" the results are those of the
    authors' SophiaG up to float32 rounding.

    Args:
        params: tensors of any shape, float32, bfloat16, float16 or float64, on one device. Memory that is not
            contiguous is copied and copied back. Empty lists and tensors do nothing.
        grads: shaped as params, in their dtype or float32, of any strides; a tensor whose grad is None is
            left out, with its states.
        exp_avgs: m, shaped as params: float32 (float64 for float64 tensors), bfloat16, or uint8 with
            `exp_avg_scales`. bfloat16 and 8-bit states are rounded stochastically.
        hessians: h, in the dtype of its m (uint8 with `hessian_scales`); or None for the sign of m.
        lr: >= 0. beta1: in [0, 1). denom_scale: factor on h, >= 0: rho * batch size, or gamma.
        weight_decay: decoupled, >= 0. eps: > 0.
        hessian_beta2: in [0, 1); the squared gradient then updates h first, in the same pass.
        inv_scale, found_inf: None, or float32 tensors of one element on the device, as of a GradScaler. A
            found_inf that is not 0 makes the call write nothing.
        masters: float32 weights that are updated instead; params become their rounding.
        compensations: for rounding "kahan": what params lack, in their dtype, so that theta + c is the
            weight; zeros at first.
        exp_avg_scales, hessian_scales: float32 [ceil(n / 256)] per tensor, for 8-bit states (zeros at first).
        rounding: of params narrower than the math: "nearest", "stochastic", or "kahan".
        seed, step, streams: key and counter of the rounding bits: integers in [0, 2^64), [0, 2^24) and, one
            per tensor, [0, 2^32) (default: its place in the list). Give a tensor the same stream however the
            list is cut, and another step in every call.
        nonfinite: what a gradient that is inf or NaN does: "propagate" (NaN reaches the weight, inf moves it
            by lr and stays in m), "skip_element" (weight and states of that element stay), "error"
            (RuntimeError before anything is written; waits for the device).
        stats: None or float64 [6] on the device, added to: elements with abs(m) < denom_scale * h (the ones
            not clipped, "wins"); with m != 0; the sum of u^2; non-finite gradients; stored weights that
            changed; elements. Skipped elements count in the fourth and last alone.

    Raises:
        TypeError: an argument of the wrong kind, or a dtype or layout that has no kernel (the tensor named).
        ValueError: a value out of range, shapes or lengths that differ, tensors that share memory.
        RuntimeError: a leaf that requires grad while gradients are enabled, a non-finite gradient with
            "error", or a forced backend that cannot run.
        Nothing is written when an error is raised.
    """
    present = check.present(grads, params)
    pick = check.Picker(present, len(params))
    given = zo._streams(range(len(params)) if streams is None else streams, params)
    params = check.params(pick("params", params))
    grads = check.read("grads", pick("grads", grads))
    exp_avgs = check.states("exp_avgs", pick("exp_avgs", exp_avgs))
    hessians = check.states("hessians", pick("hessians", hessians))
    exp_avg_scales = check.states("exp_avg_scales", pick("exp_avg_scales", exp_avg_scales))
    hessian_scales = check.states("hessian_scales", pick("hessian_scales", hessian_scales))
    masters = check.states("masters", pick("masters", masters))
    compensations = check.states("compensations", pick("compensations", compensations))
    lr = _checks.fits("lr", _checks.real("lr", lr, at_least=0.0), True)
    beta1 = _checks.real("beta1", beta1, at_least=0.0, below=1.0)
    denom_scale = _checks.fits("denom_scale", _checks.real("denom_scale", denom_scale, at_least=0.0), True)
    weight_decay = _checks.real("weight_decay", weight_decay, at_least=0.0)
    _checks.fits("1 - lr * weight_decay", 1.0 - lr * weight_decay, True)
    eps = check.positive_in_float32("eps", eps)
    _checks.choice("denom", denom, DENOMINATORS)
    if hessian_beta2 is not None:
        hessian_beta2 = _checks.real("hessian_beta2", hessian_beta2, at_least=0.0, below=1.0)
    maximize = check.flag("maximize", maximize)
    _checks.choice("rounding", rounding, ROUNDINGS)
    seed = _checks.seed("seed", seed)
    step = _checks.query("step", step)
    _checks.choice("nonfinite", nonfinite, NONFINITE)
    check.number("inv_scale", inv_scale)
    check.number("found_inf", found_inf)
    if params:
        listed = [] if stats is None else [_checks.tensor("stats", stats, (torch.float64,))]
        torch.ops.tenfold.sophia_step_(
            params, grads, exp_avgs, hessians, exp_avg_scales, hessian_scales, masters, compensations, listed,
            inv_scale, found_inf, [given[i] for i in present], lr, beta1, denom_scale, weight_decay, eps,
            denom, hessian_beta2, maximize, rounding, zo._signed(seed), step, nonfinite,
        )  # fmt: skip


def sophia_hessian_(
    hessians: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    *,
    beta2: float,
    scale: float = 1.0,
    inv_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    source: str = "gnb",
    probes: Sequence[Tensor] | None = None,
    hessian_scales: Sequence[Tensor] | None = None,
    seed: int = 0,
    step: int = 0,
    streams: Sequence[int] | None = None,
) -> None:
    """h = beta2 * h + (1 - beta2) * scale * estimate, in place, one read and one write of h.

    The estimate is g^2 for "gnb" (Gauss-Newton-Bartlett: g the gradient of the mean loss over B sampled
    labels, scale = B), probe * g for "hvp" (Hutchinson: g the Hessian-vector product with the probe); g =
    grad * inv_scale. Liu et al. (arXiv 2305.14342), algorithms 1 and 2. Sum gradients over microbatches and
    ranks before they are squared here.

    Args:
        hessians: float32, float64, bfloat16, or uint8 with `hessian_scales` (negative values become zero).
        grads: shaped as hessians, of any float dtype; a tensor whose grad is None is left out.
        beta2: in [0, 1). scale: finite, >= 0.
        probes: shaped as grads, for "hvp": see `hutchinson_probe`.
        inv_scale, found_inf, hessian_scales, seed, step, streams: as in `sophia_step_`. The rounding bits
            are those that `sophia_step_` with hessian_beta2 has for the same step.

    Raises:
        TypeError, ValueError, RuntimeError: as `sophia_step_`.
    """
    present = check.present(grads, hessians, "hessians")
    pick = check.Picker(present, len(hessians), "hessians")
    given = zo._streams(range(len(hessians)) if streams is None else streams, hessians)
    hessians = check.states("hessians", pick("hessians", hessians))
    grads = check.read("grads", pick("grads", grads))
    beta2 = _checks.real("beta2", beta2, at_least=0.0, below=1.0)
    scale = _checks.fits("scale", _checks.real("scale", scale, at_least=0.0), True)
    _checks.choice("source", source, SOURCES)
    if (source == "hvp") != (probes is not None):
        expected = "the probes of the Hessian-vector products" if source == "hvp" else "None for source 'gnb'"
        _checks.fail(ValueError, "probes", expected, "None" if probes is None else "a list")
    probes = zo._tensors("probes", pick("probes", probes), write=False)
    hessian_scales = check.states("hessian_scales", pick("hessian_scales", hessian_scales))
    seed = _checks.seed("seed", seed)
    step = _checks.query("step", step)
    check.number("inv_scale", inv_scale)
    check.number("found_inf", found_inf)
    if hessians:
        torch.ops.tenfold.sophia_hessian_(
            hessians, grads, probes, hessian_scales, inv_scale, found_inf, [given[i] for i in present], beta2,
            (1.0 - beta2) * scale, zo._signed(seed), step,
        )  # fmt: skip


def hutchinson_probe(
    like: Sequence[Tensor],
    *,
    seed: int,
    streams: Sequence[int] | None = None,
    index: int = 0,
    dist: str = "rademacher",
) -> list[Tensor]:
    """The probes of Hutchinson's method: vectors shaped as `like`, in its dtypes, mean 0 and variance 1.

    M. F. Hutchinson, "A stochastic estimator of the trace of the influence matrix" (1990). The same (seed,
    stream, index) gives the same numbers on every device, however the list is cut.

    Args:
        seed: in [0, 2^64). index: which probe, in [0, 2^24).
        streams: one integer in [0, 2^32) per tensor, default its place in the list.
        dist: "rademacher" (-1 or +1) or "gaussian".
    """
    like = zo._tensors("like", like, write=False)
    index = _checks.integer("index", index, 0, 2**24 - 1, "an integer in [0, 2^24)")
    given = zo._streams(range(len(like)) if streams is None else streams, like)
    _checks.choice("dist", dist, ("rademacher", "gaussian"))
    return [
        zo.zo_sample(seed, stream, index, n=t.numel(), dist=dist, dtype=t.dtype, device=t.device).view(
            t.shape
        )
        for t, stream in zip(like, given, strict=True)
    ]


def hutchinson_accumulate_(
    sums: Sequence[Tensor], probes: Sequence[Tensor], hvps: Sequence[Tensor | None], scale: float = 1.0
) -> None:
    """sums += scale * probe * hvp for every tensor, in place: scale 1/n and n probes give a Hessian diagonal.

    Args:
        sums: float32, float64 or bfloat16. probes, hvps: shaped as sums; a tensor whose hvp is None is left
            out.
        scale: finite, >= 0.

    Raises:
        TypeError, ValueError: as `sophia_hessian_`.
    """
    present = check.present(hvps, sums, "sums", "hvps")
    pick = check.Picker(present, len(sums), "sums")
    sums = zo._tensors("sums", pick("sums", sums))
    probes = zo._tensors("probes", pick("probes", probes), write=False)
    hvps = zo._tensors("hvps", pick("hvps", hvps), write=False)
    scale = _checks.fits("scale", _checks.real("scale", scale, at_least=0.0), True)
    if sums:
        try:
            torch.ops.tenfold.sophia_hessian_(sums, hvps, probes, [], None, None, present, 1.0, scale, 0, 0)
        except (TypeError, ValueError) as error:  # in the words of the op that does it
            raise type(error)(str(error).replace("hessians", "sums").replace("grads", "hvps")) from None


def sophia8_quantize(
    x: Tensor, kind: str, *, seed: int | None = None, step: int = 0, stream: int = 0
) -> tuple[Tensor, Tensor]:
    """A state in 8 bits: (uint8 codes shaped as x, float32 scales [ceil(n / 256)]).

    Blocks of 256 elements share a scale. Codes are spaced by the logarithm, over 7.1 decades below the
    largest of the block: 127 magnitudes and a sign for "exp_avg", 255 magnitudes of the square root for
    "hessian", whose values are >= 0 (negative ones become 0, others never do).

    Args:
        x: float32, any shape. kind: "exp_avg" or "hessian".
        seed: None rounds to nearest; an integer in [0, 2^64) rounds stochastically with the bits that
            `sophia_step_` has for this seed, step and stream.

    Raises:
        TypeError, ValueError: an argument of the wrong kind or out of range.
    """
    x = _checks.tensor("x", x, (torch.float32,))
    _checks.choice("kind", kind, KINDS)
    seed = None if seed is None else zo._signed(_checks.seed("seed", seed))
    step, stream = _checks.query("step", step), _checks.stream("stream", stream)
    codes, scales = torch.ops.tenfold.sophia8_quantize(x.detach(), kind, seed, step, stream)
    return codes, scales


def sophia8_dequantize(codes: Tensor, scales: Tensor, kind: str) -> Tensor:
    """The float32 values of `sophia8_quantize`'s codes, shaped as them.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, or scales that do not fit the codes.
    """
    codes = _checks.tensor("codes", codes, (torch.uint8,))
    check.scales("scales", scales, codes)
    _checks.choice("kind", kind, KINDS)
    out: Tensor = torch.ops.tenfold.sophia8_dequantize(codes, scales, kind)
    return out
