"""Semi-permeable membranes: rank-1 adapters that stop one concept (Lyu et al., arXiv 2312.16145).

Beside every linear layer and convolution of the UNet's transformers a change U D of rank 1 is trained:

    loss = |e_m(z, t, c) - (e0 - g (ec - e0))|^2 + strength |e_m(z, t, a) - e(z, t, a)|^2

e_m is the prediction with the adapters, e0 and ec the original model's without text and with the concept; a
are random text states away from the concept (latent anchors) at which nothing may change. When pictures are
made, the adapter acts as strongly as the prompt is near the concept (`transport`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from tenfold import _checks
from tenfold.diffusion.bundle import Bundle
from tenfold.diffusion.erase.bank import rng_of
from tenfold.diffusion.erase.concept import Concept, check_fit, check_words, words_of
from tenfold.diffusion.erase.edit import Edit
from tenfold.diffusion.erase.loop import Loop, Progress, States, check_trainable, run
from tenfold.diffusion.erase.lowrank import (
    LowRank,
    adapters,
    layers_of,
    read_lowrank,
    tensors_of,
    transformer_layers,
    write_lowrank,
)
from tenfold.diffusion.erase.target import esd_target, snr_weight, weighted_mse
from tenfold.diffusion.erase.transport import METRICS
from tenfold.diffusion.sampling import partial_ddim, partial_times

__all__ = ["SPM", "anchor_states", "cosine_with_restarts", "read_spm", "spm_target", "write_spm"]

MERGE = "merge"
START, DRAW, ANCHORS = range(3)


@dataclass(frozen=True)
class SPM:
    """rank, alpha: of the adapters; they act times alpha / rank. lr, iterations, warmup, cycles: of AdamW,
    whose rate rises over `warmup` iterations and falls in `cycles` half cosines.

    guidance: g. anchors, anchor_strength: random text states in an iteration, and the weight of their term.
    batch: latents in an iteration. steps, start_guidance: of the walks that they come from, with the adapters
    at work. size: side of the pictures in pixels; None, the model's own.
    snr_gamma: weight noise errors by min(SNR, gamma) / SNR (Min-SNR, arXiv 2303.09556); None, not at all. A
    model that predicts clean samples turns small errors at low noise into large ones of noise: give it 5.
    transport: "clipcos_tokenuni" as published, "clipcos", "tokenuni", or "merge": the edit changes the
    weights for every prompt. match: texts that prompts are compared with; the concept's words if empty.
    """

    rank: int = 1
    alpha: float = 1.0
    lr: float = 1e-4
    iterations: int = 3000
    warmup: int = 500
    cycles: int = 3
    guidance: float = 1.0
    anchors: int = 4
    anchor_strength: float = 1000.0
    batch: int = 1
    steps: int = 30
    start_guidance: float = 3.0
    size: int | None = None
    snr_gamma: float | None = None
    transport: str = "clipcos_tokenuni"
    match: tuple[str, ...] = ()

    name: ClassVar[str] = "spm"

    def __post_init__(self) -> None:
        _checks.choice("transport", self.transport, (*METRICS, MERGE))
        for name, low in (
            ("rank", 1), ("iterations", 1), ("warmup", 0), ("cycles", 1), ("anchors", 0), ("batch", 1),
            ("steps", 2),
        ):  # fmt: skip
            _checks.integer(name, getattr(self, name), low, 10**7)
        if self.snr_gamma is not None:
            _checks.real("snr_gamma", self.snr_gamma, positive=True)
        if self.size is not None:
            _checks.integer("size", self.size, 1, 2**16)
        for name in ("lr", "alpha"):
            _checks.real(name, getattr(self, name), positive=True)
        for name in ("guidance", "anchor_strength", "start_guidance"):
            _checks.real(name, getattr(self, name), at_least=0.0)
        for text in _checks.sequence("match", self.match, "texts"):
            if not isinstance(text, str) or not text.strip():
                _checks.fail(ValueError, "match", "texts", repr(text))
        object.__setattr__(self, "match", tuple(self.match))

    @classmethod
    def small(cls, **changes: Any) -> SPM:
        """For a model of a few million weights that knows few words: all its prompts' states are alike, so
        tokens alone say what is near the concept."""
        own = cls(
            lr=3e-2, iterations=100, warmup=5, cycles=1, batch=4, steps=6, anchor_strength=10.0,
            snr_gamma=5.0, transport="tokenuni",
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
        """Train adapters; `bundle` stays as it is. Arguments and errors as of `ESD.fit`."""
        check_fit(bundle, concept, seed)
        check_trainable(bundle)
        check_words(bundle, (*concept.prompts, *self.match, *words_of(concept)))
        loop = _Training(self, bundle, concept, seed)
        return run(loop, progress=progress, state=state, on_state=on_state, state_every=state_every)


class _Training(Loop):
    def __init__(self, method: SPM, bundle: Bundle, concept: Concept, seed: int):
        super().__init__(method, bundle, concept, seed, method.iterations)
        bundle.unet.requires_grad_(False)
        self.layers = _new_layers(bundle, method, seed)
        self.parameters = {
            f"{path}.{part}": getattr(layer, part)
            for path, layer in self.layers.items() for part in ("down", "up")
        }  # fmt: skip
        self.optimizers = [torch.optim.AdamW(self.parameters.values(), lr=method.lr)]
        self.states = States(bundle)

    def iterate(self) -> dict[str, float]:
        m, rng = self.method, rng_of(self.seed, self.done, DRAW)
        prompt = self.concept.prompts[int(rng.integers(len(self.concept.prompts)))]
        z, t = self._latents(prompt, rng)
        cond, empty = (self.states(text).expand(len(z), -1, -1) for text in (prompt, ""))
        with torch.no_grad():
            target = spm_target(self.original, z, t, cond, empty, m.guidance)
        with adapters(self.original.unet, self.layers):
            loss = self._error(self.original.predict(z, t, cond), target, t)
        self.finite(loss, "loss", t)
        numbers = {"loss": float(loss.detach())}
        if m.anchors and m.anchor_strength:
            kept = self._anchored(z, t, self.states(prompt))
            self.finite(kept, "anchor loss", t)
            numbers["anchor"] = float(kept.detach())
            loss = loss + m.anchor_strength * kept
        for group in self.optimizers[0].param_groups:
            group["lr"] = m.lr * cosine_with_restarts(self.done, m.iterations, m.warmup, m.cycles)
        self.optimizers[0].zero_grad(set_to_none=True)
        loss.backward()
        self.optimizers[0].step()
        return numbers

    def _latents(self, prompt: str, rng: Any) -> tuple[Tensor, Tensor]:
        """Walked from noise with the adapters at work, 1 to steps - 1 steps."""
        m, bundle = self.method, self.original
        walked = int(rng.integers(1, m.steps))
        shape = (m.batch, *bundle.latent_shape(m.size, m.size))
        noise = torch.from_numpy(rng.standard_normal(shape, dtype="float32")).to(bundle.device)
        cond, empty = (self.states(text).expand(m.batch, -1, -1) for text in (prompt, ""))
        segment = m.steps - 1 - walked
        with adapters(bundle.unet, self.layers):
            z = partial_ddim(
                bundle.predict, bundle.schedule, noise, segment, cond, empty, steps=m.steps,
                guidance=m.start_guidance,
            )  # fmt: skip
        level = partial_times(bundle.schedule, segment, m.steps)[-1]
        return z, torch.full((m.batch,), level, device=z.device)

    def _anchored(self, z: Tensor, t: Tensor, concept: Tensor) -> Tensor:
        count = self.method.anchors
        states = anchor_states(concept[0], count, rng_of(self.seed, self.done, ANCHORS))
        states = states.repeat_interleave(len(z), 0)
        z, t = z.repeat(count, 1, 1, 1), t.repeat(count)
        with torch.no_grad():
            before = self.original.predict(z, t, states)
        with adapters(self.original.unet, self.layers):
            return self._error(self.original.predict(z, t, states), before, t)

    def _error(self, found: Tensor, target: Tensor, t: Tensor) -> Tensor:
        return weighted_mse(found, target, snr_weight(self.original, t, found, self.method.snr_gamma))

    def edit(self) -> Edit:
        m = self.method
        details = {
            "eraser": m.name, "settings": asdict(m), "concept": self.concept.about(), "seed": self.seed,
            "base": self.original.name, "base_sha256": self.base_sha256, "transport": m.transport,
            "erased": list(m.match or words_of(self.concept)), "rank": m.rank, "alpha": m.alpha,
            "losses": self.losses,
        }  # fmt: skip
        tensors = {k: v.cpu().clone() for k, v in tensors_of(self.layers).items()}
        return Edit("lowrank", "unet", tensors, details)


def spm_target(bundle: Bundle, z: Tensor, t: Any, cond: Tensor, empty: Tensor, guidance: float) -> Tensor:
    """e0 - g (ec - e0), a noise prediction [B, C, h, w], whatever the model predicts."""
    both = bundle.predict(torch.cat([z, z]), torch.cat([t, t]), torch.cat([empty, cond]))
    e0, ec = both.chunk(2)
    return esd_target(e0, ec, guidance)


def _new_layers(bundle: Bundle, method: SPM, seed: int) -> dict[str, LowRank]:
    """U = 0 and D uniform within in^-1/2, in the entries of one kernel: what He's initialisation with slope
    5^1/2 comes to. The rank of a layer is at most its sides."""
    layers, rng = {}, rng_of(seed, START)
    for path, module in transformer_layers(bundle.unet).items():
        weight = module.weight
        rank = min(method.rank, weight.shape[0], weight.shape[1])
        shape = (rank, *weight.shape[1:])
        bound = 1 / math.sqrt(math.prod(shape[1:]))
        down = torch.from_numpy(rng.uniform(-bound, bound, shape).astype("float32")).to(weight.device)
        up = torch.zeros((weight.shape[0], rank, *[1] * (weight.ndim - 2)), device=weight.device)
        layers[path] = LowRank(down.requires_grad_(), up.requires_grad_(), method.alpha / rank)
    if not layers:
        _checks.fail(ValueError, "unet", "layers inside a Transformer2DModel", "none")
    layers_of(bundle.unet, tensors_of(layers))  # their names are told apart
    return layers


def anchor_states(concept: Tensor, count: int, rng: Any) -> Tensor:
    """Random text states [count, L, D] around those of a concept [L, D]: directions drawn evenly and taken
    with probability 1 - cos to the concept, lengths 0.8 to 1.2 of the concept's."""
    found: list[Tensor] = []
    flat = concept.float().flatten()
    norm = flat.norm()
    while len(found) < count:
        drawn = torch.from_numpy(rng.standard_normal(flat.numel(), dtype="float32")).to(flat)
        drawn = drawn / drawn.norm()
        if rng.random() < 1 - float(drawn @ flat / norm):
            found.append(drawn * norm * (0.8 + 0.4 * rng.random()))
    return torch.stack(found).view(count, *concept.shape)


def cosine_with_restarts(done: int, iterations: int, warmup: int, cycles: int) -> float:
    """Share of the learning rate at an iteration."""
    if done < warmup:
        return done / warmup
    along = (done - warmup) / max(1, iterations - warmup)
    return 0.0 if along >= 1 else 0.5 * (1 + math.cos(math.pi * (cycles * along % 1)))


def read_spm(path: str | Path, *, transport: str = "clipcos_tokenuni") -> Edit:
    """The edit of a published adapter: a safetensors file with `lora_unet_...` keys and what it erases in its
    metadata ("prompts", separated by commas).

    Raises:
        FileNotFoundError: no such file. ValueError: no safetensors; no prompts to compare with (then
            transport="merge" reads it as any low-rank adapter).
    """
    tensors, said = read_lowrank(path)
    erased = [text.strip() for text in said.get("prompts", "").split(",") if text.strip()]
    if not erased and transport != MERGE:
        _checks.fail(ValueError, str(path), "prompts in the metadata (or transport='merge')", said or "none")
    details = {"eraser": SPM.name, "transport": transport, "erased": erased, "file": Path(path).name}
    return Edit("lowrank", "unet", tensors, details | {k: said[k] for k in ("rank", "alpha") if k in said})


def write_spm(edit: Edit, path: str | Path) -> Path:
    """Write a low-rank edit as one file in the published layout.

    Raises:
        ValueError: an edit of another kind. FileExistsError: the file is there.
    """
    if edit.kind != "lowrank":
        _checks.fail(ValueError, "edit", "a lowrank edit", edit.kind)
    return write_lowrank(path, edit.tensors, edit.details)
