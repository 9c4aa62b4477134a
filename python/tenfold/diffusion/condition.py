"""What a UNet reads of a text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tenfold import _checks

__all__ = ["Condition"]


@dataclass(frozen=True, eq=False)
class Condition:
    """What a UNet reads of prompts: text states [B, L, D], and of SDXL also the pooled text [B, P].

    Takes rows and repeats as a tensor does along its first axis.
    """

    states: Tensor
    pooled: Tensor | None = None

    def __len__(self) -> int:
        return len(self.states)

    def __getitem__(self, rows: Any) -> Condition:
        """Rows: a slice, a list, a tensor of indices."""
        return Condition(self.states[rows], None if self.pooled is None else self.pooled[rows])

    def expand(self, count: int) -> Condition:
        """The only row `count` times, without a copy."""
        pooled = None if self.pooled is None else self.pooled.expand(count, -1)
        return Condition(self.states.expand(count, -1, -1), pooled)

    def repeat_interleave(self, count: int) -> Condition:
        """Each row `count` times."""
        pooled = None if self.pooled is None else self.pooled.repeat_interleave(count, 0)
        return Condition(self.states.repeat_interleave(count, 0), pooled)

    def zeros(self) -> Condition:
        """One row of the same shape without any text."""
        pooled = None if self.pooled is None else torch.zeros_like(self.pooled[:1])
        return Condition(torch.zeros_like(self.states[:1]), pooled)

    @staticmethod
    def cat(parts: Sequence[Condition]) -> Condition:
        """One behind the other.

        Raises:
            ValueError: some have pooled text and some have none.
        """
        pooled = [part.pooled for part in parts if part.pooled is not None]
        if pooled and len(pooled) < len(parts):
            _checks.fail(
                ValueError, "parts", "pooled text in all or in none", f"{len(pooled)} of {len(parts)}"
            )
        return Condition(torch.cat([part.states for part in parts]), torch.cat(pooled) if pooled else None)
