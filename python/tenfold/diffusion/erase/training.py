"""The loop that ESD and AdvUnlearn share: a copy of a component (of SDXL's text encoders both) is trained
against the original model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from tenfold import _checks
from tenfold.diffusion.bundle import Bundle
from tenfold.diffusion.condition import Condition
from tenfold.diffusion.encode import check_shared_words, condition_ids, tokenize
from tenfold.diffusion.erase.bank import Bank, Draw, Live, Walk, rng_of
from tenfold.diffusion.erase.concept import Concept, check_fit, check_words
from tenfold.diffusion.erase.edit import Edit, digest, encoders_edit, weights_edit
from tenfold.diffusion.erase.target import esd_loss, esd_target, mse, snr_weight, weighted_mse
from tenfold.diffusion.erase.trainable import COMPONENTS, ENCODERS, component_of, parts_of, trainable
from tenfold.diffusion.sampling import ALIGNMENTS

__all__ = ["ESD", "RETAIN_TRAIN", "Progress", "Training"]

RETAIN_TRAIN = ("reg", "iter")
CONCEPT, DRAW, RETAIN, ATTACK, INIT = range(5)

Progress = Callable[[int, int, dict[str, float]], None]
"""(iterations done, of how many, numbers of the last one)."""


@dataclass(frozen=True)
class ESD:
    """Erased Stable Diffusion (arXiv 2303.07345): the model learns to answer the concept as if led away
    from it.

    train_method: which weights (`trainable`): "xattn" is ESD-x, "noxattn" ESD-u, "text_encoder" ESD-TE.
    component, norm_layer: see `trainable`. encoders: which of SDXL's two text encoders train: "both",
        "text_encoder" or "text_encoder_2".
    lr, iterations: of Adam, without decay or schedule.
    eta: how far the target leads away. start_guidance, steps: of the walks that latents come from.
    batch: latents in a step (published: 1). size: side of the pictures in pixels; None, the model's own.
    retain_weight: of the term that keeps the retained prompts' predictions; 0 leaves it out. Stable
        Diffusion: 0.3 for nudity, 0.5 for styles and objects in AdvUnlearn.
    retain_batch: retained prompts in a step. retain_train: "reg" adds the term to the loss; "iter" makes
        `retain_steps` steps of their own on it, with new latents and without the weight.
    bank_size: walks of each concept prompt that are made once and used again (see `bank`); 0 walks anew
        for every draw. bank_retain: walks of each retained prompt. bank_refresh_every: iterations after
        which they are made anew; 0 never. Exact where a text encoder is trained; with a UNet the original
        one walks instead of the current one.
    t_alignment: "exact", latents and timestep of the same noise level; "reference", as published, 39 to 58
        timesteps apart.
    compat: "reference" repeats what the published code does by mistake (docs/errata/advunlearn.md).
    snr_gamma: weight noise errors by min(SNR, gamma) / SNR (Min-SNR, arXiv 2303.09556); None, not at all. A
        model that predicts clean samples turns small errors at low noise into large ones of noise: give it 5.
    """

    train_method: str = "xattn"
    component: str = "all"
    norm_layer: bool = False
    encoders: str = "both"
    lr: float = 1e-5
    iterations: int = 1000
    eta: float = 1.0
    start_guidance: float = 3.0
    steps: int = 50
    batch: int = 1
    size: int | None = None
    retain_weight: float = 0.0
    retain_batch: int = 5
    retain_train: str = "reg"
    retain_steps: int = 1
    bank_size: int = 0
    bank_retain: int = 1
    bank_refresh_every: int = 0
    t_alignment: str = "exact"
    compat: str = "fixed"
    snr_gamma: float | None = None

    name: ClassVar[str] = "esd"

    def __post_init__(self) -> None:
        component_of(self.train_method)
        _checks.choice("component", self.component, COMPONENTS)
        _checks.choice("encoders", self.encoders, ENCODERS)
        _checks.choice("retain_train", self.retain_train, RETAIN_TRAIN)
        _checks.choice("t_alignment", self.t_alignment, ALIGNMENTS)
        _checks.choice("compat", self.compat, ("fixed", "reference"))
        for name, low in (
            ("iterations", 1), ("steps", 2), ("batch", 1), ("retain_batch", 1), ("retain_steps", 1),
            ("bank_size", 0), ("bank_retain", 1), ("bank_refresh_every", 0),
        ):  # fmt: skip
            _checks.integer(name, getattr(self, name), low, 10**7)
        if self.size is not None:
            _checks.integer("size", self.size, 1, 2**16)
        if not isinstance(self.norm_layer, bool):
            _checks.fail(TypeError, "norm_layer", "True or False", _checks.describe(self.norm_layer))
        _checks.real("lr", self.lr, positive=True)
        if self.snr_gamma is not None:
            _checks.real("snr_gamma", self.snr_gamma, positive=True)
        for name in ("eta", "start_guidance", "retain_weight"):
            _checks.real(name, getattr(self, name), at_least=0.0)

    @classmethod
    def small(cls, **changes: Any) -> Any:
        """For a model of a few million weights that predicts clean samples."""
        own = cls(train_method="xattn", lr=5e-4, iterations=60, batch=4, steps=10, snr_gamma=5.0)
        return replace(own, **changes)

    @property
    def room(self) -> int:
        """Tokens that are spliced into the concept."""
        return 0

    def training(self, bundle: Bundle, concept: Concept, seed: int) -> Training:
        """The loop, before its first iteration."""
        return Training(self, bundle, concept, seed)

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
        """Train; `bundle` stays as it is.

        Args:
            seed: of every draw, in [0, 2^32).
            state: what `on_state` was given last: the training goes on from there, to the same result.
            on_state: called every `state_every` iterations with tensors and numbers by name.

        Raises:
            ValueError: the concept does not fit the context; the tokenizer is not the text encoder's;
                retained prompts are missing; weights are not float32; two text encoders do not share their
                words.
            RuntimeError: a loss is not finite (names iteration, concept and timestep).
        """
        check_fit(bundle, concept, seed)
        _checks.integer("state_every", state_every, 1, 10**9)
        training = self.training(bundle, concept, seed)
        if state is not None:
            training.restore(state)
        while training.done < self.iterations:
            numbers = training.iterate()
            if progress is not None:
                progress(training.done, self.iterations, numbers)
            if on_state is not None and (
                training.done % state_every == 0 or training.done == self.iterations
            ):
                on_state(training.state())
        return training.edit()


class Training:
    """The state of a training. AdvUnlearn overrides `choose` and `concept_text`."""

    def __init__(self, method: Any, bundle: Bundle, concept: Concept, seed: int):
        self.method, self.concept, self.seed = method, concept, seed
        self.original = bundle
        _check(method, bundle, concept)
        self.parts = parts_of(bundle, method.train_method, method.encoders)
        copies = {p: copy.deepcopy(getattr(bundle, p)).eval().requires_grad_(False) for p in self.parts}
        self.modules: dict[str, Any] = copies
        self.student = bundle.replace(**copies)
        self.chosen = {
            name if len(self.parts) == 1 else f"{part}.{name}": parameter
            for part, module in copies.items()
            for name, parameter in trainable(
                module, method.train_method, component=method.component, norm_layer=method.norm_layer,
                compat=method.compat, last=not (bundle.is_sdxl and part == "text_encoder"),
            ).items()
        }  # fmt: skip
        for other in bundle.modules().values():
            other.requires_grad_(False)
        for parameter in self.chosen.values():
            parameter.requires_grad_(True)
        self.optimizer = torch.optim.Adam(self.chosen.values(), lr=method.lr)
        self.walk = Walk(
            method.steps,
            method.start_guidance,
            method.t_alignment,
            bundle.latent_shape(method.size, method.size),
        )
        text = (concept.prompts, concept.retain if self.retains else ())
        self.texts = text
        self.tokens = [tokenize(bundle, [p], compat=method.compat) for p in concept.prompts]
        self.retain_ids = tokenize(bundle, list(text[1])).ids
        self.done = 0
        self.losses: list[float] = []
        self.prompt = 0
        self.adv: Tensor | None = None
        self.source: Any = None
        self.bank_of = -1

    @property
    def retains(self) -> bool:
        """Whether retained prompts take part: "iter" steps do without the weight."""
        return bool(self.method.retain_weight) and bool(self.concept.retain)

    @cached_property
    def base_sha256(self) -> str:
        """Of what trains, before it was trained."""
        return digest(*(getattr(self.original, part) for part in self.parts))

    def iterate(self) -> dict[str, float]:
        """One iteration."""
        m, i = self.method, self.done
        self._refresh()
        self.choose(i)
        drawn = self.source.concept(rng_of(self.seed, i, DRAW), self.prompt, m.batch)
        text = self.concept_text().expand(len(drawn.z))
        loss = self._away(self.student.predict(drawn.z, drawn.t, text), drawn)
        self.finite(loss, drawn, "loss")
        numbers = {"loss": float(loss.detach())}
        if self.retains and m.retain_train == "reg":
            kept = self._retain_loss(0, drawn)
            numbers["retain"] = float(kept.detach())
            loss = loss + m.retain_weight * kept
        self._step(loss)
        if self.retains and m.retain_train == "iter":
            for extra in range(m.retain_steps):
                kept = self._retain_loss(extra, None)
                numbers["retain"] = float(kept.detach())
                self._step(kept)
        self.done += 1
        self.losses.append(numbers["loss"])
        return numbers

    def choose(self, iteration: int) -> None:
        """The concept prompt of this iteration."""
        self.prompt = int(rng_of(self.seed, iteration, CONCEPT).integers(len(self.tokens)))

    def concept_text(self) -> Condition:
        """The concept prompt as the student reads it, one row."""
        return condition_ids(self.student, self.tokens[self.prompt].ids)

    def finite(self, loss: Tensor, drawn: Draw, name: str) -> None:
        """Stop at a loss that is NaN or infinite."""
        if not bool(loss.detach().isfinite()):
            prompt = self.concept.prompts[self.prompt]
            where = f"{float(loss.detach())} at iteration {self.done}, concept {prompt!r}"
            times = sorted(set(drawn.t.tolist()))
            _checks.fail(
                RuntimeError, name, "a finite number", f"{where}, t = {', '.join(map(str, times[:4]))}"
            )

    def _away(self, found: Tensor, drawn: Draw) -> Tensor:
        """The error to the prediction that leads away from the concept."""
        assert drawn.e0 is not None
        weight = snr_weight(self.original, drawn.t, found, self.method.snr_gamma)
        if weight is None:
            return esd_loss(found, drawn.e0, drawn.ep, self.method.eta)
        return weighted_mse(found, esd_target(drawn.e0, drawn.ep, self.method.eta), weight)

    def _retain_loss(self, extra: int, like: Draw | None) -> Tensor:
        rng = rng_of(self.seed, self.done, RETAIN, extra)
        count = len(self.retain_ids)
        rows = rng.choice(count, min(self.method.retain_batch, count), replace=False)
        drawn = self.source.retain(rng, rows, like)
        text = condition_ids(self.student, self.retain_ids[torch.from_numpy(rows)])
        found = self.student.predict(drawn.z, drawn.t, text)
        weight = snr_weight(self.original, drawn.t, found, self.method.snr_gamma)
        kept = mse(found, drawn.ep) if weight is None else weighted_mse(found, drawn.ep, weight)
        self.finite(kept, drawn, "retain loss")
        return kept

    def _step(self, loss: Tensor) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()

    def _refresh(self) -> None:
        """Make the walks that this iteration needs."""
        m = self.method
        if not m.bank_size:
            if self.source is None:
                walker = self.student if self.parts == ("unet",) else self.original
                self.source = Live(self.original, walker, self.texts, self.walk)
            return
        number = self.done // m.bank_refresh_every if m.bank_refresh_every else 0
        if number != self.bank_of:
            self.source = Bank(
                self.original, self.texts, self.walk, size=m.bank_size, retain_size=m.bank_retain,
                seed=self.seed + (number << 32),
            )  # fmt: skip
            self.bank_of = number

    def state(self) -> dict[str, Any]:
        """Everything that `restore` needs: tensors, numbers, lists of numbers."""
        found: dict[str, Any] = {
            "iteration": self.done, "seed": self.seed, "prompt": self.prompt, "losses": list(self.losses),
            "method": repr(self.method), "concept": repr(self.concept), "base_sha256": self.base_sha256,
        }  # fmt: skip
        for name, parameter in self.chosen.items():
            found[f"param/{name}"] = parameter.detach().clone().cpu()
            for key, value in self.optimizer.state[parameter].items():
                found[f"adam/{name}/{key}"] = torch.as_tensor(value).detach().clone().cpu()
        if self.adv is not None:
            found["adv"] = self.adv.detach().clone().cpu()
        return found

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`.

        Raises:
            TypeError, ValueError: it is no state, or of another training.
        """
        if not isinstance(state, dict):
            _checks.fail(TypeError, "state", "what on_state was given", _checks.describe(state))
        lost = sorted({"iteration", "prompt", "losses", *(f"param/{n}" for n in self.chosen)} - set(state))
        if lost:
            _checks.fail(ValueError, f"state: {lost[0]}", "a value", f"none ({len(lost)} missing)")
        for name, expected in (
            ("method", repr(self.method)),
            ("concept", repr(self.concept)),
            ("seed", self.seed),
            ("base_sha256", self.base_sha256),
        ):
            if state.get(name) != expected:
                _checks.fail(ValueError, f"state: {name}", str(expected), state.get(name))
        with torch.no_grad():
            for name, parameter in self.chosen.items():
                parameter.copy_(state[f"param/{name}"])
                moments = {k: state[f"adam/{name}/{k}"] for k in ("step", "exp_avg", "exp_avg_sq")}
                self.optimizer.state[parameter] = {
                    k: v.clone() if k == "step" else v.clone().to(parameter) for k, v in moments.items()
                }
        self.done, self.prompt = int(state["iteration"]), int(state["prompt"])
        self.losses = [float(x) for x in state["losses"]]
        if "adv" in state:
            self.adv = state["adv"].clone().to(self.original.device)

    def edit(self) -> Edit:
        """The result."""
        tokenizer = self.original.tokenizer
        details = {
            "eraser": self.method.name, "settings": asdict(self.method), "concept": self.concept.about(),
            "seed": self.seed, "base": self.original.name,
            "base_sha256": self.base_sha256,
            "ids": {p: tokenizer([p], padding=False, truncation=True)["input_ids"][0] for p in
            self.concept.prompts}, "trained": len(self.chosen), "losses": self.losses,
        }  # fmt: skip
        for module in self.modules.values():
            module.requires_grad_(False)
        if len(self.parts) == 2:
            return encoders_edit(self.modules, details)
        (part,) = self.parts
        return weights_edit(self.modules[part], part, list(self.chosen), details)


def _check(method: Any, bundle: Bundle, concept: Concept) -> None:
    check_shared_words(bundle)
    for name, module in bundle.modules().items():
        kinds = {p.dtype for p in module.parameters()}
        if name != "vae" and kinds != {torch.float32}:
            _checks.fail(ValueError, name, "float32 weights for training", kinds)
    check_words(bundle, concept.prompts, room=method.room)
    check_words(bundle, concept.retain)
    if method.retain_weight and not concept.retain:
        expected = "prompts to keep (or retain_weight=0)"
        _checks.fail(ValueError, "retain", expected, "none")
