"""P4D: prompts whose prediction by the unlearned model is that of the original one (arXiv 2309.06135).

The extra tokens are embeddings that move freely; in each step the nearest tokens stand in for them, and the
gradient found there is applied to the embeddings. This is the form in which UnlearnDiffAtk's code compares
with it. With SDXL's two encoders an embedding is that of both side by side, and so is the nearest token's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from tenfold import _checks
from tenfold.diffusion.attack.base import Proposal
from tenfold.diffusion.attack.draws import case_stream, random_tokens
from tenfold.diffusion.attack.gradient import (
    GradientAttack,
    Text,
    allowed_tokens,
    attack_times,
    check_losses,
    loss_gradient,
    noise_block,
)
from tenfold.diffusion.attack.steps import adam_, inverse_norms, nearest_token
from tenfold.diffusion.attack.target import Case, Target, decode, survives
from tenfold.diffusion.bundle import Bundle
from tenfold.diffusion.condition import Condition
from tenfold.diffusion.encode import check_shared_words, condition, embed_ids, word_table

__all__ = ["P4D"]


@dataclass(frozen=True)
class P4D(GradientAttack):
    """Settings of `GradientAttack`.

    compat: "reference" reads the original prompt, too, with the unlearned model's text encoder, as the
        published code does; where that encoder is what was unlearned, the attack then has no original to aim
        at.
    """

    name: ClassVar[str] = "p4d"

    def check(self, target: Target, cases: Sequence[Case]) -> None:
        """See `base.Attack`."""
        if target.original is None:
            _checks.fail(ValueError, "target", "one with its original model, which p4d imitates", "none")
        check_shared_words(target.original)
        super().check(target, cases)

    def begin(self, target: Target, cases: list[Case]) -> tuple[P4DSearch, list[int]]:
        """See `base.Attack`."""
        text = Text.of(target.bundle, [case.prompt for case in cases], self.k, self.overflow)
        return P4DSearch(self, target, cases, text), list(text.cut)

    def propose(self, target: Target, searches: Sequence[P4DSearch]) -> list[list[Proposal]]:
        """See `base.Attack`."""
        original = _original(target)
        text = Text.joined([s.text for s in searches])
        cases = [case for s in searches for case in s.cases]
        x0 = torch.cat([s.x0 for s in searches])
        read = Condition.cat([s.read for s in searches])
        times = [s.time for s in searches for _ in s.cases]
        t = torch.tensor(times, device=x0.device)
        blocks = [s.noise() for s in searches]
        total = torch.zeros(len(cases), device=x0.device)
        for i in range(self.iterations):
            noise = torch.cat([block[i] for block in blocks])
            z = target.bundle.schedule.add_noise(x0, noise, t)
            with torch.no_grad():
                wanted = original.predict(z.to(original.dtype), t, read)
            extra = torch.cat([s.nearest() for s in searches])
            loss, gradient = loss_gradient(
                target.bundle, text, embed_ids(target.bundle, extra), extra, self.mode, z, t, wanted,
                self.criterion,
            )  # fmt: skip
            total += loss
            if x0.device.type == "cpu":
                check_losses(cases, loss, times, f", iteration {i}")
            parts = gradient.split([len(s.cases) for s in searches])
            for search, part in zip(searches, parts, strict=True):
                search.step(part)
        check_losses(cases, total, times, "")
        sums = iter(total.tolist())
        return [s.candidates(target, [next(sums) for _ in s.cases]) for s in searches]


def _original(target: Target) -> Bundle:
    if target.original is None:  # `check` has said so
        raise AssertionError("no original")
    return target.original


class P4DSearch:
    """Embeddings e [n, k, D] and Adam's moments of prompts that were taken up together."""

    def __init__(self, attack: P4D, target: Target, cases: list[Case], text: Text):
        self.attack, self.cases, self.text = attack, list(cases), text
        self.table = word_table(target.bundle)
        self.inv_norm = inverse_norms(self.table)
        self.mask = allowed_tokens(target.bundle, attack.banned)
        device = self.table.device
        self.x0 = torch.stack([c.image for c in cases if c.image is not None]).to(device).float()
        self.times = attack_times(attack.timesteps, attack.order, len(target.bundle.schedule))
        self.streams = [case_stream(c.case_number) for c in cases]
        reader = _original(target) if attack.compat == "fixed" else target.bundle
        with torch.no_grad():
            self.read = condition(reader, [c.prompt for c in cases], overflow="truncate")
            self.e = self._start(target.bundle, device)
        self.m, self.v = torch.zeros_like(self.e), torch.zeros_like(self.e)
        self.block = 0

    def _start(self, bundle: Bundle, device: Any) -> Tensor:
        """Embeddings of random tokens."""
        size = self.table.shape[0]
        allowed = torch.arange(size) if self.mask is None else self.mask.cpu().nonzero()[:, 0]
        rows = [
            random_tokens(self.attack.seed, s, 1, self.attack.k, allowed, start=True) for s in self.streams
        ]
        return embed_ids(bundle, torch.cat(rows).to(device)).float().clone()

    @property
    def time(self) -> int:
        return self.times[self.block]

    @property
    def over(self) -> bool:
        return self.block >= len(self.times)

    def noise(self) -> Tensor:
        steps = self.attack.iterations
        self.done = self.block * steps
        return noise_block(self.attack.seed, self.streams, self.done, steps, self.x0)

    def nearest(self) -> Tensor:
        n, k, width = self.e.shape
        ids, _ = nearest_token(self.e.view(n * k, width), self.table, self.inv_norm, mask=self.mask)
        return ids.view(n, k)

    def step(self, gradient: Tensor) -> None:
        self.done += 1
        adam_(
            self.e, self.m, self.v, gradient, lr=self.attack.lr, weight_decay=self.attack.weight_decay,
            step=self.done,
        )  # fmt: skip

    def candidates(self, target: Target, losses: Sequence[float]) -> list[Proposal]:
        """The nearest tokens, as text; moves on to the next timestep."""
        nearest = self.nearest()
        rows = self.text.rows(nearest, self.attack.mode)
        found = [
            Proposal(
                decode(target.bundle, row), ids.tolist(), row, self.time, loss, survives(target.bundle, row)
            )
            for row, ids, loss in zip(rows, nearest, losses, strict=True)
        ]
        self.block += 1
        return found

    def keep(self, rows: list[int]) -> None:
        self.cases = [self.cases[i] for i in rows]
        self.streams = [self.streams[i] for i in rows]
        self.text.keep(rows)
        self.x0, self.read = self.x0[rows], self.read[rows]
        self.e, self.m, self.v = self.e[rows], self.m[rows], self.v[rows]
