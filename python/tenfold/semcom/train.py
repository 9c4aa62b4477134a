"""Training a codec with the channel in the loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tenfold import _checks
from tenfold.semcom.codec import Codec, CodecSpec, make_codec
from tenfold.semcom.images import both_sizes, crops
from tenfold.semcom.link import Link

__all__ = ["TrainSettings", "Trained", "train_codec"]


@dataclass(frozen=True)
class TrainSettings:
    """steps, batch: optimiser steps and codewords (of N pictures each) per step.
    lr: of Adam (betas 0.9, 0.99), falling to zero by a cosine after a short rise.
    snr_db: range that each codeword's SNR is drawn from, uniformly.
    side: pixels of the square patches.
    """

    steps: int = 840
    batch: int = 16
    lr: float = 1.5e-3
    snr_db: tuple[float, float] = (0.0, 20.0)
    side: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        _checks.integer("steps", self.steps, 1, 10**9)
        _checks.integer("batch", self.batch, 1, 10**6)
        _checks.real("lr", self.lr, positive=True)
        _checks.integer("side", self.side, 4, 1 << 16)
        _checks.integer("seed", self.seed, 0, 2**32 - 1)  # a step's draws have seed 2^32 + step
        low, high = (_checks.real("snr_db", value) for value in self.snr_db)
        if low > high:
            _checks.fail(ValueError, "snr_db", "the lower end first", self.snr_db)


@dataclass
class Trained:
    """A codec, frozen, and the losses of its training."""

    codec: Codec
    losses: list[float]


def train_codec(
    spec: CodecSpec,
    pictures: Sequence[Tensor],
    link: Link,
    settings: TrainSettings | None = None,
    *,
    state: dict[str, Tensor] | None = None,
    on_step: Callable[[int, float], None] | None = None,
    checkpoint: Callable[[dict[str, Tensor]], None] | None = None,
    every: int = 0,
    device: str = "cpu",
) -> Trained:
    """Train a codec over the channel of `link`: mean squared error of all users' pictures.

    Pictures, SNRs and channel of a step depend on the seed and the step's number alone.

    Args:
        spec: the codec; `spec.csi` gives the decoder the channels.
        pictures: uint8 [3, H, W], cut into patches.
        state: what `checkpoint` was given; training goes on from there to the same weights.
        on_step: called with the number of steps done and the loss.
        checkpoint: called every `every` steps with a state.

    Raises:
        RuntimeError: the loss is not finite.
    """
    settings = settings or TrainSettings()
    if len(link.power_w) != spec.users:
        _checks.fail(ValueError, "power_w", f"one power for each of {spec.users} users", link.power_w)
    codec = make_codec(spec, seed=settings.seed)
    codec.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.Adam(codec.parameters(), settings.lr, betas=(0.9, 0.99), fused=True)
    losses: list[float] = []
    if state is not None:
        losses = _restore(state, codec, optimizer)
    sources = both_sizes(pictures, settings.side)
    low, high = settings.snr_db
    for step in range(len(losses), settings.steps):
        number = settings.seed * 2**32 + step
        flat = crops(sources, settings.side, settings.batch * spec.users, number)
        images = flat.view(settings.batch, spec.users, *flat.shape[1:]).to(device)
        draw = torch.Generator().manual_seed(number)
        snr = (low + (high - low) * torch.rand(settings.batch, generator=draw)).to(device)
        for group in optimizer.param_groups:
            group["lr"] = settings.lr * _rate(step, settings.steps)
        out, _ = link(codec, images, snr, number)
        loss = (out - images).square().mean()
        if not bool(torch.isfinite(loss)):
            raise RuntimeError(f"loss: expected a finite number, got {loss.item()} in step {step}")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if on_step is not None:
            on_step(step + 1, losses[-1])
        if checkpoint is not None and every and (step + 1) % every == 0 and step + 1 < settings.steps:
            checkpoint(_state(codec, optimizer, losses))
    return Trained(codec.requires_grad_(False).eval(), losses)


def _rate(step: int, steps: int) -> float:
    """Up over the first 2 %, then down to zero by a cosine."""
    rise = min(1.0, (step + 1) / max(1, steps // 50))
    return rise * 0.5 * (1 + float(torch.cos(torch.tensor(torch.pi * step / steps))))


def _state(codec: Codec, optimizer: torch.optim.Optimizer, losses: list[float]) -> dict[str, Tensor]:
    """All that training goes on from, as tensors under flat names."""
    found = {f"codec.{name}": value for name, value in codec.state_dict().items()}
    for number, held in optimizer.state_dict()["state"].items():
        found |= {f"adam.{number}.{name}": value for name, value in held.items()}
    return found | {"losses": torch.tensor(losses, dtype=torch.float64)}


def _restore(state: dict[str, Tensor], codec: Codec, optimizer: torch.optim.Optimizer) -> list[float]:
    weights = {n.removeprefix("codec."): v for n, v in state.items() if n.startswith("codec.")}
    codec.load_state_dict(weights)
    held: dict[int, dict[str, Tensor]] = {}
    for name, value in state.items():
        if name.startswith("adam."):
            _, number, key = name.split(".")
            held.setdefault(int(number), {})[key] = value
    # A file keeps no memory format, and the fused step goes through memory as it lies: moments must lie as
    # their weights do.
    for place, weight in enumerate(codec.parameters()):
        for key, value in held.get(place, {}).items():
            if value.shape == weight.shape:
                held[place][key] = torch.empty_like(weight, requires_grad=False).copy_(value)
    optimizer.load_state_dict({"state": held, "param_groups": optimizer.state_dict()["param_groups"]})
    return [float(value) for value in state["losses"]]
