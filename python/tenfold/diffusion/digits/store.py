"""The weights file of the embedded model, and what is known of where it comes from."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from torch import Tensor

from tenfold.assets import sha256_of

__all__ = ["ABOUT", "FILE", "WEIGHTS", "read", "write"]

WEIGHTS = Path(__file__).parent / "weights"
FILE, ABOUT = "digits.safetensors", "digits.json"


def write(folder: Path, state: dict[str, Tensor], about: dict[str, Any]) -> None:
    """Write weights and provenance; `about` gets the file's SHA-256."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / f"{FILE}.tmp"
    save_file({name: tensor.detach().contiguous().cpu() for name, tensor in state.items()}, aside)
    aside.chmod(0o644)
    known = {**about, "file": FILE, "sha256": sha256_of(aside), "bytes": aside.stat().st_size}
    text = folder / f"{ABOUT}.tmp"
    text.write_text(json.dumps(known, indent=1) + "\n")
    os.replace(aside, folder / FILE)
    os.replace(text, folder / ABOUT)


def read(folder: Path = WEIGHTS) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights and provenance.

    Raises:
        FileNotFoundError: a file is missing. RuntimeError: the weights are not those of the provenance.
    """
    from safetensors.torch import load_file

    for name in (FILE, ABOUT):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"folder: expected {name} in {folder}, got nothing")
    about = json.loads((folder / ABOUT).read_text())
    digest = sha256_of(folder / FILE)
    if digest != about["sha256"]:
        raise RuntimeError(f"{folder / FILE}: expected SHA-256 {about['sha256']}, got {digest}")
    return load_file(folder / FILE), about
