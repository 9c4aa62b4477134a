"""Zeroth-order steps in training loops that were written for back-propagation."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from tenfold import _checks

from ._probing import Restart

if TYPE_CHECKING:
    from ._base import ZerothOrder

Forward = Callable[..., Any]


def attach(
    optimizer: ZerothOrder,
    model: nn.Module,
    *,
    loss: Callable[[Any], Tensor] | None = None,
    scaler: bool = False,
) -> Attached:
    """Make `loss = model(**batch).loss; loss.backward(); optimizer.step()` a zeroth-order step.

    While attached, a call of `model` in training mode with gradients enabled evaluates the probes of the
    present step on that batch, without gradients and with all of the model in evaluation mode (dropout off),
    and leaves the weights as they were. It returns what the last probe returned, with the mean of the probes'
    losses as its loss. The backward pass of that loss touches no parameter (`.grad` stays None): it adds the
    losses of the probes, times the factor that the loop put on the loss, to those that the next
    `optimizer.step()` goes by. Micro-batches accumulate so, exactly as sums of losses; `zero_grad` forgets
    them. In evaluation mode or without gradients the model is as before.

    Optimizers that must evaluate the batch again (`ZOSGDConservative`, `ForwardGrad`, restore="arithmetic",
    block-wise steps in coordinate order, hybrid ones) keep the micro-batches until `optimizer.step()` and
    evaluate them there; the call of the model then returns the loss at the weights as they are, at the cost
    of one more forward pass.

    Args:
        optimizer: one of `tenfold.optim`; parallel="query" is for closures only.
        model: its forward must return the loss, as a scalar tensor, as `loss` of a dict or an object, or
            first in a tuple. Attach before `accelerator.prepare` or `Trainer`.
        loss: finds the loss in what the model returns, where it is elsewhere.
        scaler: a `torch.amp.GradScaler` is at work (fp16=True in Trainer, mixed_precision="fp16" in
            accelerate). Losses of probes need no scaling, but scalers insist on a gradient to look at, so one
            float32 parameter gets one, 2^-80 times the factor on the loss and zero elsewhere; the scale is
            divided out again.

    Returns a handle; `remove()` puts the model back. As a context manager it does so at the end.

    Raises TypeError or ValueError if one of them is of the wrong kind or attached already. Calls of the model
    raise TypeError where its output has no loss; `optimizer.step()` raises RuntimeError if no backward pass
    came before it, or if a GradScaler is at work without scaler=True.
    """
    if not isinstance(model, nn.Module):
        _checks.fail(TypeError, "model", "a torch.nn.Module", type(model).__name__)
    if loss is not None and not callable(loss):
        _checks.fail(TypeError, "loss", "a callable or None", type(loss).__name__)
    if optimizer._attached is not None:
        _checks.fail(ValueError, "optimizer", "one that is not attached", "one that is")
    if isinstance(model.__dict__.get("forward"), _Wrapper):
        _checks.fail(ValueError, "model", "one that no optimizer is attached to", "one that has one")
    if optimizer._sharded:
        got = "DTensors: the model gathers them once for all probes; step a closure"
        _checks.fail(ValueError, "optimizer", "one whose parameters are not sharded", got)
    if optimizer.parallel == "query":
        _checks.fail(ValueError, "parallel", "None or 'data' in an attached optimizer", "'query'")
    return Attached(optimizer, model, loss, _Token(optimizer) if scaler else None)


class _Call(NamedTuple):
    """One micro-batch, and the factor on its loss."""

    scale: float
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


_TINY = 2.0**-80  # no clipping of gradients takes notice


class _Token:
    """The gradient that a GradScaler finds, and divides by its scale: which tells the scale."""

    def __init__(self, optimizer: ZerothOrder) -> None:
        singles = [p for p in optimizer._trainable() if p.dtype == torch.float32 and p.numel()]
        if not singles:
            got = "no trainable float32 parameter, which scalers want; load the weights in float32"
            _checks.fail(ValueError, "scaler", "False, and no GradScaler", got)
        self._param = min(singles, key=Tensor.numel)
        self._grad: Tensor | None = None
        self._factor = 0.0  # on the losses, over all micro-batches

    def add(self, factor: float) -> None:
        self._factor += factor
        if self._grad is None:
            self._grad = torch.zeros_like(self._param, requires_grad=False)
            self._param.grad = self._grad
        self._grad.view(-1)[0] = self._factor * _TINY

    def is_on(self, p: Tensor) -> bool:
        """Whether the gradient of p is the token and nothing else."""
        if self._grad is None or p is not self._param or p.grad is not self._grad:
            return False
        return not bool(self._grad.reshape(-1)[1:].any())

    def scale(self) -> float:
        """What the scaler has multiplied the losses by; 1 if none has touched the token."""
        if self._grad is None:
            return 1.0
        put = float(torch.tensor(self._factor * _TINY, dtype=torch.float32))
        return put / float(self._grad.reshape(-1)[0]) if put else 1.0

    def remove(self) -> None:
        if self._grad is not None and self._param.grad is self._grad:
            self._param.grad = None
        self._grad, self._factor = None, 0.0


class _Joined(torch.autograd.Function):
    """The loss that the loop sees: its backward pass tells the factor that the loop put on it."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, value: Tensor, sink: Callable[[Tensor], None]) -> Tensor:
        ctx.sink = sink
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None, None]:
        ctx.sink(grads[0])
        return None, None, None


class _Wrapper:
    """The forward of an attached model; `inspect.signature` shows that of the original."""

    def __init__(self, attached: Attached, forward: Forward) -> None:
        functools.update_wrapper(self, forward)
        self._attached = attached
        self._forward = forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._attached.model.training and torch.is_grad_enabled() and not self._attached.busy:
            return self._attached.train(args, kwargs)
        return self._forward(*args, **kwargs)


class Attached:
    """The handle that `attach` returns, and what optimizers call for the losses of a step."""

    def __init__(
        self,
        optimizer: ZerothOrder,
        model: nn.Module,
        loss: Callable[[Any], Tensor] | None,
        token: _Token | None = None,
    ) -> None:
        self.optimizer = optimizer
        self.model = model
        self.busy = False
        self._find = loss
        self._token = token
        self._own_forward = model.__dict__.get("forward")
        self._forward: Forward = model.forward
        self._anchor = torch.zeros((), requires_grad=True)
        self._sum: Tensor | None = None  # of the probes' losses, float64
        self._calls: list[_Call] = []
        self._measured: Any = None  # what the probes of this step depended on
        self._hook = optimizer.register_step_pre_hook(self._before_step)
        optimizer._attached = self
        optimizer._step_supports_amp_scaling = token is None  # a scaler then leaves all to the step
        model.forward = _Wrapper(self, self._forward)

    def remove(self) -> None:
        """Put the model back. Idempotent."""
        if self.optimizer._attached is not self:
            return
        self._hook.remove()
        self.optimizer._attached = None
        self.optimizer._step_supports_amp_scaling = True
        if isinstance(self.model.__dict__.get("forward"), _Wrapper):
            del self.model.forward
            if self._own_forward is not None:
                self.model.forward = self._own_forward
        self.forget()

    def __enter__(self) -> Attached:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def forget(self) -> None:
        """Drop what was accumulated."""
        self._sum = None
        self._calls = []
        self._measured = None
        if self._token is not None:
            self._token.remove()

    def expected(self, p: Tensor) -> bool:
        """Whether a gradient that p has is none of the loss's doing."""
        return self._token is not None and self._token.is_on(p)

    # -- the optimizer's side ----------------------------------------------------------------------------

    @property
    def _evaluates_again(self) -> bool:
        """Whether the losses at fixed probes are not all that a step needs."""
        opt = self.optimizer
        return opt._adaptive or bool(opt._tail) or not opt._static or opt.restore == "arithmetic"

    def take(self) -> list[float]:
        """The accumulated losses of the probes, once."""
        if self._sum is None:
            raise RuntimeError(
                "step: expected a backward pass through the loss that the attached model returned, got none"
            )
        self._check_unchanged()
        losses: list[float] = (self._sum / self._scale()).tolist()
        self.forget()
        return losses

    def _scale(self) -> float:
        return 1.0 if self._token is None else self._token.scale()

    def _setting(self) -> Any:
        """What the probes of a step depend on; the step size is not among it."""
        opt = self.optimizer
        eps = tuple(float(group["eps"]) for group in opt.param_groups)
        trainable = tuple(p.requires_grad for p in opt._slots)
        options = opt.seed, opt.dist, opt.one_sided, opt.num_queries, opt.mask
        return {"step": opt.num_steps, "eps": eps, "trainable parameters": trainable, "options": options}

    def _check_unchanged(self) -> None:
        now = self._setting()
        if self._measured is None or self._measured == now:
            return
        names = [name for name, value in now.items() if self._measured[name] != value]
        raise RuntimeError(
            f"step: expected the {' and '.join(names)} that the losses were measured with, got others; call "
            "zero_grad and evaluate the model again"
        )

    def _before_step(self, optimizer: Any, args: Any, kwargs: Any) -> Any:
        """Where the batches were kept, give the step a closure that evaluates them."""
        if any(value is not None for value in (*args[1:], kwargs.get("closure"))):  # args[0] is the optimizer
            return None
        if not self._evaluates_again:
            return None
        if not self._calls:
            self.take()  # raises
        self._check_unchanged()
        scale = self._scale()
        calls = [call._replace(scale=call.scale / scale) for call in self._calls]
        self.forget()
        return (optimizer, lambda: self._evaluated(calls)), {}

    def _evaluated(self, calls: list[_Call]) -> Tensor:
        """The sum of the scaled losses of these micro-batches, with whatever weights there are."""
        total: Tensor | None = None
        with self.evaluation():
            for scale, args, kwargs in calls:
                value = self._loss_of(self._forward(*args, **kwargs)).double() * scale
                total = value if total is None else total + value
        assert total is not None
        return total

    # -- the loop's side -----------------------------------------------------------------------------------

    def train(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A call of the model in a training loop."""
        found: list[Any] = []

        def closure() -> Tensor:
            found[:] = [self._forward(*args, **kwargs)]
            return self._loss_of(found[0]).detach()

        with torch.no_grad(), self.evaluation():
            if self._evaluates_again:
                value, sink = closure(), self._keep(args, kwargs)
            else:
                losses = self._probe(closure)
                value, sink = losses.mean(), self._accumulate(losses)
        loss = self._loss_of(found[0])
        joined = _Joined.apply(self._anchor, value.to(loss.device, loss.dtype).reshape(loss.shape), sink)
        return _with_loss(found[0], loss, joined)

    def _probe(self, closure: Callable[[], Tensor]) -> Tensor:
        """The losses at the probes of this step, float64; the weights are then as before."""
        opt = self.optimizer
        if opt._prefix is not None:
            opt._prefix.clear()  # these are other inputs
        ranks, opt._parallel = opt._parallel, None  # the ranks meet in `step`
        try:
            walk = opt._walk()
            try:
                losses = opt._losses(walk, lambda: opt._evaluate(walk, closure), opt._plan())
            finally:
                walk.abort()
        except Restart:
            opt._copy_always = True
            return self._probe(closure)
        finally:
            opt._parallel = ranks
        return torch.tensor(losses, dtype=torch.float64)

    def _accumulate(self, losses: Tensor) -> Callable[[Tensor], None]:
        setting = self._setting()

        def sink(grad: Tensor) -> None:
            self._note(setting)
            factor = float(grad)
            if self._token is not None:
                self._token.add(factor)
            scaled = factor * losses
            self._sum = scaled if self._sum is None else self._sum + scaled

        return sink

    def _keep(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[Tensor], None]:
        setting = self._setting()

        def sink(grad: Tensor) -> None:
            self._note(setting)
            factor = float(grad)
            if self._token is not None:
                self._token.add(factor)
            self._calls.append(_Call(factor, args, kwargs))

        return sink

    def _note(self, setting: Any) -> None:
        """A micro-batch counts that was measured with these options: the same for all of a step."""
        if self._measured is None:
            self._measured = setting
        self._check_unchanged()

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        """The whole model in evaluation mode, its calls not those of a loop."""
        training = [module for module in self.model.modules() if module.training]
        busy, self.busy = self.busy, True
        for module in training:
            module.training = False
        try:
            yield
        finally:
            self.busy = busy
            for module in training:
                module.training = True

    def _loss_of(self, output: Any) -> Tensor:
        loss = _default_loss(output) if self._find is None else self._find(output)
        if not isinstance(loss, Tensor) or loss.numel() != 1 or loss.is_complex():
            got = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            _checks.fail(
                TypeError, "model", "an output with a real scalar loss (labels given? loss= tells where)", got
            )
        return loss


def _default_loss(output: Any) -> Any:
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        return output.get("loss")
    if isinstance(output, (tuple, list)) and not hasattr(output, "loss"):
        return output[0] if output else None
    return getattr(output, "loss", None)


def _with_loss(output: Any, loss: Tensor, joined: Tensor) -> Any:
    """The output with another loss in the place of `loss`."""
    if output is loss:
        return joined
    if isinstance(output, Mapping):
        for key in [key for key, value in output.items() if value is loss]:
            output[key] = joined  # type: ignore[index]
            return output
    if isinstance(output, (tuple, list)):
        values = [joined if value is loss else value for value in output]
        if any(value is loss for value in output):
            return type(output)(*values) if hasattr(output, "_fields") else type(output)(values)
    for name, value in getattr(output, "__dict__", {}).items():
        if value is loss:
            setattr(output, name, joined)
            return output
    _checks.fail(
        TypeError, "loss", "a tensor that is part of the model's output", "one computed from the output"
    )
