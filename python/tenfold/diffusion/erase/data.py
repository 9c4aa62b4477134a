"""Pictures that data-driven erasers learn from: what is to go, what it is to become, what is to stay.

    data = ConceptData(
        forget_prompts=("A Cats image in Winter style.", ...), forget_images=winter,
        pseudo_prompts=("A Cats image in Photo style.", ...),
        retain_prompts=("A Dogs image in Sketch style.", ...), retain_images=others,
    )
    edit = SalUn().fit(bundle, Concept("Winter", data=data))

Without pictures the model makes them itself, from the same prompts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from tenfold import _checks

if TYPE_CHECKING:
    from tenfold.diffusion.bundle import Bundle

__all__ = ["PARTS", "ConceptData", "Order"]

PARTS = ("forget", "retain", "pseudo")
"""Sets of pictures."""
_SALT = 0x0DA7A


@dataclass(frozen=True, eq=False, repr=False)
class ConceptData:
    """Picture i of a set belongs to prompt i.

    forget_prompts: F texts of the concept. pseudo_prompts: what each of them is to mean instead, F or one for
        all: the same object as a photograph, another object.
    retain_prompts: R texts of what stays.
    forget_images, retain_images: float [F, c, H, W] and [R, c, H, W] in 0..1, of the model's own size; None,
        the model draws them (`filled`) with the settings below. pseudo_images: of the pseudo prompts
        [F, c, H, W], for erasers that learn from those.
    steps, guidance, sampler: of pictures that the model draws.
    """

    forget_prompts: tuple[str, ...]
    pseudo_prompts: tuple[str, ...] = ("",)
    retain_prompts: tuple[str, ...] = ()
    forget_images: Tensor | None = None
    retain_images: Tensor | None = None
    pseudo_images: Tensor | None = None
    steps: int = 50
    guidance: float = 7.5
    sampler: str = "ddim"

    def __post_init__(self) -> None:
        for name in ("forget_prompts", "pseudo_prompts", "retain_prompts"):
            object.__setattr__(self, name, _texts(name, getattr(self, name)))
        count = len(self.forget_prompts)
        if not count:
            _checks.fail(ValueError, "forget_prompts", "texts of the concept", "none")
        if len(self.pseudo_prompts) not in (1, count):
            _checks.fail(ValueError, "pseudo_prompts", f"1 or {count} texts", len(self.pseudo_prompts))
        object.__setattr__(self, "pseudo_prompts", self.pseudo_prompts * (count // len(self.pseudo_prompts)))
        _pictures("forget_images", self.forget_images, count)
        _pictures("retain_images", self.retain_images, len(self.retain_prompts))
        _pictures("pseudo_images", self.pseudo_images, count)
        _checks.integer("steps", self.steps, 1, 10**5)
        _checks.real("guidance", self.guidance, at_least=0.0)

    def filled(
        self, bundle: Bundle, *, parts: Sequence[str] = ("forget", "retain"), seed: int = 0, batch: int = 16
    ) -> ConceptData:
        """With pictures of `parts`, drawn by `bundle` from the prompts where there are none.

        Args:
            parts: of "forget", "retain", "pseudo".

        Raises:
            ValueError: given pictures are not of the model's size.
        """
        from tenfold.diffusion.sampling import generate

        shape = bundle.picture_shape()
        new: dict[str, Any] = {}
        for part in parts:
            place = PARTS.index(_checks.choice("parts", part, PARTS))
            name, prompts = f"{part}_images", getattr(self, f"{part}_prompts")
            given = getattr(self, name)
            if given is not None and len(given) and tuple(given.shape[1:]) != shape:
                _checks.fail(ValueError, name, f"pictures {list(shape)}", list(given.shape[1:]))
            if given is None and prompts:
                draws = np.random.default_rng([seed, _SALT, place])
                seeds = draws.integers(2**32, size=len(prompts), dtype=np.uint32).tolist()
                new[name] = generate(
                    bundle, list(prompts), seeds, steps=self.steps, guidance=self.guidance,
                    sampler=self.sampler, batch=batch,
                )  # fmt: skip
        return replace(self, **new) if new else self

    def about(self) -> dict[str, Any]:
        """What a report or a saved edit says: prompts, and digests in the place of pictures."""
        return {
            "forget_prompts": list(self.forget_prompts), "pseudo_prompts": list(self.pseudo_prompts),
            "retain_prompts": list(self.retain_prompts), "forget_images": _digest(self.forget_images),
            "retain_images": _digest(self.retain_images), "pseudo_images": _digest(self.pseudo_images),
            "steps": self.steps, "guidance": self.guidance,
            "sampler": self.sampler,
        }  # fmt: skip

    def __repr__(self) -> str:
        # Two data sets with the same text are the same: a resumed training compares it.
        found = hashlib.sha256(repr(self.about()).encode()).hexdigest()[:16]
        return f"ConceptData({len(self.forget_prompts)} forget, {len(self.retain_prompts)} retain, {found})"


@dataclass(frozen=True)
class Order:
    """Which of `count` items each batch holds: every item once in an epoch, in an order that the seed and the
    epoch give. A batch may reach into the next epoch, so that none is short.

    total: items of the whole training, after which a batch ends; None, there is no end.
    """

    count: int
    batch: int
    seed: int
    salt: int
    total: int | None = None

    def rows(self, iteration: int) -> np.ndarray:
        """Item numbers int64 [at most batch] of a batch."""
        start = iteration * self.batch
        stop = start + self.batch if self.total is None else min(start + self.batch, self.total)
        return np.array([self._item(place) for place in range(start, stop)], dtype=np.int64)

    def __iter__(self) -> Iterator[np.ndarray]:
        iteration = 0
        while self.total is None or iteration * self.batch < self.total:
            yield self.rows(iteration)
            iteration += 1

    def _item(self, place: int) -> int:
        epoch, at = divmod(place, self.count)
        return int(np.random.default_rng([self.seed, self.salt, epoch]).permutation(self.count)[at])


def _texts(name: str, value: object) -> tuple[str, ...]:
    texts = tuple(_checks.sequence(name, value, "texts"))
    for text in texts:
        if not isinstance(text, str):
            _checks.fail(TypeError, name, "texts", _checks.describe(text))
    return texts


def _pictures(name: str, value: Any, count: int) -> None:
    if value is None:
        return
    _checks.tensor(name, value)
    if value.ndim != 4 or value.shape[0] != count:
        _checks.fail(ValueError, name, f"[{count}, c, H, W]", list(value.shape))
    if value.numel() and not (float(value.min()) >= 0 and float(value.max()) <= 1):  # also not a number
        got = f"{float(value.min()):g} to {float(value.max()):g}"
        _checks.fail(ValueError, name, "values in 0..1", got)


def _digest(images: Tensor | None) -> str | None:
    if images is None:
        return None
    values = images.detach().to("cpu", torch.float32).contiguous()
    found = hashlib.sha256(f"{list(values.shape)}".encode())
    found.update(values.numpy().tobytes())
    return found.hexdigest()
