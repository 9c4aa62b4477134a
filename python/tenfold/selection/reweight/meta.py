"""Meta-Weight-Net for any module: sample weights learned from a few rows that are trusted.

A small network V turns the loss of a sample into its weight. V is trained so that one weighted step of the
classifier lowers the loss on meta rows (Shu et al., Meta-Weight-Net, arXiv 1902.07379). The gradient for V
runs through that step:

    l_i   loss of sample i at theta                w_i = V(l_i)
    theta' = theta - lr * update(mean_i w_i grad l_i(theta))
    dL/dw_i = -(lr / n) <grad L(theta'), grad l_i(theta)>

All n inner products together are one Jacobian-vector product of the loss vector at theta in the direction
grad L(theta'), which forward-mode differentiation gives in one pass. No second-order graph is kept, and no
layer is rewritten: any `nn.Module` will do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.nn import functional as F

from tenfold import _checks

__all__ = ["MetaStep", "MetaWeightNet", "WeightNet", "meta_weight_step"]

SampleLoss = Callable[[Any, Tensor], Tensor]
"""(output of the model, labels) -> losses [n]."""


def sample_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each row, [n]."""
    return F.cross_entropy(logits, labels, reduction="none")


class WeightNet(nn.Module):
    """V: loss [n] -> weight [n] in (0, 1); Linear(1, hidden), ReLU, Linear(hidden, 1), sigmoid."""

    def __init__(self, hidden: int = 100):
        super().__init__()
        _checks.integer("hidden", hidden, 1, 2**20)
        self.layers = nn.Sequential(nn.Linear(1, hidden), nn.ReLU(), nn.Linear(hidden, 1), nn.Sigmoid())

    def forward(self, losses: Tensor) -> Tensor:
        """Weights [n] of losses [n]."""
        found: Tensor = self.layers(losses.unsqueeze(-1)).squeeze(-1)
        return found


@dataclass
class MetaStep:
    """What one meta step found.

    Attributes:
        gradients: of the weight net's parameters that require grad, in their order.
        meta_loss: mean loss on the meta rows after the pseudo step, a scalar.
        losses: [n] at theta, detached.
        weights: [n], V's (normalised if asked for) before V moves, detached.
        sensitivities: [n], dL_meta/dw_i.
    """

    gradients: list[Tensor]
    meta_loss: Tensor
    losses: Tensor
    weights: Tensor
    sensitivities: Tensor


def meta_weight_step(
    model: nn.Module,
    weight_net: nn.Module,
    batch: tuple[Any, Tensor],
    meta_batch: tuple[Any, Tensor],
    optimizer: torch.optim.Optimizer | None = None,
    *,
    lr: float | None = None,
    normalise: bool = False,
    sample_loss: SampleLoss = sample_cross_entropy,
    derivative: str = "jvp",
) -> MetaStep:
    """The exact gradient of the meta loss with respect to the weight net; nothing is changed.

    Args:
        model: any module; its mode (train or eval) and its buffers are left as they are.
        weight_net: losses [n] -> weights [n].
        batch: inputs and labels of n samples. meta_batch: the same of trusted rows.
        optimizer: a `torch.optim.SGD` over the model's parameters. The pseudo step is the step that it would
            take: its learning rates, momentum buffers, dampening, nesterov and weight decay.
        lr: instead of an optimizer: a plain step of gradient descent (the original Meta-Weight-Net).
        normalise: weights are divided by their mean in the batch, inside the gradient.
        sample_loss: (output, labels) -> [n].
        derivative: "jvp": forward mode. "double-backward": the same product as the derivative of a
            vector-Jacobian product, for modules with an operation that has no forward formula.

    Raises:
        TypeError, ValueError: an argument is not what is expected. NotImplementedError comes from PyTorch
            where an operation of the model has no forward formula.
        RuntimeError: losses or weights that are not finite.
    """
    _checks.choice("derivative", derivative, ("jvp", "double-backward"))
    rates = _rates(model, optimizer, lr)
    rng = _random_state(model)
    theta = _trainable(model)
    losses = _losses(model, theta, batch, sample_loss)
    return _meta_step(
        model, weight_net, batch, meta_batch, losses, rates, rng, normalise, sample_loss, derivative
    )


class MetaWeightNet:
    """Trains a classifier and its sample weights together; for a user's own loop.

        reweighter = MetaWeightNet(model, torch.optim.SGD(model.parameters(), 0.1, 0.9))
        for (x, y), (meta_x, meta_y) in zip(loader, meta_loader):
            told = reweighter.step((x, y), (meta_x, meta_y))
        w = reweighter.weights(model(x_all), y_all)

    Args:
        model: any module.
        optimizer: `torch.optim.SGD` over its parameters. With another one give `pseudo_lr`: the pseudo step
            is then plain gradient descent.
        hidden: units of V. weight_net: another V (losses [n] -> weights [n]).
        lr, weight_decay: of Adam on V. CW-ERM has 1e-5 and 0, Meta-Weight-Net 1e-3 and 1e-4.
        normalise: divide weights by their mean in the batch.
        meta_interval: V moves at every so many steps.
        sample_loss, derivative, pseudo_lr: as in :func:`meta_weight_step`.
        grad_clamp: limit of each element of the classifier's gradient; None for none.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        hidden: int = 100,
        weight_net: nn.Module | None = None,
        lr: float = 1e-5,
        weight_decay: float = 0.0,
        normalise: bool = False,
        meta_interval: int = 1,
        sample_loss: SampleLoss = sample_cross_entropy,
        derivative: str = "jvp",
        pseudo_lr: float | None = None,
        grad_clamp: float | None = None,
    ):
        _checks.choice("derivative", derivative, ("jvp", "double-backward"))
        _checks.integer("meta_interval", meta_interval, 1, 2**31 - 1)
        _checks.real("lr", lr, positive=True)
        _checks.real("weight_decay", weight_decay, at_least=0.0)
        if grad_clamp is not None:
            _checks.real("grad_clamp", grad_clamp, positive=True)
        _rates(model, None if pseudo_lr is not None else optimizer, pseudo_lr)
        first = next(iter(model.parameters()))
        self.model, self.optimizer = model, optimizer
        self.weight_net = (weight_net or WeightNet(hidden)).to(first.device, first.dtype)
        self.weight_optimizer = torch.optim.Adam(
            self.weight_net.parameters(), lr=lr, weight_decay=weight_decay
        )
        self.normalise, self.meta_interval = normalise, meta_interval
        self.sample_loss, self.derivative = sample_loss, derivative
        self.pseudo_lr, self.grad_clamp = pseudo_lr, grad_clamp
        self.steps = 0

    def step(self, batch: tuple[Any, Tensor], meta_batch: tuple[Any, Tensor] | None) -> MetaStep | None:
        """Move V, then the classifier with V's new weights. None where this step had no meta step.

        The samples go through the model once: the losses that V sees are those that are then weighted, and
        BatchNorm's running statistics move once.
        """
        rng = _random_state(self.model)
        losses = self.sample_loss(_call(self.model, batch[0]), batch[1])
        found = None
        if self.steps % self.meta_interval == 0:
            if meta_batch is None:
                _checks.fail(ValueError, "meta_batch", f"meta rows at step {self.steps}", None)
            rates = _rates(self.model, None if self.pseudo_lr is not None else self.optimizer, self.pseudo_lr)
            found = _meta_step(
                self.model, self.weight_net, batch, meta_batch, losses, rates, rng, self.normalise,
                self.sample_loss, self.derivative,
            )  # fmt: skip
            for parameter, gradient in zip(_movable(self.weight_net), found.gradients, strict=True):
                parameter.grad = gradient
            self.weight_optimizer.step()
        with torch.no_grad():
            weights = _scaled(self.weight_net(losses.detach()), self.normalise)
        self.optimizer.zero_grad(set_to_none=True)
        (weights * losses).mean().backward()
        if self.grad_clamp is not None:
            torch.nn.utils.clip_grad_value_(self.model.parameters(), self.grad_clamp)
        self.optimizer.step()
        self.steps += 1
        return found

    @torch.no_grad()
    def weights(self, output: Any, labels: Tensor) -> Tensor:
        """V's weights [n] for a model's output and labels, not normalised."""
        found: Tensor = self.weight_net(self.sample_loss(output, labels))
        return found

    def state_dict(self) -> dict[str, Any]:
        """Of V, of its optimizer, and the number of steps; the classifier keeps its own."""
        return {
            "weight_net": self.weight_net.state_dict(),
            "weight_optimizer": self.weight_optimizer.state_dict(),
            "steps": self.steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The counterpart of :meth:`state_dict`."""
        self.weight_net.load_state_dict(state["weight_net"])
        self.weight_optimizer.load_state_dict(state["weight_optimizer"])
        self.steps = int(state["steps"])


@dataclass(frozen=True)
class _Rate:
    """The pseudo step of one parameter: theta' = theta - scale * gradient - rest."""

    scale: float
    rest: Tensor | None


def _rates(model: nn.Module, optimizer: torch.optim.Optimizer | None, lr: float | None) -> dict[str, _Rate]:
    """How far each trainable parameter goes along its gradient, and what is added to that."""
    if (optimizer is None) == (lr is None):
        _checks.fail(
            TypeError, "optimizer", "either an optimizer or lr", "both" if lr is not None else "none"
        )
    names = {parameter: name for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not names:
        _checks.fail(ValueError, "model", "parameters that require grad", "none")
    if optimizer is None:
        rate = _checks.real("lr", lr, positive=True)
        return {name: _Rate(rate, None) for name in names.values()}
    if not isinstance(optimizer, torch.optim.SGD):
        got = type(optimizer).__name__
        _checks.fail(TypeError, "optimizer", "torch.optim.SGD (or lr for a plain pseudo step)", got)
    rates = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter in names:
                rates[names[parameter]] = _sgd_rate(group, parameter, optimizer.state.get(parameter, {}))
    missing = sorted(set(names.values()) - set(rates))
    if missing:
        _checks.fail(
            ValueError, "optimizer", "every trainable parameter of the model", f"none for {missing[0]}"
        )
    return rates


def _sgd_rate(group: dict[str, Any], parameter: Tensor, state: dict[str, Any]) -> _Rate:
    """torch.optim.SGD's step as it depends on the gradient g.

    d = g + weight_decay theta; b = momentum b + (1 - dampening) d; theta' = theta - lr b.
    """
    if group.get("maximize"):
        _checks.fail(ValueError, "optimizer", "one that minimises", "maximize=True")
    lr, momentum, decay = float(group["lr"]), group["momentum"], group["weight_decay"]
    buffer = state.get("momentum_buffer")
    fresh = 1.0 if buffer is None else 1.0 - group["dampening"]  # the first buffer is the gradient itself
    if momentum == 0:
        scale, of_buffer = 1.0, 0.0
    elif group["nesterov"]:
        scale, of_buffer = 1.0 + momentum * fresh, momentum * momentum
    else:
        scale, of_buffer = fresh, momentum
    rest = None
    if decay:
        rest = lr * scale * decay * parameter.detach()
    if buffer is not None and of_buffer:
        held = lr * of_buffer * buffer
        rest = held if rest is None else rest + held
    return _Rate(lr * scale, rest)


def _meta_step(
    model: nn.Module, weight_net: nn.Module, batch: tuple[Any, Tensor], meta_batch: tuple[Any, Tensor],
    losses: Tensor, rates: dict[str, _Rate], rng: Any, normalise: bool, sample_loss: SampleLoss,
    derivative: str,
) -> MetaStep:  # fmt: skip
    """`losses` with their graph, which is kept for whoever made them."""
    for name, rows in (("batch", batch), ("meta_batch", meta_batch)):
        if not len(rows[1]):
            _checks.fail(ValueError, name, "at least one sample", "none")
    held = losses.detach()
    if held.shape != batch[1].shape[:1]:
        _checks.fail(ValueError, "sample_loss", f"losses [{len(batch[1])}]", tuple(held.shape))
    _finite("losses", held)
    weights = _scaled(weight_net(held), normalise)
    _finite("weights", weights.detach())
    theta = _trainable(model)
    count = len(held)
    gradients = torch.autograd.grad(
        (weights.detach() * losses).sum() / count, list(theta.values()), retain_graph=True, allow_unused=True
    )
    moved = {
        name: _moved(parameter, gradient, rates[name])
        for (name, parameter), gradient in zip(theta.items(), gradients, strict=True)
    }
    meta_loss = _losses(model, moved, meta_batch, sample_loss).mean()
    directions = torch.autograd.grad(meta_loss, list(moved.values()), allow_unused=True)
    scaled = {
        name: torch.zeros_like(moved[name]) if direction is None else direction * rates[name].scale
        for name, direction in zip(moved, directions, strict=True)
    }
    with _replayed(rng):
        if derivative == "jvp":
            product = _forward_product(model, theta, scaled, batch, sample_loss)
        else:
            product = _double_backward_product(losses, theta, scaled)
    sensitivities = -product / count
    found = torch.autograd.grad((sensitivities * weights).sum(), _movable(weight_net))
    return MetaStep(list(found), meta_loss.detach(), held, weights.detach(), sensitivities)


def _forward_product(
    model: nn.Module, theta: dict[str, Tensor], direction: dict[str, Tensor], batch: tuple[Any, Tensor],
    sample_loss: SampleLoss,
) -> Tensor:  # fmt: skip
    with torch.no_grad(), forward_ad.dual_level():
        dual = {name: forward_ad.make_dual(p.detach(), direction[name]) for name, p in theta.items()}
        tangent = forward_ad.unpack_dual(_losses(model, dual, batch, sample_loss)).tangent
    if tangent is None:  # no loss depends on a trainable parameter
        return torch.zeros(len(batch[1]), dtype=next(iter(theta.values())).dtype, device=batch[1].device)
    return tangent


def _double_backward_product(
    losses: Tensor, theta: dict[str, Tensor], direction: dict[str, Tensor]
) -> Tensor:
    """u -> J^T u is linear in u; its derivative along the direction is J direction."""
    u = torch.zeros_like(losses, requires_grad=True)
    back = torch.autograd.grad(losses, list(theta.values()), u, create_graph=True, allow_unused=True)
    pairs = [(b, direction[name]) for name, b in zip(theta, back, strict=True) if b is not None]
    product: Tensor = torch.autograd.grad([b for b, _ in pairs], u, [d for _, d in pairs])[0]
    return product


def _moved(parameter: Tensor, gradient: Tensor | None, rate: _Rate) -> Tensor:
    moved = parameter.detach().clone()
    if gradient is not None:
        moved.sub_(gradient, alpha=rate.scale)
        if rate.rest is not None:
            moved.sub_(rate.rest)
    return moved.requires_grad_()


def _losses(
    model: nn.Module, parameters: dict[str, Tensor], batch: tuple[Any, Tensor], sample_loss: SampleLoss
) -> Tensor:
    """Losses [n] of the model with other parameters; its buffers are copied, so that none moves."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    inputs = batch[0] if isinstance(batch[0], tuple) else (batch[0],)
    return sample_loss(functional_call(model, (parameters, buffers), inputs), batch[1])


def _call(model: nn.Module, inputs: Any) -> Any:
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def _trainable(model: nn.Module) -> dict[str, Tensor]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _movable(module: nn.Module) -> list[nn.Parameter]:
    return [p for p in module.parameters() if p.requires_grad]


def _scaled(weights: Tensor, normalise: bool) -> Tensor:
    return weights / weights.mean() if normalise else weights


def _finite(name: str, values: Tensor) -> None:
    if not bool(torch.isfinite(values).all()):
        row = int((~torch.isfinite(values)).nonzero()[0, 0])
        raise RuntimeError(f"{name}: expected finite values, got {values[row].item()} for sample {row}")


def _random_state(model: nn.Module) -> list[tuple[torch.device, Tensor]]:
    """Generators that a forward pass may draw from."""
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    return [(d, _get_state(d)) for d in (torch.device("cpu"), *devices)]


@contextmanager
def _replayed(states: list[tuple[torch.device, Tensor]]) -> Iterator[None]:
    """Dropout masks of the second pass at theta are those of the first."""
    now = [(device, _get_state(device)) for device, _ in states]
    _set_states(states)
    try:
        yield
    finally:
        _set_states(now)


def _get_state(device: torch.device) -> Tensor:
    return torch.get_rng_state() if device.type == "cpu" else torch.cuda.get_rng_state(device)


def _set_states(states: list[tuple[torch.device, Tensor]]) -> None:
    for device, state in states:
        if device.type == "cpu":
            torch.set_rng_state(state)
        else:
            torch.cuda.set_rng_state(state, device)
