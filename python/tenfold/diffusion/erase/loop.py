"""A training that can be stopped and gone on with: what the erasers' loops have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tenfold import _checks
from tenfold.diffusion.bundle import Bundle
from tenfold.diffusion.encode import encode_ids, tokenize
from tenfold.diffusion.erase.concept import ONE_ENCODER, Concept
from tenfold.diffusion.erase.edit import Edit, digest

__all__ = ["Loop", "States", "check_trainable", "run"]

Progress = Callable[[int, int, dict[str, float]], None]
"""(iterations done, of how many, numbers of the last one)."""


class Loop:
    """Named tensors and their optimizers. Every random number is a function of seed and iteration, so that
    the state is tensors and numbers only.

    Subclasses set `parameters` and `optimizers` (each parameter in one of them) and have `iterate`, `edit`.
    """

    parameters: dict[str, Tensor]
    optimizers: list[torch.optim.Optimizer]

    def __init__(self, method: Any, bundle: Bundle, concept: Concept, seed: int, total: int):
        self.method, self.original, self.concept = method, bundle, concept
        self.seed, self.total, self.done = seed, total, 0
        self.losses: list[float] = []
        self.base_sha256 = digest(bundle.unet)

    def iterate(self) -> dict[str, float]:
        """One iteration, and its numbers, "loss" among them; each method's own."""
        raise NotImplementedError

    def edit(self) -> Edit:
        """What makes the original model the trained one; each method's own."""
        raise NotImplementedError

    def finite(self, loss: Tensor, name: str, t: Tensor) -> None:
        """Stop at a loss that is NaN or infinite."""
        if bool(loss.detach().isfinite()):
            return
        times = ", ".join(map(str, sorted(set(t.tolist()))[:4]))
        where = f"{float(loss.detach())} at iteration {self.done}, concept {self.concept.name!r}, t = {times}"
        _checks.fail(RuntimeError, name, "a finite number", where)

    def _identity(self) -> dict[str, Any]:
        return {
            "seed": self.seed, "method": repr(self.method), "concept": repr(self.concept),
            "base_sha256": self.base_sha256,
        }  # fmt: skip

    def state(self) -> dict[str, Any]:
        """Everything that `restore` needs: tensors, numbers, lists of numbers."""
        found: dict[str, Any] = {"iteration": self.done, "losses": list(self.losses), **self._identity()}
        for name, parameter in self.parameters.items():
            found[f"param/{name}"] = parameter.detach().clone().cpu()
            for key, value in self._moments(parameter).items():
                found[f"adam/{name}/{key}"] = torch.as_tensor(value).detach().clone().cpu()
        return found

    def _moments(self, parameter: Tensor) -> dict[str, Any]:
        for optimizer in self.optimizers:
            if parameter in optimizer.state:
                return dict(optimizer.state[parameter])
        return {}

    def restore(self, state: Any) -> None:
        """Go on from `state`.

        Raises:
            TypeError, ValueError: it is no state, or of another training.
        """
        if not isinstance(state, dict):
            _checks.fail(TypeError, "state", "what on_state was given", _checks.describe(state))
        lost = sorted({"iteration", "losses", *(f"param/{n}" for n in self.parameters)} - set(state))
        if lost:
            _checks.fail(ValueError, f"state: {lost[0]}", "a value", f"none ({len(lost)} missing)")
        for name, expected in self._identity().items():
            if state.get(name) != expected:
                _checks.fail(ValueError, f"state: {name}", str(expected), state.get(name))
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(state[f"param/{name}"])
        for optimizer in self.optimizers:
            known = {id(p) for group in optimizer.param_groups for p in group["params"]}
            for name, parameter in self.parameters.items():
                start = f"adam/{name}/"
                kept = {k.removeprefix(start): v for k, v in state.items() if k.startswith(start)}
                if id(parameter) in known and kept:
                    optimizer.state[parameter] = {
                        k: v.clone() if k == "step" else v.clone().to(parameter) for k, v in kept.items()
                    }
        self.done = int(state["iteration"])
        self.losses = [float(x) for x in state["losses"]]


def run(
    loop: Loop,
    *,
    progress: Progress | None,
    state: dict[str, Any] | None,
    on_state: Callable[[dict[str, Any]], None] | None,
    state_every: int,
) -> Edit:
    """Iterate to the end, from `state` if there is one; `on_state` is given a new one every `state_every`
    iterations and at the end."""
    _checks.integer("state_every", state_every, 1, 10**9)
    if state is not None:
        loop.restore(state)
    while loop.done < loop.total:
        numbers = loop.iterate()
        loop.done += 1
        loop.losses.append(numbers["loss"])
        if progress is not None:
            progress(loop.done, loop.total, numbers)
        if on_state is not None and (loop.done % state_every == 0 or loop.done == loop.total):
            on_state(loop.state())
    return loop.edit()


class States:
    """Text states [1, L, D] of the original text encoder, each text encoded once."""

    def __init__(self, bundle: Bundle):
        self.bundle = bundle
        self._kept: dict[str, Tensor] = {}

    def __call__(self, text: str) -> Tensor:
        if text not in self._kept:
            with torch.no_grad():
                self._kept[text] = encode_ids(self.bundle, tokenize(self.bundle, [text]).ids)
        return self._kept[text]


def check_trainable(bundle: Bundle) -> None:
    """Refuse what these loops do not train.

    Raises:
        ValueError: SDXL, or weights that are not float32.
    """
    if bundle.is_sdxl:
        _checks.fail(ValueError, "bundle", ONE_ENCODER, "one with two (SDXL)")
    for name in ("unet", "text_encoder"):
        kinds = {p.dtype for p in getattr(bundle, name).parameters()}
        if kinds != {torch.float32}:
            _checks.fail(ValueError, name, "float32 weights for training", kinds)
