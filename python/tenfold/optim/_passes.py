"""Steps that are sums of directions, taken down as passes over the weights and made many at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tenfold import _checks

from ._log import LoggedStep
from ._options import RandomSparsity
from ._walk import Cell, Place, Walk

if TYPE_CHECKING:
    from ._base import ZerothOrder

_MAX_TERMS = 64  # directions in one pass
_CHUNK = 1 << 16  # passes in one call: what they are made of stays below 100 MB
Mask = Any  # tenfold.ops.RandomMask


@dataclass(frozen=True, eq=False)
class Pass:
    """theta = decay * theta + sum_i coefs[i] * z(seed, i), rounded with these bits."""

    step: int
    seed: int
    coefs: dict[int, float]
    decay: float
    rounding_seed: int | None
    mask: Mask | None


@dataclass
class Tape:
    """All passes of some steps, by what tensors they are over.

    Attributes:
        passes: of each tensor, in order.
        alike: a number that is the same for tensors with the same passes.
    """

    dist: str
    z_round: torch.dtype | None
    rounding: str
    params: dict[Tensor, int] = field(default_factory=dict)  # the stream of each
    passes: dict[Tensor, list[Pass]] = field(default_factory=dict)
    alike: dict[Tensor, int] = field(default_factory=dict)
    _followed_by: dict[tuple[int, int], int] = field(default_factory=dict)
    count: int = 0

    def add(self, params: Sequence[Tensor], streams: Sequence[int], one: Pass) -> None:
        for p, stream in zip(params, streams, strict=True):
            self.params[p] = stream
            self.passes.setdefault(p, []).append(one)
            key = self.alike.get(p, 0), self.count
            self.alike[p] = self._followed_by.setdefault(key, len(self._followed_by) + 1)
        self.count += 1

    def batches(self) -> Iterator[tuple[list[Tensor], list[int], list[Pass]]]:
        """Tensors with the same passes and device, their streams, and the passes."""
        found: dict[Any, list[Tensor]] = {}
        for p, number in self.alike.items():
            found.setdefault((number, p.device), []).append(p)
        for params in found.values():
            yield [p.detach() for p in params], [self.params[p] for p in params], self.passes[params[0]]


def is_chain(optimizer: ZerothOrder) -> bool:
    """Whether every step of the optimizer is passes that depend on scalars only, not on weights or state."""
    from ._base import ZerothOrder
    from .conservative import ZOSGDConservative
    from .sgd import ZOSGDSign

    kind, mask = type(optimizer), optimizer.mask
    if optimizer._sharded:
        return False
    if mask is not None and not (isinstance(mask, RandomSparsity) and mask.scope == "tensor"):
        return False
    if kind._mover is not ZerothOrder._mover or kind._kind is not ZerothOrder._kind:
        return False
    if kind._prepare is not ZerothOrder._prepare:
        return False
    if isinstance(optimizer, ZOSGDSign):
        return optimizer.mode == "scalar" and optimizer.compat != "zo-llm"
    applied = kind._apply is ZerothOrder._apply or kind._apply is ZOSGDConservative._apply
    return applied and kind._update is ZerothOrder._update


def advance(optimizer: ZerothOrder, steps: Sequence[LoggedStep]) -> None:
    """Make these steps with the optimizer, whose next one is the first of them."""
    if not is_chain(optimizer):
        for step in steps:
            optimizer.replay_step(step.scalars, step.lrs, step.eps)
        return
    at = 0
    while at < len(steps):
        tape, at = record(optimizer, steps, at, _CHUNK)
        play(tape)


@torch.no_grad()
def play(tape: Tape) -> None:
    """Make the passes: one read and write of each tensor."""
    from tenfold.ops import ReplayPass, Term, zo_replay_

    known: dict[int, Any] = {}

    def replayed(one: Pass) -> list[Any]:
        if id(one) not in known:
            known[id(one)] = [
                ReplayPass(
                    [Term(one.seed, i, c, tape.dist) for i, c in part], decay, one.rounding_seed, one.mask
                )
                for part, decay in _parts(one.coefs, one.decay)
            ]
        return known[id(one)]

    options: dict[str, Any] = {"z_round": tape.z_round, "out_rounding": tape.rounding}
    for params, streams, passes in tape.batches():
        zo_replay_(params, streams, [r for one in passes for r in replayed(one)], **options)


def _parts(coefs: dict[int, float], decay: float) -> Iterator[tuple[list[tuple[int, float]], float]]:
    """A pass in pieces that fit one chain, as `Walk.write` makes them."""
    items = list(coefs.items()) or [(0, 0.0)]
    for at in range(0, len(items), _MAX_TERMS):
        yield items[at : at + _MAX_TERMS], decay if at == 0 else 1.0


# -- taking down ----------------------------------------------------------------------------------------


def record(optimizer: ZerothOrder, steps: Sequence[LoggedStep], at: int, limit: int) -> tuple[Tape, int]:
    """Let the optimizer make steps[at:], up to about `limit` passes, without writing a weight.

    Returns the passes, and the index of the first step that is not among them. The counters of the optimizer
    go on; they are set back if something fails.
    """
    if optimizer._sharded:
        _checks.fail(ValueError, "optimizer", "one whose parameters are not sharded", "DTensors")
    dist = "gaussian" if optimizer.dist == "sphere" else optimizer.dist
    tape = Tape(dist, optimizer.z_round, optimizer.rounding)
    before = optimizer.num_steps, optimizer.num_skipped
    try:
        with _recording(optimizer, tape):
            while at < len(steps) and tape.count < limit:
                step = steps[at]
                optimizer.replay_step(step.scalars, step.lrs, step.eps)
                at += 1
    except BaseException:
        optimizer.num_steps, optimizer.num_skipped = before
        raise
    return tape, at


@contextmanager
def _recording(optimizer: ZerothOrder, tape: Tape) -> Iterator[None]:
    """While active, the walks of the optimizer write to the tape."""
    walk_of = optimizer._walk

    def recorded(**options: Any) -> Walk:
        walk = walk_of(**options)

        def write(
            cells: list[Cell],
            way: Place,
            params: list[Tensor],
            sources: list[Tensor] | None,
            rounding: dict[str, Any],
        ) -> None:
            if way.coefs or way.decay != 1.0:
                streams = [s for cell in cells for s in cell.streams]
                mask = _one_mask(cells)
                seed = rounding["rounding_seed"]
                tape.add(params, streams, Pass(optimizer.num_steps, walk.seed, *way, seed, mask))

        walk.write = write  # type: ignore[method-assign]
        return walk

    optimizer._walk = recorded  # type: ignore[method-assign]
    try:
        yield
    finally:
        del optimizer._walk


def _one_mask(cells: Sequence[Cell]) -> Mask | None:
    """The random mask of the cells, whose ratio is the same for all tensors."""
    mask = cells[0].mask
    if mask is None:
        return None
    ratios = {r for cell in cells for r in cell.mask.ratio}  # type: ignore[union-attr]
    if len(ratios) != 1:
        raise AssertionError("a mask with several ratios depends on the weights")
    return mask._replace(ratio=ratios.pop())


# -- steps as a whole, without their probes ---------------------------------------------------------------


def _net(passes: Iterable[Pass]) -> list[Pass]:
    """One pass for each step: what its passes come to, where nothing is rounded."""
    steps: dict[tuple[int, Mask], Pass] = {}
    for one in passes:
        key = one.step, one.mask
        if key in steps:
            last = steps[key]
            coefs = {i: one.decay * c for i, c in last.coefs.items()}
            for i, c in one.coefs.items():
                coefs[i] = coefs.get(i, 0.0) + c
            one = Pass(one.step, one.seed, coefs, one.decay * last.decay, one.rounding_seed, one.mask)
        steps[key] = one
    return list(steps.values())


@torch.no_grad()
def undo(optimizer: ZerothOrder, steps: Sequence[LoggedStep]) -> None:
    """From the weights after these steps to those before, up to rounding; the latest first."""
    tape, done = record(optimizer, steps, 0, 1 << 62)
    assert done == len(steps)
    for params, streams, passes in tape.batches():
        _chain(tape, params, streams, (_inverse(one) for one in reversed(_net(passes))))


def _inverse(one: Pass) -> Pass:
    coefs = {i: -c / one.decay for i, c in one.coefs.items()}
    return Pass(one.step, one.seed, coefs, 1.0 / one.decay, one.rounding_seed, one.mask)


def _chain(tape: Tape, params: list[Tensor], streams: list[int], passes: Iterable[Pass]) -> None:
    """Make the passes one after the other, as many at a time as one chain takes: one rounding for all."""
    from tenfold.ops import Term, zo_chain_

    waiting: list[Term] = []
    decay, last = 1.0, None

    def flush() -> None:
        if last is None or not (waiting or decay != 1.0):
            return
        masked = {} if last.mask is None else {"mask": last.mask}
        zo_chain_(
            params,
            streams,
            waiting or [Term(last.seed, 0, 0.0, tape.dist)],
            decay=decay,
            z_round=tape.z_round,
            out_rounding=tape.rounding,
            rounding_seed=last.rounding_seed,
            **masked,
        )

    for one in passes:
        for part, factor in _parts(one.coefs, one.decay):
            if last is not None and (one.mask != last.mask or len(waiting) + len(part) > _MAX_TERMS):
                flush()
                waiting, decay = [], 1.0
            waiting = [term._replace(coef=term.coef * factor) for term in waiting]
            waiting += [Term(one.seed, i, c, tape.dist) for i, c in part]
            decay *= factor
            last = one
    flush()


@torch.no_grad()
def average(runs: Sequence[tuple[ZerothOrder, Sequence[LoggedStep]]]) -> None:
    """Add to the weights the mean of what each run adds to them."""
    for optimizer, steps in runs:
        tape, done = record(optimizer, steps, 0, 1 << 62)
        assert done == len(steps)
        for params, streams, passes in tape.batches():
            shares = (
                Pass(
                    one.step,
                    one.seed,
                    {i: c / len(runs) for i, c in one.coefs.items()},
                    1.0,
                    one.rounding_seed,
                    one.mask,
                )
                for one in _net(passes)
            )
            _chain(tape, params, streams, shares)
