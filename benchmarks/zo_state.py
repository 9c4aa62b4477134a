"""Zeroth-order updates with masks and states, and the replay of a log.

The peer "torch" is what the papers' code does: draw z for each tensor in its dtype, make a gradient of it,
call the arithmetic of torch.optim. Its random numbers are other ones, so mean and size of the change are
compared; the replay's peer is ours pass by pass, and must agree to the bit.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from .harness import Case, Side, Work, Workload
from .shapes import OPT_125M, OPT_TINY, opt_parameters
from .zo import EPS, LR, PROJECTED_GRAD, SEED, Shapes, Weights, _backend, _same_bits, _version

RATIO = 0.5
REPLAYED = 32
EXPRESSION = "expression of the papers' code on torch {}"


def _tensors(like: list[torch.Tensor], value: float = 0.0) -> list[torch.Tensor]:
    return [torch.full_like(t, value) for t in like]


def _terms() -> list[Any]:
    from tenfold.ops import Term

    return [Term(SEED, 0, PROJECTED_GRAD)]


class Stateful:
    """Weights and two states, put back to their first values before every sample."""

    def __init__(self, shapes: Shapes, device: torch.device, states: int, start: float = 0.0) -> None:
        self.weights = Weights(shapes, torch.float32, device)
        self.states = [_tensors(self.weights.tensors, start) for _ in range(states)]
        self.start = start

    def reset(self) -> None:
        self.weights.reset()
        for state in self.states:
            for tensor in state:
                tensor.fill_(self.start)


# -- ours --------------------------------------------------------------------------------------------------


def _momentum(s: Stateful) -> None:
    from tenfold.ops import zo_momentum_

    w = s.weights
    zo_momentum_(w.tensors, s.states[0], w.streams, _terms(), lr=LR, momentum=0.9, first=False)


def _adam(variant: str, s: Stateful) -> None:
    from tenfold.ops import zo_adam_

    w = s.weights
    zo_adam_(w.tensors, s.states[0], s.states[1], w.streams, _terms(), lr=LR, step=1, variant=variant)


def _sign(s: Stateful) -> None:
    from tenfold.ops import zo_sign_

    zo_sign_(s.weights.tensors, s.weights.streams, _terms(), lr=LR)


def _hizoo(s: Stateful) -> None:
    from tenfold.ops import zo_hizoo_update_

    w = s.weights
    zo_hizoo_update_(w.tensors, s.states[0], w.streams, _terms(), [0.7], lr=LR, smoothing=1e-6)


def _masked(kind: str, s: Stateful) -> None:
    from tenfold.ops import MagnitudeMask, RandomMask, zo_perturb_

    mask = RandomMask(SEED + 1, 0, RATIO) if kind == "random" else MagnitudeMask(0.0135)
    zo_perturb_(s.weights.tensors, s.weights.streams, SEED, 0, EPS, mask=mask)


# -- theirs ------------------------------------------------------------------------------------------------


def _draw(t: torch.Tensor) -> torch.Tensor:
    return torch.normal(mean=0, std=1, size=t.size(), device=t.device, dtype=t.dtype)


def _torch_momentum(s: Stateful) -> None:
    torch.manual_seed(SEED)
    for p, m in zip(s.weights.tensors, s.states[0], strict=True):
        gradient = PROJECTED_GRAD * _draw(p)
        m.mul_(0.9).add_(gradient)
        p.add_(m, alpha=-LR)


def _torch_adam(variant: str, s: Stateful) -> None:
    torch.manual_seed(SEED)
    for p, m, v in zip(s.weights.tensors, s.states[0], s.states[1], strict=True):
        gradient = PROJECTED_GRAD * _draw(p)
        m.lerp_(gradient, 0.1)
        square = m if variant == "radazo" else gradient
        v.mul_(0.999).addcmul_(square, square, value=0.001)
        denominator = (v.sqrt() / (1 - 0.999) ** 0.5).add_(1e-8)
        p.addcdiv_(m, denominator, value=-LR / (1 - 0.9))


def _torch_sign(s: Stateful) -> None:
    torch.manual_seed(SEED)
    for p in s.weights.tensors:
        p.add_(torch.sign(PROJECTED_GRAD * _draw(p)), alpha=-LR)


def _torch_hizoo(s: Stateful) -> None:
    torch.manual_seed(SEED)
    for p, h in zip(s.weights.tensors, s.states[0], strict=True):
        z = _draw(p)
        h.copy_((1 - 1e-6) * h + 1e-6 * 0.7 * h * z * z)
        p.sub_(LR * PROJECTED_GRAD * z / torch.sqrt(h))


def _torch_masked(kind: str, s: Stateful) -> None:
    torch.manual_seed(SEED)
    for p in s.weights.tensors:
        z = _draw(p)
        keep = torch.rand_like(p) >= RATIO if kind == "random" else p.abs() <= 0.0135
        p.data.add_(z * keep, alpha=EPS)


def _case(
    ours: Callable[[Stateful], None],
    theirs: Callable[[Stateful], None],
    op: str,
    states: int,
    start: float,
    note: str,
    device: torch.device,
    tiny: bool,
) -> Workload:
    s = Stateful(opt_parameters(**(OPT_TINY if tiny else OPT_125M)), device, states, start)
    w = s.weights
    return Workload(
        ours=Side(
            "tenfold",
            partial(ours, s),
            version=_version(),
            kind="ours",
            backend=partial(_backend, op, device),
        ),
        others=[
            Side(
                "torch",
                partial(theirs, s),
                version=EXPRESSION.format(torch.__version__),
                # a step of 1e-6 on weights of 1 rounds by 6e-8
                agree=partial(w.same_change, 2e-2),
            ),
        ],
        work=Work(bytes=(2.0 + 2.0 * states) * w.bytes, normals=float(w.count)),
        reset=s.reset,
        keep=w.copies,
        note=note,
    )


# -- replay ------------------------------------------------------------------------------------------------


def _replay(device: torch.device, tiny: bool) -> Workload:
    from tenfold.ops import ReplayPass, Term, zo_chain_, zo_replay_

    w = Weights(opt_parameters(**(OPT_TINY if tiny else OPT_125M)), torch.float32, device)
    passes = [ReplayPass([Term(SEED + t, 0, 1e-6 * (t - 7))]) for t in range(REPLAYED)]

    def one_by_one() -> None:
        for step in passes:
            zo_chain_(w.tensors, w.streams, step.terms)

    return Workload(
        ours=Side(
            "tenfold",
            lambda: zo_replay_(w.tensors, w.streams, passes),
            version=_version(),
            kind="ours",
            backend=partial(_backend, "zo_replay_", device),
        ),
        others=[Side("tenfold, pass by pass", one_by_one, version=_version(), agree=_same_bits)],
        work=Work(bytes=2.0 * w.bytes, normals=float(REPLAYED) * w.count),
        reset=w.reset,
        keep=w.copies,
        note=f"{REPLAYED} recorded updates; ours reads and writes the weights once",
    )


def cases() -> list[Case]:
    """Cases of the zo family beside those of benchmarks/zo.py."""
    plain = "one update of all weights on a regenerated gradient"
    listed: list[tuple[str, Any, Any, str, int, float, str]] = [
        ("momentum", _momentum, _torch_momentum, "zo_momentum_", 1, 0.0, plain),
        ("adam", partial(_adam, "adam"), partial(_torch_adam, "adam"), "zo_adam_", 2, 0.0, plain),
        ("radazo", partial(_adam, "radazo"), partial(_torch_adam, "radazo"), "zo_adam_", 2, 0.0, plain),
        ("sign", _sign, _torch_sign, "zo_sign_", 0, 0.0, plain),
        ("hizoo", _hizoo, _torch_hizoo, "zo_hizoo_update_", 1, 1.0, plain),
    ]
    masked = "one perturbation of the weights that a mask leaves, about half of them"
    listed += [
        (f"mask.{kind}", partial(_masked, kind), partial(_torch_masked, kind), "zo_chain_", 0, 0.0, masked)
        for kind in ("random", "magnitude")
    ]
    found = [
        Case(f"zo.{name}.f32.opt125m", partial(_case, ours, theirs, op, states, start, note))
        for name, ours, theirs, op, states, start, note in listed
    ]
    return [*found, Case(f"zo.replay{REPLAYED}.f32.opt125m", _replay)]
