"""The weights file of the mini canvas: matrices as int8 with a float16 scale for each row, the rest float16.

A quarter of the bytes of float32. A row's scale is its largest magnitude over 127, so that no weight moves by
more than 0.4 % of the largest in its row; the judges' accuracy on what the model draws is measured with the
weights as they are stored.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tenfold.diffusion.embedded import WeightsFile

__all__ = ["ABOUT", "FILE", "WEIGHTS", "packed", "read", "unpacked", "write"]

WEIGHTS = Path(__file__).parent / "weights"
FILE, ABOUT = "canvas.safetensors", "canvas.json"
_FILE = WeightsFile(FILE, ABOUT)
_SCALE = ".scale"


def packed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """As stored. Matrices and kernels of at least 1,024 numbers become int8 beside NAME.scale [rows]."""
    found = {}
    for name, tensor in state.items():
        value = tensor.detach().float().cpu()
        if value.ndim < 2 or value.numel() < 1024:
            found[name] = value.half() if value.abs().max() < 6e4 else value
            continue
        scale = (value.flatten(1).abs().amax(1) / 127).clamp(min=2.0**-14).half()
        rows = scale.float().view(-1, *[1] * (value.ndim - 1))
        found[name] = (value / rows).round().clamp(-127, 127).to(torch.int8)
        found[name + _SCALE] = scale
    return found


def unpacked(stored: dict[str, Tensor]) -> dict[str, Tensor]:
    """float32."""
    found = {}
    for name, tensor in stored.items():
        if name.endswith(_SCALE):
            continue
        value = tensor.float()
        if tensor.dtype == torch.int8:
            value = value * stored[name + _SCALE].float().view(-1, *[1] * (value.ndim - 1))
        found[name] = value
    return found


def write(folder: Path, state: dict[str, Tensor], about: dict[str, Any]) -> None:
    """Write float32 weights, packed, and provenance; `about` gets the file's SHA-256."""
    _FILE.write(folder, packed(state), about)


def read(folder: Path = WEIGHTS) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """float32 weights and provenance.

    Raises:
        FileNotFoundError: a file is missing. RuntimeError: the weights are not those of the provenance.
    """
    stored, about = _FILE.read(folder)
    return unpacked(stored), about
