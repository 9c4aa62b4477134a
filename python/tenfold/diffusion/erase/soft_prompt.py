"""The attack inside AdvUnlearn: word embeddings in front of the concept that bring it back.

    min over delta of mean((e(z, t, splice(delta, concept)) - e_original(z, t, concept))^2)

The model is made to imitate the original one, not the noise. There is no ball around a starting point: the
attack is bound by its k positions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from tenfold.diffusion.condition import Condition
from tenfold.diffusion.encode import (
    Tokens,
    condition_embeds,
    condition_ids,
    embed_ids,
    encode_ids,
    end_positions,
    splice,
    splice_ids,
    vocabulary_size,
)
from tenfold.diffusion.erase.target import mse

if TYPE_CHECKING:
    from tenfold.diffusion.bundle import Bundle
    from tenfold.diffusion.erase.bank import Draw

__all__ = ["ATTACKS", "INITS", "SPACES", "SoftPrompt", "attack"]

ATTACKS = ("pgd", "fast_at")
INITS = ("random", "latest")
SPACES = ("word_embd", "condition_embd")


@dataclass(frozen=True)
class SoftPrompt:
    """How extra embeddings get into a prompt. k, mode: as `splice` has them; space: "word_embd", k
    embeddings spliced in (of SDXL both encoders', side by side), or "condition_embd", a delta on the text
    states [L, D] (SDXL's pooled text stays). compat: see `AdvUnlearn`."""

    k: int
    mode: str
    space: str
    compat: str

    def size(self, tokens: Tokens) -> int:
        """k; for mode "add" the prompt's own length."""
        return int(tokens.lengths.max()) if self.mode == "add" else self.k

    def start(self, bundle: Bundle, tokens: Tokens, rng: np.random.Generator) -> Tensor:
        """Embeddings [1, k, D] of random words; for states zeros."""
        if self.space == "condition_embd":
            with torch.no_grad():
                return torch.zeros_like(encode_ids(bundle, tokens.ids))
        ids = torch.from_numpy(rng.integers(vocabulary_size(bundle), size=(1, self.size(tokens))))
        return embed_ids(bundle, ids.to(bundle.device)).detach().clone()

    def condition(self, bundle: Bundle, tokens: Tokens, delta: Tensor) -> Condition:
        """What the UNet reads of the prompt with `delta` in it, one row."""
        if self.space == "condition_embd":
            plain = condition_ids(bundle, tokens.ids)
            return Condition(plain.states + delta, plain.pooled)
        size = delta.shape[1]
        extra = torch.full((1, size), int(bundle.tokenizer.unk_token_id or 0), device=delta.device)
        ids = splice_ids(tokens.ids, extra, tokens.lengths, self.mode, compat=self.compat)
        end = end_positions(tokens.lengths, size, self.mode)
        return condition_embeds(bundle, ids, self.spliced(bundle, tokens, delta), end=end)

    def spliced(self, bundle: Bundle, tokens: Tokens, delta: Tensor) -> Tensor:
        """Word embeddings [1, L, D] of the prompt with `delta` in it."""
        return splice(
            embed_ids(bundle, tokens.ids).detach(), delta, tokens.lengths, self.mode, compat=self.compat
        )

    def latest(self, bundle: Bundle, tokens: Tokens, delta: Tensor) -> Tensor:
        """Where the next attack starts: the last delta. "reference": slots 1 .. k of the last spliced prompt,
        wherever the delta was put."""
        if self.compat == "reference" and self.space == "word_embd":
            return self.spliced(bundle, tokens, delta)[:, 1 : 1 + delta.shape[1]].clone()
        return delta.clone()


def attack(
    bundle: Bundle,
    tokens: Tokens,
    soft: SoftPrompt,
    delta: Tensor,
    draw: Callable[[int], Draw],
    *,
    kind: str,
    steps: int,
    lr: float,
    check: Callable[[Tensor, Draw, int], None],
) -> Tensor:
    """`delta` after `steps` of Adam, each at a new draw; the bundle's weights get no gradient.

    Args:
        kind: "pgd", or "fast_at": the gradient's sign goes into Adam.
        check: called with (loss, draw, step); raises where the loss is not finite.
    """
    delta = delta.detach().clone().requires_grad_(True)
    optimizer = torch.optim.Adam([delta], lr=lr)
    for step in range(steps):
        drawn = draw(step)
        text = soft.condition(bundle, tokens, delta).expand(len(drawn.z))
        loss = mse(bundle.predict(drawn.z, drawn.t, text), drawn.ep)
        check(loss, drawn, step)
        (gradient,) = torch.autograd.grad(loss, delta)
        if soft.compat == "reference":
            if soft.space == "condition_embd":  # the published loop never hands its updates to the network
                continue
            gradient = gradient if delta.grad is None else delta.grad + gradient
        delta.grad = gradient.sign() if kind == "fast_at" else gradient
        optimizer.step()
    return delta.detach()
