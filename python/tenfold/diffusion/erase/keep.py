"""A training's state in a file, so that a killed process goes on from where it was."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from torch import Tensor

from tenfold._reading import reading
from tenfold.diffusion.bundle import Bundle
from tenfold.diffusion.erase.concept import Concept
from tenfold.diffusion.erase.edit import Edit
from tenfold.runs.files import read_safetensors, replacing

__all__ = ["fit_kept", "read_state", "write_state"]


def write_state(path: str | Path, state: dict[str, Any]) -> None:
    """Keep what `on_state` was given: tensors as safetensors, the rest as JSON in its header."""
    from safetensors.torch import save_file

    tensors = {name: value.contiguous() for name, value in state.items() if isinstance(value, Tensor)}
    rest = {name: value for name, value in state.items() if name not in tensors}
    with replacing(Path(path)) as aside:
        save_file(tensors, aside, metadata={"rest": json.dumps(rest)})


def read_state(path: str | Path) -> dict[str, Any]:
    """What `write_state` kept, on the CPU.

    Raises:
        ValueError: the file is broken.
    """
    with reading(path, "the state of a training"):
        tensors, told = read_safetensors(path)
        return {**json.loads(told["rest"]), **tensors}


def fit_kept(
    method: Any, bundle: Bundle, concept: Concept, path: str | Path, *, seed: int, every: int = 20
) -> Edit:
    """`method.fit`, its state kept in `path` every `every` iterations; goes on from it if it is there.

    The result is that of a training in one go, bit for bit. Its processor time, all parts together, is
    `details["cpu_seconds"]`. The file is left to the caller.
    """
    start, spent, state = time.process_time(), 0.0, None
    if Path(path).is_file():
        state = read_state(path)
        spent = float(state.pop("cpu_seconds", 0.0))

    def seconds() -> float:
        return round(spent + time.process_time() - start, 3)

    edit: Edit = method.fit(
        bundle, concept, seed=seed, state=state, state_every=every,
        on_state=lambda found: write_state(path, {**found, "cpu_seconds": seconds()}),
    )  # fmt: skip
    edit.details["cpu_seconds"] = seconds()
    return edit
