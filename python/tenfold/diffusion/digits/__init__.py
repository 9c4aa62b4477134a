"""The digits world: a text-to-image model trained on real handwritten digits, small enough for one processor.

bundle = load_digits()             the trained model that comes with the package
judge = DigitJudge("five")         is the picture a five, and a digit at all?
digit_agreement(bundle)            how often it draws what the prompt names
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from tenfold.diffusion.bundle import Bundle
from tenfold.diffusion.digits.images import Pictures, digit_pictures
from tenfold.diffusion.digits.judge import DigitJudge, gate_distance, read_digits
from tenfold.diffusion.digits.model import new_bundle
from tenfold.diffusion.digits.store import ABOUT, FILE, WEIGHTS, read
from tenfold.diffusion.digits.utility import Agreement, digit_agreement, pixel_frechet
from tenfold.diffusion.digits.vocabulary import (
    DESCRIPTORS,
    NAMES,
    digit_name,
    digit_of,
    digits_described,
    name_prompts,
    retain_prompts,
)

__all__ = [
    "ABOUT",
    "DESCRIPTORS",
    "FILE",
    "NAMES",
    "WEIGHTS",
    "Agreement",
    "DigitJudge",
    "Pictures",
    "digit_agreement",
    "digit_name",
    "digit_of",
    "digit_pictures",
    "digits_described",
    "gate_distance",
    "load_digits",
    "name_prompts",
    "pixel_frechet",
    "read_digits",
    "retain_prompts",
    "state_of",
]

_PARTS = ("unet", "text_encoder")


def load_digits(folder: str | Path = WEIGHTS) -> Bundle:
    """The trained model, frozen; from the package, or from a folder that `digits.build` wrote.

    Raises:
        FileNotFoundError, RuntimeError: a file is missing or is not the one it should be.
    """
    state, _ = read(Path(folder))
    bundle = new_bundle()
    for part in _PARTS:
        own = {k.removeprefix(f"{part}."): v for k, v in state.items() if k.startswith(f"{part}.")}
        getattr(bundle, part).load_state_dict(own, strict=True)
    return bundle


def state_of(bundle: Bundle) -> dict[str, Tensor]:
    """The weights of a digits bundle, as `digits.safetensors` has them."""
    return {
        f"{part}.{name}": tensor
        for part in _PARTS
        for name, tensor in getattr(bundle, part).state_dict().items()
        if not name.endswith("position_ids")
    }
