"""Moving the weights through the probes of one step, and always knowing the way back."""

from __future__ import annotations

import dataclasses
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tenfold.ops import Term, zo_chain_, zo_perturb_

from ._masks import Mask, joined, only
from ._seeds import splitmix64
from ._shards import local, locals_of

_MAX_TERMS = 64  # directions that one zo_chain_ call holds
Coefs = dict[int, float]  # query index -> coefficient of its direction
# Writes decay*source + sum_i coefs[i]*z_i for cells whose directions are no plain z:
# mover(walk, cell, params, sources or None, coefs, decay, rounding options)
Mover = Callable[["Walk", "Cell", "list[Tensor]", "list[Tensor] | None", Coefs, float, dict[str, Any]], None]


class Place(NamedTuple):
    """Where weights stand: at decay*clean + sum_i coefs[i] * z_i."""

    coefs: Coefs
    decay: float = 1.0


CLEAN = Place({})


@dataclass(eq=False)
class Cell:
    """Parameters that always move together: one group, device and block, one kind of direction.

    `place` says where the live weights are, `rest` where they wait while another block is probed. Of sharded
    parameters, `tensors` are the parts that are here, and `firsts` where those begin in their streams.
    """

    group: dict[str, Any]
    device: torch.device
    decays: bool
    block: int = 0
    kind: str = "plain"
    params: list[Tensor] = field(default_factory=list)
    streams: list[int] = field(default_factory=list)
    firsts: list[int] = field(default_factory=list)
    mask: Mask | None = None
    mover: Mover | None = None
    place: Place = CLEAN
    rest: Place = CLEAN
    written: bool = False  # in this step
    lr_scale: float = 1.0

    @property
    def eps(self) -> float:
        return float(self.group["eps"])

    @property
    def lr(self) -> float:
        return float(self.group["lr"]) * self.lr_scale

    @property
    def weight_decay(self) -> float:
        return float(self.group["weight_decay"]) if self.decays else 0.0

    @property
    def decay(self) -> float:
        """The factor of an update on the weights."""
        return 1.0 - self.lr * self.weight_decay

    def tensors(self) -> list[Tensor]:
        """What passes write."""
        return locals_of(self.params)

    def only(self, k: int) -> Cell:
        """The part of the cell that is its parameter number k."""
        params, streams, firsts = [self.params[k]], [self.streams[k]], [self.firsts[k]]
        return dataclasses.replace(
            self, params=params, streams=streams, firsts=firsts, mask=only(self.mask, k)
        )


@contextmanager
def interrupts_deferred() -> Iterator[None]:
    """Hold back Ctrl-C until a pass and its bookkeeping are both done, so that the way back stays known."""
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    held: list[tuple[Any, Any]] = []
    signal.signal(signal.SIGINT, lambda number, frame: held.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if held:
            handler(*held[0])


def _plus(a: Coefs, scale: float, b: Coefs) -> Coefs:
    """a + scale*b in the order of the query index, without the directions that cancel."""
    total = {i: a.get(i, 0.0) + scale * b.get(i, 0.0) for i in sorted({*a, *b})}
    return {i: c for i, c in total.items() if c != 0.0}


class Walk:
    """The passes of one step over all cells.

    Three ways. "arithmetic": a place is reached from the live weights, by the difference to where they are:
    no extra memory, one rounding per pass.  With `clean`, copies of the trainable tensors, it is written from
    the copies.  With `dual` nothing is written before the end: `probing` makes the closure see the place.

    Attributes:
        passes: how often the weights were written.
        turn: how many places were stood at, written or not: the number of a pass in the rounding bits, the
            same for `clean` and `dual`.
        losses: what the closure returned so far.
    """

    def __init__(
        self,
        cells: list[Cell],
        seed: int,
        *,
        dist: str,
        rounding: str,
        z_round: torch.dtype | None,
        clean: dict[Tensor, Tensor] | None = None,
        dual: bool = False,
        seconds: float = 0.0,
    ) -> None:
        self.cells = cells
        self.seed = seed
        self.seconds = seconds
        self.dist = "gaussian" if dist == "sphere" else dist
        self.dual = dual
        self.clean = clean
        self.rounding = rounding
        self.z_round = z_round
        self.passes = 0
        self.turn = 0
        self.losses: list[float] = []
        self.landed = False
        self.budget = -1  # evaluations left in a replay of a step that stopped; -1: all
        self.unit: Callable[[int, int], float] = lambda query, block: 1.0
        self.probing: Callable[[], AbstractContextManager[Any]] = nullcontext
        self.changed: Callable[[], None] = lambda: None  # called after weights were written

    @property
    def arithmetic(self) -> bool:
        return self.clean is None and not self.dual

    def to(self, target: Coefs, block: int | None = None) -> None:
        """Put every cell at clean + sum_i target[i] * eps * u_i, eps being its group's; {} is clean.

        With `block`, only the cells of that block; all others go to where they rest.
        """

        def aim(cell: Cell) -> Place:
            if block is not None and cell.block != block:
                return cell.rest
            return Place({i: f * cell.eps * self.unit(i, cell.block) for i, f in target.items()})

        self.stand(aim)

    def stand(self, aim: Callable[[Cell], Place]) -> None:
        """Put every cell at its place, or, in dual mode, let the closure see it there."""
        if self.dual:
            self.turn += 1
            for cell in self.cells:
                cell.place = aim(cell)
            return

        def change(cell: Cell) -> Place:
            return self._way(cell, aim(cell))

        with self.one_pass():
            self._move([cell for cell in self.cells if cell.place != aim(cell)], change, aim)

    def land(self, updates: dict[Cell, Coefs]) -> None:
        """Restore and update in one pass: theta = decay*clean + sum_i updates[cell][i] * z_i.

        For one two-sided query this is `tenfold.ops.zo_restore_update_`, bit for bit.
        """

        def change(cell: Cell) -> Place:
            return self._way(cell, Place(updates[cell], cell.decay))

        with self.one_pass():
            self._move(self.cells, change, lambda cell: CLEAN)
        self.landed = True

    def abort(self) -> None:
        """Back to the weights at the start of the step, if it did not land."""
        if self.landed:
            return
        if self.clean is None:
            self.stand(lambda cell: CLEAN)
            return
        with interrupts_deferred():
            for cell in self.cells:
                for param in cell.params if cell.written else ():
                    local(param).copy_(self.clean[param])
                cell.place = CLEAN
            self.changed()

    def _way(self, cell: Cell, target: Place) -> Place:
        """What to apply to the source, clean copy or live weights, to get to `target`."""
        if not self.arithmetic:
            return Place(_plus(target.coefs, 0.0, {}), target.decay)
        ratio = target.decay / cell.place.decay
        return Place(_plus(target.coefs, -ratio, cell.place.coefs), ratio)

    @contextmanager
    def one_pass(self) -> Iterator[None]:
        """Around everything that writes weights: one at a time, counted, timed, not to be interrupted."""
        started = perf_counter()
        with interrupts_deferred():
            yield
            self.changed()
            self.passes += 1
            self.turn += 1
        self.seconds += perf_counter() - started

    def rounding_options(self) -> dict[str, Any]:
        """How the ops round in the pass under way: each pass of a step draws random bits of its own."""
        own = splitmix64(self.seed, self.turn) if self.rounding == "sr" else None
        return {"out_rounding": self.rounding, "rounding_seed": own}

    def _move(
        self,
        cells: list[Cell],
        change: Callable[[Cell], Place],
        arrive: Callable[[Cell], Place],
    ) -> None:
        """Apply change(cell), one call for all plain cells of a device that need the same."""
        batches: dict[Any, tuple[list[Cell], Place]] = {}
        for cell in cells:
            way = change(cell)
            key = cell.device, cell.mover and id(cell), type(cell.mask), tuple(way.coefs.items()), way.decay
            batches.setdefault(key, ([], way))[0].append(cell)
        for batch, way in batches.values():
            params = [p for cell in batch for p in cell.params]
            sources = None if self.clean is None else [self.clean[p] for p in params]
            self.write(batch, way, [local(p) for p in params], sources, self.rounding_options())
            for cell in batch:
                cell.place = arrive(cell)
                cell.written = True

    def write(
        self,
        cells: list[Cell],
        way: Place,
        params: list[Tensor],
        sources: list[Tensor] | None,
        rounding: dict[str, Any],
    ) -> None:
        """params = decay*source + sum_i coefs[i] * z_i, sources None being the params themselves."""
        coefs, decay = way
        items = list(coefs.items())
        if not items and decay == 1.0:
            for param, source in zip(params, sources or params, strict=True):
                if param is not source:
                    param.copy_(source)
            return
        if cells[0].mover is not None:
            (cell,) = cells
            cells[0].mover(self, cell, params, sources, coefs, decay, rounding)
            return
        streams = [s for cell in cells for s in cell.streams]
        options = {"z_round": self.z_round, **rounding}
        firsts = [first for cell in cells for first in cell.firsts]
        if any(firsts):
            options["firsts"] = firsts
        mask = joined([cell.mask for cell in cells])
        if mask is not None:
            options["mask"] = mask
        if len(items) == 1 and decay == 1.0:
            ((query, coef),) = items
            zo_perturb_(params, streams, self.seed, query, coef, self.dist, sources=sources, **options)
            return
        terms = [Term(self.seed, query, coef, self.dist) for query, coef in items or [(0, 0.0)]]
        for at in range(0, len(terms), _MAX_TERMS):
            part = terms[at : at + _MAX_TERMS]
            zo_chain_(params, streams, part, decay=decay, sources=sources, **options)
            decay, sources = 1.0, None  # later parts add to what the first one wrote
