"""Textual inversion: word embeddings for what pictures show (Gal et al., arXiv 2208.01618)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tenfold import _checks
from tenfold.diffusion.bundle import Bundle
from tenfold.diffusion.encode import embed_ids, encode_embeds, tokenize, word_table
from tenfold.diffusion.erase.target import mse

__all__ = ["Slots", "denoising_loss", "pull_norms", "slots_of", "start_vectors"]


@dataclass(frozen=True, eq=False)
class Slots:
    """A prompt with places for embeddings of its own.

    ids: int64 [1, L]; ids in the places mean nothing. places: bool [L]. end: bool [L], end tokens, padding
    with the end token included.
    """

    ids: Tensor
    places: Tensor
    end: Tensor

    def states(self, bundle: Bundle, vectors: Tensor) -> Tensor:
        """Text states [1, L, D] with `vectors` [n, D] in the places; gradients flow to them."""
        embeds = embed_ids(bundle, self.ids).index_put((torch.zeros_like(self.at), self.at), vectors)
        return encode_embeds(bundle, self.ids, embeds)

    @property
    def at(self) -> Tensor:
        return self.places.nonzero()[:, 0]


def slots_of(bundle: Bundle, template: str, count: int) -> Slots:
    """`count` places at {} of a template.

    Raises:
        ValueError: they do not fit the context beside the template's own tokens.
    """
    before, after = template.split("{}", 1)
    parts = tokenize(bundle, [before, after])
    (a, b), (n, m) = parts.ids, parts.lengths.tolist()
    context = bundle.context
    if n + count + m > context - 2:
        got = f"{n + count + m} in {template!r} with {count} places"
        _checks.fail(ValueError, "template", f"at most {context - 2} tokens", got)
    ids = torch.full((1, context), int(bundle.tokenizer.pad_token_id), dtype=torch.int64, device=a.device)
    filler = a[0]  # any id but the end token's
    row = torch.cat([a[: 1 + n], filler.expand(count), b[1 : 1 + m], b[1 + m : 2 + m]])
    ids[0, : len(row)] = row
    places = torch.zeros(context, dtype=torch.bool, device=a.device)
    places[1 + n : 1 + n + count] = True
    return Slots(ids, places, ids[0] == bundle.tokenizer.eos_token_id)


def start_vectors(bundle: Bundle, words: str, count: int | None, rng: Any) -> Tensor:
    """[n, D]: the embeddings of the words' own tokens, the rest of `count` standard normals."""
    tokens = tokenize(bundle, [words])
    own = embed_ids(bundle, tokens.ids[0, 1 : 1 + int(tokens.lengths[0])]).detach().clone()
    if count is None:
        return own
    more = rng.standard_normal((max(count - len(own), 0), own.shape[1]), dtype="float32")
    return torch.cat([own, torch.from_numpy(more).to(own)])[:count]


def pull_norms(vectors: Tensor, lr: float, norm: float) -> None:
    """Pull each vector's length towards `norm`, by the share min(1, 100 lr), in place."""
    with torch.no_grad():
        length = vectors.norm(dim=-1, keepdim=True)
        vectors.copy_(F.normalize(vectors, dim=-1) * (length + min(1.0, 100 * lr) * (norm - length)))


def usual_norm(bundle: Bundle) -> float:
    """Mean length of the text encoder's word embeddings."""
    return float(word_table(bundle).detach().float().norm(dim=-1).mean())


def denoising_loss(bundle: Bundle, clean: Tensor, noise: Tensor, t: Tensor, states: Tensor) -> Tensor:
    """Squared error of the UNet's own output (noise, v or sample) at z_t of clean latents [B, C, h, w]."""
    z = bundle.schedule.add_noise(clean, noise, t)
    return mse(bundle.unet_output(z, t, states), bundle.schedule.from_noise(noise, z, t))
