"""Latents that training happens at, with the original model's answers there.

A draw of ESD and AdvUnlearn: walk from noise towards a picture under guidance, stop at a random noise
level, ask the original model for its predictions. Walks are most of the cost: 25.5 UNet calls on average,
and an attack of 30 steps makes 30 of them in every iteration.

Where the walking model does not change (the text encoder is trained, and walks are conditioned on the
original one) the walks can be made once. `Bank` keeps every step of every walk with one timestep in its
segment and the predictions there; a draw is then a look-up. `Live` walks anew for every draw, as the
published code does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from tenfold.diffusion.condition import Condition
from tenfold.diffusion.encode import condition, no_text
from tenfold.diffusion.sampling import both, ddim_walk, guided, partial_ddim, partial_times, timestep_range

if TYPE_CHECKING:
    from tenfold.diffusion.bundle import Bundle

__all__ = ["Bank", "Draw", "Live", "Walk", "rng_of"]


@dataclass(frozen=True)
class Walk:
    """steps, guidance, alignment: of the DDIM walk. shape: of the latents, (C, h, w)."""

    steps: int
    guidance: float
    alignment: str
    shape: tuple[int, int, int]


@dataclass(frozen=True)
class Draw:
    """z [B, C, h, w], t int64 [B], segment int64 [B]; e0 (no text; None for retained prompts) and ep
    (the prompt):
    the original model's noise predictions [B, C, h, w] at (z, t)."""

    z: Tensor
    t: Tensor
    segment: Tensor
    e0: Tensor | None
    ep: Tensor


def rng_of(seed: int, *place: int) -> np.random.Generator:
    """Random numbers of one place in a training: a function of the place, so that a resumed
    run has the same."""
    return np.random.default_rng([seed, *place])


def _noise(rng: np.random.Generator, count: int, walk: Walk, like: Tensor) -> Tensor:
    return torch.from_numpy(rng.standard_normal((count, *walk.shape), dtype=np.float32)).to(like)


def _teacher(
    original: Bundle, z: Tensor, t: Tensor, cond: Condition, empty: Condition
) -> tuple[Tensor, Tensor]:
    """(e0, ep), in one call."""
    with torch.no_grad():
        found = original.predict(torch.cat([z, z]), torch.cat([t, t]), both(empty, cond))
    e0, ep = found.chunk(2)
    return e0, ep


class _Text:
    """Concept and retained prompts, read by the original text encoders. No text is what pictures are made
    with: SDXL's zeros."""

    def __init__(self, original: Bundle, prompts: tuple[str, ...], retain: tuple[str, ...]):
        with torch.no_grad():
            self.concept = condition(original, list(prompts))
            self.empty = no_text(original)
            self.retain = condition(original, list(retain)) if retain else self.concept[:0]


class Live:
    """Every draw is a walk of `walker`, the model as it is now."""

    def __init__(
        self, original: Bundle, walker: Bundle, text: tuple[tuple[str, ...], tuple[str, ...]], walk: Walk
    ):
        self.original, self.walker, self.walk = original, walker, walk
        self.text = _Text(original, *text)

    def concept(self, rng: np.random.Generator, prompt: int, count: int) -> Draw:
        """`count` latents of one concept prompt, at one timestep."""
        cond = self.text.concept[prompt : prompt + 1].expand(count)
        empty = self.text.empty.expand(count)
        segment = int(rng.integers(self.walk.steps))
        t = self._time(rng, segment)
        z = self._walked(rng, segment, cond, empty)
        times = torch.full((count,), t, device=z.device)
        e0, ep = _teacher(self.original, z, times, cond, empty)
        return Draw(z, times, torch.full((count,), segment), e0, ep)

    def retain(self, rng: np.random.Generator, rows: Any, like: Draw | None = None) -> Draw:
        """One latent of each retained prompt `rows`, at the timestep of `like`, or at a new one."""
        cond = self.text.retain[torch.as_tensor(rows)]
        segment = int(rng.integers(self.walk.steps)) if like is None else int(like.segment[0])
        t = self._time(rng, segment) if like is None else int(like.t[0])
        z = self._walked(rng, segment, cond, self.text.empty.expand(len(cond)))
        times = torch.full((len(cond),), t, device=z.device)
        with torch.no_grad():
            ep = self.original.predict(z, times, cond)
        return Draw(z, times, torch.full((len(cond),), segment), None, ep)

    def _time(self, rng: np.random.Generator, segment: int) -> int:
        return int(
            rng.integers(
                *timestep_range(self.original.schedule, segment, self.walk.steps, self.walk.alignment)
            )
        )

    def _walked(self, rng: np.random.Generator, segment: int, cond: Condition, empty: Condition) -> Tensor:
        noise = _noise(rng, len(cond), self.walk, cond.states)
        return partial_ddim(
            self.walker.predict, self.walker.schedule, noise, segment, cond, empty, steps=self.walk.steps,
            guidance=self.walk.guidance, alignment=self.walk.alignment,
        )  # fmt: skip


class Bank:
    """Walks of the original model, made once.

    size: walks of each concept prompt. retain_size: of each retained prompt. Memory: 3 latents per step
    and walk for concepts (z, e0, ep), 2 for retained prompts.
    """

    def __init__(
        self, original: Bundle, text: tuple[tuple[str, ...], tuple[str, ...]], walk: Walk,
        *, size: int, retain_size: int, seed: int, batch: int = 64,
    ):  # fmt: skip
        self.walk, self.original = walk, original
        self.size, self.retain_size = size, retain_size
        states = _Text(original, *text)
        rng = rng_of(seed, 1 << 20)
        empty = states.empty
        self._concept = self._walks(rng, states.concept.repeat_interleave(size), empty, batch, True)
        self._retain = self._walks(rng, states.retain.repeat_interleave(retain_size), empty, batch, False)

    @property
    def nbytes(self) -> int:
        """Bytes that it holds."""
        return sum(x.nbytes for part in (self._concept, self._retain) for x in part if x is not None)

    def concept(self, rng: np.random.Generator, prompt: int, count: int) -> Draw:
        """`count` latents of one concept prompt, each at a timestep of its own."""
        rows = prompt * self.size + torch.from_numpy(rng.integers(self.size, size=count))
        return self._gather(self._concept, rows, torch.from_numpy(rng.integers(self.walk.steps, size=count)))

    def retain(self, rng: np.random.Generator, rows: Any, like: Draw | None = None) -> Draw:
        """One latent of each retained prompt `rows`, in the segments of `like`, or in new ones."""
        walks = torch.as_tensor(rows) * self.retain_size + torch.from_numpy(
            rng.integers(self.retain_size, size=len(rows))
        )
        if like is None:
            segment = torch.from_numpy(rng.integers(self.walk.steps, size=len(rows)))
        else:
            segment = like.segment[torch.arange(len(rows)) % len(like.segment)]
        return self._gather(self._retain, walks, segment)

    def _gather(self, part: Any, rows: Tensor, segment: Tensor) -> Draw:
        z, t, e0, ep = part
        return Draw(
            z[rows, segment],
            t[rows, segment],
            segment,
            None if e0 is None else e0[rows, segment],
            ep[rows, segment],
        )

    def _walks(
        self, rng: np.random.Generator, cond: Condition, empty: Condition, batch: int, with_empty: bool
    ) -> Any:
        """(z [M, S, ...], t [M, S], e0 or None, ep): entry s of a walk belongs to segment s."""
        steps, schedule, predict = self.walk.steps, self.original.schedule, self.original.predict
        levels, at = _levels(schedule, self.walk)
        noise = _noise(rng, len(cond), self.walk, cond.states)
        low, high = zip(
            *(timestep_range(schedule, s, steps, self.walk.alignment) for s in range(steps)), strict=True
        )
        times = torch.from_numpy(rng.integers(low, high, size=(len(cond), steps))).to(noise.device)
        if not len(cond):
            nothing = noise.new_empty((0, steps, *self.walk.shape))
            return nothing, times, None, nothing
        found: list[Tensor] = []
        for rows in torch.arange(len(cond)).split(batch):
            text, none = cond[rows], empty.expand(len(rows))
            walked = [
                z
                for _, z in ddim_walk(predict, schedule, noise[rows], levels, text, none, self.walk.guidance)
            ]
            answers = []
            for s in range(steps):
                z, t = walked[at[s]], times[rows, s]
                if with_empty:
                    answers.append(torch.stack([z, *_teacher(self.original, z, t, text, none)]))
                else:
                    with torch.no_grad():
                        answers.append(torch.stack([z, guided(predict, z, t, text, None, 1.0)]))
            found.append(torch.stack(answers, 2))  # [3 or 2, b, S, C, h, w]
        whole = torch.cat(found, 1)
        return (whole[0], times, whole[1], whole[2]) if with_empty else (whole[0], times, None, whole[1])


def _levels(schedule: Any, walk: Walk) -> tuple[list[int], list[int]]:
    """Levels of the longest walk, and which of them each segment stops at."""
    longest = partial_times(schedule, 0, walk.steps, walk.alignment)
    at = [len(partial_times(schedule, s, walk.steps, walk.alignment)) - 1 for s in range(walk.steps)]
    return longest, at
