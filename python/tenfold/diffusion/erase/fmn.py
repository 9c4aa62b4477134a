"""Forget-Me-Not: cross attention is steered away from a concept (Zhang et al., arXiv 2303.17591).

First the concept is inverted: word embeddings are found that stand for what its pictures show. Then weights
are trained so that no position of a noisy picture of it looks at those words:

    loss = | cross-attention probabilities at the concept's and the end tokens |_2

over all layers, heads and positions. Nothing says what is to be made instead.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from tenfold import _checks
from tenfold.diffusion.bundle import Bundle
from tenfold.diffusion.erase.attention import record
from tenfold.diffusion.erase.bank import rng_of
from tenfold.diffusion.erase.concept import Concept, check_fit, check_words, words_of
from tenfold.diffusion.erase.data import Order
from tenfold.diffusion.erase.edit import Edit, weights_edit
from tenfold.diffusion.erase.inversion import (
    Slots,
    denoising_loss,
    pull_norms,
    slots_of,
    start_vectors,
    usual_norm,
)
from tenfold.diffusion.erase.loop import Loop, Progress, check_trainable, run
from tenfold.diffusion.erase.trainable import UNET_METHODS, trainable
from tenfold.ops import attn_column_norm

__all__ = ["FMN"]

VECTORS, ORDER, DRAW = range(3)


@dataclass(frozen=True)
class FMN:
    """Defaults: UnlearnCanvas' for a style; `object()` has those for an object.

    train_method: weights that are trained (`trainable`); "xattn" for styles, "full" for objects.
    template, inversion_template: prompts with {} for the concept, for the training and for the inversion.
        None: each picture's own prompt, which must name the concept.
    lr, weight_decay, clip, iterations, batch: of AdamW in the training; clip is the largest norm of a
    gradient.
    end_tokens: attention to the end tokens is taken away too (published: use_pooler).
    placeholders: embeddings that stand for the concept; the first ones start at its own words', the others at
    random. None: as many as its words have. inversion_steps, inversion_lr, inversion_decay: of AdamW; with 0
    steps the words' own embeddings are used. norm: that embeddings are pulled to; None, the usual one.
    pictures: that the model makes of the concept's prompts where the concept has no data of its own; steps,
    guidance: of the sampler then.
    """

    train_method: str = "xattn"
    template: str | None = "an image in {} Style"
    inversion_template: str | None = "an image in {} Style"
    lr: float = 2e-5
    weight_decay: float = 0.01
    clip: float = 1.0
    iterations: int = 100
    batch: int = 1
    end_tokens: bool = True
    placeholders: int | None = 10
    inversion_steps: int = 500
    inversion_lr: float = 1e-4
    inversion_decay: float = 0.1
    norm: float | None = 0.4
    pictures: int = 20
    steps: int = 50
    guidance: float = 7.5

    name: ClassVar[str] = "fmn"

    def __post_init__(self) -> None:
        _checks.choice("train_method", self.train_method, UNET_METHODS)
        for name in ("template", "inversion_template"):
            text = getattr(self, name)
            if text is not None and (not isinstance(text, str) or text.count("{}") != 1):
                _checks.fail(ValueError, name, "a text with one {}", _checks.describe(text))
        for name, low in (
            ("iterations", 1), ("batch", 1), ("inversion_steps", 0), ("pictures", 1), ("steps", 1),
        ):  # fmt: skip
            _checks.integer(name, getattr(self, name), low, 10**7)
        if self.placeholders is not None:
            _checks.integer("placeholders", self.placeholders, 1, 2**16)
        for name in ("lr", "inversion_lr", "clip"):
            _checks.real(name, getattr(self, name), positive=True)
        for name in ("weight_decay", "inversion_decay", "guidance"):
            _checks.real(name, getattr(self, name), at_least=0.0)
        if self.norm is not None:
            _checks.real("norm", self.norm, positive=True)
        if not isinstance(self.end_tokens, bool):
            _checks.fail(TypeError, "end_tokens", "True or False", _checks.describe(self.end_tokens))

    @classmethod
    def object(cls, **changes: Any) -> FMN:
        """UnlearnCanvas' setting for an object."""
        own = cls(
            train_method="full", template="a {} image", inversion_template="an image of {}", pictures=51
        )
        return replace(own, **changes)

    @classmethod
    def small(cls, **changes: Any) -> FMN:
        """For a model of a few million weights: its prompts are few, and an edit must reach them; its words
        mean one thing each, and need no inversion."""
        own = cls(
            template=None, inversion_template=None,
            lr=5e-4, iterations=60, batch=4, placeholders=None, norm=None, inversion_steps=0,
            inversion_lr=1e-3, end_tokens=False, steps=12, guidance=3.0,
        )  # fmt: skip
        return replace(own, **changes)

    def fit(
        self,
        bundle: Bundle,
        concept: Concept,
        *,
        seed: int = 0,
        progress: Progress | None = None,
        state: dict[str, Any] | None = None,
        on_state: Callable[[dict[str, Any]], None] | None = None,
        state_every: int = 50,
    ) -> Edit:
        """Invert, then train; `bundle` stays as it is. Iterations count over both. Arguments and errors as of
        `ESD.fit`."""
        check_fit(bundle, concept, seed)
        check_trainable(bundle)
        check_words(bundle, concept.prompts)
        loop = _Training(self, bundle, concept, seed)
        return run(loop, progress=progress, state=state, on_state=on_state, state_every=state_every)


class _Training(Loop):
    def __init__(self, method: FMN, bundle: Bundle, concept: Concept, seed: int):
        super().__init__(method, bundle, concept, seed, method.inversion_steps + method.iterations)
        for module in bundle.modules().values():
            module.requires_grad_(False)
        self.clean, self.prompts = _pictures(method, bundle, concept, seed)
        rng = rng_of(seed, VECTORS)
        words = words_of(concept)[0]
        self.vectors = start_vectors(bundle, words, method.placeholders, rng).requires_grad_()
        self.norm = usual_norm(bundle) if method.norm is None else method.norm
        self.slots, self.inverted = (
            [slots_of(bundle, text, len(self.vectors)) for text in _templates(given, self.prompts, words)]
            for given in (method.template, method.inversion_template)
        )
        unet = copy.deepcopy(bundle.unet)
        self.student = bundle.replace(unet=unet)
        self.chosen = trainable(unet, method.train_method)
        for parameter in self.chosen.values():
            parameter.requires_grad_()
        self.parameters = {"placeholders": self.vectors, **self.chosen}
        self.optimizers = [
            torch.optim.AdamW([self.vectors], lr=method.inversion_lr, weight_decay=method.inversion_decay),
            torch.optim.AdamW(self.chosen.values(), lr=method.lr, weight_decay=method.weight_decay),
        ]

    def iterate(self) -> dict[str, float]:
        rows, clean, noise, t = self._draw()
        if self.done < self.method.inversion_steps:
            return self._invert([self.inverted[i] for i in rows], clean, noise, t)
        return self._steer([self.slots[i] for i in rows], clean, noise, t)

    def _draw(self) -> tuple[list[int], Tensor, Tensor, Tensor]:
        """Pictures, each once in a pass over all, with noise and timesteps."""
        batch = self.method.batch
        rows = Order(len(self.clean), batch, self.seed, ORDER).rows(self.done)
        clean = self.clean[torch.from_numpy(rows).to(self.clean.device)]
        rng = rng_of(self.seed, DRAW, self.done)
        noise = torch.from_numpy(rng.standard_normal(clean.shape, dtype="float32")).to(clean)
        times = torch.from_numpy(rng.integers(len(self.original.schedule), size=batch))
        return rows.tolist(), clean, noise, times.to(clean.device)

    def _invert(self, slots: list[Slots], clean: Tensor, noise: Tensor, t: Tensor) -> dict[str, float]:
        states = torch.cat([one.states(self.original, self.vectors) for one in slots])
        loss = denoising_loss(self.original, clean, noise, t, states)
        self.finite(loss, "inversion loss", t)
        self._step(0, loss)
        pull_norms(self.vectors, self.method.inversion_lr, self.norm)
        return {"loss": float(loss.detach())}

    def _steer(self, slots: list[Slots], clean: Tensor, noise: Tensor, t: Tensor) -> dict[str, float]:
        with torch.no_grad():
            states = torch.cat([one.states(self.original, self.vectors) for one in slots])
        ends = self.method.end_tokens
        mask = torch.stack([one.places | one.end if ends else one.places for one in slots])
        z = self.original.schedule.add_noise(clean, noise, t)
        with record(self.student.unet, "attn2") as recorded:
            self.student.unet_output(z, t, states)
        squares = [attn_column_norm(r.q, r.k, mask, r.scale) for r in recorded]
        loss = torch.stack(squares).sum().sqrt()
        self.finite(loss, "loss", t)
        self._step(1, loss)
        return {"loss": float(loss.detach())}

    def _step(self, which: int, loss: Tensor) -> None:
        optimizer = self.optimizers[which]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if which == 1:
            torch.nn.utils.clip_grad_norm_(self.chosen.values(), self.method.clip)
        optimizer.step()

    def edit(self) -> Edit:
        details = {
            "eraser": self.method.name, "settings": asdict(self.method), "concept": self.concept.about(),
            "seed": self.seed, "base": self.original.name, "base_sha256": self.base_sha256,
            "trained": len(self.chosen), "pictures": len(self.clean), "losses": self.losses,
        }  # fmt: skip
        self.student.unet.requires_grad_(False)
        return weights_edit(self.student.unet, "unet", list(self.chosen), details)


def _pictures(method: FMN, bundle: Bundle, concept: Concept, seed: int) -> tuple[Tensor, tuple[str, ...]]:
    """Latents [N, C, h, w] of pictures of the concept, its own or drawn, and what each shows."""
    data = concept.pictures(method.pictures, steps=method.steps, guidance=method.guidance)
    images = replace(data, retain_prompts=(), retain_images=None).filled(bundle, seed=seed).forget_images
    assert images is not None
    with torch.no_grad():
        clean = torch.cat([bundle.encode_images(part) for part in images.split(8)])
    return clean, data.forget_prompts


def _templates(given: str | None, prompts: tuple[str, ...], words: str) -> list[str]:
    """For each picture the given template, or its prompt with {} in the place of the words."""
    if given is not None:
        return [given] * len(prompts)
    found = []
    for prompt in prompts:
        parts = re.split(
            rf"\b{re.escape(words)}\b", prompt.replace("_", " "), maxsplit=1, flags=re.IGNORECASE
        )
        if len(parts) < 2 or "{}" in prompt:
            _checks.fail(ValueError, "template", f"one, or prompts that name {words!r}", repr(prompt))
        found.append("{}".join(parts))
    return found
