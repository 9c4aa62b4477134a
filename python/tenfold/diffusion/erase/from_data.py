"""What SalUn, EDiff, SHS and concept ablation have in common: two sets of pictures and two losses.

    forget   || e(x_t, t, c) - sg e(x_t, t, c') ||^2    x a picture of the concept, c its prompt, c' what the
                                                        prompt is to mean instead
    retain   || e(x_t, t, c) - noise ||^2               x a picture that stays, c its prompt

e is the noise prediction of the model that is trained, t is uniform, sg stops the gradient. Both losses are
of noise whatever the UNet's output means, so they are the same for a model that predicts v or a clean sample.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from tenfold import _checks
from tenfold.diffusion.bundle import Bundle
from tenfold.diffusion.erase.bank import rng_of
from tenfold.diffusion.erase.concept import Concept, check_fit, check_words, words_of
from tenfold.diffusion.erase.data import ConceptData, Order
from tenfold.diffusion.erase.edit import Edit, weights_edit
from tenfold.diffusion.erase.loop import Loop, Progress, States, check_trainable, run
from tenfold.diffusion.erase.target import snr_weight, weighted_mse
from tenfold.diffusion.erase.trainable import UNET_METHODS, trainable
from tenfold.diffusion.sampling import SAMPLERS

__all__ = ["DataEraser", "DataLoop", "Drawn", "check_pairs"]

FORGET, RETAIN, INNER, FIRST = range(4)
"""Streams of pictures, noise and timesteps, each with numbers of its own."""


@dataclass(frozen=True)
class DataEraser:
    """train_method: which weights of the UNet (`trainable`).
    lr, batch: of Adam; pictures of each set in a step.
    epochs: times that every picture of the concept is visited. iterations: steps instead of epochs.
    alpha: weight between the two losses, see each eraser.
    snr_gamma: weight noise errors by min(SNR, gamma) / SNR (Min-SNR, arXiv 2303.09556); None, not at all. A
        model that predicts clean samples turns small errors at low noise into large ones of noise: give it 5.
    pictures: how many are drawn of a concept without `ConceptData`, by `steps` of `sampler` under `guidance`.
    """

    train_method: str = "xattn"
    lr: float = 1e-5
    batch: int = 4
    epochs: int = 2
    iterations: int | None = None
    alpha: float = 1.0
    snr_gamma: float | None = None
    pictures: int = 60
    steps: int = 50
    guidance: float = 7.5
    sampler: str = "ddim"

    name: ClassVar[str] = ""

    def __post_init__(self) -> None:
        _checks.choice("train_method", self.train_method, UNET_METHODS)
        _checks.choice("sampler", self.sampler, SAMPLERS)
        for name, low in (("batch", 1), ("epochs", 1), ("pictures", 1), ("steps", 1)):
            _checks.integer(name, getattr(self, name), low, 10**7)
        if self.iterations is not None:
            _checks.integer("iterations", self.iterations, 1, 10**9)
        _checks.real("lr", self.lr, positive=True)
        for name in ("alpha", "guidance"):
            _checks.real(name, getattr(self, name), at_least=0.0)
        if self.snr_gamma is not None:
            _checks.real("snr_gamma", self.snr_gamma, positive=True)

    @property
    def parts(self) -> tuple[str, ...]:
        """Sets of pictures that it learns from."""
        return ("forget", "retain")

    def training(self, bundle: Bundle, concept: Concept, seed: int) -> DataLoop:
        """The loop that trains a copy of `bundle`, before its first iteration; each method's own."""
        raise NotImplementedError

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
        """Train the UNet; `bundle` stays as it is. The concept's `data` is what is learned from; without it
        the model draws pictures of `prompts` and `retain`, and `anchors` are what prompts are to mean.

        Args:
            seed, progress, state, on_state, state_every: as of `ESD.fit`.

        Raises:
            ValueError: no prompts to retain; a prompt is to mean itself or still names the concept; pictures
                of another size; weights are not float32; two text encoders.
            RuntimeError: a loss is not finite (names iteration, concept and timestep).
        """
        check_fit(bundle, concept, seed)
        check_trainable(bundle)
        loop = self.training(bundle, concept, seed)
        return run(loop, progress=progress, state=state, on_state=on_state, state_every=state_every)


@dataclass(frozen=True, eq=False)
class Drawn:
    """rows int64 [B] of the set; clean latents, noise and latents z at t [B, C, h, w]; t int64 [B]."""

    rows: np.ndarray
    clean: Tensor
    noise: Tensor
    z: Tensor
    t: Tensor


class DataLoop(Loop):
    """The losses and draws. `iterate` is the eraser's."""

    def __init__(self, method: Any, bundle: Bundle, concept: Concept, seed: int):
        data = concept.pictures(
            method.pictures, steps=method.steps, guidance=method.guidance, sampler=method.sampler
        )
        check_pairs(concept, data)
        if "retain" in method.parts and not data.retain_prompts:
            _checks.fail(ValueError, "retain", "prompts to keep", "none")
        for prompts in (data.forget_prompts, data.pseudo_prompts, data.retain_prompts):
            check_words(bundle, tuple(dict.fromkeys(prompts)))
        for module in bundle.modules().values():
            module.requires_grad_(False)
        self.data = data = data.filled(bundle, parts=method.parts, seed=seed)
        count = len(data.forget_prompts)
        visits = None if method.iterations is not None else method.epochs * count
        total = method.iterations or -(-method.epochs * count // method.batch)
        super().__init__(method, bundle, concept, seed, total)
        self.latents = {part: _latents(bundle, getattr(data, f"{part}_images")) for part in method.parts}
        self.orders = {
            FORGET: Order(count, method.batch, seed, FORGET, visits),
            INNER: Order(count, method.batch, seed, INNER),
            FIRST: Order(count, method.batch, seed, FIRST, count),
        }
        if data.retain_prompts:
            self.orders[RETAIN] = Order(len(data.retain_prompts), method.batch, seed, RETAIN)
        self.states = States(bundle)
        self.unet = copy.deepcopy(bundle.unet).eval()
        self.student = bundle.replace(unet=self.unet)
        self.chosen = trainable(self.unet, method.train_method)
        for parameter in self.chosen.values():
            parameter.requires_grad_(True)
        self.parameters = dict(self.chosen)

    def draw(self, stream: int, place: int, latents: Tensor) -> Drawn:
        """Pictures `place` of a stream, with noise and timesteps: a function of seed, stream and place."""
        rows = self.orders[stream].rows(place)
        rng = rng_of(self.seed, 16 + stream, place)
        clean = latents[torch.from_numpy(rows).to(latents.device)]
        noise = torch.from_numpy(rng.standard_normal(tuple(clean.shape), dtype=np.float32)).to(clean)
        t = torch.from_numpy(rng.integers(len(self.original.schedule), size=len(rows))).to(clean.device)
        return Drawn(rows, clean, noise, self.original.schedule.add_noise(clean, noise, t), t)

    def text(self, prompts: tuple[str, ...], rows: np.ndarray) -> Tensor:
        """Text states [B, L, D] of prompts `rows`."""
        return torch.cat([self.states(prompts[i]) for i in rows])

    def forget_loss(self, drawn: Drawn, teacher: Bundle | None = None) -> Tensor:
        """How far the concept's prompts are from what they are to mean. `teacher` answers for the latter: the
        trained model itself if None."""
        pseudo = self.text(self.data.pseudo_prompts, drawn.rows)
        with torch.no_grad():
            target = (teacher or self.student).predict(drawn.z, drawn.t, pseudo)
        own = self.text(self.data.forget_prompts, drawn.rows)
        return self.error(self.student.predict(drawn.z, drawn.t, own), target, drawn, "forget loss")

    def denoising_loss(self, drawn: Drawn, prompts: tuple[str, ...], name: str) -> Tensor:
        """How far the model is from denoising pictures with their prompts."""
        found = self.student.predict(drawn.z, drawn.t, self.text(prompts, drawn.rows))
        return self.error(found, drawn.noise, drawn, name)

    def retain_loss(self, place: int) -> Tensor:
        """The denoising loss of retained pictures."""
        drawn = self.draw(RETAIN, place, self.latents["retain"])
        return self.denoising_loss(drawn, self.data.retain_prompts, "retain loss")

    def error(self, found: Tensor, target: Tensor, drawn: Drawn, name: str) -> Tensor:
        """The weighted mean squared error, finite."""
        weight = snr_weight(self.original, drawn.t, found, self.method.snr_gamma)
        loss = weighted_mse(found, target, weight)
        self.finite(loss, name, drawn.t)
        return loss

    def descend(self, loss: Tensor) -> None:
        """One step of the optimizer."""
        self.optimizers[0].zero_grad(set_to_none=True)
        loss.backward()
        self.optimizers[0].step()

    def details(self) -> dict[str, Any]:
        """More for the edit's details."""
        return {}

    def edit(self) -> Edit:
        details = {
            "eraser": self.method.name, "settings": asdict(self.method), "concept": self.concept.about(),
            "seed": self.seed, "base": self.original.name, "base_sha256": self.base_sha256,
            "trained": len(self.chosen), "losses": self.losses, **self.details(),
        }  # fmt: skip
        self.unet.requires_grad_(False)
        return weights_edit(self.unet, "unet", list(self.parameters), details)


def check_pairs(concept: Concept, data: ConceptData) -> None:
    """Refuse what cannot erase: a prompt that is to mean itself, or something that still names the concept.

    Objects are published with such anchors: "in the style of an image of dogs, a dog ..." is to mean "a dog
    ...", and dogs stay.

    Raises:
        ValueError: names the text.
    """
    words = [re.compile(rf"\b{re.escape(word)}\b", re.IGNORECASE) for word in words_of(concept)]
    for own, pseudo in zip(data.forget_prompts, data.pseudo_prompts, strict=True):
        if own == pseudo or any(word.search(pseudo) for word in words):
            said = " and ".join(map(repr, words_of(concept)))
            expected = f"texts without {said}, other than the concept's prompts"
            _checks.fail(ValueError, "pseudo_prompts", expected, f"{pseudo!r} for {own!r}")


def _latents(bundle: Bundle, images: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([bundle.encode_images(part) for part in images.split(8)])
