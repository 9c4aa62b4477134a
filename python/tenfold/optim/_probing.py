"""From weights to scalars: where a step probes, what is evaluated there, what the losses mean."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tenfold import _checks
from tenfold._backend import PerformanceWarning

from . import _dual, _masks
from ._aggregate import gram, least_squares
from ._helpers import Closure, Evaluate, Values, _all_finite, _loss, _skipped, _values, level_of_caller, spend
from ._options import RandomSparsity
from ._record import FLAG_GRAD, FLAG_SKIPPED, Scalar
from ._seeds import splitmix64
from ._setup import Setup
from ._shards import fsdp_modules, local, reshard
from ._shortcuts import Matrix
from ._walk import Cell, Coefs, Place, Walk

_COPY_BYTES = 12 << 20  # restore="auto" takes clean copies of up to so many trainable bytes
_MAX_REMADE = 4  # and of more where a probe makes perturbed weights more than so many times over


class Probe(NamedTuple):
    """One evaluation of the closure: at clean + sum_i coefs[i] * eps * z_i, of one block or (None) of all."""

    coefs: Coefs
    block: int | None = None


class Restart(Exception):
    """No error: the step begins anew, with clean copies."""


class Probing(Setup):
    """The part of `ZerothOrder` that probes and condenses the losses to scalars."""

    # -- the way through the probes --------------------------------------------------------------------

    def _walk(self, *, replay: bool = False) -> Walk:
        """The way through this step's probes, starting at the weights as they are."""
        cells = self._cells()
        if self._prefix is not None:
            self._prefix.clear()  # the batch is another one
        way = self._way_back(cells)
        if replay and way == "exact":
            way = "dual"  # the same weights, and no probe needs them perturbed
        started = perf_counter()
        clean = self._fresh_copies(cells) if way == "exact" else None
        walk = Walk(
            cells,
            splitmix64(self.seed, self.num_steps),
            dist=self.dist,
            rounding=self.rounding,
            z_round=self.z_round,
            clean=clean,
            dual=way == "dual",
            seconds=perf_counter() - started,
        )
        if self._sharded:
            assert self._module is not None
            modules = fsdp_modules(self._module)
            walk.changed = lambda: reshard(modules)
            walk.changed()
        self._set_masks(walk)
        self._set_unit(walk)
        self._prepare(walk)
        if walk.dual and not replay:
            walk.probing = lambda: _dual.perturbed(walk, self._twins, self._matrix)
        return walk

    def _prepare(self, walk: Walk) -> None:
        """Make states and factors that probes need."""

    def _way_back(self, cells: list[Cell]) -> str:
        """ "arithmetic", "exact" or "dual"."""
        if self.restore != "auto":
            return self.restore
        if self._sharded:
            return "exact"
        size = sum(p.numel() * p.element_size() for cell in cells for p in cell.params)
        return "exact" if size <= _COPY_BYTES or self._copy_always else "dual"

    def _fresh_copies(self, cells: list[Cell]) -> dict[Tensor, Tensor]:
        """Clean copies of all trainable tensors; the values are taken anew each step, the memory is kept."""
        old = self._copies
        self._copies = {}
        for p in (p for cell in cells for p in cell.params):
            copy, here = old.get(p), local(p)
            if copy is None or (copy.shape, copy.dtype, copy.device) != (here.shape, p.dtype, here.device):
                copy = torch.empty_like(here, requires_grad=False)
            self._copies[p] = copy.copy_(here)
        return self._copies

    def _matrix(self, spot: _dual.Spot) -> Matrix | None:
        """What computes with a matrix at a dual probe, without a perturbed copy; None takes copies."""
        return _dual.plain_matrix(spot)

    def _set_masks(self, walk: Walk) -> None:
        """Tell the cells which elements move in this step."""
        option = self.mask
        if option is None:
            return
        params = [p.detach() for cell in walk.cells for p in cell.params]
        keys = [p for cell in walk.cells for p in cell.params]
        first = _masks.window(option, self.num_steps)
        if self._limits_from != first or any(p not in self._limits for p in keys):
            if isinstance(option, RandomSparsity):
                values = _masks.shares(option, params, self.compat, self._parallel)
            else:
                values = _masks.thresholds(option, params, self._parallel)
            self._limits = dict(zip(keys, values, strict=True))
            self._limits_from = first
        for cell in walk.cells:
            limits = [self._limits[p] for p in cell.params]
            if isinstance(option, RandomSparsity):
                cell.mask = _masks.random_mask(option, self.seed, self.num_steps, limits)
            else:
                fixed = walk.arithmetic or self.num_queries > 64 or self._fixed_masks
                cell.mask = _masks.magnitude_mask(cell.tensors(), limits, fixed=fixed)

    def _set_unit(self, walk: Walk) -> None:
        """Scale directions: to the sphere, or up where a random mask has thinned them out."""
        if isinstance(self.mask, RandomSparsity) and self.mask.rescale:
            scale = 1.0 / math.sqrt(1.0 - self.mask.ratio)
            walk.unit = lambda query, block: scale
        if self.dist == "sphere":
            known: dict[tuple[int, int], float] = {}

            def unit(query: int, block: int) -> float:
                if (query, block) not in known:
                    known[query, block] = self._sphere(walk, query, block)
                return known[query, block]

            walk.unit = unit

    def _sphere(self, walk: Walk, query: int, block: int) -> float:
        """sqrt(d)/norm(z) over the tensors of a block."""
        from tenfold.ops import zo_direction_norm

        squares, d = [], 0
        for cell in walk.cells:
            if cell.block == block:
                numels = [p.numel() for p in cell.params]
                norm = zo_direction_norm(numels, cell.streams, walk.seed, query, device=cell.device)
                squares.append(norm * norm)
                d += sum(numels)
        total = math.fsum(squares)
        return math.sqrt(d / total) if total > 0 else 1.0

    # -- measuring -------------------------------------------------------------------------------------

    @property
    def _adaptive(self) -> bool:
        """Whether where to probe depends on losses of the same step."""
        return self.blocks is not None and self.blocks.order == "coordinate"

    def _targets(self) -> list[Coefs]:
        """Where one block is probed, in the order of its losses, in units of eps; {} is clean."""
        if self.one_sided:
            return [{}, *({i: 1.0} for i in range(self.num_queries))]
        return [{i: sign} for i in range(self.num_queries) for sign in (1.0, -1.0)]

    def _plan(self) -> list[Probe]:
        """All evaluations of a step whose probes do not depend on its losses (`_adaptive` is False).

        Blocks that are probed at the same weights share the loss at the clean ones.
        """
        if self._layout is None:
            return [Probe(target) for target in self._targets()]
        targets = self._targets()
        again = targets[1:] if targets[0] == {} else targets
        return [
            Probe(target, block)
            for block in range(self._num_blocks)
            for target in (again if block else targets)
        ]

    def _measure(self, walk: Walk, evaluate: Evaluate, known: Values | None = None) -> list[Scalar]:
        """Stand at the probes, call `evaluate` at each, and say what the losses mean for the update.

        known: in a replay, the values measured then, by (kind, block).
        """
        if not self._adaptive:
            losses = self._losses(walk, evaluate, self._plan())
            return self._scalars(walk, losses) if known is None else []
        scalars: list[Scalar] = []
        for block in range(self._num_blocks):
            losses = self._losses(walk, evaluate, [Probe(t, block) for t in self._targets()])
            found = self._scalars_of_block(walk, losses, block) if known is None else []
            values = _values(found) if known is None else known
            scalars += found
            if any(s.kind == FLAG_SKIPPED for s in found) or not self._finite(walk, found, [block]):
                return [*scalars[: self._useful(scalars)], _skipped(len(walk.losses))]
            for cell in walk.cells:
                if cell.block == block:
                    cell.rest = Place(self._coefficients(walk, cell, values), cell.decay)
        return scalars

    def _useful(self, scalars: list[Scalar]) -> int:
        """How many scalars come before the first that is not finite, or tells of a step not made."""
        for k, s in enumerate(scalars):
            if not math.isfinite(s.value) or s.kind == FLAG_SKIPPED:
                return k
        return len(scalars)

    def _losses(self, walk: Walk, evaluate: Evaluate, plan: Sequence[Probe]) -> list[float]:
        """The losses of these probes, agreed on by all ranks; `walk.losses` gets them too."""
        found: list[Tensor | float | None] = []
        for probe in plan:
            if self._parallel is not None and not self._mine(probe):
                found.append(None)
                walk.turn += 1  # ranks must round alike
                continue
            spend(walk)
            if probe.coefs or walk.turn:
                walk.to(probe.coefs, probe.block)
            with nullcontext() if self._prefix is None else self._prefix.evaluation(probe.block or 0):
                found.append(evaluate())
        losses = [None if loss is None else float(loss) for loss in found]
        agreed = self._agreed(losses)
        walk.losses += agreed
        return agreed

    def _mine(self, probe: Probe) -> bool:
        return bool(not probe.coefs or self._parallel.mine(next(iter(probe.coefs))))

    def _agreed(self, losses: Sequence[float | None]) -> list[float]:
        """The losses that all ranks go on with."""
        if self._parallel is not None:
            losses = self._parallel.mean(losses) if self.parallel == "data" else self._parallel.gather(losses)
        return [float("nan") if loss is None else loss for loss in losses]

    def _taken(self, walk: Walk, attached: Any) -> list[float]:
        """The losses that were measured while the attached model ran."""
        if self._adaptive or self._tail or not self._static:
            what = "a hybrid step" if self._tail else "probes that depend on losses"
            _checks.fail(TypeError, "closure", "a callable that returns the loss", f"None with {what}")
        losses = [float(loss) for loss in attached.take()]
        walk.turn += sum(1 for probe in self._plan() if probe.coefs)
        if self._parallel is not None:
            losses = [float(loss) for loss in self._parallel.mean(losses)]
        walk.losses += losses
        return losses

    def _evaluate(self, walk: Walk, closure: Closure) -> Tensor | float:
        """One call of the closure, which sees the weights where the walk stands.

        Dual probes compute eagerly: a compiled graph would be traced with the substitution in it, and meet it
        once more when it runs.
        """
        stance = torch.compiler.set_stance("force_eager") if walk.dual else nullcontext()
        with stance, walk.probing() as mode:
            loss = _loss(closure)
        if walk.dual and not self._reached:
            self._check_reached(walk, mode)
            self._reached = True
        if walk.dual and mode.largest is not None and self.restore == "auto" and not self._told_of_copies:
            self._told_of_copies = True
            self._tell_of_copy(mode.largest)
        return loss

    def _tell_of_copy(self, copied: _dual.Copied) -> None:
        """A probe that takes memory for a whole tensor is not what "auto" promises."""
        params = [*self._slots, *self._twins]
        name = self._label(next(p for p in params if id(p) == copied.key))
        warnings.warn(
            f"restore: 'auto' makes a perturbed copy of {name} ({copied.nbytes} bytes) at each probe for "
            f"{copied.function}; linear layers, embeddings, products with the weight, rows picked by index "
            "and the losses of tenfold.ops need none, unless under autocast, with a random mask or along "
            "several directions at once; choose restore='arithmetic' for probes without copies, or 'dual' or "
            "'exact' to say so yourself",
            PerformanceWarning,
            stacklevel=level_of_caller(),
        )

    def _check_reached(self, walk: Walk, mode: _dual.Substitution) -> None:
        """After the first dual probe: is this a closure that dual probing serves?"""
        params = [p for cell in walk.cells for p in cell.params]
        twins = {p: other for other, p in self._twins.items()}
        unseen = [p for p in params if id(p) not in mode.seen and id(twins.get(p)) not in mode.seen]
        if self.restore == "dual":
            if len(unseen) == len(params):
                raise RuntimeError(
                    "closure: expected one that uses the parameters through torch functions on this thread "
                    "with restore='dual', got one that does not; use restore='exact'"
                )
            if unseen:
                warnings.warn(
                    f"restore: with 'dual' the closure does not reach {self._label(unseen[0])} through torch "
                    "functions; if it uses it otherwise, its probes are wrong: choose restore='exact'",
                    RuntimeWarning,
                    stacklevel=level_of_caller(),
                )
            return
        if unseen:
            name = self._label(unseen[0])
            reason = f"the closure does not reach {name} through torch functions"
        elif mode.made > _MAX_REMADE * sum(p.numel() for p in params):
            reason = "the closure uses each weight many times"
        else:
            return
        warnings.warn(
            f"restore: 'auto' takes clean copies of the trainable parameters from now on, because {reason}; "
            "choose restore='exact', 'dual' or 'arithmetic' to say so yourself",
            RuntimeWarning,
            stacklevel=level_of_caller(),
        )
        raise Restart

    # -- what losses mean for the update ---------------------------------------------------------------

    def _scalars(self, walk: Walk, losses: list[float]) -> list[Scalar]:
        """What the losses of `_plan` mean for the update, block by block."""
        targets = self._targets()
        shared = losses[:1] if targets[0] == {} else []
        each = len(targets) - len(shared)
        scalars: list[Scalar] = []
        for block in range(self._num_blocks):
            start = len(shared) + block * each
            scalars += self._scalars_of_block(walk, [*shared, *losses[start : start + each]], block)
        return scalars

    def _scalars_of_block(self, walk: Walk, losses: list[float], block: int) -> list[Scalar]:
        projected = self._projected(losses, float(self.param_groups[0]["eps"]))
        if projected is None:
            return [_skipped(len(walk.losses))]
        projected = [self._clipped(g) for g in projected]
        if self.aggregate == "least_squares" and all(map(math.isfinite, projected)):
            projected = self._least_squares(walk, projected)
        return [Scalar(i, FLAG_GRAD | block << 8, g) for i, g in enumerate(projected)]

    def _clipped(self, g: float) -> float:
        """Within the bound; what is not finite stays so."""
        bound = self.max_projected_grad
        return g if bound is None or not math.isfinite(g) else max(-bound, min(bound, g))

    def _projected(self, losses: list[float], eps: float) -> list[float] | None:
        """The factors g_i of the update direction (1/q) sum_i g_i z_i; None: nothing to update by."""
        if self.one_sided:
            return [(loss - losses[0]) / eps for loss in losses[1:]]
        return [(plus - minus) / (2 * eps) for plus, minus in zip(losses[::2], losses[1::2], strict=True)]

    def _least_squares(self, walk: Walk, projected: list[float]) -> list[float]:
        # A group's probes stand eps/eps_0 times as far, its estimate is eps_0/eps times as long: both cancel
        products, d = torch.zeros(len(projected), len(projected), dtype=torch.float64), 0
        for cell in walk.cells:
            scale = [walk.unit(i, cell.block) for i in range(len(projected))]
            unit = torch.tensor(scale, dtype=torch.float64)
            own = gram(cell.params, cell.streams, walk.seed, len(projected), walk.dist, walk.z_round)
            products += unit[:, None] * own * unit
            d += sum(p.numel() for p in cell.params)
        return least_squares(projected, products, d)

    def _coefficients(self, walk: Walk, cell: Cell, values: Values) -> Coefs:
        """What multiplies each direction in the update of a cell."""
        scale = cell.lr if self.maximize else -cell.lr
        return {i: scale * g / self.num_queries for i, g in self._gradient(walk, cell, values).items()}

    def _gradient(self, walk: Walk, cell: Cell, values: Values) -> Coefs:
        """The projected gradients of a cell, for its own eps and directions."""
        ratio = float(self.param_groups[0]["eps"]) / cell.eps if self._per_eps else 1.0
        grads = values.get((FLAG_GRAD, cell.block), [])
        return {i: g * ratio * walk.unit(i, cell.block) for i, g in enumerate(grads)}

    def _finite(self, walk: Walk, scalars: list[Scalar], blocks: list[int] | None = None) -> bool:
        """Whether losses, scalars and what becomes of them are finite, also in float32."""
        values = _values(scalars)
        cells = [cell for cell in walk.cells if blocks is None or cell.block in blocks]
        coefs = [self._coefficients(walk, cell, values).values() for cell in cells]
        return _all_finite(walk.losses, (s.value for s in scalars), *coefs)
