"""The weights file of the embedded model, and what is known of where it comes from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from tenfold.diffusion.embedded import WeightsFile

__all__ = ["ABOUT", "FILE", "WEIGHTS", "read", "write"]

WEIGHTS = Path(__file__).parent / "weights"
FILE, ABOUT = "digits.safetensors", "digits.json"
_FILE = WeightsFile(FILE, ABOUT)


def write(folder: Path, state: dict[str, Tensor], about: dict[str, Any]) -> None:
    """Write weights and provenance; `about` gets the file's SHA-256."""
    _FILE.write(folder, state, about)


def read(folder: Path = WEIGHTS) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights and provenance.

    Raises:
        FileNotFoundError: a file is missing. RuntimeError: the weights are not those of the provenance.
    """
    return _FILE.read(folder)
