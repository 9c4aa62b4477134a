"""The protocol of TorchMetrics: its own base class where it is installed, else as much of it as is needed."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor


class PlainMetric(torch.nn.Module):
    """add_state, update, compute, reset and forward as TorchMetrics has them, for list states.

    `compute` gathers the states of all processes of `torch.distributed` when it is initialised.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__()
        if options:
            raise TypeError(f"options: expected none without torchmetrics, got {sorted(options)}")
        self._names: list[str] = []

    def add_state(self, name: str, default: list[Any], dist_reduce_fx: str = "cat") -> None:
        if default or dist_reduce_fx != "cat":
            raise ValueError(f"{name}: expected an empty list that is concatenated, got {default!r}")
        self._names.append(name)
        setattr(self, name, [])

    def reset(self) -> None:
        """Forget all cases."""
        for name in self._names:
            setattr(self, name, [])

    def forward(self, *arguments: Any, **named: Any) -> Any:
        """Take a batch in, and return the value of that batch alone."""
        held = {name: getattr(self, name) for name in self._names}
        self.reset()
        self.update(*arguments, **named)
        value = self._value(gather=False)
        for name in self._names:
            setattr(self, name, [*held[name], *getattr(self, name)])
        return value

    def _value(self, gather: bool) -> Any:
        """The score, of all processes with `gather`; each metric's own."""
        raise NotImplementedError

    def update(self, *arguments: Any, **named: Any) -> None:
        """Take a batch in; each metric's own."""
        raise NotImplementedError

    def _gathered(self, name: str, gather: bool) -> list[Tensor]:
        own: list[Tensor] = getattr(self, name)
        distributed = torch.distributed
        if not (gather and distributed.is_available() and distributed.is_initialized()):
            return own
        everyone: list[Any] = [None] * distributed.get_world_size()
        distributed.all_gather_object(everyone, own)
        return [row for rows in everyone for row in rows]


HAVE_TORCHMETRICS = find_spec("torchmetrics") is not None


def base() -> type[Any]:
    """The class that metrics derive from."""
    if not HAVE_TORCHMETRICS:
        return PlainMetric
    from torchmetrics import Metric

    return Metric
