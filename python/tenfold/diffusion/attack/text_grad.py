"""UnlearnDiffAtk: tokens found by gradient that bring an erased concept back (arXiv 2310.11868).

The unlearned model is its own classifier: tokens are good if it predicts well the noise that was put on a
picture of the concept. Each extra token is a row of probabilities over the vocabulary; the forward pass reads
one drawn token, the gradient goes straight through to the row, Adam moves it, and it is projected back on the
simplex. SDXL's two encoders read the same tokens: a row's gradient is the sum of what comes through each
encoder's table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from tenfold import _checks
from tenfold.diffusion.attack.base import Proposal
from tenfold.diffusion.attack.draws import case_stream, uniforms
from tenfold.diffusion.attack.gradient import (
    GradientAttack,
    Text,
    allowed_tokens,
    attack_times,
    check_losses,
    loss_gradient,
    noise_block,
)
from tenfold.diffusion.attack.steps import bisection_project, sample_rows, simplex_project, ste_adam_simplex_
from tenfold.diffusion.attack.target import Case, Target, decode, survives, surviving
from tenfold.diffusion.encode import embed_ids, word_table

__all__ = ["TextGrad"]


@dataclass(frozen=True)
class TextGrad(GradientAttack):
    """Settings of `GradientAttack`, and these:

    init: "uniform", 1/V everywhere; "random", rows of random numbers, projected.
    roundtrip: "report" whether a candidate's text has the candidate's ids; "require" takes the best one that
    has.
    compat: "reference", the published bisection for the projection, which loses 3 to 4 % of a row's mass.
    """

    init: str = "uniform"
    roundtrip: str = "report"

    name: ClassVar[str] = "text_grad"

    def __post_init__(self) -> None:
        super().__post_init__()
        _checks.choice("init", self.init, ("uniform", "random"))
        _checks.choice("roundtrip", self.roundtrip, ("report", "require"))

    def begin(self, target: Target, cases: list[Case]) -> tuple[TextGradSearch, list[int]]:
        """See `base.Attack`."""
        text = Text.of(target.bundle, [case.prompt for case in cases], self.k, self.overflow)
        return TextGradSearch(self, target, cases, text), list(text.cut)

    def propose(self, target: Target, searches: Sequence[TextGradSearch]) -> list[list[Proposal]]:
        """See `base.Attack`: `iterations` steps at each search's timestep, all prompts in one batch."""
        text = Text.joined([s.text for s in searches])
        cases = [case for s in searches for case in s.cases]
        x0 = torch.cat([s.x0 for s in searches])
        times = [s.time for s in searches for _ in s.cases]
        t = torch.tensor(times, device=x0.device)
        blocks = [s.draws() for s in searches]
        total = torch.zeros(len(cases), device=x0.device)
        for i in range(self.iterations):
            noise = torch.cat([noise[i] for noise, _ in blocks])
            ids = [s.sample(u[i]) for s, (_, u) in zip(searches, blocks, strict=True)]
            extra = torch.cat(ids)
            z = target.bundle.schedule.add_noise(x0, noise, t)
            loss, gradient = loss_gradient(
                target.bundle, text, embed_ids(target.bundle, extra), extra, self.mode, z, t, noise,
                self.criterion,
            )  # fmt: skip
            total += loss
            if x0.device.type == "cpu":  # elsewhere once a block, so that no step waits for the device
                check_losses(cases, loss, times, f", iteration {i}")
            parts = gradient.split([len(s.cases) for s in searches])
            for search, part in zip(searches, parts, strict=True):
                search.step(part)
        check_losses(cases, total, times, "")
        sums = iter(total.tolist())
        return [s.candidates(target, [next(sums) for _ in s.cases]) for s in searches]


class TextGradSearch:
    """Probabilities p [n, k, V] and Adam's moments of prompts that were taken up together."""

    def __init__(self, attack: TextGrad, target: Target, cases: list[Case], text: Text):
        self.attack, self.cases, self.text = attack, list(cases), text
        self.table = word_table(target.bundle)
        device, size = self.table.device, self.table.shape[0]
        self.x0 = torch.stack([c.image for c in cases if c.image is not None]).to(device).float()
        self.times = attack_times(attack.timesteps, attack.order, len(target.bundle.schedule))
        self.streams = [case_stream(c.case_number) for c in cases]
        allowed = allowed_tokens(target.bundle, attack.banned)
        self.banned = None if allowed is None else ~allowed
        self.p = self._start(len(cases), attack.k, size, device)
        self.m, self.v = torch.zeros_like(self.p), torch.zeros_like(self.p)
        self.block = 0

    @property
    def project(self) -> Callable[[Tensor], Tensor]:
        return bisection_project if self.attack.compat == "reference" else simplex_project

    def _start(self, n: int, k: int, size: int, device: Any) -> Tensor:
        if self.attack.init == "uniform":
            p = torch.full((n * k, size), 1 / size, device=device)
        else:
            rows = [uniforms(self.attack.seed, s, 0, 1, k * size, device)[0] for s in self.streams]
            p = torch.stack(rows).view(n * k, size)
        if self.banned is not None:
            p = p.masked_fill(self.banned, -torch.inf)
        return self.project(p).view(n, k, size)

    @property
    def time(self) -> int:
        return self.times[self.block]

    @property
    def over(self) -> bool:
        return self.block >= len(self.times)

    def draws(self) -> tuple[Tensor, Tensor]:
        """Noise [iterations, n, C, h, w] and uniforms [iterations, n, k] of this block. The random start, if
        there is one, has the first k V uniforms."""
        steps = self.attack.iterations
        first = self.block * steps
        noise = noise_block(self.attack.seed, self.streams, first, steps, self.x0)
        skip = self.table.shape[0] if self.attack.init == "random" else 0
        u = [
            uniforms(self.attack.seed, s, skip + first, steps, self.attack.k, self.x0.device)
            for s in self.streams
        ]
        self.done = first
        return noise, torch.stack(u, dim=1)

    def sample(self, u: Tensor) -> Tensor:
        n, k, size = self.p.shape
        return sample_rows(self.p.view(n * k, size), u.reshape(-1)).view(n, k)

    def step(self, gradient: Tensor) -> None:
        self.done += 1
        p, m, v = (x.view(-1, self.p.shape[2]) for x in (self.p, self.m, self.v))
        ste_adam_simplex_(
            p, m, v, gradient.reshape(-1, gradient.shape[2]), self.table, lr=self.attack.lr,
            weight_decay=self.attack.weight_decay, step=self.done, banned=self.banned, project=self.project,
        )  # fmt: skip

    def candidates(self, target: Target, losses: Sequence[float]) -> list[Proposal]:
        """The likeliest token of each row, as text; moves on to the next timestep."""
        bundle, found = target.bundle, []
        best = self.p.argmax(2)
        for i, loss in enumerate(losses):
            chosen = best[i]
            if self.attack.roundtrip == "require":
                chosen = surviving(bundle, self.p[i].log(), partial(self.row, i))
            row = self.row(i, chosen)
            found.append(
                Proposal(decode(bundle, row), chosen.tolist(), row, self.time, loss, survives(bundle, row))
            )
        self.block += 1
        return found

    def row(self, i: int, extra: Tensor) -> Tensor:
        one = Text(self.text.ids[i : i + 1], self.text.lengths[i : i + 1], self.text.embeds[:0], [0])
        return one.rows(extra[None], self.attack.mode)[0]

    def keep(self, rows: list[int]) -> None:
        self.cases = [self.cases[i] for i in rows]
        self.streams = [self.streams[i] for i in rows]
        self.text.keep(rows)
        self.x0 = self.x0[rows]
        self.p, self.m, self.v = self.p[rows], self.m[rows], self.v[rows]
