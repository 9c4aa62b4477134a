"""The passes of `Sophia` over its parameters: a few calls of the ops per group."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from tenfold import _checks

from . import _sophia_state
from ._sophia_options import HALF, MODES, denominator_scale, is_dtensor, param_name
from ._sophia_state import local

if TYPE_CHECKING:
    from ._sophia_stats import Stats
    from .sophia import Sophia


class Entry(NamedTuple):
    """One parameter with a gradient: this rank's parts, and its number in the optimizer."""

    param: Tensor
    grad: Tensor
    state: dict[str, Any]
    stream: int
    place: int
    """Its place among the parameters of its group."""

    def part(self, name: str) -> Tensor:
        return local(self.state[name])


class Bucket(NamedTuple):
    """Parameters of one group that share device and dtypes: one call of an op."""

    group: dict[str, Any]
    entries: list[Entry]

    @property
    def device(self) -> torch.device:
        return self.entries[0].param.device

    @property
    def dtype(self) -> torch.dtype:
        return self.entries[0].param.dtype

    def states(self, name: str) -> list[Tensor]:
        return [entry.part(name) for entry in self.entries]

    def maybe(self, name: str) -> list[Tensor] | None:
        return self.states(name) if name in self.entries[0].state else None


class Buckets:
    """All parameters that have a gradient, checked, with states."""

    def __init__(self, optimizer: Sophia, grad_scale: Tensor | None, found_inf: Tensor | None) -> None:
        self.optimizer = optimizer
        self.grad_scale = grad_scale
        self.found_inf = found_inf
        self._on_device: dict[tuple[str, torch.device], Tensor] = {}
        self._list = list(self._collect())

    @property
    def any(self) -> bool:
        return bool(self._list)

    def __iter__(self) -> Iterator[Bucket]:
        return iter(self._list)

    def _collect(self) -> Iterator[Bucket]:
        """Checks come first, for all groups: nothing is made or written if one fails."""
        found: list[tuple[dict[str, Any], list[tuple[Tensor, Tensor, int, int]]]] = []
        stream = 0
        for group in self.optimizer.param_groups:
            present = []
            for i, p in enumerate(group["params"]):
                if p.grad is not None:
                    present.append((p, _grad(group, i, p), stream + i, i))
            stream += len(group["params"])
            found.append((group, present))
        for group, present in found:
            alike: dict[Any, list[Entry]] = {}
            for p, g, number, i in present:
                entry = Entry(local(p.detach()), g, _sophia_state.ensure(self.optimizer, p), number, i)
                alike.setdefault((g.device, p.dtype, g.dtype), []).append(entry)
            yield from (Bucket(group, entries) for entries in alike.values())

    def inv_scale(self, device: torch.device) -> Tensor | None:
        return None if self.grad_scale is None else self._scalar("inv", self.grad_scale, device)

    def overflow(self, device: torch.device) -> Tensor | None:
        return None if self.found_inf is None else self._scalar("inf", self.found_inf, device)

    def _scalar(self, name: str, value: Tensor, device: torch.device) -> Tensor:
        if (name, device) not in self._on_device:
            wide = value.detach().to(device, torch.float64, non_blocking=True)
            wide = wide.reciprocal() if name == "inv" else wide
            self._on_device[name, device] = wide.to(torch.float32).reshape(1)
        return self._on_device[name, device]

    def expect_finite(self) -> None:
        """RuntimeError naming the first gradient that is not finite, before any bucket is stepped."""
        from tenfold.ops._sophia_checks import all_finite

        for bucket in self._list:
            grads = [entry.grad for entry in bucket.entries]
            names = [f"{param_name(bucket.group, entry.place)}.grad" for entry in bucket.entries]
            all_finite(grads, self.inv_scale(bucket.device), self.overflow(bucket.device), names)

    def step(self, bs: float | None, stats: Stats | None) -> None:
        for bucket in self._list:
            self._step(bucket, bs, stats)
        self._count_steps()

    def _step(self, bucket: Bucket, bs: float | None, stats: Stats | None) -> None:
        from tenfold.ops import sophia_step_

        optimizer, group = self.optimizer, bucket.group
        mode = MODES[optimizer.mode]
        beta1, beta2 = group["betas"]
        legacy = mode.refresh == "step"
        half = bucket.dtype in HALF
        rounding = optimizer.rounding if half else "nearest"
        masters = bucket.maybe("master")
        lossy = half and rounding == "nearest" and masters is None
        counts = None if stats is None else stats.of(bucket.device, lossy)
        sophia_step_(
            [entry.param for entry in bucket.entries],
            [entry.grad for entry in bucket.entries],
            bucket.states("exp_avg"),
            bucket.maybe("hessian"),
            lr=float(group["lr"]),
            beta1=beta1 * beta1 if legacy else beta1,  # the code of SOUL averages twice in a step
            denom_scale=denominator_scale(group, optimizer.mode, bs),
            weight_decay=float(group["weight_decay"]),
            eps=float(group["eps"]),
            denom=mode.denom,
            hessian_beta2=beta2 if legacy else None,
            maximize=group["maximize"],
            inv_scale=self.inv_scale(bucket.device),
            found_inf=self.overflow(bucket.device),
            masters=masters,
            compensations=bucket.maybe("compensation") if rounding == "kahan" else None,
            exp_avg_scales=bucket.maybe("exp_avg_scale"),
            hessian_scales=bucket.maybe("hessian_scale"),
            rounding=rounding,
            seed=optimizer.seed,
            step=optimizer.num_updates % _sophia_state.COUNTER,
            streams=[entry.stream for entry in bucket.entries],
            # "error" has looked at every bucket before the first one is stepped
            nonfinite="propagate" if optimizer.nonfinite == "error" else optimizer.nonfinite,
            stats=counts,
        )

    def _count_steps(self) -> None:
        by_device: dict[torch.device, list[Tensor]] = {}
        for bucket in self._list:
            for entry in bucket.entries:
                by_device.setdefault(entry.state["step"].device, []).append(entry.state["step"])
        for device, steps in by_device.items():
            torch._foreach_add_(steps, 1.0)
            if self.found_inf is not None:  # a step that did not happen does not count
                skipped = self._scalar("inf", self.found_inf, device)[0].ne(0).to(torch.float32)
                torch._foreach_sub_(steps, [skipped] * len(steps))

    def refresh(self, scale: float, found_inf: Tensor | None = None) -> None:
        """h <- beta2 h + (1 - beta2) scale g^2."""
        from tenfold.ops import sophia_hessian_

        for bucket in self._list:
            overflow = self.overflow(bucket.device)
            if found_inf is not None:
                overflow = found_inf.to(bucket.device, torch.float32).reshape(1)
            sophia_hessian_(
                bucket.states("hessian"),
                [entry.grad for entry in bucket.entries],
                beta2=bucket.group["betas"][1],
                scale=scale,
                inv_scale=self.inv_scale(bucket.device),
                found_inf=overflow,
                hessian_scales=bucket.maybe("hessian_scale"),
                **_sophia_state.rounding_of(self.optimizer, [entry.stream for entry in bucket.entries]),
            )


def _grad(group: dict[str, Any], i: int, p: Tensor) -> Tensor:
    """This rank's part of the gradient of parameter i."""
    g = p.grad
    assert g is not None
    if type(g) is Tensor and g.layout is torch.strided and g.shape == p.shape and g.dtype is p.dtype:
        return g.detach() if g.requires_grad else g
    name = param_name(group, i)
    if g.layout != torch.strided:
        _checks.fail(TypeError, f"{name}.grad", "a dense (strided) gradient", g.layout)
    if g.shape != p.shape:
        _checks.fail(ValueError, f"{name}.grad", f"shape {tuple(p.shape)}", tuple(g.shape))
    if g.dtype not in _checks.FLOAT_DTYPES:
        _checks.fail(TypeError, f"{name}.grad", "a floating-point gradient", g.dtype)
    if is_dtensor(p) and is_dtensor(g) and g.placements != p.placements:  # type: ignore[attr-defined]
        g = g.redistribute(placements=p.placements)  # type: ignore[attr-defined]
    return local(g.detach())


def amp_of(optimizer: Sophia, amp: dict[str, Any]) -> tuple[Tensor | None, Tensor | None]:
    """(scale on the gradients, whether one of them overflowed) from a GradScaler, or None.

    GradScaler.step sets both as attributes of the optimizer.  A scaler given by hand is asked.
    """
    unknown = set(amp) - {"grad_scaler"}
    if unknown:
        _checks.fail(TypeError, "step", "closure, bs and grad_scaler", ", ".join(sorted(unknown)))
    scaler = amp.get("grad_scaler")
    if scaler is None:
        return getattr(optimizer, "grad_scale", None), getattr(optimizer, "found_inf", None)
    if not scaler.is_enabled():
        return None, None
    state = scaler._per_optimizer_states[id(optimizer)]
    unscaled = state["stage"].name == "UNSCALED"
    if not unscaled:
        scaler._check_scale_growth_tracker("step")
        scaler._check_inf_per_device(optimizer)
    found = list(state["found_inf_per_device"].values())
    if not found:
        return None, None
    total = sum((f.to(found[0].device) for f in found[1:]), found[0])
    return None if unscaled else scaler._get_scale_async(), total
