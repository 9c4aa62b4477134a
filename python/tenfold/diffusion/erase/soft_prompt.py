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

from tenfold.diffusion.encode import (
    Tokens,
    embed_ids,
    encode_embeds,
    encode_ids,
    splice,
    splice_ids,
    word_table,
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
    embeddings spliced
    in, or "condition_embd", a delta on the text encoder's whole output [L, D]. compat: see `AdvUnlearn`."""

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
        table = word_table(bundle)
        ids = torch.from_numpy(rng.integers(table.shape[0], size=(1, self.size(tokens)))).to(table.device)
        return embed_ids(bundle, ids).detach().clone()

    def states(self, bundle: Bundle, tokens: Tokens, delta: Tensor) -> Tensor:
        """Text states [1, L, D] of the prompt with `delta` in it."""
        if self.space == "condition_embd":
            return encode_ids(bundle, tokens.ids) + delta
        end = torch.full((1, delta.shape[1]), int(bundle.tokenizer.unk_token_id or 0), device=delta.device)
        ids = splice_ids(tokens.ids, end, tokens.lengths, self.mode, compat=self.compat)
        return encode_embeds(bundle, ids, self.spliced(bundle, tokens, delta))

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
        states = soft.states(bundle, tokens, delta).expand(len(drawn.z), -1, -1)
        loss = mse(bundle.predict(drawn.z, drawn.t, states), drawn.ep)
        check(loss, drawn, step)
        (gradient,) = torch.autograd.grad(loss, delta)
        if soft.compat == "reference":
            if soft.space == "condition_embd":  # the published loop never hands its updates to the network
                continue
            gradient = gradient if delta.grad is None else delta.grad + gradient
        delta.grad = gradient.sign() if kind == "fast_at" else gradient
        optimizer.step()
    return delta.detach()
