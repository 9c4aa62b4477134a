"""A workflow of twenty steps with state: what the command's tests run."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass, field, replace
from typing import Literal

from tenfold.runs import Headline, Report, RunFolder


@dataclass
class ToyConfig:
    """Settings of the toy.

    It walks at random.
    """

    steps: int = 20
    """Number of steps, at least 1."""
    rate: float = 1e-2
    """Size of a step, > 0."""
    kind: Literal["up", "down"] = "up"
    """Direction of the walk."""
    noisy: bool = False
    """Whether noise is added."""
    die_at: int = -1
    """Step at which something happens; -1 for never."""
    how: str = field(
        default="kill", metadata={"help": "What happens there: kill, interrupt, fail, memory, tensor, bug."}
    )
    seed: int = 0
    """Seed of the walk."""
    marks: list[str] = field(default_factory=list)
    """Names of the walk."""
    stops: list[int] | None = None
    """Where it stops; null for nowhere."""
    pause: float | None = None
    """Seconds to wait at the end; null for none."""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps: expected at least 1, got {self.steps}")

    def resolved(self) -> ToyConfig:
        if self.pause is not None and self.pause < 0:
            raise ValueError(f"pause: expected a number >= 0, got {self.pause}")
        return replace(self, pause=self.pause or 0.0)


@dataclass
class Result:
    metrics: dict[str, float]


def run(config: ToyConfig, folder: RunFolder) -> Result:
    state = folder.load_state("walk")
    done, position = (state[0]["done"], state[0]["position"]) if state else (0, 0.0)
    with folder.progress(config.steps, "walk", done=done) as progress:
        for step in range(done, config.steps):
            if step == config.die_at and state is None:
                _end(config.how)
            position += config.rate * ((step * 7919) % 13 - 6) * (1 if config.kind == "up" else -1)
            folder.save_state("walk", {"done": step + 1, "position": position})
            progress.advance(position=position)
    metrics = {"position": position, "noisy": int(config.noisy)}
    folder.finish(metrics, Report("Toy", "A walk.", headlines=[Headline("Position", position, "from 0")]))
    return Result(metrics)


def _end(how: str) -> None:
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "interrupt":
        raise KeyboardInterrupt
    if how == "fail":
        raise ValueError("data: expected a file,\n   got nothing")
    if how == "memory":
        raise MemoryError
    if how == "tensor":
        import torch

        torch.empty(2**46, dtype=torch.uint8)
    raise KeyError("a fault of ours")


def run_nothing(config: ToyConfig, folder: RunFolder) -> Result:
    return Result({})
