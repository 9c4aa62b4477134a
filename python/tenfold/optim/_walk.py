"""Moving the weights through the probes of one step, and always knowing the way back."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from tenfold.ops import Term, zo_chain_, zo_perturb_

from ._seeds import splitmix64

_MAX_TERMS = 64  # directions that one zo_chain_ call holds
Coefs = dict[int, float]  # query index -> coefficient of its direction


@dataclass(eq=False)
class Cell:
    """Parameters that always move together: one group, one device, with or without weight decay.

    `offset` says where the live weights are: at clean + sum_i offset[i] * z_i.
    """

    group: dict[str, Any]
    device: torch.device
    decays: bool
    params: list[Tensor] = field(default_factory=list)
    streams: list[int] = field(default_factory=list)
    offset: Coefs = field(default_factory=dict)

    @property
    def eps(self) -> float:
        return float(self.group["eps"])

    @property
    def lr(self) -> float:
        return float(self.group["lr"])

    @property
    def weight_decay(self) -> float:
        return float(self.group["weight_decay"]) if self.decays else 0.0


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

    Without `clean`, a position is reached from the live weights, by the difference to where they are: no
    extra memory, one rounding per pass.  With `clean`, copies of the trainable tensors, it is written from
    the copies.
    """

    def __init__(
        self,
        cells: list[Cell],
        seed: int,
        *,
        dist: str,
        rounding: str,
        z_round: torch.dtype | None,
        clean: dict[Tensor, Tensor] | None,
        seconds: float = 0.0,
    ) -> None:
        self.cells = cells
        self.seed = seed
        self.seconds = seconds
        self._dist = dist
        self._clean = clean
        self._rounding = rounding
        self._z_round = z_round
        self.passes = 0

    def to(self, target: Coefs) -> None:
        """Put every cell at clean + sum_i target[i] * eps * z_i, eps being its group's; {} is clean."""

        def aim(cell: Cell) -> Coefs:
            return {i: factor * cell.eps for i, factor in target.items()}

        def change(cell: Cell) -> tuple[Coefs, float]:
            return aim(cell) if self._clean is not None else _plus(aim(cell), -1.0, cell.offset), 1.0

        with self.one_pass():
            self._move([cell for cell in self.cells if cell.offset != aim(cell)], change, aim)

    def land(self, updates: dict[Cell, Coefs]) -> None:
        """Restore and update in one pass: theta = decay*clean + sum_i updates[cell][i] * z_i.

        For one two-sided query this is `tenfold.ops.zo_restore_update_`, bit for bit.
        """

        def change(cell: Cell) -> tuple[Coefs, float]:
            decay = 1.0 - cell.lr * cell.weight_decay
            return _plus(updates[cell], -decay, {} if self._clean is not None else cell.offset), decay

        with self.one_pass():
            self._move(self.cells, change, lambda cell: {})

    @contextmanager
    def one_pass(self) -> Iterator[None]:
        """Around everything that writes weights: one at a time, counted, timed, not to be interrupted."""
        started = perf_counter()
        with interrupts_deferred():
            yield
            self.passes += 1
        self.seconds += perf_counter() - started

    def rounding_options(self) -> dict[str, Any]:
        """How the ops round in the pass under way: each pass of a step draws random bits of its own."""
        own = splitmix64(self.seed, self.passes) if self._rounding == "sr" else None
        return {"out_rounding": self._rounding, "rounding_seed": own}

    def _move(
        self,
        cells: list[Cell],
        change: Callable[[Cell], tuple[Coefs, float]],
        arrive: Callable[[Cell], Coefs],
    ) -> None:
        """Apply change(cell) = (coefs, decay), one call for all cells of a device that need the same."""
        batches: dict[Any, tuple[list[Cell], Coefs, float]] = {}
        for cell in cells:
            coefs, decay = change(cell)
            batches.setdefault((cell.device, tuple(coefs.items()), decay), ([], coefs, decay))[0].append(cell)
        for batch, coefs, decay in batches.values():
            params = [p for cell in batch for p in cell.params]
            streams = [s for cell in batch for s in cell.streams]
            self._write(params, streams, coefs, decay)
            for cell in batch:
                cell.offset = arrive(cell)

    def _write(self, params: list[Tensor], streams: list[int], coefs: Coefs, decay: float) -> None:
        """theta = decay*source + sum_i coefs[i] * z_i, source being the clean copy or theta itself."""
        sources = None if self._clean is None else [self._clean[p] for p in params]
        options = {"z_round": self._z_round, **self.rounding_options()}
        items = list(coefs.items())
        if not items and decay == 1.0:
            for param, source in zip(params, sources or params, strict=True):
                if param is not source:
                    param.copy_(source)
        elif len(items) == 1 and decay == 1.0:
            ((query, coef),) = items
            zo_perturb_(params, streams, self.seed, query, coef, self._dist, sources=sources, **options)
        else:
            terms = [Term(self.seed, query, coef, self._dist) for query, coef in items or [(0, 0.0)]]
            for at in range(0, len(terms), _MAX_TERMS):
                part = terms[at : at + _MAX_TERMS]
                zo_chain_(params, streams, part, decay=decay, sources=sources, **options)
                decay, sources = 1.0, None  # later parts add to what the first one wrote
