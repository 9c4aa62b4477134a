"""The mini canvas: eight photographs in eight styles, a model that draws them, and judges of what it drew.

    bundle = mini_bundle()                       # also load_bundle("canvas")
    style_judge, object_judge = mini_judges()
    cell_pictures("Winter", "Cats")              # the pictures of a cell, uint8 [48, 32, 32, 3]

The photographs are read out of scikit-learn and scikit-image; the weights come with this package.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tenfold.diffusion.bundle import Bundle
from tenfold.diffusion.canvas.judging import JudgeCard
from tenfold.diffusion.canvas.mini.images import CREDITS, HELD_OUT, OBJECTS, SIDE, TRAINING, cell_pictures
from tenfold.diffusion.canvas.mini.judge import Classifier, MiniJudge
from tenfold.diffusion.canvas.mini.model import new_bundle
from tenfold.diffusion.canvas.mini.store import ABOUT, FILE, WEIGHTS, read
from tenfold.diffusion.canvas.mini.styles import PHOTO, STYLES, apply_style
from tenfold.diffusion.canvas.vocabulary import Canvas

__all__ = [
    "ABOUT",
    "CREDITS",
    "FILE",
    "HELD_OUT",
    "MINI",
    "TRAINING",
    "WEIGHTS",
    "apply_style",
    "cell_pictures",
    "cell_tensors",
    "mini_bundle",
    "mini_judges",
    "state_of",
]

MINI = Canvas(
    "mini", (*STYLES, PHOTO), tuple(OBJECTS), photo=PHOTO, steps=12, guidance=3.0, resolution=SIDE,
    seeds=(188, 288),
)  # fmt: skip
"""8 styles and the photographs x 8 objects, two pictures of each cell."""

_PARTS = ("unet", "text_encoder", "vae")


@lru_cache(maxsize=1)
def _stored() -> tuple[dict[str, Tensor], dict[str, Any]]:
    return read(WEIGHTS)


def _state(folder: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    return _stored() if Path(folder) == WEIGHTS else read(Path(folder))


def _part(state: dict[str, Tensor], part: str) -> dict[str, Tensor]:
    return {k.removeprefix(f"{part}."): v for k, v in state.items() if k.startswith(f"{part}.")}


def cell_tensors(style: str, object: str, n: int, first: int = 1) -> Tensor:
    """float32 [n, 3, 32, 32] in 0..1 of a cell, from picture `first` on: the form in which erasers that learn
    from pictures are given them."""
    pictures = cell_pictures(style, object, range(first, first + n))
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255


def mini_bundle(folder: str | Path = WEIGHTS) -> Bundle:
    """The trained model, frozen; from the package, or from a folder that `mini.build` wrote.

    It predicts clean latents ("sample"); pictures are [3, 32, 32], latents [16, 8, 8].

    Raises:
        FileNotFoundError, RuntimeError: a file is missing or is not the one it should be.
    """
    state, _ = _state(folder)
    bundle = new_bundle()
    for part in _PARTS:
        getattr(bundle, part).load_state_dict(_part(state, part), strict=True)
    return bundle.freeze()


def mini_judges(folder: str | Path = WEIGHTS) -> tuple[MiniJudge, MiniJudge]:
    """(judge of styles, judge of objects). Raises: as `mini_bundle`."""
    state, about = _state(folder)
    found = []
    for domain, classes in (("style", MINI.styles), ("object", MINI.objects)):
        network = Classifier(len(classes))
        network.load_state_dict(_part(state, f"{domain}_judge"), strict=True)
        network.requires_grad_(False).eval()
        accuracy = float(about["quality"][f"{domain}_judge_held_out"])
        shown = len(MINI.cells) * len(HELD_OUT)
        card = JudgeCard(f"mini-{domain}", domain, classes, accuracy, shown, "the mini canvas")
        found.append(MiniJudge(network, card))
    return found[0], found[1]


def state_of(bundle: Bundle, style: Classifier, objects: Classifier) -> dict[str, Tensor]:
    """All weights, as the file has them."""
    modules = {part: getattr(bundle, part) for part in _PARTS}
    modules |= {"style_judge": style, "object_judge": objects}
    return {
        f"{part}.{name}": tensor
        for part, module in modules.items()
        for name, tensor in module.state_dict().items()
        if not name.endswith("position_ids")
    }
