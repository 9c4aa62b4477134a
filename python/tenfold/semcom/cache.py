"""Where a codec that was trained once is kept for the next run."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path

import torch

from tenfold.semcom.config import CtsemcomConfig

__all__ = ["kept_at"]

_FORM = "tenfold.semcom/4"
"""Changed whenever the same settings lead to other weights."""


def kept_at(config: CtsemcomConfig, role: str) -> Path | None:
    """File of a codec in the cache, named by all that its weights depend on.

    None where pictures are not the embedded ones: a folder's name says nothing about what is in it.
    """
    if config.dataset != "photographs":
        return None
    link = config.train_link(role)
    said = {
        "form": _FORM, "codec": config.spec(role).plain(), "settings": asdict(config.settings(role)),
        "fading": asdict(link.fading), "power_w": link.power_w, "carriers": link.carriers,
        "power_mode": link.power_mode, "torch": torch.__version__, "device": config.device,
    }  # fmt: skip
    name = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:32]
    top = Path(config.cache or os.environ.get("TENFOLD_CACHE", "") or Path.home() / ".cache" / "tenfold")
    return top / "semcom" / f"{role}-{name}.safetensors"
