"""What the zeroth-order optimizers share: a step, what it does to the weights, and the same step again."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from tenfold import _checks
from tenfold._backend import PerformanceWarning

from ._helpers import Closure, Values, _mean, _Retraced, _skipped, _values, level_of_caller
from ._probing import Probing, Restart
from ._record import FLAG_GRAD, FLAG_SKIPPED, Scalar, StepRecord
from ._walk import Cell, Coefs, Walk, interrupts_deferred


class ZerothOrder(Probing):
    """Base of the optimizers that estimate the gradient from losses at perturbed weights.

    The directions z_i of step t come from the counter-based generator of `tenfold.ops.zo_sample` with the key
    splitmix64(seed, t), the query index i, and one stream per parameter; they are never stored.

    A step is `_measure`, which calls the closure at probes and condenses the losses to scalars, and `_apply`,
    a function of weights, state, step number, hyper-parameters and scalars alone, so that a log of the
    scalars replays a run.
    """

    _step_supports_amp_scaling = True  # a GradScaler leaves all to `step`, which refuses it

    # -- a step ----------------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Tensor:  # type: ignore[override]
        """Probe, restore, update; `last_step` then tells what happened.

        closure: returns the loss as a real one-element tensor or a number.  It is called without gradients,
            two times per query, or once more than there are queries when one-sided, and must see the same
            batch each time, with dropout off (that of an attached model is).  A batch too large for one
            forward pass may be fed in pieces: a closure that returns the sum (or mean) of their losses is the
            same objective.

        Returns the mean of all losses of the step, a float64 scalar on the CPU.

        A loss or projected gradient that is not finite leaves the weights restored and counts in
        `num_skipped`.  An exception out of the closure (Ctrl-C too) restores the weights and is raised again;
        that step does not count.  Restored means bit for bit, but with restore="arithmetic" up to the
        rounding of the passes back.

        Raises:
            TypeError: closure is missing, or its loss is complex or not a scalar.
            ValueError: a group's lr, eps or weight decay is out of range, or no parameter is trainable.
            RuntimeError: `max_nonfinite` steps in a row were not finite; or, with restore="dual", the closure
                does not reach the parameters through torch functions; or, without closure, a parameter has a
                gradient: something besides the attached model's loss was differentiated.
        """
        if self.__dict__.pop("found_inf", None) is not None:
            self.__dict__.pop("grad_scale", None)
            raise RuntimeError(
                "step: expected no GradScaler, got one; losses of probes need no scaling: call "
                "optimizer.step(closure) itself, or attach the model with scaler=True"
            )
        attached = None if callable(closure) else self._attached
        if not callable(closure) and (closure is not None or attached is None):
            _checks.fail(TypeError, "closure", "a callable that returns the loss", type(closure).__name__)
        if attached is not None:
            self._check_no_gradients()
        if self._parallel is not None:
            self._parallel.agree(self)
        # In a closure a call of an attached model is no call of a loop: it must not probe once more.
        plain = nullcontext() if closure is None or self._attached is None else self._attached.evaluation()
        told = self._told_of_backward or bool(self._tail)
        bare = [] if told else [p for p in self._trainable() if p.grad is None]
        with plain:
            try:
                loss = self._step(closure, attached)
            except Restart:
                self._copy_always = True
                loss = self._step(closure, attached)
        if any(p.grad is not None for p in bare):
            self._tell_of_backward()
        return loss

    def _tell_of_backward(self) -> None:
        self._told_of_backward = True
        warnings.warn(
            "step: the closure calls backward(), at every probe and to no use; let it return the loss alone. "
            "In Lightning: automatic_optimization = False, self.optimizers().step(closure) in training_step",
            PerformanceWarning,
            stacklevel=level_of_caller(),
        )

    def _check_no_gradients(self) -> None:
        """A term that a loop adds to the loss of an attached model would be lost: it leaves gradients."""
        for p in self._trainable():
            if p.grad is not None and not self._attached.expected(p):
                raise RuntimeError(
                    f"{self._label(p)}.grad: expected None where steps follow from the losses of an attached "
                    "model, got a gradient: a term added to the loss outside of the model does not count "
                    "(give attach a loss= that holds it, or step a closure), or zero_grad() was left out"
                )

    def _step(self, closure: Closure | None, attached: Any) -> Tensor:
        walk, logged, before = self._walk(), False, self.last_step
        try:
            started, copying = perf_counter(), walk.seconds
            taken = None if attached is None else self._taken(walk, attached)
            tail = self._first_order_gradients(closure) if self._tail else True
            if taken is not None:
                scalars = self._scalars(walk, taken)
            else:
                assert closure is not None
                scalars = self._measure(walk, lambda: self._evaluate(walk, closure))
            forward = perf_counter() - started - (walk.seconds - copying)
            finite = tail and self._finite(walk, scalars)
            if not finite:
                scalars = [*scalars[: self._useful(scalars)], _skipped(len(walk.losses))]
            with interrupts_deferred():
                skipped = any(s.kind == FLAG_SKIPPED for s in scalars)
                if self._log is not None:  # first: a log that cannot be written leaves the weights alone
                    self._log.append(self._record(walk, scalars, skipped, forward))
                    logged = True
                self._apply(walk, scalars)
                if self._tail and not skipped:
                    self._first_order_step()
                record = self._record(walk, scalars, skipped, forward)
                self._count(record, finite)
        except BaseException:
            if logged and self.last_step is before:
                self._log.retract()
            walk.abort()
            raise
        if self._nonfinite_in_a_row >= self.max_nonfinite:
            raise RuntimeError(
                f"closure: expected finite losses, got {list(record.losses)} in step {self.num_steps - 1}, "
                f"number {self._nonfinite_in_a_row} in a row that is not finite; the weights are restored"
            )
        return torch.tensor(_mean(walk.losses), dtype=torch.float64)

    def _record(self, walk: Walk, scalars: list[Scalar], skipped: bool, forward: float) -> StepRecord:
        return StepRecord(
            step=self.num_steps,
            seed=walk.seed,
            projected_grads=tuple(s.value for s in scalars if s.kind == FLAG_GRAD),
            losses=tuple(walk.losses),
            skipped=skipped,
            passes=walk.passes,
            seconds={"forward": forward, "passes": walk.seconds},
            scalars=tuple(scalars),
            lrs=tuple(float(group["lr"]) for group in self.param_groups),
            eps=tuple(float(group["eps"]) for group in self.param_groups),
        )

    # -- updating --------------------------------------------------------------------------------------

    def _apply(self, walk: Walk, scalars: Sequence[Scalar]) -> None:
        """From the last probe to the new weights: a function of weights, state and scalars only."""
        if any(s.kind == FLAG_SKIPPED for s in scalars):
            walk.to({})
        else:
            values = _values(scalars)
            updates = {cell: self._coefficients(walk, cell, values) for cell in walk.cells}
            self._update(walk, updates, values)
        walk.landed = True

    def _update(self, walk: Walk, updates: dict[Cell, Coefs], values: Values) -> None:
        """Move weights and state by the estimated gradient."""
        if self._forgets_mask():
            walk.to({})
            for cell in walk.cells:
                cell.mask = None
        walk.land(updates)

    def _forgets_mask(self) -> bool:
        """The benchmark's code leaves the mask out of updates from several queries."""
        return self.compat == "zo-llm" and self.mask is not None and self.num_queries > 1

    def _count(self, record: StepRecord, finite: bool) -> None:
        self.last_step = record
        self.num_steps += 1
        self.num_skipped += record.skipped
        self._nonfinite_in_a_row = 0 if finite else self._nonfinite_in_a_row + 1

    # -- in loops written for back-propagation ---------------------------------------------------------

    def attach(
        self,
        model: torch.nn.Module,
        *,
        loss: Callable[[Any], Tensor] | None = None,
        scaler: bool = False,
    ) -> Any:
        """Let loops of `model(batch)`, `loss.backward()` and `optimizer.step()` train by this optimizer.

        Serves `transformers.Trainer`, accelerate and plain loops; see `tenfold.optim._attach.attach`, which
        documents arguments, limits and errors.  Returns a handle whose `remove()` undoes it.
        """
        from ._attach import attach

        return attach(self, model, loss=loss, scaler=scaler)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As in torch.optim; also forgets what the backward passes of an attached model left."""
        super().zero_grad(set_to_none)
        if self._attached is not None:
            self._attached.forget()

    # -- hybrid: the layers that learn by back-propagation ---------------------------------------------

    def _first_order_gradients(self, closure: Closure | None) -> bool:
        """Gradients of the tail at the clean weights; whether they are finite."""
        assert self.first_order is not None
        assert closure is not None
        rest = [p for p in self._slots if p not in self._tail and p.requires_grad]
        self.first_order.zero_grad(set_to_none=True)
        for p in rest:
            p.requires_grad_(False)
        try:
            with torch.enable_grad():
                loss = closure()
                if not isinstance(loss, Tensor) or not loss.requires_grad:
                    got = "a number" if not isinstance(loss, Tensor) else "a tensor without"
                    _checks.fail(TypeError, "closure", "a loss with a gradient in a hybrid step", got)
                loss.backward()
        finally:
            for p in rest:
                p.requires_grad_(True)
        grads = [p.grad for p in self._tail if p.grad is not None]
        return all(bool(torch.isfinite(grad).all()) for grad in grads)

    def _first_order_step(self) -> None:
        assert self.first_order is not None
        self.first_order.step()
        self.first_order.zero_grad(set_to_none=True)

    # -- replaying -------------------------------------------------------------------------------------

    @torch.no_grad()
    def replay_step(self, scalars: Sequence[Scalar], lrs: Sequence[float], eps: Sequence[float]) -> None:
        """Make a recorded step again: the same weights, state and counters, bit for bit, without losses.

        Starts from the weights that the step started from, and includes the roundings of the probes where
        restore="arithmetic" has them.

        Args:
            scalars, lrs, eps: of its `StepRecord`; one step size and probe distance per group.

        Raises ValueError for other than one number per group, and for hybrid optimizers, whose first-order
        gradients no log holds.
        """
        if self._tail:
            _checks.fail(ValueError, "hybrid", "None in a replay", "HybridFirstOrder")
        for name, numbers_ in (("lrs", lrs), ("eps", eps)):
            _checks.length(name, list(numbers_), len(self.param_groups), "the groups")
        scalars = [Scalar(*s) for s in scalars]
        before = [(group["lr"], group["eps"]) for group in self.param_groups]
        for group, lr, distance in zip(self.param_groups, lrs, eps, strict=True):
            group["lr"], group["eps"] = lr, distance
        try:
            walk = self._walk(replay=True)
            with interrupts_deferred():
                self._retrace(walk, scalars)
                self._apply(walk, scalars)
                skipped = any(s.kind == FLAG_SKIPPED for s in scalars)
                self._count(self._record(walk, list(scalars), skipped, 0.0), True)
        finally:
            for group, (lr, distance) in zip(self.param_groups, before, strict=True):
                group["lr"], group["eps"] = lr, distance

    def _retrace(self, walk: Walk, scalars: Sequence[Scalar]) -> None:
        """Go to all the places of the recorded step, without a look at the loss."""
        walk.budget = next((int(s.value) for s in scalars if s.kind == FLAG_SKIPPED), -1)
        prefix, self._prefix = self._prefix, None
        ranks, self._parallel = self._parallel, None
        try:
            self._measure(walk, lambda: 0.0, _values(scalars))
        except _Retraced:
            pass
        finally:
            self._prefix, self._parallel = prefix, ranks
        walk.losses.clear()
