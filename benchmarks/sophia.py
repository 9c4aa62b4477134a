"""Sophia steps on the weights of GPT-2 (124.4 million in 148 tensors), against what people run today.

Peers of the same update (the authors' SophiaG, SOUL's optimizer, SophiaH of pytorch_optimizer) must reach
our weights. AdamW is another update and there for its time: it is compared with its own formula.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from .harness import Agreement, Case, Side, Work, Workload, compare_values
from .installed import missing
from .shapes import GPT2_124M, GPT2_TINY, gpt2_parameters
from .zo import Weights, _backend, _version

LR, BETA1, BETA2, RHO, BATCH, DECAY, TINY_DENOMINATOR = 6e-4, 0.965, 0.99, 0.04, 5120, 0.1, 1e-15
LEGACY_BETA1, LEGACY_BETA2 = 0.9, 0.95
ADAM = (0.9, 0.999, 1e-8)
GRADIENT, HESSIAN = 1e-3, 1.7e-7
"""Size of the gradients, and the value of h: two thirds of the elements are not clipped in a first step."""
ROUNDED = 2e-7
"""Two roundings of a weight of 1 in float32."""
EXPRESSION = "expression of {}, torch {}"

Tensors = Sequence[torch.Tensor]


class Problem:
    """Weights, gradients and states, put back to their first values before every sample."""

    def __init__(self, device: torch.device, tiny: bool, dtype: torch.dtype = torch.float32) -> None:
        shapes = gpt2_parameters(**(GPT2_TINY if tiny else GPT2_124M))
        self.weights = Weights(shapes, dtype, device)
        self.params = self.weights.tensors
        generator = torch.Generator(device).manual_seed(7)
        for p in self.params:
            g = torch.empty(p.shape, device=device).normal_(0.0, GRADIENT, generator=generator)
            p.grad = g.to(dtype)
        self.grads = [p.grad for p in self.params if p.grad is not None]
        self.exp_avgs = [torch.zeros_like(p, dtype=torch.float32) for p in self.params]
        self.hessians = [torch.zeros_like(p, dtype=torch.float32) for p in self.params]
        self.optimizers: dict[str, Any] = {}
        self.scales: dict[str, list[torch.Tensor]] = {}
        self.codes: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])

    def with_codes(self) -> Problem:
        """States in 8 bits beside those in float32."""
        from tenfold.ops import sophia8_quantize

        self.reset()
        pairs = [
            [sophia8_quantize(t, kind) for t in tensors]
            for kind, tensors in (("exp_avg", self.exp_avgs), ("hessian", self.hessians))
        ]
        self.codes = ([c for c, _ in pairs[0]], [c for c, _ in pairs[1]])
        self.scales = {"exp_avg_scales": [s for _, s in pairs[0]], "hessian_scales": [s for _, s in pairs[1]]}
        return self

    def with_states_of_weights(self) -> Problem:
        """States in the dtype of the weights, as the authors' code makes them, beside those in float32."""
        self.own_exp_avgs = [torch.zeros_like(p) for p in self.params]
        self.own_hessians = [torch.full_like(p, HESSIAN) for p in self.params]
        return self

    def reset(self) -> None:
        self.weights.reset()
        for t in self.exp_avgs:
            t.zero_()
        for t in self.hessians:
            t.fill_(HESSIAN)
        if self.codes[0]:  # the code of zero, whatever the scale
            for t in (*self.codes[0], *self.scales["exp_avg_scales"]):
                t.zero_()
        for optimizer in self.optimizers.values():
            for state in optimizer.state.values():
                if "step" in state:
                    state["step"].zero_()


# -- ours --------------------------------------------------------------------------------------------------


def _step(p: Problem, **options: Any) -> None:
    from tenfold.ops import sophia_step_

    settings: dict[str, Any] = {"beta1": BETA1, "denom_scale": RHO * BATCH, "weight_decay": DECAY} | options
    states = settings.pop("states", (p.exp_avgs, p.hessians))
    sophia_step_(p.params, p.grads, *states, lr=LR, eps=TINY_DENOMINATOR, denom="add", **settings)


def _step8(p: Problem) -> None:
    _step(p, states=p.codes, **p.scales)


def _legacy(p: Problem) -> None:
    _step(p, beta1=LEGACY_BETA1**2, hessian_beta2=LEGACY_BETA2)


def _hessian(p: Problem) -> None:
    from tenfold.ops import sophia_hessian_

    sophia_hessian_(p.hessians, p.grads, beta2=BETA2)


# -- theirs ------------------------------------------------------------------------------------------------


def _move(p: torch.Tensor, m: torch.Tensor, h: torch.Tensor) -> None:
    ratio = (m.abs() / (RHO * BATCH * h + TINY_DENOMINATOR)).clamp(None, 1)
    p.addcmul_(m.sign(), ratio, value=-LR)


def _liuhong99(p: Problem, states: tuple[Tensors, Tensors] | None = None) -> None:
    for w, g, m, h in zip(p.params, p.grads, *(states or (p.exp_avgs, p.hessians)), strict=True):
        w.mul_(1 - LR * DECAY)
        m.mul_(BETA1).add_(g, alpha=1 - BETA1)
        _move(w, m, h)


def _liuhong99_narrow(p: Problem) -> None:
    for m in p.own_exp_avgs:
        m.zero_()
    _liuhong99(p, (p.own_exp_avgs, p.own_hessians))


def _liuhong99_hessian(p: Problem) -> None:
    for g, h in zip(p.grads, p.hessians, strict=True):
        h.mul_(BETA2).addcmul_(g, g, value=1 - BETA2)


def _soul(p: Problem) -> None:
    """Both averages when the Hessian is updated, which is in every step, and the first again in the step."""
    for g, m, h in zip(p.grads, p.exp_avgs, p.hessians, strict=True):
        m.mul_(LEGACY_BETA1).add_(g, alpha=1 - LEGACY_BETA1)
        h.mul_(LEGACY_BETA2).addcmul_(g, g, value=1 - LEGACY_BETA2)
    for w, g, m, h in zip(p.params, p.grads, p.exp_avgs, p.hessians, strict=True):
        w.mul_(1 - LR * DECAY)
        m.mul_(LEGACY_BETA1).add_(g, alpha=1 - LEGACY_BETA1)
        _move(w, m, h)


def _make_adamw(kind: str, p: Problem) -> None:
    """AdamW on the same weights, gradients and states, before its first step."""
    b1, b2, eps = ADAM
    made = torch.optim.AdamW(p.params, LR, (b1, b2), eps, weight_decay=DECAY, **{kind: True})
    for w, m, v in zip(p.params, p.exp_avgs, p.hessians, strict=True):
        step = torch.zeros((), device=w.device if kind == "fused" else "cpu")
        made.state[w] = {"step": step, "exp_avg": m, "exp_avg_sq": v}
    p.optimizers[kind] = made


def _make_sophiah(p: Problem) -> str | None:
    """SophiaH without a refresh of its Hessian; it clips at p and multiplies by lr, we clip at 1: lr / p."""
    why = missing("pytorch_optimizer")
    if why:
        return why
    from pytorch_optimizer import SophiaH

    clip = RHO * BATCH
    settings: dict[str, Any] = {"weight_decay": DECAY * clip, "p": clip, "update_period": 2**40}
    made = SophiaH(p.params, LR / clip, (BETA1, BETA2), **settings)
    made.param_groups[0]["step"] = 1  # it refreshes in the first step of a period
    for w, m, h in zip(p.params, p.exp_avgs, p.hessians, strict=True):
        made.state[w] = {"momentum": m, "hessian_moment": h}
    p.optimizers["sophiah"] = made
    return None


def _optimizer_step(name: str, p: Problem) -> None:
    p.optimizers[name].step()


# -- comparisons -------------------------------------------------------------------------------------------


def _same_weights(ours: Tensors, theirs: Tensors) -> Agreement:
    return compare_values(ours, theirs, ROUNDED)


def _same_rounded(p: Problem, ours: Tensors, theirs: Tensors) -> Agreement:
    """For bfloat16: they round weights after the decay and again after the step, and round their states."""
    worst = 0.0
    for a, b, first in zip(ours, theirs, p.weights.first, strict=True):
        unit = 2.0**-7 * (first.float().abs() + 2 * LR)
        worst = max(worst, ((a.float() - b.float()).abs() / unit).max().item())
    return Agreement(worst <= 2.0, worst, 2.0, "largest difference, in spacings of bfloat16")


def _is_adamw(p: Problem, _: Tensors, theirs: Tensors) -> Agreement:
    """Whether it is AdamW's first step; a figure about the peer alone, since its update is not ours."""
    b2, eps = ADAM[1:]
    worst = 0.0
    for first, g, got in zip(p.weights.first, p.grads, theirs, strict=True):
        v = g.square().mul_(1 - b2).add_(b2 * HESSIAN)
        v = v.div_(1 - b2).sqrt_().add_(eps)
        gap = (first * (1 - LR * DECAY)).addcdiv_(g, v, value=-LR).sub_(got).abs_().max().item()
        worst = max(worst, gap)
    how = "another update, there for its time: largest difference of its weights from AdamW's formula"
    return Agreement(worst <= ROUNDED, worst, ROUNDED, how)


# -- cases -------------------------------------------------------------------------------------------------


def _peer(name: str, run: Callable[[], None], agree: Any, source: str) -> Side:
    return Side(name, run, version=EXPRESSION.format(source, torch.__version__), agree=agree)


def _optimizer_peers(p: Problem) -> list[Side]:
    from importlib.metadata import PackageNotFoundError, version

    try:
        theirs = f"SophiaH of pytorch_optimizer {version('pytorch_optimizer')}"
    except PackageNotFoundError:
        theirs = "SophiaH of pytorch_optimizer"
    adamw = [
        Side(
            f"adamw_{kind}",
            partial(_optimizer_step, kind, p),
            version=f"torch {torch.__version__}",
            agree=partial(_is_adamw, p),
            prepare=partial(_make_adamw, kind, p),
        )
        for kind in ("fused", "foreach")
    ]
    sophiah = Side(
        "pytorch_optimizer",
        partial(_optimizer_step, "sophiah", p),
        version=theirs,
        agree=_same_weights,
        prepare=partial(_make_sophiah, p),
    )
    return [*adamw, _peer("liuhong99", partial(_liuhong99, p), _same_weights, "SophiaG"), sophiah]


def _workload(
    p: Problem, run: Callable[[Problem], None], others: list[Side], width: float, note: str, op: str
) -> Workload:
    """width: bytes to and from memory per weight."""
    device = p.params[0].device
    ours = Side(
        "tenfold", partial(run, p), version=_version(), kind="ours", backend=partial(_backend, op, device)
    )
    work = Work(bytes=width * p.weights.count)
    return Workload(ours, others, work, reset=p.reset, keep=p.weights.copies, note=note)


def _f32(device: torch.device, tiny: bool) -> Workload:
    p = Problem(device, tiny)
    note = "one step of all weights; AdamW is another update and there for its time"
    return _workload(p, _step, _optimizer_peers(p), 24, note, "sophia_step_")


def _bf16(device: torch.device, tiny: bool) -> Workload:
    p = Problem(device, tiny, torch.bfloat16).with_states_of_weights()
    agree = partial(_same_rounded, p)
    others = [_peer("liuhong99", partial(_liuhong99_narrow, p), agree, "SophiaG with states in bfloat16")]
    note = "weights and gradients in bfloat16, our states in float32"
    return _workload(p, _step, others, 18, note, "sophia_step_")


def _8bit(device: torch.device, tiny: bool) -> Workload:
    p = Problem(device, tiny).with_codes()
    others = [
        Side("tenfold, float32 states", partial(_step, p), version=_version(), agree=_same_weights),
        _peer("liuhong99", partial(_liuhong99, p), _same_weights, "SophiaG with states in float32"),
    ]
    note = "both states in 8 bits with a float32 scale for 256 of them"
    return _workload(p, _step8, others, 8 + 4 + 2 + 1 + 3 * 4 / 256, note, "sophia_step_")


def _refresh(device: torch.device, tiny: bool) -> Workload:
    p = Problem(device, tiny)

    def same(ours: Tensors, theirs: Tensors) -> Agreement:
        return compare_values(ours, theirs, 1e-6 * HESSIAN)

    others = [_peer("liuhong99", partial(_liuhong99_hessian, p), same, "SophiaG's update_hessian")]
    found = _workload(p, _hessian, others, 12, "h from the squares of a gradient", "sophia_hessian_")
    found.keep = lambda _: [h.clone() for h in p.hessians]
    return found


def _soul_step(device: torch.device, tiny: bool) -> Workload:
    p = Problem(device, tiny)
    others = [_peer("soul", partial(_soul, p), _same_weights, "SOUL's optimizer")]
    note = "h from every gradient and m averaged twice, in one pass"
    return _workload(p, _legacy, others, 28, note, "sophia_step_")


def cases() -> list[Case]:
    """All cases of the family."""
    built = {
        "step.f32": _f32,
        "step.bf16": _bf16,
        "step.8bit": _8bit,
        "hessian.f32": _refresh,
        "legacy.f32": _soul_step,
    }
    return [Case(f"sophia.{name}.124m", build) for name, build in built.items()]
