"""What a step leaves behind: its scalars, and a record of how it went."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

FLAG_GRAD = 0  # value: projected gradient of direction `query`
FLAG_CURVATURE = 1  # value: second difference of the loss along direction `query`
FLAG_CHOICE = 2  # value: -1, 0 or +1, the candidate that a conservative step took
FLAG_SKIPPED = 4  # the step moved nothing


class Scalar(NamedTuple):
    """One number that a step needs besides seed, step sizes and weights; a log of them replays a run.

    Attributes:
        query: index of the direction it belongs to.
        flags: the kind in the low byte (`FLAG_GRAD`, `FLAG_CURVATURE`, `FLAG_CHOICE`, `FLAG_SKIPPED`), the
            index of the block of a block-wise step above it.
        value: a float64.  Projected gradients are those of the first group: where they are a difference
            divided by eps, a group with another eps uses value * eps_0 / eps.
    """

    query: int
    flags: int
    value: float

    @property
    def kind(self) -> int:
        return self.flags & 0xFF

    @property
    def block(self) -> int:
        return self.flags >> 8


@dataclass(frozen=True)
class StepRecord:
    """What one step did.

    Attributes:
        step: its number, from 0.
        seed: the seed of its directions.
        projected_grads: the q factors g_i of the update direction (1/q) sum_i g_i z_i, for the first group
            (where estimates divide by eps, a group with another eps has them scaled by eps_0/eps); of a
            block-wise step, those of each block in turn.  Empty if there was nothing to update by.
        losses: every loss evaluated, in order: L(+), L(-) for each query; one-sided L(theta), then one each;
            whatever else the optimizer evaluates after them.
        skipped: True if the weights were only restored.
        passes: how many times the trainable weights were passed over: probes, restores and the update.
        seconds: wall time on the host in "forward" (the closure) and in "passes" (over the weights); work
            queued on a GPU counts where the host waits for it.
        scalars: what `replay_step` needs to make the same step again.
        lrs: the step size of each group in this step.
        eps: the probe distance of each group in this step.
    """

    step: int
    seed: int
    projected_grads: tuple[float, ...]
    losses: tuple[float, ...]
    skipped: bool
    passes: int
    seconds: dict[str, float]
    scalars: tuple[Scalar, ...] = field(default=())
    lrs: tuple[float, ...] = field(default=())
    eps: tuple[float, ...] = field(default=())
