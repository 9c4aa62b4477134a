"""What the Sophia ops check about lists of tensors before anything is written."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from tenfold import _checks
from tenfold.kernels.sophia.sophia8_reference import blocks_of
from tenfold.kernels.sophia.sophia_reference import State

from . import zo

_STATES = (*_checks.FLOAT_DTYPES, torch.uint8)


def flag(name: str, value: bool) -> bool:
    if not isinstance(value, bool):
        _checks.fail(TypeError, name, "True or False", _checks.describe(value))
    return value


def positive_in_float32(name: str, value: float) -> float:
    value = _checks.fits(name, _checks.real(name, value, positive=True), True)
    if value < 1e-45:
        _checks.fail(ValueError, name, "a number > 0 in float32", value)
    return value


def present(
    grads: Sequence[Tensor | None], params: Sequence[Any], of: str = "params", name: str = "grads"
) -> list[int]:
    """Positions whose gradient is not None."""
    _checks.sequence(of, params, "tensors")
    _checks.length(name, _checks.sequence(name, grads, "tensors"), len(params), of)
    return [i for i, g in enumerate(grads) if g is not None]


class Picker:
    """The entries of a list that stand at `positions`; of None, nothing."""

    def __init__(self, positions: list[int], count: int, of: str = "params") -> None:
        self.positions, self.count, self.of = positions, count, of

    def __call__(self, name: str, values: Sequence[Any] | None) -> Sequence[Any]:
        if values is None:
            return []
        _checks.length(name, _checks.sequence(name, values, "tensors"), self.count, self.of)
        if len(self.positions) == self.count:
            return values
        return [values[i] for i in self.positions]


# Where all tensors are plain, nothing can be wrong; otherwise the full checks find what is.


def params(values: Sequence[Any]) -> Sequence[Tensor]:
    if _checks.are_plain(values, _checks.FLOAT_DTYPES, True):
        zo._one_device("params", values)
        return values
    return zo._params("params", values)


def read(name: str, values: Sequence[Any]) -> Sequence[Tensor]:
    if _checks.are_plain(values, _checks.FLOAT_DTYPES, False):
        return values
    return zo._tensors(name, values, write=False)


def states(name: str, values: Sequence[Any]) -> Sequence[Tensor]:
    if _checks.are_plain(values, _STATES, True):
        return values
    out = [_checks.tensor(f"{name}[{i}]", t, _STATES) for i, t in enumerate(values)]
    for i, t in enumerate(out):
        _checks.writable(f"{name}[{i}]", t)
    return out


def scales(name: str, value: Tensor, codes: Tensor) -> None:
    _checks.tensor(name, value, (torch.float32,))
    shape = (blocks_of(codes.numel()),)
    if value.shape != shape or not value.is_contiguous():
        _checks.fail(ValueError, name, f"a contiguous tensor of shape {shape}", tuple(value.shape))
    if value.device != codes.device:
        _checks.fail(ValueError, name, f"device {codes.device} of the codes", value.device)


def _match(name: str, tensors: Sequence[Tensor], others: Sequence[Tensor], of: str, *dtypes: Any) -> None:
    """Tensors that pair with `others`: count, shapes, device, and one of the dtypes listed per position."""
    _checks.length(name, tensors, len(others), of)
    for i, (t, other) in enumerate(zip(tensors, others, strict=True)):
        if t.shape != other.shape:
            _checks.fail(
                ValueError, f"{name}[{i}]", f"shape {tuple(other.shape)} as {of}[{i}]", tuple(t.shape)
            )
        if t.device != other.device:
            _checks.fail(ValueError, f"{name}[{i}]", f"device {other.device} as {of}[{i}]", t.device)
        _checks.dtype(f"{name}[{i}].dtype", t.dtype, [d[i] for d in dtypes])


def _wide(t: Tensor) -> torch.dtype:
    return torch.float64 if t.dtype == torch.float64 else torch.float32


def _state_dtypes(name: str, tensors: Sequence[Tensor], params: Sequence[Tensor]) -> None:
    wide = [_wide(p) for p in params]
    half = [w if w == torch.float64 else torch.bfloat16 for w in wide]
    byte = [w if w == torch.float64 else torch.uint8 for w in wide]
    _match(name, tensors, params, "params", wide, half, byte)


def _eight_bit(name: str, values: Sequence[Tensor], codes: Sequence[Tensor]) -> None:
    """Scales are there exactly where there are codes."""
    narrow = any(t.dtype == torch.uint8 for t in codes)
    if narrow != bool(values):
        expected = "scales for states in uint8" if narrow else "None for states that are not uint8"
        _checks.fail(ValueError, name, expected, "a list" if values else "None")
    if not narrow:
        return
    _checks.length(name, values, len(codes), "params")
    for i, (value, t) in enumerate(zip(values, codes, strict=True)):
        if t.dtype != torch.uint8:
            _checks.fail(
                TypeError, name.removesuffix("_scales") + f"s[{i}].dtype", "uint8 as the others", t.dtype
            )
        scales(f"{name}[{i}]", value, t)
        if not t.is_contiguous():
            _checks.fail(ValueError, f"{name.removesuffix('_scales')}s[{i}]", "contiguous codes", t.stride())


def number(name: str, value: Tensor | None) -> None:
    """None or a float32 tensor; its size and device are checked by `_number`."""
    if value is not None:
        _checks.tensor(name, value, (torch.float32,))


def _number(name: str, value: Tensor | None, like: Tensor) -> None:
    number(name, value)
    if value is None:
        return
    if value.shape not in ((), (1,)):
        _checks.fail(ValueError, name, "one element, shape [] or [1]", tuple(value.shape))
    if value.device != like.device:
        _checks.fail(ValueError, name, f"device {like.device} of the tensors", value.device)


def _one_kind(tensors: Sequence[Tensor], shapes: list[torch.Size], dtypes: tuple[torch.dtype, ...]) -> bool:
    """Whether all are contiguous, of these shapes, and in one of the dtypes; there is at least one."""
    dtype = tensors[0].dtype
    if dtype not in dtypes or [t.shape for t in tensors] != shapes:
        return False
    return all(map(Tensor.is_contiguous, tensors)) and {t.dtype for t in tensors} == {dtype}


Kind = tuple[Sequence[Tensor], list[torch.Size], tuple[torch.dtype, ...]]


def _are_apart(kinds: Sequence[Kind], device: torch.device) -> bool:
    """Whether all lists are of one dtype each, fit, are contiguous, on one device, and share no memory."""
    if any(len(tensors) != len(shapes) for tensors, shapes, _ in kinds):
        return False
    if not all(_one_kind(*kind) for kind in kinds):
        return False
    spans = [(t.data_ptr(), t.nbytes, t.device == device) for tensors, _, _ in kinds for t in tensors]
    spans.sort()
    reached = 0
    for start, size, here in spans:
        if start < reached or not here:
            return False
        reached = start + size
    return True


def _scale_kinds(codes: Sequence[Tensor], values: Sequence[Tensor]) -> list[Kind]:
    """What the scales of 8-bit states must be; an impossible kind where they are not for codes, or lack."""
    narrow = bool(codes) and codes[0].dtype == torch.uint8
    if not narrow and not values:
        return []
    shapes = [torch.Size((blocks_of(t.numel()),)) for t in codes]
    return [(values, shapes, (torch.float32,) if narrow else ())]


def _is_usual_step(
    params: Sequence[Tensor], grads: Sequence[Tensor], state: State, stats: Sequence[Tensor]
) -> bool:
    """Whether the lists are those of a step and _are_apart: the checks below have nothing to find then."""
    own, wide = params[0].dtype, _wide(params[0])
    narrow = () if own == torch.float64 else (torch.bfloat16, torch.uint8)
    shapes = [p.shape for p in params]
    kinds: list[Kind] = [
        (params, shapes, _checks.FLOAT_DTYPES),
        (grads, shapes, (own, wide)),
        (state.exp_avgs, shapes, (wide, *narrow)),
    ]
    if state.hessians:
        kinds.append((state.hessians, shapes, (state.exp_avgs[0].dtype,) if state.exp_avgs else ()))
    if state.masters:
        kinds.append((state.masters, shapes, () if own == torch.float64 else (torch.float32,)))
    if state.compensations:
        kinds.append((state.compensations, shapes, (own,)))
    kinds += _scale_kinds(state.exp_avgs, state.exp_avg_scales)
    kinds += _scale_kinds(state.hessians, state.hessian_scales)
    if stats:
        kinds.append((stats, [torch.Size((6,))], (torch.float64,)))
    return _are_apart(kinds, params[0].device)


def _is_usual_hessian(
    hessians: Sequence[Tensor],
    grads: Sequence[Tensor],
    probes: Sequence[Tensor],
    hessian_scales: Sequence[Tensor],
) -> bool:
    """The same of a Hessian update."""
    own, wide = hessians[0].dtype, _wide(hessians[0])
    halves = () if own == torch.float64 else (torch.bfloat16, torch.float16)
    shapes = [h.shape for h in hessians]
    kinds: list[Kind] = [(hessians, shapes, (wide, torch.bfloat16, torch.uint8))]
    kinds.append((grads, shapes, (wide, *halves)))
    if probes:
        kinds.append((probes, shapes, (grads[0].dtype,) if grads else ()))
    kinds += _scale_kinds(hessians, hessian_scales)
    return _are_apart(kinds, hessians[0].device)


def step(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    state: State,
    stats: Sequence[Tensor],
    inv_scale: Tensor | None,
    found_inf: Tensor | None,
    streams: Sequence[int],
    hessian_beta2: float | None,
    rounding: str,
) -> bool:
    """Raises where something does not fit; True if all tensors are known to be contiguous."""
    zo._pairs("streams", streams, params)
    usual = _is_usual_step(params, grads, state, stats)
    if not usual:
        _lists(params, grads, state, hessian_beta2)
    elif hessian_beta2 is not None and not state.hessians:
        _checks.fail(ValueError, "hessians", "a list where hessian_beta2 is given", "None")
    if (rounding == "kahan") != bool(state.compensations):
        expected = "a list for rounding 'kahan'" if rounding == "kahan" else "None without rounding 'kahan'"
        _checks.fail(ValueError, "compensations", expected, "a list" if state.compensations else "None")
    if state.compensations:
        if state.masters:
            _checks.fail(ValueError, "rounding", "'nearest' or 'stochastic' with masters", "'kahan'")
        if not usual:
            _match("compensations", state.compensations, params, "params", [p.dtype for p in params])
    for t in stats:
        if t.shape != (6,) or not t.is_contiguous():
            _checks.fail(ValueError, "stats", "a contiguous tensor of shape (6,)", tuple(t.shape))
        if t.device != params[0].device:
            _checks.fail(ValueError, "stats", f"device {params[0].device} of the tensors", t.device)
    _number("inv_scale", inv_scale, params[0])
    _number("found_inf", found_inf, params[0])
    if usual:
        return True
    written = {
        "params": params,
        "exp_avgs": state.exp_avgs,
        "hessians": state.hessians,
        "exp_avg_scales": state.exp_avg_scales,
        "hessian_scales": state.hessian_scales,
        "masters": state.masters,
        "compensations": state.compensations,
        "stats": stats,
    }
    _checks.memory(**written)
    _apart("grads", grads, written)
    return False


def _lists(
    params: Sequence[Tensor], grads: Sequence[Tensor], state: State, hessian_beta2: float | None
) -> None:
    """Shapes, devices and dtypes of what stands beside the weights."""
    own, single = [p.dtype for p in params], [torch.float32] * len(params)
    _match("grads", grads, params, "params", own, [_wide(p) for p in params])
    _state_dtypes("exp_avgs", state.exp_avgs, params)
    if state.hessians:
        _state_dtypes("hessians", state.hessians, params)
        for i, (h, m) in enumerate(zip(state.hessians, state.exp_avgs, strict=True)):
            if h.dtype != m.dtype:
                _checks.fail(TypeError, f"hessians[{i}].dtype", f"{m.dtype} as exp_avgs[{i}]", h.dtype)
    elif hessian_beta2 is not None:
        _checks.fail(ValueError, "hessians", "a list where hessian_beta2 is given", "None")
    _eight_bit("exp_avg_scales", state.exp_avg_scales, state.exp_avgs)
    _eight_bit("hessian_scales", state.hessian_scales, state.hessians)
    if state.masters:
        _match("masters", state.masters, params, "params", single)
        for i, p in enumerate(params):
            _checks.dtype(f"params[{i}].dtype", p.dtype, (torch.bfloat16, torch.float16, torch.float32))


def hessian(
    hessians: Sequence[Tensor],
    grads: Sequence[Tensor],
    probes: Sequence[Tensor],
    hessian_scales: Sequence[Tensor],
    inv_scale: Tensor | None,
    found_inf: Tensor | None,
    streams: Sequence[int],
) -> bool:
    """Raises where something does not fit; True if all tensors are known to be contiguous."""
    zo._pairs("streams", streams, hessians)
    _number("inv_scale", inv_scale, hessians[0])
    _number("found_inf", found_inf, hessians[0])
    if _is_usual_hessian(hessians, grads, probes, hessian_scales):
        return True
    for i, h in enumerate(hessians):
        allowed = (torch.float32, torch.float64, torch.bfloat16, torch.uint8)
        _checks.dtype(f"hessians[{i}].dtype", h.dtype, allowed)
        if h.device != hessians[0].device:
            _checks.fail(
                ValueError, f"hessians[{i}]", f"device {hessians[0].device} as hessians[0]", h.device
            )
    wide = [_wide(h) for h in hessians]
    narrow = [[w if w == torch.float64 else d for w in wide] for d in (torch.bfloat16, torch.float16)]
    _match("grads", grads, hessians, "hessians", wide, *narrow)
    if probes:
        _match("probes", probes, grads, "grads", [g.dtype for g in grads])
    _eight_bit("hessian_scales", hessian_scales, hessians)
    written = {"hessians": hessians, "hessian_scales": hessian_scales}
    _checks.memory(**written)
    _apart("grads", grads, written)
    _apart("probes", probes, written)
    return False


def _apart(name: str, sources: Sequence[Tensor], written: dict[str, Sequence[Tensor]]) -> None:
    """No source shares memory with what is written (sources may share theirs)."""
    listed = (
        (f"{of}[{i}]", t) for of, tensors in written.items() for i, t in enumerate(tensors) if t.numel()
    )
    spans = sorted((*_checks._span(t), where) for where, t in listed)
    starts = [span[:1] for span in spans]
    ends = list(accumulate((end for _, end, _ in spans), max))
    for k, source in enumerate(sources):
        if source.numel() == 0:
            continue
        start, end = _checks._span(source)
        for at in range(bisect_left(starts, (end,)) - 1, -1, -1):
            if ends[at] <= start:
                break
            if spans[at][1] > start:
                got = f"memory shared with {spans[at][2]}"
                _checks.fail(ValueError, f"{name}[{k}]", "memory of its own", got)


def all_finite(
    grads: Sequence[Tensor],
    inv_scale: Tensor | None,
    found_inf: Tensor | None,
    names: Sequence[str] | None = None,
) -> None:
    """RuntimeError naming the first gradient that is not finite once scaled. Waits for the device."""
    if found_inf is not None and bool(found_inf != 0):
        return
    for i, grad in enumerate(grads):
        for piece in grad.detach().reshape(-1).split(1 << 20):
            scaled = piece if inv_scale is None else piece.to(_wide(piece)) * inv_scale.to(_wide(piece))
            bad = int((~torch.isfinite(scaled)).sum())
            if bad:
                name = f"grads[{i}]" if names is None else names[i]
                got = f"{bad} that are not (of {grad.numel()})"
                _checks.fail(RuntimeError, name, "finite gradients", got)


Dense = Callable[[Sequence[Tensor]], list[Tensor]]


@contextmanager
def contiguous(written: Sequence[Tensor], known: bool = False) -> Iterator[Dense]:
    """A function that gives contiguous stand-ins; those of `written` are copied back at the end.

    known: all tensors are contiguous.
    """
    if known:
        yield list
        return
    copies = {id(t): t.contiguous() for t in written if not t.is_contiguous()}
    yield lambda tensors: [t if t.is_contiguous() else copies.get(id(t), t.contiguous()) for t in tensors]
    if copies:
        for t in written:
            if id(t) in copies:
                t.copy_(copies[id(t)])
